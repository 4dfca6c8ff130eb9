//! The cross-check: the same tokens through the float reference and every artefact, compared number by number.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use ndarray::{Array2, ArrayView2, ArrayViewD, Axis};
use sorcen_runtime::{
    generate::masked_next,
    pack::Precision,
    rng::{Rng, Stream},
    ModelConfig,
};

use crate::{
    checkpoint::Checkpoint,
    engine::{self, Engine, Kept},
    error::Error,
    onnx,
    onnxruntime::{OnnxRuntime, Python},
    pack::{self, PackEngine, PackFile},
    reference::Reference,
    tensors::TensorFile,
    tokenizer::{AnyTokenizer, Painter},
    tolerance::{Link, Output},
    tract::{Metadata, Tract},
};

mod layers;
mod neighbours;
mod report;
mod tokenizer;

pub use report::{Comparison, Distance, Layer, VerifyReport};
pub use tokenizer::TokenizerComparison;

/// What to compare.
pub struct VerifyInputs {
    /// Where everything came from: the float reference.
    pub checkpoint: Arc<Checkpoint>,
    /// Token maps `[B, T]` of images; [`random_tokens`] where there are none.
    pub tokens: Array2<i64>,
    /// Their classes `[B]`, where they are known.
    pub labels: Option<Vec<u16>>,
    /// Export folders with ONNX files, of any precision.
    pub onnx: Vec<PathBuf>,
    /// Where onnxruntime is, to run the ONNX files there too. Without it int8 files cannot be run at all.
    pub python: Option<Python>,
    /// Packs, of any precision.
    pub packs: Vec<PathBuf>,
    /// The tokenizer that those of the artefacts have to be.
    pub tokenizer: Option<AnyTokenizer>,
    /// An artefact of another checkpoint is no failure in itself: only its numbers count.
    pub allow_other_checkpoint: bool,
    /// Outputs that another engine wrote.
    pub dump: Option<Dump>,
    /// Also compare what each of the encoder's blocks gives, for packs.
    pub layers: bool,
    /// Told what is begun: a large model takes its minutes.
    pub progress: Box<dyn Fn(&str)>,
}

impl VerifyInputs {
    /// Nothing to compare yet.
    pub fn new(checkpoint: Arc<Checkpoint>, tokens: Array2<i64>) -> Self {
        Self {
            checkpoint,
            tokens,
            labels: None,
            onnx: Vec::new(),
            python: None,
            packs: Vec::new(),
            tokenizer: None,
            allow_other_checkpoint: false,
            dump: None,
            layers: false,
            progress: Box::new(|_| ()),
        }
    }
}

/// What another engine computed: `sorcen run --input INPUTS --output OUTPUTS`.
pub struct Dump {
    /// What to call it: `Burn`.
    pub name: String,
    /// `token_ids` `[B, T]`, optionally `drop_mask` `[B, T]`.
    pub inputs: PathBuf,
    /// `latent` `[B, 1+kept, D]`, `logits` `[B, T, K]`, and `features` `[B, D]` where nothing was dropped.
    pub outputs: PathBuf,
}

/// Token maps drawn uniformly from the codes, `[images, T]`: a function of the seed.
pub fn random_tokens(config: &ModelConfig, images: usize, seed: u64) -> Array2<i64> {
    let rng = Rng::new(seed, Stream::Evaluation, 0);
    Array2::from_shape_fn((images, config.tokens()), |(image, token)| {
        rng.below((image * config.tokens() + token) as u64, config.codebook_size as u64) as i64
    })
}

