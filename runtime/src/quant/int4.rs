//! Four bits a weight: groups of 32 columns of a row share an 8-bit multiplier, a row has one scale.
//!
//! `weight = scale[row] * multiplier[row, group] * q`, `q` from -8 to 7. Since multipliers are integers, the sum
//! over a whole row is an integer too, exact below [`MAX_COLS`] columns, and becomes a float once, as with int8.
//!
//! Stored: the weights, then the multipliers, all bytes, two weights a byte in two's complement. Rows are padded to
//! whole groups with zeros. There are two orders ([`Order`]):
//!
//! | | weights | multipliers | a byte of a group holds, in its low and in its high half |
//! |---|---|---|---|
//! | rows | `[rows, groups, 16]` | `[rows, groups]` | byte `i`: columns `i` and `i + 16` |
//! | panels | `[rows / 16, groups, 4, 16, 4]` | `[rows / 16, groups, 16]` | byte `[c, row, j]`: columns `8 c + j` and `8 c + 4 + j` |
//!
//! Panels are for vector instructions, which take four columns of many rows at a time; the last one is padded with rows
//! of zeros.

use super::{max_abs, Layout};
use crate::{error::Error, math::round_to_i32};

/// Columns of a group.
pub const GROUP: usize = 32;
/// Bytes of a group's weights.
pub const GROUP_BYTES: usize = GROUP / 2;
/// Most columns of a matrix: `MAX_COLS / GROUP` groups of `32 * 8 * 127 * 255` stay below 2^31.
pub const MAX_COLS: usize = 8192;
/// Largest `q` that is used on both sides.
const LARGEST: f32 = 7.0;

/// Rows of a panel.
pub(crate) const PANEL: usize = 16;
/// Bytes of a group's weights in a panel.
pub(crate) const PANEL_BYTES: usize = PANEL * GROUP_BYTES;

/// How weights and multipliers lie in memory; see the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// A row after the other.
    Rows,
    /// 16 rows side by side.
    Panels,
}

impl Order {
    /// The order that kernels like best that want int8 weights in this layout.
    pub const fn beside(layout: Layout) -> Self {
        match layout {
            Layout { nr: 16, kt: 4 } => Order::Panels,
            _ => Order::Rows,
        }
    }

    /// Rows, padding included.
    const fn padded_rows(self, rows: usize) -> usize {
        match self {
            Order::Rows => rows,
            Order::Panels => rows.div_ceil(PANEL).saturating_mul(PANEL),
        }
    }

    /// Bytes of the weights of a matrix.
    pub const fn weight_bytes(self, rows: usize, cols: usize) -> usize {
        weight_bytes(self.padded_rows(rows), cols)
    }

    /// Bytes of the weights and the multipliers of a matrix.
    pub const fn bytes(self, rows: usize, cols: usize) -> usize {
        bytes(self.padded_rows(rows), cols)
    }

    /// The index of a multiplier; `groups` is of a row.
    pub(crate) const fn multiplier(self, row: usize, group: usize, groups: usize) -> usize {
        match self {
            Order::Rows => row * groups + group,
            Order::Panels => (row / PANEL * groups + group) * PANEL + row % PANEL,
        }
    }

    /// Where a weight is: its byte, and whether it is the high half.
    const fn place(self, row: usize, col: usize, cols: usize) -> (usize, bool) {
        let (group, col, groups) = (col / GROUP, col % GROUP, groups(cols));
        match self {
            Order::Rows => ((row * groups + group) * GROUP_BYTES + col % GROUP_BYTES, col >= GROUP_BYTES),
            Order::Panels => {
                let start = (row / PANEL * groups + group) * PANEL_BYTES + col / 8 * 4 * PANEL;
                (start + row % PANEL * 4 + col % 4, col % 8 >= 4)
            }
        }
    }

    /// The integer at a place; 0 past the end.
    pub fn get(self, weights: &[u8], row: usize, col: usize, cols: usize) -> i8 {
        let (at, high) = self.place(row, col, cols);
        let byte = weights.get(at).copied().unwrap_or(0);
        if high {
            high_half(byte)
        } else {
            low_half(byte)
        }
    }

    /// Puts an integer, -8 to 7, at a place that holds 0; nothing happens past the end.
    pub fn set(self, weights: &mut [u8], row: usize, col: usize, cols: usize, q: i8) {
        let (at, high) = self.place(row, col, cols);
        if let Some(byte) = weights.get_mut(at) {
            *byte |= ((q as u8) & 15) << if high { 4 } else { 0 };
        }
    }

    /// The integers of a group, in order of column; zeros past the end.
    #[inline(always)]
    pub(crate) fn group(self, weights: &[u8], row: usize, group: usize, groups: usize) -> [i8; GROUP] {
        let mut q = [0; GROUP];
        match self {
            Order::Rows => {
                let bytes = weights.get((row * groups + group) * GROUP_BYTES..).unwrap_or(&[]);
                let (low, high) = q.split_at_mut(GROUP_BYTES);
                for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
                    (*low, *high) = (low_half(*byte), high_half(*byte));
                }
            }
            Order::Panels => {
                let first = (row / PANEL * groups + group) * PANEL_BYTES + row % PANEL * 4;
                for (c, q) in q.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                    let bytes = weights.get(first + c * 4 * PANEL..).unwrap_or(&[]);
                    let (low, high) = q.split_at_mut(4);
                    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
                        (*low, *high) = (low_half(*byte), high_half(*byte));
                    }
                }
            }
        }
        q
    }
}

