//! A run that is killed, interrupted, or meets a full disk: nothing is lost, and it goes on to the same bits.
#![cfg(unix)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sorcen_trainer::data::{StreamSpec, TokenDatasetWriter};

/// 32 images on a 4×4 grid of 16 codes.
fn dataset(dir: &Path) {
    let spec = StreamSpec { name: "vqgan".into(), grid: 4, codebook_size: 16, tokenizer: None };
    let mut writer = TokenDatasetWriter::create(dir, vec!["a".into(), "b".into()], &[spec]).unwrap();
    for image in 0..32u16 {
        let ids: Vec<u16> = (0..16).map(|t| (image * 5 + t * 3) % 16).collect();
        writer.push(image % 2, &[&ids]).unwrap();
    }
    writer.finish(None).unwrap();
}

/// How often a run is killed; each time it starts over from its last checkpoint.
const KILLS: u32 = 20;

struct Run {
    data: PathBuf,
    out: PathBuf,
    steps: &'static str,
    save_every: &'static str,
}

impl Run {
    fn new(dir: &Path, name: &str, steps: &'static str) -> Self {
        Self { data: dir.join("data"), out: dir.join(name), steps, save_every: "1" }
    }

    /// `sorcen pretrain`; with a checkpoint at every step, half of the time is spent writing them.
    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sorcen"));
        command.arg("pretrain").arg("--data").arg(&self.data).arg("--output_dir").arg(&self.out);
        command.args(["--model", "micro", "--batch_size", "8", "--lr", "2e-3", "--echo_warmup_epochs", "0"]);
        command.args(["--resume", "auto", "--steps", self.steps, "--save_every", self.save_every]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn finish(&self) {
        assert!(self.command().status().unwrap().success());
    }

    fn weights(&self) -> [Vec<u8>; 3] {
        ["model.safetensors", "training_state/state.safetensors", "training_state/state.json"]
            .map(|file| std::fs::read(self.out.join("checkpoint").join(file)).unwrap())
    }

    /// The log without clocks: the curve.
    fn curve(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.out.join("log.txt")).unwrap();
        let line = |line: &str| {
            let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
            for clock in ["img_per_s", "time_s"] {
                line.as_object_mut().unwrap().remove(clock).unwrap();
            }
            line.to_string()
        };
        text.lines().map(line).collect()
    }
}

#[test]
fn killed_at_any_moment_it_ends_with_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    dataset(&dir.path().join("data"));
    let straight = Run::new(dir.path(), "straight", "40");
    straight.finish();

    let killed = Run::new(dir.path(), "killed", "40");
    let partial = killed.out.join("checkpoint.partial");
    let (mut kills, mut in_a_write) = (0, 0);
    while kills < KILLS {
        let mut child = killed.command().spawn().unwrap();
        // In turn: as soon as a checkpoint is being written, and after some time, never the same.
        let patience = Duration::from_millis(30 + u64::from(kills) * 137 % 400);
        let started = Instant::now();
        let is_time = || started.elapsed() > patience && (kills % 2 == 1 || partial.exists());
        while child.try_wait().unwrap().is_none() && !is_time() {
            std::thread::sleep(Duration::from_micros(200));
        }
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "resuming failed after {kills} kills");
            break;
        }
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        in_a_write += u32::from(partial.exists());
        kills += 1;
    }
    killed.finish();
    println!("{kills} kills, {in_a_write} of them in a checkpoint's writing");
    assert!(kills >= 3 && in_a_write >= 1, "{kills} kills, {in_a_write} in a write");
    assert!(straight.weights() == killed.weights(), "other weights after {kills} kills");
    assert_eq!(straight.curve(), killed.curve());
}

#[test]
fn a_full_disk_is_named_and_the_old_checkpoint_stays() {
    let dir = tempfile::tempdir().unwrap();
    dataset(&dir.path().join("data"));
    let straight = Run::new(dir.path(), "straight", "6");
    straight.finish();
    let run = Run::new(dir.path(), "run", "6");
    assert!(run.command().args(["--keep_last", "9"]).status().unwrap().success());
    // Back to the checkpoint of step 3, as if the disk had been full from there on.
    std::fs::remove_dir_all(run.out.join("checkpoint")).unwrap();
    std::fs::remove_dir_all(run.out.join("checkpoint-5")).unwrap();
    std::fs::remove_dir_all(run.out.join("checkpoint-4")).unwrap();
    let model = run.out.join("checkpoint-3/model.safetensors");
    let before = std::fs::read(&model).unwrap();

    // No file may grow beyond 64 KiB, as the kernel would have it on a full disk (and no signal).
    let command = run.command();
    let limited = "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\"";
    let output =
        Command::new("bash").args(["-c", limited]).arg(command.get_program()).args(command.get_args()).output();
    let output = output.unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("checkpoint.partial") && message.contains("too large"), "{message}");
    assert!(std::fs::read(&model).unwrap() == before);
    assert!(!run.out.join("checkpoint.partial").exists(), "what was written is removed: the disk is full");

    run.finish();
    assert!(straight.weights() == run.weights());
}

