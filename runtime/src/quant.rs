//! Symmetric int8 quantisation and the blocked layout of linear weights; [`int4`] in a file of its own.

pub mod int4;

use crate::{
    error::Error,
    kernels::{bytes::as_i8_mut, scalar},
    math::round_to_i32,
};

/// Order of a linear's weights `[N, K]` in a pack: `[N/nr][K/kt][nr][kt]`, zero-padded.
///
/// Row-major is `nr = 1`, `kt = 0` (a tile spans the whole row).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Output channels side by side, 1 to [`Layout::MAX_NR`].
    pub nr: u8,
    /// Inputs of a tile, a power of two up to [`Layout::MAX_KT`], or 0 for all.
    pub kt: u8,
}

impl Layout {
    /// Plain rows.
    pub const ROW_MAJOR: Self = Self { nr: 1, kt: 0 };
    /// Largest `nr`.
    pub const MAX_NR: usize = 64;
    /// Largest `kt`; rows of activations are padded to a multiple of it at most.
    pub const MAX_KT: usize = 64;

    /// Whether both numbers are in range.
    pub const fn is_valid(self) -> bool {
        let kt_fits = self.kt == 0 || (self.kt.is_power_of_two() && self.kt as usize <= Self::MAX_KT);
        self.nr >= 1 && self.nr as usize <= Self::MAX_NR && kt_fits
    }

    /// Inputs of a tile for rows of `cols`, at least 1.
    pub const fn tile_cols(self, cols: usize) -> usize {
        match (self.kt, cols) {
            (0, 0) => 1,
            (0, _) => cols,
            (kt, _) => kt as usize,
        }
    }

    /// Columns after padding to whole tiles.
    pub const fn padded_cols(self, cols: usize) -> usize {
        cols.next_multiple_of(self.tile_cols(cols))
    }

    /// Elements of a blocked `[rows, cols]` matrix, padding included.
    pub const fn elements(self, rows: usize, cols: usize) -> usize {
        rows.next_multiple_of(self.nr as usize) * self.padded_cols(cols)
    }

    /// Index of element (row, col) in the blocked order.
    pub const fn index(self, row: usize, col: usize, cols: usize) -> usize {
        let (nr, kt) = (self.nr as usize, self.tile_cols(cols));
        let tile = (row / nr) * (self.padded_cols(cols) / kt) + col / kt;
        (tile * nr + row % nr) * kt + col % kt
    }
}

/// Bytes that an activation may take in the form that a kernel wants ([`Kernel::store`]).
///
/// [`Kernel::store`]: crate::kernels::Kernel::store
pub(crate) const ACTIVATION_BYTES: usize =
    if cfg!(any(target_arch = "x86_64", target_arch = "wasm32", target_arch = "arm")) { 2 } else { 1 };

/// What to multiply a row with before rounding, and what to multiply the integers with afterwards:
/// `127 / max|x|` and `max|x| / 127`, both 0 for a row that is (all but) zero.
#[inline(always)]
pub(crate) fn scale_of(max: f32) -> (f32, f32) {
    // Below this the inverse would overflow.
    if max > 1e-30 {
        (127.0 / max, max / 127.0)
    } else {
        (0.0, 0.0)
    }
}

/// Largest magnitude of a slice; 0 for an empty one.
#[inline(always)]
pub(crate) fn max_abs(x: &[f32]) -> f32 {
    scalar::max(x, 0.0, f32::abs)
}

/// A scaled number as a byte, ties to even.
#[inline(always)]
pub(crate) fn round(x: f32) -> i8 {
    round_to_i32(x) as i8
}

/// Rounds `x * inverse` to bytes; those of `out` past the end of `x` become 0.
#[inline(always)]
pub(crate) fn store_i8(x: &[f32], inverse: f32, out: &mut [i8]) {
    let (head, padding) = out.split_at_mut(x.len().min(out.len()));
    for (q, x) in head.iter_mut().zip(x) {
        *q = round(*x * inverse);
    }
    padding.fill(0);
}

/// [`store_i8`] into plain bytes.
#[inline(always)]
pub(crate) fn store_bytes(x: &[f32], inverse: f32, out: &mut [u8]) {
    store_i8(x, inverse, as_i8_mut(out));
}

/// Quantises one row to int8: `x ≈ scale * q`, `q` in -127..=127, `scale = max|x| / 127`.
/// Elements of `q` past the row's length become 0. Returns the scale (0 for a zero row).
#[inline(always)]
pub fn quantise_row(x: &[f32], q: &mut [i8]) -> f32 {
    let (inverse, scale) = scale_of(max_abs(x));
    store_i8(x, inverse, q);
    scale
}

