//! Training of tokenizers that are networks: a loop around [`Training::step`].
//!
//! The pixels' error is differentiated through the nearest code as if it were not there (straight-through); the
//! encoder is drawn to its codes (commitment), the codes follow as running means ([`codebook`]). No perceptual or
//! adversarial loss: those need a network trained on other images, or a second one against which this one plays.

pub mod codebook;
mod options;
mod state;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::backend::Autodiff;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use sorcen_runtime::rng::{Rng, Stream};

use super::learned::{as_grid, as_rows, host, host_ids, nearest_code, upload_pixels};
use super::{kmeans, psnr_db, vit, vqgan, Autoencoder, Learned, TrainOptions, TrainProgress};
use crate::checkpoint;
use crate::data::DataError;
use crate::device::with_backend;
use crate::files::claim;
use crate::kernels::TrainBackend;
use crate::metrics::{Line, Log};
use crate::optim::{AdamW, AdamWOptions};
use crate::picture::save_png;
use crate::schedule::LearningRate;
use crate::train::{now_s, TrainError, CHECKPOINT, LOG, PICTURES, RUN};
use codebook::{usage, Codebook, Running};
pub use options::{Loss, Options, Sizes, Start};

/// Rounds of the k-means that a network starts from, and images for it: it is to be good, not the best.
const START_ROUNDS: u64 = 15;
const START_IMAGES: usize = 2000;

/// The tokenizer in a checkpoint's folder.
pub const TOKENIZER: &str = "tokenizer.safetensors";

/// Images to train on, in memory.
pub struct Images<'a> {
    /// Bytes `[side, side, 3]` each.
    pub pixels: &'a [Vec<u8>],
    /// Pixels a side.
    pub side: usize,
    /// SHA-256 of what they are: a run goes on with the same ones only.
    pub digest: String,
}

/// One line of `log.txt`: means over the steps since the line before.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LearnLine {
    /// Steps done.
    pub step: u64,
    /// What is differentiated.
    pub train_loss: f64,
    /// Mean absolute error of a channel, 0 to 1.
    pub l1: f64,
    /// Peak signal-to-noise ratio of the images trained on, in dB.
    pub psnr_db: f64,
    /// Mean squared distance of a latent number to its code's.
    pub commitment: f64,
    /// Codes used since the line before.
    pub codes_used: usize,
    /// Equally frequent codes that would say as much.
    pub perplexity: f64,
    /// Codes that were dead and started again.
    pub restarted: usize,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Global norm of the gradients, before clipping.
    pub grad_norm: f64,
    /// Images a second.
    pub img_per_s: f64,
    /// When the line was written, in seconds since 1970.
    pub time_s: f64,
}

impl Line for LearnLine {
    fn step(&self) -> u64 {
        self.step
    }
}

/// How far a run is.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// The round of k-means and rounds in all, before the first step.
    pub round: Option<(u64, u64)>,
    /// The newest line of the log, where this step wrote one.
    pub line: Option<LearnLine>,
}

/// What a run did.
#[derive(Clone, Debug)]
pub struct Report {
    /// The tokenizer's file.
    pub tokenizer: PathBuf,
    /// Its fingerprint.
    pub fingerprint: String,
    /// Steps done, those before a resume included.
    pub steps: u64,
    /// The last line of the log.
    pub last: Option<LearnLine>,
}

