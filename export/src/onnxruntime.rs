//! Runs exported ONNX files in onnxruntime, through Python: the runtime that most people deploy with.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use ndarray::{Array3, Array4, ArrayView2, ArrayView3};
use sorcen_runtime::ModelConfig;

use crate::{
    engine::{self, check_decode, check_encode, check_images, Encoded, Engine},
    error::Error,
    onnx,
    tensors::{TensorFile, TensorWriter},
    tract::Metadata,
};

const SCRIPT: &str = include_str!("onnxruntime.py");

/// A Python interpreter that has onnxruntime and numpy.
#[derive(Clone, Debug)]
pub struct Python(PathBuf);

impl Python {
    /// Checks that an interpreter has what is needed.
    ///
    /// # Errors
    /// [`Error::Value`] says what it lacks.
    pub fn new(interpreter: &Path) -> Result<Self, Error> {
        let python = Self(interpreter.to_owned());
        python.run("import numpy, onnxruntime", &[])?;
        Ok(python)
    }

    /// Runs one ONNX file on the tensors of a safetensors file; its outputs go into another. `optimised` is where
    /// onnxruntime writes the model as it runs it.
    ///
    /// # Errors
    /// [`Error::Value`] with the last line that Python said.
    pub fn run_file(&self, model: &Path, input: &Path, output: &Path, optimised: Option<&Path>) -> Result<(), Error> {
        let paths: Vec<&Path> = [model, input, output].into_iter().chain(optimised).collect();
        self.run(SCRIPT, &paths)
    }

    /// Runs one ONNX file on tensors.
    fn run_tensors(&self, model: &Path, inputs: &TensorWriter) -> Result<TensorFile, Error> {
        let temporary = tempfile::tempdir().map_err(Error::io(&std::env::temp_dir(), "write"))?;
        let (input, output) = (temporary.path().join("in"), temporary.path().join("out"));
        inputs.write(&input)?;
        self.run_file(model, &input, &output, None)?;
        TensorFile::open(&output)
    }

    /// What a tokenizer's encoder in an export folder makes of images `[B, 3, side, side]`, 0 to 1: ids `[B, grid, grid]`.
    ///
    /// # Errors
    /// As [`run_file`](Self::run_file).
    pub fn encode_images(&self, dir: &Path, images: &Array4<f32>) -> Result<Array3<i64>, Error> {
        let mut inputs = TensorWriter::default();
        inputs.floats("image", images.view());
        self.run_tensors(&dir.join(onnx::TOKENIZER_ENCODER_FILE), &inputs)?.ints_as("ids")
    }

    /// What a tokenizer's decoder in an export folder makes of ids `[B, grid, grid]`: images `[B, 3, side, side]`, 0 to 1.
    ///
    /// # Errors
    /// As [`run_file`](Self::run_file).
    pub fn decode_ids(&self, dir: &Path, ids: &Array3<i64>) -> Result<Array4<f32>, Error> {
        let mut inputs = TensorWriter::default();
        inputs.ints("ids", ids.view());
        self.run_tensors(&dir.join(onnx::TOKENIZER_DECODER_FILE), &inputs)?.floats_as("image")
    }

    fn run(&self, script: &str, arguments: &[&Path]) -> Result<(), Error> {
        let what = || format!("onnxruntime by `{}`", self.0.display());
        let ran = Command::new(&self.0).arg("-c").arg(script).args(arguments).output();
        let ran = ran.map_err(|reason| Error::value(what(), "a Python interpreter", reason))?;
        if ran.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&ran.stderr);
        Err(Error::value(what(), "numpy and onnxruntime, and success", said.lines().last().unwrap_or("no word")))
    }
}

/// The files of an export folder, in onnxruntime.
pub struct OnnxRuntime {
    python: Python,
    dir: PathBuf,
    metadata: Metadata,
    name: String,
}

impl OnnxRuntime {
    /// Reads what the files are.
    ///
    /// # Errors
    /// [`Error::Onnx`] where they were not written by this exporter, [`Error::Value`] where they are of different
    /// models.
    pub fn open(python: &Python, dir: &Path) -> Result<Self, Error> {
        onnx::check_folder(dir)?;
        let metadata = Metadata::read(&dir.join(onnx::ENCODER_FILE))?;
        let step = dir.join(onnx::STEP_FILE);
        for path in [Some(dir.join(onnx::DECODER_FILE)), step.exists().then_some(step)].into_iter().flatten() {
            Metadata::read(&path)?.check_beside(&metadata, &path)?;
        }
        let name = format!("ONNX {} in onnxruntime", metadata.precision);
        Ok(Self { python: python.clone(), dir: dir.to_owned(), metadata, name })
    }

    /// How the matrices are stored: `f32`, `f16` or `int8`.
    pub fn precision(&self) -> &str {
        &self.metadata.precision
    }

    /// Runs one of the files.
    fn run(&self, file: &str, inputs: &TensorWriter) -> Result<TensorFile, Error> {
        self.python.run_tensors(&self.dir.join(file), inputs)
    }
}

impl Engine for OnnxRuntime {
    fn name(&self) -> &str {
        &self.name
    }

    fn config(&self) -> &ModelConfig {
        &self.metadata.config
    }

    fn encode(&self, ids: ArrayView2<i64>, positions: ArrayView2<i64>) -> Result<Encoded, Error> {
        check_encode(self.config(), ids, positions)?;
        let mut inputs = TensorWriter::default();
        inputs.ints("token_ids", ids);
        inputs.ints("positions", positions);
        let outputs = self.run(onnx::ENCODER_FILE, &inputs)?;
        let latent = outputs.floats_as("latent")?;
        let features = outputs.floats_as("features")?;
        Ok(Encoded { latent, features })
    }

    fn decode(&self, latent: ArrayView3<f32>, source: ArrayView2<i64>) -> Result<Array3<f32>, Error> {
        check_decode(self.config(), latent, source)?;
        let mut inputs = TensorWriter::default();
        inputs.floats("latent", latent);
        inputs.ints("source", source);
        let outputs = self.run(onnx::DECODER_FILE, &inputs)?;
        outputs.floats_as("logits")
    }

    fn step(&self, token_ids: ArrayView2<i64>) -> Result<Array3<f32>, Error> {
        check_images(self.config(), token_ids, "`token_ids`")?;
        if !self.dir.join(onnx::STEP_FILE).exists() {
            return engine::step(self, token_ids);
        }
        let mut inputs = TensorWriter::default();
        inputs.ints("token_ids", token_ids);
        self.run(onnx::STEP_FILE, &inputs)?.floats_as("logits")
    }
}
