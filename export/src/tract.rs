//! Runs exported ONNX files in tract: an implementation of ONNX that shares nothing with ours.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use ndarray::{Array3, Array4, ArrayView2, ArrayView3, Ix2, Ix3, Ix4};
use sorcen_runtime::ModelConfig;
use tract_onnx::prelude::*;

use crate::{
    engine::{self, check_decode, check_encode, check_images, Encoded, Engine},
    error::Error,
    onnx,
};

/// The files of an export folder; that of a step is read when it is run, since it holds all weights once more.
pub struct Tract {
    metadata: Metadata,
    name: String,
    encoder: File,
    decoder: File,
    step: Option<PathBuf>,
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
        let path = |name: &str| dir.join(name);
        let (encoder, metadata) = open(&path(onnx::ENCODER_FILE))?;
        let (decoder, of_decoder) = open(&path(onnx::DECODER_FILE))?;
        of_decoder.check_beside(&metadata, &path(onnx::DECODER_FILE))?;
        let step = Some(path(onnx::STEP_FILE)).filter(|step| step.exists());
        Ok(Self { name: format!("ONNX {} in tract", metadata.precision), metadata, encoder, decoder, step })
    }

    /// The model card of the files.
    pub fn card(&self) -> &serde_json::Value {
        &self.metadata.card
    }
}

/// What a tokenizer's encoder in an export folder makes of images `[B, 3, side, side]`, 0 to 1: ids `[B, grid, grid]`.
///
/// # Errors
/// [`Error::Onnx`] where the file cannot be read or run.
pub fn encode_images(dir: &Path, images: &Array4<f32>) -> Result<Array3<i64>, Error> {
    let run = |model: &Path| -> TractResult<Array3<i64>> {
        let out = run_one(model, images.clone().into_tensor())?;
        Ok(out.to_array_view::<i64>()?.into_dimensionality::<Ix3>()?.to_owned())
    };
    let path = dir.join(onnx::TOKENIZER_ENCODER_FILE);
    run(&path).map_err(onnx_error(&path))
}

/// What a tokenizer's decoder in an export folder makes of ids `[B, grid, grid]`: images `[B, 3, side, side]`, 0 to 1.
///
/// # Errors
/// As [`encode_images`].
pub fn decode_ids(dir: &Path, ids: &Array3<i64>) -> Result<Array4<f32>, Error> {
    let run = |model: &Path| -> TractResult<Array4<f32>> {
        let out = run_one(model, ids.clone().into_tensor())?;
        Ok(out.to_array_view::<f32>()?.into_dimensionality::<Ix4>()?.to_owned())
    };
    let path = dir.join(onnx::TOKENIZER_DECODER_FILE);
    run(&path).map_err(onnx_error(&path))
}

/// Runs a file of one input and one output, whose batch size is free.
fn run_one(path: &Path, input: Tensor) -> TractResult<TValue> {
    let model = tract_onnx::onnx().model_for_path(path)?.into_typed()?;
    let batch = SymbolValues::default().with(&model.symbols.sym("B"), input.shape()[0] as i64);
    let plan = model.concretize_dims(&batch)?.into_optimized()?.into_runnable()?;
    Ok(plan.run(tvec![input.into()])?.remove(0))
}

impl Engine for Tract {
    fn name(&self) -> &str {
        &self.name
    }

    fn config(&self) -> &ModelConfig {
        &self.metadata.config
    }

    fn encode(&self, ids: ArrayView2<i64>, positions: ArrayView2<i64>) -> Result<Encoded, Error> {
        check_encode(self.config(), ids, positions)?;
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
        check_decode(self.config(), latent, source)?;
        let (batch, rows, _) = latent.dim();
        let inputs = tvec![latent.to_owned().into_tensor().into(), source.to_owned().into_tensor().into()];
        let run = || -> TractResult<Array3<f32>> {
            let outputs = self.decoder.plan(batch, rows - 1)?.run(inputs)?;
            Ok(outputs[0].to_array_view::<f32>()?.into_dimensionality::<Ix3>()?.to_owned())
        };
        run().map_err(|error| self.decoder.error(error))
    }

    fn step(&self, token_ids: ArrayView2<i64>) -> Result<Array3<f32>, Error> {
        check_images(self.config(), token_ids, "`token_ids`")?;
        let Some(path) = &self.step else { return engine::step(self, token_ids) };
        let (file, metadata) = open(path)?;
        metadata.check_beside(&self.metadata, path)?;
        let run = || -> TractResult<Array3<f32>> {
            let input = token_ids.to_owned().into_tensor();
            let outputs = file.plan(token_ids.nrows(), token_ids.ncols())?.run(tvec![input.into()])?;
            Ok(outputs[0].to_array_view::<f32>()?.into_dimensionality::<Ix3>()?.to_owned())
        };
        run().map_err(onnx_error(path))
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

    /// Refuses a file that does not go with the encoder beside it: another checkpoint, sizes or precision.
    ///
    /// # Errors
    /// [`Error::Value`] with both.
    pub fn check_beside(&self, encoder: &Self, path: &Path) -> Result<(), Error> {
        let check = |item: &str, expected: &dyn std::fmt::Debug, found: &dyn std::fmt::Debug| {
            let (expected, found) = (format!("{expected:?}"), format!("{found:?}"));
            match expected == found {
                true => Ok(()),
                false => {
                    let expected = format!("{expected}, as in {}", onnx::ENCODER_FILE);
                    Err(Error::value(format!("{}: {item}", path.display()), expected, found))
                }
            }
        };
        check("source checkpoint", &encoder.checkpoint_sha256, &self.checkpoint_sha256)?;
        check("configuration", &encoder.config, &self.config)?;
        check("precision", &encoder.precision, &self.precision)
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
