//! What a run takes of the checkpoint that it starts from (`--init`), and what it says of the rest.

use std::ops::ControlFlow;
use std::path::Path;

use burn::backend::{Autodiff, Flex};
use sorcen_trainer::checkpoint::{self, TensorFile, TensorList, WeightSource as _};
use sorcen_trainer::config::{Duration, ModelChoice, PretrainOptions};
use sorcen_trainer::data::{StreamSpec, TokenDatasetWriter};
use sorcen_trainer::step::{HeadSizes, LossOptions, Pretraining};
use sorcen_trainer::teacher::TeacherKind;
use sorcen_trainer::train::{pretrain, TrainError};

type B = Autodiff<Flex>;

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

/// A folder with datasets of 2 and 5 classes, and a run of Sorcen on the first.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for classes in [2, 5] {
        dataset(&dir.path().join(format!("data{classes}")), classes);
    }
    run(&options(dir.path(), 2, "first")).unwrap();
    dir
}

fn options(dir: &Path, classes: u16, out: &str) -> PretrainOptions {
    let data = dir.join(format!("data{classes}"));
    let mut options = PretrainOptions::new(&data, &dir.join(out), ModelChoice::Micro, Duration::Steps(2));
    options.batch_size = 8;
    options
}

fn run(options: &PretrainOptions) -> Result<Vec<String>, TrainError> {
    let mut notes = Vec::new();
    pretrain(options, &mut |progress| {
        notes.extend_from_slice(&progress.notes);
        ControlFlow::Continue(())
    })?;
    Ok(notes)
}

/// The note of a run that starts from the first one's checkpoint.
fn told(dir: &Path, classes: u16, edit: impl FnOnce(&mut PretrainOptions)) -> Result<String, TrainError> {
    let mut options = options(dir, classes, "second");
    options.init = Some(dir.join("first/checkpoint"));
    edit(&mut options);
    let _ = std::fs::remove_dir_all(&options.output_dir);
    let mut notes = run(&options)?;
    notes.retain(|note| note.starts_with("--init"));
    assert_eq!(notes.len(), 1, "{notes:?}");
    Ok(notes[0].split_once("checkpoint: ").unwrap().1.to_string())
}

const STATE: &str = "first/checkpoint/training_state/state.safetensors";

/// Writes the state anew, with each tensor as `edit` says.
fn rewrite(dir: &Path, edit: impl Fn(&str, &mut Vec<f32>) -> bool) {
    let state = TensorFile::open(&dir.join(STATE)).unwrap();
    let mut list = TensorList::default();
    for name in state.names() {
        let mut values = state.read(&name).unwrap();
        if edit(&name, &mut values) {
            list.push(&name, &state.shape(&name).unwrap(), &values);
        }
    }
    list.write(&dir.join(STATE)).unwrap();
}

#[test]
fn what_fits_is_taken_and_the_rest_is_named() {
    let dir = folder();
    let dir = dir.path();
    assert_eq!(told(dir, 2, |_| ()).unwrap(), "taken: encoder and decoder, teacher, projectors, classifier");
    // 64 wide: the classifier has 256 hidden numbers, the projectors 128.
    assert_eq!(
        told(dir, 5, |_| ()).unwrap(),
        "taken: encoder and decoder, teacher, projectors; not taken: classifier (classifier.2.weight is [2, 256], this \
         run's [5, 256])"
    );
    assert_eq!(
        told(dir, 2, |o| o.projector_dim = Some(24)).unwrap(),
        "taken: encoder and decoder, teacher, classifier; not taken: projectors (projector.projector.3.weight is \
         [128, 512], this run's [24, 512])"
    );
    assert_eq!(
        told(dir, 2, |o| o.losses.teacher = TeacherKind::Whole).unwrap(),
        "taken: encoder and decoder, projectors, classifier; not taken: teacher (there is no token_emb_momentum.*); the \
         teacher starts as a copy of the encoder"
    );
    std::fs::rename(dir.join("first/checkpoint/training_state"), dir.join("state")).unwrap();
    let message = told(dir, 2, |_| ()).unwrap();
    assert!(
        message.starts_with("taken: encoder and decoder; not taken: teacher (there is no training_state), "),
        "{message}"
    );
}

/// A head of the right shapes goes over with its numbers, beside one that stays behind.
#[test]
fn a_part_is_taken_whole() {
    let dir = folder();
    let device = Default::default();
    let (first, _) = checkpoint::open_training::<B>(&dir.path().join("first/checkpoint"), &device).unwrap();
    let sizes = HeadSizes { projector_hidden: 512, projector_dim: 128, predictor_hidden: 256, classifier_hidden: 256 };
    let mut run = Pretraining::<B>::new(&first.config, LossOptions::default(), &sizes, 5, 1, &device);
    checkpoint::initialise(&dir.path().join("first/checkpoint"), &mut run).unwrap();
    let numbers = |run: &Pretraining<B>, part: &str| {
        let mut numbers = Vec::new();
        let mut add = |name: &str, values: Vec<f32>| {
            if name.starts_with(part) {
                numbers.push(values);
            }
        };
        use sorcen_trainer::model::weight::Weights;
        run.networks.visit("", &mut |name, weight| add(name, weight.to_vec()));
        Weights::<Flex>::visit(&run.teacher, "", &mut |name, weight| add(name, weight.to_vec()));
        assert!(!numbers.is_empty(), "{part}");
        numbers
    };
    for part in ["blocks.", "blocks_momentum", "projector", "momentum_projector", "predictor"] {
        assert!(numbers(&first, part) == numbers(&run, part), "{part}");
    }
    assert!(numbers(&first, "classifier.0.weight") != numbers(&run, "classifier.0.weight"), "taken in part");
}

#[test]
fn damage_is_an_error() {
    let damaged = |edit: fn(&str, &mut Vec<f32>) -> bool| {
        let dir = folder();
        rewrite(dir.path(), edit);
        told(dir.path(), 2, |_| ()).unwrap_err().to_string()
    };
    let message = damaged(|name, _| name != "predictor.projector.0.bias");
    assert!(
        message.contains("state.safetensors: predictor.projector.0.bias: expected a tensor, as there are"),
        "{message}"
    );
    let message = damaged(|name, values| {
        if name == "classifier.0.bias" {
            values[3] = f32::NAN;
        }
        true
    });
    assert!(message.contains("classifier.0.bias: expected finite numbers, found NaN at 3"), "{message}");

    let dir = folder();
    std::fs::write(dir.path().join(STATE), b"no tensors").unwrap();
    let message = told(dir.path(), 2, |_| ()).unwrap_err().to_string();
    assert!(message.contains("expected a whole safetensors file"), "{message}");
    std::fs::remove_file(dir.path().join(STATE)).unwrap();
    let message = told(dir.path(), 2, |_| ()).unwrap_err().to_string();
    assert!(message.contains("state.safetensors"), "{message}");
}
