//! How far a verb is: a bar on a terminal, a line now and then elsewhere.

use std::io::Write as _;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

/// One stage of a verb, of a known number of units.
pub struct Progress {
    bar: ProgressBar,
    stage: &'static str,
    total: u64,
    spoken: Instant,
}

impl Progress {
    /// How long nothing is said where standard error is no terminal.
    const EVERY: Duration = Duration::from_secs(5);

    /// A stage that begins now: `stage` is what is done, `unit` what is counted.
    pub fn new(stage: &'static str, total: u64, unit: &str) -> Self {
        let bar = super::progress(total, unit);
        bar.set_message(stage);
        Self { bar, stage, total, spoken: Instant::now() }
    }

    /// `done` units are; `told` says more where there is more to say.
    pub fn show(&mut self, done: u64, told: &str) {
        let message = if told.is_empty() { self.stage.to_string() } else { format!("{}: {told}", self.stage) };
        if self.bar.is_hidden() && self.spoken.elapsed() >= Self::EVERY {
            self.spoken = Instant::now();
            let _ = writeln!(std::io::stderr(), "{done} of {}, {message}", self.total);
            // a full disk is no reason to stop
        }
        self.bar.set_position(done);
        self.bar.set_message(message);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
