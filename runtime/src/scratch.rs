//! The working memory of a forward pass: sized at compile time, owned by the caller.

use crate::{
    config::ModelConfig,
    error::Error,
    kernels::bytes::{as_f32_mut, as_i16_mut, as_i8_mut, as_u16_mut},
    layers::{
        attention::{HeadWork, QUERIES},
        block::ROWS,
        linear::{Input, Linear},
    },
    quant::Layout,
    vit::VitConfig,
};

/// What the memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// The encoder: features.
    Features,
    /// Encoder, decoder and sampler: logits, generation.
    Generate,
}

/// What a scratch was made for, or is wanted for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Model(Plan),
    Vit,
}

impl Purpose {
    const fn name(self) -> &'static str {
        match self {
            Purpose::Model(Plan::Features) => "Plan::Features",
            Purpose::Model(Plan::Generate) => "Plan::Generate",
            Purpose::Vit => "a ViT tokenizer",
        }
    }

    /// Checks that what was made for `self` can be used for `wanted`: a generation's scratch has all that features need.
    pub(crate) fn check(self, wanted: Purpose) -> Result<(), Error> {
        match (self, wanted) {
            (Purpose::Model(Plan::Generate), Purpose::Model(Plan::Features)) => Ok(()),
            _ if self == wanted => Ok(()),
            _ => Err(Error::ScratchPlan { expected: wanted.name(), found: self.name() }),
        }
    }
}

/// Working memory for one image at a time, in one region of memory or in two.
///
/// ```
/// use sorcen_runtime::{scratch::{Plan, Scratch}, ModelConfig};
/// const CONFIG: ModelConfig = ModelConfig::micro(8, 512);
/// let mut memory = [0u8; Scratch::bytes(&CONFIG, Plan::Features)];
/// assert!(Scratch::new(&mut memory, &CONFIG, Plan::Features).is_ok());
/// ```
///
/// Where some memory is faster (SRAM beside PSRAM), what is read and written all the time goes there:
///
/// ```
/// # use sorcen_runtime::{scratch::{Plan, Regions, Scratch}, ModelConfig};
/// # const CONFIG: ModelConfig = ModelConfig::micro(8, 512);
/// const BYTES: Regions = Scratch::regions(&CONFIG, Plan::Generate);
/// let (mut sram, mut psram) = ([0u8; BYTES.fast], [0u8; BYTES.slow]);
/// assert!(Scratch::in_regions(&mut sram, &mut psram, &CONFIG, Plan::Generate).is_ok());
/// ```
///
/// | region | buffers |
/// |---|---|
/// | slow | encoder rows, decoder rows, the attention's output: each is passed over a few times a block |
/// | fast | quantised input of the attention, queries, keys, values and scores of a head, inputs and hidden layer of an MLP for a few rows, what is drawn |
///
/// A scratch serves models of the sizes and the plan that it was made for (one for [`Plan::Generate`] features, too);
/// any other is an error.
pub struct Scratch<'m> {
    slow: &'m mut [u8],
    fast: &'m mut [u8],
    purpose: Purpose,
    sizes: Sizes,
}

/// Bytes of the two regions of a [`Scratch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Regions {
    /// Hot buffers.
    pub fast: usize,
    /// Rows of whole sequences.
    pub slow: usize,
}

/// Buffers start at multiples of this, in bytes.
const ALIGN: usize = 64;

/// How many rows pass through an MLP together, how many heads are projected together, and how many queries attend
/// together.
///
/// The results do not depend on it: more memory makes fewer, larger matrix products.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Blocks {
    rows: usize,
    /// Heads are grouped up to this width.
    heads_width: usize,
    queries: usize,
}

impl Blocks {
    /// For microcontrollers.
    const SMALL: Self = Self { rows: 8, heads_width: 1, queries: 12 };

    /// For processors with caches: whole sequences, however short.
    const fn large(rows: usize) -> Self {
        Self { rows: max(rows, Self::SMALL.rows), heads_width: 64, queries: QUERIES }
    }
}

// A block's hidden layer is where rows are put side by side, too.
const _: () = assert!(Blocks::SMALL.rows >= ROWS);

/// Heads that are projected together: the most that divide all and are not wider than `width`; at least one.
pub(crate) const fn heads_together(heads: usize, head_dim: usize, width: usize) -> usize {
    let mut together = 1;
    let mut n = 2;
    while n <= heads && n * head_dim <= width {
        if heads.is_multiple_of(n) {
            together = n;
        }
        n += 1;
    }
    together
}

