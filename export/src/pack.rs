//! Packs: written from a checkpoint, opened, and run by the runtime as an [`Engine`].

use std::{borrow::Cow, fs, path::Path};

use clap::ValueEnum;
use ndarray::{Array1, Array2, Array3, ArrayView1, ArrayView2, ArrayView3, Axis};
use rayon::prelude::*;
use sorcen_runtime::{
    pack::{Precision, Sink, TensorData, WriteError, Writer},
    quant::{self, int4::Order, Layout},
    schema::{self, Param},
    scratch::{OwnedScratch, Plan},
    self_test::{self, SelfTest},
    Model, ModelConfig, OwnedBytes, Pack,
};

use crate::{
    atomic,
    calibrate::Grams,
    card::{self, Card},
    checkpoint::Checkpoint,
    classifier::LinearHead,
    engine::{check_decode, check_encode, stack, Encoded, Engine},
    error::Error,
    file, fingerprint, found,
    quantize::{self, Int4, Rule},
    tokenizer::AnyTokenizer,
};

/// The machine a pack's int8 and int4 weights are arranged for. A pack for one still runs on another, with the same bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Target {
    /// Plain rows: good everywhere.
    #[default]
    Generic,
    /// Arm Cortex-M4, M7, M33: the DSP instructions.
    CortexM4,
    /// Arm Cortex-M55, M85: Helium.
    CortexM55,
    /// x86-64 with AVX2 or AVX-512 VNNI.
    X86Vnni,
    /// AArch64 with dot products (`sdot`).
    NeonDotprod,
    /// AArch64 with matrix products (`smmla`).
    NeonI8mm,
    /// WebAssembly with `simd128`.
    Wasm,
}

impl Target {
    /// The order of int8 weights: what the kernels of that machine multiply fastest
    /// ([`sorcen_runtime::Kernels::layout`] there).
    pub const fn layout(self) -> Layout {
        match self {
            Target::Generic | Target::CortexM4 | Target::CortexM55 => Layout::ROW_MAJOR,
            Target::X86Vnni | Target::NeonDotprod | Target::NeonI8mm | Target::Wasm => Layout { nr: 16, kt: 4 },
        }
    }

    /// The targets whose order this is.
    pub fn of(layout: Layout) -> impl Iterator<Item = Self> {
        Self::value_variants().iter().copied().filter(move |target| target.layout() == layout)
    }
}

/// How to write a pack.
pub struct PackOptions<'a> {
    /// Of every matrix that no rule is about. In an int8 or int4 pack vectors are f32 and position tables f16; in an
    /// int4 pack the word embedding, which is the output layer too, is int8.
    pub precision: Precision,
    /// What certain weights are stored as; the first rule that fits counts.
    pub rules: Vec<Rule>,
    /// What enters the linears, to round int4 weights by; without it each goes to the nearest number.
    pub grams: Option<&'a Grams>,
    /// Arrangement of int8 weights.
    pub target: Target,
    /// Leave the decoder out: features only.
    pub encoder_only: bool,
    /// A tokenizer to put in; its K must be the model's. The matrices of a ViT are int8 in an int8 or int4 pack, else
    /// all its weights are f32.
    pub tokenizer: Option<&'a AnyTokenizer>,
    /// A linear head for the probe's feature to put in.
    pub classifier: Option<&'a LinearHead>,
    /// Golden inputs `[N, T]`, whose outputs are computed when all else is written; none: no self-test.
    pub self_test: Array2<i64>,
    /// The terms of the weights, for the model card.
    pub licence: Option<&'a str>,
    /// More entries for the model card; see [`card::of`] for those that it has anyway. With a tokenizer, there is its
    /// fingerprint, too.
    pub card: Card,
}

impl PackOptions<'_> {
    /// A generic pack of the whole model, without tokenizer.
    pub fn new(precision: Precision) -> Self {
        let target = Target::default();
        Self {
            precision,
            rules: Vec::new(),
            grams: None,
            target,
            encoder_only: false,
            tokenizer: None,
            classifier: None,
            self_test: Array2::default((0, 0)),
            licence: None,
            card: Card::new(),
        }
    }

    /// What a weight is stored as; `None` where it is left out.
    pub fn precision_of(&self, param: Param) -> Option<Precision> {
        if self.encoder_only && param.is_decoder() {
            return None;
        }
        let name = param.to_string();
        let table = matches!(param, Param::PositionEmbedding | Param::DecoderPosition);
        let wanted = match self.rules.iter().find(|rule| rule.fits(&name)) {
            Some(rule) => rule.precision,
            None if table && matches!(self.precision, Precision::Int8 | Precision::Int4) => Precision::F16,
            None if self.precision == Precision::Int4 && param == Param::WordEmbedding => Precision::Int8,
            None => self.precision,
        };
        Some(match wanted {
            // Only what is multiplied by is worth so few bits.
            Precision::Int8 | Precision::Int4 if !param.is_matrix() => Precision::F32,
            wanted => wanted,
        })
    }
}

