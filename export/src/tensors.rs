//! Tensors in and out of safetensors files, for testers: whatever numeric dtype, checked rank.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use ndarray::{Array, ArrayD, ArrayView, Dimension, IxDyn};
use safetensors::{tensor::TensorView, Dtype, SafeTensorError, SafeTensors};

use crate::{atomic::Pending, error::Error};

/// A safetensors file in memory.
pub struct TensorFile {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl TensorFile {
    /// Reads a whole file.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Safetensors`], naming the file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let bytes = fs::read(path).map_err(Error::io(path, "read"))?;
        let file = Self { path: path.to_owned(), bytes };
        file.parsed()?;
        Ok(file)
    }

    /// A tensor's name behind the file's, for messages.
    pub fn item(&self, name: &str) -> String {
        format!("{}: `{name}`", self.path.display())
    }

    /// Whether a tensor of this name is there.
    pub fn has(&self, name: &str) -> bool {
        self.parsed().is_ok_and(|file| file.tensor(name).is_ok())
    }

    /// The shape of a tensor, where it is there.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.parsed().ok()?.tensor(name).ok().map(|view| view.shape().to_vec())
    }

    /// That the file has no such tensor; it is said which it has.
    pub(crate) fn lacks(&self, expected: &str) -> Error {
        let file = self.parsed();
        let mut names = file.as_ref().map_or(Vec::new(), SafeTensors::names);
        names.sort_unstable();
        Error::value(format!("{}: tensors", self.path.display()), expected, names.join(", "))
    }

    /// That a tensor has another shape.
    pub(crate) fn wrong_shape(&self, name: &str, expected: &str) -> Error {
        let (path, tensor) = (self.path.clone(), name.to_owned());
        Error::Shape { path, tensor, expected: expected.to_owned(), found: self.shape(name).unwrap_or_default() }
    }

    /// The metadata: texts by name; empty where there is none.
    ///
    /// # Errors
    /// None in practice: [`open`](Self::open) parsed the file.
    pub fn metadata(&self) -> Result<HashMap<String, String>, Error> {
        let (_, header) = SafeTensors::read_metadata(&self.bytes)
            .map_err(|error| Error::Safetensors { path: self.path.clone(), found: error.to_string() })?;
        Ok(header.metadata().clone().unwrap_or_default())
    }

    /// A tensor of `rank` dimensions as integers; any integer dtype.
    ///
    /// # Errors
    /// [`Error::Value`], [`Error::Shape`] or [`Error::Dtype`], naming file and tensor.
    pub fn ints(&self, name: &str, rank: usize) -> Result<ArrayD<i64>, Error> {
        let view = self.view(name, rank)?;
        let data = view.data();
        let values = match view.dtype() {
            Dtype::I64 => convert(data, i64::from_le_bytes),
            Dtype::I32 => convert(data, |b| i32::from_le_bytes(b).into()),
            Dtype::U32 => convert(data, |b| u32::from_le_bytes(b).into()),
            Dtype::I16 => convert(data, |b| i16::from_le_bytes(b).into()),
            Dtype::U16 => convert(data, |b| u16::from_le_bytes(b).into()),
            Dtype::U8 | Dtype::BOOL => convert(data, |[b]: [u8; 1]| b.into()),
            other => return Err(self.wrong_dtype(name, "integers", other)),
        };
        self.array(name, &view, values)
    }

    /// A tensor of `rank` dimensions as numbers; any dtype of integers or floats.
    ///
    /// # Errors
    /// As [`ints`](Self::ints).
    pub fn numbers(&self, name: &str, rank: usize) -> Result<ArrayD<f64>, Error> {
        let view = self.view(name, rank)?;
        let data = view.data();
        let values = match view.dtype() {
            Dtype::F64 => convert(data, f64::from_le_bytes),
            Dtype::F32 => convert(data, |b| f32::from_le_bytes(b).into()),
            Dtype::F16 => convert(data, |b| f16::from_le_bytes(b).to_f64()),
            Dtype::BF16 => convert(data, |b| bf16::from_le_bytes(b).to_f64()),
            _ => return Ok(self.ints(name, rank)?.mapv(|v| v as f64)),
        };
        self.array(name, &view, values)
    }

    /// [`numbers`](Self::numbers) as f32.
    ///
    /// # Errors
    /// As [`ints`](Self::ints).
    pub fn floats(&self, name: &str, rank: usize) -> Result<ArrayD<f32>, Error> {
        Ok(self.numbers(name, rank)?.mapv(|value| value as f32))
    }

    /// [`ints`](Self::ints) of as many dimensions as `D` has.
    ///
    /// # Errors
    /// As [`ints`](Self::ints).
    pub fn ints_as<D: Dimension>(&self, name: &str) -> Result<Array<i64, D>, Error> {
        self.of_rank(name, self.ints(name, D::NDIM.unwrap_or(0))?)
    }

    /// [`numbers`](Self::numbers) of as many dimensions as `D` has.
    ///
    /// # Errors
    /// As [`ints`](Self::ints).
    pub fn numbers_as<D: Dimension>(&self, name: &str) -> Result<Array<f64, D>, Error> {
        self.of_rank(name, self.numbers(name, D::NDIM.unwrap_or(0))?)
    }

    /// [`floats`](Self::floats) of as many dimensions as `D` has.
    ///
    /// # Errors
    /// As [`ints`](Self::ints).
    pub fn floats_as<D: Dimension>(&self, name: &str) -> Result<Array<f32, D>, Error> {
        self.of_rank(name, self.floats(name, D::NDIM.unwrap_or(0))?)
    }

    fn of_rank<T, D: Dimension>(&self, name: &str, values: ArrayD<T>) -> Result<Array<T, D>, Error> {
        let found = values.shape().to_vec();
        let expected = || format!("of {} dimensions", D::NDIM.unwrap_or(0));
        let (path, tensor) = (self.path.clone(), name.to_owned());
        values.into_dimensionality().map_err(|_| Error::Shape { path, tensor, expected: expected(), found })
    }

    fn parsed(&self) -> Result<SafeTensors<'_>, Error> {
        SafeTensors::deserialize(&self.bytes)
            .map_err(|error| Error::Safetensors { path: self.path.clone(), found: error.to_string() })
    }

    fn view(&self, name: &str, rank: usize) -> Result<TensorView<'_>, Error> {
        let file = self.parsed()?;
        let view = file.tensor(name).map_err(|_| self.lacks(&format!("one called `{name}`")))?;
        if view.shape().len() != rank {
            return Err(Error::Shape {
                path: self.path.clone(),
                tensor: name.into(),
                expected: format!("of {rank} dimensions"),
                found: view.shape().to_vec(),
            });
        }
        Ok(view)
    }

    fn array<T>(&self, name: &str, view: &TensorView, values: Vec<T>) -> Result<ArrayD<T>, Error> {
        ArrayD::from_shape_vec(IxDyn(view.shape()), values).map_err(|error| Error::Safetensors {
            path: self.path.clone(),
            found: format!("tensor `{name}` of {:?}: {error}", view.shape()),
        })
    }

    fn wrong_dtype(&self, name: &str, expected: &'static str, found: Dtype) -> Error {
        Error::Dtype { path: self.path.clone(), tensor: name.into(), expected, found: format!("{found:?}") }
    }
}

