//! The tests that every instruction set passes: the same numbers as [`super::scalar`], to the bit.
//!
//! A file pastes them with `suite!(expression)`: what detection
//! returned. A kernel that this CPU lacks is reported, not passed over in silence; `tests/same_bits.rs` asserts which
//! have to be there.

use super::{
    floats::{self, Affine, Floats},
    scalar::Scalar,
    step, Activation, Epilogue, Int4, Kernel, Rows, Weights,
};
use crate::{
    layers::{norm::Norm, softmax::softmax},
    math,
    pack::Vector,
    quant::{
        self,
        int4::{self, Order},
        Layout, ACTIVATION_BYTES,
    },
    rng::{Rng, Stream},
};
use proptest::prelude::*;
extern crate std;
use std::{ops::Range, vec, vec::Vec};

/// Pastes the suite.
macro_rules! suite {
    ($kernel:expr) => {
        #[test]
        fn products_are_exact() {
            $crate::kernels::suite::present($kernel, $crate::kernels::suite::products);
        }

        #[test]
        fn extremes_are_exact() {
            $crate::kernels::suite::present($kernel, $crate::kernels::suite::extremes);
        }

        #[test]
        fn any_product_is_exact() {
            $crate::kernels::suite::present($kernel, $crate::kernels::suite::any_product);
        }

        #[test]
        fn int4_products_are_exact() {
            $crate::kernels::suite::present($kernel, $crate::kernels::suite::int4_products);
        }

        #[test]
        fn any_int4_product_is_exact() {
            $crate::kernels::suite::present($kernel, $crate::kernels::suite::any_int4_product);
        }

        #[test]
        fn any_mixture_is_exact() {
            $crate::kernels::suite::present($kernel, $crate::kernels::suite::any_mixture);
        }

        #[test]
        fn mixtures_are_exact() {
            $crate::kernels::suite::present($kernel, $crate::kernels::suite::mixtures);
        }

        #[test]
        fn floats_are_the_same_bits() {
            $crate::kernels::suite::present($kernel, $crate::kernels::suite::float_functions);
        }

        #[test]
        fn any_floats_are_the_same_bits() {
            $crate::kernels::suite::present($kernel, $crate::kernels::suite::any_floats);
        }
    };
}
pub(crate) use suite;

/// Runs a test, unless this CPU lacks the kernel.
pub(crate) fn present<K: Kernel>(kernel: Option<K>, test: fn(K)) {
    match kernel {
        Some(kernel) => test(kernel),
        None => std::eprintln!("not run: this CPU has no {}", K::NAME),
    }
}

fn bytes(seed: u64, count: usize) -> Vec<i8> {
    let rng = Rng::new(seed, Stream::Init, 0);
    // A third are extremes.
    let byte = |i: usize| match rng.bits(i as u64) % 6 {
        0 => -127,
        1 => 127,
        _ => (rng.uniform(i as u64) * 255.0) as i32 as i16 as i8,
    };
    (0..count).map(byte).map(|b| if b == -128 { -127 } else { b }).collect()
}

/// A product to compute.
#[derive(Clone, Debug)]
struct Product {
    rows: usize,
    outputs: usize,
    cols: usize,
    /// The outputs that are wanted.
    range: Range<usize>,
    with_bias: bool,
    activation: Activation,
    /// How far the slices start from where an allocation does, in elements.
    offset: usize,
}

impl Product {
    fn new((rows, outputs, cols): (usize, usize, usize)) -> Self {
        let (with_bias, activation) = (false, Activation::Store);
        Self { rows, outputs, cols, range: 0..outputs, with_bias, activation, offset: 0 }
    }

