//! Tokens to pictures and back, by a tokenizer of a file or of a pack.

use sorcen_runtime::{
    pack::Precision,
    scratch::Scratch,
    tokenizer::PatchCodebook,
    vit::{Vit, VitParam},
    Pack,
};

use super::{AnyTokenizer, VitTokenizer};
use crate::error::Error;

/// A tokenizer that paints.
pub enum Painter<'t> {
    /// Copies patches.
    Patches(PatchCodebook<'t>),
    /// Runs the network of a pack.
    Vit(Vit<'t>),
    /// Runs the network of a file, in f32.
    Section(Section),
}

/// A ViT tokenizer's section in memory of its own.
pub struct Section {
    words: Vec<u32>,
    bytes: usize,
}

impl Section {
    fn new(tokenizer: &VitTokenizer) -> Result<Self, sorcen_runtime::Error> {
        let section = tokenizer.section(None)?;
        let mut words = vec![0; section.len().div_ceil(4)];
        bytemuck::cast_slice_mut::<u32, u8>(&mut words)[..section.len()].copy_from_slice(&section);
        Ok(Self { words, bytes: section.len() })
    }

    fn vit(&self) -> Result<Vit<'_>, sorcen_runtime::Error> {
        Vit::new(&bytemuck::cast_slice(&self.words)[..self.bytes])
    }
}

impl<'t> Painter<'t> {
    /// Of a file's tokenizer.
    ///
    /// # Errors
    /// None in practice: the file was checked.
    pub fn of(tokenizer: &'t AnyTokenizer) -> Result<Self, sorcen_runtime::Error> {
        match tokenizer {
            AnyTokenizer::Patches(patches) => Ok(Self::Patches(patches.codebook())),
            AnyTokenizer::Vit(vit) => Section::new(vit).map(Self::Section),
        }
    }

    /// Of a pack's tokenizer, if it has one; the ViT where it has both.
    pub fn of_pack(pack: &Pack<'t>) -> Option<Self> {
        pack.vit().map(Self::Vit).or(pack.tokenizer().map(Self::Patches))
    }

    /// Number K of codes.
    pub fn codes(&self) -> usize {
        match self {
            Self::Patches(codebook) => codebook.codes(),
            Self::Vit(vit) => vit.config().codes,
            Self::Section(section) => section.vit().map_or(0, |vit| vit.config().codes),
        }
    }

    /// Whether it computes with int8 weights.
    pub fn is_integer(&self) -> bool {
        match self {
            Self::Vit(vit) => VitParam::all(vit.config()).any(|param| vit.precision(param) == Some(Precision::Int8)),
            Self::Patches(_) | Self::Section(_) => false,
        }
    }

    /// Pixels a token is wide and high.
    pub fn stride(&self) -> usize {
        match self {
            Self::Patches(codebook) => codebook.patch(),
            Self::Vit(vit) => vit.config().patch,
            Self::Section(section) => section.vit().map_or(0, |vit| vit.config().patch),
        }
    }

    /// Refuses a model with other codes, or a grid that this tokenizer does not have.
    ///
    /// # Errors
    /// [`Error::Value`] with both numbers.
    pub fn check_fit(&self, codes: usize, grid: usize) -> Result<(), Error> {
        let own_grid = match self {
            Self::Patches(_) => None,
            Self::Vit(vit) => Some(vit.config().grid),
            Self::Section(section) => section.vit().ok().map(|vit| vit.config().grid),
        };
        super::check_fit((self.codes(), own_grid), (codes, grid))
    }

    /// Ids `[grid, grid]` of an image `rgb` `[side, side, 3]`, `side = grid * stride`.
    ///
    /// # Errors
    /// As the runtime's.
    pub fn encode(&self, rgb: &[u8], grid: usize) -> Result<Vec<u16>, sorcen_runtime::Error> {
        let mut ids = vec![0; grid * grid];
        let run = |vit: &Vit<'_>, ids: &mut [u16]| {
            let mut memory = vec![0; Scratch::vit_fast_bytes(vit.config())];
            vit.encode(rgb, &mut Scratch::for_vit(&mut memory, vit.config())?, ids)
        };
        match self {
            Self::Patches(codebook) => {
                let side = grid * codebook.patch();
                codebook.encode(rgb, side, side, &mut ids)?;
            }
            Self::Vit(vit) => run(vit, &mut ids)?,
            Self::Section(section) => run(&section.vit()?, &mut ids)?,
        }
        Ok(ids)
    }

    /// The image of some ids `[grid, grid]`.
    ///
    /// # Errors
    /// As the runtime's.
    pub fn decode(&self, ids: &[u16], grid: usize) -> Result<Vec<u8>, sorcen_runtime::Error> {
        let side = grid * self.stride();
        let mut rgb = vec![0; side * side * 3];
        let run = |vit: &Vit<'_>, rgb: &mut [u8]| {
            let mut memory = vec![0; Scratch::vit_fast_bytes(vit.config())];
            vit.decode(ids, &mut Scratch::for_vit(&mut memory, vit.config())?, rgb)
        };
        match self {
            Self::Patches(codebook) => codebook.decode(ids, side, side, &mut rgb)?,
            Self::Vit(vit) => run(vit, &mut rgb)?,
            Self::Section(section) => run(&section.vit()?, &mut rgb)?,
        }
        Ok(rgb)
    }
}
