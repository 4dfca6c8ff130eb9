//! [`Task`]: one question put to any kind of feature.

use std::collections::HashMap;
use std::path::Path;

use ndarray::{Array2, ArrayView2};
use sorcen_export::{found, Engine};

use super::knn::{accuracy, cosine_votes, hamming_votes, Votes};
use crate::data::{expect_same_classes, DataError, ImageQuery, ImageSet, TokenDataset};
use crate::engine::BurnEngine;
use crate::kernels::Kernels;
use crate::model::layers::Dropout;
use crate::tokenizer::{Tokenizer, TokenizerError};

/// Labelled token maps.
#[derive(Clone, Debug)]
pub struct Labelled {
    /// One `[T]` per image.
    pub tokens: Vec<Vec<u16>>,
    /// One label per image.
    pub labels: Vec<u16>,
    /// Where each image is in its dataset.
    pub indices: Vec<usize>,
    /// Images in the dataset.
    dataset_len: usize,
}

impl Labelled {
    /// The images of a dataset whose `items.csv` has these values in these columns.
    ///
    /// # Errors
    /// [`DataError::Invalid`] for a column that is not there, or where no image is left.
    pub fn of(dataset: &TokenDataset, only: &[(String, String)]) -> Result<Self, DataError> {
        let mut kept = vec![true; dataset.len()];
        for (name, value) in only {
            let column = dataset.column(name)?;
            kept.iter_mut().zip(column).for_each(|(kept, found)| *kept &= found == *value);
        }
        let kept: Vec<usize> = (0..dataset.len()).filter(|&index| kept[index]).collect();
        if kept.is_empty() {
            return Err(DataError::invalid(dataset.dir(), "images", "at least one that the conditions keep", 0));
        }
        let ids = |&index: &usize| {
            let mut ids = vec![0; dataset.tokens()];
            dataset.ids(index, &mut ids);
            ids
        };
        let labels = kept.iter().map(|&index| dataset.label(index)).collect();
        Ok(Self { tokens: kept.iter().map(ids).collect(), labels, indices: kept, dataset_len: dataset.len() })
    }
}

/// Which class is this image of? Asked of the queries, knowing the labels of the bank, with features of any kind.
#[derive(Clone, Debug)]
pub struct Task {
    /// Images with known labels.
    pub bank: Labelled,
    /// Images to classify.
    pub queries: Labelled,
    /// Of each query, the places in the bank that are the same image, rising.
    own: Vec<Vec<usize>>,
    class_names: Vec<String>,
    grid: usize,
    codes: usize,
    tokenizer: Option<String>,
}

/// Features of a [`Task`]'s images, one `[D]` each.
#[derive(Clone, Debug)]
pub struct TaskFeatures {
    /// Of the bank.
    pub bank: Vec<Vec<f32>>,
    /// Of the queries.
    pub queries: Vec<Vec<f32>>,
}

impl Task {
    /// From the datasets `data/bank` and `data/queries`, those of their images that `only` keeps.
    ///
    /// # Errors
    /// [`DataError`] of either dataset, or where they do not fit each other, or the bank has no other image than a
    /// query's own.
    pub fn open(data: &Path, bank: &str, queries: &str, only: &[(String, String)]) -> Result<Self, DataError> {
        let (bank, queries) = (open_in(data, bank)?, open_in(data, queries)?);
        let same = |item: &str, expected: &dyn std::fmt::Debug, found: &dyn std::fmt::Debug| {
            let (expected, found) = (format!("{expected:?}"), format!("{found:?}"));
            match expected == found {
                true => Ok(()),
                false => Err(DataError::invalid(queries.dir(), item, expected + " as in the bank", found)),
            }
        };
        same("grid", &bank.grid(), &queries.grid())?;
        let tokenizer = |dataset: &TokenDataset| dataset.tokenizer().unwrap_or("none recorded").to_string();
        same("tokenizer", &tokenizer(&bank), &tokenizer(&queries))?;
        expect_same_classes(&bank, &queries)?;
        let (known, asked) = (Labelled::of(&bank, only)?, Labelled::of(&queries, only)?);
        let own = same_images(&bank, &known, &queries, &asked)?;
        if own.iter().any(|own| own.len() == known.labels.len()) {
            let expected = "one at least that is not the image to classify itself";
            return Err(DataError::invalid(bank.dir(), "images", expected, known.labels.len()));
        }
        Ok(Self {
            bank: known,
            queries: asked,
            own,
            class_names: bank.class_names().to_vec(),
            grid: bank.grid(),
            codes: bank.codebook_size().max(queries.codebook_size()),
            tokenizer: bank.tokenizer().map(str::to_string),
        })
    }

