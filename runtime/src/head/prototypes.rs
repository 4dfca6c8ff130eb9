//! [`Prototypes`]: classes learnt from a few examples, in place.

use crate::{error::Error, kernels::scalar, pack::crc::crc32};

/// Byte positions of stored prototypes; the floats follow, the CRC-32 of all before it ends them.
mod stored {
    pub const MAGIC: [u8; 4] = *b"SRCH";
    pub const VERSION: u32 = 1;
    pub const VERSION_AT: usize = 4;
    pub const DIM_AT: usize = 8;
    pub const CLASSES_AT: usize = 12;
    pub const HEADER: usize = 16;
    pub const CRC: usize = 4;
}

/// Few-shot classes, learnt and told apart on the device: prototypes of normalised features, in borrowed memory.
///
/// A class is the sum of its examples' features, each scaled to length 1; a feature belongs to the class
/// whose prototype has the largest cosine to it, or to none where that cosine is below a threshold.
/// One more example is one addition: nothing is trained, and no example is kept.
///
/// ```
/// use sorcen_runtime::head::Prototypes;
/// # fn run() -> Result<(), sorcen_runtime::Error> {
/// let mut memory = [0.0; Prototypes::floats(2, 3)];
/// let mut head = Prototypes::new(&mut memory, 3)?;
/// head.learn(0, &[1.0, 0.1, 0.0])?;
/// head.learn(1, &[0.0, 1.0, 0.2])?;
/// let found = head.classify(&[2.0, 0.0, 0.0], 0.5)?;
/// assert_eq!(found.map(|found| found.class), Some(0));
/// assert_eq!(head.classify(&[0.0, 0.0, 1.0], 0.5)?, None); // unlike both
/// # Ok(()) }
/// # run().unwrap();
/// ```
#[derive(Debug)]
pub struct Prototypes<'m> {
    /// A row for each class: how many examples it has, then the sum of their directions `[D]`.
    rows: &'m mut [f32],
    dim: usize,
}

/// The class that a feature belongs to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Match {
    /// From 0.
    pub class: usize,
    /// Cosine of the feature to the class's prototype, -1 to 1.
    pub cosine: f32,
}

impl<'m> Prototypes<'m> {
    /// Floats of memory that `classes` classes of features `[dim]` take.
    pub const fn floats(classes: usize, dim: usize) -> usize {
        classes * (dim + 1)
    }

    /// Bytes of the stored form.
    pub const fn stored_bytes(classes: usize, dim: usize) -> usize {
        stored::HEADER + 4 * Self::floats(classes, dim) + stored::CRC
    }

    /// Empty classes, as many as fill `memory`, which is overwritten.
    ///
    /// # Errors
    /// [`Error::Option`] where `dim` is 0, [`Error::Length`] where `memory` is not a whole number of classes
    /// (at least one).
    pub fn new(memory: &'m mut [f32], dim: usize) -> Result<Self, Error> {
        if dim == 0 {
            return Err(Error::Option { name: "dim", expected: "at least 1" });
        }
        let classes = memory.len().div_ceil(dim + 1).max(1);
        check_length("memory", Self::floats(classes, dim), memory.len())?;
        memory.fill(0.0);
        Ok(Self { rows: memory, dim })
    }

    /// Number of classes, the empty ones too.
    pub fn classes(&self) -> usize {
        self.rows.len() / (self.dim + 1)
    }

    /// Width D of a feature.
    pub const fn dim(&self) -> usize {
        self.dim
    }

    /// How many examples a class has learnt; 0 where there is no such class.
    pub fn examples(&self, class: usize) -> usize {
        self.rows.get(class * (self.dim + 1)).map_or(0, |count| *count as usize)
    }

    /// Adds an example, `feature` `[D]`, to a class.
    ///
    /// # Errors
    /// [`Error::Length`] for the feature, [`Error::Option`] for a class that is not there,
    /// [`Error::NotFinite`] for a feature that has no direction (zero, infinite, not a number).
    pub fn learn(&mut self, class: usize, feature: &[f32]) -> Result<(), Error> {
        let length = self.length_of(feature)?;
        let (count, sum) = self.row_mut(class)?;
        *count += 1.0;
        for (sum, x) in sum.iter_mut().zip(feature) {
            *sum += *x / length;
        }
        Ok(())
    }

    /// Empties a class.
    ///
    /// # Errors
    /// [`Error::Option`] for a class that is not there.
    pub fn forget(&mut self, class: usize) -> Result<(), Error> {
        let (count, sum) = self.row_mut(class)?;
        *count = 0.0;
        sum.fill(0.0);
        Ok(())
    }

