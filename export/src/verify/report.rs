//! The table of a cross-check: how close each output of each artefact came to the reference.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    path::Path,
};

use ndarray::{Array2, ArrayView1, ArrayView2};
use serde::Serialize;

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
    /// Share of images whose nearest other image by cosine is the same (features of three images or more only).
    pub nearest: Option<f32>,
    /// Share of images whose class by the [`NEIGHBOURS`] nearest others is the same (features of images of known class).
    pub same_class: Option<f32>,
    /// Bound on `max_abs`, where there is one.
    pub max_abs_bound: Option<f32>,
    /// Bound on `cosine_min`.
    pub cosine_bound: f32,
    /// Whether both bounds hold.
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
    /// Length of the difference over the length of the reference, both as one vector.
    pub relative: f32,
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
    /// One line an artefact and layer, where layers were asked for.
    pub layers: Vec<Layer>,
    /// What could not be compared, and why.
    pub notes: Vec<String>,
}

impl Distance {
    /// Between rows `[n, width]`.
    pub fn of(expected: ArrayView2<f32>, found: ArrayView2<f32>) -> Self {
        let cosines: Vec<f32> = expected.rows().into_iter().zip(found.rows()).map(|(a, b)| cosine(a, b)).collect();
        // Not `f32::min` and `max`, which pass over a NaN.
        let cosine_min = cosines.iter().fold(1.0, |worst, &c| if c < worst || c.is_nan() { c } else { worst });
        let differences = || expected.iter().zip(found).map(|(a, b)| (a - b).abs());
        let square = |x: f32| f64::from(x) * f64::from(x);
        let length = expected.iter().map(|&x| square(x)).sum::<f64>().sqrt();
        Self {
            cosine_min,
            cosine_mean: cosines.iter().sum::<f32>() / cosines.len() as f32,
            max_abs: differences().fold(0.0, |worst, d| if d > worst || d.is_nan() { d } else { worst }),
            relative: (differences().map(square).sum::<f64>().sqrt() / length) as f32,
        }
    }
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
        let distance = Distance::of(expected.view(), found.view());
        let share = |count: usize| count as f32 / expected.nrows() as f32;
        let agreeing = || expected.rows().into_iter().zip(found.rows()).filter(|(a, b)| best(*a) == best(*b)).count();
        let neighbours = || nearest(expected).zip(nearest(found)).filter(|(a, b)| a == b).count();
        Self {
            engine: engine.into(),
            path: path.display().to_string(),
            output: output.name(),
            rows: expected.nrows(),
            distance,
            top1: (output == Output::Logits).then(|| share(agreeing())),
            nearest: (output == Output::Features && expected.nrows() > 2).then(|| share(neighbours())),
            same_class: None,
            max_abs_bound: bounds.max_abs.is_finite().then_some(bounds.max_abs),
            cosine_bound: bounds.min_cosine,
            passed: distance.max_abs <= bounds.max_abs && distance.cosine_min >= bounds.min_cosine,
        }
    }
}

fn cosine(a: ArrayView1<f32>, b: ArrayView1<f32>) -> f32 {
    let dot = |x: ArrayView1<f32>, y: ArrayView1<f32>| {
        x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>()
    };
    (dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()) as f32
}

/// Index of the largest element, the first on ties.
fn best(row: ArrayView1<f32>) -> usize {
    row.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (i, &x)| if x > best.1 { (i, x) } else { best }).0
}

/// Images that vote for a class.
const NEIGHBOURS: usize = 5;

/// Share of rows to which the nearest other rows give the same class in both; none where there are no more than they.
pub fn same_class(expected: &Array2<f32>, found: &Array2<f32>, labels: &[u16]) -> Option<f32> {
    let same = || voted(expected, labels).zip(voted(found, labels)).filter(|(a, b)| a == b).count();
    (labels.len() > NEIGHBOURS).then(|| same() as f32 / labels.len() as f32)
}

