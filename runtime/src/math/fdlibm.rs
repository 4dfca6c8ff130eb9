//! Logarithms and the cosine in double and single precision, which decide what is drawn.
//!
//! They are here and not called from the crate `libm`, so that its version, which a program's lock file decides, never
//! changes a drawn token or an initial weight. What is still taken from there is exact in every version: square roots,
//! which IEEE rounds, and `floor`.
//!
//! Ported from FreeBSD's msun (`e_log.c`, `e_logf.c`, `e_rem_pio2.c`, `k_cos.c`, `k_sin.c`, `s_cos.c`), step by step, so
//! that the bits are those of `libm` 0.2.16:
//!
//! ```text
//! Copyright (C) 1993 by Sun Microsystems, Inc. All rights reserved.
//!
//! Developed at SunSoft, a Sun Microsystems, Inc. business.
//! Permission to use, copy, modify, and distribute this
//! software is freely granted, provided that this notice
//! is preserved.
//! ```

/// Natural logarithm, error below 1 ulp; negative infinity at 0, NaN below.
pub(crate) fn log(x: f64) -> f64 {
    const LN2_HI: f64 = f64::from_bits(0x3fe6_2e42_fee0_0000);
    const LN2_LO: f64 = f64::from_bits(0x3dea_39ef_3579_3c76);
    /// Of the odd part of `log((1 + s) / (1 - s))` over s, in s².
    const LG: [f64; 7] = [
        f64::from_bits(0x3fe5_5555_5555_5593),
        f64::from_bits(0x3fd9_9999_9997_fa04),
        f64::from_bits(0x3fd2_4924_9422_9359),
        f64::from_bits(0x3fcc_71c5_1d8e_78af),
        f64::from_bits(0x3fc7_4664_96cb_03de),
        f64::from_bits(0x3fc3_9a09_d078_c69f),
        f64::from_bits(0x3fc2_f112_df3e_5244),
    ];
    let (mut bits, mut k) = (x.to_bits(), 0);
    if x == 0.0 {
        return f64::NEG_INFINITY;
    }
    if x.is_nan() || x < 0.0 {
        return f64::NAN;
    }
    if x == f64::INFINITY || x == 1.0 {
        return if x == 1.0 { 0.0 } else { x };
    }
    if bits < 0x0010_0000_0000_0000 {
        bits = (x * f64::from_bits(0x4350_0000_0000_0000)).to_bits(); // subnormal: times 2^54
        k = -54;
    }
    // x = 2^k (1 + f), with 1 + f from √½ to √2.
    let high = (bits >> 32) as u32 + (0x3ff0_0000 - 0x3fe6_a09e);
    k += (high >> 20) as i32 - 0x3ff;
    let high = (high & 0x000f_ffff) + 0x3fe6_a09e;
    let f = f64::from_bits(u64::from(high) << 32 | bits & 0xffff_ffff) - 1.0;
    let half_square = 0.5 * f * f;
    let s = f / (2.0 + f);
    let z = s * s;
    let w = z * z;
    let even = w * (LG[1] + w * (LG[3] + w * LG[5]));
    let odd = z * (LG[0] + w * (LG[2] + w * (LG[4] + w * LG[6])));
    let r = odd + even;
    let k = f64::from(k);
    s * (half_square + r) + k * LN2_LO - half_square + f + k * LN2_HI
}

/// [`log`] in single precision, error below 1 ulp.
pub(crate) fn logf(x: f32) -> f32 {
    const LN2_HI: f32 = f32::from_bits(0x3f31_7180);
    const LN2_LO: f32 = f32::from_bits(0x3717_f7d1);
    const LG: [f32; 4] = [0.666_666_6, 0.400_009_72, 0.284_987_87, 0.242_790_79];
    let (mut bits, mut k) = (x.to_bits(), 0);
    if x == 0.0 {
        return f32::NEG_INFINITY;
    }
    if x.is_nan() || x < 0.0 {
        return f32::NAN;
    }
    if x == f32::INFINITY || x == 1.0 {
        return if x == 1.0 { 0.0 } else { x };
    }
    if bits < 0x0080_0000 {
        bits = (x * f32::from_bits(0x4c00_0000)).to_bits(); // subnormal: times 2^25
        k = -25;
    }
    let shifted = bits + (0x3f80_0000 - 0x3f35_04f3);
    k += (shifted >> 23) as i32 - 0x7f;
    let f = f32::from_bits((shifted & 0x007f_ffff) + 0x3f35_04f3) - 1.0;
    let s = f / (2.0 + f);
    let z = s * s;
    let w = z * z;
    let even = w * (LG[1] + w * LG[3]);
    let odd = z * (LG[0] + w * LG[2]);
    let r = odd + even;
    let half_square = 0.5 * f * f;
    let k = k as f32;
    s * (half_square + r) + k * LN2_LO - half_square + f + k * LN2_HI
}

