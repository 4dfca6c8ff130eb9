//! Token datasets from and to the files of other programs: the official code's `.pt`, numpy's `.npz`.
//!
//! Both hold `labels` `[N]` and one array of ids a stream, `tokens_vqgan` `[N, T]`, perhaps others such as
//! `tokens_dino`. Rows are read and written one after another, so that size does not matter.

mod ints;
mod npz;
mod pt;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use sorcen_export::atomic;

pub use ints::{IntFile, IntKind, Ints};
pub use npz::{write_images, NpzFile};

use crate::data::{DataError, StreamSpec, TokenDataset, TokenDatasetWriter, VQGAN};
use crate::import::PthFile;

const LABELS: &str = "labels";
const CLASS_NAMES: &str = "class_names";

/// What the files do not say.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Codes of a stream, by its name. Else 1024 for `vqgan` (the official codebook), for others the power of two
    /// above the largest id.
    pub codes: BTreeMap<String, usize>,
    /// Names of the classes. Else those in the file, or the numbers.
    pub class_names: Option<Vec<String>>,
    /// Fingerprint of the tokenizer that made the `vqgan` ids.
    pub tokenizer: Option<String>,
}

/// Turns the file `from` (`.npz`, or else PyTorch's, read as data: nothing in it is executed) into a token dataset
/// `out`, which must be new or empty. Returns the number of images.
///
/// # Errors
/// [`DataError`] names the file, the array, what was expected and what was found; nothing is left behind then.
pub fn import(from: &Path, out: &Path, options: &ImportOptions) -> Result<usize, DataError> {
    let file: Box<dyn IntFile> = match from.extension().is_some_and(|extension| extension == "npz") {
        true => Box::new(NpzFile::open(from)?),
        false => Box::new(PthFile::open(from)?),
    };
    let file = file.as_ref();
    let count = match shape(file, LABELS)?[..] {
        [count] if count > 0 => count,
        ref other => {
            return Err(DataError::invalid(from, LABELS, "shape [N], N at least 1", format_args!("{other:?}")))
        }
    };
    let streams = streams(file)?;
    if !streams.iter().any(|(name, _)| name == VQGAN) {
        let found = file.names().join(", ");
        return Err(DataError::invalid(from, "arrays", "tokens_vqgan or tokens", found));
    }
    if let Some(name) = options.codes.keys().find(|&name| !streams.iter().any(|(stream, _)| stream == name)) {
        let found = streams.iter().map(|(stream, _)| stream.as_str()).collect::<Vec<_>>().join(", ");
        return Err(DataError::invalid(from, "streams", format_args!("{name}, as in --codes"), found));
    }
    let mut specs = Vec::new();
    for (name, array) in &streams {
        specs.push(spec(file, name, array, count, options)?);
    }
    let class_names = class_names(file, count, options)?;

    let mut writer = TokenDatasetWriter::create(out, class_names, &specs)?.with_room_for(count)?;
    let mut labels = file.open_ints(LABELS)?;
    let mut arrays = Vec::new();
    for ((_, array), spec) in streams.iter().zip(&specs) {
        arrays.push((file.open_ints(array)?, array, vec![0; spec.grid * spec.grid]));
    }
    for index in 0..count {
        let mut label = [0];
        labels.read(&mut label)?;
        let mut rows = Vec::new();
        for (ints, array, row) in &mut arrays {
            ints.read(row)?;
            let ids = row.iter().map(|&id| small(from, array, index, id)).collect::<Result<Vec<u16>, _>>()?;
            rows.push(ids);
        }
        let rows: Vec<&[u16]> = rows.iter().map(Vec::as_slice).collect();
        writer.push(small(from, LABELS, index, label[0])?, &rows)?;
    }
    writer.finish(None)?;
    Ok(count)
}

/// Writes all of a dataset to the file `out`, replacing it as a whole: PyTorch's `.pt` (`int64`), or `.npz`
/// (`uint16`, with class names).
///
/// # Errors
/// [`DataError`]; `out` is then as it was.
pub fn export(dataset: &TokenDataset, out: &Path) -> Result<(), DataError> {
    let write = match out.extension().and_then(|extension| extension.to_str()) {
        Some("pt" | "pth") => pt::write,
        Some("npz") => npz::write,
        other => {
            let found = other.map_or("none".to_string(), |other| format!(".{other}"));
            return Err(DataError::invalid(out, "extension", ".pt or .npz", found));
        }
    };
    Ok(atomic::write_with(out, |file| write(dataset, file))?)
}

