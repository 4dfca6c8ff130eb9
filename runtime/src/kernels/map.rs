//! A file in memory without reading it: the one system call of the runtime, for hosts.

use std::{fs::File, io, ops::Deref, path::Path};

/// A read-only memory map of a whole file: a pack or a dataset, paged in as it is used.
///
/// The file must not be changed while it is mapped; our own tools replace files by renaming, which
/// leaves a map as it was. A file that another program cuts short ends this one with a bus error.
#[derive(Debug)]
pub struct MappedFile(memmap2::Mmap);

impl MappedFile {
    /// Maps a file.
    ///
    /// # Errors
    /// The operating system's, where the file cannot be opened or mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the map is read-only and its bytes are plain `u8`, valid whatever they are; that
        // nobody truncates the file is the contract above.
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
        assert_eq!(&*MappedFile::open(&path).unwrap(), std::fs::read(&path).unwrap());
        assert!(MappedFile::open(&path.join("none")).is_err());
    }
}
