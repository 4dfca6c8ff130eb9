//! Pretraining: the loop around [`Pretraining::step`].

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::backend::Autodiff;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use sorcen_runtime::rng::{Rng, Stream};
use sorcen_runtime::ModelConfig;

use crate::checkpoint::{self, State};
use crate::config::{Duration, Plan, PretrainOptions};
use crate::data::{DataError, TokenDataset};
use crate::device::with_backend;
use crate::kernels::TrainBackend;
use crate::masking::Crop;
use crate::metrics::{Log, LogLine};
use crate::model::layers::Dropout;
use crate::optim::AdamW;
use crate::step::{Echo, Networks, Pretraining, StepInputs, TERMS};
use crate::teacher::Teacher;

/// Folder of the checkpoint in a run's folder.
pub const CHECKPOINT: &str = "checkpoint";
/// The log: JSON lines.
pub const LOG: &str = "log.txt";
/// Options, plan, model and versions, written before the first step.
pub const RUN: &str = "run.json";

/// Why a run cannot start or go on.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A file is missing, damaged or does not fit.
    #[error(transparent)]
    Data(#[from] DataError),
    /// An option is out of range.
    #[error("{0}")]
    Option(String),
    /// A loss is not a number any more; the last checkpoint is from before.
    #[error("step {step}: {term} loss: expected a finite number, found {found}; {hint}")]
    NotFinite {
        /// The step, from 0.
        step: u64,
        /// The first term that is not finite.
        term: &'static str,
        /// What it is.
        found: f32,
        /// What to try.
        hint: &'static str,
    },
}

/// How far a run is.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// Images seen in all, over earlier sessions too.
    pub images: u64,
    /// The newest line of the log, where this step wrote one.
    pub line: Option<LogLine>,
}

/// What a run did.
#[derive(Clone, Debug)]
pub struct PretrainReport {
    /// The checkpoint folder.
    pub checkpoint: PathBuf,
    /// `log.txt`.
    pub log: PathBuf,
    /// The model.
    pub model: ModelConfig,
    /// Steps done, those before a resume included.
    pub steps: u64,
    /// Steps planned.
    pub planned_steps: u64,
    /// Images seen.
    pub images: u64,
    /// Seconds of this session, from the first step on.
    pub seconds: f64,
    /// Images a second in this session.
    pub images_per_second: f64,
    /// The last line of the log.
    pub last: Option<LogLine>,
}

/// `run.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct RunFile {
    version: String,
    model: ModelConfig,
    plan: Plan,
    options: PretrainOptions,
    dataset_images: usize,
    dataset_tokenizer: Option<String>,
}

