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

use onnx_protobuf::{tensor_proto::DataLocation, GraphProto, Message, ModelProto, OperatorSetIdProto, TensorProto};
use protobuf::MessageField;
use sha2::{Digest, Sha256};
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

/// Bytes of weights that a file holds itself. Protobuf ends at 2 GiB; more goes into one of [`data_files`] beside it.
const EMBEDDED_MAX: usize = 2_000_000_000;
/// Constants below this stay in the file in any case: shapes, which graphs are optimised by.
const EXTERNAL_MIN: usize = 1024;

/// What the names of [`data_files`] end in.
const DATA_END: &str = ".data";
/// Hexadecimal digits in them.
const HASH: usize = 16;

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
/// The largest file of an official size is `step.onnx` of ViT-L in f32, 1.6 GB. Above 2 GB weights go into one of
/// [`data_files`] (ONNX calls it external data). Its name says what is in it, so that an export that dies on the way
/// leaves no model with the weights of another.
///
/// # Errors
/// [`Error::Io`] where a file cannot be written, [`Error::Value`] where the tokenizer is another model's, a weight does
/// not fit f16, or a range was not measured; as [`card::of`].
pub fn write(checkpoint: &Checkpoint, dir: &Path, options: &OnnxOptions) -> Result<Vec<PathBuf>, Error> {
    write_files(checkpoint, dir, options, EMBEDDED_MAX)
}

