//! The ONNX files: whole models, one generation step, the tokenizer, in tract and, where SORCEN_ONNXRUNTIME=1, in
//! onnxruntime too, which is installed from PyPI into a folder of its own (`requirements.txt` beside this file).

mod common;

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, Once},
};

use ndarray::{Array2, Array3, Array4, ArrayD};
use sorcen_export::{
    calibrate::Ranges,
    engine::{self, Engine},
    onnx::{self, OnnxOptions, TokenizerWeights, VqganWeights, Weights},
    onnxruntime::{OnnxRuntime, Python},
    pack::{self, PackOptions},
    reference::Reference,
    tensors::{TensorFile, TensorWriter},
    tokenizer::{AnyTokenizer, Painter, PatchTokenizer},
    tolerance::{tolerance, Link, Output},
    tract::Tract,
    verify::{random_tokens, verify, VerifyInputs},
    Checkpoint,
};
use sorcen_runtime::{pack::Precision, schema::Param, ModelConfig};
use sorcen_tests::compare::largest_difference;
use tract_onnx::prelude::*;

/// The packages for onnxruntime, every one with its version.
const REQUIREMENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/requirements.txt");

/// A Python with onnxruntime; `None`, with the reason printed past the test's capture, where it was not asked for.
fn python() -> Option<Python> {
    static SAID: Once = Once::new();
    static INSTALLING: Mutex<()> = Mutex::new(());
    if std::env::var_os("SORCEN_ONNXRUNTIME").is_none_or(|value| value != "1") {
        SAID.call_once(|| {
            let said = "left out: ONNX files in onnxruntime (SORCEN_ONNXRUNTIME=1 installs it from PyPI and runs them)";
            std::io::stderr().write_all(format!("{said}\n").as_bytes()).unwrap();
        });
        return None;
    }
    let _one_at_a_time = INSTALLING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("onnxruntime");
    let (python, installed) = (dir.join("bin/python"), dir.join("requirements.txt"));
    let wanted = fs::read_to_string(REQUIREMENTS).unwrap();
    if fs::read_to_string(&installed).is_ok_and(|installed| installed == wanted) {
        return Some(Python::new(&python).unwrap());
    }
    let run = |program: &Path, arguments: &[&str]| {
        let ran = Command::new(program).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&ran.stderr);
        assert!(
            ran.status.success(),
            "{} {arguments:?} (without SORCEN_ONNXRUNTIME=1 it is left out): {said}",
            program.display()
        );
    };
    run(Path::new("python3"), &["-m", "venv", dir.to_str().unwrap()]);
    run(&python, &["-m", "pip", "install", "--quiet", "--no-deps", "--requirement", REQUIREMENTS]);
    fs::write(&installed, wanted).unwrap();
    Some(Python::new(&python).unwrap())
}

/// Runs a file in tract on one input.
fn in_tract(path: &Path, input: Tensor) -> TValue {
    let model = tract_onnx::onnx().model_for_path(path).unwrap().into_typed().unwrap();
    let batch = SymbolValues::default().with(&model.symbols.sym("B"), input.shape()[0] as i64);
    let plan = model.concretize_dims(&batch).unwrap().into_optimized().unwrap().into_runnable().unwrap();
    plan.run(tvec![input.into()]).unwrap().remove(0)
}

/// Runs a file in onnxruntime on one input.
fn in_onnxruntime(python: &Python, path: &Path, write: impl FnOnce(&mut TensorWriter)) -> TensorFile {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    let mut tensors = TensorWriter::default();
    write(&mut tensors);
    tensors.write(&input).unwrap();
    python.run_file(path, &input, &output, None).unwrap();
    TensorFile::open(&output).unwrap()
}

