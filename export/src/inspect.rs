//! What is in a checkpoint, a pack or an export folder.

use std::{fmt::Write, path::Path};

use clap::ValueEnum;
use serde::Serialize;
use sha2::{Digest, Sha256};
use sorcen_runtime::{
    pack::Data,
    quant::Layout,
    schema::{self, Param},
    scratch::{Plan, Scratch},
    vit::VitConfig,
    ModelConfig,
};

use crate::{
    card, checkpoint,
    error::Error,
    file,
    fits::{Budget, Fit},
    found, onnx,
    pack::{PackEngine, PackFile, Target},
    tract, Checkpoint,
};

/// A description of an artefact; [`Display`](std::fmt::Display) shows it to people, serde to programs.
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// `checkpoint`, `pack` or `onnx`.
    pub kind: &'static str,
    /// Sizes of the model.
    pub config: ModelConfig,
    /// Weights of encoder and decoder, 0 where there is none.
    pub parameters: [usize; 2],
    /// The files: name, bytes, SHA-256.
    pub files: Vec<FileInfo>,
    /// The weights, in schema order; empty for ONNX (use Netron).
    pub tensors: Vec<TensorInfo>,
    /// Bytes of working memory that the runtime needs.
    pub scratch: ScratchInfo,
    /// Whether it can generate.
    pub has_decoder: bool,
    /// Targets that a pack's int8 matrices are arranged for (see `pack --target`).
    pub arranged_for: Vec<String>,
    /// Patch tokenizer inside, if any: codes and side of a patch.
    pub tokenizer: Option<[usize; 2]>,
    /// ViT tokenizer inside, if any.
    pub vit: Option<VitInfo>,
    /// Linear head inside, if any.
    pub classifier: Option<ClassifierInfo>,
    /// Self-test inside, if any, run on this machine.
    pub self_test: Option<SelfTestInfo>,
    /// Where it comes from: the model card of a pack or of ONNX files, the training run of a checkpoint.
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
    /// `f32`, `f16`, `int8`, `int4`, or `absent`.
    pub precision: &'static str,
    /// Bytes, scales included.
    pub bytes: usize,
}

/// A ViT tokenizer in a pack.
#[derive(Debug, Serialize)]
pub struct VitInfo {
    /// Sizes.
    pub config: VitConfig,
    /// Bytes of its section.
    pub bytes: usize,
    /// Working memory on a device, in bytes.
    pub scratch: usize,
}

/// A linear head.
#[derive(Debug, Serialize)]
pub struct ClassifierInfo {
    /// Number of classes.
    pub classes: usize,
    /// Their names, where they are known.
    pub names: Vec<String>,
    /// `f32` or `int8`.
    pub precision: &'static str,
}

/// Golden inputs and outputs.
#[derive(Debug, Serialize)]
pub struct SelfTestInfo {
    /// Number of inputs.
    pub inputs: usize,
    /// Whether a step of generation is tested, too.
    pub decoder: bool,
    /// How far numbers may be off; 0: not by a bit.
    pub tolerance: f32,
    /// The kernels that it was run on here.
    pub kernels: &'static str,
    /// What differs on this machine; nothing where it passed.
    pub failure: Option<String>,
}

/// Bytes of working memory.
#[derive(Debug, Serialize)]
pub struct ScratchInfo {
    /// To extract features.
    pub features: usize,
    /// To generate, where there is a decoder.
    pub generate: Option<usize>,
}

/// Looks at a checkpoint folder, an export folder or a pack, checking all of it on the way.
///
/// # Errors
/// Any [`Error`] of what is missing or damaged.
pub fn inspect(path: &Path) -> Result<Inspection, Error> {
    if !path.is_dir() {
        return inspect_pack(path);
    }
    if [checkpoint::WEIGHTS_FILE, checkpoint::CONFIG_FILE].iter().any(|name| path.join(name).exists()) {
        return inspect_checkpoint(path);
    }
    if path.join(onnx::ENCODER_FILE).exists() {
        return inspect_onnx(path);
    }
    let expected = format!("a folder with `{}` or `{}`", checkpoint::WEIGHTS_FILE, onnx::ENCODER_FILE);
    Err(Error::value(path.display(), expected, found::at(path)))
}

fn inspect_checkpoint(dir: &Path) -> Result<Inspection, Error> {
    let checkpoint = Checkpoint::open(dir)?;
    let mut inspection = Inspection::new("checkpoint", checkpoint.config, true);
    inspection.files.push(file_info(&dir.join(checkpoint::CONFIG_FILE))?);
    let (name, bytes) = (checkpoint::WEIGHTS_FILE.into(), checkpoint.file_bytes() as u64);
    inspection.files.push(FileInfo { name, bytes, sha256: checkpoint.sha256() });
    for param in schema::params(&checkpoint.config) {
        let shape = param.shape(&checkpoint.config);
        let (precision, bytes) = checkpoint.stored(param);
        inspection.tensors.push(TensorInfo { name: param.to_string(), shape: shape.dims().to_vec(), precision, bytes });
    }
    let run = card::of_run(dir, &checkpoint.config)?;
    inspection.card = (!run.is_empty()).then_some(run.into());
    Ok(inspection)
}

