//! The fuzz targets' bodies on their corpus and on inputs of a fixed seed; `runtime/fuzz` has the targets themselves.
//! `SORCEN_FUZZ_RUNS=1000000` in the environment makes more of the inputs.

use std::{fs, path::Path};

use sorcen_runtime::rng::{Rng, Stream};

#[path = "../fuzz/bodies.rs"]
mod bodies;

/// The inputs that are checked in for a target.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect()
}

/// Random inputs of up to `len` bytes, so many unless the environment says otherwise.
fn random(count: u64, len: u64) -> impl Iterator<Item = Vec<u8>> {
    let wanted = std::env::var("SORCEN_FUZZ_RUNS").ok();
    (0..wanted.map_or(count, |runs| runs.parse().expect("SORCEN_FUZZ_RUNS is a number"))).map(move |i| {
        let rng = Rng::new(2, Stream::Init, i);
        (0..1 + rng.bits(0) % len).map(|at| rng.bits(1 + at) as u8).collect()
    })
}

#[test]
fn hostile_packs() {
    let (mut accepted, mut refused) = (0, 0);
    for input in corpus("hostile_pack").into_iter().chain(random(6000, 24)) {
        if bodies::hostile_pack(&input) {
            accepted += 1;
        } else {
            refused += 1;
        }
    }
    println!("{accepted} packs accepted, {refused} refused");
    assert!(accepted > 500 && refused > 500, "{accepted} packs accepted, {refused} refused");
}

#[test]
fn round_trips() {
    for input in corpus("round_trip").into_iter().chain(random(200, 200)) {
        bodies::round_trip(&input);
    }
}
