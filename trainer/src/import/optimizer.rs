//! The optimiser of an official checkpoint: `torch.optim.AdamW.state_dict()`, whose moments go by number.

use std::collections::BTreeMap;

use super::pickle::{Id, Node, Pickle};
use super::tensor::{value, Tensor, Value};
use crate::official;

/// Moments by number, and the numbers of each group.
#[derive(Debug)]
pub struct Optimizer {
    groups: Vec<Vec<i64>>,
    moments: BTreeMap<i64, [Tensor; 2]>,
    /// The counter of each: a number, or a tensor of one.
    steps: Vec<Step>,
}

/// First and second moments by weight name.
pub type Moments = BTreeMap<String, [Tensor; 2]>;

/// How many updates a parameter has had.
#[derive(Debug)]
pub enum Step {
    /// In older files.
    Number(f64),
    /// In newer ones.
    Tensor(Tensor),
}

impl Optimizer {
    /// What the dictionary `id` says.
    ///
    /// # Errors
    /// The first entry that is not as AdamW's are.
    pub fn read(pickle: &Pickle, id: Id) -> Result<Self, String> {
        let entry = |id: Id, name: &str| {
            let entries = pickle.dict(id).ok_or_else(|| pickle.describe(id))?;
            let found = entries.iter().find(|(key, _)| pickle.str(*key) == Some(name)).map(|&(_, value)| value);
            found.ok_or_else(|| format!("no `{name}`"))
        };
        let list = |id: Id| pickle.list(id).ok_or_else(|| pickle.describe(id));
        let int = |id: Id| match pickle.get(id) {
            Node::Int(value) => Ok(*value),
            _ => Err(pickle.describe(id)),
        };
        let group = |&id: &Id| list(entry(id, "params")?)?.iter().map(|&id| int(id)).collect::<Result<Vec<i64>, _>>();
        let groups = list(entry(id, "param_groups")?)?;
        if groups.len() > 64 {
            return Err(format!("{} groups", groups.len()));
        }
        let groups = groups.iter().map(group).collect::<Result<_, _>>()?;
        let states = entry(id, "state")?;
        let (mut moments, mut steps) = (BTreeMap::new(), Vec::new());
        for &(key, state) in pickle.dict(states).ok_or_else(|| pickle.describe(states))? {
            let number = int(key)?;
            let entry = |name: &str| entry(state, name).map_err(|what| format!("state {number}: {what}"));
            let moment = |name: &str| {
                let id = entry(name)?;
                let tensor = value(pickle, id).and_then(Value::tensor);
                tensor.ok_or_else(|| format!("state {number}: {name}: {}", pickle.describe(id)))
            };
            moments.insert(number, [moment("exp_avg")?, moment("exp_avg_sq")?]);
            let step = entry("step")?;
            steps.push(match pickle.get(step) {
                Node::Int(count) => Step::Number(*count as f64),
                Node::Float(count) => Step::Number(*count),
                _ => Step::Tensor(moment("step")?),
            });
        }
        Ok(Self { groups, moments, steps })
    }

    /// The moments by weight name, given the model's tensors in order; and the counters.
    ///
    /// # Errors
    /// What is different from the official code's groups.
    pub fn named(self, model: &[(String, Tensor)]) -> Result<(Moments, Vec<Step>), String> {
        let names =
            official::optimizer_groups(model.iter().map(|(name, tensor)| (name.as_str(), &tensor.view.shape[..])));
        let found: Vec<usize> = self.groups.iter().map(Vec::len).collect();
        let expected = names.each_ref().map(Vec::len);
        if found != expected {
            return Err(format!(
                "groups of {found:?} parameters, where the model has {expected:?} (vectors, the rest)"
            ));
        }
        let by_number: BTreeMap<i64, &str> =
            self.groups.iter().flatten().copied().zip(names.iter().flatten().copied()).collect();
        let mut named = BTreeMap::new();
        for (number, moments) in self.moments {
            let name = by_number.get(&number).ok_or_else(|| format!("state {number}, which is in no group"))?;
            named.insert(name.to_string(), moments);
        }
        Ok((named, self.steps))
    }
}
