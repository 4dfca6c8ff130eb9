//! Kernels against the plain steps. They need a GPU, or a driver that does as if: `tests/scripts/gpu_kernels` runs them.

use burn::backend::{Autodiff, Flex};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, Tensor, TensorData, TensorPrimitive};

use super::product::exact;
use crate::kernels::block::tests::{apart, host, is_the_plain_block, numbers};
use crate::kernels::graph::primitive;
use crate::kernels::steps::{to, Drop, Heads, Steps};
use crate::kernels::Kernels;
use crate::model::layers::Dropout;
use crate::model::precision::Precision;
use crate::optim::Update;
use sorcen_runtime::rng::{Rng, Stream};

#[cfg(feature = "wgpu")]
type Gpu = burn::backend::Wgpu;
#[cfg(not(feature = "wgpu"))]
type Gpu = burn::backend::Cuda;

/// WGSL has no brain floats; what is done with its 16 bits is the same code.
const HALF: DType = if cfg!(feature = "wgpu") { DType::F16 } else { DType::BF16 };

fn drop(rate: f32) -> Drop {
    Drop { source: Dropout::new(rate, 5, 6).source(), call: 3 }
}

/// Everything that the steps give on a backend, by name; factors of products are of type `dtype`.
fn results<B: Steps>(rate: f32, dtype: DType) -> Vec<(&'static str, Vec<f32>)> {
    let (rows, width) = (301, 200); // more rows and columns than units, and no multiple of them
    let drop = drop(rate);
    let [x, beside] = [1, 4].map(|seed| numbers::<B, 2>([rows, width], seed, 6.0));
    let [y, dy] = [2, 3].map(|seed| to(numbers::<B, 2>([rows, width], seed, 6.0), dtype));
    let [weight, bias] = [5, 6].map(|seed| numbers::<B, 2>([1, width], seed, 2.0));
    let normed = B::norm(x.clone(), weight.clone(), bias.clone(), 1e-6, dtype);
    let [dx, dweight, dbias] = B::norm_backward(x.clone(), weight.clone(), dy.clone(), Some(beside), 1e-6);
    let [alone, ..] = B::norm_backward(x.clone(), weight, dy.clone(), None, 1e-6);
    let active = B::activate(y.clone(), bias.clone(), drop);
    let dhidden = B::activate_backward(y.clone(), bias.clone(), dy.clone(), drop);
    let sum = B::add(x, y.clone(), bias, drop);
    let dsum = B::add_backward(to(dy.clone(), DType::F32), drop, dtype);
    let heads = Heads { batch: 7, tokens: 43, count: 5 }; // 301 rows
    let triple = to(numbers::<B, 2>([rows, 3 * width], 9, 4.0), dtype);
    let parts: [_; 3] = B::split(triple.clone(), Some(numbers::<B, 2>([1, 3 * width], 10, 2.0)), heads);
    let [whole] = B::split(y.clone(), None, heads);
    let joined = B::join(parts.clone(), heads);
    let [q, k, v] = parts;
    let [scores, dweights] = [7, 8].map(|seed| to(numbers::<B, 3>([35, 48, 48], seed, 20.0), dtype));
    let [attention, sums] = B::attend(scores.clone(), 43, 0.5, drop);
    let along = (to(attention.clone(), DType::F32) * to(dweights.clone(), DType::F32)).sum_dim(2);
    let [again, dscores] = B::attend_backward(scores, sums.clone(), dweights, along, 43, 0.5, drop);
    vec![
        ("norm", host(normed)),
        ("norm, input", host(dx)),
        ("norm, input alone", host(alone)),
        ("norm, weight", host(dweight)),
        ("norm, bias", host(dbias)),
        ("activate", host(active)),
        ("activate, input", host(dhidden)),
        ("add", host(sum)),
        ("add, input", host(dsum)),
        ("columns", host(B::column_sums(triple))),
        ("queries", host(q)),
        ("keys", host(k)),
        ("values", host(v)),
        ("whole", host(whole)),
        ("joined", host(joined)),
        ("along", host(B::along(y, dy, heads))),
        ("attend", host(attention)),
        ("attend, sums", host(sums)),
        ("attend, again", host(again)),
        ("attend, scores", host(dscores)),
    ]
}

