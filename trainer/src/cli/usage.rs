//! Flags that clap's own parsers cannot judge, and how a run ends.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use sorcen_export::cli::output;

use crate::eval::ProbeError;
use crate::train::TrainError;

/// A flag's value is out of range, or does not fit the others: exit code 2, as for clap's own.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Usage(pub String);

/// The verb was asked to stop (Ctrl-C, SIGTERM) and did, before its end: exit code 130.
#[derive(Debug, thiserror::Error)]
#[error("stopped: {0}")]
pub(super) struct Stopped(pub String);

/// Returns [`Usage`] with this message where a condition does not hold.
macro_rules! usage_unless {
    ($holds:expr, $($message:tt)+) => {
        let holds: bool = $holds; // what is not a number does not hold
        if !holds {
            return Err($crate::cli::usage::Usage(format!($($message)+)).into());
        }
    };
}

/// That a file to write has the extension of what will be in it, in any case.
pub(super) fn expect_extension(flag: &str, path: Option<&Path>, extension: &str) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let fits = path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension));
    usage_unless!(fits, "{flag}: expected a name ending in .{extension}, found {}", path.display());
    Ok(())
}

/// What a shell makes of a program that Ctrl-C ended: 128 and the signal's number.
pub(super) const STOPPED: u8 = 130;

/// 0 ok, 1 failed, 2 usage, 130 stopped; an error is printed.
pub(super) fn exit_code(result: Result<()>) -> ExitCode {
    let Err(error) = output::finish(result) else { return ExitCode::SUCCESS };
    if let Some(stopped) = error.downcast_ref::<Stopped>() {
        let _ = writeln!(std::io::stderr(), "{stopped}");
        return ExitCode::from(STOPPED);
    }
    let _ = writeln!(std::io::stderr(), "error: {error:#}"); // nobody is left to tell
    let usage = error.is::<Usage>()
        || matches!(error.downcast_ref(), Some(TrainError::Option(_)))
        || matches!(error.downcast_ref(), Some(ProbeError::Option(_)));
    ExitCode::from(if usage { 2 } else { 1 })
}

/// Panics of what we call that are failures like others: `println!` where nothing can be written, and Burn where a
/// device cannot be had, which shows only at its first use, in a thread of its own.
pub(super) fn fail_without_panic() {
    const NO_CUDA: &str = "--device cuda: expected an NVIDIA GPU with its driver and CUDA, found none";
    const NO_WGPU: &str = "--device wgpu: expected a GPU with a Vulkan, Metal or DirectX 12 driver, found none";
    output::fail_without_panic();
    let others = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = match panic.payload_as_str().unwrap_or_default() {
            message if message.starts_with("Unable to dynamically load the ") => NO_CUDA, // cudarc
            message if message.starts_with("No possible adapter available") => NO_WGPU,   // cubecl-wgpu
            _ => return others(panic),
        };
        let _ = writeln!(std::io::stderr(), "error: {message}");
        std::process::exit(1);
    }));
}
