//! Checkpoints: `model.safetensors` + `config.json` under official names, and `training_state/` for resuming.
//!
//! ```text
//! checkpoint/
//!   config.json            ModelConfig
//!   model.safetensors      encoder and decoder, linears [out, in]
//!   training_state/
//!     state.json           step, seed
//!     state.safetensors    blocks_momentum.*, projector.*, momentum_projector.*, predictor.*, classifier.*,
//!                          optimizer.exp_avg.NAME, optimizer.exp_avg_sq.NAME
//! ```
//!
//! A checkpoint is replaced as a whole: written beside the old one, then renamed.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use half::{bf16, f16};
use safetensors::{tensor::View, Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use sorcen_runtime::ModelConfig;

use crate::data::DataError;
use crate::kernels::{Kernels, TrainBackend};
use crate::model::weight::{join, Weights};
use crate::model::Sorcen;
use crate::optim::{AdamW, AdamWOptions};
use crate::step::{HeadSizes, LossOptions, Networks, Pretraining};
use crate::teacher::{Teacher, TEACHER};

/// The configuration.
pub const CONFIG: &str = "config.json";
/// The weights of inference.
pub const MODEL: &str = "model.safetensors";
/// What resuming needs beside them.
pub const TRAINING_STATE: &str = "training_state";
const STATE_JSON: &str = "state.json";
const STATE_TENSORS: &str = "state.safetensors";
const FIRST_MOMENT: &str = "optimizer.exp_avg";
const SECOND_MOMENT: &str = "optimizer.exp_avg_sq";

/// A safetensors file in memory.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl TensorFile {
    /// Reads a file and checks its header.
    ///
    /// # Errors
    /// [`DataError`] where it cannot be read or is not a safetensors file.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let bytes = fs::read(path).map_err(DataError::io(path))?;
        let file = Self { path: path.to_path_buf(), bytes };
        file.tensors()?;
        Ok(file)
    }

    fn tensors(&self) -> Result<SafeTensors<'_>, DataError> {
        SafeTensors::deserialize(&self.bytes)
            .map_err(|error| DataError::invalid(&self.path, "header", "a whole safetensors file", error))
    }
}

/// A file that weights can be read from by name.
pub trait WeightSource {
    /// Where it is.
    fn path(&self) -> &Path;

    /// Names of all tensors, in order.
    fn names(&self) -> Vec<String>;

    /// Shape of a tensor, if it is there.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// The values of a tensor of floating-point numbers, row-major.
    ///
    /// # Errors
    /// [`DataError::Invalid`] where it is missing or of another type.
    fn read(&self, name: &str) -> Result<Vec<f32>, DataError>;

    /// The finite values of a tensor of shape `dims`, row-major.
    ///
    /// # Errors
    /// [`DataError::Invalid`] where it is missing, of another shape or type, or not finite.
    fn values(&self, name: &str, dims: &[usize]) -> Result<Vec<f32>, DataError> {
        let invalid = |expected: String, found: String| Err(DataError::invalid(self.path(), name, expected, found));
        match self.shape(name) {
            None => return invalid(format!("a tensor {dims:?}"), "none of this name".into()),
            Some(found) if found != dims => return invalid(format!("shape {dims:?}"), format!("{found:?}")),
            Some(_) => {}
        }
        let values = self.read(name)?;
        match values.iter().position(|value| !value.is_finite()) {
            Some(index) => invalid("finite numbers".into(), format!("{} at {index}", values[index])),
            None => Ok(values),
        }
    }
}

impl WeightSource for TensorFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Vec<String> {
        let mut names = self.tensors().map(|file| file.names().into_iter().map(str::to_string).collect());
        names.iter_mut().for_each(|names: &mut Vec<String>| names.sort_unstable());
        names.unwrap_or_default()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors().ok()?.tensor(name).ok().map(|view| view.shape().to_vec())
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, DataError> {
        let tensors = self.tensors()?;
        let Ok(view) = tensors.tensor(name) else {
            return Err(DataError::invalid(&self.path, name, "a tensor", "none of this name"));
        };
        let (pairs, _) = view.data().as_chunks::<2>();
        let (words, _) = view.data().as_chunks::<4>();
        match view.dtype() {
            Dtype::F32 => Ok(words.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()),
            Dtype::F16 => Ok(pairs.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect()),
            Dtype::BF16 => Ok(pairs.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect()),
            other => Err(DataError::invalid(&self.path, name, "F32, F16 or BF16", format_args!("{other:?}"))),
        }
    }
}

