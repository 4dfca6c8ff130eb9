//! Packs: written from a checkpoint, opened, and run by the runtime as an [`Engine`].

use std::{fs, io::Read, path::Path};

use half::f16;
use ndarray::{Array1, Array2, Array3, ArrayView1, ArrayView2, ArrayView3, Axis};
use rayon::prelude::*;
use sorcen_runtime::{
    pack::{Precision, TensorData, WriteError, Writer},
    quant::{self, Layout},
    schema::{self, Param},
    scratch::{OwnedScratch, Plan},
    Model, ModelConfig, Pack,
};

use crate::{
    atomic,
    checkpoint::Checkpoint,
    engine::{check_decode, check_encode, stack, Encoded, Engine},
    error::Error,
    tensors::TensorFile,
};

/// The machine a pack's int8 weights are arranged for. A pack for one still runs on another, with the same bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Target {
    /// Plain rows: good everywhere.
    #[default]
    Generic,
}

impl Target {
    /// The order of int8 weights.
    pub const fn layout(self) -> Layout {
        match self {
            Target::Generic => Layout::ROW_MAJOR,
        }
    }
}

/// A tokenizer of image patches, to travel inside a pack.
pub struct PatchTokenizer {
    /// `[codes, patch, patch, 3]`
    pub codebook: Vec<u8>,
    /// Number of codes K.
    pub codes: usize,
    /// Side of a patch in pixels.
    pub patch: usize,
}

impl PatchTokenizer {
    /// Reads a `tokenizer.safetensors`: the U8 tensor `codebook` `[K, P, P, 3]`.
    ///
    /// # Errors
    /// Any [`Error`] naming the file and what is wrong in it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let (shape, codebook) = TensorFile::open(path)?.bytes("codebook", 4)?;
        let [codes, patch, width, 3] = shape[..] else { return Err(wrong_codebook(path, shape)) };
        if width != patch {
            return Err(wrong_codebook(path, shape));
        }
        sorcen_runtime::tokenizer::PatchCodebook::new(&codebook, codes, patch)
            .map_err(|reason| Error::Invalid { path: path.to_owned(), reason })?;
        Ok(Self { codebook, codes, patch })
    }
}

fn wrong_codebook(path: &Path, found: Vec<usize>) -> Error {
    Error::Shape { path: path.to_owned(), tensor: "codebook".into(), expected: "[K, P, P, 3]".into(), found }
}

/// How to write a pack.
pub struct PackOptions<'a> {
    /// Of every matrix; vectors and position tables are f32 in an int8 pack.
    pub precision: Precision,
    /// Arrangement of int8 weights.
    pub target: Target,
    /// Leave the decoder out: features only.
    pub encoder_only: bool,
    /// A tokenizer to put in; its K must be the model's.
    pub tokenizer: Option<&'a PatchTokenizer>,
    /// More entries for the model card (a JSON object), beside tool, checkpoint hash and precision.
    pub card: serde_json::Map<String, serde_json::Value>,
}

impl PackOptions<'_> {
    /// A generic pack of the whole model, without tokenizer.
    pub fn new(precision: Precision) -> Self {
        let target = Target::default();
        Self { precision, target, encoder_only: false, tokenizer: None, card: serde_json::Map::new() }
    }
}

