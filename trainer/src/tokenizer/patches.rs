//! The patch tokenizer as a [`Tokenizer`]: trained by k-means, run by the runtime's integers. Its type and file are
//! the exporter's, which puts it into packs.

use ndarray::{Array3, Array4, ArrayView4, Axis};
use rayon::prelude::*;
pub use sorcen_export::tokenizer::PatchTokenizer;

use super::{check_ids, grid_of, Tokenizer, TokenizerError};

impl Tokenizer for PatchTokenizer {
    fn stride(&self) -> usize {
        self.patch()
    }

    fn codes(&self) -> usize {
        PatchTokenizer::codes(self)
    }

    fn fingerprint(&self) -> String {
        PatchTokenizer::fingerprint(self)
    }

    fn encode_all(&self, images: &[Vec<u8>], side: usize) -> Result<Vec<Vec<u16>>, TokenizerError> {
        let (grid, _) = grid_of(self.patch(), side, side)?;
        let encode = |rgb: &Vec<u8>| {
            let mut ids = vec![0; grid * grid];
            self.codebook().encode(rgb, side, side, &mut ids)?;
            Ok(ids)
        };
        images.par_iter().map(encode).collect()
    }

    fn decode_all(&self, ids: &[Vec<u16>], grid: usize) -> Result<Vec<Vec<u8>>, TokenizerError> {
        let side = grid * self.patch();
        let decode = |ids: &Vec<u16>| {
            check_ids(ids, grid, self.codes())?;
            let mut rgb = vec![0; side * side * 3];
            self.codebook().decode(ids, side, side, &mut rgb)?;
            Ok(rgb)
        };
        ids.par_iter().map(decode).collect()
    }

    fn run(&self, images: ArrayView4<f32>) -> Result<(Array3<i64>, Array4<f32>), TokenizerError> {
        let (batch, channels, height, width) = images.dim();
        let (rows, columns) = grid_of(self.patch(), height, width)?;
        if channels != 3 {
            return Err(TokenizerError::Image { expected: "[B, 3, H, W]", found: format!("{:?}", images.shape()) });
        }
        if let Some(value) = images.iter().find(|value| !(0.0..=1.0).contains(*value)) {
            return Err(TokenizerError::Image { expected: "values in 0 to 1", found: value.to_string() });
        }
        let mut all_ids = Array3::<i64>::zeros((batch, rows, columns));
        let mut reconstruction = Array4::<f32>::zeros((batch, 3, height, width));
        for index in 0..batch {
            let place = |i: usize| [index, i % 3, i / 3 / width, i / 3 % width]; // of byte i of [H, W, 3]
            let bytes = (0..height * width * 3).map(|i| (images[place(i)] * 255.0).round() as u8);
            let mut rgb: Vec<u8> = bytes.collect();
            let mut ids = vec![0; rows * columns];
            self.codebook().encode(&rgb, width, height, &mut ids)?;
            self.codebook().decode(&ids, width, height, &mut rgb)?;
            all_ids.index_axis_mut(Axis(0), index).iter_mut().zip(ids).for_each(|(to, id)| *to = id.into());
            rgb.iter().enumerate().for_each(|(i, &value)| reconstruction[place(i)] = f32::from(value) / 255.0);
        }
        Ok((all_ids, reconstruction))
    }
}
