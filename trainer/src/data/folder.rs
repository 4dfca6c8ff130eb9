//! A folder of pictures: one subfolder per class, or pictures that a table names.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use sorcen_export::pixels::is_picture;

use super::idx::up_to;
use super::listing::{column, Beside, Fault, Listing, Row, Why};
use super::names::{folder_class, shown, CLASS_NAME};
use super::{names, DataError};

/// Names of folders that hold the parts of a set, not a class.
const SPLITS: [&str; 9] = ["train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"];

/// A folder with one subfolder per class; pictures beside those have none. Below a class's folder all are of that
/// class.
pub(super) fn list(folder: &Path, beside: &mut Beside) -> Result<(Vec<PathBuf>, Listing), DataError> {
    let mut walk = Walk { root: folder, files: Vec::new(), rows: Vec::new(), nested: false, beside };
    let (mut classes, mut empty) = (Vec::new(), Vec::new());
    let top = entries(folder).map_err(DataError::io(folder))?;
    if let Some(list) = top.iter().find(|entry| entry.file_name() == Some(OsStr::new("val_annotations.txt"))) {
        let expected = "a folder per class, or --labels list.csv with the columns file and class";
        let found =
            "Tiny-ImageNet's val_annotations.txt, which holds the classes. It becomes such a list by: awk -F'\\t' \
                     'BEGIN{print \"file,class\"} {print \"images/\"$1\",\"$2}' val_annotations.txt";
        return Err(DataError::invalid(list, "layout", expected, found));
    }
    for entry in top {
        if !walk.is_seen(&entry) {
            continue;
        }
        if !entry.is_dir() {
            walk.offer(entry, None);
            continue;
        }
        let name = entry.file_name().unwrap_or_default().to_os_string();
        let class = folder_class(name.as_encoded_bytes());
        let before = walk.rows.len();
        walk.below(&entry, &class, 0);
        if let Ok(class) = class {
            if walk.rows.len() == before {
                walk.note(Why::EmptyClass, &entry);
                empty.push(class.clone());
            }
            classes.push(class);
        }
    }
    let (files, rows, nested) = (walk.files, walk.rows, walk.nested);
    let is_split = |class: &String| SPLITS.iter().any(|split| class.eq_ignore_ascii_case(split));
    if nested && !classes.is_empty() && classes.iter().all(is_split) {
        let (expected, example) = ("one folder per class", folder.join(&classes[0]));
        let found =
            format!("{}, each with folders below: give one, as in --images {}", classes.join(", "), example.display());
        return Err(DataError::invalid(folder, "layout", expected, found));
    }
    Ok((files, Listing { header: vec!["file".into()], rows, classes: empty }))
}

/// The pictures that a table names in its column `file`; others in the folder are counted.
pub(super) fn list_named(
    folder: &Path,
    table: &Path,
    listing: &Listing,
    beside: &mut Beside,
) -> Result<Vec<PathBuf>, DataError> {
    let file = column(table, &listing.header, "file")?;
    let files: Vec<PathBuf> = listing.rows.iter().map(|row| folder.join(&row.fields[file])).collect();
    let named: HashSet<&PathBuf> = files.iter().collect();
    let mut walk =
        Walk { root: folder, files: Vec::new(), rows: Vec::new(), nested: false, beside: &mut Beside::default() };
    walk.below(folder, &Ok(String::new()), 0);
    for path in walk.files.iter().filter(|path| !named.contains(path)) {
        beside.add(Why::NotListed, path.display());
    }
    Ok(files)
}

/// Goes through a folder.
struct Walk<'a> {
    root: &'a Path,
    files: Vec<PathBuf>,
    rows: Vec<Row>,
    /// Whether a picture lay in a folder below its class's.
    nested: bool,
    beside: &'a mut Beside,
}

impl Walk<'_> {
    /// The pictures of a class, in its folder and those below.
    fn below(&mut self, folder: &Path, class: &Result<String, String>, depth: usize) {
        let entries = match entries(folder) {
            Ok(entries) => entries,
            Err(error) => return self.push(folder.to_path_buf(), class, Some(("a folder that can be read", &error))),
        };
        for entry in entries {
            if !self.is_seen(&entry) {
                continue;
            }
            if !entry.is_dir() {
                if self.offer(entry.clone(), Some(class)) && depth > 0 {
                    self.nested = true;
                    self.note(Why::Below, &entry);
                }
            } else if entry.is_symlink() {
                self.note(Why::LinkedFolder, &entry); // it may lead back to where we came from
            } else {
                self.below(&entry, class, depth + 1);
            }
        }
    }

    /// Whether an entry is to be looked at: a file or a folder, not hidden.
    fn is_seen(&mut self, entry: &Path) -> bool {
        let hidden = entry.file_name().unwrap_or_default().as_encoded_bytes().starts_with(b".");
        // What a link leads to; nothing, where that is gone: a fault of the picture.
        let special = entry.metadata().is_ok_and(|about| !about.is_file() && !about.is_dir());
        if hidden {
            self.note(Why::Hidden, entry);
        } else if special {
            self.note(Why::Special, entry);
        }
        !hidden && !special
    }

    /// Takes a file that is a picture by its name or its first bytes; whether it did.
    fn offer(&mut self, path: PathBuf, class: Option<&Result<String, String>>) -> bool {
        let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        let begins_so = || {
            let start = std::fs::File::open(&path).and_then(|mut file| up_to(&mut file, 16));
            start.is_ok_and(|start| is_picture(&start))
        };
        let taken = names::is_picture(&extension) || begins_so();
        match (taken, class) {
            (false, _) => self.note(Why::NoPicture, &path),
            (true, Some(class)) => self.push(path, class, None),
            (true, None) => {
                let row = Row { fields: vec![self.name(&path)], ..Row::default() };
                self.rows.push(row);
                self.files.push(path);
            }
        }
        taken
    }

    fn push(&mut self, path: PathBuf, class: &Result<String, String>, trouble: Option<(&str, &std::io::Error)>) {
        let fault = match (trouble, class) {
            (Some((expected, found)), _) => Some(Fault::new(&path, "contents", expected, found)),
            (None, Err(found)) => Some(Fault::new(&path, "folder", CLASS_NAME, found)),
            (None, Ok(_)) => None,
        };
        self.rows.push(Row { class: class.clone().ok(), fields: vec![self.name(&path)], fault });
        self.files.push(path);
    }

    fn note(&mut self, why: Why, entry: &Path) {
        let name = self.name(entry);
        self.beside.add(why, format_args!("{}/{name}", self.root.display()));
    }

    /// Where an entry is below the folder, as text.
    fn name(&self, entry: &Path) -> String {
        let below = entry.strip_prefix(self.root).unwrap_or(entry);
        let parts: Vec<String> = below.iter().map(|part| shown(part.as_encoded_bytes())).collect();
        parts.join("/")
    }
}

fn entries(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = folder.read_dir()?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}
