//! The stages of a quickstart: each does one thing, prints what a person wants to know, and returns
//! what the next one or the report needs.

use std::{
    collections::BTreeSet,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicBool, Ordering},
        Arc,
    },
    time::Instant,
};

use anyhow::{ensure, Result};
use ndarray::Array2;
use sorcen_export::{
    batch::{self, Draw},
    onnx,
    pack::{self, PackFile, PackOptions},
    tokenizer::AnyTokenizer,
    verify::{verify, VerifyInputs, VerifyReport},
    Checkpoint,
};
use sorcen_runtime::{
    generate,
    pack::Precision,
    schema,
    scratch::{Plan, Scratch},
    Model, ModelConfig,
};

use super::{
    console::bar,
    evaluate::{self, VOTES},
    pictures,
    report::{picture, size, table},
    Init, Options,
};
use crate::{
    bundled,
    config::{Duration, ModelChoice, PretrainOptions},
    data::TokenDataset,
    eval::Task,
    picture::{read_log, save_curves, save_png, Grid},
    tokenizer::PatchTokenizer,
    train::{self, PretrainReport, TrainError},
};

/// Images filled in from a quarter of their tokens.
const RECONSTRUCTED: usize = 8;
/// Untrained encoders to compare with.
const UNTRAINED_SEEDS: u64 = 3;

/// How the pictures are drawn, chosen by eye on the demo model: with the published temperatures (6 and 1) stray
/// patches and nearly blank pictures are more frequent, since white is the surest guess and is committed first.
pub const DRAWING: generate::Options =
    generate::Options { temperature: 12.0, token_temperature: 0.8, ..generate::Options::PUBLISHED };

/// The report's first paragraph, which also says where training started.
pub fn introduction(options: &Options) -> String {
    let start = match options.init {
        Init::Bundled => "from the bundled checkpoint, which was trained longer",
        Init::Scratch => "from random weights",
    };
    format!("Pretraining went on for {} minutes {start}; seed {}.", options.minutes, options.seed)
}

/// How the bundled images are pretrained on.
///
/// # Errors
/// An option out of range, or something in the way that is no earlier quickstart's.
pub fn pretraining(options: &Options, data_dir: &Path) -> Result<PretrainOptions> {
    let duration = Duration::Minutes(options.minutes);
    let output = options.out.join("training");
    let in_the_way = output.exists() && !output.join(train::RUN).exists();
    ensure!(!in_the_way, "{}: expected nothing, or an earlier run to replace; found other files", output.display());
    let mut run = PretrainOptions::new(&data_dir.join(bundled::TRAIN), &output, ModelChoice::Micro, duration);
    run.seed = options.seed;
    run.print_freq = 5;
    run.dropout = 0.0;
    run.losses.label_smoothing = 0.0;
    match options.init {
        Init::Bundled => {
            run.lr = Some(2e-4);
            run.echo_warmup_epochs = Some(0);
            run.init = Some(data_dir.join(bundled::CHECKPOINT));
        }
        Init::Scratch => run.lr = Some(2e-3),
    }
    run.validate().map_err(TrainError::Option)?;
    Ok(run)
}

/// Pretrains on the bundled images, until done or `stop` is set.
pub fn pretrain(options: &Options, run: &PretrainOptions, stop: &AtomicBool) -> Result<PretrainReport> {
    println!(
        "  {}",
        match options.init {
            Init::Bundled => "going on from the bundled checkpoint (--init scratch starts from nothing)",
            Init::Scratch => "from random weights: minutes are enough to see the losses fall, not to draw emoji",
        }
    );
    if run.output_dir.exists() {
        fs::remove_dir_all(&run.output_dir)?; // an earlier quickstart's
    }
    let bar = bar("steps");
    let report = train::pretrain(run, &mut |progress| {
        bar.set_length(progress.steps);
        bar.set_position(progress.step);
        if let Some(line) = &progress.line {
            bar.set_message(format!("loss {:.3}", line.train_loss));
        }
        match stop.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })?;
    bar.finish_and_clear();
    let fields = ["train_loss", "train_rec_loss", "train_nn_loss"];
    save_curves(&read_log(&report.log, "step", &fields)?, &[], "step", &options.out.join("loss.png"))?;
    println!("  {} images in {} steps, {:.0} a second", report.images, report.steps, report.images_per_second);
    println!("  {} and {}", report.log.display(), options.out.join("loss.png").display());
    Ok(report)
}

