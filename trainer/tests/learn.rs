//! Learned tokenizers: training that resumes to the bit, the files in every verb that takes a tokenizer.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

use sorcen_runtime::vit::VitConfig;
use sorcen_trainer::tokenizer;
use sorcen_trainer::tokenizer::learn::{learn, Images, Loss, Options, Report, Sizes, Start};
use sorcen_trainer::tokenizer::vqgan::VqganConfig;
use sorcen_trainer::train::TrainError;

const SIDE: usize = 16;

fn vit() -> Sizes {
    Sizes::Vit(VitConfig {
        grid: 4,
        patch: 4,
        codes: 12,
        code_dim: 4,
        embed_dim: 16,
        depth: 1,
        num_heads: 2,
        decoder_depth: 1,
        mlp_ratio: 2,
    })
}

fn vqgan() -> Sizes {
    Sizes::Vqgan(VqganConfig {
        stem: 32,
        channels: vec![32, 32, 32],
        encoder_blocks: 1,
        decoder_blocks: 1,
        z_channels: 4,
        codes: 12,
    })
}

/// Bars and squares of a few colours, a little darker from one to the next.
fn pictures() -> Vec<Vec<u8>> {
    let colours = [[250u8, 250, 250], [200, 30, 30], [20, 60, 190], [240, 200, 20]];
    let colour = |n: usize, x: usize, y: usize| match (n % 3, (x / 4 + n).is_multiple_of(2), (y / 4).is_multiple_of(2))
    {
        (0, true, _) | (1, _, true) | (2, true, true) => colours[1 + n % 3],
        _ => colours[0],
    };
    let pixel = |n: usize, x: usize, y: usize| colour(n, x, y).map(|channel| channel - n.min(20) as u8);
    (0..24).map(|n| (0..SIDE * SIDE).flat_map(|i| pixel(n, i % SIDE, i / SIDE)).collect()).collect()
}

fn options(sizes: Sizes, steps: u64, out: &Path) -> Options {
    Options {
        sizes,
        start: Start::Random,
        steps,
        batch_size: 8,
        lr: 3e-3,
        warmup_steps: 2,
        weight_decay: 1e-4,
        loss: Loss::L1,
        commitment: 0.25,
        ema_decay: 0.9,
        dead_below: 0.05,
        seed: 3,
        save_every: 3,
        print_freq: 2,
        picture_every: 0,
        resume: true,
        device: Default::default(),
        out: out.to_path_buf(),
    }
}

fn train(options: &Options, stop_after: u64) -> Result<Report, TrainError> {
    let pixels = pictures();
    let images = Images { pixels: &pixels, side: SIDE, digest: "pictures".into() };
    learn(&images, options, &mut |progress| match progress.step == stop_after {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    })
}

fn read(out: &Path, file: &str) -> Vec<u8> {
    std::fs::read(out.join("checkpoint").join(file)).unwrap()
}

#[test]
fn stopped_and_resumed_the_bits_are_the_same() {
    for (name, sizes, start, steps) in [("vit", vit(), Start::Patches, 8), ("vqgan", vqgan(), Start::Random, 6)] {
        let temp = tempfile::tempdir().unwrap();
        let (whole, parts) = (temp.path().join("whole"), temp.path().join("parts"));
        let options = |out: &Path| Options { start, ..options(sizes.clone(), steps, out) };
        let report = train(&options(&whole), u64::MAX).unwrap();
        assert!(report.fingerprint.starts_with(name), "{}", report.fingerprint);
        assert_eq!(train(&options(&parts), 4).unwrap().steps, 4);
        assert_eq!(train(&options(&parts), u64::MAX).unwrap().steps, steps);
        for file in ["tokenizer.safetensors", "training_state/state.safetensors"] {
            assert!(read(&whole, file) == read(&parts, file), "{name}: {file}");
        }
        let lines = |out: &Path| std::fs::read_to_string(out.join("log.txt")).unwrap().lines().count();
        assert!(lines(&whole) >= 3 && lines(&parts) >= 4, "{name}");
        assert!(parts.join("pictures").join(format!("step_{steps:06}.png")).exists());

        let other = Options { lr: 1e-3, ..options(&parts) };
        let error = train(&other, u64::MAX).unwrap_err().to_string();
        assert!(error.contains("run.json: --lr: expected 0.003, as the run was begun with, found 0.001"), "{error}");
    }
}

