//! Pictures for people: sheets of images (the exporter's), and curves.

mod curve;

pub use curve::{read_log, read_logs, read_telling, save_curves, Curve};
pub use sorcen_export::picture::{fill_unknown, from_tokens, interleaved, known, save_png, Grid, Picture};
