//! The checkpoints of a run: `checkpoint/` is the newest, `checkpoint-STEP/` are older ones that are kept.
//!
//! The newest is replaced in four steps, and a process that dies after any of them, or within one, leaves a
//! whole checkpoint where [`find`] looks:
//!
//! 1. `checkpoint.partial/` is filled and flushed to the disk,
//! 2. `checkpoint/` becomes `checkpoint-STEP/`,
//! 3. `checkpoint.partial/` becomes `checkpoint/`,
//! 4. older ones that are not to be kept become `checkpoint.removed/`, one by one, and are deleted.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sorcen_export::atomic::sync_folder;

use super::{read_state, CONFIG};
use crate::data::DataError;
use crate::files::flush;

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

impl Keep {
    /// Whether one stays that is not among the newest.
    fn stays(&self, step: u64) -> bool {
        self.every != 0 && step.is_multiple_of(self.every)
    }

    /// How many checkpoints more than those `there` (their steps, rising) the disk holds at most while a run does
    /// `steps` and saves every `save_every` of them, and after the last: those that stay, and the one being written.
    fn more(&self, there: &[u64], steps: Range<u64>, save_every: u64) -> u64 {
        if steps.is_empty() {
            return 0;
        }
        // What is there when the last one is written: more than at any time before, once the first has removed what
        // need not stay of the old ones.
        let (saved, last) = (steps.start / save_every, (steps.end - 1) / save_every);
        let newest = (last - saved).min(self.last.max(1) as u64);
        let old_newest = (self.last.max(1) as u64 - newest).min(there.len() as u64);
        let (older, _) = there.split_at(there.len() - old_newest as usize);
        let old = old_newest + older.iter().filter(|&&step| self.stays(step)).count() as u64;
        let new = newest + multiples_of_both(save_every, self.every, saved * save_every..(last - newest) * save_every);
        (old + new + 1).saturating_sub(there.len() as u64).max(1)
    }
}

/// How many numbers in `range`, its end included and its start not, are multiples of `a` and of `b`; of 0, none.
fn multiples_of_both(a: u64, b: u64, range: Range<u64>) -> u64 {
    let (mut divisor, mut rest) = (a, b);
    while rest != 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    match (a / divisor).checked_mul(b) {
        None | Some(0) => 0,
        Some(least) => range.end / least - range.start / least,
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

/// How many checkpoints more than now will be beside `dir` at most, `dir` and the one being written included, while a
/// run does `steps`. What a killed process left half written is removed first.
///
/// # Errors
/// [`DataError`] of the file system, or of the state of `dir`.
pub fn still_to_come(dir: &Path, keep: &Keep, steps: Range<u64>, save_every: u64) -> Result<u64, DataError> {
    remove(&dir.with_extension("partial"))?;
    remove(&dir.with_extension("removed"))?;
    let mut there: Vec<u64> = older(dir)?.into_iter().map(|(step, _)| step).collect();
    if dir.exists() {
        there.push(read_state(dir)?.step);
    }
    Ok(keep.more(&there, steps, save_every))
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
        sync_folder(parent).map_err(DataError::io(parent))?;
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
        if !keep.stays(*step) {
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
    fn how_many_will_lie_there_is_known_before() {
        // As in `replace`, without a disk: each is written before old ones are removed.
        let save = |there: &mut Vec<u64>, keep: &Keep, step: u64| {
            there.push(step);
            let written = there.len();
            let surplus = written.saturating_sub(keep.last.max(1));
            let mut at = 0..;
            there.retain(|&step| at.next() >= Some(surplus) || keep.stays(step));
            written
        };
        let keeps = [(1, 0), (0, 0), (3, 0), (99, 0), (1, 1), (2, 3), (1, 4), (2, u64::MAX)];
        let keeps = keeps.map(|(last, every)| Keep { last, every });
        for (from, to) in (0..13).flat_map(|from| (from..26).map(move |to| (from, to))) {
            for (save_every, begun, keep) in [1, 2, 3, 20].into_iter().flat_map(|save_every| {
                keeps.into_iter().flat_map(move |begun| keeps.into_iter().map(move |keep| (save_every, begun, keep)))
            }) {
                let is_saved = |step: &u64| step.is_multiple_of(save_every);
                let mut there = Vec::new();
                (1..=from).filter(|step| is_saved(step) || *step == from).for_each(|step| {
                    save(&mut there, &begun, step);
                });
                let (now, counted) = (there.len(), keep.more(&there, from..to, save_every));
                let saves = (from + 1..=to).filter(|step| is_saved(step) || *step == to);
                let most = saves.map(|step| save(&mut there, &keep, step)).max().unwrap_or(now);
                let case = format!("{from}..{to}, saved every {save_every}: {begun:?}, then {keep:?}");
                assert_eq!(counted, (most - now) as u64, "{case}");
            }
        }
        // Longer than anyone counts: the newest three, of the others every fifth, and the last on its way.
        let keep = Keep { last: 3, every: 10 };
        assert_eq!(keep.more(&[], 0..u64::MAX, 4), 3 + (u64::MAX / 4 - 3) / 5 + 1);
    }

    #[test]
    fn what_is_there_is_not_still_to_come() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("checkpoint");
        let keep = Keep { last: 3, every: 0 };
        let more = |from: u64| still_to_come(&dir, &keep, from..10, 1).unwrap();
        assert_eq!(more(0), 4);
        replace(&dir, &keep, write(1)).unwrap();
        replace(&dir, &keep, write(2)).unwrap();
        fs::create_dir(parent.path().join("checkpoint.partial")).unwrap();
        assert_eq!(more(2), 2);
        assert_eq!(names(parent.path()), ["checkpoint", "checkpoint-1"], "half a one is room to be had");
        replace(&dir, &keep, write(10)).unwrap();
        assert_eq!(more(10), 0);
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
