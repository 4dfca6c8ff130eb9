//! `sorcen pretrain`: training.

use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::bail;
use clap::ValueEnum;
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use sorcen_export::fingerprint::{Fingerprint, Kind};

use super::usage::Stopped;
use crate::checkpoint;
use crate::config::{self, ModelChoice, PretrainOptions};
use crate::device::Device;
use crate::model::Precision;
use crate::step::{Contrast, Method};
use crate::teacher::{TeacherInit, TeacherKind};
use crate::tokenizer;
use crate::train::{self, PretrainReport, Progress};

/// Pretrain a model on a token dataset.
///
/// Writes OUTPUT_DIR/checkpoint (model.safetensors, config.json, training_state/), log.txt (JSON lines),
/// tensorboard/ (the same numbers), run.json (options, schedules, data, versions) and, where asked for,
/// pictures/; it does not start without room on the disk for the checkpoints that will be kept. Defaults are
/// those of the official code; where those only make sense at ImageNet scale, they shrink with the model's width
/// or the run's length, as each flag says.
///
/// A line of progress shows the loss and, in brackets, the parts that it is the sum of, each with its weight: `rec`
/// (reconstruction), `uniformity`, `nn` (the contrast) and `class` (a classifier that watches the features and moves
/// none of them); docs/training.md explains every field of the log.
///
/// Ctrl-C or SIGTERM stops after the step, with a checkpoint and exit code 130. However a run ends, the same command with
/// --resume auto goes on from the last checkpoint, and on the CPU ends with the same bits as without the stop.
///
/// Example: sorcen pretrain --data trainer/assets/emoji/train --output_dir run --model micro --minutes 2
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
    /// official: the published code. paper: the article's words where they differ, which are --dropout 0.5,
    /// --echo_warmup_epochs 39, --uniformity 0, --teacher whole and --teacher_init student.
    #[arg(long, value_enum, default_value = "official")]
    preset: Preset,
    /// Passes over the dataset; instead of it --steps or --minutes, one of the three [default: 1600].
    #[arg(long, conflicts_with_all = ["minutes", "steps"])]
    epochs: Option<f64>,
    /// Train for about this long: a few steps are timed, and the schedule is cut to fit, again and again as the speed
    /// becomes known, so that the learning rate is at its end when the time is over.
    #[arg(long, conflicts_with = "steps")]
    minutes: Option<f64>,
    /// Number of updates.
    #[arg(long)]
    steps: Option<u64>,
    /// Images that go through the model together, at least 2; BatchNorm and negatives are among these.
    #[arg(long, default_value_t = 64)]
    batch_size: usize,
    /// Batches whose gradients are averaged for one update: a step has batch_size * accum_iter * devices images.
    #[arg(long, default_value_t = 1)]
    accum_iter: usize,
    /// Devices to train on together, 1 to 1024, each with batches, masks and BatchNorm of its own; gradients are averaged over
    /// all, and negatives and uniformity are those of all (as in the official code's processes). With cuda, the first
    /// so many GPUs of this machine; with cpu, threads: for tests, it is no faster.
    #[arg(long, default_value_t = 1)]
    devices: usize,
    /// What matrix products take: f32; tf32, which CUDA's tensor cores make of f32 (faster, 11 bits); or bf16 (8 bits),
    /// with everything else, and the weights, in f32.
    #[arg(long, value_enum, default_value = "f32")]
    precision: Precision,
    /// Peak learning rate, at least min_lr [default: blr * images of a step / 256].
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
    /// Smallest mask ratio, at least drop_ratio.
    #[arg(long, default_value_t = 0.5)]
    mask_ratio_min: f64,
    /// Largest mask ratio, at most 1.
    #[arg(long, default_value_t = 1.0)]
    mask_ratio_max: f64,
    /// Share of tokens removed before the encoder, 0 to below 1.
    #[arg(long, default_value_t = 0.5)]
    drop_ratio: f64,
    /// Dropout rate, 0 to below 1 [default: 0.1].
    #[arg(long)]
    dropout: Option<f32>,
    /// Label smoothing of the reconstruction, 0 to below 1.
    #[arg(long, default_value_t = 0.1)]
    label_smoothing: f32,
    /// Weight of the contrast, 0 or more.
    #[arg(long, default_value_t = 0.1)]
    lambda: f32,
    /// Temperature of the contrast.
    #[arg(long, default_value_t = 0.3)]
    temperature: f32,
    /// infonce, or l2 (squared distance of anchor and echo, no negatives).
    #[arg(long, value_enum, default_value = "infonce")]
    contrast: Contrast,
    /// Weight of the uniformity term, 0 or more [default: 0.01].
    #[arg(long)]
    uniformity: Option<f32>,
    /// Echo candidates, at least 1, after the best is removed.
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
    /// Teacher momentum at the start, 0 to 1.
    #[arg(long, default_value_t = 0.996)]
    ema: f64,
    /// Epochs over which it rises to 1 (official: 1600, whatever the run's length).
    #[arg(long, default_value_t = 1600.0)]
    ema_epochs: f64,
    /// The teacher's own parts. blocks: the rest is the student's, and the momentum projector is trained too.
    /// whole: embedding and norm too, and the momentum projector only follows [default: blocks].
    #[arg(long, value_enum)]
    teacher: Option<TeacherKind>,
    /// Where the teacher starts: with random weights of its own, or as a copy of the student [default: random].
    #[arg(long, value_enum)]
    teacher_init: Option<TeacherInit>,
    /// Seed of everything.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Checkpoint folder to start from: its weights, with schedules and optimiser from the beginning.
    #[arg(long)]
    init: Option<PathBuf>,
    /// Take an --init, a --tokenizer or --knn_data that say by their fingerprints that they are about another
    /// tokenizer's codes than those of --data: an error without.
    #[arg(long)]
    allow_other_tokenizer: bool,
    /// Begin at this epoch of the schedules, with the optimiser of --init too: to go on with a run of the official
    /// code, imported with `sorcen import --with_training_state`.
    #[arg(long, default_value_t = 0, value_name = "EPOCH", requires = "init")]
    start_epoch: u64,
    /// auto: go on where an earlier run in OUTPUT_DIR stopped, to the same bits; a new run if there is none.
    #[arg(long, value_enum, default_value = "no")]
    resume: Resume,
    /// Steps between checkpoints.
    #[arg(long, default_value_t = 1000)]
    save_every: u64,
    /// Checkpoints that stay: the newest so many, the older ones as OUTPUT_DIR/checkpoint-STEP.
    #[arg(long, default_value_t = 1)]
    keep_last: usize,
    /// Besides these, checkpoints whose step is a multiple of this stay; 0: none.
    #[arg(long, default_value_t = 0, value_name = "STEPS")]
    keep_every: u64,
    /// Epochs between pictures, OUTPUT_DIR/pictures/epoch_N.png; 0: none. Their rows, which have names: images of the
    /// batch, what the student sees of them (grey: masked or dropped), the echoes drawn from that, what the teacher sees
    /// of those, and new images.
    #[arg(long, default_value_t = 0, value_name = "EPOCHS", requires = "tokenizer")]
    picture_every_epochs: u64,
    /// The tokenizer that turns tokens into pixels for them: any that `tokenize` takes. A VQGAN of official size
    /// takes seconds of a CPU for each of the 40 images.
    #[arg(long, value_name = "FILE|DIR")]
    tokenizer: Option<PathBuf>,
    /// Epochs between k-NN accuracies (`knn_accuracy` in the log); 0: none.
    #[arg(long, default_value_t = 0, value_name = "EPOCHS", requires = "knn_data")]
    knn_every_epochs: u64,
    /// Folder with the token datasets train (labels known) and val (to classify) for them.
    #[arg(long, value_name = "DIR")]
    knn_data: Option<PathBuf>,
    /// Steps between lines of the log.
    #[arg(long, default_value_t = 20)]
    print_freq: u64,
    /// Where to compute: cpu, or cuda or wgpu in a build with that feature.
    #[arg(long, default_value = "cpu")]
    device: Device,
}

