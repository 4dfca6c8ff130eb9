//! Which instructions a microcontroller has: rustc does not tell, so they follow from target and `-Ctarget-cpu`.

use std::env::var;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(sorcen_dsp, sorcen_mve)");
    println!("cargo::rerun-if-env-changed=CARGO_ENCODED_RUSTFLAGS");
    println!("cargo::rerun-if-changed=build.rs");
    let target = var("TARGET").unwrap_or_default();
    let flags = var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default().replace("-C\x1f", "-C");
    let cpu = flags.split('\x1f').filter_map(|flag| flag.strip_prefix("-Ctarget-cpu=")).next_back().unwrap_or_default();
    // One set of kernels is in flash; the plain loops can be asked for.
    if flags.contains("sorcen_kernels=\"scalar\"") {
        return;
    }
    let is_v8m = target.starts_with("thumbv8m.main");
    // Helium is an option of these cores; a part without it needs the plain loops.
    if is_v8m && ["cortex-m55", "cortex-m85"].contains(&cpu) {
        println!("cargo::rustc-cfg=sorcen_mve");
    } else if target.starts_with("thumbv7em") || (is_v8m && ["cortex-m33", "cortex-m35p"].contains(&cpu)) {
        println!("cargo::rustc-cfg=sorcen_dsp");
    }
}
