//! Writes what `torch.save(value, file)` writes: a zip of a pickle and raw numbers.

use std::fs::File;
use std::io::{self, BufWriter};

use crate::zip::ZipWriter;

/// A Python value.
pub enum Value<'a> {
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
    Tuple(Vec<Value<'a>>),
    /// A list.
    List(Vec<Value<'a>>),
    /// A dictionary, in order.
    Dict(Vec<(Value<'a>, Value<'a>)>),
    /// A tensor of its shape.
    Tensor(Vec<usize>, Numbers<'a>),
}

/// The numbers of a tensor, row-major, as many as its shape says.
pub enum Numbers<'a> {
    /// `float32`
    F32(Vec<f32>),
    /// `int64`
    I64(Vec<i64>),
    /// `int64` that need not fit into memory: hands their bytes, little-endian, on when it is their turn.
    Streamed(Box<dyn Fn(Sink<'_>) -> io::Result<()> + 'a>),
}

/// What bytes are handed to, piece by piece.
pub type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> io::Result<()>;

impl From<&str> for Value<'_> {
    fn from(text: &str) -> Self {
        Self::Text(text.to_string())
    }
}

impl<'a> Value<'a> {
    /// A dictionary with text keys.
    pub fn dict<'k>(entries: impl IntoIterator<Item = (&'k str, Value<'a>)>) -> Self {
        Self::Dict(entries.into_iter().map(|(key, value)| (key.into(), value)).collect())
    }
}

/// Writes a file that holds `value`. Everything in the archive is in the folder `root`, of which PyTorch takes any.
///
/// # Errors
/// The file system's, and those of [`Numbers::Streamed`].
pub fn write(root: &str, value: &Value<'_>, file: &mut BufWriter<File>) -> io::Result<()> {
    let mut pickle = Pickle { bytes: b"\x80\x02".to_vec(), storages: Vec::new() };
    pickle.value(value);
    let Pickle { mut bytes, storages } = pickle;
    bytes.push(b'.');

    let mut zip = ZipWriter::new(file);
    zip.entry(&format!("{root}/data.pkl"), bytes.len(), |write| write(&bytes))?;
    zip.entry(&format!("{root}/byteorder"), 6, |write| write(b"little"))?;
    for (key, (count, numbers)) in storages.into_iter().enumerate() {
        let mut entry = |size: usize, write: &dyn Fn(Sink<'_>) -> io::Result<()>| {
            zip.entry(&format!("{root}/data/{key}"), count * size, write)
        };
        match numbers {
            Numbers::F32(values) => entry(4, &|write| write(&bytes_of(values, |value| value.to_le_bytes())))?,
            Numbers::I64(values) => entry(8, &|write| write(&bytes_of(values, |value| value.to_le_bytes())))?,
            Numbers::Streamed(each) => entry(8, each)?,
        }
    }
    zip.entry(&format!("{root}/version"), 2, |write| write(b"3\n"))?;
    zip.finish()
}

fn bytes_of<T: Copy, const N: usize>(values: &[T], bytes: fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&value| bytes(value)).collect()
}

/// A pickle of protocol 2, and the storages that it mentions, with their counts: tensor `i` has storage `i`.
struct Pickle<'a> {
    bytes: Vec<u8>,
    storages: Vec<(usize, &'a Numbers<'a>)>,
}

impl<'a> Pickle<'a> {
    fn value(&mut self, value: &'a Value<'a>) {
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

    fn sequence(&mut self, start: &[u8], items: &'a [Value<'a>], end: &[u8]) {
        self.bytes.extend(start);
        items.iter().for_each(|item| self.value(item));
        self.bytes.extend(end);
    }

    /// `_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)`
    fn tensor(&mut self, shape: &[usize], numbers: &'a Numbers<'a>) {
        let class = match numbers {
            Numbers::F32(_) => "FloatStorage",
            Numbers::I64(_) | Numbers::Streamed(_) => "LongStorage",
        };
        let (key, count) = (self.storages.len().to_string(), shape.iter().product());
        self.storages.push((count, numbers));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::sha256_hex;

    fn file(value: &Value<'_>) -> io::Result<Vec<u8>> {
        let temp = tempfile::NamedTempFile::new()?;
        let mut file = BufWriter::new(temp.reopen()?);
        write("checkpoint", value, &mut file)?;
        io::Write::flush(&mut file)?;
        std::fs::read(temp.path())
    }

    /// One of each kind; what `torch.load` made of these bytes was this value.
    #[test]
    fn a_file_has_the_same_bytes_as_ever() {
        let value = Value::dict([
            ("none", Value::None),
            ("flags", Value::Tuple(vec![Value::Bool(true), Value::Bool(false)])),
            ("ints", Value::List([0, -1, 1 << 31, i64::MIN].map(Value::Int).into())),
            ("float", Value::Float(0.1)),
            ("text", "naïve".into()),
            ("matrix", Value::Tensor(vec![2, 3], Numbers::F32(vec![0.0, 1.5, -2.0, 3.0, 4.0, 5.0]))),
            ("nested", Value::Dict(vec![(Value::Int(7), Value::Tensor(vec![], Numbers::I64(vec![-9])))])),
        ]);
        let bytes = file(&value).unwrap();
        assert_eq!(bytes.len(), 1354);
        assert_eq!(sha256_hex(&bytes), "2d6714e83382614b35c2142ca6ed744bd15663cbff79eddff6a782670fb059b9");
    }

    #[test]
    fn streamed_numbers_are_as_those_in_memory() {
        let streamed = |count: i64| {
            let each = move |write: Sink<'_>| (0..count).try_for_each(|i| write(&i.to_le_bytes()));
            file(&Value::Tensor(vec![3, 2], Numbers::Streamed(Box::new(each))))
        };
        let in_memory = file(&Value::Tensor(vec![3, 2], Numbers::I64((0..6).collect()))).unwrap();
        assert!(streamed(6).unwrap() == in_memory);
        assert_eq!(streamed(5).unwrap_err().kind(), io::ErrorKind::InvalidData, "another number than the shape's");
    }
}