/// Element counts of every buffer: all that a forward pass's indices follow from.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Sizes {
    blocks: Blocks,
    /// Encoder rows `[1+T, D]`.
    x: usize,
    /// Decoder rows `[1+T, Dd]`.
    canvas: usize,
    /// Attention output `[groups of heads, 1+T, width of a group]`.
    attended: usize,
    /// Quantised input of the attention, `[1+T]` rows of so many bytes.
    normed_stride: usize,
    rows: usize,
    /// Projections of a group of heads, `[1+T, 3 * width]`.
    qkv: usize,
    /// Width of a head.
    head: usize,
    /// `[rows of a block, max(D, Dd)]`
    floats: usize,
    /// `[rows of a block, max(F, Fd, K)]`
    hidden: usize,
    /// Stride of a row of quantised activations.
    stride: usize,
    /// Tokens to draw: their confidences and a copy to select from `[2, T]`, their ids `[T]`, whether given `[T]`.
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
    const fn new(c: &ModelConfig, plan: Plan, blocks: Blocks) -> Self {
        let generate = matches!(plan, Plan::Generate);
        let decoder_dim = if generate { c.decoder_embed_dim } else { 0 };
        let dim = max(c.embed_dim, decoder_dim);
        let hidden = dim * c.mlp_ratio;
        let codes = if generate { c.codebook_size } else { 0 };
        let group = c.head_dim() * heads_together(c.num_heads, c.head_dim(), blocks.heads_width);
        let decoder_group =
            c.decoder_head_dim() * heads_together(c.decoder_num_heads, c.decoder_head_dim(), blocks.heads_width);
        Self {
            blocks,
            x: c.sequence() * c.embed_dim,
            canvas: c.sequence() * decoder_dim,
            attended: c.sequence() * dim,
            normed_stride: Linear::stride(dim),
            rows: c.sequence(),
            qkv: c.sequence() * 3 * max(group, if generate { decoder_group } else { 0 }),
            head: max(c.head_dim(), if generate { c.decoder_head_dim() } else { 0 }),
            floats: blocks.rows * dim,
            hidden: blocks.rows * max(hidden, codes),
            stride: Linear::stride(hidden),
            drawn: if generate { c.tokens() } else { 0 },
        }
    }

    /// Of a tokenizer, both ways.
    const fn vit(c: &VitConfig, blocks: Blocks) -> Self {
        let (tokens, dim) = (c.tokens(), c.embed_dim);
        let widest = max(max(c.hidden_dim(), c.patch_values()), c.code_dim);
        Self {
            blocks,
            x: tokens * dim,
            canvas: 0,
            attended: tokens * dim,
            normed_stride: Linear::stride(dim),
            rows: tokens,
            qkv: tokens * 3 * c.head_dim() * heads_together(c.num_heads, c.head_dim(), blocks.heads_width),
            head: c.head_dim(),
            floats: blocks.rows * max(max(dim, c.patch_values()), c.code_dim),
            hidden: blocks.rows * widest,
            stride: Linear::stride(widest),
            drawn: 0,
        }
    }

    /// Bytes of every buffer, in the order in which [`Scratch::buffers`] takes them.
    const fn lengths(&self) -> [usize; 19] {
        let pairs = self.rows.next_multiple_of(2);
        let keys = self.rows.next_multiple_of(Layout::MAX_NR);
        let queries = self.blocks.queries;
        [
            4 * self.x,
            4 * self.canvas,
            4 * self.attended,
            self.rows * self.normed_stride,
            4 * self.rows, // scales of the above
            4 * self.qkv,
            keys * self.head.next_multiple_of(Layout::MAX_KT),
            4 * keys, // key scales
            2 * pairs * self.head,
            4 * self.head,                      // value scales
            4 * max(queries * self.rows, keys), // room for a row of whole panels
            2 * queries * pairs,
            queries * Linear::stride(self.head),
            4 * 2 * self.head,
            4 * self.floats,
            4 * self.hidden,
            self.blocks.rows * self.stride,
            4 * self.blocks.rows, // scales of the above
            (2 * 4 + 2 + 1) * self.drawn,
        ]
    }

    /// The first so many buffers are in the slow region.
    const SLOW: usize = 3;

    /// Bytes of the buffers of each region.
    const fn regions(&self) -> Regions {
        let lengths = self.lengths();
        let (mut regions, mut i) = (Regions { fast: 0, slow: 0 }, 0);
        while i < lengths.len() {
            let length = lengths[i].next_multiple_of(ALIGN);
            // On a 32-bit CPU the largest models' sum is more than it can address: more than any memory, not less.
            if i < Self::SLOW {
                regions.slow = regions.slow.saturating_add(length);
            } else {
                regions.fast = regions.fast.saturating_add(length);
            }
            i += 1;
        }
        regions
    }

    /// Bytes of all buffers, and what alignment may take.
    const fn bytes(&self) -> usize {
        let Regions { fast, slow } = self.regions();
        (ALIGN - 1 + slow).saturating_add(fast)
    }

    /// Names and values of what has to be the same for two models to share a scratch.
    const fn shape(&self) -> [(&'static str, usize); 11] {
        [
            ("rows of a sequence", self.rows),
            ("numbers of the encoder's rows", self.x),
            ("numbers of the decoder's rows", self.canvas),
            ("numbers of the attention's output", self.attended),
            ("bytes of a row of the attention's input", self.normed_stride),
            ("numbers of projected heads", self.qkv),
            ("width of a head", self.head),
            ("numbers of an MLP's input", self.floats),
            ("numbers of an MLP's hidden layer", self.hidden),
            ("bytes of a row of an MLP's hidden layer", self.stride),
            ("tokens to draw", self.drawn),
        ]
    }

    /// Checks that a scratch of these sizes is one of the `wanted` ones.
    fn check(&self, wanted: &Self) -> Result<(), Error> {
        for ((item, found), (_, needed)) in self.shape().into_iter().zip(wanted.shape()) {
            if found != needed {
                return Err(Error::ScratchShape { item, needed, found });
            }
        }
        Ok(())
    }
}

