//! The zip container of `.pth` and `.npz` files: entries found by name, checked by their CRC-32 as they are read;
//! entries written uncompressed, of any size.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;

use flate2::read::DeflateDecoder;
use flate2::Crc;

/// First bytes of a zip file.
pub const MAGIC: &[u8] = b"PK";

/// The entries of a zip file by name.
pub type Entries = BTreeMap<String, Entry>;

/// Where an entry's bytes are in the file, and what they should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    range: Range<usize>,
    deflated: bool,
    /// Bytes of the contents.
    size: usize,
    crc: u32,
}

impl Entry {
    /// Bytes of the contents, as the directory says.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The contents, from front to back. What is read last fails where the CRC-32 of all is another.
    pub fn open<'a>(&self, file: &'a [u8]) -> Box<dyn Read + 'a> {
        let bytes = &file[self.range.clone()];
        let inner: Box<dyn Read + 'a> = match self.deflated {
            true => Box::new(DeflateDecoder::new(bytes)),
            false => Box::new(bytes),
        };
        Box::new(Checked { inner, left: self.size, crc: Crc::new(), expected: self.crc })
    }

    /// Where the bytes are, if they are as they were.
    ///
    /// # Errors
    /// For a compressed entry.
    pub fn stored(&self) -> Result<Range<usize>, String> {
        match self.deflated {
            true => Err("compressed, expected a stored entry".into()),
            false => Ok(self.range.clone()),
        }
    }

    /// The bytes of a stored entry.
    ///
    /// # Errors
    /// For a compressed entry, or another CRC-32 than the directory's.
    pub fn bytes<'a>(&self, file: &'a [u8]) -> Result<&'a [u8], String> {
        let bytes = &file[self.stored()?];
        let mut crc = Crc::new();
        crc.update(bytes);
        same_crc(self.crc, crc.sum()).map(|()| bytes)
    }
}

fn same_crc(expected: u32, found: u32) -> Result<(), String> {
    match expected == found {
        true => Ok(()),
        false => Err(format!("damaged: expected CRC-32 {expected:08x}, found {found:08x}")),
    }
}

/// Hands on `left` bytes, whose CRC-32 should be `expected`.
struct Checked<'a> {
    inner: Box<dyn Read + 'a>,
    left: usize,
    crc: Crc,
    expected: u32,
}

impl Read for Checked<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(self.left);
        let count = self.inner.read(&mut buffer[..most])?;
        self.crc.update(&buffer[..count]);
        self.left -= count;
        if count > 0 && self.left == 0 {
            let damaged = |what| io::Error::new(io::ErrorKind::InvalidData, what);
            same_crc(self.expected, self.crc.sum()).map_err(damaged)?;
        }
        Ok(count)
    }
}

/// The flag of an encrypted entry.
const ENCRYPTED: u16 = 1;

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
        if u16_at(header, 8) & ENCRYPTED != 0 {
            return Err(format!("{name}: encrypted"));
        }
        let deflated = match u16_at(header, 10) {
            0 => false,
            8 => true,
            other => return Err(format!("{name}: compressed by method {other}, expected none (0) or deflate (8)")),
        };
        let mut sizes = [24, 20, 42].map(|i| u64::from(u32_at(header, i)));
        widen(&mut sizes, extra);
        let [unpacked, packed, offset] = sizes.map(|x| usize::try_from(x).unwrap_or(usize::MAX));
        if !deflated && packed != unpacked {
            return Err(format!("{name}: stored, expected {unpacked} bytes, found {packed}"));
        }

        // The local header has its own name and extra field before the data.
        let local = part(file, offset, 30)?;
        if local[..4] != *b"PK\x03\x04" {
            return Err(format!("{name}: no entry at byte {offset}"));
        }
        let data = offset + 30 + usize::from(u16_at(local, 26)) + usize::from(u16_at(local, 28));
        part(file, data, packed).map_err(|_| format!("{name}: data beyond the end of the file"))?;
        let entry = Entry { range: data..data + packed, deflated, size: unpacked, crc: u32_at(header, 16) };
        if entries.insert(name.clone(), entry).is_some() {
            return Err(format!("two entries named {name}"));
        }
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

