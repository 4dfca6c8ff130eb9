//! `inpaint`, `outpaint`, `reconstruct`: a part of each image is given, the model invents the rest.

use std::path::PathBuf;

use anyhow::Context;
use ndarray::{Array2, Axis};
use sorcen_runtime::{
    given::{is_among, Region},
    rng::{Rng, Stream},
    ModelConfig,
};

use super::{
    conflict,
    draw::{DrawArgs, Job, OutputArgs},
    fit::FitArgs,
    number::{self, within},
    source::{Opened, Source},
    tokens::read_ids,
};
use crate::{
    given::{check_region, parse_region},
    pixels,
    tokenizer::AnyTokenizer,
};

/// Invent a part of images anew
///
/// Example:
///
///   sorcen inpaint --pack model.srcn --image face.png --region 3,2,4,4 \
///     --images 8 --out sheet.png
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct InpaintArgs {
    #[command(flatten)]
    common: Common,
    /// Tokens to invent anew: a rectangle of the grid; more than once for several. Without it, the tokens that
    /// are the mask id in the input.
    #[arg(long, value_name = "ROW,COLUMN,ROWS,COLUMNS", value_parser = parse_region, allow_hyphen_values = true)]
    region: Vec<Region>,
}

/// Keep a part of images and invent what is around it
///
/// Example:
///
///   sorcen outpaint --pack model.srcn --image face.png --images 8 \
///     --out sheet.png
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct OutpaintArgs {
    #[command(flatten)]
    common: Common,
    /// Tokens to keep: a rectangle of the grid; more than once for several [default: the middle, half as high
    /// and wide].
    #[arg(long, value_name = "ROW,COLUMN,ROWS,COLUMNS", value_parser = parse_region, allow_hyphen_values = true)]
    region: Vec<Region>,
}

/// Keep random tokens of images and invent the others
///
/// How much of an image does the model know? Also prints the share of the
/// invented tokens that are the original ones.
///
/// Example:
///
///   sorcen reconstruct --pack model.srcn --image face.png --known 0.25 \
///     --out sheet.png
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub struct ReconstructArgs {
    #[command(flatten)]
    common: Common,
    /// Share of the tokens that is given, from 0 to below 1.
    #[arg(long, value_name = "SHARE", default_value_t = 0.25,
        value_parser = within(0.0..1.0, "a number from 0 to below 1"))]
    known: f64,
}

/// What the three verbs share.
#[derive(clap::Args)]
struct Common {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    originals: Originals,
    #[command(flatten)]
    fit: FitArgs,
    /// Images to make, 1 to 100000 [default: one of each original]. Fewer originals than that are taken in turn; of
    /// more, the first.
    #[arg(long, value_name = "B", value_parser = number::images)]
    images: Option<usize>,
    #[command(flatten)]
    draw: DrawArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// The images to start from.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Originals {
    /// Images as tokens in a safetensors file: `token_ids` [B, T], or `final_ids` as `generate` writes it, or `ids`
    /// [B, h, h] as `tokenizer run` does.
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// An image (PNG, JPEG, WebP or GIF) to be turned into tokens by the tokenizer, of the size that the model
    /// draws, or of any with --size; more than once for several. Read as `sorcen tokenize` reads it.
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
}

/// Runs `inpaint`.
///
/// # Errors
/// Bad files or options, a region outside the grid, nothing to invent.
pub fn inpaint(args: &InpaintArgs) -> anyhow::Result<()> {
    let nothing = "expected --region, or the mask id among the input's tokens, found neither";
    args.common.run(nothing, |originals, config| {
        args.region.iter().try_for_each(|region| check_region(region, config.grid))?;
        let in_region = |t: usize| args.region.iter().any(|region| region.contains(t, config.grid));
        Ok(Array2::from_shape_fn(originals.dim(), |(_, t)| !in_region(t)))
    })?;
    Ok(())
}

/// Runs `outpaint`.
///
/// # Errors
/// As [`inpaint`].
pub fn outpaint(args: &OutpaintArgs) -> anyhow::Result<()> {
    let nothing = "expected --region to leave tokens of the grid outside, found all of them inside";
    args.common.run(nothing, |originals, config| {
        let regions = if args.region.is_empty() { vec![Region::middle(config.grid)] } else { args.region.clone() };
        regions.iter().try_for_each(|region| check_region(region, config.grid))?;
        let kept = |t: usize| regions.iter().any(|region| region.contains(t, config.grid));
        Ok(Array2::from_shape_fn(originals.dim(), |(_, t)| kept(t)))
    })?;
    Ok(())
}

