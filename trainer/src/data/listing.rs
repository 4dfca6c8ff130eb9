//! What is known of the images of a source, and what lies beside them.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use super::{DataError, Table};

/// What is known of the images of one source.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub header: Vec<String>,
    pub rows: Vec<Row>,
    /// Classes that are there though no image is of them: empty subfolders.
    pub classes: Vec<String>,
}

/// One image: its class (none: [`UNLABELLED`](super::UNLABELLED)) and the values of the columns.
#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    pub class: Option<String>,
    pub fields: Vec<String>,
    /// Why it cannot be taken, whatever its pixels are.
    pub fault: Option<Fault>,
}

/// What is wrong with one image of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    file: PathBuf,
    item: String,
    expected: String,
    found: String,
}

impl Fault {
    pub fn new(file: &Path, item: impl Display, expected: impl Display, found: impl Display) -> Self {
        Self {
            file: file.to_path_buf(),
            item: item.to_string(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    pub fn error(&self) -> DataError {
        DataError::invalid(&self.file, &self.item, &self.expected, &self.found)
    }
}

/// Why something that lies among the images is not taken, without being a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Why {
    NoPicture,
    Hidden,
    Special,
    LinkedFolder,
    /// A file `KEY.FIELD` of a shard where FIELD has a dot and ends like a picture.
    OtherField,
    SecondPicture,
    NoPictureInSample,
    NotListed,
    /// Folders of one name in a shard.
    OneClass,
    EmptySource,
    EmptyClass,
    /// These are taken; where they lie is worth a word.
    Below,
}

impl Why {
    fn text(self) -> &'static str {
        match self {
            Self::NoPicture => "not taken, no pictures by their names",
            Self::Hidden => "not taken, hidden (the name starts with a dot)",
            Self::Special => "not taken and not opened, pipes, sockets or devices",
            Self::LinkedFolder => "not taken, links to folders below a class's",
            Self::OtherField => {
                "not taken, other fields of a sample: its key ends at the first dot of the name, as in webdataset, and \
                 the field is the rest"
            }
            Self::SecondPicture => "not taken, further pictures of a sample that has one",
            Self::NoPictureInSample => "not taken, samples without a picture",
            Self::OneClass => "folders that end alike and are one class, as a shard's class is the last folder",
            Self::NotListed => "not taken, pictures that --labels does not name",
            Self::EmptySource => "without a picture",
            Self::EmptyClass => "classes without a picture",
            Self::Below => "pictures in folders below their class's, taken as of that class",
        }
    }
}

/// What lies beside the images, counted, and the first of each kind named.
#[derive(Debug, Default)]
pub(super) struct Beside(BTreeMap<Why, (usize, Vec<String>)>);

impl Beside {
    const NAMED: usize = 3;

    pub fn add(&mut self, why: Why, name: impl Display) {
        let (count, names) = self.0.entry(why).or_default();
        *count += 1;
        if names.len() < Self::NAMED {
            names.push(name.to_string());
        }
    }

    /// A sentence for each kind.
    pub fn notes(&self) -> Vec<String> {
        let note = |(why, (count, names)): (&Why, &(usize, Vec<String>))| {
            let more = count - names.len();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("{} ({count}): {}{more}", why.text(), names.join(", "))
        };
        self.0.iter().map(note).collect()
    }
}

/// The place of a column.
pub(super) fn column(place: &Path, header: &[String], name: &str) -> Result<usize, DataError> {
    let missing = || DataError::invalid(place, "columns", format_args!("one named {name}"), format_args!("{header:?}"));
    header.iter().position(|field| field == name).ok_or_else(missing)
}

/// Conditions as places of columns and values.
pub(super) fn conditions(
    place: &Path,
    header: &[String],
    pairs: &[(String, String)],
) -> Result<Vec<(usize, String)>, DataError> {
    pairs.iter().map(|(name, value)| Ok((column(place, header, name)?, value.clone()))).collect()
}

/// The columns `columns` (all, where empty) of a header.
pub(super) fn chosen(header: &[String], columns: &[String]) -> Result<Vec<usize>, DataError> {
    match columns {
        [] => Ok((0..header.len()).collect()),
        names => names.iter().map(|name| column(Path::new("--columns"), header, name)).collect(),
    }
}

/// A table whose columns have names of their own.
pub(super) fn unambiguous(path: &Path, table: Table) -> Result<Table, DataError> {
    let header = table.header();
    match (1..header.len()).find(|&at| header[..at].contains(&header[at])) {
        None => Ok(table),
        Some(at) => {
            let found = format!("`{}` twice", header[at]);
            Err(DataError::invalid(path, "columns", "names that are all different", found))
        }
    }
}
