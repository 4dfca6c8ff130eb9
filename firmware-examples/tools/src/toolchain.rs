//! Building a board's programs: with rustup's target, or with Debian's compiler and core from source.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{bail, Context, Result};

use crate::boards::{Board, EXAMPLES};

/// Debian's compiler, from the packages `rustc-web` and `rust-web-src`.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// A board's built programs.
pub struct Programs {
    folder: PathBuf,
    extension: &'static str,
    /// Whether every panic was compiled to a trap, so that none can be in the program.
    pub without_panics: bool,
}

impl Programs {
    /// The file of an example.
    pub fn path(&self, example: &str) -> PathBuf {
        self.folder.join(format!("{example}{}", self.extension))
    }
}

/// The folder `firmware-examples`.
pub fn root() -> PathBuf {
    // Compiled in; the tool is run where it was built.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

/// Where built files go: CARGO_TARGET_DIR, or `target`.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Builds examples for a board.
pub fn build(board: &Board, examples: &[&str]) -> Result<Programs> {
    for example in examples {
        if !EXAMPLES.contains(example) {
            bail!("no example {example:?}; there are: {}", EXAMPLES.join(", "));
        }
    }
    let target_dir = target_dir();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--locked", "--release", "--package", board.name]);
    for example in examples {
        cargo.args(["--bin", example]);
    }
    cargo.current_dir(root().join("boards").join(board.name));
    cargo.env("CARGO_TARGET_DIR", target_dir.join(board.name)).env("CARGO_BUILD_BUILD_DIR", target_dir.join("build"));
    let mut without_panics = false;
    if let Some(target) = board.target {
        if !has_target(target)? {
            without_panics = board.is_bare();
            from_source(&mut cargo, board, target)?;
        }
    }
    if !cargo.status().context("cargo cannot be started")?.success() {
        bail!("{} does not build", board.name);
    }
    let folder = match board.target {
        Some(target) => target_dir.join(board.name).join(target).join("release"),
        None => target_dir.join(board.name).join("release"),
    };
    let extension = if board.name == "wasm32" { ".wasm" } else { "" };
    Ok(Programs { folder, extension, without_panics })
}

/// Whether the compiler in use has the target's core library.
fn has_target(target: &str) -> Result<bool> {
    let libraries = output_of("rustc", &["--print", "target-libdir", "--target", target])?;
    Ok(std::fs::read_dir(libraries.trim()).is_ok_and(|mut files| {
        files.any(|file| file.is_ok_and(|f| f.file_name().to_string_lossy().starts_with("libcore-")))
    }))
}

/// Lets cargo build the standard library with Debian's compiler; panics become traps on bare metal.
fn from_source(cargo: &mut Command, board: &Board, target: &str) -> Result<()> {
    let sources =
        || output_of(DEBIAN_RUSTC, &["--print", "sysroot"]).map(|root| Path::new(root.trim()).join("lib/rustlib/src"));
    if !sources().is_ok_and(|sources| sources.is_dir()) {
        bail!(
            "the target {target} is not installed: rustup target add {target}\n\
             (or, on Debian: apt-get install rustc-web rust-web-src)"
        );
    }
    cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
    if board.has_std() {
        cargo.arg("-Zbuild-std=std,panic_abort"); // linked as the board's .cargo/config.toml says
        return Ok(());
    }
    let sysroot = output_of("rustc", &["--print", "sysroot"])?;
    let version = output_of("rustc", &["-vV"])?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();
    let linker = Path::new(sysroot.trim()).join("lib/rustlib").join(host).join("bin/rust-lld");
    let variable = format!("CARGO_TARGET_{}_LINKER", target.to_uppercase().replace(['-', '.'], "_"));
    cargo.env(variable, linker).arg("-Zbuild-std=core");
    if board.is_bare() {
        let traps = r#"["-Zunstable-options", "-Cpanic=immediate-abort"]"#;
        cargo.args(["--config", &format!("target.{target}.rustflags={traps}")]);
    }
    Ok(())
}

fn output_of(program: &str, arguments: &[&str]) -> Result<String> {
    let output =
        Command::new(program).args(arguments).output().with_context(|| format!("{program} cannot be started"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
