//! Cortex-M with the DSP extension (M4, M7, M33): two 16-bit products an instruction.
//!
//! The suite needs std, which these cores lack: `firmware-examples/examples/kernels.rs` is its counterpart, and every
//! other example there has to equal the host to the bit.

use core::{
    arch::{asm, naked_asm},
    mem::MaybeUninit,
    ops::Range,
};

use super::{
    bytes::{as_i16, as_i16_mut},
    Activation, Epilogue, Kernel, Rows, Weights, LANES,
};
use crate::{math::round_to_i32, pack::Vector};

/// Inputs that one round of the inner loop takes.
const BLOCK: usize = 16;

/// Proof that the program is compiled for a core with the DSP extension.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thumb(());

impl Thumb {
    /// This is code for such a core alone: detection is the compiler's.
    pub const COMPILED: Self = Self(());
}

impl Kernel for Thumb {
    const NAME: &'static str = "thumb";

    /// 16 bits an activation, so that the inner loop need not widen them; in whole blocks, four at a time
    /// as 0, 2, 1, 3: the order in which `sxtb16` widens the bytes of the weights.
    #[inline(always)]
    fn store(self, x: &[f32], inverse: f32, out: &mut [u8]) {
        let (q, padding) = as_i16_mut(out).split_at_mut(x.len());
        let whole = x.len() / BLOCK * BLOCK;
        let ((x, x_rest), (q, q_rest)) = (x.split_at(whole), q.split_at_mut(whole));
        for (q, x) in q.chunks_exact_mut(4).zip(x.chunks_exact(4)) {
            for (q, i) in q.iter_mut().zip([0, 2, 1, 3]) {
                *q = round_to_i32(x[i] * inverse) as i16;
            }
        }
        for (q, x) in q_rest.iter_mut().zip(x_rest) {
            *q = round_to_i32(*x * inverse) as i16;
        }
        padding.fill(0);
    }

    #[inline(always)]
    fn gemm(self, weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
        gemm(weights, rows, outputs, epilogue);
    }

    #[inline(always)]
    fn mix(self, p: &[i16], pairs: usize, v: &[i16], width: usize, epilogue: &mut Epilogue<'_>) {
        mix(p, pairs, v, width, epilogue);
    }
}

#[inline(always)]
fn gemm(weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
    #[cfg(target_abi = "eabihf")] // goes back to floats in registers
    {
        let multiply = match (epilogue.bias, epilogue.activation) {
            (None, Activation::Store) => multiply_scale,
            (Some(Vector::F32(_)), Activation::Store | Activation::Gelu) => multiply_store,
            (Some(Vector::F32(_)), Activation::Add) => multiply_add,
            _ => return long(weights, rows, outputs, epilogue),
        };
        if weights.cols.is_multiple_of(BLOCK) && weights.cols <= WIDE && outputs.len() >= 2 && rows.count > 0 {
            return short(multiply, weights, rows, outputs, epilogue);
        }
    }
    long(weights, rows, outputs, epilogue);
}

/// Rows of any length: sums of some outputs, then floats.
#[inline(never)]
fn long(weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
    // Scratch keeps rows of activations at even addresses.
    let Some(x) = as_i16(rows.values) else { return };
    let (cols, stride) = (weights.cols, rows.stride / 2);
    let mut sums = [[0; LANES]; 2];
    for start in outputs.clone().step_by(LANES) {
        let count = LANES.min(outputs.end - start);
        let w = &weights.values[start * cols..][..count * cols];
        for row in (0..rows.count).step_by(2) {
            let x0 = &x[row * stride..][..cols];
            let x1 = if row + 1 < rows.count { &x[(row + 1) * stride..][..cols] } else { x0 };
            products([x0, x1], w, count, &mut sums);
            for (row, sums) in (row..rows.count).zip(&sums) {
                epilogue.put_slice(row, start, &sums[..count]);
            }
        }
    }
}

