//! Sheets whose rows have names.

use sorcen_export::picture::{Grid, Picture};

use super::text::{pixels, INK, LETTER};

/// Draws rows of pictures `[side, side, 3]`, each with its name (ASCII) on the left, in the middle of its height; a row
/// shorter than the grid's columns leaves places empty.
///
/// # Panics
/// As [`Grid::draw`]; where a row is longer than the grid's columns.
pub fn named_rows(layout: &Grid, rows: &[(&str, Vec<Vec<u8>>)], side: usize) -> Picture {
    let mut pictures = Vec::new();
    for (name, row) in rows {
        assert!(row.len() <= layout.columns, "{name}: {} pictures", row.len());
        pictures.extend_from_slice(row);
        pictures.resize(pictures.len().next_multiple_of(layout.columns), Vec::new());
    }
    let sheet = layout.draw(&pictures, side);
    let letters = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let left = letters * LETTER as usize + layout.gap;
    let mut named = Picture::filled(left + sheet.width, sheet.height, layout.background);
    for (y, row) in sheet.rgb.chunks_exact(sheet.width * 3).enumerate() {
        let start = (y * named.width + left) * 3;
        named.rgb[start..start + row.len()].copy_from_slice(row);
    }
    let cell = side * layout.scale.max(1);
    for (number, (name, _)) in rows.iter().enumerate() {
        let top = layout.gap + number * (cell + layout.gap) + cell.saturating_sub(LETTER as usize) / 2;
        pixels(name, layout.gap as u32, top as u32, |x, y| {
            if (y as usize) < named.height {
                let at = (y as usize * named.width + x as usize) * 3;
                named.rgb[at..at + 3].copy_from_slice(&INK);
            }
        });
    }
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_beside_their_rows() {
        let layout = Grid { columns: 2, scale: 2, gap: 4, background: [225; 3] };
        let red = [200, 0, 0].repeat(36);
        let sheet = named_rows(&layout, &[("one", vec![red.clone(); 2]), ("three", vec![red])], 6);
        assert_eq!((sheet.width, sheet.height), (5 * 8 + 4 + 2 * 16 + 4, 2 * 16 + 4));
        let count = |xs: std::ops::Range<usize>, ys: std::ops::Range<usize>, colour: [u8; 3]| {
            ys.flat_map(|y| xs.clone().map(move |x| (x, y))).filter(|&(x, y)| sheet.pixel(x, y) == colour).count()
        };
        let (left, right) = (0..44, 44..sheet.width);
        assert!(count(left.clone(), 0..18, INK) > 20 && count(left.clone(), 18..36, INK) > 20, "both names");
        assert_eq!((count(left, 0..36, [200, 0, 0]), count(right.clone(), 0..36, INK)), (0, 0));
        assert_eq!(count(right, 0..36, [200, 0, 0]), 3 * 144, "the pictures, and an empty place");
    }
}
