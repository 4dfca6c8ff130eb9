//! [`Pack`]: checked once, then read in place.

use half::f16;

use super::{
    classifier, config, crc, header, section, self_test, stored_rows, tensor, tokenizer, u32_at, u64_at, Precision,
    Section, ALIGN, MAGIC, VERSION,
};
use crate::{
    config::ModelConfig,
    error::Error,
    head::Classifier,
    kernels::bytes::{as_f32, as_i8, as_u16},
    quant::{int4, Layout},
    schema::{self, Param},
    self_test::SelfTest,
    tokenizer::PatchCodebook,
};

/// A checked pack over borrowed bytes (flash, a memory map, a buffer).
///
/// [`Pack::new`] checks everything: sizes, ranges, checksums, alignment, finite numbers. After it
/// no accessor and no forward pass fails or reads out of bounds because of the file.
#[derive(Clone, Copy)]
pub struct Pack<'p> {
    config: ModelConfig,
    has_decoder: bool,
    file_len: usize,
    tensors: &'p [u8],
    weights: &'p [u8],
    tokenizer: Option<PatchCodebook<'p>>,
    card: Option<&'p str>,
    classifier: Option<Classifier<'p>>,
    self_test: Option<SelfTest<'p>>,
}

/// A matrix `[rows, cols]` in a pack (linears are `[out, in]`).
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'p> {
    /// Output channels.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// The numbers.
    pub data: Data<'p>,
}

/// The numbers of a [`Matrix`].
#[derive(Clone, Copy, Debug)]
pub enum Data<'p> {
    /// Row-major.
    F32(&'p [f32]),
    /// Row-major, IEEE half bits.
    F16(&'p [u16]),
    /// `weight = scale[row] * int8`, in a blocked layout.
    Int8 {
        /// Blocked values, -127 to 127.
        weights: &'p [i8],
        /// One finite, non-negative scale a row.
        scales: &'p [f32],
        /// The order of the values.
        layout: Layout,
    },
    /// `weight = scale[row] * multiplier[row, group] * int4`; see [`crate::quant::int4`].
    Int4 {
        /// Two weights a byte, groups of 32 columns, rows padded to whole groups.
        weights: &'p [u8],
        /// One byte a group.
        multipliers: &'p [u8],
        /// One finite, non-negative scale a row.
        scales: &'p [f32],
    },
}

/// A vector (or a table of rows) of floats.
#[derive(Clone, Copy, Debug)]
pub enum Vector<'p> {
    /// IEEE single.
    F32(&'p [f32]),
    /// IEEE half bits.
    F16(&'p [u16]),
}

impl Vector<'_> {
    /// Number of elements.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(crate) const fn len(&self) -> usize {
        match self {
            Vector::F32(x) => x.len(),
            Vector::F16(x) => x.len(),
        }
    }

    /// Element `i`; 0 past the end.
    #[inline]
    pub fn get(&self, i: usize) -> f32 {
        match self {
            Vector::F32(x) => x.get(i).copied().unwrap_or(0.0),
            Vector::F16(x) => x.get(i).map_or(0.0, |&bits| f16::from_bits(bits).to_f32()),
        }
    }

    /// Iterates over elements `start..`.
    #[inline]
    pub fn iter_from(&self, start: usize) -> impl Iterator<Item = f32> + '_ {
        let (full, half): (&[f32], &[u16]) = match self {
            Vector::F32(x) => (x.get(start..).unwrap_or(&[]), &[]),
            Vector::F16(x) => (&[], x.get(start..).unwrap_or(&[])),
        };
        full.iter().copied().chain(half.iter().map(|&bits| f16::from_bits(bits).to_f32()))
    }
}

