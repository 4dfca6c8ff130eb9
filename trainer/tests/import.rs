//! Official checkpoint files, and the tester's commands on them, as a user runs them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::SafeTensors;

fn official(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/official").join(name)
}

fn sorcen(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sorcen")).args(arguments).output().unwrap()
}

fn succeed(arguments: &[&str]) {
    let output = sorcen(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn fail(arguments: &[&str]) -> String {
    let output = sorcen(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn floats(file: &Path, name: &str) -> Vec<f32> {
    let bytes = std::fs::read(file).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap_or_else(|_| panic!("no {name}"));
    view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn close(name: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{name}");
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{name}: {worst}");
}

/// Imports the small official model with its training state.
fn imported(dir: &Path) -> String {
    let out = dir.join("model").display().to_string();
    let from = official("T/checkpoint.pth").display().to_string();
    succeed(&[
        "import",
        "--from",
        &from,
        "--out",
        &out,
        "--heads",
        "4",
        "--decoder_heads",
        "4",
        "--with_training_state",
    ]);
    out
}

#[test]
fn a_pth_gives_the_official_weights() {
    let dir = tempfile::tempdir().unwrap();
    let out = PathBuf::from(imported(dir.path()));
    for name in ["token_emb.word_embeddings.weight", "blocks.1.mlp.fc2.weight", "decoder_pos_embed_learned"] {
        let expected = floats(&official("T/weights.safetensors"), name);
        close(name, &floats(&out.join("model.safetensors"), name), &expected, 0.0);
    }
    let name = "blocks_momentum.0.attn.qkv.weight";
    let found = floats(&out.join("training_state/state.safetensors"), name);
    close(name, &found, &floats(&official("T/weights.safetensors"), name), 0.0);
}

#[test]
fn run_gives_the_official_latent_and_features() {
    let dir = tempfile::tempdir().unwrap();
    let model = imported(dir.path());
    let output = dir.path().join("out.safetensors");
    let input = official("T/features.safetensors").display().to_string();
    succeed(&["run", "--checkpoint", &model, "--input", &input, "--output", &output.display().to_string()]);
    let expected = floats(&official("T/features.safetensors"), "features_global_pool");
    close("features", &floats(&output, "features"), &expected, 2e-5);
    assert_eq!(floats(&output, "latent").len(), 4 * 257 * 64);
    assert_eq!(floats(&output, "logits").len(), 4 * 256 * 1024);
}

#[test]
fn step_gives_the_official_losses_and_gradients() {
    let dir = tempfile::tempdir().unwrap();
    let model = imported(dir.path());
    let output = dir.path().join("out.safetensors");
    let recorded = official("T/step_epoch50.safetensors");
    let (input, out) = (recorded.display().to_string(), output.display().to_string());
    succeed(&["step", "--checkpoint", &model, "--input", &input, "--epoch", "50", "--lr", "1e-3", "--output", &out]);
    for name in ["loss_rec", "loss_uniformity", "loss_infonce", "loss_classifier", "loss_total"] {
        close(name, &floats(&output, name), &floats(&recorded, name), 1e-5);
    }
    for name in ["grad/blocks.0.attn.qkv.weight", "grad/momentum_projector.projector.0.weight", "grad/mlm_layer.bias"] {
        close(name, &floats(&output, name), &floats(&recorded, name), 5e-6);
    }
    let name = "blocks_momentum.0.attn.qkv.weight";
    let expected = floats(&recorded, &format!("after_ema1/{name}"));
    close(name, &floats(&output, &format!("param/{name}")), &expected, 2e-5);
}

#[test]
fn both_formats_are_read_and_damage_is_named() {
    use sorcen_trainer::checkpoint::WeightSource;
    use sorcen_trainer::import::PthFile;

    let expected = official("common/checkpoint_layout.safetensors");
    for file in ["common/checkpoint_layout_tiny.pth", "common/checkpoint_layout_legacy.pth"] {
        let pth = PthFile::open(&official(file)).unwrap();
        for name in ["fc.weight", "fc.bias", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"] {
            close(name, &pth.read(name).unwrap(), &floats(&expected, name), 0.0);
        }
        assert_eq!(pth.shape("token_emb.position_ids"), Some(vec![1, 9]), "{file}");
    }

    // However a file is cut or changed: an error that names it, or other numbers, but no crash.
    let dir = tempfile::tempdir().unwrap();
    let damaged = dir.path().join("damaged.pth");
    for file in ["common/checkpoint_layout_tiny.pth", "common/checkpoint_layout_legacy.pth"] {
        let bytes = std::fs::read(official(file)).unwrap();
        for at in (0..bytes.len()).step_by(7) {
            let mut changed = bytes.clone();
            changed[at] ^= 0x55;
            for bytes in [&bytes[..at], &changed[..]] {
                std::fs::write(&damaged, bytes).unwrap();
                match PthFile::open(&damaged) {
                    Ok(pth) => drop(pth.values("fc.weight", &[3, 4])),
                    Err(error) => assert!(error.to_string().contains("damaged.pth"), "{error}"),
                }
            }
        }
    }
}

#[test]
fn what_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out").display().to_string();
    let weights = official("T/checkpoint.pth").display().to_string();
    let message = fail(&["import", "--from", &weights, "--out", &out]);
    assert!(message.contains("--heads"), "{message}");
    let other = official("common/checkpoint_layout_tiny.pth").display().to_string();
    let message = fail(&["import", "--from", &other, "--out", &out]);
    assert!(message.contains("token_emb.word_embeddings.weight"), "{message}");
    assert!(!Path::new(&out).exists(), "nothing is left behind");
}
