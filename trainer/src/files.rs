//! Folders that appear whole or not at all, that one process writes to, and that have room; and how a file begins.
//! Single files are written by [`sorcen_export::atomic`].

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// The first `limit` bytes of a file, or all of a shorter one: enough to tell what it is.
///
/// # Errors
/// Whatever the file system reports.
pub fn first_bytes(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut start)?;
    Ok(start)
}

/// Claims a folder for one writer: until what is returned is dropped, or the process ends in whatever way.
///
/// # Errors
/// [`io::ErrorKind::ResourceBusy`] where another has it; whatever else the file system reports.
pub fn claim(folder: &Path) -> io::Result<File> {
    let file = File::options().create(true).append(true).open(folder.join(".lock"))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            Err(io::Error::new(io::ErrorKind::ResourceBusy, "another run is writing to this folder"))
        }
        // A file system without locks: as before there were any.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}

/// That so many `bytes` can be written below `folder`, which exists: asked before long work, so that a full disk does
/// not show at its end. Where the system does not say what is free, anything goes.
///
/// # Errors
/// [`io::ErrorKind::StorageFull`] with both numbers.
pub fn expect_room(folder: &Path, bytes: u64) -> io::Result<()> {
    match free_bytes(folder) {
        Some(free) if free < bytes => {
            let gb = |bytes: u64| bytes as f64 / 1e9;
            let message = format!("expected {:.3} GB free on the disk, found {:.3} GB", gb(bytes), gb(free));
            Err(io::Error::new(io::ErrorKind::StorageFull, message))
        }
        _ => Ok(()),
    }
}

#[cfg(unix)]
fn free_bytes(folder: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    disk.f_bavail.checked_mul(disk.f_frsize)
}

#[cfg(not(unix))]
fn free_bytes(_folder: &Path) -> Option<u64> {
    None
}

/// A folder being filled: removed when dropped, unless [`finish`](Self::finish)ed.
#[derive(Debug)]
pub struct PartialDir {
    partial: PathBuf,
    target: PathBuf,
}

impl PartialDir {
    /// Makes a temporary folder beside `target`.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] where `target` exists and is not an empty folder.
    pub fn create(target: &Path) -> io::Result<Self> {
        if target.exists() && target.read_dir().map_or(true, |mut entries| entries.next().is_some()) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "expected a new or empty folder"));
        }
        let partial = partial_name(target)?;
        std::fs::create_dir(&partial)?;
        Ok(Self { partial, target: target.to_path_buf() })
    }

    /// Where to write meanwhile.
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// Gives the folder its name.
    ///
    /// # Errors
    /// Whatever the file system reports; the temporary folder is then removed.
    pub fn finish(self) -> io::Result<()> {
        std::fs::rename(&self.partial, &self.target)
    }
}

impl Drop for PartialDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.partial); // gone already after `finish`
    }
}

/// `folder/.name.partial-PID`, in a folder that exists.
fn partial_name(path: &Path) -> io::Result<PathBuf> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "expected a path that ends in a name"))?;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut partial = OsString::from(".");
    partial.push(name);
    partial.push(format!(".partial-{}", std::process::id()));
    Ok(path.with_file_name(partial))
}
