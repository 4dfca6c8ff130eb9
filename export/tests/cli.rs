//! The command line as a user meets it.

mod common;

use std::{fs, process::Command};

use common::{fail, succeed};
use ndarray::{Array1, Array2, Array3};
use sorcen_export::{
    picture::{read, save_png, Picture},
    tensors::{TensorFile, TensorWriter},
    tokenizer::PatchTokenizer,
};
use sorcen_runtime::{schema, OwnedBytes, Pack};
use sorcen_tests::compare::largest_difference;

/// 12 codes of 2x2 pixels, each of one grey.
fn tokenizer() -> PatchTokenizer {
    PatchTokenizer::new((0..12u8).flat_map(|code| [code * 20; 12]).collect(), 12, 2).unwrap()
}

/// The encoder's tensors alone, as an official encoder file has them.
#[test]
fn a_checkpoint_without_decoder_makes_a_pack_of_the_encoder() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let whole = common::checkpoint(&dir.join("model"), 1);
    fs::create_dir(dir.join("encoder")).unwrap();
    fs::copy(dir.join("model/config.json"), dir.join("encoder/config.json")).unwrap();
    let bytes = fs::read(dir.join("model/model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let encoder = schema::params(&whole.config).filter(|param| !param.is_decoder()).map(|param| param.to_string());
    let tensors = encoder.map(|name| (name.clone(), file.tensor(&name).unwrap()));
    safetensors::serialize_to_file(tensors, None, &dir.join("encoder/model.safetensors")).unwrap();

    succeed(dir, "pack --checkpoint encoder --encoder_only --out e.srcn");
    succeed(dir, "pack --checkpoint model --encoder_only --out m.srcn");
    let weights = |name: &str| {
        let file = OwnedBytes::read(&dir.join(name)).unwrap();
        let pack = Pack::new(&file).unwrap();
        format!("{:?}", schema::params(&whole.config).map(|param| pack.matrix(param).data).collect::<Vec<_>>())
    };
    assert_eq!(weights("e.srcn"), weights("m.srcn"));
    fail(dir, "pack --checkpoint encoder --out e.srcn", 1, &["decoder", "is missing"]);

    let mut images = TensorWriter::default();
    images.ints("token_ids", Array2::from_shape_fn((2, 9), |(b, t)| ((b * 5 + t) % 12) as i64).view());
    images.write(&dir.join("images.safetensors")).unwrap();
    let line = "pack --precision int4 --encoder_only --calibrate images.safetensors";
    succeed(dir, &format!("{line} --checkpoint encoder --out e.srcn"));
    succeed(dir, &format!("{line} --checkpoint model --out m.srcn"));
    assert_eq!(weights("e.srcn"), weights("m.srcn"));
}

#[test]
fn from_checkpoint_to_checked_artefacts() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    common::checkpoint(&dir.join("model"), 1);
    tokenizer().save(&dir.join("tokenizer.safetensors")).unwrap();
    fs::write(dir.join("card.json"), "{\"data\": \"noise\"}").unwrap();

    assert!(succeed(dir, "onnx --checkpoint model --out out --licence CC0").contains("decoder.onnx"));
    let said =
        succeed(dir, "pack --checkpoint model --tokenizer tokenizer.safetensors --card card.json --out out/i.srcn");
    assert!(said.contains("i.srcn"), "{said}");
    succeed(dir, "pack --checkpoint model --precision f32 --out out/f.srcn");
    succeed(dir, "pack --checkpoint model --precision f16 --encoder_only --out out/e.srcn");

    let table = succeed(
        dir,
        "verify --checkpoint model --onnx out --pack out/f.srcn --pack out/e.srcn --images 3 --out out/verify.md",
    );
    for engine in ["ONNX f32 in tract", "pack f32", "pack f16"] {
        assert!(table.contains(engine), "{table}");
    }
    assert_eq!(fs::read_to_string(dir.join("out/verify.md")).unwrap().trim(), table.trim());
    let json = succeed(dir, "verify --checkpoint model --pack out/f.srcn --json --images 2");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((json["passed"].as_bool(), json["images"].as_u64()), (Some(true), Some(2)));

    let text = succeed(dir, "inspect out/i.srcn --tensors");
    for part in
        ["int8", "12 patches of 2x2", "noise", "checkpoint_sha256", "blocks.1.mlp.fc2.weight", "3x3 of 12 codes"]
    {
        assert!(text.contains(part), "`{part}` not in {text}");
    }
    let checkpoint: serde_json::Value = serde_json::from_str(&succeed(dir, "inspect model --json")).unwrap();
    assert_eq!(checkpoint["config"]["embed_dim"], 16);
    assert_eq!(checkpoint["config"]["layer_norm_eps"], 1e-6, "as it was written, not 9.999999974752427e-7");
    let sha256 = &checkpoint["files"][1]["sha256"];
    let pack: serde_json::Value = serde_json::from_str(&succeed(dir, "inspect out/i.srcn --json")).unwrap();
    assert_eq!(&pack["card"]["checkpoint_sha256"], sha256, "a pack says where it comes from");
    let onnx: serde_json::Value = serde_json::from_str(&succeed(dir, "inspect out --json")).unwrap();
    assert_eq!(&onnx["card"]["checkpoint_sha256"], sha256);
    assert_eq!(onnx["card"]["licence"], "CC0");
    let files: Vec<_> = onnx["files"].as_array().unwrap().iter().map(|file| file["name"].as_str().unwrap()).collect();
    assert_eq!(files, ["encoder.onnx", "decoder.onnx", "step.onnx"]);

    // What a pack cannot do is not told of.
    let [whole, encoder] = ["f", "e"].map(|name| succeed(dir, &format!("inspect out/{name}.srcn --fits 64K/1M")));
    assert!(whole.contains(" to generate, beside the weights") && whole.contains("generate    fits"), "{whole}");
    assert!(encoder.contains(" bytes for features, beside the weights"), "{encoder}");
    assert!(encoder.contains("decoder     none") && !encoder.contains("generate"), "{encoder}");
    let encoder: serde_json::Value = serde_json::from_str(&succeed(dir, "inspect out/e.srcn --json")).unwrap();
    assert_eq!((&encoder["parameters"][1], &encoder["scratch"]["generate"]), (&0.into(), &serde_json::Value::Null));

    // Mixed precisions, and what they are arranged for.
    let line = "pack --checkpoint model --int4 blocks.*.mlp.* --keep ^token_emb=f16 --target x86-vnni --out out/x.srcn";
    succeed(dir, line);
    let text = succeed(dir, "inspect out/x.srcn --tensors");
    let row = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(row("decoder_blocks.1.mlp.fc2.weight").contains("int4"), "{text}");
    assert!(row("token_emb.LayerNorm.bias").contains("f16"), "{text}");
    assert!(row("decoder_pos_embed_learned").contains("f16"), "{text}");
    assert!(row("token_emb.word_embeddings.weight").contains("[14, 16]"), "no rows of ids that never occur: {text}");
    assert!(row("blocks.0.attn.qkv.weight").contains("int8") && text.contains("for x86-vnni"), "{text}");
    succeed(dir, "pack --checkpoint model --precision int4 --out out/4.srcn");
    let table = succeed(dir, "verify --checkpoint model --pack out/f.srcn --pack out/x.srcn --layers");
    for name in ["| pack f32 (f.srcn)               | blocks.1 ", "| pack f16 + int8 + int4 (x.srcn) | features "] {
        assert!(table.contains(name), "`{name}` not in {table}");
    }
    assert!(succeed(dir, "inspect out/4.srcn").contains("int4"));

    // For a device.
    let text = succeed(dir, "inspect out/i.srcn --as_rust");
    assert_eq!(text, succeed(dir, "inspect out/i.srcn --as-rust"));
    assert!(text.contains("    mask_token_id: 19,\n") && text.contains("    layer_norm_eps: 1e-6,\n};"), "{text}");
    let text = succeed(dir, "inspect out/i.srcn --fits 64K/1M");
    assert!(text.contains("features    fits: RAM") && text.contains("generate    fits: RAM"), "{text}");
    assert!(text.contains("On top: code (70 to 150 kB of flash) and stack"), "{text}");
    fail(dir, "inspect out/i.srcn --fits 64K/1K", 1, &["does not fit"]);
    fail(dir, "inspect model --fits 64K/1M", 1, &["expected a pack, found a checkpoint"]);
    fail(dir, "inspect out/i.srcn --fits 64", 2, &["512K/2M"]);

    let left: Vec<_> = fs::read_dir(dir.join("out")).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".tmp")), "{left:?}");
}

