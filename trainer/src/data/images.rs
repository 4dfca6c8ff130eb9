//! [`ImageSet`]: labelled RGB images of one size, from idx files, folders or tar shards.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use image::RgbImage;
use sha2::{Digest, Sha256};
use sorcen_export::found;
use sorcen_runtime::rng::{Rng, Stream};
use sorcen_runtime::MappedFile;

use super::idx::Idx;
use super::{picture, shards, DataError, Table};

/// The class of images of which none is known.
pub const UNLABELLED: &str = "image";

/// Where images come from, which of them are wanted, and what they are called.
#[derive(Clone, Debug, Default)]
pub struct ImageQuery {
    /// idx files (`.idx3-ubyte`, `.idx4-ubyte`, also gzipped), folders of PNG, JPEG, WebP or GIF files, or tar
    /// shards of such (`.tar`, webdataset's layout).
    ///
    /// A folder without labels has one subfolder per class; images beside the subfolders are of the class
    /// [`UNLABELLED`].
    /// The classes in shards are those of `KEY.cls`, or of the field `class_column` of `KEY.json`, or folders.
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
    /// What the shorter side is scaled to before `size` is cut out, at least `size`; none: `size`.
    pub resize: Option<usize>,
    /// Images with a shorter side than this are faulty.
    pub min_side: usize,
    /// Views of each image beyond the middle: random resized crops, half of them mirrored. Needs `size`.
    pub more_views: usize,
}

