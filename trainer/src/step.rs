//! One training step: the networks, what a step is given, and its losses, in the order of the
//! official model's `forward`.

use burn::tensor::{Int, Tensor};
use serde::{Deserialize, Serialize};
use sorcen_runtime::rng::Rng;
use sorcen_runtime::ModelConfig;

use crate::clock::{Clock, Phase};
use crate::echo;
use crate::kernels::{Kernels, TrainBackend};
use crate::losses;
use crate::masking::{Crop, Masks};
use crate::model::batch_norm::BatchStatistics;
use crate::model::heads::{Classifier, Projector};
use crate::model::layers::Dropout;
use crate::model::weight::{weights, Weights};
use crate::model::{indices, pool, Layout, Precision, Sorcen};
use crate::optim::{self, AdamW, AdamWOptions};
use crate::replicas::Peers;
use crate::teacher::{follow, Teacher, TeacherKind};

/// What is learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[derive(clap::ValueEnum)]
pub enum Method {
    /// Reconstruction and contrast against a teacher that sees echoes.
    Sorcen,
    /// Reconstruction alone, on the same masks.
    Mage,
}

/// How an anchor is compared with its echo.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Contrast {
    /// Against the anchors of all other images of the batch (official).
    #[default]
    Infonce,
    /// Mean squared distance of the two unit vectors, no negatives (an ablation of the paper).
    L2,
}

/// Constants of the losses.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LossOptions {
    /// Which terms there are.
    pub method: Method,
    /// The form of the contrast.
    pub contrast: Contrast,
    /// Which parts of the teacher are its own.
    pub teacher: TeacherKind,
    /// Label smoothing over the codes (official 0.1).
    pub label_smoothing: f32,
    /// Weight of the contrast (0.1).
    pub lambda: f32,
    /// Temperature of the contrast (0.3).
    pub temperature: f32,
    /// Weight of the uniformity term (0.01).
    pub uniformity: f32,
    /// Echo candidates after the best is removed (15).
    pub echo_topk: usize,
}

impl Default for LossOptions {
    fn default() -> Self {
        Self {
            method: Method::Sorcen,
            contrast: Contrast::default(),
            teacher: TeacherKind::default(),
            label_smoothing: 0.1,
            lambda: 0.1,
            temperature: 0.3,
            uniformity: 0.01,
            echo_topk: 15,
        }
    }
}

/// Widths of the heads that only Sorcen's pretraining needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadSizes {
    /// Hidden width of `projector` and `momentum_projector` (official 4096).
    pub projector_hidden: usize,
    /// Output width of the projectors and of the predictor (512).
    pub projector_dim: usize,
    /// Hidden width of `predictor` (2048).
    pub predictor_hidden: usize,
    /// Hidden width of the online classifier (512).
    pub classifier_hidden: usize,
}

/// Everything the optimiser moves.
#[derive(Clone, Debug)]
pub struct Networks<B: burn::tensor::backend::Backend> {
    /// Encoder and decoder.
    pub student: Sorcen<B>,
    /// Absent for MAGE.
    pub heads: Option<Heads<B>>,
}

/// What Sorcen trains beside the student.
#[derive(Clone, Debug)]
pub struct Heads<B: burn::tensor::backend::Backend> {
    /// Anchor side.
    pub projector: Projector<B>,
    /// Echo side: follows `projector` *and* is trained (official quirk).
    pub momentum_projector: Projector<B>,
    /// Anchor side, after the projector.
    pub predictor: Projector<B>,
    /// Absent where the dataset has no classes.
    pub classifier: Option<Classifier<B>>,
}

weights!(Networks { student => "", heads => "" });

weights!(Heads {
    projector => "projector",
    momentum_projector => "momentum_projector",
    predictor => "predictor",
    classifier => "classifier",
});

impl<B: TrainBackend> Networks<B> {
    /// Initial values; a pure function of (config, sizes, classes, seed). Without `sizes` there are no heads.
    pub fn new(config: &ModelConfig, sizes: Option<&HeadSizes>, classes: usize, seed: u64, device: &B::Device) -> Self {
        let heads = |sizes| Heads::zeros(config.embed_dim, sizes, classes, device);
        let mut networks = Self { student: Sorcen::new(config, device), heads: sizes.map(heads) };
        networks.initialise("", seed, device);
        if let Some(classifier) = networks.heads.as_mut().and_then(|heads| heads.classifier.as_mut()) {
            classifier.initialise_like_pytorch("classifier", seed, device);
        }
        networks
    }
}

