//! Writes what `torch.save({"tokens_vqgan": …, "labels": …}, file)` writes: a zip of a pickle and raw numbers.

use std::fs::File;
use std::io::{self, BufWriter};

use super::{each_row, LABELS};
use crate::data::TokenDataset;
use crate::zip::ZipWriter;

/// Folder of everything in the archive; PyTorch takes any.
const ROOT: &str = "tokens";

/// Writes all of a dataset, every array as `int64`.
pub(super) fn write(dataset: &TokenDataset, file: &mut BufWriter<File>) -> io::Result<()> {
    let count = dataset.len();
    let mut arrays: Vec<(String, Vec<usize>)> =
        dataset.streams().map(|(name, stream)| (format!("tokens_{name}"), vec![count, stream.tokens()])).collect();
    arrays.push((LABELS.into(), vec![count]));

    let pickle = pickle(&arrays);
    let mut zip = ZipWriter::new(file);
    zip.entry(&format!("{ROOT}/data.pkl"), pickle.len(), |write| write(&pickle))?;
    zip.entry(&format!("{ROOT}/byteorder"), 6, |write| write(b"little"))?;
    for (key, (name, stream)) in dataset.streams().enumerate() {
        let size = count * stream.tokens() * 8;
        zip.entry(&format!("{ROOT}/data/{key}"), size, |write| each_row::<8>(dataset, name, write))?;
    }
    let labels: Vec<u8> = dataset.labels().iter().flat_map(|&label| i64::from(label).to_le_bytes()).collect();
    zip.entry(&format!("{ROOT}/data/{}", arrays.len() - 1), labels.len(), |write| write(&labels))?;
    zip.entry(&format!("{ROOT}/version"), 2, |write| write(b"3\n"))?;
    zip.finish()
}

/// A dictionary of tensors, protocol 2; tensor `i` has storage `i`.
fn pickle(arrays: &[(String, Vec<usize>)]) -> Vec<u8> {
    let mut out = b"\x80\x02}(".to_vec();
    for (key, (name, shape)) in arrays.iter().enumerate() {
        let strides: Vec<usize> = (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect();
        text(&mut out, name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        out.extend(b"ctorch\nLongStorage\n");
        text(&mut out, &key.to_string());
        text(&mut out, "cpu");
        integer(&mut out, shape.iter().product());
        out.extend(b"tQ");
        integer(&mut out, 0); // offset
        for sizes in [shape, &strides] {
            out.push(b'(');
            sizes.iter().for_each(|&size| integer(&mut out, size));
            out.push(b't');
        }
        out.extend(b"\x89ccollections\nOrderedDict\n)RtR"); // no gradient, no hooks
    }
    out.extend(b"u.");
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

fn integer(out: &mut Vec<u8>, value: usize) {
    match i32::try_from(value) {
        Ok(value) => {
            out.push(b'J');
            out.extend(value.to_le_bytes());
        }
        Err(_) => {
            out.extend([0x8a, 8]);
            out.extend((value as u64).to_le_bytes());
        }
    }
}
