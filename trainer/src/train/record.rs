//! `run.json`: what a run was begun with, written before its first step and held against when it goes on.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sorcen_export::atomic;
use sorcen_runtime::ModelConfig;

use super::meter::now_s;
use crate::checkpoint::{self, Keep};
use crate::config::{ModelChoice, Plan, PretrainOptions};
use crate::data::{DataError, TokenDataset};
use crate::difference::expect_same;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    model: ModelConfig,
    plan: Plan,
    options: PretrainOptions,
    dataset: Dataset,
    program: Program,
    begun_s: f64,
}

/// The data, as far as a run depends on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Dataset {
    images: usize,
    classes: usize,
    tokenizer: Option<String>,
    sha256: String,
}

/// What computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Program {
    sorcen: String,
    burn: Option<String>,
    rustc: Option<String>,
    /// Git commit of the source, where it was known when the program was built.
    commit: Option<String>,
    system: String,
    threads: usize,
}

impl Program {
    fn this() -> Self {
        let known = |value: Option<&str>| value.map(str::to_string);
        Self {
            sorcen: env!("CARGO_PKG_VERSION").to_string(),
            burn: known(option_env!("SORCEN_BURN")),
            rustc: known(option_env!("SORCEN_RUSTC")),
            commit: known(option_env!("SORCEN_COMMIT")),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            threads: rayon::current_num_threads(),
        }
    }
}

impl Dataset {
    fn of(dataset: &TokenDataset) -> Self {
        Self {
            images: dataset.len(),
            classes: dataset.class_names().len(),
            tokenizer: dataset.tokenizer().map(str::to_string),
            sha256: dataset.digest(),
        }
    }
}

/// Writes the file.
///
/// # Errors
/// [`DataError`] where it cannot be written.
pub fn write(
    path: &Path,
    options: &PretrainOptions,
    model: &ModelConfig,
    plan: &Plan,
    dataset: &TokenDataset,
) -> Result<(), DataError> {
    let record = Record {
        model: *model,
        plan: plan.clone(),
        options: options.clone(),
        dataset: Dataset::of(dataset),
        program: Program::this(),
        begun_s: now_s(),
    };
    save(path, &record)
}

/// Writes another plan into the file: that of a run by minutes as its speed became known.
///
/// # Errors
/// [`DataError`] where it cannot be read or written.
pub fn revise(path: &Path, plan: &Plan) -> Result<(), DataError> {
    let record: Record = checkpoint::read_json(path)?;
    save(path, &Record { plan: plan.clone(), ..record })
}

fn save(path: &Path, record: &Record) -> Result<(), DataError> {
    let json = serde_json::to_string_pretty(record)
        .map_err(|error| DataError::invalid(path, "record", "one that JSON can hold", error))?;
    Ok(atomic::write_bytes(path, (json + "\n").as_bytes())?)
}

/// The plan of the run to go on with; its options and data must be those of now, but for where and when things are
/// written, and how the images of an update are shared out: of another way to do that comes a note.
///
/// # Errors
/// [`DataError`] names the first that is another.
pub fn resumed_plan(
    path: &Path,
    options: &PretrainOptions,
    model: &ModelConfig,
    dataset: &TokenDataset,
) -> Result<(Plan, Option<String>), DataError> {
    let record: Record = checkpoint::read_json(path)?;
    expect_same(path, |field| format!("--model: {field}"), &record.model, model)?;
    let item = |field: &str| match field {
        "sha256" => "--data: checksum of tokens and labels".into(),
        field => format!("--data: {field}"),
    };
    expect_same(path, item, &record.dataset, &Dataset::of(dataset))?;
    let [begun, now] = [&record.options, options].map(Shares::of);
    if begun.images() != now.images() {
        let item = "images of an update (--batch_size × --accum_iter × --devices)";
        return Err(DataError::invalid(path, item, format!("{begun}, as the run was begun with"), now));
    }
    expect_same(path, flag, &comparable(&record.options), &comparable(options))?;
    let note = format!(
        "--batch_size × --accum_iter × --devices: {now}, where the run was begun with {begun}; updates have the images \
         they would have had, while masks, BatchNorm and negatives go by batch and device as they are now"
    );
    Ok((record.plan, (begun != now).then_some(note)))
}

/// The flag that sets a field of the options.
fn flag(field: &str) -> String {
    match field {
        "duration" | "epochs" | "steps" | "minutes" => "--epochs, --steps or --minutes".into(),
        "jsm" => "jittered spatial masking (off with --no_jsm)".into(),
        field => format!("--{field}"),
    }
}

/// How the images of an update are shared out.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Shares {
    batch_size: usize,
    accum_iter: usize,
    devices: usize,
}

impl Shares {
    fn of(options: &PretrainOptions) -> Self {
        let PretrainOptions { batch_size, accum_iter, devices, .. } = *options;
        Self { batch_size, accum_iter, devices }
    }

    fn images(self) -> usize {
        self.batch_size * self.accum_iter * self.devices
    }
}

impl std::fmt::Display for Shares {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { batch_size, accum_iter, devices } = self;
        write!(f, "{batch_size} × {accum_iter} × {devices} = {}", self.images())
    }
}

/// The options that must not change within a run.
fn comparable(options: &PretrainOptions) -> PretrainOptions {
    PretrainOptions {
        data: PathBuf::new(),
        output_dir: PathBuf::new(),
        model: ModelChoice::Micro, // compared as sizes
        batch_size: 1,             // compared as images of an update
        accum_iter: 1,
        devices: 1,
        init: None,
        resume: true,
        save_every: 1,
        keep: Keep::default(),
        print_freq: 1,
        watch: Default::default(),
        device: Default::default(),
        ..options.clone()
    }
}
