//! Model cards: where the weights of an artefact come from and what may be done with them.
//!
//! A checkpoint that `sorcen pretrain` wrote has the record of its run beside it; [`of_run`] reads it:
//!
//! ```text
//! RUN/run.json                                  options, plan, dataset, program
//! RUN/log.txt                                   JSON lines: losses, now and then the k-NN accuracy
//! RUN/checkpoint/training_state/state.json      steps done
//! ```
//!
//! A checkpoint that travelled without them may have a `card.json` of its own instead, with the same entries.
//!
//! Cards are published with what they are in. So of a run's record only fields are taken that are known to say
//! nothing of the machine it ran on: no path, no name of a folder above the data.
//!
//! A card is a JSON object: in the `card` section of a pack, in the metadata of ONNX files, and as `model_card.md` in
//! an export folder.

use std::{fmt::Write, fs, path::Path};

use serde_json::{Map, Value};
use sorcen_runtime::ModelConfig;

use crate::{checkpoint::Checkpoint, error::Error};

/// File name of the card in an export folder.
pub const CARD_FILE: &str = "model_card.md";
/// The record of a run, beside its checkpoints.
const RUN_FILE: &str = "run.json";
const LOG_FILE: &str = "log.txt";
const STATE_FILE: &str = "training_state/state.json";
/// The card of a checkpoint that has no record of a run beside it.
const CHECKPOINT_CARD: &str = "card.json";

/// What is taken of a run's options. Everything else stays on the machine: folders, files, when things are written.
const OPTIONS: [&str; 22] = [
    "accum_iter",
    "adamw",
    "batch_size",
    "blr",
    "device",
    "devices",
    "dropout",
    "duration",
    "echo_warmup_epochs",
    "ema",
    "ema_epochs",
    "jsm",
    "losses",
    "lr",
    "masks",
    "min_lr",
    "precision",
    "projector_dim",
    "seed",
    "start_epoch",
    "teacher_init",
    "warmup_epochs",
];
/// … of its data.
const DATASET: [&str; 4] = ["classes", "images", "sha256", "tokenizer"];
/// … of the program.
const PROGRAM: [&str; 6] = ["burn", "commit", "rustc", "sorcen", "system", "threads"];

/// A card's entries.
pub type Card = Map<String, Value>;

/// Name and version of this tool.
pub const TOOL: &str = concat!("sorcen-export ", env!("CARGO_PKG_VERSION"));

/// The card of what is made from a checkpoint: the entries of [`of_run`], over them those of `more`, over these `tool`,
/// `checkpoint_sha256`, `precision` and, if given, `licence` (the terms of the weights).
///
/// # Errors
/// As [`of_run`].
pub fn of(checkpoint: &Checkpoint, precision: &str, licence: Option<&str>, more: &Card) -> Result<Card, Error> {
    let mut card = of_run(checkpoint.dir(), &checkpoint.config)?;
    card.extend(more.clone());
    card.insert("tool".into(), TOOL.into());
    card.insert("checkpoint_sha256".into(), checkpoint.sha256().into());
    card.insert("precision".into(), precision.into());
    if let Some(licence) = licence {
        card.insert("licence".into(), licence.into());
    }
    Ok(card)
}