/// Cosine, error below 1 ulp, for `|x| <= 7`: a turn and a little more. Beyond, some number or NaN.
pub(crate) fn cos(x: f64) -> f64 {
    let x = x.abs();
    let (quarter, (y, tail)) = quarters(x);
    match quarter {
        0 | 4 => cos_near_zero(y, tail),
        1 => -sin_near_zero(y, tail),
        2 => -cos_near_zero(y, tail),
        _ => sin_near_zero(y, tail),
    }
}

/// The nearest multiple of π/2, and what is left of `x` in two parts.
fn quarters(x: f64) -> (u8, (f64, f64)) {
    /// π/2 in parts of 33 bits, each with all that is left after it.
    const PARTS: [(f64, f64); 3] = [
        (f64::from_bits(0x3ff9_21fb_5440_0000), f64::from_bits(0x3dd0_b461_1a62_6331)),
        (f64::from_bits(0x3dd0_b461_1a60_0000), f64::from_bits(0x3ba3_198a_2e03_7073)),
        (f64::from_bits(0x3ba3_198a_2e00_0000), f64::from_bits(0x397b_839a_2520_49c1)),
    ];
    /// The upper halves of π/4, 3π/4, 5π/4 and 7π/4.
    const TURNS: [u32; 4] = [0x3fe9_21fb, 0x4002_d97c, 0x400f_6a7a, 0x4015_fdbc];
    let high = (x.to_bits() >> 32) as u32;
    let quarter = TURNS.iter().filter(|&&end| high > end).count() as u8;
    if quarter == 0 {
        return (0, (x, 0.0));
    }
    let n = f64::from(quarter);
    let exponent = |x: f64| (x.to_bits() >> 52) as i32;
    let (mut rest, mut less) = (x - n * PARTS[0].0, n * PARTS[0].1);
    // So near to a multiple that most bits cancel: with more bits of π/2.
    if [0x3ff9_21fb, 0x4009_21fb, 0x4012_d97c, 0x4019_21fb].contains(&high) {
        for ((part, after), cancelled) in PARTS[1..].iter().zip([16, 49]) {
            if exponent(x) - (exponent(rest - less) & 0x7ff) <= cancelled {
                break;
            }
            let (before, w) = (rest, n * part);
            rest = before - w;
            less = n * after - ((before - rest) - w);
        }
    }
    let y = rest - less;
    (quarter, (y, (rest - y) - less))
}

/// Cosine of `x + tail` for |x| up to π/4.
fn cos_near_zero(x: f64, tail: f64) -> f64 {
    const C: [f64; 6] = [
        f64::from_bits(0x3fa5_5555_5555_554c),
        f64::from_bits(0xbf56_c16c_16c1_5177),
        f64::from_bits(0x3efa_01a0_19cb_1590),
        f64::from_bits(0xbe92_7e4f_809c_52ad),
        f64::from_bits(0x3e21_ee9e_bdb4_b1c4),
        f64::from_bits(0xbda8_fae9_be88_38d4),
    ];
    let z = x * x;
    let w = z * z;
    let r = z * (C[0] + z * (C[1] + z * C[2])) + w * w * (C[3] + z * (C[4] + z * C[5]));
    let half = 0.5 * z;
    let w = 1.0 - half;
    w + (((1.0 - w) - half) + (z * r - x * tail))
}

