//! The table of a cross-check: how close each output of each artefact came to the reference.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    path::Path,
};

use ndarray::{Array2, ArrayView1, ArrayView2};
use serde::Serialize;

use super::{neighbours::same_nearest, tokenizer::TokenizerComparison};
use crate::tolerance::{tolerance, Link, Output};

/// One line of the table: one output of one artefact against the reference.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// What ran: `pack int8`, `ONNX f32 in tract`, …
    pub engine: String,
    /// The artefact: a file or folder.
    pub path: String,
    /// `features`, `latent` or `logits`.
    pub output: &'static str,
    /// Rows compared: images, tokens or positions.
    pub rows: usize,
    /// How close the numbers are.
    #[serde(flatten)]
    pub distance: Distance,
    /// Share of positions whose most likely code is the same (logits only).
    pub top1: Option<f32>,
    /// Share of images whose nearest other image by cosine is the same (features of enough images only).
    pub nearest: Option<f32>,
    /// Share of images whose class by the five nearest others is the same (features of enough images of known class).
    pub same_class: Option<f32>,
    /// Bound on `max_abs`, where there is one.
    pub max_abs_bound: Option<f32>,
    /// Bound on `cosine_min`.
    pub cosine_bound: f32,
    /// Bound on `relative`.
    pub relative_bound: f32,
    /// Bound on `row_relative_max`.
    pub row_relative_bound: f32,
    /// Whether all bounds hold.
    pub passed: bool,
}

/// How far two matrices of rows are apart.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Distance {
    /// Smallest cosine of a row with the reference's.
    pub cosine_min: f32,
    /// Mean cosine.
    pub cosine_mean: f32,
    /// Largest absolute difference of an element.
    pub max_abs: f32,
    /// Length of the difference over the length of the reference, both as one vector; 0 where both are 0.
    pub relative: f32,
    /// The same of the row where it is largest.
    pub row_relative_max: f32,
}

/// One line of the table of layers: the output of one layer against the reference's.
#[derive(Clone, Debug, Serialize)]
pub struct Layer {
    /// What ran.
    pub engine: String,
    /// The artefact: a file.
    pub path: String,
    /// `blocks.{i}` or `decoder_blocks.{i}`.
    pub layer: String,
    /// How close the numbers are.
    #[serde(flatten)]
    pub distance: Distance,
}

/// The whole table.
#[derive(Clone, Debug, Serialize)]
pub struct VerifyReport {
    /// Images used.
    pub images: usize,
    /// SHA-256 of the checkpoint's weights.
    pub checkpoint_sha256: String,
    /// One line an artefact and output.
    pub comparisons: Vec<Comparison>,
    /// One line an artefact with a tokenizer, where one to compare it with was given.
    pub tokenizers: Vec<TokenizerComparison>,
    /// One line an artefact and layer, where layers were asked for.
    pub layers: Vec<Layer>,
    /// What is wrong besides numbers: artefacts of another checkpoint.
    pub failures: Vec<String>,
    /// What could not be compared, and why.
    pub notes: Vec<String>,
}

impl Distance {
    /// Between rows `[n, width]`.
    pub fn of(expected: ArrayView2<f32>, found: ArrayView2<f32>) -> Self {
        let rows = || expected.rows().into_iter().zip(found.rows());
        let cosines: Vec<f32> = rows().map(|(a, b)| cosine(a, b)).collect();
        // Not `f32::min` and `max`, which pass over a NaN.
        let least =
            |values: &[f32]| values.iter().fold(1.0, |least, &x| if x < least || x.is_nan() { x } else { least });
        let most = |largest: f32, x: f32| if x > largest || x.is_nan() { x } else { largest };
        // Sums in f64: 40,000 cosines near 1 lose the fourth digit of their mean in f32.
        let squares: Vec<[f64; 2]> = rows().map(|(a, b)| squares(a, b)).collect();
        let [difference, length] = squares.iter().fold([0.0; 2], |sum, row| [sum[0] + row[0], sum[1] + row[1]]);
        Self {
            cosine_min: least(&cosines),
            cosine_mean: (cosines.iter().map(|&cosine| f64::from(cosine)).sum::<f64>() / cosines.len() as f64) as f32,
            max_abs: expected.iter().zip(found).map(|(a, b)| (a - b).abs()).fold(0.0, most),
            relative: ratio(difference, length),
            row_relative_max: squares.iter().map(|&[difference, length]| ratio(difference, length)).fold(0.0, most),
        }
    }
}

