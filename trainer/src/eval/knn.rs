//! k nearest neighbours: the class that the most similar labelled images have.

use rayon::prelude::*;

/// How the neighbours vote.
#[derive(Clone, Copy, Debug)]
pub struct Votes {
    /// Neighbours that vote.
    pub k: usize,
    /// A vote weighs `exp(similarity / temperature)`; 0.07 is usual for cosine similarity (Wu et al. 2018).
    pub temperature: f32,
}

impl Default for Votes {
    fn default() -> Self {
        Self { k: 5, temperature: 0.07 }
    }
}

/// Predicted labels of `queries` `[D]` each, by cosine similarity to the labelled `bank`. `own` lists, for each query or
/// for none, the places in the bank that are the same image (rising): they are no neighbours of it.
///
/// # Panics
/// Where `bank` is not as long as `labels`, or nothing of it is left for a query.
pub fn cosine_votes(
    bank: &[Vec<f32>],
    labels: &[u16],
    queries: &[Vec<f32>],
    own: &[Vec<usize>],
    votes: Votes,
) -> Vec<u16> {
    let (bank, queries) = (normalised(bank), normalised(queries));
    assert_eq!(bank.len(), labels.len(), "a label for each image of the bank");
    nearest_votes(labels, queries.len(), own, votes, |query, index| dot(&queries[query], &bank[index]))
}

/// Predicted labels of token maps `queries`, by the share of equal tokens with the labelled `bank` (the
/// cosine of one-hot tokens).
///
/// # Panics
/// As [`cosine_votes`].
pub fn hamming_votes(
    bank: &[Vec<u16>],
    labels: &[u16],
    queries: &[Vec<u16>],
    own: &[Vec<usize>],
    votes: Votes,
) -> Vec<u16> {
    assert_eq!(bank.len(), labels.len(), "a label for each image of the bank");
    nearest_votes(labels, queries.len(), own, votes, |query, index| {
        let equal = queries[query].iter().zip(&bank[index]).filter(|(a, b)| a == b).count();
        equal as f32 / queries[query].len().max(1) as f32
    })
}

/// Share of predictions that are right.
pub fn accuracy(predicted: &[u16], labels: &[u16]) -> f64 {
    let right = predicted.iter().zip(labels).filter(|(a, b)| a == b).count();
    right as f64 / labels.len().max(1) as f64
}

/// Votes of the `k` most similar for each query; the first of the bank where similarities are equal, the
/// lowest label where votes are.
fn nearest_votes(
    labels: &[u16],
    queries: usize,
    own: &[Vec<usize>],
    votes: Votes,
    similarity: impl Fn(usize, usize) -> f32 + Sync,
) -> Vec<u16> {
    let classes = labels.iter().max().map_or(0, |&label| usize::from(label) + 1);
    let vote = |query: usize| {
        let own = own.get(query).map_or(&[][..], Vec::as_slice);
        let others = (0..labels.len()).filter(|index| own.binary_search(index).is_err());
        let mut order: Vec<(f32, usize)> = others.map(|index| (similarity(query, index), index)).collect();
        assert!(!order.is_empty(), "another image in the bank");
        let k = votes.k.clamp(1, order.len());
        let closer = |a: &(f32, usize), b: &(f32, usize)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        order.select_nth_unstable_by(k - 1, closer);
        order.truncate(k);
        order.sort_by(closer); // the weights are summed in one order
        let mut weights = vec![0.0; classes];
        for &(similarity, index) in &order {
            weights[usize::from(labels[index])] += f64::from((similarity - order[0].0) / votes.temperature).exp();
        }
        let mut best = 0;
        for (label, weight) in weights.iter().enumerate() {
            if *weight > weights[best] {
                best = label;
            }
        }
        best as u16
    };
    (0..queries).into_par_iter().map(vote).collect()
}

/// In sixteen partial sums: one chain of additions would wait for itself.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; 16];
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    for (a, b) in a.iter().zip(b) {
        for i in 0..16 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

/// Rows scaled to length 1.
fn normalised(rows: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let row = |row: &Vec<f32>| {
        let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
        row.iter().map(|v| v / norm).collect()
    };
    rows.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Votes = Votes { k: 1, temperature: 0.07 };

    #[test]
    fn direction_counts_not_length() {
        let bank = [vec![1.0, 0.0], vec![0.0, 5.0], vec![-1.0, 0.0]];
        let queries = [vec![9.0, 1.0], vec![0.1, 0.2], vec![-3.0, 0.1]];
        assert_eq!(cosine_votes(&bank, &[4, 0, 2], &queries, &[], ONE), [4, 0, 2]);
    }

    #[test]
    fn majority_wins_and_near_votes_weigh_more() {
        let bank = [vec![1.0, 0.0], vec![0.8, 0.6], vec![0.8, -0.6]];
        let query = [vec![1.0, 0.0]];
        let votes = |temperature| Votes { k: 3, temperature };
        assert_eq!(cosine_votes(&bank, &[0, 1, 1], &query, &[], votes(10.0)), [1]);
        assert_eq!(cosine_votes(&bank, &[0, 1, 1], &query, &[], votes(0.07)), [0]);
        assert_eq!(
            cosine_votes(&bank, &[0, 1, 1], &query, &[], Votes { k: 50, temperature: 10.0 }),
            [1],
            "k above the bank"
        );
    }

    #[test]
    fn tokens_by_equality_and_ties_by_order() {
        let bank = [vec![1, 2, 3], vec![1, 2, 9], vec![7, 8, 9]];
        assert_eq!(
            hamming_votes(&bank, &[2, 1, 0], &[vec![1, 2, 9], vec![7, 2, 9], vec![5, 5, 5]], &[], ONE),
            [1, 1, 2]
        );
        assert_eq!(accuracy(&[1, 1, 2], &[1, 0, 2]), 2.0 / 3.0);
    }

    #[test]
    fn an_image_is_no_neighbour_of_itself() {
        let bank = [vec![1.0, 0.0], vec![0.9, 0.1], vec![0.0, 1.0]];
        let own = [vec![0], vec![], vec![0, 2]];
        assert_eq!(cosine_votes(&bank, &[4, 1, 2], &bank, &own, ONE), [1, 1, 1]);
        let tokens = [vec![1, 2], vec![1, 3], vec![7, 8]];
        assert_eq!(hamming_votes(&tokens, &[4, 1, 2], &tokens, &own, ONE), [1, 1, 1]);
        assert_eq!(hamming_votes(&tokens, &[4, 1, 2], &tokens, &[], ONE), [4, 1, 2]);
    }

    #[test]
    fn zero_features_are_no_trouble() {
        assert_eq!(cosine_votes(&[vec![0.0; 3], vec![0.0; 3]], &[1, 0], &[vec![0.0; 3]], &[], ONE), [1]);
    }
}
