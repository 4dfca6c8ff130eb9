//! Cortex-M with the DSP extension (M4, M7, M33): two 16-bit products an instruction.
//!
//! Rows of up to 256 inputs have loops of their own where there is an FPU: `thumb_short`. int4 weights: `thumb_int4`.
//!
//! The suite needs std, which these cores lack: `firmware-examples/examples/kernels.rs` is its counterpart, and every
//! other example there has to equal the host to the bit.

use core::{arch::naked_asm, ops::Range};

use super::{bytes::as_i16_mut, scalar, thumb_int4, Epilogue, Int4, Kernel, Rows, Weights, LANES};
use crate::math::round_to_i32;

/// Inputs that one round of the inner loop takes.
pub(super) const BLOCK: usize = 16;

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
    fn store_int4(self, x: &[f32], inverse: f32, out: &mut [u8]) {
        thumb_int4::store(x, inverse, out);
    }

    #[inline(always)]
    fn gemm_int4(self, weights: Int4<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
        thumb_int4::gemm(weights, rows, outputs, epilogue);
    }

    #[inline(always)]
    fn mix(self, p: &[i16], pairs: usize, v: &[i16], width: usize, epilogue: &mut Epilogue<'_>) {
        mix(p, pairs, v, width, epilogue);
    }
}

#[inline(always)]
fn gemm(weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
    #[cfg(target_abi = "eabihf")]
    let outputs = super::thumb_short::gemm(weights, rows, outputs, epilogue);
    if !outputs.is_empty() {
        gemm_long(weights, rows, outputs, epilogue);
    }
}

/// Rows of any length: sums of some outputs, then floats.
#[inline(never)]
fn gemm_long(weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
    let x = rows.of_16_bits();
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

#[inline(never)]
fn mix(p: &[i16], pairs: usize, v: &[i16], width: usize, epilogue: &mut Epilogue<'_>) {
    let is_aligned = [p, v].iter().all(|x| (x.as_ptr() as usize).is_multiple_of(4));
    if pairs == 0 || !is_aligned {
        return scalar::mix(p, pairs, v, width, epilogue);
    }
    assert!(v.len() >= pairs * 2 * width);
    for (row, p) in p.chunks_exact(2 * pairs).enumerate() {
        for start in (0..width).step_by(LANES) {
            let count = LANES.min(width - start);
            let mut sums = [0; LANES];
            let ends = p.as_ptr_range();
            if count >= 4 {
                let mut mixture = Mixture {
                    p: ends.start,
                    v: v[2 * start..].as_ptr(),
                    step: 4 * width - 16,
                    whole: ends.start.wrapping_add(pairs / 4 * 8),
                    zeros: [0; 4],
                    end: ends.end,
                    sums: sums.as_mut_ptr(),
                    fours: count / 4,
                };
                // SAFETY: `pairs` pairs of a row, at least one, and as many of values of 4 * fours <= width - start
                // outputs; sums for as many, at most LANES; all at multiples of 4.
                unsafe { mix_fours(&mut mixture) };
            }
            for (i, sum) in sums.iter_mut().enumerate().take(count).skip(count / 4 * 4) {
                for (p, v) in p.chunks_exact(2).zip(v.chunks_exact(2 * width)) {
                    let v = &v[2 * (start + i)..][..2];
                    let pair = i32::from(p[0]) * i32::from(v[0]) + i32::from(p[1]) * i32::from(v[1]);
                    *sum = sum.wrapping_add(pair);
                }
            }
            epilogue.put_slice(row, start, &sums[..count]);
        }
    }
}

/// What [`mix_fours`] works on; it changes `v`, `sums` and `fours`.
#[repr(C)]
struct Mixture {
    p: *const i16,
    v: *const i16,
    /// From behind four pairs of values to the next token pair's, bytes.
    step: usize,
    /// Where fewer than four pairs of tokens are left.
    whole: *const i16,
    zeros: [i32; 4],
    end: *const i16,
    sums: *mut i32,
    /// Groups of four outputs, at least one.
    fours: usize,
}

/// Two pairs of tokens (r0) times their values of four outputs (r1); sums in r4 to r7.
macro_rules! mix_two {
    () => {
        "ldrd r12, lr, [r0], #8
        ldm r1!, {{r8-r11}}
        add r1, r1, r2
        smlad r4, r12, r8, r4
        smlad r5, r12, r9, r5
        smlad r6, r12, r10, r6
        smlad r7, r12, r11, r7
        ldm r1!, {{r8-r11}}
        add r1, r1, r2
        smlad r4, lr, r8, r4
        smlad r5, lr, r9, r5
        smlad r6, lr, r10, r6
        smlad r7, lr, r11, r7
        "
    };
}

/// `sums[d] = sum_j p[j] * v[j][d]`, four outputs at a time.
///
/// # Safety
/// The pointers reach as far as the sizes say.
#[unsafe(naked)]
unsafe extern "C" fn mix_fours(mixture: &mut Mixture) {
    naked_asm!(
        "push {{r0, r4-r11, lr}}", // [sp]: the mixture
        "2:",                      // four outputs
        "ldr lr, [sp]",
        "ldm lr, {{r0-r7}}", // p, v, step, whole, zeros
        "cmp r0, r3",
        "beq 4f",
        "3:", // four pairs
        mix_two!(),
        mix_two!(),
        "cmp r0, r3",
        "bne 3b",
        "4:",
        "ldr lr, [sp]",
        "ldr r3, [lr, #32]", // end
        "cmp r0, r3",
        "beq 6f",
        "5:", // one pair
        "ldr r12, [r0], #4",
        "ldm r1!, {{r8-r11}}",
        "add r1, r1, r2",
        "smlad r4, r12, r8, r4",
        "smlad r5, r12, r9, r5",
        "smlad r6, r12, r10, r6",
        "smlad r7, r12, r11, r7",
        "cmp r0, r3",
        "bne 5b",
        "6:",
        "ldr r12, [lr, #36]", // sums
        "stm r12!, {{r4-r7}}",
        "str r12, [lr, #36]",
        "ldr r1, [lr, #4]",
        "add r1, r1, #16",
        "str r1, [lr, #4]",
        "ldr r12, [lr, #40]", // fours
        "subs r12, r12, #1",
        "str r12, [lr, #40]",
        "bne 2b",
        "pop {{r0, r4-r11, pc}}",
    )
}
