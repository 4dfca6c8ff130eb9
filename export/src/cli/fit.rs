//! Flags that say how pictures are brought to a size: the same for every verb that reads pictures.

use super::conflict;
use crate::pixels::Fit;

/// Sides below which pictures are spacers and broken thumbnails.
const MIN_SIDE: usize = 8;

/// How pictures are brought to a size.
#[derive(clap::Args, Clone, Debug)]
#[command(rename_all = "snake_case")]
pub struct FitArgs {
    /// Bring images to this many pixels a side: the shorter side is scaled (bicubic), the middle cut out.
    /// Without it images have to be square and of one size
    #[arg(long, value_name = "PIXELS", value_parser = side)]
    pub size: Option<usize>,

    /// Scale the shorter side to this many pixels before --size are cut out: 292 for the 256 of the
    /// official evaluation [default: --size]
    #[arg(long, value_name = "PIXELS", requires = "size", value_parser = side)]
    pub resize: Option<usize>,

    /// Images with a shorter side than this are faulty: spacers and broken thumbnails, not pictures [default: 8]
    #[arg(long, value_name = "PIXELS")]
    min_side: Option<usize>,
}

impl FitArgs {
    /// Ends the program where the flags do not go together.
    pub fn check(&self) {
        if let (Some(size), Some(resize)) = (self.size, self.resize) {
            if resize < size {
                conflict(&format!("--resize: expected at least --size ({size}), found {resize}"));
            }
        }
    }

    /// The first of these flags that is given, to be said where there are no pictures.
    pub(super) fn given(&self) -> Option<&'static str> {
        let flags = [(self.size, "--size"), (self.resize, "--resize"), (self.min_side, "--min_side")];
        flags.into_iter().find_map(|(value, flag)| value.map(|_| flag))
    }

    /// Pictures with a shorter side are faulty.
    pub fn min_side(&self) -> usize {
        self.min_side.unwrap_or(MIN_SIDE)
    }

    /// Pictures for a model whose images have `side` pixels a side.
    ///
    /// # Errors
    /// Another `--size`.
    pub(super) fn to(&self, side: usize) -> anyhow::Result<Fit> {
        if let Some(size) = self.size {
            anyhow::ensure!(
                size == side,
                "--size: expected {side}, the pixels a side that the model draws, found {size}"
            );
        }
        let min_side = self.min_side.unwrap_or(MIN_SIDE.min(side));
        Ok(Fit { side, resize: self.size.map(|size| self.resize.unwrap_or(size)), min_side })
    }
}

/// Parses a number of pixels a side.
fn side(text: &str) -> Result<usize, String> {
    const LARGEST: usize = 8192;
    text.parse().ok().filter(|side| (1..=LARGEST).contains(side)).ok_or_else(|| format!("expected 1 to {LARGEST}"))
}
