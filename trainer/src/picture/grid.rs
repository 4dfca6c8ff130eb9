//! Many small pictures as one PNG.

use std::io::Cursor;
use std::path::Path;

use image::{ImageFormat, RgbImage};

use crate::data::DataError;
use crate::files::write_atomically;

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
    pub fn draw(&self, pictures: &[Vec<u8>], side: usize) -> RgbImage {
        let columns = self.columns.max(1);
        let (cell, scale) = (side * self.scale.max(1), self.scale.max(1));
        let rows = pictures.len().div_ceil(columns);
        let extent = |n: usize| (n * (cell + self.gap) + self.gap) as u32;
        let mut sheet = RgbImage::from_pixel(extent(columns), extent(rows), image::Rgb(self.background));
        for (number, picture) in pictures.iter().enumerate().filter(|(_, picture)| !picture.is_empty()) {
            assert_eq!(picture.len(), side * side * 3, "picture {number}");
            let (left, top) = (extent(number % columns), extent(number / columns));
            for (y, x) in (0..cell).flat_map(|y| (0..cell).map(move |x| (y, x))) {
                let at = (y / scale * side + x / scale) * 3;
                let pixel = image::Rgb([picture[at], picture[at + 1], picture[at + 2]]);
                sheet.put_pixel(left + x as u32, top + y as u32, pixel);
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

/// Writes a PNG file, whole or not at all.
///
/// # Errors
/// [`DataError`] where the file cannot be written.
pub fn save_png(picture: &RgbImage, path: &Path) -> Result<(), DataError> {
    let mut bytes = Vec::new();
    picture
        .write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png)
        .map_err(|error| DataError::invalid(path, "picture", "something to write as PNG", error))?;
    write_atomically(path, &bytes).map_err(DataError::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_land_where_they_belong() {
        let pictures: Vec<Vec<u8>> = (0..3).map(|n| [n * 50; 12].to_vec()).collect();
        let grid = Grid { columns: 2, scale: 3, gap: 1, background: [255; 3] };
        let sheet = grid.draw(&pictures, 2);
        assert_eq!(sheet.dimensions(), (15, 15));
        let at = |x, y| sheet.get_pixel(x, y).0[0];
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
        assert_eq!(image::open(&path).unwrap().to_rgb8(), sheet);
    }
}
