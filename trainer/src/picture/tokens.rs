//! Token maps as pixels.

use sorcen_runtime::{tokenizer::PatchCodebook, Error};

/// Grey that stands for an unknown patch.
const UNKNOWN: u8 = 200;

/// Pixels `[side, side, 3]` of a token map `[grid, grid]`; patches of tokens with the id `mask_id` are grey.
///
/// # Errors
/// As [`PatchCodebook::decode`].
pub fn from_tokens(codebook: &PatchCodebook<'_>, ids: &[u16], grid: usize, mask_id: usize) -> Result<Vec<u8>, Error> {
    let patch = codebook.patch();
    let side = grid * patch;
    let is_masked = |id: u16| usize::from(id) == mask_id;
    let known: Vec<u16> = ids.iter().map(|&id| if is_masked(id) { 0 } else { id }).collect();
    let mut rgb = vec![0; side * side * 3];
    codebook.decode(&known, side, side, &mut rgb)?;
    for (index, _) in ids.iter().enumerate().filter(|(_, &id)| is_masked(id)) {
        let (top, left) = (index / grid * patch, index % grid * patch);
        for row in top..top + patch {
            rgb[(row * side + left) * 3..][..patch * 3].fill(UNKNOWN);
        }
    }
    Ok(rgb)
}