/// Of two rows, the squared length of their difference, and of the first.
fn squares(expected: ArrayView1<f32>, found: ArrayView1<f32>) -> [f64; 2] {
    expected.iter().zip(found).fold([0.0; 2], |[difference, length], (&a, &b)| {
        let (a, b) = (f64::from(a), f64::from(b));
        [difference + (a - b) * (a - b), length + a * a]
    })
}

/// Length over length, of their squares.
fn ratio(difference: f64, length: f64) -> f32 {
    if difference == 0.0 {
        return 0.0; // of nothing at all too
    }
    (difference / length).sqrt() as f32
}

impl Comparison {
    /// Compares rows `[n, width]` by the bounds of a link.
    pub fn of(
        engine: &str,
        path: &Path,
        link: Link,
        output: Output,
        expected: &Array2<f32>,
        found: &Array2<f32>,
    ) -> Self {
        let bounds = tolerance(link, output);
        let d = Distance::of(expected.view(), found.view());
        let agreeing = || expected.rows().into_iter().zip(found.rows()).filter(|(a, b)| best(*a) == best(*b)).count();
        let has_codes = matches!(output, Output::Logits | Output::Step);
        Self {
            engine: engine.into(),
            path: path.display().to_string(),
            output: output.name(),
            rows: expected.nrows(),
            distance: d,
            top1: has_codes.then(|| agreeing() as f32 / expected.nrows() as f32),
            nearest: (output == Output::Features).then(|| same_nearest(expected, found)).flatten(),
            same_class: None,
            max_abs_bound: bounds.max_abs.is_finite().then_some(bounds.max_abs),
            cosine_bound: bounds.min_cosine,
            relative_bound: bounds.max_relative,
            row_relative_bound: bounds.max_row_relative,
            passed: d.max_abs <= bounds.max_abs
                && d.cosine_min >= bounds.min_cosine
                && d.relative <= bounds.max_relative
                && d.row_relative_max <= bounds.max_row_relative,
        }
    }
}

/// Cosine of two rows; of two that are 0 it is 1.
pub(super) fn cosine(a: ArrayView1<f32>, b: ArrayView1<f32>) -> f32 {
    let dot = |x: ArrayView1<f32>, y: ArrayView1<f32>| {
        x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>()
    };
    match [dot(a, a), dot(b, b)] {
        [0.0, 0.0] => 1.0,
        [a_squared, b_squared] => (dot(a, b) / (a_squared * b_squared).sqrt()) as f32,
    }
}

/// Index of the largest element, the first on ties.
fn best(row: ArrayView1<f32>) -> usize {
    row.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (i, &x)| if x > best.1 { (i, x) } else { best }).0
}

impl VerifyReport {
    /// Whether every comparison is within its bounds, there is one, and nothing else is wrong.
    pub fn passed(&self) -> bool {
        !self.comparisons.is_empty() && self.out_of_tolerance() == 0 && self.failures.is_empty()
    }

