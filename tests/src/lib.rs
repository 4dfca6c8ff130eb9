//! Tests that span the crates are in `tests/tests/`, vectors recorded from the official code in
//! `tests/fixtures/official/`. `bash tests/run` runs everything.

use std::path::PathBuf;

pub mod compare;

/// The bundled files, as in the source tree.
pub fn bundled() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../trainer/assets/emoji")
}
