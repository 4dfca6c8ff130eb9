//! What a run is asked to do ([`PretrainOptions`]) and what follows from it ([`Plan`]).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sorcen_runtime::ModelConfig;

use crate::checkpoint::{self, Keep};
use crate::data::DataError;
use crate::device::Device;
use crate::masking::MaskOptions;
use crate::model::Precision;
use crate::optim::AdamWOptions;
use crate::schedule::{self, LearningRate};
use crate::step::{HeadSizes, LossOptions, Method};
use crate::teacher::TeacherInit;

/// A model by name or from a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelChoice {
    /// Official ViT-B.
    VitB,
    /// Official ViT-L.
    VitL,
    /// 256 wide, 8 + 4 blocks, sized for the dataset.
    Small,
    /// 128 wide, 4 + 2 blocks.
    Tiny,
    /// 64 wide, 4 + 2 blocks.
    Micro,
    /// A `config.json`.
    File(PathBuf),
}

impl std::str::FromStr for ModelChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Ok(match name {
            "vit_b" => Self::VitB,
            "vit_l" => Self::VitL,
            "small" => Self::Small,
            "tiny" => Self::Tiny,
            "micro" => Self::Micro,
            file if file.ends_with(".json") => Self::File(file.into()),
            other => return Err(format!("expected vit_b, vit_l, small, tiny, micro or a FILE.json, found {other}")),
        })
    }
}

impl ModelChoice {
    /// The sizes, for tokens on a `grid`² grid of `codes` codes.
    ///
    /// # Errors
    /// [`DataError`] where a file cannot be read or is not valid.
    pub fn config(&self, grid: usize, codes: usize) -> Result<ModelConfig, DataError> {
        Ok(match self {
            Self::VitB => ModelConfig::vit_b(),
            Self::VitL => ModelConfig::vit_l(),
            Self::Small => ModelConfig::small(grid, codes),
            Self::Tiny => ModelConfig::tiny(grid, codes),
            Self::Micro => ModelConfig::micro(grid, codes),
            Self::File(file) => checkpoint::read_config_file(file)?,
        })
    }
}

/// How long to train.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Duration {
    /// Passes over the dataset.
    Epochs(f64),
    /// Updates.
    Steps(u64),
    /// Wall-clock time: a few steps are timed first, and the schedule is cut to fit, again as the speed becomes known.
    Minutes(f64),
}

/// What is looked at while a run goes on; it changes nothing in the run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WatchOptions {
    /// Epochs between sheets of anchors, echoes and samples; 0: none.
    pub picture_every_epochs: u64,
    /// The patch tokenizer that turns tokens into pixels for them.
    pub tokenizer: Option<PathBuf>,
    /// Epochs between k-NN accuracies; 0: none.
    pub knn_every_epochs: u64,
    /// Folder with the token datasets `train` (labels known) and `val` (to classify).
    pub knn_data: Option<PathBuf>,
}

