//! Finds the state dict in what was saved, and the names that its tensors would have alone.

use std::collections::hash_map::{Entry, HashMap};
use std::collections::BTreeSet;

use super::pickle::{Id, Node, Pickle};
use super::tensor::{value, Value};

/// Where a state dict lies, in this order; else it is the file itself.
const USUAL: [&str; 2] = ["model", "state_dict"];

/// Named tensors, and what may stand for one.
#[derive(Debug)]
pub struct StateDict {
    /// In the file's order, each name once.
    pub values: Vec<(String, Value)>,
    /// What was chosen or taken away, in sentences.
    pub notes: Vec<String>,
}

/// The state dict at `key`: an entry of the file (`outer/inner` inside another), or the first part of the names of
/// the one that is taken without.
///
/// # Errors
/// What is there instead.
pub fn find(pickle: &Pickle, key: Option<&str>) -> Result<StateDict, String> {
    let dicts = dicts(pickle);
    let at = |path: &str| dicts.iter().find(|dict| dict.path == path);
    let all = || match dicts.len() {
        0 => contents(pickle),
        _ => few(dicts.iter().map(Dict::to_string)),
    };
    let usual: Vec<&Dict> = USUAL.iter().filter_map(|path| at(path)).collect();
    let by_key = key.and_then(at);
    let (dict, first_part) = match (by_key, &usual[..], at("")) {
        (Some(dict), ..) => (dict, None),
        (None, [dict], _) => (*dict, key),
        (None, [], Some(dict)) => (dict, key),
        _ => return Err(all()),
    };
    let mut values = tensors(pickle, dict.id);
    let mut notes = Vec::new();
    let shown = |path: &str| if path.is_empty() { "the file itself".into() } else { format!("`{path}`") };
    let beside: Vec<String> = dicts.iter().filter(|other| other.path != dict.path).map(Dict::to_string).collect();
    if !beside.is_empty() {
        notes.push(format!("taken: {}; not taken: {}", shown(&dict.path), few(beside)));
    }
    if let Some(part) = first_part {
        let prefix = format!("{part}.");
        let whole = values.len();
        values.retain_mut(|(name, _)| match name.strip_prefix(&prefix) {
            Some(rest) => {
                *name = rest.to_string();
                true
            }
            None => false,
        });
        if values.is_empty() {
            return Err(format!("neither an entry nor a first part of names {part:?}, but {}", all()));
        }
        notes.push(format!("taken: the {} of {whole} tensors whose names start with `{prefix}`", values.len()));
    }
    let shared = shared_prefix(values.iter().map(|(name, _)| name.as_str())).to_string();
    if !shared.is_empty() {
        values.iter_mut().for_each(|(name, _)| drop(name.drain(..shared.len())));
        notes.push(format!("all names start with `{shared}`, which is taken away"));
    }
    let is_unread = |(_, value): &&(String, Value)| matches!(value, Value::Unread(_));
    if values.iter().any(|value| is_unread(&value)) {
        notes.push(format!("not read: {}", few(values.iter().filter(is_unread).map(described))));
    }
    Ok(StateDict { values, notes })
}

/// The dotted first part, with its dot, that all of several names share, such as `module.`.
pub fn shared_prefix<'a>(mut names: impl Iterator<Item = &'a str>) -> &'a str {
    let Some(first) = names.next() else { return "" };
    let mut shared = first.rfind('.').map_or("", |dot| &first[..=dot]);
    let mut count = 1;
    for name in names {
        count += 1;
        while !name.starts_with(shared) {
            shared = shared[..shared.len() - 1].rfind('.').map_or("", |dot| &shared[..=dot]);
        }
    }
    if count > 1 {
        shared
    } else {
        ""
    }
}