/// Two rows times `count` rows of weights: the first `count` of `sums`.
#[inline(always)]
fn products(x: [&[i16]; 2], w: &[i8], count: usize, sums: &mut [[i32; LANES]; 2]) {
    let cols = x[0].len();
    let whole = cols / BLOCK * BLOCK;
    assert!(count <= LANES && x[1].len() == cols && w.len() == count * cols);
    assert!(x.iter().all(|x| (x.as_ptr() as usize).is_multiple_of(4)));
    if whole > 0 {
        let [x0, x1] = x.map(<[i16]>::as_ptr);
        let mut tile = Tile { x0, x1, w: w.as_ptr(), cols, whole, pairs: count / 2, sums: sums.as_mut_ptr().cast() };
        if tile.pairs > 0 {
            // SAFETY: `whole` of `cols` inputs of two rows and of 2 * pairs <= count rows of weights; sums for
            // 2 * pairs <= LANES outputs a row; rows of inputs at multiples of 4 (all asserted).
            unsafe { multiply(&mut tile) };
        }
        if !count.is_multiple_of(2) {
            let last = count - 1;
            tile.w = w[last * cols..].as_ptr();
            (tile.cols, tile.pairs) = (0, 1); // the last row of weights counts twice
            tile.sums = sums[0][last..].as_mut_ptr();
            // SAFETY: as above; LANES is even, so that the place behind an odd count is there.
            unsafe { multiply(&mut tile) };
        }
    } else {
        sums.fill([0; LANES]);
    }
    for (x, sums) in x.into_iter().zip(sums) {
        for (sum, w) in sums.iter_mut().zip(w.chunks_exact(cols)) {
            for (x, w) in x[whole..].iter().zip(&w[whole..]) {
                *sum += i32::from(*x) * i32::from(*w);
            }
        }
    }
}

/// What [`multiply`] works on; it changes the last four.
#[repr(C)]
struct Tile {
    x0: *const i16,
    x1: *const i16,
    w: *const i8,
    /// From one row of weights to the next.
    cols: usize,
    /// Inputs that are multiplied, a multiple of [`BLOCK`], at least one.
    whole: usize,
    /// Pairs of outputs, at least one.
    pairs: usize,
    /// `[2, LANES]`
    sums: *mut i32,
}

/// One step: four inputs of two rows (r0, r1) times two rows of weights (r2, r3); sums in r4 to r7.
macro_rules! step {
    () => {
        "ldr r8, [r2], #4
        ldr r10, [r3], #4
        sxtb16 r9, r8, ror #8
        sxtb16 r8, r8
        sxtb16 r11, r10, ror #8
        sxtb16 r10, r10
        ldrd r12, lr, [r0], #8
        smlad r4, r12, r8, r4
        smlad r5, r12, r10, r5
        smlad r4, lr, r9, r4
        smlad r5, lr, r11, r5
        ldrd r12, lr, [r1], #8
        smlad r6, r12, r8, r6
        smlad r7, r12, r10, r7
        smlad r6, lr, r9, r6
        smlad r7, lr, r11, r7
        "
    };
}

// `multiply` has these numbers written into it.
const _: () = assert!(LANES == 16 && BLOCK == 16);

/// `sums[r][n] = x_r · w_n`, two outputs at a time.
///
/// All 14 registers are taken, which `asm!` does not allow; weights may lie at any address (`ldr` may), rows of
/// inputs at multiples of 4 (`ldrd` may not).
///
/// # Safety
/// The pointers of the tile reach as far as its sizes say.
#[unsafe(naked)]
unsafe extern "C" fn multiply(tile: &mut Tile) {
    naked_asm!(
        "push {{r4-r11, lr}}",
        "sub sp, sp, #12", // [sp]: the tile, [sp, #4]: end of the inner loop
        "str r0, [sp]",
        "2:", // two outputs
        "ldr lr, [sp]",
        "ldrd r0, r1, [lr]",     // x0, x1
        "ldrd r2, r3, [lr, #8]", // w, cols
        "ldr r12, [lr, #16]",    // whole
        "add r12, r2, r12",
        "str r12, [sp, #4]",
        "add r3, r2, r3",
        "mov r4, #0",
        "mov r5, #0",
        "mov r6, #0",
        "mov r7, #0",
        "3:", // 16 inputs
        step!(),
        step!(),
        step!(),
        step!(),
        "ldr r12, [sp, #4]",
        "cmp r2, r12",
        "bne 3b",
        "ldr lr, [sp]",
        "ldr r12, [lr, #24]", // sums
        "strd r4, r5, [r12]",
        "strd r6, r7, [r12, #64]",
        "add r12, r12, #8",
        "str r12, [lr, #24]",
        "ldrd r2, r3, [lr, #8]",
        "add r2, r2, r3, lsl #1",
        "str r2, [lr, #8]",
        "ldr r12, [lr, #20]", // pairs
        "subs r12, r12, #1",
        "str r12, [lr, #20]",
        "bne 2b",
        "add sp, sp, #12",
        "pop {{r4-r11, pc}}",
    )
}

/// The longest rows of weights that are widened beforehand.
#[cfg(target_abi = "eabihf")]
const WIDE: usize = 256;

