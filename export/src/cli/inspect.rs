//! `inspect`: what is inside.

use std::path::PathBuf;

use crate::inspect::inspect;

/// Show what is in a pack, a checkpoint folder or an export folder, checking it on the way.
#[derive(clap::Args)]
pub struct Args {
    /// A pack (.srcn), a checkpoint folder or a folder with ONNX files.
    pub path: PathBuf,
    /// List every weight.
    #[arg(long)]
    pub tensors: bool,
    /// Print everything as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs the verb.
///
/// # Errors
/// Something missing or damaged.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let inspection = inspect(&args.path)?;
    if args.json {
        println!("{:#}", serde_json::json!(inspection));
        return Ok(());
    }
    print!("{inspection}");
    if args.tensors {
        print!("\n{}", inspection.tensor_table());
    }
    Ok(())
}