/// The first of many, and how many more.
pub fn few(items: impl IntoIterator<Item = String>) -> String {
    const SHOWN: usize = 4;
    let mut items = items.into_iter();
    let mut text = items.by_ref().take(SHOWN).collect::<Vec<_>>().join(", ");
    match items.count() {
        0 => {}
        more => text += &format!(" and {more} more"),
    }
    text
}

/// A dictionary with tensors in it.
struct Dict {
    /// Keys from the outside, with slashes between.
    path: String,
    id: Id,
    /// How many, and a few of their names.
    tensors: String,
}

impl std::fmt::Display for Dict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.path.as_str() {
            "" => write!(f, "outermost {}", self.tensors),
            path => write!(f, "`{path}` with {}", self.tensors),
        }
    }
}

/// All dictionaries with tensors in them, each once, the outermost first. Those of an optimiser, whose keys are
/// numbers, are none.
fn dicts(pickle: &Pickle) -> Vec<Dict> {
    // Texts and dictionaries may be mentioned again and again by a few bytes.
    const DEEPEST: usize = 4;
    const LONGEST: usize = 256;
    const MOST: usize = 4096;
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    let mut next = vec![(String::new(), pickle.root)];
    for _ in 0..DEEPEST {
        for (path, id) in std::mem::take(&mut next) {
            let Some(entries) = pickle.dict(id).filter(|_| seen.insert(id)) else { continue };
            let values = tensors(pickle, id);
            if !values.is_empty() {
                let tensors = format!("{} tensors ({})", values.len(), few(values.iter().map(described)));
                found.push(Dict { path: path.clone(), id, tensors });
            }
            let inner = entries.iter().filter_map(|&(key, value)| {
                let key = pickle.str(key).filter(|key| key.len() <= LONGEST)?;
                let path = if path.is_empty() { key.to_string() } else { format!("{path}/{key}") };
                matches!(pickle.get(value), Node::Dict(_)).then_some((path, value))
            });
            next.extend(inner.take(MOST - next.len()));
        }
    }
    found
}

fn described((name, value): &(String, Value)) -> String {
    match value {
        Value::Tensor(tensor) => format!("{name} {:?}", tensor.view.shape),
        Value::Unread(what) => format!("{name} made by {what}"),
    }
}

/// The tensors of dictionary `id` that have text keys, and what may stand for one; of one key twice, the last, as in
/// Python.
fn tensors(pickle: &Pickle, id: Id) -> Vec<(String, Value)> {
    let mut values: Vec<(String, Value)> = Vec::new();
    let mut seen = HashMap::<&str, usize>::new();
    for &(key, id) in pickle.dict(id).unwrap_or_default() {
        let (Some(key), Some(value)) = (pickle.str(key), value(pickle, id)) else { continue };
        // Other objects, such as the `args` of a run, are none.
        if matches!(&value, Value::Unread(what) if !what.contains("_rebuild") && !what.contains("_reconstruct")) {
            continue;
        }
        match seen.entry(key) {
            Entry::Occupied(at) => values[*at.get()].1 = value,
            Entry::Vacant(free) => {
                free.insert(values.len());
                values.push((key.to_string(), value));
            }
        }
    }
    values
}

/// What was saved that holds no named tensor.
fn contents(pickle: &Pickle) -> String {
    let root = pickle.root;
    match (pickle.dict(root), value(pickle, root)) {
        (Some([]), _) => "an empty dictionary".into(),
        (Some(entries), _) => {
            let entry = |&(key, value): &(Id, Id)| {
                let key = pickle.str(key).map_or_else(|| pickle.describe(key), |key| format!("`{key}`"));
                format!("{key}: {}", pickle.describe(value))
            };
            format!("no tensor, but {}", few(entries.iter().map(entry)))
        }
        (None, Some(Value::Tensor(tensor))) => format!("one tensor {:?} without a name", tensor.view.shape),
        (None, Some(Value::Unread(what))) => {
            format!("an object that {what} makes, not its state_dict()")
        }
        (None, None) => pickle.describe(root),
    }
}
