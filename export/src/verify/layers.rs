//! Where an error begins: the output of each of the encoder's blocks, pack against reference.

use std::path::Path;

use ndarray::{concatenate, Array2, ArrayView2, Axis};
use rayon::prelude::*;

use super::report::{Distance, Layer};
use crate::{
    engine::{check_encode, Engine},
    error::Error,
    pack::PackEngine,
    reference::Reference,
};

/// Compares every block of the encoder on whole images `[B, T]`.
///
/// # Errors
/// The engine's.
pub fn compare(
    reference: &Reference,
    engine: &PackEngine,
    path: &Path,
    tokens: ArrayView2<i64>,
) -> Result<Vec<Layer>, Error> {
    let config = engine.config();
    let all = Array2::from_shape_fn(tokens.dim(), |(_, t)| t as i64);
    let images = check_encode(config, tokens, all.view())?;
    let pairs: Vec<[Vec<Array2<f32>>; 2]> = images
        .par_iter()
        .map(|image| {
            let mut expected = Vec::new();
            reference.encode_image(&image.ids, &image.positions, &mut |name, x| {
                if name.strip_prefix("blocks.").is_some_and(|index| index.parse::<usize>().is_ok()) {
                    expected.push(x.to_owned());
                }
            });
            Ok([expected, engine.block_outputs(&image.ids)?])
        })
        .collect::<Result<_, Error>>()?;
    let layer = |index: usize| {
        let of = |which: usize| {
            let views: Vec<_> = pairs.iter().map(|pair| pair[which][index].view()).collect();
            concatenate(Axis(0), &views).expect("all of the model's width")
        };
        let distance = Distance::of(of(0).view(), of(1).view());
        Layer {
            engine: engine.name().into(),
            path: path.display().to_string(),
            layer: format!("blocks.{index}"),
            distance,
        }
    };
    Ok((0..config.depth).map(layer).collect())
}
