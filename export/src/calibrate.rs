//! What enters each linear of a model, seen on images: ranges, for activations in fixed steps (int8 ONNX), and Gram
//! matrices, for rounding weights (int4 packs).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ndarray::{linalg::general_mat_mul, Array2, ArrayView2};
use rayon::prelude::*;
use sorcen_runtime::{
    schema::{self, Param},
    ModelConfig,
};

use crate::{
    checkpoint::Checkpoint,
    engine::{check_encode, Kept},
    error::Error,
    gptq::Feedback,
    reference::Reference,
    verify::{drop_and_mask, mask_as_in_generation},
};

/// Smallest and largest number, 0 between them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Range {
    /// At most 0.
    pub min: f32,
    /// At least 0.
    pub max: f32,
}

impl Range {
    fn widen(self, other: Self) -> Self {
        Self { min: self.min.min(other.min), max: self.max.max(other.max) }
    }

    /// Step and zero point of bytes that cover the range: `x ≈ scale * (q - zero)`. Where nothing but 0 was seen (or
    /// numbers too small to be divided into steps) there is no step, and 1 stands for it.
    pub fn quantisation(&self) -> (f32, u8) {
        // In f64: the difference of two numbers of f32 need not be one.
        let (min, max) = (f64::from(self.min), f64::from(self.max));
        let scale = ((max - min) / 255.0) as f32;
        if scale < f32::MIN_POSITIVE {
            return (1.0, 0);
        }
        (scale, (-min / f64::from(scale)).round().clamp(0.0, 255.0) as u8)
    }
}

/// Ranges of the inputs of all linears of a model, by the weight's name.
pub struct Ranges(BTreeMap<String, Range>);

impl Ranges {
    /// The range of what enters the linear of this weight (the output layer's is the word embedding); `None` where it
    /// was not measured.
    pub fn of(&self, weight: Param) -> Option<Range> {
        self.0.get(&weight.to_string()).copied()
    }

    /// Refuses ranges that lack a linear of the model.
    ///
    /// # Errors
    /// [`Error::Value`] names its weight.
    pub fn check_complete(&self, config: &ModelConfig) -> Result<(), Error> {
        match schema::params(config).find(|&param| param.is_matrix() && self.of(param).is_none()) {
            Some(param) => Err(Error::value(format!("range of what enters `{param}`"), "a measured one", "none")),
            None => Ok(()),
        }
    }

    /// Runs images `tokens` `[B, T]` through the float reference, whole, with dropped and masked tokens as in training,
    /// and masked as in generation, and takes the widest range of any image. `share` of the numbers of an image lie
    /// inside (1: all of them; 0.9999 leaves rare outliers out, half on each side).
    ///
    /// # Errors
    /// [`Error::Value`] where tokens are no codes of the model, there is no image, `share` is not above a half
    /// and at most 1, or what enters a linear is not finite.
    pub fn measure(checkpoint: &Arc<Checkpoint>, tokens: ArrayView2<i64>, share: f64) -> Result<Self, Error> {
        if !(0.5..=1.0).contains(&share) {
            return Err(Error::value("share of the numbers inside the range", "0.5 to 1", share));
        }
        let mut all = Self(BTreeMap::new());
        for_each_linear(
            checkpoint,
            tokens,
            |_, x| Some(range(x, share)),
            |images| {
                for (name, range) in images.into_iter().flatten() {
                    let widest = all.0.entry(name).or_default();
                    *widest = widest.widen(range);
                }
            },
        )?;
        Ok(all)
    }
}

/// Gram matrices `[in, in]` of the inputs of linears, by the weight's name: `xᵀ x`, summed over tokens and images.
pub struct Grams(BTreeMap<String, Array2<f32>>);

impl Grams {
    /// Runs images `tokens` `[B, T]` through the float reference as [`Ranges::measure`] does, and looks at the linears of
    /// the weights that are `wanted`: a square of the width each, so 38 MB for the widest of ViT-B.
    ///
    /// # Errors
    /// [`Error::Value`] where tokens are no codes of the model, there is no image, or what enters a linear is not finite.
    pub fn measure(
        checkpoint: &Arc<Checkpoint>,
        tokens: ArrayView2<i64>,
        wanted: impl Fn(Param) -> bool,
    ) -> Result<Self, Error> {
        let names = schema::params(&checkpoint.config).filter(|&param| wanted(param)).map(|param| {
            let width = param.shape(&checkpoint.config).matrix().1;
            (param.to_string(), Array2::zeros((width, width)))
        });
        let mut grams: BTreeMap<String, Array2<f32>> = names.collect();
        let names: BTreeSet<String> = grams.keys().cloned().collect();
        for_each_linear(
            checkpoint,
            tokens,
            |name, x| names.contains(name).then(|| x.to_owned()),
            |images| {
                grams.par_iter_mut().for_each(|(name, gram)| {
                    for x in images.iter().filter_map(|image| image.get(name)) {
                        general_mat_mul(1.0, &x.t(), x, 1.0, gram);
                    }
                });
            },
        )?;
        Ok(Self(grams))
    }

