//! The float steps ([`super::floats`]) of AVX-512, where what the compiler makes of their definitions is slower.
//!
//! All but [`store_bytes`] and [`weigh`] take rows of a multiple of 16 numbers; the kernel leaves others to the compiler.

use core::arch::x86_64::*;

use super::{
    avx512::{dpwssd, lanes, BYTES},
    floats::{self, Affine, Floats},
    panels::by_rows,
    LANES,
};
use crate::math;

/// 16 numbers.
type Sixteen = [f32; LANES];

#[target_feature(enable = "avx512f")]
#[inline]
fn load(x: &Sixteen) -> __m512 {
    // SAFETY: 16 numbers.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(x: &mut Sixteen, value: __m512) {
    // SAFETY: 16 numbers.
    unsafe { _mm512_storeu_ps(x.as_mut_ptr(), value) }
}

/// Up to 16 numbers, and zeros.
#[target_feature(enable = "avx512f")]
#[inline]
fn load_some(x: &[f32]) -> __m512 {
    // SAFETY: no more lanes than numbers.
    unsafe { _mm512_maskz_loadu_ps(lanes(x.len()), x.as_ptr()) }
}

/// The larger of `x` and `least`; `least` if `x` is not a number.
#[target_feature(enable = "avx512f")]
#[inline]
fn larger(x: __m512, least: __m512) -> __m512 {
    _mm512_max_ps(x, least)
}

#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn magnitude(x: __m512) -> __m512 {
    _mm512_abs_ps(x)
}

/// [`math::round_to_i32`] as far as the low bits go: those of a byte, or of 16 bits.
#[target_feature(enable = "avx512f")]
#[inline]
fn low_bits(x: __m512) -> __m512i {
    _mm512_castps_si512(_mm512_add_ps(x, _mm512_set1_ps(math::ROUND)))
}

/// The byte of [`math::round_to_i32`].
#[target_feature(enable = "avx512f")]
#[inline]
fn low_byte(x: __m512) -> __m512i {
    _mm512_and_si512(low_bits(x), _mm512_set1_epi32(255))
}

/// The sum of the lanes: halves onto halves, as everywhere.
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
#[inline]
fn join(x: __m512) -> f32 {
    let x = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
    let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
}

/// [`floats::normalise`]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn normalise<const N: usize>(affine: Affine<'_>, x: &[f32], out: &mut [f32]) -> [f32; N] {
    let dim = x.len() / N;
    let chunks = dim / LANES;
    let (weight, bias) = (&affine.weight.as_chunks().0[..chunks], &affine.bias.as_chunks().0[..chunks]);
    let (x, out) = (&x.as_chunks().0[..N * chunks], &mut out.as_chunks_mut().0[..N * chunks]);
    let zero = _mm512_setzero_ps();
    let mut sums = [zero; N];
    for c in 0..chunks {
        for (n, sum) in sums.iter_mut().enumerate() {
            *sum = _mm512_add_ps(*sum, load(&x[n * chunks + c]));
        }
    }
    let count = dim.max(1) as f32;
    let mut means = [zero; N];
    for (mean, sum) in means.iter_mut().zip(sums) {
        *mean = _mm512_set1_ps(join(sum) / count);
    }
    let mut squares = [zero; N];
    for c in 0..chunks {
        for (n, square) in squares.iter_mut().enumerate() {
            let far = _mm512_sub_ps(load(&x[n * chunks + c]), means[n]);
            *square = _mm512_add_ps(*square, _mm512_mul_ps(far, far));
        }
    }
    let mut inverses = [zero; N];
    for (inverse, square) in inverses.iter_mut().zip(squares) {
        *inverse = _mm512_set1_ps(floats::inverse_deviation(join(square) / count, affine.eps));
    }
    let mut maxima = [zero; N];
    for c in 0..chunks {
        let (weight, bias) = (load(&weight[c]), load(&bias[c]));
        for (n, max) in maxima.iter_mut().enumerate() {
            let far = _mm512_mul_ps(_mm512_sub_ps(load(&x[n * chunks + c]), means[n]), inverses[n]);
            let value = _mm512_add_ps(_mm512_mul_ps(far, weight), bias);
            *max = larger(magnitude(value), *max);
            store(&mut out[n * chunks + c], value);
        }
    }
    largest(maxima)
}

