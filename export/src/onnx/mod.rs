//! Writes a checkpoint as ONNX: `encoder.onnx` and `decoder.onnx`, for any runtime that reads opset 17.
//!
//! Batch size and number of kept tokens are free. The metadata of each file says where it comes from.

use std::{
    fs,
    path::{Path, PathBuf},
};

use onnx_protobuf::{Message, ModelProto, OperatorSetIdProto};
use protobuf::MessageField;

use crate::{atomic, checkpoint::Checkpoint, error::Error};

mod graph;
mod model;

/// File name of the encoder in an export folder.
pub const ENCODER_FILE: &str = "encoder.onnx";
/// File name of the decoder in an export folder.
pub const DECODER_FILE: &str = "decoder.onnx";

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
    /// Which tool wrote the file, with its version.
    pub const TOOL: &str = "sorcen.tool";
    /// Under which terms the file may be used.
    pub const LICENCE: &str = "licence";
}

/// Writes `encoder.onnx` and `decoder.onnx` into `dir` (made if missing); returns their paths.
///
/// `licence` goes into the metadata as it is.
///
/// # Errors
/// [`Error::Io`] where a file cannot be written.
pub fn export(checkpoint: &Checkpoint, dir: &Path, licence: &str) -> Result<[PathBuf; 2], Error> {
    let sha256 = checkpoint.sha256();
    let config = serde_json::to_string(&checkpoint.config)
        .map_err(|reason| Error::ConfigJson { path: dir.to_owned(), reason })?;
    let tool = concat!("sorcen-export ", env!("CARGO_PKG_VERSION"));
    let metadata =
        [(key::CONFIG, config.as_str()), (key::CHECKPOINT, &sha256), (key::TOOL, tool), (key::LICENCE, licence)];
    let files = [dir.join(ENCODER_FILE), dir.join(DECODER_FILE)];
    // One after the other: each holds a copy of its weights while it is written.
    write(&files[0], model::encoder(checkpoint), &metadata)?;
    write(&files[1], model::decoder(checkpoint), &metadata)?;
    Ok(files)
}

fn write(path: &Path, graph: graph::Graph, metadata: &[(&str, &str)]) -> Result<(), Error> {
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
