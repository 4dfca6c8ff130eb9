//! A new image, drawn by the model in 20 steps from a seed.
#![cfg_attr(not(unix), no_std)]
#![no_main]

use sorcen_firmware::{
    data, hash, info,
    picture::{show_ids, Picture},
    CONFIG, TOKENS,
};
use sorcen_runtime::{
    generate::{generate, Options},
    sampler::Seeded,
    scratch::{Plan, Scratch},
    Error,
};

sorcen_firmware::main!(draw, memory: Scratch::bytes(&CONFIG, Plan::Generate));

/// Another seed, another image.
const SEED: u64 = 11;
/// The temperatures that suit the demo model, as `sorcen demo` draws with.
const OPTIONS: Options = Options { temperature: 12.0, token_temperature: 0.8, ..Options::PUBLISHED };

fn draw(memory: &mut [u8]) -> Result<(), Error> {
    let model = sorcen_firmware::model()?;
    let mut ids = [CONFIG.mask_token_id as u16; TOKENS]; // nothing is known
    let mut scratch = Scratch::new(memory, &CONFIG, Plan::Generate)?;
    generate(&model, &mut ids, &OPTIONS, &mut Seeded(SEED), &mut scratch, |step| {
        let unknown = step.input.iter().filter(|&&id| usize::from(id) == CONFIG.mask_token_id).count();
        info!("step {} of {}: {} tokens unknown", step.index + 1, step.steps, unknown);
    })?;
    info!("seed {}, tokens {:016x}", SEED, hash::of_ids(&ids));
    show_ids(&ids);
    // The working memory is free again: the picture goes there.
    let picture = Picture::decode(&data::codebook(&model)?, &ids, memory)?;
    info!("pixels {:016x}", hash::of_bytes(picture.rgb().iter().copied()));
    picture.show();
    picture.save(c"generate.ppm");
    Ok(())
}