impl<B: TrainBackend> Heads<B> {
    /// Zeros, beside a model `width` wide.
    fn zeros(width: usize, sizes: &HeadSizes, classes: usize, device: &B::Device) -> Self {
        let HeadSizes { projector_hidden, projector_dim, predictor_hidden, classifier_hidden } = *sizes;
        let classifier = || Classifier::new(width, classifier_hidden, classes, device);
        Self {
            projector: Projector::new(width, projector_hidden, projector_dim, device),
            momentum_projector: Projector::new(width, projector_hidden, projector_dim, device),
            predictor: Projector::new(projector_dim, predictor_hidden, projector_dim, device),
            classifier: (classes > 0).then(classifier),
        }
    }

    /// Running BatchNorm statistics take in those of a batch.
    fn update_statistics(&mut self, batch: Statistics<B>) {
        self.projector.update_statistics(batch.projector);
        self.momentum_projector.update_statistics(batch.momentum_projector);
        self.predictor.update_statistics(batch.predictor);
    }
}

/// Where the echoes of a step come from.
#[derive(Clone, Debug)]
pub enum Echo {
    /// The true ids: the warm-up.
    GroundTruth,
    /// Ids `[B*T]` drawn elsewhere: a replay.
    Given(Vec<u16>),
    /// Drawn from the student's logits with these numbers, one a token.
    Sampled(Rng),
}

/// All that a step is given: data, and every random choice.
#[derive(Debug)]
pub struct StepInputs {
    /// Ground-truth ids `[B*T]`.
    pub ids: Vec<u16>,
    /// Labels `[B]`, read where there is a classifier.
    pub labels: Vec<u16>,
    /// What the student does not see.
    pub masks: Masks,
    /// What the teacher reads.
    pub echo: Echo,
    /// The part of it that the teacher sees.
    pub crop: Crop,
    /// Dropout of student, decoder and teacher, in this order.
    pub dropout: Dropout,
}

/// Names of the numbers that a step reports: the losses in the order of [`Losses::stack`], and the global
/// norm of the gradients before clipping.
pub const REPORT: [&str; 6] =
    ["reconstruction loss", "uniformity loss", "contrast loss", "classifier loss", "total loss", "gradient norm"];

/// The terms of one step, `[1]` each.
#[derive(Clone, Debug)]
pub struct Losses<B: TrainBackend> {
    /// Cross-entropy over masked tokens. Of MAGE this is all: the other terms are 0.
    pub reconstruction: Tensor<B, 1>,
    /// Weighted uniformity term.
    pub uniformity: Tensor<B, 1>,
    /// The contrast before its weight.
    pub contrast: Tensor<B, 1>,
    /// The online classifier's cross-entropy.
    pub classifier: Tensor<B, 1>,
    /// What is differentiated.
    pub total: Tensor<B, 1>,
}

impl<B: TrainBackend> Losses<B> {
    /// The terms without gradient, `[5]`: reconstruction, uniformity, contrast, classifier, total; still on
    /// the device.
    pub fn stack(&self) -> Tensor<B::InnerBackend, 1> {
        let terms = [&self.reconstruction, &self.uniformity, &self.contrast, &self.classifier, &self.total];
        Tensor::cat(terms.map(|term| term.clone().inner()).to_vec(), 0)
    }
}

/// BatchNorm statistics of one forward pass.
#[derive(Clone, Debug)]
pub struct Statistics<B: TrainBackend> {
    projector: BatchStatistics<B>,
    momentum_projector: BatchStatistics<B>,
    predictor: BatchStatistics<B>,
}

/// What the contrast compares, `[B, P]` and `[N, P]`.
#[derive(Clone, Debug)]
struct Pair<B: TrainBackend> {
    echoes: Tensor<B, 2>,
    anchors: Tensor<B, 2>,
}

/// What the networks make of one batch.
struct Forward<B: TrainBackend> {
    reconstruction: Tensor<B, 1>,
    /// Absent for MAGE.
    beside: Option<Beside<B>>,
}