/// [`floats::largest_magnitudes`]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn largest_magnitudes<const N: usize>(x: &[f32]) -> [f32; N] {
    let chunks = x.len() / N / LANES;
    let x = &x.as_chunks().0[..N * chunks];
    let mut maxima = [_mm512_setzero_ps(); N];
    for c in 0..chunks {
        for (n, max) in maxima.iter_mut().enumerate() {
            *max = larger(magnitude(load(&x[n * chunks + c])), *max);
        }
    }
    largest(maxima)
}

/// The largest lanes.
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
#[inline]
fn largest<const N: usize>(x: [__m512; N]) -> [f32; N] {
    let mut maxima = [0.0; N];
    for (max, x) in maxima.iter_mut().zip(x) {
        *max = _mm512_reduce_max_ps(x);
    }
    maxima
}

/// [`crate::quant::scale_of`] of 16 magnitudes.
#[target_feature(enable = "avx512f")]
#[inline]
fn scales_of(max: __m512) -> (__m512, __m512) {
    let some = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(max, _mm512_set1_ps(1e-30));
    let largest = _mm512_set1_ps(127.0);
    (_mm512_maskz_div_ps(some, largest, max), _mm512_maskz_div_ps(some, max, largest))
}

/// Rounds `x * inverse` to bytes, zeros up to the end of `out`; their sum.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
pub(super) fn store_bytes(x: &[f32], inverse: f32, out: &mut [u8]) -> i32 {
    let (inverse, ones) = (_mm512_set1_ps(inverse), _mm512_set1_epi8(1));
    let mut sum = _mm512_setzero_si512();
    let whole = x.len() / BYTES * BYTES;
    let (out, rest) = out.split_at_mut(whole);
    for (x, out) in x.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<BYTES>().0) {
        let mut bytes = [_mm512_setzero_si512(); 4];
        for (bytes, x) in bytes.iter_mut().zip(x.as_chunks().0) {
            *bytes = low_byte(_mm512_mul_ps(load(x), inverse));
        }
        // Four bytes of each in a lane of 128 bits: back in order.
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let bytes = _mm512_permutexvar_epi32(order, pack(bytes));
        sum = _mm512_dpbusd_epi32(sum, ones, bytes);
        // SAFETY: 64 bytes.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), bytes) };
    }
    for (x, out) in x[whole..].chunks(LANES).zip(rest.chunks_mut(LANES)) {
        let bytes = _mm512_cvtepi32_epi8(low_byte(_mm512_mul_ps(load_some(x), inverse)));
        sum = _mm512_dpbusd_epi32(sum, ones, _mm512_zextsi128_si512(bytes));
        // SAFETY: no more lanes than bytes.
        unsafe { _mm_mask_storeu_epi8(out.as_mut_ptr().cast(), lanes(out.len()), bytes) };
    }
    _mm512_reduce_add_epi32(sum)
}

