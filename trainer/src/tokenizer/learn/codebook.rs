//! The codebook of a tokenizer in training: running means of the vectors that each code stands for.
//!
//! On the host, in a fixed order: a run that is resumed goes on with the same bits.

use sorcen_runtime::rng::Rng;

/// Codes, and what their means are made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Codebook {
    /// `[K, z]`
    pub codes: Vec<f32>,
    /// Vectors that each code stands for in a step, a running mean; `[K]`. All 0: not started.
    pub counts: Vec<f32>,
    /// Running mean of their sum, `[K, z]`.
    pub sums: Vec<f32>,
}

/// How the means run.
#[derive(Clone, Copy, Debug)]
pub struct Running {
    /// Weight of what was before a step.
    pub decay: f32,
    /// Share of the mean use below which a code is dead.
    pub dead_below: f32,
}

impl Running {
    /// The share of the mean use that a code is given when it is put at a vector: three times that of a dead one, so
    /// that one which finds nothing to stand for there is dead soon, and one which does moves to it soon.
    fn of_new(self) -> f32 {
        (3.0 * self.dead_below).clamp(0.01, 1.0)
    }
}

impl Codebook {
    /// A codebook of `codes` codes that has seen nothing.
    pub fn new(codes: usize, length: usize) -> Self {
        Self { codes: vec![0.0; codes * length], counts: vec![0.0; codes], sums: vec![0.0; codes * length] }
    }

    /// Length z of a code.
    fn length(&self) -> usize {
        self.codes.len() / self.counts.len().max(1)
    }

    /// Whether it has seen anything.
    pub fn is_started(&self) -> bool {
        self.counts.iter().any(|&count| count > 0.0)
    }

    /// Starts from vectors `rows` `[N, z]`: each code is one of them, the likelier the further that is from the codes
    /// before it (k-means++). Where many vectors are alike, as of a white ground, one code stands for them.
    pub fn start(&mut self, rows: &[f32], running: Running, rng: &Rng) {
        let (length, count) = (self.length(), rows.len() / self.length());
        let mut distances = vec![1.0; count]; // to the nearest code so far; any row may be the first
        for code in 0..self.counts.len() {
            let row = drawn(&distances, distances.iter().sum(), rng.uniform(code as u64));
            let vector = &rows[row * length..][..length];
            self.place(code, vector, running.of_new() * self.mean_use(count));
            for (distance, row) in distances.iter_mut().zip(rows.chunks_exact(length)) {
                let new = squared_distance(row, vector);
                *distance = if code == 0 { new } else { new.min(*distance) };
            }
        }
    }

    /// Starts at codes that were found elsewhere, `[K, z]`, as if each stood for as many of the `vectors` of a step.
    pub fn start_at(&mut self, codes: &[f32], vectors: usize) {
        let (length, mean_use) = (self.length(), self.mean_use(vectors));
        codes.chunks_exact(length).enumerate().for_each(|(code, vector)| self.place(code, vector, mean_use));
    }

    /// Moves the means towards the vectors `rows` `[N, z]` of a step, whose nearest codes were `ids` `[N]`. Codes
    /// that hardly stand for anything any more start again, each at a vector, the likelier the further that is from
    /// its code. Returns their number.
    pub fn update(&mut self, rows: &[f32], ids: &[usize], running: Running, rng: &Rng) -> usize {
        let (length, decay) = (self.length(), running.decay);
        let (mut counts, mut sums) = (vec![0.0f32; self.counts.len()], vec![0.0f32; self.sums.len()]);
        let mut errors = Vec::with_capacity(ids.len());
        for (row, &id) in rows.chunks_exact(length).zip(ids) {
            counts[id] += 1.0;
            let code = id * length..(id + 1) * length;
            sums[code.clone()].iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            errors.push(squared_distance(&self.codes[code], row));
        }
        let blend = |old: &mut f32, new: f32| *old = *old * decay + new * (1.0 - decay);
        self.counts.iter_mut().zip(counts).for_each(|(old, new)| blend(old, new));
        self.sums.iter_mut().zip(sums).for_each(|(old, new)| blend(old, new));

        let mean_use = self.mean_use(ids.len());
        let total: f64 = errors.iter().sum();
        let mut restarted = 0;
        for code in 0..self.counts.len() {
            let count = self.counts[code];
            if count < running.dead_below * mean_use {
                let row = drawn(&errors, total, rng.uniform(code as u64));
                self.place(code, &rows[row * length..][..length], running.of_new() * mean_use);
                restarted += 1;
                continue;
            }
            if count < f32::MIN_POSITIVE / f32::EPSILON {
                continue; // long dead, and none is to start again: what is left of its sum is rounding
            }
            let at = code * length..(code + 1) * length;
            self.codes[at.clone()].iter_mut().zip(&self.sums[at]).for_each(|(code, sum)| *code = sum / count);
        }
        restarted
    }

    /// How many of a step's `vectors` a code stands for on average.
    fn mean_use(&self, vectors: usize) -> f32 {
        vectors as f32 / self.counts.len() as f32
    }

    /// Puts a code at a vector, as if it had stood for `count` of a step.
    fn place(&mut self, code: usize, vector: &[f32], count: f32) {
        let at = code * vector.len()..(code + 1) * vector.len();
        self.counts[code] = count;
        self.codes[at.clone()].copy_from_slice(vector);
        self.sums[at].iter_mut().zip(vector).for_each(|(sum, x)| *sum = x * count);
    }
}

fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    f64::from(a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>())
}

