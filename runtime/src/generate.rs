//! Masked generation: one loop for new images, inpainting, outpainting and reconstruction.
//!
//! Known tokens stay as they are; unknown ones (the mask id) are drawn, and the least confident
//! are masked again, fewer at each step (MaskGIT's schedule; official `gen_img_uncond.py`).

use crate::{
    error::Error,
    math::fdlibm,
    model::{Model, Tokens},
    sampler::{Distribution, Draws},
    scratch::{Buffers, Plan, Scratch},
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

/// One step, shown after it was drawn.
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
    /// Not 0 where the token was known at the start `[T]`.
    given: &'a [u8],
}

impl Step<'_> {
    /// Whether the token at a position was given at the start; the others are invented.
    pub fn is_given(&self, position: usize) -> bool {
        self.given.get(position).is_some_and(|given| *given != 0)
    }
}

/// Fills the unknown tokens of `ids` `[T]` in place (unknown: the mask id).
///
/// # Errors
/// [`Error::Length`], [`Error::TokenId`] for bad ids, [`Error::Option`] for bad options,
/// [`Error::MissingSection`] for an encoder-only pack, [`Error::ScratchPlan`] or [`Error::ScratchShape`] where `scratch`
/// was not made for [`Plan::Generate`] of this model's sizes.
pub fn generate(
    model: &Model<'_>,
    ids: &mut [u16],
    options: &Options,
    draws: &mut impl Draws,
    scratch: &mut Scratch<'_>,
    mut on_step: impl FnMut(Step<'_>),
) -> Result<(), Error> {
    let mut run = Generation::new(model, ids, options, draws, scratch)?;
    while let Some(progress) = run.advance() {
        if let Progress::Step(step) = progress {
            on_step(step);
        }
    }
    Ok(())
}

/// A generation under way: [`advance`](Self::advance) runs one transformer block, or draws the tokens of a step,
/// and returns, so that a control loop can do its own work in between. [`generate`] is a loop over it.
///
/// ```no_run
/// # use sorcen_runtime::{generate::{Generation, Options, Progress}, sampler::Seeded, scratch::Scratch, Error, Model};
/// # fn read_the_motor() {}
/// # fn show(ids: &[u16]) {}
/// # fn run(model: &Model<'_>, ids: &mut [u16], scratch: &mut Scratch<'_>) -> Result<(), Error> {
/// let mut draws = Seeded(7);
/// let mut run = Generation::new(model, ids, &Options::default(), &mut draws, scratch)?;
/// while let Some(progress) = run.advance() {
///     read_the_motor();
///     if let Progress::Step(step) = progress {
///         show(step.drawn);
///     }
/// }
/// # Ok(()) }
/// ```
pub struct Generation<'a, D> {
    model: &'a Model<'a>,
    ids: &'a mut [u16],
    options: Options,
    draws: &'a mut D,
    buffers: Buffers<'a>,
    /// What the schedule counts from.
    total: usize,
    step: usize,
    next: Unit,
}

/// What a generation does next.
#[derive(Clone, Copy)]
enum Unit {
    Encoder(usize),
    Decoder(usize),
    Draw,
    EndOfStep,
    Nothing,
}

/// What a generation has just done.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'g> {
    /// A block of the encoder or of the decoder.
    Block,
    /// A step is complete: its tokens are drawn.
    Step(Step<'g>),
}

impl<'a, D: Draws> Generation<'a, D> {
    /// Starts to fill the unknown tokens of `ids` `[T]`. They are complete when [`advance`](Self::advance) has
    /// returned `None`; before that some are the mask id.
    ///
    /// # Errors
    /// As [`generate`].
    pub fn new(
        model: &'a Model<'a>,
        ids: &'a mut [u16],
        options: &Options,
        draws: &'a mut D,
        scratch: &'a mut Scratch<'_>,
    ) -> Result<Self, Error> {
        check(model, ids, options)?;
        let config = model.config();
        let buffers = scratch.buffers(config, Plan::Generate)?;
        let mask_id = config.mask_token_id as u16;
        for (given, id) in buffers.given.iter_mut().zip(&*ids) {
            *given = u8::from(*id != mask_id);
        }
        let unknown = unknown(ids, mask_id);
        let total = match options.count_from {
            CountFrom::Unknown => unknown,
            CountFrom::Grid => ids.len(),
        };
        let next = if unknown > 0 { Unit::Encoder(0) } else { Unit::Nothing };
        Ok(Self { model, ids, options: *options, draws, buffers, total, step: 0, next })
    }