/// Square RGB images of one size; those in folders are read when asked for.
#[derive(Debug)]
pub struct ImageSet {
    side: usize,
    sources: Vec<Source>,
    items: Vec<Item>,
    header: Vec<String>,
    class_names: Vec<String>,
    unlabelled: usize,
    /// What the shorter side is scaled to; none: images have to be of one size.
    resize: Option<usize>,
    min_side: usize,
    /// Views of each item, one after another: the middle, then random ones.
    views: usize,
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
    Shard {
        path: PathBuf,
        file: MappedFile,
        /// Name and place of each image.
        images: Vec<(String, Range<usize>)>,
    },
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
    /// Class names are the sorted values of the class column (by value, where all are numbers) over all images that
    /// are not left out, whatever `keep` says: the splits of a set agree on them.
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
        let mut rows = Vec::new(); // (source, index, class, fields, kept)
        let mut unlabelled = 0;
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
                    unlabelled += usize::from(kept && class.is_none());
                    let class = class.unwrap_or_else(|| UNLABELLED.into());
                    rows.push((number, index, class, fields, kept));
                }
            }
            sources.push(source);
        }
        let names: BTreeSet<&String> = rows.iter().map(|(_, _, class, _, _)| class).collect();
        let mut class_names: Vec<String> = names.into_iter().cloned().collect();
        if class_names.iter().all(|name| name.parse::<u64>().is_ok()) {
            class_names.sort_by_key(|name| name.parse::<u64>().unwrap_or_default());
        }
        if class_names.len() > 1 << 16 {
            return Err(DataError::invalid(Path::new("--labels"), "classes", "at most 65536", class_names.len()));
        }
        let labels: HashMap<&str, u16> = class_names.iter().map(String::as_str).zip(0..=u16::MAX).collect();
        let items: Vec<Item> = rows
            .into_iter()
            .filter(|row| row.4)
            .map(|(source, index, class, fields, _)| Item { source, index, label: labels[class.as_str()], fields })
            .collect();
        let mut set = Self {
            side: 0,
            sources,
            items,
            header: header.unwrap_or_default(),
            class_names,
            unlabelled,
            resize: query.size.map(|size| query.resize.unwrap_or(size)),
            min_side: query.min_side,
            views: 1 + query.more_views,
        };
        if set.views > 1 {
            set.header.push("view".into());
        }
        if set.is_empty() {
            let place = query.images.first().map_or(Path::new("--images"), PathBuf::as_path);
            return Err(DataError::invalid(place, "images", "at least one that the conditions keep", 0));
        }
        set.side = match query.size {
            Some(side) => side,
            // Faulty images are for those to report who read them all.
            None => match set.items.iter().find_map(|item| set.picture(item).ok()) {
                Some(picture) => picture.width() as usize,
                None => set.picture(&set.items[0])?.width() as usize,
            },
        };
        Ok(set)
    }

    /// Number of images; each view counts.
    pub fn len(&self) -> usize {
        self.items.len() * self.views
    }

    /// Whether there is no image (never, after [`open`](Self::open)).
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Width and height of every image, in pixels.
    pub fn side(&self) -> usize {
        self.side
    }

    /// What the shorter side is scaled to before the middle is cut out; none: images are taken as they are.
    pub fn resize(&self) -> Option<usize> {
        self.resize
    }

    /// SHA-256 of everything that is known of the images, pixels left out.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        let mut add = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        self.class_names.iter().chain(&self.header).for_each(|text| add(text));
        add(&self.views.to_string());
        for item in &self.items {
            let (file, name) = self.place(item);
            add(&file.to_string_lossy());
            add(&name);
            add(&item.label.to_string());
            item.fields.iter().for_each(|field| add(field));
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Names of the classes, sorted.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// How many of the images have no class of their own: they are of the class [`UNLABELLED`].
    pub fn unlabelled(&self) -> usize {
        self.unlabelled * self.views
    }

    /// Label of image `index`, an index into [`class_names`](Self::class_names).
    ///
    /// # Panics
    /// Where `index >= len()`.
    pub fn label(&self, index: usize) -> u16 {
        self.items[index / self.views].label
    }

    /// The pixels of image `index`: `[side, side, 3]`, transparent parts over white.
    ///
    /// # Errors
    /// [`DataError`] where the file is no image or has another size than the others.
    ///
    /// # Panics
    /// Where `index >= len()`.
    pub fn rgb(&self, index: usize) -> Result<Vec<u8>, DataError> {
        let item = &self.items[index / self.views];
        let picture = self.picture(item)?;
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        let invalid = |expected: String| {
            let (file, item) = self.place(item);
            Err(DataError::invalid(&file, item, expected, format_args!("{width}x{height}")))
        };
        if width.min(height) < self.min_side {
            return invalid(format!("sides of at least {} pixels (--min_side)", self.min_side));
        }
        match self.resize {
            Some(_) if !index.is_multiple_of(self.views) => {
                // By the view's number among all: the same in every shard.
                let rng = Rng::new(0, Stream::Tokenizer, index as u64);
                Ok(picture::random_view(&picture, self.side as u32, &rng).into_raw())
            }
            Some(resize) => Ok(picture::scaled_and_cut(&picture, resize as u32, self.side as u32).into_raw()),
            None if (width, height) == (self.side, self.side) => Ok(picture.into_raw()),
            None => invalid(format!("{0}x{0} pixels as the first (or give --size)", self.side)),
        }
    }

    /// What is known of the images `numbers`, as text for `items.csv`: the columns `columns` (all, where empty);
    /// `None` where there are no columns.
    ///
    /// # Errors
    /// [`DataError::Invalid`] for a column that is not there.
    ///
    /// # Panics
    /// Where a number is not below [`len`](Self::len).
    pub fn items_csv(&self, numbers: &[usize], columns: &[String]) -> Result<Option<String>, DataError> {
        let all: Vec<usize> = (0..self.header.len()).collect();
        let chosen = columns.iter().map(|name| column(Path::new("--columns"), &self.header, name));
        let chosen = if columns.is_empty() { all } else { chosen.collect::<Result<_, _>>()? };
        let header = chosen.iter().map(|&at| self.header[at].as_str()).collect::<Vec<_>>();
        let views: Vec<String> = (0..self.views).map(|view| view.to_string()).collect();
        let row = |&number: &usize| {
            let fields = &self.items[number / self.views].fields;
            let view = &views[number % self.views]; // the column after those of the item
            chosen.iter().map(|&at| fields.get(at).unwrap_or(view).as_str()).collect()
        };
        Ok((!chosen.is_empty()).then(|| Table::csv(std::iter::once(header).chain(numbers.iter().map(row)))))
    }

    fn picture(&self, item: &Item) -> Result<RgbImage, DataError> {
        match &self.sources[item.source] {
            Source::Files(files) => {
                let file = &files[item.index];
                decoded(file, "contents", &std::fs::read(file).map_err(DataError::io(file))?)
            }
            Source::Shard { path, file, images } => {
                let (name, range) = &images[item.index];
                decoded(path, name, &file[range.clone()])
            }
            Source::Idx { pixels, shape: [height, width, channels], .. } => {
                let len = height * width * channels;
                let bytes = &pixels[item.index * len..][..len];
                let rgb = match channels {
                    1 => bytes.iter().flat_map(|&grey| [grey; 3]).collect(),
                    _ => bytes.to_vec(),
                };
                let picture = RgbImage::from_raw(*width as u32, *height as u32, rgb);
                let (file, item) = self.place(item);
                picture.ok_or_else(|| DataError::invalid(&file, item, "3 bytes a pixel", channels))
            }
        }
    }

    /// For errors: the file of an image, and its name there.
    fn place(&self, item: &Item) -> (PathBuf, String) {
        match &self.sources[item.source] {
            Source::Idx { path, .. } => (path.clone(), format!("image {}", item.index)),
            Source::Files(files) => (files[item.index].clone(), "image".into()),
            Source::Shard { path, images, .. } => (path.clone(), images[item.index].0.clone()),
        }
    }
}

