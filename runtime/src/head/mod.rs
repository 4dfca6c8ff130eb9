//! Heads: what decides about a feature on the device.
//!
//! * [`Classifier`]: a linear classifier, trained on a host (a linear probe) and stored in the pack.
//! * [`Prototypes`]: classes learnt on the device from a few examples each.

mod linear;
mod prototypes;

pub use linear::{Classifier, Prediction};
pub use prototypes::{Match, Prototypes};