    /// Runs one unit of work; `None` when the image is complete.
    pub fn advance(&mut self) -> Option<Progress<'_>> {
        if let Unit::EndOfStep = self.next {
            self.end_step();
        }
        let Self { model, ids, buffers, next, .. } = self;
        let (config, tokens) = (model.config(), Tokens { ids, positions: None });
        match *next {
            Unit::Encoder(block) => {
                model.encoder_block(tokens, block, buffers);
                *next = if block + 1 < config.depth { Unit::Encoder(block + 1) } else { Unit::Decoder(0) };
                Some(Progress::Block)
            }
            Unit::Decoder(block) => {
                if block == 0 {
                    model.final_norm(tokens, buffers);
                }
                model.decoder_block(tokens, block, buffers);
                *next = if block + 1 < config.decoder_depth { Unit::Decoder(block + 1) } else { Unit::Draw };
                Some(Progress::Block)
            }
            Unit::Draw => {
                self.draw();
                self.next = Unit::EndOfStep;
                let Buffers { drawn, given, .. } = &self.buffers;
                let (drawn, given) = (&drawn[..self.ids.len()], &given[..self.ids.len()]);
                let Options { steps, .. } = self.options;
                Some(Progress::Step(Step { index: self.step, steps, input: self.ids, drawn, given }))
            }
            Unit::EndOfStep | Unit::Nothing => None,
        }
    }

    /// Draws every unknown token; known ones are as good as certain.
    fn draw(&mut self) {
        let Self { model, ids, options, draws, buffers, step, .. } = self;
        let noise = options.temperature * (1.0 - progress(*step, options.steps));
        let (drawn, confidence) = (core::mem::take(&mut buffers.drawn), core::mem::take(&mut buffers.confidence));
        for ((drawn, confidence), id) in drawn.iter_mut().zip(confidence.iter_mut()).zip(&**ids) {
            (*drawn, *confidence) = (*id, f32::INFINITY);
        }
        let mask_id = model.config().mask_token_id as u16;
        model.logits(
            buffers,
            |position| ids[position] == mask_id,
            |position, logits| {
                let distribution = Distribution::new(logits, 1.0 / options.token_temperature);
                let id = draws.choose(*step, position, &distribution);
                let noise = (noise * draws.gumbel(*step, position)) as f32;
                let found = distribution.log_probability(id) + noise;
                drawn[position] = id;
                // Whatever the temperature: less than that of a known token, so that none of these is masked.
                confidence[position] = if found < f32::INFINITY { found } else { f32::MAX };
            },
        );
        (buffers.drawn, buffers.confidence) = (drawn, confidence);
    }

    /// The tokens of a step become the next one's input.
    fn end_step(&mut self) {
        let Self { model, ids, options, buffers, total, step, next, .. } = self;
        let count = ids.len();
        let Buffers { drawn, confidence, select, .. } = buffers;
        let (drawn, confidence, select) = (&drawn[..count], &confidence[..count], &mut select[..count]);
        if *step + 1 == options.steps {
            ids.copy_from_slice(drawn);
            *next = Unit::Nothing;
            return;
        }
        let mask_id = model.config().mask_token_id as u16;
        let count = masked_next(*total, unknown(ids, mask_id), progress(*step, options.steps));
        remask(ids, drawn, confidence, select, count, mask_id);
        *step += 1;
        *next = Unit::Encoder(0);
    }
}

/// The part of the steps that is finished after `step` (from 0).
fn progress(step: usize, steps: usize) -> f64 {
    (step + 1) as f64 / steps as f64
}

fn unknown(ids: &[u16], mask_id: u16) -> usize {
    ids.iter().filter(|&&id| id == mask_id).count()
}

/// The end of a step: `ids` `[T]` become the `drawn` ones, but for the `count` least confident (0: none, T or more:
/// all), which become the mask id again. Known tokens have an infinite confidence. `select` `[T]` is overwritten.
///
/// # Panics
/// Where the slices are not of one length.
pub fn remask(ids: &mut [u16], drawn: &[u16], confidence: &[f32], select: &mut [f32], count: usize, mask_id: u16) {
    select.copy_from_slice(confidence);
    let Some(last) = count.min(select.len()).checked_sub(1) else { return ids.copy_from_slice(drawn) };
    let (_, cut, _) = select.select_nth_unstable_by(last, f32::total_cmp);
    for ((id, drawn), confidence) in ids.iter_mut().zip(drawn).zip(confidence) {
        *id = if *confidence <= *cut { mask_id } else { *drawn };
    }
}

/// Tokens masked again after a step: at least 1, and at least one fewer than were unknown.
///
/// `total` is what the schedule counts from, `progress` the finished part of the steps, above 0 to 1.
pub fn masked_next(total: usize, unknown: usize, progress: f64) -> usize {
    let part = fdlibm::cos(core::f64::consts::FRAC_PI_2 * progress.clamp(0.0, 1.0));
    let scheduled = libm::floor(total as f64 * part) as usize;
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
    use super::{masked_next, remask};

    #[test]
    fn any_number_is_masked_again() {
        for (count, expected) in [(0, [5, 6, 7]), (1, [5, 9, 7]), (2, [5, 9, 9]), (3, [9, 9, 9]), (usize::MAX, [9; 3])]
        {
            let mut ids = [9, 9, 9];
            remask(&mut ids, &[5, 6, 7], &[f32::INFINITY, -3.0, 0.5], &mut [0.0; 3], count, 9);
            assert_eq!(ids, expected, "{count}");
        }
        remask(&mut [], &[], &[], &mut [], 0, 9);
        remask(&mut [], &[], &[], &mut [], 1, 9);
    }

    #[test]
    fn schedule_of_twenty_steps() {
        // Counts that the official code leaves masked after each of 20 steps over 256 tokens.
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
