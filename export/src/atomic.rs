//! Files appear whole or not at all, and stay when the power fails: each is written under a name of its own, flushed to
//! the disk, renamed, and the folder flushed too.

use std::{
    ffi::OsString,
    fs::{self, File, TryLockError},
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use crate::error::Error;

/// Random letters and digits in the name of what is being written.
pub const RANDOM: usize = 12;
/// What the names of files being written end in.
const END: &str = ".tmp";

/// A file being written: it lies beside its place under a random name, locked by its writer, until
/// [`finish`](Self::finish); dropped before, it is removed.
///
/// Whatever is dead leaves no lock behind, so a later writer of the same path knows what it may remove, in whatever
/// process or container either of them runs.
#[derive(Debug)]
pub struct Pending {
    path: PathBuf,
    temporary: NamedTempFile,
    /// Folders that had to be made, from the innermost.
    made: Vec<PathBuf>,
}

impl Pending {
    /// Begins a file at `path`: found before any work is whether it can be written at all. Missing parent folders are
    /// made, and what killed writers of this path left behind is removed.
    ///
    /// # Errors
    /// [`Error::Io`] names the file or folder that could not be made, [`Error::Value`] a path that is none of a file.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let name = path.file_name().ok_or_else(|| Error::value(path.display(), "the path of a file", "a folder"))?;
        if path.is_dir() {
            return Err(Error::io(path, "write")(io::ErrorKind::IsADirectory.into()));
        }
        let folder = folder_of(path);
        let missing = folder.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists());
        let made = missing.map(Path::to_owned).collect();
        fs::create_dir_all(folder).map_err(Error::io(folder, "create the folder"))?;
        let mut start = OsString::from(".");
        start.push(name);
        start.push(".");
        remove_stale(folder, &start.to_string_lossy(), END);
        let temporary = loop {
            let mut builder = tempfile::Builder::new();
            builder.prefix(&start).suffix(END).rand_bytes(RANDOM);
            #[cfg(unix)]
            builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666)); // less the umask, as any file
            let temporary = builder.tempfile_in(folder).map_err(Error::io(path, "write"))?;
            if is_mine(temporary.as_file()).map_err(Error::io(path, "write"))? {
                break temporary;
            }
        };
        Ok(Self { path: path.to_owned(), temporary, made })
    }

    /// Where it will be.
    pub fn target(&self) -> &Path {
        &self.path
    }

    /// Where to write meanwhile.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// That so many `bytes` can be written, asked before long work.
    ///
    /// # Errors
    /// [`Error::Io`] of a full disk, a quota, a limit on files.
    pub fn expect_room(&self, bytes: u64) -> Result<(), Error> {
        expect_room_of(self.temporary.as_file(), folder_of(&self.path), bytes).map_err(Error::io(&self.path, "write"))
    }

    /// Writes all of `bytes` and gives the file its name.
    ///
    /// # Errors
    /// [`Error::Io`], naming the file.
    pub fn finish_with(mut self, bytes: &[u8]) -> Result<(), Error> {
        self.temporary.write_all(bytes).map_err(Error::io(&self.path, "write"))?;
        self.finish()
    }

    /// Gives the file its name once `write_to` has written it piece by piece.
    ///
    /// # Errors
    /// [`Error::Io`], naming the file.
    pub fn write_with(self, write_to: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<(), Error> {
        let whole = || {
            let mut file = BufWriter::new(File::create(self.path())?);
            write_to(&mut file)?;
            file.flush()
        };
        whole().map_err(Error::io(&self.path, "write"))?;
        self.finish()
    }

    /// Gives the file its name, in the place of what was there.
    ///
    /// # Errors
    /// [`Error::Io`], naming the file.
    pub fn finish(self) -> Result<(), Error> {
        let Self { path, temporary, made } = self;
        let whole = || {
            File::open(temporary.path())?.sync_all()?; // by name: whatever `write` did with it
            temporary.persist(&path).map_err(|error| error.error)?;
            sync_folder(folder_of(&path))?;
            made.iter().try_for_each(|folder| sync_folder(folder_of(folder)))
        };
        whole().map_err(Error::io(&path, "write"))
    }
}

/// Writes `path` by writing a temporary file beside it and renaming it: a reader, or a crash, never
/// sees half a file, and a failed write leaves what was there before. Missing parent folders are made.
///
/// # Errors
/// [`Error::Io`] names the file that could not be made; or the error of `write`.
pub fn write<E: From<Error>>(path: &Path, write: impl FnOnce(&Path) -> Result<(), E>) -> Result<(), E> {
    let pending = Pending::create(path)?;
    write(pending.path())?;
    Ok(pending.finish()?)
}

/// [`write()`] of what `write_to` writes piece by piece.
///
/// # Errors
/// [`Error::Io`] names the file that could not be written.
pub fn write_with(path: &Path, write_to: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<(), Error> {
    Pending::create(path)?.write_with(write_to)
}

/// [`write()`] of bytes in memory.
///
/// # Errors
/// [`Error::Io`] names the file that could not be written.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    Pending::create(path)?.finish_with(bytes)
}

/// Locks what was just made; not, where another has taken it for a dead writer's in the moment between.
///
/// # Errors
/// Whatever the file system reports.
pub fn is_mine(file: &File) -> io::Result<bool> {
    if !cfg!(unix) {
        return Ok(true); // where a lock keeps its owner out, too, and nothing is taken for a dead writer's
    }
    match file.try_lock() {
        Ok(()) => is_there(file),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(_)) => Ok(true), // a file system without locks: there nobody removes anything
    }
}