/// What Sorcen has beside the reconstruction.
struct Beside<B: TrainBackend> {
    classifier: Tensor<B, 1>,
    /// Mean of all tokens of the normed latent, `[B, D]`.
    pooled: Tensor<B, 2>,
    pair: Pair<B>,
    statistics: Statistics<B>,
}

/// The state of pretraining: networks, teacher, optimiser.
#[derive(Clone, Debug)]
pub struct Pretraining<B: TrainBackend> {
    /// Sizes of the model.
    pub config: ModelConfig,
    /// Constants of the losses.
    pub options: LossOptions,
    /// What the optimiser moves.
    pub networks: Networks<B>,
    /// What follows; absent for MAGE.
    pub teacher: Option<Teacher<B::InnerBackend>>,
    /// Moments and update count.
    pub optimizer: AdamW<B>,
    /// What matrix products take.
    pub precision: Precision,
    /// Whom it shares steps with.
    pub peers: Peers,
    /// Where all of it lives.
    pub device: B::Device,
}

impl<B: TrainBackend> Pretraining<B> {
    /// A run alone before its first step, with an official optimiser, in `f32`. Teacher and heads are there for Sorcen
    /// only, with a classifier where there are `classes`.
    pub fn new(
        config: &ModelConfig,
        options: LossOptions,
        sizes: &HeadSizes,
        classes: usize,
        seed: u64,
        device: &B::Device,
    ) -> Self {
        let sizes = (options.method == Method::Sorcen).then_some(sizes);
        Self {
            config: *config,
            options,
            networks: Networks::new(config, sizes, classes, seed, device),
            teacher: sizes.map(|_| Teacher::new(config, options.teacher, seed, device)),
            optimizer: AdamW::new(AdamWOptions::default()),
            precision: Precision::default(),
            peers: Peers::default(),
            device: device.clone(),
        }
    }

    /// One step: for each batch the teacher follows, forward, backward; then one update with the mean of the
    /// gradients, over the batches and over all replicas. Returns the means of the numbers named in [`REPORT`], on
    /// the device.
    ///
    /// The teacher moves *first* (official): it sees the result of this update in the next step. It moves, and
    /// BatchNorm and negatives are those of a batch, once for each batch of an accumulated step (official too).
    pub fn step(
        &mut self,
        batches: &[StepInputs],
        momentum: f64,
        lr: f64,
        clock: &mut Clock,
    ) -> Tensor<B::InnerBackend, 1> {
        let share = 1.0 / batches.len().max(1) as f64;
        let mut gradients = optim::Gradients::<B>::default();
        let mut report = Tensor::zeros([REPORT.len() - 1], &self.device);
        for inputs in batches {
            self.follow(momentum);
            clock.lap::<B>(Phase::Optimizer, &self.device);
            let (losses, statistics) = self.losses_timed(inputs, clock);
            report = report + losses.stack() * share;
            let mut grads = (losses.total * share).backward();
            gradients.add(&self.networks, &mut grads);
            if let Some(statistics) = statistics {
                self.update_statistics(statistics);
            }
            clock.lap::<B>(Phase::Backward, &self.device);
        }
        gradients.average(&self.peers);
        let report = self.peers.sum(report) / self.peers.size() as f64;
        // One norm for all: devices may add in another order, and replicas that clip differently drift apart.
        let norm = self.peers.first(gradients.norm());
        self.optimizer.apply(&mut self.networks, gradients, norm.clone(), lr);
        clock.lap::<B>(Phase::Optimizer, &self.device);
        Tensor::cat(vec![report, norm], 0)
    }

    /// Teacher and momentum projector follow the student, where there are any.
    pub fn follow(&mut self, momentum: f64) {
        if let Some(teacher) = &mut self.teacher {
            teacher.follow(&self.networks.student, momentum);
        }
        if let Some(heads) = &mut self.networks.heads {
            follow(&mut heads.momentum_projector, &heads.projector, momentum);
        }
    }

    /// For each replica, in how many numbers its weights, the teacher's too, differ from those of the first: none should.
    /// All call it. Running statistics of BatchNorm are each replica's own.
    pub fn drift(&self) -> Vec<f32> {
        let mut weights = Vec::new();
        self.networks.visit("", &mut |_, weight| {
            if weight.is_trained() {
                weights.push(weight.get().inner());
            }
        });
        self.teacher.visit("", &mut |_, weight| weights.push(weight.get()));
        self.peers.differences(weights)
    }

