//! What was asked for and will not come in a run: said at its start.

use std::ops::Range;

use crate::config::{Plan, PretrainOptions};
use crate::step::Method;

/// A sentence for each interval that is longer than the run of `steps`, and for echoes that are never drawn.
pub fn notes(options: &PretrainOptions, plan: &Plan, steps: Range<u64>) -> Vec<String> {
    if steps.is_empty() {
        return Vec::new(); // a finished run
    }
    let (per_epoch, watch) = (plan.steps_per_epoch, &options.watch);
    // Whether a multiple of `every` is reached.
    let comes = |every: u64| every == 0 || steps.end / every > steps.start / every;
    let mut notes = Vec::new();
    let epochs = steps.end as f64 / per_epoch as f64;
    for (flag, every) in
        [("picture_every_epochs", watch.picture_every_epochs), ("knn_every_epochs", watch.knn_every_epochs)]
    {
        if !comes(every.saturating_mul(per_epoch)) {
            notes.push(format!("--{flag} {every}: never comes, the run ends after {epochs:.1} epochs"));
        }
    }
    let (keep, save) = (options.keep.every, options.save_every);
    if !(comes(least_common_multiple(keep, save)) || keep != 0 && steps.end.is_multiple_of(keep)) {
        let end = steps.end;
        notes.push(format!(
            "--keep_every {keep}: none is kept for it, the run ends after {end} steps and saves every {save}"
        ));
    }
    let defaults = PretrainOptions::new(&options.data, &options.output_dir, options.model.clone(), options.duration);
    for (flag, every, default, what) in [
        ("save_every", save, defaults.save_every, "the only checkpoint is"),
        ("print_freq", options.print_freq, defaults.print_freq, "the log's lines are those of checkpoints and"),
    ] {
        if every != default && !comes(every) {
            notes.push(format!("--{flag} {every}: never comes, {what} that of the end, after {} steps", steps.end));
        }
    }
    if options.losses.method == Method::Sorcen && plan.echo_steps(Method::Sorcen) == 0 {
        let last = plan.echo_warmup_epochs;
        notes.push(format!(
            "no echo will be drawn: the echo warm-up is epochs 0 to {last}, and the run ends after {epochs:.1}"
        ));
    }
    notes
}

fn least_common_multiple(a: u64, b: u64) -> u64 {
    let (mut divisor, mut rest) = (a, b);
    while rest != 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    (a / divisor.max(1)).saturating_mul(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Duration, ModelChoice};
    use sorcen_runtime::ModelConfig;

    #[test]
    fn what_never_comes_is_named_and_nothing_else() {
        let told = |edit: fn(&mut PretrainOptions)| {
            let duration = Duration::Steps(90);
            let mut options = PretrainOptions::new("data".as_ref(), "out".as_ref(), ModelChoice::Micro, duration);
            options.echo_warmup_epochs = Some(2);
            edit(&mut options);
            let plan = Plan::new(&options, &ModelConfig::micro(4, 16), 90, 10); // 9 epochs
            notes(&options, &plan, 0..90).join("\n")
        };
        assert_eq!(told(|_| ()), "", "defaults are no wishes");
        assert_eq!(told(|o| (o.watch.knn_every_epochs, o.watch.picture_every_epochs) = (9, 3)), "");
        assert_eq!(
            told(|o| (o.watch.knn_every_epochs, o.watch.picture_every_epochs) = (10, 11)),
            "--picture_every_epochs 11: never comes, the run ends after 9.0 epochs\n\
             --knn_every_epochs 10: never comes, the run ends after 9.0 epochs"
        );
        assert_eq!(told(|o| (o.keep.every, o.save_every) = (20, 10)), "");
        assert_eq!(told(|o| (o.keep.every, o.save_every) = (45, 20)), "", "the last is a multiple");
        assert!(told(|o| (o.keep.every, o.save_every) = (40, 25)).starts_with("--keep_every 40: none is kept"));
        assert!(told(|o| o.save_every = 100).starts_with("--save_every 100: never comes"));
        assert!(told(|o| o.print_freq = 100).starts_with("--print_freq 100: never comes"));
        assert!(told(|o| o.echo_warmup_epochs = Some(8)).starts_with("no echo will be drawn: the echo warm-up is"));
        assert_eq!(told(|o| (o.echo_warmup_epochs, o.losses.method) = (Some(8), Method::Mage)), "");
    }
}
