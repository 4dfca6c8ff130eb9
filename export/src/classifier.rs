//! A linear head from a file, folded into one weight and one bias: what a pack holds for the device.

use std::path::Path;

use sorcen_runtime::{
    head::Classifier,
    pack::{Data, Matrix, Precision},
    quant::{self, Layout},
};

use crate::{error::Error, fingerprint::CHECKPOINT, tensors::TensorFile};

/// The head's BatchNorm where the file does not say (the official code's).
const BATCH_NORM_EPS: f64 = 1e-6;

/// A linear classifier of probe features, on its way into a pack.
#[derive(Clone, Debug)]
pub struct LinearHead {
    dim: usize,
    /// `[classes, D]`
    weight: Vec<f32>,
    /// The same as int8, a scale a class.
    int8: (Vec<i8>, Vec<f32>),
    bias: Vec<f32>,
    /// One a line.
    names: Option<String>,
    /// SHA-256 of the weights whose features it was trained on.
    checkpoint: Option<String>,
}

impl LinearHead {
    /// Reads a safetensors file: `head.weight` `[classes, D]` and `head.bias` `[classes]`; or what `sorcen linprobe`
    /// writes, a BatchNorm without affine part and then a linear: `head.0.running_mean`, `head.0.running_var` `[D]`,
    /// `head.1.weight`, `head.1.bias`, with `batch_norm_eps` in the metadata. Both of any float dtype, for features `dim`
    /// wide. `class_names` in the metadata is a JSON list, `checkpoint_sha256` says whose features they are.
    ///
    /// # Errors
    /// Any [`Error`] naming the file and what is wrong in it.
    pub fn open(path: &Path, dim: usize) -> Result<Self, Error> {
        let file = TensorFile::open(path)?;
        let has_norm = file.has("head.1.weight");
        let (weight_name, bias_name) =
            if has_norm { ("head.1.weight", "head.1.bias") } else { ("head.weight", "head.bias") };
        let shape = |tensor: &str, expected: String, found: &[usize]| Error::Shape {
            path: path.to_owned(),
            tensor: tensor.into(),
            expected,
            found: found.to_vec(),
        };
        let finite = |name: &str, values: Vec<f64>| match values.iter().position(|value| !(*value as f32).is_finite()) {
            Some(index) => {
                let (path, tensor, found) = (path.to_owned(), name.into(), values[index] as f32);
                Err(Error::NotFinite { path, tensor, index, found })
            }
            None => Ok(values),
        };
        let weight = file.numbers(weight_name, 2)?;
        let classes = weight.shape()[0];
        if weight.shape()[1] != dim || classes == 0 || classes > Classifier::MAX_CLASSES {
            return Err(shape(weight_name, format!("[classes, {dim}], 1 to 65535 classes"), weight.shape()));
        }
        let vector = |name: &str, length: usize| {
            let values = file.numbers(name, 1)?;
            match values.len() == length {
                true => finite(name, values.into_iter().collect()),
                false => Err(shape(name, format!("[{length}]"), values.shape())),
            }
        };
        let mut bias = vector(bias_name, classes)?;
        let mut weight = finite(weight_name, weight.into_iter().collect())?;
        let metadata = file.metadata()?;
        if has_norm {
            let (mean, variance) = (vector("head.0.running_mean", dim)?, vector("head.0.running_var", dim)?);
            let eps = metadata.get("batch_norm_eps").map_or(Some(BATCH_NORM_EPS), |eps| eps.parse().ok());
            let item = |name: &str| format!("{}: {name}", path.display());
            let eps = eps.filter(|eps| *eps > 0.0).ok_or_else(|| {
                Error::value(item("metadata `batch_norm_eps`"), "a number above 0", &metadata["batch_norm_eps"])
            })?;
            if let Some(negative) = variance.iter().find(|variance| **variance < 0.0) {
                return Err(Error::value(item("tensor `head.0.running_var`"), "numbers of at least 0", negative));
            }
            for (row, bias) in weight.chunks_exact_mut(dim).zip(&mut bias) {
                for ((weight, mean), variance) in row.iter_mut().zip(&mean).zip(&variance) {
                    *weight /= (variance + eps).sqrt();
                    *bias -= *weight * mean;
                }
            }
        }
        let names = match metadata.get("class_names") {
            Some(names) => Some(read_names(path, names, classes)?),
            None => None,
        };
        let weight: Vec<f32> = finite(weight_name, weight)?.into_iter().map(|value| value as f32).collect();
        let bias = finite(bias_name, bias)?.into_iter().map(|value| value as f32).collect();
        let (mut int8, mut scales) = (vec![0; classes * dim], vec![0.0; classes]);
        quant::quantise_matrix(&weight, (classes, dim), Layout::ROW_MAJOR, &mut int8, &mut scales)?;
        let checkpoint = metadata.get(CHECKPOINT).cloned();
        Ok(Self { dim, weight, int8: (int8, scales), bias, names, checkpoint })
    }

    /// SHA-256 of the checkpoint's weights whose features it was trained on, where the file says.
    pub fn checkpoint(&self) -> Option<&str> {
        self.checkpoint.as_deref()
    }

    /// The classifier as a pack of this precision holds it: f32 in a float pack, else int8.
    ///
    /// # Errors
    /// None in practice: [`open`](Self::open) checked everything.
    pub fn classifier(&self, precision: Precision) -> Result<Classifier<'_>, Error> {
        let (weights, scales) = &self.int8;
        let data = match precision {
            Precision::F32 | Precision::F16 => Data::F32(&self.weight),
            Precision::Int8 | Precision::Int4 => Data::Int8 { weights, scales, layout: Layout::ROW_MAJOR },
        };
        let weight = Matrix { rows: self.bias.len(), cols: self.dim, data };
        Ok(Classifier::new(weight, &self.bias, self.names.as_deref())?)
    }
}

