//! The linear probe: a linear classifier on frozen features, trained by LARS as the official code
//! does (the paper's supplement, section A, has the schedule).

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use sorcen_runtime::rng::{Rng, Stream};

use super::probe_head::{tensor, ProbeHead};
use crate::kernels::{Kernels, TrainBackend};
use crate::losses::cross_entropy;
use crate::model::indices;
use crate::optim::{Lars, LarsOptions};
use crate::schedule::LearningRate;

/// Epochs of warm-up of the official code; the paper's supplement has none.
pub const WARMUP_EPOCHS: f64 = 10.0;

/// Constants of a probe.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProbeOptions {
    /// Passes over the training features.
    pub epochs: u64,
    /// Images a step; all of them where there are fewer. The last partial batch is left out.
    pub batch_size: usize,
    /// Peak learning rate of LARS.
    pub lr: f64,
    /// Epochs over which it rises from 0; then a half cosine down to 0.
    pub warmup_epochs: f64,
    /// Epochs between lines of the log; the last epoch always has one.
    pub measure_every: u64,
    /// Seed of the initial weights and of the order of the images.
    pub seed: u64,
}

impl ProbeOptions {
    /// The official protocol (LARS 0.1 · 4096/256, 90 epochs, 10 of warm-up) for `images` training images:
    /// the batch is 4096, or about a sixteenth of the images (16 at least) where that is less, at the same rate.
    ///
    /// LARS takes steps relative to the norm of the weights, so the same rate suits any batch; and a small
    /// data set needs small batches to make enough steps in 90 epochs.
    pub fn official(images: usize, seed: u64) -> Self {
        let sixteenth = (images / 16).max(1).ilog2();
        let batch_size = (1 << sixteenth).clamp(16, 4096);
        Self { epochs: 90, batch_size, lr: 1.6, warmup_epochs: WARMUP_EPOCHS, measure_every: 1, seed }
    }

    /// Checks every field that has a range.
    ///
    /// # Errors
    /// [`ProbeError::Option`], naming the first that is out of it.
    pub fn validate(&self) -> Result<(), ProbeError> {
        let check = |ok: bool, name: &str, expected: &str, found: &dyn std::fmt::Display| match ok {
            true => Ok(()),
            false => Err(ProbeError::Option(format!("--{name}: expected {expected}, found {found}"))),
        };
        check(self.epochs >= 1, "epochs", "at least 1", &self.epochs)?;
        check(self.measure_every >= 1, "measure_every", "at least 1", &self.measure_every)?;
        check(self.batch_size >= 2, "batch_size", "at least 2", &self.batch_size)?;
        check(self.lr > 0.0 && self.lr.is_finite(), "lr", "a number above 0", &self.lr)?;
        let warmup = self.warmup_epochs;
        check(warmup >= 0.0 && warmup.is_finite(), "warmup_epochs", "0 or more", &warmup)
    }
}

/// What a probe learns from and is measured on.
#[derive(Clone, Copy, Debug)]
pub struct ProbeData<'a> {
    /// Labels of the training features, `0..classes`.
    pub train_labels: &'a [u16],
    /// Features to classify, `[D]` each.
    pub test: &'a [Vec<f32>],
    /// Their labels.
    pub test_labels: &'a [u16],
    /// Classes.
    pub classes: usize,
}

/// Training features, `[D]` each.
pub enum TrainFeatures<'a> {
    /// The same in every epoch.
    Fixed(&'a [Vec<f32>]),
    /// New ones for each epoch, by its number from 0: with dropout.
    PerEpoch(&'a dyn Fn(u64) -> Result<Vec<Vec<f32>>, sorcen_export::Error>),
}

/// One line of the log: MAE's names. Accuracies in percent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochLine {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Learning rate of its last step.
    pub train_lr: f64,
    /// Mean cross-entropy of its steps.
    pub train_loss: f64,
    /// Cross-entropy on the images to classify.
    pub test_loss: f64,
    /// Share of them whose most likely class is right, in percent.
    pub test_acc1: f64,
    /// Share of them whose class is among the five most likely, in percent.
    pub test_acc5: f64,
}

/// A trained head and how it came to be.
#[derive(Clone, Debug)]
pub struct LinearProbe<B: AutodiffBackend> {
    /// The head after the last epoch.
    pub head: ProbeHead<B::InnerBackend>,
    /// One line for each epoch that was measured.
    pub log: Vec<EpochLine>,
}

impl<B: AutodiffBackend> LinearProbe<B> {
    /// The last epoch: the honest figure.
    pub fn last(&self) -> &EpochLine {
        &self.log[self.log.len() - 1] // there is at least one epoch: `validate`
    }

