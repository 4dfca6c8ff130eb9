//! [`OwnedBytes`]: bytes in memory of our own, aligned for wide loads.

use alloc::vec::Vec;
use core::{fmt, ops::Deref};

use crate::{
    error::Error,
    kernels::bytes::{of_lines, of_lines_mut, Line},
    pack::Sink,
};

/// Bytes at an address that is a multiple of 64, as packs like it: a file read whole, or what a
/// [`Writer`](crate::pack::Writer) writes.
///
/// Nobody else can change them: what was checked stays so. [`MappedFile`](crate::MappedFile) takes less memory and
/// cannot promise that.
#[derive(Clone, Default)]
pub struct OwnedBytes {
    lines: Vec<Line>,
    len: usize,
}

impl OwnedBytes {
    /// Reads a file whole.
    ///
    /// # Errors
    /// The operating system's; [`InvalidInput`](std::io::ErrorKind::InvalidInput) for what is no plain file (a folder, a
    /// pipe, a device), [`UnexpectedEof`](std::io::ErrorKind::UnexpectedEof) where it became shorter meanwhile,
    /// [`OutOfMemory`](std::io::ErrorKind::OutOfMemory).
    #[cfg(feature = "std")]
    pub fn read(path: &std::path::Path) -> std::io::Result<Self> {
        use std::io::{Error, ErrorKind, Read};
        // Before it is opened: that would wait for a pipe's other end.
        let metadata = std::fs::metadata(path)?;
        if !metadata.is_file() {
            return Err(Error::new(ErrorKind::InvalidInput, "expected a plain file, found a folder, pipe or device"));
        }
        let too_large = || Error::new(ErrorKind::OutOfMemory, "expected a file that fits into memory");
        let len = usize::try_from(metadata.len()).map_err(|_| too_large())?;
        let mut bytes = Self::default();
        bytes.lines.try_reserve_exact(len.div_ceil(size_of::<Line>())).map_err(|_| too_large())?;
        bytes.grow(len);
        std::fs::File::open(path)?.read_exact(bytes.as_mut())?;
        Ok(bytes)
    }

    /// Makes it at least so long; new bytes are 0.
    fn grow(&mut self, len: usize) {
        self.len = self.len.max(len);
        self.lines.resize(self.len.div_ceil(size_of::<Line>()), Line::default());
    }
}

impl Deref for OwnedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &of_lines(&self.lines)[..self.len]
    }
}

impl AsMut<[u8]> for OwnedBytes {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut of_lines_mut(&mut self.lines)[..self.len]
    }
}

impl From<&[u8]> for OwnedBytes {
    fn from(bytes: &[u8]) -> Self {
        let mut owned = Self::default();
        owned.grow(bytes.len());
        owned.as_mut().copy_from_slice(bytes);
        owned
    }
}

impl fmt::Debug for OwnedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OwnedBytes({} bytes)", self.len)
    }
}

impl Sink for OwnedBytes {
    type Error = Error;

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let end = usize::try_from(offset).ok().and_then(|start| start.checked_add(bytes.len()));
        let needed = offset.saturating_add(bytes.len() as u64);
        let end = end.ok_or(Error::Truncated { item: "memory", needed, found: usize::MAX as u64 })?;
        self.grow(end);
        self.as_mut()[end - bytes.len()..end].copy_from_slice(bytes);
        Ok(())
    }
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;
    use std::{fs, io::ErrorKind, path::Path};

    #[test]
    fn a_file_is_read_whole_and_stays_as_it_was() {
        let path = std::env::temp_dir().join(std::format!("sorcen-owned-{}", std::process::id()));
        for len in [0, 1, 63, 64, 65, 1000] {
            let written: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
            fs::write(&path, &written).unwrap();
            let bytes = OwnedBytes::read(&path).unwrap();
            assert!(bytes.is_empty() || bytes.as_ptr().align_offset(64) == 0);
            // What another program does to the file afterwards.
            fs::write(&path, b"else").unwrap();
            assert_eq!(*bytes, written);
            assert_eq!(*OwnedBytes::from(&written[..]), written);
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(OwnedBytes::read(&path).unwrap_err().kind(), ErrorKind::NotFound);
        let folder = OwnedBytes::read(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap_err();
        assert_eq!(folder.kind(), ErrorKind::InvalidInput);
    }
}
