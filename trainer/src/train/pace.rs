//! Keeps a run by minutes to its time: how many steps it is enough for, as the speed becomes known.

use std::time::Instant;

use crate::config::{Duration, PretrainOptions};

/// The clock of a run by minutes.
pub struct Pace {
    started: Instant,
    /// When the time is over, in seconds from `started`.
    end: f64,
    /// When the speed was looked at last, and after which step.
    since: (f64, u64),
    /// When it will be next.
    next: f64,
}

impl Pace {
    /// The part of the time that is left after which the speed is looked at again: the later, the more often.
    const PART: f64 = 0.25;

    /// Of a run that has done `step` steps, in `spent_s` seconds of earlier sessions; `None` where it is not by minutes.
    pub fn new(options: &PretrainOptions, started: Instant, spent_s: f64, step: u64) -> Option<Self> {
        let Duration::Minutes(minutes) = options.duration else { return None };
        let (now, end) = (started.elapsed().as_secs_f64(), minutes * 60.0 - spent_s);
        let first = now + (end - now) * Self::PART * Self::PART;
        Some(Self { started, end, since: (now, step), next: first })
    }

    /// After step `step` (counted from 1), where it is time to look: how many steps the run can have in all. `wait` waits
    /// for the device.
    pub fn steps(&mut self, step: u64, wait: impl FnOnce()) -> Option<u64> {
        if self.started.elapsed().as_secs_f64() < self.next {
            return None;
        }
        wait();
        Some(self.steps_at(self.started.elapsed().as_secs_f64(), step))
    }

    fn steps_at(&mut self, now: f64, step: u64) -> u64 {
        let a_step = (now - self.since.0) / step.saturating_sub(self.since.1).max(1) as f64;
        let left = (self.end - now).max(0.0);
        self.since = (now, step);
        self.next = now + left * Self::PART;
        step + (left / a_step.max(1e-9)).round() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_ends_on_time_whatever_the_speed_turns_out_to_be() {
        /// Seconds that a step takes, by the time it is.
        type Speed = fn(f64) -> f64;
        let speeds: [(&str, Speed); 4] = [
            ("as planned", |_| 0.5),
            ("slower from the middle on", |now| if now < 60.0 { 0.5 } else { 1.3 }),
            ("faster", |now| if now < 20.0 { 0.5 } else { 0.1 }),
            ("slower and slower", |now| 0.1 + now / 100.0),
        ];
        for (name, seconds) in speeds {
            let mut pace = Pace { started: Instant::now(), end: 120.0, since: (0.0, 0), next: 7.5 };
            let (mut now, mut step, mut planned, mut looks) = (0.0, 0, 240, 0);
            while step < planned {
                now += seconds(now);
                step += 1;
                if now >= pace.next {
                    planned = pace.steps_at(now, step);
                    looks += 1;
                }
            }
            assert!((now - 120.0).abs() < 3.0, "{name}: {now} s");
            assert!(looks < 40, "{name}: {looks} looks");
        }
    }
}