/// What the files beside a checkpoint folder say about its training: `method`, `steps`, `images_seen`, `seed`, `data`
/// (name, SHA-256, numbers of images and classes, tokenizer), `metrics` (the last line of the log up to that step, and
/// the last k-NN accuracy), `program` and `options`. Where there is no `run.json`, or it is of a model of other sizes
/// and so not of this checkpoint, the entries of the checkpoint's `card.json`; empty where there is none.
///
/// # Errors
/// [`Error::Io`] or [`Error::Json`], naming the file.
pub fn of_run(checkpoint: &Path, config: &ModelConfig) -> Result<Card, Error> {
    let Ok(checkpoint) = checkpoint.canonicalize() else { return Ok(Card::new()) }; // `.` has a parent too
    let Some(run) = checkpoint.parent() else { return own_card(&checkpoint) };
    let Some(record) = read_json(&run.join(RUN_FILE))? else { return own_card(&checkpoint) };
    if serde_json::from_value::<ModelConfig>(record["model"].clone()).ok().as_ref() != Some(config) {
        return own_card(&checkpoint);
    }
    let options = &record["options"];
    let state = read_json(&checkpoint.join(STATE_FILE))?;
    let log = read_log(&run.join(LOG_FILE))?;
    let last_step = log.last().map_or(Value::Null, |line| line["step"].clone());
    let steps = state.map_or(last_step, |state| state["step"].clone());

    let mut card = Card::new();
    let mut add = |name: &str, value: Value| {
        if !value.is_null() {
            card.insert(name.into(), value);
        }
    };
    add("method", options["losses"]["method"].clone());
    let number = |value: &Value| value.as_u64();
    let factor = |name: &str| number(&options[name]).unwrap_or(1); // older records lack some
    let images = || Some(number(&steps)? * factor("batch_size") * factor("accum_iter") * factor("devices"));
    add("images_seen", images().into());
    add("seed", options["seed"].clone());
    add("data", data(options, &record["dataset"]));
    add("metrics", metrics(&log, number(&steps)));
    add("program", fields(&record["program"], &PROGRAM));
    add("options", fields(options, &OPTIONS));
    add("steps", steps);
    Ok(card)
}

/// The entries of a checkpoint's own card.
fn own_card(checkpoint: &Path) -> Result<Card, Error> {
    let path = checkpoint.join(CHECKPOINT_CARD);
    match read_json(&path)? {
        None => Ok(Card::new()),
        Some(Value::Object(card)) => Ok(card),
        Some(other) => Err(Error::value(path.display(), "a JSON object", other)),
    }
}

/// Those of an object's entries that have these names; null where it is none.
fn fields(record: &Value, names: &[&str]) -> Value {
    let Value::Object(record) = record else { return Value::Null };
    let known = record.iter().filter(|(name, _)| names.contains(&name.as_str()));
    Value::Object(known.map(|(name, value)| (name.clone(), value.clone())).collect())
}

/// The dataset: its record, and its folder's name.
fn data(options: &Value, dataset: &Value) -> Value {
    let mut data = fields(dataset, &DATASET);
    if let (Value::Object(data), Some(path)) = (&mut data, options["data"].as_str()) {
        let name = Path::new(path).file_name().unwrap_or_default().to_string_lossy();
        data.insert("name".into(), name.into());
    }
    data
}

/// The numbers of the last line up to `steps`, with the last k-NN accuracy seen so far.
fn metrics(log: &[Value], steps: Option<u64>) -> Value {
    let before = |line: &&Value| steps.is_none_or(|steps| line["step"].as_u64().is_some_and(|step| step <= steps));
    let mut lines = log.iter().rev().filter(before);
    let Some(mut last) = lines.clone().next().cloned() else { return Value::Null };
    if let Some(line) = lines.find(|line| !line["knn_accuracy"].is_null()) {
        last["knn_accuracy"] = line["knn_accuracy"].clone();
        last["knn_step"] = line["step"].clone();
    }
    if let Value::Object(last) = &mut last {
        last.retain(|_, value| value.is_number());
    }
    last
}

/// A JSON file; `None` where there is none.
fn read_json(path: &Path) -> Result<Option<Value>, Error> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(Error::io(path, "read"))?,
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|reason| Error::Json { path: path.to_owned(), reason })
}

/// The lines of a log that are whole: a run that was killed may have left half a line.
fn read_log(path: &Path) -> Result<Vec<Value>, Error> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        read => {
            let text = read.map_err(Error::io(path, "read"))?;
            Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
        }
    }
}

/// A card to be read: in Markdown, entries in order of their names, those of an object on lines of their own.
pub fn to_markdown(title: &str, card: &Card) -> String {
    let mut text = format!("# {title}\n\n");
    for (name, value) in card {
        match value {
            Value::Object(entries) => {
                let _ = writeln!(text, "- **{name}**"); // a String takes everything
                entries.iter().filter(|(_, value)| !value.is_null()).for_each(|(name, value)| {
                    let _ = writeln!(text, "  - {name}: {}", plain(value));
                });
            }
            value => {
                let _ = writeln!(text, "- **{name}**: {}", plain(value));
            }
        }
    }
    text
}