    /// What an epilogue with all its parts makes of weights `[outputs, cols]` and activations `[rows, cols]`.
    fn on<K: Kernel>(&self, k: K, w: &[i8], x: &[i8]) -> Vec<f32> {
        let Self { outputs, cols, offset, .. } = *self;
        let layout = K::LAYOUT;
        let mut values = vec![0; offset + layout.elements(outputs, cols)];
        for n in 0..outputs {
            for c in 0..cols {
                values[offset + layout.index(n, c, cols)] = w[n * cols + c];
            }
        }
        let weights = Weights { values: &values[offset..], layout, cols };
        let store =
            |x: &[f32], out: &mut [u8]| k.store(x, 1.0, &mut out[..layout.padded_cols(cols) * ACTIVATION_BYTES]);
        self.run(x, store, |rows, epilogue| k.gemm(weights, rows, self.range.clone(), epilogue))
    }

    fn check<K: Kernel>(&self, k: K, w: &[i8], x: &[i8]) {
        assert!(self.on(Scalar, w, x) == self.on(k, w, x), "{}: {self:?}", K::NAME);
    }

    /// The same for int4 weights `[outputs, cols]`, -8 to 7, and multipliers `[outputs, groups]`.
    fn on_int4<K: Kernel>(&self, k: K, w: &[i8], multipliers: &[u8], x: &[i8]) -> Vec<f32> {
        let Self { outputs, cols, offset, .. } = *self;
        let (order, groups) = (Order::beside(K::LAYOUT), int4::groups(cols));
        let weight_bytes = order.weight_bytes(outputs, cols);
        let mut values = vec![0; offset + weight_bytes];
        let mut arranged = vec![0; offset + order.bytes(outputs, cols) - weight_bytes];
        for n in 0..outputs {
            (0..cols).for_each(|c| order.set(&mut values[offset..], n, c, cols, w[n * cols + c]));
            (0..groups).for_each(|g| arranged[offset + order.multiplier(n, g, groups)] = multipliers[n * groups + g]);
        }
        let weights = Int4 { values: &values[offset..], multipliers: &arranged[offset..], order, groups };
        let bytes = int4::padded_cols(cols) * ACTIVATION_BYTES;
        let store = |x: &[f32], out: &mut [u8]| k.store_int4(x, 1.0, &mut out[..bytes]);
        self.run(x, store, |rows, epilogue| k.gemm_int4(weights, rows, self.range.clone(), epilogue))
    }

    fn check_int4<K: Kernel>(&self, k: K, w: &[i8], multipliers: &[u8], x: &[i8]) {
        let expected = self.on_int4(Scalar, w, multipliers, x);
        assert!(expected == self.on_int4(k, w, multipliers, x), "{}: int4 {self:?}", K::NAME);
    }

    /// Stores activations `[rows, cols]` and multiplies them; all of the output.
    fn run(
        &self,
        x: &[i8],
        store: impl Fn(&[f32], &mut [u8]),
        multiply: impl FnOnce(Rows<'_>, &mut Epilogue<'_>),
    ) -> Vec<f32> {
        let Self { rows, outputs, cols, offset, .. } = *self;
        let stride = cols.next_multiple_of(Layout::MAX_KT) * ACTIVATION_BYTES;
        // Whatever the buffer held before must not matter. Kernels may widen activations: even addresses.
        let mut memory = vec![0x55; rows * stride + 2 * offset + 1];
        let even = memory.as_ptr().align_offset(2);
        let quantised = &mut memory[even + 2 * offset..][..rows * stride];
        for (row, out) in x.chunks_exact(cols).zip(quantised.chunks_exact_mut(stride)) {
            let row: Vec<f32> = row.iter().map(|&q| f32::from(q)).collect();
            store(&row, out);
        }
        let numbers = |seed, count: usize| -> Vec<f32> {
            let rng = Rng::new(seed, Stream::Init, 1);
            (0..count).map(|i| (rng.uniform(i as u64) as f32 - 0.5) * 0.01).collect()
        };
        let (scales, bias, row_scales) = (numbers(3, offset + outputs), numbers(4, offset + outputs), numbers(5, rows));
        let stride_out = self.range.len() + 3;
        let mut out = numbers(6, offset + rows * stride_out);
        let mut epilogue = Epilogue {
            scales: &scales[offset..],
            bias: self.with_bias.then_some(Vector::F32(&bias[offset..])),
            row_scales: &row_scales,
            outputs: self.range.clone(),
            out: &mut out[offset..],
            stride: stride_out,
            activation: self.activation,
        };
        multiply(Rows { values: quantised, stride, count: rows }, &mut epilogue);
        out
    }
}

