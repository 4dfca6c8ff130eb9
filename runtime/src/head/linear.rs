//! [`Classifier`]: a linear layer over features, and the names of its classes.

use crate::{
    error::Error,
    kernels::scalar,
    math,
    pack::{Data, Matrix},
    quant::Layout,
};

/// A linear classifier: `logits = weight · feature + bias`, and the most likely class.
///
/// A pack may hold one for the model's probe feature ([`Pack::classifier`](crate::Pack::classifier));
/// [`Model::classify`](crate::Model::classify) runs both. Sums have a fixed order: the same bits on every CPU.
///
/// ```
/// use sorcen_runtime::{head::Classifier, pack::{Data, Matrix}};
/// # fn run() -> Result<(), sorcen_runtime::Error> {
/// let weight = Matrix { rows: 2, cols: 3, data: Data::F32(&[1.0, 0.0, 0.0, 0.0, 1.0, -1.0]) };
/// let head = Classifier::new(weight, &[0.0, 0.5], Some("cat\ndog"))?;
/// let found = head.classify(&[0.25, 2.0, 1.0])?;
/// assert_eq!((found.class, found.name, found.logit), (1, Some("dog"), 1.5));
/// # Ok(()) }
/// # run().unwrap();
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Classifier<'p> {
    weight: Matrix<'p>,
    bias: &'p [f32],
    names: Option<&'p str>,
}

/// What a [`Classifier`] says of a feature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction<'p> {
    /// The most likely class, from 0; the first where two are equally likely.
    pub class: usize,
    /// Its name, where the names are known.
    pub name: Option<&'p str>,
    /// Its logit.
    pub logit: f32,
    /// Its softmax probability, above 0, at most 1.
    pub probability: f32,
}

impl<'p> Classifier<'p> {
    /// Most classes that a classifier may have.
    pub const MAX_CLASSES: usize = 65_535;

    /// A classifier of `weight` `[classes, D]` and `bias` `[classes]`.
    ///
    /// The weight is f32, or int8 with one scale a class, in plain rows. `names`: one a line.
    ///
    /// # Errors
    /// [`Error::Option`] for no class or too many, a precision or layout that is none of these, or another number of
    /// names than classes; [`Error::Length`] where a slice does not have the size; [`Error::NotFinite`].
    pub fn new(weight: Matrix<'p>, bias: &'p [f32], names: Option<&'p str>) -> Result<Self, Error> {
        let Matrix { rows: classes, cols: dim, data } = weight;
        if classes == 0 || classes > Self::MAX_CLASSES || dim == 0 {
            return Err(Error::Option { name: "classes", expected: "1 to 65535, of features at least 1 wide" });
        }
        let check = |item, needed: usize, found: usize| match needed == found {
            true => Ok(()),
            false => Err(Error::Length { item, needed, found }),
        };
        let finite = |item, numbers: &[f32]| match numbers.iter().position(|x| !x.is_finite()) {
            Some(index) => Err(Error::NotFinite { item, index: index as u32 }),
            None => Ok(()),
        };
        let elements = classes.saturating_mul(dim);
        match data {
            Data::F32(weights) => {
                check("weight of the classifier", elements, weights.len())?;
                finite("weight of the classifier", weights)?;
            }
            Data::Int8 { weights, scales, layout: Layout::ROW_MAJOR } => {
                check("weight of the classifier", elements, weights.len())?;
                check("scales of the classifier", classes, scales.len())?;
                finite("scales of the classifier", scales)?;
            }
            _ => {
                return Err(Error::Option { name: "weight of the classifier", expected: "f32, or int8 in plain rows" })
            }
        }
        check("bias of the classifier", classes, bias.len())?;
        finite("bias of the classifier", bias)?;
        if names.is_some_and(|names| names.split('\n').count() != classes) {
            return Err(Error::Option { name: "names of classes", expected: "a line for each class" });
        }
        Ok(Self { weight, bias, names })
    }

    /// Number of classes, 1 to [`MAX_CLASSES`](Self::MAX_CLASSES).
    pub const fn classes(&self) -> usize {
        self.weight.rows
    }

