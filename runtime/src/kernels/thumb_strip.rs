//! How products are walked on cores with the DSP extension: a row of 16-bit inputs times two rows of weights.
//!
//! Two rows of weights are widened to 16 bits, then multiplied with all rows of inputs, then the next two: the inner
//! loop only loads and multiplies.

use core::mem::MaybeUninit;

use crate::quant::int4::GROUP;

/// The longest rows of weights that are widened whole.
pub(super) const LONGEST: usize = 256;

/// Place for two widened rows, and two multipliers for each group.
pub(super) type Wide = MaybeUninit<[i32; LONGEST + 2 * LONGEST / GROUP]>;

/// Some outputs of some rows: what the functions of [`multiply!`] work on. They have a copy of it on the stack.
#[repr(C)]
pub(super) struct Strip {
    /// Two rows of inputs.
    pub x: [*const i16; 2],
    /// Start and end of two rows of widened weights.
    pub wide: [*mut i32; 2],
    pub zeros: [i32; 4],
    pub out: *mut f32,
    pub row_scales: *const f32,
    /// From the end of two rows to the next two, bytes.
    pub step: usize,
    /// From one row of outputs to the next, bytes.
    pub stride: usize,
    /// Where the first of two rows is not there any more.
    pub end: *const i16,
    /// The next rows of weights, their lengths in bytes, their scales and biases, how many pairs of them there are.
    pub w: *const u8,
    pub row_bytes: usize,
    pub scales: *const f32,
    pub bias: *const f32,
    pub pairs: usize,
    /// The first two rows, and what belongs to them; the outputs are those of the next weights.
    pub first_x: [*const i16; 2],
    pub first_out: *mut f32,
    pub first_row_scale: *const f32,
    /// int4: the multipliers of the next rows, and how many a row has.
    pub multipliers: *const u8,
    pub groups: usize,
}

impl Strip {
    pub const EMPTY: Self = Self {
        x: [core::ptr::null(); 2],
        wide: [core::ptr::null_mut(); 2],
        zeros: [0; 4],
        out: core::ptr::null_mut(),
        row_scales: core::ptr::null(),
        step: 0,
        stride: 0,
        end: core::ptr::null(),
        w: core::ptr::null(),
        row_bytes: 0,
        scales: core::ptr::null(),
        bias: core::ptr::null(),
        pairs: 0,
        first_x: [core::ptr::null(); 2],
        first_out: core::ptr::null_mut(),
        first_row_scale: core::ptr::null(),
        multipliers: core::ptr::null(),
        groups: 0,
    };

    /// Takes an even number of rows, or one: that counts as two in the same place, both of whose outputs are read
    /// before either is written (`row_scales` has to have its scale twice).
    pub fn set_rows(&mut self, x: *const i16, count: usize, x_stride: usize, row_bytes: usize) {
        if count == 1 {
            (self.first_x, self.step, self.end, self.stride) = ([x, x], 0usize.wrapping_sub(row_bytes), x, 0);
        } else {
            self.first_x = [x, x.wrapping_byte_add(x_stride)];
            self.step = (2 * x_stride).wrapping_sub(row_bytes);
            self.end = x.wrapping_byte_add(count * x_stride);
        }
    }
}

/// `multiply!(name, widen, begin, products, end)`: a function from the rows of a [`Strip`] to its outputs, made of macros:
///
/// - `widen`: two rows of weights to 16 bits, where `wide` says; the next two are noted in `w`. Labels 3.
/// - `begin`: what else belongs to two outputs.
/// - `products`: two rows of inputs times the widened weights, sums in r4 to r7; r0 and r1 point behind the inputs.
///   Labels 5.
/// - `end`: sums to outputs (r8, a row is r11 bytes); r8 becomes the next row of them, r9 that of the row scales. Keeps
///   r0, r1, r10.
///
/// `[sp]` is the strip, `[sp, #96]` room for four sums.
macro_rules! multiply {
    ($name:ident, $widen:ident, $begin:ident, $products:ident, $end:ident) => {
        /// # Safety
        /// The pointers of the strip reach as far as its sizes say.
        #[unsafe(naked)]
        unsafe extern "C" fn $name(strip: &Strip) {
            core::arch::naked_asm!(
                "push {{r0-r11, lr}}", // r0 to r3 for the room
                "add r12, r0, #48",    // the strip, to the stack
                "ldm r12, {{r1-r12}}",
                "push {{r1-r12}}",
                "ldm r0, {{r1-r12}}",
                "push {{r1-r12}}",
                "2:",                     // two outputs
                "ldrd r0, r3, [sp, #52]", // w, row_bytes
                "ldrd r2, r12, [sp, #8]", // wide
                "add r1, r0, r3",
                $widen!(),
                "str r1, [sp, #52]",
                $begin!(),
                "add r12, sp, #72",
                "ldm r12, {{r0, r1, r8, r9}}", // first_x, first_out, first_row_scale
                "strd r0, r1, [sp]",
                "strd r8, r9, [sp, #32]",
                "add r8, r8, #8",
                "str r8, [sp, #80]",
                "4:", // two rows
                $products!(),
                "ldrd r8, r9, [sp, #32]",   // out, row_scales
                "ldrd r10, r11, [sp, #40]", // step, stride
                $end!(),
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
                "add sp, sp, #112",
                "pop {{r4-r11, pc}}",
            )
        }
    };
}
/// Four inputs of two rows (r0, r1) times two widened rows of weights (r2); sums in r4 to r7.
macro_rules! four_inputs {
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
pub(super) use {four_inputs, multiply};
