//! What is in a checkpoint, a pack or an export folder.

use std::{fmt::Write, fs, path::Path};

use serde::Serialize;
use sha2::{Digest, Sha256};
use sorcen_runtime::{
    schema,
    scratch::{Plan, Scratch},
    ModelConfig,
};

use crate::{checkpoint, error::Error, onnx, pack::PackFile, tract, Checkpoint};

/// A description of an artefact; [`Display`](std::fmt::Display) shows it to people, serde to programs.
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// `checkpoint`, `pack` or `onnx`.
    pub kind: &'static str,
    /// Sizes of the model.
    pub config: ModelConfig,
    /// Weights of encoder and decoder.
    pub parameters: [usize; 2],
    /// The files: name, bytes, SHA-256.
    pub files: Vec<FileInfo>,
    /// The weights, in schema order; empty for ONNX (use Netron).
    pub tensors: Vec<TensorInfo>,
    /// Bytes of working memory that the runtime needs.
    pub scratch: ScratchInfo,
    /// Patch tokenizer inside, if any: codes and side of a patch.
    pub tokenizer: Option<[usize; 2]>,
    /// Where it comes from: a pack's model card, the metadata of ONNX files.
    pub card: Option<serde_json::Value>,
}

/// One file.
#[derive(Debug, Serialize)]
pub struct FileInfo {
    /// File name.
    pub name: String,
    /// Size.
    pub bytes: u64,
    /// Of the contents, hexadecimal.
    pub sha256: String,
}

/// One weight.
#[derive(Debug, Serialize)]
pub struct TensorInfo {
    /// Official name.
    pub name: String,
    /// Shape, linears `[out, in]`.
    pub shape: Vec<usize>,
    /// `f32`, `f16`, `int8`, or `absent`.
    pub precision: &'static str,
    /// Bytes, scales included.
    pub bytes: usize,
}

/// Bytes of working memory.
#[derive(Debug, Serialize)]
pub struct ScratchInfo {
    /// To extract features.
    pub features: usize,
    /// To generate.
    pub generate: usize,
}

/// Looks at a checkpoint folder, an export folder or a pack, checking all of it on the way.
///
/// # Errors
/// Any [`Error`] of what is missing or damaged.
pub fn inspect(path: &Path) -> Result<Inspection, Error> {
    if !path.is_dir() {
        return inspect_pack(path);
    }
    if path.join(checkpoint::WEIGHTS_FILE).exists() {
        return inspect_checkpoint(path);
    }
    if path.join(onnx::ENCODER_FILE).exists() {
        return inspect_onnx(path);
    }
    let expected = format!("a folder with `{}` or `{}`", checkpoint::WEIGHTS_FILE, onnx::ENCODER_FILE);
    Err(Error::value(path.display(), expected, "neither"))
}

fn inspect_checkpoint(dir: &Path) -> Result<Inspection, Error> {
    let checkpoint = Checkpoint::open(dir)?;
    let mut inspection = Inspection::new("checkpoint", checkpoint.config);
    inspection.files.push(file_info(&dir.join(checkpoint::CONFIG_FILE))?);
    let (name, bytes) = (checkpoint::WEIGHTS_FILE.into(), checkpoint.file_bytes() as u64);
    inspection.files.push(FileInfo { name, bytes, sha256: checkpoint.sha256() });
    for param in schema::params(&checkpoint.config) {
        let shape = param.shape(&checkpoint.config);
        let (precision, bytes) = checkpoint.stored(param);
        inspection.tensors.push(TensorInfo { name: param.to_string(), shape: shape.dims().to_vec(), precision, bytes });
    }
    Ok(inspection)
}

fn inspect_pack(path: &Path) -> Result<Inspection, Error> {
    let file = PackFile::open(path)?;
    let pack = file.pack(path)?;
    let config = *pack.config();
    let mut inspection = Inspection::new("pack", config);
    inspection.files.push(file_info(path)?);
    for param in schema::params(&config) {
        inspection.tensors.push(TensorInfo {
            name: param.to_string(),
            shape: param.shape(&config).dims().to_vec(),
            precision: pack.precision(param).map_or("absent", |precision| precision.name()),
            bytes: pack.tensor_bytes(param),
        });
    }
    inspection.tokenizer = pack.tokenizer().map(|tokenizer| [tokenizer.codes(), tokenizer.patch()]);
    // A card is JSON; one of another tool is shown as it is.
    inspection.card = pack.card().map(|card| serde_json::from_str(card).unwrap_or_else(|_| card.into()));
    Ok(inspection)
}

