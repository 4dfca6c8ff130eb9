//! The encoder on several threads, over one image or many: the same bits for any number of either.
//!
//! Threads share out rows (of all images) where a step takes each row by itself, and queries (of all heads of all
//! images) in the attention; they wait for each other twice a block. A thread multiplies every weight with as many rows
//! as an image has, or [`ROWS`], before it reads the next one.

use alloc::vec::Vec;

use rayon::prelude::*;

use crate::{
    config::{ModelConfig, PROBE_NORM_EPS},
    error::Error,
    kernels::{dispatch, step, Kernel},
    layers::{block::Block, embedding::embed, norm::standardise},
    model::{mean_of_patches, Model},
    pack::Pack,
    schema::Stack,
    scratch::{OwnedScratch, Plan, Work},
};

/// Small images run together, up to so many rows.
const ROWS: usize = 512;

/// Threads and their working memory.
///
/// ```no_run
/// use sorcen_runtime::{team::Team, Model};
/// # fn run(model: &Model<'_>, ids: &[u16]) -> Result<(), sorcen_runtime::Error> {
/// let mut team = Team::new(model.config(), 2)?;
/// let images = ids.len() / model.config().tokens();
/// let mut features = vec![0.0; images * model.config().embed_dim];
/// team.features(model, ids, &mut features)?; // [images, T] -> [images, D]
/// # Ok(()) }
/// ```
pub struct Team {
    pool: rayon::ThreadPool,
    /// What each thread works in.
    members: Vec<OwnedScratch>,
    shared: Shared,
}

/// Rows of an image whose output of the last block is wanted.
#[derive(Clone, Copy)]
enum Wanted {
    All,
    ClassToken,
}
use Wanted::{All, ClassToken};

/// Rows of all images.
#[derive(Default)]
struct Shared {
    /// `[images, 1+T, D]`
    x: Vec<f32>,
    /// Queries, keys and values `[images, 1+T, 3 D]`.
    qkv: Vec<f32>,
    /// Attention's output `[images, heads, 1+T, width of a head]`.
    attended: Vec<f32>,
}

