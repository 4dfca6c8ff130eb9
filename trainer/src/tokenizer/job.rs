//! Images to a token dataset, in pieces that outlive a kill.
//!
//! While it runs, `OUT.unfinished/` holds `job.json` (what is being made of what) and one file for each piece of
//! images that is done. A second run of the same job goes on after them; the dataset is put together at the end,
//! so its bytes do not depend on how often it was interrupted.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sorcen_export::atomic;

use super::{Tokenizer, TokenizerError};
use crate::checkpoint::read_json;
use crate::data::{DataError, ImageSet, Part, StreamSpec, Table, TokenDatasetWriter, VQGAN};
use crate::files::{claim, expect_new, expect_room};

/// Images of a piece: what a kill can cost.
const PIECE: usize = 256;

/// What becomes of images that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum OnError {
    /// Stop at the first
    #[default]
    Fail,
    /// Look at all images, name all that are faulty, make no dataset if there is one; what is done is kept, so that
    /// a second run with skip ends soon
    Report,
    /// Leave them out of the dataset, name them, list them in OUT.skipped.csv
    Skip,
}

/// What to make.
pub struct Job<'a> {
    /// All images, of which this job does some.
    pub images: &'a ImageSet,
    /// Numbers of the images to do: a shard.
    pub range: Range<usize>,
    /// Which part that is; none: all.
    pub part: Option<Part>,
    /// The tokenizer.
    pub tokenizer: &'a dyn Tokenizer,
    /// Columns of the labels to keep; none: all.
    pub columns: &'a [String],
    /// What becomes of images that cannot be read.
    pub on_error: OnError,
    /// The dataset folder; new or empty.
    pub out: &'a Path,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Images in the dataset.
    pub images: usize,
    /// Images that an earlier run had done.
    pub resumed: usize,
    /// Images left out, and why.
    pub faults: Vec<Fault>,
}

/// An image that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Its number.
    pub image: usize,
    /// The file and what is wrong with it.
    pub reason: String,
}

/// Why there is no dataset.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// An image that cannot be read, and [`OnError::Fail`].
    #[error("{} (--on_error skip leaves such images out, report lists them all)", .0.reason)]
    Fault(Fault),
    /// Images that cannot be read, and [`OnError::Report`], or all of them.
    #[error("{} of {of} images cannot be read; no dataset was made, what is done is kept in {}", faults.len(), kept.display())]
    Faults {
        /// All of them.
        faults: Vec<Fault>,
        /// Images looked at.
        of: usize,
        /// Where the work is.
        kept: PathBuf,
    },
    /// A file.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// `job.json`: a piece of work is only taken up by the very same job.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Description {
    tokenizer: String,
    side: usize,
    resize: Option<usize>,
    /// SHA-256 of names, classes and columns of all images.
    images: String,
    range: Range<usize>,
}

/// A piece that is done: rows of ids of the images that could be read, and the others.
#[derive(Debug, PartialEq)]
struct Piece {
    ids: Vec<Vec<u16>>,
    faults: Vec<Fault>,
}

