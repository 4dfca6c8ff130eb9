//! What lies at a path where something else was expected, for messages that help.

use std::{fs::File, io::Read, path::Path};

use sorcen_runtime::pack::MAGIC;

use crate::{
    checkpoint::{CONFIG_FILE, WEIGHTS_FILE},
    onnx::ENCODER_FILE,
};

/// The folder of a run that holds its checkpoint.
const CHECKPOINT_DIR: &str = "checkpoint";

/// What is there, in words: `a pack`, `a checkpoint folder`, …
pub fn at(path: &Path) -> String {
    let has = |name: &str| path.join(name).is_file();
    let checkpoint = path.join(CHECKPOINT_DIR);
    let kind = match () {
        () if is_pack(path) => "a pack",
        () if path.is_file() => "a file",
        () if !path.is_dir() => "nothing",
        () if has(CONFIG_FILE) || has(WEIGHTS_FILE) => "a checkpoint folder",
        () if has(ENCODER_FILE) => "a folder of ONNX files",
        () if checkpoint.join(CONFIG_FILE).is_file() => {
            return format!("a run's folder, whose checkpoint is {}", checkpoint.display());
        }
        () => "another folder",
    };
    kind.into()
}

fn is_pack(path: &Path) -> bool {
    let mut magic = [0; MAGIC.len()];
    path.is_file() && File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == MAGIC
}
