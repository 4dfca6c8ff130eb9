//! Tar shards in webdataset's layout: the files `KEY.jpg`, `KEY.cls`, `KEY.json`, … are one sample. A key ends at the
//! first dot of a file's name.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempPath};

use super::idx::{open_unpacked, up_to};
use super::listing::{Beside, Fault, Listing, Row, Why};
use super::names::{class_name, folder_class, is_picture, is_read, shown, CLASS_NAME};
use super::DataError;
use crate::files::expect_room;

/// Bytes of a tar archive's blocks.
const BLOCK: u64 = 512;
/// What a gzipped shard may become: so many times its size, and so many bytes more. Pictures hardly shrink; a file of
/// zeros does, a thousand times.
const MOST_UNPACKED: (u64, u64) = (20, 64 << 20);
/// What a `.cls` or `.json` may hold.
const MOST_FIELD: u64 = 1 << 24;

/// Bytes of the file, from the first up to the second.
type Place = Range<u64>;

/// A shard, and where its pictures are.
#[derive(Debug)]
pub(super) struct Shard {
    file: PathBuf,
    /// Name and place of each picture.
    pub pictures: Vec<(String, Place)>,
    /// The file unpacked, if it was gzipped: removed with this.
    _unpacked: Option<TempPath>,
}

impl Shard {
    /// The bytes of picture `index`, read anew: all shards together may be far larger than memory.
    ///
    /// # Errors
    /// Those of the operating system, also where the file has become shorter.
    pub fn bytes(&self, index: usize) -> io::Result<Vec<u8>> {
        read(&mut File::open(&self.file)?, &self.pictures[index].1)
    }
}

/// Bytes of a file, which has so many or fails: a place that was found in a file that changed takes no memory.
fn read(file: &mut File, place: &Place) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(place.start))?;
    let (length, mut bytes) = (place.end - place.start, Vec::new());
    match file.take(length).read_to_end(&mut bytes)? as u64 == length {
        true => Ok(bytes),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Whether a file is a tar archive: by its name, or else by what it begins with.
pub(super) fn is_shard(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let by_name = [".tar", ".tar.gz", ".tgz"].iter().any(|end| name.ends_with(end));
    let start = || open_unpacked(path).and_then(|mut file| up_to(&mut file, BLOCK as usize));
    by_name || path.is_file() && start().is_ok_and(|start| is_header(&start))
}

/// Whether a block is the header of a tar archive, old ones included, which have no magic number: by its checksum, the
/// sum of its bytes with spaces where the checksum stands.
fn is_header(block: &[u8]) -> bool {
    const CHECKSUM: Range<usize> = 148..156;
    let Some(stored) = block.get(CHECKSUM).filter(|_| block.len() as u64 == BLOCK) else { return false };
    let digits = String::from_utf8_lossy(stored);
    let bytes = block.iter().enumerate().map(|(at, &byte)| if CHECKSUM.contains(&at) { b' ' } else { byte });
    u32::from_str_radix(digits.trim_matches([' ', '\0']), 8) == Ok(bytes.map(u32::from).sum())
}

/// Lists the pictures of a shard in order. What is wrong with one is a fault of that one; what is wrong with the
/// archive, a fault after the pictures that could be found.
///
/// # Errors
/// [`DataError`] where the file cannot be opened.
pub(super) fn list(path: &Path, class_field: &str, beside: &mut Beside) -> Result<(Shard, Listing), DataError> {
    File::open(path).map_err(DataError::io(path))?;
    let mut scan = Scan {
        path,
        class_field,
        samples: Vec::new(),
        by_key: HashMap::new(),
        folders: BTreeMap::new(),
        faults: Vec::new(),
        cut: false,
    };
    let (mut file, mut unpacked) = (path.to_path_buf(), None);
    let scanned = unpack(path).and_then(|temporary| {
        if let Some(temporary) = &temporary {
            file = temporary.to_path_buf();
        }
        unpacked = temporary;
        scan.archive(&file, beside)
    });
    if let Err(error) = scanned {
        scan.cut("contents", "a tar archive", error);
    }
    let (pictures, rows) = scan.finish(beside);
    if rows.is_empty() {
        beside.add(Why::EmptySource, path.display());
    }
    let listing = Listing { header: vec!["file".into()], rows, classes: Vec::new() };
    Ok((Shard { file, pictures, _unpacked: unpacked }, listing))
}

/// Unpacks a gzipped shard to the system's temporary folder.
fn unpack(path: &Path) -> io::Result<Option<TempPath>> {
    let start = up_to(&mut File::open(path)?, 2)?;
    if start.is_empty() {
        return Err(io::Error::other("0 bytes"));
    }
    if start != [0x1F, 0x8B] {
        return Ok(None);
    }
    let (times, more) = MOST_UNPACKED;
    let limit = path.metadata()?.len().saturating_mul(times).saturating_add(more);
    let mut temporary = NamedTempFile::new()?;
    let mut unpacked = open_unpacked(path)?;
    loop {
        let chunk = up_to(&mut unpacked, 1 << 24)?;
        if chunk.is_empty() {
            break;
        }
        expect_room(&std::env::temp_dir(), chunk.len() as u64)?;
        temporary.write_all(&chunk)?;
        if temporary.as_file().metadata()?.len() > limit {
            return Err(io::Error::other(format!("more than {limit} bytes when unpacked: unpack it yourself")));
        }
    }
    temporary.flush()?;
    Ok(Some(temporary.into_temp_path()))
}

/// What is found on the way through an archive.
struct Scan<'a> {
    path: &'a Path,
    class_field: &'a str,
    samples: Vec<Sample>,
    by_key: HashMap<Vec<u8>, usize>,
    /// Paths of folders by their last part.
    folders: BTreeMap<Vec<u8>, BTreeSet<Vec<u8>>>,
    faults: Vec<Fault>,
    /// Whether something is missing at the end.
    cut: bool,
}

