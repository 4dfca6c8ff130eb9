//! The checkpoints of a run: `checkpoint/` is the newest, `checkpoint-STEP/` are older ones that are kept.
//!
//! The newest is replaced in four steps, and a process that dies after any of them, or within one, leaves a
//! whole checkpoint where [`find`] looks:
//!
//! 1. `checkpoint.partial/` is filled and flushed to the disk,
//! 2. `checkpoint/` becomes `checkpoint-STEP/`,
//! 3. `checkpoint.partial/` becomes `checkpoint/`,
//! 4. older ones that are not to be kept become `checkpoint.removed/`, one by one, and are deleted.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{read_state, CONFIG};
use crate::data::DataError;

/// Which checkpoints of a run stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Keep {
    /// The newest so many, at least 1.
    pub last: usize,
    /// Those of every so many steps; 0: none for this.
    pub every: u64,
}

impl Default for Keep {
    fn default() -> Self {
        Self { last: 1, every: 0 }
    }
}

/// The checkpoint to go on from, if there is one: `dir`, or the newest of those beside it where a process
/// died while `dir` was being replaced.
pub fn find(dir: &Path) -> Option<PathBuf> {
    if dir.join(CONFIG).exists() {
        return Some(dir.to_path_buf());
    }
    older(dir).ok()?.pop().map(|(_, path)| path)
}

/// Puts a checkpoint in the place `dir`: `write` fills a folder, which then gets that name.
///
/// # Errors
/// [`DataError`] of `write` or of the file system; the checkpoints that were there are then whole and found.
pub fn replace(dir: &Path, keep: &Keep, write: impl FnOnce(&Path) -> Result<(), DataError>) -> Result<(), DataError> {
    let partial = dir.with_extension("partial");
    remove(&partial)?;
    let written = fs::create_dir_all(&partial)
        .map_err(DataError::io(&partial))
        .and_then(|()| write(&partial))
        .and_then(|()| flush(&partial).map_err(DataError::io(&partial)));
    if written.is_err() {
        let _ = remove(&partial); // frees a full disk; the first error is the one to report
        return written;
    }
    if dir.exists() {
        let step = read_state(dir)?.step;
        let older = with_step(dir, step);
        remove(&older)?;
        fs::rename(dir, &older).map_err(DataError::io(dir))?;
    }
    fs::rename(&partial, dir).map_err(DataError::io(&partial))?;
    if let Some(parent) = dir.parent() {
        flush_folder(parent).map_err(DataError::io(parent))?;
    }
    prune(dir, keep)
}

/// `checkpoint-STEP` beside `checkpoint`.
fn with_step(dir: &Path, step: u64) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_os_string();
    name.push(format!("-{step}"));
    dir.with_file_name(name)
}

/// Older checkpoints beside `dir`, by step.
fn older(dir: &Path) -> Result<Vec<(u64, PathBuf)>, DataError> {
    let parent = dir.parent().unwrap_or(Path::new("."));
    let mut found = Vec::new();
    for entry in fs::read_dir(parent).map_err(DataError::io(parent))? {
        let path = entry.map_err(DataError::io(parent))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let step = name.rsplit_once('-').and_then(|(_, step)| step.parse().ok());
        if let Some(step) = step.filter(|&step| path == with_step(dir, step)) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

fn prune(dir: &Path, keep: &Keep) -> Result<(), DataError> {
    let removed = dir.with_extension("removed");
    remove(&removed)?; // of a process that died in here
    let older = older(dir)?;
    let surplus = (older.len() + 1).saturating_sub(keep.last.max(1));
    for (step, path) in &older[..surplus] {
        if keep.every == 0 || step % keep.every != 0 {
            // Renamed first: half a checkpoint is never found under a checkpoint's name.
            fs::rename(path, &removed).map_err(DataError::io(path))?;
            remove(&removed)?;
        }
    }
    Ok(())
}

fn remove(dir: &Path) -> Result<(), DataError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(DataError::io(dir)(error)),
        _ => Ok(()),
    }
}

/// Waits until everything in a folder is on the disk.
fn flush(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            flush(&path)?;
        } else {
            File::open(&path)?.sync_all()?;
        }
    }
    flush_folder(dir)
}

/// Waits until the names in a folder are on the disk, where folders can be opened.
fn flush_folder(dir: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{write_json, State, STATE_JSON, TRAINING_STATE};

    fn write(step: u64) -> impl FnOnce(&Path) -> Result<(), DataError> {
        move |dir| {
            let state = dir.join(TRAINING_STATE);
            fs::create_dir_all(&state).map_err(DataError::io(&state))?;
            write_json(&state.join(STATE_JSON), &State { step, updates: step, epochs: 0, seed: 0 })?;
            write_json(&dir.join(CONFIG), &step)
        }
    }

    fn names(parent: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(parent).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn found(dir: &Path) -> u64 {
        read_state(&find(dir).unwrap()).unwrap().step
    }

    #[test]
    fn the_last_ones_and_every_so_many_stay() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("checkpoint");
        assert_eq!(find(&dir), None);
        let keep = Keep { last: 2, every: 4 };
        for step in 1..=9 {
            replace(&dir, &keep, write(step)).unwrap();
            assert_eq!(found(&dir), step);
        }
        assert_eq!(names(parent.path()), ["checkpoint", "checkpoint-4", "checkpoint-8"]);
        replace(&dir, &keep, write(10)).unwrap();
        replace(&dir, &keep, write(11)).unwrap();
        assert_eq!(names(parent.path()), ["checkpoint", "checkpoint-10", "checkpoint-4", "checkpoint-8"]);
        replace(&dir, &Keep::default(), write(12)).unwrap();
        assert_eq!(names(parent.path()), ["checkpoint"]);
    }

    #[test]
    fn wherever_a_process_dies_a_whole_one_is_found() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("checkpoint");
        let beside = |name: &str| parent.path().join(name);
        let keep = Keep::default();
        replace(&dir, &keep, write(1)).unwrap();

        // Half written.
        fs::create_dir(beside("checkpoint.partial")).unwrap();
        assert_eq!(found(&dir), 1);
        // Between the renames; an older one was half deleted.
        fs::rename(&dir, beside("checkpoint-1")).unwrap();
        fs::create_dir(beside("checkpoint.removed")).unwrap();
        assert_eq!(found(&dir), 1);
        // The run goes on from there.
        replace(&dir, &keep, write(2)).unwrap();
        assert_eq!(found(&dir), 2);
        // After the second rename, before the older one is deleted.
        write(1)(&beside("checkpoint-1")).unwrap();
        assert_eq!(found(&dir), 2);
        replace(&dir, &keep, write(3)).unwrap();
        assert_eq!(found(&dir), 3);
        assert_eq!(names(parent.path()), ["checkpoint"]);
    }

    #[test]
    fn what_cannot_be_written_leaves_the_old_one() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("checkpoint");
        replace(&dir, &Keep::default(), write(1)).unwrap();
        let full = |path: &Path| Err(DataError::io(path)(io::ErrorKind::StorageFull.into()));
        let error = replace(&dir, &Keep::default(), full).unwrap_err().to_string();
        assert!(error.contains("checkpoint.partial"), "{error}");
        assert_eq!(names(parent.path()), ["checkpoint"]);
        assert_eq!(found(&dir), 1);
    }
}