    /// Width D of the feature.
    pub const fn dim(&self) -> usize {
        self.weight.cols
    }

    /// The weight `[classes, D]`.
    pub const fn weight(&self) -> Matrix<'p> {
        self.weight
    }

    /// The bias `[classes]`.
    pub const fn bias(&self) -> &'p [f32] {
        self.bias
    }

    /// The names, one a line, where they are known.
    pub const fn names(&self) -> Option<&'p str> {
        self.names
    }

    /// Name of a class (from 0), where it is known.
    pub fn name(&self, class: usize) -> Option<&'p str> {
        self.names?.split('\n').nth(class)
    }

    /// Logits of `feature` `[D]` into `out` `[classes]`.
    ///
    /// # Errors
    /// [`Error::Length`] for either slice.
    pub fn logits(&self, feature: &[f32], out: &mut [f32]) -> Result<(), Error> {
        if out.len() != self.classes() {
            return Err(Error::Length { item: "out", needed: self.classes(), found: out.len() });
        }
        for (class, out) in out.iter_mut().enumerate() {
            *out = self.logit(class, feature)?;
        }
        Ok(())
    }

    /// The most likely class of `feature` `[D]`.
    ///
    /// # Errors
    /// [`Error::Length`] where the feature is not `[D]`.
    pub fn classify(&self, feature: &[f32]) -> Result<Prediction<'p>, Error> {
        let mut best = (0, f32::NEG_INFINITY);
        let mut total = 0.0; // of e^(logit - best)
        for class in 0..self.classes() {
            let logit = self.logit(class, feature)?;
            if logit > best.1 {
                total = total * math::exp(best.1 - logit) + 1.0;
                best = (class, logit);
            } else {
                total += math::exp(logit - best.1);
            }
        }
        let (class, logit) = best;
        Ok(Prediction { class, name: self.name(class), logit, probability: 1.0 / total })
    }

    fn logit(&self, class: usize, feature: &[f32]) -> Result<f32, Error> {
        let dim = self.dim();
        if feature.len() != dim {
            return Err(Error::Length { item: "feature", needed: dim, found: feature.len() });
        }
        let row = class * dim..(class + 1) * dim;
        let product = match self.weight.data {
            Data::F32(weights) => weights.get(row).map_or(0.0, |row| scalar::dot(feature, row)),
            Data::Int8 { weights, scales, .. } => {
                let product = weights.get(row).map_or(0.0, |row| dot_int8(feature, row));
                product * scales.get(class).copied().unwrap_or(0.0)
            }
            Data::F16(_) | Data::Int4 { .. } => 0.0, // `new` keeps them out
        };
        Ok(product + self.bias.get(class).copied().unwrap_or(0.0))
    }
}

