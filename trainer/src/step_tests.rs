use std::thread;

use burn::backend::{Autodiff, Flex};
use sorcen_runtime::rng::Stream;
use sorcen_tests::compare::largest_difference;

use super::*;
use crate::masking::MaskOptions;
use crate::optim::Gradients;

type B = Autodiff<Flex>;

const BATCH: usize = 6;
const SIZES: HeadSizes =
    HeadSizes { projector_hidden: 24, projector_dim: 16, predictor_hidden: 20, classifier_hidden: 12 };

fn config() -> ModelConfig {
    ModelConfig {
        embed_dim: 32,
        depth: 1,
        num_heads: 2,
        decoder_embed_dim: 24,
        decoder_depth: 1,
        decoder_num_heads: 2,
        ..ModelConfig::micro(4, 16)
    }
}

fn run(peers: Peers, options: LossOptions) -> Pretraining<B> {
    Pretraining { peers, ..Pretraining::new(&config(), options, &SIZES, 3, 1, &Default::default()) }
}

/// Batch number `batch`, with a mask ratio and a square of its own.
fn inputs(batch: u64) -> StepInputs {
    let (tokens, rng) = (config().tokens(), Rng::new(3, Stream::Evaluation, batch));
    StepInputs {
        ids: (0..(BATCH * tokens) as u64).map(|i| rng.below(i, 16) as u16).collect(),
        labels: (0..BATCH as u16).map(|i| i % 3).collect(),
        masks: MaskOptions::default().draw(BATCH, tokens, 1, batch),
        echo: Echo::Sampled(Rng::new(1, Stream::Echo, batch)),
        crop: Crop::draw(BATCH, 4, 1, batch),
        dropout: Dropout::new(0.1, 1, batch),
    }
}

fn numbers<const D: usize>(tensor: Tensor<Flex, D>) -> Vec<f32> {
    tensor.into_data().to_vec().unwrap()
}