/// Sections for the device: a linear head, and golden inputs that `inspect` runs again.
#[test]
fn a_pack_that_classifies_and_tests_itself() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    common::checkpoint(&dir.join("model"), 1);
    let mut head = TensorWriter::default();
    head.floats("head.weight", Array2::from_shape_fn((3, 16), |(class, at)| (class * at) as f32 * 0.1).view());
    head.floats("head.bias", Array1::from_elem(3, 0.5).view());
    head.write(&dir.join("head.safetensors")).unwrap();
    let mut images = TensorWriter::default();
    images.ints("token_ids", Array2::from_shape_fn((2, 9), |(b, t)| ((b * 5 + t) % 12) as i64).view());
    images.write(&dir.join("images.safetensors")).unwrap();

    let line = "pack --checkpoint model --classifier head.safetensors --self_test 2";
    succeed(dir, &format!("{line} --out i.srcn"));
    succeed(dir, &format!("{line} --self_test_tokens images.safetensors --precision f32 --out f.srcn"));
    succeed(dir, &format!("{line} --encoder_only --out e.srcn"));
    for (pack, head, test) in [
        ("i", "3 classes, int8: without names", "2 inputs, features and a step of generation, exact bits"),
        ("f", "3 classes, f32: without names", "2 inputs, features and a step of generation, within 0.001"),
        ("e", "3 classes, int8: without names", "2 inputs, features, exact bits"),
    ] {
        let text = succeed(dir, &format!("inspect {pack}.srcn"));
        assert!(text.contains(head) && text.contains(test) && text.contains("): passed"), "{text}");
    }
    let json: serde_json::Value = serde_json::from_str(&succeed(dir, "inspect i.srcn --json")).unwrap();
    assert_eq!((&json["classifier"]["classes"], &json["self_test"]["inputs"]), (&3.into(), &2.into()));
    assert!(json["self_test"]["failure"].is_null());

    fail(dir, "pack --checkpoint model --self_test 0 --out x.srcn", 2, &["--self_test"]);
    fail(dir, "pack --checkpoint model --self_test_tokens images.safetensors --out x.srcn", 2, &["--self_test"]);
    let line = "pack --checkpoint model --self_test 3 --self_test_tokens images.safetensors --out x.srcn";
    fail(dir, line, 1, &["images.safetensors", "expected at least 3 images, found 2"]);
    fail(dir, "pack --checkpoint model --classifier images.safetensors --out x.srcn", 1, &["one called `head.weight`"]);
    fail(dir, "pack --checkpoint model --classifier none.safetensors --out x.srcn", 1, &["none.safetensors"]);
    assert!(!dir.join("x.srcn").exists());
}

