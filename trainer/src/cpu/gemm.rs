//! Matrix products over slices, in safe code: packed panels and one register-blocked kernel.
//!
//! Sized for transformer blocks of small models, one image at a time: everything stays in cache.

use pulp::{Arch, Simd, WithSimd};

/// Rows of a tile.
const MR: usize = 6;
/// Columns of a tile: two vectors of eight, or four of four, ….
const NR: usize = 16;

/// A matrix view: element `(i, j)` is `data[i * rows + j * cols]`.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
}

impl<'a> View<'a> {
    /// Rows of `stride` numbers, row-major.
    pub fn new(data: &'a [f32], stride: usize) -> Self {
        Self { data, rows: stride, cols: 1 }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, ..self }
    }
}

/// The right factor `[k, n]`, packed into panels of [`NR`] columns, the last filled up with zeros.
#[derive(Clone, Debug, Default)]
pub struct Packed {
    k: usize,
    n: usize,
    panels: Vec<f32>,
}

impl Packed {
    /// Packs a `k × n` matrix.
    pub fn new(matrix: View<'_>, k: usize, n: usize) -> Self {
        let mut packed = Self::default();
        packed.pack(matrix, k, n);
        packed
    }

    /// Packs another matrix into the same memory.
    pub fn pack(&mut self, matrix: View<'_>, k: usize, n: usize) {
        (self.k, self.n) = (k, n);
        self.panels.resize(n.div_ceil(NR) * k * NR, 0.0);
        for (panel, start) in self.panels.chunks_exact_mut(k * NR).zip((0..n).step_by(NR)) {
            let width = NR.min(n - start);
            if matrix.cols == 1 {
                for (row, out) in panel.chunks_exact_mut(NR).enumerate() {
                    let from = row * matrix.rows + start;
                    match matrix.data[from..from + width].as_chunks::<NR>().0 {
                        [whole] => out.copy_from_slice(whole),
                        _ => {
                            out[..width].copy_from_slice(&matrix.data[from..from + width]);
                            out[width..].fill(0.0);
                        }
                    }
                }
            } else {
                panel.fill(0.0);
                for column in 0..width {
                    let source = matrix.data[(start + column) * matrix.cols..].iter().step_by(matrix.rows);
                    for (out, value) in panel[column..].iter_mut().step_by(NR).zip(source.take(k)) {
                        *out = *value;
                    }
                }
            }
        }
    }
}

/// What happens to the product.
#[derive(Clone, Copy, Debug)]
pub enum Then<'a> {
    /// `c = a b`
    Store,
    /// `c = a b + bias`, one number a column.
    Bias(&'a [f32]),
    /// `c += a b`
    Add,
}

/// `c = a b`, or as `then` says: `a` is `m × k`, `b` `k × n`, `c` has rows of `stride` numbers.
pub fn gemm(a: View<'_>, m: usize, b: &Packed, c: &mut [f32], stride: usize, then: Then<'_>) {
    Arch::new().dispatch(Gemm { a, m, b, c, stride, then });
}

struct Gemm<'a> {
    a: View<'a>,
    m: usize,
    b: &'a Packed,
    c: &'a mut [f32],
    stride: usize,
    then: Then<'a>,
}