impl<'p> Pack<'p> {
    /// Checks a pack. Bytes past the pack's own length (padding of a flash page) are ignored.
    ///
    /// `bytes` must be aligned to 4; 64 serves wide loads best (see [`super::Aligned`]).
    ///
    /// # Errors
    /// Names the first thing that is wrong: [`Error::Alignment`], [`Error::Truncated`],
    /// [`Error::Magic`], [`Error::Version`], [`Error::Checksum`], [`Error::Field`],
    /// [`Error::MissingSection`], [`Error::Config`], [`Error::Tensor`], [`Error::NotFinite`].
    pub fn new(bytes: &'p [u8]) -> Result<Self, Error> {
        if !(bytes.as_ptr() as usize).is_multiple_of(4) {
            return Err(Error::Alignment { item: "pack", needed: 4 });
        }
        let sections = Sections::new(bytes)?;
        let config = read_config(sections.required(Section::Config)?)?;
        let tensors = sections.required(Section::Tensors)?;
        let weights = sections.required(Section::Weights)?;
        let needed = schema::count(&config) * tensor::BYTES;
        if tensors.len() != needed {
            return Err(Error::Truncated { item: "tensors", needed: needed as u64, found: tensors.len() as u64 });
        }
        let tokenizer = match sections.find(Section::Tokenizer)? {
            Some(bytes) => Some(read_tokenizer(bytes)?),
            None => None,
        };
        let card = match sections.find(Section::Card)? {
            Some(bytes) => {
                Some(core::str::from_utf8(bytes).map_err(|_| Error::Field { field: "card (UTF-8)", found: 0 })?)
            }
            None => None,
        };
        let classifier = match sections.find(Section::Classifier)? {
            Some(bytes) => Some(classifier::read(bytes, &config)?),
            None => None,
        };
        let mut pack = Self {
            config,
            has_decoder: false,
            file_len: sections.file.len(),
            tensors,
            weights,
            tokenizer,
            card,
            classifier,
            self_test: None,
        };
        pack.has_decoder = pack.entry(Param::DecoderPosition).is_present();
        for param in schema::params(&config) {
            pack.check_tensor(param)?;
        }
        if let Some(bytes) = sections.find(Section::SelfTest)? {
            pack.self_test = Some(self_test::read(bytes, &config, pack.has_decoder)?);
        }
        Ok(pack)
    }

    /// The sizes of the model.
    pub const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Length of the file in bytes.
    pub const fn bytes(&self) -> usize {
        self.file_len
    }

    /// Whether the decoder's weights are there (generation needs them, features do not).
    pub const fn has_decoder(&self) -> bool {
        self.has_decoder
    }

