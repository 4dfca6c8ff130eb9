//! What the drawing verbs share: how tokens are drawn, and where tensors and pictures go.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{
    builder::{PathBufValueParser, TypedValueParser},
    ValueEnum,
};
use ndarray::Array2;
use sorcen_runtime::{
    generate::{CountFrom, Options},
    ModelConfig,
};

use super::{
    number::{self, within},
    source::Opened,
};
use crate::{
    atomic::Pending,
    error::Error,
    fingerprint::{self, Fingerprint, Kind},
    generate::{generate, generate_pack, Generated, Randomness},
    given,
    picture::{interleaved, painted, png, Grid},
    tensors::TensorWriter,
    tokenizer::{AnyTokenizer, Painter},
};

/// How tokens are drawn.
#[derive(clap::Args)]
#[command(next_help_heading = "Drawing")]
pub struct DrawArgs {
    /// Steps, 1 to 4096; an image is complete after as many as it has tokens at the latest.
    #[arg(long, value_name = "N", default_value_t = 20,
        value_parser = within(1..=4096usize, "a whole number from 1 to 4096"))]
    pub steps: usize,
    /// Choice temperature, 0 to 1000000: noise on the confidences, falling to 0.
    #[arg(long, value_name = "C", default_value_t = 6.0,
        value_parser = within(0.0..=1e6, "a number from 0 to 1000000"))]
    temperature: f64,
    /// Temperature of the token choice, 0.000001 to 1000000: 1 samples the model's distribution.
    #[arg(long = "token_temperature", value_name = "C", default_value_t = 1.0,
        value_parser = within(1e-6..=1e6f32, "a number from 0.000001 to 1000000"))]
    token_temperature: f32,
    /// What the number of tokens to mask again is counted from [default: unknown; in a replay, what the
    /// recorded `input_ids` say].
    #[arg(long = "count_from", value_enum)]
    count_from: Option<Count>,
    /// Seed; image b uses seed + b.
    #[arg(long, value_name = "S", default_value_t = 0, value_parser = number::seed)]
    pub seed: u64,
    /// Always choose the most likely code.
    #[arg(long)]
    greedy: bool,
}

/// [`CountFrom`] on the command line.
#[derive(Clone, Copy, ValueEnum)]
enum Count {
    /// The tokens unknown at the start.
    Unknown,
    /// All tokens, as the official loop does.
    Grid,
}

impl DrawArgs {
    /// Refuses more images than fit into memory with the ids of all their steps: 2 GB of them, twice for a while.
    pub fn check_size(&self, images: usize, config: &ModelConfig) -> anyhow::Result<()> {
        const MAX: usize = 1 << 28;
        let (steps, most) = (self.steps, MAX / (self.steps * config.tokens()));
        anyhow::ensure!(
            images <= most,
            "--images: expected at most {most} of {} tokens in {steps} steps, found {images}: make them in several \
             runs, each with a --seed of its own",
            config.tokens()
        );
        Ok(())
    }

    /// The loop's options; `recorded` is what a replay counted from.
    pub fn options(&self, recorded: Option<CountFrom>) -> Options {
        let count_from = match self.count_from {
            Some(Count::Unknown) => CountFrom::Unknown,
            Some(Count::Grid) => CountFrom::Grid,
            None => recorded.unwrap_or(CountFrom::Unknown),
        };
        let (temperature, token_temperature) = (self.temperature, self.token_temperature);
        Options { steps: self.steps, temperature, token_temperature, count_from }
    }

    /// The random choices that the flags ask for.
    pub fn randomness(&self) -> Randomness {
        match self.greedy {
            true => Randomness::Greedy(self.seed),
            false => Randomness::Seeded(self.seed),
        }
    }
}

