//! `sorcen step`: one training step with all randomness given, for testers.

use std::path::PathBuf;

use anyhow::ensure;
use burn::backend::Autodiff;
use sorcen_export::atomic;
use sorcen_export::tensors::TensorFile;

use crate::checkpoint::{self, TensorList};
use crate::device::{with_backend, Device};
use crate::kernels::TrainBackend;
use crate::masking::{Crop, MaskOptions};
use crate::model::layers::Dropout;
use crate::model::weight::Weights as _;
use crate::model::Precision;
use crate::schedule::teacher_momentum;
use crate::step::{Echo, HeadSizes, LossOptions, Method, Pretraining, StepInputs};

/// One training step, dropout off, with every random choice read from a file.
///
/// In: `token_ids` [B, T], `labels` [B], `all_mask` [B, 1+T] or [B, T], `noise` [B, T] (the smallest half is
/// dropped), `sampled_ids` [B, T], `crop_size`, `crop_row` [B], `crop_col` [B]; other tensors are ignored.
/// Out: the losses, `grad/NAME` before clipping and `param/NAME` after AdamW. The checkpoint needs its
/// training_state (`sorcen import --with_training_state` makes one).
///
/// MAGE reads `token_ids`, `all_mask` and `noise` alone and gives `loss_rec` and `loss_total`, the same
/// number: it has no teacher, no projectors and no classifier. Its optimiser starts fresh where the checkpoint has no
/// training_state of MAGE.
///
/// Example: sorcen step --checkpoint imported --input step.safetensors --epoch 50 --lr 1e-3 --output out.safetensors
#[derive(clap::Args)]
#[command(rename_all = "snake_case")]
pub struct Args {
    /// Checkpoint folder, for Sorcen with a training_state.
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// Input tensors (safetensors).
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Epoch: teacher momentum, and whether echoes are in use (from 11 on).
    #[arg(long)]
    epoch: u64,
    /// Learning rate.
    #[arg(long)]
    lr: f64,
    /// What is learned [default: sorcen; mage where the checkpoint has no training_state of Sorcen].
    #[arg(long, value_enum)]
    method: Option<Method>,
    /// Output tensors (safetensors).
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// What matrix products take: f32, tf32 (of CUDA's tensor cores) or bf16.
    #[arg(long, value_enum, default_value = "f32")]
    precision: Precision,
    /// Where to compute: cpu, or cuda or wgpu in a build with that feature.
    #[arg(long, default_value = "cpu")]
    device: Device,
}

/// Official: echoes are the ground truth up to and with this epoch.
const ECHO_WARMUP_EPOCHS: u64 = 10;

/// Runs the verb.
///
/// # Errors
/// Bad files, or tensors that do not fit the model.
pub fn run(args: &Args) -> anyhow::Result<()> {
    with_backend!(args.device, B => step::<Autodiff<B>>(args))
}

fn step<B: TrainBackend>(args: &Args) -> anyhow::Result<()> {
    if let Err(message) = args.precision.expect_on(args.device) {
        usage_unless!(false, "{message}");
    }
    usage_unless!(args.lr.is_finite() && args.lr >= 0.0, "--lr: expected 0 or more, found {}", args.lr);
    let mut run: Pretraining<B> = open(args)?;
    let method = run.options.method;
    run.precision = args.precision;
    let inputs = read_inputs(args, method, run.config.grid, run.config.codebook_size)?;

    run.follow(teacher_momentum(0.996, 1600.0, args.epoch));
    let (losses, statistics) = run.losses(&inputs);
    let mut out = TensorList::default();
    let terms = losses.stack().into_data().convert::<f32>().to_vec::<f32>().unwrap_or_default();
    let names = ["loss_rec", "loss_uniformity", "loss_infonce", "loss_classifier", "loss_total"];
    for (name, term) in names.iter().zip(&terms) {
        if method == Method::Sorcen || ["loss_rec", "loss_total"].contains(name) {
            out.push(name, &[], &[*term]);
            println!("{name} {term}");
        }
    }

    let mut grads = losses.total.backward();
    run.networks.visit("", &mut |name, weight| {
        if let Some(gradient) = weight.gradient(&grads) {
            let values = gradient.into_data().convert::<f32>().to_vec::<f32>().unwrap_or_default();
            out.push(&format!("grad/{name}"), weight.dims(), &values);
        }
    });
    if let Some(statistics) = statistics {
        run.update_statistics(statistics);
    }
    run.optimizer.update(&mut run.networks, &mut grads, args.lr);
    out.push_all(&run.networks, "", "param/");
    out.push_all(&run.teacher, "", "param/");
    atomic::write(&args.output, |temporary| Ok(out.write(temporary)?))
}

