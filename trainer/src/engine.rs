//! The Burn model as an [`Engine`]: the same tensors in and out as the reference, ONNX and packs.

use std::path::Path;

use burn::tensor::Tensor;
use ndarray::{Array2, Array3, ArrayView2, ArrayView3};
use sorcen_export::engine::Encoded;
use sorcen_export::{Engine, Error};
use sorcen_runtime::ModelConfig;

use crate::checkpoint;
use crate::data::DataError;
use crate::kernels::Kernels;
use crate::model::layers::Dropout;
use crate::model::{block, indices, probe_features, Layout, Sorcen};

/// A model on a Burn backend, for inference.
#[derive(Debug)]
pub struct BurnEngine<B: Kernels> {
    config: ModelConfig,
    model: Sorcen<B>,
    device: B::Device,
}

impl<B: Kernels> BurnEngine<B> {
    /// Loads a checkpoint folder onto `device`.
    ///
    /// # Errors
    /// [`DataError`] names the file and the first tensor that is missing or wrong.
    pub fn open(dir: &Path, device: B::Device) -> Result<Self, DataError> {
        let (config, model) = checkpoint::load_model(dir, &device)?;
        Ok(Self { config, model, device })
    }

    /// A model in memory.
    pub fn new(config: &ModelConfig, model: Sorcen<B>, device: B::Device) -> Self {
        Self { config: *config, model, device }
    }

    /// The same model, unopened: initial weights, as training would start from.
    pub fn untrained(config: &ModelConfig, seed: u64, device: B::Device) -> Self {
        use crate::model::weight::Weights as _;
        let mut model = Sorcen::new(config, &device);
        model.initialise("", seed, &device);
        Self { config: *config, model, device }
    }

    /// Ids and positions `[B, N]` (no class token) as the encoder takes them.
    fn layout(&self, ids: ArrayView2<i64>, positions: ArrayView2<i64>) -> Result<Layout, Error> {
        let config = &self.config;
        let in_range = |name: &str, values: ArrayView2<i64>, limit: usize| match values
            .indexed_iter()
            .find(|(_, &value)| !(0..limit as i64).contains(&value))
        {
            None => Ok(()),
            Some(((b, n), found)) => {
                Err(Error::value(format!("`{name}`[{b}, {n}]"), format!("0 to {}", limit - 1), found))
            }
        };
        in_range("token_ids", ids, config.vocab_size)?;
        in_range("positions", positions, config.tokens())?;
        if ids.dim() != positions.dim() {
            return Err(Error::value(
                "`positions`",
                format!("shape {:?}", ids.dim()),
                format!("{:?}", positions.dim()),
            ));
        }
        let (batch, _) = ids.dim();
        let with_class = |values: ArrayView2<i64>, class: i32, shift: i64| -> Vec<i32> {
            let row = |row: ndarray::ArrayView1<i64>| {
                std::iter::once(class).chain(row.iter().map(|&v| (v + shift) as i32).collect::<Vec<_>>())
            };
            values.rows().into_iter().flat_map(row).collect()
        };
        Ok(Layout {
            batch,
            ids: with_class(ids, config.class_token_id as i32, 0),
            positions: with_class(positions, 0, 1),
            canvas: Vec::new(),
        })
    }

    /// Features `[B, D]` of whole images `ids` `[B, T]` with dropout at the token embedding alone.
    ///
    /// The official linear probe trains its head on these, since it leaves the frozen encoder in train mode
    /// (timm's blocks have no dropout there). Without dropout they are [`Engine::encode`]'s.
    ///
    /// # Errors
    /// [`Error::Value`] where the ids do not fit the model.
    pub fn features_with_dropout(&self, ids: ArrayView2<i64>, dropout: &Dropout) -> Result<Array2<f32>, Error> {
        let positions = Array2::from_shape_fn(ids.dim(), |(_, at)| at as i64);
        let layout = self.layout(ids, positions.view())?;
        let (ids, positions) = (indices(&layout.ids, &self.device), indices(&layout.positions, &self.device));
        let x = self.model.embed.forward(ids, positions, layout.batch, dropout);
        let last = block::run(&self.model.blocks, x, &Dropout::off());
        array(values(probe_features(last)), (layout.batch, self.config.embed_dim))
    }
}

impl<B: Kernels> Engine for BurnEngine<B> {
    fn name(&self) -> &str {
        "burn"
    }

    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn encode(&self, ids: ArrayView2<i64>, positions: ArrayView2<i64>) -> Result<Encoded, Error> {
        let layout = self.layout(ids, positions)?;
        let (batch, kept) = ids.dim();
        let (last, latent) = self.model.encode(&layout, &self.device, &Dropout::off());
        let features = probe_features(last);
        Ok(Encoded {
            latent: array(values(latent), (batch, 1 + kept, self.config.embed_dim))?,
            features: array(values(features), (batch, self.config.embed_dim))?,
        })
    }

    fn decode(&self, latent: ArrayView3<f32>, source: ArrayView2<i64>) -> Result<Array3<f32>, Error> {
        let config = &self.config;
        let (batch, rows, width) = latent.dim();
        if width != config.embed_dim || source.dim() != (batch, config.tokens()) {
            let expected = format!("latent [B, N, {}] and source [B, {}]", config.embed_dim, config.tokens());
            return Err(Error::value("shapes", expected, format!("{:?} and {:?}", latent.dim(), source.dim())));
        }
        let mut canvas = Vec::with_capacity(batch * config.sequence());
        for (b, row) in source.rows().into_iter().enumerate() {
            let start = b * rows;
            canvas.push(start as i32);
            for (t, &from) in row.iter().enumerate() {
                if !(0..rows as i64).contains(&from) {
                    return Err(Error::value(format!("`source`[{b}, {t}]"), format!("0 to {}", rows - 1), from));
                }
                canvas.push((start + from as usize) as i32);
            }
        }
        let data = burn::tensor::TensorData::new(latent.iter().copied().collect::<Vec<f32>>(), [batch, rows, width]);
        let latent = Tensor::from_data(data, &self.device);
        let logits = self.model.decode_canvas(config, latent, indices(&canvas, &self.device), &Dropout::off());
        array(values(logits), (batch, config.tokens(), config.codebook_size))
    }
}

fn values<B: Kernels, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().to_vec().unwrap_or_default()
}

fn array<D: ndarray::Dimension, S: ndarray::ShapeArg<Dim = D> + Clone + std::fmt::Debug>(
    values: Vec<f32>,
    shape: S,
) -> Result<ndarray::Array<f32, D>, Error> {
    let found = values.len();
    let expected = format!("{shape:?}");
    let array = ndarray::Array::from_vec(values).into_shape_with_order(shape);
    array.map_err(|_| Error::value("output", expected, format!("{found} numbers")))
}
