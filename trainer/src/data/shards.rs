//! Tar shards in webdataset's layout: the files `KEY.jpg`, `KEY.cls`, `KEY.json`, … are one sample.

use std::collections::HashMap;
use std::io::{Cursor, Read as _};
use std::ops::Range;
use std::path::Path;

use sorcen_runtime::MappedFile;

use super::DataError;

/// A sample with a picture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Name of the picture in the shard.
    pub name: String,
    /// Where its bytes are in the shard.
    pub range: Range<usize>,
    /// Its class: `KEY.cls`, or the field of `KEY.json` that holds the class, or the folder that it is in.
    pub class: Option<String>,
}

/// Lists the samples of a shard in order; those without a picture are left out, as are files of other kinds.
///
/// # Errors
/// [`DataError`] where the file is no whole tar archive, or a class cannot be read.
pub fn samples(path: &Path, file: &MappedFile, class_field: &str) -> Result<Vec<Sample>, DataError> {
    let broken = |error: std::io::Error| DataError::invalid(path, "contents", "a whole tar archive", error);
    let mut samples: Vec<Sample> = Vec::new();
    let mut by_key: HashMap<String, usize> = HashMap::new();
    let mut archive = tar::Archive::new(Cursor::new(&file[..]));
    for entry in archive.entries_with_seek().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let base = name.rsplit('/').next().unwrap_or_default();
        let Some((_, extension)) = base.split_once('.').filter(|(stem, _)| !stem.is_empty()) else { continue };
        let extension = extension.to_ascii_lowercase();
        let key = name[..name.len() - extension.len() - 1].to_string();
        let at = *by_key.entry(key.clone()).or_insert_with(|| {
            let folder = key.rsplit_once('/').map(|(folders, _)| folders.rsplit('/').next().unwrap_or_default());
            samples.push(Sample { class: folder.map(str::to_string), ..Sample::default() });
            samples.len() - 1
        });
        let start = usize::try_from(entry.raw_file_position()).unwrap_or(usize::MAX);
        let range = start..start.saturating_add(usize::try_from(entry.size()).unwrap_or(usize::MAX));
        if range.end > file.len() {
            return Err(DataError::invalid(path, &name, "a file inside the archive", "one that is cut off"));
        }
        match extension.as_str() {
            "jpg" | "jpeg" | "png" | "webp" | "gif" if samples[at].range.is_empty() => {
                samples[at].range = range;
                samples[at].name = name;
            }
            "cls" => {
                let mut text = String::new();
                entry.read_to_string(&mut text).map_err(broken)?;
                samples[at].class = Some(text.trim().to_string());
            }
            "json" => {
                let json: serde_json::Value = serde_json::from_slice(&file[range])
                    .map_err(|error| DataError::invalid(path, &name, "JSON", error))?;
                match &json[class_field] {
                    serde_json::Value::String(class) => samples[at].class = Some(class.clone()),
                    serde_json::Value::Number(class) => samples[at].class = Some(class.to_string()),
                    _ => {} // this file says other things
                }
            }
            _ => {}
        }
    }
    samples.retain(|sample| !sample.range.is_empty());
    Ok(samples)
}