    /// Adds a note unless it is there.
    pub(super) fn note_once(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// Comparisons that are not within their bounds.
    pub fn out_of_tolerance(&self) -> usize {
        let numbers = self.comparisons.iter().filter(|comparison| !comparison.passed).count();
        numbers + self.tokenizers.iter().filter(|comparison| !comparison.passed).count()
    }

    /// What tables call each artefact, by engine and path: where there are several, with the file's name, or with the
    /// whole path if names are alike.
    fn names(&self) -> BTreeMap<(&String, &String), String> {
        let tokenizers = self.tokenizers.iter().map(|c| (&c.engine, &c.path));
        let artefacts: BTreeSet<_> = self.comparisons.iter().map(|c| (&c.engine, &c.path)).chain(tokenizers).collect();
        let paths: BTreeSet<&String> = artefacts.iter().map(|(_, path)| *path).collect();
        let short = |path: &'_ String| Path::new(path).file_name().map(|name| name.to_string_lossy().into_owned());
        let are_short_unique = paths.iter().map(|path| short(path)).collect::<BTreeSet<_>>().len() == paths.len();
        let name = |engine: &String, path: &String| match short(path) {
            _ if paths.len() < 2 => engine.clone(),
            Some(short) if are_short_unique => format!("{engine} ({short})"),
            _ => format!("{engine} ({path})"),
        };
        artefacts.into_iter().map(|(engine, path)| ((engine, path), name(engine, path))).collect()
    }

    /// The tables in Markdown, aligned to read well as plain text too.
    pub fn to_markdown(&self) -> String {
        let mut text = String::new();
        let percent = |share: Option<f32>| share.map_or(String::new(), |share| format!("{:.1} %", 100.0 * share));
        let result = |passed: bool| if passed { "ok" } else { "FAILED" };
        let names = self.names();
        let width = names.values().map(|name| name.chars().count()).fold(27, usize::max);
        let name = |engine: &String, path: &String| format!("{:<width$}", names[&(engine, path)]);
        let rule = "-".repeat(width + 2);
        let _ = writeln!(
            text,
            "| {:<width$} | output   |  rows | cosine min | cosine mean |  max abs | relative | row most | bound                             |   top-1 | nearest |           5-NN | result |\n\
             |{rule}|----------|------:|-----------:|------------:|---------:|---------:|---------:|-----------------------------------|--------:|--------:|---------------:|--------|",
            "against the float reference"
        ); // a String takes everything
        for c in &self.comparisons {
            let abs = c.max_abs_bound.map_or(String::new(), |max_abs| format!("abs {max_abs:.0e}, "));
            let bound = format!("{abs}cos {}, rel {}, {}", c.cosine_bound, c.relative_bound, c.row_relative_bound);
            let class = c.same_class.map_or(String::new(), |_| format!("{} of {}", percent(c.same_class), c.rows));
            let (top1, nearest) = (percent(c.top1), percent(c.nearest));
            let result = result(c.passed);
            let d = c.distance;
            let _ = writeln!(
                text,
                "| {} | {:<8} | {:>5} | {:>10.6} | {:>11.6} | {:>8.1e} | {:>8.1e} | {:>8.1e} | {:<33} | {:>7} | {:>7} | {:>14} | {:<6} |",
                name(&c.engine, &c.path), c.output, c.rows, d.cosine_min, d.cosine_mean, d.max_abs, d.relative, d.row_relative_max, bound, top1, nearest, class, result
            );
        }
        if !self.tokenizers.is_empty() {
            let _ = writeln!(
                text,
                "\n| {:<width$} | images | same ids | pixel max | pixel mean | bound                      | result |\n\
                 |{rule}|-------:|---------:|----------:|-----------:|----------------------------|--------|",
                "tokenizer"
            );
            for c in &self.tokenizers {
                let bound =
                    format!("{}, {}, {}", percent(Some(c.same_ids_bound)), c.pixel_max_bound, c.pixel_mean_bound);
                let _ = writeln!(
                    text,
                    "| {} | {:>6} | {:>8} | {:>9} | {:>10.4} | {bound:<26} | {:<6} |",
                    name(&c.engine, &c.path),
                    c.images,
                    percent(Some(c.same_ids)),
                    c.pixel_max,
                    c.pixel_mean,
                    result(c.passed)
                );
            }
        }
        if !self.layers.is_empty() {
            let _ = writeln!(
                text,
                "\n| {:<width$} | layer             | cosine min | cosine mean |  max abs | relative |\n\
                 |{rule}|-------------------|-----------:|------------:|---------:|---------:|",
                "after"
            );
            for Layer { engine, path, layer, distance: d } in &self.layers {
                let _ = writeln!(
                    text,
                    "| {} | {layer:<17} | {:>10.6} | {:>11.6} | {:>8.1e} | {:>8.1e} |",
                    name(engine, path),
                    d.cosine_min,
                    d.cosine_mean,
                    d.max_abs,
                    d.relative
                );
            }
        }
        for failure in &self.failures {
            let _ = writeln!(text, "\nFAILED: {failure}");
        }
        for note in &self.notes {
            let _ = writeln!(text, "\n{note}");
        }
        text
    }

    /// The report as JSON. Numbers are as short as they are written; a `serde_json::Value` would widen them.
    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        struct Whole<'r> {
            passed: bool,
            #[serde(flatten)]
            report: &'r VerifyReport,
        }
        let whole = Whole { passed: self.passed(), report: self };
        serde_json::to_string_pretty(&whole).expect("all of its names are strings")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn distances_of_rows() {
        let expected = array![[3.0, 4.0], [0.0, 1.0]];
        let distance = Distance::of(expected.view(), array![[4.0, 3.0], [0.0, 2.0]].view());
        assert!((distance.cosine_min - 0.96).abs() < 1e-6 && (distance.cosine_mean - 0.98).abs() < 1e-6);
        assert_eq!(distance.max_abs, 1.0);
        assert!((distance.relative - (3.0f32 / 26.0).sqrt()).abs() < 1e-6);
        assert!((distance.row_relative_max - 1.0).abs() < 1e-6);
        let broken = Distance::of(expected.view(), array![[f32::NAN, 3.0], [0.0, 2.0]].view());
        assert!(broken.cosine_min.is_nan() && broken.max_abs.is_nan());
        assert!(broken.relative.is_nan() && broken.row_relative_max.is_nan());
        let zeros = Array2::zeros((2, 2));
        let nothing = Distance::of(zeros.view(), zeros.view());
        assert_eq!((nothing.cosine_min, nothing.relative, nothing.row_relative_max), (1.0, 0.0, 0.0));
        assert_eq!(Distance::of(zeros.view(), expected.view()).relative, f32::INFINITY);
    }