    /// How to round the weights of a linear; `None` where it was not looked at, or nothing ever entered it.
    pub fn feedback(&self, weight: Param) -> Option<Feedback> {
        self.0.get(&weight.to_string()).and_then(Feedback::new)
    }
}

/// Runs images `tokens` `[B, T]` through the float reference: whole, with dropped and masked tokens as in training, and
/// with as many masked as at the steps of generation, whose maps hold next to nothing at first. `look(name, x)` makes
/// something of what enters a linear, `x` `[rows, in]`, `name` its weight's; `take` gets what came of several images,
/// always in the order of the images, so that sums do not depend on the number of threads.
fn for_each_linear<T: Send>(
    checkpoint: &Arc<Checkpoint>,
    tokens: ArrayView2<i64>,
    look: impl Fn(&str, ArrayView2<f32>) -> Option<T> + Sync,
    mut take: impl FnMut(Vec<BTreeMap<String, T>>),
) -> Result<(), Error> {
    let config = &checkpoint.config;
    let (ids, dropped) = drop_and_mask(config, tokens);
    let reference = Reference::new(checkpoint.clone());
    let whole = Kept::of(tokens, None, config)?;
    let trained = Kept::of(ids.view(), Some(dropped.view()), config)?;
    let generated = Kept::of(mask_as_in_generation(config, tokens).view(), None, config)?;
    for kept in [whole, trained, generated] {
        let images = check_encode(config, kept.ids.view(), kept.positions.view())?;
        let one = |b: usize| {
            let (mut seen, mut broken) = (BTreeMap::new(), None);
            let mut tap = |name: &str, x: ArrayView2<f32>| {
                if name.ends_with(".weight") {
                    let found = x.iter().find(|x| !x.is_finite());
                    broken = broken.take().or(found.map(|found| (name.to_owned(), *found)));
                    seen.extend(look(name, x).map(|made| (name.to_owned(), made)));
                }
            };
            let (latent, _) = reference.encode_image(&images[b].ids, &images[b].positions, &mut tap);
            let source: Vec<usize> = kept.source.row(b).iter().map(|&row| row as usize).collect();
            if checkpoint.has_decoder() {
                reference.decode_image(latent.view(), &source, &mut tap);
            }
            match broken {
                None => Ok(seen),
                Some((name, found)) => {
                    Err(Error::value(format!("what enters `{name}` for image {b}"), "finite numbers", found))
                }
            }
        };
        let order: Vec<usize> = (0..images.len()).collect();
        for few in order.chunks(rayon::current_num_threads()) {
            take(few.par_iter().map(|&b| one(b)).collect::<Result<_, _>>()?);
        }
    }
    Ok(())
}

/// The range of the numbers of `x`, `share` of them inside.
fn range(x: ArrayView2<f32>, share: f64) -> Range {
    let mut values: Vec<f32> = x.iter().copied().collect();
    let last = values.len() - 1;
    let outside = ((1.0 - share) / 2.0 * last as f64) as usize;
    let mut at = |rank: usize| *values.select_nth_unstable_by(rank, f32::total_cmp).1;
    Range { min: at(outside).min(0.0), max: at(last - outside).max(0.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_their_bytes() {
        let x = ndarray::Array2::from_shape_fn((10, 10), |(i, j)| (i * 10 + j) as f32 - 20.0);
        assert_eq!(range(x.view(), 1.0), Range { min: -20.0, max: 79.0 });
        assert_eq!(range(x.view(), 0.9), Range { min: -16.0, max: 75.0 });
        assert_eq!(range(x.mapv(f32::abs).view(), 1.0), Range { min: 0.0, max: 79.0 });
        let (scale, zero) = Range { min: -20.0, max: 79.0 }.quantisation();
        assert!((scale * (0.0 - f32::from(zero)) + 20.0).abs() <= scale);
        assert!((scale * (255.0 - f32::from(zero)) - 79.0).abs() <= scale);
    }

    /// A step of 1e-38 would be invented, one of infinity no number.
    #[test]
    fn ranges_without_a_step() {
        assert_eq!(Range::default().quantisation(), (1.0, 0));
        assert_eq!(Range { min: -1e-40, max: 1e-38 }.quantisation(), (1.0, 0));
        let (scale, zero) = Range { min: -3e38, max: 3e38 }.quantisation();
        assert!(scale.is_finite() && scale > 2e36 && zero == 128, "{scale} {zero}");
    }
}