/// Sine of `x + tail` for |x| up to π/4.
fn sin_near_zero(x: f64, tail: f64) -> f64 {
    const S: [f64; 6] = [
        f64::from_bits(0xbfc5_5555_5555_5549),
        f64::from_bits(0x3f81_1111_1110_f8a6),
        f64::from_bits(0xbf2a_01a0_19c1_61d5),
        f64::from_bits(0x3ec7_1de3_57b1_fe7d),
        f64::from_bits(0xbe5a_e5e6_8a2b_9ceb),
        f64::from_bits(0x3de5_d93a_5acf_d57c),
    ];
    let z = x * x;
    let w = z * z;
    let r = S[1] + z * (S[2] + z * S[3]) + z * w * (S[4] + z * S[5]);
    let v = z * x;
    x - ((z * (0.5 * tail - v * r) - tail) - v * S[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{splitmix64, Rng, Stream};
    use core::f64::consts::{FRAC_PI_2, TAU};
    extern crate std;
    use std::vec::Vec;

    /// What is tried of each: extremes, numbers near 1 and near multiples of π/2, and random ones of every size.
    fn doubles() -> (Vec<f64>, Vec<f64>) {
        let rng = Rng::new(5, Stream::Evaluation, 0);
        let near = |x: f64, i: u64| f64::from_bits(x.to_bits() + i - 16);
        let mut logarithms: Vec<f64> = (0..32).map(|i| near(1.0, i)).collect();
        logarithms.extend([f64::from_bits(1), f64::MIN_POSITIVE, f64::MAX, 0.5, 2.0]);
        logarithms.extend((0..50_000).map(|i| f64::from_bits(rng.bits(i) >> 1)).filter(|x| x.is_finite()));
        logarithms.extend((0..50_000).map(|i| rng.uniform(i)));
        logarithms.extend((0..50_000).map(|i| -log(rng.uniform(i))));
        let mut angles: Vec<f64> =
            (1..=4).flat_map(|n| (0..32).map(move |i| near(FRAC_PI_2 * f64::from(n), i))).collect();
        angles.extend(
            (1..=4).flat_map(|n| (-60..60).map(move |i| FRAC_PI_2 * f64::from(n) * (1.0 + f64::from(i) * 2e-8))),
        );
        angles.extend([0.0, 1e-300, 1e-9, 7.0]);
        angles.extend((0..50_000).map(|i| TAU * rng.uniform(i)));
        angles.extend((0..=64).map(|step| FRAC_PI_2 * f64::from(step) / 64.0));
        (logarithms, angles)
    }

    fn singles() -> Vec<f32> {
        (1..0x7f80_0000).step_by(8191).chain(0x3f7f_ff00..0x3f80_0100).map(f32::from_bits).collect()
    }

    /// Distance in units of the last place of `exact`.
    fn ulps(found: f64, exact: f64) -> f64 {
        let ulp = f64::from_bits(exact.abs().to_bits() + 1) - exact.abs();
        (found - exact).abs() / ulp
    }

    /// By the standard library, whose functions have another origin and are within an ulp themselves.
    #[test]
    fn some_floats_of_logarithms_and_cosine_are_near() {
        let (logarithms, angles) = doubles();
        for x in logarithms {
            assert!(ulps(log(x), x.ln()) <= 1.0, "log {x:e}: {:e}, {:e}", log(x), x.ln());
        }
        for x in angles {
            assert!(ulps(cos(x), x.cos()) <= 1.0, "cos {x:e}: {:e}, {:e}", cos(x), x.cos());
        }
        for x in singles() {
            let exact = f64::from(x).ln();
            let ulp = f64::from(f32::from_bits((exact.abs() as f32).to_bits() + 1)) - f64::from(exact.abs() as f32);
            let error = (f64::from(logf(x)) - exact).abs();
            assert!(error < ulp, "logf {x:e}: {:e}, {exact:e}", logf(x));
        }
    }

    /// The bits of `libm` 0.2.16, on every CPU.
    #[test]
    fn some_floats_of_logarithms_and_cosine_have_their_bits() {
        let hash = |bits: &mut dyn Iterator<Item = u64>| bits.fold(0, |state, bits| splitmix64(state ^ bits));
        let (logarithms, angles) = doubles();
        let found = [
            hash(&mut logarithms.iter().map(|&x| log(x).to_bits())),
            hash(&mut angles.iter().map(|&x| cos(x).to_bits())),
            hash(&mut singles().iter().map(|&x| logf(x).to_bits().into())),
        ];
        assert_eq!(found, [0x57a9_e5f4_0b43_272a, 0x4592_76c3_b0b3_6696, 0x81e6_0f62_fd4f_fccb], "found {found:#x?}");
    }

    #[test]
    fn the_ends_of_their_ranges() {
        assert_eq!(
            (log(0.0), log(-0.0), log(1.0), log(f64::INFINITY)),
            (f64::NEG_INFINITY, f64::NEG_INFINITY, 0.0, f64::INFINITY)
        );
        assert_eq!((logf(0.0), logf(1.0), logf(f32::INFINITY)), (f32::NEG_INFINITY, 0.0, f32::INFINITY));
        assert!(log(-1.0).is_nan() && log(f64::NAN).is_nan() && logf(-1.0).is_nan() && logf(f32::NAN).is_nan());
        assert_eq!((cos(0.0), cos(-1.0)), (1.0, cos(1.0)));
    }
}
