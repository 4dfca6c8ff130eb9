//! The only home of `unsafe`, and the inner loops: one file an instruction set.
//!
//! # How an instruction set is added
//!
//! A file holds a unit struct that proves the CPU can run it, with [`Kernel`] implemented on it:
//!
//! 1. [`Kernel::run`] compiles what it is handed for the instruction set. The float steps (LayerNorm,
//!    softmax, GELU, quantise) are written once, in [`floats`], `layers` and `math`, over [`LANES`] independent
//!    lanes and without fused multiply-add; `run` makes the compiler use wide registers for them.
//! 2. [`Kernel::gemm`]: quantised rows times int8 weights, the exact sums handed to an [`Epilogue`].
//!    [`Kernel::LAYOUT`] is the order of weights that it wants, [`Kernel::store`] the form of a row.
//!    Weights in another order go through [`scalar::Scalar`] instead, inside `run`.
//! 3. [`Kernel::gemm_int4`]: the same with int4 weights, in panels where the int8 weights are ([`Order::beside`]).
//! 4. [`Kernel::mix`]: attention weights (`i16`) times values (`i16` in pairs of tokens).
//! 5. The steps of [`floats`], where the compiler does not do well.
//!
//! Then a variant in [`Kernels`] (and in its `detect`), and `suite!(…)` at the end of the file: the
//! tests that every instruction set has to pass against [`scalar`], the specification. `tests/same_bits.rs` lists which
//! have to be there on which CPU.
//! Every one of these functions has a portable default, so that a new file can start with one.
//!
//! # Which there are
//!
//! | name | instructions | chosen |
//! |---|---|---|
//! | `avx512vnni`, `avxvnni`, `avx2` | x86-64, 64, 32 and 16 products at a time | at run time, without std |
//! | `sse2` | 8 products; every x86-64 | always there |
//! | `i8mm`, `dotprod` | AArch64 `smmla` and `sdot`, 32 and 16 products | at run time with the feature `std`, else as the program is compiled |
//! | `neon` | 16 products in two instructions; every AArch64 | always there |
//! | `simd128` | WebAssembly, 8 products | as the program is compiled: `-Ctarget-feature=+simd128` |
//! | `helium`, `thumb` | Cortex-M | as the program is compiled, instead of `scalar` |
//! | `scalar` | plain Rust | always there |
//!
//! All but the microcontrollers' want weights in panels of 16 outputs by 4 inputs (`panels`), so that one pack is fast
//! on all of them. The microcontrollers' want rows, of int4 too (`thumb_int4`, `helium_int4`).
//!
//! # Forcing one
//!
//! `RUSTFLAGS='--cfg sorcen_kernels="scalar"'` (or any other [`Kernels::name`]) leaves the detection
//! only that choice; a CPU that lacks it falls back to scalar, and [`Kernels::name`] says so.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_floats;
#[cfg(target_arch = "x86_64")]
mod avx512_int4;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avxvnni;
pub(crate) mod bytes;
#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
pub(crate) mod dotprod;
mod epilogue;
#[cfg(test)]
pub(crate) mod fallback;
pub(crate) mod floats;
#[cfg(sorcen_mve)]
pub(crate) mod helium;
#[cfg(sorcen_mve)]
mod helium_int4;
#[cfg(sorcen_mve)]
mod helium_short;
#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
pub(crate) mod i8mm;
#[cfg(any(
    all(target_arch = "x86_64", target_feature = "sse2"),
    all(target_arch = "wasm32", target_feature = "simd128")
))]
mod madd;
#[cfg(feature = "std")]
pub(crate) mod map;
#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
pub(crate) mod neon;
#[cfg(any(all(target_arch = "aarch64", target_feature = "neon"), target_arch = "x86_64"))]
mod nibbles;
#[cfg(any(
    all(target_arch = "aarch64", target_feature = "neon"),
    target_arch = "x86_64",
    all(target_arch = "wasm32", target_feature = "simd128")
))]
mod panels;
pub(crate) mod scalar;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
pub(crate) mod simd128;
#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))] // not there in kernels' soft-float targets
pub(crate) mod sse2;
#[cfg(test)]
pub(crate) mod suite;
#[cfg(sorcen_dsp)]
pub(crate) mod thumb;
#[cfg(sorcen_dsp)]
mod thumb_int4;
#[cfg(all(sorcen_dsp, target_abi = "eabihf"))]
mod thumb_short;
#[cfg(sorcen_dsp)]
mod thumb_strip;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use core::ops::Range;

