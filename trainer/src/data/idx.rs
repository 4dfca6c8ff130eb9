//! MNIST's own container ("idx"): unsigned bytes of any shape, often gzipped.

use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;

use super::DataError;

/// An array of unsigned bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Idx {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Elements in C order.
    pub bytes: Vec<u8>,
}

impl Idx {
    /// Reads `F.idxN-ubyte` or `F.idxN-ubyte.gz` (told apart by their first bytes).
    ///
    /// # Errors
    /// [`DataError`] where the file cannot be read or unpacked, is no idx file of bytes, or has
    /// another length than its header says.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        let mut file = std::fs::read(path).map_err(DataError::io(path))?;
        if file.starts_with(&[0x1F, 0x8B]) {
            let mut unpacked = Vec::new();
            GzDecoder::new(file.as_slice()).read_to_end(&mut unpacked).map_err(DataError::io(path))?;
            file = unpacked;
        }
        Self::parse(path, file)
    }

    fn parse(path: &Path, mut file: Vec<u8>) -> Result<Self, DataError> {
        let dims = match file.get(..4) {
            Some(&[0, 0, 0x08, dims @ 1..=4]) => usize::from(dims),
            _ => {
                let expected =
                    "a folder, a tar file or an idx file of unsigned bytes (00 00 08, then 1 to 4 dimensions)";
                let start: Vec<_> = file.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
                return Err(DataError::invalid(path, "first bytes", expected, start.join(" ")));
            }
        };
        let header = 4 + 4 * dims;
        let Some(sizes) = file.get(4..header) else {
            return Err(DataError::invalid(path, "header", format_args!("{header} bytes"), file.len()));
        };
        let shape: Vec<usize> =
            sizes.chunks_exact(4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]) as usize).collect();
        let needed = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size)).and_then(|n| n.checked_add(header));
        if needed != Some(file.len()) {
            let expected = format!("{header} + the product of {shape:?}");
            return Err(DataError::invalid(path, "length in bytes", expected, file.len()));
        }
        file.drain(..header);
        Ok(Self { shape, bytes: file })
    }
}
