//! The table: means with 95 % intervals over seeds, and differences paired by seed.

use std::fmt::Write;

use anyhow::Result;
use serde::Serialize;

use super::{Cell, Settings, Variant};
use crate::config::{default_echo_warmup, echo_steps};
use crate::data::TokenDataset;
use crate::eval::{Estimate, Task};
use crate::quickstart::table;

/// `compare.json`: what was compared, all finished cells, and what follows from them.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    settings: Settings,
    /// Images that the encoders were trained on.
    train_images: usize,
    /// Steps of Sorcen's that draw echoes; in those before, the positives are the ground truth.
    echo_steps: u64,
    /// Images whose labels the probes know.
    bank_images: usize,
    /// Images classified.
    split_images: usize,
    classes: usize,
    rows: Vec<Row>,
    cells: Vec<Cell>,
}

#[derive(Clone, Debug, Serialize)]
struct Row {
    variant: String,
    title: &'static str,
    linear_top1: Option<Estimate>,
    knn_top1: Estimate,
    /// To MAGE for Sorcen, to Sorcen for an ablation: differences of the cells with the same seed.
    minus_baseline: Option<Difference>,
    #[serde(skip)]
    is_ablation: bool,
}

#[derive(Clone, Debug, Serialize)]
struct Difference {
    baseline: String,
    linear_top1: Estimate,
    knn_top1: Estimate,
}

impl Comparison {
    /// From the finished cells.
    ///
    /// # Errors
    /// Where the training dataset cannot be read.
    pub fn new(settings: &Settings, task: &Task, done: &[(Variant, Cell)]) -> Result<Self> {
        let mut variants: Vec<Variant> = Vec::new();
        done.iter().for_each(|(variant, _)| {
            if !variants.contains(variant) {
                variants.push(*variant);
            }
        });
        let of = |wanted: Variant| -> Vec<&Cell> {
            done.iter().filter(|(variant, _)| *variant == wanted).map(|(_, cell)| cell).collect()
        };
        let row = |&variant: &Variant| {
            let cells = of(variant);
            let linear: Option<Vec<f64>> = cells.iter().map(|cell| cell.linear_top1).collect();
            let knn: Vec<f64> = cells.iter().map(|cell| cell.knn_top1).collect();
            let baseline = match variant {
                Variant::Sorcen => Some(Variant::Mage),
                other => other.is_ablation().then_some(Variant::Sorcen),
            };
            Row {
                variant: variant.name(),
                title: variant.title(),
                linear_top1: linear.map(|linear| Estimate::of(&linear)),
                knn_top1: Estimate::of(&knn),
                minus_baseline: baseline.and_then(|baseline| difference(&cells, &of(baseline))),
                is_ablation: variant.is_ablation(),
            }
        };
        let train_images = TokenDataset::open(&settings.data.join(&settings.train))?.len();
        let steps_per_epoch = (train_images / settings.batch_size) as u64;
        let warmup = default_echo_warmup(settings.steps as f64 / steps_per_epoch as f64);
        Ok(Self {
            settings: settings.clone(),
            train_images,
            echo_steps: echo_steps(settings.steps, steps_per_epoch, warmup),
            bank_images: task.bank.labels.len(),
            split_images: task.queries.labels.len(),
            classes: task.class_names().len(),
            rows: variants.iter().map(row).collect(),
            cells: done.iter().map(|(_, cell)| cell.clone()).collect(),
        })
    }
}

/// Over the seeds that both have; `None` where there is none.
fn difference(cells: &[&Cell], baseline: &[&Cell]) -> Option<Difference> {
    let pairs: Vec<(&Cell, &Cell)> = cells
        .iter()
        .filter_map(|cell| baseline.iter().find(|other| other.seed == cell.seed).map(|other| (*cell, *other)))
        .collect();
    let linear: Option<Vec<f64>> =
        pairs.iter().map(|(cell, other)| Some(cell.linear_top1? - other.linear_top1?)).collect();
    let linear = linear.filter(|linear| !linear.is_empty())?;
    let knn: Vec<f64> = pairs.iter().map(|(cell, other)| cell.knn_top1 - other.knn_top1).collect();
    Some(Difference {
        baseline: pairs[0].1.variant.clone(),
        linear_top1: Estimate::of(&linear),
        knn_top1: Estimate::of(&knn),
    })
}