/// The buffers of a forward pass, each a slice of the scratch.
pub(crate) struct Buffers<'s> {
    /// What they are large enough for.
    pub purpose: Purpose,
    /// Encoder rows.
    pub x: &'s mut [f32],
    /// Decoder rows.
    pub canvas: &'s mut [f32],
    pub work: Work<'s>,
    /// Confidences of the drawn tokens, a copy to select from, their ids, and 1 where a token was given.
    pub confidence: &'s mut [f32],
    pub select: &'s mut [f32],
    pub drawn: &'s mut [u16],
    pub given: &'s mut [u8],
}

/// What the blocks work in.
pub(crate) struct Work<'s> {
    /// Attention output `[groups of heads, rows, width of a group]`.
    pub attended: &'s mut [f32],
    /// Quantised input of the attention, and its scales.
    pub normed: &'s mut [u8],
    pub normed_stride: usize,
    pub normed_scales: &'s mut [f32],
    /// Projections of a group of heads.
    pub qkv: &'s mut [f32],
    /// Heads are grouped up to this width.
    pub heads_width: usize,
    pub head: HeadWork<'s>,
    /// Rows that pass through an MLP together, their input and their hidden layer.
    pub rows: usize,
    pub input: Input<'s>,
    pub hidden: &'s mut [f32],
}

impl<'m> Scratch<'m> {
    /// Bytes that a plan needs for a model, whatever the alignment of the memory.
    ///
    /// `config` must be valid (see [`ModelConfig::validate`]).
    pub const fn bytes(config: &ModelConfig, plan: Plan) -> usize {
        Sizes::new(config, plan, Blocks::SMALL).bytes()
    }

    /// Bytes with which a processor with caches runs fastest (the results are the same).
    pub const fn fast_bytes(config: &ModelConfig, plan: Plan) -> usize {
        Sizes::new(config, plan, Blocks::large(config.sequence())).bytes()
    }

    /// Divides memory into buffers. Its contents do not matter.
    ///
    /// With [`Scratch::fast_bytes`] or more the matrix products are as large as they get.
    ///
    /// # Errors
    /// [`Error::Scratch`] where `memory` is smaller than [`Scratch::bytes`], [`Error::Config`].
    pub fn new(memory: &'m mut [u8], config: &ModelConfig, plan: Plan) -> Result<Self, Error> {
        config.validate()?;
        let (needed, found) = (Self::bytes(config, plan), memory.len());
        if found < needed {
            return Err(Error::Scratch { needed, found });
        }
        let fast = found >= Self::fast_bytes(config, plan);
        let blocks = if fast { Blocks::large(config.sequence()) } else { Blocks::SMALL };
        Self::within(memory, Purpose::Model(plan), Sizes::new(config, plan, blocks), needed)
    }

