//! Writes what `torch.save` writes, and what it does not: opcode by opcode.

use std::io::BufWriter;
use std::path::Path;

use sorcen_trainer::zip::ZipWriter;

/// Opcodes that leave one value.
pub type Value = Vec<u8>;

pub fn text(text: &str) -> Value {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

pub fn int(value: i64) -> Value {
    [b"\x8a\x08", &value.to_le_bytes()[..]].concat()
}

pub fn float(value: f64) -> Value {
    [b"G", &value.to_be_bytes()[..]].concat()
}

pub fn tuple(items: &[Value]) -> Value {
    [b"(", &items.concat()[..], b"t"].concat()
}

pub fn list(items: &[Value]) -> Value {
    [b"](", &items.concat()[..], b"e"].concat()
}

pub fn dict<K: AsRef<str>>(entries: &[(K, Value)]) -> Value {
    items(&entries.iter().map(|(key, value)| (text(key.as_ref()), value.clone())).collect::<Vec<_>>())
}

/// A dictionary with any keys.
pub fn items(entries: &[(Value, Value)]) -> Value {
    let entries: Vec<u8> =
        entries.iter().flat_map(|(key, value)| [key.as_slice(), value.as_slice()].concat()).collect();
    [b"}(", &entries[..], b"u"].concat()
}

/// A class or function, as protocol 4 names it.
pub fn global(module: &str, name: &str) -> Value {
    [text(module), text(name), b"\x93".to_vec()].concat()
}

pub fn call(function: Value, arguments: &[Value]) -> Value {
    [function, tuple(arguments), b"R".to_vec()].concat()
}

/// The numbers of a file, in the order in which tensors of them were made.
#[derive(Default)]
pub struct Storages(Vec<Vec<u8>>);

impl Storages {
    fn storage(&mut self, class: Value, bytes: Vec<u8>) -> Value {
        let key = self.0.len().to_string();
        let count = int(bytes.len() as i64);
        self.0.push(bytes);
        [tuple(&[text("storage"), class, text(&key), text("cpu"), count]), b"Q".to_vec()].concat()
    }

    fn view(&mut self, class: Value, bytes: Vec<u8>, shape: &[usize], strides: &[usize]) -> Vec<Value> {
        let sizes = |sizes: &[usize]| tuple(&sizes.iter().map(|&size| int(size as i64)).collect::<Vec<_>>());
        let hooks = call(global("collections", "OrderedDict"), &[]);
        vec![self.storage(class, bytes), int(0), sizes(shape), sizes(strides), b"\x89".to_vec(), hooks]
    }

    /// A view of a storage of `class`, such as `FloatStorage`.
    pub fn tensor(&mut self, class: &str, bytes: Vec<u8>, shape: &[usize], strides: &[usize]) -> Value {
        let arguments = self.view(global("torch", class), bytes, shape, strides);
        call(global("torch._utils", "_rebuild_tensor_v2"), &arguments)
    }

    /// The same of an untyped storage, with a type that no class of storages has, such as `uint16`.
    pub fn typed(&mut self, dtype: &str, bytes: Vec<u8>, shape: &[usize]) -> Value {
        let class = global("torch.storage", "UntypedStorage");
        let mut arguments = self.view(class, bytes, shape, &contiguous(shape));
        arguments.push(global("torch", dtype));
        call(global("torch._utils", "_rebuild_tensor_v3"), &arguments)
    }

    pub fn floats(&mut self, shape: &[usize], values: &[f32]) -> Value {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensor("FloatStorage", bytes, shape, &contiguous(shape))
    }

    pub fn longs(&mut self, shape: &[usize], values: &[i64]) -> Value {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensor("LongStorage", bytes, shape, &contiguous(shape))
    }

    /// Writes the zip format around `value`.
    pub fn write(&self, path: &Path, value: &Value) {
        self.write_in_order(path, value, "little");
    }

    pub fn write_in_order(&self, path: &Path, value: &Value, byteorder: &str) {
        let pickle = [b"\x80\x02", &value[..], b"."].concat();
        let mut file = BufWriter::new(std::fs::File::create(path).unwrap());
        let mut zip = ZipWriter::new(&mut file);
        let mut entry = |name: &str, bytes: &[u8]| zip.entry(name, bytes.len(), |write| write(bytes)).unwrap();
        entry("archive/data.pkl", &pickle);
        entry("archive/byteorder", byteorder.as_bytes());
        for (key, bytes) in self.0.iter().enumerate() {
            entry(&format!("archive/data/{key}"), bytes);
        }
        zip.finish().unwrap();
    }

    /// Writes the older format around `value`, by protocol 2 or 4; all storages are of 4 bytes a number.
    pub fn write_legacy(&self, path: &Path, value: &Value, protocol: u8) {
        let pickle = |value: &[u8]| {
            let frame = [b"\x95", &(value.len() as u64 + 1).to_le_bytes()[..]].concat();
            let frame = if protocol >= 4 { &frame[..] } else { &[] };
            [&[0x80, protocol], frame, value, b"."].concat()
        };
        let magic = pickle(b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19");
        let keys = list(&(0..self.0.len()).map(|key| text(&key.to_string())).collect::<Vec<_>>());
        let mut file = [magic, pickle(b"M\xe9\x03"), pickle(b"}"), pickle(value), pickle(&keys)].concat();
        for bytes in &self.0 {
            file.extend((bytes.len() as u64 / 4).to_le_bytes());
            file.extend(bytes);
        }
        std::fs::write(path, file).unwrap();
    }
}

pub fn contiguous(shape: &[usize]) -> Vec<usize> {
    (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect()
}
