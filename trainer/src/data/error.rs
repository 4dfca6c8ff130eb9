//! [`DataError`]: what is wrong with a file, in one sentence.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

/// What is wrong with a file or folder of data.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file system refused.
    #[error("{}: {reason}", file.display())]
    Io {
        /// The file or folder.
        file: PathBuf,
        /// What it said. No `source`: printing the chain of causes would say it twice.
        reason: io::Error,
    },
    /// The contents are not what they should be.
    #[error("{}: {item}: expected {expected}, found {found}", file.display())]
    Invalid {
        /// The file.
        file: PathBuf,
        /// The field, row or byte range concerned.
        item: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// What the exporter says of a file that it shares with the trainer.
    #[error(transparent)]
    Export(#[from] sorcen_export::Error),
}

impl DataError {
    /// For `map_err`: names the file an [`io::Error`] is about.
    pub fn io(file: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |reason| Self::Io { file: file.to_path_buf(), reason }
    }

    /// An [`Invalid`](Self::Invalid) from anything that prints.
    pub fn invalid(file: &Path, item: impl Display, expected: impl Display, found: impl Display) -> Self {
        Self::Invalid {
            file: file.to_path_buf(),
            item: item.to_string(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }
}