/// For each row the class that most of the rows nearest to it have, the least on ties.
fn voted<'a>(rows: &'a Array2<f32>, labels: &'a [u16]) -> impl Iterator<Item = u16> + 'a {
    (0..rows.nrows()).map(move |i| {
        let mut others: Vec<(f32, usize)> = cosines(rows, i).collect();
        others.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let votes = |class: u16| others.iter().take(NEIGHBOURS).filter(|(_, j)| labels[*j] == class).count();
        let classes = others.iter().take(NEIGHBOURS).map(|(_, j)| labels[*j]);
        classes.max_by_key(|&class| (votes(class), std::cmp::Reverse(class))).unwrap_or(labels[i])
    })
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

impl VerifyReport {
    /// Whether every comparison is within its bounds, and there is one.
    pub fn passed(&self) -> bool {
        !self.comparisons.is_empty() && self.comparisons.iter().all(|comparison| comparison.passed)
    }

    /// What tables call each artefact, by engine and path: where there are several, with the file's name, or with the
    /// whole path if names are alike.
    fn names(&self) -> BTreeMap<(&String, &String), String> {
        let artefacts: BTreeSet<_> = self.comparisons.iter().map(|c| (&c.engine, &c.path)).collect();
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
        let names = self.names();
        let width = names.values().map(|name| name.chars().count()).fold(27, usize::max);
        let name = |engine: &String, path: &String| format!("{:<width$}", names[&(engine, path)]);
        let rule = "-".repeat(width + 2);
        let _ = writeln!(
            text,
            "| {:<width$} | output   |  rows | cosine min | cosine mean |  max abs | relative | bound                  |   top-1 | nearest |    5-NN | result |\n\
             |{rule}|----------|------:|-----------:|------------:|---------:|---------:|------------------------|--------:|--------:|--------:|--------|",
            "against the float reference"
        ); // a String takes everything
        for c in &self.comparisons {
            let bound = match c.max_abs_bound {
                Some(max_abs) => format!("abs {max_abs:.0e}, cos {}", c.cosine_bound),
                None => format!("cos {}", c.cosine_bound),
            };
            let (top1, nearest, class) = (percent(c.top1), percent(c.nearest), percent(c.same_class));
            let result = if c.passed { "ok" } else { "FAILED" };
            let d = c.distance;
            let _ = writeln!(
                text,
                "| {} | {:<8} | {:>5} | {:>10.6} | {:>11.6} | {:>8.1e} | {:>8.1e} | {:<22} | {:>7} | {:>7} | {:>7} | {:<6} |",
                name(&c.engine, &c.path), c.output, c.rows, d.cosine_min, d.cosine_mean, d.max_abs, d.relative, bound, top1, nearest, class, result
            );
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
        for note in &self.notes {
            let _ = writeln!(text, "\n{note}");
        }
        text
    }

    /// The report as JSON.
    pub fn to_json(&self) -> String {
        let mut json = serde_json::json!(self);
        json["passed"] = self.passed().into();
        format!("{json:#}")
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
        let broken = Distance::of(expected.view(), array![[f32::NAN, 3.0], [0.0, 2.0]].view());
        assert!(broken.cosine_min.is_nan() && broken.max_abs.is_nan());
        let rows = array![[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.6, 0.8]];
        assert_eq!(nearest(&rows).collect::<Vec<_>>(), [1, 0, 3, 2]);
    }

    #[test]
    fn classes_by_the_nearest() {
        // Two bundles of four directions each; the last but one has the other bundle's class.
        let rows = ndarray::Array2::from_shape_fn((8, 2), |(i, axis)| {
            let angle = i as f32 * 0.01 + if i < 4 { 0.0 } else { 1.5 };
            if axis == 0 {
                angle.cos()
            } else {
                angle.sin()
            }
        });
        let labels = [3, 3, 3, 3, 1, 1, 3, 1];
        assert_eq!(voted(&rows, &labels).collect::<Vec<_>>(), [3, 3, 3, 3, 3, 3, 1, 3]);
        assert_eq!(same_class(&rows, &rows, &labels), Some(1.0));
        let mut moved = rows.clone();
        moved.row_mut(6).assign(&rows.row(0));
        assert!(same_class(&rows, &moved, &labels).is_some_and(|share| share < 1.0));
        assert_eq!(same_class(&rows, &rows, &labels[..NEIGHBOURS]), None);
    }
}
