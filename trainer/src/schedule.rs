//! Schedules: pure functions of the step.

use std::f64::consts::PI;

/// Learning rate at a fractional epoch: linear warm-up from 0, then a half cosine down to `min_lr`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    /// Peak.
    pub lr: f64,
    /// Value at the end.
    pub min_lr: f64,
    /// Epochs of warm-up.
    pub warmup_epochs: f64,
    /// Epochs of the run.
    pub epochs: f64,
}

impl LearningRate {
    /// The rate for the step that starts at `epoch` (epoch + step / steps per epoch).
    pub fn at(&self, epoch: f64) -> f64 {
        if epoch < self.warmup_epochs {
            return self.lr * epoch / self.warmup_epochs;
        }
        self.at_progress(self.progress(epoch))
    }

    /// How much of the way down lies behind an epoch after the warm-up, 0 to 1.
    pub fn progress(&self, epoch: f64) -> f64 {
        let span = self.epochs - self.warmup_epochs;
        if span > 0.0 {
            ((epoch - self.warmup_epochs) / span).min(1.0)
        } else {
            1.0
        }
    }

    /// The rate where so much of the way down, 0 to 1, lies behind.
    pub fn at_progress(&self, progress: f64) -> f64 {
        self.min_lr + (self.lr - self.min_lr) * 0.5 * (1.0 + (PI * progress).cos())
    }
}

/// Teacher momentum at an epoch: from `base` to 1 along a half cosine over `epochs`.
///
/// Official: 0.996 over a hard-coded 1600 epochs, whatever the length of the run.
pub fn teacher_momentum(base: f64, epochs: f64, epoch: u64) -> f64 {
    1.0 - (1.0 - base) * 0.5 * (1.0 + (PI * (epoch as f64 / epochs).min(1.0)).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_and_comes_down() {
        let schedule = LearningRate { lr: 2.4e-3, min_lr: 0.0, warmup_epochs: 40.0, epochs: 1600.0 };
        assert_eq!(schedule.at(0.0), 0.0, "the first step has rate 0");
        assert!((schedule.at(20.0) - 1.2e-3).abs() < 1e-12);
        assert!((schedule.at(40.0) - 2.4e-3).abs() < 1e-12);
        assert!((schedule.at(820.0) - 1.2e-3).abs() < 1e-12);
        assert!(schedule.at(1600.0).abs() < 1e-12);
        let short = LearningRate { lr: 1.0, min_lr: 0.1, warmup_epochs: 0.0, epochs: 2.0 };
        assert_eq!((short.at(0.0), short.at(5.0)), (1.0, 0.1));
    }

    #[test]
    fn teacher_slows_down() {
        assert!((teacher_momentum(0.996, 1600.0, 0) - 0.996).abs() < 1e-12);
        assert!((teacher_momentum(0.996, 1600.0, 800) - 0.998).abs() < 1e-12);
        assert!((teacher_momentum(0.996, 1600.0, 1600) - 1.0).abs() < 1e-12);
    }
}
