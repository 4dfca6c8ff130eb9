//! Three classes learnt on the device from five pictures each, then told apart in pictures it has not seen.
#![cfg_attr(not(unix), no_std)]
#![no_main]

use sorcen_firmware::{
    data::{CLASS_NAMES, QUERIES, SUPPORT},
    hash, info, CONFIG, TOKENS,
};
use sorcen_runtime::{
    head::Prototypes,
    scratch::{Plan, Scratch},
    Error,
};

sorcen_firmware::main!(fewshot, memory: Scratch::bytes(&CONFIG, Plan::Features));

const CLASSES: usize = CLASS_NAMES.len();
/// A picture whose cosine to every class is below this is none of them.
const THRESHOLD: f32 = 0.3;

fn fewshot(memory: &mut [u8]) -> Result<(), Error> {
    let model = sorcen_firmware::model()?;
    let mut scratch = Scratch::new(memory, &CONFIG, Plan::Features)?;
    let mut feature_of = |ids: &[u16; TOKENS]| -> Result<[f32; CONFIG.embed_dim], Error> {
        let mut feature = [0.0; CONFIG.embed_dim];
        model.features(ids, &mut scratch, &mut feature)?;
        Ok(feature)
    };

    let mut floats = [0.0; Prototypes::floats(CLASSES, CONFIG.embed_dim)];
    let mut head = Prototypes::new(&mut floats, CONFIG.embed_dim)?;
    for (class, ids) in SUPPORT.iter() {
        head.learn(class, &feature_of(&ids?)?)?;
    }
    let mut stored = [0; Prototypes::stored_bytes(CLASSES, CONFIG.embed_dim)];
    head.store(&mut stored)?; // what would be written to flash, to know the classes after a restart
    info!("{} classes learnt, {} bytes, hash {:016x}", head.classes(), stored.len(), hash::of_bytes(stored));

    let mut right = 0;
    for (class, ids) in QUERIES.iter() {
        let found = head.classify(&feature_of(&ids?)?, THRESHOLD)?;
        let is = CLASS_NAMES.get(class).unwrap_or(&"?");
        match found.and_then(|found| Some((found, CLASS_NAMES.get(found.class)?))) {
            Some((found, name)) => info!("a {} is a {}, cosine {}", is, name, found.cosine),
            None => info!("a {} is none of them", is),
        }
        right += usize::from(found.is_some_and(|found| found.class == class));
    }
    info!("{} of {} right", right, QUERIES.count());
    Ok(())
}
