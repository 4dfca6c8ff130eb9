//! Pictures from files: decoded, and brought to the size that a tokenizer takes. Every verb reads them here.

use std::fs::{self, File};
use std::io::{Cursor, Read as _};
use std::path::Path;

use image::imageops::{self, FilterType};
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, RgbImage};
use sorcen_runtime::rng::Rng;

use crate::error::Error;

/// The kinds of pictures that [`decode`] reads, for messages.
pub const KINDS: &str = "a PNG, JPEG, WebP or GIF image";

/// Most pixels of a picture that is decoded: a file of a few kilobytes can claim any size.
const MOST_PIXELS: u64 = 1 << 27;
/// Most bytes that its pixels take as decoded.
const MOST_BYTES: u64 = 1 << 29;
/// Most pixels that scaling makes, on its way (rows are scaled after columns, in f32) and at its end.
const MOST_SCALED: u64 = 1 << 26;
/// Most bytes of a file.
const MOST_FILE: u64 = 1 << 30;

/// Why a picture cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// What it should be.
    pub expected: String,
    /// What it is.
    pub found: String,
}

fn unfit<T>(expected: impl ToString, found: impl ToString) -> Result<T, Unfit> {
    Err(Unfit { expected: expected.to_string(), found: found.to_string() })
}

/// Whether a file that begins like this is of a kind that [`decode`] reads.
pub fn is_picture(start: &[u8]) -> bool {
    use ImageFormat::{Gif, Jpeg, Png, WebP};
    matches!(image::guess_format(start), Ok(Png | Jpeg | WebP | Gif))
}

/// The bytes of a file that was found in a folder or named in a list. Pipes, sockets and devices are not opened: they
/// may never end.
///
/// # Errors
/// The system's, and [`std::io::ErrorKind::InvalidInput`] for what is no plain file, or too large for a picture.
pub fn read_file(path: &Path) -> std::io::Result<Vec<u8>> {
    let refused = |message: String| Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, message));
    let about = fs::metadata(path)?;
    if about.is_dir() {
        return refused("expected a file, found a folder".into());
    }
    if !about.is_file() {
        return refused("expected a file, found a pipe, socket or device".into());
    }
    if about.len() > MOST_FILE {
        return refused(format!("expected a picture of at most {MOST_FILE} bytes, found {}", about.len()));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(MOST_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a picture from a file, as [`decode`] does.
///
/// # Errors
/// [`Error::Io`] where the file cannot be read, [`Error::Value`] where it is no picture.
pub fn read(path: &Path) -> Result<RgbImage, Error> {
    let bytes = read_file(path).map_err(Error::io(path, "read"))?;
    decode(&bytes).map_err(|unfit| unfit.of(path))
}

impl Unfit {
    /// As an error about the picture in a file.
    pub fn of(self, path: &Path) -> Error {
        Error::value(path.display(), self.expected, self.found)
    }
}

/// Decodes a PNG, JPEG, WebP or GIF file, told apart by their first bytes: turned as its EXIF orientation says,
/// 16 bits cut to 8, grey as RGB, CMYK converted, transparent parts over white, the first picture of an animation.
///
/// # Errors
/// What is wrong with the file. A JPEG that is cut off is refused, though most of it could be shown; so is a picture
/// of more than 2²⁷ pixels, before any of them is decoded.
pub fn decode(bytes: &[u8]) -> Result<RgbImage, Unfit> {
    if bytes.is_empty() {
        return unfit(KINDS, "0 bytes");
    }
    if bytes.starts_with(&[0xFF, 0xD8]) && !jpeg_is_whole(bytes) {
        return unfit(KINDS, "a JPEG file that is cut off");
    }
    let text =
        |error: image::ImageError| Unfit { expected: KINDS.into(), found: error.to_string().trim().replace('\n', " ") };
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|error| text(error.into()))?;
    let mut decoder = reader.into_decoder().map_err(text)?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 || pixels > MOST_PIXELS || decoder.total_bytes() > MOST_BYTES {
        let expected = format!("1 to {MOST_PIXELS} pixels and at most {MOST_BYTES} bytes of them");
        return unfit(expected, format_args!("{width}x{height}, {} bytes", decoder.total_bytes()));
    }
    let orientation = decoder.orientation().map_err(text)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(text)?;
    picture.apply_orientation(orientation);
    Ok(over_white(picture))
}

/// Whether a JPEG goes on to its end marker. Decoders fill up what is missing with grey and say nothing.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        // The next marker: inside a scan, FF 00 is data and D0 to D7 are restarts.
        let Some(found) = bytes.get(at..).and_then(|rest| {
            rest.windows(2).position(|pair| pair[0] == 0xFF && !matches!(pair[1], 0x00 | 0xD0..=0xD7 | 0xFF))
        }) else {
            return false;
        };
        at += found;
        match bytes[at + 1] {
            0xD9 => return true,
            0x01 => at += 2,
            _ => match bytes.get(at + 2..at + 4) {
                Some(length) => at += 2 + usize::from(u16::from_be_bytes([length[0], length[1]])).max(2),
                None => return false,
            },
        }
    }
}

