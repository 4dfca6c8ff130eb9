//! Cortex-M with Helium (M55): 16 products an instruction, summed into one register.
//!
//! Rows of 16, 32 and 64 inputs, a small model's, have loops of their own that never reach memory with a sum; what an
//! output costs once is most of what such a row costs.
//!
//! The suite needs std, which these cores lack: `firmware-examples/examples/kernels.rs` is its counterpart, and every
//! other example there has to equal the host to the bit.

use core::{arch::naked_asm, ops::Range};

use super::{Activation, Epilogue, Kernel, Rows, Weights};

/// Outputs of a block: a multiple of the three that the inner loop takes, and of four for the way back to floats.
const BLOCK: usize = 48;

/// Proof that the program is compiled for a core with Helium.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Helium(());

impl Helium {
    /// This is code for such a core alone: detection is the compiler's.
    pub const COMPILED: Self = Self(());
}

impl Kernel for Helium {
    const NAME: &'static str = "helium";

    #[inline(always)]
    fn gemm(self, weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
        gemm(weights, rows, outputs, epilogue);
    }
}

#[inline(always)]
fn gemm(weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
    let multiply = match weights.cols {
        16 => multiply_16,
        32 => multiply_32,
        64 => multiply_64,
        _ => return long(weights, rows, outputs, epilogue),
    };
    if outputs.len() < QUAD || rows.count == 0 {
        return long(weights, rows, outputs, epilogue);
    }
    short(multiply, weights, rows, outputs, epilogue);
}

/// Rows of any length: sums of some outputs, then floats.
#[inline(never)]
fn long(weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
    let cols = weights.cols;
    let mut sums = [[0; BLOCK]; 2];
    for start in outputs.clone().step_by(BLOCK) {
        let count = BLOCK.min(outputs.end - start);
        let w = &weights.values[start * cols..][..count * cols];
        for row in (0..rows.count).step_by(2) {
            let x0 = &rows.values[row * rows.stride..][..cols];
            let x1 = if row + 1 < rows.count { &rows.values[(row + 1) * rows.stride..][..cols] } else { x0 };
            products([x0, x1], w, count, &mut sums);
            for (row, sums) in (row..rows.count).zip(&sums) {
                epilogue.put_slice(row, start, &sums[..count]);
            }
        }
    }
}

/// Two rows times `count` rows of weights: the first `count` of `sums`.
#[inline(always)]
fn products(x: [&[u8]; 2], w: &[i8], count: usize, sums: &mut [[i32; BLOCK]; 2]) {
    let cols = x[0].len();
    assert!(cols > 0 && count <= BLOCK && x[1].len() == cols && w.len() == count * cols);
    let [x0, x1] = x.map(|x| x.as_ptr().cast());
    let triples = count / 3;
    if triples > 0 {
        let mut tile = Tile { x0, x1, w: w.as_ptr(), cols, triples, sums: sums.as_mut_ptr().cast() };
        // SAFETY: `cols` inputs of two rows and of 3 * triples <= count rows of weights; sums for as many outputs
        // of a row, 3 * triples <= BLOCK (all asserted).
        unsafe { multiply(&mut tile) };
        if !count.is_multiple_of(3) {
            let last = count - 3; // up to two outputs are computed again
            tile.w = w[last * cols..].as_ptr();
            tile.triples = 1;
            tile.sums = sums[0][last..].as_mut_ptr();
            // SAFETY: as above, for the last three rows of weights and their sums.
            unsafe { multiply(&mut tile) };
        }
        return;
    }
    for (x, sums) in x.into_iter().zip(sums) {
        for (sum, w) in sums.iter_mut().zip(w.chunks_exact(cols)) {
            *sum = x.iter().zip(w).map(|(x, w)| i32::from(*x as i8) * i32::from(*w)).sum();
        }
    }
}

/// What [`multiply`] works on; it changes the last three.
#[repr(C)]
struct Tile {
    x0: *const i8,
    x1: *const i8,
    w: *const i8,
    /// Inputs, and from one row of weights to the next; at least one.
    cols: usize,
    /// Groups of three outputs, at least one.
    triples: usize,
    /// `[2, BLOCK]`
    sums: *mut i32,
}

// `multiply` has this number written into it.
const _: () = assert!(BLOCK == 48);

