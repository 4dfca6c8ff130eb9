//! AVX-VNNI (processors with VNNI but without AVX-512): 32 products of bytes an instruction.
//!
//! `vpdpbusd` multiplies unsigned by signed bytes, so activations are stored with 128 added; what that adds to the
//! sums, 128 times those of the weights, is computed beside them and taken off.
//!
//! AVX-512 VNNI has the same instructions on the same registers in another encoding. The kernel is a macro over the
//! encoding, so that its tests run on a processor with either.

use super::{panels::KT, x86_64::Features};
use crate::math::round_to_i32;

/// Proof that this CPU has AVX2 and AVX-VNNI.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AvxVnni(());

impl AvxVnni {
    pub fn detect() -> Option<Self> {
        Features::detect().avx_vnni.then_some(Self(()))
    }
}

/// Rounds `x * inverse` to bytes with 128 added.
#[inline(always)]
fn store_with_offset(x: &[f32], inverse: f32, out: &mut [u8]) {
    let (head, padding) = out.split_at_mut(x.len());
    for (q, x) in head.iter_mut().zip(x) {
        *q = (round_to_i32(*x * inverse) ^ 0x80) as u8; // + 128 in eight bits
    }
    let padded = padding.len().min(KT);
    padding[..padded].fill(0); // times weights of 0
}

