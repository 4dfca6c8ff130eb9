//! int4 weights with Helium.
//!
//! Four rows of weights are unpacked into bytes, 16 times as large, then multiplied with all rows of inputs, two at a
//! time, then the next four. A group's sums are multiplied with their multipliers four at a time; a sixteenth of the
//! whole is taken on the way to floats.

use core::{arch::naked_asm, mem::MaybeUninit, ops::Range};

use super::{portable_gemm_int4, Activation, Epilogue, Int4, Kernel, Rows};
use crate::{
    pack::Vector,
    quant::int4::{Order, GROUP, GROUP_BYTES},
};

/// Outputs that are computed together.
const QUAD: usize = 4;
/// Groups of the longest rows that are unpacked whole: 16 times the largest sum of so many fits 32 bits.
const LONGEST: usize = 8;
/// Bytes of a quad's group, unpacked: the low halves of four rows, the high ones, the multipliers in 32 bits.
const UNPACKED: usize = QUAD * (GROUP + size_of::<u32>());
/// Rows that a piece of longer rows of weights is multiplied with.
const ROWS: usize = 16;

const _: () = assert!(16 * (LONGEST * GROUP) as i64 * 8 * 127 * 255 <= i32::MAX as i64);
// `multiply!` has these numbers written into it, and two rows of sums may be there for the last one.
const _: () = assert!(UNPACKED == 144 && ROWS.is_multiple_of(2));

/// Place for four unpacked rows.
type Wide = MaybeUninit<[u32; LONGEST * UNPACKED / 4]>;

#[inline(never)]
pub(super) fn gemm<K: Kernel>(
    k: K,
    weights: Int4<'_>,
    rows: Rows<'_>,
    outputs: Range<usize>,
    epilogue: &mut Epilogue<'_>,
) {
    match epilogue.bias {
        _ if outputs.len() < QUAD || rows.count == 0 || weights.groups == 0 => {
            portable_gemm_int4(k, weights, rows, outputs, epilogue);
        }
        Some(Vector::F32(bias)) if weights.groups <= LONGEST => gemm_short(weights, rows, outputs, bias, epilogue),
        _ => gemm_long(weights, rows, outputs, epilogue),
    }
}

/// Rows that are unpacked whole: a sum never reaches memory.
#[inline(never)]
fn gemm_short(weights: Int4<'_>, rows: Rows<'_>, outputs: Range<usize>, bias: &[f32], epilogue: &mut Epilogue<'_>) {
    let count = rows.count;
    epilogue.check(count);
    assert!(outputs.start >= epilogue.outputs.start && outputs.end <= epilogue.outputs.end);
    let last_scale = [epilogue.row_scales[count - 1]; 2];
    let mut wide = Wide::uninit();
    // The last quad may reach back to outputs that were there: they are not written again.
    let rest = outputs.len() % QUAD;
    let last = (outputs.end - QUAD, usize::from(rest > 0), 0xFFFF << (4 * (QUAD - rest)) & 0xFFFF);
    for (first, quads, mask) in [(outputs.start, outputs.len() / QUAD, 0xFFFF), last] {
        if quads == 0 {
            continue;
        }
        let mut strip = Strip::new(weights, first, quads, 0..weights.groups, &mut wide);
        strip.add = (epilogue.activation == Activation::Add).into();
        strip.mask = mask;
        let even = count / 2 * 2;
        for (row, end) in [(0, even), (even, count)] {
            if row == end {
                continue;
            }
            let is_one = end - row == 1;
            strip.set_inputs(rows, row..end, 0..weights.groups);
            strip.out_stride = if is_one { 0 } else { 4 * epilogue.stride };
            let out = row * epilogue.stride + first - epilogue.outputs.start;
            strip.first_out = epilogue.out[out..].as_mut_ptr();
            let row_scales = if is_one { &last_scale } else { &epilogue.row_scales[row..end] };
            strip.first_row_scales = row_scales.as_ptr();
            let mut strip = strip;
            (strip.scales, strip.bias) = (epilogue.scales[first..].as_ptr(), bias[first..].as_ptr());
            // SAFETY: inputs and weights as `Strip` says; scales and biases of whole quads, a scale for each row (two
            // for one), outputs that are there by `check` and the range.
            unsafe { multiply_floats(&mut strip) };
        }
    }
    if epilogue.activation == Activation::Gelu {
        epilogue.gelu(count, outputs);
    }
}

