//! Cortex-M with Helium (M55): 16 products an instruction, summed into one register.
//!
//! Rows of a small model's lengths have loops of their own: `helium_short`. int4 weights: `helium_int4`.
//!
//! The suite needs std, which these cores lack: `firmware-examples/examples/kernels.rs` is its counterpart, and every
//! other example there has to equal the host to the bit.

use core::{arch::naked_asm, ops::Range};

use super::{helium_int4, helium_short, scalar, Epilogue, Int4, Kernel, Rows, Weights};

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

    #[inline(always)]
    fn gemm_int4(self, weights: Int4<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
        helium_int4::gemm(self, weights, rows, outputs, epilogue);
    }

    #[inline(always)]
    fn mix(self, p: &[i16], pairs: usize, v: &[i16], width: usize, epilogue: &mut Epilogue<'_>) {
        mix(p, pairs, v, width, epilogue);
    }
}

#[inline(always)]
fn gemm(weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
    if !helium_short::gemm(weights, rows, outputs.clone(), epilogue) {
        gemm_long(weights, rows, outputs, epilogue);
    }
}

/// Rows of any length: sums of some outputs, then floats.
#[inline(never)]
fn gemm_long(weights: Weights<'_>, rows: Rows<'_>, outputs: Range<usize>, epilogue: &mut Epilogue<'_>) {
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

// `multiply` and `mix_triples` have this number written into them.
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

#[inline(never)]
fn mix(p: &[i16], pairs: usize, v: &[i16], width: usize, epilogue: &mut Epilogue<'_>) {
    let is_aligned = [p, v].iter().all(|x| (x.as_ptr() as usize).is_multiple_of(4));
    if pairs == 0 || width < 3 || !is_aligned {
        return scalar::mix(p, pairs, v, width, epilogue);
    }
    assert!(v.len() >= pairs * 2 * width);
    let rows = p.len() / (2 * pairs);
    let mut sums = [[0; BLOCK]; 2];
    for row in (0..rows).step_by(2) {
        let p0 = &p[row * 2 * pairs..][..2 * pairs];
        let p1 = if row + 1 < rows { &p[(row + 1) * 2 * pairs..][..2 * pairs] } else { p0 };
        for start in (0..width).step_by(BLOCK) {
            let start = start.min(width - 3); // a last one or two are computed with those before
            let count = BLOCK.min(width - start);
            let mut tile = Mixture {
                p0: p0.as_ptr(),
                p1: p1.as_ptr(),
                v: v[2 * start..].as_ptr(),
                step: 16 * width,
                pairs,
                triples: count / 3,
                sums: sums.as_mut_ptr().cast(),
                offsets: [0, 4 * width, 8 * width, 12 * width],
            };
            // SAFETY: `pairs` pairs of two rows; as many pairs of values of 3 * triples <= width - start outputs; sums
            // for as many, at most BLOCK, of a row; all at multiples of 4.
            unsafe { mix_triples(&mut tile) };
            if !count.is_multiple_of(3) {
                tile.v = v[2 * (start + count - 3)..].as_ptr();
                tile.triples = 1;
                tile.sums = sums[0][count - 3..].as_mut_ptr();
                // SAFETY: as above, for the last three outputs.
                unsafe { mix_triples(&mut tile) };
            }
            for (row, sums) in (row..rows).zip(&sums) {
                epilogue.put_slice(row, start, &sums[..count]);
            }
        }
    }
}

/// What [`mix_triples`] works on; it changes `v`, `triples` and `sums`.
#[repr(C)]
struct Mixture {
    p0: *const i16,
    p1: *const i16,
    v: *const i16,
    /// From four pairs of values to the next four, bytes.
    step: usize,
    /// At least one.
    pairs: usize,
    /// Groups of three outputs, at least one.
    triples: usize,
    /// `[2, BLOCK]`
    sums: *mut i32,
    /// Of four pairs, bytes.
    offsets: [usize; 4],
}

/// `sums[r][d] = sum_j p_r[j] * v[j][d]`, three outputs at a time: the values of four pairs of tokens are gathered.
///
/// # Safety
/// The pointers reach as far as the sizes say.
#[unsafe(naked)]
unsafe extern "C" fn mix_triples(tile: &mut Mixture) {
    naked_asm!(
        ".cpu cortex-m55",
        "push {{r4-r11, lr}}",
        "vpush {{d8-d9}}",
        "mov r12, r0",
        "2:",                      // three outputs
        "ldrd r1, r3, [r12]",      // p0, p1
        "ldrd r5, r11, [r12, #8]", // v, step
        "add r7, r5, #4",
        "add r9, r5, #8",
        "vldrw.u32 q4, [r12, #28]", // offsets
        "mov r0, #0",
        "mov r2, #0",
        "mov r4, #0",
        "mov r6, #0",
        "mov r8, #0",
        "mov r10, #0",
        "ldr lr, [r12, #16]", // pairs
        "dlstp.32 lr, lr",
        "3:", // up to four pairs
        "vldrw.u32 q0, [r1], #16",
        "vldrw.u32 q1, [r3], #16",
        "vldrw.u32 q2, [r5, q4]",
        "vmladava.s16 r0, q0, q2",
        "vmladava.s16 r2, q1, q2",
        "vldrw.u32 q3, [r7, q4]",
        "vmladava.s16 r4, q0, q3",
        "vmladava.s16 r6, q1, q3",
        "vldrw.u32 q2, [r9, q4]",
        "vmladava.s16 r8, q0, q2",
        "vmladava.s16 r10, q1, q2",
        "vadd.i32 q4, q4, r11",
        "letp lr, 3b",
        "ldr r1, [r12, #24]", // sums
        "strd r0, r4, [r1]",
        "str r8, [r1, #8]",
        "strd r2, r6, [r1, #192]",
        "str r10, [r1, #200]",
        "add r1, r1, #12",
        "str r1, [r12, #24]",
        "add r5, r5, #12",
        "str r5, [r12, #8]",
        "ldr r1, [r12, #20]", // triples
        "subs r1, r1, #1",
        "str r1, [r12, #20]",
        "bne 2b",
        "vpop {{d8-d9}}",
        "pop {{r4-r11, pc}}",
    )
}