impl WithSimd for Gemm<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { a, m, b, c, stride, then } = self;
        let k = b.k;
        let mut strip = [[0.0; MR]; 256];
        let mut long_strip = Vec::new();
        let strip = if k <= strip.len() {
            &mut strip[..k]
        } else {
            long_strip.resize(k, [0.0; MR]);
            &mut long_strip[..]
        };
        for top in (0..m).step_by(MR) {
            let height = MR.min(m - top);
            pack_strip(a, top, height, strip);
            for (panel, left) in b.panels.chunks_exact(k * NR).zip((0..b.n).step_by(NR)) {
                let width = NR.min(b.n - left);
                let tile = tile(simd, strip, panel);
                for (row, tile) in tile.iter().enumerate().take(height) {
                    let start = (top + row) * stride + left;
                    let out = &mut c[start..start + width];
                    match (then, out.as_chunks_mut::<NR>().0) {
                        // Whole rows of a tile: sizes known to the compiler.
                        (Then::Store, [out]) => *out = *tile,
                        (Then::Add, [out]) => (0..NR).for_each(|i| out[i] += tile[i]),
                        (Then::Store, _) => out.copy_from_slice(&tile[..width]),
                        (Then::Add, _) => out.iter_mut().zip(tile).for_each(|(c, t)| *c += t),
                        (Then::Bias(bias), _) => {
                            out.iter_mut().zip(tile).zip(&bias[left..]).for_each(|((c, t), b)| *c = t + b);
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn pack_strip(a: View<'_>, top: usize, height: usize, strip: &mut [[f32; MR]]) {
    if height < MR {
        strip.fill([0.0; MR]);
    }
    if a.rows == 1 {
        // A transposed left factor: the rows of a strip lie side by side.
        for (k, out) in strip.iter_mut().enumerate() {
            let from = k * a.cols + top;
            match a.data[from..from + height].as_chunks::<MR>().0 {
                [whole] => *out = *whole,
                _ => out[..height].copy_from_slice(&a.data[from..from + height]),
            }
        }
    } else {
        for row in 0..height {
            let source = a.data[(top + row) * a.rows..].iter().step_by(a.cols);
            strip.iter_mut().zip(source).for_each(|(out, value)| out[row] = *value);
        }
    }
}

/// One tile of the product: all of `k`, in registers.
#[inline(always)]
fn tile<S: Simd>(simd: S, strip: &[[f32; MR]], panel: &[f32]) -> [[f32; NR]; MR] {
    match S::F32_LANES {
        8 => lanes::<S, 2>(simd, strip, panel),
        16 => lanes::<S, 1>(simd, strip, panel),
        4 => lanes::<S, 4>(simd, strip, panel),
        _ => lanes::<S, NR>(simd, strip, panel),
    }
}

#[inline(always)]
fn lanes<S: Simd, const V: usize>(simd: S, strip: &[[f32; MR]], panel: &[f32]) -> [[f32; NR]; MR] {
    let mut sums = [[simd.splat_f32s(0.0); V]; MR];
    let (vectors, _) = S::as_simd_f32s(panel);
    for (a, b) in strip.iter().zip(vectors.as_chunks::<V>().0) {
        for row in 0..MR {
            let a = simd.splat_f32s(a[row]);
            for v in 0..V {
                sums[row][v] = simd.mul_add_e_f32s(a, b[v], sums[row][v]);
            }
        }
    }
    let mut out = [[0.0; NR]; MR];
    for (out, sums) in out.iter_mut().zip(&sums) {
        for (out, sum) in S::as_mut_simd_f32s(out).0.iter_mut().zip(sums) {
            *out = *sum;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of no pattern.
    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 997) as f32 / 997.0 - 0.5).collect()
    }

    #[test]
    fn agrees_with_the_definition() {
        for (m, k, n) in [(1, 1, 1), (6, 3, 16), (7, 5, 17), (33, 64, 48), (65, 300, 20), (12, 12, 12)] {
            let (a, b, start) = (numbers(m * k, 1), numbers(k * n, 2), numbers(m * n, 3));
            let bias = numbers(n, 4);
            // Both factors as they are and transposed, by copying them into the other order.
            let at: Vec<f32> = (0..k * m).map(|i| a[(i % m) * k + i / m]).collect();
            let bt: Vec<f32> = (0..n * k).map(|i| b[(i % k) * n + i / k]).collect();
            for (a_view, b_view) in
                [(View::new(&a, k), View::new(&b, n)), (View::new(&at, m).t(), View::new(&bt, k).t())]
            {
                let packed = Packed::new(b_view, k, n);
                for then in [Then::Store, Then::Bias(&bias), Then::Add] {
                    let mut c = start.clone();
                    gemm(a_view, m, &packed, &mut c, n, then);
                    for (i, found) in c.iter().enumerate() {
                        let product: f32 = (0..k).map(|l| a[i / n * k + l] * b[l * n + i % n]).sum();
                        let expected = match then {
                            Then::Store => product,
                            Then::Bias(bias) => product + bias[i % n],
                            Then::Add => start[i] + product,
                        };
                        assert!((found - expected).abs() < 1e-5, "{m}×{k}×{n} {then:?} at {i}: {found}, {expected}");
                    }
                }
            }
        }
    }
}
