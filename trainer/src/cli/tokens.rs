//! `sorcen tokens inspect | verify | merge | split | import | export`: token datasets as they are, rearranged, and
//! from and to other formats (`random` and `bench`: module [`tokens_bench`](super::tokens_bench)).

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{bail, ensure, Result};
use clap::Subcommand;
use serde_json::json;

use super::tokens_bench;
use crate::data::{gather, in_order, read_class_names, TokenDataset, TokenStream, VQGAN};
use crate::device::Device;
use crate::exchange::{self, ImportOptions, Imported};
use crate::tokenizer;

/// Look into token datasets, check them, merge and split them, exchange them with other programs
#[derive(Subcommand, Debug)]
#[allow(missing_docs)] // the verbs' own structs say it, for --help too
pub enum Args {
    Inspect(Inspect),
    Verify(Verify),
    Merge(Merge),
    Split(Split),
    Import(Import),
    Export(Export),
    Random(tokens_bench::Random),
    Bench(tokens_bench::Bench),
}

/// Print sizes, classes and how the codes are used
///
/// Example: sorcen tokens inspect trainer/assets/emoji/train
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Inspect {
    /// The dataset folder
    #[arg(value_name = "DIR")]
    dataset: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Check everything (checksums, shapes, labels, ids): exit code 0 if all is well
///
/// Example: sorcen tokens verify trainer/assets/emoji/train
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Verify {
    /// The dataset folders
    #[arg(required = true, value_name = "DIR")]
    datasets: Vec<PathBuf>,
}

/// Put datasets of one tokenizer together, in the order given
///
/// Parts of one set (`tokenize --shard`) are put in the order of their numbers;
/// a part that is missing, or there twice, is an error.
///
/// Example: sorcen tokens merge google twitter --out emoji
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Merge {
    /// The dataset folders
    #[arg(required = true, value_name = "DIR")]
    datasets: Vec<PathBuf>,

    /// The dataset folder to make
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Make one dataset for each value of a column of items.csv, such as `split`
///
/// Example, which makes data/train, data/val, …:
///   sorcen tokens split emoji --by split --out data
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Split {
    /// The dataset folder
    #[arg(value_name = "DIR")]
    dataset: PathBuf,

    /// The column; its values name the new folders
    #[arg(long, value_name = "COLUMN")]
    by: String,

    /// Folder for the new datasets
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Make a dataset from the official code's .pt file, or from an .npz
///
/// The file holds `labels` [N] and `tokens_vqgan` (or `tokens`) [N, T], and
/// perhaps other streams such as `tokens_dino`: integers of any size, byte
/// order and layout. A .pt is read as data, no code in it is executed. What a
/// file is, its contents tell, not its name.
///
/// Example:
///   sorcen tokens import --from imagenet_tokens.pt \
///       --class_names classes.txt --out imagenet
#[derive(clap::Args, Debug)]
#[command(rename_all = "snake_case", verbatim_doc_comment)]
pub struct Import {
    /// The .pt or .npz file
    #[arg(long, value_name = "FILE")]
    from: PathBuf,

    /// The dataset folder to make
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// The array with the model's own ids [default: tokens_vqgan or tokens]
    #[arg(long, value_name = "ARRAY")]
    tokens: Option<String>,

    /// Codes of a stream, as in `--codes dino=16384` [default: vqgan=1024; for others the power of two above
    /// the largest id]
    #[arg(long, value_name = "STREAM=K", value_parser = codes)]
    codes: Vec<(String, usize)>,

    /// Names of the classes, one a line [default: those in the .npz, or the numbers]
    #[arg(long, value_name = "FILE")]
    class_names: Option<PathBuf>,

    /// The tokenizer that made the ids, to be recorded in the dataset
    #[arg(long, value_name = "FILE|DIR")]
    tokenizer: Option<PathBuf>,
}

/// Write a dataset as a .pt file that the official code reads, or as an .npz
///
/// A .pt has `int64` tensors and no names of classes; an .npz has `uint16` arrays
/// and `class_names`.
///
/// Example: sorcen tokens export trainer/assets/emoji/train --out emoji.pt
#[derive(clap::Args, Debug)]
#[command(rename_all = "snake_case", verbatim_doc_comment)]
pub struct Export {
    /// The dataset folder
    #[arg(value_name = "DIR")]
    dataset: PathBuf,

    /// The file to write, .pt or .npz
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

fn codes(text: &str) -> Result<(String, usize), String> {
    let (stream, codes) = text.split_once('=').ok_or("expected STREAM=K")?;
    Ok((stream.into(), codes.parse().map_err(|_| "expected STREAM=K, K a number")?))
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    match args {
        Args::Inspect(args) => inspect(args),
        Args::Verify(args) => verify(args),
        Args::Merge(args) => merge(args),
        Args::Split(args) => split(args),
        Args::Import(args) => import(args),
        Args::Export(args) => export(args),
        Args::Random(args) => tokens_bench::random(args),
        Args::Bench(args) => tokens_bench::bench(args),
    }
}

fn verify(args: &Verify) -> Result<()> {
    let mut bad = 0;
    for dir in &args.datasets {
        let checked = TokenDataset::open(dir).and_then(|dataset| dataset.items().map(|_| dataset.len()));
        match checked {
            Ok(images) => println!("{}: {images} images, all checks passed", dir.display()),
            Err(error) => {
                bad += 1;
                eprintln!("{error}");
            }
        }
    }
    ensure!(bad == 0, "{bad} of {} datasets failed", args.datasets.len());
    Ok(())
}

fn merge(args: &Merge) -> Result<()> {
    let datasets = args.datasets.iter().map(|dir| TokenDataset::open(dir)).collect::<Result<Vec<_>, _>>()?;
    let (datasets, notes) = in_order(datasets)?;
    notes.iter().for_each(|note| eprintln!("note: {note}"));
    let parts: Vec<_> = datasets.iter().map(|dataset| (dataset, (0..dataset.len()).collect())).collect();
    gather(&parts, &args.out)?;
    println!("{}: {} images", args.out.display(), datasets.iter().map(TokenDataset::len).sum::<usize>());
    Ok(())
}

fn split(args: &Split) -> Result<()> {
    let dataset = TokenDataset::open(&args.dataset)?;
    let mut parts: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (index, value) in dataset.column(&args.by)?.into_iter().enumerate() {
        parts.entry(value).or_default().push(index);
    }
    let is_name =
        |value: &str| !value.is_empty() && value.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
    if let Some(value) = parts.keys().find(|value| !is_name(value)) {
        bail!("column {}: expected names of folders (letters, digits, _ and -), found {value:?}", args.by);
    }
    for (value, numbers) in parts {
        let (out, count) = (args.out.join(value), numbers.len());
        gather(&[(&dataset, numbers)], &out)?;
        println!("{}: {count} images", out.display());
    }
    Ok(())
}

fn import(args: &Import) -> Result<()> {
    let mut options = ImportOptions {
        codes: args.codes.iter().cloned().collect(),
        class_names: args.class_names.as_deref().map(read_class_names).transpose()?,
        tokens: args.tokens.clone(),
        tokenizer: None,
    };
    if let Some(path) = &args.tokenizer {
        let tokenizer = tokenizer::open(path, Device::Cpu)?;
        options.codes.entry(VQGAN.into()).or_insert(tokenizer.codes());
        options.tokenizer = Some(tokenizer.fingerprint());
    }
    let Imported { images, left_out } = exchange::import(&args.from, &args.out, &options)?;
    if !left_out.is_empty() {
        eprintln!("note: {}: left out: {}", args.from.display(), left_out.join(", "));
    }
    println!("{}: {images} images", args.out.display());
    Ok(())
}

fn export(args: &Export) -> Result<()> {
    let dataset = TokenDataset::open(&args.dataset)?;
    exchange::export(&dataset, &args.out)?;
    println!("{}: {} images", args.out.display(), dataset.len());
    Ok(())
}

fn inspect(args: &Inspect) -> Result<()> {
    let dataset = TokenDataset::open(&args.dataset)?;
    let mut classes = vec![0u64; dataset.class_names().len()];
    dataset.labels().iter().for_each(|&label| classes[usize::from(label)] += 1);
    let streams: Vec<_> = dataset.streams().map(|(name, stream)| (name, stream, used(stream, dataset.len()))).collect();
    if args.json {
        let stream = |(name, stream, used): &(&str, &TokenStream, usize)| {
            let value = json!({
                "grid": stream.grid(), "bits": stream.bits(), "codebook_size": stream.codebook_size(),
                "codes_used": used, "tokenizer": stream.tokenizer(),
            });
            (name.to_string(), value)
        };
        let streams: serde_json::Map<_, _> = streams.iter().map(stream).collect();
        let classes: serde_json::Map<_, _> =
            dataset.class_names().iter().cloned().zip(classes.into_iter().map(|n| json!(n))).collect();
        println!(
            "{}",
            json!({ "images": dataset.len(), "part": dataset.part(), "streams": streams, "classes": classes })
        );
        return Ok(());
    }
    println!("images  {}", dataset.len());
    if let Some(part) = dataset.part() {
        println!("part    {}/{} of a set of {} images", part.index, part.of, part.images);
    }
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
fn used(stream: &TokenStream, count: usize) -> usize {
    let mut seen = vec![false; stream.codebook_size()];
    let mut ids = vec![0; stream.tokens()];
    for index in 0..count {
        stream.ids(index, &mut ids);
        ids.iter().for_each(|&id| seen[usize::from(id)] = true);
    }
    seen.iter().filter(|&&seen| seen).count()
}
