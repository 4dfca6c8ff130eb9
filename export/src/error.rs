//! What can go wrong between a checkpoint and an artefact: each message names file, item, expected and found.

use std::path::{Path, PathBuf};

/// An error of the exporter.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{}: cannot {doing}: {reason}", path.display())]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// What was being done ("read", "write", …).
        doing: &'static str,
        /// The system's reason.
        reason: std::io::Error,
    },
    /// `config.json` is not the JSON of a model configuration.
    #[error("{}: expected the fields of a model configuration, found: {reason}", path.display())]
    ConfigJson {
        /// Which file.
        path: PathBuf,
        /// Where and why parsing stopped.
        reason: serde_json::Error,
    },
    /// A file that is not JSON.
    #[error("{}: expected JSON, found: {reason}", path.display())]
    Json {
        /// Which file.
        path: PathBuf,
        /// Where and why parsing stopped.
        reason: serde_json::Error,
    },
    /// Something read from a file fails the runtime's checks (config ranges, a pack's structure, …).
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: sorcen_runtime::Error,
    },
    /// The file is not a whole safetensors file.
    #[error("{}: expected a complete safetensors file, found: {found}", path.display())]
    Safetensors {
        /// Which file.
        path: PathBuf,
        /// What the parser stumbled over.
        found: String,
    },
    /// A tensor that is needed is not in the file.
    #[error("{}: tensor `{tensor}` is missing, expected shape {expected:?}", path.display())]
    MissingTensor {
        /// Which file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The shape it has to have.
        expected: Vec<usize>,
    },
    /// A tensor has the wrong shape.
    #[error("{}: tensor `{tensor}`: expected shape {expected}, found {found:?}", path.display())]
    Shape {
        /// Which file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The shape it has to have.
        expected: String,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor has the wrong element type.
    #[error("{}: tensor `{tensor}`: expected dtype {expected}, found {found}", path.display())]
    Dtype {
        /// Which file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The dtypes accepted.
        expected: &'static str,
        /// The dtype in the file.
        found: String,
    },
    /// A tensor holds an infinity or a NaN.
    #[error("{}: tensor `{tensor}`: expected finite numbers, found {found} at element {index}", path.display())]
    NotFinite {
        /// Which file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Flat index of the first such element.
        index: usize,
        /// The number there.
        found: f32,
    },
    /// An ONNX file that cannot be read or run.
    #[error("{}: expected an ONNX file of this exporter, found: {found}", path.display())]
    Onnx {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        found: String,
    },
    /// A value handed in or read is outside its range.
    #[error("{item}: expected {expected}, found {found}")]
    Value {
        /// Which value, with its file where it came from one.
        item: String,
        /// What it has to be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The runtime rejects what it was asked to do.
    #[error(transparent)]
    Runtime(#[from] sorcen_runtime::Error),
}

impl Error {
    /// For `map_err` on I/O calls: `fs::read(p).map_err(Error::io(p, "read"))`.
    pub(crate) fn io(path: &Path, doing: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |reason| Self::Io { path, doing, reason }
    }

    /// A value outside its range.
    pub fn value(item: impl ToString, expected: impl ToString, found: impl ToString) -> Self {
        Self::Value { item: item.to_string(), expected: expected.to_string(), found: found.to_string() }
    }
}