/// [`Kernel::gemm`] on odd and even sizes, whole and partial ranges of outputs.
pub(crate) fn products<K: Kernel>(k: K) {
    let activations = [Activation::Store, Activation::Add, Activation::Gelu];
    let mut case = 0;
    for rows in [1, 2, 3, 5, 6, 7, 12, 13] {
        for (outputs, cols) in [(1, 1), (16, 4), (17, 5), (30, 64), (64, 63), (80, 33), (129, 70), (48, 768)] {
            for range in [0..outputs, outputs / 3..outputs, outputs / 4..outputs - outputs / 4] {
                case += 1;
                let (with_bias, activation) = (case % 2 == 0, activations[case % 3]);
                let product = Product { range, with_bias, activation, ..Product::new((rows, outputs, cols)) };
                product.check(k, &bytes(1, outputs * cols), &bytes(2, rows * cols));
            }
        }
    }
}

/// [`Kernel::gemm`] where sums of products are as large as they get: activations are -127 to 127, weights of a pack
/// too, and no kernel minds -128.
pub(crate) fn extremes<K: Kernel>(k: K) {
    for (rows, outputs, cols) in [(1, 16, 4), (3, 17, 7), (9, 20, 8), (4, 33, 771), (13, 16, 4096)] {
        for w in [-128, -127, 127] {
            for x in [-127, 127] {
                let flip = |x: i8, i: usize, period: usize| {
                    if (i / period).is_multiple_of(2) {
                        x
                    } else {
                        x.saturating_neg()
                    }
                };
                for period in [1, 2, 4, 5, usize::MAX] {
                    let weights: Vec<i8> = (0..outputs * cols).map(|i| flip(w, i % cols, period)).collect();
                    let x: Vec<i8> = (0..rows * cols).map(|i| flip(x, i % cols, period)).collect();
                    Product::new((rows, outputs, cols)).check(k, &weights, &x);
                    Product::new((rows, outputs, cols)).check(k, &vec![w; outputs * cols], &x);
                }
            }
        }
    }
}

/// [`Kernel::gemm`] on whatever sizes, numbers and addresses.
pub(crate) fn any_product<K: Kernel>(k: K) {
    let activation = prop_oneof![Just(Activation::Store), Just(Activation::Add), Just(Activation::Gelu)];
    let sizes = (1usize..=19, 1usize..=90, 1usize..=150);
    let range = (0.0..1.0f64, 0.0..1.0f64);
    proptest!(ProptestConfig::with_cases(96), |(
        shape in sizes, range in range, with_bias: bool, activation in activation, offset in 0usize..17, seed: u64,
    )| {
        let (rows, outputs, cols) = shape;
        let start = (range.0 * outputs as f64) as usize;
        let end = start + 1 + (range.1 * (outputs - start - 1) as f64) as usize;
        let product = Product { range: start..end, with_bias, activation, offset, ..Product::new(shape) };
        product.check(k, &bytes(seed, outputs * cols), &bytes(!seed, rows * cols));
    });
}

/// Half-bytes and multipliers of int4 weights; a third of each are extremes.
fn half_bytes(seed: u64, outputs: usize, cols: usize) -> (Vec<i8>, Vec<u8>) {
    let halves = bytes(seed, outputs * cols).into_iter().map(|b| if b == -127 { -8 } else { b >> 4 });
    let multipliers = bytes(seed ^ 5, outputs * int4::groups(cols)).into_iter().map(|b| match b {
        -127 => 0,
        127 => 255,
        b => b as u8,
    });
    (halves.collect(), multipliers.collect())
}

