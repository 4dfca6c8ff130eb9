//! Cuts the small inputs of the examples out of the bundled emoji.

use std::{fs, path::Path};

use anyhow::{bail, Context, Result};

use crate::toolchain::root;

/// Bytes of an image's tokens: 64 of 9 bits.
const ROW: usize = 72;
/// Pictures of a class to learn from, and to tell apart.
const PER_CLASS: usize = 5;
/// Which subcategories make the three classes (names in `common/src/data.rs`).
const CLASSES: [fn(&str) -> bool; 3] =
    [|name| name.starts_with("face-"), |name| name == "animal-mammal", |name| name == "country-flag"];

/// Writes `data/*.tokens` from the held-back split, and `data/photo.ppm` from a picture (64×64, PNG).
///
/// Of each class the first drawings of five emoji are learnt from; the queries show other emoji.
pub fn extract(photo: Option<&Path>) -> Result<()> {
    let folder = root().join("../trainer/assets/emoji/test");
    let items = fs::read_to_string(folder.join("items.csv")).context("items.csv")?;
    let tokens = fs::read(folder.join("tokens_vqgan.npy")).context("tokens_vqgan.npy")?;
    let header = match tokens.get(8..10) {
        Some(&[low, high]) => 10 + usize::from(u16::from_le_bytes([low, high])),
        _ => bail!("tokens_vqgan.npy is cut short"),
    };
    let rows: Vec<&[u8]> = tokens.get(header..).unwrap_or(&[]).chunks_exact(ROW).collect();
    let (mut support, mut queries) = (Vec::new(), Vec::new());
    for is_member in CLASSES {
        let (mut names, mut asked) = (Vec::new(), 0);
        for (line, row) in items.lines().skip(1).zip(&rows) {
            let [_, unicode, _, subcategory, "0"] = line.split(',').collect::<Vec<_>>()[..] else { continue };
            if !is_member(subcategory) || names.contains(&unicode) {
                continue;
            }
            if names.len() < PER_CLASS {
                names.push(unicode);
                support.extend_from_slice(row);
            } else if asked < PER_CLASS {
                asked += 1;
                queries.extend_from_slice(row);
            }
        }
        if asked < PER_CLASS {
            bail!("{}: too few pictures of a class", folder.display());
        }
    }
    let data = root().join("data");
    fs::write(data.join("support.tokens"), support)?;
    fs::write(data.join("queries.tokens"), queries)?;
    if let Some(photo) = photo {
        fs::write(data.join("photo.ppm"), to_ppm(photo)?)?;
    }
    Ok(())
}

/// A PNG picture over white, as PPM.
fn to_ppm(path: &Path) -> Result<Vec<u8>> {
    let file = fs::File::open(path).with_context(|| path.display().to_string())?;
    let mut decoder = png::Decoder::new(std::io::BufReader::new(file));
    decoder.set_transformations(
        png::Transformations::EXPAND | png::Transformations::ALPHA | png::Transformations::STRIP_16,
    );
    let mut reader = decoder.read_info()?;
    let mut pixels = vec![0; reader.output_buffer_size().context("too large a picture")?];
    let info = reader.next_frame(&mut pixels)?;
    if (info.width, info.height, info.color_type) != (64, 64, png::ColorType::Rgba) {
        bail!("{}: expected 64×64 pixels in colour, found {}×{}", path.display(), info.width, info.height);
    }
    let mut ppm = b"P6\n64 64\n255\n".to_vec();
    for pixel in pixels.chunks_exact(4) {
        let alpha = u32::from(pixel[3]);
        ppm.extend(pixel[..3].iter().map(|&c| ((u32::from(c) * alpha + 255 * (255 - alpha) + 127) / 255) as u8));
    }
    Ok(ppm)
}
