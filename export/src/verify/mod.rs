//! The cross-check: the same tokens through the float reference and every artefact, compared number by number.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use ndarray::{Array2, ArrayView2, ArrayViewD, Axis};
use sorcen_runtime::{
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
    tolerance::{Link, Output},
    tract::{Metadata, Tract},
};

mod layers;
mod report;

use report::same_class;
pub use report::{Comparison, Distance, Layer, VerifyReport};

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
/// Each image is run whole (its features and latent), and with half of its tokens dropped and a tenth
/// masked (latent and logits), as in training and generation.
///
/// # Errors
/// Where an artefact cannot be opened or run, or is of another model. Numbers out of tolerance are no
/// error: see [`VerifyReport::passed`].
pub fn verify(inputs: &VerifyInputs) -> Result<VerifyReport, Error> {
    let reference = Reference::new(inputs.checkpoint.clone());
    (inputs.progress)(reference.name());
    let expected = Run::of(&reference, inputs.tokens.view())?;
    let mut comparisons = Vec::new();
    let (mut layers, mut notes) = (Vec::new(), Vec::new());
    let checkpoint_sha256 = inputs.checkpoint.sha256();
    let made_from_another = |path: &Path, found: &str| {
        let expected = &checkpoint_sha256;
        (found != expected)
            .then(|| format!("{}: made from another checkpoint: SHA-256 {found}, not {expected}", path.display()))
    };
    let mut compare = |engine: &dyn Engine, link, item: &Path| -> Result<(), Error> {
        if engine.config() != &inputs.checkpoint.config {
            let expected = format!("the checkpoint's configuration, {:?}", inputs.checkpoint.config);
            return Err(Error::value(item.display(), expected, format!("{:?}", engine.config())));
        }
        (inputs.progress)(engine.name());
        let run = Run::of(engine, inputs.tokens.view())?;
        for (output, expected, found) in expected.pairs(&run) {
            let mut comparison = Comparison::of(engine.name(), item, link, output, &expected, &found);
            if let (Output::Features, Some(labels)) = (output, &inputs.labels) {
                comparison.same_class = same_class(&expected, &found, labels);
            }
            comparisons.push(comparison);
        }
        Ok(())
    };
    for dir in &inputs.onnx {
        onnx::check_folder(dir)?;
        let metadata = Metadata::read(&dir.join(onnx::ENCODER_FILE))?;
        notes.extend(made_from_another(dir, &metadata.checkpoint_sha256));
        let link = match metadata.precision.as_str() {
            "int8" => Link::Int8Static,
            "f16" => Link::F16,
            _ => Link::F32,
        };
        if link != Link::Int8Static {
            compare(&Tract::open(dir)?, link, dir)?;
        }
        match &inputs.python {
            Some(python) => compare(&OnnxRuntime::open(python, dir)?, link, dir)?,
            None if link == Link::Int8Static => {
                let found = "int8 (QDQ), which needs onnxruntime, and no Python that has it".into();
                return Err(Error::Onnx { path: dir.clone(), found });
            }
            None => notes.push(format!("{}: not run in onnxruntime, no Python that has it", dir.display())),
        }
    }
    for path in &inputs.packs {
        let file = PackFile::open(path)?;
        let pack = file.pack(path)?;
        let link = match pack::precision(&pack) {
            Precision::F32 => Link::F32Pack,
            Precision::F16 => Link::F16,
            Precision::Int8 => Link::Int8,
            Precision::Int4 => Link::Int4,
        };
        let card: Option<serde_json::Value> = pack.card().and_then(|card| serde_json::from_str(card).ok());
        let source = card.as_ref().and_then(|card| card["checkpoint_sha256"].as_str());
        notes.extend(source.and_then(|source| made_from_another(path, source)));
        let engine = PackEngine::new(pack);
        compare(&engine, link, path)?;
        if inputs.layers {
            (inputs.progress)(&format!("layers of {}", engine.name()));
            layers.extend(layers::compare(&reference, &engine, path, inputs.tokens.view())?);
        }
    }
    if let Some(dump) = &inputs.dump {
        (inputs.progress)(&dump.name);
        comparisons.extend(compare_dump(&reference, dump)?);
    }
    Ok(VerifyReport { images: inputs.tokens.nrows(), checkpoint_sha256, comparisons, layers, notes })
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
    /// Absent in an encoder-only pack.
    logits: Option<Array2<f32>>,
}

impl Run {
    fn of(engine: &dyn Engine, tokens: ArrayView2<i64>) -> Result<Self, Error> {
        let config = engine.config();
        let all = Array2::from_shape_fn(tokens.dim(), |(_, t)| t as i64);
        let whole = engine.encode(tokens, all.view())?;

        let (ids, dropped) = drop_and_mask(config, tokens);
        let (latent, logits) = if engine.has_decoder() {
            let out = engine::run(engine, ids.view(), Some(dropped.view()))?;
            (out.latent, Some(rows(out.logits.view().into_dyn())))
        } else {
            let kept = Kept::of(ids.view(), Some(dropped.view()), config)?;
            (engine.encode(kept.ids.view(), kept.positions.view())?.latent, None)
        };
        let latent = [rows(whole.latent.view().into_dyn()), rows(latent.view().into_dyn())];
        Ok(Self { features: whole.features, latent, logits })
    }

    /// What both runs have, side by side.
    fn pairs(&self, other: &Run) -> Vec<(Output, Array2<f32>, Array2<f32>)> {
        let concatenated = |run: &Run| ndarray::concatenate![Axis(0), run.latent[0], run.latent[1]];
        let mut pairs = vec![
            (Output::Features, self.features.clone(), other.features.clone()),
            (Output::Latent, concatenated(self), concatenated(other)),
        ];
        if let (Some(expected), Some(found)) = (&self.logits, &other.logits) {
            pairs.push((Output::Logits, expected.clone(), found.clone()));
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
        let rng = Rng::new(image as u64, Stream::MaskNoise, 0);
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by_key(|&t| rng.bits(t as u64));
        for (rank, t) in order.into_iter().enumerate() {
            if rank < count / 2 {
                dropped[[image, t]] = true;
            } else if rank < count / 2 + count.div_ceil(10) {
                ids[[image, t]] = config.mask_token_id as i64;
            }
        }
    }
    (ids, dropped)
}

/// An array as rows of its last axis.
fn rows(values: ArrayViewD<f32>) -> Array2<f32> {
    let width = values.shape()[values.ndim() - 1];
    let values: Vec<f32> = values.iter().copied().collect();
    Array2::from_shape_vec((values.len() / width, width), values).expect("whole rows")
}