impl Job<'_> {
    /// Does it; calls `progress` with the number of images that are done after each piece.
    ///
    /// # Errors
    /// [`JobError`]; `out` does not exist then, and a second run goes on where this one stopped.
    pub fn run(&self, mut progress: impl FnMut(usize)) -> Result<Done, JobError> {
        let spec = StreamSpec {
            name: VQGAN.into(),
            grid: self.images.side() / self.tokenizer.stride(),
            codebook_size: self.tokenizer.codes(),
            tokenizer: Some(self.tokenizer.fingerprint()),
        };
        // What can be wrong with the flags is found before the work.
        self.tokenizer.encode_all(&[], self.images.side())?;
        self.images.items_csv(&[], self.columns)?;
        expect_new(self.out).map_err(DataError::io(self.out))?;
        spec.check(self.out)?;
        if self.on_error == OnError::Fail {
            for image in self.range.clone() {
                let fault = |error: DataError| JobError::Fault(Fault { image, reason: error.to_string() });
                self.images.check(image).map_err(fault)?;
            }
        }
        let folder = self.open_folder()?;
        let mine = claim(&folder).map_err(DataError::io(&folder))?;
        let tokens = spec.grid * spec.grid;
        // Images that were faulty may have been mended since.
        let still = |faults: &[Fault]| faults.iter().all(|fault| self.images.rgb(fault.image).is_err());
        let is_done =
            |range: &Range<usize>| Piece::read(&folder, range, tokens).is_some_and(|piece| still(&piece.faults));
        let (done, todo): (Vec<_>, Vec<_>) = self.pieces().partition(is_done);
        let resumed: usize = done.iter().map(Range::len).sum();
        progress(resumed);

        // Pieces, and beside them the dataset that they become.
        let bytes = (self.range.len() - resumed) * tokens * size_of::<u16>() + self.range.len() * spec.row_bytes();
        let mut finished = resumed;
        let worked = expect_room(&folder, bytes as u64).map_err(|error| DataError::io(&folder)(error).into());
        let worked = worked.and_then(|()| {
            self.work(&todo, |range, piece| {
                piece.write(&folder, range)?;
                finished += range.len();
                progress(finished);
                Ok(())
            })
        });
        if worked.is_err() && finished == 0 {
            let _ = std::fs::remove_dir_all(&folder); // nothing worth keeping; the first error is the one to report
        }
        worked?;
        let done = self.put_together(&folder, spec, resumed)?;
        drop(mine); // its file is in the folder
        std::fs::remove_dir_all(&folder).map_err(DataError::io(&folder))?;
        Ok(done)
    }

    /// `OUT.unfinished`, with this job's description.
    fn open_folder(&self) -> Result<PathBuf, DataError> {
        let folder = beside(self.out, "unfinished");
        let file = folder.join(JOB);
        let job = Description {
            tokenizer: self.tokenizer.fingerprint(),
            side: self.images.side(),
            resize: self.images.resize(),
            images: self.images.digest(),
            range: self.range.clone(),
        };
        if file.exists() {
            let found: Description = read_json(&file)?;
            if found != job {
                let expected = "the same tokenizer, size, images and shard (or no such folder)";
                return Err(DataError::invalid(&file, "job", expected, format_args!("{found:?}")));
            }
            return Ok(folder);
        }
        std::fs::create_dir_all(&folder).map_err(DataError::io(&folder))?;
        let json = serde_json::to_string_pretty(&job).unwrap_or_default() + "\n";
        atomic::write_bytes(&file, json.as_bytes())?;
        Ok(folder)
    }

    fn pieces(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.range.clone().step_by(PIECE).map(|start| start..(start + PIECE).min(self.range.end))
    }

    /// Reads and encodes pieces; while one is encoded the next is read.
    fn work(
        &self,
        todo: &[Range<usize>],
        mut done: impl FnMut(&Range<usize>, &Piece) -> Result<(), DataError>,
    ) -> Result<(), JobError> {
        std::thread::scope(|scope| {
            let (send, receive) = sync_channel(1);
            scope.spawn(move || {
                // It ends early where nobody wants more.
                todo.iter().take_while(|range| send.send(self.read(range)).is_ok()).count();
            });
            for (range, (pixels, faults)) in todo.iter().zip(receive) {
                if let (OnError::Fail, Some(fault)) = (self.on_error, faults.first()) {
                    return Err(JobError::Fault(fault.clone()));
                }
                let ids = self.tokenizer.encode_all(&pixels, self.images.side())?;
                done(range, &Piece { ids, faults })?;
            }
            Ok(())
        })
    }

    /// Pixels of the images that can be read, and the others.
    fn read(&self, range: &Range<usize>) -> (Vec<Vec<u8>>, Vec<Fault>) {
        let read = |image| self.images.rgb(image).map_err(|error| Fault { image, reason: error.to_string() });
        let images: Vec<Result<_, _>> = range.clone().into_par_iter().map(read).collect();
        let (mut pixels, mut faults) = (Vec::new(), Vec::new());
        for image in images {
            match image {
                Ok(rgb) => pixels.push(rgb),
                Err(fault) => faults.push(fault),
            }
        }
        (pixels, faults)
    }

    fn put_together(&self, folder: &Path, spec: StreamSpec, resumed: usize) -> Result<Done, JobError> {
        let tokens = spec.grid * spec.grid;
        let mut writer =
            TokenDatasetWriter::create(self.out, self.images.class_names().to_vec(), &[spec])?.as_part(self.part);
        let (mut kept, mut faults) = (Vec::new(), Vec::new());
        for range in self.pieces() {
            let lost = || DataError::invalid(&Piece::file(folder, &range), "contents", "a piece that is done", "none");
            let piece = Piece::read(folder, &range, tokens).ok_or_else(lost)?;
            let good = range.filter(|&image| piece.faults.iter().all(|fault| fault.image != image));
            for (image, ids) in good.zip(&piece.ids) {
                writer.push(self.images.label(image), &[ids])?;
                kept.push(image);
            }
            faults.extend(piece.faults);
        }
        // A part without an image is one that `tokens merge` asks for; a set without is nothing.
        let nothing = kept.is_empty() && self.part.is_none();
        if !faults.is_empty() && (self.on_error != OnError::Skip || nothing) {
            return Err(JobError::Faults { faults, of: self.range.len(), kept: folder.to_path_buf() });
        }
        if !faults.is_empty() {
            let numbers: Vec<String> = faults.iter().map(|fault| fault.image.to_string()).collect();
            let rows = numbers.iter().zip(&faults).map(|(number, fault)| vec![number.as_str(), fault.reason.as_str()]);
            let text = Table::csv(std::iter::once(vec!["image", "reason"]).chain(rows));
            let file = beside(self.out, "skipped.csv");
            atomic::write_bytes(&file, text.as_bytes()).map_err(DataError::from)?;
        }
        writer.finish(self.images.items_csv(&kept, self.columns)?.as_deref())?;
        Ok(Done { images: kept.len(), resumed, faults })
    }
}

