//! Evaluation: what features are worth.

mod knn;
mod task;

pub use knn::{accuracy, cosine_votes, hamming_votes, Votes};
pub use task::{probe_features, KnnTask, Labelled};
