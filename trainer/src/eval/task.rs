//! [`KnnTask`]: one question put to any kind of feature.

use std::path::Path;

use ndarray::Array2;
use sorcen_export::Engine;

use super::knn::{accuracy, cosine_votes, hamming_votes, Votes};
use crate::data::{DataError, TokenDataset};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// Labelled token maps.
#[derive(Clone, Debug)]
pub struct Labelled {
    /// One `[T]` per image.
    pub tokens: Vec<Vec<u16>>,
    /// One label per image.
    pub labels: Vec<u16>,
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
        Ok(Self { tokens: kept.iter().map(ids).collect(), labels })
    }
}

/// Which class do the nearest images of the bank have? Asked of the queries, with features of any kind.
#[derive(Clone, Debug)]
pub struct KnnTask {
    /// Images with known labels.
    pub bank: Labelled,
    /// Images to classify.
    pub queries: Labelled,
    /// How neighbours vote.
    pub votes: Votes,
    grid: usize,
}

impl KnnTask {
    /// From the datasets `data/bank` and `data/queries`, those of their images that `only` keeps.
    ///
    /// # Errors
    /// [`DataError`] of either dataset, or where they do not fit each other.
    pub fn open(
        data: &Path,
        bank: &str,
        queries: &str,
        only: &[(String, String)],
        votes: Votes,
    ) -> Result<Self, DataError> {
        let (bank, queries) = (TokenDataset::open(&data.join(bank))?, TokenDataset::open(&data.join(queries))?);
        let same = |item: &str, expected: &dyn std::fmt::Debug, found: &dyn std::fmt::Debug| {
            let (expected, found) = (format!("{expected:?}"), format!("{found:?}"));
            match expected == found {
                true => Ok(()),
                false => Err(DataError::invalid(queries.dir(), item, expected + " as in the bank", found)),
            }
        };
        same("grid", &bank.grid(), &queries.grid())?;
        same("tokenizer", &bank.tokenizer(), &queries.tokenizer())?;
        same("class names", &bank.class_names(), &queries.class_names())?;
        Ok(Self { bank: Labelled::of(&bank, only)?, queries: Labelled::of(&queries, only)?, votes, grid: bank.grid() })
    }

    /// Accuracy with features by cosine similarity; `extract` turns token maps into one `[D]` each.
    ///
    /// # Errors
    /// Those of `extract`.
    pub fn features<E>(&self, extract: impl Fn(&[Vec<u16>]) -> Result<Vec<Vec<f32>>, E>) -> Result<f64, E> {
        let (bank, queries) = (extract(&self.bank.tokens)?, extract(&self.queries.tokens)?);
        Ok(accuracy(&cosine_votes(&bank, &self.bank.labels, &queries, self.votes), &self.queries.labels))
    }

    /// Accuracy with the tokens themselves, by how many are equal.
    pub fn tokens(&self) -> f64 {
        let predicted = hamming_votes(&self.bank.tokens, &self.bank.labels, &self.queries.tokens, self.votes);
        accuracy(&predicted, &self.queries.labels)
    }

    /// Accuracy with the pixels that the tokens stand for, as differences from white.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`], where the tokenizer is another than the dataset's.
    pub fn pixels(&self, tokenizer: &dyn Tokenizer) -> Result<f64, TokenizerError> {
        self.features(|images| {
            let decode = |ids: &Vec<u16>| {
                let rgb = tokenizer.decode(ids, self.grid)?;
                Ok(rgb.into_iter().map(|value| f32::from(255 - value)).collect())
            };
            images.iter().map(decode).collect()
        })
    }

    /// Share of the queries that have the bank's most frequent label.
    pub fn majority(&self) -> f64 {
        let mut counts = vec![0; 1 << 16];
        self.bank.labels.iter().for_each(|&label| counts[usize::from(label)] += 1);
        let most = (0..counts.len()).rev().max_by_key(|&label| counts[label]).unwrap_or(0) as u16;
        accuracy(&vec![most; self.queries.labels.len()], &self.queries.labels)
    }
}

/// Images that go through an engine at a time.
const BATCH: usize = 128;

/// The linear probe's features `[D]` of whole images `[T]`, from any engine.
///
/// # Errors
/// [`sorcen_export::Error::Value`] where the ids do not fit the model.
pub fn probe_features(engine: &dyn Engine, images: &[Vec<u16>]) -> Result<Vec<Vec<f32>>, sorcen_export::Error> {
    let tokens = engine.config().tokens();
    if let Some(image) = images.iter().find(|image| image.len() != tokens) {
        let (item, expected) = ("tokens of an image".into(), tokens.to_string());
        return Err(sorcen_export::Error::Value { item, expected, found: image.len().to_string() });
    }
    let mut features = Vec::with_capacity(images.len());
    for images in images.chunks(BATCH) {
        let ids = Array2::from_shape_fn((images.len(), tokens), |(image, at)| i64::from(images[image][at]));
        let positions = Array2::from_shape_fn(ids.dim(), |(_, at)| at as i64);
        let encoded = engine.encode(ids.view(), positions.view())?;
        features.extend(encoded.features.rows().into_iter().map(|row| row.to_vec()));
    }
    Ok(features)
}