    /// The class of `feature` `[D]`, the first where two are equally near; `None` where no cosine reaches
    /// `threshold` (-1 to 1; -1 rejects nothing), or nothing was learnt.
    ///
    /// # Errors
    /// [`Error::Length`] and [`Error::NotFinite`] for the feature, as in [`learn`](Self::learn).
    pub fn classify(&self, feature: &[f32], threshold: f32) -> Result<Option<Match>, Error> {
        let length = self.length_of(feature)?;
        let mut best: Option<Match> = None;
        for (class, row) in self.rows.chunks_exact(self.dim + 1).enumerate() {
            let [count, sum @ ..] = row else { continue };
            // Opposite examples can cancel out: such a class has no direction.
            let norm = libm::sqrtf(scalar::dot(sum, sum));
            if *count == 0.0 || norm == 0.0 {
                continue;
            }
            let cosine = (scalar::dot(sum, feature) / (norm * length)).clamp(-1.0, 1.0);
            if cosine >= threshold && best.is_none_or(|best| cosine > best.cosine) {
                best = Some(Match { class, cosine });
            }
        }
        Ok(best)
    }

    /// Writes the stored form, little-endian, into `out` ([`stored_bytes`](Self::stored_bytes) long).
    ///
    /// # Errors
    /// [`Error::Length`] for `out`.
    pub fn store(&self, out: &mut [u8]) -> Result<(), Error> {
        check_length("out", Self::stored_bytes(self.classes(), self.dim), out.len())?;
        let header = [u32::from_le_bytes(stored::MAGIC), stored::VERSION, self.dim as u32, self.classes() as u32];
        let words = header.into_iter().chain(self.rows.iter().map(|x| x.to_bits()));
        for (out, word) in out.chunks_exact_mut(4).zip(words) {
            out.copy_from_slice(&word.to_le_bytes());
        }
        if let Some((contents, crc)) = out.split_last_chunk_mut::<{ stored::CRC }>() {
            *crc = crc32(contents).to_le_bytes();
        }
        Ok(())
    }

    /// Takes up stored prototypes, in `memory` ([`floats`](Self::floats) long).
    ///
    /// # Errors
    /// [`Error::Truncated`], [`Error::Field`], [`Error::Version`], [`Error::Checksum`] and [`Error::NotFinite`] for what is stored, [`Error::Length`] for `memory`.
    pub fn load(memory: &'m mut [f32], bytes: &[u8]) -> Result<Self, Error> {
        let field = |at: usize| {
            let field = bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
            field.ok_or(Error::Truncated {
                item: "prototypes",
                needed: stored::HEADER as u64,
                found: bytes.len() as u64,
            })
        };
        let (magic, version) = (field(0)?, field(stored::VERSION_AT)?);
        if magic != u32::from_le_bytes(stored::MAGIC) {
            return Err(Error::Field { field: "magic of prototypes", found: magic.into() });
        }
        if version != stored::VERSION {
            return Err(Error::Version { expected: stored::VERSION, found: version });
        }
        let (dim, classes) = (field(stored::DIM_AT)?, field(stored::CLASSES_AT)?);
        if dim == 0 || classes == 0 {
            return Err(Error::Field { field: "prototypes (dim, classes)", found: 0 });
        }
        let needed = stored::HEADER as u64 + 4 * u64::from(classes) * (u64::from(dim) + 1) + stored::CRC as u64;
        if needed != bytes.len() as u64 {
            return Err(Error::Truncated { item: "prototypes", needed, found: bytes.len() as u64 });
        }
        let (dim, classes) = (dim as usize, classes as usize);
        check_length("memory", Self::floats(classes, dim), memory.len())?;
        let (contents, crc) = bytes.split_last_chunk::<{ stored::CRC }>().unwrap_or((bytes, &[0; stored::CRC]));
        let (expected, found) = (u32::from_le_bytes(*crc), crc32(contents));
        if expected != found {
            return Err(Error::Checksum { section: "prototypes", expected, found });
        }
        let floats = contents.get(stored::HEADER..).unwrap_or(&[]).chunks_exact(4);
        for (index, (x, bytes)) in memory.iter_mut().zip(floats).enumerate() {
            *x = f32::from_le_bytes(bytes.try_into().unwrap_or_default());
            if !x.is_finite() {
                return Err(Error::NotFinite { item: "prototypes", index: index as u32 });
            }
        }
        Ok(Self { rows: memory, dim })
    }

    /// A class's count and sum.
    fn row_mut(&mut self, class: usize) -> Result<(&mut f32, &mut [f32]), Error> {
        let no_class = Error::Option { name: "class", expected: "below the number of classes" };
        let row = self.rows.chunks_exact_mut(self.dim + 1).nth(class).ok_or(no_class)?;
        row.split_first_mut().ok_or(no_class)
    }

    /// Length of a feature.
    fn length_of(&self, feature: &[f32]) -> Result<f32, Error> {
        check_length("feature", self.dim, feature.len())?;
        let length = libm::sqrtf(scalar::dot(feature, feature));
        if length > 0.0 && length.is_finite() {
            Ok(length)
        } else {
            Err(Error::NotFinite { item: "direction of the feature", index: 0 })
        }
    }
}

