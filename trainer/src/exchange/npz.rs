//! Numpy's `.npz`: a zip of `.npy` files, stored or deflated.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufWriter, Read};
use std::path::{Path, PathBuf};

use sorcen_runtime::OwnedBytes;

use super::{each_row, IntFile, IntKind, Ints, CLASS_NAMES, LABELS};
use crate::data::{npy, DataError, TokenDataset};
use crate::strided::Strided;
use crate::zip::{self, Entries, Entry, ZipWriter};

/// An `.npz` file, read whole.
#[derive(Debug)]
pub struct NpzFile {
    path: PathBuf,
    file: OwnedBytes,
    entries: Entries,
}

impl NpzFile {
    /// Opens a file and reads its directory.
    ///
    /// # Errors
    /// [`DataError`] where it cannot be read or is no zip file.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let file = OwnedBytes::read(path).map_err(DataError::io(path))?;
        let entries = zip::entries(&file).map_err(|error| DataError::invalid(path, "contents", "a zip file", error))?;
        Ok(Self { path: path.to_path_buf(), file, entries })
    }

    /// Header of an array, and its bytes from there on.
    fn array(&self, name: &str) -> Result<(npy::Header, Box<dyn Read + '_>), DataError> {
        let mut bytes = self.entry(name)?.open(&self.file);
        let header = npy::Header::read(&self.path, &mut bytes)?;
        Ok((header, bytes))
    }

    fn entry(&self, name: &str) -> Result<&Entry, DataError> {
        let missing =
            || DataError::invalid(&self.path, "arrays", format_args!("one named {name}"), self.names().join(", "));
        self.entries.get(&format!("{name}.npy")).ok_or_else(missing)
    }

    /// That the entry of an array ends where its elements of `size` bytes do.
    fn check_length(&self, name: &str, header: &npy::Header, size: usize) -> Result<(), DataError> {
        let found = self.entry(name)?.size();
        let bytes = header.shape.iter().try_fold(size, |bytes, &n| bytes.checked_mul(n));
        match bytes.and_then(|bytes| bytes.checked_add(header.length)) {
            Some(expected) if expected == found => Ok(()),
            expected => {
                let expected = expected.map_or("another shape".to_string(), |bytes| format!("{bytes} bytes"));
                let expected = format!("as many bytes as its shape says ({expected})");
                Err(DataError::invalid(&self.path, name, expected, found))
            }
        }
    }
}

/// Kind of the integers that numpy calls `dtype`, and whether their first byte is the highest.
fn int_kind(dtype: &str) -> Option<(IntKind, bool)> {
    let big_endian = dtype.starts_with('>');
    let kind = match dtype.strip_prefix(['<', '>', '|', '='])? {
        "u1" | "b1" => IntKind::U8,
        "i1" => IntKind::I8,
        "u2" => IntKind::U16,
        "i2" => IntKind::I16,
        "u4" => IntKind::U32,
        "i4" => IntKind::I32,
        // Ids fit either way: one above the largest i64 turns negative and is refused.
        "i8" | "u8" => IntKind::I64,
        _ => return None,
    };
    Some((kind, big_endian))
}

