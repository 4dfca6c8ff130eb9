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

use crate::data::{npy, DataError, StreamSpec, TokenDataset, TokenDatasetWriter, VQGAN};
use crate::files::first_bytes;
use crate::import::{self, PthFile};
use crate::zip;

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
    /// The array of the `vqgan` ids. Else `tokens_vqgan` or `tokens`, of which a file has one.
    pub tokens: Option<String>,
}

/// What was imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Number of images.
    pub images: usize,
    /// Arrays of the file that no stream was made of.
    pub left_out: Vec<String>,
}

/// Turns the file `from` (numpy's `.npz`, or PyTorch's, read as data: nothing in it is executed; its contents tell
/// which) into a token dataset `out`, which must be new or empty.
///
/// # Errors
/// [`DataError`] names the file, the array, what was expected and what was found; nothing is left behind then.
pub fn import(from: &Path, out: &Path, options: &ImportOptions) -> Result<Imported, DataError> {
    let file = open(from)?;
    let file = file.as_ref();
    let count = match shape(file, LABELS)?[..] {
        [count] if count > 0 => count,
        ref other => {
            return Err(DataError::invalid(from, LABELS, "shape [N], N at least 1", format_args!("{other:?}")))
        }
    };
    let streams = streams(file, options.tokens.as_deref())?;
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
    let mut left_out = file.names();
    left_out.retain(|name| {
        ![LABELS, CLASS_NAMES].contains(&name.as_str()) && !streams.iter().any(|(_, array)| array == name)
    });
    Ok(Imported { images: count, left_out })
}

/// Opens the file `path` of arrays, by what is in it.
fn open(path: &Path) -> Result<Box<dyn IntFile>, DataError> {
    let start = first_bytes(path, 64).map_err(DataError::io(path))?;
    let expected = "a PyTorch checkpoint (.pt) or a zip file of arrays (.npz)";
    let invalid = |found: String| DataError::invalid(path, "contents", expected, found);
    if start.starts_with(npy::NUMPY) {
        return Err(invalid("one array (.npy); `np.savez` writes several, with their names".into()));
    }
    if !PthFile::is_one(&start) {
        return Err(invalid(import::kind(&start)));
    }
    let npz = NpzFile::open(path);
    match npz {
        // Both are zips; a file that is neither is PyTorch's to judge.
        Ok(npz) if !npz.names().is_empty() => Ok(Box::new(npz)),
        Err(error) if start.starts_with(zip::MAGIC) => Err(error),
        _ => Ok(Box::new(PthFile::open(path)?)),
    }
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

/// Names of streams and of their arrays: `tokens_NAME`; for the model's own `given`, or `tokens_vqgan` or `tokens`.
fn streams(file: &dyn IntFile, given: Option<&str>) -> Result<Vec<(String, String)>, DataError> {
    let names = file.names();
    let own = format!("tokens_{VQGAN}");
    let usual: Vec<&str> = [own.as_str(), "tokens"].into_iter().filter(|own| names.iter().any(|n| n == own)).collect();
    let array = match (given, &usual[..]) {
        (Some(given), _) if names.iter().any(|name| name == given) => given,
        (None, [only]) => only,
        (None, [_, _]) => {
            let expected = format!("one of {own} and tokens, or --tokens to say which");
            return Err(DataError::invalid(file.path(), "arrays", expected, "both"));
        }
        (given, _) => {
            let expected = given.map_or_else(|| format!("{own} or tokens"), |given| format!("{given} (--tokens)"));
            return Err(DataError::invalid(file.path(), "arrays", expected, names.join(", ")));
        }
    };
    let mut streams = BTreeMap::from([(VQGAN.to_string(), array.to_string())]);
    for name in names.iter().filter(|&name| name != array && *name != own) {
        if let Some(stream) = name.strip_prefix("tokens_") {
            streams.insert(stream.to_string(), name.clone());
        }
    }
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
        let square = "the square of 1 to 64 (a square grid, which the tokens of 1-D tokenizers have not)";
        let expected = format!("[{count}, T] (as many rows as labels), T {square}");
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