/// As in `sorcen-export inspect … | head -1`.
#[test]
#[cfg(unix)]
fn a_reader_that_leaves_is_no_panic() {
    let temp = tempfile::tempdir().unwrap();
    common::checkpoint(&temp.path().join("model"), 1);
    let mut child = Command::new(env!("CARGO_BIN_EXE_sorcen-export"))
        .args(["inspect", "model", "--tensors"])
        .current_dir(temp.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let said = child.wait_with_output().unwrap().stderr;
    assert_eq!(String::from_utf8_lossy(&said), "");
}

#[test]
fn run_gives_the_same_tensors_from_every_engine() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    common::checkpoint(&dir.join("model"), 1);
    succeed(dir, "onnx --checkpoint model --out out");
    succeed(dir, "pack --checkpoint model --precision f32 --out f.srcn");
    let mut ids = Array2::from_shape_fn((2, 9), |(b, t)| ((b * 5 + t) % 12) as i64);
    let mut write = |name: &str, drop: Option<Array2<f32>>| {
        let mut file = TensorWriter::default();
        file.ints("token_ids", ids.view());
        drop.iter().for_each(|mask| file.floats("drop_mask", mask.view()));
        file.write(&dir.join(name)).unwrap();
        ids[[0, 8]] = 19; // masked in the second file
    };
    write("whole.safetensors", None);
    let drop = Array2::from_shape_fn((2, 9), |(b, t)| if t == b || t == 4 { 1.0 } else { 0.0 });
    write("part.safetensors", Some(drop));

    for (input, kept) in [("whole", 9), ("part", 7)] {
        let read = |engine: &str| {
            succeed(dir, &format!("run {engine} --input {input}.safetensors --output o.safetensors"));
            let file = TensorFile::open(&dir.join("o.safetensors")).unwrap();
            assert_eq!(file.has("features"), kept == 9, "features of whole images only");
            let names = ["latent", "logits", "features"].into_iter().filter(|name| file.has(name));
            let read = |name| file.numbers(name, if name == "features" { 2 } else { 3 }).unwrap();
            names.map(read).collect::<Vec<_>>()
        };
        let reference = read("--checkpoint model");
        assert_eq!(reference[0].shape(), [2, kept + 1, 16]);
        assert_eq!(reference[1].shape(), [2, 9, 12]);
        for engine in ["--onnx out", "--pack f.srcn"] {
            for (expected, found) in reference.iter().zip(read(engine)) {
                let worst = largest_difference(&found, expected);
                assert!(worst < 1e-4, "{input} {engine}: {worst}");
            }
        }
    }
}

