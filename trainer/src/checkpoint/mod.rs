//! Checkpoints: `model.safetensors` + `config.json` under official names, and `training_state/` for resuming.
//!
//! ```text
//! checkpoint/
//!   config.json            ModelConfig
//!   model.safetensors      encoder and decoder, linears [out, in]
//!   training_state/
//!     state.json           step, seed
//!     state.safetensors    optimizer.exp_avg.NAME, optimizer.exp_avg_sq.NAME; of Sorcen also
//!                          blocks_momentum.*, projector.*, momentum_projector.*, predictor.*, classifier.*,
//!                          token_emb_momentum.*, norm_momentum.* (of a whole teacher)
//! ```
//!
//! A checkpoint is replaced as a whole, and older ones may be kept: [`kept`].

pub mod kept;
mod start;
mod tensors;

use std::fs;
use std::path::Path;

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};
use sorcen_export::found;
use sorcen_runtime::ModelConfig;

use crate::data::DataError;
use crate::difference::first_difference;
use crate::kernels::{Kernels, TrainBackend};
use crate::model::weight::{join, Weights as _};
use crate::model::Sorcen;
use crate::step::{HeadSizes, LossOptions, Method, Pretraining};
use crate::teacher::TeacherKind;
pub use kept::{find, still_to_come, Keep};
pub use start::{go_on, initialise};
pub use tensors::{fill, TensorFile, TensorList, WeightSource};

/// The configuration.
pub const CONFIG: &str = "config.json";
/// The weights of inference.
pub const MODEL: &str = "model.safetensors";
/// What resuming needs beside them.
pub const TRAINING_STATE: &str = "training_state";
pub(crate) const STATE_JSON: &str = "state.json";
pub(crate) const STATE_TENSORS: &str = "state.safetensors";
/// First part of the names of first moments.
pub const FIRST_MOMENT: &str = "optimizer.exp_avg";
/// First part of the names of second moments.
pub const SECOND_MOMENT: &str = "optimizer.exp_avg_sq";

/// Contents of `training_state/state.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Steps done.
    pub step: u64,
    /// Updates the optimiser has made.
    pub updates: u64,
    /// Epochs done, rounded down; of an imported checkpoint, whose steps are not known, too.
    #[serde(default)]
    pub epochs: u64,
    /// Seed of the run.
    pub seed: u64,
}

/// Saves everything to the folder `dir`, replacing what is there as a whole.
///
/// # Errors
/// [`DataError::Io`], and [`DataError::Invalid`] for a weight that is not finite: what was there before is
/// then untouched.
pub fn save<B: TrainBackend>(dir: &Path, run: &Pretraining<B>, state: &State, keep: &Keep) -> Result<(), DataError> {
    kept::replace(dir, keep, |new| {
        write_model(new, &run.config, &run.networks.student)?;
        write_training(new, run, state)
    })
}

/// Bytes that [`save`] writes for `run` at most, once the optimiser has moved everything; names and shapes, some kB,
/// aside.
pub fn bytes<B: TrainBackend>(run: &Pretraining<B>) -> u64 {
    let mut numbers = 0;
    run.networks.visit("", &mut |_, weight| {
        let moments = if weight.is_trained() { 2 } else { 0 };
        numbers += (1 + moments) * weight.dims().iter().product::<usize>();
    });
    run.teacher.visit("", &mut |_, weight| numbers += weight.dims().iter().product::<usize>());
    (numbers * size_of::<f32>()) as u64
}

/// Writes `config.json` and `model.safetensors` into the folder `dir`.
///
/// # Errors
/// [`DataError::Io`].
pub fn write_model<B: Backend>(dir: &Path, config: &ModelConfig, model: &Sorcen<B>) -> Result<(), DataError> {
    let mut tensors = TensorList::default();
    tensors.push_all(model, "", "");
    tensors.write(&dir.join(MODEL))?;
    write_json(&dir.join(CONFIG), config)
}