/// Writes a checkpoint as a pack; returns its size in bytes.
///
/// # Errors
/// [`Error::Io`] where the file cannot be written, [`Error::Value`] where a weight does not fit f16 or the
/// tokenizer does not fit the model.
pub fn write(checkpoint: &Checkpoint, path: &Path, options: &PackOptions) -> Result<u64, Error> {
    let config = &checkpoint.config;
    if let Some(tokenizer) = options.tokenizer.filter(|tokenizer| tokenizer.codes != config.codebook_size) {
        return Err(Error::value(
            "tokenizer: codes",
            format!("{}, the model's", config.codebook_size),
            tokenizer.codes,
        ));
    }
    let mut card = options.card.clone();
    card.insert("tool".into(), concat!("sorcen-export ", env!("CARGO_PKG_VERSION")).into());
    card.insert("checkpoint_sha256".into(), checkpoint.sha256().into());
    card.insert("precision".into(), options.precision.name().into());
    let card = serde_json::Value::Object(card).to_string();

    let mut bytes = 0;
    atomic::write(path, |temporary| -> Result<(), Error> {
        let failed = |error: WriteError<std::io::Error>| match error {
            WriteError::Pack(error) => Error::Runtime(error),
            WriteError::Sink(error) => Error::io(path, "write")(error),
        };
        let file = fs::File::create(temporary).map_err(Error::io(path, "write"))?;
        let mut writer = Writer::new(file, config).map_err(failed)?;
        for param in schema::params(config) {
            write_tensor(checkpoint, param, options, |data| writer.tensor(data).map_err(failed))?;
        }
        if let Some(tokenizer) = options.tokenizer {
            writer.tokenizer(&tokenizer.codebook, tokenizer.codes, tokenizer.patch).map_err(failed)?;
        }
        writer.card(&card).map_err(failed)?;
        (bytes, _) = writer.finish().map_err(failed)?;
        Ok(())
    })?;
    Ok(bytes)
}

/// Converts one weight and hands it on.
fn write_tensor(
    checkpoint: &Checkpoint,
    param: Param,
    options: &PackOptions,
    mut write: impl FnMut(TensorData) -> Result<(), Error>,
) -> Result<(), Error> {
    let values = checkpoint.tensor(param);
    match options.precision {
        _ if options.encoder_only && param.is_decoder() => write(TensorData::Absent),
        Precision::F16 => {
            let halves: Vec<u16> = values.iter().map(|&value| f16::from_f32(value).to_bits()).collect();
            if let Some(at) = halves.iter().position(|&bits| !f16::from_bits(bits).is_finite()) {
                return Err(Error::value(format!("tensor `{param}` as f16"), "magnitudes up to 65504", values[at]));
            }
            write(TensorData::F16(&halves))
        }
        Precision::Int8 if param.is_matrix() => {
            let (rows, cols) = param.shape(&checkpoint.config).matrix();
            let layout = options.target.layout();
            let (mut weights, mut scales) = (vec![0; layout.elements(rows, cols)], vec![0.0; rows]);
            quant::quantise_matrix(values, (rows, cols), layout, &mut weights, &mut scales)?;
            write(TensorData::Int8 { weights: &weights, scales: &scales, layout })
        }
        Precision::Int8 | Precision::F32 => write(TensorData::F32(values)),
    }
}

/// A pack's bytes, aligned as the runtime's wide loads like them.
pub struct PackFile {
    words: Vec<u64>,
    start: usize,
    len: usize,
}

impl PackFile {
    /// Reads a file; [`pack`](Self::pack) checks it.
    ///
    /// # Errors
    /// [`Error::Io`], naming the file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = || Error::io(path, "read");
        let mut file = fs::File::open(path).map_err(failed())?;
        let metadata = file.metadata().map_err(failed())?;
        let len = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
        let mut words = vec![0u64; len.div_ceil(8) + 8];
        let start = words.as_ptr().align_offset(64) * 8;
        file.read_exact(&mut bytemuck::cast_slice_mut(&mut words)[start..start + len]).map_err(failed())?;
        Ok(Self { words, start, len })
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[self.start..self.start + self.len]
    }

    /// The checked pack; `path` is for the message.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the file and the first thing that is wrong with it.
    pub fn pack(&self, path: &Path) -> Result<Pack<'_>, Error> {
        Pack::new(self.bytes()).map_err(|reason| Error::Invalid { path: path.to_owned(), reason })
    }
}

/// The lowest precision of any matrix in a pack: what to call the whole.
pub fn precision(pack: &Pack) -> Precision {
    let of = |wanted| schema::params(pack.config()).any(|p| p.is_matrix() && pack.precision(p) == Some(wanted));
    [Precision::Int8, Precision::F16].into_iter().find(|&p| of(p)).unwrap_or(Precision::F32)
}

