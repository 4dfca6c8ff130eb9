//! The course of a run as a PNG: one panel a quantity, from the log's JSON lines.

use std::path::{Path, PathBuf};

use image::RgbImage;
use plotters::prelude::*;
use sorcen_export::picture::{save_png, Picture};

use super::text::{pixels, INK, LETTER};
use crate::data::DataError;

/// A quantity to draw: a name, and the points of one run or of several; x never falls.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// What it is called in the picture (ASCII).
    pub name: String,
    /// (x, y) of each run, finite.
    pub runs: Vec<Vec<(f64, f64)>>,
}

/// Colours of the runs; of more, the last.
const COLOURS: [RGBColor; 8] = [
    RGBColor(31, 90, 180),
    RGBColor(230, 110, 20),
    RGBColor(30, 140, 60),
    RGBColor(150, 50, 150),
    RGBColor(200, 30, 50),
    RGBColor(0, 160, 180),
    RGBColor(120, 90, 60),
    RGBColor(110, 110, 110),
];

const WIDTH: u32 = 800;
/// Height of a panel, and what it leaves free for text.
const PANEL: u32 = 220;
const LEFT: u32 = 72;
const TOP: u32 = 24;
const BOTTOM: u32 = 28;
const RIGHT: u32 = 16;
/// Letters of a tick's label at most.
const LABEL: usize = 8;
/// Height of a line of the legend, and the length of its strokes.
const LEGEND: u32 = 20;
const STROKE: u32 = 24;

/// Reads `fields` of a log of JSON lines against its field `x`. Lines without a field, or where it is no
/// finite number, are left out of that curve.
///
/// # Errors
/// [`DataError`] where the file cannot be read, a line is no JSON, or a curve has no point.
pub fn read_log(path: &Path, x: &str, fields: &[&str]) -> Result<Vec<Curve>, DataError> {
    read_logs(&[path.to_path_buf()], x, fields)
}

/// The same of several logs, whose runs are laid over each other.
///
/// # Errors
/// As [`read_log`], for the first that fails.
pub fn read_logs(paths: &[PathBuf], x: &str, fields: &[&str]) -> Result<Vec<Curve>, DataError> {
    let curves = read_points(paths, x, fields)?;
    for (at, path) in paths.iter().enumerate() {
        if let Some(Curve { name, .. }) = curves.iter().find(|curve| curve.runs[at].is_empty()) {
            return Err(DataError::invalid(path, format_args!("`{name}` against `{x}`"), "numbers", "none"));
        }
    }
    Ok(curves)
}

/// Those of `fields` that the logs tell something of: numbers other than zero, in one log at least. The others have
/// no line in that curve.
///
/// # Errors
/// As [`read_log`], for the first log where no field is left.
pub fn read_telling(paths: &[PathBuf], x: &str, fields: &[&str]) -> Result<Vec<Curve>, DataError> {
    let mut curves = read_points(paths, x, fields)?;
    curves.retain(|curve| curve.runs.iter().flatten().any(|point| point.1 != 0.0));
    match paths.first() {
        Some(path) if curves.is_empty() => {
            let expected = format!("numbers against `{x}`, not all zero");
            Err(DataError::invalid(path, fields.join(", "), expected, "none"))
        }
        _ => Ok(curves),
    }
}

/// A curve for each field, with a run for each log; it may have no point.
fn read_points(paths: &[PathBuf], x: &str, fields: &[&str]) -> Result<Vec<Curve>, DataError> {
    let mut curves: Vec<Curve> =
        fields.iter().map(|field| Curve { name: field.to_string(), runs: Vec::new() }).collect();
    for path in paths {
        let text = std::fs::read_to_string(path).map_err(DataError::io(path))?;
        let mut lines = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line: serde_json::Value = serde_json::from_str(line)
                .map_err(|error| DataError::invalid(path, format_args!("line {}", number + 1), "JSON", error))?;
            lines.push(line);
        }
        for (curve, field) in curves.iter_mut().zip(fields) {
            let point = |line: &serde_json::Value| Some((line[x].as_f64()?, line[field].as_f64()?));
            curve.runs.push(lines.iter().filter_map(point).collect());
        }
    }
    Ok(curves)
}

