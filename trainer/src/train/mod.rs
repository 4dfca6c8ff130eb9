//! Pretraining: the loop around [`Pretraining::step`].

mod batches;
mod meter;
mod notes;
mod others;
mod pace;
mod record;
mod watch;

use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use sorcen_runtime::ModelConfig;

use crate::checkpoint::{self, State};
use crate::clock::Clock;
use crate::config::{Duration, Plan, PretrainOptions};
use crate::data::{DataError, TokenDataset};
use crate::device::with_backend;
use crate::files::{claim, expect_room};
use crate::kernels::TrainBackend;
use crate::metrics::tensorboard::Events;
use crate::metrics::{Log, LogLine};
use crate::optim::AdamW;
use crate::replicas::Peers;
use crate::step::Pretraining;
use crate::teacher::TeacherInit;
use crate::tokenizer::TokenizerError;
pub use batches::Batches;
pub(crate) use meter::now_s;
use meter::Meter;
use others::Others;
use pace::Pace;
use watch::Watch;
pub use watch::PICTURES;

/// Folder of the checkpoint in a run's folder.
pub const CHECKPOINT: &str = "checkpoint";
/// The log: JSON lines.
pub const LOG: &str = "log.txt";
/// The same numbers for TensorBoard.
pub const TENSORBOARD: &str = "tensorboard";
/// Options, plan, model, data and versions, written before the first step.
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
    /// A loss, or the gradient, is not a number any more; the last checkpoint is from before.
    #[error("step {step}: {term}: expected a finite number, found {found}; {hint}")]
    NotFinite {
        /// The step, from 0.
        step: u64,
        /// The first of [`REPORT`](crate::step::REPORT) that is not finite.
        term: &'static str,
        /// What it is.
        found: f32,
        /// What to try.
        hint: &'static str,
    },
    /// Replicas that should be the same are not: what each computes of the same numbers has become different.
    #[error(
        "step {step}: the weights of replica{} {} are no longer those of replica 0; nothing is saved of this step: the \
         same command with --resume auto goes on from the last checkpoint, in which they were the same",
        if apart.len() == 1 { "" } else { "s" },
        apart.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
    )]
    Drift {
        /// Steps done.
        step: u64,
        /// Their ranks.
        apart: Vec<usize>,
    },
    /// The disk has too little room for the checkpoints.
    #[error(
        "{}: {reason}, for {count} checkpoint{} of {:.3} GB: those that are to stay (--keep_last, --keep_every), and \
         the one being written",
        folder.display(), if *count == 1 { "" } else { "s" }, *bytes as f64 / 1e9
    )]
    Room {
        /// Where they go.
        folder: PathBuf,
        /// What is needed and what is free.
        reason: std::io::Error,
        /// How many more than now lie there at once.
        count: u64,
        /// Size of one.
        bytes: u64,
    },
    /// A picture cannot be painted.
    #[error("picture: {0}")]
    Paint(#[from] TokenizerError),
    /// A picture or a k-NN accuracy could not be made.
    #[error("{what}: {error}")]
    Watch {
        /// Which.
        what: &'static str,
        /// Why.
        error: sorcen_export::Error,
    },
}

/// Steps after which replicas are compared, besides before each checkpoint.
const COMPARE_EVERY: u64 = 100;

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
    /// Before the first step: what a person should know of how the run begins, and what was asked for and will not come
    /// in it, a sentence each. Else empty.
    pub notes: Vec<String>,
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
    /// Those of them that draw echoes: all after the echo warm-up.
    pub echo_steps: u64,
    /// Images seen.
    pub images: u64,
    /// Seconds of this session, from the first step on.
    pub seconds: f64,
    /// Images a second in this session.
    pub images_per_second: f64,
    /// The last line of the log.
    pub last: Option<LogLine>,
}

