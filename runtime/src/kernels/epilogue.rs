//! What happens to the exact sums of an integer product: back to floats, in place of its output.

use core::ops::Range;

use super::LANES;
use crate::{math::gelu, pack::Vector};

/// What becomes of a linear's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    /// Overwrites the output.
    Store,
    /// Is added to what is there: a residual connection.
    Add,
    /// Overwrites the output with its GELU.
    Gelu,
}

/// `out[row, n] = sum * (row_scale[row] * scale[n]) + bias[n]`, then the [`Activation`].
pub(crate) struct Epilogue<'a> {
    /// A scale for each output channel.
    pub scales: &'a [f32],
    /// A bias for each output channel, or none.
    pub bias: Option<Vector<'a>>,
    /// A scale for each row.
    pub row_scales: &'a [f32],
    /// The outputs that are wanted; `out` starts with the first of them.
    pub outputs: Range<usize>,
    /// `[rows, stride]`
    pub out: &'a mut [f32],
    pub stride: usize,
    pub activation: Activation,
}

/// The [`LANES`] numbers from `start` on.
#[inline(always)]
fn chunk(x: &[f32], start: usize) -> Option<&[f32; LANES]> {
    match x.get(start..) {
        Some(x) => x.first_chunk(),
        None => None,
    }
}

impl Epilogue<'_> {
    /// Takes the sums of [`LANES`] outputs of `R` rows; those that are not wanted are dropped.
    #[inline(always)]
    #[allow(dead_code)] // only vector instruction sets have so many at once
    pub fn put<const R: usize>(&mut self, row: usize, output: usize, sums: &[[i32; LANES]; R]) {
        let whole = output >= self.outputs.start && output + LANES <= self.outputs.end;
        let bias = match self.bias {
            Some(Vector::F32(bias)) => chunk(bias, output),
            Some(Vector::F16(_)) => None,
            None => Some(&[-0.0; LANES]), // adding it changes nothing
        };
        match (bias, chunk(self.scales, output)) {
            (Some(bias), Some(scales)) if whole => self.put_whole(row, output, sums, scales, bias),
            _ => {
                for (r, sums) in sums.iter().enumerate() {
                    for (i, sum) in sums.iter().enumerate() {
                        self.put_one(row + r, output + i, *sum);
                    }
                }
            }
        }
    }

    /// Panics unless there are so many rows, and scales and a bias for the outputs; pointers may rely on it.
    #[cfg(any(target_arch = "x86_64", sorcen_mve, all(sorcen_dsp, target_abi = "eabihf")))]
    pub fn check(&self, rows: usize) {
        let Range { start, end } = self.outputs;
        assert!(self.row_scales.len() >= rows && self.scales.len() >= end && start <= end);
        assert!(rows == 0 || self.out.len() >= (rows - 1) * self.stride + end - start);
        assert!(self.bias.is_none_or(|bias| bias.len() >= end));
    }

    #[inline(always)]
    fn put_whole<const R: usize>(
        &mut self,
        row: usize,
        output: usize,
        sums: &[[i32; LANES]; R],
        scales: &[f32; LANES],
        bias: &[f32; LANES],
    ) {
        let first = row * self.stride + output - self.outputs.start;
        let row_scales = &self.row_scales[row..row + R];
        let activation = self.activation;
        for r in 0..R {
            let out = &mut self.out[first + r * self.stride..][..LANES];
            // Plain loops: a closure might not be inlined, and be compiled for a lesser CPU.
            let mut value = [0.0; LANES];
            for i in 0..LANES {
                value[i] = sums[r][i] as f32 * (row_scales[r] * scales[i]) + bias[i];
            }
            match activation {
                Activation::Store => {}
                Activation::Add => {
                    for i in 0..LANES {
                        value[i] += out[i];
                    }
                }
                Activation::Gelu => {
                    for value in &mut value {
                        *value = gelu(*value);
                    }
                }
            }
            out.copy_from_slice(&value);
        }
    }

    /// The GELU of outputs that were stored without, in place.
    #[cfg(any(sorcen_mve, all(sorcen_dsp, target_abi = "eabihf")))]
    #[inline(never)]
    pub fn gelu(&mut self, rows: usize, outputs: Range<usize>) {
        let first = outputs.start - self.outputs.start;
        for row in 0..rows {
            let out = &mut self.out[row * self.stride + first..][..outputs.len()];
            out.iter_mut().for_each(|x| *x = gelu(*x));
        }
    }

    /// Takes the sums of one row and any number of outputs, all of them wanted: for kernels that are compiled for
    /// small cores, where a loop of its own for each case costs least.
    #[cfg(any(sorcen_dsp, sorcen_mve))]
    pub fn put_slice(&mut self, row: usize, output: usize, sums: &[i32]) {
        let outputs = output..output + sums.len();
        let at = row * self.stride + output - self.outputs.start;
        let (row_scale, scales) = (self.row_scales[row], &self.scales[outputs.clone()]);
        let out = &mut self.out[at..at + sums.len()];
        match (self.bias, self.activation) {
            (Some(Vector::F32(bias)), Activation::Store) => store(sums, row_scale, scales, &bias[outputs], out),
            (Some(Vector::F32(bias)), Activation::Add) => add(sums, row_scale, scales, &bias[outputs], out),
            (Some(Vector::F32(bias)), Activation::Gelu) => {
                store(sums, row_scale, scales, &bias[outputs], out);
                out.iter_mut().for_each(|x| *x = gelu(*x));
            }
            (None, Activation::Store) => scale(sums, row_scale, scales, out),
            _ => sums.iter().enumerate().for_each(|(i, sum)| self.put_one(row, output + i, *sum)),
        }
    }

    /// Takes one sum; ignored if its output is not wanted.
    #[inline(always)]
    pub fn put_one(&mut self, row: usize, output: usize, sum: i32) {
        if !self.outputs.contains(&output) {
            return;
        }
        let bias = self.bias.map_or(-0.0, |bias| bias.get(output));
        let value = sum as f32 * (self.row_scales[row] * self.scales[output]) + bias;
        let out = &mut self.out[row * self.stride + output - self.outputs.start];
        match self.activation {
            Activation::Store => *out = value,
            Activation::Add => *out += value,
            Activation::Gelu => *out = gelu(value),
        }
    }
}

/// `out = sums * (row_scale * scales)`
#[cfg(any(sorcen_dsp, sorcen_mve))]
#[inline(never)]
fn scale(sums: &[i32], row_scale: f32, scales: &[f32], out: &mut [f32]) {
    for ((out, sum), scale) in out.iter_mut().zip(sums).zip(scales) {
        *out = *sum as f32 * (row_scale * *scale);
    }
}

/// `out = sums * (row_scale * scales) + bias`
#[cfg(any(sorcen_dsp, sorcen_mve))]
#[inline(never)]
fn store(sums: &[i32], row_scale: f32, scales: &[f32], bias: &[f32], out: &mut [f32]) {
    for (((out, sum), scale), bias) in out.iter_mut().zip(sums).zip(scales).zip(bias) {
        *out = *sum as f32 * (row_scale * *scale) + *bias;
    }
}

/// `out += sums * (row_scale * scales) + bias`
#[cfg(any(sorcen_dsp, sorcen_mve))]
#[inline(never)]
fn add(sums: &[i32], row_scale: f32, scales: &[f32], bias: &[f32], out: &mut [f32]) {
    for (((out, sum), scale), bias) in out.iter_mut().zip(sums).zip(scales).zip(bias) {
        *out += *sum as f32 * (row_scale * *scale) + *bias;
    }
}
