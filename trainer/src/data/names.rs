//! Names: which files are pictures by theirs, and which texts name a class.

use std::collections::HashSet;
use std::path::Path;

use super::DataError;

/// Extensions of pictures that are read.
const READ: [&str; 8] = ["png", "apng", "jpg", "jpeg", "jpe", "jfif", "webp", "gif"];
/// Extensions of other pictures: such a file is a fault, not passed over.
const OTHERS: [&str; 16] = [
    "bmp", "tif", "tiff", "heic", "heif", "avif", "jp2", "jxl", "ppm", "pgm", "pbm", "pnm", "tga", "ico", "exr", "hdr",
];

/// Whether an extension (no dot, any case) is that of pictures that are read.
pub(super) fn is_read(extension: &str) -> bool {
    READ.iter().any(|picture| extension.eq_ignore_ascii_case(picture))
}

/// Whether an extension (no dot, any case) is a picture's, of any kind.
pub(super) fn is_picture(extension: &str) -> bool {
    is_read(extension) || OTHERS.iter().any(|picture| extension.eq_ignore_ascii_case(picture))
}

/// The bytes of a name as text; those that are no UTF-8 as `\xE9`, so that two names stay two.
pub(super) fn shown(name: &[u8]) -> String {
    match std::str::from_utf8(name) {
        Ok(text) => text.to_string(),
        Err(_) => name.escape_ascii().to_string(),
    }
}

/// The name of a class, from the text that gives it: a byte order mark and white space around it are no part of it.
///
/// # Errors
/// What was found, where it is no UTF-8, nothing, `.` or `..`, or of several lines.
pub fn class_name(text: &[u8]) -> Result<String, String> {
    let name = std::str::from_utf8(text).map_err(|_| format!("{} (no UTF-8)", text.escape_ascii()))?;
    let name = name.trim_start_matches('\u{FEFF}').trim();
    match name {
        "" => Err("an empty one".into()),
        "." | ".." => Err(format!("`{name}`")),
        _ if name.contains(char::is_control) => Err(format!("{name:?}")),
        _ => Ok(name.to_string()),
    }
}

/// The class that a folder's name gives: the name as it is, if it can be one.
pub(super) fn folder_class(name: &[u8]) -> Result<String, String> {
    class_name(name).map(|_| String::from_utf8_lossy(name).into_owned())
}

/// What a [`class_name`] should be, for errors.
pub const CLASS_NAME: &str = "the name of a class";

/// Names of classes from a text file, one a line; empty lines at the end are nothing.
///
/// # Errors
/// [`DataError`] where the file cannot be read, a line names no class, or a name is there twice.
pub fn read_class_names(path: &Path) -> Result<Vec<String>, DataError> {
    let bytes = std::fs::read(path).map_err(DataError::io(path))?;
    let (mut names, mut seen) = (Vec::new(), HashSet::new());
    for (number, line) in bytes.trim_ascii_end().split(|&byte| byte == b'\n').enumerate() {
        let item = format!("line {}", number + 1);
        let name = class_name(line).map_err(|found| DataError::invalid(path, &item, CLASS_NAME, found))?;
        if !seen.insert(name.clone()) {
            return Err(DataError::invalid(path, item, "a name that no line before has", format_args!("{name:?}")));
        }
        names.push(name);
    }
    Ok(names)
}

/// The first five of several names, and how many more there are.
pub(super) fn some_of(names: &[String]) -> String {
    match names.len() {
        0..=5 => names.join(", "),
        n => format!("{} and {} more", names[..5].join(", "), n - 5),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_name_a_class() {
        for (text, name) in [(&b"\xEF\xBB\xBF3"[..], "3"), (b" cat\r\n", "cat"), ("café".as_bytes(), "café")] {
            assert_eq!(class_name(text).unwrap(), name);
        }
        for text in [&b""[..], b" \n", b".", b"..", b"caf\xe9", b"\xff\xfe0\0", b"a\nb", b"\xEF\xBB\xBF"] {
            assert!(class_name(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn files_of_class_names() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("names.txt");
        let read = |text: &[u8]| {
            std::fs::write(&path, text).unwrap();
            read_class_names(&path).map_err(|error| error.to_string())
        };
        assert_eq!(read(b"\xEF\xBB\xBFcat\r\ndog\r\n\r\n").unwrap(), ["cat", "dog"]);
        for (text, expected) in [
            (&b"cat\n\ndog\n"[..], "names.txt: line 2: expected the name of a class, found an empty one"),
            (b"cat\ndog\ncat", "line 3: expected a name that no line before has, found \"cat\""),
            (b"caf\xe9\n", "line 1: expected the name of a class, found caf\\xe9 (no UTF-8)"),
            (b"", "line 1"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