/// Runs `reconstruct`.
///
/// # Errors
/// As [`inpaint`].
pub fn reconstruct(args: &ReconstructArgs) -> anyhow::Result<()> {
    let nothing = format!("--known {} of the tokens are, rounded, all of them: expected a smaller share", args.known);
    let (mut invented, mut equal) = (0, 0);
    let (job, made) = args.common.run(&nothing, |originals, config| {
        let count = (args.known * config.tokens() as f64).round() as usize;
        let rng = |image: usize| Rng::new(args.common.draw.seed, Stream::Evaluation, image as u64);
        let is_given = |(image, t)| is_among(t, config.tokens(), count, rng(image));
        Ok(Array2::from_shape_fn(originals.dim(), is_given))
    })?;
    let originals = job.originals.as_ref().unwrap_or(&job.start);
    for ((start, original), made) in job.start.iter().zip(originals).zip(&made) {
        if start != original {
            invented += 1;
            equal += usize::from(original == made);
        }
    }
    println!("{:.1} % of {invented} invented tokens are the original ones", 100.0 * equal as f64 / invented as f64);
    Ok(())
}

impl Common {
    /// Draws with what `given` says is given, true a place of `[B, T]`; returns the job and its result `[B, T]`.
    /// `nothing` is what to say where all is given.
    fn run(
        &self,
        nothing: &str,
        given: impl FnOnce(&Array2<i64>, &ModelConfig) -> anyhow::Result<Array2<bool>>,
    ) -> anyhow::Result<(Job, Array2<i64>)> {
        self.fit.check();
        if let (Some(flag), true) = (self.fit.given(), self.originals.image.is_empty()) {
            conflict(&format!("{flag}: expected --image too, found tokens, which have their size"));
        }
        let tokenizer = self.output.open_tokenizer()?;
        self.source.with(|opened| {
            let config = opened.engine().config();
            let originals = self.originals.read(&opened, tokenizer.as_ref(), &self.output, &self.fit)?;
            let count = self.images.unwrap_or(originals.nrows());
            self.draw.check_size(count, config)?;
            let in_turn: Vec<usize> = (0..count).map(|image| image % originals.nrows()).collect();
            let originals = originals.select(Axis(0), &in_turn);

            let mut start = originals.clone();
            let mask = config.mask_token_id as i64;
            start.zip_mut_with(&given(&originals, config)?, |id, &given| *id = if given { *id } else { mask });
            anyhow::ensure!(start.iter().any(|&id| id == mask), "nothing to invent: {nothing}");
            let whole = originals.iter().all(|&id| id != mask);
            let (options, randomness) = (self.draw.options(None), self.draw.randomness());
            let job = Job { originals: whole.then_some(originals), start, options, randomness };
            let made = self.output.draw(&opened, tokenizer.as_ref(), &job)?;
            Ok((job, made.final_ids))
        })
    }
}

impl Originals {
    /// The images as tokens `[B, T]`, at least one.
    fn read(
        &self,
        opened: &Opened,
        tokenizer: Option<&AnyTokenizer>,
        output: &OutputArgs,
        fit: &FitArgs,
    ) -> anyhow::Result<Array2<i64>> {
        let config = opened.engine().config();
        if let Some(path) = &self.input {
            return Ok(read_ids(path, config, &opened.codes, output.allow_other_tokenizer)?);
        }
        let painter = output.painter(opened, tokenizer)?;
        let fit = fit.to(config.grid * painter.stride())?;
        let mut all = Array2::zeros((self.image.len(), config.tokens()));
        for (path, mut row) in self.image.iter().zip(all.rows_mut()) {
            let rgb = fit.fit(pixels::read(path)?).map_err(|unfit| unfit.of(path))?;
            let ids = painter.encode(&rgb, config.grid).with_context(|| path.display().to_string())?;
            row.iter_mut().zip(&ids).for_each(|(id, &code)| *id = code.into());
        }
        Ok(all)
    }
}