/// Quantises a row-major matrix `[rows, cols]` per output channel into a blocked layout.
///
/// # Errors
/// [`Error::Length`] where `out` or `scales` do not fit, [`Error::Option`] for an invalid layout.
pub fn quantise_matrix(
    weights: &[f32],
    (rows, cols): (usize, usize),
    layout: Layout,
    out: &mut [i8],
    scales: &mut [f32],
) -> Result<(), Error> {
    if !layout.is_valid() {
        return Err(Error::Option { name: "layout", expected: "nr 1 to 64, kt 0 or a power of two up to 64" });
    }
    let check = |item, needed, found| if needed == found { Ok(()) } else { Err(Error::Length { item, needed, found }) };
    check("weights", rows.saturating_mul(cols), weights.len())?;
    check("scales", rows, scales.len())?;
    check("out", layout.elements(rows, cols), out.len())?;
    out.fill(0);
    scales.fill(0.0);
    for (row, (x, scale)) in weights.chunks_exact(cols.max(1)).zip(scales).enumerate() {
        let (inverse, row_scale) = scale_of(max_abs(x));
        *scale = row_scale;
        for (col, x) in x.iter().enumerate() {
            out[layout.index(row, col, cols)] = round(x * inverse);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    extern crate std;
    use std::{collections::BTreeSet, vec, vec::Vec};

    proptest! {
        #[test]
        fn error_is_half_a_step(x in proptest::collection::vec(-100f32..100.0, 1..80)) {
            let mut q = vec![99; x.len() + 3];
            let scale = quantise_row(&x, &mut q);
            for (x, q) in x.iter().zip(&q) {
                prop_assert!((x - scale * f32::from(*q)).abs() <= scale * 0.5001);
                prop_assert!(*q >= -127);
            }
            prop_assert_eq!(&q[x.len()..], &[0, 0, 0]);
        }

        #[test]
        fn layouts_place_every_element_once(nr in 1u8..=16, kt in 0u8..=20, rows in 1usize..40, cols in 1usize..40) {
            let layout = Layout { nr, kt };
            let places: BTreeSet<usize> =
                (0..rows).flat_map(|r| (0..cols).map(move |c| layout.index(r, c, cols))).collect();
            prop_assert_eq!(places.len(), rows * cols);
            prop_assert!(*places.last().unwrap() < layout.elements(rows, cols));
        }
    }

    /// No rows, no columns, and sizes that no memory has: an error or nothing to do.
    #[test]
    fn no_size_panics() {
        for layout in [Layout::ROW_MAJOR, Layout { nr: 16, kt: 4 }, Layout { nr: 3, kt: 1 }] {
            for (rows, cols) in [(0, 0), (3, 0), (0, 3)] {
                let mut scales = vec![9.0; rows];
                quantise_matrix(&[], (rows, cols), layout, &mut [], &mut scales).unwrap();
                int4::quantise_matrix(&[], (rows, cols), &mut [], &mut vec![9.0; rows]).unwrap();
                assert!(scales.iter().all(|scale| *scale == 0.0));
                assert_eq!((layout.elements(rows, cols), layout.padded_cols(0)), (0, 0));
                int4::arrange(&[], int4::Order::Rows, (rows, cols), int4::Order::Panels, &mut []).unwrap();
            }
            for shape in [(usize::MAX, 2), (usize::MAX, usize::MAX), (2, usize::MAX), (usize::MAX, 1)] {
                assert!(quantise_matrix(&[1.0], shape, layout, &mut [0], &mut [0.0]).is_err());
                assert!(int4::quantise_matrix(&[1.0], shape, &mut [0], &mut [0.0]).is_err());
                assert!(int4::arrange(&[1], int4::Order::Rows, shape, int4::Order::Panels, &mut [0]).is_err());
            }
        }
    }

    #[test]
    fn zero_rows_and_matrices() {
        let mut q = [7; 4];
        assert_eq!(quantise_row(&[0.0; 4], &mut q), 0.0);
        assert_eq!(q, [0; 4]);
        let weights: Vec<f32> = (0..6).map(|i| i as f32).collect();
        let layout = Layout { nr: 2, kt: 2 };
        let mut out = vec![9; layout.elements(2, 3)];
        let mut scales = [0.0; 2];
        quantise_matrix(&weights, (2, 3), layout, &mut out, &mut scales).unwrap();
        assert_eq!(out, [0, 64, 76, 102, 127, 0, 127, 0]);
        assert!(quantise_matrix(&weights, (2, 3), layout, &mut out[1..], &mut scales).is_err());
    }
}
