//! PyTorch checkpoints (`.pth`), the zip format and the older one, read without executing anything.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use sorcen_runtime::OwnedBytes;

use super::optimizer::{Optimizer, Step};
use super::pickle::{Id, Node, Pickle};
use crate::checkpoint::{WeightSource, FIRST_MOMENT, SECOND_MOMENT};
use crate::data::DataError;
use crate::exchange::{IntFile, IntKind, Ints};
use crate::zip::{self, Entry};

/// First bytes of the zip format.
const ZIP: &[u8] = b"PK";
/// First bytes of the older format.
const LEGACY: [u8; 14] = [0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Element types of storages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element {
    F32,
    F64,
    F16,
    Bf16,
    Int(IntKind),
    Other,
}

impl Element {
    fn of(class: &str) -> Self {
        match class {
            "torch FloatStorage" => Self::F32,
            "torch DoubleStorage" => Self::F64,
            "torch HalfStorage" => Self::F16,
            "torch BFloat16Storage" => Self::Bf16,
            "torch LongStorage" => Self::Int(IntKind::I64),
            "torch IntStorage" => Self::Int(IntKind::I32),
            "torch ShortStorage" => Self::Int(IntKind::I16),
            "torch CharStorage" => Self::Int(IntKind::I8),
            "torch ByteStorage" | "torch BoolStorage" => Self::Int(IntKind::U8),
            _ => Self::Other,
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::F32 | Self::Other => 4,
            Self::F64 => 8,
            Self::F16 | Self::Bf16 => 2,
            Self::Int(kind) => kind.bytes(),
        }
    }
}

/// A strided view of a storage.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    element: Element,
    storage: String,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl Tensor {
    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Whether its storage has a byte for each element. A view that repeats itself may have more elements, but
    /// no checkpoint needs one, and a small file could ask for all memory with it.
    fn has_room(&self, storages: &BTreeMap<String, Range<usize>>) -> bool {
        let count = self.shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size));
        count.is_some_and(|count| count <= storages.get(&self.storage).map_or(0, Range::len))
    }
}

/// A checkpoint's tensors: those of its `model` entry, or of the file itself where it is a bare state dict; and the
/// moments of its `optimizer` entry as `optimizer.exp_avg.NAME` and `optimizer.exp_avg_sq.NAME`.
#[derive(Debug)]
pub struct PthFile {
    path: PathBuf,
    bytes: OwnedBytes,
    tensors: BTreeMap<String, Tensor>,
    storages: BTreeMap<String, Range<usize>>,
    /// Names of the model's tensors, in its order.
    order: Vec<String>,
    epoch: Option<u64>,
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
        bytes.starts_with(ZIP) || bytes.starts_with(&LEGACY)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`DataError`] where it cannot be read or is not a PyTorch checkpoint.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let bytes = OwnedBytes::read(path).map_err(DataError::io(path))?;
        let parsed = if bytes.starts_with(ZIP) { zipped(&bytes) } else { legacy(&bytes) };
        let (pickle, storages) =
            parsed.map_err(|found| DataError::invalid(path, "contents", "a PyTorch checkpoint", found))?;
        let model = tensors(&pickle);
        if model.is_empty() {
            return Err(DataError::invalid(path, "contents", "a state dict, bare or under `model`", "no tensor"));
        }
        let order = model.iter().map(|(name, _)| name.clone()).collect();
        let epoch = match entry(&pickle, "epoch").map(|id| pickle.get(id)) {
            Some(Node::Int(epoch)) => u64::try_from(*epoch).ok(),
            _ => None,
        };
        let optimizer = entry(&pickle, "optimizer").map(|id| Optimizer::read(&pickle, id));
        let (moments, steps) = match optimizer.map(|found| found.ok_or("no AdamW's state".to_string())) {
            None => (BTreeMap::new(), Ok(Vec::new())),
            Some(found) => match found.and_then(|optimizer| optimizer.named(&model)) {
                Ok((moments, steps)) => (moments, Ok(steps)),
                Err(error) => (BTreeMap::new(), Err(error)),
            },
        };
        let mut tensors: BTreeMap<String, Tensor> = model.into_iter().collect();
        for (name, [first, second]) in moments {
            tensors.insert(format!("{FIRST_MOMENT}.{name}"), first);
            tensors.insert(format!("{SECOND_MOMENT}.{name}"), second);
        }
        if let Some((name, tensor)) = tensors.iter().find(|(_, tensor)| !tensor.has_room(&storages)) {
            let found = format!("shape {:?}", tensor.shape);
            return Err(DataError::invalid(path, name, "no more elements than its storage has bytes", found));
        }
        Ok(Self { path: path.to_path_buf(), bytes, tensors, storages, order, epoch, steps })
    }

    /// Names of the model's tensors, in its order.
    pub fn in_order(&self) -> &[String] {
        &self.order
    }

    /// How far the training was.
    ///
    /// # Errors
    /// [`DataError`] where the optimiser's entry is not the official code's AdamW over this model.
    pub fn history(&self) -> Result<History, DataError> {
        const AT_MOST: f32 = 1e15;
        let steps = match &self.steps {
            Ok(steps) => steps,
            Err(found) => return self.invalid("optimizer", "AdamW with the official code's two groups", found),
        };
        let mut updates = 0;
        for step in steps {
            let count = match step {
                Step::Number(count) => u64::try_from(*count).ok(),
                Step::Tensor(tensor) => match self.values_of("optimizer step", tensor)?[..] {
                    [count] if (0.0..AT_MOST).contains(&count) => Some(count as u64),
                    _ => None,
                },
            };
            let Some(count) = count else { return self.invalid("optimizer step", "a count", format!("{step:?}")) };
            updates = updates.max(count);
        }
        Ok(History { updates, epochs: self.epoch.map_or(0, |epoch| epoch.saturating_add(1)) })
    }

    /// The numbers of `tensor`, called `name`, row-major.
    fn values_of(&self, name: &str, tensor: &Tensor) -> Result<Vec<f32>, DataError> {
        let size = tensor.element.bytes();
        if matches!(tensor.element, Element::Int(_) | Element::Other) {
            return self.invalid(name, "floating-point numbers", "another element type");
        }
        let Some(storage) = self.storages.get(&tensor.storage).map(|range| &self.bytes[range.clone()]) else {
            return self.invalid(name, "a storage", format_args!("no storage {}", tensor.storage));
        };
        let available = storage.len() / size;
        let span = tensor.shape.iter().zip(&tensor.strides).try_fold(tensor.offset, |last, (&n, &stride)| {
            n.checked_sub(1).and_then(|steps| steps.checked_mul(stride)).and_then(|reach| last.checked_add(reach))
        });
        if span.is_none_or(|last| last >= available) {
            return self.invalid(name, "elements inside its storage", format_args!("{available} in the storage"));
        }
        let element = |index: usize| {
            let bytes = &storage[index * size..(index + 1) * size];
            match *bytes {
                [a, b] if tensor.element == Element::F16 => f16::from_le_bytes([a, b]).to_f32(),
                [a, b] => bf16::from_le_bytes([a, b]).to_f32(),
                [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
                _ => f64::from_le_bytes(std::array::from_fn(|i| bytes[i])) as f32,
            }
        };
        let count: usize = tensor.shape.iter().product();
        let index = |mut i: usize| {
            let dims = tensor.shape.iter().zip(&tensor.strides).rev();
            dims.fold(tensor.offset, |at, (&n, &stride)| {
                let here = i % n;
                i /= n;
                at + here * stride
            })
        };
        Ok((0..count).map(|i| element(index(i))).collect())
    }
    fn invalid<T>(&self, name: &str, expected: &str, found: impl std::fmt::Display) -> Result<T, DataError> {
        Err(DataError::invalid(&self.path, name, expected, found))
    }
}

