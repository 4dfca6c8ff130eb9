//! [`Writer`]: a pack, tensor by tensor, into any [`Sink`].

use super::{
    check_same, classifier, config, crc::Crc, header, section, self_test, stored_rows, tensor, tensors::check_numbers,
    tokenizer, Data, Kind, Precision, Section, ALIGN, INT4_IN_PANELS, MAGIC, VERSION,
};
use crate::{
    config::ModelConfig,
    error::Error,
    head::Classifier,
    kernels::bytes::{of_f32, of_i8, of_u16},
    quant::{
        int4::{self, Order},
        Layout,
    },
    schema::{self, Param},
    self_test::SelfTest,
};

/// Where a pack goes: bytes at given offsets, mostly in order (the header comes last).
pub trait Sink {
    /// What can go wrong.
    type Error;
    /// Puts `bytes` at `offset` from the start.
    ///
    /// # Errors
    /// Whatever the medium reports.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Self::Error>;
}

/// A sink over memory of a fixed size.
pub struct SliceSink<'b>(pub &'b mut [u8]);

impl Sink for SliceSink<'_> {
    type Error = Error;

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let end = offset.saturating_add(bytes.len() as u64);
        let found = self.0.len() as u64;
        let target = usize::try_from(offset)
            .ok()
            .and_then(|start| self.0.get_mut(start..start.checked_add(bytes.len())?))
            .ok_or(Error::Truncated { item: "sink", needed: end, found })?;
        target.copy_from_slice(bytes);
        Ok(())
    }
}

#[cfg(feature = "alloc")]
impl Sink for alloc::vec::Vec<u8> {
    type Error = core::convert::Infallible;

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Self::Error> {
        let start = offset as usize;
        if self.len() < start + bytes.len() {
            self.resize(start + bytes.len(), 0);
        }
        self[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

#[cfg(feature = "std")]
impl Sink for std::fs::File {
    type Error = std::io::Error;

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Self::Error> {
        use std::io::{Seek, SeekFrom, Write};
        self.seek(SeekFrom::Start(offset))?;
        self.write_all(bytes)
    }
}

/// Why writing stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteError<E> {
    /// The data does not fit the schema.
    Pack(Error),
    /// The sink failed.
    Sink(E),
}

impl<E> From<Error> for WriteError<E> {
    fn from(error: Error) -> Self {
        WriteError::Pack(error)
    }
}

impl<E: core::fmt::Display> core::fmt::Display for WriteError<E> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            WriteError::Pack(error) => error.fmt(f),
            WriteError::Sink(error) => error.fmt(f),
        }
    }
}

impl<E: core::fmt::Display + core::fmt::Debug> core::error::Error for WriteError<E> {}

/// One tensor's numbers on the way into a pack.
#[derive(Clone, Copy)]
pub enum TensorData<'a> {
    /// Left out (decoder weights of an encoder-only pack).
    Absent,
    /// Row-major singles.
    F32(&'a [f32]),
    /// Row-major halves, as bits.
    F16(&'a [u16]),
    /// Blocked bytes with a scale a row; see [`crate::quant::quantise_matrix`].
    Int8 {
        /// Values in `layout` order, -127 to 127.
        weights: &'a [i8],
        /// One scale a row.
        scales: &'a [f32],
        /// The order of `weights`.
        layout: Layout,
    },
    /// Four bits a weight; see [`crate::quant::int4`].
    Int4 {
        /// Weights of all rows, then the multipliers of all rows.
        packed: &'a [u8],
        /// One scale a row.
        scales: &'a [f32],
        /// The order of `packed`.
        order: Order,
    },
}

impl TensorData<'_> {
    /// Rows of `cols` columns that this is, if it is of whole rows.
    fn rows(&self, cols: usize) -> usize {
        match self {
            TensorData::Absent => 0,
            TensorData::F32(x) => x.len() / cols,
            TensorData::F16(x) => x.len() / cols,
            TensorData::Int8 { scales, .. } | TensorData::Int4 { scales, .. } => scales.len(),
        }
    }
}