/// The report's section on training.
pub fn training_text(options: &Options, report: &PretrainReport) -> String {
    let start = match options.init {
        Init::Bundled => "the bundled checkpoint",
        Init::Scratch => "random weights",
    };
    let rows = [
        ("start", start.to_string()),
        ("steps", report.steps.to_string()),
        ("images seen", report.images.to_string()),
        ("images a second", format!("{:.0}", report.images_per_second)),
        ("last loss", report.last.as_ref().map_or("none logged".into(), |line| format!("{:.4}", line.train_loss))),
    ];
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(name, value)| vec![name.to_string(), value]).collect();
    table(&["", ""], &rows) + "\n" + &picture("loss.png", "Losses over the steps.")
}

/// The files that a checkpoint is lowered to.
pub struct Artefacts {
    /// Folder of `encoder.onnx` and `decoder.onnx`.
    pub onnx: PathBuf,
    /// Verification pack.
    pub f32: PathBuf,
    /// Deployment pack, with the tokenizer.
    pub int8: PathBuf,
}

impl Artefacts {
    /// Writes them all.
    pub fn write(checkpoint: &Checkpoint, out: &Path, data_dir: &Path) -> Result<Self> {
        let files = Self { onnx: out.join("onnx"), f32: out.join("model-f32.srcn"), int8: out.join("model.srcn") };
        fs::create_dir_all(&files.onnx)?;
        onnx::export(checkpoint, &files.onnx, "Trained on Noto Emoji (Apache-2.0) and Twemoji (CC-BY 4.0).")?;
        let tokenizer = AnyTokenizer::Patches(PatchTokenizer::open(&data_dir.join(bundled::TOKENIZER))?);
        for (path, precision) in [(&files.f32, Precision::F32), (&files.int8, Precision::Int8)] {
            let options = PackOptions { tokenizer: Some(&tokenizer), ..PackOptions::new(precision) };
            pack::write(checkpoint, path, &options)?;
        }
        for path in files.paths() {
            println!("  {:<16} {:>9}", name(&path), size(fs::metadata(&path)?.len()));
        }
        Ok(files)
    }

    fn paths(&self) -> [PathBuf; 4] {
        [self.onnx.join("encoder.onnx"), self.onnx.join("decoder.onnx"), self.f32.clone(), self.int8.clone()]
    }

    /// The report's section on files and memory.
    pub fn text(&self, checkpoint: &Checkpoint) -> Result<String> {
        let mut rows = Vec::new();
        for path in self.paths() {
            rows.push(vec![name(&path), size(fs::metadata(&path)?.len())]);
        }
        let memory = |plan| size(Scratch::bytes(&checkpoint.config, plan) as u64);
        rows.push(vec!["RAM for features".into(), memory(Plan::Features)]);
        rows.push(vec!["RAM for generation".into(), memory(Plan::Generate)]);
        Ok(table(&["file", "size"], &rows))
    }
}

fn name(path: &Path) -> String {
    path.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned())
}

/// Float reference ↔ ONNX in tract ↔ packs, on every held-back image.
pub fn cross_check(
    checkpoint: &Arc<Checkpoint>,
    files: &Artefacts,
    task: &Task,
    data_dir: &Path,
) -> Result<VerifyReport> {
    let images = &task.queries.tokens;
    let tokens = Array2::from_shape_fn((images.len(), checkpoint.config.tokens()), |(i, t)| images[i][t].into());
    let report = verify(&VerifyInputs {
        labels: Some(task.queries.labels.clone()),
        onnx: vec![files.onnx.clone()],
        packs: vec![files.f32.clone(), files.int8.clone()],
        tokenizer: Some(AnyTokenizer::Patches(PatchTokenizer::open(&data_dir.join(bundled::TOKENIZER))?)),
        ..VerifyInputs::new(checkpoint.clone(), tokens)
    })?;
    println!("{}", report.to_markdown().trim_end());
    Ok(report)
}