    /// Both regions in one memory, `needed` bytes of it at least.
    fn within(memory: &'m mut [u8], purpose: Purpose, sizes: Sizes, needed: usize) -> Result<Self, Error> {
        let found = memory.len();
        let front = memory.as_ptr().align_offset(ALIGN);
        let end_of_slow = front.saturating_add(sizes.regions().slow);
        let (slow, fast) = memory.split_at_mut_checked(end_of_slow).ok_or(Error::Scratch { needed, found })?;
        Ok(Self { slow, fast, purpose, sizes })
    }

    /// Bytes of a fast and of a slow region, whatever their alignment; together a little more than
    /// [`bytes`](Self::bytes).
    ///
    /// `config` must be valid (see [`ModelConfig::validate`]).
    pub const fn regions(config: &ModelConfig, plan: Plan) -> Regions {
        let Regions { fast, slow } = Sizes::new(config, plan, Blocks::SMALL).regions();
        Regions { fast: fast.saturating_add(ALIGN - 1), slow: ALIGN - 1 + slow }
    }

    /// Divides two regions of memory into buffers: the same results, to the bit, as in one. Their contents do not
    /// matter.
    ///
    /// # Errors
    /// [`Error::Scratch`] where one is smaller than [`regions`](Self::regions) says, [`Error::Config`].
    pub fn in_regions(fast: &'m mut [u8], slow: &'m mut [u8], config: &ModelConfig, plan: Plan) -> Result<Self, Error> {
        config.validate()?;
        let needed = Self::regions(config, plan);
        for (needed, found) in [(needed.fast, fast.len()), (needed.slow, slow.len())] {
            if found < needed {
                return Err(Error::Scratch { needed, found });
            }
        }
        Ok(Self { slow, fast, purpose: Purpose::Model(plan), sizes: Sizes::new(config, plan, Blocks::SMALL) })
    }

    /// Bytes that a ViT tokenizer needs, encoding or decoding, whatever the alignment of the memory.
    ///
    /// `config` must be valid (see [`VitConfig::validate`]).
    pub const fn vit_bytes(config: &VitConfig) -> usize {
        Sizes::vit(config, Blocks::SMALL).bytes()
    }

    /// Bytes with which it runs fastest on a processor with caches (the results are the same).
    pub const fn vit_fast_bytes(config: &VitConfig) -> usize {
        Sizes::vit(config, Blocks::large(config.tokens())).bytes()
    }

    /// Divides memory into the buffers of a ViT tokenizer. Its contents do not matter.
    ///
    /// # Errors
    /// [`Error::Scratch`] where `memory` is smaller than [`Scratch::vit_bytes`], [`Error::Config`].
    pub fn for_vit(memory: &'m mut [u8], config: &VitConfig) -> Result<Self, Error> {
        config.validate()?;
        let (needed, found) = (Self::vit_bytes(config), memory.len());
        if found < needed {
            return Err(Error::Scratch { needed, found });
        }
        let fast = found >= Self::vit_fast_bytes(config);
        let blocks = if fast { Blocks::large(config.tokens()) } else { Blocks::SMALL };
        Self::within(memory, Purpose::Vit, Sizes::vit(config, blocks), needed)
    }

