//! Many images through a pack on all cores: each image is computed alone, so the number of
//! threads never changes a bit.

use rayon::prelude::*;
use sorcen_runtime::{
    generate::{generate, Options, Step},
    sampler::{Greedy, Seeded},
    scratch::{OwnedScratch, Plan},
    Error, Model,
};

/// Probe features of images: `ids` one `[T]` an image; the result one `[D]` an image.
///
/// # Errors
/// The runtime's, for bad ids.
pub fn features(model: &Model<'_>, images: &[Vec<u16>]) -> Result<Vec<Vec<f32>>, Error> {
    let config = model.config();
    let run = |scratch: &mut Result<OwnedScratch, Error>, ids: &Vec<u16>| {
        let mut out = vec![0.0; config.embed_dim];
        model.features(ids, &mut scratch.as_mut().map_err(|e| *e)?.get()?, &mut out)?;
        Ok(out)
    };
    images.par_iter().map_init(|| OwnedScratch::new(config, Plan::Features), run).collect()
}

/// How [`generate_all`] draws.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// Steps and temperatures.
    pub options: Options,
    /// Image `i` uses seed `seed + i`.
    pub seed: u64,
    /// Always the most likely code.
    pub greedy: bool,
}

/// Fills the unknown tokens of each image (unknown: the mask id). `on_step(image, step)` is called
/// from several threads.
///
/// # Errors
/// The runtime's, for bad ids, options, or a pack without a decoder.
pub fn generate_all(
    model: &Model<'_>,
    images: &[Vec<u16>],
    draw: &Draw,
    on_step: impl Fn(usize, Step<'_>) + Sync,
) -> Result<Vec<Vec<u16>>, Error> {
    let config = model.config();
    let run = |scratch: &mut Result<OwnedScratch, Error>, (index, start): (usize, &Vec<u16>)| {
        let mut ids = start.clone();
        let mut scratch = scratch.as_mut().map_err(|e| *e)?.get()?;
        let seed = draw.seed.wrapping_add(index as u64);
        let step = |step: Step<'_>| on_step(index, step);
        if draw.greedy {
            generate(model, &mut ids, &draw.options, &mut Greedy(seed), &mut scratch, step)?;
        } else {
            generate(model, &mut ids, &draw.options, &mut Seeded(seed), &mut scratch, step)?;
        }
        Ok(ids)
    };
    images.par_iter().enumerate().map_init(|| OwnedScratch::new(config, Plan::Generate), run).collect()
}
