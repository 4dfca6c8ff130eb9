//! The whole way on bundled data: train, lower, cross-check, use, report.

mod console;
mod evaluate;
mod pictures;
mod report;
mod stages;

pub(crate) use report::table;

use std::{
    path::PathBuf,
    sync::{atomic::AtomicBool, Arc},
};

use anyhow::{bail, Context, Result};
use sorcen_export::{atomic, pack::PackFile, Checkpoint};
use sorcen_runtime::{tokens::row_bytes, Model};

use crate::{bundled, data::TokenDataset};
use console::Console;
use report::Report;
use stages::Artefacts;

/// What a quickstart does.
#[derive(Clone, Debug)]
pub struct Options {
    /// Minutes of pretraining.
    pub minutes: f64,
    /// Folder for everything the run makes.
    pub out: PathBuf,
    /// What training starts from.
    pub init: Init,
    /// Seed of training and sampling.
    pub seed: u64,
    /// Images to draw.
    pub samples: usize,
}

/// Where training starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Init {
    /// The bundled checkpoint: a model of the same sizes that was trained longer.
    Bundled,
    /// Random weights.
    Scratch,
}

/// What a demo does.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// Folder for the pictures.
    pub out: PathBuf,
    /// Images to draw.
    pub samples: usize,
    /// Seed of the first image; image `i` has seed `seed + i`.
    pub seed: u64,
}

/// Goes the whole way; returns the path of the report. Where `stop` is set, it ends after the stage at work, training
/// with a checkpoint.
///
/// # Errors
/// What went wrong, in which stage, or that it was stopped. A cross-check out of tolerance is an error too, after the report
/// is written.
pub fn run(options: &Options, stop: &AtomicBool) -> Result<PathBuf> {
    let out = &options.out;
    let data_dir = out.join("bundled");
    let pretraining = stages::pretraining(options, &data_dir)?;
    let mut console = Console::new(8, stop);
    let mut report = Report::new("Quickstart", &stages::introduction(options));

    let test = console.stage("Token data sets", || {
        bundled::unpack(&data_dir)?;
        let (train, test) = open_bundled(&data_dir)?;
        let (grid, codes) = (train.grid(), train.codebook_size());
        let bits = usize::BITS - (codes - 1).leading_zeros();
        println!("  {} emoji to train on, {} held back", train.len(), test.len());
        println!("  {grid}×{grid} tokens of {codes} codes: {} bytes an image", row_bytes(train.tokens(), bits));
        Ok(test)
    })?;

    let trained = console.stage("Pretraining", || stages::pretrain(options, &pretraining, stop))?;
    report.section("Training", &stages::training_text(options, &trained));

    let checkpoint = console.stage("Checkpoint", || {
        println!("  {}", trained.checkpoint.display());
        Ok(Arc::new(Checkpoint::open(&trained.checkpoint)?))
    })?;

    let artefacts = console.stage("ONNX files and packs", || Artefacts::write(&checkpoint, out, &data_dir))?;
    report.section("Files", &artefacts.text(&checkpoint)?);

    let task = evaluate::task(&data_dir)?;
    let check = console.stage("Cross-check", || stages::cross_check(&checkpoint, &artefacts, &task, &data_dir))?;
    report.section("Cross-check", &check.to_markdown());

    let file = PackFile::open(&artefacts.int8)?;
    let model = Model::new(file.pack(&artefacts.int8)?);
    let features = console.stage("Features", || stages::features(&task, &artefacts, &checkpoint.config, &data_dir))?;
    report.section("Features", &features);

    let pictures = console.stage("Pictures", || stages::pictures(&model, &test, out, options.samples, options.seed))?;
    report.section("Pictures", &pictures);

    let path = out.join("report.md");
    console.stage("Report", || Ok(()))?;
    report.section("Time", &console.table());
    atomic::write_bytes(&path, report.as_str().as_bytes())?;
    println!("\nreport: {}", path.display());
    if !check.passed() {
        bail!("the cross-check failed; see {}", path.display());
    }
    Ok(path)
}

/// What the bundled int8 pack does, without training.
///
/// # Errors
/// Where the output folder cannot be written.
pub fn demo(options: &DemoOptions) -> Result<()> {
    let data_dir = options.out.join("bundled");
    let never = AtomicBool::new(false);
    let mut console = Console::new(3, &never);
    let (test, path) = console.stage("The bundled model", || {
        bundled::unpack(&data_dir)?;
        let (_, test) = open_bundled(&data_dir)?;
        Ok((test, data_dir.join(bundled::PACK)))
    })?;
    let file = PackFile::open(&path)?;
    let model = Model::new(file.pack(&path)?);
    println!("  {}", stages::describe(&model));
    console.stage("Features", || stages::demo_features(&evaluate::task(&data_dir)?, &model, &data_dir))?;
    console.stage("Pictures", || stages::pictures(&model, &test, &options.out, options.samples, options.seed))?;
    Ok(())
}

fn open_bundled(dir: &std::path::Path) -> Result<(TokenDataset, TokenDataset)> {
    let open = |name: &str| TokenDataset::open(&dir.join(name)).context("bundled data");
    Ok((open(bundled::TRAIN)?, open(bundled::TEST)?))
}
