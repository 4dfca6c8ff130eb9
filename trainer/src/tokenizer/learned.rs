//! Tokenizers that are networks: what they share, on any Burn backend.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use ndarray::{Array3, Array4, ArrayView4};
use rayon::prelude::*;

use super::{check_ids, grid_of, Tokenizer, TokenizerError};
use crate::kernels::Kernels;
use crate::model::weight::{Weight, Weights};
use crate::model::Precision;

/// A network between pixels and the vectors that a codebook stands for.
pub trait Autoencoder<B: Backend>: Weights<B> + Clone + Sync {
    /// Pixels a token is wide and high.
    fn stride(&self) -> usize;

    /// The only grid of an image, where there is only one.
    fn grid(&self) -> Option<usize>;

    /// A value of nominal range 0 to 1 as a byte of a picture.
    fn byte(&self, value: f32) -> u8;

    /// What is quantised: images `[B, 3, H, W]` in 0 to 1 to `[B, z, h, w]`.
    fn latent(&self, images: Tensor<B, 4>) -> Tensor<B, 4>;

    /// The codes `[K, z]`.
    fn codebook(&self) -> &Weight<B>;

    /// The codes, to be replaced.
    fn codebook_mut(&mut self) -> &mut Weight<B>;

    /// Vectors `[B, z, h, w]` to images `[B, 3, H, W]`, nominally 0 to 1, not clamped.
    fn decode(&self, vectors: Tensor<B, 4>) -> Tensor<B, 4>;
}

/// A network as a [`Tokenizer`].
#[derive(Clone, Debug)]
pub struct Learned<B: Backend, N> {
    net: N,
    fingerprint: String,
    batch: usize,
    device: B::Device,
}

impl<B: Kernels, N: Autoencoder<B>> Learned<B, N> {
    /// At most `batch` images are worked on together; with `batch` 1 each has a thread of its own.
    pub fn new(net: N, fingerprint: String, batch: usize, device: B::Device) -> Self {
        Self { net, fingerprint, batch: batch.max(1), device }
    }

    /// The network.
    pub fn net(&self) -> &N {
        &self.net
    }

    /// What is quantised: images `[B, 3, H, W]` in 0 to 1 to `[B, z, h, w]`.
    pub fn latent(&self, images: Tensor<B, 4>) -> Tensor<B, 4> {
        self.net.latent(images)
    }

    /// Images `[B, 3, H, W]` to ids `[B, h, w]`.
    pub fn encode(&self, images: Tensor<B, 4>) -> Tensor<B, 3, Int> {
        let latent = self.latent(images);
        let [batch, _, rows, columns] = latent.dims();
        nearest_code(as_rows(latent), self.net.codebook().get()).reshape([batch, rows, columns])
    }

    /// Ids `[B, h, w]` to images `[B, 3, H, W]`, nominally 0 to 1, not clamped.
    pub fn decode_ids(&self, ids: Tensor<B, 3, Int>) -> Tensor<B, 4> {
        let grid = ids.dims();
        let vectors = self.net.codebook().get().select(0, ids.reshape([grid.iter().product::<usize>()]));
        self.net.decode(as_grid(vectors, grid))
    }

    /// The grid of images of this size.
    fn grid_of(&self, height: usize, width: usize) -> Result<(usize, usize), TokenizerError> {
        let stride = self.net.stride();
        let expected = self.net.grid().map(|grid| grid * stride);
        match expected.filter(|&side| (height, width) != (side, side)) {
            Some(expected) => {
                let found = if height == expected { width } else { height };
                Err(TokenizerError::Side { expected, found })
            }
            None => grid_of(stride, height, width),
        }
    }

    /// Applies `f` to batches of `items`, in order.
    fn batches<T: Sync, R: Send>(
        &self,
        items: &[T],
        f: impl Fn(&[T]) -> Result<Vec<R>, TokenizerError> + Send + Sync,
    ) -> Result<Vec<R>, TokenizerError> {
        let done: Vec<Vec<R>> = match self.batch {
            1 => items.par_chunks(1).map(f).collect::<Result<_, _>>()?,
            batch => items.chunks(batch).map(f).collect::<Result<_, _>>()?,
        };
        Ok(done.into_iter().flatten().collect())
    }

    fn upload(&self, images: Vec<f32>, shape: [usize; 4]) -> Tensor<B, 4> {
        Tensor::from_data(TensorData::new(images, shape), &self.device)
    }
}

impl<B: Kernels, N: Autoencoder<B>> Tokenizer for Learned<B, N> {
    fn stride(&self) -> usize {
        self.net.stride()
    }

    fn codes(&self) -> usize {
        self.net.codebook().dims()[0]
    }

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    fn encode_all(&self, images: &[Vec<u8>], side: usize) -> Result<Vec<Vec<u16>>, TokenizerError> {
        let (grid, _) = self.grid_of(side, side)?;
        self.batches(images, |images| {
            let images = upload_pixels(images.iter().map(Vec::as_slice), side, &self.device);
            let ids = host_ids(self.encode(images));
            Ok(ids.chunks(grid * grid).map(|ids| ids.iter().map(|&id| id as u16).collect()).collect())
        })
    }

