//! How fast a training step is, phase by phase, on random tokens.

use std::thread;
use std::time::Instant;

use burn::backend::Autodiff;
use burn::tensor::{Tensor, TensorData};
use serde::Serialize;
use sorcen_runtime::rng::{Rng, Stream};
use sorcen_runtime::ModelConfig;

use crate::clock::{Clock, Phase};
use crate::config::PretrainOptions;
use crate::device::{with_backend, Device};
use crate::flops;
use crate::kernels::{Kernels, TrainBackend};
use crate::masking::{Crop, MaskOptions};
use crate::model::layers::Dropout;
use crate::model::Precision;
use crate::replicas::Peers;
use crate::step::{Echo, HeadSizes, LossOptions, Method, Pretraining, StepInputs};

/// Classes of the online classifier: ImageNet-1k's.
const CLASSES: usize = 1000;

/// What is measured.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// Sizes of the model.
    pub model: ModelConfig,
    /// What is learned.
    pub method: Method,
    /// Images that go through the model together: of a step on one device.
    pub batch_size: usize,
    /// Replicas, each on a device of its own where there are several, as in training.
    pub devices: usize,
    /// What matrix products take.
    pub precision: Precision,
    /// Dropout rate.
    pub dropout: f32,
    /// Steps before the clock starts.
    pub warmup: usize,
    /// Steps that are timed.
    pub steps: usize,
    /// Where to compute.
    pub device: Device,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct BenchReport {
    /// Replicas.
    pub devices: usize,
    /// Milliseconds of a step in each phase, by name, in order; they are waited for one by one. Of several replicas,
    /// those of the first: where it exchanges numbers with the others, it waits for them.
    pub phase_ms: Vec<(&'static str, f64)>,
    /// Milliseconds of a step as in training, phases not waited for: the median.
    pub step_ms: f64,
    /// Images of all replicas a second, from it.
    pub img_per_s: f64,
    /// Operations of a step for one image, in 10⁹, by the official method's count ([`flops`]).
    pub gflop_per_img: f64,
    /// Operations of all replicas a second, in 10⁹.
    pub gflop_per_s: f64,
    /// The same of the fastest plain matrix product that was tried, on one device.
    pub matmul_gflop_per_s: f64,
    /// Operations a second over those of matrix products on all devices.
    pub share_of_matmul: f64,
}

/// Measures.
pub fn train_steps(options: &BenchOptions) -> BenchReport {
    with_backend!(options.device, B => measure::<Autodiff<B>>(options))
}

fn measure<B: TrainBackend>(options: &BenchOptions) -> BenchReport {
    let mut places = Peers::of_run(options.devices).into_iter();
    let first = places.next().unwrap_or_default();
    let device = first.device::<B>();
    let (step_s, clock) = thread::scope(|scope| {
        let _here = first.presence();
        for place in places {
            scope.spawn(move || {
                let _here = place.presence();
                time_steps::<B>(options, place)
            });
        }
        time_steps::<B>(options, first)
    });
    let phase_ms = Phase::ALL.map(|phase| (phase.name(), 1e3 * clock.seconds(phase) / options.steps as f64)).to_vec();

    let model = &options.model;
    let kept = model.tokens() - (model.tokens() as f64 * MaskOptions::default().drop_ratio).ceil() as usize;
    let gflop_per_img = flops::training_step(model, &head_sizes(model), CLASSES, options.method, kept) / 1e9;
    let img_per_s = (options.batch_size * options.devices) as f64 / step_s;
    let gflop_per_s = gflop_per_img * img_per_s;
    let matmul_gflop_per_s = fastest_matmul::<B::InnerBackend>(options, &device) / 1e9;
    // Replicas that share one device have one device's matrix products.
    let devices = options.device.count().map_or(1, |_| options.devices);
    BenchReport {
        devices: options.devices,
        phase_ms,
        step_ms: 1e3 * step_s,
        img_per_s,
        gflop_per_img,
        gflop_per_s,
        matmul_gflop_per_s,
        share_of_matmul: gflop_per_s / (matmul_gflop_per_s * devices as f64),
    }
}

/// Those of pretraining.
fn head_sizes(model: &ModelConfig) -> HeadSizes {
    let unused = std::path::Path::new("");
    let any = crate::config::ModelChoice::VitB;
    PretrainOptions::new(unused, unused, any, crate::config::Duration::Steps(1)).head_sizes(model.embed_dim)
}

/// What one replica sees: the median of a step's seconds, and the phases of as many steps. All replicas call it.
fn time_steps<B: TrainBackend>(options: &BenchOptions, peers: Peers) -> (f64, Clock) {
    let (model, device) = (&options.model, peers.device::<B>());
    let (rank, devices) = (peers.rank() as u64, peers.size() as u64);
    let losses = LossOptions { method: options.method, ..LossOptions::default() };
    let mut run = Pretraining::<B>::new(model, losses, &head_sizes(model), CLASSES, 0, &device);
    (run.precision, run.peers) = (options.precision, peers);
    let mut step = 0;
    let mut one = |clock: &mut Clock| {
        let inputs = [random_inputs(options, step * devices + rank)];
        clock.lap::<B>(Phase::Data, &device);
        step += 1;
        run.step(&inputs, 0.996, 1e-4, clock).into_data() // waits
    };
    for _ in 0..options.warmup {
        one(&mut Clock::off());
    }
    let mut seconds: Vec<f64> = (0..options.steps).map(|_| timed(|| drop(one(&mut Clock::off())))).collect();
    seconds.sort_by(f64::total_cmp);

    let mut clock = Clock::start();
    for _ in 0..options.steps {
        one(&mut clock);
    }
    (seconds[seconds.len() / 2], clock)
}

/// Random tokens, labels and choices, as batch number `number` in training is given them.
fn random_inputs(options: &BenchOptions, number: u64) -> StepInputs {
    let (model, batch) = (&options.model, options.batch_size);
    let rng = Rng::new(1, Stream::Evaluation, number);
    let count = (batch * model.tokens()) as u64;
    StepInputs {
        ids: (0..count).map(|i| rng.below(i, model.codebook_size as u64) as u16).collect(),
        labels: (0..batch as u64).map(|i| rng.below(count + i, CLASSES as u64) as u16).collect(),
        masks: MaskOptions::default().draw(batch, model.tokens(), 1, number),
        echo: Echo::Sampled(Rng::new(1, Stream::Echo, number)),
        crop: Crop::draw(batch, model.grid, 1, number),
        dropout: Dropout::new(options.dropout, 1, number),
    }
}

fn timed(work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    started.elapsed().as_secs_f64()
}

/// Operations a second of the backend's matrix product: the best over a few large shapes and repetitions.
fn fastest_matmul<B: Kernels>(options: &BenchOptions, device: &B::Device) -> f64 {
    let (model, batch) = (&options.model, options.batch_size);
    let rows = (batch * model.sequence()).min(16_384);
    let (width, hidden) = (model.embed_dim, model.hidden_dim());
    let mut best = 0.0f64;
    for [m, k, n] in [[rows, width, hidden], [rows, hidden, width], [1024, 1024, 1024], [4096, 1024, 4096]] {
        let make = |rows: usize, columns: usize| {
            let values = (0..rows * columns).map(|i| (i % 17) as f32 - 8.0).collect::<Vec<f32>>();
            Tensor::<B, 2>::from_data(TensorData::new(values, [rows, columns]), device)
        };
        let precision = options.precision;
        let [a, b] = [make(m, k), make(k, n)].map(|factor| precision.round(factor));
        for _ in 0..3 {
            let seconds = timed(|| {
                let product = match precision {
                    Precision::Bf16 => a.clone().matmul(b.clone()),
                    _ => B::product(a.clone(), b.clone(), precision),
                };
                let _ = product.slice([0..1, 0..1]).into_data(); // waits
            });
            best = best.max(2.0 * (m * k * n) as f64 / seconds);
        }
    }
    best
}
