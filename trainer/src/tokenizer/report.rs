//! How well a tokenizer keeps images, in numbers.

use std::time::{Duration, Instant};

use super::learn::codebook::usage;
use super::{Tokenizer, TokenizerError};
use crate::picture::{interleaved, Grid, Picture};

/// What [`check`] measures.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Report {
    /// Images looked at.
    pub images: usize,
    /// Mean squared error a channel, in steps of 1/255, over all pixels of all images.
    pub mse: f64,
    /// Peak signal-to-noise ratio of that error, in dB.
    pub psnr_db: f64,
    /// Codes of the tokenizer.
    pub codes: usize,
    /// Those that occur at all.
    pub codes_used: usize,
    /// 2 to the power of the entropy of the codes' frequencies: equally frequent codes that would say as much.
    pub perplexity: f64,
    /// Milliseconds an image, on all threads together.
    pub encode_ms: f64,
    /// Milliseconds an image, on all threads together.
    pub decode_ms: f64,
}

/// Share of tokens that two tokenizers give the same ids.
///
/// # Errors
/// As [`Tokenizer::encode_all`].
pub fn agreement(
    one: &dyn Tokenizer,
    other: &dyn Tokenizer,
    images: &[Vec<u8>],
    side: usize,
) -> Result<f64, TokenizerError> {
    let (one, other) = (one.encode_all(images, side)?.concat(), other.encode_all(images, side)?.concat());
    let same = one.iter().zip(&other).filter(|(a, b)| a == b).count();
    Ok(same as f64 / one.len().max(other.len()).max(1) as f64)
}

/// Encodes and decodes images `[side, side, 3]` and measures what is lost.
///
/// # Errors
/// As [`Tokenizer::encode_all`].
pub fn check(tokenizer: &dyn Tokenizer, images: &[Vec<u8>], side: usize) -> Result<Report, TokenizerError> {
    let grid = side / tokenizer.stride();
    let mut uses = vec![0u64; tokenizer.codes()];
    let mut squared = 0u64;
    let start = Instant::now();
    let all_ids = tokenizer.encode_all(images, side)?;
    let encoded = start.elapsed();
    let all_decoded = tokenizer.decode_all(&all_ids, grid)?;
    let ms = |time: Duration| time.as_secs_f64() * 1e3 / images.len().max(1) as f64;
    let (encode_ms, decode_ms) = (ms(encoded), ms(start.elapsed() - encoded));
    for ((ids, decoded), rgb) in all_ids.iter().zip(all_decoded).zip(images) {
        squared += decoded.iter().zip(rgb).map(|(&a, &b)| u64::from(a.abs_diff(b)).pow(2)).sum::<u64>();
        ids.iter().for_each(|&id| uses[usize::from(id)] += 1);
    }
    let mse = squared as f64 / (images.len() * side * side * 3) as f64;
    let (codes_used, perplexity) = usage(&uses);
    let (images, codes, psnr_db) = (images.len(), tokenizer.codes(), psnr_db(mse));
    Ok(Report { images, mse, psnr_db, codes, codes_used, perplexity, encode_ms, decode_ms })
}

/// At most `rows` rows of twelve images `[side, side, 3]`, evenly chosen, each row above what the tokens keep of it;
/// small images enlarged.
///
/// # Errors
/// As [`Tokenizer::encode_all`].
pub fn sheet(
    tokenizer: &dyn Tokenizer,
    images: &[Vec<u8>],
    side: usize,
    rows: usize,
) -> Result<Picture, TokenizerError> {
    let columns = 12.min(images.len());
    let chosen: Vec<_> = images.iter().step_by(images.len().div_ceil(rows * columns)).cloned().collect();
    let decoded = tokenizer.decode_all(&tokenizer.encode_all(&chosen, side)?, side / tokenizer.stride())?;
    let layout = Grid { columns, scale: (96 / side).max(1), ..Grid::default() };
    Ok(layout.draw(&interleaved(&[&chosen, &decoded], columns), side))
}

/// Peak signal-to-noise ratio of a mean squared error in steps of 1/255; infinite where nothing is lost.
pub fn psnr_db(mse: f64) -> f64 {
    10.0 * (255.0 * 255.0 / mse).log10()
}
