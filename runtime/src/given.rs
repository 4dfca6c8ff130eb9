//! What of an image is given: [`generate`](crate::generate) invents the rest.
//!
//! | task | given |
//! |---|---|
//! | a new image | [`hide`] with `\|_\| false` |
//! | inpaint a mask | `\|position\| !mask[position]` |
//! | inpaint a region | `\|position\| !region.contains(position, grid)` |
//! | outpaint | `\|position\| region.contains(position, grid)` |
//! | reconstruct from some tokens | `\|position\| is_among(position, tokens, count, rng)` |
//!
//! Each then runs [`generate()`](crate::generate::generate), or [`Generation`](crate::generate::Generation) a block at
//! a time. Given tokens are never changed; [`Step::is_given`](crate::generate::Step::is_given) tells them from invented
//! ones.
//!
//! ```
//! use sorcen_runtime::{given::{hide, is_among, Region}, rng::{Rng, Stream}, ModelConfig};
//! const CONFIG: ModelConfig = ModelConfig::micro(8, 512);
//! let mask_id = CONFIG.mask_token_id as u16;
//! let middle = Region { row: 2, column: 2, rows: 4, columns: 4 };
//! let mut ids = [5u16; 64];
//! hide(&mut ids, mask_id, |position| !middle.contains(position, CONFIG.grid)); // inpaint the middle
//! assert_eq!(ids.iter().filter(|id| **id == mask_id).count(), 16);
//!
//! let (mut ids, rng) = ([5u16; 64], Rng::new(7, Stream::Evaluation, 0));
//! hide(&mut ids, mask_id, |position| is_among(position, 64, 16, rng)); // reconstruct from a quarter
//! assert_eq!(ids.iter().filter(|id| **id == mask_id).count(), 48);
//! ```

use crate::rng::Rng;

/// Makes every token of `ids` `[T]` unknown (the mask id) whose position is not given.
pub fn hide(ids: &mut [u16], mask_id: u16, is_given: impl Fn(usize) -> bool) {
    for (position, id) in ids.iter_mut().enumerate() {
        if !is_given(position) {
            *id = mask_id;
        }
    }
}

/// A rectangle of the token grid, from its upper left corner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First row.
    pub row: usize,
    /// First column.
    pub column: usize,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub columns: usize,
}

impl Region {
    /// The middle of a grid: half of its rows and columns, rounded up.
    pub const fn middle(grid: usize) -> Self {
        let side = grid.div_ceil(2);
        let first = (grid - side) / 2;
        Self { row: first, column: first, rows: side, columns: side }
    }

    /// Whether a position, row-major in a grid of side `grid` (at least 1), is inside.
    pub const fn contains(&self, position: usize, grid: usize) -> bool {
        let (row, column) = (position / grid, position % grid);
        row >= self.row && row - self.row < self.rows && column >= self.column && column - self.column < self.columns
    }
}

/// Whether a position is one of `count` that are drawn at random out of `tokens`, by the random numbers alone.
///
/// It ranks the position among all: a loop over `tokens`.
pub fn is_among(position: usize, tokens: usize, count: usize, rng: Rng) -> bool {
    let key = |t: usize| (rng.bits(t as u64), t);
    let own = key(position);
    (0..tokens).filter(|&t| key(t) < own).count() < count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    #[test]
    fn regions_end_at_the_grid() {
        let region = Region { row: 1, column: 2, rows: usize::MAX, columns: 1 };
        let inside = |position| region.contains(position, 3);
        assert_eq!((0..9).filter(|&position| inside(position)).sum::<usize>(), 5 + 8);
        assert!(!Region { rows: 0, ..region }.contains(5, 3));
        assert_eq!(Region::middle(8), Region { row: 2, column: 2, rows: 4, columns: 4 });
        assert_eq!(Region::middle(1), Region { row: 0, column: 0, rows: 1, columns: 1 });
    }

    #[test]
    fn exactly_so_many_at_random() {
        for count in [0, 1, 16, 64, 100] {
            let rng = Rng::new(3, Stream::Evaluation, 1);
            assert_eq!((0..64).filter(|&t| is_among(t, 64, count, rng)).count(), count.min(64));
        }
    }
}
