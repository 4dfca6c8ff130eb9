//! Flags that say which images: shared by the verbs that read them.

use std::path::PathBuf;

use anyhow::{bail, Result};
use clap::Args;

use crate::data::{ImageQuery, ImageSet};

/// Which images to read.
#[derive(Args, Clone, Debug)]
#[command(rename_all = "snake_case", next_help_heading = "Images")]
pub struct ImageArgs {
    /// Images: an idx file (MNIST's format: .idx3-ubyte or .idx4-ubyte, also .gz), or a folder of
    /// PNG, JPEG or GIF files with one subfolder per class. May be given several times
    #[arg(long, required = true, value_name = "FILE|DIR")]
    images: Vec<PathBuf>,

    /// Labels of the images, one for each --images: a CSV file with a header and a row per image (for
    /// a folder, its column `file` names them), or an idx file of bytes
    #[arg(long, value_name = "FILE")]
    labels: Vec<PathBuf>,

    /// Column of the CSV files that holds the class
    #[arg(long, default_value = "class", value_name = "NAME")]
    class_column: String,

    /// Keep only images with this value in this column, as in `--keep split=train`
    #[arg(long, value_name = "COLUMN=VALUE", value_parser = condition)]
    keep: Vec<(String, String)>,

    /// Leave out images with this value in this column, as in `--leave_out category=Component`; a
    /// class that only these have is no class then
    #[arg(long, value_name = "COLUMN=VALUE", value_parser = condition)]
    leave_out: Vec<(String, String)>,

    /// Bring images to this many pixels a side: the shorter side is scaled, the middle cut out.
    /// Without it images have to be square and of one size
    #[arg(long, value_name = "PIXELS")]
    size: Option<usize>,
}

impl ImageArgs {
    /// Lists the images.
    pub fn open(&self) -> Result<ImageSet> {
        if self.size == Some(0) {
            bail!("--size: expected at least 1 pixel, found 0");
        }
        Ok(ImageSet::open(&ImageQuery {
            images: self.images.clone(),
            labels: self.labels.clone(),
            class_column: self.class_column.clone(),
            keep: self.keep.clone(),
            leave_out: self.leave_out.clone(),
            size: self.size,
        })?)
    }
}

/// Parses `COLUMN=VALUE`.
pub fn condition(text: &str) -> Result<(String, String), String> {
    let (column, value) = text.split_once('=').ok_or("expected COLUMN=VALUE")?;
    Ok((column.into(), value.into()))
}
