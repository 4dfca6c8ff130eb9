//! Which tokens of an image are given, on the command line: [`sorcen_runtime::given`] says what they mean.

use sorcen_runtime::given::Region;

use crate::error::Error;

/// A rectangle of tokens as it is written: `ROW,COLUMN,ROWS,COLUMNS`, counted from the top left corner.
///
/// # Errors
/// Says what was expected.
pub fn parse_region(text: &str) -> Result<Region, String> {
    let numbers: Result<Vec<usize>, _> = text.split(',').map(|number| number.trim().parse()).collect();
    match numbers.as_deref() {
        Ok(&[row, column, rows, columns]) => Ok(Region { row, column, rows, columns }),
        _ => Err("expected ROW,COLUMN,ROWS,COLUMNS, four whole numbers".into()),
    }
}

/// Checks that a rectangle has tokens, and only of this grid.
///
/// # Errors
/// [`Error::Value`] says what the grid is.
pub fn check_region(region: &Region, grid: usize) -> Result<(), Error> {
    let Region { row, column, rows, columns } = *region;
    let fits = |first: usize, count: usize| count > 0 && first.saturating_add(count) <= grid;
    if fits(row, rows) && fits(column, columns) {
        return Ok(());
    }
    let found = format!("{row},{column},{rows},{columns}");
    Err(Error::value("--region", format!("a rectangle inside the grid of {grid}x{grid} tokens"), found))
}

/// The map of an image as text: a row of the grid a line, `#` where a token is given, `.` where it is invented.
pub fn map(given: &[bool], grid: usize) -> String {
    let row = |row: &[bool]| row.iter().map(|&given| if given { "# " } else { ". " }).collect::<String>();
    given.chunks(grid.max(1)).map(|tokens| row(tokens).trim_end().to_owned() + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions() {
        let region = parse_region("1, 0,2,3").unwrap();
        assert_eq!(region, Region { row: 1, column: 0, rows: 2, columns: 3 });
        assert!(check_region(&region, 3).is_ok());
        assert!(check_region(&region, 2).unwrap_err().to_string().contains("2x2 tokens, found 1,0,2,3"));
        assert!(check_region(&Region { rows: 0, ..region }, 3).is_err());
        assert!(check_region(&Region { row: usize::MAX, ..region }, 3).is_err());
        assert!(parse_region("1,2,3").is_err() && parse_region("1,2,3,x").is_err());
        let given: Vec<bool> = (0..9).map(|t| region.contains(t, 3)).collect();
        assert_eq!(map(&given, 3), ". . .\n# # #\n# # #\n");
    }
}