/// [`floats::put_rows`], each row of bytes followed by what its sums start at.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn put_rows(rows: Floats<'_>, out: &mut [u8], stride: usize, scales: &mut [f32]) {
    let width = rows.width;
    for (first, (out, scales)) in (0..).step_by(4).zip(out.chunks_mut(4 * stride).zip(scales.chunks_mut(4))) {
        let mut maxima = [0.0; LANES];
        for (r, max) in maxima.iter_mut().enumerate().take(scales.len()) {
            let mut largest = _mm512_setzero_ps();
            for x in rows.row(first + r).as_chunks().0 {
                largest = larger(magnitude(load(x)), largest);
            }
            *max = _mm512_reduce_max_ps(largest);
        }
        let (inverse, scale) = scales_of(load(&maxima));
        let mut inverses = [0.0; LANES];
        store(&mut inverses, inverse);
        store(&mut maxima, scale);
        scales.copy_from_slice(&maxima[..scales.len()]);
        for (r, (out, inverse)) in out.chunks_mut(stride).zip(inverses).enumerate().take(scales.len()) {
            let (bytes, start) = out.split_at_mut(width);
            let sum = store_bytes(rows.row(first + r), inverse, bytes);
            if let Some(start) = start.first_chunk_mut() {
                *start = (-128 * sum).to_le_bytes();
            }
        }
    }
}

/// Bytes of four vectors: lane of 128 bits `t` has those of the numbers `4 t` to `4 t + 3` of the first, then of the
/// others.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn pack([a, b, c, d]: [__m512i; 4]) -> __m512i {
    _mm512_packus_epi16(_mm512_packus_epi32(a, b), _mm512_packus_epi32(c, d))
}

/// [`floats::quantise_keys`] into panels of 16 keys by 4 numbers.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn quantise_keys(keys: Floats<'_>, row: &mut [f32], out: &mut [i8], scales: &mut [f32]) {
    let (count, chunks) = (keys.count(), keys.width / LANES);
    let mean = &mut row.as_chunks_mut().0[..chunks];
    for (c, mean) in mean.chunks_mut(4).enumerate() {
        let keys = Floats { data: &keys.data[4 * c * LANES..], width: mean.len() * LANES, ..keys };
        by_rows!(mean.len(), 1 2 3 4, V => mean_of::<V>(keys, count as f32, mean));
    }
    for (first, out) in (0..count).step_by(LANES).zip(out.chunks_exact_mut(keys.width * LANES)) {
        let rows = LANES.min(count - first);
        let mut panel: [&[Sixteen]; LANES] = [&[]; LANES];
        let mut maxima = [0.0; LANES];
        for ((r, max), panel) in maxima.iter_mut().enumerate().take(rows).zip(&mut panel) {
            let key = &keys.row(first + r).as_chunks().0[..chunks];
            let mut largest = _mm512_setzero_ps();
            for (key, mean) in key.iter().zip(&*mean) {
                largest = larger(magnitude(_mm512_sub_ps(load(key), load(mean))), largest);
            }
            (*max, *panel) = (_mm512_reduce_max_ps(largest), key);
        }
        let (inverse, scale) = scales_of(load(&maxima));
        let (mut inverses, mut all) = ([0.0; LANES], [0.0; LANES]);
        store(&mut inverses, inverse);
        store(&mut all, scale);
        scales[first..][..rows].copy_from_slice(&all[..rows]);
        for (c, (out, mean)) in out.as_chunks_mut::<{ LANES * LANES }>().0.iter_mut().zip(&*mean).enumerate() {
            let mean = load(mean);
            // Of four keys each.
            let mut fours = [_mm512_setzero_si512(); 4];
            for (four, (keys, inverses)) in fours.iter_mut().zip(panel.chunks(4).zip(inverses.chunks(4))) {
                let mut low = [_mm512_setzero_si512(); 4];
                for (low, (key, inverse)) in low.iter_mut().zip(keys.iter().zip(inverses)) {
                    if let Some(key) = key.get(c) {
                        let value = _mm512_mul_ps(_mm512_sub_ps(load(key), mean), _mm512_set1_ps(*inverse));
                        *low = low_byte(value);
                    }
                }
                *four = pack(low);
            }
            // Lane t of every one, side by side, is tile t of all keys.
            let [a, b, c, d] = fours;
            let (ab, cd) = (_mm512_shuffle_i32x4::<0b01_00_01_00>(a, b), _mm512_shuffle_i32x4::<0b01_00_01_00>(c, d));
            let (ef, gh) = (_mm512_shuffle_i32x4::<0b11_10_11_10>(a, b), _mm512_shuffle_i32x4::<0b11_10_11_10>(c, d));
            let tiles = [
                _mm512_shuffle_i32x4::<0b10_00_10_00>(ab, cd),
                _mm512_shuffle_i32x4::<0b11_01_11_01>(ab, cd),
                _mm512_shuffle_i32x4::<0b10_00_10_00>(ef, gh),
                _mm512_shuffle_i32x4::<0b11_01_11_01>(ef, gh),
            ];
            for (out, tile) in out.as_chunks_mut::<64>().0.iter_mut().zip(tiles) {
                // SAFETY: 64 bytes.
                unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), tile) };
            }
        }
    }
}

