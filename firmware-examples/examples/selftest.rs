//! Does this device compute what the machine that wrote the pack computed? A check for the field.
#![cfg_attr(not(unix), no_std)]
#![no_main]

use sorcen_firmware::{info, CONFIG};
use sorcen_runtime::{
    scratch::{Plan, Scratch},
    Error,
};

sorcen_firmware::main!(selftest, memory: Scratch::bytes(&CONFIG, Plan::Generate));

fn selftest(memory: &mut [u8]) -> Result<(), Error> {
    let model = sorcen_firmware::model()?; // has checked every checksum
    let mut scratch = Scratch::new(memory, &CONFIG, Plan::Generate)?;
    let passed = model.self_test(&mut scratch)?;
    info!("self-test passed: {} golden inputs, encoder and decoder: {}", passed.inputs, passed.decoder);
    Ok(())
}