/// Draws the curves below each other, with one axis of x, and writes a PNG. Of one run: the points pale, their
/// running mean over them. Of several: the points of each, from a broad line to thin ones, so that equal ones are
/// all seen, and above them which run has which colour, by `names`. A single point is a dot.
///
/// # Errors
/// [`DataError`] where the file cannot be written.
pub fn save_curves(curves: &[Curve], names: &[String], x_name: &str, path: &Path) -> Result<(), DataError> {
    let drawn = draw(curves, names, x_name)
        .map_err(|error| DataError::invalid(path, "picture", "curves that can be drawn", error))?;
    let (width, height) = (WIDTH as usize, drawn.height() as usize);
    Ok(save_png(&Picture { width, height, rgb: drawn.into_raw() }, path)?)
}

fn draw(curves: &[Curve], names: &[String], x_name: &str) -> Result<RgbImage, Box<dyn std::error::Error>> {
    let legend = if names.len() > 1 { legend(names) } else { Vec::new() };
    let above = legend.last().map_or(0, |entry| entry.y + LEGEND);
    let height = above + PANEL * curves.len().max(1) as u32;
    let mut sheet = RgbImage::from_pixel(WIDTH, height, image::Rgb([255; 3]));
    for (number, Entry { name, x, y }) in legend.iter().enumerate() {
        let colour = colour(number);
        let stroke = (0..STROKE).flat_map(|across| (0..3).map(move |down| (x + across, y + 2 + LETTER / 2 + down)));
        stroke.for_each(|(x, y)| set(&mut sheet, x, y, [colour.0, colour.1, colour.2]));
        write(&mut sheet, name, x + STROKE + LETTER, y + 4);
    }
    let xs = curves.iter().flat_map(|curve| curve.runs.iter().flatten().map(|point| point.0));
    let x_range = spread(xs);
    for (number, curve) in curves.iter().enumerate() {
        let top = above + PANEL * number as u32;
        let y_range = spread(curve.runs.iter().flatten().map(|point| point.1));
        let (x_ticks, y_ticks) = (ticks(x_range, 8), ticks(y_range, 5));
        // Plotters draws lines into a panel of its own; text is ours, since it would want fonts of the system.
        let mut panel = vec![255; (WIDTH * PANEL * 3) as usize];
        {
            let root = BitMapBackend::with_buffer(&mut panel, (WIDTH, PANEL)).into_drawing_area();
            let mut chart = ChartBuilder::on(&root)
                .set_left_and_bottom_label_area_size(0)
                .margin_left(LEFT)
                .margin_right(RIGHT)
                .margin_top(TOP)
                .margin_bottom(BOTTOM)
                .build_cartesian_2d(x_range.0..x_range.1, y_range.0..y_range.1)?;
            let grey = RGBColor(220, 220, 220);
            for &x in &x_ticks {
                chart.draw_series(LineSeries::new([(x, y_range.0), (x, y_range.1)], grey))?;
            }
            for &y in &y_ticks {
                chart.draw_series(LineSeries::new([(x_range.0, y), (x_range.1, y)], grey))?;
            }
            for (number, points) in curve.runs.iter().enumerate() {
                if let [point] = points[..] {
                    let radius = 3 + 2 * (curve.runs.len() - 1 - number) as i32; // of equal ones, all are seen
                    chart.draw_series([Circle::new(point, radius, colour(number).filled())])?;
                }
            }
            match &curve.runs[..] {
                [points] => {
                    let (pale, blue) = (RGBColor(170, 200, 235), COLOURS[0].stroke_width(2));
                    chart.draw_series(LineSeries::new(points.iter().copied(), pale))?;
                    chart.draw_series(LineSeries::new(smooth(points), blue))?;
                }
                runs => {
                    for (number, points) in runs.iter().enumerate() {
                        let width = 2 + 4 * (runs.len() - 1 - number) as u32;
                        let style = colour(number).stroke_width(width);
                        chart.draw_series(LineSeries::new(points.iter().copied(), style))?;
                    }
                }
            }
            root.present()?;
        }
        let panel = RgbImage::from_raw(WIDTH, PANEL, panel).ok_or("a panel of WIDTH x PANEL pixels")?;
        image::imageops::replace(&mut sheet, &panel, 0, top.into());
        write(&mut sheet, &curve.name, LEFT, top + 8);
        let along = |value: f64, range: (f64, f64), length: u32| {
            ((value - range.0) / (range.1 - range.0) * f64::from(length)) as u32
        };
        for (&y, text) in y_ticks.iter().zip(labels(&y_ticks)) {
            let at = PANEL - BOTTOM - along(y, y_range, PANEL - TOP - BOTTOM);
            let left = LEFT.saturating_sub(text.len() as u32 * LETTER + 6);
            write(&mut sheet, &text, left, top + at - LETTER / 2);
        }
        for (&x, text) in x_ticks.iter().zip(labels(&x_ticks)) {
            let at = LEFT + along(x, x_range, WIDTH - LEFT - RIGHT);
            write(&mut sheet, &text, at.saturating_sub(text.len() as u32 * LETTER / 2), top + PANEL - BOTTOM + 6);
        }
        write(&mut sheet, x_name, 4, top + PANEL - BOTTOM + 6);
    }
    Ok(sheet)
}

