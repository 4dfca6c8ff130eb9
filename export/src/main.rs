//! `sorcen-export`: lower checkpoints, run what came out, and prove that it computes the same thing.

use std::process::ExitCode;

fn main() -> ExitCode {
    sorcen_export::cli::main()
}
