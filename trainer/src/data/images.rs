//! [`ImageSet`]: labelled RGB images of one size, from idx files, folders or tar shards.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use image::RgbImage;
use sha2::{Digest, Sha256};
use sorcen_export::found;
use sorcen_export::pixels::{self, Fit, Unfit};
use sorcen_runtime::rng::{Rng, Stream};

use super::idx::{open_unpacked, up_to, Idx};
use super::listing::{chosen, column, conditions, unambiguous, Beside, Fault, Listing, Row, Why};
use super::names::{class_name, CLASS_NAME};
use super::{folder, shards, DataError, Table};

/// The class of images of which none is known.
pub const UNLABELLED: &str = "image";

/// Where images come from, which of them are wanted, and what they are called.
#[derive(Clone, Debug, Default)]
pub struct ImageQuery {
    /// idx files (`.idx3-ubyte`, `.idx4-ubyte`), folders of PNG, JPEG, WebP or GIF files, or tar shards of such
    /// (`.tar`, webdataset's layout); files also gzipped.
    ///
    /// A folder without labels has one subfolder per class, with pictures or further folders in it; images beside the
    /// subfolders are of the class [`UNLABELLED`].
    /// The classes in shards are those of `KEY.cls`, or of the field `class_column` of `KEY.json`, or folders.
    pub images: Vec<PathBuf>,
    /// Labels for each of `images`, in order, or none at all: a CSV file with a header (one row per
    /// image; for a folder, the column `file` names them), or an idx file of bytes. Shards take none.
    pub labels: Vec<PathBuf>,
    /// The classes, and who says so; none: those that the images have. An image of another class is faulty then.
    pub classes: Option<(PathBuf, Vec<String>)>,
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
///
/// What is wrong with one image (its pixels, its class, its place in a cut-off shard) is an error of
/// [`rgb`](Self::rgb) for that image.
#[derive(Debug)]
pub struct ImageSet {
    sources: Vec<Source>,
    items: Vec<Item>,
    header: Vec<String>,
    class_names: Vec<String>,
    unlabelled: usize,
    notes: Vec<String>,
    /// How images become `side` pixels a side.
    fit: Fit,
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
    Shard(PathBuf, shards::Shard),
}

#[derive(Debug)]
struct Item {
    source: usize,
    index: usize,
    label: u16,
    fields: Vec<String>,
    fault: Option<Fault>,
}

impl ImageSet {
    /// Lists the images that `query` asks for, in the order of the files (names sorted in folders).
    ///
    /// Class names are the sorted values of the class column (by value, where all are numbers) over all images that
    /// are not left out, whatever `keep` says: the splits of a set agree on them. `query.classes` says them instead.
    ///
    /// # Errors
    /// [`DataError`] for files that cannot be read, tables that do not fit the images, and sizes that
    /// differ.
    pub fn open(query: &ImageQuery) -> Result<Self, DataError> {
        if !query.labels.is_empty() && query.labels.len() != query.images.len() {
            let (expected, found) = (query.images.len(), query.labels.len());
            return Err(DataError::invalid(Path::new("--labels"), "files", expected, found));
        }
        let Found { sources, rows, header, classes, beside } = Found::all(query)?;
        let notes = beside.notes();
        if !rows.iter().any(|found| found.kept) {
            let place = query.images.first().map_or(Path::new("--images"), PathBuf::as_path);
            let found = [vec!["0".into()], notes].concat().join("; ");
            return Err(DataError::invalid(place, "images", "at least one that the conditions keep", found));
        }
        let (class_names, whose) = match &query.classes {
            Some((whose, names)) => (names.clone(), Some(whose.as_path())),
            None => (sorted(classes), None),
        };
        if class_names.len() > 1 << 16 {
            return Err(DataError::invalid(Path::new("--labels"), "classes", "at most 65536", class_names.len()));
        }
        let labels = Labels::new(&class_names, whose);
        let (mut items, mut unlabelled) = (Vec::new(), 0);
        for FoundRow { source, index, row, .. } in rows.into_iter().filter(|found| found.kept) {
            let mut item = Item { source, index, label: 0, fields: row.fields, fault: row.fault };
            if item.fault.is_none() {
                let place = || place(&sources[source], index);
                match labels.of(row.class.as_deref(), place) {
                    Ok(label) => {
                        item.label = label;
                        unlabelled += usize::from(row.class.is_none());
                    }
                    Err(fault) => item.fault = Some(fault),
                }
            }
            items.push(item);
        }
        let resize = query.size.map(|size| query.resize.unwrap_or(size));
        let fit = Fit { side: query.size.unwrap_or(0), resize, min_side: query.min_side };
        let mut set = Self { sources, items, header, class_names, unlabelled, notes, fit, views: 1 + query.more_views };
        if set.views > 1 {
            set.header.push("view".into());
        }
        if query.size.is_none() {
            // Faulty images are for those to report who read them all.
            set.fit.side = match set.items.iter().find_map(|item| set.picture(item).ok()) {
                Some(picture) => picture.width() as usize,
                None => set.picture(&set.items[0])?.width() as usize,
            };
        }
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
        self.fit.side
    }

