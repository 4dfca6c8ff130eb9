//! Tokens in, features out, and the class that the pack's linear head sees in them.
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
    let ids = data::QUERIES.tokens(0)?;
    let mut encoded = model.encode(&ids, None, &mut scratch)?;
    let feature = encoded.feature()?;
    if let [a, b, c, ..] = feature {
        info!("{} numbers: {} {} {} ..., hash {:016x}", feature.len(), a, b, c, hash::of_floats(feature));
    }
    let head = model.pack().classifier().ok_or(Error::MissingSection { section: "classifier" })?;
    let found = head.classify(feature)?;
    info!("class {}: {}, probability {}", found.class, found.name.unwrap_or("without a name"), found.probability);
    Ok(())
}
