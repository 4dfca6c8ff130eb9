//! One picture: from the bytes of a file to RGB, and to the size a tokenizer takes.

use std::io::Cursor;

use image::imageops::{self, FilterType};
use image::{DynamicImage, ImageDecoder, ImageReader, RgbImage};
use sorcen_runtime::rng::Rng;

/// Largest picture that is decoded, in bytes of pixels: a file of a few kilobytes can claim any size.
const MOST_BYTES: u64 = 1 << 30;

/// Decodes a PNG, JPEG, WebP or GIF file, told apart by their first bytes: turned as its EXIF orientation says,
/// 16 bits cut to 8, grey as RGB, CMYK converted, transparent parts over white, the first picture of an animation.
///
/// # Errors
/// What is wrong with the file, in a few words. A JPEG that is cut off is refused, though most of it could be shown.
pub fn decode(bytes: &[u8]) -> Result<RgbImage, String> {
    if bytes.starts_with(&[0xFF, 0xD8]) && !jpeg_is_whole(bytes) {
        return Err("a JPEG file that is cut off".into());
    }
    let text = |error: image::ImageError| error.to_string().trim().replace('\n', " ");
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|error| error.to_string())?;
    let mut decoder = reader.into_decoder().map_err(text)?;
    if decoder.total_bytes() > MOST_BYTES {
        let (width, height) = decoder.dimensions();
        return Err(format!("{width}x{height} pixels, more than {MOST_BYTES} bytes"));
    }
    let orientation = decoder.orientation().map_err(text)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(text)?;
    picture.apply_orientation(orientation);
    Ok(over_white(&picture))
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

fn over_white(picture: &DynamicImage) -> RgbImage {
    if !picture.color().has_alpha() {
        return picture.to_rgb8();
    }
    let rgba = picture.to_rgba8();
    RgbImage::from_fn(rgba.width(), rgba.height(), |x, y| {
        let image::Rgba([r, g, b, alpha]) = *rgba.get_pixel(x, y);
        let over = |c: u8| {
            let sum = u32::from(c) * u32::from(alpha) + 255 * (255 - u32::from(alpha));
            ((sum + 127) / 255) as u8
        };
        image::Rgb([over(r), over(g), over(b)])
    })
}

/// The shorter side scaled to `resize` (bicubic, smoothed where it shrinks), then the middle `side` x `side` cut
/// out: sizes and offsets as torchvision's `Resize` and `CenterCrop` have them. `resize` is at least `side`.
pub fn scaled_and_cut(picture: &RgbImage, resize: u32, side: u32) -> RgbImage {
    let (width, height) = picture.dimensions();
    let scale = |length: u32| (u64::from(length) * u64::from(resize) / u64::from(width.min(height))) as u32;
    let (width, height) = (scale(width), scale(height));
    let (left, top) = (half_even(width - side), half_even(height - side));
    let scaled = match picture.dimensions() == (width, height) {
        true => picture,
        false => &imageops::resize(picture, width, height, FilterType::CatmullRom),
    };
    imageops::crop_imm(scaled, left, top, side, side).to_image()
}

/// A random resized crop as the official training on pixels has it: an area of 0.2 to 1 of the picture, sides of
/// ratio 3/4 to 4/3, one draw, sides cut to the picture's; scaled to `side` (bicubic); mirrored half of the time.
pub fn random_view(picture: &RgbImage, side: u32, rng: &Rng) -> RgbImage {
    let (width, height) = picture.dimensions();
    let area = f64::from(width) * f64::from(height) * (0.2 + 0.8 * rng.uniform(0));
    let ratio = ((0.75f64).ln() * (1.0 - 2.0 * rng.uniform(1))).exp();
    let cut = |length: f64, most: u32| (length.sqrt().round() as u32).clamp(1, most);
    let (w, h) = (cut(area * ratio, width), cut(area / ratio, height));
    let offset = |i: u64, room: u32| rng.below(i, u64::from(room) + 1) as u32;
    let (left, top) = (offset(2, width - w), offset(3, height - h));
    let crop = imageops::crop_imm(picture, left, top, w, h).to_image();
    let mut view = imageops::resize(&crop, side, side, FilterType::CatmullRom);
    if rng.below(4, 2) == 1 {
        imageops::flip_horizontal_in_place(&mut view);
    }
    view
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
            assert_eq!(scaled_and_cut(&wide, 4, 4).get_pixel(0, 0).0[0], first, "{extra} wider");
        }
        let tall = RgbImage::from_fn(30, 47, |_, y| image::Rgb([y as u8, 0, 0]));
        assert_eq!(scaled_and_cut(&tall, 20, 16).dimensions(), (16, 16));
    }

    #[test]
    fn views_are_parts_of_the_picture() {
        let picture = RgbImage::from_fn(60, 40, |x, y| image::Rgb([x as u8 * 4, y as u8 * 6, 0]));
        let (mut mirrored, mut widest) = (0, 0);
        for i in 0..200 {
            let rng = Rng::new(0, sorcen_runtime::rng::Stream::Tokenizer, i);
            let view = random_view(&picture, 16, &rng);
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
            .write_to(&mut whole, image::ImageFormat::Jpeg)
            .unwrap();
        let whole = whole.into_inner();
        assert!(decode(&whole).is_ok());
        assert!(decode(&[&whole[..], b"trailing bytes"].concat()).is_ok());
        for end in [whole.len() - 1, whole.len() - 2, whole.len() * 2 / 3, 200, 20, 3] {
            assert!(decode(&whole[..end]).is_err(), "{end} of {} bytes", whole.len());
        }
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        // A GIF header that claims 65535 x 65535 pixels.
        let bomb = b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;";
        let error = decode(bomb).unwrap_err();
        assert!(error.contains("65535x65535") || error.contains("limit"), "{error}");
    }
}
