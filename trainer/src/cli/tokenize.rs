//! `sorcen tokenize`: images in, a token dataset out.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::images::ImageArgs;
use super::tokenizer::{TokenizerArgs, GIVE_SIZE};
use crate::data::{DataError, Part, TokenDataset, UNLABELLED};
use crate::files::expect_new;
use crate::tokenizer::job::{beside, Fault, Job, JobError, OnError};

/// Turn images into a token dataset, the folder that pretraining reads
///
/// It holds one bit-packed row of token ids per image, labels, class names and
/// checksums. Training on tokens reads each image once and never again; the
/// folder is some hundred times smaller than the pixels.
///
/// Images are turned as their EXIF orientation says, 16 bits are cut to 8,
/// transparent parts laid over white, CMYK converted; of an animation the first
/// picture is taken. What cannot be read, is cut off or smaller than --min_side
/// is faulty: see --on_error. So is one whose class cannot be told, and what
/// a shard that is cut off has lost. What lies beside the images and is not
/// taken is counted and named.
///
/// A run that was killed goes on where it stopped when it is started again, and
/// ends with the same bytes. Until it ends, its work lies in OUT.unfinished.
/// Parts (--shard) are put together by `sorcen tokens merge` to the bytes that
/// one run would have written.
///
/// Splits of one set have to agree on their classes: where the second has not
/// all of the first, or others, `--classes_from FIRST` says which there are.
///
/// Examples:
///   sorcen tokenize --images photos --size 64 \
///       --tokenizer tokenizer.safetensors --out tokens
///   sorcen tokenize --images imagenet/train --size 256 --device cuda \
///       --tokenizer vqgan_jax_strongaug.ckpt --on_error skip \
///       --shard 3/16 --out train-03
///   sorcen tokenize --images imagenet/val --size 256 \
///       --tokenizer vqgan_jax_strongaug.ckpt \
///       --classes_from train --out val
#[derive(clap::Args, Debug)]
#[command(rename_all = "snake_case", verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    images: ImageArgs,

    #[command(flatten)]
    tokenizer: TokenizerArgs,

    /// Columns of the labels to keep in the dataset's items.csv, where `knn --only` can use them
    /// (without it: all)
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    columns: Vec<String>,

    /// Take the classes and their numbers from this token dataset, so that a split without one of them, or one with
    /// others, fits it; an image of another class is faulty
    #[arg(long, value_name = "DATASET")]
    classes_from: Option<PathBuf>,

    /// What becomes of images that cannot be read, and of those whose class or shard is faulty
    #[arg(long, value_enum, default_value = "fail")]
    on_error: OnError,

    /// Do only part I (0 to N-1) of N equal parts of the images
    #[arg(long, value_name = "I/N", value_parser = shard, default_value = "0/1")]
    shard: (usize, usize),

    /// The dataset folder to make; it must not exist yet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Parses `I/N`.
fn shard(text: &str) -> Result<(usize, usize), String> {
    let numbers = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    numbers.filter(|(i, n)| i < n).ok_or_else(|| "expected I/N, I from 0 to N-1".into())
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    expect_new(&args.out).map_err(DataError::io(&args.out))?;
    let classes = args.classes_from.as_deref().map(TokenDataset::open).transpose()?;
    let images = args.images.open_with(classes.as_ref())?;
    let tokenizer = args.tokenizer.open()?;
    tokenizer.encode_all(&[], images.side()).context(GIVE_SIZE)?;
    if images.unlabelled() > 0 {
        eprintln!(
            "note: {} of {} images have no class (a subfolder's name, or --labels): theirs is `{UNLABELLED}`",
            images.unlabelled(),
            images.len()
        );
    }
    let bound = |part: usize| (images.len() as u128 * part as u128 / args.shard.1 as u128) as usize;
    let range = bound(args.shard.0)..bound(args.shard.0 + 1);
    let mut progress = Progress::new(range.len());
    let job = Job {
        images: &images,
        range: range.clone(),
        part: (args.shard.1 > 1).then_some(Part { index: args.shard.0, of: args.shard.1, images: images.len() }),
        tokenizer: tokenizer.as_ref(),
        columns: &args.columns,
        on_error: args.on_error,
        out: &args.out,
    };
    let done = job.run(|done| progress.show(done));
    progress.bar.finish_and_clear();
    let done = match done {
        Err(JobError::Faults { faults, of, kept }) => {
            name(&faults);
            return Err(JobError::Faults { faults, of, kept }.into());
        }
        other => other?,
    };
    name(&done.faults);
    if !done.faults.is_empty() {
        eprintln!("{} images left out, listed in {}", done.faults.len(), beside(&args.out, "skipped.csv").display());
    }
    let grid = images.side() / tokenizer.stride();
    println!(
        "{}: {} images of {grid}x{grid} tokens below {}, {}{}",
        args.out.display(),
        done.images,
        tokenizer.codes(),
        match images.class_names() {
            [class] => format!("one class, `{class}`"),
            classes => format!("{} classes", classes.len()),
        },
        if done.resumed > 0 { format!(" ({} done before)", done.resumed) } else { String::new() }
    );
    let seconds = progress.start.elapsed().as_secs_f64();
    let new = range.len() - done.resumed;
    println!("{new} images read and encoded in {seconds:.1} s: {:.1} images/s", new as f64 / seconds.max(1e-9));
    Ok(())
}

fn name(faults: &[Fault]) {
    faults.iter().for_each(|fault| eprintln!("image {}: {}", fault.image, fault.reason));
}

/// A bar on a terminal, a line every half minute elsewhere.
struct Progress {
    bar: indicatif::ProgressBar,
    start: Instant,
    spoken: Instant,
    total: usize,
    /// Images done before; known from the first call on.
    before: Option<usize>,
}

impl Progress {
    const EVERY: Duration = Duration::from_secs(30);

    fn new(total: usize) -> Self {
        let now = Instant::now();
        Self { bar: super::progress(total as u64, "images"), start: now, spoken: now, total, before: None }
    }

    fn show(&mut self, done: usize) {
        let before = *self.before.get_or_insert(done);
        let rate = (done - before) as f64 / self.start.elapsed().as_secs_f64().max(1e-9);
        self.bar.set_position(done as u64);
        self.bar.set_message(format!("{rate:.1} images/s"));
        if !std::io::stderr().is_terminal() && self.spoken.elapsed() > Self::EVERY && rate > 0.0 {
            self.spoken = Instant::now();
            let left = (self.total - done) as f64 / rate;
            eprintln!("{done} of {} images, {rate:.1} images/s, {left:.0} s left", self.total);
        }
    }
}