impl IntFile for NpzFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> =
            self.entries.keys().filter_map(|name| name.strip_suffix(".npy")).map(String::from).collect();
        names.sort_unstable();
        names
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.array(name).ok().map(|(header, _)| header.shape)
    }

    fn open_ints(&self, name: &str) -> Result<Ints<'_>, DataError> {
        /// Of a compressed array in Fortran's order, which is unpacked as a whole.
        const LARGEST: usize = 1 << 30;
        let (header, mut bytes) = self.array(name)?;
        let Some((kind, big_endian)) = int_kind(&header.dtype) else {
            return Err(DataError::invalid(&self.path, name, "integers", header.dtype));
        };
        self.check_length(name, &header, kind.bytes())?;
        if !header.fortran_order {
            return Ok(Ints::new(&self.path, name, kind, big_endian, bytes));
        }
        let entry = self.entry(name)?;
        let storage = match entry.bytes(&self.file) {
            Ok(bytes) => Cow::Borrowed(&bytes[header.length..]),
            Err(damaged) if entry.stored().is_ok() => {
                return Err(DataError::invalid(&self.path, name, "an entry as it was written", damaged));
            }
            Err(_) if entry.size() > LARGEST => {
                let expected = "C order, or at most 1 GiB in Fortran's order where compressed";
                return Err(DataError::invalid(&self.path, name, expected, format_args!("{} bytes", entry.size())));
            }
            Err(_) => {
                let mut unpacked = Vec::new();
                let read = bytes.read_to_end(&mut unpacked);
                read.map_err(|error| DataError::invalid(&self.path, name, "an entry as it was written", error))?;
                Cow::Owned(unpacked)
            }
        };
        Ints::of_view(&self.path, name, kind, big_endian, storage, Strided::fortran(&header.shape))
    }

    fn texts(&self, name: &str) -> Result<Option<Vec<String>>, DataError> {
        const LONGEST: usize = 4096;
        if !self.names().iter().any(|found| found == name) {
            return Ok(None);
        }
        let invalid = |found: &dyn std::fmt::Display| {
            DataError::invalid(&self.path, name, format_args!("up to 65536 texts (dtype U1 to U{LONGEST})"), found)
        };
        let (header, mut bytes) = self.array(name)?;
        let big_endian = header.dtype.starts_with('>');
        let width = header.dtype.strip_prefix(['<', '>']).and_then(|dtype| dtype.strip_prefix('U'));
        let width = width.and_then(|width| width.parse().ok());
        let (Some(width @ 1..=LONGEST), &[count @ 0..=65_536]) = (width, &header.shape[..]) else {
            return Err(invalid(&format_args!("{} {:?}", header.dtype, header.shape)));
        };
        self.check_length(name, &header, 4 * width)?;
        let letter = |bytes: [u8; 4]| if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) };
        let mut texts = Vec::new();
        let mut padded = vec![0; 4 * width];
        for index in 0..count {
            bytes.read_exact(&mut padded).map_err(|error| invalid(&error))?;
            let letters = padded.as_chunks::<4>().0.iter().map(|bytes| letter(*bytes));
            let text: Option<String> = letters.take_while(|&letter| letter != 0).map(char::from_u32).collect();
            texts.push(text.ok_or_else(|| invalid(&format_args!("text {index}, which is no Unicode")))?);
        }
        Ok(Some(texts))
    }
}

/// Writes all of a dataset: ids and labels as `uint16`, names of the classes.
pub(super) fn write(dataset: &TokenDataset, file: &mut BufWriter<File>) -> io::Result<()> {
    let mut zip = ZipWriter::new(file);
    for (name, stream) in dataset.streams() {
        let shape = [dataset.len(), stream.tokens()];
        array(&mut zip, &format!("tokens_{name}"), "<u2", &shape, 2, |write| each_row::<2>(dataset, name, write))?;
    }
    let labels: Vec<u8> = dataset.labels().iter().flat_map(|label| label.to_le_bytes()).collect();
    array(&mut zip, LABELS, "<u2", &[dataset.len()], 2, |write| write(&labels))?;

    let names = dataset.class_names();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(1);
    let padded = |name: &String| name.chars().chain(std::iter::repeat('\0')).take(width).collect::<Vec<_>>();
    let letters: Vec<u8> = names.iter().flat_map(padded).flat_map(|letter| u32::from(letter).to_le_bytes()).collect();
    array(&mut zip, CLASS_NAMES, &format!("<U{width}"), &[names.len()], 4 * width, |write| write(&letters))?;
    zip.finish()
}

/// Writes `count` pictures `[side, side, 3]` as the evaluators of guided diffusion read them: one array `arr_0`,
/// `uint8` `[N, side, side, 3]`. `each` calls what it is given with one picture after another.
///
/// # Errors
/// Those of `each`, and the file system's.
pub fn write_images(
    file: &mut BufWriter<File>,
    count: usize,
    side: usize,
    each: impl FnOnce(&mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()>,
) -> io::Result<()> {
    let mut zip = ZipWriter::new(file);
    array(&mut zip, "arr_0", "|u1", &[count, side, side, 3], 1, each)?;
    zip.finish()
}

/// Adds the array `name`, whose elements take `bytes` bytes each.
fn array(
    zip: &mut ZipWriter<'_>,
    name: &str,
    dtype: &str,
    shape: &[usize],
    bytes: usize,
    each: impl FnOnce(&mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()>,
) -> io::Result<()> {
    let header = npy::header(dtype, shape);
    let size = header.len() + shape.iter().product::<usize>() * bytes;
    zip.entry(&format!("{name}.npy"), size, |write| {
        write(&header)?;
        each(write)
    })
}
