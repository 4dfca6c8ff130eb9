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
const OPERATIONS: [(&str, &str, &str); 21] = [
    ("", "gelu", "GELU"),
    ("src/quant.rs", "", "quantising"),
    ("src/kernels/", "mix", "attention"),
    ("src/kernels/", "gemm", "matrix products"),
    ("src/kernels/", "products", "matrix products"),
    ("src/kernels/epilogue.rs", "scale", "matrix products"),
    ("src/kernels/epilogue.rs", "store", "matrix products"),
    ("src/kernels/epilogue.rs", "add", "matrix products"),
    ("src/kernels/", "store", "quantising"),
    ("layers/softmax.rs", "", "softmax"),
    ("layers/attention.rs", "", "attention"),
    ("layers/norm.rs", "", "LayerNorm"),
    ("layers/linear.rs", "", "matrix products"),
    ("layers/embedding.rs", "", "embedding"),
    ("src/pack/", "", "checking the pack"),
    ("src/sampler.rs", "", "sampling"),
    ("src/generate.rs", "", "sampling"),
    ("src/tokenizer.rs", "", "tokenizer"),
    ("src/bench.rs", "", "rest of the model"),
    ("src/layers/", "", "rest of the model"),
    ("src/model.rs", "", "rest of the model"),
];

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

/// QEMU's argument to count into a file.
pub fn argument(plugin: &Path, out: &Path) -> OsString {
    let mut argument = plugin.as_os_str().to_owned();
    argument.push(",out=");
    argument.push(out);
    argument
}

/// How often each instruction ran.
pub struct Counts(BTreeMap<u64, u64>);

impl Counts {
    /// Reads the plugin's file.
    pub fn read(file: &Path) -> Result<Counts> {
        let mut counts = BTreeMap::new();
        for line in std::fs::read_to_string(file).with_context(|| file.display().to_string())?.lines() {
            let mut words = line.split(' ');
            let count: u64 = words.next().unwrap_or_default().parse().with_context(|| format!("{line:?}"))?;
            for word in words {
                *counts.entry(u64::from_str_radix(word, 16).with_context(|| format!("{line:?}"))?).or_default() +=
                    count;
            }
        }
        Ok(Counts(counts))
    }

    /// Executed instructions.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Executed instructions by operation, the most first.
    pub fn by_operation(&self, program: &Path) -> Result<Vec<(&'static str, u64)>> {
        let lines = addr2line::Loader::new(program).map_err(|error| anyhow!("{}: {error}", program.display()))?;
        let mut sums: BTreeMap<&'static str, u64> = BTreeMap::new();
        for (&address, count) in &self.0 {
            *sums.entry(operation(&lines, address)).or_default() += count;
        }
        let mut sums: Vec<_> = sums.into_iter().collect();
        sums.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        Ok(sums)
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
    lines.find_symbol(address).filter(|name| name.contains("8multiply")).map_or(OTHER, |_| "matrix products")
}