/// Running means, since a step's loss swings with its mask ratio: a window of a tenth of the points around each,
/// narrower towards the ends so that it stays centred.
fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let reach = points.len() / 20;
    let mean = |(at, point): (usize, &(f64, f64))| {
        let reach = reach.min(at).min(points.len() - 1 - at);
        let window = &points[at - reach..=at + reach];
        (point.0, window.iter().map(|point| point.1).sum::<f64>() / window.len() as f64)
    };
    points.iter().enumerate().map(mean).collect()
}

/// Least and greatest value, made a little wider where they are equal.
fn spread(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    match (low.is_finite() && high.is_finite(), low < high) {
        (true, true) => (low, high),
        (true, false) => (low - 0.5, high + 0.5),
        (false, _) => (0.0, 1.0),
    }
}

/// Round numbers inside a range, about `count` of them.
fn ticks((low, high): (f64, f64), count: usize) -> Vec<f64> {
    let rough = (high - low) / count as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|&step| step >= rough);
    let step = step.unwrap_or(10.0 * power);
    let first = (low / step).ceil() as i64;
    (first..).map(|n| n as f64 * step).take_while(|&tick| tick <= high).take(2 * count + 2).collect()
}

/// Of ticks in equal steps, each with as many digits as tell it from the others: in full, or as powers of ten where that
/// is too long.
fn labels(ticks: &[f64]) -> Vec<String> {
    let step = ticks.windows(2).map(|pair| pair[1] - pair[0]).fold(f64::INFINITY, f64::min);
    let exact = |text: &str, tick: f64| {
        let close = if step.is_finite() { step * 1e-3 } else { tick.abs() * 1e-3 };
        text.parse::<f64>().is_ok_and(|read| (read - tick).abs() <= close)
    };
    let trimmed = |text: String| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text,
    };
    let full = |digits: usize, tick: f64| trimmed(format!("{tick:.digits$}"));
    let power = |digits: usize, tick: f64| format!("{tick:.digits$e}");
    let all = |write: &dyn Fn(f64) -> String| -> Option<Vec<String>> {
        let is_zero = |tick: f64| tick == 0.0 || step.is_finite() && tick.abs() < step * 1e-6;
        let tick = |&tick: &f64| if is_zero(tick) { "0".to_string() } else { write(tick) };
        let texts: Vec<String> = ticks.iter().map(tick).collect();
        let good = |(text, &tick): (&String, &f64)| text.len() <= LABEL && exact(text, tick);
        texts.iter().zip(ticks).all(good).then_some(texts)
    };
    let fulls = (0..LABEL).find_map(|digits| all(&|tick| full(digits, tick)));
    let powers = || (0..LABEL).find_map(|digits| all(&|tick| power(digits, tick)));
    fulls.or_else(powers).unwrap_or_else(|| ticks.iter().map(|&tick| power(2, tick)).collect())
}

/// Where a run's stroke and name stand.
struct Entry {
    name: String,
    x: u32,
    y: u32,
}

/// The runs side by side, in as many lines as they need.
fn legend(names: &[String]) -> Vec<Entry> {
    let most = ((WIDTH - LEFT - RIGHT - STROKE) / LETTER - 1) as usize;
    let (mut x, mut y) = (LEFT, 0);
    let mut entries = Vec::new();
    for name in names {
        let letters = name.chars().count();
        let name = match letters > most {
            true => "...".chars().chain(name.chars().skip(letters + 3 - most)).collect(), // the end tells more
            false => name.clone(),
        };
        let width = STROKE + LETTER * (1 + name.chars().count() as u32);
        if x > LEFT && x + width > WIDTH - RIGHT {
            (x, y) = (LEFT, y + LEGEND);
        }
        entries.push(Entry { name, x, y });
        x += width + 2 * LETTER;
    }
    entries
}

fn colour(run: usize) -> RGBColor {
    COLOURS[run.min(COLOURS.len() - 1)]
}

