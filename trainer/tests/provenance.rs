//! What does not go together is refused, unless it is asked for: data, tokenizer, encoder.

use std::path::Path;
use std::process::Command;

use sorcen_export::card::Card;
use sorcen_export::pack::{self, PackOptions};
use sorcen_export::tensors::{TensorFile, TensorWriter};
use sorcen_export::Checkpoint;
use sorcen_runtime::pack::Precision;
use sorcen_trainer::data::TokenDataset;
use sorcen_trainer::tokenizer::PatchTokenizer;

fn emoji(name: &str) -> String {
    format!("{}/assets/emoji/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Runs `sorcen` in `dir`: exit code, standard error.
fn sorcen(dir: &Path, line: &str) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sorcen"));
    let output = command.args(line.split_whitespace()).current_dir(dir).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[track_caller]
fn succeeds(dir: &Path, line: &str) -> String {
    let (code, said) = sorcen(dir, line);
    assert_eq!(code, 0, "sorcen {line}\n{said}");
    said
}

#[track_caller]
fn fails(dir: &Path, line: &str, parts: &[&str]) {
    let (code, said) = sorcen(dir, line);
    assert_eq!(code, 1, "sorcen {line}\n{said}");
    parts.iter().for_each(|part| assert!(said.contains(part), "sorcen {line}: `{part}` not in {said}"));
}

/// A tokenizer of `codes` patches of 8×8 grey pixels.
fn grey(codes: usize) -> PatchTokenizer {
    PatchTokenizer::new((0..codes).flat_map(|code| [code as u8; 192]).collect(), codes, 8).unwrap()
}

/// The bundled model as a pack whose card says that its data was of this tokenizer.
fn write_pack(path: &Path, tokenizer: &str) {
    let checkpoint = Checkpoint::open(Path::new(&emoji("checkpoint"))).unwrap();
    let mut card = Card::new();
    card.insert("data".into(), serde_json::json!({ "tokenizer": tokenizer }));
    pack::write(&checkpoint, path, &PackOptions { card, ..PackOptions::new(Precision::Int8) }).unwrap();
}

#[test]
fn another_tokenizer_is_refused_and_can_be_allowed() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let data = TokenDataset::open(Path::new(&emoji("val"))).unwrap();
    let own = data.tokenizer().unwrap();
    let other = grey(512).fingerprint();
    grey(512).save(&dir.join("other.safetensors")).unwrap();
    grey(500).save(&dir.join("500.safetensors")).unwrap();
    write_pack(&dir.join("own.srcn"), own);
    write_pack(&dir.join("other.srcn"), &other);

    // The task: few images.
    let task = format!("--data {} --bank test --split val --only skin_variation=0", emoji(""));
    let (val, tokenizer) = (emoji("val"), emoji("tokenizer.safetensors"));
    let cases = [
        (format!("decode --data {val} --count 2 --out x.png --tokenizer other.safetensors"), "other.safetensors"),
        (format!("knn {task} --tokenizer other.safetensors"), "other.safetensors"),
        (format!("knn {task} --pack other.srcn"), "other.srcn"),
        (format!("linprobe {task} --pack other.srcn --epochs 1 --output_dir x"), "other.srcn"),
        (format!("fewshot {task} --pack other.srcn --shots 1 --draws 1 --epochs 1"), "other.srcn"),
        (
            format!("pack --checkpoint {} --tokenizer other.safetensors --out x.srcn", emoji("checkpoint")),
            "other.safetensors",
        ),
    ];
    for (line, found) in &cases {
        fails(dir, line, &[found, ": tokenizer: expected that of ", own, &other, "--allow_other_tokenizer"]);
        assert!(["x", "x.png", "x.srcn"].iter().all(|made| !dir.join(made).exists()), "{line}");
        let said = succeeds(dir, &format!("{line} --allow_other_tokenizer"));
        assert!(said.contains("note: ") && said.contains(&other), "{line}: {said}");
        let said = succeeds(
            dir,
            &line
                .replace(found, if found.ends_with("srcn") { "own.srcn" } else { &tokenizer })
                .replace("_dir x", "_dir y"),
        );
        assert!(!said.contains("note: "), "{line}: {said}");
        let _ = (std::fs::remove_dir_all(dir.join("x")), std::fs::remove_dir_all(dir.join("y")));
        let _ = (std::fs::remove_file(dir.join("x.png")), std::fs::remove_file(dir.join("x.srcn")));
    }
    // Another number of codes is no question of fingerprints.
    let line = format!("decode --data {val} --count 2 --out x.png --tokenizer 500.safetensors --allow_other_tokenizer");
    fails(dir, &line, &["500.safetensors: expected 512 codes", "found 500"]);
    let line = format!("knn {task} --tokenizer 500.safetensors --allow_other_tokenizer");
    fails(dir, &line, &["500.safetensors: expected 512 codes", "found 500"]);

    // To pretrain from an encoder of other codes is a choice, too.
    let checkpoint = dir.join("foreign");
    std::fs::create_dir(&checkpoint).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(Path::new(&emoji("checkpoint")).join(name), checkpoint.join(name)).unwrap();
    }
    let card = serde_json::json!({ "data": { "tokenizer": other } });
    std::fs::write(checkpoint.join("card.json"), card.to_string()).unwrap();
    let line = format!("pretrain --data {val} --model micro --steps 2 --warmup_epochs 0 --init foreign --output_dir");
    fails(dir, &format!("{line} x"), &["foreign: tokenizer: ", own, &other, "--allow_other_tokenizer"]);
    succeeds(dir, &format!("{line} x --allow_other_tokenizer"));

    // A head knows the features of one checkpoint, and says so.
    succeeds(dir, &format!("linprobe {task} --pack own.srcn --epochs 1 --output_dir probe"));
    let head = TensorFile::open(&dir.join("probe/head.safetensors")).unwrap();
    let bundled = Checkpoint::open(Path::new(&emoji("checkpoint"))).unwrap();
    assert_eq!(head.metadata().unwrap()["checkpoint_sha256"], bundled.sha256());
    succeeds(
        dir,
        &format!("pack --checkpoint {} --classifier probe/head.safetensors --out h.srcn", emoji("checkpoint")),
    );
    let line = "pack --checkpoint x/checkpoint --classifier probe/head.safetensors --out x.srcn";
    fails(dir, line, &["head.safetensors: checkpoint: ", &bundled.sha256(), "--allow_other_checkpoint"]);
    succeeds(dir, &format!("{line} --allow_other_checkpoint"));
}

