//! The working memory of a forward pass: sized at compile time, owned by the caller.

use crate::{
    config::ModelConfig,
    error::Error,
    kernels::bytes::{as_f32_mut, as_i8_mut, as_u16_mut},
    layers::ROW_BLOCK,
    quant::Layout,
};

/// What the memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// The encoder: features.
    Features,
    /// Encoder, decoder and sampler: logits, generation.
    Generate,
}

/// Working memory for one image at a time.
///
/// ```
/// use sorcen_runtime::{scratch::{Plan, Scratch}, ModelConfig};
/// const CONFIG: ModelConfig = ModelConfig::micro(8, 512);
/// let mut memory = [0u8; Scratch::bytes(&CONFIG, Plan::Features)];
/// assert!(Scratch::new(&mut memory, &CONFIG, Plan::Features).is_ok());
/// ```
pub struct Scratch<'m> {
    floats: &'m mut [f32],
    bytes: &'m mut [i8],
    ids: &'m mut [u16],
    sizes: Sizes,
}

/// Element counts of every buffer.
#[derive(Clone, Copy)]
struct Sizes {
    /// Encoder rows `[1+T, D]`.
    x: usize,
    /// Decoder rows `[1+T, Dd]`.
    canvas: usize,
    /// `[1+T, 3 max(D, Dd)]`
    qkv: usize,
    /// `[ROW_BLOCK, max(D, Dd)]`
    rows: usize,
    /// `[ROW_BLOCK, max(F, Fd, K)]`
    hidden: usize,
    /// `[1+T]`
    scores: usize,
    /// `[2, max head width]`
    head: usize,
    /// Confidences of the sampler and a copy to select from, `[2, T]`.
    confidence: usize,
    /// Stride of a row of quantised activations.
    stride: usize,
    /// Ids drawn in a step, `[T]`.
    drawn: usize,
}

const fn max(a: usize, b: usize) -> usize {
    if a > b {
        a
    } else {
        b
    }
}

impl Sizes {
    const fn new(c: &ModelConfig, plan: Plan) -> Self {
        let generate = matches!(plan, Plan::Generate);
        let decoder_dim = if generate { c.decoder_embed_dim } else { 0 };
        let dim = max(c.embed_dim, decoder_dim);
        let hidden = dim * c.mlp_ratio;
        let codes = if generate { c.codebook_size } else { 0 };
        let head = max(c.head_dim(), if generate { c.decoder_head_dim() } else { 0 });
        let tokens = if generate { c.tokens() } else { 0 };
        Self {
            x: c.sequence() * c.embed_dim,
            canvas: c.sequence() * decoder_dim,
            qkv: c.sequence() * 3 * dim,
            rows: ROW_BLOCK * dim,
            hidden: ROW_BLOCK * max(hidden, codes),
            scores: c.sequence(),
            head: 2 * head,
            confidence: 2 * tokens,
            stride: hidden.next_multiple_of(Layout::MAX_KT),
            drawn: tokens,
        }
    }

    const fn floats(&self) -> usize {
        self.x + self.canvas + self.qkv + self.rows + self.hidden + self.scores + self.head + self.confidence
    }

    const fn activations(&self) -> usize {
        ROW_BLOCK * self.stride
    }
}

/// The buffers of a forward pass, each a slice of the scratch.
pub(crate) struct Buffers<'s> {
    pub x: &'s mut [f32],
    pub canvas: &'s mut [f32],
    pub qkv: &'s mut [f32],
    pub rows: &'s mut [f32],
    pub hidden: &'s mut [f32],
    pub scores: &'s mut [f32],
    pub head: &'s mut [f32],
    pub confidence: &'s mut [f32],
    pub activations: &'s mut [i8],
    pub stride: usize,
    pub drawn: &'s mut [u16],
}

impl<'m> Scratch<'m> {
    /// Bytes that a plan needs for a model, whatever the alignment of the memory.
    ///
    /// `config` must be valid (see [`ModelConfig::validate`]).
    pub const fn bytes(config: &ModelConfig, plan: Plan) -> usize {
        let sizes = Sizes::new(config, plan);
        // Up to 3 bytes are lost in front of the floats.
        3 + 4 * sizes.floats() + 2 * sizes.drawn + sizes.activations()
    }

