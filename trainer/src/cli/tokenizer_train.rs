//! `sorcen tokenizer train`.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use anyhow::{bail, Result};
use clap::{Parser as _, ValueEnum};
use sorcen_runtime::vit::VitConfig;

use super::images::ImageArgs;
use super::progress::Progress;
use super::usage::Stopped;
use crate::device::Device;
use crate::tokenizer::learn::{learn, Images, LearnLine, Loss, Options, Sizes, Start};
use crate::tokenizer::vqgan::VqganConfig;
use crate::tokenizer::{self, TrainOptions, TrainProgress};
use crate::train::RUN;

/// Make a tokenizer from images
///
/// patch: a codebook of K square patches of pixels, by k-means: an image becomes
/// a grid of the numbers of the nearest patches, and back by copying them.
/// Its time grows with distinct patches, codes and rounds: a minute or two of two
/// cores for 3,000 images of 64 pixels and 512 codes. --out is a file.
///
/// vit, vqgan: a network, trained for --steps: pixels' error (--loss) and
/// commitment; the codes are running means of what they stand for, dead ones
/// start again. There is no perceptual or adversarial loss. --out is a folder:
/// checkpoint/tokenizer.safetensors, log.txt (JSON lines: loss, PSNR, codes used,
/// perplexity), run.json, and pictures/step_N.png, images above what the tokens
/// keep of them. Ctrl-C stops after the step, with a checkpoint and exit code 130;
/// the same command with --resume auto goes on, on the CPU to the same bits as
/// without the stop.
///
/// A vit is for images of one size (--size or the images' own) and runs on a
/// device, in a pack; a vqgan takes any multiple of its stride, and its file has
/// the official names.
///
/// Examples:
///   sorcen tokenizer train --images photos --size 64 --codes 512 \
///       --out tokenizer.safetensors
///   sorcen tokenizer train --kind vit --images photos --size 64 \
///       --steps 5000 --out vit
///   sorcen tokenizer train --kind vqgan --channels 64,128,128 \
///       --images photos --size 64 --device cuda --out vqgan
#[derive(clap::Args, Debug)]
#[command(rename_all = "snake_case")]
#[command(verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    images: ImageArgs,

    /// What kind of tokenizer
    #[arg(long, value_enum, default_value = "patch")]
    kind: Kind,

    /// Number K of codes; 2^n fills n bits a token
    #[arg(long, default_value_t = 512)]
    codes: usize,

    /// Side of a patch in pixels (patch, vit): images of 64 pixels and patches of 8 give 8x8 tokens
    #[arg(long, default_value_t = 8)]
    patch: usize,

    /// Rounds of k-means (patch)
    #[arg(long, default_value_t = 25)]
    iterations: u64,

    /// Seed: on one machine, the same seed and images give the same file
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// At most this many images, evenly chosen, so that they fit in memory
    #[arg(long, default_value_t = 20_000, value_name = "N")]
    max_images: usize,

    /// What to write: a file (patch), a folder (vit, vqgan)
    #[arg(long, value_name = "FILE|DIR")]
    out: PathBuf,

    #[command(flatten)]
    network: NetworkArgs,
}

/// Kinds on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A codebook of patches
    Patch,
    /// A light transformer
    Vit,
    /// The paper's convolutional layout
    Vqgan,
}

/// Flags of the kinds that are networks.
#[derive(clap::Args, Clone, Debug, PartialEq)]
#[command(rename_all = "snake_case", next_help_heading = "Networks (vit, vqgan)")]
struct NetworkArgs {
    /// Length z of a code; at most half of --dim where a vit starts as patches
    #[arg(long, default_value_t = 16)]
    code_dim: usize,

    /// Width (vit)
    #[arg(long, default_value_t = 64)]
    dim: usize,

    /// Blocks of the encoder (vit)
    #[arg(long, default_value_t = 2)]
    depth: usize,

    /// Blocks of the decoder (vit)
    #[arg(long, default_value_t = 4)]
    decoder_depth: usize,

    /// Attention heads (vit)
    #[arg(long, default_value_t = 4)]
    heads: usize,

    /// Hidden width of an MLP over its width (vit)
    #[arg(long, default_value_t = 4)]
    mlp_ratio: usize,

