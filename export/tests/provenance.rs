//! What files say of where they come from: what does not go together is refused, and nothing of the machine is told.

mod common;

use std::{fs, path::Path};

use common::{fail, succeed};
use ndarray::{Array1, Array2, Array3};
use serde_json::json;
use sorcen_export::{
    tensors::{TensorFile, TensorWriter},
    tokenizer::PatchTokenizer,
};
use sorcen_runtime::tokens::{pack_row, row_bytes};

/// 12 codes of 2x2 pixels, each of one grey, `step` apart.
fn tokenizer(step: u8) -> PatchTokenizer {
    PatchTokenizer::new((0..12u8).flat_map(|code| [code * step; 12]).collect(), 12, 2).unwrap()
}

/// `run/checkpoint`, trained on codes of `own.safetensors`, beside `other.safetensors`.
fn run(dir: &Path) {
    let checkpoint = common::checkpoint(&dir.join("run/checkpoint"), 1);
    tokenizer(20).save(&dir.join("own.safetensors")).unwrap();
    tokenizer(10).save(&dir.join("other.safetensors")).unwrap();
    let secret = |name: &str| dir.join("secret").join(name);
    let record = json!({
        "model": checkpoint.config,
        "options": {
            "data": secret("train"), "output_dir": secret("run"), "init": secret("init"), "model": { "file": secret("m") },
            "watch": { "tokenizer": secret("t"), "knn_data": secret("k") }, "batch_size": 4, "seed": 7,
            "losses": { "method": "sorcen" },
        },
        "dataset": { "images": 8, "classes": 2, "tokenizer": tokenizer(20).fingerprint(), "sha256": "ab" },
        "program": { "sorcen": "0.1.0", "folder": secret("bin") },
    });
    fs::write(dir.join("run/run.json"), record.to_string()).unwrap();
    fs::write(dir.join("run/log.txt"), json!({ "step": 5, "train_loss": 2.5, "file": secret("log") }).to_string())
        .unwrap();
}

/// A token dataset of four images, as the trainer writes it.
fn dataset(dir: &Path, tokenizer: &str) {
    fs::create_dir(dir).unwrap();
    let row = row_bytes(9, 4);
    let mut rows = vec![0; 4 * row];
    for (image, row) in rows.chunks_exact_mut(row).enumerate() {
        let ids: Vec<u16> = (0..9).map(|t| (image as u16 * 5 + t) % 12).collect();
        pack_row(&ids, 4, row).unwrap();
    }
    let npy = |dtype: &str, shape: &str, data: &[u8]| {
        let header = format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}");
        let header = format!("{header:<117}\n");
        [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), data].concat()
    };
    let tokens = npy("|u1", &format!("(4, {row})"), &rows);
    let labels = npy("<u2", "(4,)", &[0; 8]);
    let sha256 = |bytes: &[u8]| -> String {
        use sha2::Digest as _;
        sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let meta = json!({
        "format": "sorcen-tokens", "version": 1, "count": 4, "class_names": ["a"],
        "streams": { "vqgan": { "grid": 3, "bits": 4, "codebook_size": 12, "tokenizer": tokenizer } },
        "sha256": { "tokens_vqgan.npy": sha256(&tokens), "labels.npy": sha256(&labels) },
    });
    fs::write(dir.join("meta.json"), meta.to_string()).unwrap();
    fs::write(dir.join("tokens_vqgan.npy"), tokens).unwrap();
    fs::write(dir.join("labels.npy"), labels).unwrap();
}

#[test]
fn nothing_of_the_machine_is_in_what_is_written() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    run(dir);
    let root = dir.to_str().unwrap();
    succeed(
        dir,
        &format!("pack --checkpoint {root}/run/checkpoint --tokenizer own.safetensors --out {root}/out/m.srcn"),
    );
    succeed(dir, &format!("onnx --checkpoint {root}/run/checkpoint --tokenizer own.safetensors --out {root}/out"));
    succeed(dir, &format!("generate --pack {root}/out/m.srcn --steps 2 --out {root}/out/g.st --out {root}/out/g.png"));
    let mut files = 0;
    for entry in fs::read_dir(dir.join("out")).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        for secret in [root.as_bytes(), b"secret"] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret), "{}", path.display());
        }
        files += 1;
    }
    assert_eq!(files, 9, "five ONNX files, the card, the pack, tensors, a sheet");
    let inspection = succeed(dir, "inspect out/m.srcn --json");
    let card = &serde_json::from_str::<serde_json::Value>(&inspection).unwrap()["card"];
    assert_eq!(
        (&card["seed"], &card["data"]["images"], &card["metrics"]["train_loss"]),
        (&json!(7), &json!(8), &json!(2.5))
    );
    assert_eq!(card["tokenizer"], tokenizer(20).fingerprint());
    assert_eq!(card["options"], json!({ "batch_size": 4, "seed": 7, "losses": { "method": "sorcen" } }));
}

