//! Small tables of text: `labels.csv` beside images, `items.csv` in a dataset.

use std::path::Path;

use super::idx::{open_unpacked, up_to};
use super::DataError;

/// Bytes of a table that are read.
const MOST: usize = (1 << 31) - 1;

/// A CSV file with a header line, in memory.
#[derive(Clone, Debug, Default)]
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Reads a CSV file (comma, double quotes; also gzipped) whose rows all have as many fields as the header.
    ///
    /// # Errors
    /// [`DataError::Invalid`] names the row.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        let bytes = open_unpacked(path).and_then(|mut file| up_to(&mut file, MOST)).map_err(DataError::io(path))?;
        if bytes.len() == MOST {
            return Err(DataError::invalid(path, "table", "less than 2 GiB of text", "more"));
        }
        let mut reader = csv::Reader::from_reader(bytes.as_slice());
        let fields = |record: Result<csv::StringRecord, csv::Error>| match record {
            Ok(record) => Ok(record.iter().map(str::to_string).collect::<Vec<_>>()),
            Err(error) => Err(DataError::invalid(path, "table", "rows as wide as the header", error)),
        };
        let header = fields(reader.headers().cloned())?;
        let rows = reader.records().map(fields).collect::<Result<_, _>>()?;
        Ok(Self { header, rows })
    }

    /// Number of rows, the header left out.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The names of the columns.
    pub fn header(&self) -> &[String] {
        &self.header
    }

    /// The values of a column, or `None` where there is none of that name.
    pub fn column(&self, name: &str) -> Option<Vec<String>> {
        let at = self.header.iter().position(|field| field == name)?;
        Some(self.rows.iter().map(|row| row[at].clone()).collect())
    }

    /// Row `index`, in the order of the header.
    ///
    /// # Panics
    /// Where `index >= len()`.
    pub fn row(&self, index: usize) -> &[String] {
        &self.rows[index]
    }

    /// Rows (the header first) as CSV text.
    pub fn csv<'a>(rows: impl Iterator<Item = Vec<&'a str>>) -> String {
        let quoted = |field: &str| match field.contains(['"', ',', '\n', '\r']) {
            true => format!("\"{}\"", field.replace('"', "\"\"")),
            false => field.to_string(),
        };
        rows.map(|row| row.into_iter().map(quoted).collect::<Vec<_>>().join(",") + "\n").collect()
    }
}
