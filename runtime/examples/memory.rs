//! Flash and RAM of the model sizes: the table in this crate's README.
//!
//! ```text
//! cargo run --release -p sorcen-runtime --example memory
//! ```

use std::convert::Infallible;

use sorcen_runtime::{
    pack::{Sink, TensorData, WriteError, Writer},
    quant::Layout,
    schema::Param,
    scratch::{Plan, Scratch},
    ModelConfig,
};

/// Takes a pack's bytes and keeps none.
struct Nowhere;

impl Sink for Nowhere {
    type Error = Infallible;

    fn write_at(&mut self, _: u64, _: &[u8]) -> Result<(), Infallible> {
        Ok(())
    }
}

/// Bytes of an int8 pack as `sorcen-export pack` writes it: matrices int8, position tables f16, all else f32, of the
/// word embedding only the rows of ids that occur; without tokenizer, head and card.
fn pack_bytes(config: &ModelConfig, with_decoder: bool) -> Result<u64, WriteError<Infallible>> {
    let mut writer = Writer::new(Nowhere, config)?;
    while let Some(param) = writer.next_param() {
        let (mut rows, cols) = param.shape(config).matrix();
        if param == Param::WordEmbedding {
            rows = config.used_ids();
        }
        let (weights, scales) = (vec![0; rows * cols], vec![0.0; rows]);
        let (floats, halves) = (vec![0.0; rows * cols], vec![0; rows * cols]);
        writer.tensor(match param.is_matrix() {
            _ if param.is_decoder() && !with_decoder => TensorData::Absent,
            _ if matches!(param, Param::PositionEmbedding | Param::DecoderPosition) => TensorData::F16(&halves),
            true => TensorData::Int8 { weights: &weights, scales: &scales, layout: Layout::ROW_MAJOR },
            false => TensorData::F32(&floats),
        })?;
    }
    Ok(writer.finish()?.0)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!(
        "| model | int8 pack, encoder alone | int8 pack | RAM: features | RAM: generate | of it fast | of it slow |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|");
    for (name, config) in [
        ("micro, 8×8 tokens of 512 codes", ModelConfig::micro(8, 512)),
        ("tiny, 8×8 tokens of 512 codes", ModelConfig::tiny(8, 512)),
        ("small, 16×16 tokens of 1024 codes", ModelConfig::small(16, 1024)),
        ("ViT-B, 16×16 tokens of 1024 codes", ModelConfig::vit_b()),
    ] {
        let kb = |bytes: u64| format!("{:.1} kB", bytes as f64 / 1000.0);
        let ram = |plan| kb(Scratch::bytes(&config, plan) as u64);
        let regions = Scratch::regions(&config, Plan::Generate);
        println!(
            "| {name} | {} | {} | {} | {} | {} | {} |",
            kb(pack_bytes(&config, false)?),
            kb(pack_bytes(&config, true)?),
            ram(Plan::Features),
            ram(Plan::Generate),
            kb(regions.fast as u64),
            kb(regions.slow as u64),
        );
    }
    Ok(())
}