/// Runs every artefact and compares its outputs with the reference's.
///
/// Each image is run whole (its features and latent), with half of its tokens dropped and a tenth masked (latent and
/// logits), as in training, and with none dropped and most of them masked (the logits of a step), as in generation.
///
/// # Errors
/// Where an artefact cannot be opened or run, is of a model of other sizes, or has files of several checkpoints. Numbers
/// out of tolerance are no error, nor is an artefact of another checkpoint: see [`VerifyReport::passed`].
pub fn verify(inputs: &VerifyInputs) -> Result<VerifyReport, Error> {
    let reference = Reference::new(inputs.checkpoint.clone());
    (inputs.progress)(reference.name());
    let (config, tokens) = (&inputs.checkpoint.config, inputs.tokens.view());
    let tokenizer = inputs.tokenizer.as_ref().map(|tokenizer| tokenizer::Expected::of(tokenizer, config, tokens));
    let mut check = Check {
        inputs,
        expected: Run::of(&reference, tokens)?,
        tokenizer: tokenizer.transpose()?,
        report: VerifyReport {
            images: inputs.tokens.nrows(),
            checkpoint_sha256: inputs.checkpoint.sha256(),
            comparisons: Vec::new(),
            tokenizers: Vec::new(),
            layers: Vec::new(),
            failures: Vec::new(),
            notes: Vec::new(),
        },
    };
    for dir in &inputs.onnx {
        check.onnx(dir)?;
    }
    for path in &inputs.packs {
        check.pack(&reference, path)?;
    }
    if let Some(dump) = &inputs.dump {
        (inputs.progress)(&dump.name);
        check.report.comparisons.extend(compare_dump(&reference, dump)?);
    }
    if inputs.tokenizer.is_some() && check.report.tokenizers.is_empty() {
        check.report.failures.push("a tokenizer to compare with was given, and no artefact has one".into());
    }
    Ok(check.report)
}

/// A check at work.
struct Check<'a> {
    inputs: &'a VerifyInputs,
    /// What the reference computed.
    expected: Run,
    /// What the tokenizer made of images.
    tokenizer: Option<tokenizer::Expected<'a>>,
    report: VerifyReport,
}

impl Check<'_> {
    /// A folder of ONNX files, in tract and in onnxruntime.
    fn onnx(&mut self, dir: &Path) -> Result<(), Error> {
        onnx::check_folder(dir)?;
        let metadata = Metadata::read(&dir.join(onnx::ENCODER_FILE))?;
        self.check_source(dir, Some(&metadata.checkpoint_sha256));
        if !dir.join(onnx::STEP_FILE).exists() {
            self.note(dir, format!("no {}: a step is encoder.onnx, then decoder.onnx", onnx::STEP_FILE));
        }
        let link = match metadata.precision.as_str() {
            "int8" => Link::Int8Static,
            "f16" => Link::F16,
            _ => Link::F32,
        };
        let has_tokenizer = dir.join(onnx::TOKENIZER_ENCODER_FILE).exists();
        if has_tokenizer && self.tokenizer.is_none() {
            self.tokenizer_is_left_out(dir);
        }
        let tokenizer = self.tokenizer.as_ref().filter(|_| has_tokenizer);
        if let Some(expected) = tokenizer {
            (self.inputs.progress)("tokenizer in tract");
            self.report.tokenizers.push(expected.in_tract(dir)?);
        }
        if let (Some(expected), Some(python)) = (tokenizer, &self.inputs.python) {
            (self.inputs.progress)("tokenizer in onnxruntime");
            self.report.tokenizers.push(expected.in_onnxruntime(dir, python)?);
        }
        if link != Link::Int8Static {
            self.compare(&Tract::open(dir)?, link, dir)?;
        }
        match &self.inputs.python {
            Some(python) => self.compare(&OnnxRuntime::open(python, dir)?, link, dir)?,
            None if link == Link::Int8Static => {
                let found = "int8 (QDQ), which needs onnxruntime, and no Python that has it".into();
                return Err(Error::Onnx { path: dir.to_owned(), found });
            }
            None => self.note(dir, "not run in onnxruntime, no Python that has it"),
        }
        Ok(())
    }

    /// A pack, in the runtime.
    fn pack(&mut self, reference: &Reference, path: &Path) -> Result<(), Error> {
        let file = PackFile::open(path)?;
        let pack = file.pack(path)?;
        let link = match pack::precision(&pack) {
            Precision::F32 => Link::F32Pack,
            Precision::F16 => Link::F16,
            Precision::Int8 => Link::Int8,
            Precision::Int4 => Link::Int4,
        };
        let card: Option<serde_json::Value> = pack.card().and_then(|card| serde_json::from_str(card).ok());
        self.check_source(path, card.as_ref().and_then(|card| card["checkpoint_sha256"].as_str()));
        let engine = PackEngine::new(pack);
        self.compare(&engine, link, path)?;
        match (Painter::of_pack(&pack), &self.tokenizer) {
            (None, _) => {}
            (Some(_), None) => self.tokenizer_is_left_out(path),
            (Some(painter), Some(expected)) => {
                (self.inputs.progress)("tokenizer in the pack");
                self.report.tokenizers.push(expected.in_pack(&painter, engine.name(), path)?);
            }
        }
        if self.inputs.layers {
            (self.inputs.progress)(&format!("layers of {}", engine.name()));
            self.report.layers.extend(layers::compare(reference, &engine, path, self.inputs.tokens.view())?);
        }
        Ok(())
    }

    /// Holds an engine's outputs against the reference's.
    fn compare(&mut self, engine: &dyn Engine, link: Link, item: &Path) -> Result<(), Error> {
        let config = &self.inputs.checkpoint.config;
        if engine.config() != config {
            let expected = format!("the checkpoint's configuration, {config:?}");
            return Err(Error::value(item.display(), expected, format!("{:?}", engine.config())));
        }
        (self.inputs.progress)(engine.name());
        let run = Run::of(engine, self.inputs.tokens.view())?;
        for (output, expected, found) in self.expected.pairs(&run) {
            if expected.dim() != found.dim() {
                let item = format!("{}: {} of {}", item.display(), output.name(), engine.name());
                return Err(Error::value(item, format!("{:?}", expected.dim()), format!("{:?}", found.dim())));
            }
            let mut comparison = Comparison::of(engine.name(), item, link, output, &expected, &found);
            if let (Output::Features, Some(labels)) = (output, &self.inputs.labels) {
                match neighbours::same_class(&expected, &found, labels) {
                    Ok(share) => comparison.same_class = Some(share),
                    Err(why) => self.report.note_once(format!("no classes by 5-NN: {why}")),
                }
            }
            self.report.comparisons.push(comparison);
        }
        Ok(())
    }

    /// Whether an artefact is of the checkpoint; `found` is the SHA-256 that it names.
    fn check_source(&mut self, path: &Path, found: Option<&str>) {
        let expected = &self.report.checkpoint_sha256;
        let wrong = match found {
            Some(found) if found == expected => return,
            Some(found) => format!("made from another checkpoint: SHA-256 {found}, not {expected}"),
            None => format!("does not say from which checkpoint it was made, expected SHA-256 {expected}"),
        };
        match self.inputs.allow_other_checkpoint {
            true => self.note(path, wrong),
            false => {
                let failure = format!("{}: {wrong} (--allow_other_checkpoint compares numbers alone)", path.display());
                self.report.failures.push(failure);
            }
        }
    }

    fn tokenizer_is_left_out(&mut self, path: &Path) {
        self.note(path, "its tokenizer was not compared: --tokenizer FILE says with which");
    }

    fn note(&mut self, path: &Path, text: impl std::fmt::Display) {
        self.report.notes.push(format!("{}: {text}", path.display()));
    }
}

