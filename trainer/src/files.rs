//! Folders that appear whole or not at all, and that one process writes to; and how a file begins.
//! Single files are written by [`sorcen_export::atomic`].

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use sorcen_export::atomic;
pub use sorcen_export::atomic::expect_room;
use tempfile::TempDir;

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

/// That a folder can be made at `target`: the path ends in a name, and nothing is there but perhaps an empty folder.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] for a path such as `.`; [`io::ErrorKind::AlreadyExists`].
pub fn expect_new(target: &Path) -> io::Result<()> {
    if target.file_name().is_none() {
        let message = "expected a path that ends in the name of a folder to make";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    // A link that leads nowhere is there too.
    if target.symlink_metadata().is_ok() && target.read_dir().map_or(true, |mut entries| entries.next().is_some()) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "expected a new or empty folder"));
    }
    Ok(())
}

/// A folder being filled: removed when dropped, unless [`finish`](Self::finish)ed.
///
/// It lies beside its place under a random name, locked by its writer, as files that are being written do.
#[derive(Debug)]
pub struct PartialDir {
    partial: TempDir,
    target: PathBuf,
    /// Holds the lock.
    _lock: Option<File>,
}

impl PartialDir {
    /// Makes a temporary folder beside `target`; what killed writers of it left behind is removed.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] where `target` exists and is not an empty folder.
    pub fn create(target: &Path) -> io::Result<Self> {
        expect_new(target)?;
        let name = target.file_name().unwrap_or_default();
        let parent = parent_of(target);
        std::fs::create_dir_all(parent)?;
        let mut start = OsString::from(".");
        start.push(name);
        start.push(".partial-");
        atomic::remove_stale(parent, &start.to_string_lossy(), "");
        loop {
            let mut builder = tempfile::Builder::new();
            builder.prefix(&start).rand_bytes(atomic::RANDOM);
            #[cfg(unix)]
            builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777)); // less the umask, as any folder
            let partial = builder.tempdir_in(parent)?;
            let lock = if cfg!(unix) { Some(File::open(partial.path())?) } else { None }; // elsewhere folders are no files
            let is_mine = match &lock {
                Some(lock) => atomic::is_mine(lock)?,
                None => true,
            };
            if is_mine {
                return Ok(Self { partial, target: target.to_path_buf(), _lock: lock });
            }
        }
    }

    /// Where to write meanwhile.
    pub fn path(&self) -> &Path {
        self.partial.path()
    }

    /// Gives the folder its name, once everything in it is on the disk.
    ///
    /// # Errors
    /// Whatever the file system reports; the temporary folder is then removed.
    pub fn finish(self) -> io::Result<()> {
        flush(self.path())?;
        std::fs::rename(self.path(), &self.target)?;
        let _ = self.partial.keep(); // there is nothing of that name any more
        atomic::sync_folder(parent_of(&self.target))
    }
}

/// Waits until everything in a folder is on the disk.
///
/// # Errors
/// Whatever the file system reports.
pub fn flush(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            flush(&path)?;
        } else {
            File::open(&path)?.sync_all()?;
        }
    }
    atomic::sync_folder(dir)
}

/// The folder that a path's name is in.
fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let temp = tempfile::tempdir().unwrap();
        let target = temp.path().join("new/folder");
        let entries = |folder: &Path| folder.read_dir().unwrap().count();
        let given_up = PartialDir::create(&target).unwrap();
        std::fs::write(given_up.path().join("a"), "half").unwrap();
        assert!(!target.exists());
        drop(given_up);
        assert_eq!(entries(&temp.path().join("new")), 0);

        let partial = PartialDir::create(&target).unwrap();
        std::fs::create_dir(partial.path().join("b")).unwrap();
        std::fs::write(partial.path().join("b/a"), "whole").unwrap();
        partial.finish().unwrap();
        assert_eq!(std::fs::read(target.join("b/a")).unwrap(), b"whole");
        assert_eq!(entries(&temp.path().join("new")), 1);
        assert_eq!(PartialDir::create(&target).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    /// What a killed writer left is removed, what a living one has is not: in whatever container it runs.
    #[test]
    #[cfg(unix)]
    fn writers_of_one_folder_do_not_meet() {
        let temp = tempfile::tempdir().unwrap();
        let target = temp.path().join("folder");
        let litter = temp.path().join(".folder.partial-0123456789aB");
        std::fs::create_dir_all(litter.join("half")).unwrap();
        let (one, other) = (PartialDir::create(&target).unwrap(), PartialDir::create(&target).unwrap());
        assert!(!litter.exists() && one.path().exists() && other.path().exists());
        assert_ne!(one.path(), other.path());
        let mode = |path: &Path| std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions());
        std::fs::create_dir(temp.path().join("plain")).unwrap();
        assert_eq!(mode(one.path()), mode(&temp.path().join("plain")));
    }
}
