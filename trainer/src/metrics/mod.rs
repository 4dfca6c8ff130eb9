//! The log of a run: JSON lines, MAE's field names; TensorBoard shows the same numbers.

pub mod tensorboard;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sorcen_export::atomic;

use crate::data::DataError;

/// One line of `log.txt`: means over the steps since the line before.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogLine {
    /// Steps done.
    pub step: u64,
    /// The epoch of the last of them, with its fraction.
    pub epoch: f64,
    /// What is differentiated.
    pub train_loss: f64,
    /// Reconstruction and uniformity (the official log's sum); of MAGE the reconstruction, which is all that it has.
    pub train_rec_loss: f64,
    /// The uniformity term alone. Absent for MAGE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_uniformity_loss: Option<f64>,
    /// The contrast, with its weight. Absent for MAGE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_nn_loss: Option<f64>,
    /// The online classifier's cross-entropy; 0 where the dataset has no classes. Absent for MAGE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_class_loss: Option<f64>,
    /// Learning rate of the last step.
    pub train_lr: f64,
    /// Global norm of the gradients, before clipping.
    pub train_grad_norm: f64,
    /// Momentum of the teacher in the last step. Absent for MAGE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_momentum: Option<f64>,
    /// Share of `val` images that their nearest neighbours in `train` classify rightly, where it was asked for
    /// and an epoch ends here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub knn_accuracy: Option<f64>,
    /// Images a second.
    pub img_per_s: f64,
    /// When the line was written, in seconds since 1970.
    pub time_s: f64,
}

impl LogLine {
    /// The parts that [`train_loss`](Self::train_loss) is the sum of, each with its weight, but for those that the run does
    /// not have, which are zero.
    pub fn parts(&self) -> Vec<(&'static str, f64)> {
        let uniformity = self.train_uniformity_loss.unwrap_or(0.0);
        let parts = [
            ("rec", self.train_rec_loss - uniformity),
            ("uniformity", uniformity),
            ("nn", self.train_nn_loss.unwrap_or(0.0)),
            ("class", self.train_class_loss.unwrap_or(0.0)),
        ];
        parts.into_iter().filter(|&(_, value)| value != 0.0).collect()
    }
}

/// A line of a log.
pub trait Line: Serialize + DeserializeOwned {
    /// Steps done when it was written.
    fn step(&self) -> u64;
}

impl Line for LogLine {
    fn step(&self) -> u64 {
        self.step
    }
}

/// `log.txt`, open for more lines.
#[derive(Debug)]
pub struct Log {
    file: File,
}

impl Log {
    /// Opens the log of a run that has done `step` steps, and returns its lines: those of later steps (of a
    /// run that was killed after its last checkpoint) are removed.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub fn open<L: Line>(path: &Path, step: u64) -> Result<(Self, Vec<L>), DataError> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            read => read.map_err(DataError::io(path))?,
        };
        let (mut kept, mut lines) = (String::new(), Vec::new());
        for text in text.lines() {
            if let Some(line) = serde_json::from_str::<L>(text).ok().filter(|line| line.step() <= step) {
                kept.extend([text, "\n"]);
                lines.push(line);
            }
        }
        atomic::write_bytes(path, kept.as_bytes())?;
        let file = OpenOptions::new().append(true).open(path).map_err(DataError::io(path))?;
        Ok((Self { file }, lines))
    }

    /// Appends a line.
    ///
    /// # Errors
    /// Whatever the file system reports.
    pub fn write(&mut self, line: &impl Line) -> io::Result<()> {
        let json = serde_json::to_string(line)?;
        self.file.write_all((json + "\n").as_bytes())
    }
}