/// Trains. `progress` is called after every step and may break to stop early; a checkpoint is then written. Where there
/// are notes, it is called with them before the first step; whether that breaks is not looked at.
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
    options.device.expect(options.devices).map_err(TrainError::Option)?;
    let out = &options.output_dir;
    std::fs::create_dir_all(out).map_err(DataError::io(out))?;
    let _mine = claim(out).map_err(DataError::io(out))?;

    let started = Instant::now();
    let earlier = if options.resume { checkpoint::find(&out.join(CHECKPOINT)) } else { None };
    let mut notes = Vec::new();
    let earlier = match earlier {
        Some(dir) => {
            let (plan, note) = record::resumed_plan(&out.join(RUN), options, &model, &dataset)?;
            notes.extend(note);
            Some((dir, plan))
        }
        None => None,
    };
    let earlier = earlier.as_ref().map(|(dir, plan)| (dir.as_path(), plan));
    let start = Start { options, model: &model, dataset: &dataset, earlier };
    let mut places = Peers::of_run(options.devices).into_iter();
    let mine = places.next().unwrap_or_default();
    thread::scope(|scope| {
        let _here = mine.presence();
        let others = Others::begin::<B>(scope, &start, places)?;
        train::<B>(&start, mine, &others, started, notes, progress)
    })
}

/// What every replica of a run starts from.
#[derive(Clone, Copy)]
struct Start<'a> {
    options: &'a PretrainOptions,
    model: &'a ModelConfig,
    dataset: &'a TokenDataset,
    /// The checkpoint to go on from, and the plan of its run.
    earlier: Option<(&'a Path, &'a Plan)>,
}

impl Start<'_> {
    /// A replica, the steps that its checkpoint has behind it, and a note on what was taken of that.
    fn replica<B: TrainBackend>(&self, peers: Peers) -> Result<(Pretraining<B>, u64, Option<String>), TrainError> {
        let mut training = new_run::<B>(self.options, self.model, self.dataset, peers);
        let (step, note) = match (self.earlier, &self.options.init) {
            (Some((dir, _)), _) => {
                let (state, note) = checkpoint::restore(dir, &mut training)?;
                (state.step, note)
            }
            (None, Some(dir)) if self.options.start_epoch > 0 => (0, checkpoint::go_on(dir, &mut training)?),
            (None, Some(dir)) => (0, Some(checkpoint::initialise(dir, &mut training)?)),
            (None, None) => (0, None),
        };
        Ok((training, step, note))
    }
}

