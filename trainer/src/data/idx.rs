//! MNIST's own container ("idx"): unsigned bytes of any shape, often gzipped.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use super::DataError;

/// An array of unsigned bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Idx {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Elements in C order.
    pub bytes: Vec<u8>,
}

/// A file as it is, or unpacked where it begins like gzip (of any number of members).
pub(super) fn open_unpacked(path: &Path) -> std::io::Result<Box<dyn BufRead>> {
    let mut file = BufReader::new(std::fs::File::open(path)?);
    Ok(match file.fill_buf()? {
        [0x1F, 0x8B, ..] => Box::new(BufReader::new(MultiGzDecoder::new(file))),
        _ => Box::new(file),
    })
}

impl Idx {
    /// Reads `F.idxN-ubyte` or `F.idxN-ubyte.gz` (told apart by their first bytes).
    ///
    /// # Errors
    /// [`DataError`] where the file cannot be read or unpacked, is no idx file of bytes, or has
    /// another length than its header says.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        let mut file = open_unpacked(path).map_err(DataError::io(path))?;
        let start = up_to(&mut file, 16).map_err(DataError::io(path))?;
        let dims = match start[..] {
            [0, 0, 0x08, dims @ 1..=4, ..] => usize::from(dims),
            _ => {
                let expected =
                    "images: a folder, a tar file (.tar, .tar.gz) or an idx file of unsigned bytes (00 00 08, \
                                then 1 to 4 dimensions)";
                let bytes: Vec<_> = start.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
                let found = match &start[..] {
                    [] => "nothing".into(),
                    _ => bytes.join(" "),
                };
                return Err(DataError::invalid(path, "first bytes", expected, found));
            }
        };
        let mut file = start.as_slice().chain(file);
        let header = 4 + 4 * dims;
        let head = up_to(&mut file, header).map_err(DataError::io(path))?;
        let Some(sizes) = head.get(4..header) else {
            return Err(DataError::invalid(path, "header", format_args!("{header} bytes"), head.len()));
        };
        let shape: Vec<usize> =
            sizes.chunks_exact(4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]) as usize).collect();
        let elements = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        let bytes = up_to(&mut file, elements.unwrap_or(0)).map_err(DataError::io(path))?;
        let more = up_to(&mut file, 1).map_err(DataError::io(path))?.len();
        if elements != Some(bytes.len()) || more > 0 {
            let expected = format!("{header} + the product of {shape:?}");
            let found = format!("{}{}", if more > 0 { "more than " } else { "" }, header + bytes.len());
            return Err(DataError::invalid(path, "length in bytes", expected, found));
        }
        Ok(Self { shape, bytes })
    }
}

/// The next `limit` bytes, or as many as there are: what is not there takes no memory.
pub(super) fn up_to(file: &mut impl Read, limit: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}