    fn decode_all(&self, ids: &[Vec<u16>], grid: usize) -> Result<Vec<Vec<u8>>, TokenizerError> {
        let side = grid * self.stride();
        self.grid_of(side, side)?;
        ids.iter().try_for_each(|ids| check_ids(ids, grid, self.codes()))?;
        self.batches(ids, |ids| {
            let flat: Vec<i32> = ids.iter().flatten().map(|&id| id.into()).collect();
            let flat = Tensor::from_data(TensorData::new(flat, [ids.len(), grid, grid]), &self.device);
            let pixels = host(self.decode_ids(flat).permute([0, 2, 3, 1]));
            let bytes = |pixels: &[f32]| pixels.iter().map(|&x| self.net.byte(x)).collect();
            Ok(pixels.chunks(side * side * 3).map(bytes).collect())
        })
    }

    fn run(&self, images: ArrayView4<f32>) -> Result<(Array3<i64>, Array4<f32>), TokenizerError> {
        let (batch, channels, height, width) = images.dim();
        let (rows, columns) = self.grid_of(height, width)?;
        if channels != 3 {
            return Err(TokenizerError::Image { expected: "[B, 3, H, W]", found: format!("{:?}", images.shape()) });
        }
        if let Some(value) = images.iter().find(|value| !value.is_finite()) {
            return Err(TokenizerError::Image { expected: "finite values", found: value.to_string() });
        }
        let pixels = 3 * height * width;
        let flat: Vec<f32> = images.iter().copied().collect();
        let each: Vec<&[f32]> = flat.chunks(pixels).collect();
        let done = self.batches(&each, |images| {
            let ids = self.encode(self.upload(images.concat(), [images.len(), 3, height, width]));
            let decoded = host(self.decode_ids(ids.clone()));
            let ids = host_ids(ids);
            Ok(ids.chunks(rows * columns).zip(decoded.chunks(pixels)).map(|(i, d)| (i.to_vec(), d.to_vec())).collect())
        })?;
        let (ids, decoded): (Vec<_>, Vec<_>) = done.into_iter().unzip();
        let unexpected = |error: ndarray::ShapeError| TokenizerError::Image {
            expected: "as many numbers out as in",
            found: error.to_string(),
        };
        Ok((
            Array3::from_shape_vec((batch, rows, columns), ids.concat()).map_err(unexpected)?,
            Array4::from_shape_vec((batch, 3, height, width), decoded.concat()).map_err(unexpected)?,
        ))
    }
}

/// Bytes `[side, side, 3]` of images as `[B, 3, side, side]` in 0 to 1.
pub(super) fn upload_pixels<'i, B: Backend>(
    images: impl ExactSizeIterator<Item = &'i [u8]>,
    side: usize,
    device: &B::Device,
) -> Tensor<B, 4> {
    let shape = [images.len(), side, side, 3];
    let values: Vec<f32> = images.flatten().map(|&byte| f32::from(byte) / 255.0).collect();
    Tensor::<B, 4>::from_data(TensorData::new(values, shape), device).permute([0, 3, 1, 2])
}

/// `[B, z, h, w]` as rows `[B*h*w, z]`.
pub(super) fn as_rows<B: Backend>(grid: Tensor<B, 4>) -> Tensor<B, 2> {
    let [batch, length, rows, columns] = grid.dims();
    grid.permute([0, 2, 3, 1]).reshape([batch * rows * columns, length])
}

/// Rows `[B*h*w, z]` as `[B, z, h, w]`.
pub(super) fn as_grid<B: Backend>(rows: Tensor<B, 2>, [batch, height, width]: [usize; 3]) -> Tensor<B, 4> {
    let length = rows.dims()[1];
    rows.reshape([batch, height, width, length]).permute([0, 3, 1, 2])
}

/// The nearest of the codes `[K, z]` to each row `[N, z]`, by `|z|² + |e|² - 2ze` in f32; the first of equally near
/// ones. Ids `[N]`.
pub(super) fn nearest_code<B: Kernels>(z: Tensor<B, 2>, codes: Tensor<B, 2>) -> Tensor<B, 1, Int> {
    let ([rows, _], [count, _]) = (z.dims(), codes.dims());
    let lengths = |x: &Tensor<B, 2>| x.clone().square().sum_dim(1);
    let distances =
        lengths(&z) + lengths(&codes).transpose() - B::product(z, codes.transpose(), Precision::F32).mul_scalar(2.0);
    // Backends differ in which of equal entries their argmin names: the smallest number of an entry that is the least.
    let least = distances.clone().min_dim(1);
    let numbers = Tensor::<B, 1, Int>::arange(0..count as i64, &distances.device()).reshape([1, count]);
    let numbers = numbers.expand([rows, count]);
    let others = distances.greater(least.expand([rows, count]));
    numbers.mask_fill(others, count as i64 - 1).min_dim(1).reshape([rows])
}

pub(super) fn host<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().to_vec().unwrap_or_default()
}

pub(super) fn host_ids<B: Backend, const D: usize>(ids: Tensor<B, D, Int>) -> Vec<i64> {
    ids.into_data().convert::<i64>().to_vec().unwrap_or_default()
}