    /// The epoch with the best top-1, which the official code reports; chosen on the images it is measured on.
    pub fn best(&self) -> &EpochLine {
        let better = |a: &&EpochLine, b: &&EpochLine| a.test_acc1.total_cmp(&b.test_acc1).then(b.epoch.cmp(&a.epoch));
        self.log.iter().max_by(better).unwrap_or(self.last())
    }
}

/// Why a probe cannot be trained.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// An option is out of range.
    #[error("{0}")]
    Option(String),
    /// The images do not fit the model.
    #[error(transparent)]
    Features(#[from] sorcen_export::Error),
    /// A feature has no direction to compare.
    #[error("features: {0}")]
    Prototypes(#[from] sorcen_runtime::Error),
    /// A loss is not a number any more.
    #[error("epoch {epoch}: train loss: expected a finite number, found {found}; try a lower --lr")]
    NotFinite {
        /// The epoch, from 0.
        epoch: u64,
        /// What it is.
        found: f64,
    },
}

/// Trains a head; `on_epoch` sees each line of the log as it comes.
///
/// # Errors
/// [`ProbeError`], and those of `on_epoch`.
///
/// # Panics
/// Where there are fewer than 2 training images, no test image, or not as many labels as features.
pub fn linear_probe<B: TrainBackend, E: From<ProbeError>>(
    train: &TrainFeatures<'_>,
    data: &ProbeData<'_>,
    options: &ProbeOptions,
    device: &B::Device,
    on_epoch: &mut dyn FnMut(&EpochLine) -> Result<(), E>,
) -> Result<LinearProbe<B>, E> {
    options.validate()?;
    let images = data.train_labels.len();
    assert!(images >= 2, "two training images");
    assert_eq!(data.test.len(), data.test_labels.len(), "a label for each test image");
    let width = data.test[0].len();
    let batch = options.batch_size.min(images);
    let steps = images / batch;
    let schedule = LearningRate {
        lr: options.lr,
        min_lr: 0.0,
        warmup_epochs: options.warmup_epochs,
        epochs: options.epochs as f64,
    };

    let mut head = ProbeHead::<B>::new(width, data.classes, options.seed, device);
    let mut lars = Lars::<B>::new(LarsOptions::default());
    let mut log = Vec::new();
    for epoch in 0..options.epochs {
        let fresh;
        let features: &[Vec<f32>] = match train {
            TrainFeatures::Fixed(features) => features,
            TrainFeatures::PerEpoch(extract) => {
                fresh = extract(epoch).map_err(ProbeError::from)?;
                &fresh
            }
        };
        assert_eq!(features.len(), images, "features for each label");

        let order = shuffled(images, &Rng::new(options.seed, Stream::Shuffle, epoch));
        let (mut losses, mut train_lr) = (Vec::with_capacity(steps), 0.0);
        for (step, chosen) in order.chunks_exact(batch).enumerate() {
            train_lr = schedule.at(epoch as f64 + step as f64 / steps as f64);
            let x = tensor(chosen.iter().map(|&index| &features[index]), width, device);
            let labels: Vec<i32> = chosen.iter().map(|&index| data.train_labels[index].into()).collect();
            let (logits, statistics) = head.forward_train(x);
            let loss = cross_entropy(logits, indices(&labels, device));
            losses.push(loss.clone().inner());
            let mut grads = loss.backward();
            head.update_statistics(statistics);
            lars.update(&mut head, &mut grads, train_lr);
        }
        // In f64, as all statistics: thousands of steps lose digits of their mean in f32.
        let losses: Vec<f32> = Tensor::cat(losses, 0).into_data().convert::<f32>().to_vec().unwrap_or_default();
        let train_loss = losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / losses.len() as f64;
        if !train_loss.is_finite() {
            return Err(ProbeError::NotFinite { epoch, found: train_loss }.into());
        }
        if !(epoch + 1).is_multiple_of(options.measure_every) && epoch + 1 != options.epochs {
            continue;
        }
        let (test_loss, [test_acc1, test_acc5]) = measure(&head.inner(), data, device);
        let line = EpochLine { epoch, train_lr, train_loss, test_loss, test_acc1, test_acc5 };
        on_epoch(&line)?;
        log.push(line);
    }
    Ok(LinearProbe { head: head.inner(), log })
}

/// Mean cross-entropy, and top-1 and top-5 accuracy in percent.
fn measure<B: Kernels>(head: &ProbeHead<B>, data: &ProbeData<'_>, device: &B::Device) -> (f64, [f64; 2]) {
    const BATCH: usize = 4096;
    let width = data.test[0].len();
    let (mut loss, mut right) = (0.0, [0usize; 2]);
    for (features, labels) in data.test.chunks(BATCH).zip(data.test_labels.chunks(BATCH)) {
        let logits = head.forward(tensor(features.iter(), width, device));
        let logits = logits.into_data().convert::<f32>().to_vec::<f32>().unwrap_or_default();
        for (logits, &label) in logits.chunks_exact(data.classes).zip(labels) {
            loss += cross_entropy_of(logits, usize::from(label));
            let rank = rank(logits, usize::from(label));
            right[0] += usize::from(rank < 1);
            right[1] += usize::from(rank < 5);
        }
    }
    let count = data.test.len() as f64;
    (loss / count, right.map(|right| 100.0 * right as f64 / count))
}

/// Cross-entropy of one row of logits with its label.
fn cross_entropy_of(logits: &[f32], label: usize) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let above = |logit: f32| f64::from(logit) - f64::from(largest);
    logits.iter().map(|&logit| above(logit).exp()).sum::<f64>().ln() - above(logits[label])
}

