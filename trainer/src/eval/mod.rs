//! Evaluation: what features are worth.

mod fewshot;
mod interval;
mod knn;
mod linear_probe;
mod probe_head;
mod task;

pub use fewshot::FewShot;
pub use interval::Estimate;
pub use knn::{accuracy, cosine_votes, hamming_votes, Votes};
pub use linear_probe::{
    linear_probe, EpochLine, LinearProbe, ProbeData, ProbeError, ProbeOptions, TrainFeatures, WARMUP_EPOCHS,
};
pub use probe_head::ProbeHead;
pub use task::{features_with_dropout, probe_features, Labelled, Task, TaskFeatures};