/// Sets every weight of `module` (named after `path`) from a file.
///
/// # Errors
/// As [`WeightSource::values`], for the first weight that fails.
pub fn fill<B: Backend>(
    source: &dyn WeightSource,
    module: &mut dyn Weights<B>,
    path: &str,
    device: &B::Device,
) -> Result<(), DataError> {
    let mut result = Ok(());
    module.visit_mut(path, &mut |name, weight| {
        if result.is_ok() {
            result = source.values(name, weight.dims()).map(|values| weight.set_from(values, device));
        }
    });
    result
}

/// Tensors on their way into a file.
#[derive(Debug, Default)]
pub struct TensorList(Vec<(String, HostTensor)>);

#[derive(Debug)]
struct HostTensor {
    dims: Vec<usize>,
    bytes: Vec<u8>,
}

impl TensorList {
    /// Adds a tensor.
    pub fn push(&mut self, name: &str, dims: &[usize], values: &[f32]) {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.0.push((name.to_string(), HostTensor { dims: dims.to_vec(), bytes }));
    }

    /// Adds every weight of `module`, named after `path`, with `prefix` before the name.
    pub fn push_all<B: Backend>(&mut self, module: &dyn Weights<B>, path: &str, prefix: &str) {
        module.visit(path, &mut |name, weight| {
            self.push(&format!("{prefix}{name}"), weight.dims(), &weight.to_vec());
        });
    }

    /// Writes a safetensors file.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub fn write(self, path: &Path) -> Result<(), DataError> {
        // Python's loaders ask for this entry.
        let metadata = [("format".to_string(), "pt".to_string())].into();
        safetensors::serialize_to_file(self.0, Some(metadata), path)
            .map_err(|error| DataError::io(path)(std::io::Error::other(error)))
    }
}