/// What a pretraining run is asked to do. Everything that is `None` follows from the rest: [`Plan::new`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PretrainOptions {
    /// Token dataset folder.
    pub data: PathBuf,
    /// Where `checkpoint/`, `log.txt` and `run.json` go.
    pub output_dir: PathBuf,
    /// Sizes of the model.
    pub model: ModelChoice,
    /// How long.
    pub duration: Duration,
    /// Images that go through the model together.
    pub batch_size: usize,
    /// Batches whose gradients are averaged for one update.
    #[serde(default = "one")]
    pub accum_iter: usize,
    /// Replicas, one a device, each with batches of its own: gradients are averaged over all, negatives are shared.
    #[serde(default = "one")]
    pub devices: usize,
    /// What matrix products take.
    #[serde(default)]
    pub precision: Precision,
    /// Peak learning rate; `None`: `blr * images_per_step / 256`.
    pub lr: Option<f64>,
    /// Base learning rate for 256 images; `None`: 1.5e-4 (official) from 384 wide on, 3e-3 below.
    pub blr: Option<f64>,
    /// Learning rate at the end.
    pub min_lr: f64,
    /// Warm-up; `None`: 40 epochs (official), or a twentieth of the run where that is less.
    pub warmup_epochs: Option<f64>,
    /// Constants of the update.
    pub adamw: AdamWOptions,
    /// What the student does not see.
    pub masks: MaskOptions,
    /// The loss terms.
    pub losses: LossOptions,
    /// Dropout rate, in student, decoder and teacher.
    pub dropout: f32,
    /// Echoes are the ground truth up to and with this epoch; `None`: 10 (official), or a twentieth of the run.
    pub echo_warmup_epochs: Option<u64>,
    /// Jittered spatial masking: the teacher sees a random square of the echo.
    pub jsm: bool,
    /// Output width of the projectors; `None`: 512 (official), or twice the model's width where that is less.
    pub projector_dim: Option<usize>,
    /// Teacher momentum at the start.
    pub ema: f64,
    /// Epochs over which it rises to 1 (official: 1600, whatever the run's length).
    pub ema_epochs: f64,
    /// Where the teacher starts.
    #[serde(default)]
    pub teacher_init: TeacherInit,
    /// Seed of everything.
    pub seed: u64,
    /// A checkpoint to start from.
    pub init: Option<PathBuf>,
    /// The epoch of the schedules to begin at, with the optimiser of `init`; 0: a run of its own.
    #[serde(default)]
    pub start_epoch: u64,
    /// Go on where an earlier run in `output_dir` stopped, if there is one.
    pub resume: bool,
    /// Steps between checkpoints.
    pub save_every: u64,
    /// Which of them stay.
    #[serde(default)]
    pub keep: Keep,
    /// Steps between lines of the log.
    pub print_freq: u64,
    /// What to look at meanwhile.
    #[serde(default)]
    pub watch: WatchOptions,
    /// Where to compute.
    pub device: Device,
}

fn one() -> usize {
    1
}

impl PretrainOptions {
    /// Official values, on the CPU.
    pub fn new(data: &Path, output_dir: &Path, model: ModelChoice, duration: Duration) -> Self {
        Self {
            data: data.to_path_buf(),
            output_dir: output_dir.to_path_buf(),
            model,
            duration,
            batch_size: 64,
            accum_iter: 1,
            devices: 1,
            precision: Precision::default(),
            lr: None,
            blr: None,
            min_lr: 0.0,
            warmup_epochs: None,
            adamw: AdamWOptions::default(),
            masks: MaskOptions::default(),
            losses: LossOptions::default(),
            dropout: 0.1,
            echo_warmup_epochs: None,
            jsm: true,
            projector_dim: None,
            ema: 0.996,
            ema_epochs: 1600.0,
            teacher_init: TeacherInit::default(),
            seed: 0,
            init: None,
            start_epoch: 0,
            resume: false,
            save_every: 1000,
            keep: Keep::default(),
            print_freq: 20,
            watch: WatchOptions::default(),
            device: Device::Cpu,
        }
    }

