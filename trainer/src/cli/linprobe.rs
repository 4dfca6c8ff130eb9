//! `sorcen linprobe`: a linear classifier on frozen features.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Result};
use burn::backend::Autodiff;
use clap::ValueEnum;
use serde_json::{json, Value};
use sorcen_export::fingerprint::{self, Fingerprint};
use sorcen_export::pack::{PackEngine, PackFile};
use sorcen_export::Engine as _;

use super::features::{EncoderArgs, TaskArgs};
use crate::data::DataError;
use crate::device::{with_backend, Device};
use crate::engine::BurnEngine;
use crate::eval::{
    features_with_dropout, linear_probe, probe_features, EpochLine, LinearProbe, ProbeData, ProbeOptions, Task,
    TaskFeatures, TrainFeatures, WARMUP_EPOCHS,
};
use crate::files::PartialDir;
use crate::kernels::{Kernels, TrainBackend};
use crate::model::layers::Dropout;

/// Train a linear classifier on frozen features: the paper's main measure
///
/// The encoder stays as it is, in eval mode; its feature of an image is the mean
/// of the last block's patch tokens, standardised, without the pretrained final
/// norm. On it, BatchNorm without affine part and one linear layer learn the
/// classes of DATA/BANK by LARS and are measured on DATA/SPLIT after each epoch.
///
/// Defaults are the official protocol: 90 epochs, learning rate 1.6 (0.1 x
/// 4096/256) with 10 epochs of warm-up and a half cosine to 0, batches of 4096
/// images. The tokens are what they are: no crops, no flips.
///
/// Writes to OUTPUT_DIR:
///   head.safetensors  the head after the last epoch: head.0.running_mean,
///                     head.0.running_var, head.1.weight, head.1.bias
///                     (official names); class names and the SHA-256 of the
///                     checkpoint's weights in the metadata
///   log.txt           a JSON line an epoch: epoch, train_lr, train_loss,
///                     test_loss, test_acc1, test_acc5 (%)
///   result.json       what --json prints
///
/// Example:
///   sorcen linprobe --data trainer/assets/emoji --only skin_variation=0 \
///       --checkpoint trainer/assets/emoji/checkpoint --output_dir probe
#[derive(clap::Args, Debug)]
#[command(rename_all = "snake_case", verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    task: TaskArgs,

    #[command(flatten)]
    encoder: EncoderArgs,

    /// Folder to make for head, log and result; new or empty
    #[arg(long, value_name = "DIR")]
    output_dir: PathBuf,

    /// official: the published code, 10 epochs of warm-up. paper: its supplement, none
    #[arg(long, value_enum, default_value = "official")]
    preset: Preset,

    /// Passes over the bank
    #[arg(long, default_value_t = 90)]
    epochs: u64,

    /// Images a step [default: 4096; about a sixteenth of the bank, a power of two from 16 on, where that is less]
    #[arg(long)]
    batch_size: Option<usize>,

    /// Peak learning rate [default: 1.6, whatever the batch: steps of LARS are relative to the weights]
    #[arg(long)]
    lr: Option<f64>,

    /// Base learning rate: the peak is blr x batch_size / 256, as the official code computes it
    #[arg(long, conflicts_with = "lr")]
    blr: Option<f64>,

    /// Epochs of warm-up [default: 10, or none with --preset paper; at most a ninth of the epochs]
    #[arg(long)]
    warmup_epochs: Option<f64>,

    /// Train the head on features with dropout 0.1 at the token embedding, as the official code does by
    /// leaving the encoder in train mode; new features each epoch, so much slower
    #[arg(long, conflicts_with = "pack")]
    official_probe_dropout: bool,

    /// Seed of the head's initial weights, of the order of the images, and of dropout
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Where to compute: cpu, or cuda or wgpu in a build with that feature
    #[arg(long, default_value = "cpu")]
    device: Device,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Preset {
    Official,
    Paper,
}

/// What is reported of the log.
struct Log {
    last: EpochLine,
    best: EpochLine,
}

/// Rate of `--official_probe_dropout`.
const DROPOUT: f32 = 0.1;

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let task = args.task.open_to_learn()?;
    let options = args.options(task.bank.labels.len());
    options.validate()?;
    ensure!(task.bank.labels.len() >= 2, "--bank: expected at least 2 images, found {}", task.bank.labels.len());
    let out = PartialDir::create(&args.output_dir).map_err(DataError::io(&args.output_dir))?;
    let log = with_backend!(args.device, B => probe::<B>(args, &task, &options, out.path()))?;
    let result = result(&task, &options, &log);
    let path = out.path().join("result.json");
    std::fs::write(&path, format!("{result:#}\n")).map_err(DataError::io(&path))?;
    out.finish().map_err(DataError::io(&args.output_dir))?;
    print(args, &result);
    Ok(())
}

