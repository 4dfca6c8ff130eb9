//! Which tokens of an image are given, and which the model has to invent.

use std::str::FromStr;

use sorcen_runtime::rng::Rng;

use crate::error::Error;

/// A rectangle of tokens. On the command line `ROW,COLUMN,ROWS,COLUMNS`, counted from the top left corner.
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
    pub fn middle(grid: usize) -> Self {
        let side = grid.div_ceil(2);
        let first = (grid - side) / 2;
        Self { row: first, column: first, rows: side, columns: side }
    }

    /// Checks that the rectangle has tokens, and only of this grid.
    ///
    /// # Errors
    /// [`Error::Value`] says what the grid is.
    pub fn check(&self, grid: usize) -> Result<(), Error> {
        let fits = |first: usize, count: usize| count > 0 && first.saturating_add(count) <= grid;
        if fits(self.row, self.rows) && fits(self.column, self.columns) {
            return Ok(());
        }
        Err(Error::value("region", format!("a rectangle inside the grid of {grid}x{grid} tokens"), self))
    }

    /// Whether token `t`, row-major in the grid, is inside.
    pub fn contains(&self, t: usize, grid: usize) -> bool {
        let (row, column) = (t / grid, t % grid);
        (self.row..self.row + self.rows).contains(&row) && (self.column..self.column + self.columns).contains(&column)
    }
}

impl std::fmt::Display for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{},{},{},{}", self.row, self.column, self.rows, self.columns)
    }
}

impl FromStr for Region {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Result<Vec<usize>, _> = text.split(',').map(|number| number.trim().parse()).collect();
        match numbers.as_deref() {
            Ok(&[row, column, rows, columns]) => Ok(Self { row, column, rows, columns }),
            _ => Err("expected ROW,COLUMN,ROWS,COLUMNS, four whole numbers".into()),
        }
    }
}

/// `count` of `tokens` places, drawn by the random numbers alone: true where given.
pub fn at_random(tokens: usize, count: usize, rng: Rng) -> Vec<bool> {
    let mut order: Vec<usize> = (0..tokens).collect();
    order.sort_by_key(|&t| (rng.bits(t as u64), t));
    let mut given = vec![false; tokens];
    order[..count.min(tokens)].iter().for_each(|&t| given[t] = true);
    given
}

/// The map of an image as text: a row of the grid a line, `#` where a token is given, `.` where it is invented.
pub fn map(given: &[bool], grid: usize) -> String {
    let row = |row: &[bool]| row.iter().map(|&given| if given { "# " } else { ". " }).collect::<String>();
    given.chunks(grid.max(1)).map(|tokens| row(tokens).trim_end().to_owned() + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sorcen_runtime::rng::Stream;

    #[test]
    fn regions() {
        let region: Region = "1, 0,2,3".parse().unwrap();
        assert_eq!(region, Region { row: 1, column: 0, rows: 2, columns: 3 });
        assert!(region.check(3).is_ok());
        assert!(region.check(2).unwrap_err().to_string().contains("2x2 tokens, found 1,0,2,3"));
        assert!(Region { rows: 0, ..region }.check(3).is_err());
        assert!(Region { row: usize::MAX, ..region }.check(3).is_err());
        assert!("1,2,3".parse::<Region>().is_err() && "1,2,3,x".parse::<Region>().is_err());
        let given: Vec<bool> = (0..9).map(|t| region.contains(t, 3)).collect();
        assert_eq!(map(&given, 3), ". . .\n# # #\n# # #\n");
        assert_eq!(Region::middle(8), Region { row: 2, column: 2, rows: 4, columns: 4 });
        assert_eq!(Region::middle(1), Region { row: 0, column: 0, rows: 1, columns: 1 });
    }

    #[test]
    fn a_quarter_at_random() {
        let given = at_random(64, 16, Rng::new(1, Stream::Evaluation, 0));
        assert_eq!(given.iter().filter(|&&given| given).count(), 16);
        assert_ne!(given, at_random(64, 16, Rng::new(2, Stream::Evaluation, 0)));
        assert!(at_random(4, 9, Rng::new(1, Stream::Evaluation, 0)).iter().all(|&given| given));
    }
}
