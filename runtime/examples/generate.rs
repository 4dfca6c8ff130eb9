//! Draws one image from a pack: its token ids, row by row, and their hash (the same on every machine).
//!
//! ```text
//! cargo run --release -p sorcen-runtime --features std --example generate -- trainer/assets/emoji/demo.srcn 0
//! ```

use sorcen_runtime::{generate, rng, sampler::Seeded, scratch, Model, OwnedBytes, Pack};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let file = OwnedBytes::read(arguments.next().ok_or("usage: generate PACK [SEED]")?.as_ref())?;
    let seed = arguments.next().map_or(Ok(0), |seed| seed.parse())?;
    let model = Model::new(Pack::new(&file)?);
    let config = *model.config();
    let mut memory = scratch::OwnedScratch::new(&config, scratch::Plan::Generate)?;
    let mut ids = vec![config.mask_token_id as u16; config.tokens()];
    generate::generate(&model, &mut ids, &Default::default(), &mut Seeded(seed), &mut memory.get()?, |_| {})?;
    ids.chunks(config.grid).for_each(|row| println!("{row:?}"));
    println!("{:#018x}", ids.iter().fold(0, |state, &id| rng::splitmix64(state ^ u64::from(id))));
    Ok(())
}
