//! Images as ids in files of tensors. Each program writes them under a name that says where they come from; whoever reads
//! them takes any of the names.

use ndarray::{Array2, ArrayD};

use crate::{error::Error, tensors::TensorFile};

/// The names: what a model is run on, what `generate` draws, what a tokenizer makes of images.
pub const NAMES: [&str; 3] = ["token_ids", "final_ids", "ids"];

/// The ids `[B, T]` of a file and their name; from `[B, T]` or, row by row, `[B, side, side]`. They are not checked.
///
/// # Errors
/// Any [`Error`] naming file and tensor: none of [`NAMES`], several that differ, another shape, no integers.
pub fn read(file: &TensorFile) -> Result<(&'static str, Array2<i64>), Error> {
    let mut found: Option<(&'static str, Array2<i64>)> = None;
    for name in NAMES.into_iter().filter(|name| file.has(name)) {
        let ids = maps(file, name, |rank| file.ints(name, rank))?;
        match &found {
            Some((first, others)) if *others != ids => {
                let item = format!("{} and `{name}`", file.item(first));
                return Err(Error::value(item, "one of them, or the same ids in both", "different ids"));
            }
            Some(_) => {}
            None => found = Some((name, ids)),
        }
    }
    found.ok_or_else(|| {
        let [first, second, third] = NAMES;
        file.lacks(&format!("ids, called `{first}`, `{second}` or `{third}`"))
    })
}

/// A map of the grid for each image, `[B, T]`, of whatever `read` gives for a tensor of so many dimensions.
///
/// # Errors
/// [`Error::Shape`], or those of `read`.
pub fn maps<T>(
    file: &TensorFile,
    name: &str,
    read: impl FnOnce(usize) -> Result<ArrayD<T>, Error>,
) -> Result<Array2<T>, Error> {
    let shape = file.shape(name).unwrap_or_default();
    let tokens = match *shape {
        [_, tokens] => tokens,
        [_, rows, columns] if rows == columns => rows * columns,
        _ => return Err(file.wrong_shape(name, "[B, T] or [B, side, side]")),
    };
    let flat = read(shape.len())?.into_iter().collect();
    let maps = Array2::from_shape_vec((shape[0], tokens), flat);
    maps.map_err(|_| file.wrong_shape(name, "[B, T] or [B, side, side]"))
}

#[cfg(test)]
mod tests {
    use ndarray::{array, Array3, ArrayView, Dimension};

    use super::*;
    use crate::tensors::TensorWriter;

    fn file<D: Dimension>(tensors: &[(&str, ArrayView<i64, D>)]) -> TensorFile {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("f.safetensors");
        let mut writer = TensorWriter::default();
        tensors.iter().for_each(|(name, values)| writer.ints(name, values.view()));
        writer.write(&path).unwrap();
        TensorFile::open(&path).unwrap()
    }

    #[test]
    fn any_name_and_either_shape_is_taken() {
        let (rows, other) = (array![[1, 2, 3, 4], [5, 6, 7, 8]], array![[1, 2, 3, 4], [5, 6, 7, 9]]);
        let grids = Array3::from_shape_vec((2, 2, 2), (1..9).collect()).unwrap();
        for name in NAMES {
            assert_eq!(read(&file(&[(name, rows.view())])).unwrap(), (name, rows.clone()));
            assert_eq!(read(&file(&[(name, grids.view())])).unwrap(), (name, rows.clone()));
        }
        let same = file(&[("ids", rows.view()), ("final_ids", rows.view())]);
        assert_eq!(read(&same).unwrap(), ("final_ids", rows.clone()));

        let said = |file: TensorFile| read(&file).unwrap_err().to_string();
        let message = said(file(&[("ids", rows.view()), ("token_ids", other.view())]));
        assert!(message.contains("f.safetensors: `token_ids` and `ids`: expected one of them"), "{message}");
        let message = said(file(&[("latent", rows.view())]));
        assert!(message.contains("called `token_ids`, `final_ids` or `ids`, found latent"), "{message}");
        let oblong = Array3::from_shape_vec((1, 2, 4), (1..9).collect()).unwrap();
        let message = said(file(&[("ids", oblong.view())]));
        assert!(message.contains("`ids`: expected shape [B, T] or [B, side, side], found [1, 2, 4]"), "{message}");
        let message = said(file(&[("ids", array![1, 2].view())]));
        assert!(message.contains("found [2]"), "{message}");
    }
}
