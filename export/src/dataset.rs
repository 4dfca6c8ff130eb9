//! Token datasets: the folder that `sorcen tokenize` writes, as far as checks and calibrations read it.

use std::{collections::BTreeMap, fs, path::Path};

use ndarray::Array2;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use sorcen_runtime::{
    tokens::{row_bytes, unpack_row},
    ModelConfig,
};

use crate::{error::Error, map};

const META_FILE: &str = "meta.json";
const STREAM: &str = "vqgan";
const TOKENS_FILE: &str = "tokens_vqgan.npy";
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
}

/// Token maps `[images, T]` from a dataset folder, evenly over all of it; all, where there are fewer.
///
/// # Errors
/// [`Error::Io`], [`Error::Json`], [`Error::Value`] naming file and item, where something is missing or damaged or of
/// another grid or codebook than the model's.
pub fn read(dir: &Path, config: &ModelConfig, images: usize) -> Result<Array2<i64>, Error> {
    let path = dir.join(META_FILE);
    let json = fs::read(&path).map_err(Error::io(&path, "read"))?;
    let wrong = |item: &str, expected: &dyn ToString, found: &dyn ToString| {
        Error::value(format!("{}: {item}", path.display()), expected.to_string(), found.to_string())
    };
    let meta: Meta = serde_json::from_slice(&json).map_err(|reason| Error::Json { path: path.clone(), reason })?;
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

    let path = dir.join(TOKENS_FILE);
    let file = map::open(&path)?;
    let damaged = |expected: &dyn ToString, found: &dyn ToString| {
        Error::value(path.display(), expected.to_string(), found.to_string())
    };
    let sha256: String = Sha256::digest(&*file).iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = meta.sha256.get(TOKENS_FILE).map_or("an entry in meta.json", String::as_str);
    if sha256 != expected {
        return Err(damaged(&format!("SHA-256 {expected}"), &sha256));
    }
    let row = row_bytes(config.tokens(), stream.bits);
    let start = match file.get(..10) {
        Some(head) if head.starts_with(NPY) => 10 + usize::from(u16::from_le_bytes([head[8], head[9]])),
        _ => return Err(damaged(&"a numpy file, format 1.0", &"another")),
    };
    let Some(rows) = file.get(start..).filter(|rows| Some(rows.len()) == meta.count.checked_mul(row)) else {
        return Err(damaged(&format!("{} rows of {row} bytes", meta.count), &format!("{} bytes", file.len())));
    };
    let images = images.min(meta.count);
    let mut tokens = Array2::zeros((images, config.tokens()));
    let mut ids = vec![0; config.tokens()];
    for (i, mut tokens) in tokens.rows_mut().into_iter().enumerate() {
        unpack_row(&rows[i * meta.count / images * row..][..row], stream.bits, &mut ids)?;
        tokens.iter_mut().zip(&ids).for_each(|(token, &id)| *token = id.into());
    }
    Ok(tokens)
}
