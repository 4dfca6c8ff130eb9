//! MAGE against vectors recorded from its official code: import, encoder and decoder, features, one step.

mod common;

use std::path::Path;
use std::process::Command;

use common::{fixture, tolerance, Failures, Golden};
use ndarray::Array2;
use sorcen_export::tensors::{TensorFile, TensorWriter};

const SET: &str = "mage/mage.safetensors";

/// Runs `sorcen` in `dir`; returns what it printed.
fn sorcen(dir: &Path, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_sorcen")).args(arguments).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn import(dir: &Path) -> String {
    let from = fixture("mage/checkpoint.pth").display().to_string();
    let heads = ["--heads", "4", "--decoder_heads", "2", "--with_training_state"];
    sorcen(dir, &[&["import", "--from", &from, "--out", "model"][..], &heads].concat())
}

/// A tensor of numbers in a file, row-major.
fn numbers(file: &TensorFile, name: &str, rank: usize) -> Vec<f32> {
    file.numbers(name, rank).unwrap().iter().map(|&value| value as f32).collect()
}

/// Writes a tensor `[4, 256]` from a recorded `[4, 256]`, or `[4, 257]` with the class token's column first.
fn put(file: &mut TensorWriter, name: &str, recorded: &[f64]) {
    let columns = recorded.len() / 4;
    let value = |(image, token): (usize, usize)| recorded[image * columns + columns - 256 + token] as i64;
    file.ints(name, Array2::from_shape_fn((4, 256), value).view());
}

#[test]
fn features_latent_and_logits() {
    let dir = tempfile::tempdir().unwrap();
    let printed = import(dir.path());
    assert!(printed.contains("no training_state: the file has no teacher"), "{printed}");
    let (golden, mut failures) = (Golden::open(SET), Failures::default());
    let run = |input: &TensorWriter| {
        input.write(&dir.path().join("in.safetensors")).unwrap();
        let files = ["--input", "in.safetensors", "--output", "out.safetensors"];
        sorcen(dir.path(), &[&["run", "--checkpoint", "model"][..], &files].concat());
        TensorFile::open(&dir.path().join("out.safetensors")).unwrap()
    };

    let mut whole = TensorWriter::default();
    put(&mut whole, "token_ids", &golden.get("token_ids"));
    let features = numbers(&run(&whole), "features", 2);
    failures.compare("features", &features, &golden.get("features_global_pool"), tolerance::ACTIVATIONS);

    // The training forward: half the tokens dropped, the rest of the masked ones replaced.
    let mut masked = TensorWriter::default();
    put(&mut masked, "token_ids", &golden.get("encoder_input_ids"));
    put(&mut masked, "drop_mask", &golden.get("drop_mask"));
    let out = run(&masked);
    failures.compare("latent", &numbers(&out, "latent", 3), &golden.get("latent"), tolerance::ACTIVATIONS);

    // Recorded at positions 0, 8, … 256 of images 0 and 1; position 0, the class token's, has no code logits here.
    let (logits, recorded) = (numbers(&out, "logits", 3), golden.get("logits_slice"));
    for image in 0..2 {
        let row = |position: usize| &logits[(image * 256 + position - 1) * 1024..][..1024];
        let found: Vec<f32> = (8..=256).step_by(8).flat_map(row).copied().collect();
        let expected = &recorded[(image * 33 + 1) * 1024..(image + 1) * 33 * 1024];
        failures.compare("logits", &found, expected, tolerance::LOGITS);
    }
    failures.check();
}

#[test]
fn one_training_step() {
    let dir = tempfile::tempdir().unwrap();
    import(dir.path());
    let input = fixture(SET).display().to_string();
    let step = ["step", "--checkpoint", "model", "--epoch", "0", "--lr", "1e-3", "--output", "out.safetensors"];
    sorcen(dir.path(), &[&step[..], &["--input", &input]].concat());
    let out = TensorFile::open(&dir.path().join("out.safetensors")).unwrap();
    let (golden, mut failures) = (Golden::open(SET), Failures::default());

    for name in ["loss_rec", "loss_total"] {
        failures.compare(name, &numbers(&out, name, 0), &golden.get("loss"), tolerance::LOSSES);
    }
    assert!(!out.has("loss_infonce") && !out.has("param/projector.projector.0.weight"), "MAGE has no contrast");

    let shapes = [
        ("blocks.0.attn.qkv.weight", 2),
        ("token_emb.word_embeddings.weight", 2),
        ("decoder_embed.weight", 2),
        ("mlm_layer.fc.weight", 2),
        ("mlm_layer.bias", 3),
        ("norm.bias", 1),
    ];
    for (name, rank) in shapes {
        let [grad, after] = ["grad", "after_adamw"].map(|group| format!("{group}/{name}"));
        failures.compare(&grad, &numbers(&out, &grad, rank), &golden.get(&grad), tolerance::GRADIENTS);

        // Where a first gradient is rounding noise, Adam makes a full step of it: not compared.
        let reliable = golden.get(&format!("adam_reliable/{name}"));
        assert!(reliable.contains(&1.0), "{name}");
        let (mut found, mut expected) = (numbers(&out, &format!("param/{name}"), rank), golden.get(&after));
        found.iter_mut().zip(&reliable).for_each(|(value, &reliable)| *value *= reliable as f32);
        expected.iter_mut().zip(&reliable).for_each(|(value, &reliable)| *value *= reliable);
        failures.compare(&after, &found, &expected, tolerance::WEIGHTS);
    }

    // Over all gradients, those not recorded one by one too.
    let bytes = std::fs::read(dir.path().join("out.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let gradients = tensors.tensors().into_iter().filter(|(name, _)| name.starts_with("grad/"));
    let squares = gradients.map(|(_, view)| -> f64 {
        view.data().as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes)).powi(2)).sum()
    });
    let norm = squares.sum::<f64>().sqrt() as f32;
    failures.compare("gradient norm", &[norm], &golden.get("grad_total_norm"), tolerance::GRADIENT_NORM);
    failures.check();
}
