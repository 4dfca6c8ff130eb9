//! The science check: Sorcen, MAGE and ablations on the same tokens, with the same budget and seeds.
//!
//! ```text
//! output_dir/
//!   settings.json               what every cell has in common; a later call must agree
//!   cells/VARIANT/seed_N/
//!     training/                 an ordinary pretraining run, resumed where it stopped
//!     cell.json                 the results: a cell that has one is finished
//!   compare.json, compare.md    all finished cells, and the table; written anew after each
//! ```

mod report;
mod variant;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};
use burn::backend::Autodiff;
use serde::{Deserialize, Serialize};
use sorcen_export::atomic;

pub use report::{markdown, Comparison};
pub use variant::Variant;

use crate::checkpoint::read_json;
use crate::config::{Duration, ModelChoice, PretrainOptions};
use crate::data::TokenDataset;
use crate::device::Device;
use crate::difference::expect_same;
use crate::engine::BurnEngine;
use crate::eval::{
    linear_probe, probe_features, ProbeData, ProbeError, ProbeOptions, Task, TaskFeatures, TrainFeatures, Votes,
};
use crate::kernels::{Kernels, TrainBackend};
use crate::metrics::LogLine;
use crate::tokenizer;
use crate::train::{self, Progress, TrainError};

/// What every cell has in common: kept in `settings.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Folder with the token datasets.
    pub data: PathBuf,
    /// Dataset to pretrain on, all of it.
    pub train: String,
    /// Dataset whose labels the probes know.
    pub bank: String,
    /// Dataset to classify.
    pub split: String,
    /// Bank and split are restricted to images with these values in these columns.
    pub only: Vec<(String, String)>,
    /// Sizes of the encoder.
    pub model: ModelChoice,
    /// Updates of each run.
    pub steps: u64,
    /// Images of each.
    pub batch_size: usize,
    /// Peak learning rate; `None`: pretraining's own default.
    pub lr: Option<f64>,
    /// Dropout of the pretraining.
    pub dropout: f32,
    /// Label smoothing of the reconstruction.
    pub label_smoothing: f32,
    /// Neighbours that vote.
    pub k: usize,
    /// Epochs of the linear probe.
    pub probe_epochs: u64,
}

/// What to run now, of a comparison.
#[derive(Clone, Debug)]
pub struct Options {
    /// What every cell has in common.
    pub settings: Settings,
    /// Rows of the table.
    pub variants: Vec<Variant>,
    /// Seeds `0..seeds`.
    pub seeds: u64,
    /// Where everything goes.
    pub output_dir: PathBuf,
    /// For [`Variant::Pixels`].
    pub tokenizer: Option<PathBuf>,
    /// For [`Variant::Pictures`]: those of the bank and of the split, in the order of the datasets.
    pub pictures: Option<(PathBuf, PathBuf)>,
    /// Where to compute.
    pub device: Device,
}

/// One variant with one seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Name of the variant.
    pub variant: String,
    /// Seed of pretraining and probe.
    pub seed: u64,
    /// Accuracy of the linear probe after its last epoch; the tokens themselves have none.
    pub linear_top1: Option<f64>,
    /// Accuracy of the k nearest neighbours.
    pub knn_top1: f64,
    /// Of the pretraining, where there is one.
    pub training: Option<Training>,
}

/// What is kept of a pretraining.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// Images seen.
    pub images: u64,
    /// Images a second, since it was last resumed.
    pub images_per_second: f64,
    /// The last line of its log; none where the run was finished by an earlier call.
    pub last: Option<LogLine>,
}

/// How far a comparison is.
pub struct CellProgress<'a> {
    /// Cells finished, of those asked for.
    pub finished: usize,
    /// Cells asked for.
    pub cells: usize,
    /// The cell at work.
    pub variant: Variant,
    /// Its seed.
    pub seed: u64,
    /// Of its pretraining; `None` while it is measured.
    pub training: Option<&'a Progress>,
}

