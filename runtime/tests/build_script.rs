//! The build script's choice of a microcontroller's kernels.

#[allow(dead_code)] // its `main`
#[path = "../build.rs"]
mod build;

use build::{choose, Extension::*};

const V8M: &str = "thumbv8m.main-none-eabihf";

#[test]
fn a_core_is_found_however_it_is_spelled() {
    for flags in [
        "-Ctarget-cpu=cortex-m33",
        "-C\x1ftarget-cpu=cortex-m33",
        "--codegen=target-cpu=cortex-m33",
        "--codegen\x1ftarget-cpu=cortex-m33",
        "-Ctarget_cpu=cortex-m33",
        "-Clink-arg=-Tlink.x\x1f-C\x1ftarget-cpu=cortex-m33\x1f-Clink-arg=--nmagic",
        "-Ctarget-cpu=cortex-m55\x1f-Ctarget-cpu=cortex-m33", // the last counts
        "-C\x1fdebuginfo=2\x1f--codegen=target-cpu=cortex-m33",
    ] {
        assert_eq!(choose(V8M, flags), Ok(Some(Dsp)), "{flags:?}");
    }
}

#[test]
fn every_core_has_its_kernels() {
    for (target, cpu, expected) in [
        (V8M, "cortex-m35p", Some(Dsp)),
        (V8M, "cortex-m52", Some(Helium)),
        (V8M, "cortex-m55", Some(Helium)),
        ("thumbv8m.main-none-eabi", "cortex-m85", Some(Helium)),
        ("thumbv7em-none-eabihf", "cortex-m7", Some(Dsp)),
        ("thumbv7m-none-eabi", "cortex-m3", None),
        ("thumbv8m.base-none-eabi", "cortex-m23", None),
        ("riscv32imac-unknown-none-elf", "generic", None),
        ("x86_64-unknown-linux-gnu", "native", None),
    ] {
        assert_eq!(choose(target, &format!("-Ctarget-cpu={cpu}")), Ok(expected), "{target} {cpu}");
    }
    assert_eq!(choose("thumbv7em-none-eabi", ""), Ok(Some(Dsp)));
    assert_eq!(choose("thumbv6m-none-eabi", ""), Ok(None));
}

#[test]
fn plain_loops_that_nobody_asked_for_are_said() {
    for (flags, found) in [
        ("", "without -Ctarget-cpu"),
        ("-Clink-arg=-Tlink.x", "without -Ctarget-cpu"),
        ("target-cpu=cortex-m33", "without -Ctarget-cpu"), // an argument of nothing
        ("-Clink-arg=target-cpu=cortex-m33", "without -Ctarget-cpu"),
        ("-Ctarget-cpu=generic", "with -Ctarget-cpu=generic"),
    ] {
        let warning = choose(V8M, flags).expect_err(flags);
        assert!(warning.contains(found) && warning.contains("-Ctarget-cpu=cortex-m33"), "{flags:?}: {warning}");
        assert!(!warning.contains('\n'), "cargo takes a line");
    }
    for flags in ["--cfg=sorcen_kernels=\"scalar\"", "--cfg\x1fsorcen_kernels=\"scalar\"\x1f-Ctarget-cpu=cortex-m55"] {
        assert_eq!(choose(V8M, flags), Ok(None));
    }
}