/// A tensor that fits its place: what goes into the table and what it points to.
pub(crate) struct Checked<'a> {
    /// 0 where it is left out.
    code: u8,
    layout: Layout,
    payload: &'a [u8],
    scales: &'a [f32],
}

impl<'a> TensorData<'a> {
    /// Checks a tensor against its place in a schema, as a reader will.
    pub(crate) fn check(self, index: usize, (rows, cols): (usize, usize), kind: Kind) -> Result<Checked<'a>, Error> {
        let check = |property, expected: usize, found: usize| match expected == found {
            true => Ok(()),
            false => {
                let (expected, found) = (expected as u64, found as u64);
                Err(Error::Tensor { index: index as u16, property, expected, found })
            }
        };
        let (code, layout, payload, scales): (u8, Layout, &[u8], &[f32]) = match self {
            TensorData::Absent => {
                check("presence", usize::from(!kind.is_optional), 0)?;
                (0, Layout::ROW_MAJOR, &[], &[])
            }
            TensorData::F32(x) => {
                check("elements", rows * cols, x.len())?;
                check_numbers(index, &Data::F32(x))?;
                (Precision::F32.code(), Layout::ROW_MAJOR, of_f32(x), &[])
            }
            TensorData::F16(x) => {
                check("elements", rows * cols, x.len())?;
                check_numbers(index, &Data::F16(x))?;
                (Precision::F16.code(), Layout::ROW_MAJOR, of_u16(x), &[])
            }
            TensorData::Int8 { weights, scales, layout } => {
                check("being a matrix", 1, kind.is_matrix.into())?;
                check("valid layout", 1, layout.is_valid().into())?;
                check("elements", layout.elements(rows, cols), weights.len())?;
                check("scales", rows, scales.len())?;
                check_numbers(index, &Data::Int8 { weights, scales, layout })?;
                (Precision::Int8.code(), layout, of_i8(weights), scales)
            }
            TensorData::Int4 { packed, scales, order } => {
                check("being a matrix of at most 8192 columns", 1, int4::fits(kind.is_matrix, cols).into())?;
                check("bytes", order.bytes(rows, cols), packed.len())?;
                check("scales", rows, scales.len())?;
                let (weights, multipliers) = packed.split_at(order.weight_bytes(rows, cols));
                check_numbers(index, &Data::Int4 { weights, multipliers, scales, order })?;
                let code = match order {
                    Order::Rows => Precision::Int4.code(),
                    Order::Panels => INT4_IN_PANELS,
                };
                (code, Layout::ROW_MAJOR, packed, scales)
            }
        };
        Ok(Checked { code, layout, payload, scales })
    }
}

impl Checked<'_> {
    /// The table's entry; `put` stores bytes and says at what offset.
    pub(crate) fn entry<E>(
        &self,
        (rows, cols): (usize, usize),
        mut put: impl FnMut(&[u8]) -> Result<u64, E>,
    ) -> Result<[u8; tensor::BYTES], E> {
        let mut entry = [0; tensor::BYTES];
        if self.code == 0 {
            return Ok(entry);
        }
        entry[tensor::PRECISION] = self.code;
        entry[tensor::NR] = self.layout.nr;
        entry[tensor::KT] = self.layout.kt;
        entry[tensor::ROWS..][..4].copy_from_slice(&(rows as u32).to_le_bytes());
        entry[tensor::COLS..][..4].copy_from_slice(&(cols as u32).to_le_bytes());
        for (at, bytes) in [(tensor::DATA_OFFSET, self.payload), (tensor::SCALES_OFFSET, of_f32(self.scales))] {
            let offset = if bytes.is_empty() { 0 } else { put(bytes)? };
            entry[at..][..8].copy_from_slice(&offset.to_le_bytes());
            entry[at + 8..][..8].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        }
        Ok(entry)
    }
}

