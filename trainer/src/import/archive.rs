//! The two formats of `torch.save`: a zip, and the older one of pickles and storages after each other.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::OnceLock;

use super::pickle::{Node, Pickle};
use super::tensor::{storage, Element};
use crate::zip::{self, Entry};

/// The number that the older format starts with: as protocols 2 to 5 write it, and as 0 and 1 do.
const LEGACY: [&[u8]; 2] =
    [&[0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19], b"L119547037146038801333356L"];

/// A file's contents: what it is of, and the numbers.
#[derive(Debug)]
pub struct Archive {
    /// What was saved.
    pub pickle: Pickle,
    /// Numbers by key.
    pub storages: BTreeMap<String, Storage>,
    /// Whether the first byte of a number is the highest.
    pub big_endian: bool,
}

/// Where the bytes of a storage are.
#[derive(Debug)]
pub struct Storage {
    range: Range<usize>,
    /// The zip entry that says what they should be.
    entry: Option<Entry>,
    checked: OnceLock<Result<(), String>>,
}

impl Storage {
    fn new(range: Range<usize>, entry: Option<Entry>) -> Self {
        Self { range, entry, checked: OnceLock::new() }
    }

    /// The bytes in `file`, checked once.
    pub fn bytes<'a>(&self, file: &'a [u8]) -> Result<&'a [u8], String> {
        let check = || self.entry.as_ref().map_or(Ok(()), |entry| entry.bytes(file).map(drop));
        self.checked.get_or_init(check).clone().map(|()| &file[self.range.clone()])
    }
}

/// Whether a file that starts with `bytes` is meant to be one of either format.
pub fn is_one(bytes: &[u8]) -> bool {
    bytes.starts_with(zip::MAGIC) || is_legacy(bytes)
}

/// In the older format the number is all of the first pickle.
fn is_legacy(bytes: &[u8]) -> bool {
    let start = &bytes[..bytes.len().min(48)];
    LEGACY.iter().any(|magic| start.windows(magic.len()).any(|window| window == *magic))
}

/// Reads a file.
///
/// # Errors
/// What it is instead.
pub fn read(bytes: &[u8]) -> Result<Archive, String> {
    match () {
        () if bytes.starts_with(zip::MAGIC) => zipped(bytes),
        () if is_legacy(bytes) => legacy(bytes),
        () => Err("neither a zip nor PyTorch's older format".into()),
    }
}

/// PyTorch 1.6 and later: a zip of `NAME/data.pkl`, `NAME/byteorder` and `NAME/data/KEY`.
fn zipped(bytes: &[u8]) -> Result<Archive, String> {
    const PICKLE: &str = "data.pkl";
    let entries = zip::entries(bytes)?;
    let roots = entries.keys().filter_map(|name| name.strip_suffix(PICKLE));
    let roots: Vec<&str> = roots.filter(|root| root.is_empty() || root.ends_with('/')).collect();
    let &[root] = &roots[..] else {
        let names: Vec<&str> = entries.keys().map(String::as_str).take(4).collect();
        return Err(format!("a zip with {} files data.pkl ({}, …)", roots.len(), names.join(", ")));
    };
    if entries.contains_key(&format!("{root}constants.pkl")) {
        return Err("a TorchScript program; save its state_dict() with torch.save".into());
    }
    let contents = |name: &str, entry: &Entry| entry.bytes(bytes).map_err(|error| format!("{root}{name}: {error}"));
    let pickle = Pickle::read(contents(PICKLE, &entries[&format!("{root}{PICKLE}")])?)?;
    let big_endian = match entries.get(&format!("{root}byteorder")) {
        None => false,
        Some(entry) => match contents("byteorder", entry)? {
            b"little" => false,
            b"big" => true,
            other => return Err(format!("byteorder {:?}, expected little or big", String::from_utf8_lossy(other))),
        },
    };
    let folder = format!("{root}data/");
    let storage = |(name, entry): (&String, &Entry)| {
        let key = name.strip_prefix(&folder)?.to_string();
        Some(entry.stored().map(|range| (key, Storage::new(range, Some(entry.clone())))))
    };
    let storages = entries.iter().filter_map(storage).collect::<Result<_, _>>()?;
    Ok(Archive { pickle, storages, big_endian })
}

/// Older: magic number, protocol, system, contents, list of storage keys (all pickles), then the storages, whose
/// numbers are little-endian on every system.
fn legacy(bytes: &[u8]) -> Result<Archive, String> {
    let mut at = 0;
    let mut next = || {
        let pickle = Pickle::read(&bytes[at..])?;
        at += pickle.length;
        Ok::<_, String>(pickle)
    };
    let (_magic, _protocol, _system) = (next()?, next()?, next()?);
    let (pickle, keys) = (next()?, next()?);
    let elements = storage_elements(&pickle);
    let mut storages = BTreeMap::new();
    for &key in keys.list(keys.root).ok_or("no list of storages")? {
        let key = keys.str(key).ok_or("a storage key that is no text")?;
        let header = bytes.get(at..at + 8).and_then(|b| <[u8; 8]>::try_from(b).ok()).ok_or("file ends in a storage")?;
        let count = usize::try_from(u64::from_le_bytes(header)).map_err(|_| "storage too large")?;
        // The size of an element is known from the tensors alone.
        let size = match elements.get(key) {
            Some(element) => element.bytes().ok_or_else(|| format!("a storage of {element:?}, which is not read"))?,
            None => return Err(format!("a storage {key} that no tensor is of")),
        };
        let end = count.checked_mul(size).and_then(|n| n.checked_add(at + 8)).filter(|&end| end <= bytes.len());
        let end = end.ok_or("file ends in a storage")?;
        storages.insert(key.to_string(), Storage::new(at + 8..end, None));
        at = end;
    }
    Ok(Archive { pickle, storages, big_endian: false })
}

/// The element type of each storage that the pickle mentions.
fn storage_elements(pickle: &Pickle) -> BTreeMap<String, Element> {
    let mut elements = BTreeMap::new();
    for id in 0..pickle.count() {
        if let Node::Persistent(id) = *pickle.get(id) {
            if let Some((class, key)) = storage(pickle, id) {
                elements.insert(key.to_string(), Element::of(class));
            }
        }
    }
    elements
}