fn over_white(picture: DynamicImage) -> RgbImage {
    if !picture.color().has_alpha() {
        return picture.into_rgb8();
    }
    let rgba = picture.into_rgba8();
    RgbImage::from_fn(rgba.width(), rgba.height(), |x, y| {
        let image::Rgba([r, g, b, alpha]) = *rgba.get_pixel(x, y);
        let over = |c: u8| {
            let sum = u32::from(c) * u32::from(alpha) + 255 * (255 - u32::from(alpha));
            ((sum + 127) / 255) as u8
        };
        image::Rgb([over(r), over(g), over(b)])
    })
}

/// How pictures become `side` x `side` pixels.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fit {
    /// Pixels a side.
    pub side: usize,
    /// What the shorter side is scaled to before the middle is cut out, at least `side`; none: pictures have to be of
    /// that size already.
    pub resize: Option<usize>,
    /// Pictures with a shorter side than this are faulty.
    pub min_side: usize,
}

impl Fit {
    /// The picture's pixels `[side, side, 3]`.
    ///
    /// # Errors
    /// A picture too small, of another size where nothing is scaled, or so narrow that scaling it would take
    /// gigabytes.
    pub fn fit(&self, picture: RgbImage) -> Result<Vec<u8>, Unfit> {
        self.check(&picture)?;
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        match self.resize {
            Some(resize) => Ok(scaled_and_cut(&picture, resize as u32, self.side as u32)?.into_raw()),
            None if (width, height) == (self.side, self.side) => Ok(picture.into_raw()),
            None => unfit(format_args!("{0}x{0} pixels", self.side), format_args!("{width}x{height} (give --size)")),
        }
    }

    /// A view of the picture drawn by `rng`, `[side, side, 3]`: a random resized crop as the official training on
    /// pixels has it.
    ///
    /// # Errors
    /// As [`fit`](Self::fit).
    pub fn view(&self, picture: &RgbImage, rng: &Rng) -> Result<Vec<u8>, Unfit> {
        self.check(picture)?;
        Ok(random_view(picture, self.side as u32, rng)?.into_raw())
    }

    fn check(&self, picture: &RgbImage) -> Result<(), Unfit> {
        let (width, height) = picture.dimensions();
        match (width.min(height) as usize) < self.min_side {
            true => unfit(
                format_args!("sides of at least {} pixels (--min_side)", self.min_side),
                format_args!("{width}x{height}"),
            ),
            false => Ok(()),
        }
    }
}

/// The shorter side scaled to `resize` (bicubic, smoothed where it shrinks), then the middle `side` x `side` cut
/// out: sizes and offsets as torchvision's `Resize` and `CenterCrop` have them. `resize` is at least `side`.
fn scaled_and_cut(picture: &RgbImage, resize: u32, side: u32) -> Result<RgbImage, Unfit> {
    let (width, height) = picture.dimensions();
    let scale = |length: u32| u64::from(length) * u64::from(resize) / u64::from(width.min(height));
    let scaled = resized(picture, scale(width), scale(height))?;
    let (left, top) = (half_even(scaled.width() - side), half_even(scaled.height() - side));
    Ok(imageops::crop_imm(&scaled, left, top, side, side).to_image())
}

/// A random resized crop: an area of 0.2 to 1 of the picture, sides of ratio 3/4 to 4/3, one draw, sides cut to the
/// picture's; scaled to `side` (bicubic); mirrored half of the time.
fn random_view(picture: &RgbImage, side: u32, rng: &Rng) -> Result<RgbImage, Unfit> {
    let (width, height) = picture.dimensions();
    let area = f64::from(width) * f64::from(height) * (0.2 + 0.8 * rng.uniform(0));
    let ratio = ((0.75f64).ln() * (1.0 - 2.0 * rng.uniform(1))).exp();
    let cut = |length: f64, most: u32| (length.sqrt().round() as u32).clamp(1, most);
    let (w, h) = (cut(area * ratio, width), cut(area / ratio, height));
    let offset = |i: u64, room: u32| rng.below(i, u64::from(room) + 1) as u32;
    let (left, top) = (offset(2, width - w), offset(3, height - h));
    let crop = imageops::crop_imm(picture, left, top, w, h).to_image();
    let mut view = resized(&crop, side.into(), side.into())?;
    if rng.below(4, 2) == 1 {
        imageops::flip_horizontal_in_place(&mut view);
    }
    Ok(view)
}

/// The picture at another size; as it is, where that is its own.
fn resized(picture: &RgbImage, width: u64, height: u64) -> Result<RgbImage, Unfit> {
    let (from, to) = (picture.dimensions(), (width, height));
    if (u64::from(from.0), u64::from(from.1)) == to {
        return Ok(picture.clone());
    }
    if u64::from(from.0).max(width).saturating_mul(height) > MOST_SCALED {
        let found = format_args!("{}x{}, which would become {width}x{height}", from.0, from.1);
        return unfit(format_args!("a picture that scales to at most {MOST_SCALED} pixels"), found);
    }
    Ok(imageops::resize(picture, width as u32, height as u32, FilterType::CatmullRom))
    // both below 2^26
}

