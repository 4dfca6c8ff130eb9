//! The head of a linear probe: BatchNorm without an affine part, then a linear (MAE's `main_linprobe.py`).

use std::collections::HashMap;
use std::path::Path;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};
use safetensors::tensor::{Dtype, TensorView};
use sorcen_export::atomic;
use sorcen_export::fingerprint::CHECKPOINT;
use sorcen_runtime::rng::{Rng, Stream};

use crate::data::DataError;
use crate::kernels::Kernels;
use crate::model::batch_norm::{standardise_batch, BatchStatistics, RunningStatistics};
use crate::model::layers::Linear;
use crate::model::weight::{weights, Weights};

/// Epsilon of the head's BatchNorm.
const EPS: f32 = 1e-6;
/// Deviation of the initial weights.
const INITIAL_DEVIATION: f64 = 0.01;
/// What the names begin with in files.
const PATH: &str = "head";

/// Features `[B, D]` to class logits `[B, classes]`.
#[derive(Clone, Debug)]
pub struct ProbeHead<B: Backend> {
    running: RunningStatistics<B>,
    linear: Linear<B>,
}

weights!(ProbeHead { running => "0", linear => "1" });

impl<B: Kernels> ProbeHead<B> {
    /// Initial values, a pure function of the arguments: weights normal with deviation 0.01, bias 0.
    pub fn new(width: usize, classes: usize, seed: u64, device: &B::Device) -> Self {
        let mut head =
            Self { running: RunningStatistics::new(width, device), linear: Linear::new(width, classes, device) };
        head.initialise(PATH, seed, device);
        let rng = Rng::new(seed, Stream::Init, 0);
        let weights = (0..(width * classes) as u64).map(|i| (INITIAL_DEVIATION * rng.normal(i)) as f32).collect();
        head.linear.weight.set_from(weights, device);
        head
    }

    /// Train mode: logits by the statistics of this batch, and these.
    pub fn forward_train(&self, x: Tensor<B, 2>) -> (Tensor<B, 2>, BatchStatistics<B>) {
        let (x, statistics) = standardise_batch(x, EPS);
        (self.linear.forward(x), statistics)
    }

    /// Moves the running statistics towards those of a batch.
    pub fn update_statistics(&mut self, batch: BatchStatistics<B>) {
        self.running.update(batch);
    }

    /// Eval mode: logits by the running statistics.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.linear.forward(self.running.standardise(x, EPS))
    }

    /// The same head below autodiff.
    pub fn inner(&self) -> ProbeHead<B::InnerBackend>
    where
        B: AutodiffBackend,
    {
        ProbeHead { running: self.running.inner(), linear: self.linear.inner() }
    }

    /// Writes a safetensors file under the official names: `head.0.running_mean` `[D]`, `head.0.running_var`
    /// `[D]`, `head.1.weight` `[classes, D]`, `head.1.bias` `[classes]`, all F32. Its metadata: `format`
    /// ("sorcen-linear-head"), `version` ("1"), `class_names` (a JSON list), `batch_norm_eps`, and `checkpoint_sha256`:
    /// that of the weights whose features it was trained on, where they are known.
    ///
    /// Logits of a feature x: `weight · (x - running_mean) / sqrt(running_var + eps) + bias`. For a device the
    /// two fold into one linear: weight' = weight / sqrt(running_var + eps), bias' = bias - weight' · running_mean.
    ///
    /// # Errors
    /// [`DataError`] where it cannot be written.
    pub fn save(&self, path: &Path, class_names: &[String], encoder: Option<&str>) -> Result<(), DataError> {
        let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
        self.visit(PATH, &mut |name, weight| {
            let bytes = weight.to_vec().into_iter().flat_map(f32::to_le_bytes).collect();
            tensors.push((name.to_string(), weight.dims().to_vec(), bytes));
        });
        let class_names = serde_json::Value::from(class_names).to_string();
        let metadata = [
            ("format", "sorcen-linear-head".to_string()),
            ("version", "1".into()),
            ("class_names", class_names),
            ("batch_norm_eps", format!("{EPS:e}")),
        ];
        let mut metadata: HashMap<String, String> = metadata.map(|(key, value)| (key.into(), value)).into();
        metadata.extend(encoder.map(|sha256| (CHECKPOINT.into(), sha256.into())));
        let views = tensors.iter().map(|(name, dims, bytes)| {
            TensorView::new(Dtype::F32, dims.clone(), bytes).map(|view| (name.as_str(), view))
        });
        let bytes = views
            .collect::<Result<Vec<_>, _>>()
            .and_then(|views| safetensors::serialize(views, Some(metadata)))
            .map_err(|error| DataError::invalid(path, "tensors", "a head to write", error))?;
        Ok(atomic::write_bytes(path, &bytes)?)
    }
}

/// Rows `[D]` as a tensor `[rows, D]`.
pub(super) fn tensor<'a, B: Backend>(
    rows: impl ExactSizeIterator<Item = &'a Vec<f32>>,
    width: usize,
    device: &B::Device,
) -> Tensor<B, 2> {
    let count = rows.len();
    let mut values = Vec::with_capacity(count * width);
    rows.for_each(|row| values.extend_from_slice(row));
    Tensor::from_data(TensorData::new(values, [count, width]), device)
}
