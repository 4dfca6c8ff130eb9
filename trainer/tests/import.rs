//! Official checkpoint files, and the tester's commands on them, as a user runs them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::SafeTensors;
use sorcen_tests::compare::largest_difference;

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

fn close(name: &str, found: &[f32], expected: &[f32], tolerance: f64) {
    let worst = largest_difference(found, expected);
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

/// A run's checkpoint as an official file and back: every bit of it, optimiser included.
#[test]
fn an_exported_pth_is_imported_to_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let emoji = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("assets/emoji/train").display().to_string();
    let train = ["pretrain", "--data", &emoji, "--model", "micro", "--batch_size", "4", "--lr", "1e-3"];
    succeed(&[&train, &["--steps", "3", "--output_dir", &path("run")][..]].concat());
    let (run, pth, back) = (path("run/checkpoint"), path("run.pth"), path("back"));
    succeed(&["export", "--checkpoint", &run, "--out", &pth]);
    // Heads and vocabulary are in the file.
    succeed(&["import", "--from", &pth, "--out", &back, "--with_training_state"]);
    let config = |dir: &str| std::fs::read_to_string(Path::new(dir).join("config.json")).unwrap();
    assert_eq!(config(&run), config(&back));
    let message = fail(&["import", "--from", &pth, "--out", &path("other"), "--heads", "8"]);
    assert!(message.contains("heads: expected 4, as the file states, found --heads 8"), "{message}");
    for file in ["model.safetensors", "training_state/state.safetensors"] {
        let [first, second] = [&run, &back].map(|dir| std::fs::read(Path::new(dir).join(file)).unwrap());
        let [first, second] = [&first, &second].map(|bytes| SafeTensors::deserialize(bytes).unwrap());
        assert_eq!(first.len(), second.len(), "{file}");
        for (name, tensor) in first.tensors() {
            assert!(tensor.data() == second.tensor(&name).unwrap().data(), "{file}: {name}");
        }
    }
    let state = std::fs::read_to_string(Path::new(&back).join("training_state/state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    assert_eq!((state["updates"].as_u64(), state["epochs"].as_u64()), (Some(3), Some(1)), "{state}");

    // The run goes on where the schedules are: at the start of the epoch that is asked for.
    let per_epoch = std::fs::read_to_string(Path::new(&path("run")).join("run.json")).unwrap();
    let per_epoch = serde_json::from_str::<serde_json::Value>(&per_epoch).unwrap()["plan"]["steps_per_epoch"].as_u64();
    let steps = (2 * per_epoch.unwrap() + 2).to_string();
    let on = ["--init", &back, "--start_epoch", "2", "--steps", &steps, "--output_dir", &path("on")];
    succeed(&[&train, &on[..]].concat());
    let state = std::fs::read_to_string(dir.path().join("on/checkpoint/training_state/state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    assert_eq!((state["updates"].as_u64(), state["step"].as_u64()), (Some(5), steps.parse().ok()), "{state}");

    // Without a training state it is encoder and decoder alone; what is unused is there, and zero.
    let bare = path("bare");
    succeed(&["import", "--from", &pth, "--out", &bare]);
    succeed(&["export", "--checkpoint", &bare, "--out", &path("bare.pth")]);
    use sorcen_trainer::checkpoint::WeightSource;
    use sorcen_trainer::import::PthFile;
    let [whole, bare] = ["run.pth", "bare.pth"].map(|file| PthFile::open(&dir.path().join(file)).unwrap());
    assert!(bare.shape("projector.projector.0.weight").is_none() && whole.shape("classifier.0.bias").is_some());
    assert!(bare.read("cls_token").unwrap().iter().all(|&x| x == 0.0));
}

/// An optimiser is that of the official code's groups over the model, or refused; a file may also have none.
#[test]
fn how_far_a_pth_was_is_told() {
    use sorcen_trainer::import::{History, PthFile};

    let history = |file: &str| PthFile::open(&official(file)).unwrap().history();
    let message = history("common/checkpoint_layout_tiny.pth").unwrap_err().to_string();
    assert!(message.contains("groups of [1, 1] parameters, where the model has [3, 1]"), "{message}");
    assert_eq!(history("common/checkpoint_layout_legacy.pth").unwrap(), History { updates: 0, epochs: 4 });
    assert_eq!(history("T/checkpoint.pth").unwrap(), History::default());
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

/// A file in PyTorch's older format around the pickle `contents`, with the storage `0` of `floats` zeros.
fn legacy_file(contents: &[u8], floats: u64) -> Vec<u8> {
    let magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
    let keys = b"\x80\x02]U\x010a.";
    let zeros = vec![0; 4 * floats as usize];
    [magic, b"\x80\x02M\xe9\x03.".as_slice(), b"\x80\x02}.", contents, keys, &floats.to_le_bytes(), &zeros].concat()
}

/// `{"w": _rebuild_tensor_v2(storage 0, 0, (side, side), (stride, 1))}`, with numbers of 8 bytes.
fn state_of_one(side: u64, stride: u64) -> Vec<u8> {
    let number = |value: u64| [b"\x8a\x08".as_slice(), &value.to_le_bytes()].concat();
    let mut pickle = b"\x80\x02}U\x01wctorch._utils\n_rebuild_tensor_v2\n(".to_vec();
    pickle.extend(b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x04tQ");
    for numbers in [vec![0], vec![side, side], vec![stride, 1]] {
        let tuple = if numbers.len() == 2 { b"\x86".as_slice() } else { b"" };
        numbers.into_iter().for_each(|value| pickle.extend(number(value)));
        pickle.extend(tuple);
    }
    pickle.extend(b"tRs.");
    pickle
}

#[test]
fn hostile_pickles_are_refused() {
    use sorcen_trainer::checkpoint::WeightSource;
    use sorcen_trainer::import::PthFile;

    let dir = tempfile::tempdir().unwrap();
    let open = |bytes: Vec<u8>| {
        let file = dir.path().join("hostile.pth");
        std::fs::write(&file, bytes).unwrap();
        PthFile::open(&file)
    };
    // The frame is right: an honest tensor of it is read.
    let honest = open(legacy_file(&state_of_one(2, 2), 4)).unwrap();
    assert_eq!(honest.read("w").unwrap(), [0.0; 4]);

    // Two zeros that claim to be 2^80, or 2^40, numbers: no memory is asked for.
    for (side, stride) in [(1 << 40, 0), (1 << 20, 0)] {
        let message = open(legacy_file(&state_of_one(side, stride), 4)).unwrap_err().to_string();
        assert!(message.contains("hostile.pth: w: expected no more elements"), "{message}");
    }

    // Parameters in parameters, a million deep: neither the stack nor patience runs out.
    let mut nested = b"\x80\x02}U\x01wctorch._utils\n_rebuild_parameter\nq\x00".to_vec();
    nested.extend(b"h\x00".repeat(1_000_000));
    nested.push(b'N');
    nested.extend(b"\x85R".repeat(1_000_000));
    nested.extend(b"s.");
    let message = open(legacy_file(&nested, 4)).unwrap_err().to_string();
    assert!(message.contains("hostile.pth"), "{message}");

    // One tensor under a hundred thousand names, whose key or shape is a million long: 100 GB if each had its own.
    let [long, wide] = [("k".repeat(1_000_000), 1), ("0".into(), 1_000_000)].map(|(key, dims): (String, usize)| {
        let mut pickle =
            b"\x80\x02}(U\x05firstctorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\nFloatStorage\nX".to_vec();
        pickle.extend([&(key.len() as u32).to_le_bytes()[..], key.as_bytes(), b"U\x03cpuK\x04tQK\x00"].concat());
        let sizes = [b"(", &b"K\x01".repeat(dims)[..], b"t"].concat();
        pickle.extend([&sizes[..], &sizes, b"tRq\x01"].concat());
        (0..100_000).for_each(|name| pickle.extend(format!("U\x05{name:05}h\x01").into_bytes()));
        pickle.extend(b"u.");
        pickle
    });
    let message = open(legacy_file(&long, 4)).unwrap_err().to_string();
    assert!(message.contains("a storage 0 that no tensor is of"), "{message}");
    let file = open(legacy_file(&wide, 4)).unwrap();
    assert!(file.shape("00000").is_none(), "of more dimensions than a tensor has");

    // A pickle that would run a program: a call that nobody makes.
    let marker = dir.path().join("ran");
    let call = format!("cposix\nsystem\n(S'touch {}'\ntR.", marker.display());
    assert!(open(legacy_file(call.as_bytes(), 4)).is_err());
    assert!(!marker.exists());
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