/// How many classes come before `label`: those with larger logits, and equal ones of lower number.
fn rank(logits: &[f32], label: usize) -> usize {
    let own = logits[label];
    logits.iter().enumerate().filter(|&(class, &logit)| logit > own || (logit == own && class < label)).count()
}

/// `0..count` in an order drawn by `rng`.
pub(super) fn shuffled(count: usize, rng: &Rng) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_cached_key(|&index| (rng.bits(index as u64), index));
    order
}

#[cfg(test)]
mod tests {
    use burn::backend::{flex::FlexDevice, Autodiff, Flex};

    use super::*;

    /// Three classes along three axes, with noise.
    fn examples(count: usize, step: u64) -> (Vec<Vec<f32>>, Vec<u16>) {
        let rng = Rng::new(4, Stream::Evaluation, step);
        let labels: Vec<u16> = (0..count).map(|i| (i % 3) as u16).collect();
        let feature = |(i, &label): (usize, &u16)| {
            let value = |d: usize| {
                0.3 * rng.normal((i * 6 + d) as u64) as f32 + if d == usize::from(label) { 1.0 } else { 0.0 }
            };
            (0..6).map(value).collect()
        };
        (labels.iter().enumerate().map(feature).collect(), labels)
    }

    #[test]
    fn cross_entropies_of_rows() {
        assert!((cross_entropy_of(&[0.0; 4], 2) - 4f64.ln()).abs() < 1e-12);
        let (a, b) = (cross_entropy_of(&[1000.0, 998.0], 1), cross_entropy_of(&[2.0, 0.0], 1));
        assert!((a - b).abs() < 1e-12 && (a - (2.0 + (-2f64).exp().ln_1p())).abs() < 1e-12, "{a} {b}");
        assert!(cross_entropy_of(&[f32::NAN, 0.0], 1).is_nan());
    }

    #[test]
    fn learns_what_is_linear_and_again_to_the_bit() {
        let ((train, train_labels), (test, test_labels)) = (examples(300, 0), examples(90, 1));
        let data = ProbeData { train_labels: &train_labels, test: &test, test_labels: &test_labels, classes: 3 };
        let options = ProbeOptions { epochs: 30, ..ProbeOptions::official(300, 7) };
        assert_eq!(options.batch_size, 16);
        let probe = |train: TrainFeatures<'_>| {
            let ignore = &mut |_: &EpochLine| Ok::<_, ProbeError>(());
            linear_probe::<Autodiff<Flex>, _>(&train, &data, &options, &FlexDevice, ignore).unwrap()
        };
        let fixed = probe(TrainFeatures::Fixed(&train));
        assert!(fixed.last().test_acc1 > 90.0 && fixed.last().test_acc5 == 100.0, "{:?}", fixed.last());
        assert!(fixed.log[0].train_loss > fixed.last().train_loss);
        assert_eq!((fixed.log.len(), fixed.log[0].epoch), (30, 0));
        assert!(fixed.log[5].train_lr < 1.6 && fixed.last().train_lr < 0.02, "warm-up, then down to 0");
        let again = probe(TrainFeatures::PerEpoch(&|_| Ok(train.clone())));
        assert_eq!(fixed.log, again.log);
        assert!(fixed.best().test_acc1 >= fixed.last().test_acc1);
    }

    #[test]
    fn ranks_and_ranges() {
        assert_eq!(rank(&[0.1, 0.5, 0.5, 0.2], 2), 1);
        assert_eq!(rank(&[0.1, 0.5, 0.5, 0.2], 0), 3);
        let official = ProbeOptions::official(1_281_167, 0);
        assert_eq!((official.batch_size, official.epochs, official.lr, official.warmup_epochs), (4096, 90, 1.6, 10.0));
        let error = ProbeOptions { lr: f64::NAN, ..official }.validate().unwrap_err();
        assert_eq!(error.to_string(), "--lr: expected a number above 0, found NaN");
    }
}
