//! Files read whole: what was checked once stays so, whatever other programs do to the file.

use std::path::Path;

use sorcen_runtime::OwnedBytes;

use crate::{error::Error, found};

/// Reads a file, to an address that is a multiple of 64.
///
/// # Errors
/// [`Error::Io`] or [`Error::Value`], naming the file.
pub fn read(path: &Path) -> Result<OwnedBytes, Error> {
    if path.is_dir() {
        return Err(Error::value(path.display(), "a file", found::at(path)));
    }
    OwnedBytes::read(path).map_err(Error::io(path, "read"))
}
