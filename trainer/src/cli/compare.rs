//! `sorcen compare`: Sorcen, MAGE and ablations on the same tokens.

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use sorcen_export::fingerprint::{Fingerprint, Kind};

use crate::compare::{compare, markdown, CellProgress, Options, Settings, Variant};
use crate::config::ModelChoice;
use crate::device::{with_backend, Device};
use crate::tokenizer;

/// Compare Sorcen, MAGE and ablations: the same tokens, budget and seeds
///
/// For each seed and variant an encoder is pretrained on DATA/TRAIN, then
/// measured on frozen features by linear probe and nearest neighbours: the labels
/// of DATA/BANK are known, DATA/SPLIT is classified. Beside them, features that
/// need no training. Prints the table, with 95 % intervals over seeds.
///
/// Writes to OUTPUT_DIR: compare.md and compare.json (anew after each cell),
/// settings.json, and cells/VARIANT/seed_N/ with training/ (an ordinary run) and
/// cell.json (a cell that has one is finished). Stop it at any time: the same
/// command goes on where it was; more seeds or variants only add cells.
///
/// The budget is images, not time: at the official sizes, a step of Sorcen is 1.3
/// times the operations of one of MAGE.
///
/// Example, 21 trained cells of 51,200 images each, about an hour where 300
/// images a second are trained on:
///   sorcen compare --data trainer/assets/emoji --only skin_variation=0 \
///       --split test --output_dir compare_emoji \
///       --tokenizer trainer/assets/emoji/tokenizer.safetensors
#[derive(clap::Args, Debug)]
#[command(rename_all = "snake_case", verbatim_doc_comment)]
pub struct Args {
    /// Folder with the token datasets
    #[arg(long, value_name = "DIR")]
    data: PathBuf,

    /// Dataset in DATA to pretrain on, all of it
    #[arg(long, default_value = "train")]
    train: String,

    /// Dataset in DATA whose labels the probes know
    #[arg(long, default_value = "train")]
    bank: String,

    /// Dataset in DATA to classify; tune on val, look at test once
    #[arg(long, default_value = "val")]
    split: String,

    /// Of bank and split use only images with this value in this column of items.csv
    #[arg(long, value_name = "COLUMN=VALUE", value_parser = super::images::condition)]
    only: Vec<(String, String)>,

    /// Folder for everything; one begun with the same settings is gone on with
    #[arg(long, value_name = "DIR")]
    output_dir: PathBuf,

    /// What to compare [default: all that the files given allow]
    #[arg(long, value_enum, value_name = "VARIANT,...", value_delimiter = ',')]
    variants: Vec<Variant>,

    /// Seeds 0 to SEEDS-1; at least 3 for intervals that mean something
    #[arg(long, default_value_t = 3)]
    seeds: u64,

    /// vit_b, vit_l, small, tiny, micro, or a FILE.json as in a checkpoint
    #[arg(long, default_value = "micro")]
    model: ModelChoice,

    /// Updates of each pretraining
    #[arg(long, default_value_t = 800)]
    steps: u64,

    /// Images of each
    #[arg(long, default_value_t = 64)]
    batch_size: usize,

    /// Peak learning rate [default: as `sorcen pretrain`]
    #[arg(long)]
    lr: Option<f64>,

    /// Dropout of the pretraining
    #[arg(long, default_value_t = 0.1)]
    dropout: f32,

    /// Label smoothing of the reconstruction
    #[arg(long, default_value_t = 0.1)]
    label_smoothing: f32,

    /// Nearest neighbours that vote
    #[arg(long, default_value_t = 5)]
    k: usize,

    /// Epochs of the linear probe
    #[arg(long, default_value_t = 90)]
    probe_epochs: u64,

    /// The tokenizer file: adds the pixels that the tokens stand for
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,

    /// Take a tokenizer that says by its fingerprint that it is another than the datasets': an error without
    #[arg(long, requires = "tokenizer")]
    allow_other_tokenizer: bool,

    /// Pictures of the bank (an idx file, or a folder), in the order of its dataset: adds their pixels
    #[arg(long, value_name = "FILE|DIR", requires = "split_pictures")]
    bank_pictures: Option<PathBuf>,

    /// Pictures of the split
    #[arg(long, value_name = "FILE|DIR", requires = "bank_pictures")]
    split_pictures: Option<PathBuf>,

    /// Where to compute: cpu, or cuda or wgpu in a build with that feature
    #[arg(long, default_value = "cpu")]
    device: Device,

    /// Print compare.json in place of the table
    #[arg(long)]
    json: bool,
}

impl Args {
    fn options(&self) -> Options {
        let pictures = self.bank_pictures.clone().zip(self.split_pictures.clone());
        let possible = |variant: &Variant| match variant {
            Variant::Pictures => pictures.is_some(),
            Variant::Pixels => self.tokenizer.is_some(),
            _ => true,
        };
        let variants = match self.variants.is_empty() {
            true => Variant::value_variants().iter().copied().filter(possible).collect(),
            false => self.variants.clone(),
        };
        Options {
            settings: Settings {
                data: self.data.clone(),
                train: self.train.clone(),
                bank: self.bank.clone(),
                split: self.split.clone(),
                only: self.only.clone(),
                model: self.model.clone(),
                steps: self.steps,
                batch_size: self.batch_size,
                lr: self.lr,
                dropout: self.dropout,
                label_smoothing: self.label_smoothing,
                k: self.k,
                probe_epochs: self.probe_epochs,
            },
            variants,
            seeds: self.seeds,
            output_dir: self.output_dir.clone(),
            tokenizer: self.tokenizer.clone(),
            pictures,
            device: self.device,
        }
    }
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    usage_unless!(args.seeds >= 1, "--seeds: expected at least 1, found 0");
    usage_unless!(args.k >= 1, "--k: expected at least 1, found 0");
    usage_unless!(args.probe_epochs >= 1, "--probe_epochs: expected at least 1, found 0");
    if let Some(path) = &args.tokenizer {
        let made_with = Fingerprint::of_dataset(&args.data.join(&args.bank))?;
        let found = Fingerprint::new(path.display(), Some(tokenizer::open(path, Device::Cpu)?.fingerprint()));
        made_with.expect(&found, Kind::Tokenizer, args.allow_other_tokenizer)?;
    }
    let options = args.options();
    let bar = super::progress(0, "steps");
    let mut show = |at: &CellProgress<'_>| {
        // Cells that need no training count as trained: they take no time to speak of.
        let done = at.training.map_or(args.steps, |training| training.step);
        bar.set_length(at.cells as u64 * args.steps);
        bar.set_position(at.finished as u64 * args.steps + done);
        let doing = if at.training.is_some() { "training" } else { "probing" };
        bar.set_message(format!("{} seed {}: {doing}", at.variant.name(), at.seed));
    };
    let comparison = with_backend!(args.device, B => compare::<B>(&options, &mut show))?;
    bar.finish_and_clear();
    match args.json {
        true => println!("{}", serde_json::to_string(&comparison)?),
        false => println!("{}\n{}", markdown(&comparison), args.output_dir.join("compare.md").display()),
    }
    Ok(())
}
