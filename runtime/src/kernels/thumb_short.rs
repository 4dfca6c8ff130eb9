//! Products of short rows on cores with the DSP extension and an FPU.
//!
//! Two rows of weights are widened to 16 bits, then multiplied with all rows of inputs, then the next two: the inner
//! loop only loads and multiplies. A sum never reaches memory, for what an output costs once is much of what a short
//! row costs.

use core::{arch::naked_asm, mem::MaybeUninit, ops::Range};

use super::{bytes::as_i16, thumb::BLOCK, Activation, Epilogue, Rows, Weights};
use crate::pack::Vector;

/// The longest rows: two widened ones take four times as many bytes of stack.
const LONGEST: usize = 256;

/// Rows in whole blocks of up to [`LONGEST`] inputs; returns the outputs that are left to others.
#[inline(never)]
pub(super) fn gemm(
    weights: Weights<'_>,
    rows: Rows<'_>,
    outputs: Range<usize>,
    epilogue: &mut Epilogue<'_>,
) -> Range<usize> {
    let (multiply, bias): (unsafe extern "C" fn(&Strip), _) = match (epilogue.bias, epilogue.activation) {
        (None, Activation::Store) => (multiply_scale, None),
        (Some(Vector::F32(bias)), Activation::Store | Activation::Gelu) => (multiply_store, Some(bias)),
        (Some(Vector::F32(bias)), Activation::Add) => (multiply_add, Some(bias)),
        _ => return outputs,
    };
    let (cols, stride, count) = (weights.cols, rows.stride, rows.count);
    // Scratch keeps rows of activations at even addresses.
    let Some(x) = as_i16(rows.values) else { return outputs };
    let is_short = (BLOCK..=LONGEST).contains(&cols) && cols.is_multiple_of(BLOCK);
    let is_aligned = (x.as_ptr() as usize).is_multiple_of(4) && stride.is_multiple_of(4);
    if !is_short || !is_aligned || count == 0 || outputs.len() < 2 {
        return outputs;
    }
    epilogue.check(count);
    assert!(x.len() >= (count - 1) * stride / 2 + cols && weights.values.len() >= outputs.end * cols);
    assert!(outputs.start >= epilogue.outputs.start && outputs.end <= epilogue.outputs.end);
    let is_odd = !outputs.len().is_multiple_of(2);
    let adds = epilogue.activation == Activation::Add;
    let mut wide = MaybeUninit::<[i32; LONGEST]>::uninit();
    let wide: *mut i32 = wide.as_mut_ptr().cast();
    let even = count / 2 * 2;
    for (row, end) in [(0, even), (even, count)] {
        if row == end {
            continue;
        }
        let x = x.as_ptr().wrapping_byte_add(row * stride);
        let row_scales = &epilogue.row_scales[row..end];
        let twice = [row_scales[0]; 2];
        let mut strip = Strip {
            wide: [wide, wide.wrapping_add(cols)],
            step: (2 * stride).wrapping_sub(2 * cols),
            stride: 4 * epilogue.stride,
            end: x.wrapping_byte_add((end - row) * stride),
            cols,
            first_x: [x, x.wrapping_byte_add(stride)],
            first_row_scale: row_scales.as_ptr(),
            ..Strip::EMPTY
        };
        if end - row == 1 {
            // It counts as two in the same place: both outputs are read before either is written.
            (strip.first_x, strip.step, strip.end, strip.stride) = ([x, x], 0usize.wrapping_sub(2 * cols), x, 0);
            strip.first_row_scale = twice.as_ptr();
        }
        // An odd output is computed with the one before it, again.
        for (first, pairs) in [(outputs.start, outputs.len() / 2), (outputs.end - 2, usize::from(is_odd && !adds))] {
            if pairs == 0 {
                continue;
            }
            strip.pairs = pairs;
            strip.w = weights.values[first * cols..].as_ptr();
            strip.scales = epilogue.scales[first..].as_ptr();
            strip.bias = bias.map_or(core::ptr::null(), |bias| bias[first..].as_ptr());
            strip.first_out = epilogue.out[row * epilogue.stride + first - epilogue.outputs.start..].as_mut_ptr();
            // SAFETY: `cols` inputs, a multiple of BLOCK, of one row or an even number at multiples of 4; rows of
            // weights, scales and biases (where the function reads any) for 2 * pairs outputs; outputs that are there
            // by `check` and the range; room for two rows of weights of 16 bits.
            unsafe { multiply(&strip) };
        }
    }
    let left = if is_odd && adds { outputs.end - 1..outputs.end } else { outputs.end..outputs.end };
    if epilogue.activation == Activation::Gelu {
        epilogue.gelu(count, outputs);
    }
    left
}

/// Some outputs of some rows: what the functions of [`multiply!`] work on. They have a copy of it on the stack.
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
    /// The next rows of weights, their scales and biases, how many pairs of them there are.
    w: *const i8,
    cols: usize,
    scales: *const f32,
    bias: *const f32,
    pairs: usize,
    /// The first two rows, and what belongs to them; the outputs are those of the next weights.
    first_x: [*const i16; 2],
    first_out: *mut f32,
    first_row_scale: *const f32,
}

impl Strip {
    const EMPTY: Self = Self {
        x: [core::ptr::null(); 2],
        wide: [core::ptr::null_mut(); 2],
        zeros: [0; 4],
        out: core::ptr::null_mut(),
        row_scales: core::ptr::null(),
        step: 0,
        stride: 0,
        end: core::ptr::null(),
        w: core::ptr::null(),
        cols: 0,
        scales: core::ptr::null(),
        bias: core::ptr::null(),
        pairs: 0,
        first_x: [core::ptr::null(); 2],
        first_out: core::ptr::null_mut(),
        first_row_scale: core::ptr::null(),
    };
}

/// Four weights of two rows (r0, r1) to 16 bits (r2).
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
macro_rules! step {
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
macro_rules! multiply {
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
                "2:",                     // two outputs
                "ldrd r0, r3, [sp, #52]", // w, cols
                "ldrd r2, r12, [sp, #8]", // wide
                "add r1, r0, r3",
                "3:", // 16 inputs
                widen!(),
                widen!(),
                widen!(),
                widen!(),
                "cmp r2, r12",
                "bne 3b",
                "str r1, [sp, #52]",
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
                "4:",                // two rows
                "ldm sp, {{r0-r7}}", // x, wide, zeros
                "5:",                // 16 inputs
                step!(),
                step!(),
                step!(),
                step!(),
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

multiply!(multiply_scale, "", "", "");
multiply!(
    multiply_store,
    "vldmia r1!, {{s10, s11}}",
    "vadd.f32 s0, s0, s10
    vadd.f32 s1, s1, s11
    vadd.f32 s2, s2, s10
    vadd.f32 s3, s3, s11",
    ""
);
multiply!(
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
