//! One interface over everything that can run the model: tensors in, the same tensors out.

use ndarray::{Array, Array2, Array3, ArrayView2, ArrayView3, Axis, Dimension, RemoveAxis};
use sorcen_runtime::ModelConfig;

use crate::{error::Error, ids, tensors::TensorFile};

/// Something that computes the model: the float reference, ONNX files, a pack.
pub trait Engine {
    /// What to call it in tables.
    fn name(&self) -> &str;

    /// Sizes of the model.
    fn config(&self) -> &ModelConfig;

    /// Whether [`decode`](Self::decode) can be called (an encoder-only pack has no decoder).
    fn has_decoder(&self) -> bool {
        true
    }

    /// Runs the encoder on the kept tokens of a batch.
    ///
    /// `ids` `[B, N]`: codes, or the mask id; no class token. `positions` `[B, N]`: where in the grid each
    /// token is, increasing along a row, 0 to T-1.
    ///
    /// # Errors
    /// [`Error::Value`] names what is out of range, and where.
    fn encode(&self, ids: ArrayView2<i64>, positions: ArrayView2<i64>) -> Result<Encoded, Error>;

    /// Runs the decoder and the output head.
    ///
    /// `latent` `[B, 1+N, D]` as [`encode`](Self::encode) returns it. `source` `[B, T]`: the row of
    /// `latent` to put at each patch position; 0, the class token's row, where it was dropped or masked.
    /// Returns the logits `[B, T, K]` of the codes.
    ///
    /// # Errors
    /// [`Error::Value`] names what is out of range, and where.
    fn decode(&self, latent: ArrayView3<f32>, source: ArrayView2<i64>) -> Result<Array3<f32>, Error>;

    /// Runs one step of generation: encoder and decoder with every token kept.
    ///
    /// `token_ids` `[B, T]`: codes, the mask id where unknown. Returns the logits `[B, T, K]` of the codes. ONNX folders
    /// have a file of its own for it.
    ///
    /// # Errors
    /// [`Error::Value`] names what is out of range, and where.
    fn step(&self, token_ids: ArrayView2<i64>) -> Result<Array3<f32>, Error> {
        step(self, token_ids)
    }
}

/// [`Engine::step`] by encoder and decoder.
pub(crate) fn step<E: Engine + ?Sized>(engine: &E, token_ids: ArrayView2<i64>) -> Result<Array3<f32>, Error> {
    let kept = Kept::of(token_ids, None, engine.config())?;
    let encoded = engine.encode(kept.ids.view(), kept.positions.view())?;
    engine.decode(encoded.latent.view(), kept.source.view())
}

/// What the encoder gives.
pub struct Encoded {
    /// `[B, 1+N, D]`, after the final norm, class token first.
    pub latent: Array3<f32>,
    /// `[B, D]`, the linear probe's feature: mean of the N patch tokens of the last block, without the
    /// final norm, standardised. It means something where all tokens of the image are kept and unmasked.
    pub features: Array2<f32>,
}

/// What a whole forward pass gives.
pub struct Outputs {
    /// `[B, 1+kept, D]`, after the final norm, class token first, kept tokens in order.
    pub latent: Array3<f32>,
    /// `[B, T, K]`, logits of the codes at the patch positions.
    pub logits: Array3<f32>,
    /// `[B, D]`, the linear probe's feature, where nothing was dropped.
    pub features: Option<Array2<f32>>,
}

/// Encoder and decoder on a batch.
///
/// `token_ids` `[B, T]`: codes, or the mask id; no class token. `drop_mask` `[B, T]`: true where a token is
/// removed before the encoder, the same number in each row.
///
/// # Errors
/// [`Error::Value`] where a shape, an id or the number of dropped tokens is wrong.
pub fn run(
    engine: &dyn Engine,
    token_ids: ArrayView2<i64>,
    drop_mask: Option<ArrayView2<bool>>,
) -> Result<Outputs, Error> {
    run_kept(engine, &Kept::of(token_ids, drop_mask, engine.config())?)
}

/// [`run`] on a batch whose tokens have been dropped.
///
/// # Errors
/// Those of the engine.
pub fn run_kept(engine: &dyn Engine, kept: &Kept) -> Result<Outputs, Error> {
    let Encoded { latent, features } = engine.encode(kept.ids.view(), kept.positions.view())?;
    let logits = engine.decode(latent.view(), kept.source.view())?;
    Ok(Outputs { latent, logits, features: kept.is_whole().then_some(features) })
}