/// Trains. `progress` is called after every step and may break to stop early; a checkpoint is then written.
///
/// # Errors
/// [`TrainError`]: an option out of range, images that do not fit, a damaged checkpoint to resume from, a loss that
/// is not finite, a full disk.
pub fn learn(
    images: &Images,
    options: &Options,
    progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<Report, TrainError> {
    options.validate(images).map_err(TrainError::Option)?;
    with_backend!(options.device, B => match &options.sizes {
        Sizes::Vit(config) => {
            let net = vit::Net::<Autodiff<B>>::new(config, &Default::default());
            let save = |net: &vit::Net<Autodiff<B>>, path: &Path| {
                let file = net.to_file().map_err(sorcen_export::Error::from)?;
                file.save(path)?;
                Ok(file.fingerprint())
            };
            let start = |net: &mut vit::Net<Autodiff<B>>, round: &mut dyn FnMut(u64)| match options.start {
                Start::Random => Ok(None),
                Start::Patches => {
                    let patches = patches_of(images, config.codes, config.patch, options.seed, round)?;
                    vit::start_as_patches(net, &patches, &Default::default()).map(Some)
                }
            };
            Run { images, options, start, save }.run(net, progress)
        }
        Sizes::Vqgan(config) => {
            let net = vqgan::Net::<Autodiff<B>>::new(config, &Default::default());
            let save = |net: &vqgan::Net<Autodiff<B>>, path: &Path| {
                net.save(path)?;
                Ok(net.fingerprint())
            };
            let start = |_: &mut vqgan::Net<Autodiff<B>>, _: &mut dyn FnMut(u64)| Ok(None);
            Run { images, options, start, save }.run(net, progress)
        }
    })
}

/// A codebook of patches of the images; `round` is told each round.
fn patches_of(
    images: &Images,
    codes: usize,
    patch: usize,
    seed: u64,
    round: &mut dyn FnMut(u64),
) -> Result<super::PatchTokenizer, String> {
    let step = images.pixels.len().div_ceil(START_IMAGES);
    let some: Vec<_> = images.pixels.iter().step_by(step).cloned().collect();
    let options = TrainOptions { codes, patch, iterations: START_ROUNDS, seed };
    kmeans::train(&some, images.side, &options, |progress| {
        if let TrainProgress::Round(number, _) = progress {
            round(number);
        }
    })
    .map_err(|error| format!("--start patches: {error}; --start random goes without"))
}

/// Everything that a step changes.
pub(super) struct Training<B: TrainBackend, N> {
    net: N,
    codebook: Codebook,
    optimizer: AdamW<B>,
    device: B::Device,
}

/// What a step reports.
struct StepReport {
    /// Loss, L1, mean squared error, commitment, gradient norm: [`NAMES`].
    numbers: [f32; 5],
    ids: Vec<usize>,
    restarted: usize,
}

const NAMES: [&str; 5] = ["total loss", "L1 loss", "squared error", "commitment loss", "gradient norm"];

impl<B: TrainBackend, N: Autoencoder<B>> Training<B, N> {
    fn new(mut net: N, options: &Options) -> Self {
        let device = B::Device::default();
        net.initialise("", options.seed, &device);
        let &[codes, length] = net.codebook().dims() else { unreachable!("a codebook is [K, z]") };
        let adamw =
            AdamWOptions { beta2: 0.99, weight_decay: options.weight_decay, grad_clip: 1.0, ..Default::default() };
        Self { net, codebook: Codebook::new(codes, length), optimizer: AdamW::new(adamw), device }
    }

    /// One update on `images` `[B, 3, H, W]`.
    fn step(&mut self, images: Tensor<B, 4>, options: &Options, step: u64, lr: f64) -> StepReport {
        let rng = Rng::new(options.seed, Stream::Tokenizer, step);
        let running = Running { decay: options.ema_decay, dead_below: options.dead_below };
        let latent = self.net.latent(images.clone());
        let [batch, _, height, width] = latent.dims();
        let z = as_rows(latent); // [N, z]
        let rows = host(z.clone().inner());
        if !self.codebook.is_started() {
            self.codebook.start(&rows, running, &rng);
            self.show_codes();
        }
        let codes = self.net.codebook().get().inner();
        let ids = nearest_code(z.clone().inner(), codes.clone());
        let nearest = Tensor::from_inner(codes.select(0, ids.clone()));
        let commitment = (z.clone() - nearest.clone()).square().mean();
        let quantised = z.clone() + (nearest - z).detach();
        let difference = self.net.decode(as_grid(quantised, [batch, height, width])) - images;
        let (l1, l2) = (difference.clone().abs().mean(), difference.square().mean());
        let pixels = match options.loss {
            Loss::L1 => l1.clone(),
            Loss::L2 => l2.clone(),
        };
        let total = pixels + commitment.clone() * options.commitment;
        let terms = [&total, &l1, &l2, &commitment].map(|term| term.clone().inner());
        let norm = self.optimizer.update(&mut self.net, &mut total.backward(), lr);
        let numbers = host(Tensor::cat(terms.into_iter().chain([norm]).collect(), 0));

        let ids: Vec<usize> = host_ids(ids).into_iter().map(|id| id as usize).collect();
        let restarted = self.codebook.update(&rows, &ids, running, &rng);
        self.show_codes();
        StepReport { numbers: std::array::from_fn(|i| numbers.get(i).copied().unwrap_or(f32::NAN)), ids, restarted }
    }

    /// Starts from codes that are known, `vectors` being quantised in a step.
    fn start_at(&mut self, codes: &[f32], vectors: usize) {
        self.codebook.start_at(codes, vectors);
        self.show_codes();
    }

    /// Hands the codes to the network.
    fn show_codes(&mut self) {
        let codes = self.codebook.codes.clone();
        self.net.codebook_mut().set_from(codes, &self.device);
    }
}

/// What does not change in a run. `start` prepares an initialised network and returns its codes, if it knows them;
/// `save` writes the tokenizer's file and returns its fingerprint.
struct Run<'a, I, S> {
    images: &'a Images<'a>,
    options: &'a Options,
    start: I,
    save: S,
}