#[cfg(unix)]
fn is_there(file: &File) -> io::Result<bool> {
    Ok(std::os::unix::fs::MetadataExt::nlink(&file.metadata()?) > 0)
}

#[cfg(not(unix))]
fn is_there(_file: &File) -> io::Result<bool> {
    Ok(true)
}

/// Removes what writers left behind in `folder` that were killed: files and folders called `start`, [`RANDOM`] letters
/// or digits, `end`, whose lock nobody holds. Where the file system has no locks, nothing.
pub fn remove_stale(folder: &Path, start: &str, end: &str) {
    if !cfg!(unix) {
        return;
    }
    let is_one = |name: &str| {
        let random = name.strip_prefix(start).and_then(|rest| rest.strip_suffix(end));
        random.is_some_and(|random| random.len() == RANDOM && random.bytes().all(|b| b.is_ascii_alphanumeric()))
    };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if !is_one(&entry.file_name().to_string_lossy()) {
            continue;
        }
        // No reason to fail: it is only litter.
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let Ok(file) = File::options().read(true).write(!is_dir).open(&path) else { continue };
        if file.try_lock().is_ok() {
            let _ = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}

/// Waits until the names in a folder are on the disk, where folders can be opened.
///
/// # Errors
/// Whatever the file system reports.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // A folder that may be written and not read, or a file system that knows no such thing.
        Err(error) if [io::ErrorKind::PermissionDenied, io::ErrorKind::InvalidInput].contains(&error.kind()) => Ok(()),
        synced => synced,
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

/// [`expect_room`] for one file, empty so far. Linux is asked to make the room, which quotas and limits have a say in.
#[cfg(target_os = "linux")]
fn expect_room_of(file: &File, folder: &Path, bytes: u64) -> io::Result<()> {
    let asked = rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes.max(1));
    file.set_len(0)?;
    match asked.map_err(io::Error::from) {
        Err(error) => match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Err(io::Error::new(error.kind(), format!("expected room for {bytes} bytes, found: {error}")))
            }
            _ => expect_room(folder, bytes), // this file system cannot say
        },
        Ok(()) => Ok(()),
    }
}

#[cfg(not(target_os = "linux"))]
fn expect_room_of(_file: &File, folder: &Path, bytes: u64) -> io::Result<()> {
    expect_room(folder, bytes)
}

/// The folder that a path's name is in.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_what_was_there() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("new/folders/a");
        write_bytes(&path, b"old").unwrap();
        let error = write_with(&path, |file| {
            file.write_all(b"half")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains("folders/a: cannot write: "), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no litter");
        assert!(write_bytes(Path::new("/"), b"").is_err());
        let error = Pending::create(path.parent().unwrap()).unwrap_err().to_string();
        assert!(error.contains("folders: cannot write: is a directory"), "{error}");
    }

    /// Two writers of one path, in containers where both are process 1: neither knows of the other, each has a file of
    /// its own, and none removes the other's.
    #[test]
    #[cfg(unix)]
    fn writers_of_one_path_do_not_meet() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a");
        let (one, other) = (Pending::create(&path).unwrap(), Pending::create(&path).unwrap());
        assert_ne!(one.path(), other.path());
        fs::write(one.path(), "one").unwrap();
        fs::write(other.path(), "other").unwrap();
        one.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one");
        other.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"other");
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
    }

    #[test]
    #[cfg(unix)]
    fn what_a_killed_writer_left_is_removed() {
        let temp = tempfile::tempdir().unwrap();
        let file = |name: &str| temp.path().join(name);
        let living = Pending::create(&file("a")).unwrap();
        let names =
            [".a.0123456789aB.tmp", ".b.0123456789aB.tmp", ".a.1.tmp", "a.0123456789aB.tmp", ".a.b.123456789a.tmp"];
        names.iter().for_each(|name| fs::write(file(name), "half").unwrap());
        write_bytes(&file("a"), b"whole").unwrap();
        assert_eq!(fs::read(file("a")).unwrap(), b"whole");
        let left: Vec<&str> = names.into_iter().filter(|name| file(name).exists()).collect();
        assert_eq!(left, names[1..], "the others are not of that form or file");
        assert!(living.path().exists());
        drop(living);
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), names.len(), "what is given up is removed");
    }

    /// Taken for a dead writer's between making and locking: it is not kept.
    #[test]
    #[cfg(unix)]
    fn what_was_taken_away_is_not_mine() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a");
        let file = File::create(&path).unwrap();
        let cleaner = File::open(&path).unwrap();
        cleaner.try_lock().unwrap();
        assert!(!is_mine(&file).unwrap());
        fs::remove_file(&path).unwrap();
        drop(cleaner);
        assert!(!is_mine(&file).unwrap());
    }

    #[test]
    #[cfg(unix)]
    fn files_are_as_readable_as_any() {
        use std::os::unix::fs::PermissionsExt as _;
        let temp = tempfile::tempdir().unwrap();
        let mode = |name: &str| fs::metadata(temp.path().join(name)).unwrap().permissions().mode();
        File::create(temp.path().join("plain")).unwrap();
        write_bytes(&temp.path().join("atomic"), b"").unwrap();
        assert_eq!(mode("atomic"), mode("plain"));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn room_is_asked_for() {
        let temp = tempfile::tempdir().unwrap();
        let pending = Pending::create(&temp.path().join("a")).unwrap();
        pending.expect_room(1 << 16).unwrap();
        let error = pending.expect_room(1 << 62).unwrap_err().to_string();
        assert!(error.contains("a: cannot write: expected "), "{error}");
        pending.finish_with(b"small").unwrap();
        assert_eq!(fs::read(temp.path().join("a")).unwrap(), b"small");
    }
}