/// A batch after dropping: what encoder and decoder are handed.
pub struct Kept {
    /// `[B, N]`: codes, or the mask id.
    pub ids: Array2<i64>,
    /// `[B, N]`: places in the grid.
    pub positions: Array2<i64>,
    /// `[B, T]`: row of the latent at each place; 0, the class token's, where dropped or masked.
    pub source: Array2<i64>,
}

impl Kept {
    /// From ids and drop mask as [`run`] takes them.
    ///
    /// # Errors
    /// [`Error::Value`] where a shape, an id or the number of dropped tokens is wrong; a token of each image stays.
    pub fn of(
        token_ids: ArrayView2<i64>,
        drop_mask: Option<ArrayView2<bool>>,
        config: &ModelConfig,
    ) -> Result<Self, Error> {
        Self::named(token_ids, drop_mask, config, ["`token_ids`", "`drop_mask`"])
    }

    /// From the ids (see [`ids::read`]) and, where it is there, `drop_mask` (of their shape; non-zero: dropped) of a
    /// file.
    ///
    /// # Errors
    /// As [`of`](Self::of), and those of [`TensorFile`]; the file is named.
    pub fn read(file: &TensorFile, config: &ModelConfig) -> Result<Self, Error> {
        const MASK: &str = "drop_mask";
        let (name, ids) = ids::read(file)?;
        let dropped = match file.has(MASK) {
            true => Some(ids::maps(file, MASK, |rank| file.numbers(MASK, rank))?.mapv(|value| value != 0.0)),
            false => None,
        };
        let mask = dropped.as_ref().map(|mask| mask.view());
        Self::named(ids.view(), mask, config, [&file.item(name), &file.item(MASK)])
    }

    /// Whether no token was dropped.
    pub fn is_whole(&self) -> bool {
        self.ids.ncols() == self.source.ncols()
    }

    /// Bytes of what a model makes of it in f32: latent, features, and logits with a decoder.
    pub(crate) fn output_bytes(&self, config: &ModelConfig, has_decoder: bool) -> u64 {
        let logits = if has_decoder { config.tokens() * config.codebook_size } else { 0 };
        let numbers = (self.ids.ncols() + 2) * config.embed_dim + logits;
        (self.ids.nrows() * numbers * size_of::<f32>()) as u64
    }

    /// As [`of`](Self::of); `items` is what errors call the two.
    fn named(
        token_ids: ArrayView2<i64>,
        drop_mask: Option<ArrayView2<bool>>,
        config: &ModelConfig,
        [ids_item, mask_item]: [&str; 2],
    ) -> Result<Self, Error> {
        check_images(config, token_ids, ids_item)?;
        let (batch, tokens) = token_ids.dim();
        if let Some(mask) = drop_mask.filter(|mask| mask.dim() != token_ids.dim()) {
            let expected = format!("shape [{batch}, {tokens}]");
            return Err(Error::value(mask_item, expected, format!("{:?}", mask.shape())));
        }
        let is_dropped = |b: usize, t: usize| drop_mask.is_some_and(|mask| mask[[b, t]]);
        let kept = |b: usize| (0..tokens).filter(move |&t| !is_dropped(b, t));
        let count = kept(0).count();
        if count == 0 {
            return Err(Error::value(format!("{mask_item} row 0"), "at least one token that is kept", "all dropped"));
        }

        let mut ids = Array2::zeros((batch, count));
        let mut positions = Array2::zeros((batch, count));
        let mut source = Array2::zeros((batch, tokens));
        for b in 0..batch {
            let found = kept(b).count();
            if found != count {
                let expected = format!("{} dropped tokens, as in row 0", tokens - count);
                return Err(Error::value(format!("{mask_item} row {b}"), expected, tokens - found));
            }
            for (n, t) in kept(b).enumerate() {
                let id = token_ids[[b, t]];
                ids[[b, n]] = id;
                positions[[b, n]] = t as i64;
                if id != config.mask_token_id as i64 {
                    source[[b, t]] = n as i64 + 1;
                }
            }
        }
        Ok(Self { ids, positions, source })
    }
}

/// The contrastive branch's feature `[B, D]`: the mean of the patch tokens after the final norm.
pub fn contrastive_features(latent: ArrayView3<f32>) -> Array2<f32> {
    let patches = latent.slice(ndarray::s![.., 1.., ..]);
    patches.mean_axis(Axis(1)).unwrap_or_else(|| Array2::zeros((latent.shape()[0], latent.shape()[2])))
}

