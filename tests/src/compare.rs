//! How far apart two lists of numbers are, for the tests of every crate: nothing that is no number passes.

/// An element of a list, owned or borrowed.
pub trait Number {
    /// The same number in double precision.
    fn value(&self) -> f64;
}

impl Number for f32 {
    fn value(&self) -> f64 {
        (*self).into()
    }
}

impl Number for f64 {
    fn value(&self) -> f64 {
        *self
    }
}

impl<N: Number> Number for &N {
    fn value(&self) -> f64 {
        (**self).value()
    }
}

/// The largest absolute difference between two lists, element by element; infinite where either list holds a NaN or an
/// infinity, so that `<= bound` fails.
///
/// # Panics
/// On lists of different lengths, and on empty ones, which show nothing.
#[track_caller]
pub fn largest_difference<A: Number, B: Number>(
    found: impl IntoIterator<Item = A>,
    expected: impl IntoIterator<Item = B>,
) -> f64 {
    // `f64::max` passes over a NaN: one that is not a number counts as infinite before it is reached.
    let apart = |(a, b): (f64, f64)| if a.is_finite() && b.is_finite() { (a - b).abs() } else { f64::INFINITY };
    pairs(found, expected).into_iter().map(apart).fold(0.0, f64::max)
}

/// The cosine of the angle between two lists; NaN, for which `>= bound` fails, where one holds a NaN or an infinity, or
/// is zero throughout.
///
/// # Panics
/// As [`largest_difference`].
#[track_caller]
pub fn cosine<A: Number, B: Number>(found: impl IntoIterator<Item = A>, expected: impl IntoIterator<Item = B>) -> f64 {
    let [mut dot, mut found_square, mut expected_square] = [0.0; 3];
    for (a, b) in pairs(found, expected) {
        dot += a * b;
        found_square += a * a;
        expected_square += b * b;
    }
    dot / (found_square * expected_square).sqrt()
}

#[track_caller]
fn pairs<A: Number, B: Number>(
    found: impl IntoIterator<Item = A>,
    expected: impl IntoIterator<Item = B>,
) -> Vec<(f64, f64)> {
    let [found, expected] = [values(found), values(expected)];
    assert_eq!(found.len(), expected.len(), "numbers found and expected");
    assert!(!found.is_empty(), "a comparison of no numbers");
    found.into_iter().zip(expected).collect()
}

fn values<N: Number>(list: impl IntoIterator<Item = N>) -> Vec<f64> {
    list.into_iter().map(|number| number.value()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences() {
        assert_eq!(largest_difference([1.0f32, 2.0, -3.0], [1.0f64, 2.5, -3.0]), 0.5);
        assert_eq!(largest_difference(&[1.0f32][..], vec![1.0f32]), 0.0);
        // One that comes before, after or on either side of a larger difference.
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in 0..3 {
                let mut list = [9.0, 9.0, 9.0];
                list[at] = bad;
                assert_eq!(largest_difference(list, [1.0f32; 3]), f64::INFINITY, "{list:?}");
                assert_eq!(largest_difference([1.0f32; 3], list), f64::INFINITY, "{list:?}");
                assert_eq!(largest_difference(list, list), f64::INFINITY, "{list:?}: on both sides too");
            }
        }
        assert_eq!(largest_difference([f32::MAX], [f32::MIN]), 2.0 * f64::from(f32::MAX));
    }

    #[test]
    fn cosines() {
        assert_eq!(cosine([3.0f32, 4.0], [6.0f32, 8.0]), 1.0);
        assert_eq!(cosine([1.0f32, 0.0], [0.0f32, 2.0]), 0.0);
        for bad in [[f32::NAN, 1.0], [f32::INFINITY, 1.0], [0.0, 0.0]] {
            assert!(cosine(bad, [1.0f32, 1.0]).is_nan() && cosine([1.0f32, 1.0], bad).is_nan(), "{bad:?}");
        }
    }

    #[test]
    #[should_panic(expected = "numbers found and expected")]
    fn shorter() {
        largest_difference([1.0f32], [1.0f32, 2.0]);
    }

    #[test]
    #[should_panic(expected = "numbers found and expected")]
    fn longer() {
        cosine([1.0f32, 2.0], [1.0f32]);
    }

    #[test]
    #[should_panic(expected = "no numbers")]
    fn empty() {
        largest_difference::<f32, f32>([], []);
    }
}
