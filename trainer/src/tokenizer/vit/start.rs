//! A start that is as good as a codebook of patches: the network at first does what the codebook does, and learns
//! from there what the patches beside one say about it.
//!
//! The patches' main directions (principal components of the codebook) are the first channels. The other channels
//! are ±1 whatever the image, so that the norms divide all rows by nearly the same number (the norms then make them
//! small, or they would take the range of int8), and the blocks add nothing. What is left of the network is linear:
//! onto the main directions, to the nearest code, and back.

use burn::tensor::backend::Backend;
use sorcen_export::tokenizer::PatchTokenizer;
use sorcen_runtime::rng::{Rng, Stream};
use sorcen_runtime::vit::VitConfig;

use super::Net;
use crate::kernels::Kernels;
use crate::model::weight::{Weight, Weights as _};

/// Rounds of subspace iteration.
const ROUNDS: u64 = 50;
/// What the norms make of the constant channels.
const DAMPED: f64 = 0.25;

/// Sets an initialised network with patches and codes of the same sizes to what `patches` does; returns the codes
/// `[K, z]`. The mean squared distance of a latent's numbers to its code's is the mean squared error of the pixels
/// (0 to 1) that this makes.
///
/// # Errors
/// What does not fit, by flag.
pub fn start_as_patches<B: Kernels>(
    net: &mut Net<B>,
    patches: &PatchTokenizer,
    device: &B::Device,
) -> Result<Vec<f32>, String> {
    let VitConfig { code_dim, embed_dim, .. } = net.config;
    let values = net.config.patch_values();
    check_start(&net.config)?;
    let rows: Vec<f64> = patches.patches().iter().map(|&byte| f64::from(byte) / 127.5 - 1.0).collect();
    let count = rows.len() / values;
    let mean: Vec<f64> = (0..values).map(|i| rows.iter().skip(i).step_by(values).sum::<f64>() / count as f64).collect();
    let centred: Vec<f64> = rows.iter().enumerate().map(|(i, x)| x - mean[i % values]).collect();
    let basis = main_directions(&centred, values, code_dim);
    let along = |patch: &[f64]| -> Vec<f64> { basis.chunks_exact(values).map(|axis| dot(axis, patch)).collect() };
    let places: Vec<Vec<f64>> = centred.chunks_exact(values).map(along).collect(); // [K, z]
    let lengths: Vec<f64> = places.iter().map(|place| dot(place, place)).collect();
    let radius = lengths.iter().fold(0.0f64, |most, length| most.max(length.sqrt())).max(1e-6);

    // Channels: places over the radius, so at most 1 long, then ±1.
    let constant = embed_dim - code_dim;
    let signs: Vec<f64> = (0..constant)
        .map(|i| match (i + 1 == constant && constant % 2 == 1, i % 2) {
            (true, _) => 0.0, // their mean is 0
            (false, 0) => 1.0,
            (false, _) => -1.0,
        })
        .collect();
    let usual = lengths.iter().sum::<f64>() / count as f64 / (radius * radius);
    let deviation = ((dot(&signs, &signs) + usual) / embed_dim as f64).sqrt();
    // The norm subtracts the row's mean from all channels: the mean of the constant ones is minus it.
    let undone = |weight: &dyn Fn(usize) -> f64| -> Vec<f64> {
        let sum: f64 = (0..code_dim).map(weight).sum();
        let at = |channel| if channel < code_dim { weight(channel) } else { -sum / constant as f64 / DAMPED };
        (0..embed_dim).map(|channel| at(channel) * deviation).collect()
    };
    let scale = radius * (code_dim as f64 / values as f64).sqrt() / 2.0; // of latents over channels
    let axis = |channel: usize, i: usize| basis[channel * values + i];
    let one = |is: bool| f64::from(u8::from(is));

    let embed = (0..embed_dim).flat_map(|channel| (0..values).map(move |i| (channel, i)));
    let embed = embed.map(|(channel, i)| if channel < code_dim { axis(channel, i) / radius } else { 0.0 });
    set(&mut net.patch_embed.weight, embed, device);
    let middle = along(&mean);
    let embed_bias = (0..embed_dim).map(|channel| middle.get(channel).map_or(0.0, |x| -x / radius));
    set(&mut net.patch_embed.bias, embed_bias, device);
    for position in [&mut net.position, &mut net.decoder_position] {
        let initial = position.to_vec(); // small numbers that tell positions apart
        let at = |(i, x): (usize, f32)| match (i % embed_dim).checked_sub(code_dim) {
            Some(channel) => f64::from(x) + signs[channel],
            None => 0.0,
        };
        set(position, initial.into_iter().enumerate().map(at), device);
    }
    let damping = || (0..embed_dim).map(|channel| if channel < code_dim { 1.0 } else { DAMPED });
    for blocks in [&mut net.blocks, &mut net.decoder_blocks] {
        blocks.visit_mut("", &mut |name, weight| {
            if name.ends_with("attn.proj.weight") || name.ends_with("mlp.fc2.weight") {
                let zeros = std::iter::repeat_n(0.0, weight.dims().iter().product());
                set(weight, zeros, device);
            }
            if name.ends_with("norm1.weight") || name.ends_with("norm2.weight") {
                set(weight, damping(), device);
            }
        });
    }
    for norm in [&mut net.norm, &mut net.decoder_norm] {
        set(&mut norm.weight, damping(), device);
    }
    set(&mut net.to_code.weight, (0..code_dim).flat_map(|z| undone(&|channel| scale * one(channel == z))), device);
    let from_code = (0..embed_dim * code_dim).map(|i| one(i / code_dim == i % code_dim) / scale);
    set(&mut net.from_code.weight, from_code, device);
    let pixels = (0..values).flat_map(|i| undone(&|channel| radius * axis(channel, i)));
    set(&mut net.to_pixels.weight, pixels, device);
    set(&mut net.to_pixels.bias, mean.iter().copied(), device);
    Ok(places.concat().into_iter().map(|x| (x / radius * scale) as f32).collect())
}