/// Writes text with its upper left corner at (x, y); what lies outside is cut off, and a letter that is not ASCII is `?`.
fn write(sheet: &mut RgbImage, text: &str, x: u32, y: u32) {
    let text: String = text.chars().map(|letter| if letter.is_ascii() { letter } else { '?' }).collect();
    pixels(&text, x, y, |x, y| set(sheet, x, y, INK));
}

fn set(sheet: &mut RgbImage, x: u32, y: u32, colour: [u8; 3]) {
    if let Some(pixel) = sheet.get_pixel_mut_checked(x, y) {
        *pixel = image::Rgb(colour);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks((0.0, 10.0), 5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(ticks((-0.3, 0.31), 4), [-0.2, 0.0, 0.2]);
        for (ticks, expected) in [
            (&[0.0, 0.25, 0.5][..], &["0", "0.25", "0.5"][..]),
            (&[0.0005, 0.001, 0.0015, 0.002], &["0.0005", "0.001", "0.0015", "0.002"]),
            (&[1000.0, 1500.0], &["1000", "1500"]),
            (&[0.0, 2e-9, 4e-9], &["0", "2e-9", "4e-9"]),
            (&[1e12, 1.5e12], &["1.0e12", "1.5e12"]),
            (&[-0.2, 0.0, 0.2], &["-0.2", "0", "0.2"]),
            (&[3.0002, 3.0004], &["3.0002", "3.0004"]),
            (&[0.5], &["0.5"]),
            (&[], &[]),
        ] {
            assert_eq!(labels(ticks), expected);
        }
        // Whatever the range, no two ticks are called the same.
        for exponent in -12..12 {
            for (low, high) in [(0.0, 1.0), (0.3, 0.9), (-1.0, 1.0), (7.0, 7.7)] {
                let scale = 10f64.powi(exponent) * 1.7;
                let names = labels(&ticks((low * scale, high * scale), 5));
                let distinct: std::collections::BTreeSet<_> = names.iter().collect();
                assert!(distinct.len() == names.len() && names.len() > 1, "{names:?}");
                assert!(names.iter().all(|name| name.len() <= LABEL), "{names:?}");
            }
        }
    }

    #[test]
    fn smoothing_keeps_lines_and_ends() {
        let line: Vec<_> = (0..50).map(|i| (f64::from(i), 3.0 * f64::from(i))).collect();
        assert_eq!(smooth(&line), line);
        let zigzag: Vec<_> = (0..60).map(|i| (f64::from(i), f64::from(i % 2))).collect();
        let smoothed = smooth(&zigzag);
        assert_eq!((smoothed[0], smoothed[59]), ((0.0, 0.0), (59.0, 1.0)));
        assert!(smoothed[10..50].iter().all(|point| (point.1 - 0.5).abs() < 0.1));
        assert_eq!(smooth(&[]), []);
    }

    #[test]
    fn log_to_picture() {
        let temp = tempfile::tempdir().unwrap();
        let (log, png) = (temp.path().join("log.txt"), temp.path().join("loss.png"));
        let line = |step: i32| format!("{{\"step\":{step},\"loss\":{}}}\n", 100 - step);
        std::fs::write(&log, (0..100).map(line).collect::<String>() + "{\"step\":100,\"loss\":null}\n").unwrap();
        let curves = read_log(&log, "step", &["loss"]).unwrap();
        assert_eq!((curves[0].runs[0].len(), curves[0].runs[0][99]), (100, (99.0, 1.0)));
        save_curves(&curves, &[], "step", &png).unwrap();
        let picture = image::open(&png).unwrap().to_rgb8();
        assert_eq!(picture.dimensions(), (WIDTH, PANEL));
        // Falling: blue in the upper left and lower right corner of the plot, and not in the others.
        let blue = |x: u32, y: u32| {
            let near = (0..12).flat_map(|dy| (0..12).map(move |dx| (x + dx, y + dy)));
            near.filter(|&(x, y)| picture.get_pixel(x, y).0 == [31, 90, 180]).count() > 0
        };
        let (right, low) = (WIDTH - 16 - 12, PANEL - BOTTOM - 12);
        assert_eq!([blue(LEFT, TOP), blue(right, low), blue(right, TOP), blue(LEFT, low)], [true, true, false, false]);
        assert!(picture.enumerate_pixels().any(|(x, _, pixel)| x < LEFT - 4 && pixel.0 == [60; 3]), "labels");
    }

    #[test]
    fn equal_runs_are_both_seen() {
        let temp = tempfile::tempdir().unwrap();
        let logs = ["a.txt", "b.txt"].map(|name| temp.path().join(name));
        for log in &logs {
            std::fs::write(log, (0..50).map(|i| format!("{{\"step\":{i},\"loss\":{i}}}\n")).collect::<String>())
                .unwrap();
        }
        let curves = read_logs(&logs, "step", &["loss"]).unwrap();
        assert!(curves.len() == 1 && curves[0].runs.len() == 2 && curves[0].runs[0] == curves[0].runs[1]);
        let names = ["a".to_string(), "b".to_string()];
        let picture = draw(&curves, &names, "step").unwrap();
        let count = |colour: RGBColor| picture.pixels().filter(|p| p.0 == [colour.0, colour.1, colour.2]).count();
        assert!(count(COLOURS[0]) > 200 && count(COLOURS[1]) > 200);
        // The legend: a stroke of each colour with a name beside it, above the panel.
        assert_eq!(picture.height(), LEGEND + PANEL);
        let above = image::imageops::crop_imm(&picture, 0, 0, WIDTH, LEGEND).to_image();
        let seen = |colour: [u8; 3]| above.pixels().filter(|pixel| pixel.0 == colour).count() as u32;
        let [first, second] = [COLOURS[0], COLOURS[1]].map(|colour| seen([colour.0, colour.1, colour.2]));
        assert_eq!((first, second), (3 * STROKE, 3 * STROKE));
        assert!(seen(INK) > 20, "names");
        let long = draw(&curves, &["x".repeat(300), "y".repeat(60), "z".into()], "step").unwrap();
        assert_eq!(long.height(), 2 * LEGEND + PANEL, "a long name is cut, and lines are broken");
    }

    #[test]
    fn bad_logs_are_named() {
        let temp = tempfile::tempdir().unwrap();
        let log = temp.path().join("log.txt");
        std::fs::write(&log, "{\"step\":1}\nnonsense\n").unwrap();
        let message = |fields: &[&str]| read_log(&log, "step", fields).unwrap_err().to_string();
        assert!(message(&["loss"]).contains("log.txt: line 2: expected JSON"));
        std::fs::write(&log, "{\"step\":1}\n").unwrap();
        assert!(message(&["loss"]).contains("`loss` against `step`: expected numbers, found none"));
    }

    #[test]
    fn fields_that_tell_nothing_are_left_out() {
        let temp = tempfile::tempdir().unwrap();
        let logs = ["mage.txt", "sorcen.txt"].map(|name| temp.path().join(name));
        std::fs::write(&logs[0], "{\"step\":1,\"loss\":2,\"nn\":0,\"class\":0}\n").unwrap();
        std::fs::write(&logs[1], "{\"step\":1,\"loss\":3,\"nn\":1,\"class\":0}\n").unwrap();
        let names = |logs: &[PathBuf]| -> Vec<String> {
            let curves = read_telling(logs, "step", &["loss", "nn", "class", "none"]).unwrap();
            curves.into_iter().map(|curve| curve.name).collect()
        };
        assert_eq!(names(&logs[..1]), ["loss"]);
        assert_eq!(names(&logs), ["loss", "nn"]);
        let error = read_telling(&logs, "step", &["class", "none"]).unwrap_err().to_string();
        assert!(error.contains("mage.txt: class, none: expected numbers against `step`, not all zero"), "{error}");
        // A log that lacks a field has no line there, and the others keep their colours.
        std::fs::write(&logs[0], "{\"step\":1,\"loss\":2}\n{\"step\":2,\"loss\":2}\n").unwrap();
        let curves = read_telling(&logs, "step", &["loss", "nn"]).unwrap();
        assert_eq!(curves[1].runs, [vec![], vec![(1.0, 1.0)]]);
        assert!(draw(&curves, &[], "step").is_ok());
    }

    #[test]
    fn one_point_and_no_curve_are_drawn() {
        let curve = Curve { name: "x".into(), runs: vec![vec![(3.0, 4.0)]] };
        let blue = |picture: RgbImage| picture.pixels().filter(|pixel| pixel.0 == [31, 90, 180]).count();
        assert!(blue(draw(&[curve], &[], "step").unwrap()) > 20, "a dot");
        let curve = Curve { name: "x".into(), runs: vec![vec![(3.0, 4.0)], vec![(3.0, 4.0)], vec![]] };
        assert!(blue(draw(&[curve], &[], "step").unwrap()) > 20, "a dot around another");
        assert!(draw(&[], &[], "step").is_ok());
    }
}
