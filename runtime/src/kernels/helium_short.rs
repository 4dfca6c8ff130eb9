//! Products of short rows with Helium: all outputs of two rows of inputs, four at a time, then of the next two.
//!
//! A sum never reaches memory, for what an output costs once is most of what a short row costs.

use core::{arch::naked_asm, ops::Range};

use super::{Activation, Epilogue, Rows, Weights};
use crate::pack::Vector;

/// Outputs that are computed together.
const QUAD: usize = 4;
/// Quads between which biases that are not there as floats are converted.
const PIECE: usize = 16;
/// Adding it changes nothing.
static NO_BIAS: [f32; QUAD * PIECE] = [-0.0; QUAD * PIECE];

/// Rows of 32 and 64 inputs, and of 16 without a bias; false, and nothing done, for others.
#[inline(always)]
pub(super) fn gemm(weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) -> bool {
    let (cols, count, stride) = (weights.cols, rows.count, rows.stride);
    if outputs.len() < QUAD || count == 0 {
        return false;
    }
    let is_there = outputs.start >= epilogue.outputs.start
        && outputs.end <= epilogue.outputs.end
        && weights.values.len() >= outputs.end * cols
        && stride >= cols
        && rows.values.len() >= (count - 1) * stride + cols;
    match (cols, epilogue.bias, epilogue.activation) {
        (16, None, Activation::Store) if is_there => scores(weights, rows, outputs, epilogue),
        (32, ..) if is_there => short(multiply_32, weights, rows, outputs, epilogue),
        (64, ..) if is_there => short(multiply_64, weights, rows, outputs, epilogue),
        _ => return false,
    }
    true
}

/// [`gemm`] with an inner loop for the length of the rows.
#[inline(never)]
fn short(
    multiply: unsafe extern "C" fn(&mut Strip),
    weights: Weights<'_>,
    rows: Rows<'_>,
    outputs: Range<usize>,
    epilogue: &mut Epilogue<'_>,
) {
    let (cols, count, stride) = (weights.cols, rows.count, rows.stride);
    epilogue.check(count);
    let most = if matches!(epilogue.bias, Some(Vector::F32(_))) { usize::MAX } else { PIECE };
    let last_scale = [epilogue.row_scales[count - 1]; 2];
    let mut start = outputs.start;
    while start < outputs.end {
        // The last quad may reach back to outputs that were there: they are not written again.
        let first = start.min(outputs.end - QUAD);
        let end = first + QUAD * ((outputs.end - first) / QUAD).min(most);
        let mut biases;
        let bias = match epilogue.bias {
            None => &NO_BIAS,
            Some(Vector::F32(bias)) => &bias[first..end],
            Some(bias) => {
                biases = NO_BIAS;
                biases.iter_mut().zip(first..end).for_each(|(to, output)| *to = bias.get(output));
                &biases
            }
        };
        let w = &weights.values[first * cols..end * cols];
        let even = count / 2 * 2;
        let x = rows.values.as_ptr().cast::<i8>();
        let out = &mut epilogue.out[first - epilogue.outputs.start..];
        let mut strip = Strip {
            end: w.as_ptr().wrapping_add(w.len()),
            scales: core::ptr::null(),
            bias: core::ptr::null(),
            add: (epilogue.activation == Activation::Add).into(),
            x: [x, x.wrapping_add(stride)],
            out: [out.as_mut_ptr(), out.as_mut_ptr().wrapping_add(epilogue.stride)],
            w: w.as_ptr(),
            first_scale: epilogue.scales[first..end].as_ptr(),
            first_bias: bias.as_ptr(),
            row_scales: epilogue.row_scales.as_ptr(),
            step: 2 * stride,
            out_step: 8 * epilogue.stride,
            pairs: even / 2,
            mask: 0xFFFF << (4 * (start - first)) & 0xFFFF,
        };
        if even > 0 {
            // SAFETY: `cols` inputs of an even number of rows, and a scale for each; weights, scales and biases of
            // whole quads of outputs; outputs that are there by `check` and the range (all asserted or sliced).
            unsafe { multiply(&mut strip) };
        }
        if even < count {
            // The last row counts as two in the same place: both outputs are read before either is written.
            let out = out[even * epilogue.stride..].as_mut_ptr();
            (strip.x, strip.out) = ([x.wrapping_add(even * stride); 2], [out; 2]);
            (strip.row_scales, strip.pairs) = (last_scale.as_ptr(), 1);
            strip.end = w.as_ptr().wrapping_add(w.len());
            // SAFETY: as above, for the last row.
            unsafe { multiply(&mut strip) };
        }
        start = end;
    }
    if epilogue.activation == Activation::Gelu {
        epilogue.gelu(count, outputs);
    }
}