#[test]
fn another_tokenizer_is_refused_and_can_be_allowed() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    run(dir);
    let (own, other) = (tokenizer(20).fingerprint(), tokenizer(10).fingerprint());
    dataset(&dir.join("own"), &own);
    dataset(&dir.join("other"), &other);
    succeed(dir, "pack --checkpoint run/checkpoint --out plain.srcn");
    succeed(dir, "onnx --checkpoint run/checkpoint --out onnx");
    for (line, found) in [
        ("pack --checkpoint run/checkpoint --out x.srcn --tokenizer NAME.safetensors", "NAME.safetensors"),
        ("pack --checkpoint run/checkpoint --out x.srcn --precision int4 --calibrate NAME", "NAME"),
        ("onnx --checkpoint run/checkpoint --out x --tokenizer NAME.safetensors", "NAME.safetensors"),
        ("onnx --checkpoint run/checkpoint --out x --precision int8 --tokens NAME", "NAME"),
        ("verify --checkpoint run/checkpoint --pack plain.srcn --tokens NAME", "NAME"),
        ("generate --checkpoint run/checkpoint --steps 2 --out x.png --tokenizer NAME.safetensors", "NAME.safetensors"),
        ("generate --onnx onnx --steps 2 --out x.png --tokenizer NAME.safetensors", "NAME.safetensors"),
        ("generate --pack plain.srcn --steps 2 --out x.png --tokenizer NAME.safetensors", "NAME.safetensors"),
    ] {
        let said = fail(
            dir,
            &line.replace("NAME", "other"),
            1,
            &[&found.replace("NAME", "other"), &own, &other, "--allow_other_tokenizer"],
        );
        assert!(said.contains(": tokenizer: expected that of "), "{said}");
        assert!(!dir.join("x").exists() && !dir.join("x.png").exists() && !dir.join("x.srcn").exists());
        for line in [line.replace("NAME", "own"), line.replace("NAME", "other") + " --allow_other_tokenizer"] {
            succeed(dir, &line);
            let _ = (
                fs::remove_dir_all(dir.join("x")),
                fs::remove_file(dir.join("x.png")),
                fs::remove_file(dir.join("x.srcn")),
            );
        }
    }

    // What is in a pack was put there with or without a word; who draws with it hears of it, too.
    let line = "pack --checkpoint run/checkpoint --tokenizer other.safetensors --allow_other_tokenizer --out o.srcn";
    succeed(dir, line);
    fail(
        dir,
        "generate --pack o.srcn --steps 2 --out x.png",
        1,
        &["the tokenizer in o.srcn", "--allow_other_tokenizer"],
    );
    succeed(dir, "generate --pack o.srcn --steps 2 --out x.png --allow_other_tokenizer");

    // Ids say whose codes they are.
    succeed(dir, "generate --checkpoint run/checkpoint --images 2 --steps 2 --out own.st");
    let file = TensorFile::open(&dir.join("own.st")).unwrap();
    assert_eq!(file.metadata().unwrap()["tokenizer"], own);
    let mut foreign = TensorWriter::default();
    foreign.ints("ids", file.ints("final_ids", 2).unwrap().view());
    foreign.note("tokenizer", Some(&other));
    foreign.write(&dir.join("other.st")).unwrap();
    for line in [
        "run --pack plain.srcn --input NAME.st --output x",
        "generate --pack plain.srcn --input NAME.st --steps 2 --output x",
        "reconstruct --onnx onnx --input NAME.st --steps 2 --output x",
        "verify --checkpoint run/checkpoint --pack plain.srcn --tokens NAME.st",
        "pack --checkpoint run/checkpoint --self_test 1 --self_test_tokens NAME.st --out x",
    ] {
        fail(
            dir,
            &line.replace("NAME", "other"),
            1,
            &["other.st: tokenizer: ", &own, &other, "--allow_other_tokenizer"],
        );
        succeed(dir, &line.replace("NAME", "own"));
        succeed(dir, &(line.replace("NAME", "other") + " --allow_other_tokenizer"));
    }

    // Another number of codes is no question of fingerprints.
    PatchTokenizer::new(vec![7; 13 * 12], 13, 2).unwrap().save(&dir.join("13.safetensors")).unwrap();
    let line = "generate --checkpoint run/checkpoint --out x.png --tokenizer 13.safetensors --allow_other_tokenizer";
    fail(dir, line, 1, &["tokenizer: codes: expected 12, the model's, found 13"]);
}

