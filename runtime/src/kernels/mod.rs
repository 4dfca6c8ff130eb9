//! The only home of `unsafe`, and the inner loops.
//!
//! [`scalar`] is the specification: every faster kernel has to give the same bits.
#![allow(unsafe_code)]

pub(crate) mod bytes;
#[cfg(feature = "std")]
pub(crate) mod map;
pub(crate) mod scalar;
