//! One int8 linear layer alone, to count or time it (feature `bench`).

use crate::{
    error::Error,
    kernels::{dispatch, Activation, Kernels},
    layers::{
        block::put_rows,
        linear::{Input, Linear, Output},
    },
    pack::{Data, Matrix, Vector},
    quant::Layout,
};

/// An int8 linear layer, row-major.
#[derive(Clone, Copy)]
pub struct Layer<'a> {
    /// `[outputs, cols]`, -127 to 127.
    pub weights: &'a [i8],
    /// `[outputs]`
    pub scales: &'a [f32],
    /// `[outputs]`
    pub bias: &'a [f32],
    /// Inputs.
    pub cols: usize,
}

impl Layer<'_> {
    /// Bytes of a quantised row of so many inputs.
    pub const fn row_bytes(cols: usize) -> usize {
        Linear::stride(cols)
    }

    /// `out[r, n] = x[r, :] · weights[n, :] + bias[n]`: quantises the rows of `x`, multiplies, goes back to floats.
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
        check("weights", outputs * self.cols, self.weights.len())?;
        check("bias", outputs, self.bias.len())?;
        check("x", rows * self.cols, x.len())?;
        check("quantised", rows * stride, quantised.len())?;
        check("out", rows * outputs, out.len())?;
        if !(quantised.as_ptr() as usize).is_multiple_of(16) {
            return Err(Error::Alignment { item: "quantised", needed: 16 });
        }
        let data = Data::Int8 { weights: self.weights, scales: self.scales, layout: Layout::ROW_MAJOR };
        let weight = Matrix { rows: outputs, cols: self.cols, data };
        let linear = Linear { weight, bias: Vector::F32(self.bias) };
        let mut input = Input { floats: &mut [], bytes: quantised, stride, scales: row_scales };
        let output = Output { data: out, stride: outputs, activation: Activation::Store };
        dispatch!(kernels, k => {
            put_rows(k, x, &linear, &mut input);
            linear.apply(k, &input, rows, 0..outputs, output);
        });
        Ok(())
    }
}