#[test]
#[ignore = "needs a GPU or a software driver: tests/scripts/gpu_kernels"]
fn kernels_are_the_plain_steps() {
    for (dtype, tolerance) in [(DType::F32, 2e-5), (HALF, if HALF == DType::F16 { 2e-3 } else { 1.6e-2 })] {
        for rate in [0.0, 0.1] {
            let results = results::<Gpu>(rate, dtype).into_iter().zip(results::<Flex>(rate, dtype));
            for ((name, ours), (_, plain)) in results {
                let worst = apart(&ours, &plain);
                println!("{name}, {dtype:?}, dropout {rate}: {worst:.1e}");
                assert!(worst < tolerance, "{name}, {dtype:?}, dropout {rate}: {worst}");
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU or a software driver: tests/scripts/gpu_kernels"]
fn dropout_is_that_of_the_host() {
    let source = Dropout::new(0.3, 11, 12).source();
    for call in [0, 1, 1_000_003] {
        let ours = host(Gpu::dropout::<2>(&source, call, [77, 131], &Default::default()));
        let plain = host(Flex::dropout::<2>(&source, call, [77, 131], &Default::default()));
        assert_eq!(ours, plain, "call {call}");
    }
}

#[test]
#[ignore = "needs a GPU or a software driver: tests/scripts/gpu_kernels"]
fn echoes_are_those_of_the_host() {
    let rng = Rng::new(3, Stream::Echo, 4);
    let (rows, codes) = (200, 300);
    let mut logits = host(numbers::<Flex, 2>([rows, codes], 1, 12.0));
    for (i, logit) in logits.iter_mut().enumerate() {
        *logit = if i / codes == 5 { 1.0 } else { (*logit * 8.0).round() / 8.0 };
        // ties; a row of nothing else
    }
    for topk in [1, 15, 40] {
        let plain = crate::echo::sample(&logits, codes, topk, &rng, |_| true);
        let data = TensorData::new(logits.clone(), [rows, codes]);
        let ours = Gpu::sample_echo(Tensor::from_data(data, &Default::default()), topk, &rng, &|_| true);
        let ours: Vec<i32> = ours.into_data().to_vec().unwrap();
        let differ = ours.iter().zip(&plain).filter(|(&a, &b)| a != i32::from(b)).count();
        assert!(differ <= 1, "{differ} of {rows} ids differ for the {topk} largest");
        // one by rounding
    }
}

#[test]
#[ignore = "needs a GPU or a software driver: tests/scripts/gpu_kernels"]
fn updates_are_the_plain_ones() {
    fn results<B: Kernels>() -> Vec<Vec<f32>> {
        let [value, gradient, first] = [1, 2, 3].map(|seed| numbers::<B, 2>([37, 41], seed, 2.0));
        let mut moments = (first.clone(), first.clone().square());
        let factor = Tensor::from_data([0.5], &Default::default());
        let (correction1, correction2) = (0.19, 0.0975);
        let update =
            Update { factor, lr: 1e-2, decay: 0.05, beta1: 0.9, beta2: 0.95, eps: 1e-8, correction1, correction2 };
        let blend = B::blend(value.clone(), gradient.clone(), 0.9);
        let value = B::adamw(value, gradient, &mut moments, &update);
        vec![host(value), host(moments.0), host(moments.1), host(blend)]
    }
    for (ours, plain) in results::<Gpu>().into_iter().zip(results::<Flex>()) {
        assert!(ours.iter().zip(&plain).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}

#[test]
#[ignore = "needs a GPU or a software driver: tests/scripts/gpu_kernels"]
fn operations_with_gradients_are_the_plain_ones() {
    fn results<B: AutodiffBackend + Kernels>() -> Vec<Vec<f32>> {
        let x = numbers::<B, 2>([150, 260], 1, 9.0).require_grad();
        let [weight, bias] = [2, 3].map(|seed| numbers::<B, 2>([1, 260], seed, 2.0).require_grad());
        let targets: Vec<i32> = (0..150).map(|i| i * 7 % 260).collect();
        let counted: Vec<bool> = (0..150).map(|i| i % 3 != 0).collect();
        let gradient = |y: Tensor<B, 2>, leaf: &Tensor<B, 2>| host(leaf.grad(&y.square().sum().backward()).unwrap());
        let norm = || B::layer_norm_rows(x.clone(), weight.clone(), bias.clone(), 1e-5);
        let loss = B::smoothed_cross_entropy(x.clone(), &targets, &counted, 0.1);
        vec![
            host(norm()),
            gradient(norm(), &x),
            gradient(norm(), &weight),
            gradient(norm(), &bias),
            host(B::gelu_rows(x.clone())),
            gradient(B::gelu_rows(x.clone()), &x),
            host(loss.clone()),
            gradient(loss.unsqueeze(), &x),
        ]
    }
    let results = results::<Autodiff<Gpu>>().into_iter().zip(results::<Autodiff<Flex>>());
    for (i, (ours, plain)) in results.enumerate() {
        let worst = apart(&ours, &plain);
        assert!(worst < 1e-5, "{i}: {worst}");
    }
}

/// Products of f32 have the error of f32, of TF32 they would have a thousand times that; whatever lies how.
#[test]
#[ignore = "needs a GPU or a software driver: tests/scripts/gpu_kernels"]
fn products_of_f32_are_not_of_less() {
    for (batch, rows, inner, columns) in [(1, 3, 5, 2), (3, 65, 48, 65)]
    // a driver in software takes long to try every kernel
    {
        let [a, b] = [(rows, inner, 1), (inner, columns, 2)]
            .map(|(rows, columns, seed)| numbers::<Gpu, 3>([batch, rows, columns], seed, 2.0));
        let [left, right] = [a.clone(), b.clone()].map(host);
        let turned = |x: &Tensor<Gpu, 3>| {
            let turned = x.clone().swap_dims(1, 2);
            // As it would lie if it had been computed the other way round.
            let [batch, rows, columns] = turned.dims();
            Tensor::<Gpu, 3>::from_data(TensorData::new(host(turned), [batch, rows, columns]), &Default::default())
                .swap_dims(1, 2)
        };
        let cases = [(a.clone(), b.clone()), (turned(&a), b.clone()), (a.clone(), turned(&b))];
        for (i, (a, b)) in cases.into_iter().enumerate() {
            let found =
                host(Tensor::<Gpu, 3>::from_primitive(TensorPrimitive::Float(exact(primitive(a), primitive(b)))));
            let mut worst = 0.0f64;
            for (at, found) in found.iter().enumerate() {
                let (image, row, column) = (at / columns / rows, at / columns % rows, at % columns);
                let terms = (0..inner).map(|k| {
                    let (x, y) =
                        (left[(image * rows + row) * inner + k], right[(image * inner + k) * columns + column]);
                    f64::from(x) * f64::from(y)
                });
                let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
                let error = (f64::from(*found) - sum).abs() / size;
                worst = if error > worst || error.is_nan() { error } else { worst };
            }
            println!("{batch}×{rows}×{inner}×{columns}, layout {i}: {worst:.1e}");
            assert!(worst < 1e-6, "{batch}×{rows}×{inner}×{columns}, layout {i}: {worst}");
        }
    }
}

/// A recorded product and its gradients, beside those of the CPU.
#[test]
#[ignore = "needs a GPU or a software driver: tests/scripts/gpu_kernels"]
fn a_product_has_the_plain_gradients() {
    fn results<B: AutodiffBackend + Kernels>(precision: Precision) -> [Vec<f32>; 3] {
        let [a, b] =
            [([2, 9, 33], 1), ([2, 33, 20], 2)].map(|(shape, seed)| numbers::<B, 3>(shape, seed, 2.0).require_grad());
        let product = B::product(a.clone(), b.clone(), precision);
        let grads = product.clone().square().sum().backward();
        [host(product), host(a.grad(&grads).unwrap()), host(b.grad(&grads).unwrap())]
    }
    let precisions: &[_] = match cfg!(feature = "wgpu") {
        true => &[(Precision::F32, 1e-5)],
        false => &[(Precision::F32, 1e-5), (Precision::Tf32, 1e-2), (Precision::Bf16, 2e-2)],
    };
    for &(precision, tolerance) in precisions {
        let plain = results::<Autodiff<Flex>>(precision);
        for (i, (ours, plain)) in results::<Autodiff<Gpu>>(precision).iter().zip(&plain).enumerate() {
            let worst = apart(ours, plain);
            assert!(worst < tolerance, "{precision:?}, {i}: {worst}");
        }
    }
}

#[test]
#[ignore = "needs a GPU or a software driver: tests/scripts/gpu_kernels"]
fn a_block_of_kernels_is_the_plain_block() {
    is_the_plain_block::<Gpu>(Precision::F32, 5e-5);
    // CUDA's tensor cores have 11 bits for factors of 32-bit products, 8 for brain floats.
    if !cfg!(feature = "wgpu") {
        is_the_plain_block::<Gpu>(Precision::Tf32, 1e-2);
        is_the_plain_block::<Gpu>(Precision::Bf16, 5e-2);
    }
}
