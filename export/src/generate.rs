//! Masked generation with any engine, and with recorded randomness.
//!
//! A pack is run by the runtime's own loop; for the others the same loop stands here, over the same
//! sampler, schedule and re-masking, with all logits of a batch from one [`engine::run`].

use ndarray::{concatenate, s, Array2, Array3, ArrayView2, ArrayView3, Axis, Ix3};
use rayon::prelude::*;
use sorcen_runtime::{
    generate::{self as runtime, CountFrom, Options},
    sampler::{Distribution, Draws, Greedy, Seeded},
    ModelConfig,
};

use crate::{
    engine::{self, Engine},
    error::Error,
    pack::PackEngine,
    tensors::TensorFile,
};

/// What a generation gives.
#[derive(Debug, PartialEq)]
pub struct Generated {
    /// `[N, B, T]`: ids entering each step, the mask id where unknown.
    pub input_ids: Array3<i64>,
    /// `[B, T]`: the images, no mask left.
    pub final_ids: Array2<i64>,
}

/// Where the random choices of a batch come from.
pub enum Randomness {
    /// The counter generator: image `b` uses seed + b.
    Seeded(u64),
    /// Always the most likely code; confidences get the noise of seed + b.
    Greedy(u64),
    /// Recorded draws.
    Replay(Replay),
}

/// Recorded draws of a batch.
pub struct Replay {
    /// `[N, B, T]`: the code drawn at every position of every step, known or not.
    pub raw_sampled_ids: Array3<u16>,
    /// `[N, B, T]`: standard Gumbel noise of the confidences.
    pub gumbel: Array3<f64>,
}

impl Replay {
    /// From `raw_sampled_ids` and `gumbel` `[N, B, T]` of a tester's file.
    ///
    /// # Errors
    /// Any [`Error`] naming file, tensor, expected and found.
    pub fn read(file: &TensorFile, config: &ModelConfig) -> Result<Self, Error> {
        let ids = file.ints_as::<Ix3>("raw_sampled_ids")?;
        let gumbel = file.numbers_as::<Ix3>("gumbel")?;
        let tokens = config.tokens();
        if ids.shape() != gumbel.shape() || ids.shape()[2] != tokens {
            let expected = format!("both of one shape [N, B, {tokens}]");
            let found = format!("{:?} and {:?}", ids.shape(), gumbel.shape());
            return Err(Error::value(file.item("raw_sampled_ids") + " and `gumbel`", expected, found));
        }
        if let Some(id) = ids.iter().find(|id| !(0..config.codebook_size as i64).contains(id)) {
            let expected = format!("codes below {}", config.codebook_size);
            return Err(Error::value(file.item("raw_sampled_ids"), expected, id));
        }
        Ok(Self { raw_sampled_ids: ids.mapv(|id| id as u16), gumbel })
    }
}

impl Randomness {
    /// Checks that recorded draws are enough for so many steps and images.
    pub(crate) fn check(&self, steps: usize, batch: usize) -> Result<(), Error> {
        let Randomness::Replay(replay) = self else { return Ok(()) };
        let (found_steps, found_batch, _) = replay.raw_sampled_ids.dim();
        if found_steps < steps {
            return Err(Error::value(
                "recorded steps",
                format!("at least {steps}, as many as are to run"),
                found_steps,
            ));
        }
        if found_batch != batch {
            return Err(Error::value("recorded images", format!("{batch}, as at the start"), found_batch));
        }
        Ok(())
    }

    /// The draws of one image of the batch.
    fn for_image(&self, image: usize) -> ImageDraws<'_> {
        match self {
            Randomness::Seeded(seed) => ImageDraws::Seeded(Seeded(seed.wrapping_add(image as u64))),
            Randomness::Greedy(seed) => ImageDraws::Greedy(Greedy(seed.wrapping_add(image as u64))),
            Randomness::Replay(replay) => ImageDraws::Replay(replay, image),
        }
    }
}

/// One image's draws.
enum ImageDraws<'r> {
    Seeded(Seeded),
    Greedy(Greedy),
    Replay(&'r Replay, usize),
}