/// `sums[r][n] = x_r · w_n`, three outputs at a time.
///
/// Sums have to be in even registers, so that six of them leave the odd ones for the five rows; `asm!` cannot ask
/// for that. The loop is predicated: its last round loads and multiplies only as many bytes as there are.
///
/// # Safety
/// The pointers of the tile reach as far as its sizes say.
#[unsafe(naked)]
unsafe extern "C" fn multiply(tile: &mut Tile) {
    naked_asm!(
        ".cpu cortex-m55", // link-time optimisation forgets it
        "push {{r4-r11, lr}}",
        "mov r12, r0",
        "2:",                      // three outputs
        "ldrd r1, r3, [r12]",      // x0, x1
        "ldrd r5, r11, [r12, #8]", // w, cols
        "add r7, r5, r11",
        "add r9, r7, r11",
        "mov r0, #0",
        "mov r2, #0",
        "mov r4, #0",
        "mov r6, #0",
        "mov r8, #0",
        "mov r10, #0",
        "dlstp.8 lr, r11",
        "3:", // up to 16 inputs
        "vldrb.u8 q0, [r1], #16",
        "vldrb.u8 q1, [r3], #16",
        "vldrb.u8 q2, [r5], #16",
        "vmladava.s8 r0, q0, q2",
        "vmladava.s8 r2, q1, q2",
        "vldrb.u8 q3, [r7], #16",
        "vmladava.s8 r4, q0, q3",
        "vmladava.s8 r6, q1, q3",
        "vldrb.u8 q2, [r9], #16",
        "vmladava.s8 r8, q0, q2",
        "vmladava.s8 r10, q1, q2",
        "letp lr, 3b",
        "ldr r1, [r12, #20]", // sums
        "strd r0, r4, [r1]",
        "str r8, [r1, #8]",
        "strd r2, r6, [r1, #192]",
        "str r10, [r1, #200]",
        "add r1, r1, #12",
        "str r1, [r12, #20]",
        "ldr r5, [r12, #8]",
        "add r5, r5, r11",
        "add r5, r5, r11, lsl #1",
        "str r5, [r12, #8]",
        "ldr r1, [r12, #16]", // triples
        "subs r1, r1, #1",
        "str r1, [r12, #16]",
        "bne 2b",
        "pop {{r4-r11, pc}}",
    )
}

/// Outputs that [`short`] takes at a time.
const QUAD: usize = 4;

/// Rows that are as long as `multiply` is written for: four outputs of all rows, then the next four.
#[inline(never)]
fn short(
    multiply: unsafe extern "C" fn(&Quad),
    weights: Weights<'_>,
    rows: Rows<'_>,
    outputs: Range<usize>,
    epilogue: &mut Epilogue<'_>,
) {
    let (cols, count) = (weights.cols, rows.count);
    let (pairs, stride) = (count / 2, epilogue.stride);
    epilogue.check(count);
    assert!(outputs.start >= epilogue.outputs.start && outputs.end <= epilogue.outputs.end && outputs.len() >= QUAD);
    assert!(weights.values.len() >= outputs.end * cols);
    assert!(count > 0 && rows.stride >= cols && rows.values.len() >= (count - 1) * rows.stride + cols);
    let last_scale = [epilogue.row_scales[count - 1]; 2];
    let add = epilogue.activation == Activation::Add;
    let mut start = outputs.start;
    while start < outputs.end {
        let first = start.min(outputs.end - QUAD); // the last four may have been there in part
        let [scales, bias] = epilogue.constants(first);
        let x = rows.values.as_ptr().cast::<i8>();
        let out = &mut epilogue.out[first - epilogue.outputs.start..];
        let mut quad = Quad {
            step: 2 * rows.stride,
            stride: 4 * stride,
            end: x.wrapping_add(2 * pairs * rows.stride),
            add: add.into(),
            w: weights.values[first * cols..].as_ptr(),
            x0: x,
            x1: x.wrapping_add(rows.stride),
            out: out.as_mut_ptr(),
            row_scales: epilogue.row_scales.as_ptr(),
            mask: 0xFFFF << (4 * (start - first)) & 0xFFFF,
            scales,
            bias,
        };
        if pairs > 0 {
            // SAFETY: `cols` inputs of 2 * pairs <= count rows and of four rows of weights, a scale for each row,
            // outputs that are there by `check` and the range.
            unsafe { multiply(&quad) };
        }
        if !count.is_multiple_of(2) {
            quad.x0 = x.wrapping_add((count - 1) * rows.stride);
            quad.x1 = quad.x0; // the last row counts as two, in the same place
            (quad.step, quad.end, quad.stride) = (0, quad.x0, 0);
            quad.out = out[(count - 1) * stride..].as_mut_ptr();
            quad.row_scales = last_scale.as_ptr();
            // SAFETY: as above, for the last row; both of its outputs are read before either is written.
            unsafe { multiply(&quad) };
        }
        start = first + QUAD;
    }
    if epilogue.activation == Activation::Gelu {
        epilogue.gelu(count, outputs);
    }
}

