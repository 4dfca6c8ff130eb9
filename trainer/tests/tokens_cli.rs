//! The verbs around tokens, as a user runs them.

use std::path::Path;
use std::process::Command;

use sorcen_trainer::data::TokenDataset;
use sorcen_trainer::tokenizer::PatchTokenizer;

/// Runs `sorcen` in `dir`: exit code, standard output, standard error.
fn sorcen(dir: &Path, args: &str) -> (i32, String, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_sorcen")).args(args.split_whitespace()).current_dir(dir).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn succeeds(dir: &Path, args: &str) -> String {
    let (code, out, err) = sorcen(dir, args);
    assert_eq!(code, 0, "sorcen {args}\n{out}{err}");
    out
}

fn json(dir: &Path, args: &str) -> serde_json::Value {
    serde_json::from_str(&succeeds(dir, args)).unwrap()
}

/// `photos/{dark,light}/N.png`: 8×8 pixels of two flat halves each, dark or light.
fn write_photos(dir: &Path) {
    for (class, base) in [("dark", 0), ("light", 200)] {
        std::fs::create_dir_all(dir.join("photos").join(class)).unwrap();
        for n in 0..8u8 {
            let pixel = |x: u32| base + n % 4 * 5 + u8::from(x < 4) * 20;
            let photo = image::RgbImage::from_fn(8, 8, |x, _| image::Rgb([pixel(x); 3]));
            photo.save(dir.join("photos").join(class).join(format!("{n}.png"))).unwrap();
        }
    }
}

#[test]
fn from_photos_to_tokens_and_back() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    write_photos(dir);
    succeeds(dir, "tokenizer train --images photos --codes 14 --patch 4 --out t.safetensors");
    let report = json(dir, "tokenizer check --images photos --tokenizer t.safetensors --json");
    assert_eq!((&report["images"], &report["codes_used"]), (&16.into(), &14.into()));
    assert!(report["psnr_db"].as_f64().unwrap() > 30.0, "{report}");

    for split in ["train", "val"] {
        succeeds(dir, &format!("tokenize --images photos --tokenizer t.safetensors --out data/{split}"));
    }
    assert!(succeeds(dir, "tokens verify data/train data/val").contains("data/val: 16 images, all checks passed"));
    let inspected = json(dir, "tokens inspect data/train --json");
    assert_eq!(inspected["classes"], serde_json::json!({ "dark": 8, "light": 8 }));
    assert_eq!(inspected["streams"]["vqgan"]["codes_used"], 14);
    assert_eq!(json(dir, "knn --data data --json")["accuracy"]["tokens"], 1.0);
    let only = json(dir, "knn --data data --tokenizer t.safetensors --json");
    assert_eq!((&only["bank"], &only["queries"], &only["in_bank_too"]), (&16.into(), &16.into(), &16.into()));
    let (code, _, error) = sorcen(dir, "knn --data data --only file=dark/3.png --k 1");
    assert!(code == 1 && error.contains("images: expected one at least that is not the image"), "{error}");

    succeeds(dir, "decode --data data/val --tokenizer t.safetensors --first 8 --count 4 --columns 2 --out sheet.png");
    let sheet = image::open(dir.join("sheet.png")).unwrap().to_rgb8();
    assert_eq!(sheet.dimensions(), (44, 44), "2 x 2 pictures of 16 pixels, 4 between");
    assert!(sheet.get_pixel(4, 4).0[0] >= 215 && sheet.get_pixel(19, 4).0[0] < 215, "light, its left half lighter");

    succeeds(dir, "tokens merge data/train data/val --out both");
    assert_eq!(json(dir, "tokens inspect both --json")["images"], 32);
    let (code, _, error) = sorcen(dir, "tokens split both --by file --out parts");
    assert!(code == 1 && error.contains("expected names of folders") && !dir.join("parts").exists(), "{error}");

    let (code, _, error) = sorcen(dir, "tokenize --images photos --tokenizer t.safetensors --out data/val");
    assert_eq!(code, 1);
    assert!(error.contains("data/val: expected a new or empty folder"), "{error}");
}