/// The mean of rows of `16 V` numbers.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn mean_of<const V: usize>(rows: Floats<'_>, count: f32, mean: &mut [Sixteen]) {
    let mut sums = [_mm512_setzero_ps(); V];
    for row in rows.rows() {
        for (sum, x) in sums.iter_mut().zip(row.as_chunks().0) {
            *sum = _mm512_add_ps(*sum, load(x));
        }
    }
    for (mean, sum) in mean.iter_mut().zip(sums) {
        store(mean, _mm512_div_ps(sum, _mm512_set1_ps(count)));
    }
}

/// [`floats::quantise_values`]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn quantise_values(values: Floats<'_>, out: &mut [i16], scales: &mut [f32]) {
    let chunks = values.width / LANES;
    let scales = &mut scales.as_chunks_mut().0[..chunks];
    for (c, scales) in scales.chunks_mut(4).enumerate() {
        let first = 4 * c * LANES;
        let values = Floats { data: &values.data[first..], width: scales.len() * LANES, ..values };
        by_rows!(scales.len(), 1 2 3 4, V => channels::<V>(values, &mut out[2 * first..], 2 * chunks * LANES, scales));
    }
}

/// `16 V` channels of values; pairs of all channels are `stride` apart in `out`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn channels<const V: usize>(values: Floats<'_>, out: &mut [i16], stride: usize, scales: &mut [Sixteen]) {
    let mut maxima = [_mm512_setzero_ps(); V];
    for row in values.rows() {
        for (max, x) in maxima.iter_mut().zip(row.as_chunks().0) {
            *max = larger(magnitude(load(x)), *max);
        }
    }
    let mut inverses = maxima;
    for ((inverse, scales), max) in inverses.iter_mut().zip(scales).zip(maxima) {
        let scale;
        (*inverse, scale) = scales_of(max);
        store(scales, scale);
    }
    let zero: &[Sixteen] = &[[0.0; LANES]; V];
    let mut rows = values.rows();
    for pair in out.chunks_mut(stride) {
        let Some(first) = rows.next() else { break };
        let first = first.as_chunks().0;
        let second = rows.next().map_or(zero, |row| row.as_chunks().0);
        let pair = pair.as_chunks_mut::<{ 2 * LANES }>().0.iter_mut();
        for (((pair, first), second), inverse) in pair.zip(first).zip(second).zip(inverses) {
            let [first, second] =
                [first, second].map(|x| _mm512_slli_epi32::<24>(low_bits(_mm512_mul_ps(load(x), inverse))));
            // A byte as the low 16 bits of a lane, the other as the high ones.
            let both =
                _mm512_mask_blend_epi16(0xaaaa_aaaa, _mm512_srai_epi32::<24>(first), _mm512_srai_epi32::<8>(second));
            // SAFETY: 32 numbers of 16 bits.
            unsafe { _mm512_storeu_si512(pair.as_mut_ptr().cast(), both) };
        }
    }
}

