//! Elementwise and row functions over slices, written so that they vectorise inside [`wide`].

use pulp::Arch;

/// Runs `f` compiled for the widest vectors of this machine. For that, all of it has to be inlined: the closure
/// is marked so where it is written, and it loops by `for` (a closure inside `for_each` is a function of its own).
#[inline(always)]
pub fn wide<R>(f: impl FnOnce() -> R) -> R {
    Arch::new().dispatch(f)
}

/// `e^x` to about one unit in the last place, 0 below -87.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to an integer, kept in the low bits
    let x = x.clamp(-87.3, 88.3);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let k = shifted - ROUND;
    let r = x - k * 0.693_359_4 - k * -2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 0.166_666_65;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    p * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

/// `GELU(x)` (exact, not the tanh form) and its derivative, to 1e-7: erf after Abramowitz and Stegun 7.1.26.
#[inline(always)]
pub fn gelu(x: f32) -> (f32, f32) {
    let e = exp(-0.5 * x * x);
    let t = 1.0 / (1.0 + 0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2 * x.abs());
    let p = 1.061_405_4;
    let p = p * t - 1.453_152_1;
    let p = p * t + 1.421_413_8;
    let p = p * t - 0.284_496_72;
    let p = p * t + 0.254_829_6;
    let tail = 0.5 * p * t * e; // 1 - Φ(|x|)
    let phi = if x >= 0.0 { 1.0 - tail } else { tail };
    (x * phi, phi + x * e * 0.398_942_3)
}

/// Lanes of a sum: fixed, so that sums are the same on every machine.
const LANES: usize = 16;

/// `Σ f(a_i, b_i)`, in a fixed order.
#[inline(always)]
pub fn sum2(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] += f(a[i], b[i]);
        }
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *lane += f(*a, *b);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// `Σ f(a_i)`.
#[inline(always)]
pub fn sum(a: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    sum2(a, a, |a, _| f(a))
}

/// The largest of `a`.
#[inline(always)]
pub fn max(a: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = a.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// `a += b`, elementwise.
#[inline(always)]
pub fn add(a: &mut [f32], b: &[f32]) {
    for (a, b) in a.iter_mut().zip(b) {
        *a += b;
    }
}

/// Adds the rows of `rows` `[n, out.len()]` to `out`.
#[inline(always)]
pub fn add_rows(rows: &[f32], out: &mut [f32]) {
    for row in rows.chunks_exact(out.len()) {
        add(out, row);
    }
}

/// `a *= b`, elementwise.
#[inline(always)]
pub fn multiply(a: &mut [f32], b: &[f32]) {
    for (a, b) in a.iter_mut().zip(b) {
        *a *= b;
    }
}

/// Mean and `1 / sqrt(variance + eps)` of a row.
#[inline(always)]
fn moments(row: &[f32], eps: f32) -> (f32, f32) {
    let scale = 1.0 / row.len() as f32;
    let mean = sum(row, |x| x) * scale;
    let variance = sum(row, |x| (x - mean) * (x - mean)) * scale;
    (mean, 1.0 / (variance + eps).sqrt())
}

/// LayerNorm of rows: `y = (x - mean) / std · weight + bias`.
#[inline(always)]
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
    for (x, y) in x.chunks_exact(weight.len()).zip(y.chunks_exact_mut(weight.len())) {
        let (mean, scale) = moments(x, eps);
        for (((y, x), weight), bias) in y.iter_mut().zip(x).zip(weight).zip(bias) {
            *y = (x - mean) * scale * weight + bias;
        }
    }
}

/// Backward of [`layer_norm`]: adds to `dx`, `dweight` and `dbias`.
#[inline(always)]
pub fn layer_norm_backward(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    dweight: &mut [f32],
    dbias: &mut [f32],
) {
    let width = weight.len();
    let mut g = vec![0.0; width];
    let mut unit = vec![0.0; width];
    let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
    for ((x, dy), dx) in rows {
        let (mean, scale) = moments(x, eps);
        for i in 0..width {
            unit[i] = (x[i] - mean) * scale;
            g[i] = dy[i] * weight[i];
            dweight[i] += dy[i] * unit[i];
            dbias[i] += dy[i];
        }
        let mean_g = sum(&g, |g| g) / width as f32;
        let mean_gu = sum2(&g, &unit, |g, u| g * u) / width as f32;
        for i in 0..width {
            dx[i] += scale * (g[i] - mean_g - unit[i] * mean_gu);
        }
    }
}

/// Softmax of `scale · row`, in place; returns the logarithm of the sum of exponentials, before scaling by it.
#[inline(always)]
pub fn softmax(row: &mut [f32], scale: f32) -> f32 {
    let top = max(row) * scale;
    for x in row.iter_mut() {
        *x = exp(*x * scale - top);
    }
    let total = sum(row, |x| x);
    let inverse = 1.0 / total;
    for x in row.iter_mut() {
        *x *= inverse;
    }
    top + total.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_and_gelu() {
        for i in -2000..2000 {
            let x = i as f32 * 0.01;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 3e-7, "exp {x}");
            let y = f64::from(x);
            let phi = 0.5 * (1.0 + libm_erf(y / 2f64.sqrt()));
            let (value, slope) = gelu(x);
            assert!((f64::from(value) - y * phi).abs() < 1e-6, "gelu {x}: {value} against {}", y * phi);
            let expected = phi + y * (-0.5 * y * y).exp() / std::f64::consts::TAU.sqrt();
            assert!((f64::from(slope) - expected).abs() < 1e-6, "gelu' {x}");
        }
        assert_eq!(exp(-1000.0), exp(-87.3));
    }

    /// erf by its Taylor series and, far out, 1.
    fn libm_erf(x: f64) -> f64 {
        if x.abs() > 5.0 {
            return x.signum();
        }
        let (mut term, mut total) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            total += term / f64::from(2 * n + 1);
        }
        total * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn softmax_and_sums() {
        let mut row: Vec<f32> = (0..37).map(|i| (i as f32 * 0.7).sin()).collect();
        let exact: Vec<f64> = row.iter().map(|&x| f64::from(2.0 * x).exp()).collect();
        let total: f64 = exact.iter().sum();
        let log = softmax(&mut row, 2.0);
        assert!((f64::from(log) - total.ln()).abs() < 1e-5);
        for (found, exact) in row.iter().zip(&exact) {
            assert!((f64::from(*found) - exact / total).abs() < 1e-6);
        }
        assert_eq!(max(&[1.0, 5.0, -2.0]), 5.0);
        assert_eq!(sum(&[1.0; 19], |x| x), 19.0);
    }
}
