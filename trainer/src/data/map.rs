//! Read-only memory maps, behind the one function outside `runtime/src/kernels` that needs `unsafe`.

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;
use sha2::{Digest, Sha256};

use super::DataError;

/// Maps a file that nobody changes while it is mapped (our own outputs are replaced by renaming).
///
/// # Errors
/// [`DataError::Io`].
#[allow(unsafe_code)]
pub(super) fn map(path: &Path) -> Result<Mmap, DataError> {
    let file = File::open(path).map_err(DataError::io(path))?;
    // SAFETY: the map is read-only, and its bytes are plain `u8`, valid whatever they are. A file cut
    // short by another program while mapped ends this one with a bus error, as with any reader that
    // maps: dataset files are written once, renamed into place, and never changed.
    unsafe { Mmap::map(&file) }.map_err(DataError::io(path))
}

/// SHA-256 of the bytes, in hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