/// Dot product with int8 weights, some at a time, in the lane order of [`scalar::dot`].
fn dot_int8(x: &[f32], w: &[i8]) -> f32 {
    const CHUNK: usize = 64;
    let mut sum = 0.0;
    for (x, w) in x.chunks(CHUNK).zip(w.chunks(CHUNK)) {
        let mut wide = [0.0; CHUNK];
        wide.iter_mut().zip(w).for_each(|(wide, w)| *wide = f32::from(*w));
        sum += scalar::dot(x, &wide[..x.len()]);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        quant::quantise_matrix,
        rng::{Rng, Stream},
    };
    extern crate std;
    use std::{vec, vec::Vec};

    const CLASSES: usize = 5;
    const DIM: usize = 70;

    fn numbers(stream: u64, count: usize) -> Vec<f32> {
        let rng = Rng::new(stream, Stream::Init, 0);
        (0..count as u64).map(|i| rng.normal(i) as f32).collect()
    }

    #[test]
    fn logits_and_probability_by_the_definition() {
        let (weights, bias, feature) = (numbers(1, CLASSES * DIM), numbers(2, CLASSES), numbers(3, DIM));
        let weight = Matrix { rows: CLASSES, cols: DIM, data: Data::F32(&weights) };
        let head = Classifier::new(weight, &bias, Some("a\nb\nc\nd\ne")).unwrap();
        let exact: Vec<f64> = (0..CLASSES)
            .map(|class| {
                let row = weights[class * DIM..].iter().zip(&feature);
                row.map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>() + f64::from(bias[class])
            })
            .collect();
        let mut logits = [0.0; CLASSES];
        head.logits(&feature, &mut logits).unwrap();
        for (logit, exact) in logits.iter().zip(&exact) {
            assert!((f64::from(*logit) - exact).abs() < 1e-4, "{logit} {exact}");
        }
        let best = (0..CLASSES).max_by(|a, b| exact[*a].total_cmp(&exact[*b])).unwrap();
        let total: f64 = exact.iter().map(|logit| libm::exp(logit - exact[best])).sum();
        let found = head.classify(&feature).unwrap();
        assert_eq!((found.class, found.logit), (best, logits[best]));
        assert_eq!(found.name, ["a", "b", "c", "d", "e"].get(best).copied());
        assert!((f64::from(found.probability) - 1.0 / total).abs() < 1e-5, "{found:?} {total}");

        let (mut q, mut scales) = (vec![0; weights.len()], vec![0.0; CLASSES]);
        quantise_matrix(&weights, (CLASSES, DIM), Layout::ROW_MAJOR, &mut q, &mut scales).unwrap();
        let data = Data::Int8 { weights: &q, scales: &scales, layout: Layout::ROW_MAJOR };
        let int8 = Classifier::new(Matrix { data, ..weight }, &bias, None).unwrap();
        let mut close = [0.0; CLASSES];
        int8.logits(&feature, &mut close).unwrap();
        for (a, b) in logits.iter().zip(&close) {
            assert!((a - b).abs() < 0.3, "{a} {b}");
        }
        assert_eq!(int8.classify(&feature).unwrap().name, None);
    }

    #[test]
    fn the_first_of_equals_and_extremes() {
        let weight = Matrix { rows: 2, cols: 1, data: Data::F32(&[3.0e38, 3.0e38]) };
        let head = Classifier::new(weight, &[0.0, 0.0], None).unwrap();
        let found = head.classify(&[1.0]).unwrap();
        assert_eq!((found.class, found.probability), (0, 0.5));
        assert_eq!(head.classify(&[f32::NAN]).unwrap().class, 0);
        assert_eq!(head.classify(&[3.0e38]).unwrap().logit, f32::INFINITY);
    }

    #[test]
    fn bad_input_is_named() {
        let data = Data::F32(&[1.0; 6]);
        let new = |rows, cols, bias: &[f32], names| {
            Classifier::new(Matrix { rows, cols, data }, bias, names).map(|_| ()).unwrap_err()
        };
        assert!(matches!(new(0, 6, &[], None), Error::Option { name: "classes", .. }));
        assert!(matches!(new(2, 4, &[0.0; 2], None), Error::Length { needed: 8, found: 6, .. }));
        assert!(matches!(new(2, 3, &[0.0; 3], None), Error::Length { needed: 2, found: 3, .. }));
        assert!(matches!(new(2, 3, &[0.0, f32::NAN], None), Error::NotFinite { index: 1, .. }));
        assert!(matches!(new(2, 3, &[0.0; 2], Some("a\nb\nc")), Error::Option { name: "names of classes", .. }));
        let layout = Layout { nr: 4, kt: 4 };
        let data = Data::Int8 { weights: &[0; 16], scales: &[1.0; 2], layout };
        assert!(Classifier::new(Matrix { rows: 2, cols: 3, data }, &[0.0; 2], None).is_err());
        let weight = Matrix { rows: 2, cols: 3, data: Data::F32(&[1.0; 6]) };
        let head = Classifier::new(weight, &[0.0; 2], None).unwrap();
        assert_eq!(head.classify(&[0.0; 2]), Err(Error::Length { item: "feature", needed: 3, found: 2 }));
        assert!(head.logits(&[0.0; 3], &mut [0.0; 3]).is_err());
    }
}