fn inspect_pack(path: &Path) -> Result<Inspection, Error> {
    let file = PackFile::open(path)?;
    let pack = file.pack(path)?;
    let config = *pack.config();
    let mut inspection = Inspection::new("pack", config, pack.has_decoder());
    inspection.files.push(file_info(path)?);
    for param in schema::params(&config) {
        let mut shape = param.shape(&config).dims().to_vec();
        if param == Param::WordEmbedding {
            shape[0] = pack.matrix(param).rows; // those that are stored
        }
        inspection.tensors.push(TensorInfo {
            name: param.to_string(),
            shape,
            precision: pack.precision(param).map_or("absent", |precision| precision.name()),
            bytes: pack.tensor_bytes(param),
        });
    }
    let mut layouts: Vec<Layout> = Vec::new();
    for param in schema::params(&config).filter(|param| param.is_matrix()) {
        if let Data::Int8 { layout, .. } = pack.matrix(param).data {
            if !layouts.contains(&layout) {
                layouts.push(layout);
            }
        }
    }
    inspection.arranged_for = layouts.into_iter().map(layout_name).collect();
    inspection.vit = pack.vit().map(|vit| VitInfo {
        config: *vit.config(),
        bytes: vit.bytes().len(),
        scratch: Scratch::vit_bytes(vit.config()),
    });
    inspection.tokenizer = pack.tokenizer().map(|tokenizer| [tokenizer.codes(), tokenizer.patch()]);
    inspection.classifier = pack.classifier().map(|head| ClassifierInfo {
        classes: head.classes(),
        names: head.names().map_or(Vec::new(), |names| names.split('\n').map(String::from).collect()),
        precision: if matches!(head.weight().data, Data::Int8 { .. }) { "int8" } else { "f32" },
    });
    if let Some(test) = pack.self_test() {
        let engine = PackEngine::new(pack);
        let mut memory = engine.scratch()?;
        inspection.self_test = Some(SelfTestInfo {
            inputs: test.inputs(),
            decoder: test.has_decoder(),
            tolerance: test.tolerance(),
            kernels: engine.model().kernels().name(),
            failure: engine.model().self_test(&mut memory.get()?).err().map(|error| error.to_string()),
        });
    }
    // A card is JSON; one of another tool is shown as it is.
    inspection.card = pack.card().map(|card| serde_json::from_str(card).unwrap_or_else(|_| card.into()));
    Ok(inspection)
}

fn inspect_onnx(dir: &Path) -> Result<Inspection, Error> {
    let metadata = tract::Metadata::read(&dir.join(onnx::ENCODER_FILE))?;
    let mut inspection = Inspection::new("onnx", metadata.config, true);
    let others = [onnx::STEP_FILE, onnx::TOKENIZER_ENCODER_FILE, onnx::TOKENIZER_DECODER_FILE];
    let others = others.into_iter().filter(|name| dir.join(name).exists());
    for path in [onnx::ENCODER_FILE, onnx::DECODER_FILE].into_iter().chain(others).map(|name| dir.join(name)) {
        inspection.files.push(file_info(&path)?);
        for data in onnx::data_files(&path) {
            inspection.files.push(file_info(&data)?);
        }
    }
    inspection.card = Some(metadata.card);
    Ok(inspection)
}

/// `x86-vnni, neon-dotprod, neon-i8mm, wasm (16x4)`
fn layout_name(layout: Layout) -> String {
    let names = Target::of(layout).filter_map(|target| Some(target.to_possible_value()?.get_name().to_owned()));
    let names = names.collect::<Vec<_>>().join(", ");
    let names = if names.is_empty() { "no known target" } else { &names };
    match layout.kt {
        0 => format!("{names} (rows)"),
        kt => format!("{names} ({}x{kt})", layout.nr),
    }
}

fn file_info(path: &Path) -> Result<FileInfo, Error> {
    let bytes = file::read(path)?;
    Ok(FileInfo {
        name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        bytes: bytes.len() as u64,
        sha256: Sha256::digest(&*bytes).iter().map(|byte| format!("{byte:02x}")).collect(),
    })
}

impl Inspection {
    fn new(kind: &'static str, config: ModelConfig, has_decoder: bool) -> Self {
        let weights = |decoder: bool| {
            let of = schema::params(&config).filter(|param| param.is_decoder() == decoder);
            of.map(|param| param.shape(&config).elements()).sum()
        };
        let in_decoder = if has_decoder { weights(true) } else { 0 };
        Self {
            kind,
            config,
            parameters: [weights(false), in_decoder],
            files: Vec::new(),
            tensors: Vec::new(),
            scratch: ScratchInfo {
                features: Scratch::bytes(&config, Plan::Features),
                generate: has_decoder.then(|| Scratch::bytes(&config, Plan::Generate)),
            },
            has_decoder,
            arranged_for: Vec::new(),
            tokenizer: None,
            vit: None,
            classifier: None,
            self_test: None,
            card: None,
        }
    }

