//! [`features`](features.rs) from a pack in int4: half the flash for weights, where generation is not wanted.
#![cfg_attr(not(unix), no_std)]
#![no_main]

use sorcen_firmware::{data, hash, info, CONFIG};
use sorcen_runtime::{
    scratch::{Plan, Scratch},
    Error, Model, Pack,
};

sorcen_firmware::main!(int4, memory: Scratch::bytes(&CONFIG, Plan::Features));

fn int4(memory: &mut [u8]) -> Result<(), Error> {
    let model = Model::new(Pack::new(data::int4_pack())?);
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
