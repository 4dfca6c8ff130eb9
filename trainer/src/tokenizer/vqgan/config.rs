//! Sizes of a VQGAN, read from the shapes of its weights.

use serde::{Deserialize, Serialize};

use crate::checkpoint::WeightSource;
use crate::data::DataError;
use crate::model::weight::join;

use super::CODEBOOK;

/// Groups of every GroupNorm; channels are multiples of it.
pub const GROUPS: usize = 32;

/// What the shapes show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VqganConfig {
    /// Channels after the encoder's first convolution.
    pub stem: usize,
    /// Channels of each level, the finest first; each but the last halves the picture.
    pub channels: Vec<usize>,
    /// Residual blocks a level, in the encoder.
    pub encoder_blocks: usize,
    /// Residual blocks a level, in the decoder.
    pub decoder_blocks: usize,
    /// Length z of a code.
    pub z_channels: usize,
    /// Number K of codes.
    pub codes: usize,
}

impl VqganConfig {
    /// Pixels a token is wide and high.
    pub fn stride(&self) -> usize {
        1 << (self.channels.len() - 1)
    }

    /// Names the first size that is out of range.
    ///
    /// # Errors
    /// A sentence with what was expected and found.
    pub fn validate(&self) -> Result<(), String> {
        let check = |what: &str, ok: bool, expected: &str, found: String| match ok {
            true => Ok(()),
            false => Err(format!("{what}: expected {expected}, found {found}")),
        };
        let fits = |channels: &usize| (GROUPS..=4096).contains(channels) && channels.is_multiple_of(GROUPS);
        let channels = self.channels.iter().all(fits) && fits(&self.stem);
        check("channels", channels, "multiples of 32, 32 to 4096", format!("{:?}", self.channels))?;
        let levels = self.channels.len();
        check("channels", (1..=8).contains(&levels), "1 to 8 levels", levels.to_string())?;
        let blocks = [self.encoder_blocks, self.decoder_blocks];
        check("blocks", blocks.iter().all(|n| (1..=64).contains(n)), "1 to 64 a level", format!("{blocks:?}"))?;
        check("code_dim", (1..=4096).contains(&self.z_channels), "1 to 4096", self.z_channels.to_string())?;
        check("codes", (2..=1 << 16).contains(&self.codes), "2 to 65536", self.codes.to_string())
    }

    /// Reads the sizes of the weights whose names start with `prefix` and a dot (or with neither).
    ///
    /// # Errors
    /// [`DataError::Invalid`] names the tensor that is missing or out of range.
    pub fn of(source: &dyn WeightSource, prefix: &str) -> Result<Self, DataError> {
        let rows = |name: &str, least: usize, most: usize, of: usize| {
            let name = join(prefix, name);
            let expected = format!("rows in multiples of {of}, {least} to {most}");
            match source.shape(&name).as_deref() {
                Some([rows, ..]) if (least..=most).contains(rows) && rows % of == 0 => Ok(*rows),
                Some(shape) => Err(DataError::invalid(source.path(), name, expected, format_args!("{shape:?}"))),
                None => Err(DataError::invalid(source.path(), name, "a tensor of this name", "none")),
            }
        };
        let has = |name: String| source.shape(&join(prefix, &name)).is_some();
        let count = |of: &dyn Fn(usize) -> String, most| (0..most).take_while(|&i| has(of(i))).count();
        let channels = |name: &str| rows(name, GROUPS, 4096, GROUPS);

        let stem = channels("encoder.conv_in.weight")?;
        let level = |i| format!("encoder.down.{i}.block.0.conv1.weight");
        let levels = count(&level, 8).max(1); // none: the error names the first
        Ok(Self {
            stem,
            channels: (0..levels).map(|i| channels(&level(i))).collect::<Result<_, _>>()?,
            encoder_blocks: count(&|j| format!("encoder.down.0.block.{j}.conv1.weight"), 64),
            decoder_blocks: count(&|j| format!("decoder.up.0.block.{j}.conv1.weight"), 64).max(1),
            z_channels: rows("encoder.conv_out.weight", 1, 4096, 1)?,
            codes: rows(CODEBOOK, 1, 1 << 16, 1)?,
        })
    }
}
