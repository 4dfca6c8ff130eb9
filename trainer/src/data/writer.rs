//! [`TokenDatasetWriter`]: fills a dataset folder image by image, in constant memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sorcen_runtime::tokens::{pack_row, row_bytes};

use super::dataset::{check_stream, stream_file, Meta, Part, StreamMeta, FORMAT, ITEMS, LABELS, META, VERSION};
use sorcen_runtime::OwnedBytes;

use super::digest::sha256_hex;
use super::{npy, DataError};
use crate::files::{expect_room, PartialDir};

/// A token stream to write.
#[derive(Clone, Debug)]
pub struct StreamSpec {
    /// Name: `vqgan` ([`super::VQGAN`]) for the model's own tokens.
    pub name: String,
    /// Side of the square grid.
    pub grid: usize,
    /// Ids are below this.
    pub codebook_size: usize,
    /// Fingerprint of the tokenizer that makes the ids, where known.
    pub tokenizer: Option<String>,
}

impl StreamSpec {
    /// Bits of a token: as many as the largest id needs.
    pub fn bits(&self) -> u32 {
        (usize::BITS - self.codebook_size.saturating_sub(1).leading_zeros()).max(1)
    }

    /// That a dataset at `target` can hold such a stream.
    ///
    /// # Errors
    /// [`DataError::Invalid`]: grid 1 to 64, 1 to 65,536 codes.
    pub fn check(&self, target: &Path) -> Result<(), DataError> {
        check_stream(target, &self.name, &self.meta())
    }

    fn meta(&self) -> StreamMeta {
        StreamMeta {
            grid: self.grid,
            bits: self.bits(),
            codebook_size: self.codebook_size,
            tokenizer: self.tokenizer.clone(),
        }
    }

    /// Bytes of an image's ids in the dataset.
    pub fn row_bytes(&self) -> usize {
        row_bytes(self.grid * self.grid, self.bits())
    }
}

/// A dataset folder being written; it appears under its name on [`finish`](Self::finish).
#[derive(Debug)]
pub struct TokenDatasetWriter {
    target: PathBuf,
    dir: PartialDir,
    class_names: Vec<String>,
    streams: Vec<StreamWriter>,
    labels: Vec<u16>,
    part: Option<Part>,
}

#[derive(Debug)]
struct StreamWriter {
    name: String,
    meta: StreamMeta,
    path: PathBuf,
    /// Where it will be: what errors name.
    shown: PathBuf,
    file: BufWriter<File>,
    row: Vec<u8>,
}

impl TokenDatasetWriter {
    /// Starts a dataset at `target`, which must be new or an empty folder. Tokens take as many bits
    /// as the largest id needs.
    ///
    /// # Errors
    /// [`DataError`] where the folder cannot be made or a spec is out of range (grid 1 to 64,
    /// 1 to 65,536 codes).
    pub fn create(target: &Path, class_names: Vec<String>, specs: &[StreamSpec]) -> Result<Self, DataError> {
        let dir = PartialDir::create(target).map_err(DataError::io(target))?;
        let streams =
            specs.iter().map(|spec| StreamWriter::create(target, dir.path(), spec)).collect::<Result<_, _>>()?;
        Ok(Self { target: target.to_path_buf(), dir, class_names, streams, labels: Vec::new(), part: None })
    }

    /// Records which part of a set this is.
    pub fn as_part(self, part: Option<Part>) -> Self {
        Self { part, ..self }
    }

    /// That the disk has room for so many images.
    ///
    /// # Errors
    /// [`DataError::Io`] where it has not; nothing is left behind then.
    pub fn with_room_for(self, images: usize) -> Result<Self, DataError> {
        let row: usize = self.streams.iter().map(|stream| stream.row.len()).sum();
        let bytes = (images as u64).saturating_mul((row + size_of::<u16>()) as u64); // ids and label
        expect_room(self.dir.path(), bytes).map_err(DataError::io(&self.target))?;
        Ok(self)
    }

