//! Runs on several devices, as far as one machine without any goes: replicas in threads, on the CPU.

use std::ops::ControlFlow;
use std::path::Path;

use sorcen_tests::compare::largest_difference;
use sorcen_trainer::checkpoint::{TensorFile, WeightSource as _};
use sorcen_trainer::config::{Duration, ModelChoice, PretrainOptions};
use sorcen_trainer::data::{StreamSpec, TokenDatasetWriter};
use sorcen_trainer::step::Method;
use sorcen_trainer::train::pretrain;

/// 48 images on a 4×4 grid of 16 codes.
fn dataset(dir: &Path) {
    let spec = StreamSpec { name: "vqgan".into(), grid: 4, codebook_size: 16, tokenizer: None };
    let mut writer = TokenDatasetWriter::create(dir, vec!["a".into(), "b".into()], &[spec]).unwrap();
    for image in 0..48u16 {
        let ids: Vec<u16> = (0..16).map(|t| (image * 5 + t * 3) % 16).collect();
        writer.push(image % 2, &[&ids]).unwrap();
    }
    writer.finish(None).unwrap();
}

/// Three steps an epoch on two devices; from step 3 on the echoes are drawn.
fn options(dir: &Path, out: &str) -> PretrainOptions {
    let mut options = PretrainOptions::new(&dir.join("data"), &dir.join(out), ModelChoice::Micro, Duration::Steps(8));
    options.batch_size = 8;
    options.devices = 2;
    options.lr = Some(2e-3);
    options.echo_warmup_epochs = Some(0);
    options
}

fn files(options: &PretrainOptions) -> [Vec<u8>; 2] {
    ["checkpoint/model.safetensors", "checkpoint/training_state/state.safetensors"]
        .map(|file| std::fs::read(options.output_dir.join(file)).unwrap())
}

#[test]
fn two_replicas_stop_and_go_on_to_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    dataset(&dir.path().join("data"));
    let straight = options(dir.path(), "straight");
    pretrain(&straight, &mut |_| ControlFlow::Continue(())).unwrap();
    let stopped = PretrainOptions { resume: true, ..options(dir.path(), "stopped") };
    for stop in [2, 5, 8] {
        let report = pretrain(&stopped, &mut |progress| match progress.step == stop {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        });
        assert_eq!(report.unwrap().steps, stop);
    }
    assert!(files(&straight) == files(&stopped));

    let alone = PretrainOptions { devices: 1, batch_size: 16, ..options(dir.path(), "alone") };
    pretrain(&alone, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(files(&straight) != files(&alone), "masks and BatchNorm are each replica's own");
}

/// The images of an update may be shared out anew, and it is said; another number of them is another run.
#[test]
fn a_run_goes_on_over_other_devices_with_the_same_images() {
    let dir = tempfile::tempdir().unwrap();
    dataset(&dir.path().join("data"));
    let run = |name: &str, shares: (usize, usize, usize), stop: u64| {
        let mut options = PretrainOptions { resume: true, ..options(dir.path(), name) };
        options.losses.method = Method::Mage;
        (options.batch_size, options.accum_iter, options.devices) = shares;
        let mut notes = Vec::new();
        pretrain(&options, &mut |progress| {
            notes.extend_from_slice(&progress.notes);
            match progress.step == stop {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?;
        Ok::<_, sorcen_trainer::train::TrainError>(notes)
    };
    assert_eq!(run("straight", (8, 2, 1), 8).unwrap(), [""; 0]);
    assert_eq!(run("moved", (8, 2, 1), 3).unwrap(), [""; 0]);
    let notes = run("moved", (8, 1, 2), 6).unwrap();
    let [note] = &notes[..] else { panic!("{notes:?}") };
    assert!(note.contains("8 × 1 × 2 = 16, where the run was begun with 8 × 2 × 1 = 16"), "{note}");
    // Batches of MAGE, on whatever device, are the same, and the weights but for the order of sums.
    assert_eq!(run("moved", (8, 2, 1), 8).unwrap(), [""; 0]);
    let weights = |name: &str| TensorFile::open(&dir.path().join(name).join("checkpoint/model.safetensors")).unwrap();
    let (straight, moved) = (weights("straight"), weights("moved"));
    for name in straight.names() {
        let (a, b) = (straight.read(&name).unwrap(), moved.read(&name).unwrap());
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-6), "{name}");
    }

    for shares in [(8, 1, 1), (4, 2, 1), (16, 2, 1)] {
        let error = run("straight", shares, 8).unwrap_err().to_string();
        let now = shares.0 * shares.1 * shares.2;
        assert!(error.contains("expected 8 × 2 × 1 = 16, as the run was begun with, found"), "{error}");
        assert!(error.contains(&format!("= {now}")), "{error}");
    }
}

/// Without terms between images, two replicas are two accumulated batches: the numbers of the batches are the same.
#[test]
fn mage_on_two_devices_is_an_accumulated_step() {
    let dir = tempfile::tempdir().unwrap();
    dataset(&dir.path().join("data"));
    let weights = |name: &str, devices: usize| {
        let mut options = options(dir.path(), name);
        options.losses.method = Method::Mage;
        (options.devices, options.accum_iter) = (devices, 2 / devices);
        pretrain(&options, &mut |_| ControlFlow::Continue(())).unwrap();
        TensorFile::open(&options.output_dir.join("checkpoint/model.safetensors")).unwrap()
    };
    let (two, one) = (weights("two", 2), weights("one", 1));
    for name in one.names() {
        let (a, b) = (two.read(&name).unwrap(), one.read(&name).unwrap());
        let worst = largest_difference(&a, &b);
        assert!(worst < 1e-6, "{name}: {worst}");
    }
}

#[test]
fn what_several_devices_cannot_do_is_named() {
    let dir = tempfile::tempdir().unwrap();
    dataset(&dir.path().join("data"));
    let failure = |edit: fn(&mut PretrainOptions)| {
        let mut options = options(dir.path(), "run");
        edit(&mut options);
        pretrain(&options, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string()
    };
    assert!(failure(|o| o.devices = 0).contains("devices: expected 1 to 1024, found 0"));
    assert!(failure(|o| o.duration = Duration::Minutes(1.0)).contains("minutes: expected steps or epochs"));
    assert!(failure(|o| o.devices = 7).contains("images: expected at least 56"));
    // The same for all replicas, and said once.
    assert!(failure(|o| o.init = Some("nowhere".into())).contains("nowhere"));
}
