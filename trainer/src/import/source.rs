//! Weights of other programs, told apart by what is in the file, whatever its name.

use std::path::Path;

use super::pth::PthFile;
use super::state::{few, shared_prefix};
use crate::checkpoint::{TensorFile, WeightSource};
use crate::data::{npy, DataError};
use crate::files::first_bytes;

/// A file of weights.
#[derive(Debug)]
pub enum WeightFile {
    /// PyTorch's, of either format.
    Torch(Box<PthFile>),
    /// Safetensors.
    Safetensors(Renamed),
}

impl WeightFile {
    /// Opens the file `path`. Of several sets of weights in it, `key` names one: an entry, or the first part of names.
    /// What all names start with, such as `module.`, is taken away.
    ///
    /// # Errors
    /// [`DataError`] where it cannot be read, is of neither kind, or holds no tensors at `key`.
    pub fn open(path: &Path, key: Option<&str>) -> Result<Self, DataError> {
        let start = first_bytes(path, 64).map_err(DataError::io(path))?;
        match () {
            () if PthFile::is_one(&start) => Ok(Self::Torch(Box::new(PthFile::open_at(path, key)?))),
            // The length of the header, then the header.
            () if start.get(8) == Some(&b'{') => Ok(Self::Safetensors(Renamed::open(path, key)?)),
            () => {
                let expected = "a PyTorch checkpoint (a zip or the older format) or safetensors";
                Err(DataError::invalid(path, "contents", expected, kind(&start)))
            }
        }
    }

    /// Its tensors.
    pub fn source(&self) -> &dyn WeightSource {
        match self {
            Self::Torch(file) => file.as_ref(),
            Self::Safetensors(file) => file,
        }
    }

    /// What was chosen among the file's contents, in sentences.
    pub fn notes(&self) -> &[String] {
        match self {
            Self::Torch(file) => file.notes(),
            Self::Safetensors(file) => &file.notes,
        }
    }
}

/// What a file that starts with `bytes` is, for messages.
pub fn kind(bytes: &[u8]) -> String {
    let known: [(&[u8], &str); 11] = [
        (b"version https://git-lfs", "a pointer of Git LFS: fetch the file itself with `git lfs pull`"),
        (b"\x1f\x8b", "a gzip file: unpack it first"),
        (b"\x89HDF", "an HDF5 file"),
        (npy::NUMPY, "one numpy array (.npy)"),
        (b"PK", "a zip file"),
        (b"\x89PNG", "a PNG picture"),
        (b"\xff\xd8\xff", "a JPEG picture"),
        (b"<", "a page of HTML or XML"),
        (b"\x80\x04", "a Python pickle that torch.save did not write"),
        (b"GGUF", "a GGUF file"),
        (&sorcen_runtime::pack::MAGIC, "a pack"),
    ];
    match known.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        Some((_, kind)) => kind.to_string(),
        None if bytes.is_empty() => "an empty file".into(),
        None => format!("a file that starts with {:02x?}", &bytes[..bytes.len().min(8)]),
    }
}

/// A safetensors file, with a first part of the names taken away.
#[derive(Debug)]
pub struct Renamed {
    file: TensorFile,
    prefix: String,
    notes: Vec<String>,
}

impl Renamed {
    fn open(path: &Path, key: Option<&str>) -> Result<Self, DataError> {
        let file = TensorFile::open(path)?;
        let names = file.names();
        let mut notes = Vec::new();
        let prefix = match key {
            Some(key) => format!("{key}."),
            None => shared_prefix(names.iter().map(String::as_str)).to_string(),
        };
        let taken = names.iter().filter(|name| name.starts_with(&prefix)).count();
        if taken == 0 {
            let expected = format!("tensors whose names start with `{prefix}`");
            return Err(DataError::invalid(path, "contents", expected, few(names)));
        }
        match key {
            None if prefix.is_empty() => {}
            None => notes.push(format!("all names start with `{prefix}`, which is taken away")),
            Some(_) => {
                let all = names.len();
                notes.push(format!("taken: the {taken} of {all} tensors whose names start with `{prefix}`"));
            }
        }
        Ok(Self { file, prefix, notes })
    }

    fn inner(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

impl WeightSource for Renamed {
    fn path(&self) -> &Path {
        self.file.path()
    }

    fn names(&self) -> Vec<String> {
        self.file.names().iter().filter_map(|name| name.strip_prefix(&self.prefix)).map(String::from).collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.file.shape(&self.inner(name))
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, DataError> {
        self.file.read(&self.inner(name))
    }
}
