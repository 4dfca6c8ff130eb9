//! Means with 95 % intervals.

use serde::{Deserialize, Serialize};

/// A mean over repetitions and how sure it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Mean.
    pub mean: f64,
    /// Half the width of the 95 % interval by Student's t; `None` for a single repetition.
    pub half_width_95: Option<f64>,
    /// The repetitions.
    pub values: Vec<f64>,
}

impl Estimate {
    /// Of repetitions that are independent of each other.
    ///
    /// # Panics
    /// Where there is none.
    pub fn of(values: &[f64]) -> Self {
        assert!(!values.is_empty(), "a value");
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let half_width_95 = (values.len() > 1).then(|| {
            let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
            t_quantile_975(values.len() - 1) * (variance / count).sqrt()
        });
        Self { mean, half_width_95, values: values.to_vec() }
    }

    /// As percentages: `12.3 ± 0.4`, or `12.3` for a single repetition.
    pub fn percent(&self) -> String {
        match self.half_width_95 {
            Some(half) => format!("{:.1} ± {:.1}", 100.0 * self.mean, 100.0 * half),
            None => format!("{:.1}", 100.0 * self.mean),
        }
    }
}

/// The 0.975 quantile of Student's t: from a table up to 10 degrees of freedom, beyond by the
/// Cornish-Fisher expansion (within 1e-3 there).
fn t_quantile_975(degrees: usize) -> f64 {
    const TABLE: [f64; 10] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];
    match TABLE.get(degrees.saturating_sub(1)) {
        Some(&quantile) => quantile,
        None => {
            let (z, degrees) = (1.959_964_f64, degrees as f64);
            let first = (z.powi(3) + z) / 4.0;
            let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
            let third = (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0;
            z + first / degrees + second / degrees.powi(2) + third / degrees.powi(3)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_by_students_t() {
        let estimate = Estimate::of(&[0.5, 0.6, 0.7]);
        assert!((estimate.mean - 0.6).abs() < 1e-12);
        assert!((estimate.half_width_95.unwrap() - 4.303 * 0.1 / 3f64.sqrt()).abs() < 1e-12);
        assert_eq!(estimate.percent(), "60.0 ± 24.8");
        assert_eq!(Estimate::of(&[0.25]).percent(), "25.0");
        for (degrees, expected) in [(11, 2.201), (20, 2.086), (60, 2.000), (100_000, 1.960)] {
            assert!((t_quantile_975(degrees) - expected).abs() < 1e-3, "{degrees}");
        }
    }
}
