//! Writes a checkpoint as ONNX, for any runtime that reads opset 17: encoder, decoder, both as one generation
//! step, and the tokenizer.
//!
//! Batch size and number of kept tokens are free. The metadata of each file says where it comes from; every node
//! and every value says what it is.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use onnx_protobuf::{tensor_proto::DataLocation, GraphProto, Message, ModelProto, OperatorSetIdProto};
use protobuf::MessageField;
use sorcen_runtime::schema;

use crate::{
    atomic,
    calibrate::Ranges,
    card::{self, Card},
    checkpoint::Checkpoint,
    error::Error,
    found, quantize,
    tokenizer::{AnyTokenizer, PatchTokenizer, VitTokenizer},
};

mod graph;
mod layers;
mod model;
mod network;
mod tokenizer;
mod vit;
mod vqgan;

pub use vqgan::{VqganWeights, Weight};

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

/// Bytes of weights that a file holds itself. Protobuf ends at 2 GiB; more goes into a [`data_file`] beside it.
const EMBEDDED_MAX: usize = 2_000_000_000;
/// Constants below this stay in the file in any case: shapes, which graphs are optimised by.
const EXTERNAL_MIN: usize = 1024;

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
    /// Kind, sizes and SHA-256 of a tokenizer.
    pub const TOKENIZER: &str = "sorcen.tokenizer";
    /// How the matrices are stored: `f32`, `f16` or `int8`.
    pub const PRECISION: &str = "sorcen.precision";
    /// Which tool wrote the file, with its version.
    pub const TOOL: &str = "sorcen.tool";
    /// Under which terms the file may be used.
    pub const LICENCE: &str = "licence";
    /// The model card, JSON: all of this but the config, and the training run where it is known.
    pub const CARD: &str = "sorcen.card";
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
    pub tokenizer: Option<&'a AnyTokenizer>,
}

/// Writes `encoder.onnx`, `decoder.onnx` and `step.onnx` in f32 into `dir` (made if missing); returns their paths.
///
/// # Errors
/// As [`write()`].
pub fn export(checkpoint: &Checkpoint, dir: &Path, licence: &str) -> Result<Vec<PathBuf>, Error> {
    write(checkpoint, dir, &OnnxOptions { weights: Weights::F32, licence, tokenizer: None })
}

/// Writes the files of a model into `dir` (made if missing), and their [`card::CARD_FILE`]; returns the paths of the
/// ONNX files.
///
/// The largest file of an official size is `step.onnx` of ViT-L in f32, 1.6 GB. Above 2 GB weights go into a
/// [`data_file`] (ONNX calls it external data).
///
/// # Errors
/// [`Error::Io`] where a file cannot be written, [`Error::Value`] where the tokenizer is another model's, a weight does
/// not fit f16, or a range was not measured; as [`card::of`].
pub fn write(checkpoint: &Checkpoint, dir: &Path, options: &OnnxOptions) -> Result<Vec<PathBuf>, Error> {
    write_files(checkpoint, dir, options, EMBEDDED_MAX)
}

/// Where the weights of an ONNX file are that are too much for it: `encoder.onnx.data`.
pub fn data_file(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{name}.data"))
}

/// Refuses what is no export folder.
///
/// # Errors
/// [`Error::Value`] says what it is instead.
pub fn check_folder(dir: &Path) -> Result<(), Error> {
    match dir.exists() && !dir.join(ENCODER_FILE).exists() {
        true => {
            let expected = format!("an export folder ({ENCODER_FILE}, {DECODER_FILE})");
            Err(Error::value(dir.display(), expected, found::at(dir)))
        }
        false => Ok(()),
    }
}