/// Some quads of outputs of some pairs of rows: what the inner loops work on, and change.
#[repr(C)]
struct Strip {
    /// Where there are no more weights.
    end: *const i8,
    /// Scales and biases of the next quad.
    scales: *const f32,
    bias: *const f32,
    /// Whether outputs are added to: 1 or 0.
    add: u32,
    /// The next two rows of inputs and outputs.
    x: [*const i8; 2],
    out: [*mut f32; 2],
    /// The first four rows of weights, scales and biases.
    w: *const i8,
    first_scale: *const f32,
    first_bias: *const f32,
    /// Of the next two rows.
    row_scales: *const f32,
    /// From two rows to the next two, of inputs and of outputs, bytes.
    step: usize,
    out_step: usize,
    /// At least one.
    pairs: usize,
    /// Four bits for each output of a quad: whether it is written.
    mask: u32,
}

/// Inputs `16 j..` of two rows (r3, r5) times four rows of weights `k` apart (r1, in the middle of them: as far as
/// an offset reaches); sums in r0, r2, r4, r6 and r8, r10, r12, lr.
#[rustfmt::skip] // an instruction a line
macro_rules! round {
    ($k:literal, $j:literal, $mla:literal) => {
        concat!(
            "vldrb.u8 q0, [r3, #16*", $j, "]\n",
            "vldrb.u8 q1, [r5, #16*", $j, "]\n",
            "vldrb.u8 q2, [r1, #16*", $j, "+8-2*", $k, "]\n",
            $mla, " r0, q0, q2\n",
            $mla, " r8, q1, q2\n",
            "vldrb.u8 q3, [r1, #16*", $j, "+8-", $k, "]\n",
            $mla, " r2, q0, q3\n",
            $mla, " r10, q1, q3\n",
            "vldrb.u8 q2, [r1, #16*", $j, "+8]\n",
            $mla, " r4, q0, q2\n",
            $mla, " r12, q1, q2\n",
            "vldrb.u8 q3, [r1, #16*", $j, "+8+", $k, "]\n",
            $mla, " r6, q0, q3\n",
            $mla, " lr, q1, q3\n",
        )
    };
}

