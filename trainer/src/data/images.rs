//! [`ImageSet`]: labelled RGB images of one size, from idx files or image folders.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use image::imageops::{self, FilterType};
use image::{DynamicImage, RgbImage};

use super::idx::Idx;
use super::{DataError, Table};

/// Where images come from, which of them are wanted, and what they are called.
#[derive(Clone, Debug, Default)]
pub struct ImageQuery {
    /// idx files (`.idx3-ubyte`, `.idx4-ubyte`, also gzipped) or folders of PNG, JPEG or GIF files.
    ///
    /// A folder without labels has one subfolder per class (or none: then all images are one class).
    pub images: Vec<PathBuf>,
    /// Labels for each of `images`, in order, or none at all: a CSV file with a header (one row per
    /// image; for a folder, the column `file` names them), or an idx file of bytes.
    pub labels: Vec<PathBuf>,
    /// The column of the CSV files that holds the class.
    pub class_column: String,
    /// Keep only images where each of these columns has this value.
    pub keep: Vec<(String, String)>,
    /// Leave out, with their classes, images where any of these columns has this value.
    pub leave_out: Vec<(String, String)>,
    /// Side in pixels to bring images to (shorter side scaled, then the middle cut out). Without it
    /// all images have to be square and of one size.
    pub size: Option<usize>,
}

/// Square RGB images of one size; those in folders are read when asked for.
#[derive(Debug)]
pub struct ImageSet {
    side: usize,
    sources: Vec<Source>,
    items: Vec<Item>,
    header: Vec<String>,
    class_names: Vec<String>,
    resize: bool,
}

#[derive(Debug)]
enum Source {
    /// `[N, height, width, channels]`, 1 or 3 channels
    Idx {
        path: PathBuf,
        pixels: Vec<u8>,
        shape: [usize; 3],
    },
    Files(Vec<PathBuf>),
}

#[derive(Debug)]
struct Item {
    source: usize,
    index: usize,
    label: u16,
    fields: Vec<String>,
}

