//! What the int4 kernels share: the walk over weights in panels, and the form of a row on x86-64.
//!
//! A group's sum of 32 products of -8..=7 and -127..=127 fits 16 bits. x86-64 multiplies unsigned by signed bytes, so
//! there weights get 8 added, a flipped bit, on their way from memory; what that adds to a group's sum, 8 times the sum
//! of its activations, is known when the row is stored, and the sum starts at minus that. Its lower 16 bits are then
//! right whatever is above them, and one instruction for pairs of 16 bits multiplies them with the group's multiplier
//! and adds the product to the whole.

use core::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::bytes::as_i8;
use super::{Epilogue, Int4, Rows, LANES};
use crate::quant::int4::{Order, PANEL, PANEL_BYTES};
#[cfg(target_arch = "x86_64")]
use crate::quant::{int4::GROUP, store_bytes};

const _: () = assert!(PANEL == LANES, "a panel is what an epilogue takes");

/// Bytes that [`store`] takes for a group.
#[cfg(target_arch = "x86_64")]
pub(super) const WITH_START: usize = GROUP + size_of::<u32>();

/// The bytes of a row in whole groups, then what the sum of each group starts at: 16 bits, zero-extended to 32.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn store(x: &[f32], inverse: f32, out: &mut [u8]) {
    let (bytes, starts) = out.split_at_mut(x.len().next_multiple_of(GROUP));
    store_bytes(x, inverse, bytes);
    let groups = as_i8(bytes).as_chunks::<GROUP>().0;
    for (group, start) in groups.iter().zip(starts.as_chunks_mut().0) {
        let sum: i32 = group.iter().map(|q| i32::from(*q)).sum();
        *start = u32::from((-8 * sum) as u16).to_le_bytes();
    }
}

/// One panel of weights, and rows to multiply it with.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    /// `[groups, 4, 16, 4]`
    pub weights: &'a [u8],
    /// `[groups, 16]`
    pub multipliers: &'a [u8],
    /// Row `r` starts at `r * stride`: 32 bytes a group, then what else [`super::Kernel::store_int4`] puts there.
    pub x: &'a [u8],
    pub stride: usize,
    pub groups: usize,
}

impl Tile<'_> {
    /// Panics unless there are `rows` rows (at least one), of so many bytes a group, and the weights; pointers may rely
    /// on it.
    #[inline(always)]
    pub fn check(&self, rows: usize, bytes: usize) {
        assert!(self.weights.len() >= self.groups * PANEL_BYTES && self.multipliers.len() >= self.groups * PANEL);
        assert!(self.x.len() >= (rows - 1) * self.stride + self.groups * bytes);
    }

    /// Where the starts of a row are.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub fn starts(&self, row: usize) -> usize {
        row * self.stride + self.groups * GROUP
    }
}

/// [`super::Kernel::gemm_int4`] in tiles of up to `MR` rows: `tile(panel and rows, number of rows, sums)`.
#[inline(always)]
pub(super) fn gemm<const MR: usize>(
    weights: Int4<'_>,
    rows: Rows<'_>,
    outputs: Range<usize>,
    epilogue: &mut Epilogue<'_>,
    tile: impl Fn(Tile<'_>, usize, &mut [[i32; LANES]; MR]),
) {
    assert!(weights.order == Order::Panels);
    let groups = weights.groups;
    let panels =
        weights.values.chunks_exact(groups * PANEL_BYTES).zip(weights.multipliers.chunks_exact(groups * PANEL));
    let wanted = outputs.start / PANEL..outputs.end.div_ceil(PANEL);
    for (panel, (weights, multipliers)) in panels.enumerate().take(wanted.end).skip(wanted.start) {
        for row in (0..rows.count).step_by(MR) {
            let count = MR.min(rows.count - row);
            let mut sums = [[0; LANES]; MR];
            let (x, stride) = (&rows.values[row * rows.stride..], rows.stride);
            tile(Tile { weights, multipliers, x, stride, groups }, count, &mut sums);
            for (r, sums) in sums.iter().enumerate().take(count) {
                epilogue.put(row + r, panel * PANEL, core::array::from_ref(sums));
            }
        }
    }
}
