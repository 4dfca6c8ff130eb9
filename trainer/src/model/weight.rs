//! A weight, and the one walk over all weights of a module under their official names.
//!
//! Optimiser, teacher update, checkpoint and initialisation are loops over this walk.

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};

use super::init;
use super::precision::Precision;

/// One stored tensor. Vectors are kept as one row `[1, n]`, so that every weight has one type.
#[derive(Clone, Debug)]
pub struct Weight<B: Backend> {
    value: Tensor<B, 2>,
    dims: Vec<usize>,
    trained: bool,
    precision: Precision,
}

impl<B: Backend> Weight<B> {
    /// A trained weight of zeros with the shape it has in files: 1-D, 2-D, or 3-D with leading ones.
    pub fn zeros(dims: &[usize], device: &B::Device) -> Self {
        let cols = dims.last().copied().unwrap_or(1);
        let rows = dims.iter().product::<usize>() / cols;
        let value = Tensor::zeros([rows, cols], device).require_grad();
        Self { value, dims: dims.to_vec(), trained: true, precision: Precision::F32 }
    }

    /// A buffer (running statistics): saved, but neither trained nor averaged.
    pub fn buffer(dims: &[usize], device: &B::Device) -> Self {
        Self { trained: false, ..Self::zeros(dims, device) }.detached()
    }

    fn detached(self) -> Self {
        Self { value: self.value.detach(), ..self }
    }

    /// The value, `[rows, columns]`.
    pub fn get(&self) -> Tensor<B, 2> {
        self.value.clone()
    }

    /// Shape in files; linears are `[out, in]`.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The same weight on the backend below autodiff: shared memory, no gradients.
    pub fn inner(&self) -> Weight<B::InnerBackend>
    where
        B: AutodiffBackend,
    {
        let Self { value, dims, trained, precision } = self.clone();
        Weight { value: value.inner(), dims, trained, precision }
    }

    /// This weight's gradient in `grads`, if it has one.
    pub fn gradient(&self, grads: &B::Gradients) -> Option<Tensor<B::InnerBackend, 2>>
    where
        B: AutodiffBackend,
    {
        if self.trained {
            self.value.grad(grads)
        } else {
            None
        }
    }

    /// Removes this weight's gradient from `grads`, if it has one.
    pub fn take_gradient(&self, grads: &mut B::Gradients) -> Option<Tensor<B::InnerBackend, 2>>
    where
        B: AutodiffBackend,
    {
        if self.trained {
            self.value.grad_remove(grads)
        } else {
            None
        }
    }

    /// Whether the optimiser and the teacher update touch it.
    pub fn is_trained(&self) -> bool {
        self.trained
    }

    /// Whether weight decay applies: not to vectors, nor to anything named `.bias` (official rule).
    pub fn decays(&self, name: &str) -> bool {
        decays(name, &self.dims)
    }

    /// Replaces the value (`[rows, columns]`, the same shape); the new one is a leaf of autodiff.
    pub fn set(&mut self, value: Tensor<B, 2>) {
        let value = value.detach();
        self.value = if self.trained { value.require_grad() } else { value };
    }

    /// Has it multiplied in `precision`, rounded to it where that is another type; what is computed from it is
    /// differentiated by the value that was there.
    pub fn multiply_in(&mut self, precision: Precision) {
        self.value = precision.round(self.value.clone());
        self.precision = precision;
    }

    /// What products with it take.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The values on the host, row-major.
    pub fn to_vec(&self) -> Vec<f32> {
        self.value.to_data().convert::<f32>().to_vec().unwrap_or_default()
    }

    /// Replaces the values by `values`, row-major, as many as the weight has.
    pub fn set_from(&mut self, values: Vec<f32>, device: &B::Device) {
        let shape = self.value.shape();
        self.set(Tensor::from_data(TensorData::new(values, shape), device));
    }
}

/// Whether weight decay applies to the weight `name` of shape `dims`: [`Weight::decays`].
pub fn decays(name: &str, dims: &[usize]) -> bool {
    dims.len() > 1 && !name.ends_with(".bias")
}

/// A module: weights under names, in a fixed order.
pub trait Weights<B: Backend> {
    /// Calls `f` with the name (after `path`) and the weight, in order.
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Weight<B>));

    /// The same walk, mutable.
    fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Weight<B>));

    /// Sets every weight to its initial value: a pure function of (seed, name, shape).
    fn initialise(&mut self, path: &str, seed: u64, device: &B::Device) {
        self.visit_mut(path, &mut |name, weight| {
            let values = init::values(name, weight.dims(), seed);
            weight.set_from(values, device);
        });
    }
}

impl<B: Backend> Weights<B> for Weight<B> {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Weight<B>)) {
        f(path, self);
    }

    fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Weight<B>)) {
        f(path, self);
    }
}

impl<B: Backend, W: Weights<B>> Weights<B> for Option<W> {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Weight<B>)) {
        self.iter().for_each(|w| w.visit(path, f));
    }

    fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Weight<B>)) {
        self.iter_mut().for_each(|w| w.visit_mut(path, f));
    }
}

impl<B: Backend, W: Weights<B>> Weights<B> for Vec<W> {
    fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a Weight<B>)) {
        self.iter().enumerate().for_each(|(i, w)| w.visit(&join(path, &i.to_string()), f));
    }

    fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Weight<B>)) {
        self.iter_mut().enumerate().for_each(|(i, w)| w.visit_mut(&join(path, &i.to_string()), f));
    }
}

/// `path.name`, or whichever of the two is not empty.
pub(crate) fn join(path: &str, name: &str) -> String {
    match (path, name) {
        ("", name) => name.to_string(),
        (path, "") => path.to_string(),
        (path, name) => format!("{path}.{name}"),
    }
}

/// Implements [`Weights`] for a struct: fields and their names in files, in order.
macro_rules! weights {
    ($type:ident { $($field:ident => $name:literal),+ $(,)? }) => {
        impl<B: burn::tensor::backend::Backend> $crate::model::weight::Weights<B> for $type<B> {
            fn visit<'a>(&'a self, path: &str, f: &mut dyn FnMut(&str, &'a $crate::model::weight::Weight<B>)) {
                $(self.$field.visit(&$crate::model::weight::join(path, $name), f);)+
            }

            fn visit_mut(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut $crate::model::weight::Weight<B>)) {
                $(self.$field.visit_mut(&$crate::model::weight::join(path, $name), f);)+
            }
        }
    };
}
pub(crate) use weights;