/// Writes a pack: all tensors in schema order, then optional sections, then [`finish`](Self::finish).
pub struct Writer<S> {
    sink: S,
    model: ModelConfig,
    /// End of what has been written.
    end: u64,
    /// Tensors written, and the checksum of their table.
    tensors: usize,
    /// Whether the decoder's are there, as the first of them says; none has come yet.
    has_decoder: Option<bool>,
    table_crc: Crc,
    weights_start: u64,
    weights_crc: Crc,
    /// (kind, crc, offset, len)
    sections: heapless::Vec<(Section, u32, u64, u64), { section::MAX }>,
}

const TENSORS_START: u64 = (section::TABLE_END + config::BYTES) as u64;

impl<S: Sink> Writer<S> {
    /// Starts a pack of a model of these sizes.
    ///
    /// # Errors
    /// [`Error::Config`], or the sink's.
    pub fn new(sink: S, model: &ModelConfig) -> Result<Self, WriteError<S::Error>> {
        model.validate()?;
        let table = (schema::count(model) * tensor::BYTES) as u64;
        let weights_start = (TENSORS_START + table).next_multiple_of(ALIGN as u64);
        let mut writer = Self {
            sink,
            model: *model,
            end: 0,
            tensors: 0,
            has_decoder: None,
            table_crc: Crc::new(),
            weights_start,
            weights_crc: Crc::new(),
            sections: heapless::Vec::new(),
        };
        writer.put(section::TABLE_END as u64, &config_bytes(model))?;
        writer.push_section(
            Section::Config,
            crc_of(&[&config_bytes(model)]),
            section::TABLE_END as u64,
            config::BYTES as u64,
        )?;
        // The gap between the table's end and the weights.
        writer.put(TENSORS_START + table, &[0; ALIGN][..(weights_start - TENSORS_START - table) as usize])?;
        writer.end = weights_start;
        Ok(writer)
    }

    /// The weight that [`tensor`](Self::tensor) expects next; `None` when all are there.
    pub fn next_param(&self) -> Option<Param> {
        schema::params(&self.model).nth(self.tensors)
    }

    /// Adds the next weight in schema order. The word embedding may come without the rows of ids that never occur:
    /// the codes, the class token, the mask token, in this order.
    ///
    /// # Errors
    /// [`Error::Tensor`] where the data does not have the schema's size or a precision that this
    /// weight cannot have, or only a part of the decoder is there, [`Error::NotFinite`] and [`Error::OutOfRange`] for
    /// its numbers, or the sink's.
    pub fn tensor(&mut self, data: TensorData<'_>) -> Result<(), WriteError<S::Error>> {
        let param = self.next_param().ok_or(Error::Field { field: "tensor count", found: self.tensors as u64 + 1 })?;
        let cols = param.shape(&self.model).matrix().1;
        let shape = (stored_rows(param, &self.model, data.rows(cols)), cols);
        let is_there = !matches!(data, TensorData::Absent);
        let is_optional = param.is_decoder() && self.has_decoder != Some(true);
        let checked = data.check(self.tensors, shape, Kind { is_matrix: param.is_matrix(), is_optional })?;
        if is_there && param.is_decoder() && self.has_decoder == Some(false) {
            let (index, property) = (self.tensors as u16, "presence, as of the decoder's first tensor,");
            return Err(Error::Tensor { index, property, expected: 0, found: 1 }.into());
        }
        if param.is_decoder() {
            self.has_decoder = Some(is_there);
        }
        let entry = checked.entry(shape, |bytes| self.weights(bytes))?;
        self.table_crc.update(&entry);
        self.put(TENSORS_START + (self.tensors * tensor::BYTES) as u64, &entry)?;
        self.tensors += 1;
        Ok(())
    }

