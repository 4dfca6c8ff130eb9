//! Numpy's `.npy` header.

use std::io::Read;
use std::path::Path;

use super::DataError;

/// Length of the headers that we write: magic, version, length and a padded dictionary.
pub const HEADER_LEN: usize = 128;

/// First bytes of the format.
pub const NUMPY: &[u8] = b"\x93NUMPY";
const MAGIC: &[u8; 8] = b"\x93NUMPY\x01\x00"; // format 1.0
const LEN_END: usize = 10; // magic, then the dictionary's length as u16

/// The header of an array of `dtype` (such as `|u1` or `<u2`) and `shape`, at most four sizes.
pub fn header(dtype: &str, shape: &[usize]) -> [u8; HEADER_LEN] {
    let shape: String = shape.iter().map(|n| format!("{n}, ")).collect();
    let dict = format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({}), }}", shape.trim_end());
    let mut header = [b' '; HEADER_LEN];
    header[..8].copy_from_slice(MAGIC);
    header[8..LEN_END].copy_from_slice(&((HEADER_LEN - LEN_END) as u16).to_le_bytes());
    header[LEN_END..LEN_END + dict.len()].copy_from_slice(dict.as_bytes());
    header[HEADER_LEN - 1] = b'\n';
    header
}

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Numpy's name of the element type, such as `<u2`.
    pub dtype: String,
    /// Whether the first index runs fastest.
    pub fortran_order: bool,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Bytes of the header, from the start of the file.
    pub length: usize,
}

impl Header {
    /// Reads a header of format 1.0, 2.0 or 3.0, and nothing after it.
    ///
    /// # Errors
    /// [`DataError::Invalid`] names what differs.
    pub fn read(path: &Path, file: &mut dyn Read) -> Result<Self, DataError> {
        let invalid = |item: &str, expected: &str, found: &dyn std::fmt::Display| {
            DataError::invalid(path, item, expected, format_args!("{found}"))
        };
        let mut start = [0; LEN_END];
        file.read_exact(&mut start).map_err(|error| invalid("numpy header", "format 1.0 to 3.0", &error))?;
        let low = u16::from_le_bytes([start[8], start[9]]);
        let (start, dict) = match start[..8].split_at(6) {
            (NUMPY, [1, 0]) => (LEN_END, usize::from(low)),
            // The length has two bytes more. No array's header comes near the bound.
            (NUMPY, [2 | 3, 0]) => {
                let mut high = [0; 2];
                file.read_exact(&mut high).map_err(|error| invalid("numpy header", "all of it", &error))?;
                match u16::from_le_bytes(high) {
                    0 => (LEN_END + 2, usize::from(low)),
                    _ => return Err(invalid("numpy header", "at most 65535 bytes", &"more")),
                }
            }
            (start, version) => {
                return Err(invalid("numpy header", "format 1.0 to 3.0", &format_args!("{start:?} {version:?}")))
            }
        };
        let length = start + dict;
        let mut dict = vec![0; dict];
        file.read_exact(&mut dict).map_err(|error| invalid("numpy header", "all of it", &error))?;
        let dict = String::from_utf8_lossy(&dict);
        let shape = value(&dict, "'shape':").split(',').map(str::trim).filter(|n| !n.is_empty());
        let Some(shape) = shape.map(|n| n.parse().ok()).collect() else {
            return Err(invalid("shape", "sizes", &value(&dict, "'shape':")));
        };
        let fortran_order = match value(&dict, "'fortran_order':") {
            "False" => false,
            "True" => true,
            other => return Err(invalid("fortran_order", "True or False", &other)),
        };
        let dtype = value(&dict, "'descr':").trim_matches(['\'', '"']).to_string();
        Ok(Self { dtype, fortran_order, shape, length })
    }
}

/// Checks that a whole `.npy` file holds `dtype` and `shape`, and returns its elements' bytes.
///
/// # Errors
/// [`DataError::Invalid`] names what differs.
pub fn payload<'a>(path: &Path, mut file: &'a [u8], dtype: &str, shape: &[usize]) -> Result<&'a [u8], DataError> {
    let invalid = |item: &str, expected: &dyn std::fmt::Debug, found: &dyn std::fmt::Debug| {
        DataError::invalid(path, item, format_args!("{expected:?}"), format_args!("{found:?}"))
    };
    let header = Header::read(path, &mut file)?;
    if header.dtype != dtype {
        return Err(invalid("dtype", &dtype, &header.dtype));
    }
    if header.fortran_order {
        return Err(invalid("fortran_order", &false, &true));
    }
    if header.shape != shape {
        return Err(invalid("shape", &shape, &header.shape));
    }
    let bytes = shape.iter().product::<usize>() * if dtype == "|u1" { 1 } else { 2 };
    if file.len() != bytes {
        return Err(invalid("length in bytes after the header", &bytes, &file.len()));
    }
    Ok(file)
}

/// The text after `key`, up to the comma that ends it (inside the brackets, for a tuple).
fn value<'a>(dict: &'a str, key: &str) -> &'a str {
    let Some(at) = dict.find(key) else { return "" };
    let rest = dict[at + key.len()..].trim_start();
    match rest.strip_prefix('(') {
        Some(tuple) => tuple.split(')').next().unwrap_or(""),
        None => rest.split([',', '}']).next().unwrap_or("").trim(),
    }
}
