//! Pretraining as a user runs it: resuming to the same bits, damage, and losses that come down.

use std::ops::ControlFlow;
use std::path::Path;

use sorcen_tests::compare::largest_difference;
use sorcen_trainer::checkpoint::Keep;
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

type Knob<'a> = &'a dyn Fn(&mut PretrainOptions);

/// An option that changes nothing is a mistake: each must lead to other weights.
#[test]
fn every_knob_matters() {
    use sorcen_trainer::masking::MaskOptions;
    use sorcen_trainer::step::{Contrast, Method};
    use sorcen_trainer::teacher::{TeacherInit, TeacherKind};

    let dir = tempfile::tempdir().unwrap();
    dataset(&dir.path().join("data"));
    let trained = |name: &str, edit: Knob<'_>| {
        let mut options = options(dir.path(), name, 8); // three steps with drawn echoes
        edit(&mut options);
        run(&options).unwrap();
        files(&options.output_dir)
    };
    let base = trained("base", &|_| ());
    assert!(base == trained("again", &|o| o.print_freq = 1), "the same options: the same weights");
    let knobs: [(&str, Knob<'_>); 20] = [
        ("method", &|o| o.losses.method = Method::Mage),
        ("lambda", &|o| o.losses.lambda = 0.5),
        ("temperature", &|o| o.losses.temperature = 0.1),
        ("contrast", &|o| o.losses.contrast = Contrast::L2),
        ("uniformity", &|o| o.losses.uniformity = 0.0),
        ("label_smoothing", &|o| o.losses.label_smoothing = 0.0),
        ("echo_topk", &|o| o.losses.echo_topk = 2),
        ("echo_warmup_epochs", &|o| o.echo_warmup_epochs = Some(1)),
        ("projector_dim", &|o| o.projector_dim = Some(24)),
        ("no_jsm", &|o| o.jsm = false),
        ("teacher", &|o| o.losses.teacher = TeacherKind::Whole),
        ("teacher_init", &|o| o.teacher_init = TeacherInit::Student),
        ("ema", &|o| o.ema = 0.9),
        ("ema_epochs", &|o| o.ema_epochs = 1.0),
        ("dropout", &|o| o.dropout = 0.3),
        ("accum_iter", &|o| (o.batch_size, o.accum_iter) = (4, 2)),
        ("weight_decay", &|o| o.adamw.weight_decay = 0.5),
        ("grad_clip", &|o| o.adamw.grad_clip = 0.1),
        ("drop_ratio", &|o| o.masks = MaskOptions { drop_ratio: 0.25, ..o.masks }),
        ("warmup_epochs", &|o| o.warmup_epochs = Some(1.5)),
    ];
    for (name, edit) in knobs {
        assert!(base != trained(name, edit), "{name}");
    }
    // L2 needs no other image: temperature is no part of it.
    let l2 = |o: &mut PretrainOptions| o.losses.contrast = Contrast::L2;
    let hot = trained("hot", &|o: &mut PretrainOptions| {
        l2(o);
        o.losses.temperature = 9.0;
    });
    assert!(hot == trained("l2", &l2), "no temperature in the L2 contrast");
}

