//! What is looked at while a run goes on: sheets of pictures, and k-NN accuracy. It changes nothing in the run.

use std::path::PathBuf;

use ndarray::Array2;
use sorcen_export::generate::{generate, Randomness};
use sorcen_runtime::generate::Options;
use sorcen_runtime::rng::{Rng, Stream};
use sorcen_runtime::ModelConfig;

use super::TrainError;
use crate::config::{Plan, PretrainOptions};
use crate::data::{DataError, TokenDataset};
use crate::echo;
use crate::engine::BurnEngine;
use crate::eval::{probe_features, Task, Votes};
use crate::kernels::TrainBackend;
use crate::model::layers::Dropout;
use crate::model::Layout;
use crate::picture::{fill_unknown, known, named_rows, save_png, Grid, Picture};
use crate::step::{Pretraining, StepInputs};
use crate::tokenizer::{self, Tokenizer, TokenizerError};

/// Folder of the sheets in a run's folder.
pub const PICTURES: &str = "pictures";
/// Images of a row of a sheet.
const COLUMNS: usize = 8;
/// What the rows of a sheet are: images of the batch, what the student saw of them (grey: masked or dropped), the echoes
/// that are drawn from it, what the teacher sees of those, and new images from nothing.
pub const ROWS: [&str; 5] = ["image", "student sees", "echo", "teacher sees", "new image"];

/// Everything that looking needs, opened before the first step.
pub struct Watch {
    every: [u64; 2],
    tokenizer: Option<Box<dyn Tokenizer>>,
    knn: Option<Task>,
    folder: PathBuf,
    seed: u64,
    topk: usize,
}

impl Watch {
    /// Opens what the options name.
    ///
    /// # Errors
    /// [`DataError`] of a file, or where it does not fit the run.
    pub fn open(options: &PretrainOptions, model: &ModelConfig, dataset: &TokenDataset) -> Result<Self, DataError> {
        let watch = &options.watch;
        let tokenizer = match &watch.tokenizer {
            Some(path) if watch.picture_every_epochs > 0 => {
                let tokenizer = tokenizer::open(path, options.device)?;
                if tokenizer.codes() != model.codebook_size {
                    let expected = format!("{}, the model's", model.codebook_size);
                    return Err(DataError::invalid(path, "codes", expected, tokenizer.codes()));
                }
                if let Err(error) = tokenizer.decode_all(&[], model.grid) {
                    let expected = format!("one that paints {0}x{0} tokens", model.grid);
                    return Err(DataError::invalid(path, "tokenizer", expected, error));
                }
                Some(tokenizer)
            }
            _ => None,
        };
        let knn = match &watch.knn_data {
            Some(dir) if watch.knn_every_epochs > 0 => {
                let task = Task::open(dir, "train", "val", &[])?;
                let tokens = task.bank.tokens[0].len();
                if tokens != dataset.tokens() {
                    let expected = format!("{}, the model's", dataset.tokens());
                    return Err(DataError::invalid(dir, "tokens of an image", expected, tokens));
                }
                Some(task)
            }
            _ => None,
        };
        Ok(Self {
            every: [watch.picture_every_epochs, watch.knn_every_epochs],
            tokenizer,
            knn,
            folder: options.output_dir.join(PICTURES),
            seed: options.seed,
            topk: options.losses.echo_topk,
        })
    }

    /// Whether something is to be looked at once `steps` steps are done.
    pub fn is_due(&self, plan: &Plan, steps: u64) -> bool {
        self.every.iter().any(|&every| ends(plan, steps, every))
    }