    /// What the shorter side is scaled to before the middle is cut out; none: images are taken as they are.
    pub fn resize(&self) -> Option<usize> {
        self.fit.resize
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
            let (file, name) = place(&self.sources[item.source], item.index);
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
        let rgb = match index.is_multiple_of(self.views) {
            true => self.fit.fit(picture),
            // By the view's number among all: the same in every shard.
            false => self.fit.view(&picture, &Rng::new(0, Stream::Tokenizer, index as u64)),
        };
        rgb.map_err(|unfit| self.unfit(item, "image", unfit))
    }

    /// Why image `index` cannot be taken, as far as that is known without its pixels.
    ///
    /// # Errors
    /// [`DataError::Invalid`]: its class, or its place in a damaged shard.
    ///
    /// # Panics
    /// Where `index >= len()`.
    pub fn check(&self, index: usize) -> Result<(), DataError> {
        self.items[index / self.views].fault.as_ref().map_or(Ok(()), |fault| Err(fault.error()))
    }

    /// What lies beside the images and was not taken, and the like, a sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
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
        let chosen = chosen(&self.header, columns)?;
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
        if let Some(fault) = &item.fault {
            return Err(fault.error());
        }
        let decoded = match &self.sources[item.source] {
            Source::Files(files) => {
                let file = &files[item.index];
                pixels::decode(&pixels::read_file(file).map_err(DataError::io(file))?)
            }
            Source::Shard(path, shard) => pixels::decode(&shard.bytes(item.index).map_err(DataError::io(path))?),
            Source::Idx { pixels, shape: [height, width, channels], .. } => {
                let len = height * width * channels;
                let bytes = &pixels[item.index * len..][..len];
                let rgb = match channels {
                    1 => bytes.iter().flat_map(|&grey| [grey; 3]).collect(),
                    _ => bytes.to_vec(),
                };
                let picture = RgbImage::from_raw(*width as u32, *height as u32, rgb);
                picture.ok_or_else(|| Unfit { expected: "3 bytes a pixel".into(), found: channels.to_string() })
            }
        };
        decoded.map_err(|unfit| self.unfit(item, "contents", unfit))
    }

    /// `what` of an image that is a file of its own; elsewhere its name says enough.
    fn unfit(&self, item: &Item, what: &str, Unfit { expected, found }: Unfit) -> DataError {
        let source = &self.sources[item.source];
        let (file, name) = place(source, item.index);
        DataError::invalid(&file, if matches!(source, Source::Files(_)) { what } else { &name }, expected, found)
    }
}

