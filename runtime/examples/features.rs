//! The feature of one image, numbers that a classifier or a search works on: `… --example features -- PACK IDS.u16`
//!
//! `IDS.u16`: the image's token ids, little-endian, row by row.

use sorcen_runtime::{scratch, Model, OwnedBytes, Pack};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let file = OwnedBytes::read(arguments.next().ok_or("usage: features PACK IDS.u16")?.as_ref())?;
    let bytes = std::fs::read(arguments.next().ok_or("usage: features PACK IDS.u16")?)?;
    let ids: Vec<u16> = bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
    let model = Model::new(Pack::new(&file)?);
    let mut memory = scratch::OwnedScratch::new(model.config(), scratch::Plan::Features)?;
    let mut feature = vec![0.0; model.config().embed_dim];
    model.features(&ids, &mut memory.get()?, &mut feature)?;
    println!("{feature:?}");
    Ok(())
}