impl Args {
    fn options(&self, images: usize) -> ProbeOptions {
        let official = ProbeOptions::official(images, self.seed);
        let batch_size = self.batch_size.unwrap_or(official.batch_size);
        let warmup = match self.preset {
            Preset::Official => WARMUP_EPOCHS.min(self.epochs as f64 / 9.0),
            Preset::Paper => 0.0,
        };
        let scaled = self.blr.map(|blr| blr * batch_size.min(images) as f64 / 256.0);
        ProbeOptions {
            epochs: self.epochs,
            batch_size,
            lr: self.lr.or(scaled).unwrap_or(official.lr),
            warmup_epochs: self.warmup_epochs.unwrap_or(warmup),
            measure_every: 1,
            seed: self.seed,
        }
    }
}

/// Trains; writes head and log to the folder `out`.
fn probe<B: Kernels>(args: &Args, task: &Task, options: &ProbeOptions, out: &Path) -> Result<Log>
where
    Autodiff<B>: TrainBackend<InnerBackend = B, Device = B::Device>,
{
    let device = B::Device::default();
    let log_path = out.join("log.txt");
    let mut log = File::create(&log_path).map_err(DataError::io(&log_path))?;
    let bar = super::progress(options.epochs, "epochs");
    let mut on_epoch = |line: &EpochLine| -> Result<()> {
        writeln!(log, "{}", serde_json::to_string(line)?).map_err(DataError::io(&log_path))?;
        bar.set_message(format!("loss {:.3}, top-1 {:.1} %", line.train_loss, line.test_acc1));
        bar.inc(1);
        Ok(())
    };
    let mut train = |features: &TaskFeatures, train: &TrainFeatures<'_>| {
        let data = ProbeData {
            train_labels: &task.bank.labels,
            test: &features.queries,
            test_labels: &task.queries.labels,
            classes: task.class_names().len(),
        };
        linear_probe::<Autodiff<B>, anyhow::Error>(train, &data, options, &device, &mut on_epoch)
    };
    let (probe, encoder): (LinearProbe<Autodiff<B>>, _) = match (&args.encoder.checkpoint, &args.encoder.pack) {
        (Some(dir), _) => {
            let engine = BurnEngine::<B>::open(dir, device.clone())?;
            let config = engine.config();
            args.task.check_encoder(task, config, &Fingerprint::of_checkpoint(dir, config)?)?;
            let weights = Some(fingerprint::weights(dir)?);
            let features = task.features(|images| probe_features(&engine, images))?;
            let dropped = |epoch| {
                let dropout = Dropout::new(DROPOUT, args.seed, epoch);
                features_with_dropout(&engine, &task.bank.tokens, &dropout)
            };
            let probe = match args.official_probe_dropout {
                true => train(&features, &TrainFeatures::PerEpoch(&dropped))?,
                false => train(&features, &TrainFeatures::Fixed(&features.bank))?,
            };
            (probe, weights)
        }
        (None, Some(path)) => {
            let file = PackFile::open(path)?;
            let pack = file.pack(path)?;
            args.task.check_encoder(task, pack.config(), &Fingerprint::of_pack(path, &pack))?;
            let engine = PackEngine::new(pack);
            let features = task.features(|images| probe_features(&engine, images))?;
            (train(&features, &TrainFeatures::Fixed(&features.bank))?, fingerprint::weights_of(&pack))
        }
        (None, None) => unreachable!("clap requires one of them"),
    };
    bar.finish_and_clear();
    probe.head.save(&out.join("head.safetensors"), task.class_names(), encoder.as_deref())?;
    Ok(Log { last: *probe.last(), best: *probe.best() })
}

fn result(task: &Task, options: &ProbeOptions, log: &Log) -> Value {
    json!({
        "bank": task.bank.labels.len(),
        "queries": task.queries.labels.len(),
        "in_bank_too": task.shared(),
        "classes": task.class_names().len(),
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "lr": options.lr,
        "warmup_epochs": options.warmup_epochs,
        "top1": log.last.test_acc1 / 100.0,
        "top5": log.last.test_acc5 / 100.0,
        "best_epoch": log.best.epoch,
        "best_top1": log.best.test_acc1 / 100.0,
    })
}

fn print(args: &Args, result: &Value) {
    if args.json {
        return println!("{result}");
    }
    let percent = |name: &str| 100.0 * result[name].as_f64().unwrap_or_default();
    let (bank, split) = (&args.task.bank, &args.task.split);
    println!("{} images of `{split}` after training on {} of `{bank}`:", result["queries"], result["bank"]);
    println!("top-1  {:.1} %, top-5 {:.1} % (last epoch)", percent("top1"), percent("top5"));
    let best = &result["best_epoch"];
    println!("top-1  {:.1} % (best epoch, {best}; the official figure, chosen on these images)", percent("best_top1"));
    println!("{}", args.output_dir.display());
}