impl Draws for ImageDraws<'_> {
    fn choose(&mut self, step: usize, position: usize, distribution: &Distribution<'_>) -> u16 {
        match self {
            ImageDraws::Seeded(draws) => draws.choose(step, position, distribution),
            ImageDraws::Greedy(draws) => draws.choose(step, position, distribution),
            ImageDraws::Replay(replay, image) => replay.raw_sampled_ids[[step, *image, position]],
        }
    }

    fn gumbel(&mut self, step: usize, position: usize) -> f64 {
        match self {
            ImageDraws::Seeded(draws) => draws.gumbel(step, position),
            ImageDraws::Greedy(draws) => draws.gumbel(step, position),
            ImageDraws::Replay(replay, image) => replay.gumbel[[step, *image, position]],
        }
    }
}

/// Logits that [`generate`] has in memory at a time: 256 MB of f32.
const LOGITS_AT_ONCE: usize = 1 << 26;

/// Fills the masked places of `start` `[B, T]` (codes, or the mask id), as many images at a time as fit into memory.
///
/// # Errors
/// [`Error::Value`] where `start`, the options or the recorded draws do not fit.
pub fn generate(
    engine: &dyn Engine,
    start: ArrayView2<i64>,
    options: &Options,
    randomness: &Randomness,
) -> Result<Generated, Error> {
    randomness.check(options.steps, start.nrows())?;
    let config = engine.config();
    engine::check_images(config, start, "start")?;
    let at_once = (LOGITS_AT_ONCE / (config.tokens() * config.codebook_size)).max(1);
    let parts = start.axis_chunks_iter(Axis(0), at_once).enumerate().map(|(part, start)| {
        generate_with(engine, start, options, |image| randomness.for_image(part * at_once + image))
    });
    let parts: Vec<Generated> = parts.collect::<Result<_, _>>()?;
    let input_ids: Vec<_> = parts.iter().map(|part| part.input_ids.view()).collect();
    let final_ids: Vec<_> = parts.iter().map(|part| part.final_ids.view()).collect();
    let failed = |error| Error::value("batch", "parts of one shape", error);
    Ok(Generated {
        input_ids: concatenate(Axis(1), &input_ids).map_err(failed)?,
        final_ids: concatenate(Axis(0), &final_ids).map_err(failed)?,
    })
}

/// [`generate`] with any source of random choices; `draws(b)` are those of image `b`.
///
/// # Errors
/// As [`generate`].
pub fn generate_with<D: Draws>(
    engine: &dyn Engine,
    start: ArrayView2<i64>,
    options: &Options,
    draws: impl Fn(usize) -> D,
) -> Result<Generated, Error> {
    options.validate()?;
    let config = engine.config();
    let mut images = start_images(config, start)?;
    let mut draws: Vec<D> = (0..images.len()).map(draws).collect();
    let totals: Vec<usize> = images.iter().map(|ids| count_from(config, ids, options)).collect();
    let mut input_ids = Array3::zeros((options.steps, images.len(), config.tokens()));
    let mut confidence = vec![0.0; config.tokens()];
    let mut select = confidence.clone();
    for step in 0..options.steps {
        let input = Array2::from_shape_fn(start.dim(), |(b, t)| i64::from(images[b][t]));
        input_ids.slice_mut(s![step, .., ..]).assign(&input);
        let logits = engine::run(engine, input.view(), None)?.logits; // [B, T, K]
        let progress = (step + 1) as f64 / options.steps as f64;
        let temperature = options.temperature * (1.0 - progress);
        for (b, ids) in images.iter_mut().enumerate() {
            let unknown = unknown(config, ids);
            let mut drawn = ids.clone();
            confidence.fill(f32::INFINITY);
            for t in (0..ids.len()).filter(|&t| usize::from(ids[t]) == config.mask_token_id) {
                let mut row = logits.slice(s![b, t, ..]).to_vec();
                let distribution = Distribution::new(&mut row, 1.0 / options.token_temperature);
                drawn[t] = draws[b].choose(step, t, &distribution);
                let noise = (temperature * draws[b].gumbel(step, t)) as f32;
                confidence[t] = distribution.log_probability(drawn[t]) + noise;
            }
            if unknown == 0 || step + 1 == options.steps {
                *ids = drawn;
            } else {
                let count = runtime::masked_next(totals[b], unknown, progress);
                runtime::remask(ids, &drawn, &confidence, &mut select, count, config.mask_token_id as u16);
            }
        }
    }
    let final_ids = Array2::from_shape_fn(start.dim(), |(b, t)| i64::from(images[b][t]));
    Ok(Generated { input_ids, final_ids })
}

