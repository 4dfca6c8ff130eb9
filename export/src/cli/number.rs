//! Numbers on the command line: read with their range, so that clap names the flag and what was expected.

use std::{ops::RangeBounds, str::FromStr};

/// A value parser for numbers in a range, which `expected` says in words.
pub fn within<T: FromStr + PartialOrd>(
    range: impl RangeBounds<T> + Clone + Send + Sync + 'static,
    expected: &'static str,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("expected {expected}"))
    }
}

/// A number of images.
pub fn images(text: &str) -> Result<usize, String> {
    within(1..=100_000, "a whole number from 1 to 100000")(text)
}

/// A seed.
pub fn seed(text: &str) -> Result<u64, String> {
    within(0.., "a whole number, 0 or more, of 64 bits")(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold() {
        let share = within(0.0..1.0, "a number from 0 to below 1");
        assert_eq!((share("0"), share("0.25")), (Ok(0.0), Ok(0.25)));
        for wrong in ["1", "-0.1", "nan", "inf", "x", ""] {
            assert_eq!(share(wrong), Err("expected a number from 0 to below 1".into()), "{wrong}");
        }
        assert_eq!((images("1"), images("100000")), (Ok(1), Ok(100_000)));
        assert!(["0", "-1", "4000000000", "1.5"].iter().all(|wrong| images(wrong).is_err()));
        assert_eq!(seed("18446744073709551615"), Ok(u64::MAX));
        assert!(seed("-1").is_err());
    }
}