/// The index at which the running sum of `weights` passes the share `uniform` of their `total`; any where all are 0.
fn drawn(weights: &[f64], total: f64, uniform: f64) -> usize {
    if total <= 0.0 {
        return (uniform * weights.len() as f64) as usize;
    }
    let mut left = uniform * total;
    let passes = |weight: &f64| {
        left -= weight;
        left < 0.0
    };
    weights.iter().position(passes).unwrap_or(weights.len() - 1)
}

/// How many codes occur, and 2 to the power of the entropy of their frequencies.
pub fn usage(uses: &[u64]) -> (usize, f64) {
    let total = uses.iter().sum::<u64>() as f64;
    let shares = uses.iter().filter(|&&n| n > 0).map(|&n| n as f64 / total);
    (uses.iter().filter(|&&n| n > 0).count(), shares.map(|p| -p * p.log2()).sum::<f64>().exp2())
}

#[cfg(test)]
mod tests {
    use sorcen_runtime::rng::Stream;

    use super::*;

    const RUNNING: Running = Running { decay: 0.9, dead_below: 0.1 };

    /// Vectors in three heaps, one of them rare.
    fn rows(step: u64) -> Vec<f32> {
        let rng = Rng::new(step, Stream::Evaluation, 0);
        let heap =
            |i: u64| [(0.0, 0.0), (5.0, 1.0), (-3.0, 8.0)][if i.is_multiple_of(20) { 2 } else { (i % 2) as usize }];
        (0..200u64)
            .flat_map(|i| {
                [heap(i).0 + 0.1 * rng.normal(2 * i), heap(i).1 + 0.1 * rng.normal(2 * i + 1)].map(|x| x as f32)
            })
            .collect()
    }

    fn nearest(codes: &[f32], rows: &[f32]) -> Vec<usize> {
        let distance = |a: &[f32], b: &[f32]| (a[0] - b[0]).powi(2) + (a[1] - b[1]).powi(2);
        let of = |row: &[f32]| {
            let codes = codes.chunks_exact(2).enumerate();
            codes.min_by(|a, b| distance(a.1, row).total_cmp(&distance(b.1, row))).unwrap().0
        };
        rows.chunks_exact(2).map(of).collect()
    }

    #[test]
    fn codes_become_means_and_dead_ones_find_work() {
        let mut codebook = Codebook::new(4, 2);
        assert!(!codebook.is_started());
        codebook.start(&[100.0; 400], RUNNING, &Rng::new(1, Stream::Tokenizer, 0)); // all four at one place, far from all
        let (mut restarted, mut uses) = (0, vec![0; 4]);
        for step in 0..400 {
            let rows = rows(step);
            let ids = nearest(&codebook.codes, &rows);
            uses = (0..4).map(|code| ids.iter().filter(|&&id| id == code).count() as u64).collect();
            restarted += codebook.update(&rows, &ids, RUNNING, &Rng::new(1, Stream::Tokenizer, step + 1));
        }
        assert!(restarted >= 3, "{restarted}");
        assert!(usage(&uses).0 >= 3, "{uses:?}");
        for (heap, (x, y)) in [(0.0, 0.0), (5.0, 1.0), (-3.0, 8.0)].into_iter().enumerate() {
            let near = |code: &[f32]| (code[0] - x).abs() < 0.5 && (code[1] - y).abs() < 0.5;
            assert!(codebook.codes.chunks_exact(2).any(near), "heap {heap}: {:?}", codebook.codes);
        }
    }

    #[test]
    fn starts_at_vectors_that_differ() {
        let mut rows = [0.5; 2 * 1000].to_vec(); // a ground
        (0..7).for_each(|i| rows[2 * (100 * i + 3)] = i as f32 + 1.0);
        let mut codebook = Codebook::new(8, 2);
        codebook.start(&rows, RUNNING, &Rng::new(1, Stream::Tokenizer, 0));
        let mut found: Vec<f32> = codebook.codes.iter().step_by(2).copied().collect();
        found.sort_by(f32::total_cmp);
        assert_eq!(found, [0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    }

    #[test]
    fn unused_codes_start_again_soon_or_stay_where_they_are() {
        let restarts = |dead_below: f32, steps: u64| {
            let mut codebook = Codebook::new(2, 1);
            codebook.start(&[0.0, 9.0], Running { dead_below, decay: 0.9 }, &Rng::new(1, Stream::Tokenizer, 0));
            let near = codebook.codes.iter().position(|&code| code == 0.0).unwrap();
            let update = |step| {
                codebook.update(
                    &[0.0, 1.0],
                    &[near; 2],
                    Running { dead_below, decay: 0.9 },
                    &Rng::new(1, Stream::Tokenizer, 1 + step),
                )
            };
            let restarted: usize = (0..steps).map(update).sum();
            assert!(codebook.codes.iter().all(|code| code.is_finite()), "{codebook:?}");
            (restarted, codebook.codes[1 - near])
        };
        assert_eq!(restarts(0.1, 10).0, 0); // 0.3 of the mean use, times 0.9 a step
        assert_eq!(restarts(0.1, 12).0, 1);
        let (restarted, code) = restarts(0.0, 2000);
        assert!(restarted == 0 && (code - 9.0).abs() < 1e-3, "{restarted} {code}");
    }

    #[test]
    fn draws_by_weight_and_counts_use() {
        let weights = [0.0, 1.0, 0.0, 3.0];
        let of = |uniform| drawn(&weights, 4.0, uniform);
        assert_eq!([of(0.1), of(0.24), of(0.26), of(0.999_999)], [1, 1, 3, 3]);
        assert_eq!(drawn(&[0.0; 4], 0.0, 0.6), 2);
        assert_eq!(usage(&[4, 0, 4, 0]), (2, 2.0));
    }
}
