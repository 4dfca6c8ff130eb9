//! Rows of a table whose gradient is a matrix product.
//!
//! On GPUs the gradient of Burn's `select` adds row after row, one thread a column: tens of thousands of dependent
//! steps for a batch of tokens. As a product with the one-hot matrix of the ids it is spread over the device.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::Autodiff;
use burn::tensor::{Int, Tensor, TensorPrimitive};

use super::graph::{primitive, record};
use super::Kernels;
use crate::model::Precision;

/// As [`Kernels::rows`](super::Kernels::rows).
pub fn rows<B: Kernels, C: CheckpointStrategy>(
    table: Tensor<Autodiff<B, C>, 2>,
    ids: Tensor<Autodiff<B, C>, 1, Int>,
    groups: usize,
) -> Tensor<Autodiff<B, C>, 2> {
    let [height, width] = table.dims();
    let ids = ids.inner();
    let output = table.clone().inner().select(0, ids.clone());
    record([primitive(table)], output, move |gradient| {
        let gradient = Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(gradient));
        let [count, _] = gradient.dims();
        let (rows, per_group) = (height / groups, count / groups);
        let device = gradient.device();
        // Ids within their group, beside every row of it.
        let first = Tensor::<B, 1, Int>::arange(0..groups as i64, &device) * (rows as i64);
        let ids = ids.clone().reshape([groups, 1, per_group]) - first.reshape([groups, 1, 1]);
        let row = Tensor::<B, 1, Int>::arange(0..rows as i64, &device).reshape([1, rows, 1]);
        let shape = [groups, rows, per_group];
        let one_hot = row.expand(shape).equal(ids.expand(shape)).float();
        let sums = B::product(one_hot, gradient.reshape([groups, per_group, width]), Precision::F32);
        [primitive(sums.reshape([height, width]))]
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::Flex;
    use burn::tensor::TensorData;

    type B = Autodiff<Flex>;

    #[test]
    fn the_gradient_is_that_of_select() {
        let device = Default::default();
        let numbers = |shape: [usize; 2]| {
            let values = (0..shape[0] * shape[1]).map(|i| (i * 37 % 23) as f32 - 11.0).collect::<Vec<f32>>();
            Tensor::<B, 2>::from_data(TensorData::new(values, shape), &device)
        };
        for (groups, height, ids) in [(1, 5, vec![3, 0, 3, 3, 4, 0]), (2, 6, vec![0, 2, 2, 3, 3, 4])] {
            let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [6]), &device);
            let weights = numbers([6, 4]);
            let gradient = |chosen: Tensor<B, 2>, table: &Tensor<B, 2>| {
                table.grad(&(chosen * weights.clone()).sum().backward()).unwrap().into_data()
            };
            let [ours, plain] = [0, 1].map(|_| numbers([height, 4]).require_grad());
            let chosen = rows(ours.clone(), ids.clone(), groups);
            let selected = plain.clone().select(0, ids);
            chosen.clone().into_data().assert_eq(&selected.clone().into_data(), true);
            gradient(chosen, &ours).assert_eq(&gradient(selected, &plain), true);
        }
    }
}