    /// The tokenizer, if the pack holds one.
    pub const fn tokenizer(&self) -> Option<PatchCodebook<'p>> {
        self.tokenizer
    }

    /// The model card (JSON), if the pack holds one.
    pub const fn card(&self) -> Option<&'p str> {
        self.card
    }

    /// The linear head for the probe's feature, if the pack holds one.
    pub const fn classifier(&self) -> Option<Classifier<'p>> {
        self.classifier
    }

    /// The golden inputs and outputs, if the pack holds some.
    pub const fn self_test(&self) -> Option<SelfTest<'p>> {
        self.self_test
    }

    /// Precision of a weight; `None` where it is absent (a decoder weight of an encoder-only pack).
    pub fn precision(&self, param: Param) -> Option<Precision> {
        Precision::from_code(self.entry(param).code())
    }

    /// Bytes that a weight takes, scales included.
    pub fn tensor_bytes(&self, param: Param) -> usize {
        let entry = self.entry(param);
        entry.range(tensor::DATA_OFFSET).len() + entry.range(tensor::SCALES_OFFSET).len()
    }

    /// The row of the word embedding that belongs to an id: the id, unless rows of ids that never occur are left out.
    pub fn word_row(&self, id: usize) -> usize {
        let config = &self.config;
        let left_out = self.matrix(Param::WordEmbedding).rows < config.vocab_size;
        match id {
            _ if !left_out || id < config.codebook_size => id,
            _ if id == config.class_token_id => config.codebook_size,
            _ => config.codebook_size + 1, // the mask token
        }
    }

    /// A weight as a matrix; empty where it is absent. The word embedding has [`ModelConfig::used_ids`] rows where the
    /// others are left out.
    pub fn matrix(&self, param: Param) -> Matrix<'p> {
        let entry = self.entry(param);
        let (rows, cols) = (entry.stored_rows(param, &self.config), param.shape(&self.config).matrix().1);
        let data = self.payload(entry.range(tensor::DATA_OFFSET));
        let data = match Precision::from_code(entry.code()) {
            Some(Precision::Int8) => Data::Int8 {
                weights: as_i8(data).unwrap_or(&[]),
                scales: as_f32(self.payload(entry.range(tensor::SCALES_OFFSET))).unwrap_or(&[]),
                layout: entry.layout(),
            },
            Some(Precision::Int4) => {
                let (weights, multipliers) = data.split_at_checked(int4::weight_bytes(rows, cols)).unwrap_or_default();
                let scales = as_f32(self.payload(entry.range(tensor::SCALES_OFFSET))).unwrap_or(&[]);
                Data::Int4 { weights, multipliers, scales }
            }
            Some(Precision::F16) => Data::F16(as_u16(data).unwrap_or(&[])),
            Some(Precision::F32) | None => Data::F32(as_f32(data).unwrap_or(&[])),
        };
        Matrix { rows, cols, data }
    }

    /// A weight that is a vector or a table of positions; empty where it is absent.
    pub fn vector(&self, param: Param) -> Vector<'p> {
        match self.matrix(param).data {
            Data::F32(x) => Vector::F32(x),
            Data::F16(x) => Vector::F16(x),
            // `check_tensor` keeps these to matrices.
            Data::Int8 { .. } | Data::Int4 { .. } => Vector::F32(&[]),
        }
    }

    fn entry(&self, param: Param) -> Entry<'p> {
        let at = param.index(&self.config) * tensor::BYTES;
        Entry(self.tensors.get(at..at + tensor::BYTES).unwrap_or(&[]))
    }

    /// A weight's numbers as they lie in the file.
    #[cfg(feature = "alloc")]
    pub(super) fn bytes_of(&self, param: Param) -> &'p [u8] {
        self.payload(self.entry(param).range(tensor::DATA_OFFSET))
    }

    fn payload(&self, range: core::ops::Range<usize>) -> &'p [u8] {
        self.weights.get(range).unwrap_or(&[])
    }

    /// Everything about one tensor that a forward pass relies on.
    fn check_tensor(&self, param: Param) -> Result<(), Error> {
        let index = param.index(&self.config) as u16;
        let entry = self.entry(param);
        let (rows, cols) = (entry.stored_rows(param, &self.config), param.shape(&self.config).matrix().1);
        let check = |property, expected: usize, found: u64| {
            if expected as u64 == found {
                Ok(())
            } else {
                Err(Error::Tensor { index, property, expected: expected as u64, found })
            }
        };
        if !entry.is_present() && param.is_decoder() && !self.has_decoder {
            return Ok(());
        }
        let layout = entry.layout();
        let (data_len, scales_len) = match Precision::from_code(entry.code()) {
            Some(Precision::F32) => (rows * cols * 4, 0),
            Some(Precision::F16) => (rows * cols * 2, 0),
            Some(Precision::Int8) if param.is_matrix() && layout.is_valid() => (layout.elements(rows, cols), rows * 4),
            Some(Precision::Int4) if int4::fits(param, cols) => (int4::bytes(rows, cols), rows * 4),
            Some(Precision::Int8) if param.is_matrix() => {
                return Err(Error::Field {
                    field: "tensor layout",
                    found: (u64::from(layout.nr) << 8) | u64::from(layout.kt),
                })
            }
            _ => return Err(Error::Field { field: "tensor precision", found: entry.code().into() }),
        };
        check("rows", rows, u32_at(entry.0, tensor::ROWS).into())?;
        check("columns", cols, u32_at(entry.0, tensor::COLS).into())?;
        check("bytes", data_len, u64_at(entry.0, tensor::DATA_LEN))?;
        check("scale bytes", scales_len, u64_at(entry.0, tensor::SCALES_LEN))?;
        for (item, at) in [("tensor data", tensor::DATA_OFFSET), ("tensor scales", tensor::SCALES_OFFSET)] {
            let (offset, len) = (u64_at(entry.0, at), u64_at(entry.0, at + 8));
            if !offset.is_multiple_of(ALIGN as u64) {
                return Err(Error::Alignment { item, needed: ALIGN as u32 });
            }
            let end = offset.saturating_add(len);
            if end > self.weights.len() as u64 {
                return Err(Error::Truncated { item, needed: end, found: self.weights.len() as u64 });
            }
        }
        let finite = match self.matrix(param).data {
            Data::F32(x) => x.iter().all(|x| x.is_finite()),
            Data::F16(x) => x.iter().all(|&bits| f16::from_bits(bits).is_finite()),
            Data::Int8 { weights, scales, .. } => {
                scales.iter().all(|s| s.is_finite() && *s >= 0.0) && weights.iter().all(|w| *w != -128)
            }
            Data::Int4 { scales, .. } => scales.iter().all(|s| s.is_finite() && *s >= 0.0),
        };
        if finite {
            Ok(())
        } else {
            Err(Error::NotFinite { item: "tensor", index: index.into() })
        }
    }
}

/// One entry of the tensor table.
#[derive(Clone, Copy)]
struct Entry<'p>(&'p [u8]);

impl Entry<'_> {
    fn code(&self) -> u8 {
        self.0.get(tensor::PRECISION).copied().unwrap_or(0)
    }

    fn is_present(&self) -> bool {
        self.code() != 0
    }

    fn stored_rows(&self, param: Param, config: &ModelConfig) -> usize {
        stored_rows(param, config, u32_at(self.0, tensor::ROWS) as usize)
    }

    fn layout(&self) -> Layout {
        Layout { nr: self.0.get(tensor::NR).copied().unwrap_or(1), kt: self.0.get(tensor::KT).copied().unwrap_or(0) }
    }

    /// The byte range stored as (offset, length) at a position of the entry.
    fn range(&self, at: usize) -> core::ops::Range<usize> {
        let start = usize::try_from(u64_at(self.0, at)).unwrap_or(usize::MAX);
        let len = usize::try_from(u64_at(self.0, at + 8)).unwrap_or(0);
        start..start.saturating_add(len)
    }
}