pub(crate) use epilogue::{Activation, Epilogue};
use floats::{Affine, Floats};

use crate::quant::{
    self,
    int4::{self, Order},
    Layout,
};

/// Lanes of a float reduction, and outputs that an [`Epilogue`] takes at once.
pub(crate) const LANES: usize = 16;

/// int8 weights `[rows, cols]` in some order.
#[derive(Clone, Copy)]
pub(crate) struct Weights<'a> {
    pub values: &'a [i8],
    pub layout: Layout,
    pub cols: usize,
}

/// int4 weights (see [`crate::quant::int4`]).
#[derive(Clone, Copy)]
pub(crate) struct Int4<'a> {
    pub values: &'a [u8],
    pub multipliers: &'a [u8],
    pub order: Order,
    /// Groups of a row.
    pub groups: usize,
}

impl Int4<'_> {
    /// A group of a row: its integers in order of column, and its multiplier.
    #[inline(always)]
    pub fn group(&self, row: usize, group: usize) -> ([i8; int4::GROUP], i32) {
        let multiplier = self.multipliers.get(self.order.multiplier(row, group, self.groups));
        (self.order.group(self.values, row, group, self.groups), multiplier.copied().unwrap_or(0).into())
    }
}

/// Quantised rows in the form that a kernel's [`Kernel::store`] or [`Kernel::store_int4`] gave them, `stride` bytes
/// apart.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub values: &'a [u8],
    pub stride: usize,
    pub count: usize,
}

impl<'a> Rows<'a> {
    /// The values of kernels that store 16 bits an activation. A scratch keeps rows at multiples of 64; anything else is
    /// a mistake here, and must not pass for a product of nothing.
    #[inline(always)]
    #[allow(dead_code)] // not every instruction set asks
    pub fn of_16_bits(&self) -> &'a [i16] {
        bytes::as_i16(self.values).expect("rows of activations are aligned")
    }
}

/// What an instruction set provides. See the [module](self).
pub(crate) trait Kernel: Copy + Sync + Send {
    /// Name on the command line and in [`Kernels::name`].
    const NAME: &'static str;

    /// The order of weights that [`gemm`](Self::gemm) takes (attention keys are put into it too).
    const LAYOUT: Layout = Layout::ROW_MAJOR;

    /// Whether steps over rows take several side by side: for CPUs that do more at once than one row asks for.
    const SIDE_BY_SIDE: bool = false;

    /// For benchmarks: multiply-accumulates of `n` rounds with registers alone; `None` where not written.
    fn peak(self, _n: usize) -> Option<usize> {
        None
    }

    /// Runs a step compiled for this instruction set; see [`step`]. As it stands: for that of the program,
    /// and once for all its callers, since flash is small.
    #[inline(never)]
    fn run<S: Step<A>, A>(self, arguments: A) -> S::Output {
        S::run(self, arguments)
    }

    /// Rounds `x * inverse` into a row of activations, zero past the end of `x`.
    ///
    /// `out` is [`Layout::padded_cols`] of [`LAYOUT`](Self::LAYOUT) times [`quant::ACTIVATION_BYTES`] long.
    #[inline(always)]
    fn store(self, x: &[f32], inverse: f32, out: &mut [u8]) {
        quant::store_bytes(x, inverse, out);
    }

