//! The cross-check passes where it should, and only there.

mod common;

use std::{path::PathBuf, sync::Arc};

use sorcen_export::{
    engine::{self, Engine},
    onnx,
    pack::{self, PackOptions},
    reference::Reference,
    tensors::TensorWriter,
    verify::{random_tokens, verify, Dump, VerifyInputs},
    Checkpoint,
};
use sorcen_runtime::{
    pack::Precision,
    rng::{Rng, Stream},
    ModelConfig,
};

#[test]
fn every_artefact_of_the_golden_model() {
    let (dir, checkpoint) = common::golden_checkpoint();
    onnx::export(&checkpoint, dir.path(), "test").unwrap();
    let packs: Vec<PathBuf> = [Precision::F32, Precision::F16, Precision::Int8, Precision::Int4]
        .into_iter()
        .map(|precision| {
            let path = dir.path().join(format!("{}.srcn", precision.name()));
            pack::write(&checkpoint, &path, &PackOptions::new(precision)).unwrap();
            path
        })
        .collect();
    let tokens = random_tokens(&checkpoint.config, 2, 0);
    let inputs = VerifyInputs { onnx: vec![dir.path().into()], packs, ..VerifyInputs::new(checkpoint, tokens) };
    let report = verify(&inputs).unwrap();
    println!("{}", report.to_markdown());
    assert_eq!(report.comparisons.len(), 15, "5 artefacts, 3 outputs");
    assert!(report.passed());
    let engines: Vec<_> = report.comparisons.iter().map(|c| c.engine.as_str()).step_by(3).collect();
    assert_eq!(engines, ["ONNX f32 in tract", "pack f32", "pack f16", "pack int8", "pack int4"]);
    let int8 = &report.comparisons[9];
    assert!(int8.distance.max_abs > 1e-4, "int8 is not f32: {int8:?}");
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    assert_eq!(json["passed"], true);
    assert_eq!(json["comparisons"][11]["output"], "logits");
    assert!(json["comparisons"][9]["cosine_min"].as_f64().unwrap() > 0.99);
    assert!(report.notes[0].contains("not run in onnxruntime"));
}

#[test]
fn other_weights_and_other_models_do_not_pass() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = Arc::new(common::checkpoint(&dir.path().join("a"), 1));
    let other = common::checkpoint(&dir.path().join("b"), 2);
    let pack = dir.path().join("b.srcn");
    pack::write(&other, &pack, &PackOptions { encoder_only: true, ..PackOptions::new(Precision::F32) }).unwrap();
    let tokens = random_tokens(&checkpoint.config, 3, 0);
    let mut inputs = VerifyInputs { packs: vec![pack], ..VerifyInputs::new(checkpoint, tokens) };
    let report = verify(&inputs).unwrap();
    assert!(!report.passed());
    assert!(report.notes[0].contains("b.srcn: made from another checkpoint"), "{:?}", report.notes);
    assert_eq!(report.comparisons.len(), 2, "an encoder-only pack has no logits");
    assert!(report.to_markdown().contains("FAILED"));

    inputs.packs.clear();
    assert!(!verify(&inputs).unwrap().passed(), "nothing was compared");

    let (golden_dir, golden) = common::golden_checkpoint();
    let pack = golden_dir.path().join("golden.srcn");
    pack::write(&golden, &pack, &PackOptions::new(Precision::F32)).unwrap();
    inputs.packs = vec![pack];
    let error = verify(&inputs).unwrap_err().to_string();
    assert!(error.contains("golden.srcn") && error.contains("grid: 3") && error.contains("grid: 16"), "{error}");
}

/// Sizes that no preset has: nothing may depend on round widths, equal heads or a full vocabulary.
#[test]
fn odd_sizes_agree_too() {
    for seed in 0..8 {
        let rng = Rng::new(seed, Stream::Evaluation, 1);
        let draw = |i, n| rng.below(i, n) as usize;
        let (heads, decoder_heads) = (1 + draw(0, 3), 1 + draw(1, 3));
        let codes = 2 + draw(2, 40);
        let config = ModelConfig {
            grid: 2 + draw(3, 3),
            codebook_size: codes,
            vocab_size: codes + 2 + draw(4, 5),
            class_token_id: codes + 1,
            mask_token_id: codes,
            embed_dim: heads * (2 + draw(5, 7)),
            depth: 1 + draw(6, 3),
            num_heads: heads,
            decoder_embed_dim: decoder_heads * (2 + draw(7, 7)),
            decoder_depth: 1 + draw(8, 2),
            decoder_num_heads: decoder_heads,
            mlp_ratio: 1 + draw(9, 4),
            layer_norm_eps: 1e-5,
        };
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        Checkpoint::write(dir, &config, common::weights(&config, seed)).unwrap();
        let checkpoint = Arc::new(Checkpoint::open(dir).unwrap());
        onnx::export(&checkpoint, dir, "test").unwrap();
        let pack = dir.join("model.srcn");
        pack::write(&checkpoint, &pack, &PackOptions::new(Precision::F32)).unwrap();
        let tokens = random_tokens(&config, 3, seed);
        let inputs =
            VerifyInputs { onnx: vec![dir.into()], packs: vec![pack], ..VerifyInputs::new(checkpoint, tokens) };
        let report = verify(&inputs).unwrap();
        assert!(report.passed(), "{config:?}\n{}", report.to_markdown());
    }
}

/// What another engine wrote to a file is held against the reference on the same input.
#[test]
fn a_dump_is_compared() {
    let (dir, checkpoint) = common::golden_checkpoint();
    let reference = Reference::new(checkpoint.clone());
    let tokens = random_tokens(&checkpoint.config, 3, 0);
    let paths = ["inputs", "outputs"].map(|name| dir.path().join(name));
    let mut file = TensorWriter::default();
    file.ints("token_ids", tokens.view());
    file.write(&paths[0]).unwrap();
    for (noise, passed) in [(0.0, true), (1e-3, false)] {
        let out = engine::run(&reference, tokens.view(), None).unwrap();
        let mut file = TensorWriter::default();
        file.floats("features", out.features.unwrap().view());
        file.floats("latent", out.latent.view());
        file.floats("logits", out.logits.mapv(|x| x + noise).view());
        file.write(&paths[1]).unwrap();
        let [inputs, outputs] = paths.clone();
        let dump = Dump { name: "Burn".into(), inputs, outputs };
        let inputs = VerifyInputs { dump: Some(dump), ..VerifyInputs::new(checkpoint.clone(), tokens.clone()) };
        let report = verify(&inputs).unwrap();
        assert_eq!((report.comparisons.len(), report.passed()), (3, passed), "{}", report.to_markdown());
        assert_eq!(report.comparisons[0].nearest, Some(1.0));
    }
    assert_eq!(reference.config(), &checkpoint.config);
}