/// Trains and measures every cell that is not finished yet, and writes the table after each.
///
/// # Errors
/// Files that cannot be read or written, options that do not fit the data or the comparison begun in
/// `output_dir`, a loss that is not finite.
pub fn compare<B: Kernels>(options: &Options, progress: &mut dyn FnMut(&CellProgress<'_>)) -> Result<Comparison>
where
    Autodiff<B>: TrainBackend<InnerBackend = B, Device = B::Device>,
{
    let Settings { data, bank, split, only, .. } = &options.settings;
    check_variants(options)?;
    let task = Task::open(data, bank, split, only)?;
    let settings = options.output_dir.join("settings.json");
    check_begun(&settings, &options.settings)?;

    let cells: Vec<(u64, Variant)> =
        (0..options.seeds).flat_map(|seed| options.variants.iter().map(move |&variant| (seed, variant))).collect();
    let mut done = Vec::new();
    for (finished, &(seed, variant)) in cells.iter().enumerate() {
        let dir = options.output_dir.join("cells").join(variant.name()).join(format!("seed_{seed}"));
        let path = dir.join("cell.json");
        let cell = match path.exists() {
            true => read_json(&path)?,
            false => {
                let mut at = |training: Option<&Progress>| {
                    progress(&CellProgress { finished, cells: cells.len(), variant, seed, training });
                };
                let cell = run_cell::<B>(options, &task, variant, seed, &dir, &mut at)
                    .with_context(|| format!("{}, seed {seed}", variant.name()))?;
                write_json(&settings, &options.settings)?; // not before a cell shows that they can be used
                write_json(&path, &cell)?;
                cell
            }
        };
        done.push((variant, cell));
        write_report(options, &task, &done)?;
    }
    write_report(options, &task, &done)
}

/// That every variant has what it needs, before any hour is spent.
fn check_variants(options: &Options) -> Result<()> {
    for variant in &options.variants {
        match variant {
            Variant::Pixels if options.tokenizer.is_none() => bail!("pixels: expected --tokenizer, found none"),
            Variant::Pictures if options.pictures.is_none() => {
                bail!("pictures: expected --bank_pictures and --split_pictures, found none")
            }
            _ => {}
        }
        pretraining(options, *variant, 0, Path::new("")).validate().map_err(TrainError::Option)?;
    }
    Ok(())
}

/// Checks that the settings are those the comparison was begun with, if it was.
fn check_begun(path: &Path, settings: &Settings) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let begun: Settings = read_json(path)?;
    Ok(expect_same(path, |field| format!("--{field}"), &begun, settings)?)
}

fn run_cell<B: Kernels>(
    options: &Options,
    task: &Task,
    variant: Variant,
    seed: u64,
    dir: &Path,
    progress: &mut dyn FnMut(Option<&Progress>),
) -> Result<Cell>
where
    Autodiff<B>: TrainBackend<InnerBackend = B, Device = B::Device>,
{
    let settings = &options.settings;
    let device = B::Device::default();
    let votes = Votes { k: settings.k, ..Votes::default() };
    let encoded = |engine: &BurnEngine<B>| task.features(|images| probe_features(engine, images));
    let mut training = None;
    let features = match variant {
        Variant::Tokens => {
            let (variant, knn_top1) = (variant.name(), task.knn_tokens(votes));
            return Ok(Cell { variant, seed, linear_top1: None, knn_top1, training: None });
        }
        Variant::Pixels => {
            let path = options.tokenizer.as_deref().unwrap_or(Path::new("")); // checked in `check_variants`
            task.decoded_pixels(&*tokenizer::open(path, options.device)?)?
        }
        Variant::Pictures => {
            let empty = (PathBuf::new(), PathBuf::new()); // checked in `check_variants`
            let (bank, split) = options.pictures.as_ref().unwrap_or(&empty);
            task.pictures(bank, split)?
        }
        Variant::Untrained => {
            let dataset = TokenDataset::open(&settings.data.join(&settings.train))?;
            let config = settings.model.config(dataset.grid(), dataset.codebook_size())?;
            encoded(&BurnEngine::untrained(&config, seed, device.clone()))?
        }
        _ => {
            let report = train::pretrain(&pretraining(options, variant, seed, dir), &mut |training| {
                progress(Some(training));
                ControlFlow::Continue(())
            })?;
            training = Some(Training {
                images: report.images,
                images_per_second: report.images_per_second,
                last: report.last,
            });
            encoded(&BurnEngine::open(&report.checkpoint, device.clone())?)?
        }
    };
    progress(None);
    let linear_top1 = Some(linear_top1::<B>(settings, task, &features, seed, &device)?);
    Ok(Cell { variant: variant.name(), seed, linear_top1, knn_top1: task.knn(&features, votes), training })
}

/// A cell's pretraining: resumed, if it was begun.
fn pretraining(options: &Options, variant: Variant, seed: u64, dir: &Path) -> PretrainOptions {
    let settings = &options.settings;
    let (data, duration) = (settings.data.join(&settings.train), Duration::Steps(settings.steps));
    let mut run = PretrainOptions::new(&data, &dir.join("training"), settings.model.clone(), duration);
    run.batch_size = settings.batch_size;
    run.lr = settings.lr;
    run.dropout = settings.dropout;
    run.losses.label_smoothing = settings.label_smoothing;
    run.seed = seed;
    run.resume = true;
    run.save_every = 200;
    run.device = options.device;
    variant.apply(&mut run);
    run
}

fn linear_top1<B: Kernels>(
    settings: &Settings,
    task: &Task,
    features: &TaskFeatures,
    seed: u64,
    device: &B::Device,
) -> Result<f64, ProbeError>
where
    Autodiff<B>: TrainBackend<InnerBackend = B, Device = B::Device>,
{
    let official = ProbeOptions::official(task.bank.labels.len(), seed);
    let epochs = settings.probe_epochs;
    let warmup_epochs = official.warmup_epochs.min(epochs as f64 / 9.0);
    let options = ProbeOptions { epochs, warmup_epochs, measure_every: epochs, ..official };
    let data = ProbeData {
        train_labels: &task.bank.labels,
        test: &features.queries,
        test_labels: &task.queries.labels,
        classes: task.class_names().len(),
    };
    let train = TrainFeatures::Fixed(&features.bank);
    let probe = linear_probe::<Autodiff<B>, ProbeError>(&train, &data, &options, device, &mut |_| Ok(()))?;
    Ok(probe.last().test_acc1 / 100.0)
}

fn write_report(options: &Options, task: &Task, done: &[(Variant, Cell)]) -> Result<Comparison> {
    let comparison = Comparison::new(&options.settings, task, done)?;
    write_json(&options.output_dir.join("compare.json"), &comparison)?;
    let path = options.output_dir.join("compare.md");
    atomic::write_bytes(&path, markdown(&comparison).as_bytes())?;
    Ok(comparison)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let json = serde_json::to_string_pretty(value)? + "\n";
    Ok(atomic::write_bytes(path, json.as_bytes())?)
}
