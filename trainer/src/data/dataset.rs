//! [`TokenDataset`]: images as token ids, from a folder.
//!
//! ```text
//! meta.json          format, version, count, class names, streams; SHA-256 of every other file
//! tokens_NAME.npy    one per stream: uint8 [N, ceil(T*bits/8)], bit-packed rows (sorcen_runtime::tokens)
//! labels.npy         uint16 [N], indices into the class names
//! items.csv          optional: a header line, then one row per image, any columns
//! ```
//!
//! From Python:
//! ```python
//! rows = np.load("tokens_vqgan.npy", mmap_mode="r")
//! bits = np.unpackbits(rows, axis=1, bitorder="little")[:, : T * BITS].reshape(-1, T, BITS)
//! ids = bits @ (1 << np.arange(BITS))
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sorcen_export::found;
use sorcen_runtime::tokens::{row_bytes, unpack_row};
use sorcen_runtime::OwnedBytes;

use super::digest::sha256_hex;
use super::{npy, DataError, Table};

/// The stream every dataset has: the tokens that the model reads and predicts (official name).
pub const VQGAN: &str = "vqgan";

pub(super) const FORMAT: &str = "sorcen-tokens";
pub(super) const VERSION: u32 = 1;
pub(super) const META: &str = "meta.json";
pub(super) const LABELS: &str = "labels.npy";
pub(super) const ITEMS: &str = "items.csv";

/// Contents of `meta.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Meta {
    pub format: String,
    pub version: u32,
    /// Number of images.
    pub count: usize,
    pub class_names: Vec<String>,
    pub streams: BTreeMap<String, StreamMeta>,
    /// Where this is one of several parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
    /// SHA-256 (hexadecimal) of every other file of the folder, by name.
    pub sha256: BTreeMap<String, String>,
}

/// Which part of a set a dataset is: what `tokenize --shard INDEX/OF` made of `images` images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// The part's number, from 0.
    pub index: usize,
    /// How many parts there are.
    pub of: usize,
    /// Images of the whole set, before faulty ones are left out.
    pub images: usize,
}

/// One stream in `meta.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StreamMeta {
    /// Side of the square grid: T = grid².
    pub grid: usize,
    /// Bits a token.
    pub bits: u32,
    /// Ids are below this.
    pub codebook_size: usize,
    /// Fingerprint of the tokenizer that made the ids, where known.
    pub tokenizer: Option<String>,
}

pub(super) fn stream_file(name: &str) -> String {
    format!("tokens_{name}.npy")
}

/// N images as token maps with labels, checked when opened.
#[derive(Debug)]
pub struct TokenDataset {
    dir: PathBuf,
    meta: Meta,
    streams: BTreeMap<String, TokenStream>,
    labels: Vec<u16>,
}

/// One token map per image.
#[derive(Debug)]
pub struct TokenStream {
    meta: StreamMeta,
    file: OwnedBytes,
    /// Where the rows start in the file.
    start: usize,
}

impl TokenDataset {
    /// Opens a dataset folder and checks all of it: checksums, shapes, labels, ids.
    ///
    /// # Errors
    /// [`DataError`] names the file, the item, what was expected and what was found.
    pub fn open(dir: &Path) -> Result<Self, DataError> {
        if let Some(found) = Self::missing_at(dir) {
            return Err(DataError::invalid(dir, "dataset", found::DATASET, found));
        }
        let meta = read_meta(&dir.join(META))?;
        let mut streams = BTreeMap::new();
        for (name, stream) in &meta.streams {
            streams.insert(name.clone(), TokenStream::open(dir, name, stream, &meta)?);
        }
        let labels = read_labels(&dir.join(LABELS), &meta)?;
        if meta.sha256.contains_key(ITEMS) {
            checked_file(&dir.join(ITEMS), &meta)?;
        }
        Ok(Self { dir: dir.to_path_buf(), meta, streams, labels })
    }

