//! Starting a run from another run's checkpoint: what is taken of it, what is not, and why.

use std::collections::BTreeSet;
use std::path::Path;

use burn::tensor::backend::Backend;

use super::{
    fill, first_difference, method_of, read_config, restore, TensorFile, WeightSource, CONFIG, FIRST_MOMENT, MODEL,
    SECOND_MOMENT, STATE_TENSORS, TRAINING_STATE,
};
use crate::data::DataError;
use crate::kernels::TrainBackend;
use crate::model::weight::Weights;
use crate::step::{Method, Pretraining};
use crate::teacher::follow;

/// First parts of the names of what Sorcen has beside encoder and decoder.
const SORCENS: [&str; 7] = [
    "blocks_momentum",
    "token_emb_momentum",
    "norm_momentum",
    "projector",
    "momentum_projector",
    "predictor",
    "classifier",
];

/// Whether `name` is that of a weight of Sorcen's teacher or heads.
pub(super) fn is_sorcens(name: &str) -> bool {
    SORCENS.contains(&first_part(name))
}

fn first_part(name: &str) -> &str {
    name.split('.').next().unwrap_or_default()
}

/// Starts `run` from another run's checkpoint, with a fresh optimiser. Returns a sentence: what was taken, what was not,
/// and why.
///
/// Encoder and decoder are always taken. In a run of Sorcen so are teacher, projectors and classifier where they are
/// there and fit, each of the three whole or not at all. A teacher that is not taken starts as a copy of the student, a
/// momentum projector as one of the projector.
///
/// # Errors
/// [`DataError`] where the model cannot be loaded or has other sizes, or where the training state is damaged.
pub fn initialise<B: TrainBackend>(dir: &Path, run: &mut Pretraining<B>) -> Result<String, DataError> {
    check_config(dir, run)?;
    let device = run.device.clone();
    fill(&TensorFile::open(&dir.join(MODEL))?, &mut run.networks.student, "", &device)?;
    let shown = dir.display();
    let (Some(teacher), Some(heads)) = (&mut run.teacher, &mut run.networks.heads) else {
        return Ok(format!("--init {shown}: encoder and decoder are taken, all that MAGE has"));
    };

    let state = sorcens_state(dir)?;
    let projectors: [(&mut dyn Weights<B>, &str); 3] = [
        (&mut heads.projector, "projector"),
        (&mut heads.momentum_projector, "momentum_projector"),
        (&mut heads.predictor, "predictor"),
    ];
    let mut parts = vec![
        ("teacher", take(&state, [(teacher as &mut dyn Weights<_>, "")], &device)?),
        ("projectors", take(&state, projectors, &device)?),
    ];
    if let Some(classifier) = &mut heads.classifier {
        parts.push(("classifier", take(&state, [(classifier as &mut dyn Weights<_>, "classifier")], &device)?));
    }
    let [has_teacher, has_projectors] = [0, 1].map(|part: usize| parts[part].1.is_ok());
    if !has_teacher {
        teacher.follow(&run.networks.student, 0.0);
    }
    if !has_projectors {
        follow(&mut heads.momentum_projector, &heads.projector, 0.0);
    }

    let taken: Vec<&str> = parts.iter().filter(|(_, found)| found.is_ok()).map(|(part, _)| *part).collect();
    let taken = [&["encoder and decoder"], &taken[..]].concat().join(", ");
    let mut left: Vec<String> =
        parts.iter().filter_map(|(part, found)| Some(format!("{part} ({})", found.as_ref().err()?))).collect();
    if let Ok(state) = &state {
        let beyond = beyond(state.names().iter().filter(|name| weight_of_moment(name).is_none()), run);
        left.extend(beyond.into_iter().map(|part| format!("{part}.* (this run has none)")));
    }
    let left = match left.is_empty() {
        true => String::new(),
        false => format!("; not taken: {}", left.join(", ")),
    };
    let copy = if has_teacher { "" } else { "; the teacher starts as a copy of the encoder" };
    Ok(format!("--init {shown}: taken: {taken}{left}{copy}"))
}

/// Starts `run` where another run's checkpoint, of the same sizes, stopped: its optimiser too. Returns a note of what
/// that run had and this one has not.
///
/// # Errors
/// [`DataError`] where anything is missing or has other sizes.
pub fn go_on<B: TrainBackend>(dir: &Path, run: &mut Pretraining<B>) -> Result<Option<String>, DataError> {
    check_config(dir, run)?;
    restore(dir, run).map(|(_, note)| note)
}

