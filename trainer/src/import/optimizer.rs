//! The optimiser of an official checkpoint: `torch.optim.AdamW.state_dict()`, whose moments go by number.

use std::collections::BTreeMap;

use super::pickle::{Id, Node, Pickle};
use super::pth::{tensor, Tensor};
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
    Number(i64),
    /// In newer ones.
    Tensor(Tensor),
}

impl Optimizer {
    /// What the dictionary `id` says, if it is an optimiser's.
    pub fn read(pickle: &Pickle, id: Id) -> Option<Self> {
        let entry = |id: Id, name: &str| {
            pickle.dict(id)?.iter().find(|(key, _)| pickle.str(*key) == Some(name)).map(|&(_, value)| value)
        };
        let int = |id: &Id| match pickle.get(*id) {
            Node::Int(value) => Some(*value),
            _ => None,
        };
        let group = |&id: &Id| pickle.list(entry(id, "params")?)?.iter().map(int).collect::<Option<Vec<i64>>>();
        let groups = pickle.list(entry(id, "param_groups")?)?.iter().map(group).collect::<Option<_>>()?;
        let (mut moments, mut steps) = (BTreeMap::new(), Vec::new());
        for &(key, state) in pickle.dict(entry(id, "state")?)? {
            let moment = |name: &str| tensor(pickle, entry(state, name)?);
            moments.insert(int(&key)?, [moment("exp_avg")?, moment("exp_avg_sq")?]);
            let step = entry(state, "step")?;
            steps.push(int(&step).map(Step::Number).or_else(|| tensor(pickle, step).map(Step::Tensor))?);
        }
        Some(Self { groups, moments, steps })
    }

    /// The moments by weight name, given the model's tensors in order; and the counters.
    ///
    /// # Errors
    /// What is different from the official code's groups.
    pub fn named(self, model: &[(String, Tensor)]) -> Result<(Moments, Vec<Step>), String> {
        let names = official::optimizer_groups(model.iter().map(|(name, tensor)| (name.as_str(), tensor.shape())));
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
            let name = by_number.get(&number).ok_or_else(|| format!("a state {number} in no group"))?;
            named.insert(name.to_string(), moments);
        }
        Ok((named, self.steps))
    }
}
