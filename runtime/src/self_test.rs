//! Does this device compute what the machine that wrote the pack computed? Golden inputs and outputs in the pack.
//!
//! A pack may hold a few images as tokens and what the model makes of them: the probe's feature and, where there
//! is a decoder, one step of generation: the code drawn at every position and its confidence, which depends on
//! every logit there, on the random numbers and on the transcendental functions.
//! [`Model::self_test`] computes them again, after flashing or in the field. Where all products are of integers
//! (int8, int4) every bit must be the same; float packs have a tolerance.
//!
//! ```no_run
//! # fn run(file: &[u8], memory: &mut [u8]) -> Result<(), sorcen_runtime::Error> {
//! use sorcen_runtime::{scratch::{Plan, Scratch}, Model, Pack};
//! let model = Model::new(Pack::new(file)?);
//! let mut scratch = Scratch::new(memory, model.config(), Plan::Generate)?;
//! let passed = model.self_test(&mut scratch)?; // or an error that says what differs
//! assert!(passed.inputs > 0 && passed.decoder);
//! # Ok(()) }
//! ```
//!
//! `sorcen-export pack --self_test N` puts one in; [`record`] computes what is expected.

use crate::{
    config::ModelConfig,
    error::Error,
    model::Model,
    sampler::{Distribution, Draws, Seeded},
    schema,
    scratch::{Plan, Scratch},
};

/// Seed of the draws.
const SEED: u64 = 0;
/// Scale of the noise on confidences, as published for generation.
const TEMPERATURE: f64 = 6.0;
/// How far features and confidences of a float pack may be off on another CPU; they are of the order of 1 to 10.
pub const FLOAT_TOLERANCE: f32 = 1e-3;

/// Golden inputs and outputs. `N` inputs of `T` tokens, features `D` wide.
#[derive(Clone, Copy, Debug)]
pub struct SelfTest<'p> {
    tolerance: f32,
    inputs: usize,
    ids: &'p [u16],
    features: &'p [f32],
    drawn: &'p [u16],
    confidences: &'p [f32],
}

/// What a device passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Number of inputs, at least 1.
    pub inputs: usize,
    /// Whether the decoder was run, too: the pack has one, and the scratch was made for [`Plan::Generate`].
    pub decoder: bool,
}

impl<'p> SelfTest<'p> {
    /// From what [`record`] computed for `ids` `[N, T]`: `features` `[N, D]`; `drawn` and `confidences` `[N, T]`, both
    /// empty for a pack without a decoder. `tolerance`: see [`tolerance`].
    ///
    /// # Errors
    /// [`Error::Length`] where a slice does not have the size or there is no input, [`Error::TokenId`] for ids,
    /// [`Error::NotFinite`], [`Error::Option`] for a negative tolerance.
    pub fn new(
        config: &ModelConfig,
        tolerance: f32,
        ids: &'p [u16],
        features: &'p [f32],
        drawn: &'p [u16],
        confidences: &'p [f32],
    ) -> Result<Self, Error> {
        let tokens = config.tokens();
        let inputs = (ids.len() / tokens).max(1);
        let of_decoder = if drawn.is_empty() { 0 } else { inputs * tokens };
        for (item, needed, found) in [
            ("ids of the self-test", inputs * tokens, ids.len()),
            ("features of the self-test", inputs * config.embed_dim, features.len()),
            ("drawn ids of the self-test", of_decoder, drawn.len()),
            ("confidences of the self-test", of_decoder, confidences.len()),
        ] {
            if needed != found {
                return Err(Error::Length { item, needed, found });
            }
        }
        for (ids, masked) in [(ids, config.mask_token_id), (drawn, usize::MAX)] {
            let is_wrong = |&id: &u16| usize::from(id) >= config.codebook_size && usize::from(id) != masked;
            if let Some(index) = ids.iter().position(is_wrong) {
                let found = ids.get(index).copied().unwrap_or(0).into();
                return Err(Error::TokenId { index, limit: config.codebook_size as u32, found });
            }
        }
        for (item, numbers) in [("features of the self-test", features), ("confidences of the self-test", confidences)]
        {
            if let Some(index) = numbers.iter().position(|x| !x.is_finite()) {
                return Err(Error::NotFinite { item, index: index as u32 });
            }
        }
        if !(tolerance.is_finite() && tolerance >= 0.0) {
            return Err(Error::Option { name: "tolerance", expected: "a finite number, 0 or more" });
        }
        Ok(Self { tolerance, inputs, ids, features, drawn, confidences })
    }