impl View for HostTensor {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        &self.dims
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Contents of `training_state/state.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Steps done.
    pub step: u64,
    /// Updates the optimiser has made.
    pub updates: u64,
    /// Seed of the run.
    pub seed: u64,
}

/// Saves everything to the folder `dir`, replacing what is there as a whole.
///
/// # Errors
/// [`DataError::Io`]; what was there before is then untouched.
pub fn save<B: TrainBackend>(dir: &Path, run: &Pretraining<B>, state: &State) -> Result<(), DataError> {
    let (new, old) = (dir.with_extension("new"), dir.with_extension("old"));
    remove(&new)?;
    fs::create_dir_all(&new).map_err(DataError::io(&new))?;
    write_model(&new, &run.config, &run.networks.student)?;
    write_training(&new, run, state)?;

    // Between the two renames only `old` exists: `find` knows it.
    remove(&old)?;
    if dir.exists() {
        fs::rename(dir, &old).map_err(DataError::io(dir))?;
    }
    fs::rename(&new, dir).map_err(DataError::io(&new))?;
    remove(&old)
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
    tensors.push_all(&run.teacher.blocks, TEACHER, "");
    tensors.push_all(&run.networks.projector, "projector", "");
    tensors.push_all(&run.networks.momentum_projector, "momentum_projector", "");
    tensors.push_all(&run.networks.predictor, "predictor", "");
    tensors.push_all(&run.networks.classifier, "classifier", "");
    for (name, (first, second)) in &run.optimizer.moments {
        let values = |t: &Tensor<B::InnerBackend, 2>| t.to_data().convert::<f32>().to_vec::<f32>().unwrap_or_default();
        tensors.push(&join(FIRST_MOMENT, name), &first.dims(), &values(first));
        tensors.push(&join(SECOND_MOMENT, name), &second.dims(), &values(second));
    }
    tensors.write(&dir.join(STATE_TENSORS))?;
    write_json(&dir.join(STATE_JSON), state)
}

/// The checkpoint to go on from, if there is one: `dir`, or the one that was being replaced.
pub fn find(dir: &Path) -> Option<PathBuf> {
    [dir.to_path_buf(), dir.with_extension("old")].into_iter().find(|dir| dir.join(CONFIG).exists())
}

/// Reads the configuration of a checkpoint folder.
///
/// # Errors
/// [`DataError`] where it is missing or not valid.
pub fn read_config(dir: &Path) -> Result<ModelConfig, DataError> {
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

/// Loads everything that [`save`] wrote into `run`, whose sizes must be the same.
///
/// # Errors
/// [`DataError`] names the file and the first tensor that is missing or wrong.
pub fn restore<B: TrainBackend>(dir: &Path, run: &mut Pretraining<B>) -> Result<State, DataError> {
    let state: State = read_json(&dir.join(TRAINING_STATE).join(STATE_JSON))?;
    let tensors = restore_networks(dir, run)?;
    run.optimizer.updates = state.updates;
    let mut result = Ok(());
    let device = run.device.clone();
    let moments = &mut run.optimizer.moments;
    run.networks.visit("", &mut |name, weight| {
        let (first, second) = (join(FIRST_MOMENT, name), join(SECOND_MOMENT, name));
        if result.is_ok() && tensors.shape(&first).is_some() {
            let shape = weight.get().dims();
            let load = |name: &str| {
                let values = tensors.values(name, &shape)?;
                Ok(Tensor::from_data(TensorData::new(values, shape), &device))
            };
            match load(&first).and_then(|first| Ok((first, load(&second)?))) {
                Ok(pair) => drop(moments.insert(name.to_string(), pair)),
                Err(error) => result = Err(error),
            }
        }
    });
    result.map(|()| state)
}

/// Opens a checkpoint with its training state; the widths of the heads are read from the file.
///
/// # Errors
/// [`DataError`] where it has none, or a tensor is missing or wrong.
pub fn open_training<B: TrainBackend>(dir: &Path, device: &B::Device) -> Result<Pretraining<B>, DataError> {
    let config = read_config(dir)?;
    let state = TensorFile::open(&dir.join(TRAINING_STATE).join(STATE_TENSORS))?;
    let mut run = empty_training(&config, &state, device)?;
    restore(dir, &mut run)?;
    Ok(run)
}

/// Initial networks whose heads are as wide as those in `source`; official constants.
///
/// # Errors
/// [`DataError`] where a head is missing or out of range.
pub fn empty_training<B: TrainBackend>(
    config: &ModelConfig,
    source: &dyn WeightSource,
    device: &B::Device,
) -> Result<Pretraining<B>, DataError> {
    const WIDEST: usize = 65_536;
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
    Ok(Pretraining {
        config: *config,
        options: LossOptions::default(),
        networks: Networks::new(config, &sizes, classes, 0, device),
        teacher: Teacher::new(config, 0, device),
        optimizer: AdamW::new(AdamWOptions::default()),
        device: device.clone(),
    })
}

/// Loads model, teacher and heads, but not the optimiser; returns the file of the training state.
fn restore_networks<B: TrainBackend>(dir: &Path, run: &mut Pretraining<B>) -> Result<TensorFile, DataError> {
    let device = run.device.clone();
    fill(&TensorFile::open(&dir.join(MODEL))?, &mut run.networks.student, "", &device)?;
    let tensors = TensorFile::open(&dir.join(TRAINING_STATE).join(STATE_TENSORS))?;
    fill(&tensors, &mut run.teacher.blocks, TEACHER, &device)?;
    fill(&tensors, &mut run.networks.projector, "projector", &device)?;
    fill(&tensors, &mut run.networks.momentum_projector, "momentum_projector", &device)?;
    fill(&tensors, &mut run.networks.predictor, "predictor", &device)?;
    fill(&tensors, &mut run.networks.classifier, "classifier", &device)?;
    Ok(tensors)
}

/// Starts `run` from another run's checkpoint: its teacher and heads too where they are there and fit;
/// else the teacher starts as a copy of the loaded student. The optimiser starts fresh.
///
/// # Errors
/// [`DataError`] where the model cannot be loaded or has other sizes.
pub fn initialise<B: TrainBackend>(dir: &Path, run: &mut Pretraining<B>) -> Result<(), DataError> {
    let config = read_config(dir)?;
    if config != run.config {
        return Err(DataError::invalid(
            &dir.join(CONFIG),
            "config",
            format!("that of this run, {:?}", run.config),
            format!("{config:?}"),
        ));
    }
    let mut whole = run.clone();
    if restore_networks(dir, &mut whole).is_ok() {
        *run = whole;
        return Ok(());
    }
    let device = run.device.clone();
    fill(&TensorFile::open(&dir.join(MODEL))?, &mut run.networks.student, "", &device)?;
    run.teacher.follow(&run.networks.student, 0.0);
    Ok(())
}

fn remove(dir: &Path) -> Result<(), DataError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(DataError::io(dir)(error)),
        _ => Ok(()),
    }
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
