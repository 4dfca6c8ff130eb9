//! Imports official checkpoints: PyTorch files or safetensors under the official names.

mod archive;
mod optimizer;
mod pickle;
mod pth;
mod sizes;
mod source;
mod state;
mod tensor;

use std::collections::BTreeMap;
use std::path::Path;

use burn::backend::{Autodiff, Flex};
use sorcen_runtime::{schema, ModelConfig};

use crate::checkpoint::{self, State, WeightSource};
use crate::data::DataError;
use crate::files::PartialDir;
use crate::model::weight::{join, Weights as _};
use crate::model::Sorcen;
use crate::official;
use crate::step::Pretraining;

pub use pth::{History, PthFile, SIZES};
pub use source::{kind, WeightFile};

type Run = Pretraining<Autodiff<Flex>>;

/// What is not in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportOptions {
    /// Of several sets of weights in the file, which: an entry (`model_ema`), or the first part of the names.
    pub key: Option<String>,
    /// Codes, where the vocabulary may be the official code's or a compact one.
    pub codebook_size: Option<usize>,
    /// Encoder heads; `None`: those that the file states, or the official ones of widths 768 and 1024.
    pub heads: Option<usize>,
    /// Decoder heads; `None`: the same.
    pub decoder_heads: Option<usize>,
    /// Teacher, pretraining heads and optimiser too, for going on with training; MAGE's files have no teacher.
    pub with_training_state: bool,
}

/// What was imported.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    /// Sizes.
    pub config: ModelConfig,
    /// How far the training was, where its state is there.
    pub training: Option<History>,
    /// What was chosen among the file's contents, and what was left out, in sentences.
    pub notes: Vec<String>,
}

/// Turns the file `from` into a checkpoint folder `out`, which must be new or empty.
///
/// With the training state come the optimiser's moments, where the file has an `optimizer` entry. The state of its
/// gradient scaler is of no use: moments are of unscaled gradients, and nothing here is scaled.
///
/// # Errors
/// [`DataError`] names the file and the first tensor that is missing or of the wrong shape, the entry of the training
/// state that no training could have left, or the flag that is needed.
pub fn import(from: &Path, out: &Path, options: &ImportOptions) -> Result<Imported, DataError> {
    let file = WeightFile::open(from, options.key.as_deref())?;
    let source = file.source();
    let (stated, history) = match &file {
        WeightFile::Torch(file) if options.with_training_state => (file.config(), file.history()?),
        WeightFile::Torch(file) => (file.config(), History::default()),
        WeightFile::Safetensors(_) => (None, History::default()),
    };
    let config = sizes::config(source, stated.as_ref(), options)?;
    let device = Default::default();
    let partial = PartialDir::create(out).map_err(DataError::io(out))?;
    let has_teacher = source.shape("blocks_momentum.0.norm1.weight").is_some();
    let with_training_state = options.with_training_state && has_teacher;
    let mut notes = file.notes().to_vec();
    if with_training_state {
        let mut run: Run = checkpoint::empty_training(&config, source, &device)?;
        checkpoint::fill(source, &mut run.networks, "", &device)?;
        checkpoint::fill(source, &mut run.teacher, "", &device)?;
        check_variances(source, &run)?;
        checkpoint::write_model(partial.path(), &config, &run.networks.student)?;
        checkpoint::fill_moments(source, &mut run)?;
        check_moments(source, &run, &mut notes)?;
        let History { updates, epochs } = history;
        checkpoint::write_training(partial.path(), &run, &State { step: 0, updates, epochs, seed: 0 })?;
    } else {
        let mut model = Sorcen::<Flex>::new(&config, &device);
        checkpoint::fill(source, &mut model, "", &device)?;
        checkpoint::write_model(partial.path(), &config, &model)?;
    }
    notes.extend(left_out(source, &config, with_training_state));
    partial.finish().map_err(DataError::io(out))?;
    Ok(Imported { config, training: with_training_state.then_some(history), notes })
}

/// That the heads' running variances are none below zero.
fn check_variances(source: &dyn WeightSource, run: &Run) -> Result<(), DataError> {
    let mut result = Ok(());
    run.networks.visit("", &mut |name, weight| {
        if result.is_ok() && name.ends_with("running_var") {
            result = not_negative(source, name, &weight.to_vec());
        }
    });
    result
}

/// That the moments are such as AdamW leaves: second ones not below zero, and where there are any, those of the whole
/// model, and of all or none of each head (one that no loss reaches has none, which is noted).
fn check_moments(source: &dyn WeightSource, run: &Run, notes: &mut Vec<String>) -> Result<(), DataError> {
    let moments = &run.optimizer.moments;
    for (name, (_, second)) in moments {
        let values = second.to_data().to_vec::<f32>().unwrap_or_default();
        not_negative(source, &join(checkpoint::SECOND_MOMENT, name), &values)?;
    }
    if moments.is_empty() {
        return Ok(());
    }
    // By head: how many trained weights have moments, and the first that has none.
    let mut parts: BTreeMap<&str, (usize, Option<String>)> = BTreeMap::new();
    run.networks.visit("", &mut |name, weight| {
        if weight.is_trained() {
            let head = official::HEADS.into_iter().find(|head| official::is_of(name, head));
            let (present, missing) = parts.entry(head.unwrap_or_default()).or_default();
            match moments.contains_key(name) {
                true => *present += 1,
                false => drop(missing.get_or_insert_with(|| name.to_string())),
            }
        }
    });
    for (part, (present, missing)) in parts {
        match missing {
            Some(_) if present == 0 && !part.is_empty() => {
                notes.push(format!("the optimizer has no moments for {part}, which start at zero"));
            }
            Some(name) => {
                let name = join(checkpoint::FIRST_MOMENT, &name);
                let expected = "a moment, since the optimizer has those of other parameters";
                return Err(DataError::invalid(source.path(), name, expected, "none"));
            }
            None => {}
        }
    }
    Ok(())
}

fn not_negative(source: &dyn WeightSource, name: &str, values: &[f32]) -> Result<(), DataError> {
    match values.iter().position(|&value| value < 0.0) {
        None => Ok(()),
        Some(at) => {
            let found = format_args!("{} at {at}", values[at]);
            Err(DataError::invalid(source.path(), name, "a mean of squares, not below 0", found))
        }
    }
}

/// What the file has and the checkpoint has not, by the first parts of the names; what the official model has and does
/// not use is not worth a word.
fn left_out(source: &dyn WeightSource, config: &ModelConfig, with_training_state: bool) -> Option<String> {
    let known: std::collections::BTreeSet<String> = schema::params(config).map(|param| param.to_string()).collect();
    let is_training =
        |name: &str| official::HEADS.into_iter().chain(official::TEACHER).any(|it| official::is_of(name, it));
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for name in source.names() {
        let training = is_training(&name) || official::is_of(&name, "optimizer");
        let taken = known.contains(&name) || training && with_training_state;
        if !taken && !official::is_unused(&name, config) {
            *counts.entry(name.split('.').next().unwrap_or_default().to_string()).or_default() += 1;
        }
    }
    let parts = counts.into_iter().map(|(part, count)| format!("{part} ({count})")).collect::<Vec<_>>();
    (!parts.is_empty()).then(|| format!("left out: {} tensors", parts.join(", ")))
}
