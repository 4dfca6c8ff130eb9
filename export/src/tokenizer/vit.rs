//! The ViT tokenizer's file: sizes in the metadata, weights under the schema's names, in one safetensors file.

use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest, Sha256};
use sorcen_runtime::{
    pack::TensorData,
    quant::{self, Layout},
    vit::{section, VitConfig, VitParam},
};

use crate::{atomic, error::Error};

/// What the metadata of such a file says under `format`.
pub const FORMAT: &str = "sorcen-vit-tokenizer";
const VERSION: &str = "1";
/// The metadata's entry with the sizes: the JSON of a [`VitConfig`].
const CONFIG: &str = "config";

/// Sizes and weights of a ViT tokenizer.
#[derive(Clone, Debug, PartialEq)]
pub struct VitTokenizer {
    config: VitConfig,
    /// In schema order.
    weights: Vec<Vec<f32>>,
}

impl VitTokenizer {
    /// A tokenizer of these sizes; `weights` in the order of [`VitParam::all`].
    ///
    /// # Errors
    /// [`sorcen_runtime::Error::Config`], and [`sorcen_runtime::Error::Tensor`] where a weight has another number of
    /// elements or is not there.
    pub fn new(config: VitConfig, weights: Vec<Vec<f32>>) -> Result<Self, sorcen_runtime::Error> {
        config.validate()?;
        let wrong = |index, property, expected: usize, found: usize| {
            let (expected, found) = (expected as u64, found as u64);
            Err(sorcen_runtime::Error::Tensor { index, property, expected, found })
        };
        if weights.len() != VitParam::count(&config) {
            return wrong(0, "number of tensors", VitParam::count(&config), weights.len());
        }
        for (index, (param, values)) in VitParam::all(&config).zip(&weights).enumerate() {
            let expected = param.shape(&config).elements();
            if values.len() != expected {
                return wrong(index as u16, "elements", expected, values.len());
            }
            if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                return Err(sorcen_runtime::Error::NotFinite { item: "tensor", index: at as u32 });
            }
        }
        Ok(Self { config, weights })
    }

    /// Reads `tokenizer.safetensors`: a tensor of floats for each weight, with the format's name and version and
    /// the sizes in its metadata.
    ///
    /// # Errors
    /// Any [`Error`] naming the file and what is wrong in it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = std::fs::read(path).map_err(Error::io(path, "read"))?;
        let broken = |error: safetensors::SafeTensorError| Error::Safetensors {
            path: path.to_owned(),
            found: error.to_string(),
        };
        let (_, header) = SafeTensors::read_metadata(&file).map_err(broken)?;
        let field = |key: &str| header.metadata().as_ref().and_then(|map| map.get(key).cloned()).unwrap_or_default();
        let item = |key: &str| format!("{}: metadata `{key}`", path.display());
        for (key, expected) in [("format", FORMAT), ("version", VERSION)] {
            if field(key) != expected {
                return Err(Error::value(item(key), expected, format!("`{}`", field(key))));
            }
        }
        let config: VitConfig = serde_json::from_str(&field(CONFIG))
            .map_err(|error| Error::value(item(CONFIG), "the sizes of a ViT tokenizer, as JSON", error))?;
        let invalid = |reason| Error::Invalid { path: path.to_owned(), reason };
        config.validate().map_err(invalid)?;
        let tensors = SafeTensors::deserialize(&file).map_err(broken)?;
        let mut weights = Vec::new();
        for param in VitParam::all(&config) {
            let (name, shape) = (param.to_string(), param.shape(&config));
            let Ok(tensor) = tensors.tensor(&name) else {
                let expected = shape.dims().to_vec();
                return Err(Error::MissingTensor { path: path.to_owned(), tensor: name, expected });
            };
            if tensor.dtype() != Dtype::F32 {
                let found = format!("{:?}", tensor.dtype());
                return Err(Error::Dtype { path: path.to_owned(), tensor: name, expected: "F32", found });
            }
            if tensor.shape() != shape.dims() {
                let (expected, found) = (format!("{:?}", shape.dims()), tensor.shape().to_vec());
                return Err(Error::Shape { path: path.to_owned(), tensor: name, expected, found });
            }
            let (words, _) = tensor.data().as_chunks::<4>();
            weights.push(words.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect());
        }
        Self::new(config, weights).map_err(invalid)
    }

    /// Writes `tokenizer.safetensors` (see [`open`](Self::open)), whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`], naming the file.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let failed = |error: &dyn std::fmt::Display| Error::io(path, "write")(std::io::Error::other(error.to_string()));
        let config = serde_json::to_string(&self.config).map_err(|error| failed(&error))?;
        let bytes: Vec<Vec<u8>> =
            self.weights.iter().map(|w| w.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
        let mut views = Vec::new();
        for (param, bytes) in VitParam::all(&self.config).zip(&bytes) {
            let shape = param.shape(&self.config).dims().to_vec();
            let view = TensorView::new(Dtype::F32, shape, bytes).map_err(|error| failed(&error))?;
            views.push((param.to_string(), view));
        }
        let metadata = [("format", FORMAT), ("version", VERSION), (CONFIG, &*config)].into();
        let file = super::serialize(views, &metadata).map_err(|error| failed(&error))?;
        atomic::write_bytes(path, &file)
    }

    /// The sizes.
    pub const fn config(&self) -> &VitConfig {
        &self.config
    }

    /// A weight, row-major.
    pub fn tensor(&self, param: VitParam) -> &[f32] {
        &self.weights[param.index(&self.config)]
    }

    /// What a token dataset records of its tokenizer: kind, sizes and SHA-256 of names and weights.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for (param, values) in VitParam::all(&self.config).zip(&self.weights) {
            hash.update(param.to_string());
            values.iter().for_each(|value| hash.update(value.to_le_bytes()));
        }
        let sha256: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let VitConfig { grid, patch, codes, code_dim, .. } = self.config;
        format!("vit {codes}x{code_dim} {grid}x{grid} /{patch} sha256:{sha256}")
    }

    /// The section of a pack: matrices in int8, arranged in `layout`, or, without one, everything in f32.
    ///
    /// # Errors
    /// As [`section()`].
    pub fn section(&self, layout: Option<Layout>) -> Result<Vec<u8>, sorcen_runtime::Error> {
        section(&self.config, |param, write| {
            let values = self.tensor(param);
            let (rows, cols) = param.shape(&self.config).matrix();
            match layout.filter(|_| param.is_matrix()) {
                None => write(TensorData::F32(values)),
                Some(layout) => {
                    let (mut weights, mut scales) = (vec![0; layout.elements(rows, cols)], vec![0.0; rows]);
                    quant::quantise_matrix(values, (rows, cols), layout, &mut weights, &mut scales)?;
                    write(TensorData::Int8 { weights: &weights, scales: &scales, layout })
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use sorcen_runtime::rng::{Rng, Stream};

    use super::*;

    fn tokenizer() -> VitTokenizer {
        let config = VitConfig {
            grid: 2,
            patch: 3,
            codes: 7,
            code_dim: 4,
            embed_dim: 8,
            depth: 1,
            num_heads: 2,
            decoder_depth: 2,
            mlp_ratio: 2,
        };
        let weights = VitParam::all(&config).enumerate().map(|(i, param)| {
            let rng = Rng::new(1, Stream::Init, i as u64);
            (0..param.shape(&config).elements()).map(|at| rng.normal(at as u64) as f32).collect()
        });
        VitTokenizer::new(config, weights.collect()).unwrap()
    }

    #[test]
    fn file_round_trip_and_damage() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("t.safetensors");
        let tokenizer = tokenizer();
        tokenizer.save(&path).unwrap();
        let opened = VitTokenizer::open(&path).unwrap();
        assert_eq!(opened, tokenizer);
        assert!(opened.fingerprint().starts_with("vit 7x4 2x2 /3 sha256:"), "{}", opened.fingerprint());

        let whole = std::fs::read(&path).unwrap();
        let damaged = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            VitTokenizer::open(&path).unwrap_err().to_string()
        };
        let replaced = |from: &str, to: &str| {
            assert_eq!(from.len(), to.len(), "a safetensors header keeps its length");
            let at = whole.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
            [&whole[..at], to.as_bytes(), &whole[at + from.len()..]].concat()
        };
        let mut not_finite = whole.clone();
        let last = not_finite.len() - 4;
        not_finite[last..].copy_from_slice(&f32::NAN.to_le_bytes());
        let cases = [
            ("complete safetensors file", damaged(&whole[..whole.len() - 1])),
            ("metadata `format`: expected sorcen-vit-tokenizer", damaged(&replaced(FORMAT, "sorcen-vit-tokenisor"))),
            ("the sizes of a ViT tokenizer", damaged(&replaced("\\\"grid\\\"", "\\\"gird\\\""))),
            ("num_heads", damaged(&replaced("num_heads\\\":2", "num_heads\\\":3"))),
            ("expected shape [8, 27], found [27, 8]", damaged(&replaced("[8,27]", "[27,8]"))),
            ("tensor `norm.bias` is missing", damaged(&replaced("\"norm.bias\"", "\"norm.bial\""))),
            ("finite", damaged(&not_finite)),
        ];
        for (expected, message) in cases {
            assert!(message.contains(expected) && message.contains("t.safetensors"), "{expected:?} in {message:?}");
        }
    }

    #[test]
    fn sections_run() {
        let tokenizer = tokenizer();
        for layout in [None, Some(Layout::ROW_MAJOR)] {
            let section = tokenizer.section(layout).unwrap();
            let mut memory = vec![0u32; section.len().div_ceil(4)];
            bytemuck::cast_slice_mut::<_, u8>(&mut memory)[..section.len()].copy_from_slice(&section);
            let vit = sorcen_runtime::vit::Vit::new(&bytemuck::cast_slice(&memory)[..section.len()]).unwrap();
            assert_eq!(vit.config(), tokenizer.config());
            assert_eq!(vit.bytes(), section);
        }
    }
}
