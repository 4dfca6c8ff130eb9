//! Runs exported ONNX files in onnxruntime, through Python: the runtime that most people deploy with.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use ndarray::{Array3, ArrayView2, ArrayView3};
use sorcen_runtime::ModelConfig;

use crate::{
    engine::{check_decode, check_encode, Encoded, Engine},
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
    /// [`Error::Onnx`] where they were not written by this exporter.
    pub fn open(python: &Python, dir: &Path) -> Result<Self, Error> {
        onnx::check_folder(dir)?;
        let metadata = Metadata::read(&dir.join(onnx::ENCODER_FILE))?;
        let name = format!("ONNX {} in onnxruntime", metadata.precision);
        Ok(Self { python: python.clone(), dir: dir.to_owned(), metadata, name })
    }

    /// How the matrices are stored: `f32`, `f16` or `int8`.
    pub fn precision(&self) -> &str {
        &self.metadata.precision
    }

    /// Runs one of the files.
    fn run(&self, file: &str, inputs: &TensorWriter) -> Result<TensorFile, Error> {
        let temporary = tempfile::tempdir().map_err(Error::io(&std::env::temp_dir(), "write"))?;
        let (input, output) = (temporary.path().join("in"), temporary.path().join("out"));
        inputs.write(&input)?;
        self.python.run_file(&self.dir.join(file), &input, &output, None)?;
        TensorFile::open(&output)
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
}
