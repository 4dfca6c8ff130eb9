//! MAGE against vectors recorded from its official code: import, encoder and decoder, features, one step.

mod common;

use std::path::Path;
use std::process::Command;

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use burn::backend::{Autodiff, Flex};
use common::{fixture, tolerance, Failures, Golden};
use ndarray::Array2;
use sorcen_export::tensors::{TensorFile, TensorWriter};
use sorcen_trainer::checkpoint::{self, TensorList, WeightSource as _};
use sorcen_trainer::clock::Clock;
use sorcen_trainer::config::{Duration, ModelChoice, PretrainOptions};
use sorcen_trainer::data::{StreamSpec, TokenDatasetWriter};
use sorcen_trainer::masking::{Crop, MaskOptions};
use sorcen_trainer::model::layers::Dropout;
use sorcen_trainer::model::weight::Weights as _;
use sorcen_trainer::step::{Echo, HeadSizes, LossOptions, Method, Pretraining, StepInputs};
use sorcen_trainer::train::pretrain;

type B = Autodiff<Flex>;

const SET: &str = "mage/mage.safetensors";

/// Runs `sorcen` in `dir`; returns what it printed.
fn sorcen(dir: &Path, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_sorcen")).args(arguments).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn import(dir: &Path) -> String {
    let from = fixture("mage/checkpoint.pth").display().to_string();
    let heads = ["--heads", "4", "--decoder_heads", "2", "--with_training_state"];
    sorcen(dir, &[&["import", "--from", &from, "--out", "model"][..], &heads].concat())
}

/// A tensor of numbers in a file, row-major.
fn numbers(file: &TensorFile, name: &str, rank: usize) -> Vec<f32> {
    file.numbers(name, rank).unwrap().iter().map(|&value| value as f32).collect()
}

/// Writes a tensor `[4, 256]` from a recorded `[4, 256]`, or `[4, 257]` with the class token's column first.
fn put(file: &mut TensorWriter, name: &str, recorded: &[f64]) {
    let columns = recorded.len() / 4;
    let value = |(image, token): (usize, usize)| recorded[image * columns + columns - 256 + token] as i64;
    file.ints(name, Array2::from_shape_fn((4, 256), value).view());
}

#[test]
fn features_latent_and_logits() {
    let dir = tempfile::tempdir().unwrap();
    let printed = import(dir.path());
    assert!(printed.contains("no training_state: the file has no teacher"), "{printed}");
    let (golden, mut failures) = (Golden::open(SET), Failures::default());
    let run = |input: &TensorWriter| {
        input.write(&dir.path().join("in.safetensors")).unwrap();
        let files = ["--input", "in.safetensors", "--output", "out.safetensors"];
        sorcen(dir.path(), &[&["run", "--checkpoint", "model"][..], &files].concat());
        TensorFile::open(&dir.path().join("out.safetensors")).unwrap()
    };

    let mut whole = TensorWriter::default();
    put(&mut whole, "token_ids", &golden.get("token_ids"));
    let features = numbers(&run(&whole), "features", 2);
    failures.compare("features", &features, &golden.get("features_global_pool"), tolerance::ACTIVATIONS);

    // The training forward: half the tokens dropped, the rest of the masked ones replaced.
    let mut masked = TensorWriter::default();
    put(&mut masked, "token_ids", &golden.get("encoder_input_ids"));
    put(&mut masked, "drop_mask", &golden.get("drop_mask"));
    let out = run(&masked);
    failures.compare("latent", &numbers(&out, "latent", 3), &golden.get("latent"), tolerance::ACTIVATIONS);

    // Recorded at positions 0, 8, … 256 of images 0 and 1; position 0, the class token's, has no code logits here.
    let (logits, recorded) = (numbers(&out, "logits", 3), golden.get("logits_slice"));
    for image in 0..2 {
        let row = |position: usize| &logits[(image * 256 + position - 1) * 1024..][..1024];
        let found: Vec<f32> = (8..=256).step_by(8).flat_map(row).copied().collect();
        let expected = &recorded[(image * 33 + 1) * 1024..(image + 1) * 33 * 1024];
        failures.compare("logits", &found, expected, tolerance::LOGITS);
    }
    failures.check();
}

