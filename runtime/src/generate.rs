//! Masked generation: one loop for new images, inpainting, outpainting and reconstruction.
//!
//! Known tokens stay as they are; unknown ones (the mask id) are drawn, and the least confident
//! are masked again, fewer at each step (MaskGIT's schedule; official `gen_img_uncond.py`).

use crate::{
    error::Error,
    model::Model,
    sampler::{Distribution, Draws},
    scratch::{Plan, Scratch},
};

/// How to generate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Steps, at least 1 (published runs: 20).
    pub steps: usize,
    /// Choice temperature: scale of the Gumbel noise on confidences, falling to 0 (published: 6).
    pub temperature: f64,
    /// Temperature of the token choice; 1 samples the model's distribution (official).
    pub token_temperature: f32,
    /// What the number of tokens to mask again is counted from.
    pub count_from: CountFrom,
}

impl Options {
    /// The published settings: 20 steps, temperature 6.
    pub const PUBLISHED: Self =
        Self { steps: 20, temperature: 6.0, token_temperature: 1.0, count_from: CountFrom::Unknown };

    /// Checks that every option is in range.
    ///
    /// # Errors
    /// [`Error::Option`] names the first that is not.
    pub fn validate(&self) -> Result<(), Error> {
        if self.steps == 0 {
            return Err(Error::Option { name: "steps", expected: "at least 1" });
        }
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(Error::Option { name: "temperature", expected: "a finite number, 0 or more" });
        }
        if !(self.token_temperature.is_finite() && self.token_temperature > 0.0) {
            return Err(Error::Option { name: "token_temperature", expected: "a finite number above 0" });
        }
        Ok(())
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::PUBLISHED
    }
}

/// What the mask schedule counts from; the same where every token is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountFrom {
    /// The tokens unknown at the start.
    Unknown,
    /// All tokens of the grid, as the official loop does.
    Grid,
}

/// One step, shown to the callback after it was drawn.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// From 0.
    pub index: usize,
    /// Of so many.
    pub steps: usize,
    /// Ids that entered the step `[T]`, the mask id where unknown.
    pub input: &'a [u16],
    /// Ids after the draw `[T]`, none masked: a complete image.
    pub drawn: &'a [u16],
}

/// Fills the unknown tokens of `ids` `[T]` in place (unknown: the mask id).
///
/// # Errors
/// [`Error::Length`], [`Error::TokenId`] for bad ids, [`Error::Option`] for bad options,
/// [`Error::MissingSection`] for an encoder-only pack, [`Error::Scratch`] where `scratch` was not
/// made for [`Plan::Generate`].
pub fn generate(
    model: &Model<'_>,
    ids: &mut [u16],
    options: &Options,
    draws: &mut impl Draws,
    scratch: &mut Scratch<'_>,
    mut on_step: impl FnMut(Step<'_>),
) -> Result<(), Error> {
    check(model, ids, options)?;
    let config = model.config();
    let mask_id = config.mask_token_id as u16;
    let unknown = |ids: &[u16]| ids.iter().filter(|&&id| id == mask_id).count();
    let total = match options.count_from {
        CountFrom::Unknown => unknown(ids),
        CountFrom::Grid => ids.len(),
    };
    if unknown(ids) == 0 {
        return Ok(());
    }
    for step in 0..options.steps {
        let progress = (step + 1) as f64 / options.steps as f64;
        let noise = options.temperature * (1.0 - progress);
        let mut buffers = scratch.buffers(config, Plan::Generate)?;
        let drawn = core::mem::take(&mut buffers.drawn);
        let (confidence, select) = (core::mem::take(&mut buffers.confidence), core::mem::take(&mut buffers.select));
        let (drawn, confidence, select) =
            (&mut drawn[..ids.len()], &mut confidence[..ids.len()], &mut select[..ids.len()]);
        for ((drawn, confidence), id) in drawn.iter_mut().zip(confidence.iter_mut()).zip(&*ids) {
            (*drawn, *confidence) = (*id, f32::INFINITY);
        }
        model.encode_into(ids, None, buffers).into_latent().decode_where(
            |position| ids[position] == mask_id,
            |position, logits| {
                let distribution = Distribution::new(logits, 1.0 / options.token_temperature);
                let id = draws.choose(step, position, &distribution);
                let noise = (noise * draws.gumbel(step, position)) as f32;
                drawn[position] = id;
                confidence[position] = distribution.log_probability(id) + noise;
            },
        );
        on_step(Step { index: step, steps: options.steps, input: ids, drawn });
        if step + 1 == options.steps {
            ids.copy_from_slice(drawn);
        } else {
            let count = masked_next(total, unknown(ids), progress);
            remask(ids, drawn, confidence, select, count, mask_id);
        }
    }
    Ok(())
}

/// The end of a step: `ids` `[T]` become the `drawn` ones, but for the `count` (1 to T) least confident,
/// which become the mask id again. Known tokens have an infinite confidence. `select` `[T]` is overwritten.
pub fn remask(ids: &mut [u16], drawn: &[u16], confidence: &[f32], select: &mut [f32], count: usize, mask_id: u16) {
    select.copy_from_slice(confidence);
    let (_, cut, _) = select.select_nth_unstable_by(count - 1, f32::total_cmp);
    for ((id, drawn), confidence) in ids.iter_mut().zip(drawn).zip(confidence) {
        *id = if *confidence <= *cut { mask_id } else { *drawn };
    }
}

/// Tokens masked again after a step: at least 1, and at least one fewer than were unknown.
///
/// `total` is what the schedule counts from, `progress` the finished part of the steps, above 0 to 1.
pub fn masked_next(total: usize, unknown: usize, progress: f64) -> usize {
    let scheduled = libm::floor(total as f64 * libm::cos(core::f64::consts::FRAC_PI_2 * progress)) as usize;
    scheduled.min(unknown.saturating_sub(1)).max(1)
}

fn check(model: &Model<'_>, ids: &[u16], options: &Options) -> Result<(), Error> {
    model.check_tokens(ids, None)?;
    if !model.pack().has_decoder() {
        return Err(Error::MissingSection { section: "decoder" });
    }
    options.validate()
}

#[cfg(test)]
mod tests {
    use super::masked_next;

    #[test]
    fn schedule_of_twenty_steps() {
        // SPEC §8: counts after each of 20 steps over 256 tokens.
        let official = [255, 252, 248, 243, 236, 228, 218, 207, 194, 181, 166, 150, 133, 116, 97, 79, 59, 40, 20, 1];
        let mut unknown = 256;
        for (step, expected) in official.into_iter().enumerate() {
            unknown = masked_next(256, unknown, (step + 1) as f64 / 20.0);
            assert_eq!(unknown, expected, "step {step}");
        }
        assert_eq!(masked_next(256, 128, 0.05), 127);
        assert_eq!(masked_next(1, 1, 0.5), 1);
    }
}