    /// Divides memory into buffers. Its contents do not matter.
    ///
    /// # Errors
    /// [`Error::Scratch`] where `memory` is smaller than [`Scratch::bytes`], [`Error::Config`].
    pub fn new(memory: &'m mut [u8], config: &ModelConfig, plan: Plan) -> Result<Self, Error> {
        config.validate()?;
        let sizes = Sizes::new(config, plan);
        let (needed, found) = (Self::bytes(config, plan), memory.len());
        let small = Error::Scratch { needed, found };
        if found < needed {
            return Err(small);
        }
        let front = memory.as_ptr().align_offset(4);
        let memory = memory.get_mut(front..).ok_or(small)?;
        let (floats, memory) = memory.split_at_mut_checked(4 * sizes.floats()).ok_or(small)?;
        let (ids, memory) = memory.split_at_mut_checked(2 * sizes.drawn).ok_or(small)?;
        let bytes = memory.get_mut(..sizes.activations()).ok_or(small)?;
        Ok(Self { floats: as_f32_mut(floats), ids: as_u16_mut(ids), bytes: as_i8_mut(bytes), sizes })
    }

    /// The buffers, if they are at least as large as this model and plan need.
    pub(crate) fn buffers(&mut self, config: &ModelConfig, plan: Plan) -> Result<Buffers<'_>, Error> {
        let needed = Sizes::new(config, plan);
        let small =
            Error::Scratch { needed: Self::bytes(config, plan), found: 4 * self.floats.len() + self.bytes.len() };
        let enough = self.sizes.x >= needed.x
            && self.sizes.canvas >= needed.canvas
            && self.sizes.qkv >= needed.qkv
            && self.sizes.rows >= needed.rows
            && self.sizes.hidden >= needed.hidden
            && self.sizes.scores >= needed.scores
            && self.sizes.head >= needed.head
            && self.sizes.confidence >= needed.confidence
            && self.sizes.stride >= needed.stride;
        if !enough {
            return Err(small);
        }
        let mut rest = &mut *self.floats;
        let mut take = |count: usize| -> Result<&mut [f32], Error> {
            let (taken, after) = core::mem::take(&mut rest).split_at_mut_checked(count).ok_or(small)?;
            rest = after;
            Ok(taken)
        };
        Ok(Buffers {
            x: take(self.sizes.x)?,
            canvas: take(self.sizes.canvas)?,
            qkv: take(self.sizes.qkv)?,
            rows: take(self.sizes.rows)?,
            hidden: take(self.sizes.hidden)?,
            scores: take(self.sizes.scores)?,
            head: take(self.sizes.head)?,
            confidence: take(self.sizes.confidence)?,
            activations: &mut *self.bytes,
            stride: self.sizes.stride,
            drawn: &mut *self.ids,
        })
    }
}

/// A heap-allocated scratch for hosts.
#[cfg(feature = "alloc")]
pub struct OwnedScratch {
    memory: alloc::vec::Vec<u8>,
    config: ModelConfig,
    plan: Plan,
}

#[cfg(feature = "alloc")]
impl OwnedScratch {
    /// Allocates for a model and a plan.
    ///
    /// # Errors
    /// [`Error::Config`] where the configuration is invalid.
    pub fn new(config: &ModelConfig, plan: Plan) -> Result<Self, Error> {
        config.validate()?;
        Ok(Self { memory: alloc::vec![0; Scratch::bytes(config, plan)], config: *config, plan })
    }

    /// The scratch to hand to a model.
    ///
    /// # Errors
    /// None in practice: the memory was sized by [`OwnedScratch::new`].
    pub fn get(&mut self) -> Result<Scratch<'_>, Error> {
        Scratch::new(&mut self.memory, &self.config, self.plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::vec;

    #[test]
    fn any_alignment_fits_and_too_small_does_not() {
        let config = ModelConfig::micro(4, 32);
        for plan in [Plan::Features, Plan::Generate] {
            let needed = Scratch::bytes(&config, plan);
            let mut memory = vec![0; needed + 4];
            for start in 0..4 {
                let mut scratch = Scratch::new(&mut memory[start..start + needed], &config, plan).unwrap();
                assert!(scratch.buffers(&config, plan).is_ok());
            }
            let found = needed - 1;
            assert_eq!(Scratch::new(&mut memory[..found], &config, plan).err(), Some(Error::Scratch { needed, found }));
        }
        let mut memory = vec![0; Scratch::bytes(&config, Plan::Features)];
        let mut scratch = Scratch::new(&mut memory, &config, Plan::Features).unwrap();
        assert!(scratch.buffers(&config, Plan::Generate).is_err());
        assert!(scratch.buffers(&ModelConfig::tiny(4, 32), Plan::Features).is_err());
    }
}