#[test]
fn one_step_is_encoder_and_decoder() {
    let (dir, checkpoint) = common::golden_checkpoint();
    let step = onnx::export(&checkpoint, dir.path(), "test").unwrap().pop().unwrap();
    let mut tokens = random_tokens(&checkpoint.config, 2, 1);
    tokens.iter_mut().enumerate().filter(|(t, _)| t % 3 > 0).for_each(|(_, id)| *id = 2024);
    let expected = engine::run(&Reference::new(checkpoint), tokens.view(), None).unwrap().logits;
    let bound = f64::from(tolerance(Link::F32, Output::Logits).max_abs);

    let out = in_tract(&step, tokens.clone().into_tensor());
    let found = out.to_array_view::<f32>().unwrap();
    assert_eq!(found.shape(), expected.shape());
    assert!(largest_difference(&found, &expected) <= bound);
    if let Some(python) = python() {
        let out = in_onnxruntime(&python, &step, |file| file.ints("token_ids", tokens.view()));
        assert!(largest_difference(out.floats("logits", 3).unwrap(), &expected) <= bound);
    }
}

#[test]
fn the_tokenizer_is_exact() {
    let tokenizer = PatchTokenizer::open(&common::bundled().join("tokenizer.safetensors")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let weights = Weights::F32;
    let either = AnyTokenizer::Patches(tokenizer.clone());
    let options = OnnxOptions { weights, licence: "test", tokenizer: Some(&either) };
    let paths = onnx::write(&common::demo(), dir.path(), &options).unwrap();
    let [.., encoder, decoder] = &paths[..] else { panic!("{paths:?}") };

    // Held-back emoji with noise on top, so that pixels are not codes.
    let ids = common::demo_tokens(6);
    let image = |row: ndarray::ArrayView1<i64>| {
        let ids: Vec<u16> = row.iter().map(|&id| id as u16).collect();
        let mut rgb = common::pixels(&tokenizer, &ids, 8);
        rgb.iter_mut().enumerate().for_each(|(i, x)| *x = x.saturating_add((i * 7 % 23) as u8));
        rgb
    };
    let images: Vec<Vec<u8>> = ids.rows().into_iter().map(image).collect();
    let side = 8 * tokenizer.patch();
    let encode = |rgb: &Vec<u8>| {
        let mut ids = [0; 64];
        tokenizer.codebook().encode(rgb, side, side, &mut ids).unwrap();
        ids
    };
    let expected: Vec<[u16; 64]> = images.iter().map(encode).collect();
    let pixels = |images: &[Vec<u8>]| {
        let value = |(b, c, y, x): (usize, usize, usize, usize)| f32::from(images[b][(y * side + x) * 3 + c]) / 255.0;
        Array4::from_shape_fn((images.len(), 3, side, side), value)
    };
    let input = pixels(&images);
    let check = |what: &str, ids: Vec<i64>| {
        let wide: Vec<i64> = expected.iter().flatten().map(|&id| id.into()).collect();
        assert_eq!(ids, wide, "{what}");
    };
    let out = in_tract(encoder, input.clone().into_tensor());
    assert_eq!(out.shape(), [6, 8, 8]);
    check("tract", out.to_array_view::<i64>().unwrap().iter().copied().collect());

    let decoded: Vec<Vec<u8>> = expected.iter().map(|ids| common::pixels(&tokenizer, ids, 8)).collect();
    let shown = pixels(&decoded);
    let ids = Array3::from_shape_fn((6, 8, 8), |(b, y, x)| i64::from(expected[b][y * 8 + x]));
    let out = in_tract(decoder, ids.clone().into_tensor());
    let close = |found: ndarray::ArrayViewD<f32>| {
        assert!(largest_difference(&found, &shown) < 1e-6, "up to the division by 255")
    };
    close(out.to_array_view::<f32>().unwrap());
    if let Some(python) = python() {
        let out = in_onnxruntime(&python, encoder, |file| file.floats("image", input.view()));
        check("onnxruntime", out.ints("ids", 3).unwrap().iter().copied().collect());
        let out = in_onnxruntime(&python, decoder, |file| file.ints("ids", ids.view()));
        close(out.floats("image", 4).unwrap().view());
    }
}

/// A recorded tensor of floats.
fn recorded(file: &TensorFile, name: &str) -> Array4<f32> {
    file.numbers(name, 4).unwrap().mapv(|x| x as f32).into_dimensionality().unwrap()
}

/// The official VQGAN: recorded ids exactly, recorded pictures closely, in both.
#[test]
fn the_official_vqgan() {
    /// As for Burn: the recordings are themselves up to 1e-5 from a run in float64.
    const TOLERANCE: f64 = 4e-5;
    let official = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/official/vqgan");
    for set in ["vqgan_mini", "vqgan_small"] {
        let weights = TensorFile::open(&official.join(format!("{set}_weights_f16.safetensors"))).unwrap();
        let vectors = TensorFile::open(&official.join(format!("{set}.safetensors"))).unwrap();
        let get = |name: &str| {
            let array = (1..=4).find_map(|rank| weights.numbers(name, rank).ok())?;
            Some((array.shape().to_vec(), array.iter().map(|&x| x as f32).collect()))
        };
        let image = recorded(&vectors, "image");
        let ids = vectors.ints("indices_grid", 3).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let vqgan = VqganWeights { get: &get };
        let tokenizer = TokenizerWeights::Vqgan(&vqgan);
        let paths = onnx::write_tokenizer(&tokenizer, ids.shape()[1], dir.path(), "vqgan", "test").unwrap();
        let [encoder, decoder] = &paths[..] else { panic!("{paths:?}") };
        let expected = recorded(&vectors, "reconstruction");

        let found = in_tract(encoder, image.clone().into_tensor());
        assert_eq!(found.to_array_view::<i64>().unwrap(), ids.view(), "{set} in tract");
        let found = in_tract(decoder, ids.clone().into_tensor());
        let error = largest_difference(found.to_array_view::<f32>().unwrap(), &expected);
        println!("{set} in tract: pictures within {error:.1e}");
        assert!(error < TOLERANCE, "{set}: {error:.1e}");
        if let Some(python) = python() {
            let found = in_onnxruntime(&python, encoder, |file| file.floats("image", image.view()));
            assert_eq!(found.ints("ids", 3).unwrap(), ids, "{set} in onnxruntime");
            let found = in_onnxruntime(&python, decoder, |file| file.ints("ids", ids.view()));
            let error = largest_difference(found.floats("image", 4).unwrap(), &expected);
            println!("{set} in onnxruntime: pictures within {error:.1e}");
            assert!(error < TOLERANCE, "{set}: {error:.1e}");
        }
        let without = |name: &str| get(name).filter(|_| name != "decoder.norm_out.bias");
        let vqgan = VqganWeights { get: &without };
        let error = onnx::write_tokenizer(&TokenizerWeights::Vqgan(&vqgan), 4, dir.path(), "", "").unwrap_err();
        assert!(error.to_string().contains("decoder.norm_out.bias"), "{error}");
    }
}

#[test]
fn a_vit_tokenizer_is_the_runtime_s() {
    let tokenizer = common::vit();
    let c = *tokenizer.config();
    let dir = tempfile::tempdir().unwrap();
    let weights = TokenizerWeights::Vit(&tokenizer);
    let paths = onnx::write_tokenizer(&weights, c.grid, dir.path(), &tokenizer.fingerprint(), "test").unwrap();
    let [encoder, decoder] = &paths[..] else { panic!("{paths:?}") };
    let side = c.side();
    let bytes: Vec<Vec<u8>> = (0..3usize)
        .map(|n| (0..side * side * 3).map(|i| ((i * (7 + n) / 3) ^ (i / 48 * 11)) as u8).collect())
        .collect();
    let either = AnyTokenizer::Vit(tokenizer.clone());
    let painter = Painter::of(&either).unwrap();
    let ids: Vec<Vec<u16>> = bytes.iter().map(|rgb| painter.encode(rgb, c.grid).unwrap()).collect();
    let painted: Vec<u8> = ids.iter().flat_map(|ids| painter.decode(ids, c.grid).unwrap()).collect();
    let image = Array4::from_shape_fn((3, 3, side, side), |(n, channel, y, x)| {
        f32::from(bytes[n][(y * side + x) * 3 + channel]) / 255.0
    });
    let expected = Array3::from_shape_fn((3, c.grid, c.grid), |(n, y, x)| i64::from(ids[n][y * c.grid + x]));
    let close = |found: ndarray::ArrayViewD<f32>| {
        for ((n, y, x, channel), &byte) in
            Array4::from_shape_vec((3, side, side, 3), painted.clone()).unwrap().indexed_iter()
        {
            let found = (found[[n, channel, y, x]] * 255.0).clamp(0.0, 255.0);
            assert!((found - f32::from(byte)).abs() < 0.51, "{found} {byte}");
        }
    };
    let found = in_tract(encoder, image.clone().into_tensor());
    assert_eq!(found.to_array_view::<i64>().unwrap(), expected.clone().into_dyn().view());
    close(in_tract(decoder, expected.clone().into_tensor()).to_array_view::<f32>().unwrap());
    if let Some(python) = python() {
        let found = in_onnxruntime(&python, encoder, |file| file.floats("image", image.view()));
        assert_eq!(found.ints("ids", 3).unwrap(), expected.clone().into_dyn());
        let found = in_onnxruntime(&python, decoder, |file| file.ints("ids", expected.view()));
        close(found.floats("image", 4).unwrap().view());
    }
    let distinct: std::collections::BTreeSet<i64> = expected.iter().copied().collect();
    assert!(distinct.len() > 4, "{expected:?}");
    assert!(onnx::write_tokenizer(&weights, c.grid + 1, dir.path(), "", "").is_err(), "of one grid");
}

#[test]
fn onnxruntime_agrees_in_every_precision() {
    let Some(python) = python() else { return };
    let checkpoint = common::demo();
    let dir = tempfile::tempdir().unwrap();
    let ranges = Ranges::measure(&checkpoint, common::demo_tokens(96).slice(ndarray::s![64.., ..]), 1.0).unwrap();
    let weights = [Weights::F32, Weights::F16, Weights::Int8(&ranges)];
    let folders: Vec<PathBuf> = weights.iter().map(|weights| dir.path().join(weights.name())).collect();
    for (weights, folder) in weights.into_iter().zip(&folders) {
        onnx::write(&checkpoint, folder, &OnnxOptions { weights, licence: "test", tokenizer: None }).unwrap();
    }
    let size = |folder: &Path| fs::metadata(folder.join(onnx::ENCODER_FILE)).unwrap().len();
    let sizes: Vec<u64> = folders.iter().map(|folder| size(folder)).collect();
    assert!(sizes[1] * 10 < sizes[0] * 7 && sizes[2] * 10 < sizes[0] * 6, "{sizes:?}");

    let tokens = common::demo_tokens(64);
    let mut inputs = VerifyInputs::new(checkpoint.clone(), tokens.clone());
    (inputs.onnx, inputs.python) = (folders.clone(), Some(python.clone()));
    let report = verify(&inputs).unwrap();
    println!("{}", report.to_markdown());
    assert!(report.passed(), "{}", report.to_markdown());
    let engines: Vec<&str> = report.comparisons.iter().step_by(4).map(|c| c.engine.as_str()).collect();
    let ours = ["ONNX f32 in tract", "ONNX f32 in onnxruntime", "ONNX f16 in tract", "ONNX f16 in onnxruntime"];
    assert_eq!(engines, [&ours[..], &["ONNX int8 in onnxruntime"]].concat());

    // Every linear became an integer product; what is left in floats are attention's two products a block.
    let config = &checkpoint.config;
    let cases = [(onnx::ENCODER_FILE, config.depth, 0), (onnx::STEP_FILE, config.depth + config.decoder_depth, 3)];
    for (file, blocks, others) in cases {
        let (input, optimised) = (dir.path().join("in"), dir.path().join("optimised.onnx"));
        let mut file_inputs = TensorWriter::default();
        file_inputs.ints("token_ids", tokens.view());
        let positions = Array2::from_shape_fn(tokens.dim(), |(_, t)| t as i64);
        if file == onnx::ENCODER_FILE {
            file_inputs.ints("positions", positions.view());
        }
        file_inputs.write(&input).unwrap();
        python.run_file(&folders[2].join(file), &input, &dir.path().join("out"), Some(&optimised)).unwrap();
        let model = tract_onnx::onnx().proto_model_for_path(&optimised).unwrap();
        let mut operators: BTreeMap<String, usize> = BTreeMap::new();
        model.graph.unwrap().node.iter().for_each(|node| *operators.entry(node.op_type.clone()).or_default() += 1);
        let count = |names: &[&str]| names.iter().filter_map(|name| operators.get(*name)).sum::<usize>();
        let integer = count(&["MatMulIntegerToFloat", "QLinearMatMul", "DynamicQuantizeMatMul"]);
        assert_eq!(integer, 4 * blocks + others, "{file}: {operators:?}");
        assert_eq!(count(&["MatMul", "FusedMatMul", "Gemm"]), 2 * blocks, "{file}: {operators:?}");
    }

    // tract would read these files wrongly, and says so.
    let error = Tract::open(&folders[2]).err().unwrap().to_string();
    assert!(error.contains("encoder.onnx") && error.contains("onnxruntime"), "{error}");
    inputs.python = None;
    let error = verify(&inputs).unwrap_err().to_string();
    assert!(error.contains("int8") && error.contains("onnxruntime"), "{error}");
    let runtime = OnnxRuntime::open(&python, &folders[2]).unwrap();
    assert_eq!((runtime.precision(), runtime.config()), ("int8", config));
}

#[test]
fn a_python_without_onnxruntime_is_named() {
    let error = Python::new(Path::new("/no/such/python")).unwrap_err().to_string();
    assert!(error.contains("/no/such/python") && error.contains("a Python interpreter"), "{error}");
}

/// Netron shows what each node and value is, and where the file comes from.
#[test]
fn everything_in_a_file_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = std::sync::Arc::new(common::checkpoint(dir.path(), 1));
    let tokenizer = AnyTokenizer::Patches(PatchTokenizer::new(vec![7; 12 * 12], 12, 2).unwrap());
    let tokens = random_tokens(&checkpoint.config, 2, 0);
    let ranges = Ranges::measure(&checkpoint, tokens.view(), 0.999).unwrap();
    for weights in [Weights::F32, Weights::F16, Weights::Int8(&ranges)] {
        let options = OnnxOptions { weights, licence: "CC0", tokenizer: Some(&tokenizer) };
        for path in onnx::write(&checkpoint, dir.path(), &options).unwrap() {
            let model = tract_onnx::onnx().proto_model_for_path(&path).unwrap();
            let metadata: BTreeMap<_, _> =
                model.metadata_props.iter().map(|entry| (entry.key.as_str(), entry.value.as_str())).collect();
            assert_eq!(metadata["licence"], "CC0");
            assert_eq!(metadata["sorcen.checkpoint_sha256"], checkpoint.sha256());
            assert_eq!(metadata["sorcen.precision"], weights.name());
            assert!(metadata["sorcen.tool"].starts_with("sorcen-export "));
            let graph = model.graph.unwrap();
            let named = graph.node.iter().map(|node| (&node.name, &node.doc_string));
            let named = named.chain(graph.value_info.iter().map(|value| (&value.name, &value.doc_string)));
            let named = named.chain(graph.output.iter().map(|value| (&value.name, &value.doc_string)));
            let named = named.chain(graph.input.iter().map(|value| (&value.name, &value.doc_string)));
            let named = named.chain(graph.initializer.iter().map(|value| (&value.name, &value.doc_string)));
            let bare: Vec<_> = named.filter(|(name, doc)| name.is_empty() || doc.is_empty()).collect();
            assert!(bare.is_empty(), "{}: {bare:?}", path.display());
            let described = graph.value_info.len() + graph.output.len();
            assert_eq!(described, graph.node.len(), "{}: every node's output has a shape", path.display());
        }
    }
    let wrong = AnyTokenizer::Patches(PatchTokenizer::new(vec![7; 12], 1, 2).unwrap());
    let options = OnnxOptions { weights: Weights::F32, licence: "", tokenizer: Some(&wrong) };
    let error = onnx::write(&checkpoint, dir.path(), &options).unwrap_err().to_string();
    assert!(error.contains("12, the model's, found 1"), "{error}");
}