impl<I, S> Run<'_, I, S> {
    fn run<B, N>(&self, net: N, progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>) -> Result<Report, TrainError>
    where
        B: TrainBackend,
        N: Autoencoder<B>,
        I: Fn(&mut N, &mut dyn FnMut(u64)) -> Result<Option<Vec<f32>>, String>,
        S: Fn(&N, &Path) -> Result<String, DataError>,
    {
        let (options, out) = (self.options, &self.options.out);
        std::fs::create_dir_all(out).map_err(DataError::io(out))?;
        let _mine = claim(out).map_err(DataError::io(out))?;
        let mut training = Training::<B, N>::new(net, options);
        let checkpoint_dir = out.join(CHECKPOINT);
        let earlier = if options.resume { checkpoint::find(&checkpoint_dir) } else { None };
        let mut step = match &earlier {
            Some(dir) => {
                options::check_same(&out.join(RUN), options, self.images)?;
                state::restore(dir, &mut training)?
            }
            None => {
                options::write(&out.join(RUN), options, self.images)?;
                let round = &mut |round| {
                    let progress_of =
                        Progress { step: 0, steps: options.steps, round: Some((round, START_ROUNDS)), line: None };
                    let _ = progress(&progress_of); // what is asked for now, is asked for after the first step
                };
                if let Some(codes) = (self.start)(&mut training.net, round).map_err(TrainError::Option)? {
                    training.start_at(&codes, options.batch_size * self.tokens(&training.net));
                }
                0
            }
        };
        let log_path = out.join(LOG);
        let (mut log, lines) = Log::open::<LearnLine>(&log_path, step)?;
        let mut last = lines.last().cloned();
        let schedule = options.schedule();
        let mut order = (u64::MAX, Vec::new());
        let mut meter = Meter::new(training.codebook.counts.len());
        while step < options.steps {
            let lr = schedule.at(step as f64);
            let chosen = self.batch(step, &mut order);
            let pixels = chosen.iter().map(|&image| self.images.pixels[image].as_slice());
            let images = upload_pixels(pixels, self.images.side, &training.device);
            let report = training.step(images, options, step, lr);
            meter.add(step, &report, lr)?;
            step += 1;

            let due = |every: u64| every > 0 && step.is_multiple_of(every);
            if due(options.picture_every) || step == options.steps {
                let path = out.join(PICTURES).join(format!("step_{step:06}.png"));
                self.sheet(&training, &path)?;
            }
            let save = due(options.save_every) || step == options.steps;
            let mut line = (save || due(options.print_freq)).then(|| meter.line(step, options.batch_size));
            let stop = progress(&Progress { step, steps: options.steps, round: None, line: line.clone() }).is_break();
            if stop && line.is_none() {
                line = Some(meter.line(step, options.batch_size));
            }
            if let Some(line) = line {
                log.write(&line).map_err(DataError::io(&log_path))?;
                last = Some(line);
            }
            if save || stop {
                checkpoint::kept::replace(&checkpoint_dir, &Default::default(), |new| {
                    (self.save)(&training.net, &new.join(TOKENIZER))?;
                    state::write(new, options, &training, (step, step / self.steps_per_epoch()))
                })?;
            }
            if stop {
                break;
            }
        }
        let tokenizer = checkpoint_dir.join(TOKENIZER);
        let fingerprint = super::open(&tokenizer, Default::default())?.fingerprint();
        Ok(Report { tokenizer, fingerprint, steps: step, last })
    }

    /// Tokens of an image.
    fn tokens<B: TrainBackend, N: Autoencoder<B>>(&self, net: &N) -> usize {
        (self.images.side / net.stride()).pow(2)
    }

    fn steps_per_epoch(&self) -> u64 {
        (self.images.pixels.len() / self.options.batch_size) as u64
    }

    /// The images of a step: a new order each epoch, what is left over at its end is left out.
    fn batch<'o>(&self, step: u64, order: &'o mut (u64, Vec<usize>)) -> &'o [usize] {
        let size = self.options.batch_size;
        let per_epoch = self.steps_per_epoch();
        let (epoch, batch) = (step / per_epoch, (step % per_epoch) as usize);
        if order.0 != epoch {
            let rng = Rng::new(self.options.seed, Stream::Shuffle, epoch);
            let mut images: Vec<usize> = (0..self.images.pixels.len()).collect();
            images.sort_by_cached_key(|&image| rng.bits(image as u64));
            *order = (epoch, images);
        }
        &order.1[batch * size..(batch + 1) * size]
    }

    /// Some images, each row of them above what the tokens keep of it.
    fn sheet<B: TrainBackend, N: Autoencoder<B>>(
        &self,
        training: &Training<B, N>,
        path: &Path,
    ) -> Result<(), TrainError> {
        let tokenizer = Learned::new(training.net.clone(), String::new(), 8, training.device.clone());
        let sheet = super::sheet(&tokenizer, self.images.pixels, self.images.side, 2)?;
        Ok(save_png(&sheet, path).map_err(DataError::from)?)
    }
}