/// Writes `training_state/` into the folder `dir`.
///
/// # Errors
/// [`DataError::Io`].
pub fn write_training<B: TrainBackend>(dir: &Path, run: &Pretraining<B>, state: &State) -> Result<(), DataError> {
    let dir = dir.join(TRAINING_STATE);
    fs::create_dir_all(&dir).map_err(DataError::io(&dir))?;
    let mut tensors = TensorList::default();
    tensors.push_all(&run.teacher, "", "");
    tensors.push_all(&run.networks.heads, "", "");
    for (name, (first, second)) in &run.optimizer.moments {
        let values = |t: &Tensor<B::InnerBackend, 2>| t.to_data().convert::<f32>().to_vec::<f32>().unwrap_or_default();
        tensors.push(&join(FIRST_MOMENT, name), &first.dims(), &values(first));
        tensors.push(&join(SECOND_MOMENT, name), &second.dims(), &values(second));
    }
    tensors.write(&dir.join(STATE_TENSORS))?;
    write_json(&dir.join(STATE_JSON), state)
}

/// Reads the configuration of a checkpoint folder.
///
/// # Errors
/// [`DataError`] where it is missing or not valid.
pub fn read_config(dir: &Path) -> Result<ModelConfig, DataError> {
    if !dir.join(CONFIG).exists() {
        let expected = format!("a checkpoint folder ({CONFIG}, {MODEL})");
        return Err(DataError::invalid(dir, "checkpoint", expected, found::at(dir)));
    }
    read_config_file(&dir.join(CONFIG))
}

/// Reads a `config.json`.
///
/// # Errors
/// [`DataError`] where it is missing or not valid.
pub fn read_config_file(file: &Path) -> Result<ModelConfig, DataError> {
    let config: ModelConfig = read_json(file)?;
    config.validate().map_err(|error| DataError::invalid(file, "config", "a valid model", error))?;
    Ok(config)
}

/// Loads a model for inference.
///
/// # Errors
/// [`DataError`] names the file and the first tensor that is missing or wrong.
pub fn load_model<B: Kernels>(dir: &Path, device: &B::Device) -> Result<(ModelConfig, Sorcen<B>), DataError> {
    let config = read_config(dir)?;
    let mut model = Sorcen::new(&config, device);
    fill(&TensorFile::open(&dir.join(MODEL))?, &mut model, "", device)?;
    Ok((config, model))
}

/// Loads everything that [`save`] wrote into `run`, whose sizes must be the same. What the training state holds beside
/// that comes back as a note.
///
/// # Errors
/// [`DataError`] names the file and the first tensor that is missing or wrong.
pub fn restore<B: TrainBackend>(dir: &Path, run: &mut Pretraining<B>) -> Result<(State, Option<String>), DataError> {
    let state = read_state(dir)?;
    let device = run.device.clone();
    fill(&TensorFile::open(&dir.join(MODEL))?, &mut run.networks.student, "", &device)?;
    let tensors = TensorFile::open(&dir.join(TRAINING_STATE).join(STATE_TENSORS))?;
    fill(&tensors, &mut run.teacher, "", &device)?;
    fill(&tensors, &mut run.networks.heads, "", &device)?;
    run.optimizer.updates = state.updates;
    fill_moments(&tensors, run)?;
    Ok((state, start::not_taken(&tensors, run)))
}

/// Loads the moments that a file has: as we write them, or in the shapes of their weights.
///
/// # Errors
/// As [`WeightSource::values`], for the first that fails.
pub fn fill_moments<B: TrainBackend>(source: &dyn WeightSource, run: &mut Pretraining<B>) -> Result<(), DataError> {
    let mut result = Ok(());
    let device = run.device.clone();
    let moments = &mut run.optimizer.moments;
    run.networks.visit("", &mut |name, weight| {
        let (first, second) = (join(FIRST_MOMENT, name), join(SECOND_MOMENT, name));
        let Some(found) = source.shape(&first).filter(|_| result.is_ok()) else { return };
        let shape = weight.get().dims();
        let dims = if found == weight.dims() { weight.dims() } else { &shape };
        let load = |name: &str| {
            let values = source.values(name, dims)?;
            Ok(Tensor::from_data(TensorData::new(values, shape), &device))
        };
        match load(&first).and_then(|first| Ok((first, load(&second)?))) {
            Ok(pair) => drop(moments.insert(name.to_string(), pair)),
            Err(error) => result = Err(error),
        }
    });
    result
}