#[test]
fn a_folder_is_for_one_run_at_a_time() {
    let temp = tempfile::tempdir().unwrap();
    let options = options(vit(), 1, temp.path());
    let (pixels, mut second) = (pictures(), None);
    let images = Images { pixels: &pixels, side: SIDE, digest: "pictures".into() };
    learn(&images, &options, &mut |_| {
        second = Some(train(&options, u64::MAX).unwrap_err().to_string());
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(second.unwrap().contains("another run is writing to this folder"));
}

#[test]
fn it_learns() {
    let temp = tempfile::tempdir().unwrap();
    let run = Options { print_freq: 10, save_every: 1000, ..options(vit(), 250, temp.path()) };
    train(&run, u64::MAX).unwrap();
    let log = std::fs::read_to_string(temp.path().join("log.txt")).unwrap();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |line: &serde_json::Value, name: &str| line[name].as_f64().unwrap();
    let (first, last) = (&lines[0], lines.last().unwrap());
    println!("{first}\n{last}");
    assert!(of(last, "l1") < 0.5 * of(first, "l1"), "{first} {last}");
    assert!(of(last, "codes_used") >= 4.0 && of(last, "perplexity") > 2.0, "{last}");
    let tokenizer = tokenizer::open(temp.path(), Default::default()).unwrap();
    let report = tokenizer::check(tokenizer.as_ref(), &pictures(), SIDE).unwrap();
    assert!(report.psnr_db > 14.0, "{report:?}");
}

#[test]
fn what_diverges_stops_and_keeps_the_last_checkpoint() {
    let temp = tempfile::tempdir().unwrap();
    let run = Options { lr: 1e30, warmup_steps: 4, save_every: 1, ..options(vit(), 20, temp.path()) };
    let error = train(&run, u64::MAX).unwrap_err();
    assert!(matches!(error, TrainError::NotFinite { .. }), "{error}");
    assert!(tokenizer::open(temp.path(), Default::default()).is_ok(), "the checkpoint from before");
}

#[test]
fn bad_options_are_named() {
    let temp = tempfile::tempdir().unwrap();
    let refused = |edit: fn(&mut Options)| {
        let mut run = options(vit(), 4, &temp.path().join("run"));
        edit(&mut run);
        train(&run, u64::MAX).map(|_| ()).unwrap_err().to_string()
    };
    let cases = [
        (refused(|o| o.steps = 0), "--steps: expected at least 1"),
        (refused(|o| o.batch_size = 25), "--batch_size: expected 1 to 24, the images, found 25"),
        (refused(|o| o.lr = f64::NAN), "--lr: expected above 0, found NaN"),
        (
            refused(|o| {
                o.start = Start::Patches;
                if let Sizes::Vit(c) = &mut o.sizes {
                    c.code_dim = 9
                }
            }),
            "--code_dim: expected at most 8 to start as patches",
        ),
        (refused(|o| o.ema_decay = 1.0), "--ema_decay: expected 0 to below 1"),
        (
            refused(|o| {
                if let Sizes::Vit(c) = &mut o.sizes {
                    c.codes = 999
                }
            }),
            "--codes: expected at most 128",
        ),
        (
            refused(|o| {
                if let Sizes::Vit(c) = &mut o.sizes {
                    c.patch = 8
                }
            }),
            "images: expected 32 pixels a side",
        ),
        (
            refused(|o| {
                if let Sizes::Vit(c) = &mut o.sizes {
                    c.num_heads = 3
                }
            }),
            "num_heads",
        ),
        (
            refused(|o| {
                o.sizes = vqgan();
                if let Sizes::Vqgan(c) = &mut o.sizes {
                    c.channels[1] = 33
                }
            }),
            "channels: expected multiples of 32",
        ),
    ];
    for (message, expected) in cases {
        assert!(message.contains(expected), "{expected:?} in {message:?}");
    }
    assert!(!temp.path().join("run").exists(), "nothing was begun");
}

fn sorcen(dir: &Path, args: &str) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_sorcen")).args(args.split_whitespace()).current_dir(dir).output();
    let output = output.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn succeeds(dir: &Path, args: &str) -> String {
    let (code, out, error) = sorcen(dir, args);
    assert_eq!(code, 0, "sorcen {args}\n{error}");
    out
}

fn fails(dir: &Path, args: &str, expected: &str) {
    let (code, _, error) = sorcen(dir, args);
    assert!(matches!(code, 1 | 2) && error.contains(expected), "sorcen {args}: {expected:?} in {error:?}");
}

#[test]
fn in_every_verb_that_takes_a_tokenizer() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    std::fs::create_dir_all(dir.join("photos/a")).unwrap();
    for (n, rgb) in pictures().into_iter().enumerate() {
        let photo = image::RgbImage::from_raw(SIDE as u32, SIDE as u32, rgb).unwrap();
        photo.save(dir.join(format!("photos/a/{n:02}.png"))).unwrap();
    }
    let small = "--images photos --codes 12 --code_dim 4 --steps 3 --batch_size 8 --seed 1 --print_freq 1";
    let vit = format!(
        "tokenizer train --kind vit {small} --patch 4 --dim 16 --depth 1 --decoder_depth 1 --heads 2 --out vit"
    );
    let out = succeeds(dir, &vit);
    assert!(out.contains("vit/checkpoint/tokenizer.safetensors: vit 12x4 4x4 /4 sha256:"), "{out}");
    fails(dir, &vit, "--resume auto goes on with that run");
    succeeds(dir, &format!("{vit} --resume auto")); // done already
    succeeds(dir, &format!("tokenizer train --kind vqgan {small} --channels 32,32,32 --out vqgan"));
    for kind in ["vit", "vqgan"] {
        succeeds(dir, &format!("tokenize --images photos --tokenizer {kind} --out {kind}-tokens"));
        let inspected: serde_json::Value =
            serde_json::from_str(&succeeds(dir, &format!("tokens inspect {kind}-tokens --json"))).unwrap();
        let stream = &inspected["streams"]["vqgan"];
        assert_eq!((&stream["grid"], &stream["codebook_size"]), (&4.into(), &12.into()), "{kind}");
        succeeds(dir, &format!("decode --data {kind}-tokens --tokenizer {kind} --out {kind}.png"));
        let report = succeeds(dir, &format!("tokenizer check --images photos --tokenizer {kind} --json"));
        assert!(report.contains("psnr_db"), "{report}");
        succeeds(dir, &format!("tokenizer onnx --tokenizer {kind} --size 16 --out {kind}-onnx"));
        let files: [PathBuf; 2] =
            ["encoder", "decoder"].map(|half| dir.join(format!("{kind}-onnx/tokenizer_{half}.onnx")));
        assert!(files.iter().all(|file| file.is_file()), "{kind}");
    }
    fails(
        dir,
        "tokenizer onnx --tokenizer vit --size 32 --out o",
        "a side of 16 pixels, the only one of this tokenizer",
    );
    fails(dir, "tokenize --images photos --size 32 --tokenizer vit --out t", "a side of 16 pixels, the only one");
    fails(dir, "tokenizer train --images photos --steps 7 --out t", "expected --kind vit or vqgan, found --kind patch");
    fails(dir, &format!("tokenizer train --kind vit {small} --patch 5 --out t"), "--patch: expected a divisor");
    fails(dir, &format!("tokenizer train --kind vqgan {small} --start patches --out t"), "--start: expected random");
    assert!(!dir.join("t").exists());

    // The same tokenizer in a pack, and beside a run.
    let pretrain = "pretrain --data vit-tokens --model micro --batch_size 8 --epochs 1 --output_dir run \
                    --picture_every_epochs 1 --tokenizer";
    succeeds(dir, &format!("{pretrain} vit"));
    assert!(dir.join("run/pictures/epoch_00001.png").is_file());
    succeeds(dir, "pack --checkpoint run/checkpoint --precision int8 --tokenizer vit --out m.srcn");
    let report = succeeds(dir, "tokenizer check --images photos --tokenizer vit --beside m.srcn --json");
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert!(report["ids_agree"].as_f64().unwrap() > 0.8, "{report}");
    let psnr = |of: &str| report[of]["psnr_db"].as_f64().unwrap();
    assert!((psnr("tokenizer") - psnr("beside")).abs() < 1.0, "{report}");
    assert!(succeeds(dir, "tokenizer check --images photos --tokenizer vit --beside m.srcn").contains("agree"));
    succeeds(dir, "tokenize --images photos --tokenizer m.srcn --out packed");
    assert!(succeeds(dir, "tokens inspect packed").contains("packed vit 12x4 4x4 /4 sha256:"));
    succeeds(dir, "decode --data packed --tokenizer m.srcn --out packed.png");
    succeeds(dir, "pack --checkpoint run/checkpoint --precision int8 --out bare.srcn");
    fails(dir, "tokenizer check --images photos --tokenizer bare.srcn", "expected a pack with one");
    fails(dir, "tokenizer onnx --tokenizer m.srcn --size 16 --out o", "m.srcn");
    succeeds(dir, "tokenizer train --images photos --codes 12 --patch 8 --out eights.safetensors");
    fails(
        dir,
        "tokenizer check --images photos --tokenizer vit --beside eights.safetensors",
        "--beside: expected tokens of 4 pixels, as --tokenizer's, found 8",
    );
}
