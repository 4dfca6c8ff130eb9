//! The whole way and the demo, as a user runs them.

use std::{fs, path::Path, process::Command};

fn sorcen(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_sorcen")).args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Width and height of a PNG, after its whole decoding.
fn png_size(path: &Path) -> (u32, u32) {
    let picture = image::open(path).unwrap();
    (picture.width(), picture.height())
}

#[test]
fn quickstart_goes_the_whole_way() {
    for init in ["bundled", "scratch"] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().to_str().unwrap();
        let (code, stdout, stderr) =
            sorcen(&["quickstart", "--minutes", "0.05", "--samples", "3", "--init", init, "--out", out]);
        assert_eq!(code, 0, "{stdout}\n{stderr}");
        for stage in 1..=8 {
            assert!(stdout.contains(&format!("[{stage}/8]")), "{stdout}");
        }
        let file = |name: &str| dir.path().join(name);
        let report = fs::read_to_string(file("report.md")).unwrap();
        assert!(report.contains("k-NN accuracy") && !report.contains("FAILED"), "{report}");
        assert!(report.contains(if init == "bundled" { "bundled checkpoint" } else { "random weights" }));
        for name in ["loss.png", "samples.png", "reconstruct.png"] {
            assert!(report.contains(name));
            let (width, height) = png_size(&file(name));
            assert!(width > 64 && height > 64, "{name}: {width}x{height}");
        }
        for name in [
            "training/log.txt",
            "training/checkpoint/model.safetensors",
            "training/checkpoint/config.json",
            "onnx/encoder.onnx",
            "onnx/decoder.onnx",
            "model.srcn",
            "model-f32.srcn",
        ] {
            assert!(fs::metadata(file(name)).unwrap().len() > 0, "{name}");
        }
        let log = fs::read_to_string(file("training/log.txt")).unwrap();
        for line in log.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(line["train_loss"].as_f64().unwrap().is_finite());
        }
    }
}

#[test]
fn the_demo_draws_the_same_pictures_twice() {
    let pictures = || {
        let dir = tempfile::tempdir().unwrap();
        let (code, stdout, stderr) = sorcen(&["demo", "--samples", "2", "--out", dir.path().to_str().unwrap()]);
        assert_eq!(code, 0, "{stdout}\n{stderr}");
        ["samples.png", "reconstruct.png"].map(|name| fs::read(dir.path().join(name)).unwrap())
    };
    assert_eq!(pictures(), pictures());
}

#[test]
fn usage_errors_have_code_2_and_failures_code_1() {
    assert_eq!(sorcen(&["quickstart", "--minutes", "soon"]).0, 2);
    assert_eq!(sorcen(&["no_such_verb"]).0, 2);
    let (code, _, stderr) = sorcen(&["knn", "--k", "-1", "--data", "d"]);
    assert!(code == 2 && stderr.contains("'--k <K>'"), "a negative number is said of its flag: {stderr}");
    let (code, _, stderr) = sorcen(&["bench", "train", "--device", "gpu"]);
    assert!(code == 2 && stderr.contains("expected cpu, cuda or wgpu"), "{stderr}");
    let file = tempfile::NamedTempFile::new().unwrap();
    let (code, _, stderr) = sorcen(&["demo", "--out", file.path().to_str().unwrap()]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains(file.path().to_str().unwrap()), "{stderr}");
}

#[test]
fn a_quickstart_that_cannot_begin_removes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mine = dir.path().join("training/mine.txt");
    fs::create_dir(mine.parent().unwrap()).unwrap();
    fs::write(&mine, "precious").unwrap();
    let out = dir.path().to_str().unwrap();
    let (code, _, stderr) = sorcen(&["quickstart", "--out", out]);
    assert!(code == 1 && stderr.contains("training: expected nothing"), "{stderr}");
    fs::write(dir.path().join("training/run.json"), "{}").unwrap();
    let (code, _, stderr) = sorcen(&["quickstart", "--minutes", "nan", "--out", out]);
    assert!(code == 2 && stderr.contains("--minutes: expected a number above 0"), "{stderr}");
    assert!(mine.exists());
}

#[cfg(target_os = "linux")] // has /dev/full
#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    let emoji = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/emoji");
    let dir = tempfile::tempdir().unwrap();
    for line in [
        "--help",
        "tokens --help",
        "--version",
        "tokens inspect val",
        "tokens verify val",
        "inspect demo.srcn",
        "knn --data . --bank val --split val --only subcategory=animal-mammal",
        "decode --data val --count 1 --tokenizer tokenizer.safetensors --out OUT/x.png",
        "generate --pack demo.srcn --steps 1 --out OUT/x.st",
        "pack --checkpoint checkpoint --out OUT/x.srcn",
        "run --checkpoint checkpoint --input OUT/x.st --output OUT/y.st",
    ] {
        let line = line.replace("OUT", dir.path().to_str().unwrap());
        let run =
            |command: &mut Command| command.args(line.split(' ')).current_dir(emoji).stdout(full()).output().unwrap();
        let output = run(&mut Command::new(env!("CARGO_BIN_EXE_sorcen")));
        let stderr = String::from_utf8(output.stderr).unwrap();
        let said: Vec<&str> = stderr.lines().filter(|line| !line.starts_with("note: ")).collect();
        assert!(said.len() == 1 && said[0].starts_with("error: failed printing to stdout"), "{line}: {stderr}");
        assert_eq!(output.status.code(), Some(1), "{line}");
        let output = run(Command::new(env!("CARGO_BIN_EXE_sorcen")).stderr(full()));
        assert_eq!(output.status.code(), Some(1), "{line}");
    }
}
