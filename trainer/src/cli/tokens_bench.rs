//! `sorcen tokens random | bench`: how fast token datasets are read, on data of any size.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{ensure, Result};
use serde_json::json;
use sorcen_runtime::rng::{Rng, Stream};

use crate::data::{StreamSpec, TokenDataset, TokenDatasetWriter, VQGAN};

/// Make a dataset of random ids, of any size
///
/// Example, 409,973,568 bytes of tokens:
///   sorcen tokens random --images 1281167 --out imagenet_sized
#[derive(clap::Args, Debug)]
#[command(rename_all = "snake_case", verbatim_doc_comment)]
pub struct Random {
    /// Number of images; ImageNet's training set has 1,281,167
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    images: u32,

    /// Side of the token grid, 1 to 64
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=64))]
    grid: u16,

    /// Number of codes, 2 to 65535
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u16).range(2..))]
    codes: u16,

    /// Number of classes
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..))]
    classes: u16,

    /// Seed: the same one gives the same bytes
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// The dataset folder to make
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Measure how fast a dataset is read, and what memory that takes
///
/// Opens the dataset with all checks, then reads single images at random, then an
/// epoch of shuffled batches, all on one core, ids unpacked.
///
/// Example: sorcen tokens bench imagenet_sized
#[derive(clap::Args, Debug)]
#[command(rename_all = "snake_case", verbatim_doc_comment)]
pub struct Bench {
    /// The dataset folder
    #[arg(value_name = "DIR")]
    dataset: PathBuf,

    /// Images a batch
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    batch_size: u32,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs `tokens random`.
pub fn random(args: &Random) -> Result<()> {
    let (images, grid, codes) = (args.images as usize, usize::from(args.grid), usize::from(args.codes));
    let spec = StreamSpec { name: VQGAN.into(), grid, codebook_size: codes, tokenizer: None };
    let class_names = (0..args.classes).map(|class| format!("{class:05}")).collect();
    let mut writer = TokenDatasetWriter::create(&args.out, class_names, &[spec])?.with_room_for(images)?;
    let bar = super::progress(args.images.into(), "images");
    let mut ids = vec![0; grid * grid];
    for image in 0..images {
        let rng = Rng::new(args.seed, Stream::Evaluation, image as u64);
        (0..).zip(&mut ids).for_each(|(i, id)| *id = rng.below(i, codes as u64) as u16);
        let label = rng.below(ids.len() as u64, args.classes.into()) as u16;
        writer.push(label, &[&ids])?;
        bar.inc(1);
    }
    writer.finish(None)?;
    bar.finish_and_clear();
    println!("{}: {} images", args.out.display(), args.images);
    Ok(())
}

/// Runs `tokens bench`.
pub fn bench(args: &Bench) -> Result<()> {
    let start = Instant::now();
    let dataset = TokenDataset::open(&args.dataset)?;
    let open_s = start.elapsed().as_secs_f64();
    ensure!(!dataset.is_empty(), "{}: expected at least one image, found none", args.dataset.display());
    let (count, tokens) = (dataset.len(), dataset.tokens());

    let reads = count.max(1_000_000) as u64;
    let rng = Rng::new(0, Stream::Evaluation, 0);
    let (mut ids, mut sum) = (vec![0; tokens], 0u64);
    let start = Instant::now();
    for i in 0..reads {
        dataset.ids(rng.below(i, count as u64) as usize, &mut ids);
        sum += u64::from(ids[tokens - 1]);
    }
    let random_s = start.elapsed().as_secs_f64();

    let start = Instant::now();
    let mut order: Vec<u32> = (0..count as u32).collect();
    order.sort_by_cached_key(|&index| rng.bits(index.into()));
    let mut batch = vec![0; args.batch_size as usize * tokens];
    for numbers in order.chunks(args.batch_size as usize) {
        for (&number, ids) in numbers.iter().zip(batch.chunks_exact_mut(tokens)) {
            dataset.ids(number as usize, ids);
        }
        sum += u64::from(batch[0]);
    }
    let epoch_s = start.elapsed().as_secs_f64();

    let (random, epoch) = (reads as f64 / random_s, count as f64 / epoch_s);
    let own = status_mib("RssAnon:");
    if args.json {
        let report = json!({
            "images": count, "open_s": open_s, "random_images_per_s": random, "epoch_images_per_s": epoch,
            "epoch_s": epoch_s, "own_memory_mib": own, "checksum": sum,
        });
        println!("{report}");
        return Ok(());
    }
    let mib = |value: Option<f64>| value.map_or("unknown".into(), |mib| format!("{mib:.0} MiB"));
    println!("images          {count}, {:.3} GB of tokens", stream_bytes(&args.dataset) as f64 / 1e9);
    println!("open            {open_s:.2} s, every checksum and id checked");
    println!("random access   {random:.0} images/s");
    println!("shuffled epoch  {epoch:.0} images/s, {epoch_s:.2} s, the shuffle included");
    println!("memory          {}", mib(own));
    println!("checksum        {sum}");
    Ok(())
}

/// Bytes of the file of tokens.
fn stream_bytes(dataset: &Path) -> u64 {
    std::fs::metadata(dataset.join(format!("tokens_{VQGAN}.npy"))).map_or(0, |file| file.len())
}

/// A line of Linux's `/proc/self/status`, in MiB; `None` on other systems.
fn status_mib(line: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let value = status.lines().find_map(|text| text.strip_prefix(line))?;
    Some(value.trim().strip_suffix(" kB")?.parse::<f64>().ok()? / 1024.0)
}