    /// Checks every field that has a range.
    ///
    /// # Errors
    /// A sentence naming the first that is out of it.
    pub fn validate(&self) -> Result<(), String> {
        let check = |ok: bool, name: &str, expected: &str, found: &dyn std::fmt::Display| match ok {
            true => Ok(()),
            false => Err(format!("--{name}: expected {expected}, found {found}")),
        };
        let masks = &self.masks;
        let ratio = |x: f64| (0.0..=1.0).contains(&x);
        let (name, value) = match self.duration {
            Duration::Epochs(epochs) => ("epochs", epochs),
            Duration::Steps(steps) => ("steps", steps as f64),
            Duration::Minutes(minutes) => ("minutes", minutes),
        };
        check(value > 0.0 && value.is_finite(), name, "a number above 0", &value)?;
        check(self.batch_size >= 2, "batch_size", "at least 2", &self.batch_size)?;
        check(self.accum_iter >= 1, "accum_iter", "at least 1", &self.accum_iter)?;
        check((1..=1024).contains(&self.devices), "devices", "1 to 1024", &self.devices)?;
        let timed = matches!(self.duration, Duration::Minutes(_));
        self.precision.expect_on(self.device)?;
        check(self.devices == 1 || !timed, "minutes", "steps or epochs, with several devices", &value)?;
        for (name, lr) in [("lr", self.lr), ("blr", self.blr), ("min_lr", Some(self.min_lr))] {
            let lr = lr.unwrap_or(0.0);
            check(lr >= 0.0 && lr.is_finite(), name, "0 or more", &lr)?;
        }
        check(ratio(masks.drop_ratio) && masks.drop_ratio < 1.0, "drop_ratio", "0 to below 1", &masks.drop_ratio)?;
        check(
            ratio(masks.mask_ratio_min) && masks.mask_ratio_min >= masks.drop_ratio && masks.mask_ratio_min > 0.0,
            "mask_ratio_min",
            "above 0, at least drop_ratio, at most 1",
            &masks.mask_ratio_min,
        )?;
        check(
            ratio(masks.mask_ratio_max) && masks.mask_ratio_max >= masks.mask_ratio_min,
            "mask_ratio_max",
            "mask_ratio_min to 1",
            &masks.mask_ratio_max,
        )?;
        let reached = self.lr.is_none_or(|lr| self.min_lr <= lr);
        check(reached, "min_lr", "at most lr, the peak", &self.min_lr)?;
        let warmup = self.warmup_epochs.unwrap_or(0.0);
        check(warmup >= 0.0 && warmup.is_finite(), "warmup_epochs", "0 or more", &warmup)?;
        let (lambda, uniformity) = (self.losses.lambda, self.losses.uniformity);
        check(lambda >= 0.0 && lambda.is_finite(), "lambda", "0 or more", &lambda)?;
        check(uniformity >= 0.0 && uniformity.is_finite(), "uniformity", "0 or more", &uniformity)?;
        let (decay, clip) = (self.adamw.weight_decay, self.adamw.grad_clip);
        check(decay >= 0.0 && decay.is_finite(), "weight_decay", "0 or more", &decay)?;
        check(clip >= 0.0 && clip.is_finite(), "grad_clip", "0 (no clipping) or more", &clip)?;
        check(masks.mask_ratio_std > 0.0, "mask_ratio_std", "above 0", &masks.mask_ratio_std)?;
        check(masks.mask_ratio_mu.is_finite(), "mask_ratio_mu", "a number", &masks.mask_ratio_mu)?;
        check((0.0..1.0).contains(&self.dropout), "dropout", "0 to below 1", &self.dropout)?;
        let smoothing = self.losses.label_smoothing;
        check((0.0..1.0).contains(&smoothing), "label_smoothing", "0 to below 1", &smoothing)?;
        let temperature = self.losses.temperature;
        check(temperature > 0.0 && temperature.is_finite(), "temperature", "above 0", &self.losses.temperature)?;
        check(self.losses.echo_topk >= 1, "echo_topk", "at least 1", &self.losses.echo_topk)?;
        check(self.projector_dim != Some(0), "projector_dim", "at least 1", &0)?;
        check(ratio(self.ema), "ema", "0 to 1", &self.ema)?;
        check(self.ema_epochs > 0.0, "ema_epochs", "above 0", &self.ema_epochs)?;
        check(self.save_every >= 1, "save_every", "at least 1", &self.save_every)?;
        check(self.keep.last >= 1, "keep_last", "at least 1", &self.keep.last)?;
        check(self.start_epoch == 0 || self.init.is_some(), "start_epoch", "init too", &"none")?;
        check(self.print_freq >= 1, "print_freq", "at least 1", &self.print_freq)?;
        let watch = &self.watch;
        let given = |every: u64, file: &Option<PathBuf>| every == 0 || file.is_some();
        check(given(watch.picture_every_epochs, &watch.tokenizer), "picture_every_epochs", "a tokenizer too", &"none")?;
        check(given(watch.knn_every_epochs, &watch.knn_data), "knn_every_epochs", "knn_data too", &"none")
    }

    /// Images of one update.
    pub fn images_per_step(&self) -> usize {
        self.batch_size * self.accum_iter * self.devices
    }

    /// Widths of the heads beside a model `width` wide: the official ones from 768 on, in proportion below.
    pub fn head_sizes(&self, width: usize) -> HeadSizes {
        HeadSizes {
            projector_hidden: (8 * width).min(4096),
            projector_dim: self.projector_dim.unwrap_or((2 * width).min(512)),
            predictor_hidden: (4 * width).min(2048),
            classifier_hidden: (4 * width).min(512),
        }
    }
}

