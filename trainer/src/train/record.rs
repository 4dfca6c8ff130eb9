//! `run.json`: what a run was begun with, written before its first step and held against when it goes on.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sorcen_export::atomic;
use sorcen_runtime::ModelConfig;

use super::meter::now_s;
use crate::checkpoint::{self, Keep};
use crate::config::{ModelChoice, Plan, PretrainOptions};
use crate::data::{DataError, TokenDataset};

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
        plan: *plan,
        options: options.clone(),
        dataset: Dataset::of(dataset),
        program: Program::this(),
        begun_s: now_s(),
    };
    let json = serde_json::to_string_pretty(&record)
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
    let differs = |item: &str, begun: &dyn std::fmt::Display, now: &dyn std::fmt::Display| {
        Err(DataError::invalid(path, item, format!("{begun}, as the run was begun with"), now))
    };
    if let Some((field, begun, now)) = checkpoint::first_difference(&record.model, model) {
        return differs(&format!("model: {field}"), &begun, &now);
    }
    let dataset = Dataset::of(dataset);
    if record.dataset != dataset {
        return differs("dataset", &format!("{:?}", record.dataset), &format!("{dataset:?}"));
    }
    let shares = [&record.options, options].map(Shares::of);
    let [begun, now] = shares.map(|shares| shares.images());
    if begun != now {
        let [begun, now] = shares.map(|shares| shares.to_string());
        return differs("images of an update (--batch_size × --accum_iter × --devices)", &begun, &now);
    }
    if let Some((name, begun, now)) = checkpoint::first_difference(&comparable(&record.options), &comparable(options)) {
        return differs(&name, &begun, &now);
    }
    let [begun, now] = shares;
    let note = format!(
        "--batch_size × --accum_iter × --devices: {now}, where the run was begun with {begun}; updates have the images \
         they would have had, while masks, BatchNorm and negatives go by batch and device as they are now"
    );
    Ok((record.plan, (begun != now).then_some(note)))
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
