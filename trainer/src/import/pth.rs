//! PyTorch checkpoints (`.pth`), the zip format and the older one, read without executing anything.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use sorcen_runtime::{ModelConfig, OwnedBytes};

use super::archive::{self, Archive, Storage};
use super::optimizer::{Optimizer, Step};
use super::pickle::{Id, Node, Pickle};
use super::state::{self, StateDict};
use super::tensor::{Element, Tensor, Value};
use crate::checkpoint::{WeightSource, FIRST_MOMENT, SECOND_MOMENT};
use crate::data::DataError;
use crate::exchange::{IntFile, Ints};

/// Name of the entry in which [`export`](crate::export) writes the sizes, as in `config.json`.
pub const SIZES: &str = "config";

/// A checkpoint's tensors: those of its `model` entry, or of the file itself where it is a bare state dict; and the
/// moments of its `optimizer` entry as `optimizer.exp_avg.NAME` and `optimizer.exp_avg_sq.NAME`.
#[derive(Debug)]
pub struct PthFile {
    path: PathBuf,
    bytes: OwnedBytes,
    tensors: BTreeMap<String, Tensor>,
    /// What may be tensors, and is not read, by name.
    unread: BTreeMap<String, String>,
    storages: BTreeMap<String, Storage>,
    big_endian: bool,
    /// Names of the model's tensors, in its order.
    order: Vec<String>,
    notes: Vec<String>,
    config: Option<ModelConfig>,
    /// Epochs done, or what the entry holds instead.
    epochs: Result<u64, String>,
    /// Counters of the optimiser, one a parameter, or why they cannot be told.
    steps: Result<Vec<Step>, String>,
}

/// How far the training of a checkpoint was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Updates that the optimiser has made; 0 where the file holds none.
    pub updates: u64,
    /// Epochs done.
    pub epochs: u64,
}

