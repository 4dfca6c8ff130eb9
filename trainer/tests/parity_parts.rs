//! The parts of a step against vectors recorded from the official code: schedules, AdamW with its clip, the
//! contrastive terms on one process and on two, label smoothing, spatial masking, the echo distribution.

mod common;

use burn::backend::{flex::FlexDevice, Autodiff, Flex};
use burn::tensor::{Tensor, TensorData};
use common::{tolerance, Failures, Golden};
use sorcen_runtime::rng::{Rng, Stream};
use sorcen_runtime::ModelConfig;
use sorcen_trainer::echo;
use sorcen_trainer::kernels::Kernels;
use sorcen_trainer::losses;
use sorcen_trainer::masking::{Crop, MaskOptions};
use sorcen_trainer::model::{indices, Weight};
use sorcen_trainer::optim::{AdamW, AdamWOptions};
use sorcen_trainer::schedule::{teacher_momentum, LearningRate};

type B = Autodiff<Flex>;
const DEVICE: FlexDevice = FlexDevice;

fn matrix(golden: &Golden, name: &str, rows: usize) -> Tensor<B, 2> {
    let values = golden.floats(name);
    let columns = values.len() / rows;
    Tensor::from_data(TensorData::new(values, [rows, columns]), &DEVICE)
}

fn values<const D: usize>(tensor: Tensor<Flex, D>) -> Vec<f32> {
    tensor.into_data().to_vec().unwrap()
}

#[test]
fn schedules() {
    let golden = Golden::open("common/schedules.safetensors");
    let plan = |lr, min_lr, warmup_epochs, epochs| LearningRate { lr, min_lr, warmup_epochs, epochs };
    for (name, schedule) in [
        ("lr_pretrain", plan(2.4e-3, 0.0, 40.0, 1600.0)),
        ("lr_linprobe", plan(1.6, 0.0, 10.0, 90.0)),
        ("lr_minlr", plan(1e-3, 1e-5, 2.0, 12.0)),
        ("lr_nowarmup", plan(1e-3, 0.0, 0.0, 5.0)),
    ] {
        for row in golden.get(name).chunks_exact(3) {
            let found = schedule.at(row[0]);
            assert!((found - row[1]).abs() < tolerance::SCHEDULES, "{name} at {}: {found}, not {}", row[0], row[1]);
        }
    }
    for row in golden.get("ema_beta").chunks_exact(2) {
        let found = teacher_momentum(0.996, 1600.0, row[0] as u64);
        assert!((found - row[1]).abs() < tolerance::SCHEDULES, "momentum at {}: {found}, not {}", row[0], row[1]);
    }
}

#[test]
fn mask_ratios_are_distributed_as_recorded() {
    const DRAWS: usize = 20_000;
    let golden = Golden::open("common/schedules.safetensors");
    let options = MaskOptions::default();
    let mut ratios: Vec<f64> =
        (0..DRAWS as u64).map(|step| options.ratio(&Rng::new(3, Stream::MaskRatio, step))).collect();
    ratios.sort_by(f64::total_cmp);
    for row in golden.get("mask_ratio_quantiles").chunks_exact(3) {
        let found = ratios[((DRAWS - 1) as f64 * row[0]).round() as usize];
        assert!((found - row[1]).abs() < tolerance::QUANTILES, "quantile {}: {found}, not {}", row[0], row[1]);
    }
    let masked = ratios.iter().map(|ratio| (256.0 * ratio).ceil()).sum::<f64>() / DRAWS as f64;
    let expected: f64 = golden.get("num_masked_pmf").iter().enumerate().map(|(n, p)| n as f64 * p).sum();
    assert!((masked - expected).abs() < 256.0 * tolerance::QUANTILES, "{masked} masked, not {expected}");
}

#[test]
fn adamw_with_a_global_clip() {
    let golden = Golden::open("common/adamw_clip.safetensors");
    let mut failures = Failures::default();
    let weight = |name: &str, dims: &[usize]| {
        let mut weight = Weight::<B>::zeros(dims, &DEVICE);
        weight.set_from(golden.floats(name), &DEVICE);
        weight
    };
    // A matrix, which decays; a vector, which does not; a matrix without a gradient, which is left alone.
    let mut module = vec![weight("w0", &[4, 6]), weight("b0", &[6]), weight("c0", &[3, 3])];
    let mut optimizer = AdamW::<B>::new(AdamWOptions::default());
    for (step, lr) in [1e-3, 5e-4, 2e-3, 1e-3].into_iter().enumerate() {
        let step = step + 1;
        let product = |weight: &Weight<B>, name: String, rows| (weight.get() * matrix(&golden, &name, rows)).sum();
        let loss = product(&module[0], format!("grad_w{step}"), 4) + product(&module[1], format!("grad_b{step}"), 1);
        let norm = optimizer.update(&mut module, &mut loss.backward(), lr);
        let recorded = format!("norm{step}");
        failures.compare(&recorded, &values(norm), &golden.get(&recorded), tolerance::GRADIENT_NORM);
        for (name, weight) in [format!("w{step}"), format!("b{step}")].iter().zip(&module) {
            failures.compare(name, &weight.to_vec(), &golden.get(name), tolerance::WEIGHTS);
        }
    }
    failures.compare("c4", &module[2].to_vec(), &golden.get("c4"), 0.0);
    failures.check();
}