    /// Adds the tokenizer: a patch codebook `[codes, patch, patch, 3]`.
    ///
    /// # Errors
    /// [`Error::OtherModel`] where it has another number of codes than the model, [`Error::Length`] where the codebook has
    /// another size, [`Error::Field`] where there is one already, or the sink's.
    pub fn tokenizer(&mut self, codebook: &[u8], codes: usize, patch: usize) -> Result<(), WriteError<S::Error>> {
        crate::tokenizer::PatchCodebook::new(codebook, codes, patch)?;
        check_same("codes of the tokenizer", self.model.codebook_size, codes)?;
        let mut head = [0; tokenizer::BYTES];
        head[tokenizer::CODES..][..4].copy_from_slice(&(codes as u32).to_le_bytes());
        head[tokenizer::PATCH..][..4].copy_from_slice(&(patch as u32).to_le_bytes());
        self.section(Section::Tokenizer, &[&head, codebook])
    }

    /// Adds a ViT tokenizer: what `vit::section` (feature `alloc`) made, or [`Vit::bytes`](crate::vit::Vit::bytes) of another
    /// pack, at an address that is a multiple of 4.
    ///
    /// # Errors
    /// As [`Vit::new`](crate::vit::Vit::new), [`Error::OtherModel`] where it has another grid or another number of codes
    /// than the model, [`Error::Field`] where there is one already, or the sink's.
    pub fn vit(&mut self, section: &[u8]) -> Result<(), WriteError<S::Error>> {
        crate::vit::Vit::new(section)?.of_model(&self.model)?;
        self.section(Section::Vit, &[section])
    }

    /// Adds the model card.
    ///
    /// # Errors
    /// [`Error::Field`] where there is one already, or the sink's.
    pub fn card(&mut self, json: &str) -> Result<(), WriteError<S::Error>> {
        self.section(Section::Card, &[json.as_bytes()])
    }

    /// Adds a linear head for the probe's feature.
    ///
    /// # Errors
    /// [`Error::OtherModel`] where it is for features of another width, [`Error::Field`] where there is one already, or
    /// the sink's.
    pub fn classifier(&mut self, classifier: &Classifier<'_>) -> Result<(), WriteError<S::Error>> {
        check_same("width of the classifier", self.model.embed_dim, classifier.dim())?;
        let (header, [bias, scales, weight, names]) = classifier::write(classifier);
        self.section(Section::Classifier, &[&header, bias, scales, weight, names])
    }

    /// Adds golden inputs and outputs, made for this model (see [`crate::self_test::record`]).
    ///
    /// # Errors
    /// As [`SelfTest::new`] where it was made for another model, [`Error::Field`] where it tests a decoder that the pack
    /// lacks or there is one already, or the sink's.
    pub fn self_test(&mut self, test: &SelfTest<'_>) -> Result<(), WriteError<S::Error>> {
        SelfTest::new(&self.model, test.tolerance(), test.ids(), test.features(), test.drawn(), test.confidences())?;
        self_test::check_decoder(test.has_decoder().into(), self.has_decoder == Some(true))?;
        let (header, [features, confidences, ids, drawn]) = self_test::write(test);
        self.section(Section::SelfTest, &[&header, features, confidences, ids, drawn])
    }

    /// Completes the pack and returns its length in bytes and the sink.
    ///
    /// # Errors
    /// [`Error::Tensor`] where tensors are missing, or the sink's.
    pub fn finish(mut self) -> Result<(u64, S), WriteError<S::Error>> {
        Ok((self.seal()?, self.sink))
    }