/// Rows of up to [`WIDE`] inputs, in whole blocks: two rows of weights are widened to 16 bits, then multiplied with all
/// rows of inputs, then the next two.
#[cfg(target_abi = "eabihf")]
#[inline(never)]
fn short(
    multiply: unsafe extern "C" fn(&Strip),
    weights: Weights<'_>,
    rows: Rows<'_>,
    outputs: Range<usize>,
    epilogue: &mut Epilogue<'_>,
) {
    let run = |outputs: Range<usize>, epilogue: &mut Epilogue<'_>| {
        // In twos; a last odd row counts as two in the same place.
        for places in [0..rows.count / 2 * 2, rows.count / 2 * 2..rows.count] {
            if !places.is_empty() {
                strip(multiply, weights, rows, places, outputs.clone(), epilogue);
            }
        }
    };
    epilogue.check(rows.count);
    let last = outputs.end - 1;
    if outputs.len().is_multiple_of(2) {
        run(outputs.clone(), epilogue);
    } else if epilogue.activation == Activation::Add {
        run(outputs.start..last, epilogue);
        long(weights, rows, last..outputs.end, epilogue);
    } else {
        run(outputs.start..last, epilogue);
        run(last - 1..outputs.end, epilogue); // one is computed again
    }
    if epilogue.activation == Activation::Gelu {
        epilogue.gelu(rows.count, outputs);
    }
}

/// An even number of outputs of an even number of rows, or of one.
#[cfg(target_abi = "eabihf")]
#[inline(always)]
fn strip(
    multiply: unsafe extern "C" fn(&Strip),
    weights: Weights<'_>,
    rows: Rows<'_>,
    places: Range<usize>,
    outputs: Range<usize>,
    epilogue: &mut Epilogue<'_>,
) {
    // Scratch keeps rows of activations at even addresses.
    let Some(x) = as_i16(rows.values) else { return };
    let (cols, stride, count) = (weights.cols, rows.stride, places.len());
    let x = &x[places.start * stride / 2..];
    assert!((x.as_ptr() as usize).is_multiple_of(4) && stride.is_multiple_of(4));
    assert!(x.len() >= (count - 1) * stride / 2 + cols && cols <= WIDE && cols.is_multiple_of(BLOCK));
    assert!(outputs.start >= epilogue.outputs.start && outputs.end <= epilogue.outputs.end);
    let mut wide = MaybeUninit::<[i32; WIDE]>::uninit();
    let wide: *mut i32 = wide.as_mut_ptr().cast();
    let out = &mut epilogue.out[places.start * epilogue.stride + outputs.start - epilogue.outputs.start..];
    let (x, out, row_scales) = (x.as_ptr(), out.as_mut_ptr(), &epilogue.row_scales[places]);
    let twice = [row_scales[0]; 2];
    let mut strip = Strip {
        x: [x, x.wrapping_byte_add(stride)],
        wide: [wide, wide.wrapping_add(cols)],
        zeros: [0; 4],
        out,
        row_scales: row_scales.as_ptr(),
        step: (2 * stride).wrapping_sub(2 * cols),
        stride: 4 * epilogue.stride,
        end: x.wrapping_byte_add(count * stride),
        w: weights.values[outputs.start * cols..outputs.end * cols].as_ptr(),
        cols,
        scales: epilogue.scales[outputs.clone()].as_ptr(),
        bias: match epilogue.bias {
            Some(Vector::F32(bias)) => bias[outputs.clone()].as_ptr(),
            _ => core::ptr::null(), // chosen for another function
        },
        pairs: outputs.len() / 2,
        first_x: [x, x.wrapping_byte_add(stride)],
        first_out: out,
        first_row_scale: row_scales.as_ptr(),
    };
    if count == 1 {
        (strip.first_x, strip.step, strip.end, strip.stride) = ([x, x], 0usize.wrapping_sub(2 * cols), x, 0);
        strip.first_row_scale = twice.as_ptr();
    }
    // SAFETY: `cols` inputs, a multiple of BLOCK, of `count` rows at multiples of 4, one row or an even number; rows of
    // weights, scales and biases for 2 * pairs outputs; outputs that are there by `check` and the range; room for two
    // rows of weights of 16 bits (all asserted or sliced). One row stands for both of two: its outputs are read
    // before they are written.
    unsafe { multiply(&strip) };
}