    /// How many of the queries are in the bank themselves; each is left out of its own neighbours.
    pub fn shared(&self) -> usize {
        self.own.iter().filter(|own| !own.is_empty()).count()
    }

    /// Side of the token grid.
    pub fn grid(&self) -> usize {
        self.grid
    }

    /// Codes K: ids are `0..K`.
    pub fn codes(&self) -> usize {
        self.codes
    }

    /// Fingerprint of the tokenizer that made the tokens, where known.
    pub fn tokenizer(&self) -> Option<&str> {
        self.tokenizer.as_deref()
    }

    /// Names of the classes; labels are indices into them.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// Features of all images; `extract` turns token maps into one `[D]` each.
    ///
    /// # Errors
    /// Those of `extract`.
    pub fn features<E>(&self, extract: impl Fn(&[Vec<u16>]) -> Result<Vec<Vec<f32>>, E>) -> Result<TaskFeatures, E> {
        Ok(TaskFeatures { bank: extract(&self.bank.tokens)?, queries: extract(&self.queries.tokens)? })
    }

    /// The pixels that the tokens stand for, as differences from white, 0 to 255.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`], where the tokenizer is another than the dataset's.
    pub fn decoded_pixels(&self, tokenizer: &dyn Tokenizer) -> Result<TaskFeatures, TokenizerError> {
        let from_white = |rgb: Vec<u8>| rgb.into_iter().map(|value| f32::from(255 - value)).collect();
        self.features(|images| Ok(tokenizer.decode_all(images, self.grid)?.into_iter().map(from_white).collect()))
    }

    /// The pixels of the pictures themselves, as differences from white, 0 to 255; one channel where all are grey.
    ///
    /// `bank` and `queries` hold the pictures (an idx file, or a folder) in the order of the datasets.
    ///
    /// # Errors
    /// [`DataError`] where they cannot be read, or are not as many as the datasets have images.
    pub fn pictures(&self, bank: &Path, queries: &Path) -> Result<TaskFeatures, DataError> {
        let read = |path: &Path, wanted: &Labelled| {
            let images = ImageSet::open(&ImageQuery { images: vec![path.to_path_buf()], ..Default::default() })?;
            if images.len() != wanted.dataset_len {
                let expected = format!("{}, as many as in the token dataset", wanted.dataset_len);
                return Err(DataError::invalid(path, "images", expected, images.len()));
            }
            wanted.indices.iter().map(|&index| images.rgb(index)).collect::<Result<Vec<_>, _>>()
        };
        let (bank, queries) = (read(bank, &self.bank)?, read(queries, &self.queries)?);
        let grey =
            |rgb: &Vec<u8>| rgb.as_chunks::<3>().0.iter().all(|[red, green, blue]| red == green && green == blue);
        let step = if bank.iter().chain(&queries).all(grey) { 3 } else { 1 };
        let values = |rgb: Vec<u8>| rgb.into_iter().step_by(step).map(|value| f32::from(255 - value)).collect();
        Ok(TaskFeatures {
            bank: bank.into_iter().map(values).collect(),
            queries: queries.into_iter().map(values).collect(),
        })
    }

    /// k-NN accuracy with features, by cosine similarity.
    pub fn knn(&self, features: &TaskFeatures, votes: Votes) -> f64 {
        let predicted = cosine_votes(&features.bank, &self.bank.labels, &features.queries, &self.own, votes);
        accuracy(&predicted, &self.queries.labels)
    }

    /// k-NN accuracy with the tokens themselves, by how many are equal.
    pub fn knn_tokens(&self, votes: Votes) -> f64 {
        let predicted = hamming_votes(&self.bank.tokens, &self.bank.labels, &self.queries.tokens, &self.own, votes);
        accuracy(&predicted, &self.queries.labels)
    }