    /// As many rows as 427 images have, all at one angle: their mean cosine is that angle's.
    #[test]
    fn a_mean_of_many_cosines_is_exact() {
        let expected = Array2::from_shape_fn((41_846, 2), |(_, axis)| [1.0, 0.0][axis]);
        let found = Array2::from_shape_fn((41_846, 2), |(_, axis)| [0.9999f32, 0.014_141_78][axis]);
        let distance = Distance::of(expected.view(), found.view());
        assert!((distance.cosine_mean - 0.9999).abs() < 1e-6, "{}", distance.cosine_mean);
    }

    /// Outputs that point the right way and are twice as large, nothing, or wrong in a single row.
    #[test]
    fn a_factor_does_not_pass() {
        let links = [Link::Golden, Link::F32, Link::F32Pack, Link::F16, Link::Int8, Link::Int4, Link::Int8Static];
        let expected = Array2::from_shape_fn((200, 16), |(i, j)| ((i * 16 + j) as f32 * 0.7).sin() * 1e-6);
        for (link, output) in links.into_iter().flat_map(|link| Output::ALL.map(|output| (link, output))) {
            let passes = |found: &Array2<f32>| Comparison::of("", Path::new(""), link, output, &expected, found).passed;
            assert!(passes(&expected));
            assert!(!passes(&(&expected * 2.0)), "{link:?} {output:?}");
            assert!(!passes(&(&expected * 0.0)), "{link:?} {output:?}");
            let mut one = expected.clone();
            one.row_mut(7).mapv_inplace(|x| 2.0 * x);
            assert!(!passes(&one), "{link:?} {output:?}: one row of 200");
        }
    }

    #[test]
    fn bounds_are_printed_as_written() {
        let expected = array![[3.0, 4.0], [0.0, 1.0]];
        let comparison = Comparison::of("e", Path::new("p"), Link::Int8, Output::Features, &expected, &expected);
        let report = VerifyReport {
            images: 2,
            checkpoint_sha256: String::new(),
            comparisons: vec![comparison],
            tokenizers: Vec::new(),
            layers: Vec::new(),
            failures: Vec::new(),
            notes: Vec::new(),
        };
        let json = report.to_json();
        assert!(json.contains("\"cosine_bound\": 0.9995,") && json.contains("\"passed\": true"), "{json}");
    }
}
