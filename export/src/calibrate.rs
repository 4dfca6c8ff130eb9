//! The range of the numbers that enter each linear: what static quantisation of activations needs.

use std::{collections::BTreeMap, sync::Arc};

use ndarray::ArrayView2;
use rayon::prelude::*;
use sorcen_runtime::schema::Param;

use crate::{
    checkpoint::Checkpoint,
    engine::{check_encode, Kept},
    error::Error,
    reference::Reference,
    verify::drop_and_mask,
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

    /// Step and zero point of bytes that cover the range: `x ≈ scale * (q - zero)`.
    pub fn quantisation(&self) -> (f32, u8) {
        let scale = ((self.max - self.min) / 255.0).max(f32::MIN_POSITIVE);
        (scale, (-self.min / scale).round().clamp(0.0, 255.0) as u8)
    }
}

/// Ranges of the inputs of all linears of a model, by the weight's name.
pub struct Ranges(BTreeMap<String, Range>);

impl Ranges {
    /// The range of what enters the linear of this weight (the output layer's is the word embedding).
    pub fn of(&self, weight: Param) -> Range {
        self.0.get(&weight.to_string()).copied().unwrap_or_default()
    }

    /// Runs images `tokens` `[B, T]` through the float reference, whole and with dropped and masked tokens, and
    /// takes the widest range of any image. `share` of the numbers of an image lie inside (1: all of them;
    /// 0.9999 leaves rare outliers out, half on each side).
    ///
    /// # Errors
    /// [`Error::Value`] where tokens are no codes of the model, there is no image, or `share` is not above a half
    /// and at most 1.
    pub fn measure(checkpoint: &Arc<Checkpoint>, tokens: ArrayView2<i64>, share: f64) -> Result<Self, Error> {
        if !(0.5..=1.0).contains(&share) {
            return Err(Error::value("share of the numbers inside the range", "0.5 to 1", share));
        }
        let config = &checkpoint.config;
        let whole = Kept::of(tokens, None, config)?;
        let (ids, dropped) = drop_and_mask(config, tokens);
        let part = Kept::of(ids.view(), Some(dropped.view()), config)?;
        let reference = Reference::new(checkpoint.clone());
        let mut all = Self(BTreeMap::new());
        for kept in [whole, part] {
            let images = check_encode(config, kept.ids.view(), kept.positions.view())?;
            let ranges: Vec<Self> = images
                .par_iter()
                .enumerate()
                .map(|(b, image)| {
                    let mut ranges = BTreeMap::new();
                    let mut tap = |name: &str, x: ArrayView2<f32>| {
                        if name.ends_with(".weight") {
                            ranges.insert(name.to_owned(), range(x, share));
                        }
                    };
                    let (latent, _) = reference.encode_image(&image.ids, &image.positions, &mut tap);
                    let source: Vec<usize> = kept.source.row(b).iter().map(|&row| row as usize).collect();
                    reference.decode_image(latent.view(), &source, &mut tap);
                    Self(ranges)
                })
                .collect();
            for (name, range) in ranges.into_iter().flat_map(|ranges| ranges.0) {
                let widest = all.0.entry(name).or_default();
                *widest = widest.widen(range);
            }
        }
        Ok(all)
    }
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
        assert_eq!(Range::default().quantisation().1, 0);
    }
}