    /// What lies at `dir` where that is no dataset folder, with the way out where there is one.
    fn missing_at(dir: &Path) -> Option<String> {
        let error = std::fs::metadata(dir.join(META)).err()?;
        let found = found::is_nothing(error.kind()).then(|| found::at(dir))?;
        let first = found::datasets(dir).into_iter().next();
        Some(first.map_or(found.clone(), |name| found + &format!("; give one of them: {}", dir.join(name).display())))
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Number N of images.
    pub fn len(&self) -> usize {
        self.meta.count
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.meta.count == 0
    }

    /// Side of the model's token grid.
    pub fn grid(&self) -> usize {
        self.vqgan().grid()
    }

    /// Tokens T of an image: `grid²`.
    pub fn tokens(&self) -> usize {
        self.vqgan().tokens()
    }

    /// Codes K: ids are `0..K`.
    pub fn codebook_size(&self) -> usize {
        self.vqgan().codebook_size()
    }

    /// Fingerprint of the tokenizer that made the ids, where known.
    pub fn tokenizer(&self) -> Option<&str> {
        self.vqgan().meta.tokenizer.as_deref()
    }

    /// The ids of image `index`, row-major.
    ///
    /// # Panics
    /// Where `index >= len()` or `ids.len() != tokens()`.
    pub fn ids(&self, index: usize, ids: &mut [u16]) {
        self.vqgan().ids(index, ids);
    }

    /// Label of image `index`, an index into [`class_names`](Self::class_names).
    ///
    /// # Panics
    /// Where `index >= len()`.
    pub fn label(&self, index: usize) -> u16 {
        self.labels[index]
    }

    /// All labels `[N]`.
    pub fn labels(&self) -> &[u16] {
        &self.labels
    }

    /// Names of the classes.
    pub fn class_names(&self) -> &[String] {
        &self.meta.class_names
    }

    /// Which part of a set this is; `None` for a whole one, or where it was not recorded.
    pub fn part(&self) -> Option<Part> {
        self.meta.part
    }

    /// All token streams by name.
    pub fn streams(&self) -> impl Iterator<Item = (&str, &TokenStream)> {
        self.streams.iter().map(|(name, stream)| (name.as_str(), stream))
    }

    /// One checksum of all that training reads: the model's tokens, and labels.
    pub fn digest(&self) -> String {
        let of = |name: &str| self.meta.sha256.get(name).map_or("", String::as_str);
        sha256_hex([of(&stream_file(VQGAN)), of(LABELS)].concat().as_bytes())
    }

    /// A stream beside the model's own, such as `dino` of the LEASE objective.
    pub fn stream(&self, name: &str) -> Option<&TokenStream> {
        self.streams.get(name)
    }

    /// What is known of the images: `items.csv`, one row per image; `None` where there is no such file.
    ///
    /// # Errors
    /// [`DataError`] where the file is not a table of `len()` rows.
    pub fn items(&self) -> Result<Option<Table>, DataError> {
        if !self.meta.sha256.contains_key(ITEMS) {
            return Ok(None);
        }
        let path = self.dir.join(ITEMS);
        let table = Table::read(&path)?;
        if table.len() != self.len() {
            return Err(DataError::invalid(&path, "rows", self.len(), table.len()));
        }
        Ok(Some(table))
    }

    /// A column of [`items`](Self::items), one value per image.
    ///
    /// # Errors
    /// [`DataError`] where there is no such column, or the file is not a table of `len()` rows.
    pub fn column(&self, name: &str) -> Result<Vec<String>, DataError> {
        let items = self.items()?.unwrap_or_default();
        items.column(name).ok_or_else(|| {
            let found = format!("{:?}", items.header());
            DataError::invalid(&self.dir.join(ITEMS), "columns", format_args!("one named {name}"), found)
        })
    }

    fn vqgan(&self) -> &TokenStream {
        &self.streams[VQGAN] // `read_meta` checked that it is there
    }
}

impl TokenStream {
    fn open(dir: &Path, name: &str, stream: &StreamMeta, meta: &Meta) -> Result<Self, DataError> {
        let path = dir.join(stream_file(name));
        let file = checked_file(&path, meta)?;
        let row = row_bytes(stream.grid * stream.grid, stream.bits);
        let rows = npy::payload(&path, &file, "|u1", &[meta.count, row])?;
        let start = file.len() - rows.len();
        let stream = Self { meta: stream.clone(), file, start };
        stream.check_ids(&path)?;
        Ok(stream)
    }

    /// Side of the grid.
    pub fn grid(&self) -> usize {
        self.meta.grid
    }

    /// Tokens of an image: `grid²`.
    pub fn tokens(&self) -> usize {
        self.meta.grid * self.meta.grid
    }

    /// Ids are below this.
    pub fn codebook_size(&self) -> usize {
        self.meta.codebook_size
    }

    /// Bits a token in the file.
    pub fn bits(&self) -> u32 {
        self.meta.bits
    }

    /// Fingerprint of the tokenizer that made the ids, where known.
    pub fn tokenizer(&self) -> Option<&str> {
        self.meta.tokenizer.as_deref()
    }

