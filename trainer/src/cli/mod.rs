//! The command line: one module a verb, each with its `Args` (parsed by clap) and `run`.

#[macro_use]
mod usage;

mod bench;
mod compare;
mod curves;
mod decode;
mod export;
mod features;
mod fewshot;
mod images;
mod import;
mod knn;
mod linprobe;
pub mod pretrain;
mod progress;
mod quickstart;
mod run;
mod step;
mod tokenize;
mod tokenizer;
mod tokenizer_train;
mod tokens;
mod tokens_bench;

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use usage::expect_extension;

use sorcen_export::cli::{fill, generate, inspect, onnx, pack, parse, verify};

/// Sorcen: one vision transformer that represents images and generates them, from VQ tokens.
#[derive(Parser)]
#[command(name = "sorcen", version, max_term_width = 100, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

/// How any verb ends.
const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed, 2 usage, 130 stopped by Ctrl-C before the end (so `&&` does not go on).
`pretrain`, `tokenizer train --kind vit|vqgan` and `quickstart` stop after the step with a checkpoint, on
SIGTERM too (130); a second signal ends them at once. Other verbs are ended by the signal itself, which a
shell sees as 130 (Ctrl-C) or 143 (SIGTERM); `tokenize` and `compare` go on where they were when started again.";

#[derive(Subcommand)]
enum Verb {
    Quickstart(quickstart::Args),
    Demo(quickstart::DemoArgs),
    Pretrain(Box<pretrain::Args>),
    Import(import::Args),
    Export(export::Args),
    Run(run::Args),
    Step(step::Args),
    Knn(knn::Args),
    Linprobe(linprobe::Args),
    Fewshot(fewshot::Args),
    Compare(compare::Args),
    Curves(curves::Args),
    #[command(subcommand)]
    Bench(bench::Args),
    #[command(subcommand)]
    Tokenizer(tokenizer::Args),
    Tokenize(tokenize::Args),
    #[command(subcommand)]
    Tokens(tokens::Args),
    Decode(decode::Args),
    Onnx(onnx::Args),
    Pack(pack::Args),
    Verify(verify::Args),
    Inspect(inspect::Args),
    Generate(generate::Args),
    Inpaint(fill::InpaintArgs),
    Outpaint(fill::OutpaintArgs),
    Reconstruct(fill::ReconstructArgs),
}

/// Parses the arguments and runs the verb: exit code 0 ok, 1 failed, 2 usage, 130 stopped by Ctrl-C or SIGTERM.
pub fn main() -> ExitCode {
    usage::fail_without_panic();
    let cli: Cli = parse();
    let result: anyhow::Result<()> = match &cli.verb {
        Verb::Quickstart(args) => quickstart::run(args),
        Verb::Demo(args) => quickstart::run_demo(args),
        Verb::Tokenizer(args) => tokenizer::run(args),
        Verb::Tokenize(args) => tokenize::run(args),
        Verb::Pretrain(args) => pretrain::run(args),
        Verb::Import(args) => import::run(args),
        Verb::Export(args) => export::run(args),
        Verb::Run(args) => run::run(args),
        Verb::Step(args) => step::run(args),
        Verb::Tokens(args) => tokens::run(args),
        Verb::Decode(args) => decode::run(args),
        Verb::Onnx(args) => onnx::run(args),
        Verb::Pack(args) => pack::run(args),
        Verb::Verify(args) => verify::run(args),
        Verb::Inspect(args) => inspect::run(args),
        Verb::Generate(args) => generate::run(args),
        Verb::Inpaint(args) => fill::inpaint(args),
        Verb::Outpaint(args) => fill::outpaint(args),
        Verb::Reconstruct(args) => fill::reconstruct(args),
        Verb::Knn(args) => knn::run(args),
        Verb::Bench(args) => bench::run(args),
        Verb::Linprobe(args) => linprobe::run(args),
        Verb::Fewshot(args) => fewshot::run(args),
        Verb::Compare(args) => compare::run(args),
        Verb::Curves(args) => curves::run(args),
    };
    usage::exit_code(result)
}

/// A flag that Ctrl-C or SIGTERM sets; the second time they end the process.
fn stop_on_signal() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::Relaxed) {
            std::process::exit(usage::STOPPED.into()); // asked twice: now
        }
        let _ = writeln!(std::io::stderr(), "\nstopping soon, training with a checkpoint (again to stop at once)");
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(stop)
}

/// A progress bar of `len` steps called `unit`, on standard error; hidden where that is no terminal.
fn progress(len: u64, unit: &str) -> indicatif::ProgressBar {
    let template = format!("{{bar:40}} {{pos}}/{{len}} {unit} {{eta}} {{msg}}");
    let style = indicatif::ProgressStyle::with_template(&template);
    indicatif::ProgressBar::new(len).with_style(style.unwrap_or_else(|_| indicatif::ProgressStyle::default_bar()))
}
