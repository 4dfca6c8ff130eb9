//! Tensors as a pickle describes them: views of storages.

use super::pickle::{Id, Node, Pickle};
use crate::exchange::IntKind;
use crate::strided::Strided;

/// Element types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Element {
    /// `float32`
    F32,
    /// `float64`
    F64,
    /// `float16`
    F16,
    /// `bfloat16`
    Bf16,
    /// Integers and bools.
    Int(IntKind),
    /// What is not read, by PyTorch's name.
    Other(String),
}

impl Element {
    /// That of a class of storages, or of a `torch.dtype`.
    pub fn of(name: &str) -> Self {
        match name {
            "torch FloatStorage" | "torch float32" => Self::F32,
            "torch DoubleStorage" | "torch float64" => Self::F64,
            "torch HalfStorage" | "torch float16" => Self::F16,
            "torch BFloat16Storage" | "torch bfloat16" => Self::Bf16,
            // Of uint64 and int64, ids fit either way: one above the largest i64 turns negative and is refused.
            "torch LongStorage" | "torch int64" | "torch uint64" => Self::Int(IntKind::I64),
            "torch IntStorage" | "torch int32" => Self::Int(IntKind::I32),
            "torch uint32" => Self::Int(IntKind::U32),
            "torch ShortStorage" | "torch int16" => Self::Int(IntKind::I16),
            "torch uint16" => Self::Int(IntKind::U16),
            "torch CharStorage" | "torch int8" => Self::Int(IntKind::I8),
            "torch ByteStorage" | "torch BoolStorage" | "torch uint8" | "torch bool" => Self::Int(IntKind::U8),
            other => Self::Other(shown(other)),
        }
    }

    /// Bytes of an element, where they are known.
    pub fn bytes(&self) -> Option<usize> {
        Some(match self {
            Self::F32 => 4,
            Self::F64 => 8,
            Self::F16 | Self::Bf16 => 2,
            Self::Int(kind) => kind.bytes(),
            Self::Other(name) => match name.trim_start_matches("torch.") {
                "storage.UntypedStorage" | "QInt8Storage" | "QUInt8Storage" => 1,
                "QInt32Storage" => 4,
                "ComplexFloatStorage" => 8,
                "ComplexDoubleStorage" => 16,
                _ => return None,
            },
        })
    }
}

/// A strided view of a storage.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Type of the elements.
    pub element: Element,
    /// Key of the storage.
    pub storage: String,
    /// Where in it.
    pub view: Strided,
}

/// A value that is a tensor, or an object that may stand for one.
#[derive(Clone, Debug)]
pub enum Value {
    /// A tensor.
    Tensor(Tensor),
    /// What is not understood: the function that makes it, or what it is.
    Unread(String),
}

impl Value {
    /// The tensor, if it is one.
    pub fn tensor(self) -> Option<Tensor> {
        match self {
            Self::Tensor(tensor) => Some(tensor),
            Self::Unread(_) => None,
        }
    }
}

/// Value `id`: a tensor, or a parameter around one. `None` for what no function makes.
pub fn value(pickle: &Pickle, id: Id) -> Option<Value> {
    /// A parameter with attributes is one function around another; more than a few are no honest file's.
    const DEEPEST: usize = 4;
    let (mut function, mut arguments) = pickle.call(id)?;
    for _ in 0..DEEPEST {
        let inner = match (function, arguments) {
            ("torch._utils _rebuild_parameter" | "torch._utils _rebuild_parameter_with_state", &[tensor, ..]) => {
                pickle.call(tensor)
            }
            ("torch._tensor _rebuild_from_type_v2", &[inner, class, arguments, ..]) if is_plain(pickle, class) => {
                match (pickle.get(inner), pickle.list(arguments)) {
                    (Node::Global(function), Some(arguments)) => Some((function.as_str(), arguments)),
                    _ => None,
                }
            }
            _ => None,
        };
        let Some(inner) = inner else { break };
        (function, arguments) = inner;
    }
    let tensor = match function {
        "torch._utils _rebuild_tensor" | "torch._utils _rebuild_tensor_v2" => rebuilt(pickle, arguments, None),
        "torch._utils _rebuild_tensor_v3" => match arguments.get(6).map(|&dtype| pickle.get(dtype)) {
            Some(Node::Global(dtype)) => rebuilt(pickle, arguments, Some(dtype)),
            _ => None,
        },
        _ => None,
    };
    Some(tensor.map_or_else(|| Value::Unread(shown(function)), Value::Tensor))
}

/// A name as Python writes it; one that is longer than any is cut, since a few bytes may mention it again and again.
fn shown(name: &str) -> String {
    const LONGEST: usize = 100;
    name.chars().take(LONGEST).collect::<String>().replace(' ', ".")
}

/// Whether `class` adds nothing to a tensor.
fn is_plain(pickle: &Pickle, class: Id) -> bool {
    let plain = ["torch Tensor", "torch._tensor Tensor", "torch.nn.parameter Parameter", "torch.nn Parameter"];
    matches!(pickle.get(class), Node::Global(name) if plain.contains(&name.as_str()))
}

/// `(storage, offset, size, stride, requires_grad, hooks, metadata)`, or with `dtype` before the metadata, which say
/// that numbers are yet to be negated or conjugated.
fn rebuilt(pickle: &Pickle, arguments: &[Id], dtype: Option<&str>) -> Option<Tensor> {
    let &[persistent, offset, shape, strides, ref rest @ ..] = arguments else { return None };
    let metadata = rest.get(if dtype.is_some() { 3 } else { 2 });
    if metadata.is_some_and(|&id| pickle.dict(id).is_some_and(|entries| !entries.is_empty())) {
        return None;
    }
    let Node::Persistent(persistent) = *pickle.get(persistent) else { return None };
    let (class, key) = storage(pickle, persistent)?;
    let Node::Int(offset) = *pickle.get(offset) else { return None };
    let (shape, strides) = (pickle.sizes(shape)?, pickle.sizes(strides)?);
    let view = Strided { offset: usize::try_from(offset).ok()?, shape, strides };
    let element = Element::of(dtype.unwrap_or(class));
    (view.shape.len() == view.strides.len()).then(|| Tensor { element, storage: key.to_string(), view })
}

/// Class and key of the storage in a persistent id: `('storage', class, key, location, count)`; in the older format
/// with `None` after them, or the part of another storage that this one is, which is not read.
pub fn storage(pickle: &Pickle, id: Id) -> Option<(&str, &str)> {
    let [_, class, key, ref rest @ ..] = *pickle.list(id)? else { return None };
    if rest.get(2).is_some_and(|&view| *pickle.get(view) != Node::Opaque) {
        return None;
    }
    match pickle.get(class) {
        // PyTorch's keys are numbers; one text may be the key of many.
        Node::Global(class) => Some((class, pickle.str(key).filter(|key| key.len() <= 64)?)),
        _ => None,
    }
}