/// Trains. `progress` is called after every step and may break to stop early; a checkpoint is then written.
///
/// # Errors
/// [`TrainError`]: an option out of range, a dataset that does not fit the model, a damaged checkpoint to
/// resume from, a loss that is not finite, a full disk.
pub fn pretrain(
    options: &PretrainOptions,
    progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<PretrainReport, TrainError> {
    with_backend!(options.device, B => run::<Autodiff<B>>(options, progress))
}

fn run<B: TrainBackend>(
    options: &PretrainOptions,
    progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<PretrainReport, TrainError> {
    options.validate().map_err(TrainError::Option)?;
    let dataset = TokenDataset::open(&options.data)?;
    let model = options.model.config(dataset.grid(), dataset.codebook_size())?;
    check_fit(&model, &dataset, options)?;
    let out = &options.output_dir;
    std::fs::create_dir_all(out).map_err(DataError::io(out))?;

    let started = Instant::now();
    let mut training = new_run::<B>(options, &model, &dataset);
    let mut batches = Batches::new(&dataset, options);
    let earlier = if options.resume { checkpoint::find(&out.join(CHECKPOINT)) } else { None };
    let (plan, mut step) = match &earlier {
        Some(dir) => {
            let plan = resumed_plan(&out.join(RUN), options, &model)?;
            (plan, checkpoint::restore(dir, &mut training)?.step)
        }
        None => {
            if let Some(dir) = &options.init {
                checkpoint::initialise(dir, &mut training)?;
            }
            let plan = plan(options, &training, &mut batches, started);
            write_run_file(&out.join(RUN), options, &model, &plan, &dataset)?;
            (plan, 0)
        }
    };

    let log_path = out.join(LOG);
    let mut log = Log::open(&log_path, step)?;
    let mut meter = Meter::<B>::new();
    let (first_step, mut last) = (step, None);
    while step < plan.steps {
        let inputs = batches.inputs(&plan, step);
        let losses = training.step(&inputs, plan.momentum(step), plan.learning_rate(step));
        meter.add(step, losses);
        step += 1;

        // Reading losses waits for the device: not at every step, but before anything is saved.
        let due = step == plan.steps || step % options.save_every == 0;
        let mut line = None;
        if due || step % options.print_freq == 0 {
            line = Some(meter.line(&plan, options)?);
        }
        let images = step * options.batch_size as u64;
        let asked = progress(&Progress { step, steps: plan.steps, images, line: line.clone() }).is_break();
        let stop = asked || out_of_time(options, started);
        if stop && line.is_none() {
            line = Some(meter.line(&plan, options)?);
        }
        if let Some(line) = line {
            log.write(&line).map_err(DataError::io(&log_path))?;
            last = Some(line);
        }
        if stop || due {
            save(out, &training, step, options.seed)?;
        }
        if stop {
            break;
        }
    }
    let seconds = meter.seconds();
    let images = (step - first_step) as f64 * options.batch_size as f64;
    Ok(PretrainReport {
        checkpoint: out.join(CHECKPOINT),
        log: log_path,
        model,
        steps: step,
        planned_steps: plan.steps,
        images: step * options.batch_size as u64,
        seconds,
        images_per_second: images / seconds.max(1e-9),
        last,
    })
}

fn check_fit(model: &ModelConfig, dataset: &TokenDataset, options: &PretrainOptions) -> Result<(), TrainError> {
    let mismatch = |item: &str, expected: usize, found: usize| {
        let expected = format!("{expected}, the model's");
        Err(DataError::invalid(&options.data, item, expected, found).into())
    };
    if model.grid != dataset.grid() {
        return mismatch("grid", model.grid, dataset.grid());
    }
    if model.codebook_size != dataset.codebook_size() {
        return mismatch("codebook_size", model.codebook_size, dataset.codebook_size());
    }
    if dataset.len() < options.batch_size {
        let expected = format!("at least {}, one batch", options.batch_size);
        return Err(DataError::invalid(&options.data, "images", expected, dataset.len()).into());
    }
    Ok(())
}

fn new_run<B: TrainBackend>(options: &PretrainOptions, model: &ModelConfig, dataset: &TokenDataset) -> Pretraining<B> {
    let device = B::Device::default();
    let sizes = options.head_sizes(model.embed_dim);
    Pretraining {
        config: *model,
        options: options.losses,
        networks: Networks::new(model, &sizes, dataset.class_names().len(), options.seed, &device),
        teacher: Teacher::new(model, options.seed, &device),
        optimizer: AdamW::new(options.adamw),
        device,
    }
}

/// Fixes the number of steps. Minutes are turned into steps by timing a few on a copy of the run.
fn plan<B: TrainBackend>(
    options: &PretrainOptions,
    training: &Pretraining<B>,
    batches: &mut Batches<'_>,
    started: Instant,
) -> Plan {
    const TIMED: u64 = 6;
    let per_epoch = batches.per_epoch;
    let make = |steps: u64| Plan::new(options, &training.config, steps.max(1), per_epoch);
    match options.duration {
        Duration::Steps(steps) => make(steps),
        Duration::Epochs(epochs) => make((epochs * per_epoch as f64).round() as u64),
        Duration::Minutes(minutes) => {
            let trial = Plan { echo_warmup_epochs: 0, ..make(u64::MAX >> 16) };
            let mut copy = training.clone();
            let mut clock = Instant::now();
            for step in 0..=TIMED {
                // From the second epoch on, so that echoes are drawn as they mostly will be.
                let inputs = batches.inputs(&trial, per_epoch + step);
                let _ = copy.step(&inputs, 1.0, 0.0).into_data();
                if step == 0 {
                    clock = Instant::now(); // the first step warms up
                }
            }
            let a_step = clock.elapsed().as_secs_f64() / TIMED as f64;
            let left = minutes * 60.0 - started.elapsed().as_secs_f64();
            make((left / a_step) as u64)
        }
    }
}

/// Whether a run by minutes has used them up: the machine has become slower than when it was timed.
fn out_of_time(options: &PretrainOptions, started: Instant) -> bool {
    match options.duration {
        Duration::Minutes(minutes) => started.elapsed().as_secs_f64() > minutes * 60.0 * 1.1,
        _ => false,
    }
}

fn save<B: TrainBackend>(out: &Path, training: &Pretraining<B>, step: u64, seed: u64) -> Result<(), DataError> {
    let state = State { step, updates: training.optimizer.updates, seed };
    checkpoint::save(&out.join(CHECKPOINT), training, &state)
}

fn write_run_file(
    path: &Path,
    options: &PretrainOptions,
    model: &ModelConfig,
    plan: &Plan,
    dataset: &TokenDataset,
) -> Result<(), DataError> {
    let run = RunFile {
        version: env!("CARGO_PKG_VERSION").to_string(),
        model: *model,
        plan: *plan,
        options: options.clone(),
        dataset_images: dataset.len(),
        dataset_tokenizer: dataset.tokenizer().map(str::to_string),
    };
    checkpoint::write_json(path, &run)
}

/// The plan of the run to go on with; its options must be those of now, but for where and when things are written.
fn resumed_plan(path: &Path, options: &PretrainOptions, model: &ModelConfig) -> Result<Plan, DataError> {
    let run: RunFile = checkpoint::read_json(path)?;
    let comparable = |options: &PretrainOptions| PretrainOptions {
        data: PathBuf::new(),
        output_dir: PathBuf::new(),
        model: crate::config::ModelChoice::Micro, // compared as sizes
        init: None,
        resume: true,
        save_every: 1,
        print_freq: 1,
        device: Default::default(),
        ..options.clone()
    };
    if run.model != *model {
        let (expected, found) = (format!("{:?}, as begun", run.model), format!("{model:?}"));
        return Err(DataError::invalid(path, "model", expected, found));
    }
    let fields = |options: &PretrainOptions| match serde_json::to_value(comparable(options)) {
        Ok(serde_json::Value::Object(fields)) => fields,
        _ => Default::default(),
    };
    let now = fields(options);
    for (name, expected) in fields(&run.options) {
        let found = now.get(&name).cloned().unwrap_or_default();
        if expected != found {
            return Err(DataError::invalid(path, name, format!("{expected}, as the run was begun with"), found));
        }
    }
    Ok(run.plan)
}

/// The batches of a run: a pure function of (dataset, seed, step).
struct Batches<'a> {
    dataset: &'a TokenDataset,
    options: &'a PretrainOptions,
    per_epoch: u64,
    /// An epoch and its order.
    order: (u64, Vec<u32>),
}

impl<'a> Batches<'a> {
    fn new(dataset: &'a TokenDataset, options: &'a PretrainOptions) -> Self {
        let per_epoch = (dataset.len() / options.batch_size) as u64;
        Self { dataset, options, per_epoch, order: (u64::MAX, Vec::new()) }
    }

    /// Everything that step `step` is given.
    fn inputs(&mut self, plan: &Plan, step: u64) -> StepInputs {
        let PretrainOptions { batch_size, seed, jsm, dropout, masks, losses, .. } = *self.options;
        let (tokens, grid) = (self.dataset.tokens(), self.dataset.grid());
        let mut ids = vec![0; batch_size * tokens];
        let mut labels = Vec::with_capacity(batch_size);
        for (&index, ids) in self.images(step).iter().zip(ids.chunks_exact_mut(tokens)) {
            self.dataset.ids(index as usize, ids);
            labels.push(self.dataset.label(index as usize));
        }
        StepInputs {
            ids,
            labels,
            masks: masks.draw(batch_size, tokens, seed, step),
            echo: match plan.draws_echoes(step, losses.method) {
                true => Echo::Sampled(Rng::new(seed, Stream::Echo, step)),
                false => Echo::GroundTruth,
            },
            crop: if jsm { Crop::draw(batch_size, grid, seed, step) } else { Crop::whole(batch_size, grid) },
            dropout: Dropout::new(dropout, seed, step),
        }
    }

    /// The images of step `step`: a new order each epoch.
    fn images(&mut self, step: u64) -> Vec<u32> {
        let (epoch, batch) = (step / self.per_epoch, (step % self.per_epoch) as usize);
        if self.order.0 != epoch {
            let rng = Rng::new(self.options.seed, Stream::Shuffle, epoch);
            let mut order: Vec<u32> = (0..self.dataset.len() as u32).collect();
            order.sort_by_cached_key(|&index| rng.bits(index.into()));
            self.order = (epoch, order);
        }
        let size = self.options.batch_size;
        self.order.1[batch * size..(batch + 1) * size].to_vec()
    }
}

/// Collects losses on the device, and reads them together.
struct Meter<B: TrainBackend> {
    losses: Vec<(u64, Tensor<B::InnerBackend, 1>)>,
    started: Instant,
    since: Instant,
}

impl<B: TrainBackend> Meter<B> {
    fn new() -> Self {
        Self { losses: Vec::new(), started: Instant::now(), since: Instant::now() }
    }

    fn add(&mut self, step: u64, losses: Tensor<B::InnerBackend, 1>) {
        self.losses.push((step, losses));
    }

    fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// The means of the steps since the last line (at least one).
    fn line(&mut self, plan: &Plan, options: &PretrainOptions) -> Result<LogLine, TrainError> {
        let count = self.losses.len().max(1);
        let mut mean = [0.0; TERMS.len()];
        let mut last = 0;
        for (step, losses) in self.losses.drain(..) {
            let terms = losses.into_data().convert::<f32>().to_vec::<f32>().unwrap_or_default();
            for ((mean, term), name) in mean.iter_mut().zip(&terms).zip(TERMS) {
                if !term.is_finite() {
                    let hint = "try a lower --lr or a longer --warmup_epochs";
                    return Err(TrainError::NotFinite { step, term: name, found: *term, hint });
                }
                *mean += f64::from(*term) / count as f64;
            }
            last = step;
        }
        let seconds = self.since.elapsed().as_secs_f64();
        self.since = Instant::now();
        let [reconstruction, uniformity, contrast, classifier, total] = mean;
        Ok(LogLine {
            step: last + 1,
            epoch: (last + 1) as f64 / plan.steps_per_epoch as f64,
            train_loss: total,
            train_rec_loss: reconstruction + uniformity,
            train_uniformity_loss: uniformity,
            train_nn_loss: contrast * f64::from(options.losses.lambda),
            train_class_loss: classifier,
            train_lr: plan.learning_rate(last),
            img_per_s: count as f64 * options.batch_size as f64 / seconds.max(1e-9),
        })
    }
}