/// Writes a checkpoint as a pack; returns its size in bytes.
///
/// # Errors
/// [`Error::Io`] where the file cannot be written, [`Error::Value`] where a weight does not fit f16 or the
/// tokenizer does not fit the model; as [`card::of`].
pub fn write(checkpoint: &Checkpoint, path: &Path, options: &PackOptions) -> Result<u64, Error> {
    let config = &checkpoint.config;
    options.tokenizer.map_or(Ok(()), |tokenizer| tokenizer.check_fit(config.codebook_size, config.grid))?;
    let mut card = card::of(checkpoint, options.precision.name(), options.licence, &options.card)?;
    if let Some(tokenizer) = options.tokenizer {
        card.insert(fingerprint::TOKENIZER.into(), tokenizer.fingerprint().into());
    }
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
        match options.tokenizer {
            Some(AnyTokenizer::Patches(patches)) => {
                writer.tokenizer(patches.patches(), patches.codes(), patches.patch()).map_err(failed)?;
            }
            Some(AnyTokenizer::Vit(vit)) => {
                let is_integer = matches!(options.precision, Precision::Int8 | Precision::Int4);
                let section = vit.section(is_integer.then(|| options.target.layout()))?;
                writer.vit(&section).map_err(failed)?;
            }
            None => {}
        }
        writer.card(&card).map_err(failed)?;
        if let Some(head) = options.classifier {
            writer.classifier(&head.classifier(options.precision)?).map_err(failed)?;
        }
        if !options.self_test.is_empty() {
            writer.seal().map_err(failed)?;
            add_self_test(&mut writer, &PackFile::open(temporary)?.pack(temporary)?, &options.self_test, failed)?;
        }
        (bytes, _) = writer.finish().map_err(failed)?;
        Ok(())
    })?;
    Ok(bytes)
}

/// Lets the runtime compute golden inputs `[N, T]` on the pack as it is so far, and adds them with the results.
fn add_self_test<S: Sink>(
    writer: &mut Writer<S>,
    pack: &Pack,
    inputs: &Array2<i64>,
    failed: impl Fn(WriteError<S::Error>) -> Error,
) -> Result<(), Error> {
    let config = pack.config();
    if inputs.ncols() != config.tokens() {
        let expected = format!("shape [N, {}]", config.tokens());
        return Err(Error::value("tokens of the self-test", expected, format!("{:?}", inputs.shape())));
    }
    // What is no u16 is no id either; the runtime names it.
    let ids: Vec<u16> = inputs.iter().map(|&id| u16::try_from(id).unwrap_or(u16::MAX)).collect();
    let drawn = if pack.has_decoder() { ids.len() } else { 0 };
    let (mut drawn, mut confidences) = (vec![0; drawn], vec![0.0; drawn]);
    let mut features = vec![0.0; inputs.nrows() * config.embed_dim];
    let engine = PackEngine::new(*pack);
    let mut memory = engine.scratch()?;
    self_test::record(engine.model(), &ids, &mut memory.get()?, &mut features, &mut drawn, &mut confidences)?;
    let tolerance = self_test::tolerance(engine.model());
    let test = SelfTest::new(config, tolerance, &ids, &features, &drawn, &confidences)?;
    writer.self_test(&test).map_err(failed)
}

/// A weight as it is stored, in floats: of the word embedding only the rows of ids that occur.
fn stored_values(checkpoint: &Checkpoint, param: Param) -> Cow<'_, [f32]> {
    let c = &checkpoint.config;
    let values = checkpoint.tensor(param);
    if param != Param::WordEmbedding || c.vocab_size == c.used_ids() {
        return values.into();
    }
    let row = |id: usize| &values[id * c.embed_dim..][..c.embed_dim];
    let codes = &values[..c.codebook_size * c.embed_dim];
    [codes, row(c.class_token_id), row(c.mask_token_id)].concat().into()
}

/// Converts one weight and hands it on.
fn write_tensor(
    checkpoint: &Checkpoint,
    param: Param,
    options: &PackOptions,
    mut write: impl FnMut(TensorData) -> Result<(), Error>,
) -> Result<(), Error> {
    let values = stored_values(checkpoint, param);
    let values = &*values;
    let cols = param.shape(&checkpoint.config).matrix().1;
    let matrix = (values.len() / cols, cols);
    let Some(precision) = options.precision_of(param) else { return write(TensorData::Absent) };
    match precision {
        Precision::F16 => write(TensorData::F16(&quantize::halves(param, values)?)),
        Precision::Int8 => {
            let (rows, cols) = matrix;
            let layout = options.target.layout();
            let (mut weights, mut scales) = (vec![0; layout.elements(rows, cols)], vec![0.0; rows]);
            quant::quantise_matrix(values, (rows, cols), layout, &mut weights, &mut scales)?;
            write(TensorData::Int8 { weights: &weights, scales: &scales, layout })
        }
        Precision::Int4 => {
            if matrix.1 > quant::int4::MAX_COLS {
                let expected = format!("at most {} columns", quant::int4::MAX_COLS);
                return Err(Error::value(format!("tensor `{param}` as int4"), expected, matrix.1));
            }
            let feedback = options.grams.and_then(|grams| grams.feedback(param));
            let Int4 { packed, scales } = quantize::int4(values, matrix, feedback.as_ref());
            let order = Order::beside(options.target.layout());
            let mut arranged = vec![0; order.bytes(matrix.0, matrix.1)];
            quant::int4::arrange(&packed, Order::Rows, matrix, order, &mut arranged)?;
            write(TensorData::Int4 { packed: &arranged, scales: &scales, order })
        }
        Precision::F32 => write(TensorData::F32(values)),
    }
}

