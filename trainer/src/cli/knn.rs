//! `sorcen knn`: what features are worth, without training anything.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use serde_json::json;
use sorcen_export::fingerprint::Fingerprint;
use sorcen_export::pack::{PackEngine, PackFile};
use sorcen_export::reference::Reference;
use sorcen_export::{Checkpoint, Engine};

use super::features::TaskArgs;
use crate::device::Device;
use crate::eval::{probe_features, Votes};
use crate::tokenizer;

/// Classify held-back images by their nearest neighbours: what features are worth
///
/// Gives the accuracy with the features of a checkpoint or a pack beside that
/// with the plain tokens: features that are no better have learned nothing.
///
/// Reads the token datasets DATA/BANK (labels known) and DATA/SPLIT (to
/// classify). Tune on val, look at test once. An image that is in both is left
/// out of its own neighbours. The feature is the linear probe's:
/// the mean of the last block's patch tokens.
///
/// Example:
///   sorcen knn --data trainer/assets/emoji --only skin_variation=0 \
///       --pack trainer/assets/emoji/demo.srcn
#[derive(clap::Args, Debug)]
#[command(rename_all = "snake_case", verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    task: TaskArgs,

    /// Checkpoint folder whose encoder makes the features, in float
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,

    /// Pack whose encoder makes the features, on the runtime
    #[arg(long, value_name = "FILE")]
    pack: Option<PathBuf>,

    /// The tokenizer file: adds the pixels that the tokens stand for
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,

    /// Neighbours that vote, at least 1
    #[arg(long, default_value_t = 5)]
    k: usize,

    /// A vote weighs exp(similarity / temperature)
    #[arg(long, default_value_t = 0.07)]
    temperature: f32,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    usage_unless!(args.k > 0, "--k: expected at least 1, found 0");
    usage_unless!(args.temperature > 0.0, "--temperature: expected more than 0, found {}", args.temperature);
    let votes = Votes { k: args.k, temperature: args.temperature };
    let task = args.task.open()?;
    let mut rows = vec![("majority".to_string(), task.majority()), ("tokens".to_string(), task.knn_tokens(votes))];
    if let Some(path) = &args.tokenizer {
        let tokenizer = tokenizer::open(path, Device::Cpu)?;
        args.task.check_tokenizer(&task, path, &*tokenizer)?;
        let pixels = task.decoded_pixels(&*tokenizer)?;
        rows.push(("pixels, decoded from tokens".into(), task.knn(&pixels, votes)));
    }
    let of = |engine: &dyn Engine| -> Result<f64> {
        Ok(task.knn(&task.features(|images| probe_features(engine, images))?, votes))
    };
    if let Some(dir) = &args.checkpoint {
        let checkpoint = Arc::new(Checkpoint::open(dir)?);
        let config = &checkpoint.config;
        args.task.check_encoder(&task, config, &Fingerprint::of_checkpoint(dir, config)?)?;
        rows.push((format!("checkpoint {}", dir.display()), of(&Reference::new(checkpoint))?));
    }
    if let Some(path) = &args.pack {
        let file = PackFile::open(path)?;
        let pack = file.pack(path)?;
        args.task.check_encoder(&task, pack.config(), &Fingerprint::of_pack(path, &pack))?;
        rows.push((format!("pack {}", path.display()), of(&PackEngine::new(pack))?));
    }
    if args.json {
        let accuracy: serde_json::Map<_, _> = rows.into_iter().map(|(name, value)| (name, json!(value))).collect();
        let (bank, queries) = (task.bank.labels.len(), task.queries.labels.len());
        let shared = task.shared();
        let result =
            json!({ "bank": bank, "queries": queries, "in_bank_too": shared, "k": args.k, "accuracy": accuracy });
        println!("{result}");
        return Ok(());
    }
    let nearest = args.k.min(task.bank.labels.len() - usize::from(task.shared() > 0));
    println!(
        "{} images of `{}` by their {} nearest of {} in `{}`:",
        task.queries.labels.len(),
        args.task.split,
        nearest,
        task.bank.labels.len(),
        args.task.bank
    );
    if task.shared() > 0 {
        println!("({} of them are in `{}` too: each is left out there)", task.shared(), args.task.bank);
    }
    for (name, accuracy) in rows {
        println!("{accuracy:.3}  {name}");
    }
    Ok(())
}
