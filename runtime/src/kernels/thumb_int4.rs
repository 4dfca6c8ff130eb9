//! int4 weights on cores with the DSP extension.
//!
//! Four bits at the top of 16 are the weight times 4096: a mask makes two of them, a shifted operand any others. A
//! group's sum of 32 products is below 2^15, so that it fits; the upper half of its product with the multiplier times
//! 2^20, which `smmla` adds, is the exact product of both.

use core::ops::Range;

use super::{
    bytes::as_i16_mut,
    thumb_strip::{four_inputs, multiply, Strip, Wide, LONGEST},
    Epilogue, Int4, Rows,
};
use crate::{
    math::round_to_i32,
    quant::int4::{Order, GROUP, GROUP_BYTES},
};

/// Eight inputs in the order in which [`widen_int4!`] unpacks the weights of four bytes: low halves, then high ones.
const ORDER: [usize; 8] = [0, 2, 1, 3, 16, 18, 17, 19];

/// [`super::Kernel::store_int4`]: 16 bits an activation.
#[inline(never)]
pub(super) fn store(x: &[f32], inverse: f32, out: &mut [u8]) {
    for (x, q) in x.chunks(GROUP).zip(as_i16_mut(out).chunks_exact_mut(GROUP)) {
        match x.first_chunk() {
            Some(x) => store_group(x, inverse, q),
            None => {
                let mut padded = [0.0; GROUP];
                padded[..x.len()].copy_from_slice(x);
                store_group(&padded, inverse, q);
            }
        }
    }
}

#[inline(always)]
fn store_group(x: &[f32; GROUP], inverse: f32, q: &mut [i16]) {
    for (four, q) in q.chunks_exact_mut(ORDER.len()).enumerate() {
        for (q, i) in q.iter_mut().zip(ORDER) {
            *q = round_to_i32(x[4 * four + i] * inverse) as i16;
        }
    }
}

#[inline(never)]
pub(super) fn gemm(weights: Int4<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
    #[cfg(target_abi = "eabihf")]
    let outputs = super::thumb_short::gemm_int4(weights, rows, outputs, epilogue);
    if !outputs.is_empty() {
        gemm_long(weights, rows, outputs, epilogue);
    }
}

/// Rows that are multiplied with a piece of weights.
const ROWS: usize = 16;

/// Rows of any length, a piece after the other: sums of two outputs, then floats.
#[inline(never)]
fn gemm_long(weights: Int4<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
    assert!(weights.order == Order::Rows);
    let (groups, stride) = (weights.groups, rows.stride);
    let x = rows.of_16_bits();
    let mut wide = Wide::uninit();
    for output in outputs.clone().step_by(2) {
        let count = 2.min(outputs.end - output);
        for first in (0..rows.count).step_by(ROWS) {
            let there = ROWS.min(rows.count - first);
            let mut sums = [[0; 2]; ROWS];
            for group in (0..groups).step_by(LONGEST / GROUP) {
                let piece =
                    Piece { x: &x[first * stride / 2 + group * GROUP..], stride, weights, output, count, group };
                piece.add_products(&mut wide, there, &mut sums);
            }
            for (row, sums) in sums.iter().enumerate().take(there) {
                epilogue.put_slice(first + row, output, &sums[..count]);
            }
        }
    }
}

/// Up to [`LONGEST`] columns of one or two outputs, and rows to multiply them with.
struct Piece<'a> {
    x: &'a [i16],
    /// From one row of inputs to the next, bytes.
    stride: usize,
    weights: Int4<'a>,
    output: usize,
    count: usize,
    /// The first.
    group: usize,
}