/// [`floats::weigh`], of any number of scores.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn weigh(count: usize, scores: &[f32], weights: &mut [i16], inverses: &mut [f32]) {
    let (from, to) = (scores.len() / inverses.len(), weights.len() / inverses.len());
    for (scores, inverse) in scores.chunks_exact(from).zip(&mut *inverses) {
        let (scores, rest) = scores[..count].as_chunks();
        let mut max = _mm512_set1_ps(f32::NEG_INFINITY);
        for scores in scores {
            max = larger(load(scores), max);
        }
        *inverse = _mm512_reduce_max_ps(_mm512_mask_max_ps(max, lanes(rest.len()), load_some(rest), max));
    }
    let ones = _mm512_set1_epi16(1);
    for ((scores, weights), inverse) in scores.chunks_exact(from).zip(weights.chunks_exact_mut(to)).zip(inverses) {
        let max = _mm512_set1_ps(*inverse);
        let mut sum = _mm512_setzero_si512();
        let (whole, rest) = scores[..count].as_chunks::<{ 4 * LANES }>();
        let (of_whole, of_rest) = weights.split_at_mut(count - rest.len());
        for (scores, weights) in whole.iter().zip(of_whole.as_chunks_mut::<{ 4 * LANES }>().0) {
            let mut x = [max; 4];
            x.iter_mut().zip(scores.as_chunks().0).for_each(|(x, scores)| *x = load(scores));
            let [a, b, c, d] = weigh_some(x, max);
            for (weights, words) in weights.as_chunks_mut::<32>().0.iter_mut().zip([words(a, b), words(c, d)]) {
                sum = dpwssd(sum, words, ones);
                // SAFETY: 32 numbers of 16 bits.
                unsafe { _mm512_storeu_si512(weights.as_mut_ptr().cast(), words) };
            }
        }
        let mut rest = rest.chunks(LANES);
        for weights in of_rest.chunks_mut(LANES) {
            let scores = rest.next().unwrap_or(&[]);
            let [weight] = weigh_some([load_some(scores)], max);
            let weight = _mm512_maskz_cvtepi32_epi16(lanes(scores.len()), weight);
            sum = dpwssd(sum, _mm512_zextsi256_si512(weight), ones);
            // SAFETY: no more lanes than numbers.
            unsafe { _mm256_mask_storeu_epi16(weights.as_mut_ptr(), lanes(weights.len()), weight) };
        }
        *inverse = 1.0 / _mm512_reduce_add_epi32(sum) as f32;
    }
}

/// The low 16 bits of all lanes.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn words(a: __m512i, b: __m512i) -> __m512i {
    const EVEN: [i16; 32] = {
        let mut even = [0; 32];
        let mut i = 0;
        while i < even.len() {
            even[i] = 2 * i as i16;
            i += 1;
        }
        even
    };
    // SAFETY: 32 numbers of 16 bits.
    let even = unsafe { _mm512_loadu_si512(EVEN.as_ptr().cast()) };
    _mm512_permutex2var_epi16(a, even, b)
}

/// Integer weights ([`floats::integer_weights`]) in the low 16 bits of each lane; above are those of [`math::ROUND`].
#[target_feature(enable = "avx512f")]
#[inline]
fn weigh_some<const N: usize>(mut x: [__m512; N], max: __m512) -> [__m512i; N] {
    let mut n = x;
    let mut p = [_mm512_set1_ps(math::EXP2[0]); N];
    for i in 0..N {
        x[i] = larger(_mm512_sub_ps(x[i], max), _mm512_set1_ps(math::EXP2_LEAST));
        n[i] = _mm512_roundscale_ps::<0>(x[i]);
    }
    for i in 0..N {
        x[i] = _mm512_sub_ps(x[i], n[i]);
    }
    for c in &math::EXP2[1..] {
        for i in 0..N {
            p[i] = _mm512_add_ps(_mm512_mul_ps(p[i], x[i]), _mm512_set1_ps(*c));
        }
    }
    let mut w = [_mm512_setzero_si512(); N];
    for i in 0..N {
        w[i] = low_bits(_mm512_mul_ps(_mm512_set1_ps(floats::ONE), _mm512_scalef_ps(p[i], n[i])));
    }
    w
}
