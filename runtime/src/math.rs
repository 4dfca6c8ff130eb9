//! Portable elementary functions: plain IEEE additions, multiplications and divisions in a fixed
//! order, so that every CPU gives the same bits and compilers can vectorise the loops around them.

/// Adding and subtracting 1.5·2^23 rounds to the nearest integer, ties to even.
const ROUND: f32 = 12_582_912.0;

/// Nearest integer, ties to even, of a number in ±2^21; others give some integer, never a panic.
#[inline(always)]
pub(crate) fn round_to_i32(x: f32) -> i32 {
    (x + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32
}

/// `e^x`, relative error below 3e-7 for x in -87..88; smaller x count as -87, larger as 88.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    // x = n ln 2 + r; ln 2 in two parts, the first exact in few bits (Cephes).
    let n = (x * core::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 0.166_666_65;
    p = p * r + 0.5;
    let power = f32::from_bits(((round_to_i32(n) + 127) << 23) as u32);
    ((p * r) * r + r + 1.0) * power
}

/// `erf(x)` to 6e-7 (Abramowitz and Stegun 7.1.26).
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let a = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * a);
    let mut p = 1.061_405_4;
    p = p * t - 1.453_152;
    p = p * t + 1.421_413_8;
    p = p * t - 0.284_496_72;
    p = p * t + 0.254_829_6;
    let y = 1.0 - (p * t) * exp(-a * a);
    y.copysign(x)
}

/// The exact (erf) GELU.
#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    (0.5 * x) * (1.0 + erf(x * core::f32::consts::FRAC_1_SQRT_2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_to_libm() {
        let mut worst = (0.0f64, 0.0f64, 0.0f64);
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            let e = (f64::from(exp(x)) / libm::exp(f64::from(x)) - 1.0).abs();
            worst.0 = worst.0.max(e);
        }
        for i in -600_000..600_000 {
            let x = i as f32 * 1e-5;
            worst.1 = worst.1.max((f64::from(erf(x)) - libm::erf(f64::from(x))).abs());
            let d = f64::from(x);
            let exact = 0.5 * d * (1.0 + libm::erf(d / core::f64::consts::SQRT_2));
            worst.2 = worst.2.max((f64::from(gelu(x)) - exact).abs());
        }
        assert!(worst.0 < 3e-7 && worst.1 < 6e-7 && worst.2 < 1e-6, "{worst:?}");
    }

    #[test]
    fn rounding_and_extremes() {
        assert_eq!([0.5, 1.5, 2.5, -0.5, -1.5, 126.9].map(round_to_i32), [0, 2, 2, 0, -2, 127]);
        assert!(exp(f32::NEG_INFINITY) < 1e-37 && exp(f32::INFINITY).is_finite());
        let _ = (exp(f32::NAN), erf(f32::NAN), round_to_i32(f32::NAN), round_to_i32(f32::INFINITY));
    }
}