/// Where results go.
#[derive(clap::Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// What to write; give it again for both. A name that ends in .png: a sheet of pictures, a column an
    /// image (the image before, where it is known; its given tokens, the others grey; the result). One that ends in
    /// .safetensors or .st, or has no ending: tensors: `input_ids` [N, B, T] (ids entering each step, the mask id where
    /// unknown), `final_ids` [B, T] and `given` [B, T] (1 where a token was given, 0 where it was invented).
    #[arg(long, visible_alias = "out", value_name = "FILE", required = true,
        value_parser = PathBufValueParser::new().try_map(output_path))]
    output: Vec<PathBuf>,
    /// Tokenizer for the pictures (tokenizer.safetensors, of patches or a ViT) [default: the pack's].
    #[arg(long, value_name = "FILE|DIR")]
    tokenizer: Option<PathBuf>,
    /// Take a tokenizer, or ids, that say by their fingerprints that the model learned another tokenizer's codes: an
    /// error without.
    #[arg(long = "allow_other_tokenizer")]
    pub allow_other_tokenizer: bool,
    /// Side of the square that each pixel becomes in a sheet, 1 to 255.
    #[arg(long, value_name = "N", default_value_t = 2,
        value_parser = within(1u8.., "a whole number from 1 to 255"))]
    scale: u8,
    /// Images a row of a sheet, 1 to 255.
    #[arg(long, value_name = "N", default_value_t = 8,
        value_parser = within(1u8.., "a whole number from 1 to 255"))]
    columns: u8,
}

/// How many times smaller a PNG of pictures is than its pixels at best: room for so little is there at least.
const PNG_AT_BEST: usize = 16;

/// What to draw.
pub struct Job {
    /// `[B, T]`: the images where they are known.
    pub originals: Option<Array2<i64>>,
    /// `[B, T]`: given tokens, the mask id where they are to be invented.
    pub start: Array2<i64>,
    /// Steps and temperatures.
    pub options: Options,
    /// The random choices.
    pub randomness: Randomness,
}

impl OutputArgs {
    /// The tokenizer that was named, if any.
    pub fn open_tokenizer(&self) -> anyhow::Result<Option<AnyTokenizer>> {
        Ok(self.tokenizer.as_deref().map(AnyTokenizer::open).transpose()?)
    }