#[test]
fn ranges_need_sense() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = std::sync::Arc::new(common::checkpoint(dir.path(), 1));
    let measure = |tokens: ArrayD<i64>, share| {
        let tokens = tokens.into_dimensionality().unwrap();
        Ranges::measure(&checkpoint, Array2::view(&tokens), share).err().map(|error| error.to_string())
    };
    let tokens = random_tokens(&checkpoint.config, 1, 0).into_dyn();
    assert_eq!(measure(tokens.clone(), 1.0), None);
    assert!(measure(tokens, 0.2).unwrap().contains("0.5 to 1"));
    assert!(measure(ArrayD::from_elem(vec![1, 9], 13), 1.0).unwrap().contains("`token_ids`[0, 0]"));
    assert!(measure(ArrayD::zeros(vec![0, 9]), 1.0).unwrap().contains("B at least 1"));
}

/// What f16 cannot hold is refused by name, not written as infinity.
#[test]
fn what_does_not_fit_f16_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let config = common::config();
    let params = [Param::DecoderPosition, Param::HeadFcWeight, Param::WordEmbedding];
    for param in params {
        let mut weights = common::weights(&config, 1);
        Checkpoint::write(dir, &config, |of| {
            let mut values = weights(of).into_owned();
            if of == param {
                values[3] = -70_000.0;
            }
            values.into()
        })
        .unwrap();
        let checkpoint = Checkpoint::open(dir).unwrap();
        let options = OnnxOptions { weights: Weights::F16, licence: "test", tokenizer: None };
        let pack = PackOptions::new(Precision::F16);
        let errors = [
            onnx::write(&checkpoint, &dir.join("onnx"), &options).unwrap_err(),
            pack::write(&checkpoint, &dir.join("pack"), &pack).unwrap_err(),
        ];
        for error in errors.map(|error| error.to_string()) {
            assert_eq!(error, format!("tensor `{param}` as f16: expected magnitudes up to 65504, found -70000"));
        }
        assert!(!dir.join("onnx").exists() && !dir.join("pack").exists());
    }
}