    /// Running BatchNorm statistics take in those of a batch.
    pub fn update_statistics(&mut self, batch: Statistics<B>) {
        if let Some(heads) = &mut self.networks.heads {
            heads.update_statistics(batch);
        }
    }

    /// The forward pass; changes nothing.
    pub fn losses(&self, inputs: &StepInputs) -> (Losses<B>, Option<Statistics<B>>) {
        self.losses_timed(inputs, &mut Clock::off())
    }

    fn losses_timed(&self, inputs: &StepInputs, clock: &mut Clock) -> (Losses<B>, Option<Statistics<B>>) {
        let Forward { reconstruction, beside } = self.forward(inputs, clock);
        let Some(Beside { classifier, pooled, pair, statistics }) = beside else {
            let [uniformity, contrast, classifier] = [(); 3].map(|()| Tensor::zeros([1], &self.device));
            let total = reconstruction.clone();
            return (Losses { reconstruction, uniformity, contrast, classifier, total }, None);
        };
        let (uniformity, contrast) = match self.peers.size() {
            1 => self.between_images(pooled, pair, 0),
            _ => self.between_all_images(pooled, pair),
        };
        clock.lap::<B>(Phase::Teacher, &self.device);
        let total =
            reconstruction.clone() + uniformity.clone() + contrast.clone() * self.options.lambda + classifier.clone();
        (Losses { reconstruction, uniformity, contrast, classifier, total }, Some(statistics))
    }

    /// The networks' part of the forward pass, on one batch.
    fn forward(&self, inputs: &StepInputs, clock: &mut Clock) -> Forward<B> {
        let (config, device, options) = (&self.config, &self.device, &self.options);
        let networks = &self.networks;
        let student = &self.precision.view(&networks.student);

        // Student: masked ids replaced, dropped tokens left out.
        let layout = Layout::new(config, &masked_ids(config, inputs), &inputs.masks.dropped);
        clock.lap::<B>(Phase::Data, device);
        let (_, latent) = student.encode(&layout, device, &inputs.dropout);
        clock.lap::<B>(Phase::Student, device);
        let logits = student.decode(config, latent.clone(), &layout, device, &inputs.dropout);

        let targets: Vec<i32> = inputs.ids.iter().map(|&id| i32::from(id)).collect();
        let reconstruction =
            B::smoothed_cross_entropy(logits.clone(), &targets, &inputs.masks.masked, options.label_smoothing);
        clock.lap::<B>(Phase::Decoder, device);
        let (Some(heads), Some(teacher)) = (&networks.heads, &self.teacher) else {
            return Forward { reconstruction, beside: None };
        };

        // Pooled twice: with the class token for uniformity and classifier, without it for the contrast.
        let pooled = pool(latent.clone(), 0);
        let classifier = match &heads.classifier {
            None => Tensor::zeros([1], device),
            Some(classifier) => {
                let labels: Vec<i32> = inputs.labels.iter().map(|&label| i32::from(label)).collect();
                losses::cross_entropy(classifier.forward(pooled.clone()), indices(&labels, device))
            }
        };

        // Teacher: the echo, seen through the kept square.
        let echo = self.echo_ids(inputs, logits.inner());
        let ids = echo::teacher_ids(config, echo, &inputs.crop, device);
        let positions = echo::whole_positions(config, layout.batch, device);
        let teacher = self.precision.view(teacher);
        let teacher = teacher.forward(student, ids, positions, layout.batch, &inputs.dropout);

        // Contrast: echoes are rows, anchors columns. The momentum projector gets a gradient too (official).
        let (echoes, momentum_projector) = heads.momentum_projector.forward(Tensor::from_inner(teacher));
        let echoes = match options.teacher {
            TeacherKind::Blocks => echoes,
            TeacherKind::Whole => echoes.detach(),
        };
        let (anchors, projector) = heads.projector.forward(pool(latent, 1));
        let (anchors, predictor) = heads.predictor.forward(anchors);
        let statistics = Statistics { projector, momentum_projector, predictor };
        let beside = Beside { classifier, pooled, pair: Pair { echoes, anchors }, statistics };
        Forward { reconstruction, beside: Some(beside) }
    }

