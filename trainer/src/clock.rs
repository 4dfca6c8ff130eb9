//! Where a step's time goes.

use std::time::Instant;

use burn::tensor::backend::Backend;

/// A part of a training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Batch, masks and kept squares, on the host.
    Data,
    /// The student's encoder.
    Student,
    /// Decoder, output head and reconstruction loss.
    Decoder,
    /// Echoes, the teacher, and the heads.
    Teacher,
    /// Gradients.
    Backward,
    /// Averages, clipping and AdamW.
    Optimizer,
}

impl Phase {
    /// All, in the order of a step.
    pub const ALL: [Phase; 6] =
        [Phase::Data, Phase::Student, Phase::Decoder, Phase::Teacher, Phase::Backward, Phase::Optimizer];

    /// Its name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Data => "data",
            Phase::Student => "student",
            Phase::Decoder => "decoder",
            Phase::Teacher => "teacher",
            Phase::Backward => "backward",
            Phase::Optimizer => "optimizer",
        }
    }
}

/// Adds up the time of each phase. It waits for the device at the end of each, so it is off in training.
#[derive(Clone, Debug)]
pub struct Clock {
    since: Option<Instant>,
    seconds: [f64; Phase::ALL.len()],
}

impl Clock {
    /// A clock that does nothing.
    pub fn off() -> Self {
        Self { since: None, seconds: Default::default() }
    }

    /// A clock that starts now.
    pub fn start() -> Self {
        Self { since: Some(Instant::now()), ..Self::off() }
    }

    /// The time since the last call (or the start) went to `phase`.
    pub fn lap<B: Backend>(&mut self, phase: Phase, device: &B::Device) {
        if let Some(since) = self.since {
            // A device that cannot be waited for shows its time in the next phase that reads from it.
            let _ = B::sync(device);
            let now = Instant::now();
            self.seconds[phase as usize] += (now - since).as_secs_f64();
            self.since = Some(now);
        }
    }

    /// Seconds that went to `phase`.
    pub fn seconds(&self, phase: Phase) -> f64 {
        self.seconds[phase as usize]
    }
}
