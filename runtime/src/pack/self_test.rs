//! The self-test section: golden inputs, and what the model made of them where the pack was written.
//!
//! ```text
//! u32 inputs N, u32 1 with decoder or 0, f32 tolerance (0: exact bits), 4 zero bytes
//! features [N, D] f32
//! confidences [N, T] f32    with decoder only
//! ids [N, T] u16
//! drawn [N, T] u16          with decoder only
//! ```

use super::{check_reserved, u32_at};
use crate::{
    config::ModelConfig,
    error::Error,
    kernels::bytes::{as_f32, as_u16, of_f32, of_u16},
    self_test::SelfTest,
};

const INPUTS: usize = 0;
const DECODER: usize = 4;
const TOLERANCE: usize = 8;
const END: usize = 12;
const HEADER: usize = 16;

/// The self-test in a section's bytes, checked; they start at a multiple of 4.
pub(super) fn read<'p>(bytes: &'p [u8], model: &ModelConfig, has_decoder: bool) -> Result<SelfTest<'p>, Error> {
    let (inputs, decoder) = (u64::from(u32_at(bytes, INPUTS)), u32_at(bytes, DECODER));
    check_decoder(decoder, has_decoder)?;
    let (features, tokens) = (inputs * model.embed_dim as u64, inputs * model.tokens() as u64);
    let drawn = tokens * u64::from(decoder);
    let lengths = [HEADER as u64, 4 * features, 4 * drawn, 2 * tokens, 2 * drawn];
    let (needed, found) = (lengths.iter().sum(), bytes.len() as u64);
    let truncated = Error::Truncated { item: "self-test", needed, found };
    if needed != found {
        return Err(truncated);
    }
    check_reserved("reserved bytes of the self-test", &bytes[END..HEADER])?;
    let mut rest = bytes;
    let mut parts = [bytes; 5];
    for (part, length) in parts.iter_mut().zip(lengths) {
        (*part, rest) = rest.split_at_checked(length as usize).ok_or(truncated)?;
    }
    let [_, features, confidences, ids, drawn] = parts;
    let (floats, numbers) = (|bytes| as_f32(bytes).unwrap_or(&[]), |bytes| as_u16(bytes).unwrap_or(&[]));
    SelfTest::new(
        model,
        f32::from_bits(u32_at(bytes, TOLERANCE)),
        numbers(ids),
        floats(features),
        numbers(drawn),
        floats(confidences),
    )
}

/// Checks that a self-test of the decoder (1) is in a pack that has one.
pub(super) fn check_decoder(decoder: u32, has_decoder: bool) -> Result<(), Error> {
    match decoder > u32::from(has_decoder) {
        true => Err(Error::Field { field: "decoder in the self-test", found: decoder.into() }),
        false => Ok(()),
    }
}

/// The header of a self-test's section, and the pieces that follow it.
pub(super) fn write<'s>(test: &SelfTest<'s>) -> ([u8; HEADER], [&'s [u8]; 4]) {
    let fields = [test.inputs() as u32, test.has_decoder().into(), test.tolerance().to_bits()];
    let mut header = [0; HEADER];
    for (bytes, field) in header.chunks_exact_mut(4).zip(fields) {
        bytes.copy_from_slice(&field.to_le_bytes());
    }
    (header, [of_f32(test.features()), of_f32(test.confidences()), of_u16(test.ids()), of_u16(test.drawn())])
}
