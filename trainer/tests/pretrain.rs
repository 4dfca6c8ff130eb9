//! Pretraining as a user runs it: resuming to the same bits, damage, and losses that come down.

use std::ops::ControlFlow;
use std::path::Path;

use sorcen_trainer::config::{Duration, ModelChoice, PretrainOptions};
use sorcen_trainer::data::{StreamSpec, TokenDatasetWriter};
use sorcen_trainer::train::{pretrain, PretrainReport, TrainError};

const GRID: usize = 4;

/// 40 images of stripes: even images repeat one pair of codes, odd ones another.
fn dataset(dir: &Path) {
    let spec = StreamSpec { name: "vqgan".into(), grid: GRID, codebook_size: 16, tokenizer: None };
    let mut writer = TokenDatasetWriter::create(dir, vec!["even".into(), "odd".into()], &[spec]).unwrap();
    for image in 0..40u16 {
        let ids: Vec<u16> = (0..16).map(|t| (image % 2) * 8 + (t + image / 2) % 2 * 3).collect();
        writer.push(image % 2, &[&ids]).unwrap();
    }
    writer.finish(None).unwrap();
}

fn options(dir: &Path, out: &str, steps: u64) -> PretrainOptions {
    let mut options =
        PretrainOptions::new(&dir.join("data"), &dir.join(out), ModelChoice::Micro, Duration::Steps(steps));
    options.batch_size = 8;
    options.lr = Some(2e-3);
    options.echo_warmup_epochs = Some(0); // from step 5 on the echoes are drawn
    options.save_every = 6;
    options.print_freq = 4;
    options
}

fn run(options: &PretrainOptions) -> Result<PretrainReport, TrainError> {
    pretrain(options, &mut |_| ControlFlow::Continue(()))
}

fn files(out: &Path) -> [Vec<u8>; 2] {
    ["checkpoint/model.safetensors", "checkpoint/training_state/state.safetensors"]
        .map(|file| std::fs::read(out.join(file)).unwrap())
}

#[test]
fn stopped_anywhere_it_goes_on_to_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    dataset(&dir.path().join("data"));
    let straight = options(dir.path(), "straight", 14);
    run(&straight).unwrap();

    for stop in [3, 6, 13] {
        let name = format!("stopped{stop}");
        let mut stopped = options(dir.path(), &name, 14);
        stopped.resume = true;
        let report = pretrain(&stopped, &mut |progress| match progress.step == stop {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        });
        assert_eq!(report.unwrap().steps, stop);
        assert_eq!(run(&stopped).unwrap().steps, 14);
        assert!(files(&straight.output_dir) == files(&stopped.output_dir), "stopped at {stop}");
    }
}

#[test]
fn the_losses_come_down() {
    let dir = tempfile::tempdir().unwrap();
    dataset(&dir.path().join("data"));
    let report = run(&options(dir.path(), "run", 120)).unwrap();
    let log = std::fs::read_to_string(&report.log).unwrap();
    let loss = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        (line["train_rec_loss"].as_f64().unwrap(), line["train_class_loss"].as_f64().unwrap())
    };
    let (first, last) = (loss(log.lines().next().unwrap()), loss(log.lines().last().unwrap()));
    // Of 16 codes, smoothed: 2.8 at first; the smoothing alone leaves about 0.5.
    assert!(first.0 > 2.0 && last.0 < 1.6, "reconstruction from {} to {}", first.0, last.0);
    assert!(last.1 < 0.3, "classifier {}", last.1);
}

#[test]
fn what_cannot_be_resumed_is_named() {
    let dir = tempfile::tempdir().unwrap();
    dataset(&dir.path().join("data"));
    let mut begun = options(dir.path(), "run", 6);
    run(&begun).unwrap();
    begun.resume = true;
    let message = |options: &PretrainOptions| run(options).unwrap_err().to_string();

    let mut other = begun.clone();
    other.seed = 5;
    assert!(message(&other).contains("run.json: seed: expected 0"), "{}", message(&other));
    let mut other = begun.clone();
    other.model = ModelChoice::Tiny;
    assert!(message(&other).contains("run.json: model"), "{}", message(&other));

    let weights = begun.output_dir.join("checkpoint/model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() - 5]).unwrap();
    assert!(message(&begun).contains("model.safetensors"), "{}", message(&begun));
}

#[test]
fn what_does_not_fit_is_named() {
    let dir = tempfile::tempdir().unwrap();
    dataset(&dir.path().join("data"));
    let failure = |edit: fn(&mut PretrainOptions)| {
        let mut options = options(dir.path(), "run", 3);
        edit(&mut options);
        run(&options).unwrap_err().to_string()
    };
    assert!(failure(|o| o.model = ModelChoice::VitB).contains("grid: expected 16, the model's, found 4"));
    assert!(failure(|o| o.batch_size = 64).contains("images: expected at least 64, one batch, found 40"));
    assert!(failure(|o| o.dropout = 1.0).contains("dropout: expected 0 to below 1, found 1"));
    assert!(failure(|o| o.masks.mask_ratio_min = 0.2).contains("mask_ratio_min"));
    assert!(failure(|o| o.init = Some("nowhere".into())).contains("nowhere"));
    let diverged = failure(|o| o.lr = Some(1e30));
    assert!(diverged.contains("expected a finite number"), "{diverged}");
}

#[test]
fn the_verb_does_not_write_over_a_run() {
    let dir = tempfile::tempdir().unwrap();
    dataset(&dir.path().join("data"));
    let [data, out] = ["data", "run"].map(|name| dir.path().join(name).display().to_string());
    let pretrain = |more: &[&str]| {
        let arguments = ["pretrain", "--data", &data, "--output_dir", &out, "--model", "micro", "--batch_size", "8"];
        let sorcen = std::process::Command::new(env!("CARGO_BIN_EXE_sorcen")).args(arguments).args(more).output();
        let output = sorcen.unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(pretrain(&["--steps", "2"]).0, Some(0));
    let (code, message) = pretrain(&["--steps", "2"]);
    assert!(code == Some(1) && message.contains("--resume auto"), "{message}");
    assert_eq!(pretrain(&["--steps", "2", "--resume", "auto"]).0, Some(0), "a finished run is left as it is");
    assert_eq!(pretrain(&["--steps", "2", "--minutes", "1"]).0, Some(2), "a usage error");
}
