//! The integer products alone, to count, time or check them (feature `bench`).

use crate::{
    error::Error,
    kernels::{dispatch, Activation, Epilogue, Kernel, Kernels, Rows, Weights},
    layers::{
        block::put_rows,
        linear::{product, Input, Linear, Output},
    },
    pack::{Data, Matrix, Vector},
    quant::{
        int4::{self, Order},
        Layout,
    },
};

/// Weights of a [`Layer`], a row after the other.
#[derive(Clone, Copy)]
pub enum Values<'a> {
    /// `[outputs, cols]`, -127 to 127.
    Int8(&'a [i8]),
    /// [`int4::bytes`] of weights and multipliers in [`Order::Rows`].
    Int4(&'a [u8]),
}

/// An integer linear layer.
#[derive(Clone, Copy)]
pub struct Layer<'a> {
    /// Its weights.
    pub weights: Values<'a>,
    /// `[outputs]`
    pub scales: &'a [f32],
    /// `[outputs]`, or none: attention scores (int8 alone).
    pub bias: Option<&'a [f32]>,
    /// Inputs.
    pub cols: usize,
    /// Whether it adds to the output: a residual connection.
    pub add: bool,
}

impl Layer<'_> {
    /// Bytes of a quantised row of so many inputs.
    pub const fn row_bytes(cols: usize) -> usize {
        Linear::stride(cols)
    }

    /// `out[r, n] = x[r, :] · weights[n, :] + bias[n]` (or `+=`): quantises the rows of `x`, multiplies, goes back to floats.
    ///
    /// `x` `[rows, cols]`, `out` `[rows, outputs]`, `row_scales` `[rows]`; `quantised` is `rows` times
    /// [`row_bytes`](Self::row_bytes) long, at a multiple of 16.
    ///
    /// # Errors
    /// [`Error::Length`] names the slice that does not fit, [`Error::Alignment`].
    pub fn apply(
        &self,
        kernels: Kernels,
        x: &[f32],
        quantised: &mut [u8],
        row_scales: &mut [f32],
        out: &mut [f32],
    ) -> Result<(), Error> {
        let (rows, outputs, stride) = (row_scales.len(), self.scales.len(), Self::row_bytes(self.cols));
        let check =
            |item, needed, found| if needed == found { Ok(()) } else { Err(Error::Length { item, needed, found }) };
        match self.weights {
            Values::Int8(values) => {
                check("weights", outputs * self.cols, values.len())?;
                check("bias", outputs, self.bias.map_or(outputs, <[f32]>::len))?;
            }
            Values::Int4(packed) => {
                check("weights", int4::bytes(outputs, self.cols), packed.len())?;
                check("bias", outputs, self.bias.map_or(0, <[f32]>::len))?;
            }
        }
        check("x", rows * self.cols, x.len())?;
        check("quantised", rows * stride, quantised.len())?;
        check("out", rows * outputs, out.len())?;
        if !(quantised.as_ptr() as usize).is_multiple_of(16) {
            return Err(Error::Alignment { item: "quantised", needed: 16 });
        }
        let (scales, layout) = (self.scales, Layout::ROW_MAJOR);
        let data = match self.weights {
            Values::Int8(weights) => Data::Int8 { weights, scales, layout },
            Values::Int4(packed) => {
                let (weights, multipliers) = packed.split_at(int4::weight_bytes(outputs, self.cols));
                Data::Int4 { weights, multipliers, scales, order: Order::Rows }
            }
        };
        let weight = Matrix { rows: outputs, cols: self.cols, data };
        let bias = self.bias.map(Vector::F32);
        let linear = Linear { weight, bias: bias.unwrap_or(Vector::F32(&[])) };
        let mut input = Input { floats: &mut [], bytes: quantised, stride, scales: row_scales };
        let activation = if self.add { Activation::Add } else { Activation::Store };
        dispatch!(kernels, k => {
            put_rows(k, x, &linear, &mut input);
            match self.weights {
                Values::Int8(values) => {
                    let weights = Weights { values, layout, cols: self.cols };
                    let (rows, row_scales) = (Rows { values: &*input.bytes, stride, count: rows }, &*input.scales);
                    let mut epilogue =
                        Epilogue { scales, bias, row_scales, outputs: 0..outputs, out, stride: outputs, activation };
                    product(k, weights, rows, 0..outputs, &mut epilogue);
                }
                Values::Int4(_) => {
                    linear.apply(k, &input, rows, 0..outputs, Output { data: out, stride: outputs, activation });
                }
            }
        });
        Ok(())
    }
}

/// `out[r, d] = row_scales[r] * scales[d] * sum_j p[r, j] * v[j, d]`: attention weights times values.
///
/// `p` `[rows, 2 * pairs]`, 0 to 4095; `v` `[pairs, width, 2]`, -127 to 127; `row_scales` `[rows]`, `scales` `[width]`,
/// `out` `[rows, width]`.
///
/// # Errors
/// [`Error::Length`] names the slice that does not fit.
pub fn mix(
    kernels: Kernels,
    p: &[i16],
    v: &[i16],
    row_scales: &[f32],
    scales: &[f32],
    out: &mut [f32],
) -> Result<(), Error> {
    let (rows, width) = (row_scales.len(), scales.len());
    let pairs = v.len() / (2 * width).max(1);
    let check = |item, needed, found| if needed == found { Ok(()) } else { Err(Error::Length { item, needed, found }) };
    check("v", pairs * 2 * width, v.len())?;
    check("p", rows * 2 * pairs, p.len())?;
    check("out", rows * width, out.len())?;
    let (outputs, activation) = (0..width, Activation::Store);
    let mut epilogue = Epilogue { scales, bias: None, row_scales, outputs, out, stride: width, activation };
    dispatch!(kernels, k => k.mix(p, pairs, v, width, &mut epilogue));
    Ok(())
}
