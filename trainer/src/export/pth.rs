//! Writes what `torch.save(value, file)` writes: a zip of a pickle and raw numbers.

use std::fs::File;
use std::io::{self, BufWriter};

use crate::zip::ZipWriter;

/// Folder of everything in the archive; PyTorch takes any.
const ROOT: &str = "checkpoint";

/// A Python value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `None`
    None,
    /// A bool.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A float.
    Float(f64),
    /// A string.
    Text(String),
    /// A tuple.
    Tuple(Vec<Value>),
    /// A list.
    List(Vec<Value>),
    /// A dictionary, in order.
    Dict(Vec<(Value, Value)>),
    /// A tensor of its shape.
    Tensor(Vec<usize>, Numbers),
}

/// The numbers of a tensor, row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum Numbers {
    /// `float32`
    F32(Vec<f32>),
    /// `int64`
    I64(Vec<i64>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_string())
    }
}

impl Value {
    /// A dictionary with text keys.
    pub fn dict<'a>(entries: impl IntoIterator<Item = (&'a str, Value)>) -> Self {
        Self::Dict(entries.into_iter().map(|(key, value)| (key.into(), value)).collect())
    }
}

/// Writes a file that holds `value`.
///
/// # Errors
/// The file system's.
pub fn write(value: &Value, file: &mut BufWriter<File>) -> io::Result<()> {
    let mut pickle = Pickle { bytes: b"\x80\x02".to_vec(), storages: Vec::new() };
    pickle.value(value);
    let Pickle { mut bytes, storages } = pickle;
    bytes.push(b'.');

    let mut zip = ZipWriter::new(file);
    zip.entry(&format!("{ROOT}/data.pkl"), bytes.len(), |write| write(&bytes))?;
    zip.entry(&format!("{ROOT}/byteorder"), 6, |write| write(b"little"))?;
    for (key, numbers) in storages.into_iter().enumerate() {
        let bytes: Vec<u8> = match numbers {
            Numbers::F32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Numbers::I64(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        };
        zip.entry(&format!("{ROOT}/data/{key}"), bytes.len(), |write| write(&bytes))?;
    }
    zip.entry(&format!("{ROOT}/version"), 2, |write| write(b"3\n"))?;
    zip.finish()
}

/// A pickle of protocol 2, and the storages that it mentions: tensor `i` has storage `i`.
struct Pickle<'a> {
    bytes: Vec<u8>,
    storages: Vec<&'a Numbers>,
}

impl<'a> Pickle<'a> {
    fn value(&mut self, value: &'a Value) {
        match value {
            Value::None => self.bytes.push(b'N'),
            Value::Bool(true) => self.bytes.push(0x88),
            Value::Bool(false) => self.bytes.push(0x89),
            Value::Int(value) => self.int(*value),
            Value::Float(value) => {
                self.bytes.push(b'G');
                self.bytes.extend(value.to_be_bytes());
            }
            Value::Text(text) => self.text(text),
            Value::Tuple(items) => self.sequence(b"(", items, b"t"),
            Value::List(items) => self.sequence(b"](", items, b"e"),
            Value::Dict(entries) => {
                self.bytes.extend(b"}(");
                for (key, value) in entries {
                    self.value(key);
                    self.value(value);
                }
                self.bytes.push(b'u');
            }
            Value::Tensor(shape, numbers) => self.tensor(shape, numbers),
        }
    }

    fn sequence(&mut self, start: &[u8], items: &'a [Value], end: &[u8]) {
        self.bytes.extend(start);
        items.iter().for_each(|item| self.value(item));
        self.bytes.extend(end);
    }

    /// `_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)`
    fn tensor(&mut self, shape: &[usize], numbers: &'a Numbers) {
        let (class, count) = match numbers {
            Numbers::F32(values) => ("FloatStorage", values.len()),
            Numbers::I64(values) => ("LongStorage", values.len()),
        };
        let key = self.storages.len().to_string();
        self.storages.push(numbers);
        self.bytes.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        self.text("storage");
        self.bytes.extend(format!("ctorch\n{class}\n").as_bytes());
        self.text(&key);
        self.text("cpu");
        self.int(count as i64);
        self.bytes.extend(b"tQ");
        self.int(0);
        let strides: Vec<usize> = (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect();
        for sizes in [shape, &strides] {
            self.bytes.push(b'(');
            sizes.iter().for_each(|&size| self.int(size as i64));
            self.bytes.push(b't');
        }
        self.bytes.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }

    fn text(&mut self, text: &str) {
        self.bytes.push(b'X');
        self.bytes.extend((text.len() as u32).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    fn int(&mut self, value: i64) {
        match i32::try_from(value) {
            Ok(value) => {
                self.bytes.push(b'J');
                self.bytes.extend(value.to_le_bytes());
            }
            Err(_) => {
                self.bytes.extend([0x8a, 8]);
                self.bytes.extend(value.to_le_bytes());
            }
        }
    }
}
