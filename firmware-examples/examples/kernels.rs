//! Linear layers and attention of odd sizes: the device's kernels against the host's, by the bits of their results.
#![cfg_attr(not(unix), no_std)]
#![no_main]

use sorcen_firmware::{hash, info, ConstStaticCell};
use sorcen_runtime::{
    bench::{self, Layer, Values},
    pack::Aligned,
    quant::int4,
    rng::splitmix64,
    Error, Kernels,
};

sorcen_firmware::main!(kernels, memory: 0);

/// (rows, inputs, outputs): whole and partial blocks of every kernel, and less than one.
const SHAPES: [(usize, usize, usize); 15] = [
    (1, 1, 1),
    (2, 3, 2),
    (3, 16, 5),
    (2, 15, 16),
    (5, 17, 33),
    (1, 64, 49),
    (7, 16, 65),
    (16, 64, 48),
    (4, 70, 129),
    (13, 63, 47),
    (6, 100, 50),
    (3, 256, 35),
    (5, 32, 7),
    (4, 32, 3),
    (2, 272, 9),
];
/// The same of int4 weights.
const INT4_SHAPES: [(usize, usize, usize); 17] = [
    (1, 1, 1),
    (2, 3, 2),
    (3, 32, 5),
    (4, 31, 4),
    (5, 33, 33),
    (1, 64, 49),
    (7, 64, 65),
    (16, 64, 48),
    (4, 70, 129),
    (13, 63, 47),
    (6, 100, 50),
    (3, 256, 35),
    (9, 96, 18),
    (4, 32, 3),
    (2, 272, 9),
    (18, 30, 6),
    (1, 1000, 6),
];
/// (rows, pairs of tokens, width of a head)
const MIXTURES: [(usize, usize, usize); 7] =
    [(1, 1, 1), (2, 3, 3), (3, 33, 16), (5, 9, 17), (2, 4, 50), (1, 2, 4), (4, 7, 66)];
/// Largest rows × pairs, pairs × width, twice.
const P: usize = 200;
const V: usize = 1056;

/// Largest rows × inputs, inputs × outputs, rows × outputs, outputs.
const INPUTS: usize = 1024;
const WEIGHTS: usize = 9216;
const OUTPUTS: usize = 768;
const CHANNELS: usize = 129;
const QUANTISED: usize = 18 * Layer::row_bytes(64);
const PACKED: usize = int4::bytes(CHANNELS, 96);

static X: ConstStaticCell<[f32; INPUTS]> = ConstStaticCell::new([0.0; INPUTS]);
static W: ConstStaticCell<[i8; WEIGHTS]> = ConstStaticCell::new([0; WEIGHTS]);
static INT4: ConstStaticCell<Aligned<[u8; PACKED]>> = ConstStaticCell::new(Aligned([0; PACKED]));
static OUT: ConstStaticCell<[f32; OUTPUTS]> = ConstStaticCell::new([0.0; OUTPUTS]);
static ATTENTION: ConstStaticCell<Aligned<[i16; P + V]>> = ConstStaticCell::new(Aligned([0; P + V]));
static ROWS: ConstStaticCell<Aligned<[u8; QUANTISED]>> = ConstStaticCell::new(Aligned([0; QUANTISED]));