    /// Completes the pack as far as it is written and returns its length in bytes: it can be read now, and more
    /// sections may follow, to be sealed again.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub fn seal(&mut self) -> Result<u64, WriteError<S::Error>> {
        self.close_weights()?;
        let mut head = [0; section::TABLE_END];
        head[header::MAGIC..][..4].copy_from_slice(&MAGIC);
        head[header::VERSION..][..4].copy_from_slice(&VERSION.to_le_bytes());
        head[header::FILE_LEN..][..8].copy_from_slice(&self.end.to_le_bytes());
        head[header::SECTIONS..][..4].copy_from_slice(&(self.sections.len() as u32).to_le_bytes());
        for (i, (kind, crc, offset, len)) in self.sections.iter().enumerate() {
            let entry = &mut head[header::BYTES + i * section::BYTES..][..section::BYTES];
            entry[section::KIND..][..4].copy_from_slice(&kind.code().to_le_bytes());
            entry[section::CRC..][..4].copy_from_slice(&crc.to_le_bytes());
            entry[section::OFFSET..][..8].copy_from_slice(&offset.to_le_bytes());
            entry[section::LEN..][..8].copy_from_slice(&len.to_le_bytes());
        }
        let crc = crc_of(&[&head]);
        head[header::CRC..][..4].copy_from_slice(&crc.to_le_bytes());
        self.put(0, &head)?;
        Ok(self.end)
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<(), WriteError<S::Error>> {
        self.sink.write_at(offset, bytes).map_err(WriteError::Sink)
    }

    /// Appends bytes to the weights, padded to the alignment; returns their offset in the section.
    fn weights(&mut self, bytes: &[u8]) -> Result<u64, WriteError<S::Error>> {
        let offset = self.end - self.weights_start;
        self.append(bytes)?;
        self.weights_crc.update(bytes);
        let padding = [0; ALIGN];
        let padding = &padding[..bytes.len().next_multiple_of(ALIGN) - bytes.len()];
        self.weights_crc.update(padding);
        Ok(offset)
    }

    /// Appends bytes and the padding after them.
    fn append(&mut self, bytes: &[u8]) -> Result<(), WriteError<S::Error>> {
        self.put(self.end, bytes)?;
        let after = self.end + bytes.len() as u64;
        let aligned = after.next_multiple_of(ALIGN as u64);
        self.put(after, &[0; ALIGN][..(aligned - after) as usize])?;
        self.end = aligned;
        Ok(())
    }

    /// Ends the weights, once.
    fn close_weights(&mut self) -> Result<(), WriteError<S::Error>> {
        if self.sections.iter().any(|s| s.0 == Section::Weights) {
            return Ok(());
        }
        let expected = schema::count(&self.model);
        if self.tensors != expected {
            let (expected, found) = (expected as u64, self.tensors as u64);
            return Err(
                Error::Tensor { index: self.tensors as u16, property: "number of tensors", expected, found }.into()
            );
        }
        let table = (expected * tensor::BYTES) as u64;
        self.push_section(Section::Tensors, self.table_crc.value(), TENSORS_START, table)?;
        self.push_section(Section::Weights, self.weights_crc.value(), self.weights_start, self.end - self.weights_start)
    }

    /// Appends a section made of several pieces.
    fn section(&mut self, kind: Section, pieces: &[&[u8]]) -> Result<(), WriteError<S::Error>> {
        self.close_weights()?;
        if self.sections.iter().any(|section| section.0 == kind) {
            return Err(kind.twice().into());
        }
        let start = self.end;
        for piece in pieces {
            self.put(self.end, piece)?;
            self.end += piece.len() as u64;
        }
        let len = self.end - start;
        self.append(&[])?;
        self.push_section(kind, crc_of(pieces), start, len)
    }

    fn push_section(&mut self, kind: Section, crc: u32, offset: u64, len: u64) -> Result<(), WriteError<S::Error>> {
        self.sections
            .push((kind, crc, offset, len))
            .map_err(|_| Error::Field { field: "section count", found: section::MAX as u64 + 1 }.into())
    }
}

fn crc_of(pieces: &[&[u8]]) -> u32 {
    let mut crc = Crc::new();
    for piece in pieces {
        crc.update(piece);
    }
    crc.value()
}

fn config_bytes(model: &ModelConfig) -> [u8; config::BYTES] {
    let mut bytes = [0; config::BYTES];
    for (chunk, field) in bytes.chunks_exact_mut(4).zip(config::to_fields(model)) {
        chunk.copy_from_slice(&(field as u32).to_le_bytes());
    }
    bytes[4 * config::FIELDS..][..4].copy_from_slice(&model.layer_norm_eps.to_bits().to_le_bytes());
    bytes
}
