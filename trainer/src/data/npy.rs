//! Numpy's `.npy` header, for the two kinds of array in a token dataset: `uint8` and `uint16`, C order.

use std::path::Path;

use super::DataError;

/// Length of the headers that we write: magic, version, length and a padded dictionary.
pub const HEADER_LEN: usize = 128;

const MAGIC: &[u8; 8] = b"\x93NUMPY\x01\x00"; // format 1.0
const LEN_END: usize = 10; // magic, then the dictionary's length as u16

/// The header of an array of `dtype` (`|u1`, `<u2`) and `shape`.
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

/// Checks that a whole `.npy` file holds `dtype` and `shape`, and returns its elements' bytes.
///
/// # Errors
/// [`DataError::Invalid`] names what differs.
pub fn payload<'a>(path: &Path, file: &'a [u8], dtype: &str, shape: &[usize]) -> Result<&'a [u8], DataError> {
    let invalid = |item: &str, expected: &dyn std::fmt::Debug, found: &dyn std::fmt::Debug| {
        DataError::invalid(path, item, format_args!("{expected:?}"), format_args!("{found:?}"))
    };
    if file.len() < LEN_END || &file[..8] != MAGIC {
        return Err(invalid("numpy header", &"format 1.0", &file.get(..8)));
    }
    let end = LEN_END + usize::from(u16::from_le_bytes([file[8], file[9]]));
    let dict = file.get(LEN_END..end).ok_or_else(|| invalid("length", &end, &file.len()))?;
    let dict = String::from_utf8_lossy(dict);
    let found_dtype = value(&dict, "'descr':").trim_matches(['\'', '"']);
    if found_dtype != dtype {
        return Err(invalid("dtype", &dtype, &found_dtype));
    }
    if value(&dict, "'fortran_order':") != "False" {
        return Err(invalid("fortran_order", &"False", &value(&dict, "'fortran_order':")));
    }
    let found_shape: Option<Vec<usize>> =
        value(&dict, "'shape':").split(',').map(str::trim).filter(|n| !n.is_empty()).map(|n| n.parse().ok()).collect();
    if found_shape.as_deref() != Some(shape) {
        return Err(invalid("shape", &shape, &found_shape));
    }
    let bytes = shape.iter().product::<usize>() * if dtype == "|u1" { 1 } else { 2 };
    if file.len() - end != bytes {
        return Err(invalid("length in bytes", &(end + bytes), &file.len()));
    }
    Ok(&file[end..])
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