/// The reference on a dump's inputs, beside the dump.
fn compare_dump(reference: &Reference, dump: &Dump) -> Result<Vec<Comparison>, Error> {
    let kept = Kept::read(&TensorFile::open(&dump.inputs)?, reference.config())?;
    let expected = engine::run_kept(reference, &kept)?;
    let outputs = TensorFile::open(&dump.outputs)?;
    let mut pairs = vec![
        (Output::Latent, expected.latent.into_dyn(), outputs.floats("latent", 3)?),
        (Output::Logits, expected.logits.into_dyn(), outputs.floats("logits", 3)?),
    ];
    if let Some(features) = expected.features {
        pairs.insert(0, (Output::Features, features.into_dyn(), outputs.floats("features", 2)?));
    }
    let compare = |(output, expected, found): (Output, ndarray::ArrayD<f32>, ndarray::ArrayD<f32>)| {
        if expected.shape() != found.shape() {
            return Err(Error::Shape {
                path: dump.outputs.clone(),
                tensor: output.name().into(),
                expected: format!("{:?}", expected.shape()),
                found: found.shape().to_vec(),
            });
        }
        let (expected, found) = (rows(expected.view()), rows(found.view()));
        Ok(Comparison::of(&dump.name, &dump.outputs, Link::F32, output, &expected, &found))
    };
    pairs.into_iter().map(compare).collect()
}

/// All outputs of an engine, as rows.
struct Run {
    features: Array2<f32>,
    /// Of whole images, then of images with dropped tokens.
    latent: [Array2<f32>; 2],
    /// Absent in an encoder-only pack, as the next.
    logits: Option<Array2<f32>>,
    /// The logits of a step of generation.
    step: Option<Array2<f32>>,
}

