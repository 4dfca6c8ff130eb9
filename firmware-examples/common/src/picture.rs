//! Pictures out of a microcontroller: as text in the log, and as a file on the host.

use core::ffi::CStr;

use sorcen_runtime::{tokenizer::PatchCodebook, Error};

use crate::{info, TOKENS};

/// Side of a picture in pixels.
pub const SIDE: usize = 64;
/// Bytes of a picture, `[SIDE, SIDE, 3]`.
pub const BYTES: usize = SIDE * SIDE * 3;
/// The header of a picture as a PPM file (P6).
pub const PPM_HEADER: &[u8] = b"P6\n64 64\n255\n";

/// A picture in borrowed memory.
pub struct Picture<'m>(&'m mut [u8]);

impl<'m> Picture<'m> {
    /// The picture of tokens `[T]`, drawn into the front of `memory` (at least [`BYTES`]).
    ///
    /// # Errors
    /// Those of [`PatchCodebook::decode`]; [`Error::Length`] where the memory is too small.
    pub fn decode(codebook: &PatchCodebook<'_>, ids: &[u16], memory: &'m mut [u8]) -> Result<Self, Error> {
        let found = memory.len();
        let rgb = memory.get_mut(..BYTES).ok_or(Error::Length { item: "picture", needed: BYTES, found })?;
        codebook.decode(ids, SIDE, SIDE, rgb)?;
        Ok(Self(rgb))
    }

    /// The pixels.
    pub fn rgb(&self) -> &[u8] {
        self.0
    }

    /// Logs the picture, one character for 2×4 pixels, dense where it is dark.
    pub fn show(&self) {
        const SHADES: &[u8; 10] = b"@%#*+=-:. ";
        const WIDTH: usize = SIDE / 2;
        for rows in self.0.chunks_exact(4 * SIDE * 3) {
            let mut line = [b' '; WIDTH];
            for (x, character) in line.iter_mut().enumerate() {
                let cells = rows.chunks_exact(SIDE * 3).filter_map(|row| row.get(x * 6..x * 6 + 6));
                let sum: usize = cells.flatten().map(|&byte| usize::from(byte)).sum(); // of 4×2×3 bytes
                *character = SHADES.get(sum * SHADES.len() / (24 * 256)).copied().unwrap_or(b' ');
            }
            info!("|{}|", core::str::from_utf8(&line).unwrap_or(""));
        }
    }

    /// Writes the picture as a PPM file on the host, where the emulator or debugger allows it.
    pub fn save(&self, name: &CStr) {
        if !crate::platform::save(name, [PPM_HEADER, self.0]) {
            info!("(the host takes no files)");
        }
    }
}

/// Token ids as an 8×8 grid in the log.
pub fn show_ids(ids: &[u16; TOKENS]) {
    for row in ids.chunks_exact(8) {
        info!("{:?}", row);
    }
}