/// For errors: the file of an image, and its name there.
fn place(source: &Source, index: usize) -> (PathBuf, String) {
    match source {
        Source::Idx { path, .. } => (path.clone(), format!("image {index}")),
        Source::Files(files) => (files[index].clone(), "image".into()),
        Source::Shard(path, shard) => (path.clone(), shard.pictures[index].0.clone()),
    }
}

/// All that a query finds.
struct Found {
    sources: Vec<Source>,
    rows: Vec<FoundRow>,
    header: Vec<String>,
    classes: BTreeSet<String>,
    beside: Beside,
}

/// A row of a listing.
struct FoundRow {
    source: usize,
    index: usize,
    row: Row,
    /// Whether the query keeps it; one that it leaves out is not here at all.
    kept: bool,
}

impl Found {
    fn all(query: &ImageQuery) -> Result<Self, DataError> {
        let (mut sources, mut rows, mut classes) = (Vec::new(), Vec::new(), BTreeSet::new());
        let mut beside = Beside::default();
        let mut first: Option<Vec<String>> = None;
        for (source, path) in query.images.iter().enumerate() {
            let labels = query.labels.get(source).map(PathBuf::as_path);
            let (opened, listing) = list(path, labels, &query.class_column, &mut beside)?;
            let place = labels.unwrap_or(path);
            let header = first.get_or_insert_with(|| listing.header.clone());
            if *header != listing.header {
                let found = format!("{:?}", listing.header);
                return Err(DataError::invalid(place, "columns", format_args!("{header:?}"), found));
            }
            let (keep, leave_out) =
                (conditions(place, header, &query.keep)?, conditions(place, header, &query.leave_out)?);
            classes.extend(listing.classes);
            for (index, row) in listing.rows.into_iter().enumerate() {
                if leave_out.iter().any(|(column, value)| row.fields[*column] == *value) {
                    continue;
                }
                if row.fault.is_none() {
                    classes.insert(row.class.clone().unwrap_or_else(|| UNLABELLED.into()));
                }
                let kept = keep.iter().all(|(column, value)| row.fields[*column] == *value);
                rows.push(FoundRow { source, index, row, kept });
            }
            sources.push(opened);
        }
        Ok(Self { sources, rows, header: first.unwrap_or_default(), classes, beside })
    }
}

/// Names in order: by value, where all are numbers.
fn sorted(names: BTreeSet<String>) -> Vec<String> {
    let mut names: Vec<String> = names.into_iter().collect();
    if names.iter().all(|name| name.parse::<u64>().is_ok()) {
        names.sort_by_key(|name| name.parse::<u64>().unwrap_or_default());
    }
    names
}

/// Labels by the names of classes.
struct Labels<'a> {
    by_name: HashMap<&'a str, u16>,
    /// By value, where all names are numbers: `7` is `07`.
    by_value: HashMap<u64, u16>,
    /// Who says which classes there are; none: the images do.
    whose: Option<&'a Path>,
}

impl<'a> Labels<'a> {
    fn new(names: &'a [String], whose: Option<&'a Path>) -> Self {
        let values: Option<Vec<u64>> = names.iter().map(|name| name.parse().ok()).collect();
        let by_value = values.into_iter().flatten().zip(0..=u16::MAX).collect();
        Self { by_name: names.iter().map(String::as_str).zip(0..=u16::MAX).collect(), by_value, whose }
    }

    fn of(&self, class: Option<&str>, place: impl FnOnce() -> (PathBuf, String)) -> Result<u16, Fault> {
        let name = class.unwrap_or(UNLABELLED);
        let value = || self.whose.and(name.parse().ok()).and_then(|value: u64| self.by_value.get(&value));
        self.by_name.get(name).or_else(value).copied().ok_or_else(|| {
            let (file, item) = place();
            let whose = self.whose.unwrap_or(Path::new("the images")).display();
            let expected = format!("one of the {} classes of {whose} (--classes_from)", self.by_name.len());
            let found = class.map_or("none".into(), |name| format!("`{name}`"));
            Fault::new(&file, format_args!("class of {item}"), expected, found)
        })
    }
}

