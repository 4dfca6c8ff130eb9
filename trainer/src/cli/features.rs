//! Flags that say which images to classify, and whose features: shared by `knn`, `linprobe` and `fewshot`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::eval::Task;

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
}

impl TaskArgs {
    /// Opens the datasets.
    pub fn open(&self) -> Result<Task> {
        Ok(Task::open(&self.data, &self.bank, &self.split, &self.only)?)
    }
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
