//! The tests that every instruction set passes: the same numbers as [`super::scalar`], to the bit.
//!
//! A file pastes them with `suite!(expression)`: what detection
//! returned. A kernel that this CPU lacks is reported, not passed over in silence.

use super::{scalar::Scalar, step, Activation, Epilogue, Kernel, Rows, Weights};
use crate::{
    layers::{norm::Norm, softmax},
    math,
    pack::Vector,
    quant::{self, Layout, ACTIVATION_BYTES},
    rng::{Rng, Stream},
};
extern crate std;
use std::{vec, vec::Vec};

/// Pastes the suite.
macro_rules! suite {
    ($kernel:expr) => {
        #[test]
        fn products_are_exact() {
            $crate::kernels::suite::present($kernel, $crate::kernels::suite::products);
        }

        #[test]
        fn mixtures_are_exact() {
            $crate::kernels::suite::present($kernel, $crate::kernels::suite::mixtures);
        }

        #[test]
        fn floats_are_the_same_bits() {
            $crate::kernels::suite::present($kernel, $crate::kernels::suite::floats);
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

/// What an epilogue with all its parts makes of a product.
fn product<K: Kernel>(
    k: K,
    (rows, outputs, cols): (usize, usize, usize),
    range: core::ops::Range<usize>,
    with_bias: bool,
    activation: Activation,
) -> Vec<f32> {
    let w = bytes(1, outputs * cols);
    let layout = K::LAYOUT;
    let mut values = vec![0; layout.elements(outputs, cols)];
    for n in 0..outputs {
        for c in 0..cols {
            values[layout.index(n, c, cols)] = w[n * cols + c];
        }
    }
    let stride = cols.next_multiple_of(Layout::MAX_KT) * ACTIVATION_BYTES;
    // Whatever the buffer held before must not matter.
    let mut x = vec![0x55; rows * stride];
    for (row, out) in bytes(2, rows * cols).chunks_exact(cols).zip(x.chunks_exact_mut(stride)) {
        let row: Vec<f32> = row.iter().map(|&q| f32::from(q)).collect();
        k.store(&row, 1.0, &mut out[..layout.padded_cols(cols) * ACTIVATION_BYTES]);
    }
    let numbers = |seed, count: usize| -> Vec<f32> {
        let rng = Rng::new(seed, Stream::Init, 1);
        (0..count).map(|i| (rng.uniform(i as u64) as f32 - 0.5) * 0.01).collect()
    };
    let (scales, bias, row_scales) = (numbers(3, outputs), numbers(4, outputs), numbers(5, rows));
    let stride_out = range.len() + 3;
    let mut out = numbers(6, rows * stride_out);
    let weights = Weights { values: &values, layout, cols };
    let mut epilogue = Epilogue {
        scales: &scales,
        bias: with_bias.then_some(Vector::F32(&bias)),
        row_scales: &row_scales,
        outputs: range.clone(),
        out: &mut out,
        stride: stride_out,
        activation,
    };
    k.gemm(weights, Rows { values: &x, stride, count: rows }, range, &mut epilogue);
    out
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
                let shape = (rows, outputs, cols);
                let expected = product(Scalar, shape, range.clone(), with_bias, activation);
                let found = product(k, shape, range.clone(), with_bias, activation);
                assert!(expected == found, "{}: {shape:?} {range:?} {activation:?}", K::NAME);
            }
        }
    }
}

/// [`Kernel::mix`] on odd and even sizes.
pub(crate) fn mixtures<K: Kernel>(k: K) {
    for rows in [1, 4, 6, 11] {
        for (pairs, width) in [(1, 1), (2, 16), (9, 17), (33, 32), (129, 64), (5, 80), (8, 12)] {
            let v: Vec<i16> = bytes(7, pairs * 2 * width).into_iter().map(i16::from).collect();
            let rng = Rng::new(8, Stream::Init, 0);
            let p: Vec<i16> = (0..rows * 2 * pairs).map(|i| (rng.bits(i as u64) % 4096) as i16).collect();
            let scales: Vec<f32> = (0..width).map(|d| 0.1 + d as f32).collect();
            let row_scales: Vec<f32> = (0..rows).map(|r| 1e-6 + r as f32 * 1e-5).collect();
            let run = |mix: &dyn Fn(&mut Epilogue<'_>)| {
                let mut out = vec![0.5; rows * (width + 1)];
                mix(&mut Epilogue {
                    scales: &scales,
                    bias: None,
                    row_scales: &row_scales,
                    outputs: 0..width,
                    out: &mut out,
                    stride: width + 1,
                    activation: Activation::Store,
                });
                out
            };
            let expected = run(&|e| Scalar.mix(&p, pairs, &v, width, e));
            let found = run(&|e| k.mix(&p, pairs, &v, width, e));
            assert!(expected == found, "{}: {rows} {pairs} {width}", K::NAME);
        }
    }
}

/// The float steps, compiled for this instruction set.
pub(crate) fn floats<K: Kernel>(k: K) {
    // Every 97th pattern of a float from 2^-20 to 2^10 in magnitude, both signs.
    let (low, high) = ((2f32.powi(-20)).to_bits(), (2f32.powi(10)).to_bits());
    let x: Vec<f32> = (low..high).step_by(97).flat_map(|b| [f32::from_bits(b), -f32::from_bits(b)]).collect();
    for which in 0..3 {
        assert!(functions(Scalar, &x, which) == functions(k, &x, which), "{}: {which}", K::NAME);
    }
    for count in [1, 2, 15, 16, 17, 33, 64, 257, 768] {
        let x: Vec<f32> = x.iter().skip(count * 31).step_by(1009).copied().take(count).collect();
        assert!(row_steps(Scalar, &x) == row_steps(k, &x), "{}: {count}", K::NAME);
    }
}

step! {
    fn functions(k, x: &[f32], which: usize) -> Vec<u32> {
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
        softmax::softmax(&mut soft);
        let mut weights = vec![0i16; x.len() + 1];
        let sum = softmax::integer_weights(&normed, &mut weights);
        let mut q = vec![0; x.len()];
        let scale = quant::quantise_row(&normed, &mut q);
        (normed, soft, weights, sum, q, scale)
    }
}