#[test]
fn tensors_in_tensors_out() {
    use sorcen_export::tensors::{TensorFile, TensorWriter};
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let codes = vec![0, 128, 255, 0, 255, 0]; // two patches of one pixel
    PatchTokenizer::new(codes, 2, 1).unwrap().save(&dir.join("t.safetensors")).unwrap();
    let write = |values: Vec<f32>| {
        let image = ndarray::Array4::from_shape_vec((1, 3, 1, 2), values).unwrap();
        let mut file = TensorWriter::default();
        file.floats("image", image.view());
        file.write(&dir.join("in.safetensors")).unwrap();
    };
    let run = "tokenizer run --tokenizer t.safetensors --input in.safetensors --output out.safetensors";
    write(vec![0.0, 0.02, 1.0, 0.5, 0.0, 0.9]); // pure green, then almost code 0
    succeeds(dir, run);
    let out = TensorFile::open(&dir.join("out.safetensors")).unwrap();
    assert_eq!(out.ints("ids", 3).unwrap().as_slice().unwrap(), [1, 0]);
    let expected = [0.0, 0.0, 1.0, 128.0 / 255.0, 0.0, 1.0];
    for (found, expected) in out.numbers("reconstruction", 4).unwrap().iter().zip(expected) {
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }
    std::fs::remove_file(dir.join("out.safetensors")).unwrap();
    write(vec![0.0, 0.02, 1.5, 0.5, 0.0, 0.9]);
    let (code, _, error) = sorcen(dir, run);
    assert_eq!(code, 1);
    assert!(error.contains("in.safetensors: image: expected values in 0 to 1, found 1.5"), "{error}");
    assert!(!dir.join("out.safetensors").exists());
}

#[test]
fn exchanged_with_other_programs() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    write_photos(dir);
    succeeds(dir, "tokenizer train --images photos --codes 14 --patch 4 --out t.safetensors");
    succeeds(dir, "tokenize --images photos --tokenizer t.safetensors --out data");
    for (file, classes) in [("t.pt", ["0", "1"]), ("t.npz", ["dark", "light"])] {
        succeeds(dir, &format!("tokens export data --out {file}"));
        let out = succeeds(dir, &format!("tokens import --from {file} --tokenizer t.safetensors --out from_{file}"));
        assert!(out.contains("16 images"), "{out}");
        let (a, b) = (TokenDataset::open(&dir.join("data")), TokenDataset::open(&dir.join(format!("from_{file}"))));
        let (a, b) = (a.unwrap(), b.unwrap());
        assert_eq!((a.tokenizer(), a.labels(), a.codebook_size()), (b.tokenizer(), b.labels(), b.codebook_size()));
        assert_eq!(b.class_names(), classes);
    }
    std::fs::write(dir.join("names.txt"), "night\nday\n").unwrap();
    succeeds(dir, "tokens import --from t.pt --codes vqgan=20 --class_names names.txt --out named");
    let inspected = json(dir, "tokens inspect named --json");
    assert_eq!(inspected["classes"], serde_json::json!({ "night": 8, "day": 8 }));
    assert_eq!(inspected["streams"]["vqgan"]["codebook_size"], 20);
    let (code, _, error) = sorcen(dir, "tokens import --from t.safetensors --out new");
    assert!(code == 1 && error.contains("t.safetensors: contents: expected a PyTorch checkpoint"), "{error}");
    let (code, _, error) = sorcen(dir, "tokens import --from t.pt --codes vqgan=3 --out new");
    assert!(code == 1 && error.contains("expected an id below 3"), "{error}");
}

#[test]
fn random_datasets_and_their_speed() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    succeeds(dir, "tokens random --images 300 --grid 4 --codes 300 --classes 7 --out a");
    succeeds(dir, "tokens random --images 300 --grid 4 --codes 300 --classes 7 --out b");
    assert_eq!(std::fs::read(dir.join("a/meta.json")).unwrap(), std::fs::read(dir.join("b/meta.json")).unwrap());
    let report = json(dir, "tokens bench a --json");
    assert_eq!(report["images"], 300);
    assert!(report["random_images_per_s"].as_f64().unwrap() > 1000.0, "{report}");
    assert!(report["epoch_images_per_s"].as_f64().unwrap() > 1000.0, "{report}");
    assert!(succeeds(dir, "tokens bench a").contains("shuffled epoch"));
}