    /// Share of the queries that have the bank's most frequent label.
    pub fn majority(&self) -> f64 {
        let mut counts = vec![0; 1 << 16];
        self.bank.labels.iter().for_each(|&label| counts[usize::from(label)] += 1);
        let most = (0..counts.len()).rev().max_by_key(|&label| counts[label]).unwrap_or(0) as u16;
        accuracy(&vec![most; self.queries.labels.len()], &self.queries.labels)
    }
}

/// The dataset `name` in the folder `data`.
fn open_in(data: &Path, name: &str) -> Result<TokenDataset, DataError> {
    let dir = data.join(name);
    if found::is_dataset(&dir) {
        return TokenDataset::open(&dir);
    }
    let found = match found::is_dataset(data) {
        true => "a token dataset itself (give the folder that it lies in)".into(),
        false => found::at(data),
    };
    Err(DataError::invalid(data, "datasets", format_args!("a folder with the token dataset `{name}` in it"), found))
}

/// Of each query, where in the bank it is: in one dataset (the same checksums) by its number; in two, where what
/// items.csv says of it and all of its tokens are the same.
fn same_images(
    bank: &TokenDataset,
    known: &Labelled,
    queries: &TokenDataset,
    asked: &Labelled,
) -> Result<Vec<Vec<usize>>, DataError> {
    if bank.digest() == queries.digest() {
        return Ok(asked
            .indices
            .iter()
            .map(|index| known.indices.binary_search(index).into_iter().collect())
            .collect());
    }
    let nowhere = || vec![Vec::new(); asked.indices.len()];
    let (Some(bank), Some(queries)) = (bank.items()?, queries.items()?) else { return Ok(nowhere()) };
    if bank.header() != queries.header() {
        return Ok(nowhere());
    }
    let mut places: HashMap<(&[String], &[u16]), Vec<usize>> = HashMap::new();
    for (place, (&index, tokens)) in known.indices.iter().zip(&known.tokens).enumerate() {
        places.entry((bank.row(index), tokens)).or_default().push(place);
    }
    let of = |(&index, tokens): (&usize, &Vec<u16>)| places.get(&(queries.row(index), &tokens[..])).cloned();
    Ok(asked.indices.iter().zip(&asked.tokens).map(|query| of(query).unwrap_or_default()).collect())
}

/// Images that go through an engine at a time.
const BATCH: usize = 128;

/// The linear probe's features `[D]` of whole images `[T]`, from any engine.
///
/// # Errors
/// [`sorcen_export::Error::Value`] where the ids do not fit the model.
pub fn probe_features(engine: &dyn Engine, images: &[Vec<u16>]) -> Result<Vec<Vec<f32>>, sorcen_export::Error> {
    batches(engine.config().tokens(), images, |ids| {
        let positions = Array2::from_shape_fn(ids.dim(), |(_, at)| at as i64);
        Ok(engine.encode(ids, positions.view())?.features)
    })
}

/// The same with dropout at the token embedding: [`BurnEngine::features_with_dropout`].
///
/// # Errors
/// As [`probe_features`].
pub fn features_with_dropout<B: Kernels>(
    engine: &BurnEngine<B>,
    images: &[Vec<u16>],
    dropout: &Dropout,
) -> Result<Vec<Vec<f32>>, sorcen_export::Error> {
    batches(engine.config().tokens(), images, |ids| engine.features_with_dropout(ids, dropout))
}

/// `extract` turns ids `[B, T]` into features `[B, D]`, some images at a time.
fn batches(
    tokens: usize,
    images: &[Vec<u16>],
    extract: impl Fn(ArrayView2<i64>) -> Result<Array2<f32>, sorcen_export::Error>,
) -> Result<Vec<Vec<f32>>, sorcen_export::Error> {
    if let Some(image) = images.iter().find(|image| image.len() != tokens) {
        return Err(sorcen_export::Error::value(
            "tokens of an image",
            format!("{tokens}, as the model has"),
            image.len(),
        ));
    }
    let mut features = Vec::with_capacity(images.len());
    for images in images.chunks(BATCH) {
        let ids = Array2::from_shape_fn((images.len(), tokens), |(image, at)| i64::from(images[image][at]));
        features.extend(extract(ids.view())?.rows().into_iter().map(|row| row.to_vec()));
    }
    Ok(features)
}