    /// Adds an image: its label and one token map per stream, in the order given to [`create`](Self::create).
    ///
    /// # Errors
    /// [`DataError::Invalid`] for a label without a class name, a wrong number of streams or tokens,
    /// or an id out of range; [`DataError::Io`].
    pub fn push(&mut self, label: u16, ids: &[&[u16]]) -> Result<(), DataError> {
        let index = self.labels.len();
        let invalid = |item: &str, expected: String, found: usize| {
            Err(DataError::invalid(&self.target, format_args!("{item} of image {index}"), expected, found))
        };
        if usize::from(label) >= self.class_names.len() {
            return invalid("label", format!("below {} (the class names)", self.class_names.len()), label.into());
        }
        if ids.len() != self.streams.len() {
            return invalid("token streams", self.streams.len().to_string(), ids.len());
        }
        for (stream, ids) in self.streams.iter_mut().zip(ids) {
            stream.push(index, ids)?;
        }
        self.labels.push(label);
        Ok(())
    }

    /// Writes labels, `items.csv` (text with a header line and one row per image, where given) and
    /// `meta.json`, and gives the folder its name.
    ///
    /// # Errors
    /// [`DataError`]; nothing is left behind then.
    pub fn finish(self, items: Option<&str>) -> Result<(), DataError> {
        let count = self.labels.len();
        let mut sha256 = BTreeMap::new();
        let mut streams = BTreeMap::new();
        for stream in self.streams {
            sha256.insert(stream_file(&stream.name), stream.finish(count, &mut streams)?);
        }
        let mut labels = npy::header("<u2", &[count]).to_vec();
        labels.extend(self.labels.iter().flat_map(|label| label.to_le_bytes()));
        for (name, bytes) in [(LABELS, Some(labels.as_slice())), (ITEMS, items.map(str::as_bytes))] {
            if let Some(bytes) = bytes {
                let path = self.dir.path().join(name);
                std::fs::write(&path, bytes).map_err(DataError::io(&self.target))?;
                sha256.insert(name.to_string(), sha256_hex(bytes));
            }
        }
        let meta = Meta {
            format: FORMAT.into(),
            version: VERSION,
            count,
            class_names: self.class_names,
            streams,
            part: self.part,
            sha256,
        };
        let path = self.dir.path().join(META);
        let json = serde_json::to_string_pretty(&meta).map_err(|error| DataError::io(&path)(error.into()))?;
        std::fs::write(&path, json + "\n").map_err(DataError::io(&self.target))?;
        self.dir.finish().map_err(DataError::io(&self.target))
    }
}

impl StreamWriter {
    fn create(target: &Path, dir: &Path, spec: &StreamSpec) -> Result<Self, DataError> {
        spec.check(target)?;
        let path = dir.join(stream_file(&spec.name));
        let row = vec![0; spec.row_bytes()];
        let mut file = BufWriter::new(File::create(&path).map_err(DataError::io(target))?);
        file.write_all(&npy::header("|u1", &[0, row.len()])).map_err(DataError::io(target))?;
        let shown = target.join(stream_file(&spec.name));
        Ok(Self { name: spec.name.clone(), meta: spec.meta(), path, shown, file, row })
    }

    fn push(&mut self, index: usize, ids: &[u16]) -> Result<(), DataError> {
        let invalid =
            |item: String, expected: String, found: usize| Err(DataError::invalid(&self.shown, item, expected, found));
        let tokens = self.meta.grid * self.meta.grid;
        if ids.len() != tokens {
            return invalid(format!("tokens of image {index}"), tokens.to_string(), ids.len());
        }
        if let Some(at) = ids.iter().position(|&id| usize::from(id) >= self.meta.codebook_size) {
            let expected = format!("an id below {}", self.meta.codebook_size);
            return invalid(format!("image {index}, token {at}"), expected, ids[at].into());
        }
        pack_row(ids, self.meta.bits, &mut self.row)
            .map_err(|error| DataError::invalid(&self.shown, format_args!("image {index}"), "a row of ids", error))?;
        self.file.write_all(&self.row).map_err(DataError::io(&self.shown))
    }

    /// Puts the count into the header; returns the file's checksum.
    fn finish(mut self, count: usize, streams: &mut BTreeMap<String, StreamMeta>) -> Result<String, DataError> {
        let header = npy::header("|u1", &[count, self.row.len()]);
        self.file
            .seek(SeekFrom::Start(0))
            .and_then(|_| self.file.write_all(&header))
            .and_then(|()| self.file.flush())
            .map_err(DataError::io(&self.shown))?;
        streams.insert(self.name, self.meta);
        let file = OwnedBytes::read(&self.path).map_err(DataError::io(&self.shown))?;
        Ok(sha256_hex(&file))
    }
}