impl ImageSet {
    /// Lists the images that `query` asks for, in the order of the files (names sorted in folders).
    ///
    /// Class names are the sorted values of the class column over all images that are not left out,
    /// whatever `keep` says: the splits of a set agree on them.
    ///
    /// # Errors
    /// [`DataError`] for files that cannot be read, tables that do not fit the images, and sizes that
    /// differ.
    pub fn open(query: &ImageQuery) -> Result<Self, DataError> {
        let nothing = |found: usize| DataError::invalid(Path::new("--labels"), "files", query.images.len(), found);
        if !query.labels.is_empty() && query.labels.len() != query.images.len() {
            return Err(nothing(query.labels.len()));
        }
        let mut sources = Vec::new();
        let mut rows = Vec::new(); // (source, index, class, fields)
        let mut header: Option<Vec<String>> = None;
        for (number, path) in query.images.iter().enumerate() {
            let labels = query.labels.get(number).map(PathBuf::as_path);
            let (source, listing) = list(path, labels, &query.class_column)?;
            let place = labels.unwrap_or(path);
            let header = header.get_or_insert_with(|| listing.header.clone());
            if *header != listing.header {
                let found = format!("{:?}", listing.header);
                return Err(DataError::invalid(place, "columns", format_args!("{header:?}"), found));
            }
            let (keep, leave_out) =
                (conditions(place, header, &query.keep)?, conditions(place, header, &query.leave_out)?);
            for (index, (class, fields)) in listing.rows.into_iter().enumerate() {
                if !leave_out.iter().any(|(column, value)| fields[*column] == *value) {
                    let kept = keep.iter().all(|(column, value)| fields[*column] == *value);
                    rows.push((number, index, class, fields, kept));
                }
            }
            sources.push(source);
        }
        let names: BTreeSet<&String> = rows.iter().map(|(_, _, class, _, _)| class).collect();
        let class_names: Vec<String> = names.into_iter().cloned().collect();
        if class_names.len() > 1 << 16 {
            return Err(DataError::invalid(Path::new("--labels"), "classes", "at most 65536", class_names.len()));
        }
        let label = |class: &String| class_names.partition_point(|name| name < class) as u16;
        let items: Vec<Item> = rows
            .into_iter()
            .filter(|row| row.4)
            .map(|(source, index, class, fields, _)| Item { source, index, label: label(&class), fields })
            .collect();
        let mut set = Self {
            side: 0,
            sources,
            items,
            header: header.unwrap_or_default(),
            class_names,
            resize: query.size.is_some(),
        };
        if set.is_empty() {
            let place = query.images.first().map_or(Path::new("--images"), PathBuf::as_path);
            return Err(DataError::invalid(place, "images", "at least one that the conditions keep", 0));
        }
        set.side = match query.size {
            Some(side) => side,
            None => set.picture(0)?.width() as usize,
        };
        Ok(set)
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is no image (never, after [`open`](Self::open)).
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Width and height of every image, in pixels.
    pub fn side(&self) -> usize {
        self.side
    }

    /// Names of the classes, sorted.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// Label of image `index`, an index into [`class_names`](Self::class_names).
    ///
    /// # Panics
    /// Where `index >= len()`.
    pub fn label(&self, index: usize) -> u16 {
        self.items[index].label
    }

    /// The pixels of image `index`: `[side, side, 3]`, transparent parts over white.
    ///
    /// # Errors
    /// [`DataError`] where the file is no image or has another size than the others.
    ///
    /// # Panics
    /// Where `index >= len()`.
    pub fn rgb(&self, index: usize) -> Result<Vec<u8>, DataError> {
        let picture = self.picture(index)?;
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        if (width, height) == (self.side, self.side) {
            return Ok(picture.into_raw());
        }
        if !self.resize {
            let expected = format!("{0}x{0} pixels as the first (or give --size)", self.side);
            let (file, item) = self.place(index);
            return Err(DataError::invalid(&file, item, expected, format_args!("{width}x{height}")));
        }
        Ok(scaled_and_cut(&picture, self.side as u32).into_raw())
    }

    /// What is known of the images, as text for `items.csv`: the columns `columns` (all, where empty).
    ///
    /// # Errors
    /// [`DataError::Invalid`] for a column that is not there.
    pub fn items_csv(&self, columns: &[String]) -> Result<String, DataError> {
        let all: Vec<usize> = (0..self.header.len()).collect();
        let chosen = columns.iter().map(|name| column(Path::new("--columns"), &self.header, name));
        let chosen = if columns.is_empty() { all } else { chosen.collect::<Result<_, _>>()? };
        let header = chosen.iter().map(|&at| self.header[at].as_str()).collect::<Vec<_>>();
        let rows = self.items.iter().map(|item| chosen.iter().map(|&at| item.fields[at].as_str()).collect());
        Ok(Table::csv(std::iter::once(header).chain(rows)))
    }

    fn picture(&self, index: usize) -> Result<RgbImage, DataError> {
        let item = &self.items[index];
        match &self.sources[item.source] {
            Source::Files(files) => read_picture(&files[item.index]),
            Source::Idx { pixels, shape: [height, width, channels], .. } => {
                let len = height * width * channels;
                let bytes = &pixels[item.index * len..][..len];
                let rgb = match channels {
                    1 => bytes.iter().flat_map(|&grey| [grey; 3]).collect(),
                    _ => bytes.to_vec(),
                };
                let picture = RgbImage::from_raw(*width as u32, *height as u32, rgb);
                let (file, item) = self.place(index);
                picture.ok_or_else(|| DataError::invalid(&file, item, "3 bytes a pixel", channels))
            }
        }
    }

    /// For errors: the file of image `index`, and its name there.
    fn place(&self, index: usize) -> (PathBuf, String) {
        let item = &self.items[index];
        match &self.sources[item.source] {
            Source::Idx { path, .. } => (path.clone(), format!("image {}", item.index)),
            Source::Files(files) => (files[item.index].clone(), "image".into()),
        }
    }
}

/// What is known of the images of one source: a class and the values of the columns for each.
struct Listing {
    header: Vec<String>,
    rows: Vec<(String, Vec<String>)>,
}

fn list(path: &Path, labels: Option<&Path>, class_column: &str) -> Result<(Source, Listing), DataError> {
    if path.is_dir() {
        return match labels {
            Some(table) => list_table(path, table, class_column),
            None => list_folder(path),
        };
    }
    let idx = Idx::read(path)?;
    let shape = match idx.shape[..] {
        [_, height, width] => [height, width, 1],
        [_, height, width, channels @ (1 | 3)] => [height, width, channels],
        _ => {
            let expected = "[N, height, width] or [N, height, width, 1 or 3]";
            return Err(DataError::invalid(path, "shape", expected, format_args!("{:?}", idx.shape)));
        }
    };
    let count = idx.shape[0];
    if count > 0 && (shape[0] != shape[1] || shape[0] == 0) {
        return Err(DataError::invalid(path, "shape", "square images", format_args!("{:?}", idx.shape)));
    }
    let listing = match labels {
        None => Listing { header: Vec::new(), rows: vec![("image".into(), Vec::new()); count] },
        Some(labels) => list_labels(labels, class_column)?,
    };
    if listing.rows.len() != count {
        let place = labels.unwrap_or(path);
        return Err(DataError::invalid(place, "labels", format_args!("{count} (the images)"), listing.rows.len()));
    }
    Ok((Source::Idx { path: path.to_path_buf(), pixels: idx.bytes, shape }, listing))
}

/// Labels of an idx file of images: CSV, or idx of bytes (classes `0`, `1`, …; two digits where needed).
fn list_labels(path: &Path, class_column: &str) -> Result<Listing, DataError> {
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv")) {
        let table = Table::read(path)?;
        let class = column(path, table.header(), class_column)?;
        let rows = (0..table.len()).map(|at| (table.row(at)[class].clone(), table.row(at).to_vec())).collect();
        return Ok(Listing { header: table.header().to_vec(), rows });
    }
    let idx = Idx::read(path)?;
    if idx.shape.len() != 1 {
        return Err(DataError::invalid(path, "shape", "[N]", format_args!("{:?}", idx.shape)));
    }
    let width = idx.bytes.iter().max().map_or(1, |max| max.to_string().len());
    let rows = idx.bytes.iter().map(|label| (format!("{label:0width$}"), Vec::new())).collect();
    Ok(Listing { header: Vec::new(), rows })
}

