//! Bit-packed token maps: `bits` bits a token, least significant bit first, rows padded to bytes.
//!
//! 256 tokens of 10 bits take 320 bytes. This is the row format of the token dataset's
//! `tokens_*.npy` (`[N, row_bytes]` `uint8`); in numpy:
//! `np.unpackbits(row, bitorder="little").reshape(T, bits) @ (1 << np.arange(bits))` (for padded rows, cut at `T*bits`).

use crate::error::Error;

/// Bytes of one row of `tokens` tokens of `bits` bits.
pub const fn row_bytes(tokens: usize, bits: u32) -> usize {
    (tokens * bits as usize).div_ceil(8)
}

/// Packs ids into a row.
///
/// # Errors
/// [`Error::TokenId`] where an id needs more than `bits` bits, [`Error::Length`] where
/// `row.len() != row_bytes(ids.len(), bits)`, [`Error::Option`] where `bits` is not 1 to 16.
pub fn pack_row(ids: &[u16], bits: u32, row: &mut [u8]) -> Result<(), Error> {
    check(ids.len(), bits, row.len())?;
    row.fill(0);
    for (index, &id) in ids.iter().enumerate() {
        if u32::from(id) >> bits != 0 {
            return Err(Error::TokenId { index, limit: 1 << bits, found: id.into() });
        }
        let start = index * bits as usize;
        // A token of at most 16 bits spans at most three bytes.
        let spread = (u32::from(id) << (start % 8)).to_le_bytes();
        for (byte, part) in row[start / 8..].iter_mut().zip(spread) {
            *byte |= part;
        }
    }
    Ok(())
}

/// Unpacks a row into ids; every id is below `2^bits`.
///
/// # Errors
/// As [`pack_row`].
pub fn unpack_row(row: &[u8], bits: u32, ids: &mut [u16]) -> Result<(), Error> {
    check(ids.len(), bits, row.len())?;
    for (index, id) in ids.iter_mut().enumerate() {
        let start = index * bits as usize;
        let rest = &row[start / 8..];
        // A token spans at most three bytes; four are read at once except at the end of the row.
        let spread = match rest.first_chunk() {
            Some(four) => u32::from_le_bytes(*four),
            None => rest.iter().rev().fold(0, |spread, &byte| spread << 8 | u32::from(byte)),
        };
        *id = ((spread >> (start % 8)) & ((1 << bits) - 1)) as u16;
    }
    Ok(())
}

fn check(tokens: usize, bits: u32, found: usize) -> Result<(), Error> {
    if !(1..=16).contains(&bits) {
        return Err(Error::Option { name: "bits", expected: "1 to 16" });
    }
    let needed = row_bytes(tokens, bits);
    if needed != found {
        return Err(Error::Length { item: "row", needed, found });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    extern crate std;
    use std::{vec, vec::Vec};

    proptest! {
        #[test]
        fn round_trip(bits in 1u32..=16, ids in proptest::collection::vec(any::<u16>(), 0..300)) {
            let mask = ((1u32 << bits) - 1) as u16;
            let ids: Vec<u16> = ids.into_iter().map(|id| id & mask).collect();
            let mut row = vec![0xA5; row_bytes(ids.len(), bits)];
            pack_row(&ids, bits, &mut row).unwrap();
            let mut back = vec![0; ids.len()];
            unpack_row(&row, bits, &mut back).unwrap();
            prop_assert_eq!(ids, back);
        }
    }

    #[test]
    fn official_size_and_bad_input() {
        assert_eq!(row_bytes(256, 10), 320);
        let mut row = [0; 2];
        assert_eq!(pack_row(&[5, 8], 3, &mut row[..1]), Err(Error::TokenId { index: 1, limit: 8, found: 8 }));
        assert_eq!(pack_row(&[1], 3, &mut row), Err(Error::Length { item: "row", needed: 1, found: 2 }));
        assert!(unpack_row(&row, 17, &mut [0]).is_err());
    }
}