    /// Channels of each level (vqgan), the finest first, multiples of 32: n levels give tokens of 2^(n-1) pixels.
    /// The paper's: 128,128,256,256,512 with --blocks 2 --code_dim 256 --codes 1024
    #[arg(long, value_delimiter = ',', value_name = "N,...", default_value = "32,64,64,128")]
    channels: Vec<usize>,

    /// Residual blocks a level (vqgan)
    #[arg(long, default_value_t = 1)]
    blocks: usize,

    /// What the network is before the first update [default: patches for a vit, random for a vqgan]
    #[arg(long, value_enum)]
    start: Option<Start>,

    /// Updates
    #[arg(long, default_value_t = 5000)]
    steps: u64,

    /// Images of a step
    #[arg(long, default_value_t = 64)]
    batch_size: usize,

    /// Peak learning rate; it falls to 0 along a half cosine
    #[arg(long, default_value_t = 1e-3)]
    lr: f64,

    /// Steps of linear learning-rate warm-up [default: a twentieth of the steps]
    #[arg(long)]
    warmup_steps: Option<u64>,

    /// Weight decay of matrices
    #[arg(long, default_value_t = 1e-4)]
    weight_decay: f64,

    /// The pixels' error
    #[arg(long, value_enum, default_value = "l1")]
    loss: Loss,

    /// Weight of the commitment: how strongly the encoder is drawn to its codes
    #[arg(long, default_value_t = 0.25)]
    commitment: f32,

    /// Weight that the codes' running means keep in a step
    #[arg(long, default_value_t = 0.99)]
    ema_decay: f32,

    /// A code that is used less than this share of the mean use starts again; 0: never
    #[arg(long, default_value_t = 0.03)]
    dead_below: f32,

    /// auto: go on where an earlier run in --out stopped; a new run if there is none
    #[arg(long, value_enum, default_value = "no")]
    resume: Resume,

    /// Steps between checkpoints
    #[arg(long, default_value_t = 500)]
    save_every: u64,

    /// Steps between lines of the log
    #[arg(long, default_value_t = 50)]
    print_freq: u64,

    /// Steps between pictures; there is one at the end. 0: only that
    #[arg(long, default_value_t = 500)]
    picture_every: u64,

    /// Where to compute: cpu, or cuda or wgpu in a build with that feature
    #[arg(long, default_value = "cpu")]
    device: Device,
}

/// Whether to go on with an earlier run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Resume {
    /// No
    No,
    /// If there is one
    Auto,
}

impl Default for NetworkArgs {
    fn default() -> Self {
        #[derive(clap::Parser)]
        struct None {
            #[command(flatten)]
            args: NetworkArgs,
        }
        None::parse_from(["none"]).args
    }
}

impl Args {
    /// Kind and sizes of a network for images of `side` pixels.
    fn sizes(&self, side: usize) -> Result<Sizes> {
        let NetworkArgs { code_dim, dim, depth, decoder_depth, heads, mlp_ratio, ref channels, blocks, .. } =
            self.network;
        let codes = self.codes;
        if self.kind == Kind::Vqgan {
            usage_unless!(!channels.is_empty(), "--channels: expected at least one number");
            let (stem, channels) = (channels[0], channels.clone());
            let (encoder_blocks, decoder_blocks, z_channels) = (blocks, blocks, code_dim);
            return Ok(Sizes::Vqgan(VqganConfig { stem, channels, encoder_blocks, decoder_blocks, z_channels, codes }));
        }
        let patch = self.patch;
        usage_unless!(
            patch > 0 && side.is_multiple_of(patch),
            "--patch: expected a divisor of the images' side ({side}), found {patch}"
        );
        let (grid, embed_dim, num_heads) = (side / patch, dim, heads);
        Ok(Sizes::Vit(VitConfig {
            grid,
            patch,
            codes,
            code_dim,
            embed_dim,
            depth,
            num_heads,
            decoder_depth,
            mlp_ratio,
        }))
    }