/// The checkpoint's run, with its training state where that is of the method; of MAGE else encoder and decoder, official
/// constants, a fresh optimiser.
fn open<B: TrainBackend>(args: &Args) -> anyhow::Result<Pretraining<B>> {
    let (dir, device) = (&args.checkpoint, B::Device::default());
    let state = dir.join(checkpoint::TRAINING_STATE).exists();
    if state {
        let (run, note) = checkpoint::open_training(dir, &device)?;
        if args.method.is_none_or(|method| method == run.options.method) {
            if let Some(note) = note {
                eprintln!("{note}");
            }
            return Ok(run);
        }
    }
    usage_unless!(
        args.method != Some(Method::Sorcen),
        "--method sorcen: expected a checkpoint with Sorcen's training_state, found {}{}",
        dir.display(),
        if state { ", whose training_state is MAGE's" } else { " without a training_state" }
    );
    let (config, student) = checkpoint::load_model(dir, &device)?;
    let options = LossOptions { method: Method::Mage, ..LossOptions::default() };
    let mut run = Pretraining::new(&config, options, &HeadSizes::default(), 0, 0, &device);
    run.networks.student = student;
    Ok(run)
}

fn read_inputs(args: &Args, method: Method, grid: usize, codes: usize) -> anyhow::Result<StepInputs> {
    let file = TensorFile::open(&args.input)?;
    let tokens = grid * grid;
    let shape = file.ints("token_ids", 2)?.shape().to_vec();
    let batch = shape[0];
    ensure!(shape == [batch, tokens], "token_ids: expected [B, {tokens}], found {shape:?}");
    let of_batch = |name: &str, rank: usize, count: usize| -> anyhow::Result<Vec<f64>> {
        let values = file.numbers(name, rank)?;
        ensure!(values.len() == count, "{name}: expected {count} numbers, found {:?}", values.shape());
        Ok(values.into_iter().collect())
    };
    let codes_of = |name: &str| -> anyhow::Result<Vec<u16>> {
        let values = of_batch(name, 2, batch * tokens)?;
        let bad = values.iter().position(|id| !(0.0..codes as f64).contains(id));
        ensure!(bad.is_none(), "{name}: expected ids below {codes}, found {:?}", bad.map(|i| values[i]));
        Ok(values.iter().map(|&id| id as u16).collect())
    };

    // The mask may have a column for the class token, always 0.
    let mask = file.numbers("all_mask", 2)?;
    let skip = mask.shape()[1].saturating_sub(tokens);
    ensure!(
        mask.shape() == [batch, tokens + skip] && skip <= 1,
        "all_mask: expected [{batch}, {tokens}] or one column more, found {:?}",
        mask.shape()
    );
    let masked: Vec<bool> =
        mask.indexed_iter().filter(|(at, _)| at[1] >= skip).map(|(_, &value)| value != 0.0).collect();
    let noise = of_batch("noise", 2, batch * tokens)?;
    let mut masks = MaskOptions::default().from_noise(&noise, tokens, 0.5);
    masks.masked = masked;

    let ids = codes_of("token_ids")?;
    let dropout = Dropout::off();
    if method == Method::Mage {
        let (echo, crop) = (Echo::GroundTruth, Crop::whole(batch, grid)); // neither is looked at
        return Ok(StepInputs { ids, labels: Vec::new(), masks, echo, crop, dropout });
    }

    let side = file.numbers("crop_size", 0)?.iter().next().copied().unwrap_or_default() as usize;
    let corners: Vec<(usize, usize)> = of_batch("crop_row", 1, batch)?
        .into_iter()
        .zip(of_batch("crop_col", 1, batch)?)
        .map(|(row, column)| (row as usize, column as usize))
        .collect();
    let fits = |&(row, column): &(usize, usize)| row + side <= grid && column + side <= grid;
    ensure!(side >= 1 && corners.iter().all(fits), "crop: expected squares inside the {grid}×{grid} grid");
    Ok(StepInputs {
        ids,
        labels: of_batch("labels", 1, batch)?.into_iter().map(|label| label as u16).collect(),
        masks,
        echo: match args.epoch > ECHO_WARMUP_EPOCHS {
            true => Echo::Given(codes_of("sampled_ids")?),
            false => Echo::GroundTruth,
        },
        crop: Crop { side, corners },
        dropout,
    })
}
