//! Runs exported ONNX files in tract: an implementation of ONNX that shares nothing with ours.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use ndarray::{Array3, ArrayView2, ArrayView3, Ix2, Ix3};
use sorcen_runtime::ModelConfig;
use tract_onnx::prelude::*;

use crate::{
    engine::{check_decode, check_encode, Encoded, Engine},
    error::Error,
    onnx,
};

/// The two files of an export folder.
pub struct Tract {
    config: ModelConfig,
    name: String,
    encoder: File,
    decoder: File,
}

/// An ONNX file with free sizes, and the plan made for the sizes last asked for.
struct File {
    path: PathBuf,
    model: TypedModel,
    plan: Mutex<Option<([i64; 2], Arc<Plan>)>>,
}

type Plan = TypedRunnableModel<TypedModel>;

impl Tract {
    /// Opens `encoder.onnx` and `decoder.onnx` of an export folder.
    ///
    /// # Errors
    /// [`Error::Onnx`] where a file cannot be read, is not ONNX, or was not written by this exporter;
    /// [`Error::Value`] where the two files are of different models.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        onnx::check_folder(dir)?;
        let (encoder_path, decoder_path) = (dir.join(onnx::ENCODER_FILE), dir.join(onnx::DECODER_FILE));
        let (encoder, Metadata { config, checkpoint_sha256: expected, precision, .. }) = open(&encoder_path)?;
        let (decoder, Metadata { checkpoint_sha256: found, .. }) = open(&decoder_path)?;
        if expected != found {
            let item = format!("{}: source checkpoint", decoder_path.display());
            return Err(Error::value(item, format!("{expected}, as in {}", onnx::ENCODER_FILE), found));
        }
        Ok(Self { config, name: format!("ONNX {precision} in tract"), encoder, decoder })
    }
}

impl Engine for Tract {
    fn name(&self) -> &str {
        &self.name
    }

    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn encode(&self, ids: ArrayView2<i64>, positions: ArrayView2<i64>) -> Result<Encoded, Error> {
        check_encode(&self.config, ids, positions)?;
        let inputs = tvec![ids.to_owned().into_tensor().into(), positions.to_owned().into_tensor().into()];
        let run = || -> TractResult<Encoded> {
            let outputs = self.encoder.plan(ids.nrows(), ids.ncols())?.run(inputs)?;
            let latent = outputs[0].to_array_view::<f32>()?.into_dimensionality::<Ix3>()?.to_owned();
            let features = outputs[1].to_array_view::<f32>()?.into_dimensionality::<Ix2>()?.to_owned();
            Ok(Encoded { latent, features })
        };
        run().map_err(|error| self.encoder.error(error))
    }

    fn decode(&self, latent: ArrayView3<f32>, source: ArrayView2<i64>) -> Result<Array3<f32>, Error> {
        check_decode(&self.config, latent, source)?;
        let (batch, rows, _) = latent.dim();
        let inputs = tvec![latent.to_owned().into_tensor().into(), source.to_owned().into_tensor().into()];
        let run = || -> TractResult<Array3<f32>> {
            let outputs = self.decoder.plan(batch, rows - 1)?.run(inputs)?;
            Ok(outputs[0].to_array_view::<f32>()?.into_dimensionality::<Ix3>()?.to_owned())
        };
        run().map_err(|error| self.decoder.error(error))
    }
}

impl File {
    /// The plan for a batch of `batch` images of `kept` tokens.
    fn plan(&self, batch: usize, kept: usize) -> TractResult<Arc<Plan>> {
        let sizes = [batch as i64, kept as i64];
        let mut last = self.plan.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some((of, plan)) = &*last {
            if *of == sizes {
                return Ok(plan.clone());
            }
        }
        let symbols = ["B", "N"].map(|name| self.model.symbols.sym(name));
        let values = SymbolValues::default().with(&symbols[0], sizes[0]).with(&symbols[1], sizes[1]);
        let plan = Arc::new(self.model.concretize_dims(&values)?.into_optimized()?.into_runnable()?);
        *last = Some((sizes, plan.clone()));
        Ok(plan)
    }

    fn error(&self, error: TractError) -> Error {
        onnx_error(&self.path)(error)
    }
}

/// Where an ONNX file of ours comes from.
pub struct Metadata {
    /// Sizes of the model; valid.
    pub config: ModelConfig,
    /// SHA-256 of the checkpoint's weights.
    pub checkpoint_sha256: String,
    /// How the matrices are stored: `f32`, `f16` or `int8`.
    pub precision: String,
    /// The model card: tool, licence, training run, …
    pub card: serde_json::Value,
}

impl Metadata {
    /// Reads a file's metadata.
    ///
    /// # Errors
    /// [`Error::Onnx`] where it is not ONNX or not of this exporter, [`Error::ConfigJson`], [`Error::Invalid`],
    /// [`Error::Json`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        let proto = tract_onnx::onnx().proto_model_for_path(path).map_err(onnx_error(path))?;
        Self::of(&proto, path)
    }

    fn of(proto: &tract_onnx::pb::ModelProto, path: &Path) -> Result<Self, Error> {
        let entry = |key: &str| {
            let entry = proto.metadata_props.iter().find(|entry| entry.key == key);
            entry.map(|entry| entry.value.clone()).ok_or_else(|| {
                let found = format!("no metadata `{key}`: not written by this exporter");
                Error::Onnx { path: path.to_owned(), found }
            })
        };
        let config: ModelConfig = serde_json::from_str(&entry(onnx::key::CONFIG)?)
            .map_err(|reason| Error::ConfigJson { path: path.to_owned(), reason })?;
        config.validate().map_err(|reason| Error::Invalid { path: path.to_owned(), reason })?;
        Ok(Self {
            config,
            checkpoint_sha256: entry(onnx::key::CHECKPOINT)?,
            precision: entry(onnx::key::PRECISION)?,
            card: serde_json::from_str(&entry(onnx::key::CARD)?)
                .map_err(|reason| Error::Json { path: path.to_owned(), reason })?,
        })
    }
}

/// The file as a typed model, with its metadata.
fn open(path: &Path) -> Result<(File, Metadata), Error> {
    let reader = tract_onnx::onnx();
    let proto = reader.proto_model_for_path(path).map_err(onnx_error(path))?;
    let metadata = Metadata::of(&proto, path)?;
    if metadata.precision == "int8" {
        // It would take the first channel's scale for all.
        let found = "int8 with scales per channel, which tract does not read: run it in onnxruntime";
        return Err(Error::Onnx { path: path.to_owned(), found: found.into() });
    }
    let model = reader
        .parse(&proto, path.parent().and_then(Path::to_str))
        .and_then(|parsed| parsed.model.into_typed())
        .and_then(TypedModel::into_decluttered)
        .map_err(onnx_error(path))?;
    Ok((File { path: path.to_owned(), model, plan: Mutex::new(None) }, metadata))
}

fn onnx_error(path: &Path) -> impl Fn(TractError) -> Error + '_ {
    move |error| Error::Onnx { path: path.to_owned(), found: format!("{error:#}") }
}