/// To the next two rows of a strip (r11); zero in the flags if there are none.
macro_rules! next_rows {
    () => {
        "ldrd r0, r2, [r11, #16] // x
        ldrd r4, r6, [r11, #24] // out
        ldrd r8, r10, [r11, #48] // step, out_step
        add r0, r0, r8
        add r2, r2, r8
        add r4, r4, r10
        add r6, r6, r10
        strd r0, r2, [r11, #16]
        strd r4, r6, [r11, #24]
        ldr r0, [r11, #56] // pairs
        subs r0, r0, #1
        str r0, [r11, #56]
        "
    };
}

macro_rules! multiply {
    ($name:ident, $k:literal, [$($j:literal)*]) => {
        /// # Safety
        /// The pointers of the strip reach as far as its sizes say.
        #[unsafe(naked)]
        unsafe extern "C" fn $name(strip: &mut Strip) {
            naked_asm!(
                ".cpu cortex-m55", // link-time optimisation forgets it
                "push {{r4-r11, lr}}",
                "vpush {{d8-d15}}",
                "mov r11, r0",
                "ldr r0, [r11, #60]", // mask
                "vmsr p0, r0",
                "ldr r0, [r11]", // end
                concat!("add r0, r0, #2*", $k, "-8"),
                "str r0, [r11]",
                "2:", // two rows
                "ldrd r0, r2, [r11, #36]", // first_scale, first_bias
                "strd r0, r2, [r11, #4]",
                "ldr r0, [r11, #44]", // row_scales
                "ldrd r2, r4, [r0], #8",
                "str r0, [r11, #44]",
                "vdup.32 q6, r2",
                "vdup.32 q7, r4",
                "add r0, r11, #16",
                "ldm r0, {{r3, r5, r7, r9}}", // x, out
                "ldr r1, [r11, #32]", // w
                concat!("add r1, r1, #2*", $k, "-8"),
                "3:", // four outputs
                round!($k, 0, "vmladav.s8"),
                $(round!($k, $j, "vmladava.s8"),)*
                "vmov q0[2], q0[0], r0, r4",
                "vmov q0[3], q0[1], r2, r6",
                "vmov q1[2], q1[0], r8, r12",
                "vmov q1[3], q1[1], r10, lr",
                "ldm r11, {{r0, r2, r4, r6}}", // end, scales, bias, add
                "vldrw.u32 q4, [r2], #16",
                "vldrw.u32 q5, [r4], #16",
                "strd r2, r4, [r11, #4]",
                "vcvt.f32.s32 q0, q0",
                "vcvt.f32.s32 q1, q1",
                "vmul.f32 q2, q6, q4",
                "vmul.f32 q3, q7, q4",
                "vmul.f32 q0, q0, q2",
                "vmul.f32 q1, q1, q3",
                "vadd.f32 q0, q0, q5",
                "vadd.f32 q1, q1, q5",
                "cbz r6, 4f",
                "vpstt",
                "vldrwt.u32 q2, [r7]",
                "vldrwt.u32 q3, [r9]",
                "vadd.f32 q0, q2, q0",
                "vadd.f32 q1, q3, q1",
                "4:",
                "vpstt",
                "vstrwt.32 q0, [r7], #16",
                "vstrwt.32 q1, [r9], #16",
                concat!("add r1, r1, #4*", $k),
                "cmp r1, r0",
                "bne 3b",
                next_rows!(),
                "bne 2b",
                "vpop {{d8-d15}}",
                "pop {{r4-r11, pc}}",
            )
        }
    };
}

multiply!(multiply_32, 32, [1]);
multiply!(multiply_64, 64, [1 2 3]);

/// Rows of 16 inputs without biases: attention scores.
#[inline(never)]
fn scores(weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
    let (count, len) = (rows.count, outputs.len());
    epilogue.check(count);
    let even = count / 2 * 2;
    let again = len.next_multiple_of(QUAD) - len;
    let x = rows.values.as_ptr().cast::<i8>();
    let out = &mut epilogue.out[outputs.start - epilogue.outputs.start..];
    let mut scores = Scores {
        w: weights.values[outputs.start * 16..].as_ptr(),
        scales: epilogue.scales[outputs].as_ptr(),
        x: [x, x.wrapping_add(rows.stride)],
        step: 2 * rows.stride,
        out_step: 4 * (2 * epilogue.stride - len),
        pairs: even / 2,
        out: [out.as_mut_ptr(), out.as_mut_ptr().wrapping_add(epilogue.stride)],
        row_scales: epilogue.row_scales.as_ptr(),
        quads: (len - 1) / QUAD,
        back: [16 * again, 4 * again],
    };
    if even > 0 {
        // SAFETY: 16 inputs of an even number of rows, and a scale for each; weights and scales of at least four
        // outputs, which are there (seen to by `gemm`, `check` and the slices).
        unsafe { multiply_16(&mut scores) };
    }
    if even < count {
        // The last row counts as two in the same place.
        let last_scale = [epilogue.row_scales[even]; 2];
        scores.x = [x.wrapping_add(even * rows.stride); 2];
        scores.out = [out[even * epilogue.stride..].as_mut_ptr(); 2];
        (scores.row_scales, scores.pairs) = (last_scale.as_ptr(), 1);
        // SAFETY: as above, for the last row.
        unsafe { multiply_16(&mut scores) };
    }
}

/// What [`multiply_16`] works on, and changes.
#[repr(C)]
struct Scores {
    w: *const i8,
    scales: *const f32,
    /// The next two rows.
    x: [*const i8; 2],
    /// From two rows to the next two, bytes.
    step: usize,
    /// From the end of two rows of outputs to the next two, bytes.
    out_step: usize,
    /// At least one.
    pairs: usize,
    out: [*mut f32; 2],
    row_scales: *const f32,
    /// Quads of outputs behind the first.
    quads: usize,
    /// How far they reach back into the first, bytes of weights and of the rest.
    back: [usize; 2],
}

/// Two rows of inputs stay in registers.
///
/// # Safety
/// The pointers reach as far as the sizes say.
#[unsafe(naked)]
unsafe extern "C" fn multiply_16(scores: &mut Scores) {
    naked_asm!(
        ".cpu cortex-m55",
        "push {{r4-r11, lr}}",
        "vpush {{d8-d15}}",
        "mov r11, r0",
        "ldrd r5, r7, [r11, #28]", // out
        "ldr r9, [r11, #36]",      // row_scales
        "2:",                      // two rows
        "ldrd r0, r2, [r11, #8]",  // x
        "ldr r4, [r11, #16]",      // step
        "vldrb.u8 q0, [r0]",
        "vldrb.u8 q1, [r2]",
        "add r0, r0, r4",
        "add r2, r2, r4",
        "strd r0, r2, [r11, #8]",
        "ldrd r1, r3, [r11]", // w, scales
        "ldrd r8, r10, [r9], #8",
        "ldr r12, [r11, #40]", // quads
        "mov r0, #1",
        "dls lr, r0",
        "3:", // four outputs
        "vldrb.u8 q2, [r1], #16",
        "vldrb.u8 q3, [r1], #16",
        "vldrb.u8 q4, [r1], #16",
        "vldrb.u8 q5, [r1], #16",
        "vmladav.s8 r0, q0, q2",
        "vmladav.s8 r2, q0, q3",
        "vmladav.s8 r4, q0, q4",
        "vmladav.s8 r6, q0, q5",
        "vmov q6[2], q6[0], r0, r4",
        "vmov q6[3], q6[1], r2, r6",
        "vmladav.s8 r0, q1, q2",
        "vmladav.s8 r2, q1, q3",
        "vmladav.s8 r4, q1, q4",
        "vmladav.s8 r6, q1, q5",
        "vmov q7[2], q7[0], r0, r4",
        "vmov q7[3], q7[1], r2, r6",
        "vldrw.u32 q2, [r3], #16",
        "vcvt.f32.s32 q6, q6",
        "vcvt.f32.s32 q7, q7",
        "vmul.f32 q3, q2, r8",
        "vmul.f32 q4, q2, r10",
        "vmul.f32 q6, q6, q3",
        "vmul.f32 q7, q7, q4",
        "vstrw.32 q6, [r5], #16",
        "vstrw.32 q7, [r7], #16",
        "le lr, 3b",
        "cmp r12, #0",
        "beq 4f",
        "ldrd r0, r2, [r11, #44]", // back
        "sub r1, r1, r0",
        "sub r3, r3, r2",
        "sub r5, r5, r2",
        "sub r7, r7, r2",
        "dls lr, r12",
        "mov r12, #0",
        "b 3b",
        "4:",
        "ldrd r0, r2, [r11, #20]", // out_step, pairs
        "add r5, r5, r0",
        "add r7, r7, r0",
        "subs r2, r2, #1",
        "str r2, [r11, #24]",
        "bne 2b",
        "vpop {{d8-d15}}",
        "pop {{r4-r11, pc}}",
    )
}
