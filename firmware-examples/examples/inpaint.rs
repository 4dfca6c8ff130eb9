//! The lower half of a picture is lost: the model makes it up.
#![cfg_attr(not(unix), no_std)]
#![no_main]

use sorcen_firmware::{data, hash, info, picture::Picture, CONFIG};
use sorcen_runtime::{
    generate::{generate, Options},
    sampler::Seeded,
    scratch::{Plan, Scratch},
    Error,
};

sorcen_firmware::main!(inpaint, memory: Scratch::bytes(&CONFIG, Plan::Generate));

const PICTURE: usize = 0;
const SEED: u64 = 1;
/// The temperatures that suit the demo model, as `sorcen demo` draws with.
const OPTIONS: Options = Options { temperature: 12.0, token_temperature: 0.8, ..Options::PUBLISHED };

fn inpaint(memory: &mut [u8]) -> Result<(), Error> {
    let model = sorcen_firmware::model()?;
    let codebook = data::codebook(&model)?;
    let given = data::QUERIES.tokens(PICTURE)?;
    info!("the picture");
    Picture::decode(&codebook, &given, memory)?.show();

    let mut ids = given;
    let (_, lower) = ids.split_at_mut(given.len() / 2);
    lower.fill(CONFIG.mask_token_id as u16);
    let mut scratch = Scratch::new(memory, &CONFIG, Plan::Generate)?;
    generate(&model, &mut ids, &OPTIONS, &mut Seeded(SEED), &mut scratch, |_| {})?;
    let kept = ids.iter().zip(&given).take_while(|(new, old)| new == old).count();
    info!("seed {}, tokens {:016x}, the first {} as given", SEED, hash::of_ids(&ids), kept);
    let picture = Picture::decode(&codebook, &ids, memory)?;
    picture.show();
    picture.save(c"inpaint.ppm");
    Ok(())
}
