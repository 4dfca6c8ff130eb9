//! The command line: one module a verb, each with its `Args` (parsed by clap) and `run`, so that the
//! trainer's `sorcen` offers the same verbs.

mod draw;
pub mod fill;
pub mod fit;
pub mod generate;
pub mod inspect;
pub mod number;
pub mod onnx;
pub mod output;
pub mod pack;
mod parse;
pub mod run;
mod source;
mod tokens;
pub mod verify;

use std::{io::Write as _, process::ExitCode};

use clap::{Parser, Subcommand};

pub use parse::parse;

/// Lowers Sorcen checkpoints to ONNX and quantised packs, runs them, and proves that they compute the same thing.
///
/// A checkpoint is a folder with `config.json` and `model.safetensors`. The usual order:
/// `onnx` and `pack` write artefacts, `verify` holds them against the float reference, `inspect` says what is
/// in them, `run`, `generate`, `inpaint`, `outpaint` and `reconstruct` use them.
///
/// `sorcen`, the program that trains, has the same verbs (but its `run` computes with Burn): `sorcen pack` in an
/// example is `sorcen-export pack` here.
#[derive(Parser)]
#[command(name = "sorcen-export", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Onnx(onnx::Args),
    Pack(pack::Args),
    Verify(verify::Args),
    Inspect(inspect::Args),
    Run(run::Args),
    Generate(generate::Args),
    Inpaint(fill::InpaintArgs),
    Outpaint(fill::OutpaintArgs),
    Reconstruct(fill::ReconstructArgs),
}

/// Parses the arguments and runs the verb: exit code 0 ok, 1 failed, 2 usage (clap's own).
pub fn main() -> ExitCode {
    output::fail_without_panic();
    let cli: Cli = parse();
    let result = match &cli.verb {
        Verb::Onnx(args) => onnx::run(args),
        Verb::Pack(args) => pack::run(args),
        Verb::Verify(args) => verify::run(args),
        Verb::Inspect(args) => inspect::run(args),
        Verb::Run(args) => run::run(args),
        Verb::Generate(args) => generate::run(args),
        Verb::Inpaint(args) => fill::inpaint(args),
        Verb::Outpaint(args) => fill::outpaint(args),
        Verb::Reconstruct(args) => fill::reconstruct(args),
    };
    match output::finish(result) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}"); // nobody is left to tell
            ExitCode::FAILURE
        }
    }
}

/// Ends the program as clap does where flags do not go together.
fn conflict(message: &str) -> ! {
    output::end(&clap::Error::raw(clap::error::ErrorKind::ArgumentConflict, format!("{message}\n")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_flag_is_snake_case_and_explained() {
        let cli = Cli::command();
        cli.clone().debug_assert();
        for verb in cli.get_subcommands() {
            assert!(verb.get_about().is_some(), "{}", verb.get_name());
            for arg in verb.get_arguments().filter(|arg| arg.get_id() != "help") {
                assert!(arg.get_help().is_some(), "{} {}", verb.get_name(), arg.get_id());
                let long = arg.get_long().unwrap_or_default();
                assert!(!long.contains('-'), "{} --{long}", verb.get_name());
            }
        }
    }
}