impl Run {
    fn of(engine: &dyn Engine, tokens: ArrayView2<i64>) -> Result<Self, Error> {
        let config = engine.config();
        let all = Array2::from_shape_fn(tokens.dim(), |(_, t)| t as i64);
        let whole = engine.encode(tokens, all.view())?;

        let (ids, dropped) = drop_and_mask(config, tokens);
        let (latent, [logits, step]) = if engine.has_decoder() {
            let out = engine::run(engine, ids.view(), Some(dropped.view()))?;
            let step = engine.step(mask_as_in_generation(config, tokens).view())?;
            (out.latent, [out.logits, step].map(|logits| Some(rows(logits.view().into_dyn()))))
        } else {
            let kept = Kept::of(ids.view(), Some(dropped.view()), config)?;
            (engine.encode(kept.ids.view(), kept.positions.view())?.latent, [None, None])
        };
        let latent = [rows(whole.latent.view().into_dyn()), rows(latent.view().into_dyn())];
        Ok(Self { features: whole.features, latent, logits, step })
    }

    /// What both runs have, side by side.
    fn pairs(&self, other: &Run) -> Vec<(Output, Array2<f32>, Array2<f32>)> {
        let concatenated = |run: &Run| ndarray::concatenate![Axis(0), run.latent[0], run.latent[1]];
        let mut pairs = vec![
            (Output::Features, self.features.clone(), other.features.clone()),
            (Output::Latent, concatenated(self), concatenated(other)),
        ];
        let logits = [(Output::Logits, &self.logits, &other.logits), (Output::Step, &self.step, &other.step)];
        for (output, expected, found) in logits {
            if let (Some(expected), Some(found)) = (expected, found) {
                pairs.push((output, expected.clone(), found.clone()));
            }
        }
        pairs
    }
}

/// Half of the tokens dropped, a tenth of all masked: a function of the image's place in the batch.
pub(crate) fn drop_and_mask(config: &ModelConfig, tokens: ArrayView2<i64>) -> (Array2<i64>, Array2<bool>) {
    let count = config.tokens();
    let mut ids = tokens.to_owned();
    let mut dropped = Array2::from_elem(tokens.dim(), false);
    for image in 0..tokens.nrows() {
        for (rank, t) in shuffled(count, image, 0).into_iter().enumerate() {
            if rank < count / 2 {
                dropped[[image, t]] = true;
            } else if rank < count / 2 + count.div_ceil(10) {
                ids[[image, t]] = config.mask_token_id as i64;
            }
        }
    }
    (ids, dropped)
}

/// The maps with as many tokens masked as generation has masked at its steps, all of the first image, then from most to
/// one in turn: a function of the image's place in the batch, and even over the steps for any number of images.
pub(crate) fn mask_as_in_generation(config: &ModelConfig, tokens: ArrayView2<i64>) -> Array2<i64> {
    /// Multiples of the golden ratio spread evenly over 0 to 1.
    const GOLDEN: f64 = 0.618_033_988_749_894_9;
    let count = config.tokens();
    let mut ids = tokens.to_owned();
    for image in 0..tokens.nrows() {
        let masked = masked_next(count, count + 1, (image as f64 * GOLDEN).fract());
        for t in shuffled(count, image, 1).into_iter().take(masked) {
            ids[[image, t]] = config.mask_token_id as i64;
        }
    }
    ids
}

/// The places of an image in random order; `purpose` tells apart what needs orders of its own.
fn shuffled(count: usize, image: usize, purpose: u64) -> Vec<usize> {
    let rng = Rng::new(image as u64, Stream::MaskNoise, purpose);
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_key(|&t| rng.bits(t as u64));
    order
}

/// An array as rows of its last axis.
fn rows(values: ArrayViewD<f32>) -> Array2<f32> {
    let width = values.shape()[values.ndim() - 1];
    let values: Vec<f32> = values.iter().copied().collect();
    Array2::from_shape_vec((values.len() / width, width), values).expect("whole rows")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_masked_as_in_generation() {
        let config = ModelConfig::micro(8, 16);
        let ids = mask_as_in_generation(&config, random_tokens(&config, 200, 0).view());
        let mask = config.mask_token_id as i64;
        let masked: Vec<usize> =
            ids.rows().into_iter().map(|row| row.iter().filter(|&&id| id == mask).count()).collect();
        assert_eq!(masked[0], 64, "the first step has nothing to go by");
        assert!(masked.iter().all(|&count| count > 0));
        // The schedule's cosine is above a half for two thirds of the steps.
        let most = masked.iter().filter(|&&count| count > 32).count();
        assert!((120..150).contains(&most), "{most}");
    }
}
