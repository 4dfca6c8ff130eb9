//! [`Pack`]: checked once, then read in place.

use super::{
    check_reserved, check_same, classifier, config, crc, header, section, self_test, stored_rows, tokenizer, u32_at,
    u64_at, Kind, Matrix, Precision, Section, Tensors, Vector, ALIGN, MAGIC, VERSION,
};
use crate::{
    config::ModelConfig,
    error::Error,
    head::Classifier,
    layers::block::Blocks,
    schema::{self, Param, Part, Stack},
    self_test::SelfTest,
    tokenizer::PatchCodebook,
    vit::Vit,
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
    tensors: Tensors<'p>,
    tokenizer: Option<PatchCodebook<'p>>,
    vit: Option<Vit<'p>>,
    card: Option<&'p str>,
    classifier: Option<Classifier<'p>>,
    self_test: Option<SelfTest<'p>>,
}

impl<'p> Pack<'p> {
    /// Checks a pack. Bytes past the pack's own length (padding of a flash page) are ignored.
    ///
    /// `bytes` must be aligned to 4; 64 serves wide loads best (see [`super::Aligned`]).
    ///
    /// # Errors
    /// Names the first thing that is wrong: [`Error::Alignment`], [`Error::Truncated`],
    /// [`Error::Magic`], [`Error::Version`], [`Error::Checksum`], [`Error::Field`],
    /// [`Error::MissingSection`], [`Error::Config`], [`Error::Tensor`], [`Error::NotFinite`], [`Error::OutOfRange`],
    /// [`Error::OtherModel`] for a tokenizer or a classifier that does not fit the model.
    pub fn new(bytes: &'p [u8]) -> Result<Self, Error> {
        let sections = Sections::new(bytes)?;
        let config = read_config(sections.required(Section::Config)?)?;
        let tensors = sections.required(Section::Tensors)?;
        let weights = sections.required(Section::Weights)?;
        let tensors = Tensors::new(tensors, weights, schema::count(&config))?;
        let tokenizer = match sections.find(Section::Tokenizer)? {
            Some(bytes) => Some(read_tokenizer(bytes, &config)?),
            None => None,
        };
        let vit = match sections.find(Section::Vit)? {
            Some(bytes) => Some(Vit::new(bytes)?.of_model(&config)?),
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
        let has_decoder = tensors.is_present(Param::DecoderPosition.index(&config));
        for (index, param) in schema::params(&config).enumerate() {
            let kind = Kind { is_matrix: param.is_matrix(), is_optional: param.is_decoder() && !has_decoder };
            tensors.check(index, stored_shape(&tensors, param, &config), kind)?;
        }
        let self_test = match sections.find(Section::SelfTest)? {
            Some(bytes) => Some(self_test::read(bytes, &config, has_decoder)?),
            None => None,
        };
        let file_len = sections.file.len();
        Ok(Self { config, has_decoder, file_len, tensors, tokenizer, vit, card, classifier, self_test })
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

    /// The patch tokenizer, if the pack holds one.
    pub const fn tokenizer(&self) -> Option<PatchCodebook<'p>> {
        self.tokenizer
    }

    /// The ViT tokenizer, if the pack holds one.
    pub const fn vit(&self) -> Option<Vit<'p>> {
        self.vit
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
        self.tensors.precision(param.index(&self.config))
    }

    /// Bytes that a weight takes, scales included.
    pub fn tensor_bytes(&self, param: Param) -> usize {
        self.tensors.bytes(param.index(&self.config))
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
        let index = param.index(&self.config);
        self.tensors.matrix(index, stored_shape(&self.tensors, param, &self.config))
    }

    /// A weight that is a vector or a table of positions; empty where it is absent.
    pub fn vector(&self, param: Param) -> Vector<'p> {
        self.tensors.vector(param.index(&self.config), param.shape(&self.config).matrix())
    }

    /// One of the two stacks of blocks.
    pub(crate) fn blocks(&self, stack: Stack) -> Blocks<'p> {
        let c = &self.config;
        let (dim, heads) = match stack {
            Stack::Encoder => (c.embed_dim, c.num_heads),
            Stack::Decoder => (c.decoder_embed_dim, c.decoder_num_heads),
        };
        let first = Param::Block { stack, index: 0, part: Part::ALL[0] }.index(c);
        Blocks { tensors: self.tensors, first, dim, heads, hidden: dim * c.mlp_ratio, eps: c.layer_norm_eps }
    }

    /// A weight's numbers as they lie in the file.
    #[cfg(feature = "alloc")]
    pub(super) fn bytes_of(&self, param: Param) -> &'p [u8] {
        self.tensors.bytes_of(param.index(&self.config))
    }
}

/// A weight as the table says that it is stored; [`Tensors::check`] refuses any other rows than the two that there may be.
fn stored_shape(tensors: &Tensors<'_>, param: Param, config: &ModelConfig) -> (usize, usize) {
    let rows = stored_rows(param, config, tensors.rows(param.index(config)));
    (rows, param.shape(config).matrix().1)
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
        if file_len < section::TABLE_END {
            return Err(Error::Field { field: "length of the file", found: file_len as u64 });
        }
        if !(bytes.as_ptr() as usize).is_multiple_of(4) {
            return Err(Error::Alignment { item: "pack", needed: 4 });
        }
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
        check_reserved("reserved bytes of the header", &head[header::END..header::BYTES])?;
        check_reserved(
            "unused entries of the section table",
            &head[header::BYTES + count as usize * section::BYTES..],
        )?;
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
        check_reserved("reserved bytes of a section's entry", &entry[section::END..])
    }

    /// A section's bytes; `None` if there is none.
    fn find(&self, wanted: Section) -> Result<Option<&'p [u8]>, Error> {
        let mut matches = (0..self.count).filter(|&i| u32_at(self.entry(i), section::KIND) == wanted.code());
        let first = matches.next().and_then(|i| self.bytes(i));
        match matches.next() {
            Some(_) => Err(wanted.twice()),
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
    check_reserved("reserved bytes of the config", &bytes[config::END..])?;
    Ok(config)
}

fn read_tokenizer<'p>(bytes: &'p [u8], model: &ModelConfig) -> Result<PatchCodebook<'p>, Error> {
    let (head, codebook) = bytes.split_at_checked(tokenizer::BYTES).ok_or(Error::Truncated {
        item: "tokenizer",
        needed: tokenizer::BYTES as u64,
        found: bytes.len() as u64,
    })?;
    check_reserved("reserved bytes of the tokenizer", &head[tokenizer::END..])?;
    let (codes, patch) = (u32_at(head, tokenizer::CODES) as usize, u32_at(head, tokenizer::PATCH) as usize);
    check_same("codes of the tokenizer", model.codebook_size, codes)?;
    PatchCodebook::new(codebook, codes, patch)
}
