//! Pictures for people: sheets of images (the exporter's), and curves.

mod curve;

pub use curve::{read_log, read_logs, save_curves, Curve};
pub use sorcen_export::picture::{from_tokens, interleaved, save_png, Grid};
