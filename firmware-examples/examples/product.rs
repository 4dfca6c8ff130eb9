//! Integer matrix products alone, to count the instructions of each: a common benchmark's, and those of the demo model.
#![cfg_attr(not(unix), no_std)]
#![no_main]

use sorcen_firmware::{hash, info, ConstStaticCell};
use sorcen_runtime::{
    bench::{Layer, Values},
    pack::Aligned,
    quant::int4,
    rng::splitmix64,
    Error, Kernels,
};

sorcen_firmware::main!(product, memory: 0);

struct Product {
    name: &'static str,
    rows: usize,
    cols: usize,
    outputs: usize,
    /// As many rows as the model multiplies together.
    at_once: usize,
    bias: bool,
    add: bool,
}

const PRODUCTS: [Product; 6] = [
    Product { name: "alone", rows: 65, cols: 128, outputs: 512, at_once: 65, bias: true, add: false },
    Product { name: "qkv: a head's", rows: 65, cols: 64, outputs: 16, at_once: 65, bias: true, add: false },
    Product { name: "scores: a head's", rows: 65, cols: 16, outputs: 65, at_once: 12, bias: false, add: false },
    Product { name: "proj", rows: 65, cols: 64, outputs: 64, at_once: 8, bias: true, add: true },
    Product { name: "fc1", rows: 65, cols: 64, outputs: 256, at_once: 8, bias: true, add: false },
    Product { name: "fc2", rows: 65, cols: 256, outputs: 64, at_once: 8, bias: true, add: true },
];

/// The largest of each.
const WEIGHTS: usize = 128 * 512;
const INPUTS: usize = 65 * 256;
const QUANTISED: usize = 65 * Layer::row_bytes(128);
const ROWS: usize = 65;
const OUTPUTS: usize = 512;

static W: Aligned<[i8; WEIGHTS]> = {
    let mut weights = [0; WEIGHTS];
    let mut i = 0;
    while i < weights.len() {
        weights[i] = ((splitmix64(i as u64) % 255) as i16 - 127) as i8;
        i += 1;
    }
    Aligned(weights)
};
/// Weights and multipliers.
static INT4: Aligned<[u8; int4::bytes(OUTPUTS, 128)]> = {
    let mut packed = [0; _];
    let mut i = 0;
    while i < packed.len() {
        packed[i] = splitmix64(i as u64) as u8;
        i += 1;
    }
    Aligned(packed)
};
static SCALES: [f32; OUTPUTS] = [0.01; OUTPUTS];
static BIAS: [f32; OUTPUTS] = [0.5; OUTPUTS];

static X: ConstStaticCell<[f32; INPUTS]> = ConstStaticCell::new([0.0; INPUTS]);
static ROWS_OF_BYTES: ConstStaticCell<Aligned<[u8; QUANTISED]>> = ConstStaticCell::new(Aligned([0; QUANTISED]));
static OUT: ConstStaticCell<[f32; ROWS * OUTPUTS]> = ConstStaticCell::new([0.0; ROWS * OUTPUTS]);

/// Its calls divide the counts.
#[allow(unsafe_code)] // a symbol that the counting tool looks for
#[no_mangle]
#[inline(never)]
extern "C" fn mark() {
    core::hint::black_box(());
}

fn product(_: &mut [u8]) -> Result<(), Error> {
    let (Some(x), Some(quantised), Some(out)) = (X.try_take(), ROWS_OF_BYTES.try_take(), OUT.try_take()) else {
        return Ok(()); // this runs once
    };
    for (i, x) in x.iter_mut().enumerate() {
        *x = (splitmix64(1 << 32 | i as u64) % 2001) as f32 / 1000.0 - 1.0;
    }
    mark();
    for product in PRODUCTS {
        let Product { name, rows, cols, outputs, .. } = product;
        run(product, Values::Int8(&W.0[..outputs * cols]), x, &mut quantised.0, out)?;
        info!("{}x{}x{} {}: hash {:016x}", rows, cols, outputs, name, hash::of_floats(&out[..rows * outputs]));
    }
    for product in PRODUCTS.into_iter().filter(|product| product.bias) {
        let Product { name, rows, cols, outputs, .. } = product;
        run(product, Values::Int4(&INT4.0[..int4::bytes(outputs, cols)]), x, &mut quantised.0, out)?;
        info!("{}x{}x{} int4 {}: hash {:016x}", rows, cols, outputs, name, hash::of_floats(&out[..rows * outputs]));
    }
    Ok(())
}

fn run(product: Product, weights: Values<'_>, x: &[f32], quantised: &mut [u8], out: &mut [f32]) -> Result<(), Error> {
    let Product { rows, cols, outputs, at_once, bias, add, .. } = product;
    let layer = Layer { weights, scales: &SCALES[..outputs], bias: bias.then_some(&BIAS[..outputs]), cols, add };
    let (x, out) = (&x[..rows * cols], &mut out[..rows * outputs]);
    for (x, out) in x.chunks(at_once * cols).zip(out.chunks_mut(at_once * outputs)) {
        let rows = x.len() / cols;
        let quantised = &mut quantised[..rows * Layer::row_bytes(cols)];
        layer.apply(Kernels::detect(), x, quantised, &mut [0.0; ROWS][..rows], out)?;
    }
    mark();
    Ok(())
}
