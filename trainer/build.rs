//! What the program was built from, for `run.json`: commit, compiler, version of Burn.

use std::process::Command;

fn main() {
    let commit = output("git", &["rev-parse", "HEAD"]);
    let rustc = std::env::var("RUSTC").ok().and_then(|rustc| output(&rustc, &["--version"]));
    for (name, value) in [("SORCEN_COMMIT", commit), ("SORCEN_RUSTC", rustc), ("SORCEN_BURN", burn())] {
        if let Some(value) = value {
            println!("cargo::rustc-env={name}={value}");
        }
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../Cargo.lock");
    // This file grows with every commit and checkout.
    if let Some(log) = output("git", &["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    }
}

/// The first line that a program prints, where it succeeds.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()?.lines().next().map(str::to_string)
}

/// Burn's version in the lock file.
fn burn() -> Option<String> {
    let lock = std::fs::read_to_string("../Cargo.lock").ok()?;
    let entry = lock.split("[[package]]").find(|entry| entry.lines().any(|line| line == "name = \"burn\""))?;
    entry.lines().find_map(|line| line.strip_prefix("version = \"")?.strip_suffix('"').map(str::to_string))
}