/// What the functions of [`multiply_strip`] work on.
#[cfg(target_abi = "eabihf")]
#[repr(C)]
struct Strip {
    /// Two rows of inputs.
    x: [*const i16; 2],
    /// Start and end of two rows of widened weights, four inputs of one and of the other by turns.
    wide: [*mut i32; 2],
    zeros: [i32; 4],
    out: *mut f32,
    row_scales: *const f32,
    /// From the end of two rows to the next two, bytes.
    step: usize,
    /// From one row of outputs to the next, bytes.
    stride: usize,
    /// Where the first of two rows is not there any more.
    end: *const i16,
    /// Rows of weights that come next, their scales and biases, how many pairs there are.
    w: *const i8,
    cols: usize,
    scales: *const f32,
    bias: *const f32,
    pairs: usize,
    /// Where the first two rows are, and what belongs to them.
    first_x: [*const i16; 2],
    first_out: *mut f32,
    first_row_scale: *const f32,
}

/// Four weights of two rows (r0, r1) to 16 bits (r2).
#[cfg(target_abi = "eabihf")]
macro_rules! widen {
    () => {
        "ldr r4, [r0], #4
        ldr r5, [r1], #4
        sxtb16 r8, r4
        sxtb16 r9, r4, ror #8
        sxtb16 r10, r5
        sxtb16 r11, r5, ror #8
        stm r2!, {{r8-r11}}
        "
    };
}

/// Four inputs of two rows (r0, r1) times two widened rows of weights (r2); sums in r4 to r7.
#[cfg(target_abi = "eabihf")]
macro_rules! step_wide {
    () => {
        "ldm r2!, {{r8-r11}}
        ldrd r12, lr, [r0], #8
        smlad r4, r12, r8, r4
        smlad r5, r12, r10, r5
        smlad r4, lr, r9, r4
        smlad r5, lr, r11, r5
        ldrd r12, lr, [r1], #8
        smlad r6, r12, r8, r6
        smlad r7, r12, r10, r7
        smlad r6, lr, r9, r6
        smlad r7, lr, r11, r7
        "
    };
}

/// A function from the rows of a [`Strip`] to its outputs; how biases are loaded, added, and outputs added to.
#[cfg(target_abi = "eabihf")]
macro_rules! multiply_strip {
    ($name:ident, $load_bias:literal, $add_bias:literal, $add:literal) => {
        /// # Safety
        /// The pointers of the strip reach as far as its sizes say.
        #[unsafe(naked)]
        unsafe extern "C" fn $name(strip: &Strip) {
            naked_asm!(
                "push {{r4-r11, lr}}",
                "add r12, r0, #44", // the strip, to the stack
                "ldm r12, {{r1-r11}}",
                "push {{r1-r11}}",
                "ldm r0, {{r1-r11}}",
                "push {{r1-r11}}",
                "2:",                       // two outputs
                "ldrd r0, r3, [sp, #52]",   // w, cols
                "ldrd r2, r12, [sp, #8]",   // wide
                "add r1, r0, r3",
                "add r4, r1, r3",
                "str r4, [sp, #52]",
                "3:", // 16 inputs
                widen!(),
                widen!(),
                widen!(),
                widen!(),
                "cmp r2, r12",
                "bne 3b",
                "ldrd r0, r1, [sp, #60]", // scales, bias
                "vldmia r0!, {{s8, s9}}",
                $load_bias,
                "strd r0, r1, [sp, #60]",
                "add r12, sp, #72",
                "ldm r12, {{r0, r1, r8, r9}}", // first_x, first_out, first_row_scale
                "strd r0, r1, [sp]",
                "strd r8, r9, [sp, #32]",
                "add r8, r8, #8",
                "str r8, [sp, #80]",
                "4:",                  // two rows
                "ldm sp, {{r0-r7}}",   // x, wide, zeros
                "5:",                  // 16 inputs
                step_wide!(),
                step_wide!(),
                step_wide!(),
                step_wide!(),
                "cmp r2, r3",
                "bne 5b",
                "vmov s0, s1, r4, r5",
                "vmov s2, s3, r6, r7",
                "ldrd r8, r9, [sp, #32]",   // out, row_scales
                "ldrd r10, r11, [sp, #40]", // step, stride
                "vldmia r9!, {{s4, s5}}",
                "vcvt.f32.s32 s0, s0",
                "vcvt.f32.s32 s1, s1",
                "vcvt.f32.s32 s2, s2",
                "vcvt.f32.s32 s3, s3",
                "vmul.f32 s6, s4, s8",
                "vmul.f32 s7, s4, s9",
                "vmul.f32 s12, s5, s8",
                "vmul.f32 s13, s5, s9",
                "vmul.f32 s0, s0, s6",
                "vmul.f32 s1, s1, s7",
                "vmul.f32 s2, s2, s12",
                "vmul.f32 s3, s3, s13",
                $add_bias,
                "add r12, r8, r11",
                $add,
                "vstmia r8, {{s0, s1}}",
                "vstmia r12, {{s2, s3}}",
                "add r8, r12, r11",
                "add r0, r0, r10",
                "add r1, r1, r10",
                "strd r0, r1, [sp]",
                "strd r8, r9, [sp, #32]",
                "ldr r12, [sp, #48]", // end
                "cmp r0, r12",
                "bne 4b",
                "ldr r12, [sp, #68]", // pairs
                "subs r12, r12, #1",
                "str r12, [sp, #68]",
                "bne 2b",
                "add sp, sp, #88",
                "pop {{r4-r11, pc}}",
            )
        }
    };
}

