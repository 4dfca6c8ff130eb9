//! Portable elementary functions: plain IEEE additions, multiplications and divisions in a fixed
//! order, so that every CPU gives the same bits and compilers can vectorise the loops around them.

pub(crate) mod fdlibm;

/// Adding and subtracting 1.5·2^23 rounds to the nearest integer, ties to even.
pub(crate) const ROUND: f32 = 12_582_912.0;

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

/// `2^x` for x in -20..=0.5, relative error below 4e-6; smaller x count as -20.
#[inline(always)]
pub(crate) fn exp2(x: f32) -> f32 {
    let x = if x > EXP2_LEAST { x } else { EXP2_LEAST };
    let n = x + ROUND;
    let r = x - (n - ROUND); // -0.5..=0.5
    let mut p = EXP2[0];
    for c in &EXP2[1..] {
        p = p * r + c;
    }
    f32::from_bits(p.to_bits().wrapping_add(n.to_bits().wrapping_sub(ROUND.to_bits()) << 23))
}

/// The polynomial of [`exp2`], the highest power first.
pub(crate) const EXP2: [f32; 5] = [0.009_570_101, 0.055_917_86, 0.240_247_44, 0.693_121_8, 0.999_999_3];

/// The least exponent of [`exp2`].
pub(crate) const EXP2_LEAST: f32 = -20.0;

/// The (erf) GELU `x Φ(x)` within 5e-6 for |x| < 8, and within 1e-6 |x| beyond.
///
/// `Φ(x) - 1/2` is odd: x times a polynomial in x², fitted on |x| <= 4.75 and held beyond.
#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    let y = if x < GELU_END { x } else { GELU_END };
    let y = if y > -GELU_END { y } else { -GELU_END };
    let t = y * y * GELU_SCALE - 1.0; // -1..=1: a polynomial in x² itself would lose four digits
    let mut p = GELU[0];
    for c in &GELU[1..] {
        p = p * t + c;
    }
    x * (0.5 + y * p)
}

/// The polynomial of [`gelu`], the highest power first.
pub(crate) const GELU: [f32; 11] = [
    0.001_280_266_7,
    -0.003_771_044_3,
    0.005_015_969_3,
    -0.007_168_802_4,
    0.013_405_63,
    -0.021_649_567,
    0.030_402_854,
    -0.040_568_225,
    0.053_235_26,
    -0.073_667_55,
    0.148_748_3,
];

/// Where the polynomial ends, and what takes x² there to 2.
pub(crate) const GELU_END: f32 = 4.75;
pub(crate) const GELU_SCALE: f32 = 2.0 / (GELU_END * GELU_END);

#[cfg(test)]
mod sweep;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_and_extremes() {
        assert_eq!([0.5, 1.5, 2.5, -0.5, -1.5, 126.9].map(round_to_i32), [0, 2, 2, 0, -2, 127]);
        assert!(exp(f32::NEG_INFINITY) < 1e-37 && exp(f32::INFINITY).is_finite());
        assert!(exp2(f32::NEG_INFINITY) < 1e-6 && exp2(f32::NAN) < 1e-6);
        let _ = (exp(f32::NAN), gelu(f32::NAN), round_to_i32(f32::NAN), round_to_i32(f32::INFINITY));
    }
}