/// Half of `n`; of the two nearest whole numbers the even one, as Python rounds.
fn half_even(n: u32) -> u32 {
    n / 2 + u32::from(n % 4 == 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_offsets_are_torchvisions() {
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7].map(half_even), [0, 0, 1, 2, 2, 2, 3, 4]);
        // A column of each width 1 to 3 beyond the square, told apart by their red.
        for (extra, first) in [(1, 0), (2, 1), (3, 2), (5, 2)] {
            let wide = RgbImage::from_fn(4 + extra, 4, |x, _| image::Rgb([x as u8, 0, 0]));
            let cut = scaled_and_cut(&wide, 4, 4).unwrap();
            assert_eq!(cut.get_pixel(0, 0).0[0], first, "{extra} wider");
        }
        let tall = RgbImage::from_fn(30, 47, |_, y| image::Rgb([y as u8, 0, 0]));
        assert_eq!(scaled_and_cut(&tall, 20, 16).unwrap().dimensions(), (16, 16));
    }

    #[test]
    fn views_are_parts_of_the_picture() {
        let picture = RgbImage::from_fn(60, 40, |x, y| image::Rgb([x as u8 * 4, y as u8 * 6, 0]));
        let (mut mirrored, mut widest) = (0, 0);
        for i in 0..200 {
            let rng = Rng::new(0, sorcen_runtime::rng::Stream::Tokenizer, i);
            let view = random_view(&picture, 16, &rng).unwrap();
            assert_eq!(view.dimensions(), (16, 16));
            let (left, right) = (view.get_pixel(0, 8).0[0], view.get_pixel(15, 8).0[0]);
            let (top, bottom) = (view.get_pixel(8, 0).0[1], view.get_pixel(8, 15).0[1]);
            assert!(left != right && top < bottom, "never upside down");
            mirrored += usize::from(left > right);
            widest = widest.max(left.abs_diff(right));
        }
        assert!((70..130).contains(&mirrored) && widest > 200, "{mirrored} {widest}");
    }

    #[test]
    fn a_jpeg_ends_where_it_says() {
        let mut whole = Cursor::new(Vec::new());
        RgbImage::from_fn(64, 64, |x, y| image::Rgb([x as u8 * 4, y as u8 * 4, 99]))
            .write_to(&mut whole, ImageFormat::Jpeg)
            .unwrap();
        let whole = whole.into_inner();
        assert!(decode(&whole).is_ok());
        assert!(decode(&[&whole[..], b"trailing bytes"].concat()).is_ok());
        for end in [whole.len() - 1, whole.len() - 2, whole.len() * 2 / 3, 200, 20, 3, 0] {
            assert!(decode(&whole[..end]).is_err(), "{end} of {} bytes", whole.len());
        }
    }

    /// A grey PNG of so many pixels, all of one value, as small as it gets.
    fn png(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, width, height);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.set_depth(png::BitDepth::One);
        let row = (width as usize).div_ceil(8);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&vec![0; row * height as usize]).unwrap();
        drop(writer);
        bytes
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        // A GIF header that claims 65535 x 65535 pixels.
        let bomb = b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;";
        let error = decode(bomb).unwrap_err();
        assert!(error.found.contains("65535x65535") || error.found.contains("limit"), "{error:?}");
        // A whole PNG of 20,000 x 10,000 pixels in a few kilobytes.
        let bomb = png(20_000, 10_000);
        assert!(bomb.len() < 100_000);
        assert!(decode(&bomb).unwrap_err().found.contains("20000x10000"));
    }

    #[test]
    fn narrow_pictures_are_not_scaled_to_gigabytes() {
        let narrow = decode(&png(65535, 8)).unwrap();
        let fit = |side| Fit { side, resize: Some(side), min_side: 8 };
        let error = fit(8192).fit(narrow.clone()).unwrap_err();
        assert_eq!(error.found, "65535x8, which would become 67107840x8192");
        let rng = Rng::new(0, sorcen_runtime::rng::Stream::Tokenizer, 0);
        assert!(fit(8193).view(&narrow, &rng).unwrap_err().found.contains("8193x8193"));
        assert_eq!(fit(16).fit(narrow.clone()).unwrap().len(), 16 * 16 * 3);
        let error = Fit { side: 8, resize: None, min_side: 9 }.fit(narrow).unwrap_err();
        assert!(error.expected.contains("--min_side"), "{error:?}");
    }

    #[test]
    #[cfg(unix)]
    fn devices_and_folders_are_not_read() {
        for (path, found) in [("/dev/zero", "device"), ("/", "folder")] {
            let error = read(Path::new(path)).unwrap_err().to_string();
            assert!(error.contains("expected a file") && error.contains(found), "{error}");
        }
    }
}