    /// Whether a pack runs on a device with so much memory, for each use; nothing for what is no pack.
    pub fn fits(&self, budget: Budget) -> Vec<Fit> {
        let packs = self.files.iter().filter(|_| self.kind == "pack");
        packs.flat_map(|file| Fit::of(&self.config, file.bytes, self.has_decoder, budget)).collect()
    }

    /// The configuration as a constant for firmware.
    pub fn as_rust(&self) -> String {
        let c = &self.config;
        let fields = [
            ("grid", c.grid),
            ("codebook_size", c.codebook_size),
            ("vocab_size", c.vocab_size),
            ("class_token_id", c.class_token_id),
            ("mask_token_id", c.mask_token_id),
            ("embed_dim", c.embed_dim),
            ("depth", c.depth),
            ("num_heads", c.num_heads),
            ("decoder_embed_dim", c.decoder_embed_dim),
            ("decoder_depth", c.decoder_depth),
            ("decoder_num_heads", c.decoder_num_heads),
            ("mlp_ratio", c.mlp_ratio),
        ];
        let mut text = String::new();
        for file in &self.files {
            let _ = writeln!(text, "// {}: {} bytes, sha256 {}", file.name, file.bytes, file.sha256);
        }
        text += "/// Sizes of the model; `Scratch::bytes(&CONFIG, plan)` is the memory it needs.\n";
        text += "pub const CONFIG: sorcen_runtime::ModelConfig = sorcen_runtime::ModelConfig {\n";
        for (name, value) in fields {
            let _ = writeln!(text, "    {name}: {value},");
        }
        let _ = writeln!(text, "    layer_norm_eps: {:e},\n}};", c.layer_norm_eps);
        text
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
        match self.has_decoder {
            true => writeln!(
                f,
                "decoder     {} wide, {} blocks, {} heads, {} weights",
                c.decoder_embed_dim, c.decoder_depth, c.decoder_num_heads, self.parameters[1]
            )?,
            false => writeln!(f, "decoder     none: features only")?,
        }
        writeln!(
            f,
            "tokens      {0}x{0} of {1} codes; vocabulary {2}, class token {3}, mask token {4}",
            c.grid, c.codebook_size, c.vocab_size, c.class_token_id, c.mask_token_id
        )?;
        for precision in ["f32", "f16", "bf16", "int8", "int4", "absent"] {
            let of: Vec<_> = self.tensors.iter().filter(|tensor| tensor.precision == precision).collect();
            if !of.is_empty() {
                let bytes: usize = of.iter().map(|tensor| tensor.bytes).sum();
                writeln!(f, "{precision:<11} {} tensors, {bytes} bytes", of.len())?;
            }
        }
        if let Some([codes, patch]) = self.tokenizer {
            writeln!(f, "tokenizer   {codes} patches of {patch}x{patch} pixels")?;
        }
        if let Some(VitInfo { config: c, bytes, scratch }) = &self.vit {
            let sizes = format!("{} codes, {1}x{1} tokens of {2}x{2} pixels", c.codes, c.grid, c.patch);
            writeln!(f, "tokenizer   ViT of {sizes}; {bytes} bytes; memory {scratch} bytes")?;
        }
        if let Some(ClassifierInfo { classes, names, precision }) = &self.classifier {
            let names = if names.is_empty() { "without names".into() } else { names.join(", ") };
            writeln!(f, "classifier  {classes} classes, {precision}: {names}")?;
        }
        if let Some(test) = &self.self_test {
            let what = if test.decoder { "features and a step of generation" } else { "features" };
            let how = if test.tolerance == 0.0 { "exact bits".into() } else { format!("within {}", test.tolerance) };
            let SelfTestInfo { inputs, kernels, .. } = test;
            let outcome = test.failure.as_deref().unwrap_or("passed");
            writeln!(f, "self-test   {inputs} inputs, {what}, {how}; on this machine ({kernels}): {outcome}")?;
        }
        for target in &self.arranged_for {
            writeln!(f, "arranged    for {target}; runs everywhere")?;
        }
        for file in &self.files {
            writeln!(f, "file        {}: {} bytes, sha256 {}", file.name, file.bytes, file.sha256)?;
        }
        let ScratchInfo { features, generate } = &self.scratch;
        let generate = generate.map_or(String::new(), |bytes| format!(", {bytes} to generate"));
        writeln!(f, "memory      {features} bytes for features{generate}, beside the weights")?;
        let lines = match &self.card {
            Some(serde_json::Value::Object(card)) => card::to_lines(card),
            Some(other) => vec![other.to_string()],
            None => Vec::new(),
        };
        for (at, line) in lines.iter().enumerate() {
            writeln!(f, "{:<11} {line}", if at == 0 { "card" } else { "" })?;
        }
        Ok(())
    }
}
