//! Executed instructions, in all and by operation of the model.
//!
//! The `count` plugin says how often each instruction ran; the line tables say which function it was
//! compiled from, through all inlining.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{anyhow, bail, Context, Result};

use crate::toolchain::{root, target_dir};

/// Where the time goes: part of a source path, start of a function's name, and what it is called.
/// The innermost function that matches counts; the first match of these, where one function has several.
const OPERATIONS: [(&str, &str, &str); 29] = [
    ("", "gelu", "GELU"),
    ("src/quant.rs", "", QUANTISING),
    ("kernels/floats.rs", "normalise", LAYER_NORM),
    ("kernels/floats.rs", "largest_magnitudes", QUANTISING),
    ("kernels/floats.rs", "put_rows", QUANTISING),
    ("kernels/floats.rs", "largest", SOFTMAX),
    ("kernels/floats.rs", "integer_weights", SOFTMAX),
    ("kernels/floats.rs", "", ATTENTION), // keys, values and weights
    ("src/kernels/", "mix", ATTENTION),
    ("src/kernels/", "gemm", PRODUCTS),
    ("src/kernels/", "products", PRODUCTS),
    ("src/kernels/epilogue.rs", "scale", ATTENTION), // without a bias
    ("src/kernels/epilogue.rs", "store", PRODUCTS),
    ("src/kernels/epilogue.rs", "add", PRODUCTS),
    ("src/kernels/", "store", QUANTISING),
    ("layers/softmax.rs", "", SOFTMAX),
    ("layers/attention.rs", "", ATTENTION),
    ("layers/norm.rs", "", LAYER_NORM),
    ("layers/linear.rs", "quantise", QUANTISING),
    ("layers/linear.rs", "put", QUANTISING),
    ("layers/linear.rs", "", PRODUCTS),
    ("layers/embedding.rs", "", "embedding"),
    ("src/pack/", "", "checking the pack"),
    ("src/sampler.rs", "", "sampling"),
    ("src/generate.rs", "", "sampling"),
    ("src/tokenizer.rs", "", "tokenizer"),
    ("src/bench.rs", "", "rest of the model"),
    ("src/layers/", "", "rest of the model"),
    ("src/model.rs", "", "rest of the model"),
];

/// What the inner loops are counted as.
pub const PRODUCTS: &str = "matrix products";

const ATTENTION: &str = "attention";
const LAYER_NORM: &str = "LayerNorm";
const QUANTISING: &str = "quantising";
const SOFTMAX: &str = "softmax";

/// What none of [`OPERATIONS`] names: start-up, logging, library functions called from many places.
const OTHER: &str = "other";

/// Builds the plugin; its file.
pub fn plugin() -> Result<PathBuf> {
    let target_dir = target_dir().join("count");
    let status = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--locked", "--release", "--package", "count"])
        .current_dir(root())
        .env("CARGO_TARGET_DIR", &target_dir)
        .status()?;
    if !status.success() {
        bail!("the counting plugin does not build");
    }
    Ok(target_dir.join("release/libcount.so"))
}

/// QEMU's argument to count into a file, from one call of the function at `mark` to the next.
pub fn argument(plugin: &Path, out: &Path, mark: Option<u64>) -> OsString {
    let mut argument = plugin.as_os_str().to_owned();
    argument.push(",out=");
    argument.push(out);
    if let Some(mark) = mark {
        argument.push(format!(",mark={mark:x}"));
    }
    argument
}

/// How often each instruction ran: one map, or one before each mark and one after the last.
pub struct Counts(Vec<BTreeMap<u64, u64>>);

impl Counts {
    /// Reads the plugin's file.
    pub fn read(file: &Path) -> Result<Counts> {
        let mut parts = vec![BTreeMap::new()];
        for line in std::fs::read_to_string(file).with_context(|| file.display().to_string())?.lines() {
            if line == "mark" {
                parts.push(BTreeMap::new());
                continue;
            }
            let mut words = line.split(' ');
            let count: u64 = words.next().unwrap_or_default().parse().with_context(|| format!("{line:?}"))?;
            for word in words {
                let address = u64::from_str_radix(word, 16).with_context(|| format!("{line:?}"))?;
                if let Some(part) = parts.last_mut() {
                    *part.entry(address).or_default() += count;
                }
            }
        }
        Ok(Counts(parts))
    }

    /// Executed instructions.
    pub fn total(&self) -> u64 {
        self.0.iter().flat_map(BTreeMap::values).sum()
    }

    /// Executed instructions by operation, the most first.
    pub fn by_operation(&self, program: &Path) -> Result<Vec<(&'static str, u64)>> {
        let mut sums: BTreeMap<&'static str, u64> = BTreeMap::new();
        for part in self.by_part(program)? {
            part.into_iter().for_each(|(operation, count)| *sums.entry(operation).or_default() += count);
        }
        let mut sums: Vec<_> = sums.into_iter().collect();
        sums.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        Ok(sums)
    }

    /// Executed instructions by operation, before each mark and after the last.
    pub fn by_part(&self, program: &Path) -> Result<Vec<BTreeMap<&'static str, u64>>> {
        let lines = addr2line::Loader::new(program).map_err(|error| anyhow!("{}: {error}", program.display()))?;
        let sums = self.0.iter().map(|part| {
            let mut sums = BTreeMap::new();
            part.iter().for_each(|(&address, count)| *sums.entry(operation(&lines, address)).or_default() += count);
            sums
        });
        Ok(sums.collect())
    }
}

/// The operation that an instruction belongs to.
fn operation(lines: &addr2line::Loader, address: u64) -> &'static str {
    let mut frames = match lines.find_frames(address) {
        Ok(frames) => frames,
        Err(_) => return OTHER,
    };
    while let Ok(Some(frame)) = frames.next() {
        let file = frame.location.as_ref().and_then(|location| location.file).unwrap_or_default();
        let name = frame.function.as_ref().and_then(|function| function.raw_name().ok()).unwrap_or_default();
        // Plain, or mangled: a mangled name has its length in front.
        let is_function = |start: &str| name.starts_with(start) || name.contains(&format!("{}{start}", start.len()));
        let matches = |path: &str, start: &str| file.contains(path) && (start.is_empty() || is_function(start));
        if let Some((.., operation)) = OPERATIONS.iter().find(|(path, start, _)| matches(path, start)) {
            return operation;
        }
    }
    // Naked functions have no lines.
    match lines.find_symbol(address) {
        Some(name) if name.contains("multiply") => PRODUCTS,
        Some(name) if name.contains("mix_") => ATTENTION,
        _ => OTHER,
    }
}