#[test]
fn a_whole_teacher_has_its_own_embedding_and_an_untrained_projector() {
    use sorcen_trainer::checkpoint::{TensorFile, WeightSource as _};
    use sorcen_trainer::teacher::{TeacherInit, TeacherKind};

    let dir = tempfile::tempdir().unwrap();
    dataset(&dir.path().join("data"));
    let mut whole = options(dir.path(), "whole", 6);
    whole.losses.teacher = TeacherKind::Whole;
    whole.teacher_init = TeacherInit::Student;
    whole.ema = 0.0; // the teacher is the student of the step before
    whole.ema_epochs = 1e12;
    run(&whole).unwrap();
    let file = |name: &str| TensorFile::open(&whole.output_dir.join("checkpoint").join(name)).unwrap();
    let (model, state) = (file("model.safetensors"), file("training_state/state.safetensors"));
    assert!(state.shape("norm_momentum.weight").is_some());
    let (follows, trained) = ("momentum_projector.projector.3.weight", "projector.projector.3.weight");
    assert!(state.shape(&format!("optimizer.exp_avg.{follows}")).is_none(), "it has no gradient");
    assert!(state.shape(&format!("optimizer.exp_avg.{trained}")).is_some());
    let name = "word_embeddings.weight";
    let (own, student) =
        (state.read(&format!("token_emb_momentum.{name}")).unwrap(), model.read(&format!("token_emb.{name}")).unwrap());
    let apart = largest_difference(&own, &student);
    assert!(apart > 0.0 && apart < 1e-2, "one step behind: {apart}");
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
    assert!(
        message(&other).contains("run.json: --seed: expected 0, as the run was begun with, found 5"),
        "{}",
        message(&other)
    );
    let mut other = begun.clone();
    other.model = ModelChoice::Tiny;
    assert!(message(&other).contains("run.json: --model: decoder_embed_dim: expected 64, as"), "{}", message(&other));

    // The flag, then and now in words: no Rust, no JSON.
    let told = |edit: fn(&mut PretrainOptions)| {
        let mut other = begun.clone();
        edit(&mut other);
        let message = message(&other);
        assert!(!message.contains(['{', '"', '(']), "{message}");
        message
    };
    assert!(told(|o| o.losses.lambda = 0.5).contains("--lambda: expected 0.1, as the run was begun with, found 0.5"));
    assert!(told(|o| o.lr = None).contains("--lr: expected 0.002, as the run was begun with, found none"));
    let duration = told(|o| o.duration = Duration::Minutes(4.0));
    assert!(duration.contains("--epochs, --steps or --minutes: expected steps 6, as"), "{duration}");
    assert!(duration.ends_with("found minutes 4"), "{duration}");
    let one = StreamSpec { name: "vqgan".into(), grid: GRID, codebook_size: 16, tokenizer: None };
    let mut writer = TokenDatasetWriter::create(&dir.path().join("less"), vec!["even".into()], &[one]).unwrap();
    (0..20).for_each(|_| writer.push(0, &[&[1; 16]]).unwrap());
    writer.finish(None).unwrap();
    let mut other = begun.clone();
    other.data = dir.path().join("less");
    assert!(message(&other).contains("run.json: --data: classes: expected 2, as"), "{}", message(&other));

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
    assert!(failure(|o| o.batch_size = 64).contains("images: expected at least 64, those of one step, found 40"));
    assert!(failure(|o| o.dropout = 1.0).contains("dropout: expected 0 to below 1, found 1"));
    assert!(failure(|o| o.masks.mask_ratio_min = 0.2).contains("mask_ratio_min"));
    assert!(failure(|o| o.losses.lambda = f32::NAN).contains("--lambda: expected 0 or more, found NaN"));
    assert!(failure(|o| o.warmup_epochs = Some(-1.0)).contains("--warmup_epochs: expected 0 or more"));
    assert!(failure(|o| o.adamw.grad_clip = f64::NAN).contains("--grad_clip: expected"));
    assert!(failure(|o| o.min_lr = 1.0).contains("--min_lr: expected at most lr"));
    assert!(failure(|o| o.init = Some("nowhere".into())).contains("nowhere"));
    assert!(failure(|o| o.watch.knn_every_epochs = 1).contains("knn_every_epochs: expected knn_data too"));
}

#[test]
fn a_folder_is_for_one_run_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    dataset(&dir.path().join("data"));
    let options = options(dir.path(), "run", 3);
    let mut second = None;
    pretrain(&options, &mut |_| {
        second.get_or_insert_with(|| run(&options).unwrap_err().to_string());
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    assert!(second.unwrap().contains("another run is writing to this folder"));
    run(&options).unwrap();
}

#[test]
fn a_run_that_diverges_names_the_term_and_keeps_the_last_good_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    dataset(&dir.path().join("data"));
    let mut options = options(dir.path(), "run", 20);
    options.lr = Some(1e30);
    options.warmup_epochs = Some(3.0);
    options.save_every = 1; // the first step has learning rate 0: its checkpoint is good
    let message = run(&options).unwrap_err().to_string();
    assert!(message.contains("expected a finite number"), "{message}");
    assert!(message.starts_with("step ") && message.contains("loss: "), "{message}");
    let checkpoint = options.output_dir.join("checkpoint");
    sorcen_trainer::checkpoint::open_training::<burn::backend::Autodiff<burn::backend::Flex>>(
        &checkpoint,
        &Default::default(),
    )
    .unwrap();
}