/// A run's schedules, fixed before its first step: everything at step `s` is a pure function of it and `s`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Updates in all.
    pub steps: u64,
    /// Updates in one pass over the dataset (the last partial batch is left out).
    pub steps_per_epoch: u64,
    /// Peak learning rate.
    pub lr: f64,
    /// Learning rate at the end.
    pub min_lr: f64,
    /// Warm-up of the learning rate.
    pub warmup_epochs: f64,
    /// Echoes are the ground truth up to and with this epoch.
    pub echo_warmup_epochs: u64,
    /// Teacher momentum at the start, and the epochs over which it rises to 1.
    pub ema: (f64, f64),
    /// Where a run by minutes got another number of steps, as its speed became known; no other run has any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revisions: Vec<Revision>,
}

/// A change of a plan's number of steps: nothing changes before its step, and from there on the learning rate goes on
/// from where it is, so that it is at its end with the new last step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Revision {
    /// The first step that it holds for.
    pub step: u64,
    /// How far the learning rate has come there on its way down, 0 to 1.
    pub progress: f64,
    /// Steps in all before this change; those after it are [`Plan::steps`], or the next change's.
    pub steps_before: u64,
}

impl Plan {
    /// The schedules of `steps` updates.
    pub fn new(options: &PretrainOptions, model: &ModelConfig, steps: u64, steps_per_epoch: u64) -> Self {
        let epochs = steps as f64 / steps_per_epoch as f64;
        let blr = options.blr.unwrap_or(if model.embed_dim < 384 { 3e-3 } else { 1.5e-4 });
        Self {
            steps,
            steps_per_epoch,
            lr: options.lr.unwrap_or(blr * options.images_per_step() as f64 / 256.0),
            min_lr: options.min_lr,
            warmup_epochs: options.warmup_epochs.unwrap_or((epochs / 20.0).min(40.0)),
            echo_warmup_epochs: options.echo_warmup_epochs.unwrap_or(default_echo_warmup(epochs)),
            ema: (options.ema, options.ema_epochs),
            revisions: Vec::new(),
        }
    }

    /// Whether the number of steps can still be changed at step `step`: after the warm-up.
    pub fn can_be_revised(&self, step: u64) -> bool {
        step as f64 >= self.warmup_epochs * self.steps_per_epoch as f64
    }

    /// Gives the run `steps` steps in all, from step `step` on. Later changes, of a session that was killed after them
    /// and went on from an earlier checkpoint, are forgotten.
    pub fn revise(&mut self, step: u64, steps: u64) {
        let (schedule, progress) = self.at(step);
        let progress = progress.unwrap_or(schedule.progress(step as f64 / self.steps_per_epoch as f64));
        let (next, steps_before) = self.steps_at(step);
        self.revisions.truncate(next);
        self.revisions.push(Revision { step, progress, steps_before });
        self.steps = steps;
    }

    /// The number of the first change after step `step`, and how many steps the run is to have in all at that step.
    fn steps_at(&self, step: u64) -> (usize, u64) {
        let next = self.revisions.partition_point(|revision| revision.step <= step);
        (next, self.revisions.get(next).map_or(self.steps, |revision| revision.steps_before))
    }

    /// The schedule that holds for step `step`, and how far it has come there, where that was changed.
    fn at(&self, step: u64) -> (LearningRate, Option<f64>) {
        let (next, steps) = self.steps_at(step);
        let schedule = LearningRate {
            lr: self.lr,
            min_lr: self.min_lr,
            warmup_epochs: self.warmup_epochs,
            epochs: steps as f64 / self.steps_per_epoch as f64,
        };
        let last = next.checked_sub(1).map(|last| self.revisions[last]);
        let progress = last.map(|last| {
            let part = (step - last.step) as f64 / steps.saturating_sub(last.step).max(1) as f64;
            last.progress + (1.0 - last.progress) * part.min(1.0)
        });
        (schedule, progress)
    }

    /// The epoch that step `step` is in.
    pub fn epoch(&self, step: u64) -> u64 {
        step / self.steps_per_epoch
    }

    /// Learning rate of step `step`.
    pub fn learning_rate(&self, step: u64) -> f64 {
        match self.at(step) {
            (schedule, None) => schedule.at(step as f64 / self.steps_per_epoch as f64),
            (schedule, Some(progress)) => schedule.at_progress(progress),
        }
    }

