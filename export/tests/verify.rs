//! The cross-check passes where it should, and only there.

mod common;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use sorcen_export::{
    engine::{self, Engine},
    onnx::{self, OnnxOptions, Weights},
    pack::{self, PackFile, PackOptions},
    reference::Reference,
    tensors::TensorWriter,
    tokenizer::{AnyTokenizer, PatchTokenizer},
    verify::{random_tokens, verify, Dump, VerifyInputs},
    Checkpoint,
};
use sorcen_runtime::{
    pack::Precision,
    rng::{Rng, Stream},
    schema::Param,
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
    assert_eq!(report.comparisons.len(), 20, "5 artefacts, 4 outputs");
    assert!(report.passed());
    let engines: Vec<_> = report.comparisons.iter().map(|c| c.engine.as_str()).step_by(4).collect();
    assert_eq!(engines, ["ONNX f32 in tract", "pack f32", "pack f16", "pack int8", "pack int4"]);
    let int8 = &report.comparisons[12];
    assert!(int8.distance.max_abs > 1e-4, "int8 is not f32: {int8:?}");
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    assert_eq!(json["passed"], true);
    let outputs: Vec<_> = (12..16).map(|i| json["comparisons"][i]["output"].as_str().unwrap()).collect();
    assert_eq!(outputs, ["features", "latent", "logits", "step"]);
    assert!(json["comparisons"][12]["cosine_min"].as_f64().unwrap() > 0.99);
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
    assert!(report.failures[0].contains("b.srcn: made from another checkpoint"), "{:?}", report.failures);
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
    let tokens = random_tokens(&checkpoint.config, 8, 0);
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
        assert_eq!(report.comparisons[0].nearest, Some(1.0), "of 8");
    }
    assert_eq!(reference.config(), &checkpoint.config);
}

/// The same numbers from another checkpoint: a failure, unless that is allowed.
#[test]
fn another_checkpoint_fails_whatever_its_numbers() {
    let (dir, golden) = common::golden_checkpoint();
    let onnx = dir.path().join("onnx");
    onnx::export(&golden, &onnx, "test").unwrap();
    let packs: Vec<PathBuf> = ["named", "nameless"].map(|name| dir.path().join(name)).into();
    pack::write(&golden, &packs[0], &PackOptions::new(Precision::F32)).unwrap();
    without_card(&packs[0], &packs[1]);

    // The same weights in another file: another SHA-256.
    let again = dir.path().join("again");
    Checkpoint::write(&again, &golden.config, |param| golden.tensor(param).into()).unwrap();
    let again = Arc::new(Checkpoint::open(&again).unwrap());
    assert_ne!(again.sha256(), golden.sha256());
    let tokens = random_tokens(&golden.config, 1, 0);
    let mut inputs = VerifyInputs { onnx: vec![onnx], packs, ..VerifyInputs::new(again, tokens) };
    let report = verify(&inputs).unwrap();
    assert!(!report.passed() && report.out_of_tolerance() == 0, "{}", report.to_markdown());
    let parts = ["onnx: made from another", "named: made from another", "nameless: does not say"];
    assert_eq!(report.failures.len(), parts.len());
    for (failure, part) in report.failures.iter().zip(parts) {
        assert!(failure.contains(part) && failure.contains("--allow_other_checkpoint"), "{failure}");
    }
    assert!(report.to_markdown().contains("FAILED: "));

    inputs.allow_other_checkpoint = true;
    let report = verify(&inputs).unwrap();
    assert!(report.passed() && report.failures.is_empty());
    let noted = parts.map(|part| report.notes.iter().any(|note| note.contains(part)));
    assert_eq!(noted, [true; 3], "{:?}", report.notes);
}

/// A pack again, without its card.
fn without_card(from: &Path, to: &Path) {
    let file = PackFile::open(from).unwrap();
    let pack = file.pack(from).unwrap();
    let mut writer = sorcen_runtime::pack::Writer::new(std::fs::File::create(to).unwrap(), pack.config()).unwrap();
    let (_dir, golden) = common::golden_checkpoint();
    let c = pack.config();
    for param in sorcen_runtime::schema::params(c) {
        let values = golden.tensor(param);
        let values = match param {
            Param::WordEmbedding => [
                &values[..c.codebook_size * c.embed_dim],
                &values[c.class_token_id * c.embed_dim..][..c.embed_dim],
                &values[c.mask_token_id * c.embed_dim..][..c.embed_dim],
            ]
            .concat(),
            _ => values.to_vec(),
        };
        writer.tensor(sorcen_runtime::pack::TensorData::F32(&values)).unwrap();
    }
    writer.finish().unwrap();
}

