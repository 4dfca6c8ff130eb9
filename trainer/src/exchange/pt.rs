//! Writes what `torch.save({"tokens_vqgan": …, "labels": …}, file)` writes.

use std::fs::File;
use std::io::{self, BufWriter};

use super::{each_row, LABELS};
use crate::data::TokenDataset;
use crate::torch::{self, Numbers, Value};

/// Writes all of a dataset, every array as `int64`.
pub(super) fn write(dataset: &TokenDataset, file: &mut BufWriter<File>) -> io::Result<()> {
    let count = dataset.len();
    let tokens = dataset.streams().map(|(name, stream)| {
        let rows = Numbers::Streamed(Box::new(move |write| each_row::<8>(dataset, name, write)));
        (Value::Text(format!("tokens_{name}")), Value::Tensor(vec![count, stream.tokens()], rows))
    });
    let labels = Numbers::I64(dataset.labels().iter().map(|&label| label.into()).collect());
    let labels = (LABELS.into(), Value::Tensor(vec![count], labels));
    torch::write("tokens", &Value::Dict(tokens.chain([labels]).collect()), file)
}
