//! Pictures for people: sheets of images, and curves.

mod grid;

pub use grid::{save_png, Grid};