#[test]
fn one_training_step() {
    let dir = tempfile::tempdir().unwrap();
    import(dir.path());
    let input = fixture(SET).display().to_string();
    let step = ["step", "--checkpoint", "model", "--epoch", "0", "--lr", "1e-3", "--output", "out.safetensors"];
    sorcen(dir.path(), &[&step[..], &["--input", &input]].concat());
    let out = TensorFile::open(&dir.path().join("out.safetensors")).unwrap();
    let (golden, mut failures) = (Golden::open(SET), Failures::default());

    for name in ["loss_rec", "loss_total"] {
        failures.compare(name, &numbers(&out, name, 0), &golden.get("loss"), tolerance::LOSSES);
    }
    assert!(!out.has("loss_infonce") && !out.has("param/projector.projector.0.weight"), "MAGE has no contrast");

    let shapes = [
        ("blocks.0.attn.qkv.weight", 2),
        ("token_emb.word_embeddings.weight", 2),
        ("decoder_embed.weight", 2),
        ("mlm_layer.fc.weight", 2),
        ("mlm_layer.bias", 3),
        ("norm.bias", 1),
    ];
    for (name, rank) in shapes {
        let [grad, after] = ["grad", "after_adamw"].map(|group| format!("{group}/{name}"));
        failures.compare(&grad, &numbers(&out, &grad, rank), &golden.get(&grad), tolerance::GRADIENTS);

        // Where a first gradient is rounding noise, Adam makes a full step of it: not compared.
        let reliable = golden.get(&format!("adam_reliable/{name}"));
        assert!(reliable.contains(&1.0), "{name}");
        let (mut found, mut expected) = (numbers(&out, &format!("param/{name}"), rank), golden.get(&after));
        found.iter_mut().zip(&reliable).for_each(|(value, &reliable)| *value *= reliable as f32);
        expected.iter_mut().zip(&reliable).for_each(|(value, &reliable)| *value *= reliable);
        failures.compare(&after, &found, &expected, tolerance::WEIGHTS);
    }

    // Over all gradients, those not recorded one by one too.
    let bytes = std::fs::read(dir.path().join("out.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let gradients = tensors.tensors().into_iter().filter(|(name, _)| name.starts_with("grad/"));
    let squares = gradients.map(|(_, view)| -> f64 {
        view.data().as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes)).powi(2)).sum()
    });
    let norm = squares.sum::<f64>().sqrt() as f32;
    failures.compare("gradient norm", &[norm], &golden.get("grad_total_norm"), tolerance::GRADIENT_NORM);
    failures.check();
}

/// As training makes it: of a labelled dataset. Neither classifier nor teacher is there, and the norm that clips is the
/// official one.
#[test]
fn a_training_run_clips_with_the_official_norm() {
    let dir = tempfile::tempdir().unwrap();
    import(dir.path());
    let (device, options) = (Default::default(), LossOptions { method: Method::Mage, ..LossOptions::default() });
    let (config, student) = checkpoint::load_model(&dir.path().join("model"), &device).unwrap();
    let sizes = HeadSizes { projector_hidden: 8, projector_dim: 4, predictor_hidden: 8, classifier_hidden: 8 };
    let mut run = Pretraining::<B>::new(&config, options, &sizes, 1000, 0, &device);
    run.networks.student = student;
    assert!(run.networks.heads.is_none() && run.teacher.is_none());

    let golden = Golden::open(SET);
    let masked = golden.get("all_mask");
    let columns = masked.len() / 4;
    let mut masks = MaskOptions::default().from_noise(&golden.get("noise"), 256, 0.5);
    masks.masked = masked.chunks(columns).flat_map(|row| &row[columns - 256..]).map(|&x| x != 0.0).collect();
    let inputs = StepInputs {
        ids: golden.ids("token_ids"),
        labels: vec![3, 999, 0, 41],
        masks,
        echo: Echo::GroundTruth,
        crop: Crop::whole(4, 16),
        dropout: Dropout::off(),
    };
    let report = run.step(&[inputs], 0.996, 1e-3, &mut Clock::off()).into_data().to_vec::<f32>().unwrap();
    let [reconstruction, uniformity, contrast, classifier, total, norm] = report[..] else { panic!("{report:?}") };
    assert_eq!((uniformity, contrast, classifier, total), (0.0, 0.0, 0.0, reconstruction));
    let mut failures = Failures::default();
    failures.compare("loss", &[total], &golden.get("loss"), tolerance::LOSSES);
    failures.compare("gradient norm", &[norm], &golden.get("grad_total_norm"), tolerance::GRADIENT_NORM);
    failures.check();
}

