//! One small error for everything that can go wrong in the runtime.

use core::fmt;

/// What is wrong, with what was needed and what was found.
///
/// A `Copy` value of a few words, so that firmware can log it without allocating.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// A configuration field is outside its range.
    Config {
        /// Name of the field, as in `config.json`.
        field: &'static str,
        /// What the field has to be.
        expected: &'static str,
        /// The value found.
        found: u64,
    },
    /// The file does not start with the pack's magic bytes.
    Magic {
        /// The four bytes found, little-endian.
        found: u32,
    },
    /// The pack was written by a version of the format that this code does not read.
    Version {
        /// The version this code reads.
        expected: u32,
        /// The version in the file.
        found: u32,
    },
    /// Fewer bytes than the contents need.
    Truncated {
        /// What was being read.
        item: &'static str,
        /// Bytes needed, from the start of the item's container.
        needed: u64,
        /// Bytes there are.
        found: u64,
    },
    /// A section's CRC-32 does not match its bytes: the file was damaged.
    Checksum {
        /// Which section.
        section: &'static str,
        /// The checksum stored in the section table.
        expected: u32,
        /// The checksum of the bytes.
        found: u32,
    },
    /// An offset or address is not a multiple of what the item needs.
    Alignment {
        /// Which item.
        item: &'static str,
        /// The multiple needed, in bytes.
        needed: u32,
    },
    /// A section that the operation needs is not in the pack.
    MissingSection {
        /// Which section.
        section: &'static str,
    },
    /// A field of the pack holds a value that has no meaning.
    Field {
        /// Which field.
        field: &'static str,
        /// The value found.
        found: u64,
    },
    /// A tensor's entry disagrees with the configuration.
    Tensor {
        /// Index of the tensor in schema order (see [`crate::schema`]).
        index: u16,
        /// Which property.
        property: &'static str,
        /// What the schema asks for.
        expected: u64,
        /// What the entry says.
        found: u64,
    },
    /// A stored number that must be finite is not.
    NotFinite {
        /// Which item.
        item: &'static str,
        /// Index of the tensor in schema order, or of the element where there is no tensor.
        index: u32,
    },
    /// A stored number is finite and out of its range.
    OutOfRange {
        /// Which item.
        item: &'static str,
        /// Index of the tensor in schema order.
        index: u32,
        /// What the number has to be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// A part of a pack was made for another model.
    OtherModel {
        /// Which measure of the part.
        item: &'static str,
        /// What the model has.
        expected: u64,
        /// What the part has.
        found: u64,
    },
    /// A slice handed in has the wrong length.
    Length {
        /// Which argument.
        item: &'static str,
        /// Elements needed.
        needed: usize,
        /// Elements found.
        found: usize,
    },
    /// A token id is not below the limit.
    TokenId {
        /// Index of the token in the slice handed in.
        index: usize,
        /// Ids must be below this (or be the mask id, where masks are allowed).
        limit: u32,
        /// The id found.
        found: u32,
    },
    /// Positions must be strictly increasing and below the number of tokens.
    Position {
        /// Index of the position in the slice handed in.
        index: usize,
        /// The position found.
        found: usize,
    },
    /// The memory for a scratch is too small.
    Scratch {
        /// Bytes needed.
        needed: usize,
        /// Bytes found.
        found: usize,
    },
    /// The scratch was made for another purpose.
    ScratchPlan {
        /// What it has to be made for: a plan, or a ViT tokenizer.
        expected: &'static str,
        /// What it was made for.
        found: &'static str,
    },
    /// The scratch was made for a model of other sizes.
    ScratchShape {
        /// The first of its measures that differs.
        item: &'static str,
        /// What this model needs.
        needed: usize,
        /// What the scratch has.
        found: usize,
    },
    /// The device computes something else than the machine that wrote the pack (see [`crate::self_test`]).
    SelfTest {
        /// `feature`, `token` or `confidence`.
        item: &'static str,
        /// Which golden input, from 0.
        input: u32,
        /// Which element of its feature, or which position.
        element: u32,
        /// The token id, or the bits of the number, in the pack.
        expected: u32,
        /// What was computed.
        found: u32,
    },
    /// An option is outside its range.
    Option {
        /// Name of the option.
        name: &'static str,
        /// What it has to be.
        expected: &'static str,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Error::Config { field, expected, found } => {
                write!(f, "config field `{field}`: expected {expected}, found {found}")
            }
            Error::Magic { found } => {
                write!(f, "not a .srcn pack: expected magic \"SRCN\", found {found:#010x}")
            }
            Error::Version { expected, found } => {
                write!(f, "pack format version: expected {expected}, found {found}")
            }
            Error::Truncated { item, needed, found } => {
                write!(f, "{item}: truncated, expected at least {needed} bytes, found {found}")
            }
            Error::Checksum { section, expected, found } => {
                write!(f, "section `{section}`: damaged, expected CRC-32 {expected:#010x}, found {found:#010x}")
            }
            Error::Alignment { item, needed } => {
                write!(f, "{item}: expected alignment to {needed} bytes")
            }
            Error::MissingSection { section } => {
                write!(f, "the pack has no `{section}` section")
            }
            Error::Field { field, found } => write!(f, "pack field `{field}`: unknown value {found}"),
            Error::Tensor { index, property, expected, found } => {
                write!(f, "tensor #{index}: expected {property} {expected}, found {found}")
            }
            Error::NotFinite { item, index } => write!(f, "{item} #{index}: found a number that is not finite"),
            Error::OutOfRange { item, index, expected, found } => {
                write!(f, "{item} #{index}: expected {expected}, found {found}")
            }
            Error::OtherModel { item, expected, found } => {
                write!(f, "{item}: expected {expected} as in the model, found {found}")
            }
            Error::Length { item, needed, found } => {
                write!(f, "`{item}`: expected {needed} elements, found {found}")
            }
            Error::TokenId { index, limit, found } => {
                write!(f, "token #{index}: expected an id below {limit}, found {found}")
            }
            Error::Position { index, found } => {
                write!(f, "position #{index}: expected increasing positions inside the grid, found {found}")
            }
            Error::Scratch { needed, found } => {
                write!(f, "scratch memory: expected at least {needed} bytes, found {found}")
            }
            Error::ScratchPlan { expected, found } => {
                write!(f, "scratch memory: expected one made for {expected}, found one made for {found}")
            }
            Error::ScratchShape { item, needed, found } => {
                write!(f, "scratch memory: made for a model of other sizes: expected {needed} {item}, found {found}")
            }
            Error::SelfTest { item, input, element, expected, found } => {
                write!(f, "self-test, input #{input}: {item} #{element}: expected {expected:#x}, found {found:#x}")
            }
            Error::Option { name, expected } => write!(f, "option `{name}`: expected {expected}"),
        }
    }
}

impl core::error::Error for Error {}
