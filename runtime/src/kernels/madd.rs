//! Vectors of 128 bits that multiply 16-bit numbers and add neighbours, on every x86-64 (SSE2) and in WebAssembly
//! (simd128): one kernel for both, exact whatever the numbers.

use core::ops::Range;

use super::{
    bytes::as_i16_mut,
    panels::{self, by_rows, Mixture, Tile, KT},
    Epilogue, Rows, Weights, LANES,
};
use crate::math::round_to_i32;

/// Rows of a tile: with 4 outputs 8 vectors of sums, 2 of weights, one of inputs; there are 16 registers.
const MR: usize = 4;
/// Outputs of a quarter of a panel.
const NR: usize = 4;

/// 128 bits: 8 numbers of 16, or 4 of 32.
///
/// # Safety
/// The functions that take a pointer read as many bytes as their names say, from any address; they have to be there.
pub(super) trait Vector: Copy {
    fn zero() -> Self;
    /// 16 bytes, widened to 16 bits.
    unsafe fn widen_16_bytes(from: *const i8) -> [Self; 2];
    unsafe fn load_16_bytes(from: *const i16) -> Self;
    /// 8 bytes, twice.
    unsafe fn splat_8_bytes(from: *const i16) -> Self;
    /// 4 bytes, four times.
    unsafe fn splat_4_bytes(from: *const i16) -> Self;
    /// Each of four sums plus two products.
    fn multiply_add(sum: Self, a: Self, b: Self) -> Self;
    fn lanes(self) -> [i32; 4];
}

/// [`super::Kernel::store`]: 16 bits an activation, so that the inner loop need not widen them.
#[inline(always)]
pub(super) fn store(x: &[f32], inverse: f32, out: &mut [u8]) {
    let (head, padding) = as_i16_mut(out).split_at_mut(x.len());
    for (q, x) in head.iter_mut().zip(x) {
        *q = round_to_i32(*x * inverse) as i16;
    }
    padding.fill(0);
}

/// [`super::Kernel::gemm`] for weights in [`panels::LAYOUT`].
#[inline(always)]
pub(super) fn gemm<V: Vector>(
    weights: Weights<'_>,
    rows: Rows<'_>,
    outputs: Range<usize>,
    epilogue: &mut Epilogue<'_>,
) {
    let x = rows.of_16_bits();
    panels::gemm::<_, MR>(weights, (x, rows.stride / 2, rows.count), outputs, epilogue, |t, rows, sums| {
        by_rows!(rows, 1 2 3 4, R => tile::<V, R>(t, sums));
    });
}

/// A panel times `R` rows.
#[inline(never)]
fn tile<V: Vector, const R: usize>(t: Tile<'_, i16>, sums: &mut [[i32; LANES]; MR]) {
    t.check(R);
    for quarter in 0..LANES / NR {
        // Two partial sums for each of four outputs.
        let mut tile = [[V::zero(); 2]; R];
        for k in 0..t.steps {
            // SAFETY: step k < steps of the panel has 64 bytes (checked), of which this quarter takes 16.
            let w = unsafe { V::widen_16_bytes(t.weights.as_ptr().add((k * LANES + quarter * NR) * KT)) };
            for (r, sums) in tile.iter_mut().enumerate() {
                // SAFETY: row r < R has four numbers of step k < steps (checked).
                let x = unsafe { V::splat_8_bytes(t.x.as_ptr().add(r * t.stride + k * KT)) };
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = V::multiply_add(*sum, w, x);
                }
            }
        }
        for (sums, tile) in sums.iter_mut().zip(tile) {
            let [[a0, a1, b0, b1], [c0, c1, d0, d1]] = tile.map(V::lanes);
            sums[quarter * NR..][..NR].copy_from_slice(&[a0 + a1, b0 + b1, c0 + c1, d0 + d1]);
        }
    }
}

/// [`super::Kernel::mix`].
#[inline(always)]
pub(super) fn mix<V: Vector>(p: &[i16], pairs: usize, v: &[i16], width: usize, epilogue: &mut Epilogue<'_>) {
    panels::mix::<MR>(p, pairs, v, width, epilogue, |m, rows, sums| {
        by_rows!(rows, 1 2 3 4, R => mix_tile::<V, R>(m, sums));
    });
}

/// 16 outputs of `R` rows, added to `sums`.
#[inline(never)]
fn mix_tile<V: Vector, const R: usize>(m: Mixture<'_>, sums: &mut [[i32; LANES]; MR]) {
    m.check(R);
    // Two vectors of four outputs at a time.
    for half in 0..2 {
        let mut tile = [[V::zero(); 2]; R];
        for t in 0..m.pairs {
            let v = [0, 8].map(|at| {
                // SAFETY: pair t < pairs has 16 times two values (checked), of which this half takes 16.
                unsafe { V::load_16_bytes(m.v.as_ptr().add(t * m.v_stride + half * LANES + at)) }
            });
            for (r, sums) in tile.iter_mut().enumerate() {
                // SAFETY: row r < R has two weights for pair t < pairs (checked).
                let p = unsafe { V::splat_4_bytes(m.p.as_ptr().add(r * m.stride + 2 * t)) };
                for (sum, v) in sums.iter_mut().zip(v) {
                    *sum = V::multiply_add(*sum, v, p);
                }
            }
        }
        for (sums, tile) in sums.iter_mut().zip(tile) {
            for (sum, lane) in sums[half * LANES / 2..].iter_mut().zip(tile.map(V::lanes).as_flattened()) {
                *sum = sum.wrapping_add(*lane);
            }
        }
    }
}