impl PthFile {
    /// Whether a file that starts with `bytes` is meant to be a PyTorch one, of either format.
    pub fn is_one(bytes: &[u8]) -> bool {
        archive::is_one(bytes)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`DataError`] where it cannot be read or is not a PyTorch checkpoint.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        Self::open_at(path, None)
    }

    /// Reads the state dict at `key` of a file: an entry (`outer/inner` inside another), or the first part of names.
    ///
    /// # Errors
    /// [`DataError`] where it cannot be read, is not a PyTorch checkpoint, or holds no such thing.
    pub fn open_at(path: &Path, key: Option<&str>) -> Result<Self, DataError> {
        let bytes = OwnedBytes::read(path).map_err(DataError::io(path))?;
        let Archive { pickle, storages, big_endian } = archive::read(&bytes)
            .map_err(|found| DataError::invalid(path, "contents", "a PyTorch checkpoint", found))?;
        let StateDict { values, notes } = state::find(&pickle, key).map_err(|found| {
            let expected = match key {
                Some(key) => format!("a state dict at {key:?}"),
                None => "a state dict, bare or under `model` or `state_dict` (`sorcen import --key NAME` takes \
                         another)"
                    .to_string(),
            };
            DataError::invalid(path, "contents", expected, found)
        })?;
        let order = values.iter().map(|(name, _)| name.clone()).collect();
        let (mut model, mut unread) = (Vec::new(), BTreeMap::new());
        for (name, value) in values {
            match value {
                Value::Tensor(tensor) => model.push((name, tensor)),
                Value::Unread(what) => drop(unread.insert(name, what)),
            }
        }
        let optimizer = entry(&pickle, "optimizer").map(|id| Optimizer::read(&pickle, id));
        let (moments, steps) = match optimizer.map(|found| found.and_then(|optimizer| optimizer.named(&model))) {
            None => (BTreeMap::new(), Ok(Vec::new())),
            Some(Ok((moments, steps))) => (moments, Ok(steps)),
            Some(Err(error)) => (BTreeMap::new(), Err(error)),
        };
        let mut tensors: BTreeMap<String, Tensor> = model.into_iter().collect();
        for (name, [first, second]) in moments {
            tensors.insert(format!("{FIRST_MOMENT}.{name}"), first);
            tensors.insert(format!("{SECOND_MOMENT}.{name}"), second);
        }
        check_room(path, &tensors, bytes.len())?;
        let (config, epochs) = (config(&pickle), epochs(&pickle));
        let path = path.to_path_buf();
        Ok(Self { path, bytes, tensors, unread, storages, big_endian, order, notes, config, epochs, steps })
    }

    /// Names of the model's tensors, in its order.
    pub fn in_order(&self) -> &[String] {
        &self.order
    }

    /// What was chosen among the file's contents, or is not read, in sentences.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The sizes that the file states, which are not checked; the official code's files state none.
    pub fn config(&self) -> Option<ModelConfig> {
        self.config
    }

    /// How far the training was.
    ///
    /// # Errors
    /// [`DataError`] where the optimiser's entry is not the official code's AdamW over this model, its counters
    /// differ, or the epoch is no count.
    pub fn history(&self) -> Result<History, DataError> {
        const AT_MOST: f64 = 1e15;
        let steps = match &self.steps {
            Ok(steps) => steps,
            Err(found) => return self.invalid("optimizer", "AdamW with the official code's two groups", found),
        };
        let mut updates = None;
        for step in steps {
            let count = match step {
                Step::Number(count) => *count,
                Step::Tensor(tensor) => match self.values_of("optimizer step", tensor)?[..] {
                    [count] => count.into(),
                    ref values => return self.invalid("optimizer step", "a count", format_args!("{values:?}")),
                },
            };
            if !(0.0..AT_MOST).contains(&count) || count.fract() != 0.0 {
                return self.invalid("optimizer step", "a count", count);
            }
            match updates.replace(count as u64) {
                Some(other) if other != count as u64 => {
                    let found = format_args!("{other} and {count}");
                    return self.invalid("optimizer step", "the same for all parameters", found);
                }
                _ => {}
            }
        }
        match &self.epochs {
            Ok(epochs) => Ok(History { updates: updates.unwrap_or(0), epochs: *epochs }),
            Err(found) => self.invalid("epoch", "a count from 0", found),
        }
    }

    /// The numbers of `tensor`, called `name`, row-major.
    fn values_of(&self, name: &str, tensor: &Tensor) -> Result<Vec<f32>, DataError> {
        let view = &tensor.view;
        let (element, size) = match (&tensor.element, tensor.element.bytes()) {
            (element @ (Element::F32 | Element::F64 | Element::F16 | Element::Bf16), Some(size)) => (element, size),
            (Element::Other(other), _) => {
                let expected = "float32, float64, float16 or bfloat16; convert it in Python with .float()";
                return self.invalid(name, expected, other);
            }
            (other, _) => return self.invalid(name, "floating-point numbers", format_args!("{other:?}")),
        };
        let storage = self.storage(name, tensor)?;
        let available = storage.len() / size;
        let (Some(count), Some(0..)) = (view.count(), view.end().and_then(|end| available.checked_sub(end))) else {
            return self.invalid(name, "elements inside its storage", format_args!("{available} in the storage"));
        };
        let element = |index: usize| {
            let mut bytes = [0; 8];
            let bytes = &mut bytes[..size];
            bytes.copy_from_slice(&storage[index * size..(index + 1) * size]);
            if self.big_endian {
                bytes.reverse();
            }
            match *bytes {
                [a, b] if *element == Element::F16 => f16::from_le_bytes([a, b]).to_f32(),
                [a, b] => bf16::from_le_bytes([a, b]).to_f32(),
                [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
                _ => f64::from_le_bytes(std::array::from_fn(|i| bytes[i])) as f32,
            }
        };
        Ok(match view.is_contiguous() {
            true => (0..count).map(|i| element(view.offset + i)).collect(),
            false => (0..count).map(|i| element(view.at(i))).collect(),
        })
    }

    /// The bytes that `tensor`, called `name`, is a view of.
    fn storage(&self, name: &str, tensor: &Tensor) -> Result<&[u8], DataError> {
        match self.storages.get(&tensor.storage) {
            Some(storage) => match storage.bytes(&self.bytes) {
                Ok(bytes) => Ok(bytes),
                Err(found) => self.invalid(name, "a storage as it was written", found),
            },
            None => self.invalid(name, "a storage", format_args!("no storage {}", tensor.storage)),
        }
    }

    fn invalid<T>(&self, name: &str, expected: &str, found: impl std::fmt::Display) -> Result<T, DataError> {
        Err(DataError::invalid(&self.path, name, expected, found))
    }
}

