//! The polynomials over all floats: how far they are from the functions that they stand for, and that every instruction
//! set gives the same bits.
//!
//! A test run takes one float in some thousands. All 2^32 of them, on all cores:
//! `cargo test --release -p sorcen-runtime --lib every_float -- --ignored --nocapture`
//! (2026-11-26, two cores of a Zen 4, 144 s: within the bounds below, and the same bits, for every float on AVX-512 VNNI,
//! AVX2, SSE2 and scalar.)

use core::{
    f64::consts::SQRT_2,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::kernels::{dispatch, scalar::Scalar, suite::functions, Kernels};
extern crate std;
use std::{format, println, string::String, thread, vec::Vec};

/// The largest error, and where it was.
#[derive(Clone, Copy, Default)]
struct Worst {
    error: f64,
    at: f32,
}

impl Worst {
    fn see(&mut self, error: f64, at: f32) {
        if error > self.error || error.is_nan() {
            *self = Self { error, at };
        }
    }
}

/// Relative errors of `exp` and `exp2`, the absolute error of `gelu` near zero and, over |x|, far from it.
const NAMES: [&str; 4] =
    ["exp, relative, -87..=88", "exp2, relative, -20..=0.5", "gelu, |x| < 8", "gelu over |x|, |x| >= 8"];
/// What `math` documents.
const BOUNDS: [f64; 4] = [3e-7, 4e-6, 5e-6, 1e-6];

#[test]
fn some_floats() {
    sweep(4099);
}

#[test]
#[ignore = "minutes; see the top of the file"]
fn every_float() {
    sweep(1);
}

/// Every `step`th bit pattern.
fn sweep(step: u64) {
    const CHUNK: u64 = 1 << 12;
    let next = AtomicU64::new(0);
    let work = || {
        let mut worst = [Worst::default(); 4];
        loop {
            let first = next.fetch_add(CHUNK * step, Ordering::Relaxed);
            if first >= 1 << 32 {
                return worst;
            }
            let patterns = (first..(first + CHUNK * step).min(1 << 32)).step_by(step as usize);
            check(&patterns.map(|bits| f32::from_bits(bits as u32)).collect::<Vec<_>>(), &mut worst);
        }
    };
    let threads = thread::available_parallelism().map_or(1, |n| n.get());
    let found: Vec<[Worst; 4]> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut wrong = Vec::<String>::new();
    for (i, (name, bound)) in NAMES.into_iter().zip(BOUNDS).enumerate() {
        let mut worst = Worst::default();
        found.iter().for_each(|found| worst.see(found[i].error, found[i].at));
        let line = format!("{name}: {:.3e} at {:e} (bound {bound:e})", worst.error, worst.at);
        println!("{line}");
        if worst.error.is_nan() || worst.error >= bound {
            wrong.push(line);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
    let kernels: Vec<_> = Kernels::available().map(|k| k.name()).collect();
    println!("the same bits for every {step}th float: {}", kernels.join(" "));
}

/// Some floats on all kernels.
fn check(x: &[f32], worst: &mut [Worst; 4]) {
    let [gelu, exp, exp2] = [0, 1, 2].map(|which| {
        let expected = functions(Scalar, x, which);
        for k in Kernels::available() {
            let found = dispatch!(k, k => functions(k, x, which));
            for ((x, expected), found) in x.iter().zip(&expected).zip(&found) {
                // Which NaN it is, IEEE leaves open.
                let both_nan = f32::from_bits(*expected).is_nan() && f32::from_bits(*found).is_nan();
                assert!(
                    expected == found || both_nan,
                    "{}, function {which}, {x:e}: {expected:#x} {found:#x}",
                    k.name()
                );
            }
        }
        expected
    });
    let relative = |bits: u32, exact: f64| (f64::from(f32::from_bits(bits)) / exact - 1.0).abs();
    for (i, &x) in x.iter().enumerate() {
        let d = f64::from(x);
        if (-87.0..=88.0).contains(&x) {
            worst[0].see(relative(exp[i], libm::exp(d)), x);
        }
        if (-20.0..=0.5).contains(&x) {
            worst[1].see(relative(exp2[i], libm::exp2(d)), x);
        }
        let gelu = f64::from(f32::from_bits(gelu[i]));
        if x.abs() < 8.0 {
            worst[2].see((gelu - 0.5 * d * (1.0 + libm::erf(d / SQRT_2))).abs(), x);
        } else if x.is_finite() {
            worst[3].see((gelu - d.max(0.0)).abs() / d.abs(), x);
        }
    }
}
