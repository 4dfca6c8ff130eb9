//! `pack`: a checkpoint as one file that runs in place.

use std::{fs, path::PathBuf, sync::Arc};

use anyhow::Context;
use clap::ValueEnum;
use ndarray::{s, Array2};
use sorcen_runtime::{
    pack,
    schema::{self, Param, Part, Stack},
    ModelConfig,
};

use super::{
    number::{self, within},
    tokens::{read_ids, read_tokens},
};
use crate::{
    calibrate::Grams,
    checkpoint::Checkpoint,
    classifier::LinearHead,
    fingerprint::{Fingerprint, Kind},
    pack::{write, PackOptions, Target},
    quantize::Rule,
    tokenizer::AnyTokenizer,
    verify::random_tokens,
};

/// Write a checkpoint as a pack (.srcn), one file that the runtime runs in place
///
/// int8 has one scale an output channel, int4 an 8-bit multiplier for each group
/// of 32 weights besides; the activations of both are quantised to 8 bits at run
/// time, a token at a time.
///
/// Examples, where `sorcen pretrain --output_dir run` trained:
///
///   sorcen pack --checkpoint run/checkpoint --out model.srcn
///   sorcen pack --checkpoint run/checkpoint --int4 'blocks.*.mlp.*' \
///     --keep ^token_emb=f16 --out mixed.srcn
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Checkpoint folder (config.json, model.safetensors).
    #[arg(long, value_name = "DIR")]
    pub checkpoint: PathBuf,
    /// Precision of the matrices.
    #[arg(long, value_enum, default_value = "int8")]
    pub precision: Precision,
    /// Store weights whose name holds the pattern in another precision; `*` stands for anything, `^` at the front
    /// for the start of the name. More than once; the first that fits counts. Only matrices become int8 or int4.
    /// `sorcen inspect --tensors` lists the names.
    #[arg(long, value_name = "PATTERN=PRECISION")]
    pub keep: Vec<Rule>,
    /// Store matrices whose name holds the pattern as int4 (after --keep): short for --keep PATTERN=int4.
    #[arg(long, value_name = "PATTERN")]
    pub int4: Vec<String>,
    /// Images that decide how int4 weights are rounded, so that products come out closer: a token dataset (the folder
    /// that `sorcen tokenize` writes) or a safetensors file with `token_ids` [B, T] (or `final_ids`, or `ids`).
    #[arg(long, value_name = "DIR|FILE")]
    pub calibrate: Option<PathBuf>,
    /// How many of them, 1 to 100000; of fewer, all.
    #[arg(long, value_name = "N", default_value_t = 32, requires = "calibrate",
        value_parser = number::images)]
    pub images: usize,
    /// Machine that the weights are arranged for; the pack runs everywhere.
    #[arg(long, value_enum, default_value = "generic")]
    pub target: Target,
    /// Leave the decoder out, which the checkpoint need not have then: features only, no generation.
    #[arg(long = "encoder_only")]
    pub encoder_only: bool,
    /// Put a tokenizer in (tokenizer.safetensors of `sorcen tokenizer train`: patches, or a ViT, whose matrices
    /// become int8 in an int8 or int4 pack).
    #[arg(long, value_name = "FILE|DIR")]
    pub tokenizer: Option<PathBuf>,
    /// Take a tokenizer, or images, that say by their fingerprints that the checkpoint learned another tokenizer's
    /// codes: an error without.
    #[arg(long = "allow_other_tokenizer")]
    pub allow_other_tokenizer: bool,
    /// Put a linear head for the probe's feature in, so that the device names the class: head.safetensors of `sorcen
    /// linprobe`, or any with `head.weight` [classes, D] and `head.bias`; class names from the metadata.
    #[arg(long, value_name = "FILE")]
    pub classifier: Option<PathBuf>,
    /// Take a head that says by its fingerprint that it knows another checkpoint's features: an error without.
    #[arg(long = "allow_other_checkpoint", requires = "classifier")]
    pub allow_other_checkpoint: bool,
    /// Put golden inputs and what this machine makes of them in, so that a device can test itself (the runtime's
    /// `Model::self_test`): so many images (1 to 65535), of --self_test_tokens, or random with a third of the tokens
    /// masked.
    #[arg(long = "self_test", value_name = "N",
        value_parser = within(1u16.., "a whole number from 1 to 65535"))]
    pub self_test: Option<u16>,
    /// Images of the self-test: the first of `token_ids` [B, T] in a safetensors file.
    #[arg(long = "self_test_tokens", value_name = "FILE", requires = "self_test")]
    pub self_test_tokens: Option<PathBuf>,
    /// Terms to note in the model card: those of the weights.
    #[arg(long, value_name = "TEXT")]
    pub licence: Option<String>,
    /// More entries for the model card: a JSON object. Data, steps, seed, metrics are there anyway where `sorcen
    /// pretrain` wrote the checkpoint (from run.json and log.txt beside it).
    #[arg(long, value_name = "FILE")]
    pub card: Option<PathBuf>,
    /// The pack to write.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// Precisions on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// 8-bit integers.
    Int8,
    /// 4-bit integers; the word embedding in 8 bits, position tables in f16.
    Int4,
}

impl From<Precision> for pack::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::F16 => Self::F16,
            Precision::Int8 => Self::Int8,
            Precision::Int4 => Self::Int4,
        }
    }
}