#[inline(always)]
const fn low_half(byte: u8) -> i8 {
    ((byte << 4) as i8) >> 4
}

#[inline(always)]
const fn high_half(byte: u8) -> i8 {
    (byte as i8) >> 4
}

/// Puts a matrix `[rows, cols]` into another order: weights and multipliers, as they lie behind each other.
///
/// # Errors
/// [`Error::Length`] where `packed` or `out` do not fit (see [`Order::bytes`]).
pub fn arrange(
    packed: &[u8],
    from: Order,
    (rows, cols): (usize, usize),
    to: Order,
    out: &mut [u8],
) -> Result<(), Error> {
    let check = |item, needed, found| if needed == found { Ok(()) } else { Err(Error::Length { item, needed, found }) };
    check("packed", from.bytes(rows, cols), packed.len())?;
    check("out", to.bytes(rows, cols), out.len())?;
    let (weights, multipliers) = packed.split_at(from.weight_bytes(rows, cols));
    out.fill(0);
    let (out, out_multipliers) = out.split_at_mut(to.weight_bytes(rows, cols));
    let groups = groups(cols);
    for row in 0..rows {
        for group in 0..groups {
            out_multipliers[to.multiplier(row, group, groups)] = multipliers[from.multiplier(row, group, groups)];
            for (i, q) in from.group(weights, row, group, groups).into_iter().enumerate() {
                to.set(out, row, group * GROUP + i, cols, q);
            }
        }
    }
    Ok(())
}

/// Groups of a row.
pub const fn groups(cols: usize) -> usize {
    cols.div_ceil(GROUP)
}

/// Columns of a row, padding included.
pub const fn padded_cols(cols: usize) -> usize {
    groups(cols).saturating_mul(GROUP)
}

/// Bytes of the weights of a matrix in rows; `usize::MAX` where there are more.
pub const fn weight_bytes(rows: usize, cols: usize) -> usize {
    rows.saturating_mul(groups(cols)).saturating_mul(GROUP_BYTES)
}

/// Bytes of the weights and the multipliers of a matrix in rows; `usize::MAX` where there are more.
pub const fn bytes(rows: usize, cols: usize) -> usize {
    rows.saturating_mul(groups(cols)).saturating_mul(GROUP_BYTES + 1)
}

/// Whether a tensor can be stored so.
pub const fn fits(is_matrix: bool, cols: usize) -> bool {
    is_matrix && cols <= MAX_COLS
}

/// Quantises a row-major matrix `[rows, cols]` into [`Order::Rows`], each group by its largest magnitude. (The exporter looks for
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
    check("weights", rows.saturating_mul(cols), weights.len())?;
    check("packed", bytes(rows, cols), packed.len())?;
    check("scales", rows, scales.len())?;
    packed.fill(0);
    scales.fill(0.0);
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
                Order::Rows.set(packed, row, g * GROUP + i, cols, q);
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
        for (cols, order) in [1, 31, 32, 33, 70].into_iter().flat_map(|c| [(c, Order::Rows), (c, Order::Panels)]) {
            const ROWS: usize = 18;
            let groups = groups(cols);
            let mut packed = vec![0; order.bytes(ROWS, cols)];
            let (weights, multipliers) = packed.split_at_mut(order.weight_bytes(ROWS, cols));
            let value = |row: usize, col: usize| ((row * 5 + col * 3) % 16) as i8 - 8;
            (0..ROWS * cols).for_each(|i| order.set(weights, i / cols, i % cols, cols, value(i / cols, i % cols)));
            for (row, group) in (0..ROWS).flat_map(|row| (0..groups).map(move |g| (row, g))) {
                multipliers[order.multiplier(row, group, groups)] = (1 + row * groups + group) as u8;
                let unpacked = order.group(weights, row, group, groups);
                for (i, q) in unpacked.into_iter().enumerate() {
                    let col = group * GROUP + i;
                    let expected = if col < cols { value(row, col) } else { 0 };
                    assert_eq!((q, order.get(weights, row, col, cols)), (expected, expected), "{row} {col} of {cols}");
                }
            }
            let other = if order == Order::Rows { Order::Panels } else { Order::Rows };
            let (mut there, mut back) = (vec![9; other.bytes(ROWS, cols)], vec![9; packed.len()]);
            arrange(&packed, order, (ROWS, cols), other, &mut there).unwrap();
            assert_eq!(other.get(&there, 17, cols - 1, cols), value(17, cols - 1));
            arrange(&there, other, (ROWS, cols), order, &mut back).unwrap();
            assert!(back == packed && there != packed);
            assert!(arrange(&packed, order, (ROWS, cols), other, &mut there[1..]).is_err());
            assert!(arrange(&packed[1..], order, (ROWS, cols), other, &mut there).is_err());
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
                prop_assert!((x - step * f32::from(Order::Rows.get(weights, 0, col, cols))).abs() <= 0.5001 * step);
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
