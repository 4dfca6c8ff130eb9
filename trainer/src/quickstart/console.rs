//! What a person sees while a run goes on: numbered stages, bars, times.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

use super::report::table;

/// Numbers and times the stages of a run.
pub struct Console<'a> {
    total: usize,
    stop: &'a AtomicBool,
    started: Instant,
    times: Vec<(String, Duration)>,
}

impl<'a> Console<'a> {
    /// A run of `total` stages that starts now; no further one begins once `stop` is set.
    pub fn new(total: usize, stop: &'a AtomicBool) -> Self {
        Self { total, stop, started: Instant::now(), times: Vec::new() }
    }

    /// Runs one stage.
    ///
    /// # Errors
    /// The stage's, with its name; that the run was stopped.
    pub fn stage<T>(&mut self, title: &str, body: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("\n[{}/{}] {title}", self.times.len() + 1, self.total);
        let start = Instant::now();
        let value = body().with_context(|| format!("stage `{title}`"))?;
        self.times.push((title.to_string(), start.elapsed()));
        ensure!(!self.stop.load(Ordering::Relaxed), "after stage `{title}`; what it wrote is kept");
        Ok(value)
    }

    /// Seconds of each stage and of all, as Markdown.
    pub fn table(&self) -> String {
        let all = ("all".to_string(), self.started.elapsed());
        let row = |(title, time): (&String, &Duration)| vec![title.clone(), format!("{:.1}", time.as_secs_f64())];
        let rows = self.times.iter().chain([&all]).map(|(title, time)| row((title, time))).collect::<Vec<_>>();
        table(&["stage", "seconds"], &rows)
    }
}

/// A progress bar; its length is set by the work.
pub fn bar(unit: &str) -> ProgressBar {
    let template = format!("  {{bar:32}} {{pos}}/{{len}} {unit}, {{eta}} left {{msg}}");
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}