/// A pack's bytes, at an address that suits the runtime's wide loads.
pub struct PackFile(OwnedBytes);

impl PackFile {
    /// Reads a file; [`pack`](Self::pack) checks it.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Value`], naming the file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        match found::at(path) {
            found if found == found::PACK => file::read(path).map(Self),
            found => Err(Error::value(path.display(), "a pack (a file)", found)),
        }
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The checked pack; `path` is for the message.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the file and the first thing that is wrong with it.
    pub fn pack(&self, path: &Path) -> Result<Pack<'_>, Error> {
        Pack::new(self.bytes()).map_err(|reason| Error::Invalid { path: path.to_owned(), reason })
    }
}

/// The lowest precision of any matrix in a pack: how close to the floats the whole can be.
pub fn precision(pack: &Pack) -> Precision {
    let of = |wanted| schema::params(pack.config()).any(|p| p.is_matrix() && pack.precision(p) == Some(wanted));
    [Precision::Int4, Precision::Int8, Precision::F16].into_iter().find(|&p| of(p)).unwrap_or(Precision::F32)
}

/// The precisions of the matrices in a pack, from the highest: `int8`, or `int8 + int4` where they differ. That the
/// word embedding of an int4 pack is int8 goes without saying.
pub fn precisions(pack: &Pack) -> String {
    let lowest = precision(pack);
    let goes_without_saying = |param, precision| {
        param == Param::WordEmbedding && lowest == Precision::Int4 && precision == Some(Precision::Int8)
    };
    let holds = |wanted: &Precision| {
        schema::params(pack.config()).filter(|param| param.is_matrix()).any(|param| {
            let precision = pack.precision(param);
            precision == Some(*wanted) && !goes_without_saying(param, precision)
        })
    };
    let all = [Precision::F32, Precision::F16, Precision::Int8, Precision::Int4].into_iter().filter(holds);
    all.map(Precision::name).collect::<Vec<_>>().join(" + ")
}

/// A pack run by the runtime.
pub struct PackEngine<'p> {
    model: Model<'p>,
    name: String,
}

impl<'p> PackEngine<'p> {
    /// Runs this pack.
    pub fn new(pack: Pack<'p>) -> Self {
        Self { name: format!("pack {}", precisions(&pack)), model: Model::new(pack) }
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

    /// What each of the encoder's blocks makes of an image, `ids` `[T]`: `[1+T, D]` each.
    pub(crate) fn block_outputs(&self, ids: &[usize]) -> Result<Vec<Array2<f32>>, Error> {
        let ids: Vec<u16> = ids.iter().map(|&id| id as u16).collect();
        let width = self.model.config().embed_dim;
        let mut outputs = Vec::new();
        let mut memory = self.scratch()?;
        self.model.encode_blocks(&ids, &mut memory.get()?, |_, x| {
            outputs.push(Array2::from_shape_fn((x.len() / width, width), |(row, col)| x[row * width + col]));
        })?;
        Ok(outputs)
    }

    fn encode_image(&self, ids: &[u16], positions: &[u16]) -> Result<(Array2<f32>, Array1<f32>), Error> {
        let mut memory = self.scratch()?;
        let mut scratch = memory.get()?;
        let encoded = self.model.encode(ids, Some(positions), &mut scratch)?;
        let mut feature = Array1::zeros(self.model.config().embed_dim);
        encoded.probe_feature(feature.as_slice_mut().unwrap_or(&mut []))?;
        let latent = encoded.into_latent();
        let (rows, width) = (latent.rows(), feature.len());
        Ok((Array2::from_shape_fn((rows.len() / width, width), |(row, col)| rows[row * width + col]), feature))
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
        Ok(Encoded { latent: stack(&latent)?, features: stack(&features)? })
    }

    fn decode(&self, latent: ArrayView3<f32>, source: ArrayView2<i64>) -> Result<Array3<f32>, Error> {
        let sources = check_decode(self.config(), latent, source)?;
        let logits: Vec<_> = sources
            .par_iter()
            .enumerate()
            .map(|(b, source)| self.decode_image(latent.index_axis(Axis(0), b), source))
            .collect::<Result<_, _>>()?;
        stack(&logits)
    }
}
