//! Matrix products in bf16: near f32, with f32 weights that go on learning. On the CPU, whose bf16 product sums in f32.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

use safetensors::{Dtype, SafeTensors};
use sorcen_trainer::config::{Duration, ModelChoice, PretrainOptions};
use sorcen_trainer::data::{StreamSpec, TokenDatasetWriter};
use sorcen_trainer::model::Precision;
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
