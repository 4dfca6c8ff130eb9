//! Whether two datasets know the same classes: a label is an index into their names.

use super::{DataError, TokenDataset};

/// Names that are listed of many.
const NAMED: usize = 5;

/// That `other` has the classes of `first`, in the same order.
///
/// # Errors
/// [`DataError::Invalid`]: which classes one of them lacks, and the way out.
pub fn expect_same_classes(first: &TokenDataset, other: &TokenDataset) -> Result<(), DataError> {
    let (these, those) = (first.class_names(), other.class_names());
    if these == those {
        return Ok(());
    }
    let [one, two] = [first, other].map(|dataset| dataset.dir().display().to_string());
    let (missing, alone) = (beyond(these, those), beyond(those, these));
    let mut found = match (missing.len(), alone.len()) {
        (0, 0) => "them in another order".to_string(),
        _ => format!("{}", those.len()),
    };
    if !missing.is_empty() {
        found += &format!("; {two} lacks {}", some(&missing));
    }
    if !alone.is_empty() {
        found += &format!("; {one} lacks {}", some(&alone));
    }
    found += &match (missing.is_empty(), alone.is_empty()) {
        (_, true) => format!(" (make {two} anew: `sorcen tokenize --classes_from {one} …`)"),
        (true, false) => format!(" (make {one} anew: `sorcen tokenize --classes_from {two} …`)"),
        (false, false) => " (make both anew, `sorcen tokenize --classes_from` with a dataset of all classes)".into(),
    };
    Err(DataError::invalid(other.dir(), "classes", format_args!("the {} of {one}", these.len()), found))
}

/// Those of `names` that are not among `others`.
fn beyond<'a>(names: &'a [String], others: &[String]) -> Vec<&'a str> {
    let others: std::collections::HashSet<&String> = others.iter().collect();
    names.iter().filter(|name| !others.contains(name)).map(String::as_str).collect()
}

/// The first names of a list, and how many more there are.
fn some(names: &[&str]) -> String {
    let listed: Vec<String> = names.iter().take(NAMED).map(|name| format!("`{name}`")).collect();
    let more = names.len().saturating_sub(NAMED);
    listed.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::super::{StreamSpec, TokenDatasetWriter, VQGAN};
    use super::*;

    #[test]
    fn the_class_that_is_missing_is_named_with_the_way_out() {
        let temp = tempfile::tempdir().unwrap();
        let dataset = |name: &str, classes: &[&str]| {
            let dir = temp.path().join(name);
            let spec = StreamSpec { name: VQGAN.into(), grid: 1, codebook_size: 2, tokenizer: None };
            let classes = classes.iter().map(|class| class.to_string()).collect();
            let mut writer = TokenDatasetWriter::create(&dir, classes, &[spec]).unwrap();
            writer.push(0, &[&[1]]).unwrap();
            writer.finish(None).unwrap();
            TokenDataset::open(&dir).unwrap()
        };
        let train = dataset("train", &["ant", "bee", "cat"]);
        let message = |other: &TokenDataset| {
            let message = expect_same_classes(&train, other).unwrap_err().to_string();
            message.replace(&format!("{}/", temp.path().display()), "")
        };
        expect_same_classes(&train, &train).unwrap();
        assert_eq!(
            message(&dataset("val", &["ant", "cat"])),
            "val: classes: expected the 3 of train, found 2; val lacks `bee` \
             (make val anew: `sorcen tokenize --classes_from train …`)"
        );
        assert_eq!(
            message(&dataset("more", &["ant", "bee", "cat", "dog"])),
            "more: classes: expected the 3 of train, found 4; train lacks `dog` \
             (make train anew: `sorcen tokenize --classes_from more …`)"
        );
        let both = message(&dataset("other", &["ant", "d", "e", "f", "g", "h", "i"]));
        assert!(both.contains("other lacks `bee`, `cat`; train lacks `d`, `e`, `f`, `g`, `h` and 1 more (make both"));
        assert!(
            message(&dataset("turned", &["bee", "ant", "cat"])).contains("found them in another order (make turned")
        );
    }
}
