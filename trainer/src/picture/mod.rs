//! Pictures for people: sheets of images (the exporter's), and curves.

mod curve;
mod named;
mod text;

pub use curve::{read_log, read_logs, read_telling, save_curves, Curve};
pub use named::named_rows;
pub use sorcen_export::picture::{fill_unknown, from_tokens, interleaved, known, save_png, Grid, Picture};