    /// Looks, after the step that `inputs` were given to; returns the k-NN accuracy where it is due.
    ///
    /// # Errors
    /// [`TrainError`] where a picture cannot be made.
    pub fn look<B: TrainBackend>(
        &self,
        training: &Pretraining<B>,
        inputs: &StepInputs,
        plan: &Plan,
        steps: u64,
    ) -> Result<Option<f64>, TrainError> {
        let engine = BurnEngine::new(&training.config, training.networks.student.inner(), training.device.clone());
        let failed = |what: &'static str| move |error: sorcen_export::Error| TrainError::Watch { what, error };
        if let Some(tokenizer) = self.tokenizer.as_deref().filter(|_| ends(plan, steps, self.every[0])) {
            let path = self.folder.join(format!("epoch_{:05}.png", steps / plan.steps_per_epoch));
            let rows = self.rows(&engine, training, inputs).map_err(failed("picture"))?;
            save_png(&draw(&rows, tokenizer, &training.config)?, &path).map_err(DataError::from)?;
        }
        let knn = self.knn.as_ref().filter(|_| ends(plan, steps, self.every[1]));
        let accuracy =
            |task: &Task| Ok(task.knn(&task.features(|ids| probe_features(&engine, ids))?, Votes::default()));
        knn.map(|task| accuracy(task).map_err(failed("k-NN"))).transpose()
    }

    /// Token maps of each of [`ROWS`].
    fn rows<B: TrainBackend>(
        &self,
        engine: &BurnEngine<B::InnerBackend>,
        training: &Pretraining<B>,
        inputs: &StepInputs,
    ) -> Result<[Vec<u16>; 5], sorcen_export::Error> {
        let config = &training.config;
        let (tokens, mask) = (config.tokens(), config.mask_token_id as u16);
        let count = inputs.labels.len().min(COLUMNS);
        let images = &inputs.ids[..count * tokens];
        let hidden = &inputs.masks.masked[..count * tokens];
        let anchors: Vec<u16> =
            images.iter().zip(hidden).map(|(&id, &hidden)| if hidden { mask } else { id }).collect();

        let ids: Vec<i32> = anchors.iter().map(|&id| id.into()).collect();
        let layout = Layout::new(config, &ids, &inputs.masks.dropped[..count * tokens]);
        let student = training.networks.student.inner();
        let (_, latent) = student.encode(&layout, &training.device, &Dropout::off());
        let logits = student.decode(config, latent, &layout, &training.device, &Dropout::off());
        let logits = logits.into_data().convert::<f32>().to_vec::<f32>().unwrap_or_default();
        let rng = Rng::new(self.seed, Stream::Evaluation, 0);
        let echoes = echo::sample(&logits, config.codebook_size, self.topk, &rng, |_| true);
        let seen = |(i, &id): (usize, &u16)| match inputs.crop.keeps(i / tokens, i % tokens, config.grid) {
            true => id,
            false => mask,
        };
        let cropped: Vec<u16> = echoes.iter().enumerate().map(seen).collect();

        let blank = Array2::from_elem((COLUMNS, tokens), i64::from(mask));
        let samples = generate(engine, blank.view(), &Options::PUBLISHED, &Randomness::Seeded(self.seed))?.final_ids;
        let samples: Vec<u16> = samples.iter().map(|&id| id as u16).collect();

        Ok([images.to_vec(), anchors, echoes, cropped, samples])
    }
}

/// Paints rows of token maps.
fn draw(rows: &[Vec<u16>; 5], tokenizer: &dyn Tokenizer, config: &ModelConfig) -> Result<Picture, TokenizerError> {
    let (grid, unknown) = (config.grid, config.mask_token_id);
    let mut named = Vec::new();
    for (name, row) in ROWS.into_iter().zip(rows) {
        let maps: Vec<&[u16]> = row.chunks_exact(config.tokens()).collect();
        let painted = tokenizer.decode_all(&maps.iter().map(|ids| known(ids, unknown)).collect::<Vec<_>>(), grid)?;
        let picture = |(mut rgb, ids): (Vec<u8>, &[u16])| {
            fill_unknown(&mut rgb, ids, grid, unknown);
            rgb
        };
        named.push((name, painted.into_iter().zip(maps).map(picture).collect()));
    }
    let layout = Grid { columns: COLUMNS, ..Grid::default() };
    Ok(named_rows(&layout, &named, grid * tokenizer.stride()))
}

/// Whether an epoch whose number is a multiple of `every` (if any) ends with step `steps`.
fn ends(plan: &Plan, steps: u64, every: u64) -> bool {
    every > 0 && steps.is_multiple_of(every * plan.steps_per_epoch)
}
