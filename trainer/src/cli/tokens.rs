//! `sorcen tokens inspect | verify`: what is in a token dataset.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;
use serde_json::json;

use crate::data::TokenDataset;

/// Look into a token dataset.
#[derive(Subcommand, Debug)]
pub enum Args {
    /// Print sizes, classes and how the codes are used
    Inspect(Inspect),
    /// Check everything (checksums, shapes, labels, ids): exit code 0 if all is well
    Verify(Verify),
}

/// Example: sorcen tokens inspect trainer/assets/emoji/train
#[derive(clap::Args, Debug)]
pub struct Inspect {
    /// The dataset folder
    #[arg(value_name = "DIR")]
    dataset: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Example: sorcen tokens verify trainer/assets/emoji/train
#[derive(clap::Args, Debug)]
pub struct Verify {
    /// The dataset folders
    #[arg(required = true, value_name = "DIR")]
    datasets: Vec<PathBuf>,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    match args {
        Args::Inspect(args) => inspect(args),
        Args::Verify(args) => verify(args),
    }
}

fn verify(args: &Verify) -> Result<()> {
    for dir in &args.datasets {
        let dataset = TokenDataset::open(dir)?;
        dataset.column("")?; // reads the table of items
        println!("{}: {} images, all checks passed", dir.display(), dataset.len());
    }
    Ok(())
}

fn inspect(args: &Inspect) -> Result<()> {
    let dataset = TokenDataset::open(&args.dataset)?;
    let mut classes = vec![0u64; dataset.class_names().len()];
    dataset.labels().iter().for_each(|&label| classes[usize::from(label)] += 1);
    let streams: Vec<_> = dataset.streams().map(|(name, stream)| (name, stream, used(stream, dataset.len()))).collect();
    if args.json {
        let stream = |(name, stream, used): &(&str, &crate::data::TokenStream, usize)| {
            let value = json!({
                "grid": stream.grid(), "bits": stream.bits(), "codebook_size": stream.codebook_size(),
                "codes_used": used, "tokenizer": stream.tokenizer(),
            });
            (name.to_string(), value)
        };
        let streams: serde_json::Map<_, _> = streams.iter().map(stream).collect();
        let classes: serde_json::Map<_, _> =
            dataset.class_names().iter().cloned().zip(classes.into_iter().map(|n| json!(n))).collect();
        println!("{}", json!({ "images": dataset.len(), "streams": streams, "classes": classes }));
        return Ok(());
    }
    println!("images  {}", dataset.len());
    for (name, stream, used) in streams {
        println!(
            "stream  {name}: {0}x{0} tokens of {1} bits, {used} of {2} codes used, {3}",
            stream.grid(),
            stream.bits(),
            stream.codebook_size(),
            stream.tokenizer().unwrap_or("tokenizer not recorded")
        );
    }
    for (name, count) in dataset.class_names().iter().zip(classes) {
        println!("class   {count:>8}  {name}");
    }
    Ok(())
}

/// How many codes occur in a stream of `count` images.
fn used(stream: &crate::data::TokenStream, count: usize) -> usize {
    let mut seen = vec![false; stream.codebook_size()];
    let mut ids = vec![0; stream.tokens()];
    for index in 0..count {
        stream.ids(index, &mut ids);
        ids.iter().for_each(|&id| seen[usize::from(id)] = true);
    }
    seen.iter().filter(|&&seen| seen).count()
}
