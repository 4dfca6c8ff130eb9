//! Which precision each weight of a pack gets, and int4 with scales that make the smallest error.

use std::str::FromStr;

use half::f16;
use rayon::prelude::*;
use sorcen_runtime::{
    pack::Precision,
    quant::int4::{self, Order, GROUP},
    schema::Param,
};

use crate::{error::Error, gptq::Feedback};

/// A rule: weights whose name fits the pattern are stored so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Matched anywhere in the official name; `*` stands for anything, `^` at the front for the name's start.
    pub pattern: String,
    /// The precision.
    pub precision: Precision,
}

impl Rule {
    /// Whether a weight's name fits.
    pub fn fits(&self, name: &str) -> bool {
        let (anchored, pattern) = match self.pattern.strip_prefix('^') {
            Some(rest) => (true, rest),
            None => (false, self.pattern.as_str()),
        };
        let mut rest = name;
        for (i, part) in pattern.split('*').enumerate() {
            let Some(at) = rest.find(part) else { return false };
            if i == 0 && anchored && at != 0 {
                return false;
            }
            rest = &rest[at + part.len()..];
        }
        true
    }
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (pattern, precision) = text.rsplit_once('=').ok_or("expected PATTERN=PRECISION")?;
        let all = [Precision::F32, Precision::F16, Precision::Int8, Precision::Int4];
        let precision = all.into_iter().find(|known| known.name() == precision);
        let precision = precision.ok_or("expected f32, f16, int8 or int4 behind the =")?;
        Ok(Self { pattern: pattern.into(), precision })
    }
}

/// The numbers of a weight as f16 bits.
///
/// # Errors
/// [`Error::Value`] names the weight and the first number that would become infinite.
pub fn halves(param: Param, values: &[f32]) -> Result<Vec<u16>, Error> {
    let halves: Vec<u16> = values.iter().map(|&value| f16::from_f32(value).to_bits()).collect();
    match halves.iter().position(|&bits| !f16::from_bits(bits).is_finite()) {
        Some(at) => Err(Error::value(format!("tensor `{param}` as f16"), "magnitudes up to 65504", values[at])),
        None => Ok(halves),
    }
}

/// A matrix in int4, as a pack stores it (see [`sorcen_runtime::quant::int4`]).
pub struct Int4 {
    /// Weights, then multipliers.
    pub packed: Vec<u8>,
    /// One scale a row.
    pub scales: Vec<f32>,
}

/// Quantises a row-major matrix `[rows, cols]`, `cols` at most [`int4::MAX_COLS`]: for each group of 32 the step
/// with the smallest squared error, among steps from the one that cuts nothing off down to half of it; then each weight
/// to the nearest multiple, or by `feedback` where the linear's inputs are known.
pub fn int4(values: &[f32], (rows, cols): (usize, usize), feedback: Option<&Feedback>) -> Int4 {
    let steps: Vec<Steps> = values.par_chunks_exact(cols).map(Steps::of).collect();
    let mut packed = vec![0; int4::bytes(rows, cols)];
    let (weights, multipliers) = packed.split_at_mut(int4::weight_bytes(rows, cols));
    for (multipliers, steps) in multipliers.chunks_exact_mut(int4::groups(cols)).zip(&steps) {
        multipliers.copy_from_slice(&steps.multipliers);
    }
    let rounded; // multiples of the steps already
    let values = match feedback {
        Some(feedback) => {
            let nearest = |row: usize, col: usize, x| steps[row].step(col) * f32::from(steps[row].to_int4(col, x));
            rounded = feedback.round(values, nearest);
            &rounded
        }
        None => values,
    };
    for (row, (x, steps)) in values.chunks_exact(cols).zip(&steps).enumerate() {
        x.iter().enumerate().for_each(|(col, &x)| Order::Rows.set(weights, row, col, cols, steps.to_int4(col, x)));
    }
    Int4 { packed, scales: steps.iter().map(|steps| steps.scale).collect() }
}

/// The steps of a row's groups: `scale * multiplier`, all 0 where the row is (all but) zero.
struct Steps {
    scale: f32,
    multipliers: Vec<u8>,
}

impl Steps {
    fn of(row: &[f32]) -> Self {
        let steps: Vec<f32> = row.chunks(GROUP).map(best_step).collect();
        let scale = steps.iter().fold(0.0, |most: f32, &step| most.max(step)) / 255.0;
        if scale < f32::MIN_POSITIVE {
            return Self { scale: 0.0, multipliers: vec![0; steps.len()] };
        }
        let multiplier = |step: &f32| (step / scale).round().clamp(1.0, 255.0) as u8;
        Self { scale, multipliers: steps.iter().map(multiplier).collect() }
    }

