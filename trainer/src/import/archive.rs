//! The zip container of `.pth` files: entries stored without compression, found by name.

use std::collections::HashMap;
use std::ops::Range;

/// Where each entry's bytes are in the file.
pub type Entries = HashMap<String, Range<usize>>;

/// Finds the entries of a zip file.
///
/// # Errors
/// A description of what is wrong.
pub fn entries(file: &[u8]) -> Result<Entries, String> {
    let (count, start) = directory(file)?;
    let mut entries = Entries::new();
    let mut at = start;
    for _ in 0..count {
        let header = part(file, at, 46)?;
        if header[..4] != *b"PK\x01\x02" {
            return Err(format!("no directory entry at byte {at}"));
        }
        let lengths = [28, 30, 32].map(|i| usize::from(u16_at(header, i)));
        let [name_length, extra_length, comment_length] = lengths;
        let name = String::from_utf8_lossy(part(file, at + 46, name_length)?).into_owned();
        let extra = part(file, at + 46 + name_length, extra_length)?;
        if u16_at(header, 10) != 0 {
            return Err(format!("{name}: compressed, expected a stored entry"));
        }
        let mut sizes = [24, 42].map(|i| u64::from(u32_at(header, i))); // size and offset
        widen(&mut sizes, u32_at(header, 20) == u32::MAX, extra);
        let [size, offset] = sizes.map(|x| usize::try_from(x).unwrap_or(usize::MAX));

        // The local header has its own name and extra field before the data.
        let local = part(file, offset, 30)?;
        let data = offset + 30 + usize::from(u16_at(local, 26)) + usize::from(u16_at(local, 28));
        part(file, data, size).map_err(|_| format!("{name}: data beyond the end of the file"))?;
        entries.insert(name, data..data + size);
        at += 46 + name_length + extra_length + comment_length;
    }
    Ok(entries)
}

/// Number of entries and start of the central directory.
fn directory(file: &[u8]) -> Result<(u64, usize), String> {
    const LONGEST: usize = 22 + 65_535;
    let from = file.len().saturating_sub(LONGEST);
    let end = file[from..].windows(4).rposition(|w| w == b"PK\x05\x06").map(|i| from + i);
    let end = end.ok_or("no end of the zip directory: the file is cut off")?;
    let record = part(file, end, 22)?;
    let (count, start) = (u64::from(u16_at(record, 10)), u64::from(u32_at(record, 16)));
    let (count, start) = match end.checked_sub(20).and_then(|at| part(file, at, 20).ok()) {
        Some(locator) if locator[..4] == *b"PK\x06\x07" => {
            let at = usize::try_from(u64_at(locator, 8)).unwrap_or(usize::MAX);
            let record = part(file, at, 56)?;
            (u64_at(record, 32), u64_at(record, 48))
        }
        _ => (count, start),
    };
    Ok((count, usize::try_from(start).unwrap_or(usize::MAX)))
}

/// Replaces sizes that do not fit 32 bits by those of the zip64 extra field.
fn widen(sizes: &mut [u64; 2], packed_too: bool, mut extra: &[u8]) {
    while extra.len() >= 4 {
        let (id, length) = (u16_at(extra, 0), usize::from(u16_at(extra, 2)));
        let Some(field) = extra.get(4..4 + length) else { return };
        if id == 1 {
            let mut wide = field.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
            // In order: size, packed size, offset; each only where its 32 bits are all ones.
            for (i, size) in sizes.iter_mut().enumerate() {
                if i == 1 && packed_too {
                    wide.next();
                }
                if *size == u64::from(u32::MAX) {
                    *size = wide.next().unwrap_or(*size);
                }
            }
        }
        extra = &extra[4 + length..];
    }
}

fn part(file: &[u8], at: usize, length: usize) -> Result<&[u8], String> {
    at.checked_add(length)
        .and_then(|end| file.get(at..end))
        .ok_or_else(|| format!("expected {length} bytes at byte {at}, found the end of the file"))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}