/// A card for a terminal, a line an entry: of an object its entries one after another, or of a long one their number.
pub fn to_lines(card: &Card) -> Vec<String> {
    const MOST: usize = 16;
    let line = |(name, value): (&String, &Value)| match value {
        Value::Object(entries) if entries.len() > MOST => {
            format!("{name}: {} entries (--json shows them)", entries.len())
        }
        Value::Object(entries) => {
            let entries = entries.iter().filter(|(_, value)| !value.is_null());
            let entries: Vec<String> = entries.map(|(name, value)| format!("{name} {}", plain(value))).collect();
            format!("{name}: {}", entries.join(", "))
        }
        value => format!("{name}: {}", plain(value)),
    };
    card.iter().map(line).collect()
}

/// Text without quotes, anything else as JSON.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_run_says_what_it_was() {
        let run = tempfile::tempdir().unwrap();
        let checkpoint = run.path().join("checkpoint");
        let config = ModelConfig::micro(8, 512);
        assert!(of_run(&checkpoint, &config).unwrap().is_empty(), "no run, no card");

        fs::create_dir_all(checkpoint.join("training_state")).unwrap();
        let record = json!({
            "model": config,
            "plan": { "steps": 100 },
            "options": { "data": "/data/emoji/train", "output_dir": "/home/me/run", "init": "/home/me/old",
                         "model": { "file": "/home/me/config.json" }, "batch_size": 64, "accum_iter": 2, "seed": 7,
                         "watch": { "tokenizer": "/home/me/t" }, "losses": { "method": "sorcen" } },
            "dataset": { "images": 6116, "classes": 9, "tokenizer": "t", "sha256": "ab", "dir": "/home/me/data" },
            "program": { "sorcen": "0.1.0", "arguments": "--data /home/me/data" },
        });
        fs::write(run.path().join(RUN_FILE), record.to_string()).unwrap();
        fs::write(checkpoint.join(STATE_FILE), r#"{"step":50,"updates":50,"seed":7}"#).unwrap();
        let log = "{\"step\":10,\"train_loss\":3.5,\"knn_accuracy\":0.6}\n{\"step\":50,\"train_loss\":2.5,\"file\":\"/home/me\"}\n\
                   {\"step\":60,\"train_loss\":2.0}\n{\"step\":61,\"tra";
        fs::write(run.path().join(LOG_FILE), log).unwrap();

        let card = of_run(&checkpoint, &config).unwrap();
        assert_eq!(card["method"], "sorcen");
        assert_eq!((&card["steps"], &card["images_seen"], &card["seed"]), (&json!(50), &json!(6400), &json!(7)));
        let data = json!({ "images": 6116, "classes": 9, "tokenizer": "t", "sha256": "ab", "name": "train" });
        assert_eq!(card["data"], data);
        let metrics = json!({ "step": 50, "train_loss": 2.5, "knn_accuracy": 0.6, "knn_step": 10 });
        assert_eq!(card["metrics"], metrics, "of the checkpoint's step, not the log's last");
        let options = json!({ "batch_size": 64, "accum_iter": 2, "seed": 7, "losses": { "method": "sorcen" } });
        assert_eq!(card["options"], options);
        assert_eq!(card["program"], json!({ "sorcen": "0.1.0" }));
        assert!(!Value::Object(card.clone()).to_string().contains('/'), "no path of the machine: {card:?}");
        let text = to_markdown("A model", &card);
        assert!(text.starts_with("# A model\n\n- **data**\n  - classes: 9\n"), "{text}");
        assert!(text.contains("- **method**: sorcen\n"), "{text}");
        let lines = to_lines(&card);
        assert!(
            lines[0].starts_with("data: classes 9, images 6116, name train") && lines.len() == card.len(),
            "{lines:?}"
        );

        let other = ModelConfig::micro(8, 256);
        assert!(of_run(&checkpoint, &other).unwrap().is_empty(), "the run of another model");
        fs::write(checkpoint.join(CHECKPOINT_CARD), "{\"steps\": 9}").unwrap();
        assert_eq!(of_run(&checkpoint, &other).unwrap()["steps"], 9, "a card of its own");
        assert_eq!(of_run(&checkpoint, &config).unwrap()["steps"], 50, "the record comes first");
        fs::write(run.path().join(RUN_FILE), "{").unwrap();
        let error = of_run(&checkpoint, &config).unwrap_err().to_string();
        assert!(error.contains("run.json") && error.contains("expected JSON"), "{error}");
    }
}