    fn step(&self, col: usize) -> f32 {
        self.scale * f32::from(self.multipliers[col / GROUP])
    }

    fn to_int4(&self, col: usize, x: f32) -> i8 {
        match self.step(col) {
            0.0 => 0,
            step => to_int4(x, 1.0 / step),
        }
    }
}

/// The step for a group: of [`CANDIDATES`], the one with the smallest squared error.
fn best_step(group: &[f32]) -> f32 {
    /// Steps that are tried.
    const CANDIDATES: usize = 32;
    let largest = group.iter().fold(0.0, |most: f32, x| most.max(x.abs())) / 7.0;
    let error = |step: f32| group.iter().map(|&x| (x - step * f32::from(to_int4(x, 1.0 / step))).powi(2)).sum::<f32>();
    let tried = (0..CANDIDATES).map(|i| largest * (1.0 - 0.5 * i as f32 / CANDIDATES as f32));
    let best = tried.filter(|&step| step >= f32::MIN_POSITIVE).map(|step| (error(step), step));
    best.min_by(|a, b| a.0.total_cmp(&b.0)).map_or(0.0, |(_, step)| step)
}

fn to_int4(x: f32, inverse: f32) -> i8 {
    (x * inverse).round_ties_even().clamp(-8.0, 7.0) as i8
}

#[cfg(test)]
mod tests {
    use super::*;
    use sorcen_runtime::rng::{Rng, Stream};

    #[test]
    fn rules_fit_names() {
        let fits = |pattern: &str, name: &str| Rule { pattern: pattern.into(), precision: Precision::F16 }.fits(name);
        assert!(fits("blocks.*.mlp.*", "blocks.3.mlp.fc1.weight"));
        assert!(fits("blocks.*.mlp.*", "decoder_blocks.3.mlp.fc1.weight"));
        assert!(!fits("^blocks.*.mlp.*", "decoder_blocks.3.mlp.fc1.weight"));
        assert!(!fits("blocks.*.mlp.*", "blocks.3.attn.qkv.weight"));
        assert!(fits("embedding", "token_emb.word_embeddings.weight") && fits("", "norm.weight"));
        let rule = |pattern: &str, precision| Ok(Rule { pattern: pattern.into(), precision });
        assert_eq!("embedding=f16".parse(), rule("embedding", Precision::F16));
        assert_eq!("a=b=int4".parse(), rule("a=b", Precision::Int4));
        assert!("embedding".parse::<Rule>().is_err() && "embedding=int3".parse::<Rule>().is_err());
    }

    /// The search never makes a larger error than taking each group's largest magnitude.
    #[test]
    fn the_search_pays() {
        let (rows, cols) = (40, 100);
        let rng = Rng::new(1, Stream::Init, 0);
        let values: Vec<f32> = (0..rows * cols).map(|i| rng.normal(i as u64) as f32).collect();
        let error = |packed: &[u8], scales: &[f32]| {
            let (weights, multipliers) = packed.split_at(int4::weight_bytes(rows, cols));
            let restored = |i: usize| {
                let (row, col) = (i / cols, i % cols);
                let multiplier = f32::from(multipliers[row * int4::groups(cols) + col / GROUP]);
                scales[row] * multiplier * f32::from(Order::Rows.get(weights, row, col, cols))
            };
            values.iter().enumerate().map(|(i, x)| (x - restored(i)).powi(2)).sum::<f32>() / values.len() as f32
        };
        let ours = int4(&values, (rows, cols), None);
        let (mut packed, mut scales) = (vec![0; int4::bytes(rows, cols)], vec![0.0; rows]);
        int4::quantise_matrix(&values, (rows, cols), &mut packed, &mut scales).unwrap();
        let (ours, plain) = (error(&ours.packed, &ours.scales), error(&packed, &scales));
        println!("mean squared error of unit normals: {ours:.4} searched, {plain:.4} by the largest");
        assert!(ours < 0.9 * plain && ours < 0.01, "{ours} {plain}");
        let zeros = int4(&[0.0; 70], (2, 35), None);
        assert!(zeros.packed.iter().all(|&byte| byte == 0) && zeros.scales == [0.0; 2]);
    }
}
