//! What the features' neighbours say: whether those of an artefact stand to each other as the reference's do.

use std::collections::BTreeMap;

use ndarray::Array2;

use super::report::cosine;

/// Images that vote for a class.
const VOTERS: usize = 5;
/// Images from which on a class vote says something.
const LEAST_IMAGES: usize = 100;
/// Share of the reference's votes that may go to one class: whatever votes for it alone agrees so often.
const MOST_ALIKE: f64 = 0.8;
/// Images from which on the nearest other image is compared: of fewer, it is the same by chance too often.
const LEAST_OTHERS: usize = 8;

/// Share of rows whose nearest other row by cosine is the same in both; none where there are too few.
pub fn same_nearest(expected: &Array2<f32>, found: &Array2<f32>) -> Option<f32> {
    let same = || nearest(expected).zip(nearest(found)).filter(|(a, b)| a == b).count();
    (expected.nrows() >= LEAST_OTHERS).then(|| same() as f32 / expected.nrows() as f32)
}

/// Share of rows to which the nearest other rows give the same class in both.
///
/// # Errors
/// Why that would say nothing: too few images, of one class, or of classes too small to be voted for.
pub fn same_class(expected: &Array2<f32>, found: &Array2<f32>, labels: &[u16]) -> Result<f32, String> {
    let images = labels.len();
    if images < LEAST_IMAGES {
        return Err(format!("{images} images, which is less than {LEAST_IMAGES}"));
    }
    let sizes = counts(labels.iter().copied());
    let large = sizes.values().filter(|&&size| size > VOTERS).count();
    if large < 2 {
        return Err(format!(
            "{large} classes of more than {VOTERS} images among the {}, which is less than 2",
            sizes.len()
        ));
    }
    let ours = voted(expected, labels);
    let most = counts(ours.iter().copied()).into_values().max().unwrap_or(0);
    if most as f64 > MOST_ALIKE * images as f64 {
        return Err(format!("{most} of {images} images get the same class, so that a constant would agree as often"));
    }
    let same = ours.iter().zip(voted(found, labels)).filter(|(a, b)| **a == *b).count();
    Ok(same as f32 / images as f32)
}

fn counts(classes: impl Iterator<Item = u16>) -> BTreeMap<u16, usize> {
    let mut counts = BTreeMap::new();
    classes.for_each(|class| *counts.entry(class).or_default() += 1);
    counts
}

/// For each row the class that most of the rows nearest to it have, the least on ties.
fn voted(rows: &Array2<f32>, labels: &[u16]) -> Vec<u16> {
    let vote = |i: usize| {
        let mut others: Vec<(f32, usize)> = cosines(rows, i).collect();
        others.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let votes = counts(others.iter().take(VOTERS).map(|(_, j)| labels[*j]));
        let most = votes.into_iter().max_by_key(|&(class, votes)| (votes, std::cmp::Reverse(class)));
        most.map_or(labels[i], |(class, _)| class)
    };
    (0..rows.nrows()).map(vote).collect()
}

/// For each row the other row nearest to it by cosine.
fn nearest(rows: &Array2<f32>) -> impl Iterator<Item = usize> + '_ {
    (0..rows.nrows())
        .map(|i| cosines(rows, i).fold((f32::NEG_INFINITY, 0), |near, (c, j)| if c > near.0 { (c, j) } else { near }).1)
}

/// How near each other row is to row `i`, by cosine.
fn cosines(rows: &Array2<f32>, i: usize) -> impl Iterator<Item = (f32, usize)> + '_ {
    (0..rows.nrows()).filter(move |&j| j != i).map(move |j| (cosine(rows.row(i), rows.row(j)), j))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    /// Bundles of directions: `size` rows each, a quarter turn apart.
    fn bundles(count: usize, size: usize) -> Array2<f32> {
        Array2::from_shape_fn((count * size, 2), |(i, axis)| {
            let angle = (i % size) as f32 * 0.001 + (i / size) as f32 * 1.5;
            if axis == 0 {
                angle.cos()
            } else {
                angle.sin()
            }
        })
    }

    #[test]
    fn the_nearest_is_found() {
        let rows = array![[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.6, 0.8]];
        assert_eq!(nearest(&rows).collect::<Vec<_>>(), [1, 0, 3, 2]);
        assert_eq!(same_nearest(&rows, &rows), None, "of four, a third are the same by chance");
        let rows = bundles(2, 4);
        assert_eq!(same_nearest(&rows, &rows), Some(1.0));
    }

    #[test]
    fn classes_by_the_nearest() {
        // The last but one has the other bundle's class.
        let labels = [3, 3, 3, 3, 1, 1, 3, 1];
        assert_eq!(voted(&bundles(2, 4), &labels), [3, 3, 3, 3, 3, 3, 1, 3]);
        let (rows, labels) = (bundles(2, 50), (0..100).map(|i| i / 50).collect::<Vec<u16>>());
        assert_eq!(same_class(&rows, &rows, &labels), Ok(1.0));
        let mut moved = rows.clone();
        moved.row_mut(6).assign(&rows.row(60));
        assert_eq!(same_class(&rows, &moved, &labels), Ok(0.99));
    }

    /// What agrees whatever the features are is no comparison.
    #[test]
    fn a_vote_that_cannot_fail_is_not_taken() {
        let why = |rows: &Array2<f32>, labels: &[u16]| same_class(rows, rows, labels).unwrap_err();
        let few = why(&bundles(2, 4), &[0, 0, 0, 0, 1, 1, 1, 1]);
        assert!(few.contains("8 images"), "{few}");
        let rows = bundles(2, 50);
        assert!(why(&rows, &[7; 100]).contains("1 classes of more than 5 images among the 1"));
        let own: Vec<u16> = (0..100).collect();
        assert!(why(&rows, &own).contains("0 classes"));
        // Two classes, one of them all but everything.
        let mut labels = [0; 100];
        labels[..6].fill(1);
        assert!(why(&rows, &labels).contains("of 100 images get the same class"));
    }
}
