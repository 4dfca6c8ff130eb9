//! TensorBoard event files, rendered from the log.
//!
//! A file is a sequence of records: length (u64), its masked CRC-32C, the record, its masked CRC-32C, all
//! little-endian. A record is a protobuf `Event`: wall_time = 1 (double), step = 2 (int64), file_version = 3
//! (string) or summary = 5, whose values = 1 have tag = 1 (string) and simple_value = 2 (float).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use sorcen_export::atomic;

use super::LogLine;
use crate::data::DataError;

/// Part of the name that TensorBoard looks for.
const TFEVENTS: &str = "tfevents";

/// The event file of a run, open for more.
#[derive(Debug)]
pub struct Events {
    file: File,
}

impl Events {
    /// Starts an event file in the folder `dir` with the lines that the log has so far, in place of those of
    /// earlier sessions of the run.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub fn create(dir: &Path, lines: &[LogLine], started_s: f64) -> Result<Self, DataError> {
        fs::create_dir_all(dir).map_err(DataError::io(dir))?;
        let mut bytes = record(&event(started_s, 0, &field(3, b"brain.Event:2")));
        lines.iter().for_each(|line| bytes.extend(record(&scalars(line))));
        for entry in fs::read_dir(dir).map_err(DataError::io(dir))? {
            let path = entry.map_err(DataError::io(dir))?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().contains(TFEVENTS)) {
                fs::remove_file(&path).map_err(DataError::io(&path))?;
            }
        }
        let path = dir.join(format!("events.out.{TFEVENTS}.{}.sorcen", started_s as u64));
        atomic::write_bytes(&path, &bytes)?;
        let file = OpenOptions::new().append(true).open(&path).map_err(DataError::io(&path))?;
        Ok(Self { file })
    }

    /// Appends the numbers of a log line.
    ///
    /// # Errors
    /// Whatever the file system reports.
    pub fn write(&mut self, line: &LogLine) -> io::Result<()> {
        self.file.write_all(&record(&scalars(line)))
    }
}

/// A line as an event: one scalar for each number that is not the step or the time itself.
fn scalars(line: &LogLine) -> Vec<u8> {
    let mut summary = Vec::new();
    if let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(line) {
        for (tag, value) in fields.iter().filter(|(tag, _)| !matches!(tag.as_str(), "step" | "time_s")) {
            if let Some(value) = value.as_f64() {
                let mut scalar = field(1, tag.as_bytes());
                scalar.push(2 << 3 | 5); // simple_value, 32 bits
                scalar.extend((value as f32).to_le_bytes());
                summary.extend(field(1, &scalar));
            }
        }
    }
    event(line.time_s, line.step, &field(5, &summary))
}

fn event(time_s: f64, step: u64, content: &[u8]) -> Vec<u8> {
    let mut event = vec![1 << 3 | 1]; // wall_time, 64 bits
    event.extend(time_s.to_le_bytes());
    if step > 0 {
        event.push(2 << 3); // step, varint
        varint(&mut event, step);
    }
    event.extend(content);
    event
}

/// Length-delimited field `number`.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    varint(&mut field, content.len() as u64);
    field.extend(content);
    field
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    [&length, &masked_crc(&length).to_le_bytes()[..], event, &masked_crc(event).to_le_bytes()].concat()
}

fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli).
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    };
    !bytes.iter().fold(!0, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_and_bytes_are_those_of_the_format() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        // What TensorFlow writes at the start of every file, but for the time.
        let bytes = record(&event(0.0, 0, &field(3, b"brain.Event:2")));
        assert_eq!(bytes.len(), 8 + 4 + 24 + 4);
        assert_eq!(bytes[..12], *b"\x18\0\0\0\0\0\0\0\xa3\x7fK\"");
        assert_eq!(bytes[12..36], *b"\x09\0\0\0\0\0\0\0\0\x1a\x0dbrain.Event:2");
        let mut number = Vec::new();
        varint(&mut number, 300);
        assert_eq!(number, [0xac, 2]);
    }

    #[test]
    fn a_session_takes_the_place_of_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let line = LogLine { step: 7, train_loss: 2.5, time_s: 9.0, ..LogLine::default() };
        Events::create(dir.path(), &[], 1.0).unwrap().write(&line).unwrap();
        let first = fs::read(dir.path().join("events.out.tfevents.1.sorcen")).unwrap();
        drop(Events::create(dir.path(), &[line], 2.0).unwrap());
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["events.out.tfevents.2.sorcen"]);
        let second = fs::read(dir.path().join("events.out.tfevents.2.sorcen")).unwrap();
        assert_eq!(first[40..], second[40..], "the same scalars, from the log");
        let text = String::from_utf8_lossy(&first);
        assert!(text.contains("train_loss") && !text.contains("time_s") && !text.contains("knn"));
    }
}
