//! Files appear whole or not at all.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write as _},
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
    remove_stale(path);
    let temporary = temporary(path)?;
    let result = write(&temporary).and_then(|()| Ok(fs::rename(&temporary, path).map_err(Error::io(path, "write"))?));
    if result.is_err() {
        let _ = fs::remove_file(&temporary); // it may never have been made
    }
    result
}

/// [`write()`] of what `write_to` writes piece by piece.
///
/// # Errors
/// [`Error::Io`] names the file that could not be written.
pub fn write_with(path: &Path, write_to: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<(), Error> {
    write(path, |temporary| {
        let whole = || {
            let mut file = BufWriter::new(File::create(temporary)?);
            write_to(&mut file)?;
            file.flush()
        };
        whole().map_err(Error::io(path, "write"))
    })
}

/// [`write()`] of bytes in memory.
///
/// # Errors
/// [`Error::Io`] names the file that could not be written.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    write_with(path, |file| file.write_all(bytes))
}

/// Removes what earlier writes of `path` left behind that were killed. Only Linux says simply which process is gone;
/// elsewhere it stays.
fn remove_stale(path: &Path) {
    let (Some(folder), Some(name), true) = (path.parent(), path.file_name(), Path::new("/proc/self").exists()) else {
        return;
    };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let start = format!(".{}.", name.to_string_lossy());
    let is_stale = |name: &str| {
        let process = name.strip_prefix(&start).and_then(|rest| rest.strip_suffix(".tmp"));
        process.is_some_and(|id| id.parse::<u32>().is_ok() && !Path::new("/proc").join(id).exists())
    };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if is_stale(&entry.file_name().to_string_lossy()) {
            let _ = fs::remove_file(entry.path()); // no reason to fail: it is only litter
        }
    }
}

fn temporary(path: &Path) -> Result<PathBuf, Error> {
    let name = path.file_name().ok_or_else(|| Error::value(path.display(), "the path of a file", "a folder"))?;
    Ok(path.with_file_name(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_what_was_there() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("new/a");
        write_bytes(&path, b"old").unwrap();
        let error = write_with(&path, |file| {
            file.write_all(b"half")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains("new/a: cannot write: "), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no litter");
        assert!(write_bytes(Path::new("/"), b"").is_err());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_a_killed_process_left_is_removed() {
        let temp = tempfile::tempdir().unwrap();
        let file = |name: &str| temp.path().join(name);
        let living = format!(".a.{}.tmp", std::process::id());
        let names = [".a.4294967295.tmp", ".b.4294967295.tmp", ".a.x.tmp", "a.4294967295.tmp", ".a.1.tmp"];
        names.iter().for_each(|name| fs::write(file(name), "half").unwrap());
        write_bytes(&file("a"), b"whole").unwrap();
        assert_eq!(fs::read(file("a")).unwrap(), b"whole");
        let left: Vec<&str> = names.into_iter().filter(|name| file(name).exists()).collect();
        assert_eq!(left, names[1..], "process 1 lives; the others are not of that form or file");
        assert!(!file(&living).exists());
    }
}
