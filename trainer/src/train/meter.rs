//! Collects what steps report on the device, and reads it together.

use std::time::{Instant, SystemTime};

use burn::tensor::Tensor;

use super::TrainError;
use crate::config::{Plan, PretrainOptions};
use crate::kernels::TrainBackend;
use crate::metrics::LogLine;
use crate::step::{Method, REPORT};

/// The reports of the steps since the last line of the log.
pub struct Meter<B: TrainBackend> {
    reports: Vec<(u64, Tensor<B::InnerBackend, 1>)>,
    started: Instant,
    since: Instant,
}

impl<B: TrainBackend> Meter<B> {
    /// A meter that starts now.
    pub fn new() -> Self {
        Self { reports: Vec::new(), started: Instant::now(), since: Instant::now() }
    }

    /// Takes in what step `step` reports.
    pub fn add(&mut self, step: u64, report: Tensor<B::InnerBackend, 1>) {
        self.reports.push((step, report));
    }

    /// Seconds since the start.
    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Leaves out the time since the last line.
    pub fn restart(&mut self) {
        self.since = Instant::now();
    }

    /// The means of the steps since the last line (at least one).
    ///
    /// # Errors
    /// [`TrainError::NotFinite`] for the first number that is not.
    pub fn line(&mut self, plan: &Plan, options: &PretrainOptions) -> Result<LogLine, TrainError> {
        let count = self.reports.len().max(1);
        let mut mean = [0.0; REPORT.len()];
        let mut last = 0;
        for (step, report) in self.reports.drain(..) {
            let numbers = report.into_data().convert::<f32>().to_vec::<f32>().unwrap_or_default();
            for ((mean, number), name) in mean.iter_mut().zip(&numbers).zip(REPORT) {
                if !number.is_finite() {
                    let hint = "try a lower --lr or a longer --warmup_epochs";
                    return Err(TrainError::NotFinite { step, term: name, found: *number, hint });
                }
                *mean += f64::from(*number) / count as f64;
            }
            last = step;
        }
        let seconds = self.since.elapsed().as_secs_f64();
        self.since = Instant::now();
        let [reconstruction, uniformity, contrast, classifier, total, norm] = mean;
        let of_sorcen = |number: f64| (options.losses.method == Method::Sorcen).then_some(number);
        Ok(LogLine {
            step: last + 1,
            epoch: (last + 1) as f64 / plan.steps_per_epoch as f64,
            train_loss: total,
            train_rec_loss: reconstruction + uniformity,
            train_uniformity_loss: of_sorcen(uniformity),
            train_nn_loss: of_sorcen(contrast * f64::from(options.losses.lambda)),
            train_class_loss: of_sorcen(classifier),
            train_lr: plan.learning_rate(last),
            train_grad_norm: norm,
            teacher_momentum: of_sorcen(plan.momentum(last)),
            knn_accuracy: None,
            img_per_s: (count * options.images_per_step()) as f64 / seconds.max(1e-9),
            time_s: now_s(),
        })
    }
}

/// Seconds since 1970.
pub fn now_s() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}
