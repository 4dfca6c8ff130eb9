//! The pack (`.srcn`): a model in one file that runs in place, from flash or a memory map.
//!
//! ```text
//! header        64 bytes   magic, version, file length, section count, CRC of header and table
//! section table 16 × 32    kind, CRC-32, offset, length
//! config        64 bytes   `ModelConfig`
//! tensors       48 each    one entry a weight, in schema order
//! weights                  payload, every tensor at a multiple of 64 bytes
//! …                        optional sections: tokenizer, card, classifier, self-test; readers skip kinds they do
//!                          not know
//! ```
//!
//! The word embedding is stored whole, or without the rows of ids that never occur: then its K + 2 rows are those of
//! the codes, the class token and the mask token (see [`Pack::word_row`]).
//!
//! Little-endian. Sections start at multiples of 64 bytes, gaps are zero, and so are reserved bytes. The byte positions
//! below are the only place where they are written down; [`reader`](self) and writer share them.

use crate::{config::ModelConfig, error::Error, schema::Param};

mod classifier;
pub(crate) mod crc;
#[cfg(feature = "alloc")]
mod owned;
mod reader;
mod self_test;
mod tensors;
mod writer;

#[cfg(feature = "alloc")]
pub(crate) use owned::arranged;
#[cfg(feature = "alloc")]
pub use owned::OwnedPack;
pub use reader::Pack;
pub use tensors::{Data, Matrix, Vector};
pub(crate) use tensors::{Kind, Tensors};
pub use writer::{Sink, SliceSink, TensorData, WriteError, Writer};

/// First four bytes of a pack.
pub const MAGIC: [u8; 4] = *b"SRCN";
/// Version of the format, raised with every change that an old reader would misread.
pub const VERSION: u32 = 1;
/// Sections, tensors and scales start at multiples of this, in bytes.
pub const ALIGN: usize = 64;

/// Bytes of an entry of a tensor table.
pub(crate) const TENSOR_ENTRY: usize = tensor::BYTES;

/// A byte string aligned for a pack: `static PACK: &Aligned<[u8]> = &Aligned(*include_bytes!("model.srcn"));`
#[repr(C, align(64))]
pub struct Aligned<B: ?Sized>(pub B);

/// How a tensor's numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// Signed bytes with one scale an output channel.
    Int8,
    /// Four bits a weight in groups of 32, see [`crate::quant::int4`].
    Int4,
}

impl Precision {
    const fn code(self) -> u8 {
        match self {
            Precision::F32 => 1,
            Precision::F16 => 2,
            Precision::Int8 => 3,
            Precision::Int4 => 4,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Precision::F32),
            2 => Some(Precision::F16),
            3 => Some(Precision::Int8),
            4 | INT4_IN_PANELS => Some(Precision::Int4),
            _ => None,
        }
    }

    /// The name on the command line: `f32`, `f16`, `int8`, `int4`.
    pub const fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::F16 => "f16",
            Precision::Int8 => "int8",
            Precision::Int4 => "int4",
        }
    }
}

/// Code of [`Precision::Int4`] in the order of panels: one of its own, which a reader refuses that knows only rows.
const INT4_IN_PANELS: u8 = 5;

/// The sections this version knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// The sizes of the model.
    Config,
    /// The tensor table.
    Tensors,
    /// The payload of the tensor table.
    Weights,
    /// A patch codebook: u32 codes, u32 patch side, 8 zero bytes, `[codes, patch, patch, 3]` bytes.
    Tokenizer,
    /// The model card: JSON in UTF-8.
    Card,
    /// A linear head: [`crate::head::Classifier`].
    Classifier,
    /// Golden inputs and outputs: [`crate::self_test`].
    SelfTest,
    /// A ViT tokenizer: sizes, tensor table, numbers; see [`crate::vit`].
    Vit,
}

impl Section {
    const ALL: [Section; 8] = [
        Section::Config,
        Section::Tensors,
        Section::Weights,
        Section::Tokenizer,
        Section::Card,
        Section::Classifier,
        Section::SelfTest,
        Section::Vit,
    ];

    const fn code(self) -> u32 {
        self as u32 + 1
    }

    /// There may be one of a kind.
    const fn twice(self) -> Error {
        Error::Field { field: "section kind (twice)", found: self.code() as u64 }
    }

    /// The name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Section::Config => "config",
            Section::Tensors => "tensors",
            Section::Weights => "weights",
            Section::Tokenizer => "tokenizer",
            Section::Card => "card",
            Section::Classifier => "classifier",
            Section::SelfTest => "self-test",
            Section::Vit => "vit tokenizer",
        }
    }
}

/// Byte positions inside the header.
mod header {
    pub const MAGIC: usize = 0;
    pub const VERSION: usize = 4;
    pub const FILE_LEN: usize = 8;
    pub const SECTIONS: usize = 16;
    /// CRC-32 of header and section table with these four bytes zero.
    pub const CRC: usize = 20;
    pub const END: usize = 24;
    pub const BYTES: usize = 64;
}

