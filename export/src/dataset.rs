//! Token datasets: the folder that `sorcen tokenize` writes, as far as checks and calibrations read it.

use std::{collections::BTreeMap, fs, path::Path};

use ndarray::Array2;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use sorcen_runtime::{
    tokens::{row_bytes, unpack_row},
    ModelConfig,
};

use crate::{error::Error, file, found};

const META_FILE: &str = "meta.json";
const STREAM: &str = "vqgan";
const TOKENS_FILE: &str = "tokens_vqgan.npy";
const LABELS_FILE: &str = "labels.npy";
/// Magic and version 1.0 of a numpy file, before the length of its header.
const NPY: &[u8; 8] = b"\x93NUMPY\x01\x00";

#[derive(Deserialize)]
struct Meta {
    count: usize,
    streams: BTreeMap<String, Stream>,
    sha256: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Stream {
    grid: usize,
    bits: u32,
    codebook_size: usize,
    tokenizer: Option<String>,
}

/// Fingerprint of the tokenizer that made a dataset, where it is known.
///
/// # Errors
/// [`Error::Io`] or [`Error::Json`], naming the file.
pub fn tokenizer(dir: &Path) -> Result<Option<String>, Error> {
    Ok(read_meta(dir)?.streams.remove(STREAM).and_then(|stream| stream.tokenizer))
}

/// Token maps `[images, T]` from a dataset folder, evenly over all of it; all, where there are fewer.
///
/// # Errors
/// [`Error::Io`], [`Error::Json`], [`Error::Value`] naming file and item, where something is missing or damaged or of
/// another grid or codebook than the model's.
pub fn read(dir: &Path, config: &ModelConfig, images: usize) -> Result<Array2<i64>, Error> {
    let meta = read_meta(dir)?;
    let wrong = |item: &str, expected: &dyn ToString, found: &dyn ToString| {
        let path = dir.join(META_FILE);
        Error::value(format!("{}: {item}", path.display()), expected.to_string(), found.to_string())
    };
    let Some(stream) = meta.streams.get(STREAM) else {
        let names: Vec<_> = meta.streams.keys().cloned().collect();
        return Err(wrong("streams", &format!("one called `{STREAM}`"), &names.join(", ")));
    };
    if stream.grid != config.grid {
        return Err(wrong("grid", &format!("{}, the model's", config.grid), &stream.grid));
    }
    if stream.codebook_size > config.codebook_size || !(1..=16).contains(&stream.bits) {
        let found = format!("{} codes of {} bits", stream.codebook_size, stream.bits);
        return Err(wrong("codebook_size", &format!("at most {}, the model's", config.codebook_size), &found));
    }
    if meta.count == 0 {
        return Err(wrong("count", &"at least one image", &0));
    }
    let row = row_bytes(config.tokens(), stream.bits);
    let rows = read_rows(dir, TOKENS_FILE, &meta, row, images)?;
    let mut tokens = Array2::zeros((rows.len() / row, config.tokens()));
    let mut ids = vec![0; config.tokens()];
    for (packed, mut tokens) in rows.chunks_exact(row).zip(tokens.rows_mut()) {
        unpack_row(packed, stream.bits, &mut ids)?;
        tokens.iter_mut().zip(&ids).for_each(|(token, &id)| *token = id.into());
    }
    Ok(tokens)
}

/// Classes `[images]` of the images that [`read`] gives.
///
/// # Errors
/// As [`read`].
pub fn read_labels(dir: &Path, images: usize) -> Result<Vec<u16>, Error> {
    let rows = read_rows(dir, LABELS_FILE, &read_meta(dir)?, 2, images)?;
    Ok(rows.chunks_exact(2).map(|label| u16::from_le_bytes([label[0], label[1]])).collect())
}

fn read_meta(dir: &Path) -> Result<Meta, Error> {
    let path = dir.join(META_FILE);
    let json = match fs::read(&path) {
        Err(error) if found::is_nothing(error.kind()) => {
            return Err(Error::value(dir.display(), found::DATASET, found::at(dir)));
        }
        read => read.map_err(Error::io(&path, "read"))?,
    };
    serde_json::from_slice(&json).map_err(|reason| Error::Json { path, reason })
}

/// Rows of `row` bytes of a numpy file, `images` of them evenly over all; all, where there are fewer.
fn read_rows(dir: &Path, name: &str, meta: &Meta, row: usize, images: usize) -> Result<Vec<u8>, Error> {
    let path = dir.join(name);
    let file = file::read(&path)?;
    let damaged = |expected: &dyn ToString, found: &dyn ToString| {
        Error::value(path.display(), expected.to_string(), found.to_string())
    };
    let sha256: String = Sha256::digest(&*file).iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = meta.sha256.get(name).map_or("an entry in meta.json", String::as_str);
    if sha256 != expected {
        return Err(damaged(&format!("SHA-256 {expected}"), &sha256));
    }
    let start = match file.get(..10) {
        Some(head) if head.starts_with(NPY) => 10 + usize::from(u16::from_le_bytes([head[8], head[9]])),
        _ => return Err(damaged(&"a numpy file, format 1.0", &"another")),
    };
    let Some(rows) = file.get(start..).filter(|rows| Some(rows.len()) == meta.count.checked_mul(row)) else {
        return Err(damaged(&format!("{} rows of {row} bytes", meta.count), &format!("{} bytes", file.len())));
    };
    let images = images.min(meta.count);
    Ok((0..images).flat_map(|i| &rows[i * meta.count / images * row..][..row]).copied().collect())
}
