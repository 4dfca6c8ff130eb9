//! The layers between tokens and logits, each a function over slices.
//!
//! Integer matrix products are exact; float work has one definition with a fixed order of
//! operations (see `kernels::scalar` and `math`), so every CPU gives the same bits.

pub(crate) mod attention;
pub(crate) mod block;
pub(crate) mod embedding;
pub(crate) mod linear;
pub(crate) mod norm;
pub(crate) mod softmax;
