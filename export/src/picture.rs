//! Pictures for people: images as tokens show them, laid out on a sheet, written as PNG.

use std::path::Path;

use sorcen_runtime::tokenizer::PatchCodebook;

use crate::{atomic, error::Error, pixels, tokenizer::Painter};

/// Grey that stands for an unknown patch.
const UNKNOWN: u8 = 200;

/// An RGB picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Pixels a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width, 3]`
    pub rgb: Vec<u8>,
}

impl Picture {
    /// A picture of one colour.
    pub fn filled(width: usize, height: usize, colour: [u8; 3]) -> Self {
        Self { width, height, rgb: colour.repeat(width * height) }
    }

    /// The colour of a pixel.
    ///
    /// # Panics
    /// Where there is none.
    pub fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        std::array::from_fn(|channel| self.rgb[(y * self.width + x) * 3 + channel])
    }
}

/// How pictures are laid out.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// Pictures a row.
    pub columns: usize,
    /// Each pixel becomes a square of this side.
    pub scale: usize,
    /// Pixels between pictures and around them.
    pub gap: usize,
    /// Colour of the gaps.
    pub background: [u8; 3],
}

impl Default for Grid {
    /// Eight a row, twice their size, 4 pixels of light grey between.
    fn default() -> Self {
        Self { columns: 8, scale: 2, gap: 4, background: [225; 3] }
    }
}

impl Grid {
    /// Lays out pictures `[side, side, 3]` row by row; places without a picture, or with an empty one,
    /// stay background.
    ///
    /// # Panics
    /// Where a picture is neither empty nor `side * side * 3` bytes long.
    pub fn draw(&self, pictures: &[Vec<u8>], side: usize) -> Picture {
        let columns = self.columns.max(1);
        let (cell, scale) = (side * self.scale.max(1), self.scale.max(1));
        let rows = pictures.len().div_ceil(columns);
        let extent = |n: usize| n * (cell + self.gap) + self.gap;
        let mut sheet = Picture::filled(extent(columns), extent(rows), self.background);
        for (number, picture) in pictures.iter().enumerate().filter(|(_, picture)| !picture.is_empty()) {
            assert_eq!(picture.len(), side * side * 3, "picture {number}");
            let (left, top) = (extent(number % columns), extent(number / columns));
            for (y, x) in (0..cell).flat_map(|y| (0..cell).map(move |x| (y, x))) {
                let from = (y / scale * side + x / scale) * 3;
                let to = ((top + y) * sheet.width + left + x) * 3;
                sheet.rgb[to..to + 3].copy_from_slice(&picture[from..from + 3]);
            }
        }
        sheet
    }
}

/// Orders pictures so that a grid of `columns` shows `rows` below each other, to be compared: so many of
/// each, then the next. What the last of them lack is filled up with empty pictures.
///
/// # Panics
/// Where the rows differ in length.
pub fn interleaved(rows: &[&[Vec<u8>]], columns: usize) -> Vec<Vec<u8>> {
    let (len, columns) = (rows.first().map_or(0, |row| row.len()), columns.max(1));
    assert!(rows.iter().all(|row| row.len() == len), "rows of one length");
    let mut all = Vec::new();
    for start in (0..len).step_by(columns) {
        for row in rows {
            all.extend_from_slice(&row[start..(start + columns).min(len)]);
            all.resize(all.len().next_multiple_of(columns), Vec::new());
        }
    }
    all
}

/// Pixels `[grid * P, grid * P, 3]` of an image's tokens `[grid, grid]`; unknown ones (`unknown`, the mask
/// id) are grey.
///
/// # Errors
/// As [`PatchCodebook::decode`].
pub fn from_tokens(
    codebook: &PatchCodebook<'_>,
    ids: &[u16],
    grid: usize,
    unknown: usize,
) -> Result<Vec<u8>, sorcen_runtime::Error> {
    painted(&Painter::Patches(*codebook), ids, grid, unknown)
}

/// [`from_tokens`] by any tokenizer. A network's known tokens are painted as if the first code stood at the unknown
/// ones.
///
/// # Errors
/// As [`Painter::decode`].
pub fn painted(
    painter: &Painter<'_>,
    ids: &[u16],
    grid: usize,
    unknown: usize,
) -> Result<Vec<u8>, sorcen_runtime::Error> {
    let mut rgb = painter.decode(&known(ids, unknown), grid)?;
    fill_unknown(&mut rgb, ids, grid, unknown);
    Ok(rgb)
}