impl WeightSource for PthFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|tensor| tensor.shape.clone())
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, DataError> {
        match self.tensors.get(name) {
            Some(tensor) => self.values_of(name, tensor),
            None => self.invalid(name, "a tensor", "none of this name"),
        }
    }
}

impl IntFile for PthFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Vec<String> {
        WeightSource::names(self)
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        WeightSource::shape(self, name)
    }

    fn open_ints(&self, name: &str) -> Result<Ints<'_>, DataError> {
        let Some(tensor) = self.tensors.get(name) else { return self.invalid(name, "a tensor", "none of this name") };
        let Element::Int(kind) = tensor.element else {
            return self.invalid(name, "integers", format_args!("{:?}", tensor.element));
        };
        let Some(storage) = self.storages.get(&tensor.storage).map(|range| &self.bytes[range.clone()]) else {
            return self.invalid(name, "a storage", format_args!("no storage {}", tensor.storage));
        };
        let rows_follow = (0..tensor.shape.len()).all(|i| {
            let next = tensor.shape[i + 1..].iter().try_fold(1usize, |n, &size| n.checked_mul(size));
            tensor.shape[i] <= 1 || next == Some(tensor.strides[i])
        });
        if !rows_follow {
            return self.invalid(
                name,
                "rows one after another (contiguous)",
                format_args!("strides {:?}", tensor.strides),
            );
        }
        let start = tensor.offset.checked_mul(kind.bytes()).and_then(|start| storage.get(start..));
        match start {
            Some(bytes) => Ok(Ints::new(&self.path, name, kind, Box::new(bytes))),
            None => self.invalid(name, "elements inside its storage", format_args!("offset {}", tensor.offset)),
        }
    }
}

type Parsed = (Pickle, BTreeMap<String, Range<usize>>);