impl Piece<'_> {
    /// Adds to the sums of `rows` rows; an odd number spoils the next one.
    fn add_products(&self, wide: &mut Wide, rows: usize, sums: &mut [[i32; 2]; ROWS]) {
        let Self { x, stride, weights, output, count, group } = *self;
        let start = output * weights.groups + group;
        let groups = (LONGEST / GROUP).min(weights.groups - group);
        let cols = groups * GROUP;
        let last = start + (count - 1) * weights.groups + groups;
        assert!(weights.values.len() >= last * GROUP_BYTES && weights.multipliers.len() >= last);
        assert!(stride.is_multiple_of(4) && (x.as_ptr() as usize).is_multiple_of(4));
        assert!((1..=ROWS).contains(&rows) && x.len() >= (rows - 1) * stride / 2 + cols);
        // A row of weights that is alone counts twice.
        let is_two = usize::from(count == 2);
        let wide: *mut i32 = wide.as_mut_ptr().cast();
        let mut strip = Strip {
            wide: [wide, wide.wrapping_add(cols + 2 * groups)],
            w: weights.values[start * GROUP_BYTES..].as_ptr(),
            row_bytes: is_two * weights.groups * GROUP_BYTES,
            pairs: 1,
            multipliers: weights.multipliers[start..].as_ptr(),
            groups: is_two * weights.groups,
            ..Strip::EMPTY
        };
        let even = rows / 2 * 2;
        for (row, end) in [(0, even), (even, rows)] {
            if row == end {
                continue;
            }
            strip.set_rows(x.as_ptr().wrapping_byte_add(row * stride), end - row, stride, 2 * cols);
            strip.first_out = sums[row..].as_mut_ptr().cast();
            // SAFETY: `cols` inputs, whole groups, of one row or an even number at multiples of 4; rows of weights and
            // multipliers for two outputs; sums for an even number of rows, since ROWS is even; room for two rows of
            // weights of 16 bits, LONGEST or less (all asserted).
            unsafe { multiply_int4_sums(&strip) };
        }
    }
}

const _: () = assert!(ROWS.is_multiple_of(2));

/// Groups of two rows (r0, r1) to 16 bits (r2): four weights of one and of the other by turns, then both multipliers.
macro_rules! widen_int4 {
    (eight) => {
        "ldr r4, [r0], #4
        ldr r5, [r1], #4
        and r8, r6, r4, lsl #12
        and r9, r6, r4, lsl #4
        and r10, r6, r5, lsl #12
        and r11, r6, r5, lsl #4
        stm r2!, {{r8-r11}}
        and r8, r6, r4, lsl #8
        and r9, r6, r4
        and r10, r6, r5, lsl #8
        and r11, r6, r5
        stm r2!, {{r8-r11}}
        "
    };
    () => {
        concat!(
            "ldrd r3, r7, [sp, #88] // multipliers, groups
            add r7, r3, r7
            mov r6, #0xF000F000
            3:
            ",
            widen_int4!(eight),
            widen_int4!(eight),
            widen_int4!(eight),
            widen_int4!(eight),
            "ldrb r4, [r3], #1
            ldrb r5, [r7], #1
            lsl r4, r4, #20
            lsl r5, r5, #20
            stm r2!, {{r4, r5}}
            cmp r2, r12
            bne 3b
            str r7, [sp, #88]"
        )
    };
}

/// Groups of two rows of inputs times those of two rows of weights.
macro_rules! products_int4 {
    (first) => {
        "ldm r2!, {{r8-r11}}
        ldrd r12, lr, [r0], #8
        smuad r4, r12, r8
        smuad r5, r12, r10
        smlad r4, lr, r9, r4
        smlad r5, lr, r11, r5
        ldrd r12, lr, [r1], #8
        smuad r6, r12, r8
        smuad r7, r12, r10
        smlad r6, lr, r9, r6
        smlad r7, lr, r11, r7
        "
    };
    () => {
        concat!(
            "ldm sp, {{r0-r7}} // x, wide, zeros
            strd r4, r5, [sp, #96]
            strd r6, r7, [sp, #104]
            5:
            ",
            products_int4!(first),
            four_inputs!(),
            four_inputs!(),
            four_inputs!(),
            four_inputs!(),
            four_inputs!(),
            four_inputs!(),
            four_inputs!(),
            "ldm r2!, {{r12, lr}} // multipliers
            ldrd r8, r9, [sp, #96]
            ldrd r10, r11, [sp, #104]
            smmla r4, r4, r12, r8
            smmla r5, r5, lr, r9
            smmla r6, r6, r12, r10
            smmla r7, r7, lr, r11
            strd r4, r5, [sp, #96]
            strd r6, r7, [sp, #104]
            cmp r2, r3
            bne 5b"
        )
    };
}

/// Nothing.
macro_rules! nothing {
    () => {
        ""
    };
}

/// Adds to the sums of two rows, which lie behind each other.
macro_rules! add_to_sums {
    () => {
        "ldrd r2, r3, [r8]
        ldrd r12, lr, [r8, #8]
        add r4, r4, r2
        add r5, r5, r3
        add r6, r6, r12
        add r7, r7, lr
        stm r8!, {{r4-r7}}"
    };
}

multiply!(multiply_int4_sums, widen_int4, nothing, products_int4, add_to_sums);
#[cfg(target_abi = "eabihf")]
pub(super) use {products_int4, widen_int4};
