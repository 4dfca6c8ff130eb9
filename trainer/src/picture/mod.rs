//! Pictures for people: sheets of images, and curves.

mod curve;
mod grid;
mod tokens;

pub use curve::{read_log, save_curves, Curve};
pub use grid::{interleaved, save_png, Grid};
pub use tokens::from_tokens;