/// Older files do not say what they were made with: that is said, and taken.
#[test]
fn what_cannot_be_checked_is_said() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    common::checkpoint(&dir.join("model"), 1);
    tokenizer(20).save(&dir.join("t.safetensors")).unwrap();
    let line = "generate --checkpoint model --steps 2 --out x.png --tokenizer t.safetensors";
    let out = common::sorcen_export(dir, line);
    assert!(out.status.success());
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(said.contains("note: model does not say which tokenizer it was made with"), "{said}");
    assert!(said.contains("t.safetensors cannot be checked"), "{said}");
}

#[test]
fn a_head_of_another_checkpoint_is_refused_and_can_be_allowed() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let (own, other) = (common::checkpoint(&dir.join("own"), 1), common::checkpoint(&dir.join("other"), 2));
    let head = |name: &str, checkpoint: Option<&str>| {
        let mut head = TensorWriter::default();
        head.floats("head.weight", Array2::from_elem((3, 16), 0.1).view());
        head.floats("head.bias", Array1::from_elem(3, 0.5).view());
        head.note("checkpoint_sha256", checkpoint);
        head.write(&dir.join(name)).unwrap();
    };
    head("own.st", Some(&own.sha256()));
    head("other.st", Some(&other.sha256()));
    head("old.st", None);
    let line = "pack --checkpoint own --out x.srcn --classifier";
    let parts = ["other.st: checkpoint: ", &own.sha256(), &other.sha256(), "--allow_other_checkpoint"];
    fail(dir, &format!("{line} other.st"), 1, &parts);
    assert!(!dir.join("x.srcn").exists());
    succeed(dir, &format!("{line} own.st"));
    succeed(dir, &format!("{line} other.st --allow_other_checkpoint"));
    let out = common::sorcen_export(dir, &format!("{line} old.st"));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && said.contains("old.st does not say which checkpoint"), "{said}");
}

/// What one verb writes, the next one reads: `final_ids` of `generate`, `ids` `[B, h, h]` of a tokenizer.
#[test]
fn files_of_ids_chain() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    common::checkpoint(&dir.join("model"), 1);
    succeed(dir, "generate --checkpoint model --images 2 --steps 3 --out drawn.st");
    let drawn = TensorFile::open(&dir.join("drawn.st")).unwrap().ints("final_ids", 2).unwrap();
    let write = |name: &str, tensor: &str, flat: bool| {
        let mut file = TensorWriter::default();
        let grids = Array3::from_shape_vec((2, 3, 3), drawn.iter().copied().collect()).unwrap();
        match flat {
            true => file.ints(tensor, drawn.view()),
            false => file.ints(tensor, grids.view()),
        }
        file.floats(
            "drop_mask",
            Array3::from_shape_fn((2, 3, 3), |(b, r, c)| f32::from(u8::from(r == c && c == b))).view(),
        );
        file.write(&dir.join(name)).unwrap();
    };
    write("rows.st", "token_ids", true);
    write("grids.st", "ids", false);
    let outputs = ["drawn", "rows", "grids"].map(|name| {
        succeed(dir, &format!("run --checkpoint model --input {name}.st --output o.st"));
        let file = TensorFile::open(&dir.join("o.st")).unwrap();
        (file.floats("logits", 3).unwrap(), file.floats("latent", 3).unwrap())
    });
    assert_eq!(outputs[1], outputs[2], "drop_mask may be a grid, too");
    assert_eq!(outputs[0].1.shape(), [2, 10, 16]);
    for name in ["drawn", "rows", "grids"] {
        succeed(dir, &format!("pack --checkpoint model --self_test 2 --self_test_tokens {name}.st --out m.srcn"));
        succeed(dir, &format!("verify --checkpoint model --pack m.srcn --tokens {name}.st"));
        succeed(dir, &format!("generate --checkpoint model --input {name}.st --steps 2 --out o.st"));
        succeed(dir, &format!("reconstruct --checkpoint model --input {name}.st --steps 2 --out o.st"));
    }

    let mut both = TensorWriter::default();
    both.ints("final_ids", drawn.view());
    both.ints("token_ids", drawn.mapv(|id| (id + 1) % 12).view());
    both.write(&dir.join("both.st")).unwrap();
    let parts = ["both.st: `token_ids` and `final_ids`", "different ids"];
    fail(dir, "run --checkpoint model --input both.st --output o.st", 1, &parts);
}