    /// Products of rows of activations with the weights of `outputs`; every sum goes to `epilogue`.
    #[inline(always)]
    fn gemm(self, weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
        portable_gemm(self, weights, rows, outputs, epilogue);
    }

    /// [`store`](Self::store) for int4 weights in the order [`beside`](Order::beside) [`LAYOUT`](Self::LAYOUT).
    ///
    /// `out` is [`int4::padded_cols`] times [`quant::ACTIVATION_BYTES`] long.
    #[inline(always)]
    fn store_int4(self, x: &[f32], inverse: f32, out: &mut [u8]) {
        quant::store_bytes(x, inverse, &mut out[..int4::padded_cols(x.len())]);
    }

    /// [`gemm`](Self::gemm) for int4 weights in that order.
    #[inline(always)]
    fn gemm_int4(self, weights: Int4<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
        portable_gemm_int4(self, weights, rows, outputs, epilogue);
    }

    /// `sum_j p[r, j] * v[j, d]` for every row `r` of `p` `[rows, 2 * pairs]` and every `d < width`,
    /// `v` being `[pairs, width, 2]`; every sum goes to `epilogue` as output `d`.
    #[inline(always)]
    fn mix(self, p: &[i16], pairs: usize, v: &[i16], width: usize, epilogue: &mut Epilogue<'_>) {
        portable_mix(self, p, pairs, v, width, epilogue);
    }

    /// LayerNorm of `N` rows `x` `[N, D]` into `out` `[N, D]`, step by step for all: one alone would wait for every sum.
    /// The largest magnitude of each.
    #[inline(always)]
    fn normalise<const N: usize>(self, affine: Affine<'_>, x: &[f32], out: &mut [f32]) -> [f32; N] {
        floats::normalise(affine, x, out)
    }

    /// The largest magnitude of each of `N` rows `x` `[N, D]`.
    #[inline(always)]
    fn largest_magnitudes<const N: usize>(self, x: &[f32]) -> [f32; N] {
        floats::largest_magnitudes(x)
    }

    /// Rows quantised for [`gemm`](Self::gemm): as [`store`](Self::store) does it, `stride` bytes apart, by the largest
    /// magnitude of each; `scales` `[rows]`.
    #[inline(always)]
    fn put_rows(self, rows: Floats<'_>, out: &mut [u8], stride: usize, scales: &mut [f32]) {
        floats::put_rows(self, rows, out, stride, scales);
    }

    /// Keys less their mean, quantised a row, into `out` in the order [`LAYOUT`](Self::LAYOUT), the rest of its last
    /// panel zero; `scales` `[keys]`. `row` `[2, width]` and `bytes` (as long as a row of activations) are overwritten.
    #[inline(always)]
    fn quantise_keys(self, keys: Floats<'_>, row: &mut [f32], bytes: &mut [u8], out: &mut [i8], scales: &mut [f32]) {
        floats::quantise_keys(self, keys, row, bytes, out, scales);
    }

    /// Values quantised a channel, in pairs of tokens: `out` `[pairs, width, 2]`, the last one zero where there is an odd
    /// number; `scales` `[width]`. `row` `[2, width]` is overwritten.
    #[inline(always)]
    fn quantise_values(self, values: Floats<'_>, row: &mut [f32], out: &mut [i16], scales: &mut [f32]) {
        floats::quantise_values(self, values, row, out, scales);
    }

    /// Attention weights of rows of `count` scores, as [`integer_weights`](floats::integer_weights), and the inverses of
    /// their sums. Rows of scores and of weights may have room for more.
    #[inline(always)]
    fn weigh(self, count: usize, scores: &[f32], weights: &mut [i16], inverses: &mut [f32]) {
        floats::weigh(self, count, scores, weights, inverses);
    }
}

/// A function of some arguments, to be compiled for any instruction set; see [`step`].
pub(crate) trait Step<A> {
    type Output;
    fn run<K: Kernel>(k: K, arguments: A) -> Self::Output;
}