/// k-NN accuracy of the int8 features, beside the float pack and what needs no training.
pub fn features(task: &Task, files: &Artefacts, config: &ModelConfig, data_dir: &Path) -> Result<String> {
    let bar = bar("encoders");
    bar.set_length(3 + UNTRAINED_SEEDS);
    let accuracy = |path: &Path| -> Result<f64> {
        let file = PackFile::open(path)?;
        let accuracy = runtime_accuracy(task, &Model::new(file.pack(path)?));
        bar.inc(1);
        accuracy
    };
    let start = Instant::now();
    let int8 = accuracy(&files.int8)?;
    let (bank, queries) = (task.bank.tokens.len(), task.queries.tokens.len());
    let milliseconds = start.elapsed().as_secs_f64() * 1e3 / (bank + queries) as f64;
    let float = accuracy(&files.f32)?;
    let demo = accuracy(&data_dir.join(bundled::PACK))?;
    let tokenizer = &PatchTokenizer::open(&data_dir.join(bundled::TOKENIZER))?;

    // The same architecture before training, as f32 packs.
    let scratch = tempfile::tempdir()?;
    let mut untrained = 0.0;
    for seed in 0..UNTRAINED_SEEDS {
        let (dir, path) = (scratch.path().join(format!("{seed}")), scratch.path().join(format!("{seed}.srcn")));
        fs::create_dir_all(&dir)?;
        evaluate::write_untrained(config, seed, &dir)?;
        pack::write(&Checkpoint::open(&dir)?, &path, &PackOptions::new(Precision::F32))?;
        untrained += accuracy(&path)? / UNTRAINED_SEEDS as f64;
    }
    bar.finish_and_clear();

    let rows = [
        ("this run, int8", int8),
        ("this run, f32", float),
        ("bundled demo model, int8", demo),
        ("untrained, f32 (mean of 3 seeds)", untrained),
        ("raw tokens (share of equal ones)", task.knn_tokens(VOTES)),
        ("pixels, as the tokens show them", task.knn(&task.decoded_pixels(tokenizer)?, VOTES)),
    ];
    let rows: Vec<Vec<String>> =
        rows.into_iter().map(|(name, accuracy)| vec![name.to_string(), format!("{:.1} %", 100.0 * accuracy)]).collect();
    let text = format!(
        "{}\n{bank} base emoji to search in, {queries} held back (other concepts), {} categories, k = {} by cosine. \
         int8 runtime: {milliseconds:.2} ms an image, all cores.\n",
        table(&["features", "k-NN accuracy"], &rows),
        task.queries.labels.iter().collect::<BTreeSet<_>>().len(),
        VOTES.k,
    );
    println!("{}", text.trim_end());
    Ok(text)
}

/// k-NN accuracy of a pack alone.
pub fn demo_features(task: &Task, model: &Model<'_>, data_dir: &Path) -> Result<()> {
    let tokenizer = &PatchTokenizer::open(&data_dir.join(bundled::TOKENIZER))?;
    let rows = [
        ("int8 features", runtime_accuracy(task, model)?),
        ("raw tokens", task.knn_tokens(VOTES)),
        ("pixels, as the tokens show them", task.knn(&task.decoded_pixels(tokenizer)?, VOTES)),
    ];
    for (name, accuracy) in rows {
        println!("  {name:<32} {:.1} % k-NN accuracy on held-back emoji", 100.0 * accuracy);
    }
    Ok(())
}

/// k-NN accuracy of the features that the runtime computes.
fn runtime_accuracy(task: &Task, model: &Model<'_>) -> Result<f64> {
    Ok(task.knn(&task.features(|images| batch::features(model, images))?, VOTES))
}

/// Draws new images and fills others in; returns the report's section.
pub fn pictures(model: &Model<'_>, data: &TokenDataset, out: &Path, count: usize, seed: u64) -> Result<String> {
    let draw = Draw { options: DRAWING, seed, greedy: false };
    let side = model.config().grid * model.pack().tokenizer().map_or(0, |tokenizer| tokenizer.patch());
    let progress = bar("steps");
    let start = Instant::now();
    let samples = pictures::samples(model, count, &draw, &progress)?;
    let seconds = start.elapsed().as_secs_f64();
    save_png(&Grid::default().draw(&samples, side), &out.join("samples.png"))?;

    let chosen: Vec<usize> = (0..RECONSTRUCTED.min(data.len())).map(|i| i * data.len() / RECONSTRUCTED).collect();
    let filled = pictures::reconstructions(model, data, &chosen, &draw, &progress)?;
    progress.finish_and_clear();
    let rows = [
        filled.iter().map(|r| r.original.clone()).collect::<Vec<_>>(),
        filled.iter().map(|r| r.given.clone()).collect(),
        filled.iter().map(|r| r.filled.clone()).collect(),
    ]
    .concat();
    let grid = Grid { columns: filled.len(), ..Grid::default() };
    save_png(&grid.draw(&rows, side), &out.join("reconstruct.png"))?;

    let steps = draw.options.steps;
    let text = format!("{count} images of {steps} steps in {seconds:.1} s on all cores, int8 runtime.");
    println!("  {text}");
    println!("  {} and {}", out.join("samples.png").display(), out.join("reconstruct.png").display());
    let caption = "Rows: held-back emoji as tokens; the quarter of the tokens that is given; filled in by the model.";
    Ok(picture("samples.png", &format!("New images. {text}")) + &picture("reconstruct.png", caption))
}

/// A model in one line.
pub fn describe(model: &Model<'_>) -> String {
    let config: &ModelConfig = model.config();
    let weights: usize = schema::params(config).map(|param| param.shape(config).elements()).sum();
    format!(
        "{weights} weights in a pack of {}; RAM: {} for features, {} for generation",
        size(model.pack().bytes() as u64),
        size(Scratch::bytes(config, Plan::Features) as u64),
        size(Scratch::bytes(config, Plan::Generate) as u64),
    )
}
