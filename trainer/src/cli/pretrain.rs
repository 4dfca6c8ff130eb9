//! `sorcen pretrain`: training.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use anyhow::{bail, Context};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};

use crate::checkpoint;
use crate::config::{Duration, ModelChoice, PretrainOptions};
use crate::device::Device;
use crate::step::Method;
use crate::train::{self, PretrainReport};

/// Pretrain a model on a token dataset.
///
/// Writes OUTPUT_DIR/checkpoint (model.safetensors, config.json, training_state/), log.txt (JSON lines)
/// and run.json. Defaults are the official ones; where those only make sense at ImageNet scale, they
/// shrink with the model's width or the run's length, as each flag says.
#[derive(clap::Args)]
#[command(rename_all = "snake_case")]
pub struct Args {
    /// Token dataset folder.
    #[arg(long)]
    data: PathBuf,
    /// Folder for checkpoint, log and run.json.
    #[arg(long)]
    output_dir: PathBuf,
    /// vit_b, vit_l, small, tiny, micro, or a FILE.json as in a checkpoint.
    #[arg(long, default_value = "tiny")]
    model: ModelChoice,
    /// sorcen, or mage (reconstruction alone).
    #[arg(long, value_enum, default_value = "sorcen")]
    method: Method,
    /// official: the published code. paper: its supplement where they differ (dropout 0.5, echo warm-up 40 epochs).
    #[arg(long, value_enum, default_value = "official")]
    preset: Preset,
    /// Passes over the dataset [default: 1600].
    #[arg(long, conflicts_with_all = ["minutes", "steps"])]
    epochs: Option<f64>,
    /// Train for about this long: a few steps are timed, and the schedule is cut to fit.
    #[arg(long, conflicts_with = "steps")]
    minutes: Option<f64>,
    /// Number of updates.
    #[arg(long)]
    steps: Option<u64>,
    /// Images a step.
    #[arg(long, default_value_t = 64)]
    batch_size: usize,
    /// Peak learning rate [default: blr * batch_size / 256].
    #[arg(long)]
    lr: Option<f64>,
    /// Base learning rate [default: 1.5e-4 from 384 wide on, 3e-3 below].
    #[arg(long)]
    blr: Option<f64>,
    /// Learning rate at the end.
    #[arg(long, default_value_t = 0.0)]
    min_lr: f64,
    /// Epochs of learning-rate warm-up [default: 40, or a twentieth of the run where that is less].
    #[arg(long)]
    warmup_epochs: Option<f64>,
    /// Weight decay of matrices and embeddings.
    #[arg(long, default_value_t = 0.05)]
    weight_decay: f64,
    /// Largest global gradient norm; 0 turns clipping off.
    #[arg(long, default_value_t = 3.0)]
    grad_clip: f64,
    /// Centre of the truncated normal of mask ratios.
    #[arg(long, default_value_t = 0.55)]
    mask_ratio_mu: f64,
    /// Its deviation.
    #[arg(long, default_value_t = 0.25)]
    mask_ratio_std: f64,
    /// Smallest mask ratio.
    #[arg(long, default_value_t = 0.5)]
    mask_ratio_min: f64,
    /// Largest mask ratio.
    #[arg(long, default_value_t = 1.0)]
    mask_ratio_max: f64,
    /// Share of tokens removed before the encoder.
    #[arg(long, default_value_t = 0.5)]
    drop_ratio: f64,
    /// Dropout rate [default: 0.1].
    #[arg(long)]
    dropout: Option<f32>,
    /// Label smoothing of the reconstruction.
    #[arg(long, default_value_t = 0.1)]
    label_smoothing: f32,
    /// Weight of the contrast.
    #[arg(long, default_value_t = 0.1)]
    lambda: f32,
    /// Temperature of the contrast.
    #[arg(long, default_value_t = 0.3)]
    temperature: f32,
    /// Weight of the uniformity term.
    #[arg(long, default_value_t = 0.01)]
    uniformity: f32,
    /// Echo candidates, after the best is removed.
    #[arg(long, default_value_t = 15)]
    echo_topk: usize,
    /// Last epoch whose echoes are the ground truth [default: 10, or a twentieth of the run where that is less].
    #[arg(long)]
    echo_warmup_epochs: Option<u64>,
    /// Output width of the projectors [default: 512, or twice the model's width where that is less].
    #[arg(long)]
    projector_dim: Option<usize>,
    /// Show the teacher the whole echo (no jittered spatial masking).
    #[arg(long)]
    no_jsm: bool,
    /// Teacher momentum at the start.
    #[arg(long, default_value_t = 0.996)]
    ema: f64,
    /// Epochs over which it rises to 1 (official: 1600, whatever the run's length).
    #[arg(long, default_value_t = 1600.0)]
    ema_epochs: f64,
    /// Seed of everything.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Checkpoint folder to start from (weights, not the optimiser).
    #[arg(long)]
    init: Option<PathBuf>,
    /// auto: go on where an earlier run in OUTPUT_DIR stopped, to the same bits; a new run if there is none.
    #[arg(long, value_enum, default_value = "no")]
    resume: Resume,
    /// Steps between checkpoints.
    #[arg(long, default_value_t = 1000)]
    save_every: u64,
    /// Steps between lines of the log.
    #[arg(long, default_value_t = 20)]
    print_freq: u64,
    /// Where to compute.
    #[arg(long, value_enum, default_value = "cpu")]
    device: Device,
}