/// What names look like.
const EXAMPLES: [Param; 3] = [
    Param::WordEmbedding,
    Param::Block { stack: Stack::Encoder, index: 0, part: Part::QkvWeight },
    Param::Block { stack: Stack::Decoder, index: 0, part: Part::Fc1Weight },
];

/// Runs the verb.
///
/// # Errors
/// A bad checkpoint, tokenizer, head, card or images, or a file that cannot be written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let checkpoint = Arc::new(match args.encoder_only {
        true => Checkpoint::open_encoder(&args.checkpoint)?,
        false => Checkpoint::open(&args.checkpoint)?,
    });
    let tokenizer = args.tokenizer.as_deref().map(AnyTokenizer::open).transpose()?;
    let mut options = PackOptions::new(args.precision.into());
    let int4 = |pattern: &String| Rule { pattern: pattern.clone(), precision: pack::Precision::Int4 };
    options.rules = args.keep.iter().cloned().chain(args.int4.iter().map(int4)).collect();
    options.target = args.target;
    options.encoder_only = args.encoder_only;
    args.check_patterns(&options, &checkpoint.config)?;
    options.tokenizer = tokenizer.as_ref();
    let codes = Fingerprint::of_checkpoint(&args.checkpoint, &checkpoint.config)?;
    if let (Some(path), Some(tokenizer)) = (&args.tokenizer, &tokenizer) {
        let found = Fingerprint::of_tokenizer(path, tokenizer);
        codes.expect(&found, Kind::Tokenizer, args.allow_other_tokenizer)?;
    }
    let dim = checkpoint.config.embed_dim;
    let head = args.classifier.as_deref().map(|path| LinearHead::open(path, dim)).transpose()?;
    if let (Some(path), Some(head)) = (&args.classifier, &head) {
        let own = Fingerprint::new(args.checkpoint.display(), Some(checkpoint.sha256()));
        let found = Fingerprint::new(path.display(), head.checkpoint().map(str::to_owned));
        own.expect(&found, Kind::Checkpoint, args.allow_other_checkpoint)?;
    }
    options.classifier = head.as_ref();
    if let Some(inputs) = args.self_test {
        options.self_test = args.golden_inputs(inputs.into(), &checkpoint, &codes)?;
    }
    let grams;
    if let Some(path) = &args.calibrate {
        let tokens = read_tokens(path, &checkpoint, args.images, args.allow_other_tokenizer)?;
        let is_int4 = |param| options.precision_of(param) == Some(pack::Precision::Int4);
        anyhow::ensure!(
            schema::params(&checkpoint.config).any(is_int4),
            "--calibrate: expected weights in int4 (--precision int4, --int4 PATTERN), found none: nothing else needs it"
        );
        grams = Grams::measure(&checkpoint, tokens.view(), is_int4)?;
        options.grams = Some(&grams);
    }
    options.licence = args.licence.as_deref();
    if let Some(path) = &args.card {
        let json = fs::read(path).with_context(|| format!("{}: cannot read", path.display()))?;
        options.card =
            serde_json::from_slice(&json).with_context(|| format!("{}: expected a JSON object", path.display()))?;
    }
    let bytes = write(&checkpoint, &args.out, &options)?;
    println!("{}: {bytes} bytes", args.out.display());
    Ok(())
}

impl Args {
    /// Refuses a pattern that changes nothing: no weight of that name, or none that is stored so.
    fn check_patterns(&self, options: &PackOptions, config: &ModelConfig) -> anyhow::Result<()> {
        let keep = self.keep.iter().map(|rule| format!("--keep {}={}", rule.pattern, rule.precision.name()));
        let int4 = self.int4.iter().map(|pattern| format!("--int4 {pattern}"));
        for (flag, rule) in keep.chain(int4).zip(&options.rules) {
            let fitting: Vec<Param> = schema::params(config).filter(|param| rule.fits(&param.to_string())).collect();
            let Some(first) = fitting.first() else {
                anyhow::bail!(
                    "{flag}: expected a part of a weight's name, as in {}; found none (`sorcen inspect CHECKPOINT \
                     --tensors` lists them)",
                    EXAMPLES.map(|param| format!("`{param}`")).join(", ")
                );
            };
            anyhow::ensure!(
                fitting.iter().any(|&param| options.precision_of(param) == Some(rule.precision)),
                "{flag}: expected a weight that is stored so, found none among {}, `{first}` the first: only matrices \
                 become int8 or int4, the first flag that fits counts, and --encoder_only has no decoder",
                fitting.len()
            );
        }
        Ok(())
    }

    /// The images of the self-test `[N, T]`.
    fn golden_inputs(&self, count: usize, checkpoint: &Checkpoint, codes: &Fingerprint) -> anyhow::Result<Array2<i64>> {
        let Some(path) = &self.self_test_tokens else {
            let mut tokens = random_tokens(&checkpoint.config, count, 0);
            let mask = checkpoint.config.mask_token_id as i64;
            tokens.slice_mut(s![.., ..;3]).fill(mask); // as in generation
            return Ok(tokens);
        };
        let tokens = read_ids(path, &checkpoint.config, codes, self.allow_other_tokenizer)?;
        let found = tokens.nrows();
        anyhow::ensure!(found >= count, "{}: expected at least {count} images, found {found}", path.display());
        Ok(tokens.slice_move(s![..count, ..]))
    }
}