#[test]
fn generate_replays_and_is_a_function_of_the_seed() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    common::checkpoint(&dir.join("model"), 1);
    succeed(dir, "pack --checkpoint model --precision f32 --out f.srcn");
    let ids = |line: &str| {
        succeed(dir, &format!("generate {line} --output g.safetensors"));
        let file = TensorFile::open(&dir.join("g.safetensors")).unwrap();
        (file.ints("input_ids", 3).unwrap(), file.ints("final_ids", 2).unwrap())
    };
    let first = ids("--pack f.srcn --images 2 --steps 4 --seed 7");
    assert_eq!(first.0.shape(), [4, 2, 9]);
    assert!(first.1.iter().all(|&id| id < 12));
    assert_eq!(first, ids("--pack f.srcn --images 2 --steps 4 --seed 7"));
    assert_ne!(first.1, ids("--pack f.srcn --images 2 --steps 4 --seed 8").1);
    ids("--checkpoint model --images 2 --steps 4 --greedy");

    // A file made with the golden weights' ids does not fit this model, and says so.
    let golden = common::golden("gen_uncond").path();
    let line = format!("generate --pack f.srcn --replay {} --output g.safetensors", golden.display());
    fail(dir, &line, 1, &["gen_uncond.safetensors", "[N, B, 9]", "[20, 2, 256]"]);
    let line = "generate --pack f.srcn --replay r.safetensors --output g.safetensors";
    let mut file = TensorWriter::default();
    file.ints("raw_sampled_ids", Array3::zeros((2, 1, 9)).view());
    file.floats("gumbel", Array3::<f32>::zeros((2, 1, 9)).view());
    file.write(&dir.join("r.safetensors")).unwrap();
    succeed(dir, &format!("{line} --steps 2"));
    let said = fail(dir, line, 1, &["r.safetensors: recorded steps: expected at least 20", "found 2"]);
    assert_eq!(said.matches("r.safetensors").count(), 1, "{said}");
}

/// The grey of each token of picture `number` in a sheet of `columns` at scale 1, a row of the grid after another.
fn greys(sheet: &Picture, number: usize, columns: usize) -> Vec<u8> {
    let (left, top) = (4 + number % columns * 10, 4 + number / columns * 10);
    (0..9).map(|t| sheet.pixel(left + t % 3 * 2, top + t / 3 * 2)[0]).collect()
}

