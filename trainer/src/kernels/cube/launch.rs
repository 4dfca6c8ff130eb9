//! What every launch needs: new tensors, and how many cubes of how many units.

use burn::tensor::{DType, Shape};
use burn_cubecl::cubecl::{
    calculate_cube_count_elemwise, client::ComputeClient, prelude::*, server::CubeCountSelection,
};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::CubeRuntime;

/// Units that share a row; a power of two.
pub const ROW_UNITS: usize = 128;

/// A tensor to write to, where `beside` is.
pub fn fresh<R: CubeRuntime>(beside: &CubeTensor<R>, shape: impl Into<Shape>, dtype: DType) -> CubeTensor<R> {
    empty_device_contiguous_dtype(beside.client.clone(), beside.device.clone(), shape.into(), dtype)
}

/// The same, in the shape of `like`.
pub fn alike<R: CubeRuntime>(like: &CubeTensor<R>, dtype: DType) -> CubeTensor<R> {
    fresh(like, like.meta.shape().clone(), dtype)
}

/// Cubes and units for `count` elements, one unit each, or a few units more.
pub fn one_each<R: CubeRuntime>(client: &ComputeClient<R>, count: usize) -> (CubeCount, CubeDim) {
    let units = CubeDim::new(client, count);
    (calculate_cube_count_elemwise(client, count, units), units)
}

/// Cubes and units for `rows` rows, one cube of [`ROW_UNITS`] each, or a few cubes more.
pub fn by_row<R: CubeRuntime>(client: &ComputeClient<R>, rows: usize) -> (CubeCount, CubeDim) {
    (CubeCountSelection::new(client, rows as u32).cube_count(), CubeDim::new_1d(ROW_UNITS as u32))
}