/// The kept tokens of one image, checked.
pub(crate) struct KeptImage {
    /// Codes, or the mask id.
    pub ids: Vec<usize>,
    /// Places in the grid.
    pub positions: Vec<usize>,
}

/// Checks whole images: `ids` `[B, T]`, B at least 1, codes or the mask id. `item` is what to call them.
pub(crate) fn check_images(config: &ModelConfig, ids: ArrayView2<i64>, item: &str) -> Result<(), Error> {
    if ids.nrows() == 0 || ids.ncols() != config.tokens() {
        let expected = format!("shape [B, {}], B at least 1", config.tokens());
        return Err(Error::value(item, expected, format!("{:?}", ids.shape())));
    }
    check_ids(config, ids, item)
}

/// Checks that ids are codes or the mask id.
fn check_ids(config: &ModelConfig, ids: ArrayView2<i64>, item: &str) -> Result<(), Error> {
    let is_known = |&id: &i64| (0..config.codebook_size as i64).contains(&id) || id == config.mask_token_id as i64;
    match ids.indexed_iter().find(|(_, id)| !is_known(id)) {
        Some(((b, t), id)) => {
            let expected = format!("a code below {} or the mask id {}", config.codebook_size, config.mask_token_id);
            Err(Error::value(format!("{item}[{b}, {t}]"), expected, id))
        }
        None => Ok(()),
    }
}

/// Checks the arguments of [`Engine::encode`].
pub(crate) fn check_encode(
    config: &ModelConfig,
    ids: ArrayView2<i64>,
    positions: ArrayView2<i64>,
) -> Result<Vec<KeptImage>, Error> {
    let tokens = config.tokens();
    if ids.nrows() == 0 || ids.ncols() == 0 || ids.ncols() > tokens {
        let expected = format!("shape [B, N], B at least 1, N from 1 to {tokens}");
        return Err(Error::value("`token_ids`", expected, format!("{:?}", ids.shape())));
    }
    if positions.dim() != ids.dim() {
        return Err(Error::value(
            "`positions`",
            format!("shape {:?}", ids.shape()),
            format!("{:?}", positions.shape()),
        ));
    }
    check_ids(config, ids, "`token_ids`")?;
    for ((b, n), &position) in positions.indexed_iter() {
        let least = if n == 0 { 0 } else { positions[[b, n - 1]] + 1 };
        if !(least..tokens as i64).contains(&position) {
            let expected = format!("{least} to {}, increasing along the row", tokens - 1);
            return Err(Error::value(format!("`positions`[{b}, {n}]"), expected, position));
        }
    }
    let row = |values: ArrayView2<i64>, b| values.row(b).iter().map(|&v| v as usize).collect();
    Ok((0..ids.nrows()).map(|b| KeptImage { ids: row(ids, b), positions: row(positions, b) }).collect())
}

/// Checks the arguments of [`Engine::decode`]; per image its source rows.
pub(crate) fn check_decode(
    config: &ModelConfig,
    latent: ArrayView3<f32>,
    source: ArrayView2<i64>,
) -> Result<Vec<Vec<usize>>, Error> {
    let (batch, rows, width) = latent.dim();
    if batch == 0 || rows < 2 || rows > config.sequence() || width != config.embed_dim {
        let expected = format!("shape [B, 1+N, {}], B at least 1, N from 1 to {}", config.embed_dim, config.tokens());
        return Err(Error::value("`latent`", expected, format!("{:?}", latent.shape())));
    }
    if source.dim() != (batch, config.tokens()) {
        let expected = format!("shape [{batch}, {}]", config.tokens());
        return Err(Error::value("`source`", expected, format!("{:?}", source.shape())));
    }
    if let Some(((b, t), row)) = source.indexed_iter().find(|(_, row)| !(0..rows as i64).contains(row)) {
        return Err(Error::value(format!("`source`[{b}, {t}]"), format!("a row below {rows}"), row));
    }
    Ok(source.rows().into_iter().map(|row| row.iter().map(|&v| v as usize).collect()).collect())
}

/// Arrays of one shape, at least one, as one array with a new first axis.
pub(crate) fn stack<D>(items: &[Array<f32, D>]) -> Result<Array<f32, D::Larger>, Error>
where
    D: Dimension,
    D::Larger: RemoveAxis,
{
    let views: Vec<_> = items.iter().map(Array::view).collect();
    ndarray::stack(Axis(0), &views).map_err(|error| Error::value("batch", "images of one shape", error))
}