/// [`Kernel`](super::Kernel) for a proof of `$features`.
macro_rules! kernel {
    ($kernel:ident, $name:literal, $features:literal, $dpbusd:ident, $dpwssd:ident) => {
        mod kernel {
            use core::{arch::x86_64::*, ops::Range};

            use super::$kernel;
            use crate::{
                kernels::{
                    nibbles,
                    panels::{self, by_rows, Mixture, Tile, KT},
                    avxvnni::store_with_offset,
                    Epilogue, Int4, Kernel, Rows, Step, Weights, LANES,
                },
                quant::{
                    int4::{GROUP, PANEL_BYTES},
                    Layout,
                },
            };

            /// Rows of a tile: 12 vectors of sums, 2 of weights, a broadcast; there are 16 registers.
            const MR: usize = 6;
            /// Outputs of a vector.
            const NR: usize = 8;

            impl Kernel for $kernel {
                const NAME: &'static str = $name;
                const LAYOUT: Layout = panels::LAYOUT;
                const SIDE_BY_SIDE: bool = true;

                #[inline(always)]
                fn run<S: Step<A>, A>(self, arguments: A) -> S::Output {
                    #[target_feature(enable = $features)]
                    fn compiled<S: Step<A>, A>(k: $kernel, arguments: A) -> S::Output {
                        S::run(k, arguments)
                    }
                    // SAFETY: `self` proves that the CPU has these features.
                    unsafe { compiled::<S, A>(self, arguments) }
                }

                #[inline(always)]
                fn store(self, x: &[f32], inverse: f32, out: &mut [u8]) {
                    store_with_offset(x, inverse, out);
                }

                #[inline(always)]
                fn gemm(
                    self, weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>,
                ) {
                    // SAFETY: `self` proves that the CPU has these features.
                    unsafe { gemm(weights, rows, outputs, epilogue) }
                }

                #[inline(always)]
                fn store_int4(self, x: &[f32], inverse: f32, out: &mut [u8]) {
                    nibbles::store(x, inverse, out);
                }

                #[inline(always)]
                fn gemm_int4(
                    self, weights: Int4<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>,
                ) {
                    // SAFETY: `self` proves that the CPU has these features.
                    unsafe { gemm_int4(weights, rows, outputs, epilogue) }
                }

                #[inline(always)]
                fn mix(self, p: &[i16], pairs: usize, v: &[i16], width: usize, epilogue: &mut Epilogue<'_>) {
                    // SAFETY: `self` proves that the CPU has these features.
                    unsafe { mix(p, pairs, v, width, epilogue) }
                }
            }

            #[target_feature(enable = $features)]
            fn gemm(weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
                let x = (rows.values, rows.stride, rows.count);
                panels::gemm::<_, MR>(weights, x, outputs, epilogue, |t, rows, sums| {
                    by_rows!(rows, 1 2 3 4 5 6, R => tile::<R>(t, sums));
                });
            }

            /// A panel times `R` rows.
            #[target_feature(enable = $features)]
            #[inline(never)]
            fn tile<const R: usize>(t: Tile<'_, u8>, sums: &mut [[i32; LANES]; MR]) {
                t.check(R);
                let mut tile = [[_mm256_setzero_si256(); 2]; R];
                let mut offset = [_mm256_setzero_si256(); 2];
                let all_128 = _mm256_set1_epi8(-128); // 128 unsigned
                for k in 0..t.steps {
                    // SAFETY: step k < steps of the panel has 64 bytes (checked).
                    let w = [0, 1].map(|v| unsafe {
                        _mm256_loadu_si256(t.weights.as_ptr().add((k * LANES + v * NR) * KT).cast())
                    });
                    for (offset, w) in offset.iter_mut().zip(w) {
                        *offset = $dpbusd(*offset, all_128, w);
                    }
                    for (r, sums) in tile.iter_mut().enumerate() {
                        // SAFETY: row r < R has 4 bytes of step k < steps (checked).
                        let x = unsafe { t.x.as_ptr().add(r * t.stride + k * KT).cast::<i32>().read_unaligned() };
                        let x = _mm256_set1_epi32(x);
                        for (sum, w) in sums.iter_mut().zip(w) {
                            *sum = $dpbusd(*sum, x, w);
                        }
                    }
                }
                for (sums, tile) in sums.iter_mut().zip(tile) {
                    for ((sums, tile), offset) in sums.as_chunks_mut::<NR>().0.iter_mut().zip(tile).zip(offset) {
                        *sums = lanes(_mm256_sub_epi32(tile, offset));
                    }
                }
            }

            #[target_feature(enable = $features)]
            fn gemm_int4(weights: Int4<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
                nibbles::gemm::<MR>(weights, rows, outputs, epilogue, |t, rows, sums| {
                    by_rows!(rows, 1 2 3 4 5 6, R => {
                        tile_int4::<R>(t, 0, sums);
                        tile_int4::<R>(t, 1, sums);
                    });
                });
            }

            /// Half a panel of int4 weights times `R` rows.
            #[target_feature(enable = $features)]
            #[inline(never)]
            fn tile_int4<const R: usize>(t: nibbles::Tile<'_>, half: usize, sums: &mut [[i32; LANES]; MR]) {
                t.check(R, nibbles::WITH_START);
                let mut all = [_mm256_setzero_si256(); R];
                let (flip, low) = (_mm256_set1_epi8(8), _mm256_set1_epi8(15));
                // SAFETY: the caller's: four bytes from `at` on.
                let four = |at: usize| unsafe {
                    _mm256_set1_epi32(t.x.as_ptr().add(at).cast::<i32>().read_unaligned())
                };
                for g in 0..t.groups {
                    let mut group = [_mm256_setzero_si256(); R];
                    for (r, group) in group.iter_mut().enumerate() {
                        *group = four(t.starts(r) + g * size_of::<i32>()); // row r < R, group g < groups (checked)
                    }
                    for c in 0..GROUP / (2 * KT) {
                        let at = g * PANEL_BYTES + (c * LANES + half % 2 * NR) * KT;
                        // SAFETY: group g < groups has 4 times 64 bytes (checked), half of them for this half.
                        let w = unsafe { _mm256_loadu_si256(t.weights.as_ptr().add(at).cast()) };
                        let halves = [w, _mm256_srli_epi16::<4>(w)]
                            .map(|w| _mm256_and_si256(_mm256_xor_si256(w, flip), low));
                        for (half, w) in halves.into_iter().enumerate() {
                            for (r, group) in group.iter_mut().enumerate() {
                                // Row r < R has 32 bytes a group.
                                let x = four(r * t.stride + g * GROUP + (2 * c + half) * KT);
                                *group = $dpbusd(*group, w, x);
                            }
                        }
                    }
                    let at = g * LANES + half % 2 * NR;
                    // SAFETY: group g < groups has 16 multipliers (checked), 8 for this half.
                    let multipliers = unsafe { _mm_loadl_epi64(t.multipliers.as_ptr().add(at).cast()) };
                    let multipliers = _mm256_cvtepu8_epi32(multipliers); // pairs of it and 0
                    for (all, group) in all.iter_mut().zip(group) {
                        *all = $dpwssd(*all, group, multipliers);
                    }
                }
                for (sums, all) in sums.iter_mut().zip(all) {
                    sums[half * NR..][..NR].copy_from_slice(&lanes(all));
                }
            }

            #[target_feature(enable = $features)]
            fn mix(p: &[i16], pairs: usize, v: &[i16], width: usize, epilogue: &mut Epilogue<'_>) {
                panels::mix::<MR>(p, pairs, v, width, epilogue, |m, rows, sums| {
                    by_rows!(rows, 1 2 3 4 5 6, R => mix_tile::<R>(m, sums));
                });
            }

            /// 16 outputs of `R` rows, added to `sums`.
            #[target_feature(enable = $features)]
            #[inline(never)]
            fn mix_tile<const R: usize>(m: Mixture<'_>, sums: &mut [[i32; LANES]; MR]) {
                m.check(R);
                let mut tile = [[_mm256_setzero_si256(); 2]; R];
                for t in 0..m.pairs {
                    // SAFETY: pair t < pairs has 16 times two values (checked).
                    let v = [0, 16].map(|at| unsafe {
                        _mm256_loadu_si256(m.v.as_ptr().add(t * m.v_stride + at).cast())
                    });
                    for (r, sums) in tile.iter_mut().enumerate() {
                        // SAFETY: row r < R has two weights for pair t < pairs (checked).
                        let p = unsafe { m.p.as_ptr().add(r * m.stride + 2 * t).cast::<i32>().read_unaligned() };
                        let p = _mm256_set1_epi32(p);
                        for (sum, v) in sums.iter_mut().zip(v) {
                            *sum = $dpwssd(*sum, p, v);
                        }
                    }
                }
                for (sums, tile) in sums.iter_mut().zip(tile) {
                    for (sum, lane) in sums.iter_mut().zip(tile.map(lanes).as_flattened()) {
                        *sum = sum.wrapping_add(*lane);
                    }
                }
            }

            /// A vector as an array.
            #[inline(always)]
            fn lanes(x: __m256i) -> [i32; NR] {
                // SAFETY: both are 32 bytes, and any bits are valid numbers.
                unsafe { core::mem::transmute(x) }
            }
        }
    };
}

kernel!(AvxVnni, "avxvnni", "avx2,avxvnni", _mm256_dpbusd_avx_epi32, _mm256_dpwssd_avx_epi32);

#[cfg(test)]
mod tests {
    use super::*;

    super::super::suite::suite!(AvxVnni::detect());

    /// The same source in the encoding of AVX-512 VNNI.
    mod as_avx512 {
        use crate::kernels::{suite, x86_64::Features};

        #[derive(Clone, Copy, Debug)]
        pub struct Twin(());

        kernel!(
            Twin,
            "avxvnni (AVX-512's encoding)",
            "avx2,avx512vl,avx512vnni",
            _mm256_dpbusd_epi32,
            _mm256_dpwssd_epi32
        );

        suite::suite!(Features::detect().avx512_vnni.then_some(Twin(())));
    }
}