    /// Uniformity (weighted) and contrast of pooled features `[N, D]` and anchors `[N, P]` of all images, and the
    /// echoes `[B, P]` of those from `first` on.
    fn between_images(&self, pooled: Tensor<B, 2>, pair: Pair<B>, first: usize) -> (Tensor<B, 1>, Tensor<B, 1>) {
        let (options, Pair { echoes, anchors }) = (&self.options, pair);
        let uniformity = losses::uniformity(pooled) * options.uniformity;
        let contrast = match options.contrast {
            Contrast::Infonce => losses::infonce(echoes, anchors, options.temperature, first),
            Contrast::L2 => {
                let ([count, _], [_, width]) = (echoes.dims(), anchors.dims());
                losses::squared_distance(echoes, anchors.slice([first..first + count, 0..width]))
            }
        };
        (uniformity, contrast)
    }

    /// The same over the images of all replicas, from this one's own.
    ///
    /// These terms are differentiated apart, by leaves, since what each replica derives by the rows of another goes
    /// back to that one: as in the official code's gather, a row's gradient is the sum over all replicas. The terms
    /// that are returned are numbers to which `row · gradient`, of value zero, is added: that hands it on.
    fn between_all_images(&self, pooled: Tensor<B, 2>, pair: Pair<B>) -> (Tensor<B, 1>, Tensor<B, 1>) {
        let peers = &self.peers;
        let leaf = |rows: Tensor<B::InnerBackend, 2>| Tensor::<B, 2>::from_inner(rows).require_grad();
        let all = |rows: &Tensor<B, 2>| leaf(peers.gather(rows.clone().inner()));
        let (all_pooled, all_anchors) = (all(&pooled), all(&pair.anchors));
        let echoes = leaf(pair.echoes.clone().inner());
        let [count, _] = echoes.dims();
        let leaves = Pair { echoes: echoes.clone(), anchors: all_anchors.clone() };
        let (uniformity, contrast) = self.between_images(all_pooled.clone(), leaves, peers.rank() * count);
        let (uniformity_value, contrast_value) = (uniformity.clone().inner(), contrast.clone().inner());
        let grads = (uniformity + contrast * self.options.lambda).backward();

        let gradient = |leaf: &Tensor<B, 2>| leaf.grad(&grads).unwrap_or_else(|| leaf.clone().inner().zeros_like());
        let gathered = |leaf: &Tensor<B, 2>| peers.own(peers.sum(gradient(leaf)));
        let carry = |rows: Tensor<B, 2>, gradient: Tensor<B::InnerBackend, 2>| {
            let product = (rows * Tensor::from_inner(gradient)).sum();
            product.clone() - product.detach()
        };
        let carried = carry(pooled, gathered(&all_pooled))
            + carry(pair.anchors, gathered(&all_anchors))
            + carry(pair.echoes, gradient(&echoes));
        (Tensor::from_inner(uniformity_value) + carried, Tensor::from_inner(contrast_value))
    }

    /// The echo's ids `[B*T]`, before spatial masking; drawn on the device where they are drawn.
    fn echo_ids(&self, inputs: &StepInputs, logits: Tensor<B::InnerBackend, 2>) -> Tensor<B::InnerBackend, 1, Int> {
        let given = |ids: &[u16]| {
            let ids: Vec<i32> = ids.iter().map(|&id| i32::from(id)).collect();
            indices(&ids, &self.device)
        };
        match &inputs.echo {
            Echo::GroundTruth => given(&inputs.ids),
            Echo::Given(ids) => given(ids),
            Echo::Sampled(rng) => {
                let (tokens, grid) = (self.config.tokens(), self.config.grid);
                let crop = &inputs.crop;
                let seen = |row: usize| crop.keeps(row / tokens, row % tokens, grid);
                B::InnerBackend::sample_echo(logits, self.options.echo_topk, rng, &seen)
            }
        }
    }
}

/// The ids with the mask id where masked, `[B*T]`.
fn masked_ids(config: &ModelConfig, inputs: &StepInputs) -> Vec<i32> {
    let hide = |(&id, &masked): (&u16, &bool)| if masked { config.mask_token_id as i32 } else { i32::from(id) };
    inputs.ids.iter().zip(&inputs.masks.masked).map(hide).collect()
}

#[cfg(test)]
#[path = "step_tests.rs"]
mod tests;