#[derive(Clone, Copy, ValueEnum)]
enum Preset {
    Official,
    Paper,
}

impl Preset {
    fn apply(self, options: &mut PretrainOptions) {
        if let Preset::Paper = self {
            options.dropout = 0.5;
            options.echo_warmup_epochs = Some(39); // 40 epochs: 0 to 39
            options.losses.uniformity = 0.0;
            options.losses.teacher = TeacherKind::Whole;
            options.teacher_init = TeacherInit::Student;
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Resume {
    No,
    Auto,
}

impl Args {
    fn options(&self) -> PretrainOptions {
        let duration = match (self.epochs, self.minutes, self.steps) {
            (_, Some(minutes), _) => config::Duration::Minutes(minutes),
            (_, _, Some(steps)) => config::Duration::Steps(steps),
            (epochs, ..) => config::Duration::Epochs(epochs.unwrap_or(1600.0)),
        };
        let mut options = PretrainOptions::new(&self.data, &self.output_dir, self.model.clone(), duration);
        self.preset.apply(&mut options);
        options.batch_size = self.batch_size;
        options.accum_iter = self.accum_iter;
        options.devices = self.devices;
        options.precision = self.precision;
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
        options.dropout = self.dropout.unwrap_or(options.dropout);
        options.losses.method = self.method;
        options.losses.label_smoothing = self.label_smoothing;
        options.losses.lambda = self.lambda;
        options.losses.temperature = self.temperature;
        options.losses.contrast = self.contrast;
        options.losses.uniformity = self.uniformity.unwrap_or(options.losses.uniformity);
        options.losses.teacher = self.teacher.unwrap_or(options.losses.teacher);
        options.teacher_init = self.teacher_init.unwrap_or(options.teacher_init);
        options.losses.echo_topk = self.echo_topk;
        options.echo_warmup_epochs = self.echo_warmup_epochs.or(options.echo_warmup_epochs);
        options.projector_dim = self.projector_dim;
        options.jsm = !self.no_jsm;
        options.ema = self.ema;
        options.ema_epochs = self.ema_epochs;
        options.seed = self.seed;
        options.init = self.init.clone();
        options.start_epoch = self.start_epoch;
        options.resume = self.resume == Resume::Auto;
        options.save_every = self.save_every;
        options.keep.last = self.keep_last;
        options.keep.every = self.keep_every;
        options.watch.picture_every_epochs = self.picture_every_epochs;
        options.watch.tokenizer = self.tokenizer.clone();
        options.watch.knn_every_epochs = self.knn_every_epochs;
        options.watch.knn_data = self.knn_data.clone();
        options.print_freq = self.print_freq;
        options.device = self.device;
        options
    }

    /// That whatever is about codes is about those of the data.
    fn check_tokenizers(&self) -> anyhow::Result<()> {
        let Ok(data) = Fingerprint::of_dataset(&self.data) else { return Ok(()) }; // training says what is wrong with it
        let expect = |found| data.expect(&found, Kind::Tokenizer, self.allow_other_tokenizer);
        if let Some(dir) = &self.init {
            expect(Fingerprint::of_checkpoint(dir, &checkpoint::read_config(dir)?)?)?;
        }
        if let Some(path) = self.tokenizer.as_ref().filter(|_| self.picture_every_epochs > 0) {
            expect(Fingerprint::new(path.display(), Some(tokenizer::open(path, Device::Cpu)?.fingerprint())))?;
        }
        if let Some(dir) = self.knn_data.as_ref().filter(|_| self.knn_every_epochs > 0) {
            expect(Fingerprint::of_dataset(&dir.join("train"))?)?;
        }
        Ok(())
    }
}

/// Runs the verb.
///
/// # Errors
/// Whatever [`train::pretrain`] reports; that a signal stopped it.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let begun = checkpoint::find(&args.output_dir.join(train::CHECKPOINT));
    if let Some(found) = begun.filter(|_| args.resume == Resume::No) {
        let found = found.display();
        bail!("--output_dir: expected a folder without a run, found {found}; --resume auto goes on with that run");
    }
    args.check_tokenizers()?;
    let stop = super::stop_on_signal()?;
    let options = args.options();
    let report = pretrain_with_bar(&options, &stop)?;
    let PretrainReport { checkpoint, steps, planned_steps, echo_steps, images, images_per_second, .. } = &report;
    let speed = match *images_per_second > 0.0 {
        true => format!("{images_per_second:.0} images/s"),
        false => "no step was left to do".into(),
    };
    println!("{steps} of {planned_steps} steps, {images} images, {speed}");
    if options.losses.method == Method::Sorcen && *echo_steps == 0 {
        println!("no echo was drawn: the run ends within its echo warm-up (epoch 0 at least is warm-up); train longer");
    }
    println!("{}", checkpoint.display());
    if steps < planned_steps {
        return Err(Stopped("the same command with --resume auto goes on from the checkpoint".into()).into());
    }
    Ok(())
}

/// Trains under a progress bar (lines, where standard error is no terminal), until done or `stop` is set.
///
/// # Errors
/// Whatever [`train::pretrain`] reports.
pub fn pretrain_with_bar(options: &PretrainOptions, stop: &AtomicBool) -> anyhow::Result<PretrainReport> {
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} steps, {msg}")?);
    let report = train::pretrain(options, &mut |progress| {
        bar.set_length(progress.steps);
        bar.set_position(progress.step);
        for note in &progress.notes {
            // A full disk behind standard error is no reason to stop training.
            bar.suspend(|| _ = writeln!(std::io::stderr(), "note: {note}"));
        }
        if let Some(told) = tell(progress, options.images_per_step()) {
            if bar.is_hidden() {
                let _ = writeln!(std::io::stderr(), "step {}/{}, {told}", progress.step, progress.steps);
            }
            bar.set_message(told);
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

/// Speed, time left and losses, where there is a new line of the log.
fn tell(progress: &Progress, images_per_step: usize) -> Option<String> {
    let line = progress.line.as_ref()?;
    let left = (progress.steps - progress.step) as f64 * images_per_step as f64 / line.img_per_s.max(1e-9);
    let left = HumanDuration(Duration::from_secs_f64(left.min(1e9)));
    let parts: Vec<String> = line.parts().iter().map(|(name, value)| format!("{name} {value:.3}")).collect();
    let knn = line.knn_accuracy.map_or(String::new(), |share| format!(", k-NN {:.1} %", 100.0 * share));
    let (speed, loss) = (line.img_per_s, line.train_loss);
    Some(format!("{speed:.0} img/s, {left} left, loss {loss:.3} ({}){knn}", parts.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn options(flags: &str) -> PretrainOptions {
        let fixed = ["pretrain", "--data", "d", "--output_dir", "o"];
        Line::try_parse_from(fixed.into_iter().chain(flags.split_whitespace())).unwrap().args.options()
    }

    #[test]
    fn every_flag_arrives() {
        let epochs = config::Duration::Epochs(1600.0);
        let mut expected = PretrainOptions::new("d".as_ref(), "o".as_ref(), ModelChoice::Tiny, epochs);
        assert_eq!(options(""), expected, "without flags: the official values");

        expected.model = ModelChoice::VitL;
        expected.duration = config::Duration::Steps(7);
        expected.batch_size = 9;
        expected.accum_iter = 3;
        expected.devices = 2;
        expected.precision = Precision::Bf16;
        expected.lr = Some(1e-2);
        expected.blr = Some(2e-2);
        expected.min_lr = 1e-5;
        expected.warmup_epochs = Some(2.5);
        expected.adamw.weight_decay = 0.07;
        expected.adamw.grad_clip = 1.5;
        expected.masks.mask_ratio_mu = 0.6;
        expected.masks.mask_ratio_std = 0.2;
        expected.masks.mask_ratio_min = 0.55;
        expected.masks.mask_ratio_max = 0.9;
        expected.masks.drop_ratio = 0.4;
        expected.dropout = 0.3;
        expected.losses.method = Method::Mage;
        expected.losses.contrast = Contrast::L2;
        expected.losses.teacher = TeacherKind::Whole;
        expected.losses.label_smoothing = 0.2;
        expected.losses.lambda = 0.5;
        expected.losses.temperature = 0.4;
        expected.losses.uniformity = 0.02;
        expected.losses.echo_topk = 30;
        expected.echo_warmup_epochs = Some(4);
        expected.projector_dim = Some(256);
        expected.jsm = false;
        expected.ema = 0.99;
        expected.ema_epochs = 50.0;
        expected.teacher_init = TeacherInit::Student;
        expected.seed = 11;
        expected.init = Some("i".into());
        expected.start_epoch = 13;
        expected.resume = true;
        expected.save_every = 12;
        expected.keep.last = 5;
        expected.keep.every = 24;
        expected.print_freq = 2;
        expected.watch.picture_every_epochs = 6;
        expected.watch.tokenizer = Some("t".into());
        expected.watch.knn_every_epochs = 8;
        expected.watch.knn_data = Some("k".into());
        let flags = "--model vit_l --steps 7 --batch_size 9 --accum_iter 3 --devices 2 --precision bf16 --lr 1e-2 --blr 2e-2 --min_lr 1e-5 \
            --warmup_epochs 2.5 --weight_decay 0.07 --grad_clip 1.5 --mask_ratio_mu 0.6 --mask_ratio_std 0.2 \
            --mask_ratio_min 0.55 --mask_ratio_max 0.9 --drop_ratio 0.4 --dropout 0.3 --method mage --contrast l2 \
            --teacher whole --label_smoothing 0.2 --lambda 0.5 --temperature 0.4 --uniformity 0.02 --echo_topk 30 \
            --echo_warmup_epochs 4 --projector_dim 256 --no_jsm --ema 0.99 --ema_epochs 50 --teacher_init student \
            --seed 11 --init i --start_epoch 13 --resume auto --save_every 12 --keep_last 5 --keep_every 24 --print_freq 2 \
            --picture_every_epochs 6 --tokenizer t --knn_every_epochs 8 --knn_data k";
        assert_eq!(options(flags), expected);
    }

    #[test]
    fn flags_override_the_preset() {
        let paper = options("--preset paper");
        assert_eq!((paper.dropout, paper.echo_warmup_epochs, paper.losses.uniformity), (0.5, Some(39), 0.0));
        assert_eq!((paper.losses.teacher, paper.teacher_init), (TeacherKind::Whole, TeacherInit::Student));
        let mixed = options("--preset paper --dropout 0.2 --echo_warmup_epochs 3 --uniformity 0.5 --teacher blocks");
        assert_eq!((mixed.dropout, mixed.echo_warmup_epochs, mixed.losses.uniformity), (0.2, Some(3), 0.5));
        assert_eq!(mixed.losses.teacher, TeacherKind::Blocks);
    }
}