fn check_length(item: &'static str, needed: usize, found: usize) -> Result<(), Error> {
    if needed == found {
        Ok(())
    } else {
        Err(Error::Length { item, needed, found })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::{vec, vec::Vec};

    const DIM: usize = 5;

    fn learnt(memory: &mut [f32]) -> Prototypes<'_> {
        let mut head = Prototypes::new(memory, DIM).unwrap();
        head.learn(0, &[3.0, 0.0, 0.0, 0.0, 0.3]).unwrap();
        head.learn(0, &[1.0, 0.2, 0.0, 0.0, 0.0]).unwrap();
        head.learn(2, &[0.0, 0.0, -2.0, 0.0, 0.0]).unwrap();
        head
    }

    #[test]
    fn learns_tells_apart_rejects_forgets() {
        let mut memory = vec![9.0; Prototypes::floats(3, DIM)];
        let mut head = learnt(&mut memory);
        assert_eq!((head.classes(), head.examples(0), head.examples(1), head.examples(2)), (3, 2, 0, 1));
        let class = |head: &Prototypes<'_>, x: &[f32], threshold| head.classify(x, threshold).unwrap().map(|m| m.class);
        assert_eq!(class(&head, &[10.0, 0.0, 1.0, 0.0, 0.0], 0.5), Some(0));
        assert_eq!(class(&head, &[0.1, 0.0, -1.0, 0.0, 0.0], 0.5), Some(2));
        assert_eq!(class(&head, &[0.0, 0.0, 0.0, 1.0, 0.0], 0.5), None);
        assert_eq!(head.classify(&[0.0, 0.0, -7.0, 0.0, 0.0], 0.9), Ok(Some(Match { class: 2, cosine: 1.0 })));
        // An example counts by its direction, not by its length.
        let sum = &head.rows[1..=DIM];
        assert!(sum.iter().all(|x| x.abs() < 2.0), "{sum:?}");
        head.forget(2).unwrap();
        assert_eq!(class(&head, &[0.0, 0.0, -1.0, 0.0, 0.0], 0.1), None);
    }

    #[test]
    fn stored_and_loaded_it_is_the_same() {
        let (mut memory, mut other) = (vec![0.0; Prototypes::floats(3, DIM)], vec![1.0; Prototypes::floats(3, DIM)]);
        let head = learnt(&mut memory);
        let mut bytes = vec![0xA5; Prototypes::stored_bytes(3, DIM)];
        head.store(&mut bytes).unwrap();
        let loaded = Prototypes::load(&mut other, &bytes).unwrap();
        assert_eq!((&*loaded.rows, loaded.dim), (&*head.rows, head.dim));
        assert!(head.store(&mut bytes[1..]).is_err());
    }

    #[test]
    fn damaged_prototypes_are_refused() {
        let mut memory = vec![0.0; Prototypes::floats(3, DIM)];
        let mut bytes = vec![0; Prototypes::stored_bytes(3, DIM)];
        learnt(&mut memory).store(&mut bytes).unwrap();
        for cut in 0..bytes.len() {
            assert!(Prototypes::load(&mut memory, &bytes[..cut]).is_err(), "{cut} bytes");
        }
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Prototypes::load(&mut memory, &damaged).is_err(), "bit {bit}");
        }
        assert!(matches!(Prototypes::load(&mut memory[1..], &bytes), Err(Error::Length { item: "memory", .. })));
        // A number that is none, with a checksum that fits.
        bytes[stored::HEADER..stored::HEADER + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        let end = bytes.len() - stored::CRC;
        let crc = crc32(&bytes[..end]).to_le_bytes();
        bytes[end..].copy_from_slice(&crc);
        let error = Prototypes::load(&mut memory, &bytes).err();
        assert_eq!(error, Some(Error::NotFinite { item: "prototypes", index: 0 }));
    }

    #[test]
    fn bad_input_is_named() {
        let mut memory: Vec<f32> = vec![0.0; Prototypes::floats(2, DIM)];
        assert!(Prototypes::new(&mut memory[1..], DIM).is_err());
        assert!(Prototypes::new(&mut memory[..0], DIM).is_err());
        assert!(Prototypes::new(&mut memory, 0).is_err());
        let mut head = Prototypes::new(&mut memory, DIM).unwrap();
        assert_eq!(head.classify(&[1.0; DIM], -1.0), Ok(None)); // nothing learnt
        assert_eq!(head.learn(0, &[1.0; 4]), Err(Error::Length { item: "feature", needed: DIM, found: 4 }));
        assert!(matches!(head.learn(2, &[1.0; DIM]), Err(Error::Option { name: "class", .. })));
        assert!(matches!(head.forget(2), Err(Error::Option { name: "class", .. })));
        for bad in [0.0, f32::NAN, f32::INFINITY] {
            assert!(matches!(head.learn(0, &[bad; DIM]), Err(Error::NotFinite { .. })), "{bad}");
        }
        assert_eq!(head.examples(0), 0);
    }
}