/// Rows of any length, a piece after the other: sums of four outputs, then floats.
#[inline(never)]
fn gemm_long(weights: Int4<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
    let mut wide = Wide::uninit();
    for start in outputs.clone().step_by(QUAD) {
        let first = start.min(outputs.end - QUAD);
        for row in (0..rows.count).step_by(ROWS) {
            let count = ROWS.min(rows.count - row);
            let mut sums = [[0i32; QUAD]; ROWS];
            for group in (0..weights.groups).step_by(LONGEST) {
                let groups = group..weights.groups.min(group + LONGEST);
                let even = count / 2 * 2;
                for (from, to) in [(0, even), (even, count)] {
                    if from == to {
                        continue;
                    }
                    let mut strip = Strip::new(weights, first, 1, groups.clone(), &mut wide);
                    strip.set_inputs(rows, row + from..row + to, groups.clone());
                    strip.first_out = sums[from..].as_mut_ptr().cast();
                    // SAFETY: inputs and weights as `Strip` says; sums for an even number of rows, since ROWS is even.
                    unsafe { multiply_sums(&mut strip) };
                }
            }
            for (r, sums) in sums.iter().enumerate().take(count) {
                epilogue.put_slice(row + r, start, &sums[start - first..]);
            }
        }
    }
}

/// Some quads of outputs of some pairs of rows: what the functions of [`multiply!`] work on, and change.
#[repr(C)]
#[derive(Clone, Copy)]
struct Strip {
    /// Of the next two rows.
    row_scales: *const f32,
    /// Whether outputs are added to: 1 or 0.
    add: u32,
    /// From one row of outputs to the next, and from the end of two rows of inputs to the next two, bytes.
    out_stride: usize,
    step: usize,
    /// Four unpacked rows.
    wide: *mut u32,
    /// Where the first of two rows is not there any more.
    end: *const u8,
    /// The first two rows, and what belongs to them; the outputs are those of the next weights.
    first_x: [*const u8; 2],
    first_out: *mut f32,
    first_row_scales: *const f32,
    /// Of the next quad.
    scales: *const f32,
    bias: *const f32,
    w: *const u8,
    /// From one row of weights to the next.
    row_bytes: usize,
    multipliers: *const u8,
    /// Groups that are multiplied, at least one, at most [`LONGEST`].
    groups: usize,
    /// At least one; of rows that are not multiplied whole, one.
    quads: usize,
    /// Four bits for each output of a quad: whether it is written.
    mask: u32,
    /// Where the multipliers of four rows are, from the first on.
    offsets: [usize; QUAD],
}

impl Strip {
    /// The weights of `quads` quads of outputs.
    fn new(weights: Int4<'_>, first: usize, quads: usize, groups: Range<usize>, wide: &mut Wide) -> Self {
        let all = weights.groups;
        let (start, end) = (first * all + groups.start, (first + QUAD * quads) * all);
        assert!(weights.order == Order::Rows && (1..=LONGEST).contains(&groups.len()) && groups.end <= all);
        assert!(quads == 1 || (quads > 0 && groups.len() == all));
        assert!(weights.values.len() >= end * GROUP_BYTES && weights.multipliers.len() >= end);
        Self {
            row_scales: core::ptr::null(),
            add: 0,
            out_stride: 0,
            step: 0,
            wide: wide.as_mut_ptr().cast(),
            end: core::ptr::null(),
            first_x: [core::ptr::null(); 2],
            first_out: core::ptr::null_mut(),
            first_row_scales: core::ptr::null(),
            scales: core::ptr::null(),
            bias: core::ptr::null(),
            w: weights.values[start * GROUP_BYTES..].as_ptr(),
            row_bytes: all * GROUP_BYTES,
            multipliers: weights.multipliers[start..].as_ptr(),
            groups: groups.len(),
            quads,
            mask: 0xFFFF,
            offsets: [0, all, 2 * all, 3 * all],
        }
    }