/// [`generate`] by the runtime's own loop.
///
/// # Errors
/// As [`generate`], and where the pack has no decoder.
pub fn generate_pack(
    engine: &PackEngine,
    start: ArrayView2<i64>,
    options: &Options,
    randomness: &Randomness,
) -> Result<Generated, Error> {
    randomness.check(options.steps, start.nrows())?;
    options.validate()?;
    let config = engine.config();
    let images = start_images(config, start)?;
    let one = |(image, mut ids): (usize, Vec<u16>)| -> Result<_, Error> {
        let mut memory = engine.scratch()?;
        let mut inputs = Array2::zeros((options.steps, ids.len()));
        // Steps that a finished image does not run are shown as that image.
        inputs.rows_mut().into_iter().for_each(|mut row| row.assign(&wide(&ids)));
        let show = |step: runtime::Step| inputs.row_mut(step.index).assign(&wide(step.input));
        let draws = &mut randomness.for_image(image);
        runtime::generate(engine.model(), &mut ids, options, draws, &mut memory.get()?, show)?;
        Ok((inputs, ids))
    };
    let done: Vec<_> = images.into_par_iter().enumerate().map(one).collect::<Result<_, _>>()?;
    let mut input_ids = Array3::zeros((options.steps, done.len(), config.tokens()));
    for (mut place, (inputs, _)) in input_ids.axis_iter_mut(Axis(1)).zip(&done) {
        place.assign(inputs);
    }
    let final_ids = Array2::from_shape_fn(start.dim(), |(b, t)| i64::from(done[b].1[t]));
    Ok(Generated { input_ids, final_ids })
}

/// `input_ids` `[N, B, T]` of a tester's file, if it has them: the first step's are the start.
///
/// # Errors
/// Any [`Error`] naming file and tensor.
pub fn read_inputs(file: &TensorFile) -> Result<Option<Array3<i64>>, Error> {
    if !file.has("input_ids") {
        return Ok(None);
    }
    let ids = file.ints_as::<Ix3>("input_ids")?;
    if ids.dim().0 == 0 || ids.dim().1 == 0 {
        let expected = "at least one step and one image";
        return Err(Error::value(file.item("input_ids"), expected, format!("{:?}", ids.shape())));
    }
    Ok(Some(ids))
}

/// What recorded `input_ids` `[N, B, T]` counted the tokens to mask again from, told from how many of the
/// first image's were masked at each step.
pub fn recorded_count_from(config: &ModelConfig, input_ids: ArrayView3<i64>) -> CountFrom {
    let masked = |step: usize| {
        let ids = input_ids.slice(s![step, 0, ..]);
        ids.iter().filter(|&&id| id == config.mask_token_id as i64).count()
    };
    let steps = input_ids.dim().0;
    let explains = |total: usize| {
        (1..steps).all(|step| masked(step) == runtime::masked_next(total, masked(step - 1), step as f64 / steps as f64))
    };
    match explains(config.tokens()) && !explains(masked(0)) {
        true => CountFrom::Grid,
        false => CountFrom::Unknown,
    }
}

fn wide(ids: &[u16]) -> ndarray::Array1<i64> {
    ids.iter().map(|&id| i64::from(id)).collect()
}

/// The start, checked, an image a vector.
fn start_images(config: &ModelConfig, start: ArrayView2<i64>) -> Result<Vec<Vec<u16>>, Error> {
    engine::check_images(config, start, "start")?;
    Ok(start.rows().into_iter().map(|row| row.iter().map(|&id| id as u16).collect()).collect())
}

fn unknown(config: &ModelConfig, ids: &[u16]) -> usize {
    ids.iter().filter(|&&id| usize::from(id) == config.mask_token_id).count()
}

fn count_from(config: &ModelConfig, ids: &[u16], options: &Options) -> usize {
    match options.count_from {
        CountFrom::Unknown => unknown(config, ids),
        CountFrom::Grid => ids.len(),
    }
}