/// Sends a signal once `is_time`; the exit code as a shell sees it.
fn interrupt(command: &mut Command, signal: &str, is_time: impl Fn() -> bool) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;

    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !is_time() {
        assert!(child.try_wait().unwrap().is_none(), "ended by itself");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
    let status = child.wait().unwrap();
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap())
}

#[test]
fn signals_stop_a_run_with_a_checkpoint_and_exit_code_130() {
    let dir = tempfile::tempdir().unwrap();
    dataset(&dir.path().join("data"));
    for signal in ["-TERM", "-INT"] {
        let run = Run { save_every: "100000", ..Run::new(dir.path(), signal, "100000") };
        let log = run.out.join("log.txt");
        let has_begun = || std::fs::read_to_string(&log).is_ok_and(|log| !log.is_empty());
        assert_eq!(interrupt(&mut run.command(), signal, has_begun), 130, "{signal}");
        let state: serde_json::Value = serde_json::from_slice(&run.weights()[2]).unwrap();
        assert!(state["step"].as_u64().unwrap() >= 20, "{state}");
    }
}

/// One rule for all that take long: `&&` does not go on, and what can be kept is.
#[test]
fn ctrl_c_ends_every_long_verb_with_130() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for split in ["data/train", "data/val"] {
        dataset(&path(split));
    }
    std::fs::create_dir(path("photos")).unwrap();
    for n in 0..4000u32 {
        let photo =
            image::RgbImage::from_fn(16, 16, |x, y| image::Rgb([(x * n + y) as u8, n as u8, (y * n / 7) as u8]));
        photo.save(path("photos").join(format!("{n}.png"))).unwrap();
    }
    let few = |n: u32| path("few").join(format!("{n}.png"));
    std::fs::create_dir(path("few")).unwrap();
    for n in 0..64 {
        std::fs::copy(path("photos").join(format!("{n}.png")), few(n)).unwrap();
    }
    let sorcen = |line: &str| {
        // Where tests run in the background of a script, Ctrl-C is ignored, and children inherit that.
        let mut command = Command::new("env");
        command.args(["--default-signal=INT", env!("CARGO_BIN_EXE_sorcen")]);
        command.args(line.split_whitespace()).current_dir(dir.path());
        command
    };
    let train = "tokenizer train --images few --codes 8 --patch 4 --iterations 1 --out t.safetensors";
    assert!(sorcen(train).output().unwrap().status.success());
    let there = |name: &'static str| {
        let path = path(name);
        move || path.exists()
    };
    let vit = "tokenizer train --kind vit --images few --patch 4 --codes 8 --dim 16 --depth 1 --decoder_depth 1 \
        --heads 2 --code_dim 4 --steps 1000000 --start random --out vit";
    assert_eq!(interrupt(&mut sorcen(vit), "-INT", there("vit/run.json")), 130);
    assert!(path("vit/checkpoint/tokenizer.safetensors").exists(), "with a checkpoint");
    let compare =
        "compare --data data --output_dir compared --steps 1000000 --batch_size 8 --variants sorcen --seeds 1";
    assert_eq!(interrupt(&mut sorcen(compare), "-INT", there("compared")), 130);
    let tokenize = "tokenize --images photos --tokenizer t.safetensors --out tokens";
    assert_eq!(interrupt(&mut sorcen(tokenize), "-INT", there("tokens.unfinished")), 130);
    assert!(!path("tokens").exists() && path("tokens.unfinished").exists());
    assert!(sorcen(tokenize).output().unwrap().status.success(), "it goes on");
    let quickstart = "quickstart --minutes 60 --out quick";
    assert_eq!(interrupt(&mut sorcen(quickstart), "-INT", there("quick/training/run.json")), 130);
    assert!(path("quick/training/checkpoint/model.safetensors").exists());
    assert!(!path("quick/onnx").exists(), "no further stage");
}