/// A pack run by the runtime.
pub struct PackEngine<'p> {
    model: Model<'p>,
    name: String,
}

impl<'p> PackEngine<'p> {
    /// Runs this pack.
    pub fn new(pack: Pack<'p>) -> Self {
        Self { name: format!("pack {}", precision(&pack).name()), model: Model::new(pack) }
    }

    /// The model in the pack.
    pub const fn model(&self) -> &Model<'p> {
        &self.model
    }

    /// Working memory for everything this pack can do.
    pub(crate) fn scratch(&self) -> Result<OwnedScratch, Error> {
        let plan = if self.model.pack().has_decoder() { Plan::Generate } else { Plan::Features };
        Ok(OwnedScratch::new(self.model.config(), plan)?)
    }

    fn encode_image(&self, ids: &[u16], positions: &[u16]) -> Result<(Array2<f32>, Array1<f32>), Error> {
        let mut memory = self.scratch()?;
        let mut scratch = memory.get()?;
        let encoded = self.model.encode(ids, Some(positions), &mut scratch)?;
        let mut feature = Array1::zeros(self.model.config().embed_dim);
        encoded.probe_feature(feature.as_slice_mut().unwrap_or(&mut []))?;
        let latent = encoded.into_latent();
        let rows = ArrayView2::from_shape((ids.len() + 1, feature.len()), latent.rows());
        let latent = rows.expect("the runtime returns [1+N, D]").to_owned();
        Ok((latent, feature))
    }

    /// The decoder with `source` as [`Engine::decode`] takes it. The runtime wants to know which token stands
    /// where, so the rows that are used are handed over as if only they had been kept.
    fn decode_image(&self, latent: ArrayView2<f32>, source: &[usize]) -> Result<Array2<f32>, Error> {
        let config = self.model.config();
        let seen: Vec<u16> = (0..source.len()).filter(|&t| source[t] != 0).map(|t| t as u16).collect();
        let rows = std::iter::once(0).chain(seen.iter().map(|&t| source[usize::from(t)]));
        let rows: Vec<f32> = rows.flat_map(|row| latent.row(row).to_vec()).collect();
        let ids = vec![0; seen.len()]; // any code: only "not masked" counts

        let mut memory = self.scratch()?;
        let mut scratch = memory.get()?;
        let mut logits = Array2::zeros((config.tokens(), config.codebook_size));
        let latent = self.model.latent(&rows, &ids, Some(&seen), &mut scratch)?;
        latent.decode(|position, row| logits.row_mut(position).assign(&ArrayView1::from(&*row)))?;
        Ok(logits)
    }
}

impl Engine for PackEngine<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    fn has_decoder(&self) -> bool {
        self.model.pack().has_decoder()
    }

    fn encode(&self, ids: ArrayView2<i64>, positions: ArrayView2<i64>) -> Result<Encoded, Error> {
        let images = check_encode(self.config(), ids, positions)?;
        let small = |values: &[usize]| values.iter().map(|&v| v as u16).collect::<Vec<_>>(); // checked: below V
        let encoded: Vec<_> = images
            .par_iter()
            .map(|kept| self.encode_image(&small(&kept.ids), &small(&kept.positions)))
            .collect::<Result<_, _>>()?;
        let (latent, features): (Vec<_>, Vec<_>) = encoded.into_iter().unzip();
        Ok(Encoded { latent: stack(&latent), features: stack(&features) })
    }

    fn decode(&self, latent: ArrayView3<f32>, source: ArrayView2<i64>) -> Result<Array3<f32>, Error> {
        let sources = check_decode(self.config(), latent, source)?;
        let logits: Vec<_> = sources
            .par_iter()
            .enumerate()
            .map(|(b, source)| self.decode_image(latent.index_axis(Axis(0), b), source))
            .collect::<Result<_, _>>()?;
        Ok(stack(&logits))
    }
}
