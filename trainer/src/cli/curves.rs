//! `sorcen curves`: the course of training, as a picture.

use std::path::{Path, PathBuf};

use crate::picture::{read_logs, read_telling, save_curves};
use crate::train::LOG;

/// Draw losses of one or several runs against the step
///
/// One run: pale points and their running mean. Several: laid over each other,
/// the first as a broad line and the later ones thinner, so that equal ones are
/// all seen; a legend above says which is which. For instance a run that was killed
/// and resumed over one that was not:
///
///   sorcen curves --runs straight --runs resumed --out resumed.png
#[derive(clap::Args)]
#[command(rename_all = "snake_case", verbatim_doc_comment)]
pub struct Args {
    /// Folder of a run (OUTPUT_DIR of pretrain), or its log.txt; may be given several times.
    #[arg(long, value_name = "DIR", required = true)]
    runs: Vec<PathBuf>,
    /// Fields of the log, one panel each [default: train_loss, train_rec_loss, train_nn_loss, train_class_loss and
    /// train_grad_norm, those that a run has: MAGE has neither contrast, train_nn_loss, nor classifier].
    #[arg(long, value_delimiter = ',')]
    fields: Vec<String>,
    /// The PNG to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// What is drawn of a run unless fields are given.
const FIELDS: [&str; 5] = ["train_loss", "train_rec_loss", "train_nn_loss", "train_class_loss", "train_grad_norm"];

/// Runs the verb.
///
/// # Errors
/// A log that cannot be read, or has no such field.
pub fn run(args: &Args) -> anyhow::Result<()> {
    super::expect_extension("--out", Some(&args.out), "png")?;
    let logs: Vec<PathBuf> =
        args.runs.iter().map(|run| if run.is_dir() { run.join(LOG) } else { run.clone() }).collect();
    let fields: Vec<&str> = args.fields.iter().map(String::as_str).collect();
    let curves = match fields.is_empty() {
        true => read_telling(&logs, "step", &FIELDS)?,
        false => read_logs(&logs, "step", &fields)?,
    };
    let names: Vec<String> = args.runs.iter().map(|run| name(run)).collect();
    save_curves(&curves, &names, "step", &args.out)?;
    println!("{}", args.out.display());
    Ok(())
}

/// What a run is called in the picture: its folder as it was given.
fn name(run: &Path) -> String {
    let folder = match run.file_name() {
        Some(file) if file == LOG => run.parent().filter(|folder| !folder.as_os_str().is_empty()),
        _ => None,
    };
    folder.unwrap_or(run).display().to_string()
}