/// How far the run of a checkpoint was.
///
/// # Errors
/// [`DataError`] where it has no training state, or a damaged one.
pub fn read_state(dir: &Path) -> Result<State, DataError> {
    read_json(&dir.join(TRAINING_STATE).join(STATE_JSON))
}

/// Opens a checkpoint with its training state; method and widths of the heads are read from the file. What it holds
/// beside that comes back as a note.
///
/// # Errors
/// [`DataError`] where it has none, or a tensor is missing or wrong.
pub fn open_training<B: TrainBackend>(
    dir: &Path,
    device: &B::Device,
) -> Result<(Pretraining<B>, Option<String>), DataError> {
    let config = read_config(dir)?;
    let state = TensorFile::open(&dir.join(TRAINING_STATE).join(STATE_TENSORS))?;
    let mut run = empty_training(&config, &state, device)?;
    let (_, note) = restore(dir, &mut run)?;
    Ok((run, note))
}

/// What was learned in the run of a training state: MAGE's has neither teacher nor heads, or, written by earlier
/// versions, some that were never trained.
pub fn method_of(source: &dyn WeightSource) -> Method {
    let names = source.names();
    let moments = |part: &str| names.iter().any(|name| name.starts_with(&join(FIRST_MOMENT, part)));
    let untrained = moments("norm.") && !["projector.", "momentum_projector.", "predictor."].into_iter().any(moments);
    match names.iter().any(|name| start::is_sorcens(name)) && !untrained {
        true => Method::Sorcen,
        false => Method::Mage,
    }
}

/// Initial networks of the method of `source`, with heads as wide as those in it; official constants.
///
/// # Errors
/// [`DataError`] where a head of Sorcen is missing or out of range.
pub fn empty_training<B: TrainBackend>(
    config: &ModelConfig,
    source: &dyn WeightSource,
    device: &B::Device,
) -> Result<Pretraining<B>, DataError> {
    const WIDEST: usize = 65_536;
    if method_of(source) == Method::Mage {
        let options = LossOptions { method: Method::Mage, ..LossOptions::default() };
        return Ok(Pretraining::new(config, options, &HeadSizes::default(), 0, 0, device));
    }
    let rows = |name: &str| match source.shape(name).as_deref() {
        Some(&[rows @ 1..=WIDEST, _]) => Ok(rows),
        Some(other) => {
            let expected = format!("a matrix of 1 to {WIDEST} rows");
            Err(DataError::invalid(source.path(), name, expected, format_args!("{other:?}")))
        }
        None => Err(DataError::invalid(source.path(), name, "a matrix", "none of this name")),
    };
    let classes = match source.shape("classifier.2.weight") {
        Some(_) => rows("classifier.2.weight")?,
        None => 0,
    };
    let sizes = HeadSizes {
        projector_hidden: rows("projector.projector.0.weight")?,
        projector_dim: rows("projector.projector.3.weight")?,
        predictor_hidden: rows("predictor.projector.0.weight")?,
        classifier_hidden: if classes > 0 { rows("classifier.0.weight")? } else { 0 },
    };
    let teacher = match source.shape("norm_momentum.weight") {
        Some(_) => TeacherKind::Whole,
        None => TeacherKind::Blocks,
    };
    let options = LossOptions { teacher, ..LossOptions::default() };
    Ok(Pretraining::new(config, options, &sizes, classes, 0, device))
}

pub(crate) fn write_json<T: Serialize>(file: &Path, value: &T) -> Result<(), DataError> {
    let json = serde_json::to_string_pretty(value)
        .map_err(|error| DataError::invalid(file, "value", "one that JSON can hold", error))?;
    fs::write(file, json + "\n").map_err(DataError::io(file))
}

pub(crate) fn read_json<T: for<'a> Deserialize<'a>>(file: &Path) -> Result<T, DataError> {
    let json = fs::read(file).map_err(DataError::io(file))?;
    serde_json::from_slice(&json).map_err(|error| DataError::invalid(file, "JSON", "the documented fields", error))
}
