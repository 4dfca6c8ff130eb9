//! Initial values, each a pure function of (seed, name, shape), from the official code's
//! distributions (`initialize_weights`).

use sorcen_runtime::rng::{Rng, Stream};

/// Initial values of the weight `name` with shape `dims` (as in files), row-major.
///
/// Linears are Xavier-uniform, convolutions uniform with a variance of 1 / (numbers that one output is made of),
/// embeddings and learned positions normal with deviation 0.02, norms 1 and 0, biases 0.
pub fn values(name: &str, dims: &[usize], seed: u64) -> Vec<f32> {
    let count = dims.iter().product::<usize>();
    match *dims {
        _ if name.ends_with("embeddings.weight") || name.contains("pos_embed") => {
            let rng = Rng::new(seed, Stream::Init, fnv1a(name));
            (0..count as u64).map(|i| (0.02 * rng.normal(i)) as f32).collect()
        }
        [outputs, inputs] => uniform(name, count, (6.0 / (inputs + outputs) as f64).sqrt(), seed),
        [_, inputs, height, width] => uniform(name, count, (3.0 / (inputs * height * width) as f64).sqrt(), seed),
        [_] if name.ends_with(".weight") || name.ends_with("running_var") => vec![1.0; count],
        _ => vec![0.0; count],
    }
}

/// `count` numbers for the weight `name`, uniform in ±`bound`.
pub fn uniform(name: &str, count: usize, bound: f64, seed: u64) -> Vec<f32> {
    let rng = Rng::new(seed, Stream::Init, fnv1a(name));
    (0..count as u64).map(|i| ((2.0 * rng.uniform(i) - 1.0) * bound) as f32).collect()
}

/// A stable hash of a name.
fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_rules() {
        let spread = |v: &[f32]| v.iter().map(|x| x.abs()).fold(0.0, f32::max);
        let qkv = values("blocks.0.attn.qkv.weight", &[192, 64], 1);
        let bound = (6.0f32 / 256.0).sqrt();
        assert!(spread(&qkv) <= bound && spread(&qkv) > 0.99 * bound);
        let word = values("token_emb.word_embeddings.weight", &[500, 64], 1);
        let deviation = (word.iter().map(|x| x * x).sum::<f32>() / word.len() as f32).sqrt();
        assert!((deviation - 0.02).abs() < 5e-4, "{deviation}");
        assert_eq!(values("norm.weight", &[3], 1), [1.0; 3]);
        assert_eq!(values("norm.bias", &[3], 1), [0.0; 3]);
        assert_eq!(values("mlm_layer.bias", &[1, 1, 3], 1), [0.0; 3]);
        assert_ne!(qkv, values("blocks_momentum.0.attn.qkv.weight", &[192, 64], 1));
        assert_ne!(qkv, values("blocks.0.attn.qkv.weight", &[192, 64], 2));
    }
}