#[test]
fn a_vit_tokenizer_paints_from_packs_and_files() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    common::checkpoint(&dir.join("model"), 1);
    common::vit().save(&dir.join("vit/checkpoint/tokenizer.safetensors")).unwrap();
    for precision in ["f32", "int8"] {
        succeed(
            dir,
            &format!("pack --checkpoint model --precision {precision} --tokenizer vit --out {precision}.srcn"),
        );
        let said = succeed(dir, &format!("inspect {precision}.srcn"));
        assert!(said.contains("ViT of 12 codes, 3x3 tokens of 4x4 pixels"), "{said}");
        succeed(dir, &format!("generate --pack {precision}.srcn --images 2 --steps 2 --scale 1 --out {precision}.png"));
    }
    let line = "generate --checkpoint model --images 2 --steps 2 --scale 1 --tokenizer vit --out named.png";
    succeed(dir, line);
    let sheet = read(&dir.join("named.png")).unwrap();
    assert_eq!((sheet.width, sheet.height), (36, 20));
    let of_pack = read(&dir.join("f32.png")).unwrap();
    assert_eq!((of_pack.width, of_pack.height), (36, 20));
    let of_int8 = succeed(dir, "inspect int8.srcn --json");
    let of_int8: serde_json::Value = serde_json::from_str(&of_int8).unwrap();
    assert_eq!((&of_int8["vit"]["config"]["codes"], of_int8["tokenizer"].is_null()), (&12.into(), true));
    succeed(dir, "onnx --checkpoint model --out onnx --tokenizer vit");
    assert!(dir.join("onnx/tokenizer_encoder.onnx").is_file());
    common::vit().save(&dir.join("t.safetensors")).unwrap();
    let whole = fs::read(dir.join("t.safetensors")).unwrap();
    fs::write(dir.join("t.safetensors"), &whole[..whole.len() - 4]).unwrap();
    fail(dir, "pack --checkpoint model --tokenizer t.safetensors --out n.srcn", 1, &["t.safetensors", "complete"]);
    assert!(!dir.join("n.srcn").exists());
}