#[test]
fn pictures_for_evaluators() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    write_photos(dir);
    succeeds(dir, "tokenizer train --images photos --codes 16 --patch 4 --out t.safetensors");
    succeeds(dir, "tokenize --images photos --tokenizer t.safetensors --out data");
    succeeds(dir, "decode --data data --tokenizer t.safetensors --first 1 --npz all.npz --png_dir pngs");
    assert_eq!(std::fs::read_dir(dir.join("pngs")).unwrap().count(), 15);
    let png = image::open(dir.join("pngs/00000009.png")).unwrap().to_rgb8();
    assert_eq!(png, image::open(dir.join("photos/light/1.png")).unwrap().to_rgb8(), "a code for every patch");
    // Stored, not compressed: the array lies at the end of its entry as it is.
    let npz = std::fs::read(dir.join("all.npz")).unwrap();
    let find = |what: &[u8]| npz.windows(what.len()).position(|window| window == what);
    assert!(find(b"arr_0.npy").is_some() && find(b"'|u1'").is_some() && find(b"(15, 8, 8, 3,)").is_some());
    let pixels = &npz[find(b"(15, 8, 8, 3,)").unwrap()..];
    let start = pixels.iter().position(|&byte| byte == b'\n').unwrap() + 1;
    assert_eq!(&pixels[start..][8 * 192..9 * 192], png.as_raw().as_slice());
    let (code, _, error) = sorcen(dir, "decode --data data --tokenizer t.safetensors");
    assert!(code == 2 && error.contains("--png_dir"), "{error}");
}

/// Random weights for 2×2 tokens of `codes`: enough to tell pictures apart.
fn write_checkpoint(dir: &Path, codes: usize) {
    use sorcen_runtime::rng::{Rng, Stream};
    let config = sorcen_runtime::ModelConfig::micro(2, codes);
    let random = |param: sorcen_runtime::schema::Param| {
        let rng = Rng::new(1, Stream::Init, param.index(&config) as u64);
        (0..param.shape(&config).elements() as u64).map(|i| rng.normal(i) as f32 * 0.3).collect()
    };
    sorcen_export::Checkpoint::write(dir, &config, random).unwrap();
}

#[test]
fn knn_with_a_checkpoint() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    write_photos(dir);
    succeeds(dir, "tokenizer train --images photos --codes 14 --patch 4 --out t.safetensors");
    succeeds(dir, "tokenizer check --images photos --tokenizer t.safetensors --picture p.png");
    let sheet = image::open(dir.join("p.png")).unwrap().to_rgb8();
    assert_eq!(sheet.dimensions(), (12 * 100 + 4, 4 * 100 + 4), "16 pictures of 12 x 8 and their decodings, 12 a row");
    succeeds(dir, "tokenize --images photos --tokenizer t.safetensors --out data/train");
    write_checkpoint(&dir.join("model"), 14);
    write_checkpoint(&dir.join("small"), 3);
    let report = json(dir, "knn --data data --split train --checkpoint model --k 1 --json");
    assert_eq!(report["accuracy"]["checkpoint model"], 1.0, "each picture has a twin");
    let (code, _, error) = sorcen(dir, "knn --data data --split train --checkpoint small");
    assert_eq!(code, 1, "codes that the model does not have");
    assert!(error.contains("expected"), "{error}");
}

#[test]
fn what_is_wrong_is_said_and_nothing_half_written() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    write_photos(dir);
    succeeds(dir, "tokenizer train --images photos --codes 4 --patch 4 --out t.safetensors");
    succeeds(dir, "tokenize --images photos --tokenizer t.safetensors --out data");
    let labels = dir.join("data/labels.npy");
    let mut bytes = std::fs::read(&labels).unwrap();
    bytes[130] ^= 1;
    std::fs::write(&labels, bytes).unwrap();
    std::fs::write(dir.join("photos/light/notes.png"), "not a picture").unwrap();
    let cases = [
        (1, "tokens verify data", "labels.npy: SHA-256: expected"),
        (1, "tokens inspect nowhere", "nowhere: dataset: expected a token dataset"),
        (1, "knn --data .", ".: datasets: expected a folder with the token dataset `train` in it, found a folder of"),
        (
            1,
            "tokenize --images photos --tokenizer t.safetensors --out new",
            "notes.png: contents: expected a PNG, JPEG",
        ),
        (
            1,
            "tokenizer train --images photos --codes 4 --patch 4 --out new",
            "notes.png: contents: expected a PNG, JPEG",
        ),
        (1, "tokenize --images photos --tokenizer photos/dark/1.png --out new", "1.png: tokenizer: expected a"),
        (
            1,
            "tokenize --images photos --size 6 --tokenizer t.safetensors --out new",
            "multiples of the tokenizer's stride (4), found 6x6",
        ),
        (1, "decode --input t.safetensors --tokenizer t.safetensors --out new.png", "final_ids"),
        (2, "decode --tokenizer t.safetensors --out new", "--data <DIR>|--input <FILE>"),
        (2, "tokenize --images photos --keep split --tokenizer t.safetensors --out new", "expected COLUMN=VALUE"),
    ];
    for (expected, args, message) in cases {
        let (code, _, error) = sorcen(dir, args);
        assert!(error.matches("os error").count() <= 1, "{args}: said twice: {error}");
        assert!(code == expected && error.contains(message), "sorcen {args}: exit {code}\n{error}");
    }
    let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["data", "photos", "t.safetensors"]);
}