    /// Number N of inputs, at least 1.
    pub const fn inputs(&self) -> usize {
        self.inputs
    }

    /// Whether a step of generation is expected, too.
    pub const fn has_decoder(&self) -> bool {
        !self.drawn.is_empty()
    }

    /// How far numbers may be off; 0: not by a bit, and drawn ids are compared, too.
    pub const fn tolerance(&self) -> f32 {
        self.tolerance
    }

    /// The inputs `[N, T]`.
    pub const fn ids(&self) -> &'p [u16] {
        self.ids
    }

    /// The probe's features `[N, D]`.
    pub const fn features(&self) -> &'p [f32] {
        self.features
    }

    /// The codes drawn `[N, T]`.
    pub const fn drawn(&self) -> &'p [u16] {
        self.drawn
    }

    /// Their confidences `[N, T]`.
    pub const fn confidences(&self) -> &'p [f32] {
        self.confidences
    }

    /// Whether a computed number is what is expected.
    fn compare(&self, item: &'static str, input: usize, element: usize, numbers: [f32; 2]) -> Result<(), Error> {
        let [expected, found] = numbers;
        let same = match self.tolerance {
            0.0 => expected.to_bits() == found.to_bits(),
            tolerance => (expected - found).abs() <= tolerance,
        };
        if same {
            return Ok(());
        }
        let (expected, found) = (expected.to_bits(), found.to_bits());
        Err(Error::SelfTest { item, input: input as u32, element: element as u32, expected, found })
    }
}

/// The tolerance for a model's pack: 0 where all matrix products are of integers.
pub fn tolerance(model: &Model<'_>) -> f32 {
    let exact = schema::params(model.config()).filter(|param| param.is_matrix()).all(|param| {
        let precision = model.pack().precision(param);
        precision
            .is_none_or(|precision| matches!(precision, crate::pack::Precision::Int8 | crate::pack::Precision::Int4))
    });
    if exact {
        0.0
    } else {
        FLOAT_TOLERANCE
    }
}

/// Computes what [`SelfTest::new`] takes, for inputs `ids` `[N, T]`: `features` `[N, D]`, `drawn` and `confidences`
/// `[N, T]`; the latter two are empty for a pack without a decoder.
///
/// # Errors
/// As [`Model::encode`], and [`Error::Length`] where a slice does not have the size.
pub fn record(
    model: &Model<'_>,
    ids: &[u16],
    scratch: &mut Scratch<'_>,
    features: &mut [f32],
    drawn: &mut [u16],
    confidences: &mut [f32],
) -> Result<(), Error> {
    let config = model.config();
    let (tokens, dim, exact) = (config.tokens(), config.embed_dim, tolerance(model) == 0.0);
    let inputs = ids.len() / tokens;
    let of_decoder = if model.pack().has_decoder() { inputs * tokens } else { 0 };
    for (item, needed, found) in [
        ("ids", inputs.max(1) * tokens, ids.len()),
        ("features", inputs * dim, features.len()),
        ("drawn", of_decoder, drawn.len()),
        ("confidences", of_decoder, confidences.len()),
    ] {
        if needed != found {
            return Err(Error::Length { item, needed, found });
        }
    }
    for (input, (ids, feature)) in ids.chunks_exact(tokens).zip(features.chunks_exact_mut(dim)).enumerate() {
        compute(
            model,
            ids,
            scratch,
            exact,
            |element, x| {
                feature[element] = x;
                Ok(())
            },
            (of_decoder > 0).then_some(|position: usize, id, confidence| {
                drawn[input * tokens + position] = id;
                confidences[input * tokens + position] = confidence;
                Ok(())
            }),
        )?;
    }
    Ok(())
}