    /// The ids of image `index`, row-major.
    ///
    /// # Panics
    /// Where `index` is not below the number of images or `ids.len() != tokens()`.
    pub fn ids(&self, index: usize, ids: &mut [u16]) {
        assert_eq!(ids.len(), self.tokens(), "length of `ids`");
        let row = row_bytes(self.tokens(), self.meta.bits);
        let rows = &self.file[self.start..];
        // Lengths and bits were checked on opening.
        let unpacked = unpack_row(&rows[index * row..][..row], self.meta.bits, ids);
        debug_assert_eq!(unpacked, Ok(()));
    }

    fn check_ids(&self, path: &Path) -> Result<(), DataError> {
        let row = row_bytes(self.tokens(), self.meta.bits);
        let count = (self.file.len() - self.start) / row;
        let mut ids = vec![0; self.tokens()];
        for index in 0..count {
            self.ids(index, &mut ids);
            if let Some(at) = ids.iter().position(|&id| usize::from(id) >= self.meta.codebook_size) {
                let expected = format!("an id below {}", self.meta.codebook_size);
                return Err(DataError::invalid(path, format_args!("image {index}, token {at}"), expected, ids[at]));
            }
        }
        Ok(())
    }
}

fn read_meta(path: &Path) -> Result<Meta, DataError> {
    let text = std::fs::read_to_string(path).map_err(DataError::io(path))?;
    // The version first: a later one may have other fields.
    let json: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| DataError::invalid(path, "contents", "JSON", error))?;
    if json["format"] != FORMAT {
        return Err(DataError::invalid(path, "`format`", FORMAT, &json["format"]));
    }
    if json["version"] != VERSION {
        return Err(DataError::invalid(path, "`version`", VERSION, &json["version"]));
    }
    let meta: Meta = serde_json::from_value(json)
        .map_err(|error| DataError::invalid(path, "contents", "the fields of a token dataset", error))?;
    if !meta.streams.contains_key(VQGAN) {
        let names: Vec<_> = meta.streams.keys().collect();
        return Err(DataError::invalid(path, "`streams`", "one named vqgan", format_args!("{names:?}")));
    }
    for (name, stream) in &meta.streams {
        check_stream(path, name, stream)?;
    }
    if let Some(part) = meta.part.filter(|part| part.index >= part.of) {
        return Err(DataError::invalid(path, "`part`", "an `index` below `of`", format_args!("{part:?}")));
    }
    Ok(meta)
}

/// Sizes that nothing later can overflow on.
pub(super) fn check_stream(path: &Path, name: &str, stream: &StreamMeta) -> Result<(), DataError> {
    let invalid = |field: &str, expected: String, found: usize| {
        Err(DataError::invalid(path, format_args!("`{field}` of stream {name}"), expected, found))
    };
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return Err(DataError::invalid(
            path,
            "name of a stream",
            "ASCII letters, digits and _",
            format_args!("{name:?}"),
        ));
    }
    if !(1..=64).contains(&stream.grid) {
        return invalid("grid", "1 to 64".into(), stream.grid);
    }
    if !(1..=16).contains(&stream.bits) {
        return invalid("bits", "1 to 16".into(), stream.bits as usize);
    }
    if stream.codebook_size == 0 || stream.codebook_size > 1 << stream.bits {
        return invalid(
            "codebook_size",
            format!("1 to {} ({} bits)", 1 << stream.bits, stream.bits),
            stream.codebook_size,
        );
    }
    Ok(())
}

fn checked_file(path: &Path, meta: &Meta) -> Result<OwnedBytes, DataError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let expected = meta.sha256.get(name.as_ref()).map_or("an entry in `sha256` of meta.json", String::as_str);
    let file = OwnedBytes::read(path).map_err(DataError::io(path))?;
    let found = sha256_hex(&file);
    if found != expected {
        return Err(DataError::invalid(path, "SHA-256", expected, found));
    }
    Ok(file)
}

fn read_labels(path: &Path, meta: &Meta) -> Result<Vec<u16>, DataError> {
    let file = checked_file(path, meta)?;
    let bytes = npy::payload(path, &file, "<u2", &[meta.count])?;
    let labels: Vec<u16> = bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
    match labels.iter().position(|&label| usize::from(label) >= meta.class_names.len()) {
        None => Ok(labels),
        Some(at) => {
            let expected = format!("below {} (the number of class names)", meta.class_names.len());
            Err(DataError::invalid(path, format_args!("label of image {at}"), expected, labels[at]))
        }
    }
}

#[cfg(test)]
#[path = "dataset_tests.rs"]
mod tests;
