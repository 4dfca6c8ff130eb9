//! `sorcen-export`: lower checkpoints, run what came out, and prove that it computes the same thing.

use std::process::ExitCode;

fn main() -> ExitCode {
    sigpipe::reset(); // `… | head` ends us quietly, as it does other programs; Rust would panic
    sorcen_export::cli::main()
}
