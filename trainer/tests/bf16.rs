//! Matrix products in bf16: near f32, with f32 weights that go on learning. On the CPU, which multiplies rounded factors
//! in f32.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, Tensor, TensorData};
use half::bf16;
use safetensors::{Dtype, SafeTensors};
use sorcen_trainer::checkpoint;
use sorcen_trainer::config::{Duration, ModelChoice, PretrainOptions};
use sorcen_trainer::data::{StreamSpec, TokenDatasetWriter};
use sorcen_trainer::kernels::Kernels;
use sorcen_trainer::model::layers::Dropout;
use sorcen_trainer::model::{Layout, Precision};
use sorcen_trainer::train::pretrain;

/// How far bf16, with 8 bits of mantissa, may be from f32: of a loss, relative; of gradients, the sine of their angle;
/// of the learning curve's end, absolute. The decoder's gradients are the reconstruction's alone. In the others is the
/// contrast, through BatchNorm over the eight images of this batch, whose random features hardly differ: it magnifies
/// the rounding of the encoder.
const LOSS: f32 = 5e-3;
const DECODER_SINE: f64 = 0.01;
const GRADIENT_SINE: f64 = 0.15;
const CURVE: f64 = 0.05;

fn sorcen(arguments: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_sorcen")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// All tensors of a file whose names start with `prefix`, one after another.
fn numbers(file: &Path, prefix: &str) -> Vec<f32> {
    let bytes = std::fs::read(file).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut names: Vec<_> = file.names().into_iter().filter(|name| name.starts_with(prefix)).collect();
    names.sort_unstable();
    assert!(!names.is_empty(), "{prefix}");
    let tensors = names.into_iter().map(|name| file.tensor(name).unwrap());
    let values = |view: safetensors::tensor::TensorView<'_>| {
        assert_eq!(view.dtype(), Dtype::F32);
        view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<f32>>()
    };
    tensors.flat_map(values).collect()
}

#[test]
fn a_step_is_near_that_of_f32() {
    let official = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/official/T");
    let file = |name: &str| official.join(name).display().to_string();
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model").display().to_string();
    let heads = ["--heads", "4", "--decoder_heads", "4", "--with_training_state"];
    sorcen(&[&["import", "--from", &file("checkpoint.pth"), "--out", &model], &heads[..]].concat());
    let input = file("step_epoch50.safetensors");
    let [f32, bf16] = ["f32", "bf16"].map(|precision| {
        let out = dir.path().join(precision);
        let output = out.display().to_string();
        let given = ["--checkpoint", &model, "--input", &input, "--epoch", "50", "--lr", "1e-3"];
        sorcen(&[&["step"], &given[..], &["--precision", precision, "--output", &output]].concat());
        out
    });
    for loss in ["loss_rec", "loss_uniformity", "loss_infonce", "loss_classifier", "loss_total"] {
        let (a, b) = (numbers(&f32, loss)[0], numbers(&bf16, loss)[0]);
        println!("{loss}: {a} in f32, {b} in bf16");
        assert!((a - b).abs() < LOSS * a.abs(), "{loss}: {a} in f32, {b} in bf16");
    }
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    for (prefix, bound) in [("grad/decoder_blocks", DECODER_SINE), ("grad/", GRADIENT_SINE)] {
        let (a, b) = (numbers(&f32, prefix), numbers(&bf16, prefix));
        let sine = (1.0 - dot(&a, &b).powi(2) / (dot(&a, &a) * dot(&b, &b))).max(0.0).sqrt();
        println!("{prefix}: sine of the angle {sine:.4}");
        assert!(sine > 1e-4 && sine < bound, "{prefix}: {sine}: bf16 rounds, and a little");
    }
}

fn host<B: burn::tensor::backend::Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    assert_eq!(tensor.dtype(), DType::F32);
    tensor.into_data().to_vec().unwrap()
}

fn is_bf16(value: f32) -> bool {
    bf16::from_f32(value).to_f32() == value
}

/// Factors have 8 bits, a product has the 24 of its sum; and so have the factors on the way back.
#[test]
fn products_of_rounded_factors_are_not_rounded() {
    fn check<B: Kernels + AutodiffBackend>() {
        let numbers = |shape: [usize; 2], seed: usize| {
            let value = |i: usize| (((i + seed) * 7919 % 9973) as f32 / 9973.0 - 0.5) * 3.0;
            let values: Vec<f32> = (0..shape[0] * shape[1]).map(value).collect();
            Tensor::<B, 2>::from_data(TensorData::new(values, shape), &Default::default()).require_grad()
        };
        let (a, b) = (numbers([7, 60], 1), numbers([60, 5], 90));
        let product = B::product(a.clone(), b.clone(), Precision::Bf16);
        let grads = product.clone().square().sum().backward();
        let [left, right] =
            [&a, &b].map(|x| host(x.clone()).into_iter().map(|x| bf16::from_f32(x).to_f64()).collect::<Vec<_>>());
        let found = host(product);
        for (at, found) in found.iter().enumerate() {
            let expected: f64 = (0..60).map(|k| left[at / 5 * 60 + k] * right[k * 5 + at % 5]).sum();
            assert!((f64::from(*found) - expected).abs() < 1e-5, "{at}: {found}, expected {expected}");
        }
        assert!(found.iter().filter(|&&x| is_bf16(x)).count() < found.len() / 4, "{found:?}");
        assert_eq!(a.grad(&grads).unwrap().dtype(), DType::F32);
    }
    check::<Autodiff<Flex>>();
}

