//! Vectors recorded from the official code, and how close to them we must be.
#![allow(dead_code)] // each test file uses its part

use std::path::PathBuf;

use safetensors::{Dtype, SafeTensors};
use sorcen_tests::compare::largest_difference;

/// The tolerances of float32 against the recorded values: those that the vectors' authors advise. What the
/// exporter computes too has them in `sorcen_export::tolerance`.
pub mod tolerance {
    use sorcen_export::tolerance::{tolerance, Link, Output};

    pub const ACTIVATIONS: f32 = tolerance(Link::Golden, Output::Latent).max_abs;
    pub const LOGITS: f32 = tolerance(Link::Golden, Output::Logits).max_abs;
    pub const LOSSES: f32 = 1e-5;
    pub const GRADIENTS: f32 = 5e-6;
    /// The global norm of gradients, which are of size 1 in its vectors.
    pub const GRADIENT_NORM: f32 = 1e-5;
    /// Weights after an average or an update, and BatchNorm statistics.
    pub const WEIGHTS: f32 = 2e-5;
    /// Learning rates and momenta, in double precision.
    pub const SCHEDULES: f64 = 1e-12;
    /// Quantiles of 20,000 mask ratios of our own generator; their standard error is at most 1.4e-3.
    pub const QUANTILES: f64 = 6e-3;
}

pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/official").join(name)
}

/// A recorded set.
pub struct Golden(Vec<u8>);

impl Golden {
    pub fn open(name: &str) -> Self {
        Self(std::fs::read(fixture(name)).unwrap())
    }

    pub fn contains(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).is_ok()
    }

    /// Any float or integer tensor as f64.
    pub fn get(&self, name: &str) -> Vec<f64> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap_or_else(|_| panic!("no {name}"));
        let data = view.data();
        match view.dtype() {
            Dtype::F32 => data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect(),
            Dtype::F64 => data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
            Dtype::I64 => data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect(),
            Dtype::BOOL | Dtype::U8 => data.iter().map(|&b| b.into()).collect(),
            other => panic!("{name}: {other:?}"),
        }
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.get(name).iter().map(|&x| x as f32).collect()
    }

    pub fn ids(&self, name: &str) -> Vec<u16> {
        self.get(name).iter().map(|&x| x as u16).collect()
    }
}

/// Collects every comparison that fails, to report them together; prints the error of each.
#[derive(Default)]
pub struct Failures(Vec<String>);

impl Failures {
    pub fn compare(&mut self, name: &str, found: &[f32], expected: &[f64], tolerance: f32) {
        assert_eq!(found.len(), expected.len(), "{name}");
        let worst = largest_difference(found, expected);
        println!("{name}: {worst:.1e}, allowed {tolerance:.0e}");
        if worst > f64::from(tolerance) {
            self.0.push(format!("{name}: differs by {worst:.2e}, allowed {tolerance:.0e}"));
        }
    }

    pub fn check(self) {
        assert!(self.0.is_empty(), "\n{}", self.0.join("\n"));
    }
}
