//! The class of a picture by the head in a pack (`sorcen-export pack --classifier …`): `… --example classify -- PACK
//! RGB`, the raw pixels [height, width, 3] of a square picture of the model's size.

use sorcen_runtime::{scratch, Model, OwnedBytes, Pack};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let file = OwnedBytes::read(arguments.next().ok_or("usage: classify PACK RGB")?.as_ref())?;
    let rgb = std::fs::read(arguments.next().ok_or("usage: classify PACK RGB")?)?;
    let model = Model::new(Pack::new(&file)?);
    let codebook = model.pack().tokenizer().ok_or("the pack has no tokenizer")?;
    let side = model.config().grid * codebook.patch();
    let mut ids = vec![0; model.config().tokens()];
    codebook.encode(&rgb, side, side, &mut ids)?;
    let mut memory = scratch::OwnedScratch::new(model.config(), scratch::Plan::Features)?;
    println!("{:?}", model.classify(&ids, &mut memory.get()?)?);
    Ok(())
}