/// Opens one source: what kind it is, and what is known of its images.
fn list(
    path: &Path,
    labels: Option<&Path>,
    class_column: &str,
    beside: &mut Beside,
) -> Result<(Source, Listing), DataError> {
    if let Some(found) = found::instead_of_images(path) {
        let expected = "a folder of pictures, an idx file or a tar archive";
        return Err(DataError::invalid(path, "images", expected, found));
    }
    if path.is_dir() {
        if let Some(table) = labels {
            let listing = list_labels(table, class_column)?;
            return Ok((Source::Files(folder::list_named(path, table, &listing, beside)?), listing));
        }
        let (files, listing) = folder::list(path, beside)?;
        if listing.rows.is_empty() {
            beside.add(Why::EmptySource, path.display());
        }
        return Ok((Source::Files(files), listing));
    }
    if shards::is_shard(path) {
        if let Some(labels) = labels {
            let expected = "none for a tar shard, whose classes are in it (KEY.cls, KEY.json or folders)";
            return Err(DataError::invalid(path, "--labels", expected, labels.display()));
        }
        let (shard, listing) = shards::list(path, class_column, beside)?;
        return Ok((Source::Shard(path.to_path_buf(), shard), listing));
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
        None => Listing { rows: vec![Row::default(); count], ..Listing::default() },
        Some(labels) => list_labels(labels, class_column)?,
    };
    if listing.rows.len() != count {
        let place = labels.unwrap_or(path);
        return Err(DataError::invalid(place, "labels", format_args!("{count} (the images)"), listing.rows.len()));
    }
    Ok((Source::Idx { path: path.to_path_buf(), pixels: idx.bytes, shape }, listing))
}

/// Labels of images: CSV, or idx of bytes (classes `0`, `1`, …; two digits where needed), told apart by their first
/// bytes.
fn list_labels(path: &Path, class_column: &str) -> Result<Listing, DataError> {
    let start = open_unpacked(path).and_then(|mut file| up_to(&mut file, 3)).map_err(DataError::io(path))?;
    if start == [0, 0, 8] {
        let idx = Idx::read(path)?;
        if idx.shape.len() != 1 {
            return Err(DataError::invalid(path, "shape of the labels", "[N]", format_args!("{:?}", idx.shape)));
        }
        let width = idx.bytes.iter().max().map_or(1, |max| max.to_string().len());
        let row = |label: &u8| Row { class: Some(format!("{label:0width$}")), ..Row::default() };
        return Ok(Listing { rows: idx.bytes.iter().map(row).collect(), ..Listing::default() });
    }
    let unread = |found: String| {
        let expected = "a CSV file with a header line, or an idx file of unsigned bytes";
        DataError::invalid(path, "labels", expected, found)
    };
    let table = Table::read(path).map_err(|error| match error {
        DataError::Invalid { found, .. } if start.contains(&0) || found.contains("UTF-8") => unread(found),
        other => other,
    })?;
    if table.header().is_empty() {
        return Err(unread("nothing".into()));
    }
    let table = unambiguous(path, table)?;
    let class = column(path, table.header(), class_column)?;
    let row = |at: usize| {
        let fields = table.row(at).to_vec();
        let item = format!("row {} ({})", at + 1, fields.join(","));
        let (class, fault) = match class_name(fields[class].as_bytes()) {
            Ok(class) => (Some(class), None),
            Err(found) => (None, Some(Fault::new(path, item, CLASS_NAME, found))),
        };
        Row { class, fields, fault }
    };
    Ok(Listing { header: table.header().to_vec(), rows: (0..table.len()).map(row).collect(), classes: Vec::new() })
}

#[cfg(test)]
#[path = "images_tests.rs"]
mod tests;