/// Collects what steps report.
struct Meter {
    sums: [f64; NAMES.len()],
    steps: usize,
    uses: Vec<u64>,
    restarted: usize,
    lr: f64,
    since: Instant,
}

impl Meter {
    fn new(codes: usize) -> Self {
        Self { sums: [0.0; NAMES.len()], steps: 0, uses: vec![0; codes], restarted: 0, lr: 0.0, since: Instant::now() }
    }

    fn add(&mut self, step: u64, report: &StepReport, lr: f64) -> Result<(), TrainError> {
        for ((sum, number), term) in self.sums.iter_mut().zip(report.numbers).zip(NAMES) {
            if !number.is_finite() {
                let hint = "try a lower --lr or a longer --warmup_steps";
                return Err(TrainError::NotFinite { step, term, found: number, hint });
            }
            *sum += f64::from(number);
        }
        report.ids.iter().for_each(|&id| self.uses[id] += 1);
        (self.steps, self.restarted, self.lr) = (self.steps + 1, self.restarted + report.restarted, lr);
        Ok(())
    }

    fn line(&mut self, step: u64, batch_size: usize) -> LearnLine {
        let [train_loss, l1, l2, commitment, grad_norm] = self.sums.map(|sum| sum / self.steps.max(1) as f64);
        let (codes_used, perplexity) = usage(&self.uses);
        let line = LearnLine {
            step,
            train_loss,
            l1,
            psnr_db: psnr_db(l2 * 255.0 * 255.0),
            commitment,
            codes_used,
            perplexity,
            restarted: self.restarted,
            lr: self.lr,
            grad_norm,
            img_per_s: (self.steps * batch_size) as f64 / self.since.elapsed().as_secs_f64().max(1e-9),
            time_s: now_s(),
        };
        *self = Self::new(self.uses.len());
        line
    }
}

impl Options {
    fn schedule(&self) -> LearningRate {
        LearningRate { lr: self.lr, min_lr: 0.0, warmup_epochs: self.warmup_steps as f64, epochs: self.steps as f64 }
    }
}
