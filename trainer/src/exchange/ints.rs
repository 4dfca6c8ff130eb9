//! Arrays of integers in files, read from front to back.

use std::borrow::Cow;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::data::DataError;
use crate::strided::Strided;

/// An integer type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names say it
pub enum IntKind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    I64,
}

impl IntKind {
    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 => 4,
            Self::I64 => 8,
        }
    }

    /// The number in the little-endian `bytes`, as many as [`bytes`](Self::bytes) says.
    fn value(self, bytes: &[u8]) -> i64 {
        let negative = !matches!(self, Self::U8 | Self::U16 | Self::U32) && bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut wide = if negative { [0xFF; 8] } else { [0; 8] };
        wide[..bytes.len()].copy_from_slice(bytes);
        i64::from_le_bytes(wide)
    }
}

/// The elements of an array, in C order, as they are asked for.
pub struct Ints<'a> {
    path: PathBuf,
    array: String,
    kind: IntKind,
    big_endian: bool,
    source: Box<dyn Read + 'a>,
    buffer: Vec<u8>,
}

impl<'a> Ints<'a> {
    /// Reads array `array` of file `path` from its bytes, which are in C order.
    pub fn new(path: &Path, array: &str, kind: IntKind, big_endian: bool, source: Box<dyn Read + 'a>) -> Self {
        let (path, array) = (path.to_path_buf(), array.to_string());
        Self { path, array, kind, big_endian, source, buffer: Vec::new() }
    }

    /// Reads array `array` of file `path`, whose elements lie in `storage` as `view` says.
    ///
    /// # Errors
    /// [`DataError::Invalid`] where the view goes beyond its storage.
    pub fn of_view(
        path: &Path,
        array: &str,
        kind: IntKind,
        big_endian: bool,
        storage: Cow<'a, [u8]>,
        view: Strided,
    ) -> Result<Self, DataError> {
        let available = storage.len() / kind.bytes();
        let (Some(count), Some(0..)) = (view.count(), view.end().and_then(|end| available.checked_sub(end))) else {
            let found = format_args!("{:?}, offset {}, in {available}", view.shape, view.offset);
            return Err(DataError::invalid(path, array, "elements inside its storage", found));
        };
        let source = Box::new(View { storage, view, size: kind.bytes(), next: 0, count });
        Ok(Self::new(path, array, kind, big_endian, source))
    }

    /// Reads the next `row.len()` elements.
    ///
    /// # Errors
    /// [`DataError`] where the file ends or cannot be read.
    pub fn read(&mut self, row: &mut [i64]) -> Result<(), DataError> {
        let size = self.kind.bytes();
        self.buffer.resize(row.len() * size, 0);
        self.source.read_exact(&mut self.buffer).map_err(|error| {
            DataError::invalid(&self.path, &self.array, "as many bytes as its shape says, undamaged", error)
        })?;
        for (value, bytes) in row.iter_mut().zip(self.buffer.chunks_exact_mut(size)) {
            if self.big_endian {
                bytes.reverse();
            }
            *value = self.kind.value(bytes);
        }
        Ok(())
    }
}

/// The bytes of a view, whole elements at a time.
struct View<'a> {
    storage: Cow<'a, [u8]>,
    view: Strided,
    /// Bytes of an element.
    size: usize,
    /// The element to read next.
    next: usize,
    count: usize,
}

impl Read for View<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let elements = (buffer.len() / self.size).min(self.count - self.next);
        for bytes in buffer.chunks_exact_mut(self.size).take(elements) {
            let at = self.view.at(self.next) * self.size;
            bytes.copy_from_slice(&self.storage[at..at + self.size]);
            self.next += 1;
        }
        Ok(elements * self.size)
    }
}

/// A file of named arrays.
pub trait IntFile {
    /// Where it is.
    fn path(&self) -> &Path;

    /// Names of the arrays, in order.
    fn names(&self) -> Vec<String>;

    /// Shape of an array, if it is there.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// Starts to read an array of integers.
    ///
    /// # Errors
    /// [`DataError::Invalid`] where it is missing, of another type, or damaged.
    fn open_ints(&self, name: &str) -> Result<Ints<'_>, DataError>;

    /// An array of texts, where the format has such and it is there.
    ///
    /// # Errors
    /// [`DataError::Invalid`] where it is there and no array of texts.
    fn texts(&self, _name: &str) -> Result<Option<Vec<String>>, DataError> {
        Ok(None)
    }
}
