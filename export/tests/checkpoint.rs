//! Checkpoints: what is written is read back, and everything wrong with one is named.

mod common;

use std::{collections::HashMap, fs, path::Path};

use half::f16;
use proptest::prelude::*;
use safetensors::{tensor::TensorView, Dtype};
use sorcen_export::{Checkpoint, Error};
use sorcen_runtime::schema;

type Tensors = HashMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// The tensors of a valid checkpoint, to be damaged.
fn tensors() -> Tensors {
    let config = common::config();
    let mut weights = common::weights(&config, 1);
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
    schema::params(&config)
        .map(|p| (p.to_string(), (Dtype::F32, p.shape(&config).dims().to_vec(), bytes(&weights(p)))))
        .collect()
}

/// Writes the tensors (not by our own writer) and opens the folder.
fn open(dir: &Path, tensors: &Tensors) -> Result<Checkpoint, Error> {
    let views = tensors.iter().map(|(n, (d, s, b))| (n, TensorView::new(*d, s.clone(), b).unwrap()));
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    fs::write(dir.join("config.json"), serde_json::to_string(&common::config()).unwrap()).unwrap();
    Checkpoint::open(dir)
}

fn message(result: Result<Checkpoint, Error>) -> String {
    match result {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    }
}

#[track_caller]
fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` not in: {message}");
    }
}

#[test]
fn round_trip() {
    let dir = tempfile::tempdir().unwrap();
    let config = common::config();
    let checkpoint = common::checkpoint(dir.path(), 5);
    assert_eq!(checkpoint.config, config);
    let mut weights = common::weights(&config, 5);
    for param in schema::params(&config) {
        assert_eq!(checkpoint.tensor(param), &*weights(param), "{param}");
    }
    let files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert_eq!(files.len(), 2, "no temporary file stays: {files:?}");
    let again = common::checkpoint(dir.path(), 5);
    assert_eq!(again.sha256(), checkpoint.sha256(), "the same weights are the same bytes");
}

#[test]
fn half_precision_and_extra_tensors_are_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let mut tensors = tensors();
    let (dtype, shape, bytes) = tensors.get_mut("norm.weight").unwrap();
    let halves: Vec<f16> = (0..shape[0]).map(|i| f16::from_f32(i as f32 / 8.0)).collect();
    *dtype = Dtype::F16;
    *bytes = halves.iter().flat_map(|h| h.to_le_bytes()).collect();
    tensors.insert("token_emb.position_ids".into(), (Dtype::I64, vec![1, 1], vec![0; 8]));
    let checkpoint = open(dir.path(), &tensors).unwrap();
    let expected: Vec<f32> = (0..16).map(|i| i as f32 / 8.0).collect();
    assert_eq!(checkpoint.tensor(schema::Param::NormWeight), expected);
}

#[test]
fn wrong_tensors_are_named() {
    let dir = tempfile::tempdir().unwrap();

    let mut missing = tensors();
    missing.remove("blocks.1.attn.qkv.weight");
    assert_says(
        &message(open(dir.path(), &missing)),
        &["model.safetensors", "`blocks.1.attn.qkv.weight` is missing", "[48, 16]"],
    );

    let mut shape = tensors();
    shape.get_mut("decoder_embed.weight").unwrap().1.reverse();
    assert_says(
        &message(open(dir.path(), &shape)),
        &["model.safetensors", "`decoder_embed.weight`", "expected shape [8, 16], found [16, 8]"],
    );

    let mut dtype = tensors();
    dtype.get_mut("norm.bias").unwrap().0 = Dtype::I32;
    assert_says(&message(open(dir.path(), &dtype)), &["`norm.bias`", "expected dtype F32", "found I32"]);

    let mut nan = tensors();
    nan.get_mut("mlm_layer.bias").unwrap().2[12..16].copy_from_slice(&f32::NAN.to_le_bytes());
    assert_says(&message(open(dir.path(), &nan)), &["`mlm_layer.bias`", "found NaN at element 3"]);
}

#[test]
fn wrong_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    assert_says(
        &message(Checkpoint::open(&dir.path().join("nowhere"))),
        &["nowhere: expected a checkpoint folder (config.json", "found nothing"],
    );

    open(dir.path(), &tensors()).unwrap();
    let weights = dir.path().join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() - 100]).unwrap();
    assert_says(&message(Checkpoint::open(dir.path())), &["model.safetensors", "complete safetensors file"]);
    fs::write(&weights, [0; 3]).unwrap();
    assert_says(&message(Checkpoint::open(dir.path())), &["model.safetensors", "complete safetensors file"]);

    let config = dir.path().join("config.json");
    fs::write(&config, "{\"grid\": 3}").unwrap();
    assert_says(&message(Checkpoint::open(dir.path())), &["config.json", "missing field"]);
    let mut bad = common::config();
    bad.num_heads = 5;
    fs::write(&config, serde_json::to_string(&bad).unwrap()).unwrap();
    assert_says(&message(Checkpoint::open(dir.path())), &["config.json", "num_heads", "found 5"]);
}

/// A header may say anything about where the numbers are.
#[test]
fn lying_headers_are_named() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), &tensors()).unwrap();
    let path = dir.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let size = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&whole[8..8 + size]).unwrap();
    let end = (whole.len() - 8 - size) as u64;
    let lie = |edit: &dyn Fn(&mut serde_json::Value)| {
        let mut header = header.clone();
        edit(&mut header);
        let header = header.to_string();
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &whole[8 + size..]].concat();
        fs::write(&path, bytes).unwrap();
        message(Checkpoint::open(dir.path()))
    };
    let offsets = |header: &mut serde_json::Value, start: u64, stop: u64| {
        header["norm.bias"]["data_offsets"] = serde_json::json!([start, stop]);
    };
    let lies: [&dyn Fn(&mut serde_json::Value); 6] = [
        &|header| offsets(header, end, end + 64),
        &|header| offsets(header, 0, 64),
        &|header| offsets(header, 64, 0),
        &|header| offsets(header, u64::MAX - 63, u64::MAX),
        &|header| header["norm.bias"]["shape"] = serde_json::json!([u64::MAX, 2]),
        &|header| header["norm.bias"]["dtype"] = "F33".into(),
    ];
    for edit in lies {
        assert_says(&lie(edit), &["model.safetensors", "complete safetensors file"]);
    }
    for size in [u64::MAX, 1 << 40, 0] {
        fs::write(&path, [&size.to_le_bytes()[..], &whole[8..]].concat()).unwrap();
        assert_says(&message(Checkpoint::open(dir.path())), &["model.safetensors", "complete safetensors file"]);
    }

    // A folder in the place of each file, and a file in the place of the folder.
    assert_says(
        &message(Checkpoint::open(&path)),
        &["model.safetensors", "a checkpoint folder", "found a safetensors file"],
    );
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_says(
        &message(Checkpoint::open(dir.path())),
        &["model.safetensors", "expected a file, found an empty folder"],
    );
}

#[test]
fn wrong_values_are_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let error = Checkpoint::write(dir.path(), &common::config(), |_| vec![0.0; 3].into()).unwrap_err();
    assert_says(&error.to_string(), &["token_emb.word_embeddings.weight", "320", "3"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing half-written");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens to the header, opening ends with an answer, and a success has the right sizes.
    #[test]
    fn damaged_headers_never_panic(edits in proptest::collection::vec((0usize..4000, any::<u8>()), 1..4)) {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path(), &tensors()).unwrap();
        let path = dir.path().join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        for (at, value) in edits {
            bytes[at] = value;
        }
        fs::write(&path, bytes).unwrap();
        if let Ok(checkpoint) = Checkpoint::open(dir.path()) {
            for param in schema::params(&checkpoint.config) {
                prop_assert_eq!(checkpoint.tensor(param).len(), param.shape(&checkpoint.config).elements());
            }
        }
    }
}
