//! Tensors by name: read from files, and on their way into one.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::backend::Backend;
use half::{bf16, f16};
use safetensors::{tensor::View, Dtype, SafeTensors};

use crate::data::DataError;
use crate::model::weight::Weights;

/// A safetensors file in memory.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl TensorFile {
    /// Reads a file and checks its header.
    ///
    /// # Errors
    /// [`DataError`] where it cannot be read or is not a safetensors file.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let bytes = fs::read(path).map_err(DataError::io(path))?;
        let file = Self { path: path.to_path_buf(), bytes };
        file.tensors()?;
        Ok(file)
    }

    fn tensors(&self) -> Result<SafeTensors<'_>, DataError> {
        SafeTensors::deserialize(&self.bytes)
            .map_err(|error| DataError::invalid(&self.path, "header", "a whole safetensors file", error))
    }
}

/// A file that weights can be read from by name.
pub trait WeightSource {
    /// Where it is.
    fn path(&self) -> &Path;

    /// Names of all tensors, in order.
    fn names(&self) -> Vec<String>;

    /// Shape of a tensor, if it is there.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// The values of a tensor of floating-point numbers, row-major.
    ///
    /// # Errors
    /// [`DataError::Invalid`] where it is missing or of another type.
    fn read(&self, name: &str) -> Result<Vec<f32>, DataError>;

    /// What is there instead of a tensor that is not, in words.
    fn absent(&self, _name: &str) -> String {
        "none of this name".into()
    }

    /// The finite values of a tensor of shape `dims`, row-major.
    ///
    /// # Errors
    /// [`DataError::Invalid`] where it is missing, of another shape or type, or not finite.
    fn values(&self, name: &str, dims: &[usize]) -> Result<Vec<f32>, DataError> {
        let invalid = |expected: String, found: String| Err(DataError::invalid(self.path(), name, expected, found));
        match self.shape(name) {
            None => return invalid(format!("a tensor {dims:?}"), self.absent(name)),
            Some(found) if found != dims => return invalid(format!("shape {dims:?}"), format!("{found:?}")),
            Some(_) => {}
        }
        let values = self.read(name)?;
        match values.iter().position(|value| !value.is_finite()) {
            Some(index) => invalid("finite numbers".into(), format!("{} at {index}", values[index])),
            None => Ok(values),
        }
    }
}

impl WeightSource for TensorFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Vec<String> {
        let mut names = self.tensors().map(|file| file.names().into_iter().map(str::to_string).collect());
        names.iter_mut().for_each(|names: &mut Vec<String>| names.sort_unstable());
        names.unwrap_or_default()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors().ok()?.tensor(name).ok().map(|view| view.shape().to_vec())
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, DataError> {
        let tensors = self.tensors()?;
        let Ok(view) = tensors.tensor(name) else {
            return Err(DataError::invalid(&self.path, name, "a tensor", "none of this name"));
        };
        let (pairs, _) = view.data().as_chunks::<2>();
        let (words, _) = view.data().as_chunks::<4>();
        match view.dtype() {
            Dtype::F32 => Ok(words.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()),
            Dtype::F16 => Ok(pairs.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect()),
            Dtype::BF16 => Ok(pairs.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect()),
            other => Err(DataError::invalid(&self.path, name, "F32, F16 or BF16", format_args!("{other:?}"))),
        }
    }
}

/// Sets every weight of `module` (named after `path`) from a file.
///
/// # Errors
/// As [`WeightSource::values`], for the first weight that fails.
pub fn fill<B: Backend>(
    source: &dyn WeightSource,
    module: &mut dyn Weights<B>,
    path: &str,
    device: &B::Device,
) -> Result<(), DataError> {
    let mut result = Ok(());
    module.visit_mut(path, &mut |name, weight| {
        if result.is_ok() {
            result = source.values(name, weight.dims()).map(|values| weight.set_from(values, device));
        }
    });
    result
}

/// Tensors on their way into a file.
#[derive(Debug, Default)]
pub struct TensorList(Vec<(String, HostTensor)>);

#[derive(Debug)]
struct HostTensor {
    dims: Vec<usize>,
    bytes: Vec<u8>,
}

impl TensorList {
    /// Adds a tensor.
    pub fn push(&mut self, name: &str, dims: &[usize], values: &[f32]) {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.0.push((name.to_string(), HostTensor { dims: dims.to_vec(), bytes }));
    }

    /// Adds every weight of `module`, named after `path`, with `prefix` before the name.
    pub fn push_all<B: Backend>(&mut self, module: &dyn Weights<B>, path: &str, prefix: &str) {
        module.visit(path, &mut |name, weight| {
            self.push(&format!("{prefix}{name}"), weight.dims(), &weight.to_vec());
        });
    }

    /// Writes a safetensors file.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub fn write(self, path: &Path) -> Result<(), DataError> {
        // Python's loaders ask for this entry.
        let metadata = [("format".to_string(), "pt".to_string())].into();
        safetensors::serialize_to_file(self.0, Some(metadata), path)
            .map_err(|error| DataError::io(path)(std::io::Error::other(error)))
    }
}

impl View for HostTensor {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        &self.dims
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}