/// A model whose latent, or whose logits, are twice those of another: every cosine is 1.
#[test]
fn doubled_outputs_fail_in_every_precision() {
    let (dir, golden) = common::golden_checkpoint();
    let doubled = |name: &str, which: &[Param]| {
        let at = dir.path().join(name);
        let factor = |param| if which.contains(&param) { 2.0 } else { 1.0 };
        let scaled = |param| golden.tensor(param).iter().map(|x| factor(param) * x).collect::<Vec<f32>>().into();
        Checkpoint::write(&at, &golden.config, scaled).unwrap();
        Checkpoint::open(&at).unwrap()
    };
    let latent = doubled("latent", &[Param::NormWeight, Param::NormBias]);
    let logits = doubled("logits", &[Param::HeadNormWeight, Param::HeadNormBias, Param::HeadBias]);
    let tokens = random_tokens(&golden.config, 2, 0);
    for (checkpoint, wrong) in [(latent, "latent"), (logits, "logits")] {
        let mut inputs = VerifyInputs::new(golden.clone(), tokens.clone());
        inputs.allow_other_checkpoint = true;
        for precision in [Precision::F32, Precision::F16, Precision::Int8, Precision::Int4] {
            let path = checkpoint.dir().join(precision.name());
            pack::write(&checkpoint, &path, &PackOptions::new(precision)).unwrap();
            inputs.packs.push(path);
        }
        for weights in [Weights::F32, Weights::F16] {
            let path = checkpoint.dir().join(format!("onnx {}", weights.name()));
            let options = OnnxOptions { weights, licence: "test", tokenizer: None };
            onnx::write(&checkpoint, &path, &options).unwrap();
            inputs.onnx.push(path);
        }
        let report = verify(&inputs).unwrap();
        let lines: Vec<_> = report.comparisons.iter().filter(|c| c.output == wrong).collect();
        assert_eq!(lines.len(), 6);
        for line in lines {
            assert!(!line.passed && (line.distance.relative - 1.0).abs() < 0.2, "{line:?}");
            assert!(line.distance.cosine_min >= line.cosine_bound, "a cosine does not see it: {line:?}");
        }
        let features = report.comparisons.iter().filter(|c| c.output == "features");
        assert!(features.clone().count() == 6 && features.clone().all(|c| c.passed), "what is before it is right");
    }
}

/// One file of a folder taken from another export: each is found, by its metadata or, where that lies, its numbers.
#[test]
fn files_of_another_export_are_found() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let [right, wrong] = [1, 2].map(|seed| common::checkpoint(&dir.join(format!("model {seed}")), seed));
    for (name, checkpoint) in [("right", &right), ("wrong", &wrong)] {
        onnx::export(checkpoint, &dir.join(name), "test").unwrap();
    }
    let tokens = random_tokens(&right.config, 3, 0);
    let folder = dir.join("right");
    let inputs = VerifyInputs { onnx: vec![folder.clone()], ..VerifyInputs::new(Arc::new(right), tokens) };
    let report = verify(&inputs).unwrap();
    assert!(report.passed() && report.comparisons[3].output == "step", "{}", report.to_markdown());
    for file in [onnx::DECODER_FILE, onnx::STEP_FILE] {
        let whole = std::fs::read(folder.join(file)).unwrap();
        let other = std::fs::read(dir.join("wrong").join(file)).unwrap();
        std::fs::write(folder.join(file), &other).unwrap();
        let error = verify(&inputs).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains("source checkpoint"), "{error}");

        // It says that it is of the right one.
        let [ours, theirs] = [&inputs.checkpoint.sha256(), &wrong.sha256()].map(|hash| hash.as_bytes().to_vec());
        let mut lying = other;
        let places: Vec<usize> = (0..lying.len() - ours.len()).filter(|&at| lying[at..].starts_with(&theirs)).collect();
        places.iter().for_each(|&at| lying[at..at + ours.len()].copy_from_slice(&ours));
        assert!(!places.is_empty());
        std::fs::write(folder.join(file), &lying).unwrap();
        let report = verify(&inputs).unwrap();
        let failed: Vec<_> = report.comparisons.iter().filter(|c| !c.passed).map(|c| c.output).collect();
        assert_eq!(failed, [if file == onnx::STEP_FILE { "step" } else { "logits" }], "{}", report.to_markdown());
        std::fs::write(folder.join(file), &whole).unwrap();
    }
    std::fs::remove_file(folder.join(onnx::STEP_FILE)).unwrap();
    let report = verify(&inputs).unwrap();
    assert!(report.passed() && report.notes.iter().any(|note| note.contains("no step.onnx")), "{:?}", report.notes);
}

