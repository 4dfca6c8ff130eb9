//! What the k-NN table of a quickstart compares with.

use std::{borrow::Cow, collections::BTreeMap, path::Path};

use anyhow::Result;
use burn::backend::{flex::FlexDevice, Flex};
use sorcen_export::Checkpoint;
use sorcen_runtime::{schema::Param, ModelConfig};

use crate::{
    bundled,
    eval::{Task, Votes},
    model::{weight::Weights, Sorcen},
};

/// How the neighbours vote.
pub const VOTES: Votes = Votes { k: 5, temperature: 0.07 };

/// Base emoji of the training split to search in, those of the test split held back: recolourings of
/// one emoji would be each other's neighbours.
///
/// # Errors
/// Where the bundled datasets cannot be read.
pub fn task(data_dir: &Path) -> Result<Task> {
    let base = [("skin_variation".to_string(), "0".to_string())];
    Ok(Task::open(data_dir, bundled::TRAIN, bundled::TEST, &base)?)
}

/// Writes a checkpoint of initial weights, as pretraining with this seed would begin.
///
/// # Errors
/// Where the folder cannot be written.
pub fn write_untrained(config: &ModelConfig, seed: u64, dir: &Path) -> Result<()> {
    let mut student = Sorcen::<Flex>::new(config, &FlexDevice);
    student.initialise("", seed, &FlexDevice);
    let mut values = BTreeMap::new();
    student.visit("", &mut |name, weight| {
        values.insert(name.to_string(), weight.to_vec());
    });
    let lookup = |param: Param| Cow::Owned(values.remove(&param.to_string()).unwrap_or_default());
    Ok(Checkpoint::write(dir, config, lookup)?)
}
