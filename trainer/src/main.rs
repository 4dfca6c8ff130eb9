//! `sorcen`: train, evaluate, export and try Sorcen models.

use std::process::ExitCode;

fn main() -> ExitCode {
    sigpipe::reset(); // `… | head` ends us quietly, as it does other programs; Rust would panic
    sorcen_trainer::cli::main()
}
