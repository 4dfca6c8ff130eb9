//! Pictures drawn by the runtime: new images, and images filled in from a quarter of their tokens.

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use sorcen_export::batch::{generate_all, Draw};
use sorcen_runtime::{
    given::{hide, is_among},
    rng::{Rng, Stream},
    tokenizer::PatchCodebook,
    Model,
};

use crate::data::TokenDataset;
use crate::picture::from_tokens;

/// Draws `count` images from nothing: pixels `[side, side, 3]` each.
///
/// # Errors
/// The runtime's, for a pack without decoder or tokenizer, or bad options.
pub fn samples(model: &Model<'_>, count: usize, draw: &Draw, bar: &ProgressBar) -> Result<Vec<Vec<u8>>> {
    let config = model.config();
    let blank = vec![config.mask_token_id as u16; config.tokens()];
    bar.set_length((count * draw.options.steps) as u64);
    let ids = generate_all(model, &vec![blank; count], draw, |_, _| bar.inc(1))?;
    let codebook = codebook(model)?;
    ids.iter().map(|ids| Ok(from_tokens(&codebook, ids, config.grid, config.mask_token_id)?)).collect()
}

/// One image's way, as pixels: all its tokens, the quarter that was given, what the model made of it.
pub struct Reconstruction {
    /// The image as its tokens show it.
    pub original: Vec<u8>,
    /// Given tokens, the rest grey.
    pub given: Vec<u8>,
    /// The model's image.
    pub filled: Vec<u8>,
}

/// Fills images in from a random quarter of their tokens.
///
/// # Errors
/// As [`samples`].
pub fn reconstructions(
    model: &Model<'_>,
    data: &TokenDataset,
    indices: &[usize],
    draw: &Draw,
    bar: &ProgressBar,
) -> Result<Vec<Reconstruction>> {
    let config = model.config();
    let mask = config.mask_token_id as u16;
    let originals: Vec<Vec<u16>> = indices.iter().map(|&i| image_ids(data, i)).collect();
    let starts: Vec<Vec<u16>> = originals
        .iter()
        .zip(indices)
        .map(|(ids, &index)| keep_quarter(ids, mask, Rng::new(draw.seed, Stream::Evaluation, index as u64)))
        .collect();
    bar.set_length((indices.len() * draw.options.steps) as u64);
    let filled = generate_all(model, &starts, draw, |_, _| bar.inc(1))?;
    let codebook = codebook(model)?;
    let picture = |ids: &[u16]| from_tokens(&codebook, ids, config.grid, config.mask_token_id);
    originals
        .iter()
        .zip(&starts)
        .zip(&filled)
        .map(|((original, given), filled)| {
            Ok(Reconstruction { original: picture(original)?, given: picture(given)?, filled: picture(filled)? })
        })
        .collect()
}

/// All ids of an image of a dataset.
pub fn image_ids(data: &TokenDataset, index: usize) -> Vec<u16> {
    let mut ids = vec![0; data.tokens()];
    data.ids(index, &mut ids);
    ids
}

/// Keeps a random quarter of the ids and masks the rest.
fn keep_quarter(ids: &[u16], mask: u16, rng: Rng) -> Vec<u16> {
    let mut kept = ids.to_vec();
    hide(&mut kept, mask, |position| is_among(position, ids.len(), ids.len() / 4, rng));
    kept
}

/// The pack's tokenizer.
///
/// # Errors
/// Where it has none.
pub fn codebook<'p>(model: &Model<'p>) -> Result<PatchCodebook<'p>> {
    model.pack().tokenizer().context("the pack has no tokenizer section: expected one, to turn tokens into pixels")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_is_kept() {
        let ids: Vec<u16> = (0..64).collect();
        let kept = keep_quarter(&ids, 999, Rng::new(1, Stream::Evaluation, 0));
        assert_eq!(kept.iter().filter(|&&id| id != 999).count(), 16);
        assert!(kept.iter().enumerate().all(|(i, &id)| id == 999 || id == i as u16));
    }
}
