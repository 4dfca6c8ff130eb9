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
    let other = PretrainOptions { resume: true, ..options(dir.path(), "alone") };
    let error = pretrain(&other, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
    assert!(error.contains("devices: expected 1") || error.contains("batch_size: expected 16"), "{error}");
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