/// The tokenizers in packs and ONNX folders are the file's, or it shows.
#[test]
fn tokenizers_are_compared() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let checkpoint = Arc::new(common::checkpoint(&dir.join("model"), 1));
    let patches = |seed: usize| {
        let bytes = (0..12 * 4 * 4 * 3).map(|i| (i * (31 + seed) / 7 % 256) as u8).collect();
        AnyTokenizer::Patches(PatchTokenizer::new(bytes, 12, 4).unwrap())
    };
    let kinds = [(patches(0), patches(2)), (AnyTokenizer::Vit(common::vit()), patches(0))];
    for (kind, (tokenizer, other)) in kinds.into_iter().enumerate() {
        let mut inputs = VerifyInputs::new(checkpoint.clone(), random_tokens(&checkpoint.config, 20, 0));
        let folder = dir.join(format!("onnx {kind}"));
        let options = OnnxOptions { weights: Weights::F32, licence: "test", tokenizer: Some(&tokenizer) };
        onnx::write(&checkpoint, &folder, &options).unwrap();
        inputs.onnx.push(folder.clone());
        for precision in [Precision::F32, Precision::Int8] {
            let path = dir.join(format!("{} {kind}.srcn", precision.name()));
            let options = PackOptions { tokenizer: Some(&tokenizer), ..PackOptions::new(precision) };
            pack::write(&checkpoint, &path, &options).unwrap();
            inputs.packs.push(path);
        }
        let report = verify(&inputs).unwrap();
        let left_out = report.notes.iter().filter(|note| note.contains("its tokenizer was not compared")).count();
        assert_eq!((left_out, report.tokenizers.len()), (3, 0), "{:?}", report.notes);

        inputs.tokenizer = Some(tokenizer);
        let report = verify(&inputs).unwrap();
        println!("{}", report.to_markdown());
        assert!(report.passed() && report.tokenizers.len() == 3, "{}", report.to_markdown());
        let is_exact = report.tokenizers.iter().all(|c| (c.same_ids, c.pixel_max) == (1.0, 0));
        assert!(is_exact || kind == 1, "patches are exact");

        inputs.tokenizer = Some(other);
        match verify(&inputs) {
            Ok(report) => {
                assert!(report.tokenizers.len() == 3 && report.tokenizers.iter().all(|c| !c.passed));
                assert!(!report.passed() && report.out_of_tolerance() == 3, "{}", report.to_markdown());
            }
            Err(error) => panic!("{error}"),
        }
    }
    let mut inputs = VerifyInputs::new(checkpoint.clone(), random_tokens(&checkpoint.config, 2, 0));
    let bare = dir.join("bare.srcn");
    pack::write(&checkpoint, &bare, &PackOptions::new(Precision::F32)).unwrap();
    (inputs.packs, inputs.tokenizer) = (vec![bare], Some(patches(0)));
    let report = verify(&inputs).unwrap();
    assert!(!report.passed() && report.failures[0].contains("no artefact has one"), "{:?}", report.failures);
}

/// A vote over few images, or of one class, is no comparison: the report says why there is none.
#[test]
fn classes_are_compared_where_they_say_something() {
    let checkpoint = common::demo();
    let pack = common::bundled().join("demo.srcn");
    let check = |images: usize, labels: Vec<u16>| {
        let mut inputs = VerifyInputs::new(checkpoint.clone(), common::demo_tokens(images));
        (inputs.packs, inputs.labels) = (vec![pack.clone()], Some(labels));
        let report = verify(&inputs).unwrap();
        (report.comparisons[0].same_class, report.to_markdown())
    };
    let (none, text) = check(8, vec![0, 1, 0, 1, 0, 1, 0, 1]);
    assert!(none.is_none() && text.contains("no classes by 5-NN: 8 images"), "{text}");
    let (none, text) = check(120, vec![3; 120]);
    assert!(none.is_none() && text.contains("no classes by 5-NN: 1 classes"), "{text}");
    let (some, text) = check(120, (0..120).map(|i| i / 40).collect());
    assert!(some.is_some_and(|share| share > 0.8) && text.contains(" % of 120 |"), "{text}");
}
