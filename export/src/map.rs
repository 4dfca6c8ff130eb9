//! Files read through a memory map: large ones are in memory once, and only as far as they are used.

use std::path::Path;

use sorcen_runtime::MappedFile;

use crate::error::Error;

/// Maps a file.
///
/// # Errors
/// [`Error::Io`] or [`Error::Value`], naming the file.
pub fn open(path: &Path) -> Result<MappedFile, Error> {
    if path.is_dir() {
        return Err(Error::value(path.display(), "a file", "a folder"));
    }
    MappedFile::open(path).map_err(Error::io(path, "read"))
}