/// Logits go to the loss and the echo draw as they were summed. Rounded to bf16, as they once were, they would be further
/// from those of f32.
#[test]
fn logits_are_not_rounded() {
    let official = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/official/T");
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    let [from, out] = [official.join("checkpoint.pth"), model.clone()].map(|path| path.display().to_string());
    sorcen(&["import", "--from", &from, "--out", &out, "--heads", "4", "--decoder_heads", "4"]);
    let device = Default::default();
    let (config, model) = checkpoint::load_model::<Flex>(&model, &device).unwrap();
    let ids: Vec<i32> =
        (0..512).map(|i| if i % 3 == 0 { config.mask_token_id as i32 } else { i * 37 % 1024 }).collect();
    let layout = Layout::new(&config, &ids, &[]);
    let [exact, rounded] = [Precision::F32, Precision::Bf16].map(|precision| {
        let view = precision.view(&model);
        let (_, latent) = view.encode(&layout, &device, &Dropout::off());
        host(view.decode(&config, latent, &layout, &device, &Dropout::off()))
    });
    let share = rounded.iter().filter(|&&x| is_bf16(x)).count() as f64 / rounded.len() as f64;
    let once: Vec<f32> = rounded.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
    let error = |found: &[f32]| {
        let square = |(a, b): (&f32, &f32)| f64::from(a - b).powi(2);
        (found.iter().zip(&exact).map(square).sum::<f64>() / exact.len() as f64).sqrt()
    };
    let distinct = |row: &[f32]| row.iter().map(|x| x.to_bits()).collect::<std::collections::BTreeSet<_>>().len();
    println!("{:.2} % are brain floats; error {:.2e}, rounded {:.2e}", 100.0 * share, error(&rounded), error(&once));
    println!("values of a row of 1024: {}, rounded {}", distinct(&rounded[..1024]), distinct(&once[..1024]));
    assert!(share < 0.02 && error(&rounded) < error(&once) && error(&rounded) > 0.0);
    assert!(distinct(&rounded[..1024]) > distinct(&once[..1024]));
}

/// What a device cannot do is a usage error that says why.
#[test]
fn a_precision_that_is_not_there_is_a_usage_error() {
    for verb in [
        "bench train --model micro --grid 4 --codes 16",
        "pretrain --data d --output_dir o",
        "step --checkpoint c \
        --input i --epoch 0 --lr 0 --output o",
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_sorcen"))
            .args(verb.split_whitespace().chain(["--precision", "tf32"]))
            .output()
            .unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{verb}: {message}");
        assert!(
            message.contains("--precision: expected f32 or bf16, found tf32: TF32 is a format of CUDA's"),
            "{message}"
        );
    }
}

#[test]
fn it_learns_as_f32_does() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let spec = StreamSpec { name: "vqgan".into(), grid: 4, codebook_size: 16, tokenizer: None };
    let mut writer = TokenDatasetWriter::create(&data, vec!["even".into(), "odd".into()], &[spec]).unwrap();
    for image in 0..40u16 {
        let ids: Vec<u16> = (0..16).map(|t| (image % 2) * 8 + (t + image / 2) % 2 * 3).collect();
        writer.push(image % 2, &[&ids]).unwrap();
    }
    writer.finish(None).unwrap();
    let [f32, bf16] = [Precision::F32, Precision::Bf16].map(|precision| {
        let out = dir.path().join(format!("{precision:?}"));
        let mut options = PretrainOptions::new(&data, &out, ModelChoice::Micro, Duration::Steps(80));
        options.batch_size = 8;
        options.lr = Some(2e-3);
        options.echo_warmup_epochs = Some(1);
        options.precision = precision;
        pretrain(&options, &mut |_| ControlFlow::Continue(())).unwrap();
        let log = std::fs::read_to_string(out.join("log.txt")).unwrap();
        let losses = log
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["train_rec_loss"].as_f64().unwrap());
        losses.collect::<Vec<_>>()
    });
    println!("f32 {f32:?}, bf16 {bf16:?}");
    let (first, last) = (bf16[0], bf16[bf16.len() - 1]);
    assert!(first - last > 0.4, "from {first} to {last}");
    assert!((last - f32[f32.len() - 1]).abs() < CURVE, "{f32:?}, {bf16:?}");
}