#[derive(Clone, Copy, ValueEnum)]
enum Preset {
    Official,
    Paper,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Resume {
    No,
    Auto,
}

impl Args {
    fn options(&self) -> PretrainOptions {
        let duration = match (self.epochs, self.minutes, self.steps) {
            (_, Some(minutes), _) => Duration::Minutes(minutes),
            (_, _, Some(steps)) => Duration::Steps(steps),
            (epochs, ..) => Duration::Epochs(epochs.unwrap_or(1600.0)),
        };
        let (dropout, echo_warmup) = match self.preset {
            Preset::Official => (0.1, None),
            Preset::Paper => (0.5, Some(39)), // 40 epochs: 0 to 39
        };
        let mut options = PretrainOptions::new(&self.data, &self.output_dir, self.model.clone(), duration);
        options.batch_size = self.batch_size;
        options.lr = self.lr;
        options.blr = self.blr;
        options.min_lr = self.min_lr;
        options.warmup_epochs = self.warmup_epochs;
        options.adamw.weight_decay = self.weight_decay;
        options.adamw.grad_clip = self.grad_clip;
        options.masks.mask_ratio_mu = self.mask_ratio_mu;
        options.masks.mask_ratio_std = self.mask_ratio_std;
        options.masks.mask_ratio_min = self.mask_ratio_min;
        options.masks.mask_ratio_max = self.mask_ratio_max;
        options.masks.drop_ratio = self.drop_ratio;
        options.dropout = self.dropout.unwrap_or(dropout);
        options.losses.method = self.method;
        options.losses.label_smoothing = self.label_smoothing;
        options.losses.lambda = self.lambda;
        options.losses.temperature = self.temperature;
        options.losses.uniformity = self.uniformity;
        options.losses.echo_topk = self.echo_topk;
        options.echo_warmup_epochs = self.echo_warmup_epochs.or(echo_warmup);
        options.projector_dim = self.projector_dim;
        options.jsm = !self.no_jsm;
        options.ema = self.ema;
        options.ema_epochs = self.ema_epochs;
        options.seed = self.seed;
        options.init = self.init.clone();
        options.resume = self.resume == Resume::Auto;
        options.save_every = self.save_every;
        options.print_freq = self.print_freq;
        options.device = self.device;
        options
    }
}

/// Runs the verb.
///
/// # Errors
/// Whatever [`train::pretrain`] reports.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let begun = checkpoint::find(&args.output_dir.join(train::CHECKPOINT));
    if let Some(found) = begun.filter(|_| args.resume == Resume::No) {
        let found = found.display();
        bail!("--output_dir: expected a folder without a run, found {found}; --resume auto goes on with that run");
    }
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::Relaxed) {
            std::process::exit(130); // asked twice: now
        }
        eprintln!("\nstopping after this step, with a checkpoint (again to stop at once)");
    })
    .context("cannot listen for Ctrl-C")?;
    let report = pretrain_with_bar(&args.options(), &stop)?;
    let PretrainReport { checkpoint, steps, planned_steps, images, images_per_second, .. } = &report;
    println!("{steps} of {planned_steps} steps, {images} images, {images_per_second:.0} images/s");
    if steps < planned_steps {
        println!("stopped early: the same command with --resume auto goes on");
    }
    println!("{}", checkpoint.display());
    Ok(())
}

/// Trains under a progress bar, until done or `stop` is set.
///
/// # Errors
/// Whatever [`train::pretrain`] reports.
pub fn pretrain_with_bar(options: &PretrainOptions, stop: &AtomicBool) -> anyhow::Result<PretrainReport> {
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} steps, {eta} left, {msg}")?);
    let report = train::pretrain(options, &mut |progress| {
        bar.set_length(progress.steps);
        bar.set_position(progress.step);
        if let Some(line) = &progress.line {
            let (loss, rec, nn) = (line.train_loss, line.train_rec_loss, line.train_nn_loss);
            bar.set_message(format!("{:.0} img/s, loss {loss:.3} (rec {rec:.3}, nn {nn:.3})", line.img_per_s));
        }
        if stop.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    bar.finish();
    Ok(report?)
}