impl Model<'_> {
    /// Computes the golden inputs of the pack and compares every output; see [`crate::self_test`].
    ///
    /// With a scratch made for [`Plan::Features`] the encoder alone is tested.
    ///
    /// # Errors
    /// [`Error::MissingSection`] where the pack has no self-test, [`Error::SelfTest`] for the first number that
    /// differs, [`Error::ScratchShape`] or [`Error::ScratchPlan`] where `scratch` was made for something else.
    pub fn self_test(&self, scratch: &mut Scratch<'_>) -> Result<Passed, Error> {
        let test = self.pack().self_test().ok_or(Error::MissingSection { section: "self-test" })?;
        let config = self.config();
        let (tokens, dim) = (config.tokens(), config.embed_dim);
        let exact = test.tolerance == 0.0;
        let decoder = test.has_decoder() && scratch.buffers(config, Plan::Generate).is_ok();
        let inputs = test.ids.chunks_exact(tokens).zip(test.features.chunks_exact(dim));
        for (input, (ids, feature)) in inputs.enumerate() {
            let drawn = test.drawn.get(input * tokens..).unwrap_or(&[]);
            let confidences = test.confidences.get(input * tokens..).unwrap_or(&[]);
            compute(
                self,
                ids,
                scratch,
                exact,
                |element, x| {
                    let expected = feature.get(element).copied().unwrap_or(f32::NAN);
                    test.compare("feature", input, element, [expected, x])
                },
                decoder.then_some(|position: usize, id: u16, confidence| {
                    let expected = drawn.get(position).copied().unwrap_or(0);
                    if exact && id != expected {
                        let (input, element) = (input as u32, position as u32);
                        let (expected, found) = (expected.into(), id.into());
                        return Err(Error::SelfTest { item: "token", input, element, expected, found });
                    }
                    let expected = confidences.get(position).copied().unwrap_or(f32::NAN);
                    test.compare("confidence", input, position, [expected, confidence])
                }),
            )?;
        }
        Ok(Passed { inputs: test.inputs, decoder })
    }
}

/// One input: hands each element of its feature to `feature(element, x)` and, where wanted, each position of a step
/// of generation to `position(position, id, confidence)`.
///
/// Ids are drawn by the seed, or greedily where results are not `exact`: the logarithm of the largest probability
/// moves little with the logits, whichever code it belongs to.
fn compute(
    model: &Model<'_>,
    ids: &[u16],
    scratch: &mut Scratch<'_>,
    exact: bool,
    mut feature: impl FnMut(usize, f32) -> Result<(), Error>,
    position: Option<impl FnMut(usize, u16, f32) -> Result<(), Error>>,
) -> Result<(), Error> {
    let mut encoded = model.encode(ids, None, scratch)?;
    encoded.feature()?.iter().enumerate().try_for_each(|(element, x)| feature(element, *x))?;
    let Some(mut on_position) = position else { return Ok(()) };
    let mut outcome = Ok(());
    encoded.into_latent().decode(|position, logits| {
        if outcome.is_ok() {
            let distribution = Distribution::new(logits, 1.0);
            let mut draws = Seeded(SEED);
            let id = if exact { draws.choose(0, position, &distribution) } else { distribution.best() };
            let noise = (TEMPERATURE * draws.gumbel(0, position)) as f32;
            outcome = on_position(position, id, distribution.log_probability(id) + noise);
        }
    })?;
    outcome
}
