//! The official VQGAN: its recorded ids exactly, its pictures closely, and what it refuses.

use std::path::{Path, PathBuf};
use std::process::Command;

use burn::backend::Flex;
use burn::tensor::{Int, Tensor, TensorData};
use sorcen_export::tensors::{TensorFile, TensorWriter};
use sorcen_tests::compare::largest_difference;
use sorcen_trainer::tokenizer::Vqgan;

/// Against float32 recordings that are themselves up to 1e-5 from a run in float64.
const TOLERANCE: f64 = 4e-5;

fn official(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/official/vqgan").join(name)
}

fn floats(file: &TensorFile, name: &str) -> (Vec<f32>, [usize; 4]) {
    let array = file.numbers(name, 4).unwrap();
    (array.iter().map(|&value| value as f32).collect(), array.shape().try_into().unwrap())
}

fn upload(file: &TensorFile, name: &str) -> Tensor<Flex, 4> {
    let (values, shape) = floats(file, name);
    Tensor::from_data(TensorData::new(values, shape), &Default::default())
}

/// Every kind of file, against every recorded tensor that has a place of its own.
#[test]
fn agrees_with_the_official_code() {
    let cases = [
        ("vqgan_small", "vqgan_small_weights_f16.safetensors", 16, (64, 32)),
        ("vqgan_mini", "vqgan_mini_weights_f16.safetensors", 4, (48, 16)),
        ("vqgan_mini", "vqgan_mini_checkpoint.ckpt", 4, (48, 16)),
    ];
    let mut fingerprints = Vec::new();
    for (set, weights, stride, sizes) in cases {
        let vectors = TensorFile::open(&official(&format!("{set}.safetensors"))).unwrap();
        let vqgan = Vqgan::<Flex>::open(&official(weights), 1, Default::default()).unwrap();
        assert_eq!(vqgan.config().stride(), stride, "{weights}");
        assert_eq!((vqgan.config().codes, vqgan.config().z_channels), sizes, "{weights}");
        let image = || upload(&vectors, "image");

        let ids = vqgan.encode(image());
        let found: Vec<i64> = ids.clone().into_data().convert::<i64>().to_vec().unwrap();
        assert!(found.iter().eq(vectors.ints("indices_grid", 3).unwrap().iter()), "{weights}: ids");

        let given: Vec<i64> = vectors.ints("given_ids", 2).unwrap().iter().copied().collect();
        let given = Tensor::<Flex, 3, Int>::from_data(TensorData::new(given, ids.shape()), &Default::default());
        let outputs = [
            ("encoder_out", vqgan.latent(image())),
            ("reconstruction", vqgan.decode_ids(ids)),
            ("given_image", vqgan.decode_ids(given)),
        ];
        for (name, found) in outputs {
            let (expected, shape) = floats(&vectors, name);
            assert_eq!(found.dims(), shape, "{weights}: {name}");
            let error = largest_difference(found.into_data().to_vec::<f32>().unwrap(), &expected);
            println!("{weights}: {name} within {error:.1e}");
            assert!(error < TOLERANCE, "{weights}: {name}: {error:.1e}");
        }
        fingerprints.push(sorcen_trainer::tokenizer::Tokenizer::fingerprint(&vqgan));
    }
    assert_eq!(fingerprints[1], fingerprints[2], "the same weights, whatever the file");
    assert!(fingerprints[0].starts_with("vqgan 64x32 /16 sha256:"), "{}", fingerprints[0]);
}

fn sorcen(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_sorcen")).args(args).current_dir(dir).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn succeeds(dir: &Path, args: &str) -> String {
    let (code, out, error) = sorcen(dir, &args.split_whitespace().collect::<Vec<_>>());
    assert_eq!(code, 0, "sorcen {args}\n{error}");
    out
}

#[test]
fn tensors_in_tensors_out() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    for (set, weights) in
        [("vqgan_small", "vqgan_small_weights_f16.safetensors"), ("vqgan_mini", "vqgan_mini_checkpoint.ckpt")]
    {
        let (weights, vectors) = (official(weights), official(&format!("{set}.safetensors")));
        let paths = [&weights, &vectors].map(|path| path.to_str().unwrap().to_string());
        let args = ["tokenizer", "run", "--tokenizer", &paths[0], "--input", &paths[1], "--output", "out.safetensors"];
        let (code, _, error) = sorcen(dir, &args);
        assert_eq!(code, 0, "{error}");
        let (out, vectors) =
            (TensorFile::open(&dir.join("out.safetensors")).unwrap(), TensorFile::open(&vectors).unwrap());
        assert_eq!(out.ints("ids", 3).unwrap(), vectors.ints("indices_grid", 3).unwrap());
        let found = floats(&out, "reconstruction").0;
        assert!(largest_difference(found, &floats(&vectors, "reconstruction").0) < TOLERANCE);
    }
}

#[test]
fn from_pictures_to_tokens_and_back() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    std::fs::create_dir_all(dir.join("photos/a")).unwrap();
    for n in 0..3u8 {
        let photo = image::RgbImage::from_fn(40, 32, |x, y| image::Rgb([x as u8 * 6, y as u8 * 7, n * 90]));
        photo.save(dir.join(format!("photos/a/{n}.png"))).unwrap();
    }
    std::fs::copy(official("vqgan_mini_checkpoint.ckpt"), dir.join("v.ckpt")).unwrap();
    succeeds(dir, "tokenize --images photos --size 32 --tokenizer v.ckpt --out tokens");
    let inspected: serde_json::Value = serde_json::from_str(&succeeds(dir, "tokens inspect tokens --json")).unwrap();
    let stream = &inspected["streams"]["vqgan"];
    assert_eq!((&stream["grid"], &stream["codebook_size"]), (&8.into(), &48.into()));
    let report = succeeds(dir, "tokenizer check --images photos --size 32 --tokenizer v.ckpt --json --picture p.png");
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert!(report["images"] == 3 && report["psnr_db"].as_f64().is_some_and(f64::is_finite), "{report}");
    succeeds(dir, "decode --data tokens --tokenizer v.ckpt --scale 1 --out sheet.png");
    let sheet = image::open(dir.join("sheet.png")).unwrap();
    assert_eq!((sheet.width(), sheet.height()), (3 * 36 + 4, 40));
}