fn kernels(_: &mut [u8]) -> Result<(), Error> {
    let (Some(x), Some(w), Some(out), Some(quantised)) = (X.try_take(), W.try_take(), OUT.try_take(), ROWS.try_take())
    else {
        return Ok(()); // this runs once
    };
    for (i, x) in x.iter_mut().enumerate() {
        *x = (splitmix64(i as u64) % 2001) as f32 / 1000.0 - 1.0;
    }
    for (i, w) in w.iter_mut().enumerate() {
        // A third are extremes.
        *w = match splitmix64(i as u64) % 6 {
            0 => -127,
            1 => 127,
            random => ((random * 977 + i as u64) % 255) as i16 as i8,
        }
        .max(-127);
    }
    let scales: [f32; CHANNELS] = core::array::from_fn(|n| 0.01 + n as f32 * 0.001);
    let bias: [f32; CHANNELS] = core::array::from_fn(|n| n as f32 - 20.0);
    // Each with a bias, with none, and added to what that left.
    let shapes =
        SHAPES.into_iter().flat_map(|shape| [(shape, true, false), (shape, false, false), (shape, true, true)]);
    for ((rows, cols, outputs), with_bias, add) in shapes {
        let bias = with_bias.then_some(&bias[..outputs]);
        let weights = Values::Int8(&w[..cols * outputs]);
        let layer = Layer { weights, scales: &scales[..outputs], bias, cols, add };
        run(layer, rows, x, &mut quantised.0, out)?;
    }
    int4_layers(x, &mut quantised.0, out, &scales, &bias)?;
    let Some(attention) = ATTENTION.try_take() else { return Ok(()) };
    let (p, v) = attention.0.split_at_mut(P);
    p.iter_mut().enumerate().for_each(|(i, p)| *p = (splitmix64(i as u64) % 4096) as i16);
    v.iter_mut().enumerate().for_each(|(i, v)| *v = (splitmix64(1 << 32 | i as u64) % 255) as i16 - 127);
    for (rows, pairs, width) in MIXTURES {
        let (p, v, out) = (&p[..rows * 2 * pairs], &v[..pairs * 2 * width], &mut out[..rows * width]);
        bench::mix(Kernels::detect(), p, v, &scales[..rows], &scales[..width], out)?;
        info!("{} rows of {} pairs by {}: {:016x}", rows, pairs, width, hash::of_floats(out));
    }
    Ok(())
}

/// Runs a layer on some of the inputs.
fn run(layer: Layer<'_>, rows: usize, x: &[f32], quantised: &mut [u8], out: &mut [f32]) -> Result<(), Error> {
    let (cols, outputs) = (layer.cols, layer.scales.len());
    let quantised = &mut quantised[..rows * Layer::row_bytes(cols)];
    quantised.fill(0x55); // what the buffer held before must not matter
    let out = &mut out[..rows * outputs];
    layer.apply(Kernels::detect(), &x[..rows * cols], quantised, &mut [0.0; 18][..rows], out)?;
    let kind = if matches!(layer.weights, Values::Int8(_)) { "" } else { "int4 " };
    info!("{}{}x{} by {}x{}: {:016x}", kind, rows, cols, cols, outputs, hash::of_floats(out));
    Ok(())
}

/// Layers of int4 weights.
fn int4_layers(
    x: &mut [f32],
    quantised: &mut [u8],
    out: &mut [f32],
    scales: &[f32],
    bias: &[f32],
) -> Result<(), Error> {
    let Some(packed) = INT4.try_take() else { return Ok(()) };
    for (i, byte) in packed.0.iter_mut().enumerate() {
        // A third are extremes: as weights -8 and -1 or 7 and 0, as multipliers 0 and 255.
        *byte = match splitmix64(i as u64) % 6 {
            0 => 0x00,
            1 => 0xFF,
            2 => 0x88,
            3 => 0x77,
            random => (random * 977 + i as u64) as u8,
        };
    }
    for (rows, cols, outputs) in INT4_SHAPES {
        // At any address.
        let weights = Values::Int4(&packed.0[rows % 4..][..int4::bytes(outputs, cols)]);
        for add in [false, true] {
            let layer = Layer { weights, scales: &scales[..outputs], bias: Some(&bias[..outputs]), cols, add };
            run(layer, rows, x, quantised, out)?;
        }
    }
    // The largest sums: nothing cancels.
    x.fill(1.0);
    for (rows, cols, outputs) in [(2, 256, 9), (1, 1024, 6)] {
        let packed = &mut packed.0[..int4::bytes(outputs, cols)];
        let (weights, multipliers) = packed.split_at_mut(int4::weight_bytes(outputs, cols));
        weights.fill(0x88);
        multipliers.fill(0xFF);
        let (weights, scales, bias) = (Values::Int4(packed), &scales[..outputs], Some(&bias[..outputs]));
        run(Layer { weights, scales, bias, cols, add: false }, rows, x, quantised, out)?;
    }
    Ok(())
}