/// [`Kernel::gemm_int4`] on odd and even sizes, whole and partial ranges of outputs, and where sums are as large as they
/// get.
pub(crate) fn int4_products<K: Kernel>(k: K) {
    let activations = [Activation::Store, Activation::Add, Activation::Gelu];
    let mut case = 0;
    for rows in [1, 2, 3, 5, 6, 7, 11, 12, 13, 25] {
        for (outputs, cols) in [(1, 1), (16, 32), (17, 31), (30, 64), (48, 33), (80, 768), (33, 100)] {
            for range in [0..outputs, outputs / 3..outputs, outputs / 4..outputs - outputs / 4] {
                case += 1;
                let (with_bias, activation) = (case % 2 == 0, activations[case % 3]);
                let product = Product { range, with_bias, activation, ..Product::new((rows, outputs, cols)) };
                let (w, multipliers) = half_bytes(1, outputs, cols);
                product.check_int4(k, &w, &multipliers, &bytes(2, rows * cols));
            }
        }
    }
    for (rows, outputs, cols) in [(3, 17, 7), (7, 16, 96), (13, 16, 8192)] {
        let multipliers = vec![255; outputs * int4::groups(cols)];
        for (w, x) in [(-8, -127), (-8, 127), (7, -127), (7, 127)] {
            for period in [1, 2, 4, 5, usize::MAX] {
                let x: Vec<i8> = (0..rows * cols).map(|i| if i % cols / period % 2 == 0 { x } else { -x }).collect();
                let product = Product::new((rows, outputs, cols));
                product.check_int4(k, &vec![w; outputs * cols], &multipliers, &x);
                // The weights with the same signs: nothing cancels.
                let signs = (0..outputs * cols).map(|i| if i % cols / period % 2 == 0 { w } else { (-w).min(7) });
                product.check_int4(k, &signs.collect::<Vec<_>>(), &multipliers, &x);
            }
        }
    }
}

/// [`Kernel::gemm_int4`] on whatever sizes, numbers and addresses.
pub(crate) fn any_int4_product<K: Kernel>(k: K) {
    let activation = prop_oneof![Just(Activation::Store), Just(Activation::Add), Just(Activation::Gelu)];
    let sizes = (1usize..=19, 1usize..=90, 1usize..=150);
    let range = (0.0..1.0f64, 0.0..1.0f64);
    proptest!(ProptestConfig::with_cases(96), |(
        shape in sizes, range in range, with_bias: bool, activation in activation, offset in 0usize..17, seed: u64,
    )| {
        let (rows, outputs, cols) = shape;
        let start = (range.0 * outputs as f64) as usize;
        let end = start + 1 + (range.1 * (outputs - start - 1) as f64) as usize;
        let product = Product { range: start..end, with_bias, activation, offset, ..Product::new(shape) };
        let (w, multipliers) = half_bytes(seed, outputs, cols);
        product.check_int4(k, &w, &multipliers, &bytes(!seed, rows * cols));
    });
}

/// [`Kernel::mix`] of weights `[rows, 2 * pairs]` and values `[pairs, width, 2]`, from an offset of so many elements.
fn mixture<K: Kernel>(k: K, rows: usize, pairs: usize, width: usize, offset: usize, seed: u64) -> Vec<f32> {
    let v: Vec<i16> = bytes(seed, offset + pairs * 2 * width).into_iter().map(i16::from).collect();
    let rng = Rng::new(!seed, Stream::Init, 0);
    // A quarter are the largest.
    let p =
        |i: usize| if rng.bits(i as u64).is_multiple_of(4) { 4095 } else { (rng.bits(i as u64) >> 8) as i16 & 4095 };
    let p: Vec<i16> = (0..offset + rows * 2 * pairs).map(p).collect();
    let scales: Vec<f32> = (0..width).map(|d| 0.1 + d as f32).collect();
    let row_scales: Vec<f32> = (0..rows).map(|r| 1e-6 + r as f32 * 1e-5).collect();
    let mut out = vec![0.5; rows * (width + 1)];
    let mut epilogue = Epilogue {
        scales: &scales,
        bias: None,
        row_scales: &row_scales,
        outputs: 0..width,
        out: &mut out,
        stride: width + 1,
        activation: Activation::Store,
    };
    k.mix(&p[offset..], pairs, &v[offset..], width, &mut epilogue);
    out
}

