//! Tokens in, features out: what a classifier, a search or a few-shot head works on.
#![cfg_attr(not(unix), no_std)]
#![no_main]

use sorcen_firmware::{data, hash, info, CONFIG};
use sorcen_runtime::{
    scratch::{Plan, Scratch},
    Error,
};

sorcen_firmware::main!(features, memory: Scratch::bytes(&CONFIG, Plan::Features));

fn features(memory: &mut [u8]) -> Result<(), Error> {
    let model = sorcen_firmware::model()?;
    let mut scratch = Scratch::new(memory, &CONFIG, Plan::Features)?;
    let mut feature = [0.0; CONFIG.embed_dim];
    let ids = data::QUERIES.tokens(0)?;
    model.features(&ids, &mut scratch, &mut feature)?;
    let [a, b, c, ..] = feature;
    info!("{} numbers: {} {} {} ..., hash {:016x}", feature.len(), a, b, c, hash::of_floats(&feature));
    Ok(())
}
