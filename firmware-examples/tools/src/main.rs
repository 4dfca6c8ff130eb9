//! `cargo fw`: builds the examples for every board, runs them in QEMU, compares and measures.

mod boards;
mod data;
mod elf;
mod emulator;
mod operations;
mod record;
mod suite;
mod toolchain;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use boards::{Board, BOARDS};
use toolchain::Purpose;

const USAGE: &str = "\
The examples on every board. In the folder firmware-examples:

  cargo fw run BOARD EXAMPLE      build and run one (without the rustup target: Debian's rustc-web builds core)
  cargo fw test [BOARD...]        run everything; compare with the snapshots and the record
  cargo fw bless [BOARD...]       run everything; renew snapshots (from the host), record and README tables
  cargo fw sizes [BOARD...]       build everything; renew the sizes in the record and README
  cargo fw operations BOARD EXAMPLE   executed instructions by operation
  cargo fw data [PHOTO.png]       cut the small inputs in data/ out of the bundled emoji
  cargo fw emulate BOARD PROGRAM  run a built program (what `cargo run` in a board's folder calls)
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["run", board, example] => run(board, example),
        ["test", names @ ..] => boards(names).and_then(|boards| suite::test(&boards)),
        ["bless", names @ ..] => boards(names).and_then(|boards| suite::bless(&boards)),
        ["sizes", names @ ..] => boards(names).and_then(|boards| suite::sizes(&boards)),
        ["operations", board, example] => suite::operations(board, example),
        ["data"] => data::extract(None),
        ["data", photo] => data::extract(Some(&PathBuf::from(photo))),
        ["emulate", board, program] => emulate(board, program),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The boards of some names; all of them for none.
fn boards(names: &[&str]) -> Result<Vec<Board>> {
    if names.is_empty() {
        return Ok(BOARDS.to_vec());
    }
    names.iter().map(|name| Board::find(name)).collect()
}

fn run(board: &str, example: &str) -> Result<()> {
    let board = Board::find(board)?;
    let programs = toolchain::build(&board, &[example], Purpose::Run)?;
    emulate(board.name, &programs.path(example).to_string_lossy())
}

fn emulate(board: &str, program: &str) -> Result<()> {
    let run = emulator::run(&Board::find(board)?, program.as_ref(), None, &mut |line| println!("{line}"))?;
    if let Some(stack) = run.stack {
        println!("({stack} bytes of stack)");
    }
    for picture in &run.pictures {
        println!("picture: {}", picture.display());
    }
    Ok(())
}
