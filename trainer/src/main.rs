//! `sorcen`: train, evaluate, export and try Sorcen models.

use std::process::ExitCode;

fn main() -> ExitCode {
    sorcen_trainer::cli::main()
}
