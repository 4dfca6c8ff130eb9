//! The command line: one module a verb, each with its `Args` (parsed by clap) and `run`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Sorcen: one vision transformer that represents images and generates them, from VQ tokens.
#[derive(Parser)]
#[command(name = "sorcen", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {}

/// Parses the arguments and runs the verb: exit code 0 ok, 1 failed, 2 usage (clap's own).
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result: anyhow::Result<()> = match cli.verb {};
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