    /// Takes an even number of rows, or one: that counts as two in the same place, both of whose outputs are read
    /// before either is written.
    fn set_inputs(&mut self, rows: Rows<'_>, range: Range<usize>, groups: Range<usize>) {
        let (stride, cols) = (rows.stride, groups.len() * GROUP);
        assert!(rows.values.len() >= (range.end - 1) * stride + groups.end * GROUP && !range.is_empty());
        let x = rows.values[range.start * stride + groups.start * GROUP..].as_ptr();
        if range.len() == 1 {
            (self.first_x, self.step, self.end) = ([x, x], 0usize.wrapping_sub(cols), x);
        } else {
            assert!(range.len().is_multiple_of(2));
            self.first_x = [x, x.wrapping_add(stride)];
            self.step = (2 * stride).wrapping_sub(cols);
            self.end = x.wrapping_add(range.len() * stride);
        }
    }
}

/// A group of a row of weights to bytes, those of the quad's output `n`.
#[rustfmt::skip] // an instruction a line
macro_rules! unpack {
    ($w:literal, $n:literal) => {
        concat!(
            "vldrb.u8 q0, [", $w, "], #16\n",
            "vshl.i8 q1, q0, #4\n",
            "vand q0, q0, q7\n",
            "vstrb.8 q1, [r1, #16*", $n, "]\n",
            "vstrb.8 q0, [r1, #64+16*", $n, "]\n",
        )
    };
}

/// 16 inputs of two rows (r3, r5) times four rows of weights (r1); sums in r0, r2, r4, r6 and r8, r10, r12, lr.
#[rustfmt::skip] // an instruction a line
macro_rules! round {
    ($mla:literal) => {
        concat!(
            "vldrb.u8 q0, [r3], #16\n",
            "vldrb.u8 q1, [r5], #16\n",
            "vldrb.u8 q2, [r1], #16\n",
            $mla, " r0, q0, q2\n",
            $mla, " r8, q1, q2\n",
            "vldrb.u8 q3, [r1], #16\n",
            $mla, " r2, q0, q3\n",
            $mla, " r10, q1, q3\n",
            "vldrb.u8 q2, [r1], #16\n",
            $mla, " r4, q0, q2\n",
            $mla, " r12, q1, q2\n",
            "vldrb.u8 q3, [r1], #16\n",
            $mla, " r6, q0, q3\n",
            $mla, " lr, q1, q3\n",
        )
    };
}

/// A group: its sums in q0 and q1, the multipliers in q2.
macro_rules! group {
    () => {
        concat!(
            round!("vmladav.s8"),
            round!("vmladava.s8"),
            "vmov q0[2], q0[0], r0, r4
            vmov q0[3], q0[1], r2, r6
            vmov q1[2], q1[0], r8, r12
            vmov q1[3], q1[1], r10, lr
            vldrw.u32 q2, [r1], #16
            "
        )
    };
}

