//! The patch tokenizer's file: K square RGB patches, in one safetensors file; the runtime's integers do the work.

use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest, Sha256};
use sorcen_runtime::tokenizer::PatchCodebook;

use crate::{atomic, error::Error};

const TENSOR: &str = "codebook";
/// What the metadata of such a file says under `format`.
pub const FORMAT: &str = "sorcen-patch-codebook";
const VERSION: &str = "1";

/// K square RGB patches: an image is a grid of the nearest ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatchTokenizer {
    /// `[K, P, P, 3]`
    patches: Vec<u8>,
    codes: usize,
    patch: usize,
}

impl PatchTokenizer {
    /// A tokenizer of `codes` patches of side `patch`: `patches` is `[codes, patch, patch, 3]`.
    ///
    /// # Errors
    /// As [`PatchCodebook::new`].
    pub fn new(patches: Vec<u8>, codes: usize, patch: usize) -> Result<Self, sorcen_runtime::Error> {
        PatchCodebook::new(&patches, codes, patch)?;
        Ok(Self { patches, codes, patch })
    }

    /// Reads `tokenizer.safetensors`: one `U8` tensor `codebook` `[K, P, P, 3]`, with the format's name and
    /// version in its metadata.
    ///
    /// # Errors
    /// Any [`Error`] naming the file and what is wrong in it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = std::fs::read(path).map_err(Error::io(path, "read"))?;
        let broken = |error: safetensors::SafeTensorError| Error::Safetensors {
            path: path.to_owned(),
            found: error.to_string(),
        };
        let (_, header) = SafeTensors::read_metadata(&file).map_err(broken)?;
        let field = |key: &str| header.metadata().as_ref().and_then(|map| map.get(key).cloned()).unwrap_or_default();
        for (key, expected) in [("format", FORMAT), ("version", VERSION)] {
            if field(key) != expected {
                let item = format!("{}: metadata `{key}`", path.display());
                return Err(Error::value(item, expected, format!("`{}`", field(key))));
            }
        }
        let tensors = SafeTensors::deserialize(&file).map_err(broken)?;
        let Ok(codebook) = tensors.tensor(TENSOR) else {
            let item = format!("{}: tensors", path.display());
            return Err(Error::value(item, format!("one called `{TENSOR}`"), tensors.names().join(", ")));
        };
        match (codebook.dtype(), codebook.shape()) {
            (Dtype::U8, &[codes, patch, width, 3]) if patch == width => {
                Self::new(codebook.data().to_vec(), codes, patch)
                    .map_err(|reason| Error::Invalid { path: path.to_owned(), reason })
            }
            (Dtype::U8, shape) => Err(Error::Shape {
                path: path.to_owned(),
                tensor: TENSOR.into(),
                expected: "[K, P, P, 3]".into(),
                found: shape.to_vec(),
            }),
            (dtype, _) => Err(Error::Dtype {
                path: path.to_owned(),
                tensor: TENSOR.into(),
                expected: "U8",
                found: format!("{dtype:?}"),
            }),
        }
    }

    /// Writes `tokenizer.safetensors` (see [`open`](Self::open)), whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`], naming the file.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let shape = vec![self.codes, self.patch, self.patch, 3];
        let metadata = [("format", FORMAT), ("version", VERSION)].into();
        let bytes = TensorView::new(Dtype::U8, shape, &self.patches)
            .map_err(Into::into)
            .and_then(|view| super::serialize(vec![(TENSOR.into(), view)], &metadata))
            .map_err(|error| Error::io(path, "write")(std::io::Error::other(error)))?;
        atomic::write_bytes(path, &bytes)
    }

    /// What a token dataset records of its tokenizer: kind, sizes and SHA-256 of the patches.
    pub fn fingerprint(&self) -> String {
        let sha256: String = Sha256::digest(&self.patches).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("patch-codebook {codes}x{patch}x{patch} sha256:{sha256}", codes = self.codes, patch = self.patch)
    }

    /// The codebook as the runtime takes it.
    pub fn codebook(&self) -> PatchCodebook<'_> {
        // `new` made sure of the sizes.
        PatchCodebook::new(&self.patches, self.codes, self.patch).unwrap_or_else(|error| unreachable!("{error}"))
    }

    /// The patches, `[K, P, P, 3]`.
    pub fn patches(&self) -> &[u8] {
        &self.patches
    }

    /// Number K of codes.
    pub fn codes(&self) -> usize {
        self.codes
    }

    /// Side P of a patch in pixels.
    pub fn patch(&self) -> usize {
        self.patch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_round_trip_and_damage() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("t.safetensors");
        let tokenizer = PatchTokenizer::new((0..5 * 4 * 4 * 3).map(|i| i as u8).collect(), 5, 4).unwrap();
        tokenizer.save(&path).unwrap();
        assert_eq!(PatchTokenizer::open(&path).unwrap(), tokenizer);

        let whole = std::fs::read(&path).unwrap();
        let damaged = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            PatchTokenizer::open(&path).unwrap_err().to_string()
        };
        let replaced = |from: &str, to: &str| {
            assert_eq!(from.len(), to.len(), "a safetensors header keeps its length");
            let at = whole.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
            [&whole[..at], to.as_bytes(), &whole[at + from.len()..]].concat()
        };
        let cases = [
            ("complete safetensors file", damaged(&whole[..whole.len() - 1])),
            ("complete safetensors file", damaged(b"")),
            ("metadata `format`: expected sorcen-patch-codebook, found `sorcen-photo-codebook`", {
                damaged(&replaced("sorcen-patch-codebook", "sorcen-photo-codebook"))
            }),
            ("metadata `version`: expected 1, found `9`", damaged(&replaced("\"version\":\"1\"", "\"version\":\"9\""))),
            ("expected one called `codebook`, found codeb00k", damaged(&replaced("\"codebook\"", "\"codeb00k\""))),
            ("expected shape [K, P, P, 3], found [5, 4, 3, 4]", damaged(&replaced("5,4,4,3", "5,4,3,4"))),
        ];
        for (expected, message) in cases {
            assert!(message.contains(expected) && message.contains("t.safetensors"), "{expected:?} in {message:?}");
        }
    }
}
