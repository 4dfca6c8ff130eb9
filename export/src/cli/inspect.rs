//! `inspect`: what is inside.

use std::path::PathBuf;

use serde::Serialize;

use crate::{
    fits::{Budget, Fit},
    inspect::{inspect, Inspection},
};

/// Show what is in a pack, a checkpoint or an export folder, and check it
///
/// Examples:
///
///   sorcen inspect run/checkpoint --tensors
///   sorcen inspect model.srcn --fits 512K/2M
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// A pack (.srcn), a checkpoint folder or a folder with ONNX files.
    pub path: PathBuf,
    /// List every weight.
    #[arg(long)]
    pub tensors: bool,
    /// Print the configuration as a Rust constant, for firmware.
    #[arg(long = "as_rust", alias = "as-rust", conflicts_with_all = ["json", "tensors"])]
    pub as_rust: bool,
    /// Say whether a pack runs in so much RAM and flash, as in 512K/2M (K, M and G are of 1024); exit code 1 if not
    /// even its features do. The program itself comes on top: 70 to 150 kB of code, about 4 kB of stack.
    #[arg(long, value_name = "RAM/FLASH", allow_hyphen_values = true)]
    pub fits: Option<Budget>,
    /// Print everything as JSON.
    #[arg(long)]
    pub json: bool,
}

/// What `--json` prints. Numbers are as short as they are written; a `serde_json::Value` would widen them.
#[derive(Serialize)]
struct Json<'i> {
    #[serde(flatten)]
    inspection: &'i Inspection,
    #[serde(skip_serializing_if = "Option::is_none")]
    fits: Option<&'i Vec<Fit>>,
}

/// Runs the verb.
///
/// # Errors
/// Something missing or damaged.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let inspection = inspect(&args.path)?;
    let fits = match args.fits {
        Some(budget) => inspection.fits(budget),
        None => Vec::new(),
    };
    anyhow::ensure!(args.fits.is_none() || !fits.is_empty(), "--fits: expected a pack, found a {}", inspection.kind);
    if args.as_rust {
        print!("{}", inspection.as_rust());
    } else if args.json {
        let json = Json { inspection: &inspection, fits: args.fits.map(|_| &fits) };
        println!("{}", serde_json::to_string_pretty(&json)?);
    } else {
        print!("{inspection}");
        fits.iter().for_each(|fit| println!("{fit}"));
        if !fits.is_empty() {
            println!("            {}", Fit::COUNTED);
        }
        if args.tensors {
            print!("\n{}", inspection.tensor_table());
        }
    }
    // Features come first; whoever has less memory than they need can do nothing.
    anyhow::ensure!(fits.first().is_none_or(|features| features.fits), "it does not fit");
    Ok(())
}