    /// Teacher momentum of step `step`.
    pub fn momentum(&self, step: u64) -> f64 {
        schedule::teacher_momentum(self.ema.0, self.ema.1, self.epoch(step))
    }

    /// Whether the echoes of step `step` are drawn (and not the ground truth).
    pub fn draws_echoes(&self, step: u64, method: Method) -> bool {
        method == Method::Sorcen && self.epoch(step) > self.echo_warmup_epochs
    }

    /// How many of its steps draw echoes.
    pub fn echo_steps(&self, method: Method) -> u64 {
        match method {
            Method::Sorcen => echo_steps(self.steps, self.steps_per_epoch, self.echo_warmup_epochs),
            Method::Mage => 0,
        }
    }
}

/// The last epoch of echo warm-up where none is asked for: a twentieth of the run, at most the official code's.
pub(crate) fn default_echo_warmup(epochs: f64) -> u64 {
    (epochs / 20.0).min(10.0) as u64
}

/// Of `steps`, those after an echo warm-up of the epochs `0..=last`.
pub(crate) fn echo_steps(steps: u64, steps_per_epoch: u64, last: u64) -> u64 {
    steps.saturating_sub(last.saturating_add(1).saturating_mul(steps_per_epoch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revised_plan_goes_on_from_where_it_is_and_ends_at_its_end() {
        let options = PretrainOptions::new("data".as_ref(), "out".as_ref(), ModelChoice::Tiny, Duration::Minutes(4.0));
        let first = Plan::new(&options, &ModelConfig::tiny(8, 64), 400, 10);
        assert!(!first.can_be_revised(19) && first.can_be_revised(20), "a twentieth is warm-up");
        let mut plan = first.clone();
        for (step, steps) in [(60, 300), (100, 300), (180, 900), (700, 720)] {
            let before = plan.clone();
            plan.revise(step, steps);
            assert_eq!(plan.steps, steps);
            // To the bit as before up to that step, so that a run can go on from an earlier checkpoint.
            (0..step).for_each(|at| assert_eq!(plan.learning_rate(at), before.learning_rate(at), "{at}"));
            assert!((plan.learning_rate(step) - before.learning_rate(step)).abs() < 1e-12, "no jump");
        }
        let rates: Vec<f64> = (20..=720).map(|step| plan.learning_rate(step)).collect();
        assert!(rates.windows(2).all(|pair| pair[1] <= pair[0]), "it never rises");
        assert!(rates[0] > 0.999 * plan.lr && rates[700] == plan.min_lr);
        // Killed after the changes at 180 and 700, and gone on from step 120.
        let before = plan.clone();
        plan.revise(150, 500);
        assert_eq!((plan.revisions.len(), plan.revisions[2].step, plan.steps), (3, 150, 500));
        (0..150).for_each(|at| assert_eq!(plan.learning_rate(at), before.learning_rate(at), "{at}"));
        assert_eq!(plan.learning_rate(500), plan.min_lr);
        let read: Plan = serde_json::from_str(&serde_json::to_string(&plan).unwrap()).unwrap();
        assert_eq!(read, plan);
        let old = serde_json::to_string(&first).unwrap();
        assert!(!old.contains("revisions") && serde_json::from_str::<Plan>(&old).unwrap() == first);
    }

    #[test]
    fn echoes_are_counted_as_they_are_drawn() {
        let model = ModelConfig::tiny(8, 64);
        for (steps, steps_per_epoch, last) in
            [(0, 5, 0), (4, 5, 0), (5, 5, 0), (6, 5, 0), (40, 5, 2), (40, 5, u64::MAX)]
        {
            let mut options =
                PretrainOptions::new("data".as_ref(), "out".as_ref(), ModelChoice::Tiny, Duration::Steps(steps));
            options.echo_warmup_epochs = Some(last);
            let plan = Plan::new(&options, &model, steps, steps_per_epoch);
            for method in [Method::Sorcen, Method::Mage] {
                let drawn = (0..steps).filter(|step| plan.draws_echoes(*step, method)).count() as u64;
                assert_eq!(plan.echo_steps(method), drawn, "{steps} {steps_per_epoch} {last} {method:?}");
            }
        }
    }
}
