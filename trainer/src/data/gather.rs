//! New datasets out of old ones.

use std::path::Path;

use super::names::some_of;
use super::{expect_same_classes, DataError, Part, StreamSpec, Table, TokenDataset, TokenDatasetWriter};

/// Writes a dataset of chosen images: of each part, those with these numbers, in this order.
///
/// # Errors
/// [`DataError::Invalid`] where the parts differ in classes, streams (grid, codes, tokenizer) or columns
/// of `items.csv`, or there is no part; [`DataError`] of the writer.
///
/// # Panics
/// Where a number is not below the length of its dataset.
pub fn gather(parts: &[(&TokenDataset, Vec<usize>)], out: &Path) -> Result<(), DataError> {
    let Some(((first, _), rest)) = parts.split_first() else {
        return Err(DataError::invalid(out, "datasets to take images from", "at least one", 0));
    };
    let specs = specs(first);
    let header = first.items()?.map(|table| table.header().to_vec());
    for (other, _) in rest {
        let same = |item: &str, expected: String, found: String| match expected == found {
            true => Ok(()),
            false => Err(DataError::invalid(other.dir(), item, expected + " as in the first", found)),
        };
        expect_same_classes(first, other)?;
        same("streams", format!("{specs:?}"), format!("{:?}", self::specs(other)))?;
        let found = other.items()?.map(|table| table.header().to_vec());
        same("columns of items.csv", format!("{header:?}"), format!("{found:?}"))?;
    }
    let count = parts.iter().map(|(_, numbers)| numbers.len()).sum();
    let mut writer = TokenDatasetWriter::create(out, first.class_names().to_vec(), &specs)?.with_room_for(count)?;
    let mut rows: Vec<Vec<String>> = header.clone().into_iter().collect();
    let mut ids: Vec<Vec<u16>> = specs.iter().map(|spec| vec![0; spec.grid * spec.grid]).collect();
    for (dataset, numbers) in parts {
        let items = dataset.items()?.unwrap_or_default();
        for &index in numbers {
            for ((_, stream), ids) in dataset.streams().zip(&mut ids) {
                stream.ids(index, ids);
            }
            let ids: Vec<&[u16]> = ids.iter().map(Vec::as_slice).collect();
            writer.push(dataset.label(index), &ids)?;
            if header.is_some() {
                rows.push(items.row(index).to_vec());
            }
        }
    }
    let rows = rows.iter().map(|row| row.iter().map(String::as_str).collect());
    let text = header.is_some().then(|| Table::csv(rows));
    writer.finish(text.as_deref())
}

/// The parts of one set (`tokenize --shard`) in their order, and what is to be said of them. Datasets that are not
/// recorded as parts stay where they are.
///
/// # Errors
/// [`DataError::Invalid`] where a part is missing, there twice, or of another set.
pub fn in_order(mut datasets: Vec<TokenDataset>) -> Result<(Vec<TokenDataset>, Vec<String>), DataError> {
    let recorded: Vec<(Part, &TokenDataset)> =
        datasets.iter().filter_map(|dataset| Some((dataset.part()?, dataset))).collect();
    let mut notes = Vec::new();
    let unknown = datasets.len() - recorded.len();
    if unknown > 0 {
        notes.push(format!(
            "{unknown} of {} datasets are not recorded as parts of a set (`tokenize --shard`): whether all of its parts \
             are here was not checked",
            datasets.len()
        ));
    }
    let Some(&(first, of_first)) = recorded.first() else { return Ok((datasets, notes)) };
    let mut places: Vec<Option<&Path>> = vec![None; first.of.min(1 << 20)];
    for (part, dataset) in &recorded {
        let (dir, name) = (dataset.dir(), format!("part {}/{}", part.index, part.of));
        if (part.of, part.images) != (first.of, first.images) {
            let expected = format!("one of {} of {} images, as {}", first.of, first.images, of_first.dir().display());
            return Err(DataError::invalid(dir, "part", expected, format_args!("{name} of {} images", part.images)));
        }
        if let Some(Some(other)) = places.get(part.index) {
            let found = format_args!("it in {} too", other.display());
            return Err(DataError::invalid(dir, name, "each part once", found));
        }
        if let Some(place) = places.get_mut(part.index) {
            *place = Some(dir);
        }
    }
    let missing: Vec<String> =
        (0..places.len()).filter(|&i| places[i].is_none()).map(|i| format!("{i}/{}", first.of)).collect();
    if !missing.is_empty() {
        let expected = format!("all {}, from 0/{0} to {1}/{0}", first.of, first.of - 1);
        let found = format!("{} of them, without {}", first.of - missing.len(), some_of(&missing));
        return Err(DataError::invalid(of_first.dir(), "parts", expected, found));
    }
    let number = |dataset: &TokenDataset| dataset.part().map(|part| part.index);
    if unknown == 0 && !datasets.is_sorted_by_key(number) {
        datasets.sort_by_key(number);
        notes.push("the parts are put together in the order of their numbers, not in that of the folders given".into());
    }
    Ok((datasets, notes))
}

fn specs(dataset: &TokenDataset) -> Vec<StreamSpec> {
    let spec = |(name, stream): (&str, &super::TokenStream)| StreamSpec {
        name: name.into(),
        grid: stream.grid(),
        codebook_size: stream.codebook_size(),
        tokenizer: stream.tokenizer().map(str::to_string),
    };
    dataset.streams().map(spec).collect()
}