#[test]
fn pictures_show_what_was_given_and_invented() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    common::checkpoint(&dir.join("model"), 1);
    tokenizer().save(&dir.join("t.safetensors")).unwrap();
    succeed(dir, "pack --checkpoint model --tokenizer t.safetensors --out m.srcn");

    succeed(dir, "generate --pack m.srcn --images 3 --steps 3 --scale 1 --out g.png --out g.safetensors");
    let ids = TensorFile::open(&dir.join("g.safetensors")).unwrap().ints("final_ids", 2).unwrap();
    let sheet = read(&dir.join("g.png")).unwrap();
    assert_eq!((sheet.width, sheet.height), (34, 14), "three in a row, one row");
    for image in 0..3 {
        let expected: Vec<u8> = (0..9).map(|t| ids[[image, t]] as u8 * 20).collect();
        assert_eq!(greys(&sheet, image, 3), expected);
    }

    // From a picture, with the rows: before, given, after.
    let original: Vec<u8> = (0..9).collect();
    let rgb = common::pixels(&tokenizer(), &original.iter().map(|&id| id.into()).collect::<Vec<_>>(), 3);
    image::save_buffer(dir.join("in.webp"), &rgb, 6, 6, image::ColorType::Rgb8).unwrap();
    save_png(&Picture { width: 6, height: 6, rgb }, &dir.join("in.png")).unwrap();
    let cases = [
        ("inpaint --region 0,0,1,3 --region 1,1,1,1", ". . .\n# . #\n# # #"),
        ("outpaint", "# # .\n# # .\n. . ."),
        ("outpaint --region 2,2,1,1", ". . .\n. . .\n. . #"),
    ];
    for ((line, map), image) in cases.into_iter().zip(["in.png", "in.webp", "in.webp --size 6"]) {
        let line =
            format!("{line} --pack m.srcn --image {image} --images 2 --steps 3 --scale 1 --out f.png --out f.st");
        let said = succeed(dir, &line);
        assert!(said.contains(map), "{line}: {said}");
        let given: Vec<bool> = map.chars().filter(|c| "#.".contains(*c)).map(|c| c == '#').collect();
        let file = TensorFile::open(&dir.join("f.st")).unwrap();
        let (ids, mask) = (file.ints("final_ids", 2).unwrap(), file.ints("given", 2).unwrap());
        let sheet = read(&dir.join("f.png")).unwrap();
        for image in 0..2 {
            assert!((0..9).all(|t| (mask[[image, t]] == 1) == given[t]), "{line}");
            assert!((0..9).all(|t| !given[t] || ids[[image, t]] == t as i64), "{line}: given tokens stay");
            assert_eq!(greys(&sheet, image, 2), original.iter().map(|id| id * 20).collect::<Vec<_>>());
            let shown: Vec<u8> = (0..9).map(|t| if given[t] { t as u8 * 20 } else { 200 }).collect();
            assert_eq!(greys(&sheet, 2 + image, 2), shown);
            let made: Vec<u8> = (0..9).map(|t| ids[[image, t]] as u8 * 20).collect();
            assert_eq!(greys(&sheet, 4 + image, 2), made);
        }
    }

    // From tokens, by the float reference; known places are drawn from the seed.
    let line = "reconstruct --checkpoint model --tokenizer t.safetensors --input g.safetensors --known 0.34 --steps 2";
    let said = succeed(dir, &format!("{line} --output r.safetensors --output r.png"));
    assert!(said.contains("9 of 27 tokens given") && said.contains("% of 18 invented tokens"), "{said}");
    assert!(read(&dir.join("r.png")).is_ok());

    fail(dir, "generate --checkpoint model --out n.png", 1, &["n.png", "--tokenizer"]);
    fail(dir, "inpaint --pack m.srcn --image in.png --out n.png", 1, &["nothing to invent", "--region"]);
    fail(dir, "inpaint --pack m.srcn --image in.png --region 0,0,4,1 --out n.png", 1, &["3x3 tokens", "0,0,4,1"]);
    fail(dir, "inpaint --pack m.srcn --image in.png --region 0,0 --out n.png", 2, &["ROW,COLUMN,ROWS,COLUMNS"]);
    fail(dir, "outpaint --pack m.srcn --image g.png --out n.png", 1, &["g.png", "6x6 pixels", "34x14"]);
    fail(dir, "outpaint --pack m.srcn --image g.png --size 8 --out n.png", 1, &["--size: expected 6", "found 8"]);
    fail(dir, "outpaint --pack m.srcn --input g.st --size 6 --out n.png", 2, &["--size: expected --image too"]);
    fail(dir, "outpaint --pack m.srcn --image m.srcn --out n.png", 1, &["m.srcn", "PNG"]);
    fail(dir, "outpaint --pack m.srcn --out n.png", 2, &["--image", "--input"]);
    fail(dir, "reconstruct --pack m.srcn --image in.png --known 1 --out n.png", 2, &["--known", "below 1"]);
    fail(
        dir,
        "reconstruct --pack m.srcn --image in.png --known 0.99 --out n.png",
        1,
        &["nothing to invent", "--known 0.99"],
    );
    fail(
        dir,
        "outpaint --pack m.srcn --image in.png --region 0,0,3,3 --out n.png",
        1,
        &["nothing to invent", "all of them"],
    );
    let line = "generate --pack m.srcn --images 100000 --steps 1 --scale 255 --out n.png";
    fail(dir, line, 1, &["--scale", "a sheet holds at most"]);
    assert!(!dir.join("n.png").exists());
}

#[test]
fn no_burn_among_the_dependencies() {
    let out = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--locked",
            "--package",
            "sorcen-export",
            "--edges",
            "normal,build",
            "--prefix",
            "none",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let tree = String::from_utf8(out.stdout).unwrap();
    assert!(tree.starts_with("sorcen-export"));
    let burn: Vec<_> = tree.lines().filter(|line| line.starts_with("burn") || line.starts_with("cubecl")).collect();
    assert!(burn.is_empty(), "{burn:?}");
}