#[test]
fn bundled_emoji_are_whole_and_fit_together() {
    let emoji = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/emoji");
    let tokenizer = PatchTokenizer::open(&emoji.join("tokenizer.safetensors")).unwrap();
    let mut seen = std::collections::HashSet::new();
    for (split, count, base) in [("train", 6116, 2967), ("val", 561, 371), ("test", 832, 427)] {
        let dataset = TokenDataset::open(&emoji.join(split)).unwrap();
        assert_eq!((dataset.len(), dataset.grid(), dataset.codebook_size()), (count, 8, 512));
        assert_eq!(dataset.tokenizer(), Some(tokenizer.fingerprint().as_str()));
        assert_eq!(dataset.class_names().len(), 9);
        let skin = dataset.column("skin_variation").unwrap();
        assert_eq!(skin.iter().filter(|skin| *skin == "0").count(), base);
        // No emoji is in two splits, in whichever drawing.
        let names: std::collections::HashSet<_> = dataset.column("unicode").unwrap().into_iter().collect();
        assert!(names.is_disjoint(&seen));
        seen.extend(names);
    }
}

/// A dataset that is bank and queries at once, by its name, by a copy, or as a part: no image is its own neighbour.
#[test]
fn an_image_is_left_out_of_its_own_neighbours() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    succeeds(dir, "tokens random --images 300 --grid 4 --codes 300 --classes 7 --out data/train");
    std::fs::create_dir(dir.join("data/copy")).unwrap();
    for entry in std::fs::read_dir(dir.join("data/train")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.join("data/copy").join(path.file_name().unwrap())).unwrap();
    }
    for split in ["train", "copy"] {
        let report = json(dir, &format!("knn --data data --split {split} --k 1 --json"));
        // Labels are random: only its own copy would tell an image's.
        let accuracy = report["accuracy"]["tokens"].as_f64().unwrap();
        assert!(report["in_bank_too"] == 300 && accuracy < 0.4, "{report}");
        let said = succeeds(dir, &format!("knn --data data --split {split}"));
        assert!(said.contains("300 images of") && said.contains("(300 of them are in `train` too"), "{said}");
    }
    let emoji = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/emoji").display().to_string();
    succeeds(dir, &format!("tokens merge {emoji}/train {emoji}/val --out data/both"));
    // An absolute path replaces the folder.
    let report = json(dir, &format!("knn --data data --bank both --split {emoji}/val --k 1 --json"));
    assert_eq!((&report["in_bank_too"], &report["queries"]), (&561.into(), &561.into()), "by items.csv and tokens");
    let report = json(dir, &format!("knn --data {emoji} --only skin_variation=0 --json"));
    assert_eq!(report["in_bank_too"], 0);
}

