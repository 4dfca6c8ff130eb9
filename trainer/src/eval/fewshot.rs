//! Few-shot classification: k labelled images a class, drawn several times. The paper's supplement, table A.3.

use sorcen_runtime::head::Prototypes;
use sorcen_runtime::rng::{Rng, Stream};

use super::knn::accuracy;
use super::linear_probe::{linear_probe, shuffled, EpochLine, ProbeData, ProbeError, ProbeOptions, TrainFeatures};
use super::task::{Task, TaskFeatures};
use crate::kernels::TrainBackend;

/// Which images are the examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FewShot {
    /// Examples of each class.
    pub shots: usize,
    /// Number of this draw.
    pub draw: u64,
    /// Seed of all draws.
    pub seed: u64,
}

impl FewShot {
    /// Steps that a probe makes at least: ten epochs of a handful of images would leave it at its start.
    pub const FEWEST_STEPS: u64 = 500;

    /// The paper's probe for `images` examples in all (LARS 1.0, batch 16, no warm-up, 10 epochs), but for as
    /// many epochs as make [`FEWEST_STEPS`](Self::FEWEST_STEPS) where 10 do not.
    pub fn probe(images: usize, seed: u64) -> ProbeOptions {
        let batch_size = 16;
        let steps = (images / batch_size.min(images.max(1))).max(1) as u64;
        let epochs = Self::FEWEST_STEPS.div_ceil(steps).max(10);
        ProbeOptions { epochs, batch_size, lr: 1.0, warmup_epochs: 0.0, measure_every: epochs, seed }
    }

    /// Indices of the examples in the bank, class by class: a pure function of (seed, draw, labels).
    ///
    /// The examples of fewer shots are the first of those of more. Classes that the bank does not have are left out.
    ///
    /// # Errors
    /// A class with fewer images: its label, and how many it has.
    pub fn examples(&self, labels: &[u16]) -> Result<Vec<usize>, (u16, usize)> {
        let order = shuffled(labels.len(), &Rng::new(self.seed, Stream::Evaluation, self.draw));
        let mut classes = labels.to_vec();
        classes.sort_unstable();
        classes.dedup();
        let mut examples = Vec::with_capacity(classes.len() * self.shots);
        for class in classes {
            let before = examples.len();
            examples.extend(order.iter().copied().filter(|&index| labels[index] == class).take(self.shots));
            if examples.len() - before < self.shots {
                return Err((class, examples.len() - before));
            }
        }
        Ok(examples)
    }

    /// Top-1 accuracies of a linear probe by `options`, and of the nearest prototypes, on the same `examples`.
    ///
    /// # Errors
    /// [`ProbeError`].
    pub fn accuracies<B: TrainBackend>(
        task: &Task,
        features: &TaskFeatures,
        examples: &[usize],
        options: &ProbeOptions,
        device: &B::Device,
    ) -> Result<[f64; 2], ProbeError> {
        let train: Vec<Vec<f32>> = examples.iter().map(|&index| features.bank[index].clone()).collect();
        let train_labels: Vec<u16> = examples.iter().map(|&index| task.bank.labels[index]).collect();
        let data = ProbeData {
            train_labels: &train_labels,
            test: &features.queries,
            test_labels: &task.queries.labels,
            classes: task.class_names().len(),
        };
        let quiet = &mut |_: &EpochLine| Ok(());
        let probe = linear_probe::<B, ProbeError>(&TrainFeatures::Fixed(&train), &data, options, device, quiet)?;
        let nearest = nearest_prototypes(&train, &train_labels, &features.queries)?;
        Ok([probe.last().test_acc1 / 100.0, accuracy(&nearest, &task.queries.labels)])
    }
}

/// Labels of `queries` by the nearest prototypes of the labelled `bank`, as a device learns them in place.
fn nearest_prototypes(
    bank: &[Vec<f32>],
    labels: &[u16],
    queries: &[Vec<f32>],
) -> Result<Vec<u16>, sorcen_runtime::Error> {
    let classes = labels.iter().max().map_or(0, |&label| usize::from(label) + 1);
    let width = bank.first().map_or(0, Vec::len);
    let mut memory = vec![0.0; Prototypes::floats(classes, width)];
    let mut prototypes = Prototypes::new(&mut memory, width)?;
    for (feature, &label) in bank.iter().zip(labels) {
        prototypes.learn(label.into(), feature)?;
    }
    let nearest = |query: &Vec<f32>| Ok(prototypes.classify(query, -1.0)?.map_or(0, |found| found.class as u16));
    queries.iter().map(nearest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_balanced_nested_and_differ() {
        let labels: Vec<u16> = (0..60).map(|i| [0, 1, 1, 4][i % 4]).collect();
        let draw = |shots, draw| FewShot { shots, draw, seed: 3 }.examples(&labels);
        let five = draw(5, 0).unwrap();
        assert_eq!(five.iter().map(|&i| labels[i]).collect::<Vec<_>>(), [[0; 5], [1; 5], [4; 5]].concat());
        assert_eq!(draw(2, 0).unwrap(), [&five[..2], &five[5..7], &five[10..12]].concat());
        assert_ne!(draw(5, 1).unwrap(), five);
        assert_eq!(draw(16, 0), Err((0, 15)));
    }

    #[test]
    fn the_paper_s_probe_with_enough_steps() {
        let probe = FewShot::probe(1000 * 10, 0);
        assert_eq!((probe.epochs, probe.batch_size, probe.lr, probe.warmup_epochs), (10, 16, 1.0, 0.0));
        assert_eq!(FewShot::probe(45, 0).epochs, 250, "two steps an epoch");
        assert_eq!(FewShot::probe(9, 0).epochs, 500);
    }
}
