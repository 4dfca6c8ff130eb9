//! A file in memory without reading it: the one system call of the runtime, for hosts.

use std::{fs::File, io, ops::Deref, path::Path};

/// A read-only memory map of a whole file: a pack, paged in as it is used. [`OwnedBytes::read`](crate::OwnedBytes::read)
/// asks for no promise.
#[derive(Debug)]
pub struct MappedFile(memmap2::Mmap);

impl MappedFile {
    /// Maps a file.
    ///
    /// # Errors
    /// The operating system's, where the file cannot be opened or mapped.
    ///
    /// # Safety
    /// Nobody may change the file while it is mapped: a pack that was checked could become another, and a file that is
    /// cut short ends the program with a bus error. (Our own tools replace files by renaming, which leaves a map as it
    /// was.)
    pub unsafe fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the map is read-only, its bytes are plain `u8`, and the caller promises that they stay.
        unsafe { memmap2::Mmap::map(&file) }.map(Self)
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::MappedFile;

    #[test]
    fn maps_this_very_source() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels/map.rs");
        // SAFETY: nobody edits the source while its tests run; if somebody does, the test fails.
        let open = |path: &std::path::Path| unsafe { MappedFile::open(path) };
        assert_eq!(&*open(&path).unwrap(), std::fs::read(&path).unwrap());
        assert!(open(&path.join("none")).is_err());
    }
}