/// The files with weights that are too much for the ONNX file `path`: `encoder.onnx.0123456789abcdef.data`, named by
/// what is in it (or `encoder.onnx.data`, as earlier versions had it). After an export at most one.
pub fn data_files(path: &Path) -> Vec<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let is_data = |file: &str| {
        let hash = file.strip_prefix(&*name).and_then(|rest| rest.strip_suffix(DATA_END));
        let hash = hash.map(|hash| hash.strip_prefix('.').unwrap_or(hash));
        hash.is_some_and(|hash| [0, HASH].contains(&hash.len()) && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut files: Vec<_> =
        names.filter(|file| is_data(&file.to_string_lossy())).map(|file| path.with_file_name(file)).collect();
    files.sort();
    files
}

/// Refuses what is no export folder.
///
/// # Errors
/// [`Error::Value`] says what it is instead.
pub fn check_folder(dir: &Path) -> Result<(), Error> {
    match !dir.join(ENCODER_FILE).exists() {
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
    let data = if weights > embedded_max { Some(move_outside(&mut graph, path)?) } else { None };
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
    })?;
    // Only now does no model need older data any more.
    let old = data_files(path).into_iter().filter(|file| Some(file) != data.as_ref());
    old.into_iter().try_for_each(|file| fs::remove_file(&file).map_err(Error::io(&file, "remove the old data")))
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

/// Writes the large constants of the graph of `model` into one of its [`data_files`]; returns it. What the model that is
/// there now refers to stays.
fn move_outside(graph: &mut GraphProto, model: &Path) -> Result<PathBuf, Error> {
    let is_large = |constant: &TensorProto| constant.raw_data.len() >= EXTERNAL_MIN;
    let mut hash = Sha256::new();
    graph.initializer.iter().filter(|constant| is_large(constant)).for_each(|constant| hash.update(&constant.raw_data));
    let hash: String = hash.finalize().iter().take(HASH / 2).map(|byte| format!("{byte:02x}")).collect();
    let location = format!("{}.{hash}{DATA_END}", model.file_name().unwrap_or_default().to_string_lossy());
    let path = model.with_file_name(&location);
    atomic::write_with(&path, |file| {
        let mut offset = 0;
        for constant in graph.initializer.iter_mut().filter(|constant| is_large(constant)) {
            let bytes = std::mem::take(&mut constant.raw_data);
            file.write_all(&bytes)?;
            constant.data_location = DataLocation::EXTERNAL.into();
            let entries = [("location", location.clone()), ("offset", offset.to_string())];
            let entries = entries.into_iter().chain([("length", bytes.len().to_string())]);
            constant.external_data = entries.map(|(key, value)| graph::entry(key, &value)).collect();
            offset += bytes.len();
        }
        Ok(())
    })?;
    Ok(path)
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

    fn checkpoint(dir: &Path, seed: u64) -> Arc<Checkpoint> {
        let config = ModelConfig::micro(3, 14);
        Checkpoint::write(dir, &config, |param| {
            let rng = Rng::new(seed, Stream::Init, param.index(&config) as u64);
            let count = param.shape(&config).elements() as u64;
            (0..count).map(|i| 0.2 * rng.normal(i) as f32).collect::<Vec<_>>().into()
        })
        .unwrap();
        Arc::new(Checkpoint::open(dir).unwrap())
    }

    fn passes(checkpoint: &Arc<Checkpoint>, onnx: &Path) {
        let tokens = random_tokens(&checkpoint.config, 2, 0);
        let inputs = VerifyInputs { onnx: vec![onnx.to_owned()], ..VerifyInputs::new(checkpoint.clone(), tokens) };
        let report = verify(&inputs).unwrap();
        assert!(report.passed(), "{}", report.to_markdown());
    }

    const OPTIONS: OnnxOptions<'_> = OnnxOptions { weights: Weights::F32, licence: "test", tokenizer: None };
    /// As if the weights were too many for a file.
    const FEW: usize = 10_000;

    #[test]
    fn weights_beside_the_file() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        let checkpoint = checkpoint(dir, 1);
        let inside = write(&checkpoint, &dir.join("inside"), &OPTIONS).unwrap();
        let outside = write_files(&checkpoint, &dir.join("outside"), &OPTIONS, FEW).unwrap();
        let size = |path: &Path| fs::metadata(path).unwrap().len();
        for (inside, outside) in inside.iter().zip(&outside) {
            assert!(data_files(inside).is_empty());
            let [data] = &*data_files(outside) else { panic!("one file of data") };
            assert!(size(data) > 3 * size(outside), "most of it is weights");
            let both = size(outside) + size(data);
            assert!((both as f64 / size(inside) as f64 - 1.0).abs() < 0.1);
        }
        passes(&checkpoint, &dir.join("outside"));

        // Weights that fit again leave no data behind, nor that of earlier versions.
        fs::write(dir.join("outside/encoder.onnx.data"), "old").unwrap();
        fs::write(dir.join("outside/encoder.onnx.mine.data"), "mine").unwrap();
        write(&checkpoint, &dir.join("outside"), &OPTIONS).unwrap();
        assert!(outside.iter().all(|path| data_files(path).is_empty()));
        assert!(!dir.join("outside/encoder.onnx.data").exists());
        assert!(dir.join("outside/encoder.onnx.mine.data").exists());
    }

    /// An export that dies between the data and the model leaves the model that was there, with its own weights.
    #[test]
    fn an_interrupted_export_leaves_no_model_with_foreign_weights() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        let (old, new) = (checkpoint(&dir.join("old"), 1), checkpoint(&dir.join("new"), 2));
        let onnx = dir.join("onnx");
        write_files(&old, &onnx, &OPTIONS, FEW).unwrap();
        let (encoder, decoder) = (onnx.join(ENCODER_FILE), onnx.join(DECODER_FILE));
        move_outside(&mut model::encoder(&new, Weights::F32).finish(), &encoder).unwrap();
        move_outside(&mut model::decoder(&new, Weights::F32).finish(), &decoder).unwrap();
        assert_eq!(data_files(&encoder).len(), 2);
        passes(&old, &onnx);

        write_files(&new, &onnx, &OPTIONS, FEW).unwrap();
        assert_eq!([data_files(&encoder).len(), data_files(&decoder).len()], [1, 1]);
        passes(&new, &onnx);
    }
}
