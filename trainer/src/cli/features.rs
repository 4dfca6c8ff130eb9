//! Flags that say which images to classify, and whose features: shared by `knn`, `linprobe` and `fewshot`.

use std::path::{Path, PathBuf};

use anyhow::{ensure, Result};
use clap::Args;
use sorcen_export::fingerprint::{Fingerprint, Kind};
use sorcen_runtime::ModelConfig;

use crate::eval::Task;
use crate::tokenizer::Tokenizer;

/// Which images, and which of them have known labels.
#[derive(Args, Clone, Debug)]
#[command(rename_all = "snake_case")]
pub struct TaskArgs {
    /// Folder with the token datasets
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,

    /// Dataset in DATA whose labels are known
    #[arg(long, default_value = "train")]
    pub bank: String,

    /// Dataset in DATA to classify; tune on val, look at test once
    #[arg(long, default_value = "val")]
    pub split: String,

    /// Use only images with this value in this column of items.csv
    #[arg(long, value_name = "COLUMN=VALUE", value_parser = super::images::condition)]
    pub only: Vec<(String, String)>,

    /// Take an encoder or a tokenizer that says by its fingerprint that it knows another tokenizer's codes than those
    /// of the datasets: an error without
    #[arg(long)]
    pub allow_other_tokenizer: bool,
}

impl TaskArgs {
    /// Opens the datasets.
    pub fn open(&self) -> Result<Task> {
        Ok(Task::open(&self.data, &self.bank, &self.split, &self.only)?)
    }

    /// Opens the datasets to learn from one and be measured on the other; says where they overlap.
    pub fn open_to_learn(&self) -> Result<Task> {
        let task = self.open()?;
        if task.shared() > 0 {
            let (shared, split, bank) = (task.shared(), &self.split, &self.bank);
            eprintln!(
                "note: {shared} images of `{split}` are in `{bank}` too: they are classified after learning on them"
            );
        }
        Ok(task)
    }

    /// That an encoder of these sizes, whose model has learned `codes`, reads the tokens of `task`.
    pub fn check_encoder(&self, task: &Task, config: &ModelConfig, codes: &Fingerprint) -> Result<()> {
        ensure!(
            task.grid() == config.grid && task.codes() <= config.codebook_size,
            "{}: expected {3}x{3} tokens of at most {4} codes, as the model has, found {1}x{1} of {2}",
            self.data.display(),
            task.grid(),
            task.codes(),
            config.grid,
            config.codebook_size,
        );
        Ok(codes.expect(&self.made_with(task), Kind::Tokenizer, self.allow_other_tokenizer)?)
    }

    /// That a tokenizer decodes the tokens of `task`.
    pub fn check_tokenizer(&self, task: &Task, path: &Path, tokenizer: &dyn Tokenizer) -> Result<()> {
        check_codes(&self.data, task.codes(), path, tokenizer)?;
        let found = Fingerprint::new(path.display(), Some(tokenizer.fingerprint()));
        Ok(self.made_with(task).expect(&found, Kind::Tokenizer, self.allow_other_tokenizer)?)
    }

    fn made_with(&self, task: &Task) -> Fingerprint {
        Fingerprint::new(self.data.join(&self.bank).display(), task.tokenizer().map(str::to_string))
    }
}

/// That a tokenizer has as many codes as the tokens of `data` are of.
pub fn check_codes(data: &Path, codes: usize, path: &Path, tokenizer: &dyn Tokenizer) -> Result<()> {
    let found = tokenizer.codes();
    ensure!(found == codes, "{}: expected {codes} codes, those of {}, found {found}", path.display(), data.display());
    Ok(())
}

/// One encoder.
#[derive(Args, Clone, Debug)]
#[command(rename_all = "snake_case")]
#[group(required = true, multiple = false)]
pub struct EncoderArgs {
    /// Checkpoint folder whose encoder makes the features, in float, by Burn
    #[arg(long, value_name = "DIR")]
    pub checkpoint: Option<PathBuf>,

    /// Pack whose encoder makes the features, on the runtime
    #[arg(long, value_name = "FILE")]
    pub pack: Option<PathBuf>,
}
