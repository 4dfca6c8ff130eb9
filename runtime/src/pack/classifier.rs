//! The classifier section: a linear head for the probe's feature.
//!
//! ```text
//! u32 classes, u32 D, u32 precision (as of tensors: f32 or int8), u32 bytes of the names
//! bias [classes] f32
//! scales [classes] f32     int8 only
//! weight [classes, D]      plain rows
//! names                    UTF-8, one a line; nothing where they are not known
//! ```

use super::{check_same, u32_at, Data, Matrix, Precision};
use crate::{
    config::ModelConfig,
    error::Error,
    head::Classifier,
    kernels::bytes::{as_f32, as_i8, of_f32, of_i8},
    quant::Layout,
};

const CLASSES: usize = 0;
const DIM: usize = 4;
const PRECISION: usize = 8;
const NAMES_LEN: usize = 12;
const HEADER: usize = 16;

/// The classifier in a section's bytes, checked; they start at a multiple of 4.
pub(super) fn read<'p>(bytes: &'p [u8], model: &ModelConfig) -> Result<Classifier<'p>, Error> {
    let field = |at| u32_at(bytes, at) as usize;
    let (classes, dim, names_len) = (field(CLASSES), field(DIM), field(NAMES_LEN));
    check_same("width of the classifier", model.embed_dim, dim)?;
    if classes == 0 || classes > Classifier::MAX_CLASSES {
        return Err(Error::Field { field: "classes", found: classes as u64 });
    }
    let (scales_len, element) = match u8::try_from(field(PRECISION)).ok().and_then(Precision::from_code) {
        Some(Precision::F32) => (0, 4),
        Some(Precision::Int8) => (4 * classes, 1),
        _ => return Err(Error::Field { field: "precision of the classifier", found: field(PRECISION) as u64 }),
    };
    // Neither number is large: see `ModelConfig`'s limits.
    let lengths = [HEADER, 4 * classes, scales_len, classes * dim * element];
    let needed = lengths.iter().map(|&length| length as u64).sum::<u64>() + names_len as u64;
    let truncated = Error::Truncated { item: "classifier", needed, found: bytes.len() as u64 };
    if needed != bytes.len() as u64 {
        return Err(truncated);
    }
    let mut rest = bytes;
    let mut take = |length: usize| -> Result<&'p [u8], Error> {
        let (taken, after) = rest.split_at_checked(length).ok_or(truncated)?;
        rest = after;
        Ok(taken)
    };
    let [_, bias, scales, weight] = [take(lengths[0])?, take(lengths[1])?, take(lengths[2])?, take(lengths[3])?];
    let floats = |bytes| as_f32(bytes).unwrap_or(&[]);
    let data = if scales_len == 0 {
        Data::F32(floats(weight))
    } else {
        let weights = as_i8(weight);
        Data::Int8 { weights, scales: floats(scales), layout: Layout::ROW_MAJOR }
    };
    let names = core::str::from_utf8(rest).map_err(|_| Error::Field { field: "names (UTF-8)", found: 0 })?;
    let names = (!names.is_empty()).then_some(names);
    Classifier::new(Matrix { rows: classes, cols: dim, data }, floats(bias), names)
}

/// The header of a classifier's section, and the pieces that follow it.
pub(super) fn write<'c>(classifier: &Classifier<'c>) -> ([u8; HEADER], [&'c [u8]; 4]) {
    let (precision, scales, weight): (_, &[u8], &[u8]) = match classifier.weight().data {
        Data::Int8 { weights, scales, .. } => (Precision::Int8, of_f32(scales), of_i8(weights)),
        Data::F32(weights) => (Precision::F32, &[], of_f32(weights)),
        Data::F16(_) | Data::Int4 { .. } => (Precision::F32, &[], &[]), // `Classifier::new` keeps them out
    };
    let names = classifier.names().unwrap_or("");
    let fields = [classifier.classes(), classifier.dim(), precision.code().into(), names.len()];
    let mut header = [0; HEADER];
    for (bytes, field) in header.chunks_exact_mut(4).zip(fields) {
        bytes.copy_from_slice(&(field as u32).to_le_bytes());
    }
    (header, [of_f32(classifier.bias()), scales, weight, names.as_bytes()])
}