#[cfg(target_abi = "eabihf")]
multiply_strip!(multiply_scale, "", "", "");
#[cfg(target_abi = "eabihf")]
multiply_strip!(
    multiply_store,
    "vldmia r1!, {{s10, s11}}",
    "vadd.f32 s0, s0, s10
    vadd.f32 s1, s1, s11
    vadd.f32 s2, s2, s10
    vadd.f32 s3, s3, s11",
    ""
);
#[cfg(target_abi = "eabihf")]
multiply_strip!(
    multiply_add,
    "vldmia r1!, {{s10, s11}}",
    "vadd.f32 s0, s0, s10
    vadd.f32 s1, s1, s11
    vadd.f32 s2, s2, s10
    vadd.f32 s3, s3, s11",
    "vldmia r8, {{s4, s5}}
    vldmia r12, {{s6, s7}}
    vadd.f32 s0, s4, s0
    vadd.f32 s1, s5, s1
    vadd.f32 s2, s6, s2
    vadd.f32 s3, s7, s3"
);

/// `sum + a[0] * b[0] + a[1] * b[1]`, wrapping.
#[inline(always)]
fn smlad(a: u32, b: u32, sum: i32) -> i32 {
    let mut sum = sum;
    // SAFETY: registers only.
    unsafe {
        asm!("smlad {s}, {a}, {b}, {s}", s = inout(reg) sum, a = in(reg) a, b = in(reg) b, options(pure, nomem, nostack))
    };
    sum
}

#[inline(never)]
fn mix(p: &[i16], pairs: usize, v: &[i16], width: usize, epilogue: &mut Epilogue<'_>) {
    const ROWS: usize = 2;
    let rows = p.len() / (2 * pairs).max(1);
    for row in (0..rows).step_by(ROWS) {
        let p0 = &p[row * 2 * pairs..][..2 * pairs];
        let p1 = if row + 1 < rows { &p[(row + 1) * 2 * pairs..][..2 * pairs] } else { p0 };
        for start in (0..width).step_by(LANES) {
            let count = LANES.min(width - start);
            let mut sums = [[0; LANES]; ROWS];
            let mut at = 0;
            while at + 4 <= count {
                mix_some::<4>([p0, p1], v, width, start + at, at, &mut sums);
                at += 4;
            }
            while at < count {
                mix_some::<1>([p0, p1], v, width, start + at, at, &mut sums);
                at += 1;
            }
            for (row, sums) in (row..rows).zip(&sums) {
                if count == LANES {
                    epilogue.put(row, start, core::array::from_ref(sums));
                } else {
                    sums.iter().take(count).enumerate().for_each(|(i, sum)| epilogue.put_one(row, start + i, *sum));
                }
            }
        }
    }
}

/// [`mix`] for two rows and `N` outputs from `output`, whose sums go to `at`.
#[inline(always)]
fn mix_some<const N: usize>(
    p: [&[i16]; 2],
    v: &[i16],
    width: usize,
    output: usize,
    at: usize,
    sums: &mut [[i32; LANES]; 2],
) {
    let mut tile = [[0; N]; 2];
    let pairs = p[0].chunks_exact(2).zip(p[1].chunks_exact(2));
    for ((p0, p1), v) in pairs.zip(v.chunks_exact(2 * width)) {
        let v = &v[2 * output..][..2 * N];
        let (p0, p1) = (pair(p0), pair(p1));
        for (i, v) in v.chunks_exact(2).enumerate() {
            let v = pair(v);
            tile[0][i] = smlad(p0, v, tile[0][i]);
            tile[1][i] = smlad(p1, v, tile[1][i]);
        }
    }
    for (sums, tile) in sums.iter_mut().zip(tile) {
        sums[at..at + N].copy_from_slice(&tile);
    }
}

/// Two numbers in one register.
#[inline(always)]
fn pair(x: &[i16]) -> u32 {
    u32::from(x[0] as u16) | u32::from(x[1] as u16) << 16
}
