//! New datasets out of old ones.

use std::path::Path;

use super::{expect_same_classes, DataError, StreamSpec, Table, TokenDataset, TokenDatasetWriter};

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

fn specs(dataset: &TokenDataset) -> Vec<StreamSpec> {
    let spec = |(name, stream): (&str, &super::TokenStream)| StreamSpec {
        name: name.into(),
        grid: stream.grid(),
        codebook_size: stream.codebook_size(),
        tokenizer: stream.tokenizer().map(str::to_string),
    };
    dataset.streams().map(spec).collect()
}