/// Each row of a stream of `dataset`, as little-endian integers of `BYTES` bytes.
fn each_row<const BYTES: usize>(
    dataset: &TokenDataset,
    stream: &str,
    write: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let stream = dataset.stream(stream).ok_or(io::ErrorKind::NotFound)?;
    let mut ids = vec![0; stream.tokens()];
    let mut bytes = Vec::new();
    for index in 0..dataset.len() {
        stream.ids(index, &mut ids);
        bytes.clear();
        ids.iter().for_each(|&id| bytes.extend(&u64::from(id).to_le_bytes()[..BYTES]));
        write(&bytes)?;
    }
    Ok(())
}

fn shape(file: &dyn IntFile, array: &str) -> Result<Vec<usize>, DataError> {
    if let Some(shape) = file.shape(array) {
        return Ok(shape);
    }
    let missing =
        || DataError::invalid(file.path(), "arrays", format_args!("one named {array}"), file.names().join(", "));
    match file.names().iter().any(|name| name == array) {
        true => Err(file.open_ints(array).err().unwrap_or_else(missing)), // there, but not as it can be read
        false => Err(missing()),
    }
}

/// Names of streams and of their arrays: `tokens_NAME`, or `tokens` for the model's own.
fn streams(file: &dyn IntFile) -> Result<Vec<(String, String)>, DataError> {
    let stream = |array: String| {
        let name = if array == "tokens" { VQGAN } else { array.strip_prefix("tokens_")? };
        Some((name.to_string(), array.clone()))
    };
    let streams: BTreeMap<String, String> = file.names().into_iter().filter_map(stream).collect();
    Ok(streams.into_iter().collect())
}

fn spec(
    file: &dyn IntFile,
    name: &str,
    array: &str,
    count: usize,
    options: &ImportOptions,
) -> Result<StreamSpec, DataError> {
    let shape = shape(file, array)?;
    let tokens = match shape[..] {
        [n, tokens] if n == count => tokens,
        [n, height, width] if n == count && height == width => height * width,
        _ => 0,
    };
    let grid = tokens.isqrt();
    if tokens == 0 || grid * grid != tokens || grid > 64 {
        let expected = format!("[{count}, T] (as many rows as labels), T the square of 1 to 64");
        return Err(DataError::invalid(file.path(), array, expected, format_args!("{shape:?}")));
    }
    let codebook_size = match options.codes.get(name) {
        Some(&codes) => codes,
        None if name == VQGAN => 1024,
        None => {
            let mut ints = file.open_ints(array)?;
            let (mut row, mut largest) = (vec![0; tokens], 0);
            for index in 0..count {
                ints.read(&mut row)?;
                for &id in &row {
                    largest = largest.max(small(file.path(), array, index, id)?);
                }
            }
            (usize::from(largest) + 1).next_power_of_two()
        }
    };
    let tokenizer = options.tokenizer.clone().filter(|_| name == VQGAN);
    Ok(StreamSpec { name: name.into(), grid, codebook_size, tokenizer })
}

fn class_names(file: &dyn IntFile, count: usize, options: &ImportOptions) -> Result<Vec<String>, DataError> {
    if let Some(names) = options.class_names.clone().or(file.texts(CLASS_NAMES)?) {
        return Ok(names);
    }
    let (mut labels, mut label, mut largest) = (file.open_ints(LABELS)?, [0], 0);
    for index in 0..count {
        labels.read(&mut label)?;
        largest = largest.max(small(file.path(), LABELS, index, label[0])?);
    }
    let width = largest.to_string().len();
    Ok((0..=largest).map(|label| format!("{label:0width$}")).collect())
}

fn small(path: &Path, array: &str, index: usize, value: i64) -> Result<u16, DataError> {
    let item = format_args!("{array} of image {index}");
    u16::try_from(value).map_err(|_| DataError::invalid(path, item, "0 to 65535", value))
}

#[cfg(test)]
mod tests;
