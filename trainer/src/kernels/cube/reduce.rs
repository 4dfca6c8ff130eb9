//! One number from all units of a cube; all units get it.

use burn_cubecl::cubecl::{self, prelude::*};

/// The sum of every unit's `value`. `units`, a power of two, are in the cube.
#[cube]
pub fn sum(value: f32, #[comptime] units: usize) -> f32 {
    halving(value, units, false)
}

/// The largest of every unit's `value`.
#[cube]
pub fn largest(value: f32, #[comptime] units: usize) -> f32 {
    halving(value, units, true)
}

#[cube]
fn halving(value: f32, #[comptime] units: usize, #[comptime] largest: bool) -> f32 {
    let mut shared = SharedMemory::<f32>::new(units);
    let unit = UNIT_POS_X as usize;
    shared[unit] = value;
    sync_cube();
    let mut half = comptime!(units / 2).runtime();
    while half > 0 {
        if unit < half {
            let other = shared[unit + half];
            if comptime!(largest) {
                shared[unit] = max(shared[unit], other);
            } else {
                shared[unit] += other;
            }
        }
        sync_cube();
        half /= 2;
    }
    let total = shared[0];
    sync_cube(); // the memory may be used again
    total
}
