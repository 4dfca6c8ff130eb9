//! Text in pictures: letters of 8×8 pixels, since those of the system may be missing.

use font8x8::UnicodeFonts;

/// Side of a letter in pixels.
pub const LETTER: u32 = 8;
/// Colour of text.
pub const INK: [u8; 3] = [60; 3];

/// Calls `set(x, y)` for each pixel of ASCII `text` with its upper left corner at (x, y).
pub fn pixels(text: &str, x: u32, y: u32, mut set: impl FnMut(u32, u32)) {
    for (number, letter) in text.chars().enumerate() {
        let rows = font8x8::BASIC_FONTS.get(letter).unwrap_or_default();
        for (down, row) in rows.into_iter().enumerate() {
            for across in (0..LETTER).filter(|across| row >> across & 1 == 1) {
                set(x + number as u32 * LETTER + across, y + down as u32);
            }
        }
    }
}
