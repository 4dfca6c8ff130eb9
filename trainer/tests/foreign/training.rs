//! `sorcen import --with_training_state`: an optimiser that no training left is refused.

use std::path::Path;

use sorcen_trainer::official;

use super::checkpoints::{small, weights, Weight};
use super::pickled::{dict, float, int, items, list, Storages, Value};
use super::{fails, succeeds};

const IMPORT: &str = "import --from w.pth --heads 2 --decoder_heads 2 --with_training_state --out";

/// The small model with teacher and heads, in the official order.
fn whole() -> Vec<Weight> {
    let (width, hidden, out) = (small().embed_dim, 5, 3);
    let mut whole = weights(&small());
    let teacher = |(name, dims, values): &Weight| {
        let name = name.strip_prefix("blocks.")?;
        Some((format!("blocks_momentum.{name}"), dims.clone(), values.clone()))
    };
    whole.extend(whole.iter().filter_map(teacher).collect::<Vec<_>>());
    let mut push = |name: String, dims: &[usize]| {
        whole.push((name, dims.to_vec(), vec![0.5; dims.iter().product()]));
    };
    for (head, inputs) in [("projector", width), ("momentum_projector", width), ("predictor", out)] {
        push(format!("{head}.projector.0.weight"), &[hidden, inputs]);
        push(format!("{head}.projector.0.bias"), &[hidden]);
        for name in ["weight", "bias", "running_mean", "running_var"] {
            push(format!("{head}.projector.1.{name}"), &[hidden]);
        }
        push(format!("{head}.projector.3.weight"), &[out, hidden]);
        push(format!("{head}.projector.3.bias"), &[out]);
    }
    for (layer, dims) in [(0, [hidden, width]), (2, [4, hidden])] {
        push(format!("classifier.{layer}.weight"), &dims);
        push(format!("classifier.{layer}.bias"), &dims[..1]);
    }
    whole.sort_by_key(|(name, ..)| official::place(name)); // stable
    whole
}

/// One parameter's moments and counter.
#[derive(Clone)]
struct State {
    first: Vec<f32>,
    second: Vec<f32>,
    step: Value,
}

/// Writes the model with an optimiser whose moments `edit` has changed, or taken away.
fn write(dir: &Path, epoch: Value, edit_model: impl Fn(&mut Weight), edit: impl Fn(&str, State) -> Option<State>) {
    let mut model = whole();
    model.iter_mut().for_each(edit_model);
    let mut storages = Storages::default();
    let entry = |(name, dims, values): &Weight| (name.clone(), storages.floats(dims, values));
    let weights = dict(&model.iter().map(entry).collect::<Vec<_>>());
    let groups = official::optimizer_groups(model.iter().map(|(name, dims, _)| (name.as_str(), &dims[..])));
    let (mut states, mut number) = (Vec::new(), 0);
    let groups = groups.map(|names| {
        let params = names.into_iter().map(|name| {
            let (_, dims, _) = model.iter().find(|(other, ..)| other == name).unwrap();
            let count = dims.iter().product();
            let state = State { first: vec![-0.5; count], second: vec![0.25; count], step: float(7.0) };
            if let Some(State { first, second, step }) = edit(name, state).filter(|_| !name.starts_with("blocks_m")) {
                let moments = [
                    ("step", step),
                    ("exp_avg", storages.floats(dims, &first)),
                    ("exp_avg_sq", storages.floats(dims, &second)),
                ];
                states.push((int(number), dict(&moments)));
            }
            number += 1;
            int(number - 1)
        });
        dict(&[("params", list(&params.collect::<Vec<_>>()))])
    });
    let optimizer = dict(&[("state", items(&states)), ("param_groups", list(&groups))]);
    storages.write(&dir.join("w.pth"), &dict(&[("model", weights), ("optimizer", optimizer), ("epoch", epoch)]));
}

#[test]
fn a_state_that_no_training_left_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let as_it_is = |_: &str, state: State| Some(state);
    let whole = |_: &mut Weight| {};
    write(dir, int(2), whole, as_it_is);
    let said = succeeds(dir, &format!("{IMPORT} good"));
    assert!(said.contains("training_state: 7 updates, 3 epochs done"), "{said}");
    // No loss reaches a head: it has no moments, and that is said.
    write(dir, int(2), whole, |name, state| (!name.starts_with("predictor.")).then_some(state));
    let said = succeeds(dir, &format!("{IMPORT} part"));
    assert!(said.contains("the optimizer has no moments for predictor, which start at zero"), "{said}");

    let refused = |expected: &str| {
        let said = fails(dir, &format!("{IMPORT} new"));
        assert!(said.contains(expected), "expected {expected:?} in {said:?}");
        assert!(!dir.join("new").exists());
    };
    for (epoch, found) in [(int(-3), "found -3"), (float(f64::NAN), "found NaN"), (int(i64::MAX), "found 9223")] {
        write(dir, epoch, whole, as_it_is);
        refused(&format!("w.pth: epoch: expected a count from 0, {found}"));
    }
    let lack = |names: &'static [&str]| move |name: &str, state: State| (!names.contains(&name)).then_some(state);
    write(dir, int(2), whole, lack(&["norm.bias"]));
    refused("optimizer.exp_avg.norm.bias: expected a moment, since the optimizer has those of other parameters");
    write(dir, int(2), whole, lack(&["predictor.projector.3.bias"]));
    refused("optimizer.exp_avg.predictor.projector.3.bias: expected a moment");

    let change = |first: f32, second: f32, step: Value| {
        move |name: &str, mut state: State| {
            if name == "norm.weight" {
                (state.first[1], state.second[1], state.step) = (first, second, step.clone());
            }
            Some(state)
        }
    };
    write(dir, int(2), whole, change(0.0, -1e-9, int(7)));
    refused("optimizer.exp_avg_sq.norm.weight: expected a mean of squares, not below 0, found -0.000000001 at 1");
    write(dir, int(2), whole, change(f32::NAN, 0.0, int(7)));
    refused("optimizer.exp_avg.norm.weight: expected finite numbers, found NaN at 1");
    write(dir, int(2), whole, change(0.0, f32::INFINITY, int(7)));
    refused("optimizer.exp_avg_sq.norm.weight: expected finite numbers, found inf at 1");
    write(dir, int(2), whole, change(0.0, 0.0, int(-7)));
    refused("optimizer step: expected a count, found -7");
    write(dir, int(2), whole, change(0.0, 0.0, float(8.0)));
    refused("optimizer step: expected the same for all parameters, found ");
    write(dir, int(2), whole, change(0.0, 0.0, float(7.5)));
    refused("optimizer step: expected a count, found 7.5");

    let negative = |(name, _, values): &mut Weight| {
        if name == "predictor.projector.1.running_var" {
            values[2] = -0.5;
        }
    };
    write(dir, int(2), negative, as_it_is);
    refused("predictor.projector.1.running_var: expected a mean of squares, not below 0, found -0.5 at 2");
}