const JOB: &str = "job.json";

/// `OUT.EXTENSION`, beside `OUT`.
pub fn beside(out: &Path, extension: &str) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_os_string();
    name.push(".");
    name.push(extension);
    out.with_file_name(name)
}

impl Piece {
    fn file(folder: &Path, range: &Range<usize>) -> PathBuf {
        folder.join(format!("{:010}.piece", range.start))
    }

    /// A line of JSON (the faults), then the ids.
    fn write(&self, folder: &Path, range: &Range<usize>) -> Result<(), DataError> {
        let file = Self::file(folder, range);
        let faults = serde_json::to_vec(&self.faults).map_err(|error| DataError::io(&file)(error.into()))?;
        let ids = self.ids.iter().flatten().flat_map(|id| id.to_le_bytes());
        let bytes: Vec<u8> = faults.into_iter().chain([b'\n']).chain(ids).collect();
        Ok(atomic::write_bytes(&file, &bytes)?)
    }

    /// The piece, if it is there and whole.
    fn read(folder: &Path, range: &Range<usize>, tokens: usize) -> Option<Self> {
        let bytes = std::fs::read(Self::file(folder, range)).ok()?;
        let line = bytes.iter().position(|&byte| byte == b'\n')?;
        let faults: Vec<Fault> = serde_json::from_slice(&bytes[..line]).ok()?;
        let (words, rest) = bytes[line + 1..].as_chunks::<2>();
        let whole = rest.is_empty() && words.len() == (range.len().checked_sub(faults.len())?) * tokens;
        let ids = words.chunks(tokens).map(|row| row.iter().map(|word| u16::from_le_bytes(*word)).collect());
        whole.then(|| Self { ids: ids.collect(), faults })
    }
}
