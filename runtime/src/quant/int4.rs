//! Four bits a weight: groups of 32 columns of a row share an 8-bit multiplier, a row has one scale.
//!
//! `weight = scale[row] * multiplier[row, group] * q`, `q` from -8 to 7. Since multipliers are integers, the sum
//! over a whole row is an integer too, exact below [`MAX_COLS`] columns, and becomes a float once, as with int8.
//!
//! Stored: the weights `[rows, groups, 16]`, then the multipliers `[rows, groups]`, all bytes. Byte `i` of a group
//! holds column `i` in its low half and column `i + 16` in its high half, two's complement. Rows are padded to
//! whole groups with zeros.

use super::max_abs;
use crate::{error::Error, math::round_to_i32};

/// Columns of a group.
pub const GROUP: usize = 32;
/// Bytes of a group's weights.
pub const GROUP_BYTES: usize = GROUP / 2;
/// Most columns of a matrix: `MAX_COLS / GROUP` groups of `32 * 8 * 127 * 255` stay below 2^31.
pub const MAX_COLS: usize = 8192;
/// Largest `q` that is used on both sides.
const LARGEST: f32 = 7.0;

/// Groups of a row.
pub const fn groups(cols: usize) -> usize {
    cols.div_ceil(GROUP)
}

/// Columns of a row, padding included.
pub const fn padded_cols(cols: usize) -> usize {
    groups(cols) * GROUP
}

/// Bytes of the weights of a matrix.
pub const fn weight_bytes(rows: usize, cols: usize) -> usize {
    rows * groups(cols) * GROUP_BYTES
}

/// Bytes of the weights and the multipliers of a matrix.
pub const fn bytes(rows: usize, cols: usize) -> usize {
    weight_bytes(rows, cols) + rows * groups(cols)
}

/// Whether a tensor can be stored so.
pub const fn fits(is_matrix: bool, cols: usize) -> bool {
    is_matrix && cols <= MAX_COLS
}

/// Where a weight is: its byte, and whether it is the high half.
const fn place(row: usize, col: usize, cols: usize) -> (usize, bool) {
    let group = row * groups(cols) + col / GROUP;
    (group * GROUP_BYTES + col % GROUP_BYTES, col % GROUP >= GROUP_BYTES)
}

/// The integer at a place; 0 past the end.
pub fn get(weights: &[u8], row: usize, col: usize, cols: usize) -> i8 {
    let (at, high) = place(row, col, cols);
    let byte = weights.get(at).copied().unwrap_or(0) as i8;
    if high {
        byte >> 4
    } else {
        (byte << 4) >> 4
    }
}

/// Puts an integer, -8 to 7, at a place that holds 0; nothing happens past the end.
pub fn set(weights: &mut [u8], row: usize, col: usize, cols: usize, q: i8) {
    let (at, high) = place(row, col, cols);
    if let Some(byte) = weights.get_mut(at) {
        *byte |= ((q as u8) & 15) << if high { 4 } else { 0 };
    }
}

/// The integers of a group, in order of column.
#[inline(always)]
pub(crate) fn unpack(group: &[u8]) -> [i8; GROUP] {
    let mut q = [0; GROUP];
    let (low, high) = q.split_at_mut(GROUP_BYTES);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(group) {
        *low = ((*byte << 4) as i8) >> 4;
        *high = (*byte as i8) >> 4;
    }
    q
}

/// Quantises a row-major matrix `[rows, cols]`, each group by its largest magnitude. (The exporter looks for
/// better scales; what is stored has the same meaning.)
///
/// # Errors
/// [`Error::Length`] where `packed` (see [`bytes`]) or `scales` do not fit, [`Error::Option`] above [`MAX_COLS`].
pub fn quantise_matrix(
    weights: &[f32],
    (rows, cols): (usize, usize),
    packed: &mut [u8],
    scales: &mut [f32],
) -> Result<(), Error> {
    if cols > MAX_COLS {
        return Err(Error::Option { name: "columns of an int4 matrix", expected: "at most 8192" });
    }
    let check = |item, needed, found| if needed == found { Ok(()) } else { Err(Error::Length { item, needed, found }) };
    check("weights", rows * cols, weights.len())?;
    check("packed", bytes(rows, cols), packed.len())?;
    check("scales", rows, scales.len())?;
    packed.fill(0);
    let (packed, multipliers) = packed.split_at_mut(weight_bytes(rows, cols));
    let groups = multipliers.chunks_exact_mut(groups(cols).max(1));
    for (row, ((x, scale), multipliers)) in weights.chunks_exact(cols.max(1)).zip(scales).zip(groups).enumerate() {
        *scale = max_abs(x) / LARGEST / 255.0;
        if *scale < f32::MIN_POSITIVE {
            *scale = 0.0; // all but zero: the integers stay 0
            continue;
        }
        for (g, (x, multiplier)) in x.chunks(GROUP).zip(multipliers).enumerate() {
            // Rounded up, so that no weight is cut off.
            let wanted = max_abs(x) / LARGEST / *scale;
            *multiplier = round_to_i32(wanted + 0.499).clamp(1, 255) as u8;
            let inverse = 1.0 / (*scale * f32::from(*multiplier));
            for (i, x) in x.iter().enumerate() {
                let q = round_to_i32(x * inverse).clamp(-8, 7) as i8;
                set(packed, row, g * GROUP + i, cols, q);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    extern crate std;
    use std::{vec, vec::Vec};

    #[test]
    fn every_value_at_every_place() {
        for cols in [1, 31, 32, 33, 70] {
            let mut weights = vec![0; weight_bytes(2, cols)];
            let value = |row: usize, col: usize| ((row * 5 + col * 3) % 16) as i8 - 8;
            (0..2 * cols).for_each(|i| set(&mut weights, i / cols, i % cols, cols, value(i / cols, i % cols)));
            for (row, group) in (0..2).flat_map(|row| (0..groups(cols)).map(move |g| (row, g))) {
                let unpacked = unpack(&weights[(row * groups(cols) + group) * GROUP_BYTES..][..GROUP_BYTES]);
                for (i, q) in unpacked.into_iter().enumerate() {
                    let col = group * GROUP + i;
                    let expected = if col < cols { value(row, col) } else { 0 };
                    assert_eq!((q, get(&weights, row, col, cols)), (expected, expected), "{row} {col} of {cols}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn error_is_half_a_step(x in proptest::collection::vec(-100f32..100.0, 1..80)) {
            let cols = x.len();
            let (mut packed, mut scales) = (vec![9; bytes(1, cols)], [0.0]);
            quantise_matrix(&x, (1, cols), &mut packed, &mut scales).unwrap();
            let (weights, multipliers) = packed.split_at(weight_bytes(1, cols));
            for (col, x) in x.iter().enumerate() {
                let step = scales[0] * f32::from(multipliers[col / GROUP]);
                prop_assert!((x - step * f32::from(get(weights, 0, col, cols))).abs() <= 0.5001 * step);
            }
        }
    }

    #[test]
    fn zeros_and_wrong_lengths() {
        let mut packed: Vec<u8> = vec![9; bytes(2, 3)];
        quantise_matrix(&[0.0; 6], (2, 3), &mut packed, &mut [1.0; 2]).unwrap();
        assert!(packed.iter().all(|&byte| byte == 0));
        assert!(quantise_matrix(&[0.0; 6], (2, 3), &mut packed[1..], &mut [0.0; 2]).is_err());
        assert!(quantise_matrix(&[], (0, MAX_COLS + 1), &mut [], &mut []).is_err());
    }
}
