//! One linear layer alone, 65×128 times 128×512 in int8: what its instructions are counted with.
#![cfg_attr(not(unix), no_std)]
#![no_main]

use sorcen_firmware::{hash, info, ConstStaticCell};
use sorcen_runtime::{bench::Layer, pack::Aligned, rng::splitmix64, Error, Kernels};

sorcen_firmware::main!(product, memory: 0);

const ROWS: usize = 65;
const COLS: usize = 128;
const OUTPUTS: usize = 512;

static WEIGHTS: Aligned<[i8; OUTPUTS * COLS]> = {
    let mut weights = [0; OUTPUTS * COLS];
    let mut i = 0;
    while i < weights.len() {
        weights[i] = ((splitmix64(i as u64) % 255) as i16 - 127) as i8;
        i += 1;
    }
    Aligned(weights)
};
static SCALES: [f32; OUTPUTS] = [0.01; OUTPUTS];
static BIAS: [f32; OUTPUTS] = [0.5; OUTPUTS];

/// `[ROWS, COLS]`
static X: ConstStaticCell<[f32; ROWS * COLS]> = ConstStaticCell::new([0.0; ROWS * COLS]);
static QUANTISED: ConstStaticCell<Aligned<[u8; ROWS * Layer::row_bytes(COLS)]>> =
    ConstStaticCell::new(Aligned([0; ROWS * Layer::row_bytes(COLS)]));
/// `[ROWS, OUTPUTS]`
static OUT: ConstStaticCell<[f32; ROWS * OUTPUTS]> = ConstStaticCell::new([0.0; ROWS * OUTPUTS]);

fn product(_: &mut [u8]) -> Result<(), Error> {
    let (Some(x), Some(quantised), Some(out)) = (X.try_take(), QUANTISED.try_take(), OUT.try_take()) else {
        return Ok(()); // this runs once
    };
    for (i, x) in x.iter_mut().enumerate() {
        *x = (splitmix64(1 << 32 | i as u64) % 2001) as f32 / 1000.0 - 1.0;
    }
    let layer = Layer { weights: &WEIGHTS.0, scales: &SCALES, bias: &BIAS, cols: COLS };
    layer.apply(Kernels::detect(), x, &mut quantised.0, &mut [0.0; ROWS], out)?;
    info!("{} outputs, hash {:016x}", out.len(), hash::of_floats(out));
    Ok(())
}