/// `multiply!(name, begin, end)`: a function from the rows of a [`Strip`] to its outputs.
///
/// `begin` keeps r7 and r11; `end` takes q6 and q7, 16 times the sums of two rows, has row_scales, add, out_stride in
/// r0, r6, r8, and brings r9 to the outputs of the next rows.
macro_rules! multiply {
    ($name:ident, $begin:literal, $end:literal) => {
        /// # Safety
        /// The pointers of the strip reach as far as its sizes say.
        #[unsafe(naked)]
        unsafe extern "C" fn $name(strip: &mut Strip) {
            naked_asm!(
                ".cpu cortex-m55", // link-time optimisation forgets it
                "push {{r4-r11, lr}}",
                "vpush {{d8-d15}}",
                "mov r11, r0",
                "ldr r0, [r11, #68]", // mask
                "vmsr p0, r0",
                "2:",                      // four outputs
                "ldrd r0, r2, [r11, #48]", // w, row_bytes
                "add r4, r0, r2",
                "add r6, r4, r2",
                "add r8, r6, r2",
                "ldrd r10, r12, [r11, #56]", // multipliers, groups
                "vldrw.u32 q6, [r11, #72]",  // offsets
                "vmov.i8 q7, #0xf0",
                "ldr r1, [r11, #16]", // wide
                "dls lr, r12",
                "3:", // a group
                unpack!("r0", 0),
                unpack!("r4", 1),
                unpack!("r6", 2),
                unpack!("r8", 3),
                "vldrb.u32 q2, [r10, q6]",
                "add r10, r10, #1",
                "vstrw.32 q2, [r1, #128]",
                "add r1, r1, #144",
                "le lr, 3b",
                "mov r7, r1",
                "str r8, [r11, #48]", // behind the fourth row is the next quad's first
                "add r10, r10, r12, lsl #1",
                "add r10, r10, r12",
                "str r10, [r11, #56]",
                $begin,
                "add r12, r11, #24",
                "ldm r12, {{r3, r5, r9, r10}}", // first_x, first_out, first_row_scales
                "str r10, [r11]",
                "add r10, r9, #16",
                "str r10, [r11, #32]",
                "ldr r1, [r11, #16]", // wide
                "4:",                 // two rows
                group!(),
                "vmul.i32 q6, q0, q2",
                "vmul.i32 q7, q1, q2",
                "cmp r1, r7",
                "beq 6f",
                "5:", // another group
                group!(),
                "vmul.i32 q0, q0, q2",
                "vmul.i32 q1, q1, q2",
                "vadd.i32 q6, q6, q0",
                "vadd.i32 q7, q7, q1",
                "cmp r1, r7",
                "bne 5b",
                "6:",
                "ldm r11, {{r0, r6, r8, r10, r12, lr}}", // row_scales, add, out_stride, step, wide, end
                $end,
                "add r3, r3, r10",
                "add r5, r5, r10",
                "mov r1, r12",
                "cmp r3, lr",
                "bne 4b",
                "ldr r0, [r11, #64]", // quads
                "subs r0, r0, #1",
                "str r0, [r11, #64]",
                "bne 2b",
                "vpop {{d8-d15}}",
                "pop {{r4-r11, pc}}",
            )
        }
    };
}

multiply!(
    multiply_floats,
    "ldrd r0, r2, [r11, #40] // scales, bias
    vldrw.u32 q4, [r0], #16
    vldrw.u32 q5, [r2], #16
    strd r0, r2, [r11, #40]",
    "ldrd r2, r4, [r0], #8
    str r0, [r11]
    vcvt.f32.s32 q0, q6, #4
    vcvt.f32.s32 q1, q7, #4
    vmul.f32 q2, q4, r2
    vmul.f32 q3, q4, r4
    vmul.f32 q0, q0, q2
    vmul.f32 q1, q1, q3
    vadd.f32 q0, q0, q5
    vadd.f32 q1, q1, q5
    add r2, r9, r8
    cbz r6, 7f
    vpstt
    vldrwt.u32 q2, [r9]
    vldrwt.u32 q3, [r2]
    vadd.f32 q0, q2, q0
    vadd.f32 q1, q3, q1
    7:
    vpstt
    vstrwt.32 q0, [r9]
    vstrwt.32 q1, [r2]
    add r9, r2, r8"
);

multiply!(
    multiply_sums,
    "",
    "vshr.s32 q6, q6, #4
    vshr.s32 q7, q7, #4
    vldrw.u32 q0, [r9]
    vldrw.u32 q1, [r9, #16]
    vadd.i32 q0, q0, q6
    vadd.i32 q1, q1, q7
    vstrw.32 q0, [r9], #16
    vstrw.32 q1, [r9], #16"
);
