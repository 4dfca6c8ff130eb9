//! Which instructions a microcontroller has: rustc does not tell, so they follow from target and `-Ctarget-cpu`.
//! (`tests/build_script.rs` has this file as a module.)

use std::env::var;

/// Kernels that a program is compiled with instead of plain loops.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Extension {
    /// `smlad` and its kin, on Cortex-M4, M7, M33, M35P.
    Dsp,
    /// Vectors (MVE), on Cortex-M52, M55, M85.
    Helium,
}

fn main() {
    println!("cargo::rustc-check-cfg=cfg(sorcen_dsp, sorcen_mve)");
    println!("cargo::rerun-if-env-changed=CARGO_ENCODED_RUSTFLAGS");
    println!("cargo::rerun-if-changed=build.rs");
    match choose(&var("TARGET").unwrap_or_default(), &var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default()) {
        Ok(Some(Extension::Helium)) => println!("cargo::rustc-cfg=sorcen_mve"),
        Ok(Some(Extension::Dsp)) => println!("cargo::rustc-cfg=sorcen_dsp"),
        Ok(None) => {}
        Err(warning) => println!("cargo::warning={warning}"),
    }
}

/// What a microcontroller's kernels may use; where plain loops were hardly meant, a warning that says so.
pub fn choose(target: &str, encoded_flags: &str) -> Result<Option<Extension>, String> {
    // One set of kernels is in flash; the plain loops can be asked for.
    if encoded_flags.contains("sorcen_kernels=\"scalar\"") {
        return Ok(None);
    }
    if target.starts_with("thumbv7em") {
        return Ok(Some(Extension::Dsp));
    }
    if !target.starts_with("thumbv8m.main") {
        return Ok(None);
    }
    // Options of their cores, that almost every part has. One without them needs the plain loops.
    match target_cpu(encoded_flags) {
        Some("cortex-m33" | "cortex-m35p") => Ok(Some(Extension::Dsp)),
        Some("cortex-m52" | "cortex-m55" | "cortex-m85") => Ok(Some(Extension::Helium)),
        found => {
            let found = found.map_or("without -Ctarget-cpu".into(), |cpu| format!("with -Ctarget-cpu={cpu}"));
            Err(format!(
                "{target} {found}: the model will run on plain loops, several times slower than this chip can. Most \
                 chips of this target have instructions that we have kernels for; name the core in the target's \
                 rustflags: \"-Ctarget-cpu=cortex-m33\" (RP2350, nRF5340, …; or cortex-m35p, cortex-m52, cortex-m55, \
                 cortex-m85). For a part without DSP and Helium: --cfg=sorcen_kernels=\"scalar\", and this is silent"
            ))
        }
    }
}

/// The last `target-cpu`, in any spelling that rustc takes, of flags as cargo hands them on.
fn target_cpu(encoded_flags: &str) -> Option<&str> {
    let mut flags = encoded_flags.split('\x1f');
    let mut cpu = None;
    while let Some(flag) = flags.next() {
        let option = match flag {
            "-C" | "--codegen" => flags.next(),
            _ => flag.strip_prefix("--codegen=").or_else(|| flag.strip_prefix("-C")),
        };
        let named = option.and_then(|option| option.split_once('='));
        if let Some((_, value)) = named.filter(|(name, _)| name.replace('_', "-") == "target-cpu") {
            cpu = Some(value);
        }
    }
    cpu
}
