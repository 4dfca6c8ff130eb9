//! The state of a run: what going on needs beside the tokenizer itself.
//!
//! ```text
//! checkpoint/
//!   tokenizer.safetensors    the tokenizer
//!   config.json              its kind and sizes
//!   training_state/
//!     state.json             step, seed
//!     state.safetensors      weights, codebook.counts, codebook.sums, optimizer.exp_avg.NAME, optimizer.exp_avg_sq.NAME
//! ```

use std::fs;
use std::path::Path;

use burn::tensor::{Tensor, TensorData};

use super::{Options, Training};
use crate::checkpoint::{
    fill, read_state, write_json, State, TensorFile, TensorList, WeightSource as _, CONFIG, FIRST_MOMENT,
    SECOND_MOMENT, STATE_JSON, STATE_TENSORS, TRAINING_STATE,
};
use crate::data::DataError;
use crate::kernels::TrainBackend;
use crate::model::weight::join;
use crate::tokenizer::learned::host;
use crate::tokenizer::Autoencoder;

const COUNTS: &str = "codebook.counts";
const SUMS: &str = "codebook.sums";

/// Writes everything but the tokenizer into the folder `dir`.
pub(super) fn write<B: TrainBackend, N: Autoencoder<B>>(
    dir: &Path,
    options: &Options,
    training: &Training<B, N>,
    (step, epochs): (u64, u64),
) -> Result<(), DataError> {
    write_json(&dir.join(CONFIG), &options.sizes)?;
    let dir = dir.join(TRAINING_STATE);
    fs::create_dir_all(&dir).map_err(DataError::io(&dir))?;
    let mut tensors = TensorList::default();
    tensors.push_all(&training.net, "", "");
    let codes = training.net.codebook().dims();
    tensors.push(COUNTS, &codes[..1], &training.codebook.counts);
    tensors.push(SUMS, codes, &training.codebook.sums);
    for (name, (first, second)) in &training.optimizer.moments {
        tensors.push(&join(FIRST_MOMENT, name), &first.dims(), &host(first.clone()));
        tensors.push(&join(SECOND_MOMENT, name), &second.dims(), &host(second.clone()));
    }
    tensors.write(&dir.join(STATE_TENSORS))?;
    let state = State { step, updates: training.optimizer.updates, epochs, seed: options.seed };
    write_json(&dir.join(STATE_JSON), &state)
}

/// Takes up what [`write`] wrote; returns the steps done.
pub(super) fn restore<B: TrainBackend, N: Autoencoder<B>>(
    dir: &Path,
    training: &mut Training<B, N>,
) -> Result<u64, DataError> {
    let state = read_state(dir)?;
    let tensors = TensorFile::open(&dir.join(TRAINING_STATE).join(STATE_TENSORS))?;
    let device = training.device.clone();
    fill(&tensors, &mut training.net, "", &device)?;
    let codes = training.net.codebook().dims().to_vec();
    training.codebook.codes = training.net.codebook().to_vec();
    training.codebook.counts = tensors.values(COUNTS, &codes[..1])?;
    training.codebook.sums = tensors.values(SUMS, &codes)?;
    training.optimizer.updates = state.updates;
    let mut result = Ok(());
    let moments = &mut training.optimizer.moments;
    training.net.visit("", &mut |name, weight| {
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
    result.map(|()| state.step)
}