/// Replaces size, packed size and offset, where they do not fit 32 bits, by those of the zip64 extra field.
fn widen(sizes: &mut [u64; 3], mut extra: &[u8]) {
    while extra.len() >= 4 {
        let (id, length) = (u16_at(extra, 0), usize::from(u16_at(extra, 2)));
        let Some(field) = extra.get(4..4 + length) else { return };
        if id == 1 {
            let mut wide = field.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
            // In this order; each only where its 32 bits are all ones.
            for size in sizes.iter_mut().filter(|size| **size == u64::from(u32::MAX)) {
                *size = wide.next().unwrap_or(*size);
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

/// Writes a zip file of stored entries, with 64-bit sizes throughout.
pub struct ZipWriter<'a> {
    file: &'a mut BufWriter<File>,
    /// The central directory so far.
    directory: Vec<u8>,
    entries: u64,
    /// Bytes written.
    at: u64,
}

/// A field of a header says: look into the zip64 extra field.
const WIDE: u32 = u32::MAX;
/// Version 4.5 needed, no flags, stored, midnight of 1 January 1980: the same bytes whenever they are written.
const KIND: [u8; 10] = [45, 0, 0, 0, 0, 0, 0, 0, 0x21, 0];

impl<'a> ZipWriter<'a> {
    /// Starts at the start of `file`.
    pub fn new(file: &'a mut BufWriter<File>) -> Self {
        Self { file, directory: Vec::new(), entries: 0, at: 0 }
    }

    /// Adds an entry of `size` bytes, which `write` hands to what it is given, piece by piece.
    ///
    /// # Errors
    /// Those of `write`, the file system's, and [`io::ErrorKind::InvalidData`] for another number of bytes.
    pub fn entry(
        &mut self,
        name: &str,
        size: usize,
        write: impl FnOnce(&mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()>,
    ) -> io::Result<()> {
        let (start, size) = (self.at, size as u64);
        let name_length = (name.len() as u16).to_le_bytes();
        let sizes = [size.to_le_bytes(), size.to_le_bytes()].concat();
        let wide = WIDE.to_le_bytes();
        let head = |crc: u32| [&KIND[..], &crc.to_le_bytes(), &wide, &wide, &name_length].concat();
        let local = |crc| [b"PK\x03\x04", &head(crc)[..], &[20, 0], name.as_bytes(), &[1, 0, 16, 0], &sizes].concat();
        self.file.write_all(&local(0))?;

        let (mut crc, mut written) = (Crc::new(), 0);
        write(&mut |bytes| {
            crc.update(bytes);
            written += bytes.len() as u64;
            self.file.write_all(bytes)
        })?;
        if written != size {
            let text = format!("{name}: expected {size} bytes, found {written}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let local = local(crc.sum());
        self.at = start + local.len() as u64 + size;
        self.file.seek(SeekFrom::Start(start))?;
        self.file.write_all(&local)?;
        self.file.seek(SeekFrom::Start(self.at))?;

        self.directory.extend([&b"PK\x01\x02\x2d\0"[..], &head(crc.sum()), &[28, 0], &[0; 10], &wide].concat());
        self.directory.extend([name.as_bytes(), &[1, 0, 24, 0], &sizes, &start.to_le_bytes()].concat());
        self.entries += 1;
        Ok(())
    }

    /// Writes the directory.
    ///
    /// # Errors
    /// The file system's.
    pub fn finish(self) -> io::Result<()> {
        let (count, length) = (self.entries.to_le_bytes(), (self.directory.len() as u64).to_le_bytes());
        let end = self.at + self.directory.len() as u64;
        self.file.write_all(&self.directory)?;
        let record = [&b"PK\x06\x06"[..], &44u64.to_le_bytes(), &[45, 0, 45, 0], &[0; 8], &count, &count, &length];
        self.file.write_all(&record.concat())?;
        self.file.write_all(&self.at.to_le_bytes())?;
        self.file.write_all(&[&b"PK\x06\x07\0\0\0\0"[..], &end.to_le_bytes(), &[1, 0, 0, 0]].concat())?;
        self.file.write_all(&[&b"PK\x05\x06\0\0\0\0"[..], &[0xFF; 12], &[0; 2]].concat())?;
        self.file.flush()
    }
}