fn dataset(dir: &Path, classes: u16) {
    let spec = StreamSpec { name: "vqgan".into(), grid: 4, codebook_size: 16, tokenizer: None };
    let names = (0..classes).map(|class| class.to_string()).collect();
    let mut writer = TokenDatasetWriter::create(dir, names, &[spec]).unwrap();
    for image in 0..24u16 {
        let ids: Vec<u16> = (0..16).map(|t| (image * 5 + t * 3) % 16).collect();
        writer.push(image % classes, &[&ids]).unwrap();
    }
    writer.finish(None).unwrap();
}

fn options(data: &Path, out: &Path) -> PretrainOptions {
    let mut options = PretrainOptions::new(data, out, ModelChoice::Micro, Duration::Steps(6));
    options.batch_size = 8;
    options.losses.method = Method::Mage;
    options.adamw.grad_clip = 0.05; // always at work
    options.resume = true;
    options
}

fn train(options: &PretrainOptions, until: u64) -> Vec<String> {
    let mut notes = Vec::new();
    pretrain(options, &mut |progress| {
        notes.extend_from_slice(&progress.notes);
        match progress.step >= until {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })
    .unwrap();
    notes
}

const STATE: &str = "checkpoint/training_state/state.safetensors";

/// Labels change nothing; and there is nothing but the student, in memory and on disk.
#[test]
fn labels_are_of_no_use_to_it_and_nothing_else_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let weights = [2, 7].map(|classes| {
        let (data, out) = (dir.path().join(format!("data{classes}")), dir.path().join(format!("run{classes}")));
        dataset(&data, classes);
        train(&options(&data, &out), 6);
        std::fs::read(out.join("checkpoint/model.safetensors")).unwrap()
    });
    assert!(weights[0] == weights[1], "the number of classes reaches the weights");

    let out = dir.path().join("run7");
    let state = checkpoint::TensorFile::open(&out.join(STATE)).unwrap();
    let (run, note) = checkpoint::open_training::<B>(&out.join("checkpoint"), &Default::default()).unwrap();
    assert_eq!((run.options.method, note), (Method::Mage, None));
    let mut expected = BTreeSet::new();
    let mut numbers = 0;
    run.networks.student.visit("", &mut |name, weight| {
        numbers += weight.dims().iter().product::<usize>();
        expected.extend([format!("optimizer.exp_avg.{name}"), format!("optimizer.exp_avg_sq.{name}")]);
    });
    assert_eq!(state.names().into_iter().collect::<BTreeSet<_>>(), expected);
    assert_eq!(checkpoint::bytes(&run), 3 * 4 * numbers as u64, "weights and two moments");

    let log = std::fs::read_to_string(out.join("log.txt")).unwrap();
    for absent in ["train_class_loss", "train_nn_loss", "train_uniformity_loss", "teacher_momentum"] {
        assert!(log.contains("train_rec_loss") && !log.contains(absent), "{absent}: {log}");
    }
}