/// The section table and byte positions inside an entry.
mod section {
    pub const MAX: usize = 16;
    pub const KIND: usize = 0;
    pub const CRC: usize = 4;
    pub const OFFSET: usize = 8;
    pub const LEN: usize = 16;
    pub const END: usize = 24;
    pub const BYTES: usize = 32;
    /// End of the table, start of the first section.
    pub const TABLE_END: usize = super::header::BYTES + MAX * BYTES;
}

/// Byte positions inside a tensor entry; offsets count from the start of the weights section.
mod tensor {
    pub const PRECISION: usize = 0;
    pub const NR: usize = 1;
    pub const KT: usize = 2;
    pub const ROWS: usize = 4;
    pub const COLS: usize = 8;
    pub const DATA_OFFSET: usize = 16;
    pub const DATA_LEN: usize = 24;
    pub const SCALES_OFFSET: usize = 32;
    pub const SCALES_LEN: usize = 40;
    pub const BYTES: usize = 48;
}

/// The config section: these u32 fields in a row, then the epsilon as f32.
mod config {
    use crate::config::ModelConfig;

    pub const BYTES: usize = 64;
    pub const FIELDS: usize = 12;
    pub const END: usize = 4 * (FIELDS + 1);

    pub fn to_fields(c: &ModelConfig) -> [usize; FIELDS] {
        [
            c.grid,
            c.codebook_size,
            c.vocab_size,
            c.class_token_id,
            c.mask_token_id,
            c.embed_dim,
            c.depth,
            c.num_heads,
            c.decoder_embed_dim,
            c.decoder_depth,
            c.decoder_num_heads,
            c.mlp_ratio,
        ]
    }

    pub fn from_fields(f: [usize; FIELDS], layer_norm_eps: f32) -> ModelConfig {
        let [grid, codebook_size, vocab_size, class_token_id, mask_token_id, embed_dim, depth, num_heads, decoder_embed_dim, decoder_depth, decoder_num_heads, mlp_ratio] =
            f;
        ModelConfig {
            grid,
            codebook_size,
            vocab_size,
            class_token_id,
            mask_token_id,
            embed_dim,
            depth,
            num_heads,
            decoder_embed_dim,
            decoder_depth,
            decoder_num_heads,
            mlp_ratio,
            layer_norm_eps,
        }
    }
}

/// The tokenizer section's header.
mod tokenizer {
    pub const CODES: usize = 0;
    pub const PATCH: usize = 4;
    pub const END: usize = 8;
    pub const BYTES: usize = 16;
}

/// Checks that a part of a pack was made for its model.
pub(crate) fn check_same(item: &'static str, expected: usize, found: usize) -> Result<(), Error> {
    match expected == found {
        true => Ok(()),
        false => Err(Error::OtherModel { item, expected: expected as u64, found: found as u64 }),
    }
}

/// Checks that bytes that mean nothing yet are zero: a later version may give them a meaning, which must not be missed.
pub(crate) fn check_reserved(field: &'static str, bytes: &[u8]) -> Result<(), Error> {
    match bytes.iter().find(|byte| **byte != 0) {
        Some(&found) => Err(Error::Field { field, found: found.into() }),
        None => Ok(()),
    }
}

/// Rows of a weight as a pack stores it, where the tensor table (or a writer's data) says `found`: those of the schema,
/// or of the word embedding only those that are used. Any other `found` is for the caller to refuse.
fn stored_rows(param: Param, config: &ModelConfig, found: usize) -> usize {
    match param {
        Param::WordEmbedding if found == config.used_ids() => found,
        _ => param.shape(config).matrix().0,
    }
}

/// Little-endian u32 at a position; 0 past the end (callers have checked the length).
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// Little-endian u64 at a position; 0 past the end (callers have checked the length).
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// Recomputes every checksum of a pack that was tampered with, so that tests and fuzzers get past them.
#[cfg(any(test, feature = "std"))]
#[doc(hidden)]
pub fn reseal(bytes: &mut [u8]) {
    let count = u32_at(bytes, header::SECTIONS) as usize;
    for i in 0..count.min(section::MAX) {
        let at = header::BYTES + i * section::BYTES;
        let (start, len) = (u64_at(bytes, at + section::OFFSET), u64_at(bytes, at + section::LEN));
        let Some(body) = bytes.get(start as usize..start.saturating_add(len) as usize) else { continue };
        let crc = crc::crc32(body);
        if let Some(place) = bytes.get_mut(at + section::CRC..at + section::CRC + 4) {
            place.copy_from_slice(&crc.to_le_bytes());
        }
    }
    let Some(head) = bytes.get_mut(..section::TABLE_END) else { return };
    head[header::CRC..header::CRC + 4].fill(0);
    let crc = crc::crc32(head);
    head[header::CRC..header::CRC + 4].copy_from_slice(&crc.to_le_bytes());
}

#[cfg(test)]
mod tests;
