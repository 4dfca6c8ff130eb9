//! The cross-check: the same tokens through the float reference and every artefact, compared number by number.

use std::{fmt::Write, path::PathBuf, sync::Arc};

use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewD, Axis};
use serde::Serialize;
use sorcen_runtime::{
    pack::Precision,
    rng::{Rng, Stream},
    ModelConfig,
};

use crate::{
    checkpoint::Checkpoint,
    engine::{self, Engine},
    error::Error,
    pack::{self, PackEngine, PackFile},
    reference::Reference,
    tolerance::{tolerance, Link, Output},
    tract::Tract,
};

/// What to compare.
pub struct VerifyInputs {
    /// Where everything came from: the float reference.
    pub checkpoint: Arc<Checkpoint>,
    /// An export folder with ONNX files.
    pub onnx: Option<PathBuf>,
    /// Packs, of any precision.
    pub packs: Vec<PathBuf>,
    /// Token maps `[B, T]` of images; [`random_tokens`] where there are none.
    pub tokens: Array2<i64>,
}

/// One line of the table: one output of one artefact against the reference.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Which artefact.
    pub engine: String,
    /// `features`, `latent` or `logits`.
    pub output: &'static str,
    /// Rows compared: images, tokens or positions.
    pub rows: usize,
    /// Smallest cosine of a row with the reference's.
    pub cosine_min: f32,
    /// Mean cosine.
    pub cosine_mean: f32,
    /// Largest absolute difference of an element.
    pub max_abs: f32,
    /// Share of positions whose most likely code is the same (logits only).
    pub top1: Option<f32>,
    /// Bound on `max_abs`, where there is one.
    pub max_abs_bound: Option<f32>,
    /// Bound on `cosine_min`.
    pub cosine_bound: f32,
    /// Whether both bounds hold.
    pub passed: bool,
}

/// The whole table.
#[derive(Clone, Debug, Serialize)]
pub struct VerifyReport {
    /// Images used.
    pub images: usize,
    /// SHA-256 of the checkpoint's weights.
    pub checkpoint_sha256: String,
    /// One line an artefact and output.
    pub comparisons: Vec<Comparison>,
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
    let reference = Run::of(&Reference::new(inputs.checkpoint.clone()), inputs.tokens.view())?;
    let mut comparisons = Vec::new();
    let mut compare = |engine: &dyn Engine, link, item: &std::path::Path| -> Result<(), Error> {
        if engine.config() != &inputs.checkpoint.config {
            let expected = format!("the checkpoint's configuration, {:?}", inputs.checkpoint.config);
            return Err(Error::value(item.display(), expected, format!("{:?}", engine.config())));
        }
        let run = Run::of(engine, inputs.tokens.view())?;
        for (output, expected, found) in reference.pairs(&run) {
            comparisons.push(Comparison::of(engine.name(), link, output, &expected, &found));
        }
        Ok(())
    };
    if let Some(dir) = &inputs.onnx {
        compare(&Tract::open(dir)?, Link::F32, dir)?;
    }
    for path in &inputs.packs {
        let file = PackFile::open(path)?;
        let pack = file.pack(path)?;
        let link = match pack::precision(&pack) {
            Precision::F32 => Link::F32,
            Precision::F16 => Link::F16,
            Precision::Int8 => Link::Int8,
        };
        compare(&PackEngine::new(pack), link, path)?;
    }
    Ok(VerifyReport { images: inputs.tokens.nrows(), checkpoint_sha256: inputs.checkpoint.sha256(), comparisons })
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
            let kept = engine::Kept::of(ids.view(), Some(dropped.view()), config)?;
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
fn drop_and_mask(config: &ModelConfig, tokens: ArrayView2<i64>) -> (Array2<i64>, Array2<bool>) {
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

impl Comparison {
    fn of(engine: &str, link: Link, output: Output, expected: &Array2<f32>, found: &Array2<f32>) -> Self {
        let bounds = tolerance(link, output);
        let cosines: Vec<f32> = expected.rows().into_iter().zip(found.rows()).map(|(a, b)| cosine(a, b)).collect();
        // Not `f32::min` and `max`, which pass over a NaN.
        let cosine_min = cosines.iter().fold(1.0, |worst, &c| if c < worst || c.is_nan() { c } else { worst });
        let difference = expected.iter().zip(found).map(|(a, b)| (a - b).abs());
        let max_abs = difference.fold(0.0, |worst, d| if d > worst || d.is_nan() { d } else { worst });
        let agreeing = expected.rows().into_iter().zip(found.rows()).filter(|(a, b)| best(*a) == best(*b)).count();
        Self {
            engine: engine.into(),
            output: output.name(),
            rows: expected.nrows(),
            cosine_min,
            cosine_mean: cosines.iter().sum::<f32>() / cosines.len() as f32,
            max_abs,
            top1: (output == Output::Logits).then_some(agreeing as f32 / expected.nrows() as f32),
            max_abs_bound: bounds.max_abs.is_finite().then_some(bounds.max_abs),
            cosine_bound: bounds.min_cosine,
            passed: max_abs <= bounds.max_abs && cosine_min >= bounds.min_cosine,
        }
    }
}

fn cosine(a: ArrayView1<f32>, b: ArrayView1<f32>) -> f32 {
    let dot = |x: ArrayView1<f32>, y: ArrayView1<f32>| {
        x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>()
    };
    (dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()) as f32
}

/// Index of the largest element, the first on ties.
fn best(row: ArrayView1<f32>) -> usize {
    row.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (i, &x)| if x > best.1 { (i, x) } else { best }).0
}

impl VerifyReport {
    /// Whether every comparison is within its bounds, and there is one.
    pub fn passed(&self) -> bool {
        !self.comparisons.is_empty() && self.comparisons.iter().all(|comparison| comparison.passed)
    }

    /// The table in Markdown, aligned to read well as plain text too.
    pub fn to_markdown(&self) -> String {
        let mut table = String::new();
        let head = "| against the float reference | output   |  rows | cosine min | cosine mean |  max abs | bound                  |   top-1 | result |";
        let rule = "|-----------------------------|----------|------:|-----------:|------------:|---------:|------------------------|--------:|--------|";
        let _ = writeln!(table, "{head}\n{rule}"); // a String takes everything
        for c in &self.comparisons {
            let bound = match c.max_abs_bound {
                Some(max_abs) => format!("abs {max_abs:.0e}, cos {}", c.cosine_bound),
                None => format!("cos {}", c.cosine_bound),
            };
            let top1 = c.top1.map_or(String::new(), |share| format!("{:.1} %", 100.0 * share));
            let result = if c.passed { "ok" } else { "FAILED" };
            let _ = writeln!(
                table,
                "| {:<27} | {:<8} | {:>5} | {:>10.6} | {:>11.6} | {:>8.1e} | {:<22} | {:>7} | {:<6} |",
                c.engine, c.output, c.rows, c.cosine_min, c.cosine_mean, c.max_abs, bound, top1, result
            );
        }
        table
    }

    /// The report as JSON.
    pub fn to_json(&self) -> String {
        let mut json = serde_json::json!(self);
        json["passed"] = self.passed().into();
        format!("{json:#}")
    }
}