/// The files of one key.
#[derive(Default)]
struct Sample {
    /// The first of them.
    name: String,
    /// Pictures: name, place, and what is wrong with it.
    pictures: Vec<(String, Place, Option<Fault>)>,
    /// What each member that tells of the class says: a name, nothing, or a fault.
    cls: Option<Result<String, Fault>>,
    json: Option<Result<Option<String>, Fault>>,
    folder: Option<Result<String, Fault>>,
}

impl Sample {
    /// Whether a file of its own says what its class is.
    fn is_told(&self) -> bool {
        self.cls.is_some() || self.json.is_some()
    }
}

impl Scan<'_> {
    /// Something is wrong with the archive from here on: what follows is not known.
    fn cut(&mut self, item: impl std::fmt::Display, expected: &str, found: impl std::fmt::Display) {
        self.cut = true;
        self.faults.push(Fault::new(self.path, item, expected, found));
    }

    /// Goes through the members, to the archive's end or to what is wrong with it.
    fn archive(&mut self, path: &Path, beside: &mut Beside) -> io::Result<()> {
        const WHOLE: &str = "a whole tar archive";
        let mut file = File::open(path)?; // beside the one that goes from header to header
        let length = file.metadata()?.len();
        let mut archive = tar::Archive::new(BufReader::new(File::open(path)?));
        let mut end = 0; // of the last member
        for entry in archive.entries_with_seek()? {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    self.cut(format_args!("contents after {end} bytes"), WHOLE, error);
                    return Ok(());
                }
            };
            let start = entry.raw_file_position();
            let place = start..start.saturating_add(entry.size());
            let bytes = entry.path_bytes();
            if place.end > length {
                self.cut(shown(&bytes), "a file inside the archive", "one that is cut off");
                return Ok(());
            }
            end = place.end.next_multiple_of(BLOCK);
            let kind = entry.header().entry_type();
            if kind.is_dir() || kind.is_pax_global_extensions() {
                continue;
            }
            let link = entry.link_name_bytes().map(|to| shown(&to));
            let kind = match (kind.is_file(), link) {
                (true, _) => None,
                (false, Some(to)) => Some(format!("a link to {to}, which has no bytes of its own")),
                (false, None) => Some(format!("{kind:?}")),
            };
            self.member(&bytes, kind, place, &mut file, beside);
        }
        self.check_end(&mut file, end)
    }

    /// That two blocks of zeros close the archive, and nothing follows (one is enough for most programs, and for us).
    fn check_end(&mut self, file: &mut File, end: u64) -> io::Result<()> {
        file.seek(SeekFrom::Start(end))?;
        let mut at = end;
        loop {
            let rest = up_to(file, 1 << 20)?;
            if let Some(other) = rest.iter().position(|&byte| byte != 0) {
                at += other as u64;
                let found = format!("more at byte {at}: archives put together by `cat` have to be one file each");
                self.faults.push(Fault::new(self.path, "end", "zeros after the end marker", found));
                return Ok(());
            }
            at += rest.len() as u64;
            if rest.is_empty() {
                break;
            }
        }
        if at < end + BLOCK {
            let found = format!("the end of the file after {end} bytes: it may be cut off");
            self.cut("end", "two blocks of zeros after the last member", found);
        }
        Ok(())
    }

    /// One file, or what is none (`kind` says what it is).
    fn member(&mut self, bytes: &[u8], kind: Option<String>, place: Place, file: &mut File, beside: &mut Beside) {
        let name = shown(bytes);
        let mut parts: Vec<&[u8]> =
            bytes.split(|&byte| byte == b'/').filter(|part| ![&b""[..], b"."].contains(part)).collect();
        let said = |why: Why, beside: &mut Beside| beside.add(why, format_args!("{}/{name}", self.path.display()));
        if parts.iter().any(|part| part.starts_with(b".") && *part != b"..") {
            return said(Why::Hidden, beside);
        }
        let base = parts.pop().unwrap_or_default();
        let Some(dot) = base.iter().position(|&byte| byte == b'.') else {
            return said(Why::NoPicture, beside);
        };
        let field = String::from_utf8_lossy(&base[dot + 1..]).to_ascii_lowercase();
        let last = field.rsplit('.').next().unwrap_or_default();
        let tells = matches!(field.as_str(), "cls" | "json");
        if !tells && !is_picture(&field) {
            let why = if is_picture(last) { Why::OtherField } else { Why::NoPicture };
            return said(why, beside);
        }
        let key = [&parts.join(&b'/')[..], b"/", &base[..dot]].concat();
        let at = *self.by_key.entry(key).or_insert_with(|| {
            let fault = |found| Fault::new(self.path, &name, format_args!("a folder of {CLASS_NAME}"), found);
            if let Some(last) = parts.last() {
                self.folders.entry(last.to_vec()).or_default().insert(parts.join(&b'/'));
            }
            let folder = parts.last().map(|folder| folder_class(folder).map_err(fault));
            self.samples.push(Sample { name: name.clone(), folder, ..Sample::default() });
            self.samples.len() - 1
        });
        let fault = |expected: &str, found: &dyn std::fmt::Display| Fault::new(self.path, &name, expected, found);
        let sample = &mut self.samples[at];
        if !tells {
            let twice = sample.pictures.iter().any(|(other, ..)| *other == name);
            let trouble = match kind {
                Some(kind) => Some(fault("a file", &kind)),
                None if twice => Some(fault("one file of this name in the archive", &"a second one")),
                None => None,
            };
            return sample.pictures.push((name, place, trouble));
        }
        let text = match kind {
            Some(kind) => Err(fault("a file", &kind)),
            None if place.end - place.start > MOST_FIELD => Err(fault("at most 16 MiB", &(place.end - place.start))),
            None => read(file, &place).map_err(|error| fault("a file that can be read", &error)),
        };
        let second = || fault("one file of this name in the archive", &"a second one");
        if field == "cls" {
            let class = text.and_then(|text| class_name(&text).map_err(|found| fault(CLASS_NAME, &found)));
            sample.cls = Some(if sample.cls.is_some() { Err(second()) } else { class });
        } else {
            let class = text.and_then(|text| self::field(&text, self.class_field).map_err(|(e, f)| fault(&e, &f)));
            sample.json = Some(if sample.json.is_some() { Err(second()) } else { class });
        }
    }

    /// Pictures and what is known of them, in the order of the archive; the archive's faults last.
    fn finish(self, beside: &mut Beside) -> (Vec<(String, Place)>, Vec<Row>) {
        let shard = shown(self.path.file_name().unwrap_or_default().as_encoded_bytes());
        let (mut pictures, mut rows) = (Vec::new(), Vec::new());
        for paths in self.folders.values().filter(|paths| paths.len() > 1) {
            let paths: Vec<String> = paths.iter().map(|path| shown(path)).collect();
            beside.add(Why::OneClass, format_args!("{}: {}", self.path.display(), paths.join(" and ")));
        }
        let (last, any_told) = (self.samples.len(), self.samples.iter().any(Sample::is_told));
        for (number, sample) in self.samples.into_iter().enumerate() {
            let lost = self.cut && number + 1 == last && !sample.is_told() && (any_told || sample.folder.is_none());
            let extension = |name: &str| name.rsplit('.').next().is_some_and(is_read);
            let whole = |read: bool| {
                let mut all = sample.pictures.iter();
                all.position(|(name, _, fault)| fault.is_none() && (!read || extension(name)))
            };
            let taken = whole(true).or(whole(false));
            if sample.pictures.is_empty() {
                beside.add(Why::NoPictureInSample, format_args!("{}/{}", self.path.display(), sample.name));
            }
            // The class is that of `KEY.cls`; without it that of `KEY.json`; without it the folder's.
            let told = match (sample.cls, sample.json) {
                (Some(cls), _) => Some(cls),
                (None, Some(json)) => json.transpose(),
                (None, None) => None,
            };
            let (class, trouble) = match told.or(sample.folder) {
                _ if lost => {
                    let (expected, found) = ("its class behind it", "the place where the archive is cut off");
                    (None, Some(Fault::new(self.path, sample.name, expected, found)))
                }
                Some(Ok(class)) => (Some(class), None),
                Some(Err(fault)) => (None, Some(fault)),
                None => (None, None),
            };
            for (at, (name, place, fault)) in sample.pictures.into_iter().enumerate() {
                if Some(at) != taken && fault.is_none() {
                    beside.add(Why::SecondPicture, format_args!("{}/{name}", self.path.display()));
                    continue;
                }
                let fault = fault.or_else(|| trouble.clone());
                rows.push(Row { class: class.clone(), fields: vec![format!("{shard}/{name}")], fault });
                pictures.push((name, place));
            }
        }
        for fault in self.faults {
            rows.push(Row { class: None, fields: vec![shard.clone()], fault: Some(fault) });
            pictures.push((String::new(), 0..0));
        }
        (pictures, rows)
    }
}

/// The class in the field of a JSON file; `None` where there is no such field, or it is null: the file says other
/// things. Else what was expected and found.
fn field(text: &[u8], class_field: &str) -> Result<Option<String>, (String, String)> {
    let json: serde_json::Value =
        serde_json::from_slice(text).map_err(|error| ("JSON".to_string(), error.to_string()))?;
    let expected = |found| (format!("{CLASS_NAME} in the field `{class_field}`"), found);
    match &json[class_field] {
        serde_json::Value::String(class) => class_name(class.as_bytes()).map(Some).map_err(expected),
        serde_json::Value::Number(class) => Ok(Some(class.to_string())),
        serde_json::Value::Null => Ok(None),
        other => Err(expected(other.to_string())),
    }
}
