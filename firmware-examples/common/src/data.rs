//! What lies in flash: the demo packs and small inputs (`cargo fw data` makes them, see the README).

use sorcen_runtime::{pack::Aligned, tokenizer::PatchCodebook, tokens::unpack_row, Error, Model};

use crate::{picture, CONFIG, TOKENS};

const ROW: usize = sorcen_runtime::tokens::row_bytes(TOKENS, CONFIG.token_bits());

/// Example pictures as bit-packed tokens, one row each: classes one after the other.
pub struct Images {
    rows: &'static [[u8; ROW]],
    /// Pictures of a class.
    pub per_class: usize,
}

macro_rules! images {
    ($file:literal, $per_class:expr) => {{
        const BYTES: &[u8] = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../data/", $file));
        const ROWS: &[[u8; ROW]] = BYTES.as_chunks().0;
        Images { rows: ROWS, per_class: $per_class }
    }};
}

/// Three classes that the model was not told of, to learn on the device: 5 pictures each.
pub static SUPPORT: Images = images!("support.tokens", 5);
/// Other pictures of the same classes, to be told apart: 5 each.
pub static QUERIES: Images = images!("queries.tokens", 5);
/// What the three classes are called.
pub const CLASS_NAMES: [&str; 3] = ["face", "mammal", "flag"];

impl Images {
    /// Number of pictures.
    pub fn count(&self) -> usize {
        self.rows.len()
    }

    /// Tokens of picture `index`.
    ///
    /// # Errors
    /// [`Error::Length`] where there is no such picture.
    pub fn tokens(&self, index: usize) -> Result<[u16; TOKENS], Error> {
        let row =
            self.rows.get(index).ok_or(Error::Length { item: "images", needed: index + 1, found: self.count() })?;
        let mut ids = [0; TOKENS];
        unpack_row(row, CONFIG.token_bits(), &mut ids)?;
        Ok(ids)
    }

    /// (class, tokens) of every picture.
    pub fn iter(&self) -> impl Iterator<Item = (usize, Result<[u16; TOKENS], Error>)> + '_ {
        (0..self.count()).map(|index| (index / self.per_class, self.tokens(index)))
    }
}

macro_rules! pack {
    ($(#[$meta:meta])* $name:ident, $file:literal, $section:literal) => {
        $(#[$meta])*
        pub fn $name() -> &'static [u8] {
            const FILE: &[u8] = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../", $file));
            /// A section of its own on bare metal, so that a board can place it (`memory.x`).
            #[cfg_attr(target_os = "none", allow(unsafe_code), link_section = $section)]
            static PACK: Aligned<[u8; FILE.len()]> =
                Aligned(*include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../", $file)));
            &PACK.0
        }
    };
}

pack!(
    /// The pack of the demo model.
    demo_pack, "../trainer/assets/emoji/demo.srcn", ".rodata.model.demo"
);
pack!(
    /// Its encoder and head alone, in int4.
    int4_pack, "data/encoder_int4.srcn", ".rodata.model.int4"
);

/// A picture `[64, 64, 3]`, as a camera would give it.
pub fn photo() -> &'static [u8] {
    const FILE: &[u8] = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../data/photo.ppm"));
    const { assert!(FILE.len() == picture::PPM_HEADER.len() + picture::BYTES) };
    FILE.split_at(picture::PPM_HEADER.len()).1
}

/// The tokenizer inside the demo pack.
///
/// # Errors
/// [`Error::MissingSection`] where a pack has none.
pub fn codebook<'p>(model: &Model<'p>) -> Result<PatchCodebook<'p>, Error> {
    model.pack().tokenizer().ok_or(Error::MissingSection { section: "tokenizer" })
}