/// PyTorch 1.6 and later: a zip of `NAME/data.pkl` and `NAME/data/KEY`.
fn zipped(bytes: &[u8]) -> Result<Parsed, String> {
    let entries = zip::entries(bytes)?;
    let (name, entry) = entries.iter().find(|(name, _)| name.ends_with("/data.pkl")).ok_or("a zip without data.pkl")?;
    let pickle = Pickle::read(&bytes[entry.stored()?])?;
    let folder = name.replace("/data.pkl", "/data/");
    let key = |(name, entry): (&String, &Entry)| {
        let key = name.strip_prefix(&folder)?.to_string();
        Some(entry.stored().map(|range| (key, range)))
    };
    let storages = entries.iter().filter_map(key).collect::<Result<_, _>>()?;
    Ok((pickle, storages))
}

/// Older: magic number, protocol, system, contents, list of storage keys (all pickles), then the storages.
fn legacy(bytes: &[u8]) -> Result<Parsed, String> {
    if !bytes.starts_with(&LEGACY) {
        return Err("neither a zip nor PyTorch's older format".into());
    }
    let mut at = 0;
    let mut next = || {
        let pickle = Pickle::read(&bytes[at..])?;
        at += pickle.length;
        Ok::<_, String>(pickle)
    };
    let (_magic, _protocol, _system) = (next()?, next()?, next()?);
    let (contents, keys) = (next()?, next()?);
    let elements = storage_elements(&contents);
    let mut storages = BTreeMap::new();
    for &key in keys.list(keys.root).ok_or("no list of storages")? {
        let key = keys.str(key).ok_or("a storage key that is no text")?;
        let header = bytes.get(at..at + 8).and_then(|b| <[u8; 8]>::try_from(b).ok()).ok_or("file ends in a storage")?;
        let count = usize::try_from(u64::from_le_bytes(header)).map_err(|_| "storage too large")?;
        // The size of an element is known from the tensors alone.
        let size = elements.get(key).copied().unwrap_or(0);
        let end = count.checked_mul(size).and_then(|n| n.checked_add(at + 8)).filter(|&end| end <= bytes.len());
        let end = end.ok_or("file ends in a storage")?;
        storages.insert(key.to_string(), at + 8..end);
        at = end;
    }
    Ok((contents, storages))
}

/// Bytes of an element of each storage that the pickle mentions.
fn storage_elements(pickle: &Pickle) -> BTreeMap<String, usize> {
    let mut sizes = BTreeMap::new();
    for id in 0..pickle.count() {
        if let Node::Persistent(id) = *pickle.get(id) {
            if let Some((class, key)) = storage(pickle, id) {
                sizes.insert(key.to_string(), Element::of(class).bytes());
            }
        }
    }
    sizes
}

/// Class and key of the storage in a persistent id: `('storage', class, key, location, count)`.
fn storage(pickle: &Pickle, id: Id) -> Option<(&str, &str)> {
    let [_, class, key, ..] = *pickle.list(id)? else { return None };
    match pickle.get(class) {
        Node::Global(class) => Some((class, pickle.str(key)?)),
        _ => None,
    }
}

/// The entry `name` of the whole.
fn entry(pickle: &Pickle, name: &str) -> Option<Id> {
    pickle.dict(pickle.root)?.iter().find(|(key, _)| pickle.str(*key) == Some(name)).map(|&(_, value)| value)
}

/// The tensors of the `model` entry, or of the whole, in order.
fn tensors(pickle: &Pickle) -> Vec<(String, Tensor)> {
    let state = entry(pickle, "model").or_else(|| entry(pickle, "state_dict")).unwrap_or(pickle.root);
    let state = pickle.dict(state).unwrap_or_default();
    state.iter().filter_map(|&(key, value)| Some((pickle.str(key)?.to_string(), tensor(pickle, value)?))).collect()
}

/// A tensor, or a parameter around one.
pub(super) fn tensor(pickle: &Pickle, id: Id) -> Option<Tensor> {
    match call(pickle, id)? {
        ("torch._utils _rebuild_parameter", arguments) => rebuilt(pickle, *arguments.first()?),
        _ => rebuilt(pickle, id),
    }
}

/// `_rebuild_tensor_v2(storage, offset, size, stride, …)`
fn rebuilt(pickle: &Pickle, id: Id) -> Option<Tensor> {
    let ("torch._utils _rebuild_tensor_v2" | "torch._utils _rebuild_tensor", arguments) = call(pickle, id)? else {
        return None;
    };
    let [persistent, offset, shape, strides, ..] = *arguments else { return None };
    let Node::Persistent(persistent) = *pickle.get(persistent) else { return None };
    let (class, key) = storage(pickle, persistent)?;
    let Node::Int(offset) = *pickle.get(offset) else { return None };
    let (shape, strides) = (pickle.sizes(shape)?, pickle.sizes(strides)?);
    let fits = shape.len() == strides.len();
    let offset = usize::try_from(offset).ok()?;
    fits.then(|| Tensor { element: Element::of(class), storage: key.to_string(), offset, shape, strides })
}

/// Function and arguments of a call.
fn call(pickle: &Pickle, id: Id) -> Option<(&str, &[Id])> {
    let Node::Call(function, arguments) = *pickle.get(id) else { return None };
    let Node::Global(function) = pickle.get(function) else { return None };
    Some((function, pickle.list(arguments)?))
}
