//! Files appear whole or not at all.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::error::Error;

/// Writes `path` by writing a temporary file beside it and renaming it: a reader, or a crash, never
/// sees half a file, and a failed write leaves what was there before. Missing parent folders are made.
///
/// # Errors
/// [`Error::Io`] names the file that could not be made; or the error of `write`.
pub fn write<E: From<Error>>(path: &Path, write: impl FnOnce(&Path) -> Result<(), E>) -> Result<(), E> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(Error::io(parent, "create the folder"))?;
    }
    let temporary = temporary(path)?;
    let result = write(&temporary).and_then(|()| Ok(fs::rename(&temporary, path).map_err(Error::io(path, "write"))?));
    if result.is_err() {
        let _ = fs::remove_file(&temporary); // it may never have been made
    }
    result
}

/// [`write()`] of bytes in memory.
///
/// # Errors
/// [`Error::Io`] names the file that could not be written.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    write(path, |temporary| fs::write(temporary, bytes).map_err(Error::io(path, "write")))
}

fn temporary(path: &Path) -> Result<PathBuf, Error> {
    let name = path.file_name().ok_or_else(|| Error::value(path.display(), "the path of a file", "a folder"))?;
    Ok(path.with_file_name(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id())))
}