/// What each of two replicas computes, in threads.
fn replicas<T: Send>(options: LossOptions, compute: impl Fn(Pretraining<B>) -> T + Sync) -> Vec<T> {
    let compute = |peers: Peers| {
        let _here = peers.presence();
        compute(run(peers, options))
    };
    thread::scope(|scope| {
        let threads: Vec<_> = Peers::of_run(2).into_iter().map(|peers| scope.spawn(|| compute(peers))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// The whole batch in one process, but for BatchNorm: one graph through both halves.
fn whole(options: LossOptions) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
    let run = run(Peers::default(), options);
    let halves = [0, 1].map(|batch| run.forward(&inputs(batch), &mut Clock::off()));
    let beside = halves.each_ref().map(|half| half.beside.as_ref().unwrap());
    let pairs = beside.map(|beside| beside.pair.clone());
    let pooled = Tensor::cat(beside.iter().map(|beside| beside.pooled.clone()).collect(), 0);
    let anchors = Tensor::cat(pairs.iter().map(|pair| pair.anchors.clone()).collect(), 0);
    let mut total = Tensor::zeros([1], &run.device);
    let mut terms = Vec::new();
    for (rank, (half, pair)) in halves.iter().zip(pairs).enumerate() {
        let pair = Pair { anchors: anchors.clone(), ..pair };
        let (uniformity, contrast) = run.between_images(pooled.clone(), pair, rank * BATCH);
        let of_rank = half.reconstruction.clone() + uniformity.clone() + contrast.clone() * options.lambda;
        let of_rank = of_rank + beside[rank].classifier.clone();
        terms.push([uniformity, contrast, of_rank.clone()].map(|term| numbers(term.inner())[0]).to_vec());
        total = total + of_rank * 0.5;
    }
    let mut gradients = Gradients::<B>::default();
    gradients.add(&run.networks, &mut total.backward());
    (terms, gradients.iter().map(|gradient| numbers(gradient.clone())).collect())
}

#[test]
fn two_replicas_derive_what_one_process_derives_from_both_batches() {
    let official = LossOptions::default();
    // Weights that make every term matter.
    let heavy = LossOptions { lambda: 2.0, uniformity: 3.0, ..official };
    for options in [
        official,
        heavy,
        LossOptions { contrast: Contrast::L2, ..heavy },
        LossOptions { teacher: TeacherKind::Whole, ..heavy },
    ] {
        let (terms, expected) = whole(options);
        let found = replicas(options, |run| {
            let (losses, _) = run.losses(&inputs(run.peers.rank() as u64));
            let Losses { uniformity, contrast, total, .. } = &losses;
            let terms = [uniformity, contrast, total].map(|term| numbers(term.clone().inner())[0]).to_vec();
            let mut gradients = Gradients::<B>::default();
            gradients.add(&run.networks, &mut losses.total.backward());
            gradients.average(&run.peers);
            (terms, gradients.iter().map(|gradient| numbers(gradient.clone())).collect::<Vec<_>>())
        });
        for (rank, (found_terms, gradients)) in found.iter().enumerate() {
            for (found, expected) in found_terms.iter().zip(&terms[rank]) {
                assert!((found - expected).abs() < 2e-6, "replica {rank}: {found_terms:?}, expected {:?}", terms[rank]);
            }
            assert_eq!(gradients.len(), expected.len());
            for (i, (found, expected)) in gradients.iter().zip(&expected).enumerate() {
                let worst = largest_difference(found, expected);
                let scale = expected.iter().fold(0.1, |m, &x| f64::from(x).abs().max(m));
                assert!(worst < 1e-5 * scale, "{options:?}: replica {rank}, gradient {i}: {worst} of {scale}");
            }
        }
        assert!(found[0].1 == found[1].1, "the same bits");
    }
}

/// The norm that clips is one replica's for all, and a number that has drifted is found where it is.
#[test]
fn a_weight_that_drifts_is_counted() {
    let found = replicas(LossOptions::default(), |mut run| {
        let rank = run.peers.rank() as u64;
        let step = |run: &mut Pretraining<B>, number: u64| {
            numbers(run.step(&[inputs(2 * number + rank)], 0.9, 1e-3, &mut Clock::off()))
        };
        let norm = *step(&mut run, 0).last().unwrap();
        let same = run.drift();
        let device = Default::default();
        let plant = |run: &mut Pretraining<B>| {
            run.networks.visit_mut("", &mut |name, weight| {
                if name == "blocks.0.mlp.fc1.weight" {
                    let mut values = weight.to_vec();
                    values[7] = values[7].next_up();
                    values[9] = -values[9];
                    weight.set_from(values, &device);
                }
            });
            run.teacher.visit_mut("", &mut |name, weight| {
                if name == "blocks_momentum.0.norm1.weight" {
                    let mut values = weight.to_vec();
                    values[0] = f32::NAN;
                    weight.set_from(values, &device);
                }
            });
        };
        if rank == 1 {
            plant(&mut run);
        }
        (norm, same, run.drift())
    });
    assert_eq!(found[0].0, found[1].0);
    for (_, same, drifted) in found {
        assert_eq!((same, drifted), (vec![0.0, 0.0], vec![0.0, 3.0]));
    }
}

#[test]
fn the_norm_is_that_of_the_first() {
    let norms = replicas(LossOptions::default(), |run| {
        let own = Tensor::<Flex, 1>::from_floats([0.1 + run.peers.rank() as f32], &run.device);
        numbers(run.peers.first(own))
    });
    assert_eq!(norms, [[0.1], [0.1]]);
}

#[test]
fn replicas_stay_the_same() {
    let weights = replicas(LossOptions::default(), |mut run| {
        let rank = run.peers.rank() as u64;
        let report = |step: u64, run: &mut Pretraining<B>| {
            let batches = [4 * step + rank, 4 * step + 2 + rank].map(inputs); // accumulated, too
            numbers(run.step(&batches, 0.9, 1e-3, &mut Clock::off()))
        };
        let reports: Vec<Vec<f32>> = (0..4).map(|step| report(step, &mut run)).collect();
        let mut weights = Vec::new();
        run.networks.visit("", &mut |_, weight| {
            if weight.is_trained() {
                weights.push(weight.to_vec()); // running statistics are each replica's own
            }
        });
        run.teacher.visit("", &mut |_, weight| weights.push(weight.to_vec()));
        (reports, weights)
    });
    assert!(weights[0] == weights[1], "weights, and the means that are reported");
}