/// A JSON list of names as lines.
fn read_names(path: &Path, json: &str, classes: usize) -> Result<String, Error> {
    let names: Option<Vec<String>> = serde_json::from_str(json).ok();
    let fits = |names: &Vec<String>| names.len() == classes && names.iter().all(|name| !name.contains('\n'));
    let Some(names) = names.filter(fits) else {
        let item = format!("{}: metadata `class_names`", path.display());
        return Err(Error::value(item, format!("a JSON list of {classes} names, a line each"), json));
    };
    Ok(names.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::{serialize, tensor::TensorView, Dtype};
    use std::collections::HashMap;

    type Tensor<'a> = (&'a str, &'a [usize], &'a [f32]);

    fn write(path: &Path, tensors: &[Tensor<'_>], metadata: &[(&str, &str)]) {
        let bytes: Vec<Vec<u8>> = tensors
            .iter()
            .map(|(_, _, values)| values.iter().flat_map(|value| value.to_le_bytes()).collect())
            .collect();
        let views = tensors
            .iter()
            .zip(&bytes)
            .map(|((name, shape, _), bytes)| (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap()));
        let metadata: HashMap<String, String> =
            metadata.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        std::fs::write(path, serialize(views, Some(metadata)).unwrap()).unwrap();
    }

    #[test]
    fn a_batch_norm_is_folded_in() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("head.safetensors");
        let (mean, variance): ([f32; 2], [f32; 2]) = ([1.0, -2.0], [4.0, 0.25]);
        let (weight, bias): ([f32; 6], [f32; 3]) = ([2.0, 1.0, -4.0, 0.5, 0.0, 8.0], [1.0, 2.0, 3.0]);
        let tensors: [Tensor<'_>; 4] = [
            ("head.0.running_mean", &[2], &mean),
            ("head.0.running_var", &[2], &variance),
            ("head.1.weight", &[3, 2], &weight),
            ("head.1.bias", &[3], &bias),
        ];
        write(&path, &tensors, &[("class_names", "[\"a\",\"b b\",\"c\"]"), ("batch_norm_eps", "1e-9")]);
        let head = LinearHead::open(&path, 2).unwrap();
        let float = head.classifier(Precision::F16).unwrap();
        let mut logits = [0.0; 3];
        let x = [2.0f32, -1.0];
        float.logits(&x, &mut logits).unwrap();
        for (class, logit) in logits.iter().enumerate() {
            let row = &weight[2 * class..];
            let normed = [(x[0] - mean[0]) / variance[0].sqrt(), (x[1] - mean[1]) / variance[1].sqrt()];
            let exact = row[0] * normed[0] + row[1] * normed[1] + bias[class];
            assert!((logit - exact).abs() < 1e-5, "{logit} {exact}");
        }
        assert_eq!(float.name(1), Some("b b"));
        let mut close = [0.0; 3];
        head.classifier(Precision::Int8).unwrap().logits(&x, &mut close).unwrap();
        assert!(logits.iter().zip(close).all(|(a, b)| (a - b).abs() < 0.2), "{logits:?} {close:?}");

        // A head without a norm.
        write(&path, &[("head.weight", &[3, 2], &weight), ("head.bias", &[3], &bias)], &[]);
        let plain = LinearHead::open(&path, 2).unwrap();
        assert_eq!(plain.classifier(Precision::F32).unwrap().name(0), None);
        assert_eq!(plain.weight, weight);
    }

    #[test]
    fn each_fault_is_named() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("h.safetensors");
        let (weight, bias): ([f32; 6], [f32; 3]) = ([1.0; 6], [0.0; 3]);
        let open = |tensors: &[Tensor<'_>], metadata: &[(&str, &str)]| {
            write(&path, tensors, metadata);
            LinearHead::open(&path, 2).unwrap_err().to_string()
        };
        let (w, b): (Tensor<'_>, Tensor<'_>) = (("head.weight", &[3, 2], &weight), ("head.bias", &[3], &bias));
        let normed: [Tensor<'_>; 4] = [
            ("head.0.running_mean", &[2], &[0.0, 0.0]),
            ("head.0.running_var", &[2], &[1.0, -1.0]),
            ("head.1.weight", &[3, 2], &weight),
            ("head.1.bias", &[3], &bias),
        ];
        let cases = [
            ("one called `head.weight`", open(&[b], &[])),
            ("one called `head.bias`", open(&[w], &[])),
            ("`head.weight`: expected shape [classes, 2]", open(&[("head.weight", &[2, 3], &weight), b], &[])),
            ("`head.bias`: expected shape [3]", open(&[w, ("head.bias", &[2], &[0.0; 2])], &[])),
            ("finite numbers, found NaN at element 1", open(&[w, ("head.bias", &[3], &[0.0, f32::NAN, 0.0])], &[])),
            ("a JSON list of 3 names", open(&[w, b], &[("class_names", "[\"a\"]")])),
            ("numbers of at least 0, found -1", open(&normed, &[])),
            ("expected a number above 0, found x", open(&normed, &[("batch_norm_eps", "x")])),
        ];
        for (expected, message) in cases {
            assert!(message.contains(expected) && message.contains("h.safetensors"), "{expected:?} in {message:?}");
        }
    }
}