#[test]
fn room_for_the_checkpoints_is_asked_for_before_the_first_step() {
    let dir = tempfile::tempdir().unwrap();
    dataset(&dir.path().join("data"));
    // More than any disk has.
    let mut endless = options(dir.path(), "run", 1_000_000_000_000_000);
    (endless.save_every, endless.keep.every) = (100, 300);
    let begin = |options: &PretrainOptions| pretrain(options, &mut |_| ControlFlow::Break(()));
    let error = begin(&endless).unwrap_err();
    let TrainError::Room { folder, count, bytes, .. } = &error else { panic!("{error}") };
    // The newest, every third of the others, and the one on its way.
    assert_eq!((folder, *count), (&endless.output_dir, 1 + 3_333_333_333_332 + 1));
    let message = error.to_string();
    for part in
        ["run: expected ", " GB free on the disk, found ", "3333333333334 checkpoints", "--keep_last", "--keep_every"]
    {
        assert!(message.contains(part), "`{part}` not in {message}");
    }
    assert!(!endless.output_dir.join("run.json").exists(), "nothing has begun");

    // Two of them can be had, and their size is as was said.
    endless.keep.every = 0;
    begin(&endless).unwrap();
    let length = |name: &str| std::fs::metadata(endless.output_dir.join("checkpoint").join(name)).unwrap().len();
    let written = length("model.safetensors") + length("training_state/state.safetensors");
    let names = written - bytes;
    assert!(*bytes < written && names < 60_000, "{bytes} said, {written} written");

    // On resuming too; the old checkpoint stays.
    let before = files(&endless.output_dir);
    let resumed = PretrainOptions { resume: true, ..endless.clone() };
    let greedy = PretrainOptions { keep: Keep { last: usize::MAX, every: 0 }, ..resumed.clone() };
    let error = begin(&greedy).unwrap_err();
    assert!(matches!(error, TrainError::Room { count: 10_000_000_000_000, .. }), "{error}");
    assert!(files(&endless.output_dir) == before);
    assert_eq!(begin(&resumed).unwrap().steps, 2);
}

