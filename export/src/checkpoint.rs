//! A checkpoint folder: `config.json` and `model.safetensors` (official tensor names, linears `[out, in]`).
//!
//! [`Checkpoint::open`] checks everything once, so that [`Checkpoint::tensor`] cannot fail. The file is read whole,
//! since a map of it would show what other programs write to it; f32 weights are borrowed from there, so that no second
//! copy of them is in memory.

use std::{
    borrow::Cow,
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use safetensors::{tensor::View, Dtype, SafeTensors};
use sha2::{Digest, Sha256};
use sorcen_runtime::{
    schema::{self, Param},
    ModelConfig, OwnedBytes,
};

use crate::{atomic, error::Error, file, found};

/// File name of the configuration in a checkpoint folder.
pub const CONFIG_FILE: &str = "config.json";
/// File name of the weights in a checkpoint folder.
pub const WEIGHTS_FILE: &str = "model.safetensors";

/// The weights of a model: every tensor of the schema, right shape, finite; the decoder's may be left out.
pub struct Checkpoint {
    /// Sizes of the model; valid.
    pub config: ModelConfig,
    dir: PathBuf,
    bytes: OwnedBytes,
    values: Vec<Values>, // in schema order
}

/// Where the values of a weight are.
enum Values {
    /// Nowhere: the decoder's, where only the encoder was asked for.
    Absent,
    /// Little-endian f32, aligned, in the file's bytes.
    InFile(Range<usize>),
    /// Converted from another form (f16, bf16, unaligned f32).
    Converted { from: Dtype, values: Vec<f32> },
}

impl Checkpoint {
    /// Opens and checks a checkpoint folder. Tensors that inference does not use are tolerated.
    ///
    /// # Errors
    /// Any [`Error`] of a missing or damaged file, naming file, tensor, expected and found.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        Self::open_with(dir, |_| true)
    }

    /// [`open`](Self::open) for the encoder: the file need not hold the decoder, whose tensors are empty.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_encoder(dir: &Path) -> Result<Self, Error> {
        Self::open_with(dir, |param| !param.is_decoder())
    }

    /// Whether the decoder is there (see [`open_encoder`](Self::open_encoder)).
    pub fn has_decoder(&self) -> bool {
        !self.values.iter().any(|values| matches!(values, Values::Absent))
    }

    fn open_with(dir: &Path, needed: impl Fn(Param) -> bool) -> Result<Self, Error> {
        if !dir.join(CONFIG_FILE).exists() {
            let expected = format!("a checkpoint folder ({CONFIG_FILE}, {WEIGHTS_FILE})");
            return Err(Error::value(dir.display(), expected, found::at(dir)));
        }
        let config = read_config(&dir.join(CONFIG_FILE))?;
        let path = dir.join(WEIGHTS_FILE);
        let bytes = file::read(&path)?;
        let values = find_values(&path, &bytes, &config, needed)?;
        let checkpoint = Self { config, dir: dir.to_owned(), bytes, values };
        checkpoint.check_finite(&path)?;
        Ok(checkpoint)
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The values of a weight, row-major in its schema shape.
    ///
    /// # Panics
    /// If `param` names a block that [`config`](Self::config) does not have.
    pub fn tensor(&self, param: Param) -> &[f32] {
        match &self.values[param.index(&self.config)] {
            Values::InFile(range) => bytemuck::cast_slice(&self.bytes[range.clone()]),
            Values::Converted { values, .. } => values,
            Values::Absent => &[],
        }
    }

    /// How a weight is stored in the file: its dtype's name in lower case, and its bytes.
    pub(crate) fn stored(&self, param: Param) -> (&'static str, usize) {
        let bytes = |width| param.shape(&self.config).elements() * width;
        match &self.values[param.index(&self.config)] {
            Values::Absent => ("absent", 0),
            Values::InFile(_) => ("f32", bytes(4)),
            Values::Converted { from: Dtype::F16, .. } => ("f16", bytes(2)),
            Values::Converted { from: Dtype::BF16, .. } => ("bf16", bytes(2)),
            Values::Converted { .. } => ("f32", bytes(4)),
        }
    }

    /// SHA-256 of `model.safetensors`, in hexadecimal: the provenance of whatever is made from it.
    pub fn sha256(&self) -> String {
        Sha256::digest(&*self.bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Size of `model.safetensors` in bytes.
    pub fn file_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Writes a checkpoint folder (made if missing): every weight of the schema as f32, from `lookup`.
    /// Each of the two files appears whole or not at all.
    ///
    /// # Errors
    /// [`Error::Runtime`] where the config is not valid, [`Error::Value`] where `lookup` returns the wrong
    /// number of values for a tensor or one that is not finite, [`Error::Io`] where a file cannot be written.
    pub fn write<'a>(
        dir: &Path,
        config: &ModelConfig,
        mut lookup: impl FnMut(Param) -> Cow<'a, [f32]>,
    ) -> Result<(), Error> {
        config.validate()?;
        let mut tensors = Vec::with_capacity(schema::count(config));
        for param in schema::params(config) {
            let shape = param.shape(config);
            let values = lookup(param);
            if values.len() != shape.elements() {
                return Err(Error::value(format!("tensor `{param}`"), shape.elements(), values.len()));
            }
            if let Some(found) = values.iter().find(|value| !value.is_finite()) {
                return Err(Error::value(format!("tensor `{param}`"), "finite numbers", found));
            }
            tensors.push((param.to_string(), Weight { shape: shape.dims().to_vec(), values }));
        }
        let path = dir.join(WEIGHTS_FILE);
        // Python's loaders ask for this entry.
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        atomic::write(&path, |temporary| {
            safetensors::serialize_to_file(tensors, Some(metadata), temporary)
                .map_err(|error| Error::io(&path, "write")(std::io::Error::other(error)))
        })?;
        let path = dir.join(CONFIG_FILE);
        let json =
            serde_json::to_string_pretty(config).map_err(|reason| Error::ConfigJson { path: path.clone(), reason })?;
        atomic::write_bytes(&path, (json + "\n").as_bytes())
    }

    fn check_finite(&self, path: &Path) -> Result<(), Error> {
        for param in schema::params(&self.config) {
            let values = self.tensor(param);
            if let Some(index) = values.iter().position(|value| !value.is_finite()) {
                return Err(Error::NotFinite {
                    path: path.to_owned(),
                    tensor: param.to_string(),
                    index,
                    found: values[index],
                });
            }
        }
        Ok(())
    }
}

/// Reads and validates a `config.json`.
///
/// # Errors
/// [`Error::Io`], [`Error::ConfigJson`] or [`Error::Invalid`], naming the file and the field.
pub fn read_config(path: &Path) -> Result<ModelConfig, Error> {
    let json = fs::read(path).map_err(Error::io(path, "read"))?;
    let config: ModelConfig =
        serde_json::from_slice(&json).map_err(|reason| Error::ConfigJson { path: path.to_owned(), reason })?;
    config.validate().map_err(|reason| Error::Invalid { path: path.to_owned(), reason })?;
    Ok(config)
}

/// Finds every tensor of the schema that is needed in the file and checks dtype and shape.
fn find_values(
    path: &Path,
    bytes: &[u8],
    config: &ModelConfig,
    needed: impl Fn(Param) -> bool,
) -> Result<Vec<Values>, Error> {
    let file = SafeTensors::deserialize(bytes)
        .map_err(|error| Error::Safetensors { path: path.to_owned(), found: error.to_string() })?;
    let find = |param: Param| {
        if !needed(param) {
            return Ok(Values::Absent);
        }
        let tensor = param.to_string();
        let shape = param.shape(config);
        let Ok(view) = file.tensor(&tensor) else {
            return Err(Error::MissingTensor { path: path.to_owned(), tensor, expected: shape.dims().to_vec() });
        };
        if view.shape() != shape.dims() {
            let (expected, found) = (format!("{:?}", shape.dims()), view.shape().to_vec());
            return Err(Error::Shape { path: path.to_owned(), tensor, expected, found });
        }
        let data = view.data();
        let start = data.as_ptr() as usize - bytes.as_ptr() as usize; // `data` is a part of `bytes`
        let in_place = cfg!(target_endian = "little") && bytemuck::try_cast_slice::<u8, f32>(data).is_ok();
        match view.dtype() {
            Dtype::F32 if in_place => Ok(Values::InFile(start..start + data.len())),
            from @ Dtype::F32 => Ok(Values::Converted { from, values: convert(data, f32::from_le_bytes) }),
            from @ Dtype::F16 => {
                Ok(Values::Converted { from, values: convert(data, |b| f16::from_le_bytes(b).to_f32()) })
            }
            from @ Dtype::BF16 => {
                Ok(Values::Converted { from, values: convert(data, |b| bf16::from_le_bytes(b).to_f32()) })
            }
            other => {
                let (expected, found) = ("F32, F16 or BF16", format!("{other:?}"));
                Err(Error::Dtype { path: path.to_owned(), tensor, expected, found })
            }
        }
    };
    schema::params(config).map(find).collect()
}

fn convert<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.chunks_exact(N).map(|chunk| value(std::array::from_fn(|i| chunk[i]))).collect()
}

/// A weight on its way into a file.
struct Weight<'a> {
    shape: Vec<usize>,
    values: Cow<'a, [f32]>,
}

impl View for Weight<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if cfg!(target_endian = "little") {
            return Cow::Borrowed(bytemuck::cast_slice(&self.values));
        }
        Cow::Owned(self.values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        size_of_val(&*self.values)
    }
}
