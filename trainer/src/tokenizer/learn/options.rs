//! What a run is asked for, and its record, `run.json`: written before the first step, held against when it goes on.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sorcen_export::atomic;
use sorcen_runtime::vit::VitConfig;

use super::Images;
use crate::checkpoint::read_json;
use crate::data::DataError;
use crate::device::Device;
use crate::difference::expect_same;
use crate::tokenizer::vit;
use crate::tokenizer::vqgan::VqganConfig;

/// Kind and sizes of a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sizes {
    /// The light transformer.
    Vit(VitConfig),
    /// The paper's convolutional layout.
    Vqgan(VqganConfig),
}

/// The pixels' error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Mean absolute error: sharper edges
    #[default]
    L1,
    /// Mean squared error: a higher PSNR
    L2,
}

/// What a network is at first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// What k-means of patches makes of the images (vit)
    Patches,
    /// Random weights; codes at vectors of the first batch
    #[default]
    Random,
}

/// Options of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// The network.
    pub sizes: Sizes,
    /// What it is before the first update.
    pub start: Start,
    /// Updates.
    pub steps: u64,
    /// Images of a step.
    pub batch_size: usize,
    /// Peak learning rate; a half cosine brings it down to 0.
    pub lr: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Weight decay of matrices.
    pub weight_decay: f64,
    /// The pixels' error.
    pub loss: Loss,
    /// Weight of the commitment.
    pub commitment: f32,
    /// Weight that the codes' running means keep in a step.
    pub ema_decay: f32,
    /// Share of the mean use below which a code starts again.
    pub dead_below: f32,
    /// Seed of initial weights, order of images and codes.
    pub seed: u64,
    /// Steps between checkpoints.
    pub save_every: u64,
    /// Steps between lines of the log.
    pub print_freq: u64,
    /// Steps between pictures; 0: one at the end.
    pub picture_every: u64,
    /// Go on where an earlier run stopped.
    pub resume: bool,
    /// Where to compute.
    pub device: Device,
    /// Folder of the run.
    pub out: PathBuf,
}

impl Options {
    /// What is out of range, by flag.
    pub(super) fn validate(&self, images: &Images) -> Result<(), String> {
        let (stride, codes) = match &self.sizes {
            Sizes::Vit(config) => {
                config.validate().map_err(|error| error.to_string())?;
                let (side, found) = (config.side(), images.side);
                if side != found {
                    return Err(format!("images: expected {side} pixels a side (grid x patch), found {found}"));
                }
                if self.start == Start::Patches {
                    vit::check_start(config)?;
                }
                (config.patch, config.codes)
            }
            Sizes::Vqgan(config) => {
                config.validate()?;
                if self.start == Start::Patches {
                    return Err("--start: expected random for a vqgan, which is no network of patches".into());
                }
                (config.stride(), config.codes)
            }
        };
        if !images.side.is_multiple_of(stride) || images.side == 0 {
            return Err(format!(
                "--size: expected a multiple of the tokenizer's stride ({stride}), found {}",
                images.side
            ));
        }
        let in_range = |flag: &str, ok: bool, expected: &str, found: String| match ok {
            true => Ok(()),
            false => Err(format!("{flag}: expected {expected}, found {found}")),
        };
        let share = |x: f32| (0.0..1.0).contains(&x);
        let (count, batch) = (images.pixels.len(), self.batch_size);
        in_range("--steps", self.steps > 0, "at least 1", self.steps.to_string())?;
        in_range(
            "--batch_size",
            (1..=count).contains(&batch),
            &format!("1 to {count}, the images"),
            batch.to_string(),
        )?;
        in_range("--lr", self.lr > 0.0 && self.lr.is_finite(), "above 0", self.lr.to_string())?;
        in_range("--weight_decay", self.weight_decay >= 0.0, "0 or more", self.weight_decay.to_string())?;
        in_range("--commitment", self.commitment >= 0.0, "0 or more", self.commitment.to_string())?;
        in_range("--ema_decay", share(self.ema_decay), "0 to below 1", self.ema_decay.to_string())?;
        in_range("--dead_below", share(self.dead_below), "0 to below 1", self.dead_below.to_string())?;
        in_range("--save_every", self.save_every > 0, "at least 1", self.save_every.to_string())?;
        in_range("--print_freq", self.print_freq > 0, "at least 1", self.print_freq.to_string())?;
        let vectors = batch * (images.side / stride).pow(2);
        let expected = format!("at most {vectors}, the tokens of a step");
        in_range("--codes", codes <= vectors, &expected, codes.to_string())
    }

    /// The options that must not change within a run.
    fn comparable(&self) -> Self {
        Self {
            save_every: 1,
            print_freq: 1,
            picture_every: 0,
            resume: true,
            device: Device::default(),
            out: PathBuf::new(),
            ..self.clone()
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Record {
    options: Options,
    images: Data,
    sorcen: String,
    commit: Option<String>,
    threads: usize,
}

/// The data, as far as a run depends on it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Data {
    count: usize,
    side: usize,
    sha256: String,
}

impl Data {
    fn of(images: &Images) -> Self {
        Self { count: images.pixels.len(), side: images.side, sha256: images.digest.clone() }
    }
}

/// Writes the record.
pub(super) fn write(path: &Path, options: &Options, images: &Images) -> Result<(), DataError> {
    let record = Record {
        options: options.clone(),
        images: Data::of(images),
        sorcen: env!("CARGO_PKG_VERSION").into(),
        commit: option_env!("SORCEN_COMMIT").map(str::to_string),
        threads: rayon::current_num_threads(),
    };
    let json = serde_json::to_string_pretty(&record)
        .map_err(|error| DataError::invalid(path, "record", "one that JSON can hold", error))?;
    Ok(atomic::write_bytes(path, (json + "\n").as_bytes())?)
}

/// Refuses to go on with other options or images than a run was begun with.
pub(super) fn check_same(path: &Path, options: &Options, images: &Images) -> Result<(), DataError> {
    let record: Record = read_json(path)?;
    let item = |field: &str| match field {
        "count" => "--images: number of them".into(),
        "side" => "--images: side in pixels".into(),
        _ => "--images: checksum of their names and classes".into(),
    };
    expect_same(path, item, &record.images, &Data::of(images))?;
    expect_same(path, |field| format!("--{field}"), &record.options.comparable(), &options.comparable())
}