fn write_files(
    checkpoint: &Checkpoint,
    dir: &Path,
    options: &OnnxOptions,
    embedded_max: usize,
) -> Result<Vec<PathBuf>, Error> {
    let config = &checkpoint.config;
    options.tokenizer.map_or(Ok(()), |tokenizer| tokenizer.check_fit(config.codebook_size, config.grid))?;
    match options.weights {
        Weights::F32 => {}
        Weights::F16 => check_halves(checkpoint)?,
        Weights::Int8(ranges) => ranges.check_complete(config)?,
    }
    let (grid, sha256) = (config.grid, checkpoint.sha256());
    let config = serde_json::to_string(config).map_err(|reason| Error::ConfigJson { path: dir.to_owned(), reason })?;
    let card = card::of(checkpoint, options.weights.name(), Some(options.licence), &Card::new())?;
    let card_text = card::to_markdown(&format!("Sorcen as ONNX ({})", options.weights.name()), &card);
    let card = serde_json::Value::Object(card).to_string();
    let metadata = [
        (key::CONFIG, config.as_str()),
        (key::CHECKPOINT, &sha256),
        (key::PRECISION, options.weights.name()),
        (key::TOOL, card::TOOL),
        (key::LICENCE, options.licence),
        (key::CARD, &card),
    ];
    let mut paths = Vec::new();
    let mut add = |name: &str, graph: graph::Graph| {
        paths.push(dir.join(name));
        write_file(&dir.join(name), graph, &metadata, embedded_max)
    };
    // One after the other: each holds a copy of its weights while it is written.
    add(ENCODER_FILE, model::encoder(checkpoint, options.weights))?;
    add(DECODER_FILE, model::decoder(checkpoint, options.weights))?;
    add(STEP_FILE, model::step(checkpoint, options.weights))?;
    if let Some(tokenizer) = options.tokenizer {
        let tokenizer = match tokenizer {
            AnyTokenizer::Patches(patches) => TokenizerWeights::Patches(patches),
            AnyTokenizer::Vit(vit) => TokenizerWeights::Vit(vit),
        };
        let [encoder, decoder] = tokenizer.graphs(grid)?;
        add(TOKENIZER_ENCODER_FILE, encoder)?;
        add(TOKENIZER_DECODER_FILE, decoder)?;
    }
    atomic::write_bytes(&dir.join(card::CARD_FILE), card_text.as_bytes())?; // last: it is about files that are there
    Ok(paths)
}

/// Refuses weights that would be infinite as f16: of the matrices and tables, which an f16 file stores so.
fn check_halves(checkpoint: &Checkpoint) -> Result<(), Error> {
    let config = &checkpoint.config;
    for param in schema::params(config).filter(|param| param.shape(config).matrix().0 > 1) {
        quantize::halves(param, checkpoint.tensor(param))?;
    }
    Ok(())
}

/// A tokenizer on its way into ONNX files.
pub enum TokenizerWeights<'a> {
    /// A codebook of patches.
    Patches(&'a PatchTokenizer),
    /// A ViT tokenizer.
    Vit(&'a VitTokenizer),
    /// A VQGAN.
    Vqgan(&'a VqganWeights<'a>),
}

impl TokenizerWeights<'_> {
    /// Encoder and decoder for images of `grid` tokens a side.
    fn graphs(&self, grid: usize) -> Result<[graph::Graph; 2], Error> {
        match self {
            Self::Patches(patches) => Ok([tokenizer::encoder(patches, grid), tokenizer::decoder(patches, grid)]),
            Self::Vit(vit) if vit.config().grid != grid => {
                Err(Error::value("grid", format!("{}, the tokenizer's", vit.config().grid), grid))
            }
            Self::Vit(vit) => Ok([vit::encoder(vit), vit::decoder(vit)]),
            Self::Vqgan(weights) => Ok([vqgan::encoder(weights, grid)?, vqgan::decoder(weights, grid)?]),
        }
    }
}

/// Writes `tokenizer_encoder.onnx` (`image` [B, 3, side, side], 0 to 1 → `ids` [B, grid, grid]) and
/// `tokenizer_decoder.onnx`, its inverse, in f32 into `dir` (made if missing); returns their paths. `fingerprint`
/// goes into the metadata.
///
/// # Errors
/// [`Error::Io`] where a file cannot be written, [`Error::Value`] where a weight is missing or the grid is not the
/// tokenizer's.
pub fn write_tokenizer(
    tokenizer: &TokenizerWeights,
    grid: usize,
    dir: &Path,
    fingerprint: &str,
    licence: &str,
) -> Result<Vec<PathBuf>, Error> {
    let metadata = [
        (key::TOKENIZER, fingerprint),
        (key::PRECISION, Weights::F32.name()),
        (key::TOOL, concat!("sorcen-export ", env!("CARGO_PKG_VERSION"))),
        (key::LICENCE, licence),
    ];
    let names = [TOKENIZER_ENCODER_FILE, TOKENIZER_DECODER_FILE];
    let files = names.into_iter().zip(tokenizer.graphs(grid)?);
    files
        .map(|(name, graph)| write_file(&dir.join(name), graph, &metadata, EMBEDDED_MAX).map(|()| dir.join(name)))
        .collect()
}

