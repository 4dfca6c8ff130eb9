//! The log of a run: JSON lines, MAE's field names.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::data::DataError;
use crate::files::write_atomically;

/// One line of `log.txt`: means over the steps since the line before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogLine {
    /// Steps done.
    pub step: u64,
    /// The epoch of the last of them, with its fraction.
    pub epoch: f64,
    /// What is differentiated.
    pub train_loss: f64,
    /// Reconstruction and uniformity (the official log's sum).
    pub train_rec_loss: f64,
    /// The uniformity term alone.
    pub train_uniformity_loss: f64,
    /// The contrast, with its weight.
    pub train_nn_loss: f64,
    /// The online classifier's cross-entropy.
    pub train_class_loss: f64,
    /// Learning rate of the last step.
    pub train_lr: f64,
    /// Images a second.
    pub img_per_s: f64,
}

/// `log.txt`, open for more lines.
#[derive(Debug)]
pub struct Log {
    file: File,
}

impl Log {
    /// Opens the log of a run that has done `step` steps: lines of later steps (of a run that was
    /// killed after its last checkpoint) are removed.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub fn open(path: &Path, step: u64) -> Result<Self, DataError> {
        let kept: String = fs::read_to_string(path)
            .unwrap_or_default()
            .lines()
            .filter(|line| serde_json::from_str::<LogLine>(line).is_ok_and(|line| line.step <= step))
            .flat_map(|line| [line, "\n"])
            .collect();
        write_atomically(path, kept.as_bytes()).map_err(DataError::io(path))?;
        let file = OpenOptions::new().append(true).open(path).map_err(DataError::io(path))?;
        Ok(Self { file })
    }

    /// Appends a line.
    ///
    /// # Errors
    /// Whatever the file system reports.
    pub fn write(&mut self, line: &LogLine) -> std::io::Result<()> {
        let json = serde_json::to_string(line)?;
        writeln!(self.file, "{json}")
    }
}