/// `compare.md`.
pub fn markdown(comparison: &Comparison) -> String {
    let Comparison { settings, train_images, bank_images, split_images, classes, rows, .. } = comparison;
    let images = settings.steps * settings.batch_size as u64;
    let mut text = String::from("# Sorcen and MAGE on the same tokens\n\n");
    let _ = writeln!(
        text,
        "Each encoder ({}): {} steps of {} images ({:.1} passes over {train_images} images of `{}`), the same images and \
         masks for every method with one seed. Features frozen; {split_images} images of `{}`, {classes} classes, by a \
         linear probe (LARS, {} epochs, its last epoch) and the {} nearest neighbours, both knowing {bank_images} labels \
         of `{}`. Top-1 in %, mean ± 95 % interval over seeds (Student's t).\n",
        serde_json::to_string(&settings.model).unwrap_or_default().trim_matches('"'),
        settings.steps,
        settings.batch_size,
        images as f64 / *train_images as f64,
        settings.train,
        settings.split,
        settings.probe_epochs,
        settings.k,
        settings.bank,
    );
    let _ = match comparison.echo_steps {
        0 => writeln!(
            text,
            "No echo was drawn: the runs end within the echo warm-up, in which Sorcen's positives are the ground truth, \
             and K changes nothing.\n"
        ),
        steps => writeln!(
            text,
            "Sorcen draws echoes in the last {steps} steps; in the warm-up before, its positives are the ground truth.\n"
        ),
    };
    let knn = format!("{}-NN", settings.k);
    let line = |row: &Row| {
        let linear = row.linear_top1.as_ref().map_or("-".into(), Estimate::percent);
        vec![row.title.to_string(), row.knn_top1.values.len().to_string(), linear, row.knn_top1.percent()]
    };
    let main: Vec<_> = rows.iter().filter(|row| !row.is_ablation).map(line).collect();
    text += &table(&["features", "seeds", "linear probe", &knn], &main);
    for row in rows.iter().filter(|row| !row.is_ablation) {
        if let Some(difference) = &row.minus_baseline {
            let _ = writeln!(
                text,
                "\nSorcen minus MAGE, paired by seed: linear probe {} points, {knn} {} points.",
                signed(&difference.linear_top1),
                signed(&difference.knn_top1),
            );
        }
    }
    let ablations: Vec<_> = rows
        .iter()
        .filter(|row| row.is_ablation)
        .map(|row| {
            let mut line = line(row);
            line.push(row.minus_baseline.as_ref().map_or("-".into(), |minus| signed(&minus.linear_top1)));
            line.push(row.minus_baseline.as_ref().map_or("-".into(), |minus| signed(&minus.knn_top1)));
            line
        })
        .collect();
    if !ablations.is_empty() {
        text += "\nSorcen with one constant changed, and its difference to Sorcen paired by seed:\n\n";
        let knn_difference = format!("{knn} - Sorcen");
        text += &table(&["change", "seeds", "linear probe", &knn, "linear - Sorcen", &knn_difference], &ablations);
    }
    let share = rows.first().map_or(0.5, |row| row.knn_top1.mean);
    let _ = writeln!(
        text,
        "\nAn interval that holds 0 shows no difference. Intervals are over seeds; which {split_images} images are \
         classified adds a standard error of about {:.1} points to each accuracy, less to differences.",
        100.0 * (share * (1.0 - share) / *split_images as f64).sqrt()
    );
    text
}

fn signed(estimate: &Estimate) -> String {
    let sign = if estimate.mean >= 0.0 { "+" } else { "" };
    format!("{sign}{}", estimate.percent())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(variant: Variant, seed: u64, linear: f64) -> Cell {
        Cell { variant: variant.name(), seed, linear_top1: Some(linear), knn_top1: 0.5, training: None }
    }

    #[test]
    fn differences_are_paired_by_seed() {
        let sorcen = [cell(Variant::Sorcen, 0, 0.6), cell(Variant::Sorcen, 1, 0.8), cell(Variant::Sorcen, 2, 0.1)];
        let mage = [cell(Variant::Mage, 1, 0.7), cell(Variant::Mage, 0, 0.5)];
        let found = difference(&sorcen.each_ref(), &mage.each_ref()).unwrap();
        assert_eq!(found.baseline, "mage");
        assert_eq!(found.linear_top1.values.len(), 2, "seed 2 has no partner");
        assert_eq!(signed(&found.linear_top1), "+10.0 ± 0.0");
        assert!(difference(&sorcen[2..].iter().collect::<Vec<_>>(), &mage.each_ref()).is_none());
    }
}
