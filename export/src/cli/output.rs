//! What becomes of what is printed where it cannot be: one way for both programs and all their verbs.
//!
//! Results go through `print!` and `println!`. Where nobody reads on (`… | head`), the process is ended quietly (see
//! `sigpipe` in `main`); where nothing can be written (a full disk behind `>`), it ends with a message and exit code 1.

use std::{
    io::{self, Write as _},
    process,
};

use anyhow::Context;

/// Lets a `println!` that cannot print end the process with exit code 1, where Rust would panic.
pub fn fail_without_panic() {
    let others = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| match panic.payload_as_str() {
        Some(message) if message.starts_with("failed printing to ") => {
            let _ = writeln!(io::stderr(), "error: {message}"); // it may be this that cannot be written to
            process::exit(1);
        }
        _ => others(panic),
    }));
}

/// The end of a verb: what is still in memory is printed, too.
///
/// # Errors
/// Those of the verb, or where it cannot be printed.
pub fn finish(result: anyhow::Result<()>) -> anyhow::Result<()> {
    result?;
    io::stdout().flush().context("failed printing to stdout")
}

/// Ends the process with what clap has to say: help and version (exit code 0), or what is wrong with the flags (2).
pub(super) fn end(error: &clap::Error) -> ! {
    let printed = error.print().and_then(|()| io::stdout().flush());
    match printed {
        Err(reason) if !error.use_stderr() => {
            let _ = writeln!(io::stderr(), "error: failed printing to stdout: {reason}");
            process::exit(1)
        }
        _ => process::exit(error.exit_code()),
    }
}