    /// The buffers, if this was made for models of these sizes and for this plan.
    pub(crate) fn buffers(&mut self, config: &ModelConfig, plan: Plan) -> Result<Buffers<'_>, Error> {
        self.purpose.check(Purpose::Model(plan))?;
        let made_for = if self.purpose == Purpose::Model(Plan::Generate) { Plan::Generate } else { Plan::Features };
        self.divide(Sizes::new(config, made_for, self.sizes.blocks))
    }

    /// The buffers, if this was made for tokenizers of these sizes.
    pub(crate) fn vit_buffers(&mut self, config: &VitConfig) -> Result<Buffers<'_>, Error> {
        self.purpose.check(Purpose::Vit)?;
        self.divide(Sizes::vit(config, self.sizes.blocks))
    }

    /// The buffers, if their sizes are the `wanted` ones.
    fn divide(&mut self, wanted: Sizes) -> Result<Buffers<'_>, Error> {
        self.sizes.check(&wanted)?;
        let lengths = self.sizes.lengths();
        let small = Error::Scratch { needed: self.sizes.bytes(), found: self.slow.len() + self.fast.len() };
        let mut rest = [&mut *self.slow, &mut *self.fast];
        for region in &mut rest {
            let front = region.as_ptr().align_offset(ALIGN);
            *region = core::mem::take(region).get_mut(front..).ok_or(small)?;
        }
        let [mut slow, mut fast] = rest;
        let mut lengths = lengths.into_iter().enumerate();
        let mut take = || -> Result<&mut [u8], Error> {
            let (index, length) = lengths.next().unwrap_or((0, 0));
            let rest = if index < Sizes::SLOW { &mut slow } else { &mut fast };
            let (taken, after) =
                core::mem::take(rest).split_at_mut_checked(length.next_multiple_of(ALIGN)).ok_or(small)?;
            *rest = after;
            taken.get_mut(..length).ok_or(small)
        };
        let x = as_f32_mut(take()?);
        let canvas = as_f32_mut(take()?);
        let attended = as_f32_mut(take()?);
        let normed = take()?;
        let normed_scales = as_f32_mut(take()?);
        let qkv = as_f32_mut(take()?);
        let head = HeadWork {
            together: self.sizes.blocks.queries,
            keys: as_i8_mut(take()?),
            key_scales: as_f32_mut(take()?),
            values: as_i16_mut(take()?),
            value_scales: as_f32_mut(take()?),
            scores: as_f32_mut(take()?),
            weights: as_i16_mut(take()?),
            queries: take()?,
            row: as_f32_mut(take()?),
        };
        let floats = as_f32_mut(take()?);
        let hidden = as_f32_mut(take()?);
        let input = Input { floats, bytes: take()?, stride: self.sizes.stride, scales: as_f32_mut(take()?) };
        let work = Work {
            attended,
            normed,
            normed_stride: self.sizes.normed_stride,
            normed_scales,
            qkv,
            heads_width: self.sizes.blocks.heads_width,
            head,
            rows: self.sizes.blocks.rows,
            input,
            hidden,
        };
        let tokens = self.sizes.drawn;
        let (confidence, drawn) = take()?.split_at_mut(2 * 4 * tokens);
        let (confidence, select) = as_f32_mut(confidence).split_at_mut(tokens);
        let (drawn, given) = drawn.split_at_mut(2 * tokens);
        let purpose = self.purpose;
        Ok(Buffers { purpose, x, canvas, work, confidence, select, drawn: as_u16_mut(drawn), given })
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
    /// Allocates for a model and a plan, [`Scratch::fast_bytes`].
    ///
    /// # Errors
    /// [`Error::Config`] where the configuration is invalid.
    pub fn new(config: &ModelConfig, plan: Plan) -> Result<Self, Error> {
        config.validate()?;
        Ok(Self { memory: alloc::vec![0; Scratch::fast_bytes(config, plan)], config: *config, plan })
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
            let fast = Scratch::fast_bytes(&config, plan);
            let mut larger = vec![0; fast];
            let mut scratch = Scratch::new(&mut larger, &config, plan).unwrap();
            assert_eq!(scratch.buffers(&config, plan).unwrap().work.rows, config.sequence());
            let found = needed - 1;
            assert_eq!(Scratch::new(&mut memory[..found], &config, plan).err(), Some(Error::Scratch { needed, found }));
        }
        let Regions { fast, slow } = Scratch::regions(&config, Plan::Generate);
        assert!((0..2 * ALIGN).contains(&(fast + slow - Scratch::bytes(&config, Plan::Generate))));
        let (mut one, mut two) = (vec![0; fast + 4], vec![0; slow + 4]);
        for start in 0..4 {
            let (one, two) = (&mut one[start..start + fast], &mut two[start..start + slow]);
            let mut scratch = Scratch::in_regions(one, two, &config, Plan::Generate).unwrap();
            let buffers = scratch.buffers(&config, Plan::Generate).unwrap();
            assert_eq!((buffers.x.len(), buffers.given.len()), (17 * 64, 16));
        }
        let mut in_regions = |fast, slow| {
            Scratch::in_regions(&mut one[..fast], &mut two[..slow], &config, Plan::Generate).map(|_| ()).unwrap_err()
        };
        assert_eq!(in_regions(fast - 1, slow), Error::Scratch { needed: fast, found: fast - 1 });
        assert_eq!(in_regions(fast, slow - 1), Error::Scratch { needed: slow, found: slow - 1 });
        let mut memory = vec![0; Scratch::bytes(&config, Plan::Features)];
        let mut scratch = Scratch::new(&mut memory, &config, Plan::Features).unwrap();
        assert!(scratch.buffers(&config, Plan::Generate).is_err());
        assert!(scratch.buffers(&ModelConfig::tiny(4, 32), Plan::Features).is_err());
    }
}