fn write_file(path: &Path, graph: graph::Graph, metadata: &[(&str, &str)], embedded_max: usize) -> Result<(), Error> {
    let mut graph = graph.finish();
    let weights: usize = graph.initializer.iter().map(|constant| constant.raw_data.len()).sum();
    if weights > embedded_max {
        move_outside(&mut graph, &data_file(path))?;
    } else if data_file(path).exists() {
        fs::remove_file(data_file(path)).map_err(Error::io(path, "remove the old data of"))?;
    }
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
        let file = fs::File::create(temporary).map_err(Error::io(path, "write"))?;
        let mut file = UntilError { file, written: Ok(()) };
        model.write_to_writer(&mut file).map_err(|error| Error::io(path, "write")(io::Error::other(error)))?;
        file.written.map_err(Error::io(path, "write"))
    })
}

/// Keeps the first error of a file to itself and takes the rest for written: protobuf panics where it cannot write
/// what it holds when an error has ended its work.
struct UntilError {
    file: fs::File,
    written: io::Result<()>,
}

impl Write for UntilError {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written.is_ok() {
            self.written = self.file.write_all(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes the large constants of a graph into a file beside it.
fn move_outside(graph: &mut GraphProto, path: &Path) -> Result<(), Error> {
    let location = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    atomic::write(path, |temporary| {
        let file = fs::File::create(temporary).map_err(Error::io(path, "write"))?;
        let mut file = io::BufWriter::new(file);
        let mut offset = 0;
        for constant in graph.initializer.iter_mut().filter(|constant| constant.raw_data.len() >= EXTERNAL_MIN) {
            let bytes = std::mem::take(&mut constant.raw_data);
            file.write_all(&bytes).map_err(Error::io(path, "write"))?;
            constant.data_location = DataLocation::EXTERNAL.into();
            let entries = [("location", location.clone()), ("offset", offset.to_string())];
            let entries = entries.into_iter().chain([("length", bytes.len().to_string())]);
            constant.external_data = entries.map(|(key, value)| graph::entry(key, &value)).collect();
            offset += bytes.len();
        }
        file.flush().map_err(Error::io(path, "write"))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::verify::{random_tokens, verify, VerifyInputs};
    use sorcen_runtime::{
        rng::{Rng, Stream},
        ModelConfig,
    };

    /// As if the weights were too many: they lie beside the files, which run as before.
    #[test]
    fn weights_beside_the_file() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        Checkpoint::write(dir, &ModelConfig::micro(3, 14), |param| {
            let rng = Rng::new(1, Stream::Init, param.index(&ModelConfig::micro(3, 14)) as u64);
            let count = param.shape(&ModelConfig::micro(3, 14)).elements() as u64;
            (0..count).map(|i| 0.2 * rng.normal(i) as f32).collect::<Vec<_>>().into()
        })
        .unwrap();
        let checkpoint = Arc::new(Checkpoint::open(dir).unwrap());
        let options = OnnxOptions { weights: Weights::F32, licence: "test", tokenizer: None };
        let inside = write(&checkpoint, &dir.join("inside"), &options).unwrap();
        let outside = write_files(&checkpoint, &dir.join("outside"), &options, 10_000).unwrap();
        let size = |path: &Path| fs::metadata(path).unwrap().len();
        for (inside, outside) in inside.iter().zip(&outside) {
            assert!(!data_file(inside).exists());
            assert!(size(&data_file(outside)) > 3 * size(outside), "most of it is weights");
            let both = size(outside) + size(&data_file(outside));
            assert!((both as f64 / size(inside) as f64 - 1.0).abs() < 0.1);
        }
        let tokens = random_tokens(&checkpoint.config, 2, 0);
        let inputs = VerifyInputs { onnx: vec![dir.join("outside")], ..VerifyInputs::new(checkpoint.clone(), tokens) };
        let report = verify(&inputs).unwrap();
        assert!(report.passed(), "{}", report.to_markdown());

        // Weights that fit again leave no data behind.
        write(&checkpoint, &dir.join("outside"), &options).unwrap();
        assert!(outside.iter().all(|path| !data_file(path).exists()));
    }
}