/// [`Kernel::mix`] on odd and even sizes.
pub(crate) fn mixtures<K: Kernel>(k: K) {
    for rows in [1, 4, 6, 11] {
        for (pairs, width) in [(1, 1), (2, 16), (9, 17), (33, 32), (129, 64), (5, 80), (8, 12)] {
            let expected = mixture(Scalar, rows, pairs, width, 0, 7);
            assert!(expected == mixture(k, rows, pairs, width, 0, 7), "{}: {rows} {pairs} {width}", K::NAME);
        }
    }
}

/// [`Kernel::mix`] on whatever sizes, numbers and addresses.
pub(crate) fn any_mixture<K: Kernel>(k: K) {
    proptest!(ProptestConfig::with_cases(96), |(
        rows in 1usize..=13, pairs in 1usize..=70, width in 1usize..=70, offset in 0usize..17, seed: u64,
    )| {
        let expected = mixture(Scalar, rows, pairs, width, offset, seed);
        prop_assert!(expected == mixture(k, rows, pairs, width, offset, seed), "{}", K::NAME);
    });
}

/// The float steps, compiled for this instruction set.
pub(crate) fn float_functions<K: Kernel>(k: K) {
    // Every 997th pattern of a float from 2^-20 to 2^10 in magnitude, both signs.
    let (low, high) = ((2f32.powi(-20)).to_bits(), (2f32.powi(10)).to_bits());
    let x: Vec<f32> = (low..high).step_by(997).flat_map(|b| [f32::from_bits(b), -f32::from_bits(b)]).collect();
    for which in 0..3 {
        assert!(functions(Scalar, &x, which) == functions(k, &x, which), "{}: {which}", K::NAME);
    }
    for count in [1, 2, 15, 16, 17, 33, 64, 257, 768] {
        let x: Vec<f32> = x.iter().skip(count * 31).step_by(101).copied().take(count).collect();
        assert!(row_steps(Scalar, &x) == row_steps(k, &x), "{}: {count}", K::NAME);
    }
}

step! {
    /// The bits of GELU (0), `e^x` (1) or `2^x` of every number.
    pub(crate) fn functions(k, x: &[f32], which: usize) -> Vec<u32> {
        match which {
            0 => x.iter().map(|&x| math::gelu(x).to_bits()).collect(),
            1 => x.iter().map(|&x| math::exp(x).to_bits()).collect(),
            _ => x.iter().map(|&x| math::exp2(x).to_bits()).collect(),
        }
    }
}

/// What the steps over a row gave.
type RowSteps = (Vec<f32>, Vec<f32>, Vec<i16>, i32, Vec<i8>, f32);

step! {
    fn row_steps(k, x: &[f32]) -> RowSteps {
        let (weight, bias): (Vec<f32>, Vec<f32>) = x.iter().map(|x| (0.5 + x * 1e-3, 0.1 - x)).unzip();
        let norm = Norm { weight: Vector::F32(&weight), bias: Vector::F32(&bias), eps: 1e-6 };
        let mut normed = vec![0.0; x.len()];
        norm.apply(x, &mut normed);
        let mut soft = normed.clone();
        softmax(&mut soft);
        let mut weights = vec![0i16; x.len() + 1];
        let sum = floats::integer_weights(&normed, floats::largest(&normed), &mut weights);
        let mut q = vec![0; x.len()];
        let scale = quant::quantise_row(&normed, &mut q);
        (normed, soft, weights, sum, q, scale)
    }
}