fn convert<T, const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.chunks_exact(N).map(|chunk| value(std::array::from_fn(|i| chunk[i]))).collect()
}

/// Tensors on their way into a file.
#[derive(Default)]
pub struct TensorWriter {
    tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)>,
    metadata: Option<HashMap<String, String>>,
}

impl TensorWriter {
    /// Adds a tensor of f32.
    pub fn floats<D: Dimension>(&mut self, name: &str, values: ArrayView<f32, D>) {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensors.push((name.into(), Dtype::F32, values.shape().to_vec(), bytes));
    }

    /// Adds a tensor of int64.
    pub fn ints<D: Dimension>(&mut self, name: &str, values: ArrayView<i64, D>) {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensors.push((name.into(), Dtype::I64, values.shape().to_vec(), bytes));
    }

    /// Adds an entry to the metadata, where there is something to say.
    pub fn note(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.metadata.get_or_insert_default().insert(key.into(), value.into());
        }
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`], naming the file.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        self.write_into(Pending::create(path)?)
    }

    /// Writes the file that was begun before the work.
    ///
    /// # Errors
    /// [`Error::Io`], naming the file.
    pub fn write_into(&self, file: Pending) -> Result<(), Error> {
        let failed = |error: SafeTensorError| match error {
            SafeTensorError::IoError(error) => error,
            other => io::Error::other(other),
        };
        let views = self
            .tensors
            .iter()
            .map(|(name, dtype, shape, bytes)| TensorView::new(*dtype, shape.clone(), bytes).map(|view| (name, view)));
        let views = views.collect::<Result<Vec<_>, _>>();
        let written = views.and_then(|views| safetensors::serialize_to_file(views, self.metadata.clone(), file.path()));
        written.map_err(|error| Error::io(file.target(), "write")(failed(error)))?;
        file.finish()
    }
}
