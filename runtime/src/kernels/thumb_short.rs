//! Products of short rows on cores with the DSP extension and an FPU: a sum never reaches memory, for what an output
//! costs once is much of what a short row costs. The walk: `thumb_strip`.

use core::ops::Range;

use super::{
    bytes::of_i8,
    thumb::BLOCK,
    thumb_int4::{products_int4, widen_int4},
    thumb_strip::{four_inputs, multiply, Strip, Wide, LONGEST},
    Activation, Epilogue, Int4, Rows, Weights,
};
use crate::{
    pack::Vector,
    quant::int4::{GROUP, GROUP_BYTES},
};

/// A function made by [`multiply!`].
pub(super) type Multiply = unsafe extern "C" fn(&Strip);

/// Rows of weights of one precision.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub weights: &'a [u8],
    pub row_bytes: usize,
    /// int4: the multipliers, and how many a row has.
    pub multipliers: &'a [u8],
    pub groups: usize,
    /// Inputs.
    pub cols: usize,
    /// What stores outputs without biases, with, and what adds them to those that are there.
    pub scale: Option<Multiply>,
    pub store: Multiply,
    pub add: Multiply,
}

/// int8 weights: see [`strips`].
#[inline(always)]
pub(super) fn gemm(
    weights: Weights<'_>,
    rows: Rows<'_>,
    outputs: Range<usize>,
    epilogue: &mut Epilogue<'_>,
) -> Range<usize> {
    let (weights, cols) = (of_i8(weights.values), weights.cols);
    let (scale, store, add) = (Some(multiply_scale as Multiply), multiply_store, multiply_add);
    let source = Source { weights, row_bytes: cols, multipliers: &[], groups: 0, cols, scale, store, add };
    strips(source, rows, outputs, epilogue)
}

/// Rows in whole blocks of up to [`LONGEST`] inputs; returns the outputs that are left to others.
#[inline(never)]
pub(super) fn strips(
    source: Source<'_>,
    rows: Rows<'_>,
    outputs: Range<usize>,
    epilogue: &mut Epilogue<'_>,
) -> Range<usize> {
    let (multiply, bias) = match (epilogue.bias, epilogue.activation, source.scale) {
        (None, Activation::Store, Some(scale)) => (scale, None),
        (Some(Vector::F32(bias)), Activation::Store | Activation::Gelu, _) => (source.store, Some(bias)),
        (Some(Vector::F32(bias)), Activation::Add, _) => (source.add, Some(bias)),
        _ => return outputs,
    };
    let (Source { row_bytes, groups, cols, .. }, Rows { stride, count, .. }) = (source, rows);
    let x = rows.of_16_bits();
    let is_short = (BLOCK..=LONGEST).contains(&cols) && cols.is_multiple_of(BLOCK);
    let is_aligned = (x.as_ptr() as usize).is_multiple_of(4) && stride.is_multiple_of(4);
    if !is_short || !is_aligned || count == 0 || outputs.len() < 2 {
        return outputs;
    }
    epilogue.check(count);
    assert!(x.len() >= (count - 1) * stride / 2 + cols);
    assert!(source.weights.len() >= outputs.end * row_bytes && source.multipliers.len() >= outputs.end * groups);
    assert!(outputs.start >= epilogue.outputs.start && outputs.end <= epilogue.outputs.end);
    let is_odd = !outputs.len().is_multiple_of(2);
    let adds = epilogue.activation == Activation::Add;
    let mut wide = Wide::uninit();
    let wide: *mut i32 = wide.as_mut_ptr().cast();
    let even = count / 2 * 2;
    for (row, end) in [(0, even), (even, count)] {
        if row == end {
            continue;
        }
        let row_scales = &epilogue.row_scales[row..end];
        let twice = [row_scales[0]; 2];
        let is_one = end - row == 1;
        let mut strip = Strip {
            wide: [wide, wide.wrapping_add(cols + 2 * groups)],
            stride: 4 * epilogue.stride,
            row_bytes,
            first_row_scale: if is_one { twice.as_ptr() } else { row_scales.as_ptr() },
            groups,
            ..Strip::EMPTY
        };
        strip.set_rows(x.as_ptr().wrapping_byte_add(row * stride), end - row, stride, 2 * cols);
        // An odd output is computed with the one before it, again.
        for (first, pairs) in [(outputs.start, outputs.len() / 2), (outputs.end - 2, usize::from(is_odd && !adds))] {
            if pairs == 0 {
                continue;
            }
            strip.pairs = pairs;
            strip.w = source.weights[first * row_bytes..].as_ptr();
            strip.multipliers = source.multipliers[first * groups..].as_ptr();
            strip.scales = epilogue.scales[first..].as_ptr();
            strip.bias = bias.map_or(core::ptr::null(), |bias| bias[first..].as_ptr());
            strip.first_out = epilogue.out[row * epilogue.stride + first - epilogue.outputs.start..].as_mut_ptr();
            // SAFETY: `cols` inputs, a multiple of BLOCK (int4: groups), of one row or an even number at multiples of 4;
            // rows of weights, multipliers, scales and biases (where the function reads any) for 2 * pairs outputs;
            // outputs that are there by `check` and the range; room for two rows of weights of 16 bits.
            unsafe { multiply(&strip) };
        }
    }
    let left = if is_odd && adds { outputs.end - 1..outputs.end } else { outputs.end..outputs.end };
    if epilogue.activation == Activation::Gelu {
        epilogue.gelu(count, outputs);
    }
    left
}

