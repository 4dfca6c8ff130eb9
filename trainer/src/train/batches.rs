//! The batches of a run: a pure function of (dataset, options, step).

use sorcen_runtime::rng::{Rng, Stream};

use crate::config::{Plan, PretrainOptions};
use crate::data::TokenDataset;
use crate::masking::Crop;
use crate::model::layers::Dropout;
use crate::step::{Echo, StepInputs};

/// Reads batches and draws all that is random about them.
pub struct Batches<'a> {
    dataset: &'a TokenDataset,
    options: &'a PretrainOptions,
    rank: u64,
    steps_per_epoch: u64,
    /// An epoch and its order.
    order: (u64, Vec<u32>),
}

impl<'a> Batches<'a> {
    /// The batches of replica `rank`; what is left over at the end of an epoch is left out.
    pub fn new(dataset: &'a TokenDataset, options: &'a PretrainOptions, rank: usize) -> Self {
        let steps_per_epoch = (dataset.len() / options.images_per_step()) as u64;
        Self { dataset, options, rank: rank as u64, steps_per_epoch, order: (u64::MAX, Vec::new()) }
    }

    /// Updates in one pass over the dataset.
    pub fn steps_per_epoch(&self) -> u64 {
        self.steps_per_epoch
    }

    /// Everything that step `step` is given: `accum_iter` batches. Those of all replicas have numbers of one row.
    pub fn of_step(&mut self, plan: &Plan, step: u64) -> Vec<StepInputs> {
        let (parts, replicas) = (self.options.accum_iter as u64, self.options.devices as u64);
        let first = step * parts * replicas + self.rank;
        (0..parts).map(|part| self.batch(plan, step, first + part * replicas)).collect()
    }

    /// Batch number `batch` of the run, which belongs to step `step`.
    fn batch(&mut self, plan: &Plan, step: u64, batch: u64) -> StepInputs {
        let PretrainOptions { batch_size, seed, jsm, dropout, masks, losses, .. } = *self.options;
        let dataset = self.dataset;
        let (tokens, grid) = (dataset.tokens(), dataset.grid());
        let mut ids = vec![0; batch_size * tokens];
        let mut labels = Vec::with_capacity(batch_size);
        for (&index, ids) in self.images(batch).iter().zip(ids.chunks_exact_mut(tokens)) {
            dataset.ids(index as usize, ids);
            labels.push(dataset.label(index as usize));
        }
        StepInputs {
            ids,
            labels,
            masks: masks.draw(batch_size, tokens, seed, batch),
            echo: match plan.draws_echoes(step, losses.method) {
                true => Echo::Sampled(Rng::new(seed, Stream::Echo, batch)),
                false => Echo::GroundTruth,
            },
            crop: if jsm { Crop::draw(batch_size, grid, seed, batch) } else { Crop::whole(batch_size, grid) },
            dropout: Dropout::new(dropout, seed, batch),
        }
    }

    /// The images of batch `batch`: a new order each epoch.
    fn images(&mut self, batch: u64) -> &[u32] {
        let per_epoch = self.steps_per_epoch * (self.options.accum_iter * self.options.devices) as u64;
        let (epoch, batch) = (batch / per_epoch, (batch % per_epoch) as usize);
        if self.order.0 != epoch {
            let rng = Rng::new(self.options.seed, Stream::Shuffle, epoch);
            let mut order: Vec<u32> = (0..self.dataset.len() as u32).collect();
            order.sort_by_cached_key(|&index| rng.bits(index.into()));
            self.order = (epoch, order);
        }
        let size = self.options.batch_size;
        &self.order.1[batch * size..(batch + 1) * size]
    }
}