/// Whatever lies at a path in the place of what a verb takes, the message says both.
#[test]
fn what_lies_there_instead_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    write_photos(dir);
    for split in ["train", "val"] {
        succeeds(dir, &format!("tokens random --images 20 --grid 2 --codes 4 --classes 2 --out data/{split}"));
    }
    succeeds(dir, "tokenizer train --images photos --codes 4 --patch 4 --out t.safetensors");
    write_checkpoint(&dir.join("run/checkpoint"), 4);
    let pretrain = "pretrain --output_dir new --model micro --steps 1 --data";
    let linprobe = "linprobe --output_dir new --data data";
    let tokenize = "tokenize --out new --tokenizer t.safetensors --images";
    let tokenizer = "tokenize --out new --images photos --tokenizer";
    let cases = [
        (pretrain, "data", "dataset", "a folder of token datasets (train, val); give one of them: data/train"),
        (pretrain, ".", "dataset", "another folder, in which `data` is a folder of token datasets (train, val)"),
        (pretrain, "photos", "dataset", "a folder with folders of images (dark, light)"),
        (pretrain, "photos/dark", "dataset", "a folder of images (0.png, "),
        (pretrain, "t.safetensors", "dataset", "a tokenizer's file"),
        (pretrain, "nowhere", "dataset", "nothing"),
        (pretrain, "run", "dataset", "a run's folder, whose checkpoint is run/checkpoint"),
        ("tokens inspect", "data", "dataset", "a folder of token datasets (train, val)"),
        ("knn --data", "data/train", "datasets", "a token dataset itself (give the folder that it lies in)"),
        ("knn --data", "photos", "datasets", "a folder with folders of images (dark, light)"),
        ("knn --bank other --data", "data", "datasets", "a folder of token datasets (train, val)"),
        ("fewshot --pack p --data", "t.safetensors", "datasets", "a tokenizer's file"),
        ("knn --data data --checkpoint", "run", "a checkpoint folder", "a run's folder, whose checkpoint is"),
        ("knn --data data --checkpoint", "nowhere", "a checkpoint folder", "nothing"),
        ("knn --data data --pack", "photos/dark/0.png", "a pack (a file)", "an image"),
        ("knn --data data --pack", "nowhere", "a pack (a file)", "nothing"),
        ("knn --data data --tokenizer", "photos", "tokenizer", "a folder with folders of images"),
        (linprobe, "--checkpoint data/train", "a checkpoint folder", "a token dataset"),
        (linprobe, "--pack run/checkpoint", "a pack (a file)", "a checkpoint folder"),
        (tokenize, "data/train", "images", "a token dataset"),
        (tokenize, "data", "images", "a folder of token datasets (train, val)"),
        (tokenize, "photos/dark/0.png", "images", "an image"),
        (tokenize, "nowhere", "images", "nothing"),
        (tokenizer, "nowhere", "tokenizer", "nothing"),
        (tokenizer, "photos", "tokenizer", "a folder with folders of images (dark, light)"),
        (tokenizer, "photos/dark/0.png", "tokenizer", "an image"),
        ("pack --out new --checkpoint run/checkpoint --tokenizer", "photos", "a tokenizer (", "a folder with folders"),
        ("verify --pack nowhere --tokens photos --checkpoint", "run/checkpoint", "a token dataset (", "a folder with"),
    ];
    for (verb, path, item, found) in cases {
        let (code, _, error) = sorcen(dir, &format!("{verb} {path}"));
        assert_eq!(code, 1, "{verb} {path}: {error}");
        assert!(error.contains(item) && error.contains(&format!("found {found}")), "{verb} {path}: {error}");
        assert!(!error.contains("No such file") && !error.contains("Is a directory"), "{verb} {path}: {error}");
    }
    assert!(!dir.join("new/run.json").exists());
}

#[test]
fn a_second_tokenizer_has_its_own_number_of_codes() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    write_photos(dir);
    for codes in [5, 9] {
        succeeds(dir, &format!("tokenizer train --images photos --codes {codes} --patch 4 --out {codes}.safetensors"));
    }
    let check = "tokenizer check --images photos --tokenizer 5.safetensors --beside 9.safetensors";
    let said = succeeds(dir, check);
    assert!(said.contains("5 of 5") && said.contains("9 of 9"), "{said}");
    let report = json(dir, &format!("{check} --json"));
    assert_eq!((&report["tokenizer"]["codes"], &report["beside"]["codes"]), (&5.into(), &9.into()));
}

/// A split without one of the other's classes: which one, and what to do.
#[test]
fn a_class_that_a_split_lacks_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    write_photos(dir);
    succeeds(dir, "tokenizer train --images photos --codes 4 --patch 4 --out t.safetensors");
    succeeds(dir, "tokenize --images photos --tokenizer t.safetensors --out data/train");
    std::fs::remove_dir_all(dir.join("photos/light")).unwrap();
    succeeds(dir, "tokenize --images photos --tokenizer t.safetensors --out data/val");
    for line in ["knn --data data", "tokens merge data/train data/val --out both"] {
        let (code, _, error) = sorcen(dir, line);
        assert_eq!(code, 1);
        let expected = "data/val: classes: expected the 2 of data/train, found 1; data/val lacks `light` \
                        (make data/val anew: `sorcen tokenize --classes_from data/train …`)";
        assert!(error.contains(expected), "{line}: {error}");
    }
}