impl Team {
    /// So many threads for the encoders of this size.
    ///
    /// # Errors
    /// [`Error::Option`] for no threads or more than the system grants, [`Error::Config`].
    pub fn new(config: &ModelConfig, threads: usize) -> Result<Self, Error> {
        let refused = Error::Option { name: "threads", expected: "at least 1, and no more than the system grants" };
        if threads == 0 {
            return Err(refused); // rayon would take it for a choice of its own
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(|_| refused)?;
        let members = (0..threads).map(|_| OwnedScratch::new(config, Plan::Features)).collect::<Result<_, _>>()?;
        Ok(Self { pool, members, shared: Shared::default() })
    }

    /// How many threads.
    pub fn threads(&self) -> usize {
        self.members.len()
    }

    /// The linear probe's features of images, as [`Model::features`] gives them one by one.
    ///
    /// `ids` `[images, T]`, `out` `[images, D]`.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::TokenId`] for bad input, [`Error::ScratchShape`] where the team was made for models of
    /// other sizes.
    pub fn features(&mut self, model: &Model<'_>, ids: &[u16], out: &mut [f32]) -> Result<(), Error> {
        self.encode(model, ids, out, All, |rows, out| {
            mean_of_patches(rows, out.len(), out)?;
            standardise(out, PROBE_NORM_EPS);
            Ok(())
        })
    }

    /// What pre-training contrasts, as [`Latent::contrastive_feature`](crate::model::Latent::contrastive_feature)
    /// gives it image by image: the mean over the patch tokens after the final norm.
    ///
    /// # Errors
    /// As [`features`](Self::features).
    pub fn contrastive_features(&mut self, model: &Model<'_>, ids: &[u16], out: &mut [f32]) -> Result<(), Error> {
        self.encode(model, ids, out, All, |rows, out| {
            model.final_norm_of(rows);
            mean_of_patches(rows, out.len(), out)
        })
    }

    /// The class tokens' features, as [`Model::class_token_feature`] gives them image by image.
    ///
    /// # Errors
    /// As [`features`](Self::features).
    pub fn class_token_features(&mut self, model: &Model<'_>, ids: &[u16], out: &mut [f32]) -> Result<(), Error> {
        self.encode(model, ids, out, ClassToken, |rows, out| {
            out.copy_from_slice(&rows[..out.len()]);
            model.final_norm_of(out);
            Ok(())
        })
    }

    /// Runs the encoder; `finish(rows, out)` makes `[D]` of an image's `[1+T, D]`.
    fn encode(
        &mut self,
        model: &Model<'_>,
        ids: &[u16],
        out: &mut [f32],
        wanted: Wanted,
        finish: impl Fn(&mut [f32], &mut [f32]) -> Result<(), Error> + Sync,
    ) -> Result<(), Error> {
        let config = model.config();
        let (tokens, dim) = (config.tokens(), config.embed_dim);
        let images = ids.len() / tokens;
        let check = |item, needed, found| match needed == found {
            true => Ok(()),
            false => Err(Error::Length { item, needed, found }),
        };
        check("ids", images * tokens, ids.len())?;
        check("out", images * dim, out.len())?;
        ids.chunks_exact(tokens).try_for_each(|ids| model.check_tokens(ids, None))?;
        let Self { pool, members, shared } = self;
        // At least an image a thread, if there are so many: then they need not wait for each other's heads.
        let together = (ROWS / config.sequence()).max(members.len()).max(1);
        let run = || {
            for (ids, out) in ids.chunks(together * tokens).zip(out.chunks_mut(together * dim)) {
                dispatch!(model.kernels(), k => shared.encode(k, model, ids, wanted, members))?;
                let rows = shared.x.par_chunks_exact_mut(config.sequence() * dim);
                rows.zip(out.par_chunks_exact_mut(dim)).try_for_each(|(rows, out)| finish(rows, out))?;
            }
            Ok(())
        };
        pool.install(run)
    }
}

impl Shared {
    /// The encoder up to its last block, into `x`. `ids` `[images, T]`.
    fn encode<K: Kernel>(
        &mut self,
        k: K,
        model: &Model<'_>,
        ids: &[u16],
        wanted: Wanted,
        members: &mut [OwnedScratch],
    ) -> Result<(), Error> {
        let (config, pack) = (model.config(), model.pack());
        let (rows, dim, heads) = (config.sequence(), config.embed_dim, config.num_heads);
        let count = ids.len() / config.tokens() * rows; // of all images
        let Self { x, qkv, attended } = self;
        x.resize(count * dim, 0.0);
        qkv.resize(count * 3 * dim, 0.0);
        attended.resize(count * dim, 0.0);
        let mut memory = members.iter_mut().map(OwnedScratch::get).collect::<Result<Vec<_>, _>>()?;
        let buffers = memory.iter_mut().map(|memory| memory.buffers(config, Plan::Features));
        let mut works = buffers.map(|buffers| Ok(buffers?.work)).collect::<Result<Vec<Work<'_>>, Error>>()?;
        let (share, queries) = (count.div_ceil(works.len()), (count * heads).div_ceil(works.len()));
        let blocks = pack.blocks(Stack::Encoder);
        let block = |index| Block::new(&blocks, index);
        let whole = match wanted {
            All => config.depth,
            ClassToken => config.depth - 1,
        };
        for index in 0..=whole {
            let parts = x.par_chunks_mut(share * dim).zip(qkv.par_chunks_mut(share * 3 * dim)).zip(&mut works);
            parts.enumerate().with_max_len(1).for_each(|(part, ((x, qkv), work))| {
                let first = part * share;
                match index {
                    0 => embed_rows(k, pack, ids, first, x),
                    _ => block(index - 1).feed_forward_of(k, x, rows, first, attended, work),
                }
                if index < whole {
                    block(index).project(k, x, qkv, work);
                }
            });
            if index < whole {
                let parts = attended.par_chunks_mut(queries * (dim / heads)).zip(&mut works);
                parts.enumerate().with_max_len(1).for_each(|(part, (attended, work))| {
                    block(index).attend(k, qkv, rows, part * queries, attended, work);
                });
            }
        }
        if whole < config.depth {
            let images = (count / rows).div_ceil(works.len());
            let parts = x.par_chunks_mut(images * rows * dim).zip(&mut works);
            parts.with_max_len(1).for_each(|(images, work)| {
                for x in images.chunks_exact_mut(rows * dim) {
                    blocks.forward(k, whole, x, 1, work);
                }
            });
        }
        Ok(())
    }
}

step! {
    /// The encoder's input, the rows `first..` of all images, each with its class token first.
    fn embed_rows(k, pack: &Pack<'_>, ids: &[u16], first: usize, x: &mut [f32]) {
        let config = pack.config();
        let images = ids.chunks_exact(config.tokens());
        let all = images.flat_map(|ids| core::iter::once(config.class_token_id).chain(ids.iter().map(|&id| id.into())));
        for ((place, id), row) in all.enumerate().skip(first).zip(x.chunks_exact_mut(config.embed_dim)) {
            embed(pack, id, place % config.sequence(), row);
        }
    }
}