/// What one verb writes, the next one reads, and it says whose codes it holds.
#[test]
fn files_of_ids_chain() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let (checkpoint, tokenizer) = (emoji("checkpoint"), emoji("tokenizer.safetensors"));
    grey(512).save(&dir.join("other.safetensors")).unwrap();
    let mut image = TensorWriter::default();
    image.floats(
        "image",
        ndarray::Array4::from_shape_fn((2, 3, 64, 64), |(b, c, y, x)| ((b + c + y + x) % 7) as f32 / 7.0).view(),
    );
    image.write(&dir.join("image.st")).unwrap();
    succeeds(dir, &format!("tokenizer run --tokenizer {tokenizer} --input image.st --output ids.st"));
    assert_eq!(TensorFile::open(&dir.join("ids.st")).unwrap().shape("ids").unwrap(), [2, 8, 8]);
    succeeds(dir, &format!("generate --checkpoint {checkpoint} --input ids.st --steps 1 --out drawn.st"));
    for ids in ["ids.st", "drawn.st"] {
        succeeds(dir, &format!("run --checkpoint {checkpoint} --input {ids} --output out.st"));
        assert_eq!(TensorFile::open(&dir.join("out.st")).unwrap().shape("features").unwrap(), [2, 64]);
        succeeds(dir, &format!("decode --input {ids} --tokenizer {tokenizer} --out x.png"));
    }
    let line = "decode --input ids.st --tokenizer other.safetensors --out y.png";
    fails(dir, line, &["other.safetensors: tokenizer: expected that of ids.st", "--allow_other_tokenizer"]);
    assert!(!dir.join("y.png").exists());
    succeeds(dir, &format!("{line} --allow_other_tokenizer"));
}

/// What cannot be written is found before the work.
#[test]
#[cfg(target_os = "linux")]
fn outputs_are_looked_at_before_the_work() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    std::fs::create_dir_all(dir.join("folder.png")).unwrap();
    std::fs::create_dir_all(dir.join("full/file")).unwrap();
    let decode = format!("decode --data {} --tokenizer {}", emoji("val"), emoji("tokenizer.safetensors"));
    fails(dir, &format!("{decode} --npz o.npz --out folder.png"), &["folder.png: cannot write"]);
    fails(dir, &format!("{decode} --npz o.npz --png_dir full"), &["full", "expected a new or empty folder"]);
    for output in ["--npz o.npz", "--out o.png --scale 8"] {
        let limited = format!("trap '' XFSZ; ulimit -f 8; exec \"$0\" {decode} {output}");
        let out = Command::new("bash").args(["-c", &limited, env!("CARGO_BIN_EXE_sorcen")]).current_dir(dir).output();
        let said = String::from_utf8_lossy(&out.unwrap().stderr).into_owned();
        assert!(said.contains("cannot write: expected room for "), "{output}: {said}");
    }
    assert_eq!(dir.read_dir().unwrap().count(), 2, "nothing begun is left");
}