/// A note of what a training state has and `run` has no place for, if there is anything.
pub(super) fn not_taken<B: TrainBackend>(state: &TensorFile, run: &Pretraining<B>) -> Option<String> {
    let names = state.names();
    let beyond = beyond(names.iter().map(|name| weight_of_moment(name).unwrap_or(name)), run);
    if beyond.is_empty() {
        return None;
    }
    let parts: Vec<String> = beyond.into_iter().map(|part| format!("{part}.*")).collect();
    let why = match run.options.method {
        Method::Mage => "MAGE has neither teacher nor heads; earlier versions kept some, and clipped gradients together with the classifier's",
        Method::Sorcen => "this run has none",
    };
    Some(format!("{}: not taken: {} ({why})", state.path().display(), parts.join(", ")))
}

/// The training state of Sorcen in a checkpoint; or why there is none.
fn sorcens_state(dir: &Path) -> Result<Result<TensorFile, String>, DataError> {
    if !dir.join(TRAINING_STATE).exists() {
        return Ok(Err(format!("there is no {TRAINING_STATE}")));
    }
    let state = TensorFile::open(&dir.join(TRAINING_STATE).join(STATE_TENSORS))?;
    Ok(match method_of(&state) {
        Method::Sorcen => Ok(state),
        Method::Mage => Err(format!("the {TRAINING_STATE} is MAGE's")),
    })
}

/// Sets `parts` from the training state: all of them, or, where one is not there or has another shape, none. Then the
/// reason is returned.
fn take<B: Backend, const N: usize>(
    state: &Result<TensorFile, String>,
    parts: [(&mut dyn Weights<B>, &str); N],
    device: &B::Device,
) -> Result<Result<(), String>, DataError> {
    let state = match state {
        Ok(state) => state,
        Err(why) => return Ok(Err(why.clone())),
    };
    for (part, path) in &parts {
        if let Some(why) = misfit(state, *part, path)? {
            return Ok(Err(why));
        }
    }
    for (part, path) in parts {
        fill(state, part, path, device)?;
    }
    Ok(Ok(()))
}

/// Why `part` does not fit what is there, if it does not.
///
/// # Errors
/// [`DataError`] where only some tensors of what has one name are there.
fn misfit<B: Backend>(state: &TensorFile, part: &dyn Weights<B>, path: &str) -> Result<Option<String>, DataError> {
    let names = state.names();
    let there: BTreeSet<&str> = names.iter().map(|name| first_part(name)).collect();
    let (mut why, mut damage) = (None, None);
    part.visit(path, &mut |name, weight| match state.shape(name) {
        Some(found) if found == weight.dims() => {}
        Some(found) => {
            why.get_or_insert_with(|| format!("{name} is {found:?}, this run's {:?}", weight.dims()));
        }
        None if there.contains(first_part(name)) => {
            damage.get_or_insert_with(|| name.to_string());
        }
        None => {
            why.get_or_insert_with(|| format!("there is no {}.*", first_part(name)));
        }
    });
    match damage {
        Some(name) => {
            let expected = format!("a tensor, as there are others of {}.*", first_part(&name));
            Err(DataError::invalid(state.path(), name, expected, "none of this name"))
        }
        None => Ok(why),
    }
}

/// The weight whose moment has the name `name`.
fn weight_of_moment(name: &str) -> Option<&str> {
    [FIRST_MOMENT, SECOND_MOMENT].into_iter().find_map(|moment| name.strip_prefix(moment)?.strip_prefix('.'))
}

/// First parts of those of `names` that `run` has no weight of.
fn beyond<'a, B: TrainBackend>(
    names: impl Iterator<Item = impl AsRef<str> + 'a>,
    run: &Pretraining<B>,
) -> BTreeSet<String> {
    let mut own = BTreeSet::new();
    run.networks.visit("", &mut |name, _| own.extend([name.to_string()]));
    run.teacher.visit("", &mut |name, _| own.extend([name.to_string()]));
    let beyond = names.filter(|name| !own.contains(name.as_ref()));
    beyond.map(|name| first_part(name.as_ref()).to_string()).collect()
}

fn check_config<B: TrainBackend>(dir: &Path, run: &Pretraining<B>) -> Result<(), DataError> {
    let config = read_config(dir)?;
    match first_difference(&run.config, &config) {
        None => Ok(()),
        Some((field, now, found)) => {
            let expected = format!("{now}, as in this run's --model");
            Err(DataError::invalid(&dir.join(CONFIG), field, expected, found))
        }
    }
}