/// Four weights of two rows (r0, r1) to 16 bits (r2): those of one and of the other by turns.
macro_rules! widen_four {
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

macro_rules! widen {
    () => {
        concat!(
            "3:\n", // 16 inputs
            widen_four!(),
            widen_four!(),
            widen_four!(),
            widen_four!(),
            "cmp r2, r12
            bne 3b"
        )
    };
}

macro_rules! products {
    () => {
        concat!(
            "ldm sp, {{r0-r7}}\n", // x, wide, zeros
            "5:\n",                // 16 inputs
            four_inputs!(),
            four_inputs!(),
            four_inputs!(),
            four_inputs!(),
            "cmp r2, r3
            bne 5b
            "
        )
    };
}

/// Two scales.
macro_rules! begin {
    () => {
        "ldrd r0, r1, [sp, #60] // scales, bias
        vldmia r0!, {{s8, s9}}
        strd r0, r1, [sp, #60]
        "
    };
}

/// Two scales and biases.
macro_rules! begin_with_bias {
    () => {
        "ldrd r0, r1, [sp, #60] // scales, bias
        vldmia r0!, {{s8, s9}}
        vldmia r1!, {{s10, s11}}
        strd r0, r1, [sp, #60]
        "
    };
}

/// Sums times scales, in s0 to s3; r12 is the second row of outputs.
macro_rules! to_floats {
    () => {
        "vmov s0, s1, r4, r5
        vmov s2, s3, r6, r7
        vldmia r9!, {{s4, s5}}
        vcvt.f32.s32 s0, s0
        vcvt.f32.s32 s1, s1
        vcvt.f32.s32 s2, s2
        vcvt.f32.s32 s3, s3
        vmul.f32 s6, s4, s8
        vmul.f32 s7, s4, s9
        vmul.f32 s12, s5, s8
        vmul.f32 s13, s5, s9
        vmul.f32 s0, s0, s6
        vmul.f32 s1, s1, s7
        vmul.f32 s2, s2, s12
        vmul.f32 s3, s3, s13
        add r12, r8, r11
        "
    };
}

macro_rules! add_bias {
    () => {
        "vadd.f32 s0, s0, s10
        vadd.f32 s1, s1, s11
        vadd.f32 s2, s2, s10
        vadd.f32 s3, s3, s11
        "
    };
}

/// s0 to s3 to the outputs.
macro_rules! write {
    () => {
        "vstmia r8, {{s0, s1}}
        vstmia r12, {{s2, s3}}
        add r8, r12, r11
        "
    };
}

macro_rules! scale {
    () => {
        concat!(to_floats!(), write!())
    };
}

macro_rules! store {
    () => {
        concat!(to_floats!(), add_bias!(), write!())
    };
}

macro_rules! add {
    () => {
        concat!(
            to_floats!(),
            add_bias!(),
            "vldmia r8, {{s4, s5}}
            vldmia r12, {{s6, s7}}
            vadd.f32 s0, s4, s0
            vadd.f32 s1, s5, s1
            vadd.f32 s2, s6, s2
            vadd.f32 s3, s7, s3
            ",
            write!()
        )
    };
}

multiply!(multiply_scale, widen, begin, products, scale);
multiply!(multiply_store, widen, begin_with_bias, products, store);
multiply!(multiply_add, widen, begin_with_bias, products, add);
// The same for int4 weights.
multiply!(multiply_int4_store, widen_int4, begin_with_bias, products_int4, store);
multiply!(multiply_int4_add, widen_int4, begin_with_bias, products_int4, add);

/// int4 weights: see [`strips`].
#[inline(always)]
pub(super) fn gemm_int4(
    weights: Int4<'_>,
    rows: Rows<'_>,
    outputs: Range<usize>,
    epilogue: &mut Epilogue<'_>,
) -> Range<usize> {
    let groups = weights.groups;
    let source = Source {
        weights: weights.values,
        row_bytes: groups * GROUP_BYTES,
        multipliers: weights.multipliers,
        groups,
        cols: groups * GROUP,
        scale: None,
        store: multiply_int4_store,
        add: multiply_int4_add,
    };
    strips(source, rows, outputs, epilogue)
}