/// What [`short`]'s inner loops work on.
#[repr(C)]
struct Quad {
    /// From two rows to the next two, bytes.
    step: usize,
    /// From one row of outputs to the next, bytes.
    stride: usize,
    /// Where the first of two rows is not there any more.
    end: *const i8,
    /// Whether outputs are added to: 1 or 0.
    add: u32,
    /// Four rows of weights.
    w: *const i8,
    x0: *const i8,
    x1: *const i8,
    out: *mut f32,
    row_scales: *const f32,
    /// Four bits for each of the four outputs: whether it is written.
    mask: u32,
    scales: [f32; QUAD],
    bias: [f32; QUAD],
}

/// Inputs `16 j..` of two rows (r3, r5) times four rows of weights `k` apart (r1, in the middle of them: as far as
/// an offset reaches); sums in r0, r2, r4, r6 and r8, r10, r12, lr.
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

macro_rules! multiply {
    ($name:ident, $k:literal, [$($j:literal)*]) => {
        /// Four outputs of pairs of rows of so many inputs, back to floats and in their place.
        ///
        /// # Safety
        /// The pointers of the quad reach as far as its sizes say; there is at least one pair.
        #[unsafe(naked)]
        unsafe extern "C" fn $name(quad: &Quad) {
            naked_asm!(
                ".cpu cortex-m55", // link-time optimisation forgets it
                "push {{r4-r11, lr}}",
                "vpush {{d8-d11}}",
                "mov r11, r0",
                "add r0, r0, #16",
                "ldm r0, {{r1, r3, r5, r7, r9, r10}}", // w, x0, x1, out, row_scales, mask
                "vmsr p0, r10",
                "vldrw.u32 q4, [r11, #40]", // scales
                "vldrw.u32 q5, [r11, #56]", // bias
                concat!("add r1, r1, #2*", $k, "-8"),
                "2:", // two rows
                round!($k, 0, "vmladav.s8"),
                $(round!($k, $j, "vmladava.s8"),)*
                "vmov q0[2], q0[0], r0, r4",
                "vmov q0[3], q0[1], r2, r6",
                "vmov q1[2], q1[0], r8, r12",
                "vmov q1[3], q1[1], r10, lr",
                "ldm r11, {{r0, r2, r4, r6}}", // step, stride, end, add
                "ldrd r8, r10, [r9], #8",
                "vcvt.f32.s32 q0, q0",
                "vcvt.f32.s32 q1, q1",
                "vmul.f32 q2, q4, r8",
                "vmul.f32 q3, q4, r10",
                "vmul.f32 q0, q0, q2",
                "vmul.f32 q1, q1, q3",
                "vadd.f32 q0, q0, q5",
                "vadd.f32 q1, q1, q5",
                "add r8, r7, r2",
                "cbz r6, 3f",
                "vpstt",
                "vldrwt.u32 q2, [r7]",
                "vldrwt.u32 q3, [r8]",
                "vadd.f32 q0, q2, q0",
                "vadd.f32 q1, q3, q1",
                "3:",
                "vpstt",
                "vstrwt.32 q0, [r7]",
                "vstrwt.32 q1, [r8]",
                "add r7, r8, r2",
                "add r3, r3, r0",
                "add r5, r5, r0",
                "cmp r3, r4",
                "bne 2b",
                "vpop {{d8-d11}}",
                "pop {{r4-r11, pc}}",
            )
        }
    };
}

multiply!(multiply_16, 16, []);
multiply!(multiply_32, 32, [1]);
multiply!(multiply_64, 64, [1 2 3]);
