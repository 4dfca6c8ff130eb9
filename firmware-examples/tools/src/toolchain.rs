//! Building a board's programs: with rustup's target, or with Debian's compiler and core from source.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{bail, Context, Result};

use crate::boards::{Board, EXAMPLES};

/// Debian's compiler, from the packages `rustc-web` and `rust-web-src`.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// What the programs are built for.
#[derive(Clone, Copy, PartialEq)]
pub enum Purpose {
    /// To run: with the compiler's own core library, where it has the target's.
    Run,
    /// To measure, too: with core from source, as all that is recorded was; a board's, so only on bare metal.
    Measure,
}

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
pub fn build(board: &Board, examples: &[&str], purpose: Purpose) -> Result<Programs> {
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
        let measured = purpose == Purpose::Measure && board.is_bare();
        if measured || !has_target(target)? {
            without_panics = board.is_bare();
            from_source(&mut cargo, board, target, measured)?;
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
fn from_source(cargo: &mut Command, board: &Board, target: &str, measured: bool) -> Result<()> {
    if let Err(found) = debian_rustc() {
        let way_out = match measured {
            true => "sizes and counts are recorded with core from source; SORCEN_NO_SIZES=1 leaves them out".into(),
            false => format!("the target {target} is not installed: rustup target add {target}"),
        };
        bail!("{way_out}\n(or, on Debian: apt-get update, apt-get install rustc-web rust-web-src; {found})");
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

/// Whether Debian's compiler is as new as this workspace asks, with the source of its own version beside it; else what
/// was found.
fn debian_rustc() -> Result<(), String> {
    const WANTED: &str = env!("CARGO_PKG_RUST_VERSION");
    let version = output_of(DEBIAN_RUSTC, &["--version"]).map_err(|error| format!("{error:#}"))?;
    let version = version.split(' ').nth(1).unwrap_or_default();
    if !is_as_new(version, WANTED) {
        return Err(format!("found {version}, expected at least {WANTED}"));
    }
    let sysroot = output_of(DEBIAN_RUSTC, &["--print", "sysroot"]).map_err(|error| format!("{error:#}"))?;
    let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/src/version");
    match std::fs::read_to_string(&source) {
        Ok(found) if found.trim() == version => Ok(()),
        Ok(found) => Err(format!("found {version} with the library's source of {}", found.trim())),
        Err(_) => Err(format!("found {version} without the library's source ({})", source.display())),
    }
}

/// Compares versions by their numbers: `1.100.0` is newer than `1.92`.
fn is_as_new(version: &str, wanted: &str) -> bool {
    let numbers = |version: &str| version.split('.').map(|n| n.parse().unwrap_or(0)).collect::<Vec<u32>>();
    numbers(version) >= numbers(wanted)
}

fn output_of(program: &str, arguments: &[&str]) -> Result<String> {
    let output =
        Command::new(program).args(arguments).output().with_context(|| format!("{program} cannot be started"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::is_as_new;

    #[test]
    fn versions_are_numbers() {
        for version in ["1.92", "1.92.0", "1.96.0", "1.100.0", "2.0.0"] {
            assert!(is_as_new(version, "1.92"), "{version}");
        }
        for version in ["1.85.0", "1.91.1", "1.9", "0.99", ""] {
            assert!(!is_as_new(version, "1.92"), "{version}");
        }
    }
}
