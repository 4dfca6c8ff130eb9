//! `sorcen fewshot`: what a few labelled images a class are enough for.

use anyhow::{bail, Result};
use burn::backend::Autodiff;
use serde_json::json;
use sorcen_export::fingerprint::Fingerprint;
use sorcen_export::pack::{PackEngine, PackFile};
use sorcen_export::Engine as _;

use super::features::{EncoderArgs, TaskArgs};
use crate::device::{with_backend, Device};
use crate::engine::BurnEngine;
use crate::eval::{probe_features, Estimate, FewShot, ProbeOptions, Task, TaskFeatures};
use crate::kernels::{Kernels, TrainBackend};

/// Classify from a few labelled images a class: several draws, mean and 95 %
/// interval
///
/// For each number of shots k, k images of each class are drawn from DATA/BANK, a
/// linear probe learns from their frozen features, and all of DATA/SPLIT is
/// classified; again for each draw. Beside it, on the same images and without any
/// training: the nearest class prototype (by cosine), as a device learns in
/// place.
///
/// The probe is the one of the paper's supplement (table A.3): LARS 1.0, no
/// weight decay, batches of 16, no warm-up, half cosine, 10 epochs - but for more
/// epochs where 10 would make fewer than 500 steps. Table A.3's random crops
/// would need the tokenizer: here images are whole.
///
/// Example:
///   sorcen fewshot --data trainer/assets/emoji --only skin_variation=0 \
///       --shots 1,5,10 --checkpoint trainer/assets/emoji/checkpoint
#[derive(clap::Args, Debug)]
#[command(rename_all = "snake_case", verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    task: TaskArgs,

    #[command(flatten)]
    encoder: EncoderArgs,

    /// Labelled images a class
    #[arg(long, value_name = "K,...", value_delimiter = ',', default_values_t = [1, 5, 10])]
    shots: Vec<usize>,

    /// Draws of the labelled images
    #[arg(long, default_value_t = 5)]
    draws: u64,

    /// Passes over the drawn images [default: 10, or as many as make 500 steps]
    #[arg(long)]
    epochs: Option<u64>,

    /// Images a step
    #[arg(long, default_value_t = 16)]
    batch_size: usize,

    /// Peak learning rate of LARS
    #[arg(long, default_value_t = 1.0)]
    lr: f64,

    /// Seed of the draws and of the heads
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Where to compute: cpu, or cuda or wgpu in a build with that feature
    #[arg(long, default_value = "cpu")]
    device: Device,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Accuracies with one number of shots.
struct Row {
    shots: usize,
    linear: Estimate,
    prototypes: Estimate,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    usage_unless!(args.draws >= 1, "--draws: expected at least 1, found 0");
    usage_unless!(!args.shots.contains(&0), "--shots: expected at least 1, found 0");
    let task = args.task.open_to_learn()?;
    let rows = with_backend!(args.device, B => rows::<B>(args, &task))?;
    let (bank, queries, draws) = (task.bank.labels.len(), task.queries.labels.len(), args.draws);
    if args.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| json!({ "shots": row.shots, "linear_probe": row.linear, "prototypes": row.prototypes }))
            .collect();
        let shared = task.shared();
        println!(
            "{}",
            json!({ "bank": bank, "queries": queries, "in_bank_too": shared, "draws": draws, "top1": rows })
        );
        return Ok(());
    }
    let (split, bank_name) = (&args.task.split, &args.task.bank);
    println!("{queries} images of `{split}`, examples from {bank} of `{bank_name}`; top-1 in %, {draws} draws:");
    println!("shots  linear probe  prototypes");
    for Row { shots, linear, prototypes } in rows {
        println!("{shots:>5}  {:<12}  {}", linear.percent(), prototypes.percent());
    }
    println!("± is the 95 % interval over draws; that of the images to classify comes on top.");
    Ok(())
}

fn rows<B: Kernels>(args: &Args, task: &Task) -> Result<Vec<Row>>
where
    Autodiff<B>: TrainBackend<InnerBackend = B, Device = B::Device>,
{
    let device = B::Device::default();
    let features = match (&args.encoder.checkpoint, &args.encoder.pack) {
        (Some(dir), _) => {
            let engine = BurnEngine::<B>::open(dir, device.clone())?;
            let config = engine.config();
            args.task.check_encoder(task, config, &Fingerprint::of_checkpoint(dir, config)?)?;
            task.features(|images| probe_features(&engine, images))?
        }
        (None, Some(path)) => {
            let file = PackFile::open(path)?;
            let pack = file.pack(path)?;
            args.task.check_encoder(task, pack.config(), &Fingerprint::of_pack(path, &pack))?;
            let engine = PackEngine::new(pack);
            task.features(|images| probe_features(&engine, images))?
        }
        (None, None) => unreachable!("clap requires one of them"),
    };
    let bar = super::progress(args.shots.len() as u64 * args.draws, "draws");
    let mut rows = Vec::new();
    for &shots in &args.shots {
        let mut accuracies = [Vec::new(), Vec::new()];
        for draw in 0..args.draws {
            let found = draw_accuracies::<B>(args, task, &features, FewShot { shots, draw, seed: args.seed }, &device)?;
            accuracies.iter_mut().zip(found).for_each(|(all, found)| all.push(found));
            bar.inc(1);
        }
        let [linear, prototypes] = accuracies.map(|accuracies| Estimate::of(&accuracies));
        rows.push(Row { shots, linear, prototypes });
    }
    bar.finish_and_clear();
    Ok(rows)
}

fn draw_accuracies<B: Kernels>(
    args: &Args,
    task: &Task,
    features: &TaskFeatures,
    few: FewShot,
    device: &B::Device,
) -> Result<[f64; 2]>
where
    Autodiff<B>: TrainBackend<InnerBackend = B, Device = B::Device>,
{
    let examples = match few.examples(&task.bank.labels) {
        Ok(examples) => examples,
        Err((class, found)) => {
            let (bank, name) = (&args.task.bank, &task.class_names()[usize::from(class)]);
            bail!("--shots: expected at least {} images of class {name} in `{bank}`, found {found}", few.shots);
        }
    };
    usage_unless!(examples.len() >= 2, "--shots: expected at least 2 examples in all, found {}", examples.len());
    let paper = FewShot::probe(examples.len(), args.seed.wrapping_add(few.draw));
    let epochs = args.epochs.unwrap_or(paper.epochs);
    let measure_every = epochs.max(1); // at the end alone
    let options = ProbeOptions { epochs, batch_size: args.batch_size, lr: args.lr, measure_every, ..paper };
    Ok(FewShot::accuracies::<Autodiff<B>>(task, features, &examples, &options, device)?)
}
