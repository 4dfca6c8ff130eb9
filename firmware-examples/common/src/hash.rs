//! A fingerprint of results, to compare boards by.

/// FNV-1a of bytes, 64 bits.
pub fn of_bytes(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// FNV-1a of the bits of floats.
pub fn of_floats(floats: &[f32]) -> u64 {
    of_bytes(floats.iter().flat_map(|x| x.to_bits().to_le_bytes()))
}

/// FNV-1a of token ids.
pub fn of_ids(ids: &[u16]) -> u64 {
    of_bytes(ids.iter().flat_map(|id| id.to_le_bytes()))
}