/// The section table, its checksums verified.
struct Sections<'p> {
    file: &'p [u8],
    count: usize,
}

impl<'p> Sections<'p> {
    fn new(bytes: &'p [u8]) -> Result<Self, Error> {
        let truncated =
            |needed: usize| Error::Truncated { item: "pack", needed: needed as u64, found: bytes.len() as u64 };
        if bytes.len() < 4 {
            return Err(truncated(section::TABLE_END));
        }
        if bytes[header::MAGIC..header::MAGIC + 4] != MAGIC {
            return Err(Error::Magic { found: u32_at(bytes, header::MAGIC) });
        }
        let head = bytes.get(..section::TABLE_END).ok_or(truncated(section::TABLE_END))?;
        let version = u32_at(head, header::VERSION);
        if version != VERSION {
            return Err(Error::Version { expected: VERSION, found: version });
        }
        let file_len = usize::try_from(u64_at(head, header::FILE_LEN)).unwrap_or(usize::MAX);
        let file = bytes.get(..file_len).ok_or(truncated(file_len))?;
        let mut crc = crc::Crc::new();
        crc.update(&head[..header::CRC]);
        crc.update(&[0; 4]);
        crc.update(&head[header::CRC + 4..]);
        let expected = u32_at(head, header::CRC);
        if crc.value() != expected {
            return Err(Error::Checksum { section: "header", expected, found: crc.value() });
        }
        let count = u32_at(head, header::SECTIONS);
        if count as usize > section::MAX {
            return Err(Error::Field { field: "section count", found: count.into() });
        }
        let sections = Self { file, count: count as usize };
        for i in 0..sections.count {
            sections.check(i)?;
        }
        Ok(sections)
    }

    fn entry(&self, i: usize) -> &'p [u8] {
        let at = header::BYTES + i * section::BYTES;
        self.file.get(at..at + section::BYTES).unwrap_or(&[])
    }

    fn name(&self, i: usize) -> &'static str {
        let kind = u32_at(self.entry(i), section::KIND);
        Section::ALL.iter().find(|s| s.code() == kind).map_or("unknown", |s| s.name())
    }

    fn bytes(&self, i: usize) -> Option<&'p [u8]> {
        let start = usize::try_from(u64_at(self.entry(i), section::OFFSET)).ok()?;
        let len = usize::try_from(u64_at(self.entry(i), section::LEN)).ok()?;
        self.file.get(start..start.checked_add(len)?)
    }

    fn check(&self, i: usize) -> Result<(), Error> {
        let (entry, name) = (self.entry(i), self.name(i));
        let offset = u64_at(entry, section::OFFSET);
        if !offset.is_multiple_of(ALIGN as u64) {
            return Err(Error::Alignment { item: name, needed: ALIGN as u32 });
        }
        let bytes = self.bytes(i).ok_or(Error::Truncated {
            item: name,
            needed: offset.saturating_add(u64_at(entry, section::LEN)),
            found: self.file.len() as u64,
        })?;
        let (expected, found) = (u32_at(entry, section::CRC), crc::crc32(bytes));
        if expected != found {
            return Err(Error::Checksum { section: name, expected, found });
        }
        Ok(())
    }

    /// A section's bytes; `None` if there is none.
    fn find(&self, wanted: Section) -> Result<Option<&'p [u8]>, Error> {
        let mut matches = (0..self.count).filter(|&i| u32_at(self.entry(i), section::KIND) == wanted.code());
        let first = matches.next().and_then(|i| self.bytes(i));
        match matches.next() {
            Some(_) => Err(Error::Field { field: "section kind (twice)", found: wanted.code().into() }),
            None => Ok(first),
        }
    }

    fn required(&self, wanted: Section) -> Result<&'p [u8], Error> {
        self.find(wanted)?.ok_or(Error::MissingSection { section: wanted.name() })
    }
}

fn read_config(bytes: &[u8]) -> Result<ModelConfig, Error> {
    if bytes.len() != config::BYTES {
        return Err(Error::Truncated { item: "config", needed: config::BYTES as u64, found: bytes.len() as u64 });
    }
    let fields = core::array::from_fn(|i| u32_at(bytes, 4 * i) as usize);
    let config = config::from_fields(fields, f32::from_bits(u32_at(bytes, 4 * config::FIELDS)));
    config.validate()?;
    Ok(config)
}

fn read_tokenizer(bytes: &[u8]) -> Result<PatchCodebook<'_>, Error> {
    let (head, codebook) = bytes.split_at_checked(tokenizer::BYTES).ok_or(Error::Truncated {
        item: "tokenizer",
        needed: tokenizer::BYTES as u64,
        found: bytes.len() as u64,
    })?;
    PatchCodebook::new(codebook, u32_at(head, tokenizer::CODES) as usize, u32_at(head, tokenizer::PATCH) as usize)
}