/// What a training leaves beside a VQGAN, and how a wrapper renames it, make no other tokenizer.
#[test]
fn what_only_training_needs_is_left_out() {
    let temp = tempfile::tempdir().unwrap();
    let weights = official("vqgan_mini_weights_f16.safetensors");
    let tensors = TensorFile::open(&weights).unwrap();
    let bytes = std::fs::read(&weights).unwrap();
    let names = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let write = |prefix: &str, more: &[&str]| {
        let mut file = TensorWriter::default();
        for name in names.names() {
            let values = (1..=4).find_map(|rank| tensors.numbers(name, rank).ok()).unwrap();
            file.floats(&format!("{prefix}{name}"), values.mapv(|value| value as f32).view());
        }
        for name in more {
            file.floats(&format!("{prefix}{name}"), ndarray::ArrayD::from_elem([2].as_slice(), 0.5).view());
        }
        file.write(&temp.path().join("v.ckpt")).unwrap();
    };
    let run = |weights: &str| {
        std::fs::create_dir_all(temp.path().join("a")).unwrap();
        image::RgbImage::new(16, 16).save(temp.path().join("a/0.png")).unwrap();
        sorcen(temp.path(), &["tokenizer", "check", "--tokenizer", weights, "--images", "a", "--json"])
    };
    let (code, expected, error) = run(weights.to_str().unwrap());
    assert!(code == 0 && !error.contains("note:"), "{error}");
    let training = ["loss.logvar", "loss.discriminator.main.0.weight", "discriminator.main.0.bias"];
    for prefix in ["", "module.", "vqgan."] {
        write(prefix, &training);
        let (code, out, error) = run("v.ckpt");
        assert_eq!(code, 0, "{error}");
        let numbers = |report: &str| report.split("\"encode_ms").next().unwrap().to_string(); // what follows are times
        assert_eq!(numbers(&out), numbers(&expected), "the same tokenizer");
        assert!(error.contains("left out: discriminator (1), loss (2), which only training needs"), "{error}");
        let renamed = error.contains(&format!("all names start with `{prefix}`, which is taken away"));
        assert_eq!(renamed, !prefix.is_empty(), "{error}");
    }
    write("", &["quant_conv.weight"]);
    let (code, _, error) = run("v.ckpt");
    assert!(code == 1 && error.contains("quant_conv.weight: expected no such tensor"), "{error}");
}

#[test]
fn what_is_wrong_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("v.safetensors");
    let weights = TensorFile::open(&official("vqgan_mini_weights_f16.safetensors")).unwrap();
    let names: Vec<String> = {
        let bytes = std::fs::read(official("vqgan_mini_weights_f16.safetensors")).unwrap();
        safetensors::SafeTensors::deserialize(&bytes).unwrap().names().into_iter().map(str::to_string).collect()
    };
    let any_rank = |name: &str| (1..=4).find_map(|rank| weights.numbers(name, rank).ok()).unwrap();
    let refused = |leave_out: &str, add: &[(&str, Vec<usize>)]| {
        let mut file = TensorWriter::default();
        for name in names.iter().filter(|name| *name != leave_out) {
            file.floats(name, any_rank(name).mapv(|value| value as f32).view());
        }
        for (name, shape) in add {
            file.floats(name, ndarray::ArrayD::from_elem(shape.as_slice(), 0.5).view());
        }
        file.write(&path).unwrap();
        Vqgan::<Flex>::open(&path, 1, Default::default()).map(|_| ()).expect_err(leave_out).to_string()
    };
    let norm = "decoder.mid.block_1.norm1.bias";
    let cases = [
        ("quantize.embedding.weight: expected a tensor of this name", refused("quantize.embedding.weight", &[])),
        ("encoder.conv_in.weight: expected a tensor of this name", refused("encoder.conv_in.weight", &[])),
        ("norm1.bias: expected a tensor [32], found none", refused(norm, &[])),
        ("norm1.bias: expected shape [32], found [64]", refused(norm, &[(norm, vec![64])])),
        ("quant_conv.weight: expected no such tensor", refused("", &[("quant_conv.weight", vec![1])])),
        ("rows in multiples of 32, 32 to 4096, found [33, 3, 3, 3]", {
            refused("encoder.conv_in.weight", &[("encoder.conv_in.weight", vec![33, 3, 3, 3])])
        }),
    ];
    for (expected, message) in cases {
        assert!(message.contains(expected) && message.contains("v.safetensors"), "{expected:?} in {message:?}");
    }
    let mut image = TensorWriter::default();
    image.floats("image", ndarray::Array4::<f32>::zeros((1, 3, 32, 30)).view());
    image.write(&temp.path().join("in.safetensors")).unwrap();
    let weights = official("vqgan_mini_checkpoint.ckpt");
    let args = ["--tokenizer", weights.to_str().unwrap(), "--input", "in.safetensors", "--output", "out.safetensors"];
    let (code, _, error) = sorcen(temp.path(), &[&["tokenizer", "run"], &args[..]].concat());
    assert!(code == 1 && error.contains("multiples of the tokenizer's stride (4), found 32x30"), "{error}");
    assert!(!temp.path().join("out.safetensors").exists());
}