    fn options(&self, side: usize) -> Result<Options> {
        let network = &self.network;
        Ok(Options {
            sizes: self.sizes(side)?,
            start: network.start.unwrap_or(if self.kind == Kind::Vit { Start::Patches } else { Start::Random }),
            steps: network.steps,
            batch_size: network.batch_size,
            lr: network.lr,
            warmup_steps: network.warmup_steps.unwrap_or(network.steps / 20),
            weight_decay: network.weight_decay,
            loss: network.loss,
            commitment: network.commitment,
            ema_decay: network.ema_decay,
            dead_below: network.dead_below,
            seed: self.seed,
            save_every: network.save_every,
            print_freq: network.print_freq,
            picture_every: network.picture_every,
            resume: network.resume == Resume::Auto,
            device: network.device,
            out: self.out.clone(),
        })
    }
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    match args.kind {
        Kind::Patch => {
            let given = args.network != NetworkArgs::default();
            usage_unless!(!given, "flags of networks were given: expected --kind vit or vqgan, found --kind patch");
            find_patches(args)
        }
        Kind::Vit | Kind::Vqgan => train_network(args),
    }
}

/// The images, `max_images` of them at most, and what they are.
fn read(args: &Args) -> Result<(Vec<Vec<u8>>, usize, String)> {
    let images = args.images.open()?;
    let step = images.len().div_ceil(args.max_images.max(1));
    let mut bar = Progress::new("reading", images.len().div_ceil(step) as u64, "images");
    let mut pixels = Vec::with_capacity(images.len().div_ceil(step));
    for index in (0..images.len()).step_by(step) {
        pixels.push(images.rgb(index)?);
        bar.show(pixels.len() as u64, "");
    }
    Ok((pixels, images.side(), images.digest()))
}

fn find_patches(args: &Args) -> Result<()> {
    let (pixels, side, _) = read(args)?;
    let options = TrainOptions { codes: args.codes, patch: args.patch, iterations: args.iterations, seed: args.seed };
    let mut bar = Progress::new("choosing first codes", args.codes as u64, "codes");
    let trained = tokenizer::train(&pixels, side, &options, |progress| match progress {
        TrainProgress::Chosen(codes) => bar.show(codes, ""),
        TrainProgress::Round(round, error) => {
            if round == 1 {
                bar = Progress::new("k-means", args.iterations, "rounds");
            }
            bar.show(round, &format!("{:.2} dB", tokenizer::psnr_db(error)));
        }
    })?;
    drop(bar);
    trained.save(&args.out)?;
    let report = tokenizer::check(&trained, &pixels, side)?;
    println!(
        "{}: {}; {:.2} dB on the {} images trained on",
        args.out.display(),
        trained.fingerprint(),
        report.psnr_db,
        report.images
    );
    Ok(())
}

fn train_network(args: &Args) -> Result<()> {
    let run = args.out.join(RUN);
    if args.network.resume == Resume::No && run.exists() {
        bail!("--out: expected a folder without a run, found {}; --resume auto goes on with that run", run.display());
    }
    let (pixels, side, digest) = read(args)?;
    let options = args.options(side)?;
    let stop = super::stop_on_signal()?;
    let bar = super::progress(options.steps, "steps");
    let images = Images { pixels: &pixels, side, digest };
    let report = learn(&images, &options, &mut |progress| {
        bar.set_position(progress.step);
        if let Some((round, rounds)) = progress.round {
            let told = format!("k-means of patches to start from: round {round} of {rounds}");
            if bar.is_hidden() {
                eprintln!("{told}");
            }
            bar.set_message(told);
        }
        if let Some(line) = &progress.line {
            let told = tell(line);
            if bar.is_hidden() {
                eprintln!("step {}/{}, {told}", progress.step, progress.steps);
            }
            bar.set_message(told);
        }
        match stop.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    bar.finish_and_clear();
    let report = report?;
    let last = report.last.map_or(String::new(), |line| format!("; {:.2} dB on images trained on", line.psnr_db));
    println!("{}: {}{last}", report.tokenizer.display(), report.fingerprint);
    if report.steps < options.steps {
        let (done, of) = (report.steps, options.steps);
        return Err(Stopped(format!("after {done} of {of} steps; the same command with --resume auto goes on")).into());
    }
    Ok(())
}

fn tell(line: &LearnLine) -> String {
    let LearnLine { l1, psnr_db, codes_used, perplexity, restarted, img_per_s, .. } = line;
    format!(
        "L1 {l1:.4}, {psnr_db:.2} dB, {codes_used} codes used, perplexity {perplexity:.0}, {restarted} restarted, \
         {img_per_s:.0} images/s"
    )
}