    /// What paints the codes of a model: the tokenizer that was named, or else the pack's.
    pub fn painter<'c>(&'c self, opened: &Opened<'c>, named: Option<&'c AnyTokenizer>) -> anyhow::Result<Painter<'c>> {
        let config = opened.engine().config();
        let (painter, fingerprint) = match (named, &self.tokenizer, opened.pack()) {
            (Some(named), Some(path), _) => {
                named.check_fit(config.codebook_size, config.grid)?;
                (Some(Painter::of(named)?), Some(Fingerprint::of_tokenizer(path, named)))
            }
            (_, _, Some((engine, path))) => {
                let pack = engine.model().pack();
                (Painter::of_pack(pack), Some(Fingerprint::of_tokenizer_in(path, pack)))
            }
            _ => (None, None),
        };
        let both = painter.zip(fingerprint);
        let (painter, fingerprint) =
            both.context("pictures need a tokenizer: expected --tokenizer FILE or a pack that holds one")?;
        painter.check_fit(config.codebook_size, config.grid)?;
        opened.codes.expect(&fingerprint, Kind::Tokenizer, self.allow_other_tokenizer)?;
        Ok(painter)
    }

    /// Draws, writes every output, and says what was made.
    pub fn draw(&self, opened: &Opened, named: Option<&AnyTokenizer>, job: &Job) -> anyhow::Result<Generated> {
        let config = opened.engine().config();
        // What can be wrong with the outputs is found before the work is done.
        let painter = match self.output.iter().find(|path| is_picture(path)) {
            Some(path) => {
                let painter = self.painter(opened, named).with_context(|| path.display().to_string())?;
                self.check_sheet(job, config.grid * painter.stride())?;
                Some(painter)
            }
            None => None,
        };
        let side = painter.as_ref().map_or(0, |painter| config.grid * painter.stride());
        let begin = |path: &PathBuf| -> Result<Pending, Error> {
            let file = Pending::create(path)?;
            let room = if is_picture(path) { self.sheet_bytes(job, side) / PNG_AT_BEST } else { tensor_bytes(job) };
            file.expect_room(room as u64)?;
            Ok(file)
        };
        let files = self.output.iter().map(begin).collect::<Result<Vec<_>, _>>()?;

        let made = match opened.pack() {
            Some((engine, _)) => generate_pack(engine, job.start.view(), &job.options, &job.randomness)?,
            None => generate(opened.engine(), job.start.view(), &job.options, &job.randomness)?,
        };
        let given = job.start.mapv(|id| id != config.mask_token_id as i64);
        let (pictures, tensors): (Vec<_>, Vec<_>) = files.into_iter().partition(|file| is_picture(file.target()));
        for file in tensors {
            let mut out = TensorWriter::default();
            out.ints("input_ids", made.input_ids.view());
            out.ints("final_ids", made.final_ids.view());
            out.ints("given", given.mapv(i64::from).view());
            out.note(fingerprint::TOKENIZER, opened.codes.value());
            out.write_into(file)?;
        }
        if let Some(painter) = painter {
            let decode = |ids: &Array2<i64>| -> Result<Vec<Vec<u8>>, sorcen_runtime::Error> {
                let image = |row: ndarray::ArrayView1<i64>| row.iter().map(|&id| id as u16).collect::<Vec<_>>();
                let rows = ids.rows().into_iter().map(image);
                rows.map(|ids| painted(&painter, &ids, config.grid, config.mask_token_id)).collect()
            };
            let mut rows = vec![decode(&made.final_ids)?];
            if given.iter().any(|&given| given) {
                rows.insert(0, decode(&job.start)?);
            }
            if let Some(originals) = &job.originals {
                rows.insert(0, decode(originals)?);
            }
            let columns = usize::from(self.columns).min(job.start.nrows());
            let rows: Vec<&[Vec<u8>]> = rows.iter().map(Vec::as_slice).collect();
            let grid = Grid { columns, scale: self.scale.into(), ..Grid::default() };
            let sheet = png(&grid.draw(&interleaved(&rows, columns), side))?;
            pictures.into_iter().try_for_each(|file| file.finish_with(&sheet))?;
        }
        self.report(opened, &given, config.grid);
        Ok(made)
    }

    /// Bytes of the pixels of a sheet, up to three pictures an image, each of `side` pixels.
    fn sheet_bytes(&self, job: &Job, side: usize) -> usize {
        job.start.nrows() * 9 * side * side * usize::from(self.scale).pow(2)
    }

    /// Refuses a sheet of more than 1 GB: pictures of `side` pixels, up to three an image.
    fn check_sheet(&self, job: &Job, side: usize) -> anyhow::Result<()> {
        const MAX: usize = 1 << 30;
        let images = job.start.nrows();
        let most = MAX / (self.sheet_bytes(job, side) / images);
        anyhow::ensure!(
            images <= most,
            "--scale: a sheet holds at most {most} images of {side}x{side} pixels at {} times their size, found {images}",
            self.scale
        );
        Ok(())
    }

    /// What was made; and the map of the first image, if some of its tokens were given and others not.
    fn report(&self, opened: &Opened, given: &Array2<bool>, grid: usize) {
        for path in &self.output {
            println!("{}: {} images by {}", path.display(), given.nrows(), opened.engine().name());
        }
        let count = given.iter().filter(|&&given| given).count();
        if count > 0 {
            println!("{count} of {} tokens given; the first image's (# given, . invented):", given.len());
            print!("{}", given::map(&given.row(0).to_vec(), grid));
        }
    }
}

/// Takes the names that say what to write.
fn output_path(path: PathBuf) -> Result<PathBuf, String> {
    let is_known = match path.extension() {
        Some(extension) => ["png", "safetensors", "st"].iter().any(|known| extension.eq_ignore_ascii_case(known)),
        None => true,
    };
    let expected = "expected a name that ends in .png (pictures), .safetensors or .st (tensors), or has no ending";
    is_known.then_some(path).ok_or_else(|| expected.into())
}

fn is_picture(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"))
}

/// Bytes of what is written as tensors, up to the header.
fn tensor_bytes(job: &Job) -> usize {
    (job.options.steps + 2) * job.start.len() * size_of::<i64>()
}