/// What is known of the images of one source: a class and the values of the columns for each.
struct Listing {
    header: Vec<String>,
    /// No class: [`UNLABELLED`].
    rows: Vec<(Option<String>, Vec<String>)>,
}

fn list(path: &Path, labels: Option<&Path>, class_column: &str) -> Result<(Source, Listing), DataError> {
    if let Some(found) = found::instead_of_images(path) {
        let expected = "a folder of pictures, an idx file or a tar archive";
        return Err(DataError::invalid(path, "images", expected, found));
    }
    if path.is_dir() {
        return match labels {
            Some(table) => list_table(path, table, class_column),
            None => list_folder(path),
        };
    }
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("tar")) {
        return list_shard(path, class_column);
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
        None => Listing { header: Vec::new(), rows: vec![(None, Vec::new()); count] },
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
        let rows = (0..table.len()).map(|at| (Some(table.row(at)[class].clone()), table.row(at).to_vec())).collect();
        return Ok(Listing { header: table.header().to_vec(), rows });
    }
    let idx = Idx::read(path)?;
    if idx.shape.len() != 1 {
        return Err(DataError::invalid(path, "shape", "[N]", format_args!("{:?}", idx.shape)));
    }
    let width = idx.bytes.iter().max().map_or(1, |max| max.to_string().len());
    let rows = idx.bytes.iter().map(|label| (Some(format!("{label:0width$}")), Vec::new())).collect();
    Ok(Listing { header: Vec::new(), rows })
}

/// A folder whose images a table lists in its column `file`.
fn list_table(folder: &Path, table: &Path, class_column: &str) -> Result<(Source, Listing), DataError> {
    let listing = list_labels(table, class_column)?;
    let file = column(table, &listing.header, "file")?;
    let files = listing.rows.iter().map(|(_, fields)| folder.join(&fields[file])).collect();
    Ok((Source::Files(files), listing))
}

/// A folder with one subfolder per class; images beside those have none. Hidden files are skipped.
fn list_folder(folder: &Path) -> Result<(Source, Listing), DataError> {
    let mut files = Vec::new();
    let mut rows = Vec::new();
    for entry in sorted_entries(folder)? {
        let class = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !entry.is_dir() {
            rows.push((None, vec![class]));
            files.push(entry);
            continue;
        }
        for file in sorted_entries(&entry)? {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            rows.push((Some(class.clone()), vec![format!("{class}/{name}")]));
            files.push(file);
        }
    }
    Ok((Source::Files(files), Listing { header: vec!["file".into()], rows }))
}

/// A tar shard; the column `file` is the name in the shard, after the shard's own.
fn list_shard(path: &Path, class_column: &str) -> Result<(Source, Listing), DataError> {
    let file = MappedFile::open(path).map_err(DataError::io(path))?;
    let shard = path.file_name().unwrap_or_default().to_string_lossy();
    let (mut images, mut rows) = (Vec::new(), Vec::new());
    for sample in shards::samples(path, &file, class_column)? {
        rows.push((sample.class, vec![format!("{shard}/{}", sample.name)]));
        images.push((sample.name, sample.range));
    }
    Ok((Source::Shard { path: path.to_path_buf(), file, images }, Listing { header: vec!["file".into()], rows }))
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

fn decoded(path: &Path, item: &str, bytes: &[u8]) -> Result<RgbImage, DataError> {
    let invalid = |error| DataError::invalid(path, item, "a PNG, JPEG, WebP or GIF image", error);
    picture::decode(bytes).map_err(invalid)
}

#[cfg(test)]
#[path = "images_tests.rs"]
mod tests;
