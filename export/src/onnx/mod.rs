//! Writes a checkpoint as ONNX, for any runtime that reads opset 17: encoder, decoder, both as one generation
//! step, and the tokenizer.
//!
//! Batch size and number of kept tokens are free. The metadata of each file says where it comes from; every node
//! and every value says what it is.

use std::{
    fs,
    path::{Path, PathBuf},
};

use onnx_protobuf::{Message, ModelProto, OperatorSetIdProto};
use protobuf::MessageField;

use crate::{atomic, calibrate::Ranges, checkpoint::Checkpoint, error::Error, tokenizer::PatchTokenizer};

mod graph;
mod layers;
mod model;
mod tokenizer;

/// File name of the encoder in an export folder.
pub const ENCODER_FILE: &str = "encoder.onnx";
/// File name of the decoder in an export folder.
pub const DECODER_FILE: &str = "decoder.onnx";
/// File name of one generation step in an export folder.
pub const STEP_FILE: &str = "step.onnx";
/// File name of the tokenizer's encoder in an export folder.
pub const TOKENIZER_ENCODER_FILE: &str = "tokenizer_encoder.onnx";
/// File name of the tokenizer's decoder in an export folder.
pub const TOKENIZER_DECODER_FILE: &str = "tokenizer_decoder.onnx";

/// Operator set: the first with `LayerNormalization`.
const OPSET: i64 = 17;
/// The format version that goes with it.
const IR_VERSION: i64 = 8;

/// Keys of the metadata in each file.
pub mod key {
    /// The model's sizes: the JSON of a `config.json`.
    pub const CONFIG: &str = "sorcen.config";
    /// SHA-256 of the checkpoint's `model.safetensors`.
    pub const CHECKPOINT: &str = "sorcen.checkpoint_sha256";
    /// How the matrices are stored: `f32`, `f16` or `int8`.
    pub const PRECISION: &str = "sorcen.precision";
    /// Which tool wrote the file, with its version.
    pub const TOOL: &str = "sorcen.tool";
    /// Under which terms the file may be used.
    pub const LICENCE: &str = "licence";
}

/// How the matrices are stored.
#[derive(Clone, Copy)]
pub enum Weights<'a> {
    /// As 32-bit floats.
    F32,
    /// As 16-bit floats, widened when the file is loaded: half the size, computed in f32.
    F16,
    /// As bytes with a scale an output channel, `DequantizeLinear` behind them; what enters them is quantised to
    /// bytes by these ranges (QDQ). For runtimes that turn the pattern into integer products, as onnxruntime does.
    Int8(&'a Ranges),
}

impl Weights<'_> {
    /// The name on the command line and in the metadata.
    pub const fn name(&self) -> &'static str {
        match self {
            Weights::F32 => "f32",
            Weights::F16 => "f16",
            Weights::Int8(_) => "int8",
        }
    }
}

/// How to write ONNX files.
pub struct OnnxOptions<'a> {
    /// How the matrices are stored.
    pub weights: Weights<'a>,
    /// Goes into the metadata as it is: the terms of the weights.
    pub licence: &'a str,
    /// Also writes the tokenizer's two files.
    pub tokenizer: Option<&'a PatchTokenizer>,
}

/// Writes `encoder.onnx`, `decoder.onnx` and `step.onnx` in f32 into `dir` (made if missing); returns their paths.
///
/// # Errors
/// As [`write()`].
pub fn export(checkpoint: &Checkpoint, dir: &Path, licence: &str) -> Result<Vec<PathBuf>, Error> {
    write(checkpoint, dir, &OnnxOptions { weights: Weights::F32, licence, tokenizer: None })
}

/// Writes the files of a model into `dir` (made if missing); returns their paths.
///
/// A file above 2 GB is no valid protobuf; the largest, `step.onnx` of ViT-L in f32, takes 1.6 GB.
///
/// # Errors
/// [`Error::Io`] where a file cannot be written, [`Error::Value`] where the tokenizer is another model's.
pub fn write(checkpoint: &Checkpoint, dir: &Path, options: &OnnxOptions) -> Result<Vec<PathBuf>, Error> {
    let config = &checkpoint.config;
    if let Some(tokenizer) = options.tokenizer.filter(|tokenizer| tokenizer.codes() != config.codebook_size) {
        let expected = format!("{}, the model's", config.codebook_size);
        return Err(Error::value("tokenizer: codes", expected, tokenizer.codes()));
    }
    let (grid, sha256) = (config.grid, checkpoint.sha256());
    let config = serde_json::to_string(config).map_err(|reason| Error::ConfigJson { path: dir.to_owned(), reason })?;
    let metadata = [
        (key::CONFIG, config.as_str()),
        (key::CHECKPOINT, &sha256),
        (key::PRECISION, options.weights.name()),
        (key::TOOL, concat!("sorcen-export ", env!("CARGO_PKG_VERSION"))),
        (key::LICENCE, options.licence),
    ];
    let mut paths = Vec::new();
    let mut add = |name: &str, graph: graph::Graph| {
        paths.push(dir.join(name));
        write_file(&dir.join(name), graph, &metadata)
    };
    // One after the other: each holds a copy of its weights while it is written.
    add(ENCODER_FILE, model::encoder(checkpoint, options.weights))?;
    add(DECODER_FILE, model::decoder(checkpoint, options.weights))?;
    add(STEP_FILE, model::step(checkpoint, options.weights))?;
    if let Some(patches) = options.tokenizer {
        add(TOKENIZER_ENCODER_FILE, tokenizer::encoder(patches, grid))?;
        add(TOKENIZER_DECODER_FILE, tokenizer::decoder(patches, grid))?;
    }
    Ok(paths)
}

fn write_file(path: &Path, graph: graph::Graph, metadata: &[(&str, &str)]) -> Result<(), Error> {
    let graph = graph.finish();
    let model = ModelProto {
        ir_version: IR_VERSION,
        opset_import: vec![OperatorSetIdProto { version: OPSET, ..Default::default() }],
        producer_name: env!("CARGO_PKG_NAME").into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        doc_string: graph.doc_string.clone(),
        graph: MessageField::some(graph),
        metadata_props: metadata.iter().map(|(key, value)| graph::entry(key, value)).collect(),
        ..Default::default()
    };
    atomic::write(path, |temporary| {
        let mut file = fs::File::create(temporary).map_err(Error::io(path, "write"))?;
        model.write_to_writer(&mut file).map_err(|error| Error::io(path, "write")(std::io::Error::other(error)))
    })
}