fn inspect_onnx(dir: &Path) -> Result<Inspection, Error> {
    let encoder = dir.join(onnx::ENCODER_FILE);
    let metadata = tract::Metadata::read(&encoder)?;
    let mut inspection = Inspection::new("onnx", metadata.config);
    for name in [onnx::ENCODER_FILE, onnx::DECODER_FILE] {
        inspection.files.push(file_info(&dir.join(name))?);
    }
    inspection.card = Some(serde_json::json!({
        "checkpoint_sha256": metadata.checkpoint_sha256,
        "tool": metadata.tool,
        "licence": metadata.licence,
    }));
    Ok(inspection)
}

fn file_info(path: &Path) -> Result<FileInfo, Error> {
    let bytes = fs::read(path).map_err(Error::io(path, "read"))?;
    Ok(FileInfo {
        name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        bytes: bytes.len() as u64,
        sha256: Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect(),
    })
}

impl Inspection {
    fn new(kind: &'static str, config: ModelConfig) -> Self {
        let weights = |decoder: bool| {
            let of = schema::params(&config).filter(|param| param.is_decoder() == decoder);
            of.map(|param| param.shape(&config).elements()).sum()
        };
        Self {
            kind,
            config,
            parameters: [weights(false), weights(true)],
            files: Vec::new(),
            tensors: Vec::new(),
            scratch: ScratchInfo {
                features: Scratch::bytes(&config, Plan::Features),
                generate: Scratch::bytes(&config, Plan::Generate),
            },
            tokenizer: None,
            card: None,
        }
    }

    /// The list of weights as a table.
    pub fn tensor_table(&self) -> String {
        let mut table = format!("{:<44} {:<16} {:<9} {:>12}\n", "tensor", "shape", "precision", "bytes");
        for t in &self.tensors {
            let shape = format!("{:?}", t.shape);
            let _ = writeln!(table, "{:<44} {shape:<16} {:<9} {:>12}", t.name, t.precision, t.bytes);
        }
        table
    }
}

impl std::fmt::Display for Inspection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let c = &self.config;
        writeln!(f, "kind        {}", self.kind)?;
        writeln!(
            f,
            "encoder     {} wide, {} blocks, {} heads, {} weights",
            c.embed_dim, c.depth, c.num_heads, self.parameters[0]
        )?;
        writeln!(
            f,
            "decoder     {} wide, {} blocks, {} heads, {} weights",
            c.decoder_embed_dim, c.decoder_depth, c.decoder_num_heads, self.parameters[1]
        )?;
        writeln!(
            f,
            "tokens      {0}x{0} of {1} codes; vocabulary {2}, class token {3}, mask token {4}",
            c.grid, c.codebook_size, c.vocab_size, c.class_token_id, c.mask_token_id
        )?;
        for precision in ["f32", "f16", "bf16", "int8", "absent"] {
            let of: Vec<_> = self.tensors.iter().filter(|tensor| tensor.precision == precision).collect();
            if !of.is_empty() {
                let bytes: usize = of.iter().map(|tensor| tensor.bytes).sum();
                writeln!(f, "{precision:<11} {} tensors, {bytes} bytes", of.len())?;
            }
        }
        if let Some([codes, patch]) = self.tokenizer {
            writeln!(f, "tokenizer   {codes} patches of {patch}x{patch} pixels")?;
        }
        for file in &self.files {
            writeln!(f, "file        {}: {} bytes, sha256 {}", file.name, file.bytes, file.sha256)?;
        }
        let ScratchInfo { features, generate } = &self.scratch;
        writeln!(f, "memory      {features} bytes for features, {generate} to generate, beside the weights")?;
        if let Some(card) = &self.card {
            writeln!(f, "card        {card}")?;
        }
        Ok(())
    }
}
