//! Files of other programs, and damaged ones: read where they have a meaning, else refused by name.

#[path = "foreign/checkpoints.rs"]
mod checkpoints;
#[path = "foreign/pickled.rs"]
mod pickled;
#[path = "foreign/tokens.rs"]
mod tokens;
#[path = "foreign/training.rs"]
mod training;

use std::path::Path;
use std::process::Command;

/// Runs `sorcen` in `dir`: exit code, standard output, standard error.
fn sorcen(dir: &Path, args: &str) -> (i32, String, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_sorcen")).args(args.split_whitespace()).current_dir(dir).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// Runs it, and returns what it said on both channels.
fn succeeds(dir: &Path, args: &str) -> String {
    let (code, out, error) = sorcen(dir, args);
    assert_eq!(code, 0, "sorcen {args}\n{error}");
    out + &error
}

/// Runs it, expecting exit code 1, and returns the message.
fn fails(dir: &Path, args: &str) -> String {
    let (code, _, error) = sorcen(dir, args);
    assert_eq!(code, 1, "sorcen {args}\n{error}");
    error
}

/// The byte of `file` that holds `needle`'s first.
fn position(file: &[u8], needle: &[u8]) -> usize {
    file.windows(needle.len()).position(|window| window == needle).expect("the bytes are there")
}