/// Earlier versions kept a teacher and heads beside it: a run goes on from their checkpoints, and says so.
#[test]
fn what_earlier_versions_kept_beside_it_is_left_with_a_note() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    dataset(&data, 2);
    let [now, before] = ["now", "before"].map(|name| options(&data, &dir.path().join(name)));
    train(&now, 6);
    assert!(train(&before, 3).is_empty());
    let file = before.output_dir.join(STATE);
    let state = checkpoint::TensorFile::open(&file).unwrap();
    let mut list = TensorList::default();
    for name in state.names() {
        list.push(&name, &state.shape(&name).unwrap(), &state.read(&name).unwrap());
    }
    for name in ["blocks_momentum.0.norm1.weight", "projector.projector.0.weight", "classifier.0.weight"] {
        list.push(name, &[2, 3], &[0.5; 6]);
    }
    list.push("optimizer.exp_avg.classifier.0.weight", &[2, 3], &[0.5; 6]);
    list.write(&file).unwrap();

    let (run, note) =
        checkpoint::open_training::<B>(&before.output_dir.join("checkpoint"), &Default::default()).unwrap();
    assert_eq!(run.options.method, Method::Mage);
    let says = |note: &str| {
        let parts = ["not taken: blocks_momentum.*, classifier.*, projector.*", "MAGE has neither teacher nor heads"];
        assert!(parts.iter().all(|part| note.contains(part)), "{note}");
    };
    says(&note.unwrap());
    let notes = train(&before, 6);
    assert_eq!(notes.len(), 1);
    says(&notes[0]);
    let [now, before] = [now, before].map(|run| std::fs::read(run.output_dir.join("checkpoint/model.safetensors")));
    assert!(now.unwrap() == before.unwrap());
}

/// Each verb that takes a checkpoint takes MAGE's.
#[test]
fn every_verb_takes_its_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    dataset(&dir.path().join("data"), 2);
    let run = |line: &str| sorcen(dir.path(), &line.split_whitespace().collect::<Vec<_>>());
    let train = "pretrain --data data --model micro --batch_size 8";
    run(&format!("{train} --method mage --steps 6 --output_dir mage --print_freq 2"));
    run("curves --runs mage --out curves.png");
    run("bench train --method mage --model micro --grid 4 --codes 16 --batch_size 4 --steps 1 --warmup 0");

    let exported = run("export --checkpoint mage/checkpoint --out mage.pth");
    assert!(exported.contains("with the state of training"), "{exported}");
    run("import --from mage.pth --out back");
    let weights = |folder: &str| std::fs::read(dir.path().join(folder).join("model.safetensors")).unwrap();
    assert!(weights("back") == weights("mage/checkpoint"));

    let tokens: Vec<f64> = (0..64).map(|i| f64::from(i % 16)).collect();
    let mut input = TensorWriter::default();
    let matrix =
        |value: &dyn Fn(usize) -> i64| Array2::from_shape_fn((4, 16), |(image, token)| value(16 * image + token));
    input.ints("token_ids", matrix(&|i| tokens[i] as i64).view());
    input.ints("all_mask", matrix(&|i| i64::from(i % 2 == 0)).view());
    input.ints("noise", matrix(&|i| (i * 7 % 16) as i64).view());
    input.write(&dir.path().join("in.safetensors")).unwrap();
    let step = "step --input in.safetensors --epoch 0 --lr 1e-3 --output out.safetensors --checkpoint";
    let losses = run(&format!("{step} mage/checkpoint"));
    assert!(losses.contains("loss_rec") && !losses.contains("loss_classifier"), "{losses}");

    // Of one method to the other, encoder and decoder go on.
    let notes = |line: &str| {
        let line: Vec<_> = line.split_whitespace().collect();
        let output = Command::new(env!("CARGO_BIN_EXE_sorcen")).args(line).current_dir(dir.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stderr).unwrap()
    };
    let told = notes(&format!("{train} --steps 3 --output_dir sorcen --init mage/checkpoint"));
    assert!(told.contains("taken: encoder and decoder; not taken: teacher (the training_state is MAGE's)"), "{told}");
    let told = notes(&format!("{train} --steps 3 --method mage --output_dir again --init sorcen/checkpoint"));
    assert!(told.contains("encoder and decoder are taken, all that MAGE has"), "{told}");
}
