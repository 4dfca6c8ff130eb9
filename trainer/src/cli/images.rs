//! Flags that say which images: shared by the verbs that read them.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use sorcen_export::cli::fit::FitArgs;

use crate::data::{ImageQuery, ImageSet, TokenDataset};

/// Which images to read.
#[derive(Args, Clone, Debug)]
#[command(rename_all = "snake_case", next_help_heading = "Images")]
pub struct ImageArgs {
    /// Images: an idx file (MNIST's format: .idx3-ubyte or .idx4-ubyte), a folder of PNG, JPEG, WebP
    /// or GIF files with one subfolder per class, or tar shards of such files (.tar, webdataset's
    /// layout: KEY.jpg with KEY.cls or KEY.json, or folders; a key ends at the first dot); files also
    /// gzipped. Any number of them. Images without a class are of the class `image`
    #[arg(long, required = true, num_args = 1.., value_name = "FILE|DIR")]
    images: Vec<PathBuf>,

    /// Labels of the images, one for each --images: a CSV file with a header and a row per image (for
    /// a folder, its column `file` names them), or an idx file of bytes; none for shards
    #[arg(long, value_name = "FILE")]
    labels: Vec<PathBuf>,

    /// Column of the CSV files, or field of the shards' KEY.json, that holds the class
    #[arg(long, default_value = "class", value_name = "NAME")]
    class_column: String,

    /// Keep only images with this value in this column, as in `--keep split=train`
    #[arg(long, value_name = "COLUMN=VALUE", value_parser = condition)]
    keep: Vec<(String, String)>,

    /// Leave out images with this value in this column, as in `--leave_out category=Component`; a
    /// class that only these have is no class then
    #[arg(long, value_name = "COLUMN=VALUE", value_parser = condition)]
    leave_out: Vec<(String, String)>,

    #[command(flatten)]
    fit: FitArgs,

    /// Beside the middle of each image, so many random views of it (crops of 20 to 100 % of the area,
    /// half of them mirrored), as images of their own with their number in the column `view`
    #[arg(long, value_name = "N", default_value_t = 0, requires = "size")]
    more_views: usize,
}

impl ImageArgs {
    /// Lists the images; what lies beside them is said on standard error.
    pub fn open(&self) -> Result<ImageSet> {
        self.open_with(None)
    }

    /// [`open`](Self::open), with the classes of a dataset.
    pub fn open_with(&self, classes: Option<&TokenDataset>) -> Result<ImageSet> {
        self.fit.check();
        let images = ImageSet::open(&ImageQuery {
            images: self.images.clone(),
            labels: self.labels.clone(),
            classes: classes.map(|dataset| (dataset.dir().to_path_buf(), dataset.class_names().to_vec())),
            class_column: self.class_column.clone(),
            keep: self.keep.clone(),
            leave_out: self.leave_out.clone(),
            size: self.fit.size,
            resize: self.fit.resize,
            min_side: self.fit.min_side(),
            more_views: self.more_views,
        })?;
        images.notes().iter().for_each(|note| eprintln!("note: {note}"));
        Ok(images)
    }
}

/// Parses `COLUMN=VALUE`.
pub fn condition(text: &str) -> Result<(String, String), String> {
    let (column, value) = text.split_once('=').ok_or("expected COLUMN=VALUE")?;
    Ok((column.into(), value.into()))
}
