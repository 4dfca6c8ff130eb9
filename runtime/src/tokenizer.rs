//! The patch-codebook tokenizer: RGB pixels to code ids and back, in integers.
//!
//! The nearest of K patches by squared distance; decoding copies patches. Exact on every CPU.

use crate::error::Error;

/// Channels of a pixel.
const RGB: usize = 3;

/// A codebook of square RGB patches, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct PatchCodebook<'c> {
    codebook: &'c [u8],
    codes: usize,
    patch: usize,
}

impl<'c> PatchCodebook<'c> {
    /// A codebook `[codes, patch, patch, 3]` of `u8`; codes 1 to 65535, patch side 1 to 64.
    ///
    /// # Errors
    /// [`Error::Option`] for sizes out of range, [`Error::Length`] where the bytes do not match.
    pub fn new(codebook: &'c [u8], codes: usize, patch: usize) -> Result<Self, Error> {
        if !(1..=65_535).contains(&codes) {
            return Err(Error::Option { name: "codes", expected: "1 to 65535" });
        }
        if !(1..=64).contains(&patch) {
            return Err(Error::Option { name: "patch", expected: "1 to 64" });
        }
        let needed = codes * patch * patch * RGB;
        if codebook.len() != needed {
            return Err(Error::Length { item: "codebook", needed, found: codebook.len() });
        }
        Ok(Self { codebook, codes, patch })
    }

    /// Number of codes K.
    pub const fn codes(&self) -> usize {
        self.codes
    }

    /// Side of a patch in pixels.
    pub const fn patch(&self) -> usize {
        self.patch
    }

    /// The patches, `[codes, patch, patch, 3]`.
    pub const fn codebook(&self) -> &'c [u8] {
        self.codebook
    }

    /// Ids of an image: `rgb` `[height, width, 3]`, `ids` row-major over the patches.
    /// Each is the code with the smallest squared distance, the first on ties.
    ///
    /// # Errors
    /// [`Error::Option`] where the sides are not multiples of the patch side, [`Error::Length`].
    pub fn encode(&self, rgb: &[u8], width: usize, height: usize, ids: &mut [u16]) -> Result<(), Error> {
        self.check(rgb.len(), width, height, ids.len())?;
        for (index, id) in ids.iter_mut().enumerate() {
            *id = self.nearest(rgb, width, index);
        }
        Ok(())
    }

    /// The image of some ids: `ids` row-major over `width / patch` columns, `rgb` `[height, width, 3]`.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), and [`Error::TokenId`] for an id that is no code.
    pub fn decode(&self, ids: &[u16], width: usize, height: usize, rgb: &mut [u8]) -> Result<(), Error> {
        self.check(rgb.len(), width, height, ids.len())?;
        for (index, &id) in ids.iter().enumerate() {
            if usize::from(id) >= self.codes {
                return Err(Error::TokenId { index, limit: self.codes as u32, found: id.into() });
            }
            for (row, source) in self.code(id.into()).chunks_exact(self.patch * RGB).enumerate() {
                let start = self.row_start(index, row, width);
                if let Some(target) = rgb.get_mut(start..start + source.len()) {
                    target.copy_from_slice(source);
                }
            }
        }
        Ok(())
    }

    fn check(&self, bytes: usize, width: usize, height: usize, ids: usize) -> Result<(), Error> {
        if width == 0 || height == 0 || !width.is_multiple_of(self.patch) || !height.is_multiple_of(self.patch) {
            return Err(Error::Option { name: "image size", expected: "a multiple of the patch side" });
        }
        let needed = width.saturating_mul(height).saturating_mul(RGB);
        if bytes != needed {
            return Err(Error::Length { item: "rgb", needed, found: bytes });
        }
        let needed = (width / self.patch) * (height / self.patch);
        if ids != needed {
            return Err(Error::Length { item: "ids", needed, found: ids });
        }
        Ok(())
    }

    fn code(&self, id: usize) -> &'c [u8] {
        let size = self.patch * self.patch * RGB;
        self.codebook.get(id * size..(id + 1) * size).unwrap_or(&[])
    }

    /// Byte where a row of patch `index` starts in an image.
    const fn row_start(&self, index: usize, row: usize, width: usize) -> usize {
        let columns = width / self.patch;
        let (y, x) = ((index / columns) * self.patch + row, (index % columns) * self.patch);
        (y * width + x) * RGB
    }

    fn nearest(&self, rgb: &[u8], width: usize, index: usize) -> u16 {
        let row_bytes = self.patch * RGB;
        let mut best = (u32::MAX, 0);
        for code in 0..self.codes {
            let mut distance = 0;
            for (row, target) in self.code(code).chunks_exact(row_bytes).enumerate() {
                let start = self.row_start(index, row, width);
                distance += squared_distance(rgb.get(start..start + row_bytes).unwrap_or(&[]), target);
                if distance >= best.0 {
                    break; // a partial sum only grows
                }
            }
            if distance < best.0 {
                best = (distance, code as u16);
            }
        }
        best.1
    }
}

/// Sum of squared differences of bytes; patches of 64×64×3 stay below 2^30.
fn squared_distance(a: &[u8], b: &[u8]) -> u32 {
    a.iter().zip(b).map(|(&a, &b)| u32::from(a.abs_diff(b)).pow(2)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::{vec, vec::Vec};

    fn codebook() -> Vec<u8> {
        (0..4u8).flat_map(|code| vec![code * 60; 2 * 2 * 3]).collect()
    }

    #[test]
    fn round_trip_of_codes_and_nearest() {
        let bytes = codebook();
        let codebook = PatchCodebook::new(&bytes, 4, 2).unwrap();
        let ids = [3, 0, 2, 1, 1, 0];
        let mut rgb = vec![0xA5; 6 * 4 * 3];
        codebook.decode(&ids, 6, 4, &mut rgb).unwrap();
        let mut back = [9; 6];
        codebook.encode(&rgb, 6, 4, &mut back).unwrap();
        assert_eq!(back, ids);
        let mut id = [0];
        codebook.encode(&[90; 12], 2, 2, &mut id).unwrap(); // between codes 1 and 2: the first
        assert_eq!(id, [1]);
    }

    #[test]
    fn bad_input_is_named() {
        let bytes = codebook();
        assert!(matches!(PatchCodebook::new(&bytes[1..], 4, 2), Err(Error::Length { item: "codebook", .. })));
        assert!(PatchCodebook::new(&bytes, 0, 2).is_err());
        let codebook = PatchCodebook::new(&bytes, 4, 2).unwrap();
        let mut rgb = [0; 12];
        assert_eq!(codebook.decode(&[4], 2, 2, &mut rgb), Err(Error::TokenId { index: 0, limit: 4, found: 4 }));
        assert!(codebook.encode(&rgb, 3, 2, &mut [0]).is_err());
        assert!(codebook.encode(&rgb[..11], 2, 2, &mut [0]).is_err());
        assert!(codebook.encode(&rgb, 2, 2, &mut [0, 0]).is_err());
    }
}