/// Views may repeat themselves, so that a small file could ask for all memory: refuses more elements than any honest
/// file of `bytes` has.
fn check_room(path: &Path, tensors: &BTreeMap<String, Tensor>, bytes: usize) -> Result<(), DataError> {
    const SMALL: usize = 1 << 24;
    let mut left = bytes.saturating_mul(4).saturating_add(SMALL);
    for (name, tensor) in tensors {
        match tensor.view.count().and_then(|count| left.checked_sub(count)) {
            Some(rest) => left = rest,
            None => {
                let expected = format!("no more elements than a file of {bytes} bytes may have");
                return Err(DataError::invalid(path, name, expected, format_args!("shape {:?}", tensor.view.shape)));
            }
        }
    }
    Ok(())
}

impl WeightSource for PthFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|tensor| tensor.view.shape.clone())
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, DataError> {
        match self.tensors.get(name) {
            Some(tensor) => self.values_of(name, tensor),
            None => self.invalid(name, "a tensor", WeightSource::absent(self, name)),
        }
    }

    fn absent(&self, name: &str) -> String {
        match self.unread.get(name) {
            Some(what) => format!("an object made by {what}, which is not read"),
            None => "none of this name".into(),
        }
    }
}

impl IntFile for PthFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().chain(self.unread.keys()).cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        WeightSource::shape(self, name)
    }

    fn open_ints(&self, name: &str) -> Result<Ints<'_>, DataError> {
        let Some(tensor) = self.tensors.get(name) else {
            return self.invalid(name, "a tensor", WeightSource::absent(self, name));
        };
        let Element::Int(kind) = tensor.element else {
            return self.invalid(name, "integers", format_args!("{:?}", tensor.element));
        };
        let (storage, view) = (self.storage(name, tensor)?, &tensor.view);
        if !view.is_contiguous() {
            let storage = Cow::Borrowed(storage);
            return Ints::of_view(&self.path, name, kind, self.big_endian, storage, view.clone());
        }
        match view.offset.checked_mul(kind.bytes()).and_then(|start| storage.get(start..)) {
            Some(bytes) => Ok(Ints::new(&self.path, name, kind, self.big_endian, Box::new(bytes))),
            None => self.invalid(name, "elements inside its storage", format_args!("offset {}", view.offset)),
        }
    }
}

/// The entry `name` of the whole.
fn entry(pickle: &Pickle, name: &str) -> Option<Id> {
    pickle.dict(pickle.root)?.iter().find(|(key, _)| pickle.str(*key) == Some(name)).map(|&(_, value)| value)
}

/// Epochs done: one more than the number of the last.
fn epochs(pickle: &Pickle) -> Result<u64, String> {
    const AT_MOST: i64 = 1 << 40;
    match entry(pickle, "epoch").map(|id| (pickle.get(id), id)) {
        None => Ok(0),
        Some((&Node::Int(epoch @ 0..AT_MOST), _)) => Ok(epoch as u64 + 1),
        Some((_, id)) => Err(pickle.describe(id)),
    }
}

/// The sizes, where all of them are there.
fn config(pickle: &Pickle) -> Option<ModelConfig> {
    let id = entry(pickle, SIZES)?;
    let field = |name: &str| {
        let value = pickle.dict(id)?.iter().find(|(key, _)| pickle.str(*key) == Some(name))?.1;
        Some(pickle.get(value))
    };
    let size = |name: &str| match field(name) {
        Some(Node::Int(value)) => usize::try_from(*value).ok(),
        _ => None,
    };
    Some(ModelConfig {
        grid: size("grid")?,
        codebook_size: size("codebook_size")?,
        vocab_size: size("vocab_size")?,
        class_token_id: size("class_token_id")?,
        mask_token_id: size("mask_token_id")?,
        embed_dim: size("embed_dim")?,
        depth: size("depth")?,
        num_heads: size("num_heads")?,
        decoder_embed_dim: size("decoder_embed_dim")?,
        decoder_depth: size("decoder_depth")?,
        decoder_num_heads: size("decoder_num_heads")?,
        mlp_ratio: size("mlp_ratio")?,
        layer_norm_eps: match field("layer_norm_eps")? {
            Node::Float(eps) => *eps as f32,
            _ => return None,
        },
    })
}