#[test]
fn contrast_and_uniformity_on_one_process() {
    let golden = Golden::open("common/contrastive.safetensors");
    let mut failures = Failures::default();
    let leaf = |name: &str| matrix(&golden, name, 12).require_grad();
    let (echo, anchor, features) = (leaf("echo"), leaf("anchor"), leaf("feat"));
    let loss = losses::infonce(echo.clone(), anchor.clone(), 0.3, 0);
    let uniformity = losses::uniformity(features.clone()) * 0.01;
    failures.compare("loss", &values(loss.clone().inner()), &golden.get("loss"), tolerance::LOSSES);
    failures.compare("uniformity", &values(uniformity.clone().inner()), &golden.get("uniformity"), tolerance::LOSSES);
    let grads = (loss + uniformity).backward();
    for (name, leaf) in [("grad_echo", echo), ("grad_anchor", anchor), ("grad_feat", features)] {
        failures.compare(name, &values(leaf.grad(&grads).unwrap()), &golden.get(name), tolerance::GRADIENTS);
    }
    failures.check();
}

/// Each process has half of the echoes and sees all anchors; gradients are summed over the processes' losses.
#[test]
fn contrast_and_uniformity_on_two_processes() {
    let golden = Golden::open("common/contrastive.safetensors");
    let mut failures = Failures::default();
    let leaf = |name: &str| matrix(&golden, name, 12).require_grad();
    let (echo, anchor, features) = (leaf("echo"), leaf("anchor"), leaf("feat"));
    let mut total = Tensor::<B, 1>::zeros([1], &DEVICE);
    for rank in 0..2 {
        let first = rank * 6;
        let own = echo.clone().slice([first..first + 6, 0..10]);
        let loss = losses::infonce(own, anchor.clone(), 0.3, first);
        let uniformity = losses::uniformity(features.clone()) * 0.01;
        for (name, term) in [("loss", &loss), ("uniformity", &uniformity)] {
            let recorded = format!("rank{rank}_{name}");
            failures.compare(&recorded, &values(term.clone().inner()), &golden.get(&recorded), tolerance::LOSSES);
        }
        total = total + loss + uniformity;
    }
    let grads = total.backward();
    for (name, leaf) in [("grad_echo", echo), ("grad_anchor", anchor), ("grad_feat", features)] {
        let gradient = values(leaf.grad(&grads).unwrap());
        for (rank, half) in gradient.chunks_exact(gradient.len() / 2).enumerate() {
            let recorded = format!("rank{rank}_{name}");
            failures.compare(&recorded, half, &golden.get(&recorded), tolerance::GRADIENTS);
        }
    }
    failures.check();
}

#[test]
fn label_smoothing() {
    let golden = Golden::open("common/contrastive.safetensors");
    let mut failures = Failures::default();
    let targets: Vec<i32> = golden.get("ls_target").iter().map(|&target| target as i32).collect();
    let recorded = golden.get("ls_loss");
    for row in 0..6 {
        let counted: Vec<bool> = (0..6).map(|other| other == row).collect();
        let logits = || matrix(&golden, "ls_logits", 6);
        let weights: Vec<f32> = counted.iter().map(|&c| f32::from(u8::from(c))).collect();
        let weights = Tensor::from_data(TensorData::new(weights, [6, 1]), &DEVICE);
        let plain = losses::smoothed_cross_entropy(logits(), indices(&targets, &DEVICE), weights, 0.1);
        let fused = B::smoothed_cross_entropy(logits(), &targets, &counted, 0.1);
        for (name, loss) in [("plain", plain), ("fused", fused)] {
            let name = format!("{name} row {row}");
            failures.compare(&name, &values(loss.inner()), &recorded[row..row + 1], tolerance::LOSSES);
        }
    }
    failures.check();
}

#[test]
fn spatial_masking() {
    let golden = Golden::open("common/contrastive.safetensors");
    let corner = |name: &str| golden.ids(name).into_iter().map(usize::from);
    let crop = Crop { side: 11, corners: corner("jsm_row").zip(corner("jsm_col")).collect() };
    let ids: Vec<i32> = golden.ids("jsm_ids").into_iter().map(i32::from).collect();
    let found = echo::teacher_ids::<Flex>(&ModelConfig::vit_b(), indices(&ids, &DEVICE), &crop, &DEVICE);
    let found = found.into_data().convert::<i32>().to_vec::<i32>().unwrap();
    let expected: Vec<i32> = golden.ids("jsm_out").into_iter().map(i32::from).collect();
    for (image, expected) in expected.chunks_exact(256).enumerate() {
        assert_eq!(found[image * 257], 1100);
        assert_eq!(found[image * 257 + 1..(image + 1) * 257], *expected);
    }
}

/// The share of a grid of uniform numbers that leads to each code is its recorded probability.
#[test]
fn echo_distribution() {
    const GRID: usize = 5000;
    let golden = Golden::open("common/contrastive.safetensors");
    let logits = golden.floats("echo_logits");
    let recorded = golden.get("echo_probs");
    for (row, expected) in logits.chunks_exact(40).zip(recorded.chunks_exact(40)) {
        let drawn: Vec<u16> = (0..GRID).map(|i| echo::choice(row, 15, (i as f64 + 0.5) / GRID as f64)).collect();
        for (code, &expected) in expected.iter().enumerate() {
            let share = drawn.iter().filter(|&&id| usize::from(id) == code).count() as f64 / GRID as f64;
            assert!((share - expected).abs() <= 2.0 / GRID as f64, "code {code}: {share}, not {expected}");
        }
    }
}