/// A folder whose images a table lists in its column `file`.
fn list_table(folder: &Path, table: &Path, class_column: &str) -> Result<(Source, Listing), DataError> {
    let listing = list_labels(table, class_column)?;
    let file = column(table, &listing.header, "file")?;
    let files = listing.rows.iter().map(|(_, fields)| folder.join(&fields[file])).collect();
    Ok((Source::Files(files), listing))
}

/// A folder with one subfolder per class, or of images that are all one class; hidden files are skipped.
fn list_folder(folder: &Path) -> Result<(Source, Listing), DataError> {
    let mut files = Vec::new();
    let mut rows = Vec::new();
    for entry in sorted_entries(folder)? {
        let class = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !entry.is_dir() {
            rows.push(("image".to_string(), vec![class]));
            files.push(entry);
            continue;
        }
        for file in sorted_entries(&entry)? {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            rows.push((class.clone(), vec![format!("{class}/{name}")]));
            files.push(file);
        }
    }
    Ok((Source::Files(files), Listing { header: vec!["file".into()], rows }))
}

fn sorted_entries(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let entries = folder.read_dir().map_err(DataError::io(folder))?;
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry.map_err(DataError::io(folder))?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

fn column(place: &Path, header: &[String], name: &str) -> Result<usize, DataError> {
    let missing = || DataError::invalid(place, "columns", format_args!("one named {name}"), format_args!("{header:?}"));
    header.iter().position(|field| field == name).ok_or_else(missing)
}

fn conditions(place: &Path, header: &[String], pairs: &[(String, String)]) -> Result<Vec<(usize, String)>, DataError> {
    pairs.iter().map(|(name, value)| Ok((column(place, header, name)?, value.clone()))).collect()
}

/// Reads an image file: the format by its first bytes, transparent parts over white.
fn read_picture(path: &Path) -> Result<RgbImage, DataError> {
    let reader = image::ImageReader::open(path).and_then(|reader| reader.with_guessed_format());
    let picture = reader.map_err(DataError::io(path))?.decode();
    let picture = picture.map_err(|error| DataError::invalid(path, "contents", "a PNG, JPEG or GIF image", error))?;
    Ok(over_white(&picture))
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

/// The shorter side scaled to `side`, then the middle cut out.
fn scaled_and_cut(picture: &RgbImage, side: u32) -> RgbImage {
    let (width, height) = picture.dimensions();
    let scale = |length: u32| (u64::from(length) * u64::from(side)).div_ceil(u64::from(width.min(height))) as u32;
    let scaled = imageops::resize(picture, scale(width), scale(height), FilterType::CatmullRom);
    let (left, top) = ((scaled.width() - side) / 2, (scaled.height() - side) / 2);
    imageops::crop_imm(&scaled, left, top, side, side).to_image()
}

#[cfg(test)]
#[path = "images_tests.rs"]
mod tests;