/// The ids with code 0 in the place of unknown ones: what a tokenizer can decode.
pub fn known(ids: &[u16], unknown: usize) -> Vec<u16> {
    ids.iter().map(|&id| if usize::from(id) == unknown { 0 } else { id }).collect()
}

/// Paints unknown tokens of a decoded image `rgb` `[grid * P, grid * P, 3]` grey.
pub fn fill_unknown(rgb: &mut [u8], ids: &[u16], grid: usize, unknown: usize) {
    let side = (rgb.len() / 3).isqrt();
    let patch = side / grid;
    for (index, _) in ids.iter().enumerate().filter(|(_, &id)| usize::from(id) == unknown) {
        let (top, left) = (index / grid * patch, index % grid * patch);
        for row in top..top + patch {
            rgb[(row * side + left) * 3..][..patch * 3].fill(UNKNOWN);
        }
    }
}

/// Writes a PNG file, whole or not at all.
///
/// # Errors
/// [`Error::Io`], naming the file.
pub fn save_png(picture: &Picture, path: &Path) -> Result<(), Error> {
    let bytes = png(picture).map_err(|error| Error::io(path, "write")(error))?;
    atomic::write_bytes(path, &bytes)
}

/// A PNG file in memory.
///
/// # Errors
/// A picture without pixels, or of more than PNG can say.
pub fn png(picture: &Picture) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    encode(picture, &mut bytes).map_err(std::io::Error::other)?;
    Ok(bytes)
}

fn encode(picture: &Picture, bytes: &mut Vec<u8>) -> Result<(), png::EncodingError> {
    let mut encoder = png::Encoder::new(bytes, picture.width as u32, picture.height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header()?.write_image_data(&picture.rgb)
}

/// Reads a picture from a file, as [`pixels::read`] does.
///
/// # Errors
/// [`Error::Io`] where it cannot be read, [`Error::Value`] where it is no picture.
pub fn read(path: &Path) -> Result<Picture, Error> {
    let picture = pixels::read(path)?;
    Ok(Picture { width: picture.width() as usize, height: picture.height() as usize, rgb: picture.into_raw() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_land_where_they_belong() {
        let pictures: Vec<Vec<u8>> = (0..3).map(|n| [n * 50; 12].to_vec()).collect();
        let grid = Grid { columns: 2, scale: 3, gap: 1, background: [255; 3] };
        let sheet = grid.draw(&pictures, 2);
        assert_eq!((sheet.width, sheet.height), (15, 15));
        let at = |x, y| sheet.pixel(x, y)[0];
        assert_eq!([at(0, 0), at(1, 1), at(6, 6), at(7, 3), at(8, 1), at(13, 6)], [255, 0, 0, 255, 50, 50]);
        assert_eq!([at(1, 8), at(6, 13), at(9, 9)], [100, 100, 255], "the last place is empty");
    }

    #[test]
    fn rows_alternate() {
        let (a, b) = ([vec![0], vec![1], vec![2]], [vec![10], vec![11], vec![12]]);
        let none = vec![];
        let expected = [&a[0], &a[1], &b[0], &b[1], &a[2], &none, &b[2], &none];
        assert!(interleaved(&[&a, &b], 2).iter().eq(expected));
        assert!(interleaved(&[], 2).is_empty());
    }

    #[test]
    fn png_round_trip() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("made/sheet.png");
        let sheet = Grid::default().draw(&[(0..48).collect()], 4);
        save_png(&sheet, &path).unwrap();
        assert_eq!(read(&path).unwrap(), sheet);
        std::fs::write(&path, "no picture").unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("sheet.png") && error.contains("a PNG, JPEG, WebP or GIF image"), "{error}");
    }

    #[test]
    fn unknown_patches_are_grey() {
        let bytes: Vec<u8> = (0..3u8).flat_map(|code| [code; 12]).collect();
        let codebook = PatchCodebook::new(&bytes, 3, 2).unwrap();
        let rgb = from_tokens(&codebook, &[0, 9, 2, 1], 2, 9).unwrap();
        let corner = |x: usize, y: usize| rgb[(y * 4 + x) * 3];
        assert_eq!([corner(0, 0), corner(2, 0), corner(3, 1), corner(0, 2), corner(2, 3)], [0, UNKNOWN, UNKNOWN, 2, 1]);
        assert!(from_tokens(&codebook, &[0, 3, 2, 1], 2, 9).is_err());
    }
}