#[test]
fn pictures_and_knn_at_the_end_of_epochs() {
    use sorcen_trainer::tokenizer::PatchTokenizer;

    let dir = tempfile::tempdir().unwrap();
    for name in ["data", "eval/train", "eval/val"] {
        dataset(&dir.path().join(name));
    }
    let tokenizer = dir.path().join("tokenizer.safetensors");
    PatchTokenizer::new((0..16 * 12).map(|i| i as u8).collect(), 16, 2).unwrap().save(&tokenizer).unwrap();
    let plain = options(dir.path(), "plain", 10);
    run(&plain).unwrap();
    let mut watched = options(dir.path(), "watched", 10);
    watched.watch.picture_every_epochs = 2;
    watched.watch.tokenizer = Some(tokenizer);
    watched.watch.knn_every_epochs = 1;
    watched.watch.knn_data = Some(dir.path().join("eval"));
    let report = run(&watched).unwrap();
    assert!(files(&plain.output_dir) == files(&watched.output_dir), "looking changes nothing");

    let log = std::fs::read_to_string(&report.log).unwrap();
    let accuracy = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["knn_accuracy"].as_f64();
    let accuracies: Vec<f64> = log.lines().filter_map(accuracy).collect();
    assert_eq!(accuracies, [1.0, 1.0], "the queries are in the bank, each with twins");
    let pictures: Vec<_> = std::fs::read_dir(watched.output_dir.join("pictures")).unwrap().collect();
    assert_eq!(pictures.len(), 1);
    let sheet = image::open(watched.output_dir.join("pictures/epoch_00002.png")).unwrap().to_rgb8();
    let names = "student sees".len() as u32 * 8 + 4;
    assert_eq!(sheet.dimensions(), (names + 8 * (2 * 8 + 4) + 4, 5 * (2 * 8 + 4) + 4));
    // Each row has its name beside it.
    for row in 0..5 {
        let ink = |y: u32| (0..names).filter(|&x| sheet.get_pixel(x, y).0 == [60; 3]).count();
        assert!((row * 20 + 4..row * 20 + 24).map(ink).sum::<usize>() > 20, "row {row}");
    }
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

#[test]
fn curves_of_a_run_show_its_total_loss_and_what_else_it_has() {
    let dir = tempfile::tempdir().unwrap();
    dataset(&dir.path().join("data"));
    let panels = |method: &str| {
        let sorcen = |line: &str| {
            let arguments = line.split_whitespace();
            let output = std::process::Command::new(env!("CARGO_BIN_EXE_sorcen"))
                .args(arguments)
                .current_dir(dir.path())
                .output()
                .unwrap();
            assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        };
        let train = "pretrain --data data --model micro --batch_size 8 --steps 3 --print_freq 1";
        sorcen(&format!("{train} --method {method} --output_dir {method}"));
        sorcen(&format!("curves --runs {method} --out default.png"));
        let picture = image::open(dir.path().join("default.png")).unwrap().to_rgb8();
        // The first panel is that of the total loss.
        sorcen(&format!("curves --runs {method} --fields train_loss --out loss.png"));
        let first = image::open(dir.path().join("loss.png")).unwrap().to_rgb8();
        let top = image::imageops::crop_imm(&picture, 0, 0, first.width(), first.height()).to_image();
        assert!(top == first, "{method}");
        picture.height() / first.height()
    };
    assert_eq!(panels("sorcen"), 5);
    assert_eq!(panels("mage"), 3, "neither contrast nor classifier");
}

/// `sorcen` in `dir`: exit code, standard output, standard error.
fn sorcen(dir: &Path, line: &str) -> (i32, String, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_sorcen"))
        .args(line.split_whitespace())
        .current_dir(dir)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// The numbers in a line of progress: the loss, and the parts in its brackets.
fn parts(line: &str) -> (f64, Vec<(String, f64)>) {
    let (loss, parts) = line.split_once("loss ").unwrap().1.split_once(" (").unwrap();
    let part = |text: &str| {
        let (name, value) = text.split_once(' ').unwrap();
        (name.to_string(), value.parse().unwrap())
    };
    (loss.parse().unwrap(), parts.split_once(')').unwrap().0.split(", ").map(part).collect())
}

#[test]
fn the_parts_of_the_loss_that_are_printed_add_up() {
    let dir = tempfile::tempdir().unwrap();
    dataset(&dir.path().join("data"));
    let train =
        "pretrain --data data --model micro --batch_size 8 --steps 8 --print_freq 2 --lambda 0.7 --uniformity 0.3";
    for (method, names) in [("sorcen", &["rec", "uniformity", "nn", "class"][..]), ("mage", &["rec"])] {
        let (code, _, said) = sorcen(dir.path(), &format!("{train} --method {method} --output_dir {method}"));
        assert_eq!(code, 0, "{said}");
        let lines: Vec<&str> = said.lines().filter(|line| line.contains("loss ")).collect();
        assert_eq!(lines.len(), 4, "{said}");
        for line in lines {
            let (loss, parts) = parts(line);
            let found: Vec<&str> = parts.iter().map(|part| part.0.as_str()).collect();
            assert_eq!(found, names, "{line}");
            let sum: f64 = parts.iter().map(|part| part.1).sum();
            assert!((sum - loss).abs() < 0.0005 * (parts.len() + 1) as f64 + 1e-9, "{line}");
        }
    }
}

#[test]
fn a_run_by_minutes_ends_with_its_time_and_its_learning_rate_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    dataset(&dir.path().join("data"));
    let mut timed = options(dir.path(), "timed", 0);
    timed.duration = Duration::Minutes(0.1);
    timed.save_every = 1_000_000;
    timed.resume = true;
    // The machine is slower than it was when it was timed, and slower yet later on.
    let started = std::time::Instant::now();
    let slow = |step: u64| std::thread::sleep(std::time::Duration::from_millis(if step < 60 { 15 } else { 30 }));
    let run_until = |last: u64| {
        pretrain(&timed, &mut |progress| {
            slow(progress.step);
            if progress.step == last {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .unwrap()
    };
    let report = run_until(30);
    assert!(report.steps == 30 && report.planned_steps > 30, "{report:?}");
    let plan = |name: &str| -> sorcen_trainer::config::Plan {
        let run = std::fs::read_to_string(timed.output_dir.join("run.json")).unwrap();
        serde_json::from_value(serde_json::from_str::<serde_json::Value>(&run).unwrap()[name].clone()).unwrap()
    };
    let before = plan("plan");
    let report = run_until(u64::MAX);
    let seconds = started.elapsed().as_secs_f64();
    assert_eq!(report.steps, report.planned_steps, "not stopped early");
    assert!((4.0..12.0).contains(&seconds), "{seconds} s for 6");
    let plan = plan("plan");
    assert!(plan.steps == report.steps && !plan.revisions.is_empty());
    assert!(plan.revisions.starts_with(&before.revisions), "what was planned stays, so that a run can be resumed");
    (0..30).for_each(|step| assert_eq!(plan.learning_rate(step), before.learning_rate(step), "{step}"));
    let last = report.last.unwrap();
    assert_eq!(last.step, report.steps);
    assert!(last.train_lr < 0.05 * plan.lr, "{} of {}", last.train_lr, plan.lr);
    assert_eq!(run_until(u64::MAX).steps, report.steps, "it is done");
}

#[test]
fn what_will_not_come_is_said_at_the_start_and_a_finished_run_has_no_speed() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["data", "eval/train", "eval/val"] {
        dataset(&dir.path().join(name));
    }
    let train = "pretrain --data data --output_dir run --model micro --batch_size 8 --steps 10 --resume auto \
        --knn_data eval --knn_every_epochs 10 --keep_every 40 --save_every 20";
    let (code, out, said) = sorcen(dir.path(), train);
    assert_eq!(code, 0, "{said}");
    for note in [
        "note: --knn_every_epochs 10: never comes, the run ends after 2.0 epochs",
        "note: --keep_every 40: none is kept for it",
        "note: --save_every 20: never comes",
    ] {
        assert!(said.contains(note), "{note} not in {said}");
    }
    assert!(out.contains("10 of 10 steps, 80 images, ") && out.contains(" images/s"), "{out}");
    let (code, out, _) = sorcen(dir.path(), train);
    assert!(code == 0 && out.contains("10 of 10 steps, 80 images, no step was left to do"), "{out}");
    assert!(!out.contains("images/s"), "{out}");
}