/// Ranges are measured, finite, and of this model.
#[test]
fn ranges_that_mean_nothing_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let write = |name: &str, config: &ModelConfig, large: bool| {
        let mut weights = common::weights(config, 1);
        let dir = temp.path().join(name);
        Checkpoint::write(&dir, config, |param| {
            let mut values = weights(param).into_owned();
            if large && param == Param::NormWeight {
                values.fill(3e38);
            }
            values.into()
        })
        .unwrap();
        std::sync::Arc::new(Checkpoint::open(&dir).unwrap())
    };
    let config = common::config();
    let large = write("large", &config, true);
    let tokens = random_tokens(&config, 2, 0);
    let error = Ranges::measure(&large, tokens.view(), 1.0).err().unwrap().to_string();
    assert!(error.contains("what enters `decoder_embed.weight`") && error.contains("finite"), "{error}");

    let ranges = Ranges::measure(&write("small", &config, false), tokens.view(), 1.0).unwrap();
    let deeper = write("deeper", &ModelConfig { depth: 3, ..config }, false);
    let options = OnnxOptions { weights: Weights::Int8(&ranges), licence: "test", tokenizer: None };
    let error = onnx::write(&deeper, &temp.path().join("onnx"), &options).unwrap_err().to_string();
    assert!(error.contains("`blocks.2.attn.qkv.weight`") && error.contains("measured"), "{error}");
}