/// The steps of [`floats`] on numbers of whatever kind, as bits; keys in order of row.
fn float_steps<K: Kernel>(k: K, x: &[f32], count: usize, width: usize, offset: usize) -> Vec<Vec<i32>> {
    // What is not a number has a sign, but none that means anything.
    let bits = |x: &[f32]| x.iter().map(|x| if x.is_nan() { -1 } else { x.to_bits() as i32 }).collect::<Vec<_>>();
    // Rows as of a head between others, the last one as long as it has to be.
    let stride = width + 3;
    let rows = Floats { data: &x[offset..][..(count - 1) * stride + width], stride, width };
    let mut row = vec![7.0; 2 * width];
    let layout = K::LAYOUT;
    let mut bytes = vec![7; layout.padded_cols(width) * ACTIVATION_BYTES];
    let (mut keys, mut scales) = (vec![7; layout.elements(count, width)], vec![7.0; count]);
    k.quantise_keys(rows, &mut row, &mut bytes, &mut keys, &mut scales);
    let mut in_order = vec![0; count * width];
    for (i, key) in in_order.iter_mut().enumerate() {
        *key = core::mem::take(&mut keys[layout.index(i / width, i % width, width)]).into();
    }
    assert!(keys.iter().all(|key| *key == 0), "{}: padding", K::NAME);
    let (mut values, mut channels) = (vec![7i16; count.next_multiple_of(2) * width], vec![7.0; width]);
    k.quantise_values(rows, &mut row, &mut values, &mut channels);
    let (mut weights, mut inverses) = (vec![7i16; count * (width + 2)], vec![7.0; count]);
    k.weigh(width, &x[offset..][..count * stride], &mut weights, &mut inverses);
    let four = &x[offset..][..4 * width];
    let affine = Affine { weight: &x[..width], bias: &x[1..][..width], eps: 1e-6 };
    let mut normed = vec![7.0; four.len()];
    let maxima = k.normalise::<4>(affine, four, &mut normed);
    let largest = k.largest_magnitudes::<4>(four);
    let mut stored = vec![7; layout.padded_cols(width) * ACTIVATION_BYTES];
    k.store(&four[..width], quant::scale_of(largest[0]).0, &mut stored);
    let wide = |x: &[i16]| x.iter().map(|x| i32::from(*x)).collect();
    let floats = [&scales[..], &channels, &inverses, &normed, &maxima, &largest].map(bits);
    [in_order, wide(&values), wide(&weights)].into_iter().chain(floats).collect()
}

/// [`floats`] on whatever sizes and addresses, infinities and no numbers among the numbers.
pub(crate) fn any_floats<K: Kernel>(k: K) {
    let width = prop_oneof![1usize..=90, (1usize..=9).prop_map(|n| 16 * n)];
    proptest!(ProptestConfig::with_cases(192), |(
        count in 4usize..=40, width in width, offset in 0usize..17, special in 0u64..8, seed: u64,
    )| {
        let rng = Rng::new(seed, Stream::Init, 2);
        let number = |i: usize| match rng.bits(i as u64) % 1000 {
            0 if special == 1 => f32::NAN,
            1 if special == 2 => f32::INFINITY,
            2 if special == 3 => f32::MIN,
            _ if special == 4 => 0.0,
            _ if special == 5 => 1e-38,
            _ => ((rng.uniform(i as u64) - 0.5) * 30.0) as f32,
        };
        let x: Vec<f32> = (0..offset + count * (width + 3)).map(number).collect();
        let (expected, found) = (float_steps(Scalar, &x, count, width, offset), float_steps(k, &x, count, width, offset));
        for (step, (expected, found)) in expected.iter().zip(&found).enumerate() {
            prop_assert!(expected == found, "{}: step {step}: {expected:?} {found:?}", K::NAME);
        }
    });
}