/// Refuses sizes that such a start is not made for.
pub fn check_start(config: &VitConfig) -> Result<(), String> {
    let most = config.patch_values().min(config.codes).min(config.embed_dim / 2);
    match config.code_dim <= most {
        true => Ok(()),
        false => Err(format!(
            "--code_dim: expected at most {most} to start as patches (half the width, the numbers of a patch, the \
             codes), found {}; --start random takes any",
            config.code_dim
        )),
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn set<B: Backend>(weight: &mut Weight<B>, values: impl Iterator<Item = f64>, device: &B::Device) {
    weight.set_from(values.map(|x| x as f32).collect(), device);
}

/// Orthonormal directions `[count, length]` along which centred `rows` `[N, length]` spread the most, by subspace
/// iteration.
fn main_directions(rows: &[f64], length: usize, count: usize) -> Vec<f64> {
    let mut basis: Vec<Vec<f64>> = (0..count as u64)
        .map(|axis| {
            let rng = Rng::new(axis, Stream::Tokenizer, 0);
            (0..length as u64).map(|i| rng.normal(i)).collect()
        })
        .collect();
    for _ in 0..ROUNDS {
        let mut next = vec![vec![0.0; length]; count];
        for row in rows.chunks_exact(length) {
            for (axis, next) in basis.iter().zip(&mut next) {
                let along = dot(axis, row);
                next.iter_mut().zip(row).for_each(|(sum, x)| *sum += along * x);
            }
        }
        basis = next;
        orthonormalise(&mut basis);
    }
    basis.concat()
}

/// Gram-Schmidt, twice for rounding's sake; a vector that depends on those before it becomes 0.
fn orthonormalise(basis: &mut [Vec<f64>]) {
    for index in 0..basis.len() {
        let (before, rest) = basis.split_at_mut(index);
        let vector = &mut rest[0];
        let was = dot(vector, vector).sqrt();
        for axis in before.iter().chain(before.iter()) {
            let along = dot(axis, vector);
            vector.iter_mut().zip(axis).for_each(|(x, a)| *x -= along * a);
        }
        let length = dot(vector, vector).sqrt();
        let factor = if length > 1e-9 * was { 1.0 / length } else { 0.0 };
        vector.iter_mut().for_each(|x| *x *= factor);
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::super::Vit;
    use super::*;
    use crate::tokenizer::{check as measure, Tokenizer as _};

    #[test]
    fn does_what_the_patches_do() {
        let config = VitConfig {
            grid: 4,
            patch: 4,
            codes: 20,
            code_dim: 16,
            embed_dim: 64,
            depth: 2,
            num_heads: 4,
            decoder_depth: 1,
            mlp_ratio: 2,
        };
        // Pictures of 20 patches, in some noise.
        let rng = Rng::new(2, Stream::Evaluation, 0);
        let patches: Vec<u8> = (0..20 * 48).map(|i| rng.bits(i) as u8).collect();
        let patches = PatchTokenizer::new(patches, 20, 4).unwrap();
        let pictures: Vec<Vec<u16>> =
            (0..12).map(|n| (0..16).map(|i| rng.below(10_000 + 16 * n + i, 20) as u16).collect()).collect();
        let images = patches.decode_all(&pictures, 4).unwrap();

        let device = Default::default();
        let mut net = Net::<Flex>::new(&config, &device);
        net.initialise("", 1, &device);
        let codes = start_as_patches(&mut net, &patches, &device).unwrap();
        net.codebook.set_from(codes, &device);
        let vit = Vit::<Flex>::new(net, String::new(), 1, device);
        assert_eq!(vit.encode_all(&images, 16).unwrap(), pictures);
        // 16 of 19 directions are kept.
        let report = measure(&vit, &images, 16).unwrap();
        assert!(report.psnr_db > 18.0, "{report:?}");

        let narrow = VitConfig { embed_dim: 16, ..config };
        assert!(check_start(&narrow).unwrap_err().contains("--code_dim: expected at most 8"));
    }
}