/// `step! { fn name(k, argument: Type, …) -> Output { … } }`: a function `name(k, argument, …)` whose
/// body is compiled for the instruction set of the kernel `k`, with all that it inlines.
///
/// A closure would read better, but nothing obliges the compiler to inline one, and outside of
/// [`Kernel::run`] it would be compiled for the least of CPUs.
macro_rules! step {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($k:ident, $($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)? $body:block) => {
        $(#[$meta])*
        #[inline(always)]
        #[allow(clippy::too_many_arguments)]
        $vis fn $name<K: $crate::kernels::Kernel>($k: K, $($arg: $type),*) $(-> $out)? {
            struct Body;
            #[allow(unused_parens)]
            impl $crate::kernels::Step<($($type,)*)> for Body {
                type Output = ($($out)?);
                #[inline(always)]
                #[allow(unused_variables)]
                fn run<K: $crate::kernels::Kernel>($k: K, ($($arg,)*): ($($type,)*)) -> Self::Output $body
            }
            $k.run::<Body, _>(($($arg,)*))
        }
    };
}
pub(crate) use step;

step! {
    /// [`scalar::gemm`], compiled for `k`: for weights in an order that its own kernel does not take.
    pub(crate) fn portable_gemm(
        k, weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>,
    ) {
        #[cfg(test)]
        fallback::count();
        scalar::gemm(weights, rows, outputs, epilogue);
    }
}

step! {
    /// [`scalar::gemm_int4`], compiled for `k`.
    pub(crate) fn portable_gemm_int4(
        k, weights: Int4<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>,
    ) {
        #[cfg(test)]
        fallback::count();
        scalar::gemm_int4(weights, rows, outputs, epilogue);
    }
}

step! {
    /// [`scalar::mix`], compiled for `k`.
    pub(crate) fn portable_mix(k, p: &[i16], pairs: usize, v: &[i16], width: usize, epilogue: &mut Epilogue<'_>) {
        #[cfg(test)]
        fallback::count();
        scalar::mix(p, pairs, v, width, epilogue);
    }
}

macro_rules! kernels {
    ($($(#[$attribute:meta])* $variant:ident($type:ty) $detect:expr),* $(,)?) => {
        /// The inner loops that a model runs on, all with the same results.
        #[derive(Clone, Copy, Debug)]
        pub struct Kernels(Choice);

        #[derive(Clone, Copy, Debug)]
        pub(crate) enum Choice {
            $($(#[$attribute])* $variant($type),)*
        }

        impl Kernels {
            /// All that this CPU can run, the fastest first.
            pub fn available() -> impl Iterator<Item = Self> {
                let mut all = heapless::Vec::<Self, 8>::new();
                $($(#[$attribute])* {
                    if let Some(kernel) = $detect {
                        // There are fewer variants than places.
                        let _ = all.push(Self(Choice::$variant(kernel)));
                    }
                })*
                all.into_iter()
            }

            /// The name: `scalar`, `avx2`, `avx512vnni`, …
            pub const fn name(&self) -> &'static str {
                match self.0 {
                    $($(#[$attribute])* Choice::$variant(_) => <$type as Kernel>::NAME,)*
                }
            }

            /// The order of weights that these kernels multiply fastest.
            pub const fn layout(&self) -> Layout {
                match self.0 {
                    $($(#[$attribute])* Choice::$variant(_) => <$type as Kernel>::LAYOUT,)*
                }
            }

            pub(crate) const fn choice(self) -> Choice {
                self.0
            }
        }

        /// `dispatch!(kernels, k => body)`: the body, compiled once for each instruction set.
        macro_rules! dispatch {
            ($kernels:expr, $k:ident => $body:expr) => {
                match $kernels.choice() {
                    $($(#[$attribute])* $crate::kernels::Choice::$variant($k) => $body,)*
                }
            };
        }
        pub(crate) use dispatch;
    };
}

kernels! {
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(avx512::Avx512Vnni) avx512::Avx512Vnni::detect(),
    #[cfg(target_arch = "x86_64")]
    AvxVnni(avxvnni::AvxVnni) avxvnni::AvxVnni::detect(),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2) avx2::Avx2::detect(),
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
    Sse2(sse2::Sse2) Some(sse2::Sse2),
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    Simd128(simd128::Simd128) Some(simd128::Simd128),
    #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
    I8mm(i8mm::I8mm) i8mm::I8mm::detect(),
    #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
    DotProd(dotprod::DotProd) dotprod::DotProd::detect(),
    #[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
    Neon(neon::Neon) Some(neon::Neon),
    #[cfg(sorcen_mve)]
    Helium(helium::Helium) Some(helium::Helium::COMPILED),
    #[cfg(sorcen_dsp)]
    Thumb(thumb::Thumb) Some(thumb::Thumb::COMPILED),
    #[cfg(not(any(sorcen_dsp, sorcen_mve)))] // a microcontroller's flash holds one set of kernels
    Scalar(scalar::Scalar) Some(scalar::Scalar),
}

impl Kernels {
    /// The plain loops that specify all others.
    #[cfg(not(any(sorcen_dsp, sorcen_mve)))]
    pub const SCALAR: Self = Self(Choice::Scalar(scalar::Scalar));

    /// What runs wherever this was compiled for.
    const PORTABLE: Self = {
        #[cfg(sorcen_mve)]
        let choice = Choice::Helium(helium::Helium::COMPILED);
        #[cfg(sorcen_dsp)]
        let choice = Choice::Thumb(thumb::Thumb::COMPILED);
        #[cfg(not(any(sorcen_dsp, sorcen_mve)))]
        let choice = Choice::Scalar(scalar::Scalar);
        Self(choice)
    };

    /// The fastest that this CPU can run, or the one that was forced by `--cfg sorcen_kernels="…"`.
    pub fn detect() -> Self {
        Self::choose(FORCED)
    }

    /// The fastest, or the one of a name; what runs everywhere where there is none of that name.
    fn choose(forced: Option<&str>) -> Self {
        Self::available().find(|k| forced.is_none_or(|name| k.name() == name)).unwrap_or(Self::PORTABLE)
    }
}

impl Kernels {
    /// For benchmarks: the int8 multiply-accumulates a second that registers alone allow, by a clock
    /// that tells the seconds of some work. `None` where that was not written.
    #[doc(hidden)]
    pub fn peak_macs_per_second(self, mut seconds: impl FnMut(&mut dyn FnMut()) -> f64) -> Option<f64> {
        dispatch!(self, k => {
            let mut best: Option<f64> = None;
            for _ in 0..15 {
                let mut macs = None;
                let time = seconds(&mut || macs = k.peak(200_000));
                best = macs.map(|macs| (macs as f64 / time).max(best.unwrap_or(0.0)));
            }
            best
        })
    }
}

/// The name given by `--cfg sorcen_kernels="…"`.
const FORCED: Option<&str> = {
    macro_rules! forced {
        ($($name:literal)*) => {
            $(if cfg!(sorcen_kernels = $name) { Some($name) } else)* { None }
        };
    }
    forced!("scalar" "sse2" "avx2" "avxvnni" "avx512vnni" "neon" "dotprod" "i8mm" "simd128" "thumb" "helium")
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_kernel_can_be_forced() {
        for kernel in Kernels::available() {
            assert_eq!(Kernels::choose(Some(kernel.name())).name(), kernel.name());
        }
        assert_eq!(Kernels::choose(Some("thumb")).name(), "scalar"); // no CPU that runs this has it
        let fastest = Kernels::available().next().map(|k| k.name());
        assert_eq!(Some(Kernels::choose(None).name()), fastest);
        assert_eq!(Kernels::detect().name(), FORCED.or(fastest).unwrap_or_default());
    }
}
