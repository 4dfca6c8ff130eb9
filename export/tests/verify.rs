//! The cross-check passes where it should, and only there.

mod common;

use std::path::PathBuf;

use sorcen_export::{
    onnx,
    pack::{self, PackOptions},
    verify::{random_tokens, verify, VerifyInputs},
};
use sorcen_runtime::pack::Precision;

#[test]
fn every_artefact_of_the_golden_model() {
    let (dir, checkpoint) = common::golden_checkpoint();
    onnx::export(&checkpoint, dir.path(), "test").unwrap();
    let packs: Vec<PathBuf> = [Precision::F32, Precision::F16, Precision::Int8]
        .into_iter()
        .map(|precision| {
            let path = dir.path().join(format!("{}.srcn", precision.name()));
            pack::write(&checkpoint, &path, &PackOptions::new(precision)).unwrap();
            path
        })
        .collect();
    let tokens = random_tokens(&checkpoint.config, 2, 0);
    let inputs = VerifyInputs { checkpoint, onnx: Some(dir.path().into()), packs, tokens };
    let report = verify(&inputs).unwrap();
    println!("{}", report.to_markdown());
    assert_eq!(report.comparisons.len(), 12, "4 artefacts, 3 outputs");
    assert!(report.passed());
    let engines: Vec<_> = report.comparisons.iter().map(|c| c.engine.as_str()).step_by(3).collect();
    assert_eq!(engines, ["ONNX in tract", "pack f32", "pack f16", "pack int8"]);
    let int8 = &report.comparisons[9];
    assert!(int8.max_abs > 1e-4, "int8 is not f32: {int8:?}");
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    assert_eq!(json["passed"], true);
    assert_eq!(json["comparisons"][11]["output"], "logits");
}

#[test]
fn other_weights_and_other_models_do_not_pass() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = std::sync::Arc::new(common::checkpoint(&dir.path().join("a"), 1));
    let other = common::checkpoint(&dir.path().join("b"), 2);
    let pack = dir.path().join("b.srcn");
    pack::write(&other, &pack, &PackOptions { encoder_only: true, ..PackOptions::new(Precision::F32) }).unwrap();
    let tokens = random_tokens(&checkpoint.config, 3, 0);
    let mut inputs = VerifyInputs { checkpoint, onnx: None, packs: vec![pack], tokens };
    let report = verify(&inputs).unwrap();
    assert!(!report.passed());
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
