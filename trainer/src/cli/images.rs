//! Flags that say which images: shared by the verbs that read them.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::data::{ImageQuery, ImageSet};

/// Which images to read.
#[derive(Args, Clone, Debug)]
#[command(rename_all = "snake_case", next_help_heading = "Images")]
pub struct ImageArgs {
    /// Images: an idx file (MNIST's format: .idx3-ubyte or .idx4-ubyte, also .gz), a folder of PNG,
    /// JPEG, WebP or GIF files with one subfolder per class, or tar shards of such files (.tar,
    /// webdataset's layout: KEY.jpg with KEY.cls or KEY.json, or folders). Any number of them.
    /// Images without a class are of the class `image`
    #[arg(long, required = true, num_args = 1.., value_name = "FILE|DIR")]
    images: Vec<PathBuf>,

    /// Labels of the images, one for each --images: a CSV file with a header and a row per image (for
    /// a folder, its column `file` names them), or an idx file of bytes
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

    /// Bring images to this many pixels a side: the shorter side is scaled (bicubic), the middle cut out.
    /// Without it images have to be square and of one size
    #[arg(long, value_name = "PIXELS", value_parser = side)]
    size: Option<usize>,

    /// Scale the shorter side to this many pixels before --size are cut out: 292 for the 256 of the
    /// official evaluation [default: --size]
    #[arg(long, value_name = "PIXELS", requires = "size", value_parser = side)]
    resize: Option<usize>,

    /// Images with a shorter side than this are faulty: spacers and broken thumbnails, not pictures
    #[arg(long, value_name = "PIXELS", default_value_t = 8)]
    min_side: usize,

    /// Beside the middle of each image, so many random views of it (crops of 20 to 100 % of the area,
    /// half of them mirrored), as images of their own with their number in the column `view`
    #[arg(long, value_name = "N", default_value_t = 0, requires = "size")]
    more_views: usize,
}

impl ImageArgs {
    /// Lists the images.
    pub fn open(&self) -> Result<ImageSet> {
        if let (Some(size), Some(resize)) = (self.size, self.resize) {
            usage_unless!(resize >= size, "--resize: expected at least --size ({size}), found {resize}");
        }
        Ok(ImageSet::open(&ImageQuery {
            images: self.images.clone(),
            labels: self.labels.clone(),
            class_column: self.class_column.clone(),
            keep: self.keep.clone(),
            leave_out: self.leave_out.clone(),
            size: self.size,
            resize: self.resize,
            min_side: self.min_side,
            more_views: self.more_views,
        })?)
    }
}

/// Parses a number of pixels a side.
fn side(text: &str) -> Result<usize, String> {
    const LARGEST: usize = 8192;
    text.parse().ok().filter(|side| (1..=LARGEST).contains(side)).ok_or_else(|| format!("expected 1 to {LARGEST}"))
}

/// Parses `COLUMN=VALUE`.
pub fn condition(text: &str) -> Result<(String, String), String> {
    let (column, value) = text.split_once('=').ok_or("expected COLUMN=VALUE")?;
    Ok((column.into(), value.into()))
}