/// The run as its first replica sees it, which writes everything.
fn train<B: TrainBackend>(
    start: &Start<'_>,
    peers: Peers,
    others: &Others,
    started: Instant,
    mut notes: Vec<String>,
    progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<PretrainReport, TrainError> {
    let Start { options, model, dataset, earlier } = *start;
    let out = &options.output_dir;
    let mut batches = Batches::new(dataset, options, peers.rank());
    let watch = Watch::open(options, model, dataset)?;
    let (mut training, behind, note) = start.replica::<B>(peers)?;
    let (mut plan, mut step) = match earlier {
        Some((_, plan)) => (plan.clone(), behind),
        None => {
            let plan = plan(options, &training, &mut batches, started);
            let first = options.start_epoch.saturating_mul(plan.steps_per_epoch);
            if first >= plan.steps {
                let (epoch, steps) = (options.start_epoch, plan.steps);
                let message = format!("--start_epoch: expected one within the run of {steps} steps, found {epoch}");
                return Err(TrainError::Option(message));
            }
            (plan, first)
        }
    };
    expect_room_for_checkpoints(options, &training, step..plan.steps)?;
    if earlier.is_none() {
        record::write(&out.join(RUN), options, model, &plan, dataset)?;
    }

    let log_path = out.join(LOG);
    let (mut log, lines) = Log::open(&log_path, step)?;
    let events_path = out.join(TENSORBOARD);
    let mut events = Events::create(&events_path, &lines, now_s())?;
    notes.extend(note);
    notes.extend(notes::notes(options, &plan, step..plan.steps));
    if !notes.is_empty() {
        let images = step * options.images_per_step() as u64;
        let _ = progress(&Progress { step, steps: plan.steps, images, line: None, notes });
    }
    let mut meter = Meter::<B>::new();
    let (first_step, mut last) = (step, None);
    let mut pace = Pace::new(options, started, spent_s(&lines, options, &plan), step);
    while step < plan.steps {
        others.step(&plan, step);
        let inputs = batches.of_step(&plan, step);
        let report = training.step(&inputs, plan.momentum(step), plan.learning_rate(step), &mut Clock::off());
        meter.add(step, report);
        step += 1;
        if let Some(pace) = pace.as_mut().filter(|_| plan.can_be_revised(step)) {
            let wait = || drop(<B as Backend>::sync(&training.device));
            if let Some(steps) = pace.steps(step, wait).filter(|&steps| steps != plan.steps) {
                plan.revise(step, steps);
                record::revise(&out.join(RUN), &plan)?;
            }
        }

        // Reading losses waits for the device: not at every step, but before anything is saved.
        let save = step == plan.steps || step % options.save_every == 0;
        let look = watch.is_due(&plan, step);
        let mut line = None;
        if save || look || step % options.print_freq == 0 {
            line = Some(meter.line(&plan, options)?);
        }
        if let (Some(line), true) = (&mut line, look) {
            line.knn_accuracy = watch.look(&training, &inputs[0], &plan, step)?;
            meter.restart(); // looking is no training time
        }
        let images = step * options.images_per_step() as u64;
        let told = Progress { step, steps: plan.steps, images, line: line.clone(), notes: Vec::new() };
        let stop = progress(&told).is_break();
        if stop && line.is_none() {
            line = Some(meter.line(&plan, options)?);
        }
        if let Some(line) = line {
            log.write(&line).map_err(DataError::io(&log_path))?;
            events.write(&line).map_err(DataError::io(&events_path))?;
            last = Some(line);
        }
        if stop || save || step % COMPARE_EVERY == 0 {
            others.agree_with(&training, step)?;
        }
        if stop || save {
            let state =
                State { step, updates: training.optimizer.updates, epochs: plan.epoch(step), seed: options.seed };
            checkpoint::save(&out.join(CHECKPOINT), &training, &state, &options.keep)?;
        }
        if stop {
            break;
        }
    }
    let seconds = meter.seconds();
    let images = (step - first_step) as f64 * options.images_per_step() as f64;
    Ok(PretrainReport {
        checkpoint: out.join(CHECKPOINT),
        log: log_path,
        model: *model,
        steps: step,
        planned_steps: plan.steps,
        echo_steps: plan.echo_steps(options.losses.method),
        images: step * options.images_per_step() as u64,
        seconds,
        images_per_second: images / seconds.max(1e-9),
        last,
    })
}

/// Asked before the first step: a full disk would otherwise show after hours.
fn expect_room_for_checkpoints<B: TrainBackend>(
    options: &PretrainOptions,
    training: &Pretraining<B>,
    steps: Range<u64>,
) -> Result<(), TrainError> {
    let folder = &options.output_dir;
    let count = checkpoint::still_to_come(&folder.join(CHECKPOINT), &options.keep, steps, options.save_every)?;
    let bytes = checkpoint::bytes(training);
    expect_room(folder, count.saturating_mul(bytes)).map_err(|reason| TrainError::Room {
        folder: folder.clone(),
        reason,
        count,
        bytes,
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
    if dataset.len() < options.images_per_step() {
        let expected = format!("at least {}, those of one step", options.images_per_step());
        return Err(DataError::invalid(&options.data, "images", expected, dataset.len()).into());
    }
    Ok(())
}

fn new_run<B: TrainBackend>(
    options: &PretrainOptions,
    model: &ModelConfig,
    dataset: &TokenDataset,
    peers: Peers,
) -> Pretraining<B> {
    let device = peers.device::<B>();
    let (sizes, classes) = (options.head_sizes(model.embed_dim), dataset.class_names().len());
    let mut run = Pretraining::new(model, options.losses, &sizes, classes, options.seed, &device);
    run.optimizer = AdamW::new(options.adamw);
    (run.precision, run.peers) = (options.precision, peers);
    if options.teacher_init == TeacherInit::Student {
        run.follow(0.0);
    }
    run
}

/// Fixes the number of steps. Minutes are turned into steps by timing a few on a copy of the run.
fn plan<B: TrainBackend>(
    options: &PretrainOptions,
    training: &Pretraining<B>,
    batches: &mut Batches<'_>,
    started: Instant,
) -> Plan {
    const TIMED: u64 = 6;
    let per_epoch = batches.steps_per_epoch();
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
                let inputs = batches.of_step(&trial, per_epoch + step);
                let _ = copy.step(&inputs, 1.0, 0.0, &mut Clock::off()).into_data();
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

/// Seconds that earlier sessions of a run have trained, by its log.
fn spent_s(lines: &[LogLine], options: &PretrainOptions, plan: &Plan) -> f64 {
    let mut before = options.start_epoch.saturating_mul(plan.steps_per_epoch);
    let mut seconds = 0.0;
    for line in lines {
        let images = line.step.saturating_sub(before) as f64 * options.images_per_step() as f64;
        seconds += images / line.img_per_s.max(1e-9);
        before = line.step;
    }
    seconds
}
