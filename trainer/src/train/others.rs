//! The other replicas of a run on several devices: each in a thread of its own, told step by step what to do.

use std::sync::mpsc::{channel, Receiver, Sender};
use std::thread::Scope;

use super::{Batches, Start, TrainError};
use crate::clock::Clock;
use crate::config::Plan;
use crate::kernels::TrainBackend;
use crate::replicas::Peers;
use crate::step::Pretraining;

/// Their threads' ends: they stop when this is dropped.
pub struct Others(Vec<Sender<(Plan, u64)>>);

impl Others {
    /// Starts a replica for each of `places`; returns once all are ready.
    ///
    /// # Errors
    /// What the first of them meets that cannot start.
    pub fn begin<'scope, 'env: 'scope, B: TrainBackend>(
        scope: &'scope Scope<'scope, 'env>,
        start: &Start<'env>,
        places: impl Iterator<Item = Peers>,
    ) -> Result<Self, TrainError> {
        let (mut orders, mut ready) = (Vec::new(), Vec::new());
        for place in places {
            let ((give, take), (tell, hear)) = (channel(), channel());
            let start = *start;
            scope.spawn(move || {
                let _here = place.presence();
                let batches = Batches::new(start.dataset, start.options, place.rank());
                let replica = start.replica::<B>(place);
                let (training, started) = match replica {
                    Ok((training, _)) => (Some(training), Ok(())),
                    Err(error) => (None, Err(error)),
                };
                let told = tell.send(started);
                if let (Some(training), Ok(())) = (training, told) {
                    obey(training, batches, &take);
                }
            });
            orders.push(give);
            ready.push(hear);
        }
        // One that has ended without a word has panicked, which the scope passes on.
        ready.into_iter().try_for_each(|hear| hear.recv().unwrap_or(Ok(())))?;
        Ok(Self(orders))
    }

    /// Has all of them make step `step`.
    pub fn step(&self, plan: &Plan, step: u64) {
        for order in &self.0 {
            let _ = order.send((*plan, step)); // a replica that is gone breaks the step's first sum
        }
    }
}

fn obey<B: TrainBackend>(mut training: Pretraining<B>, mut batches: Batches<'_>, orders: &Receiver<(Plan, u64)>) {
    for (plan, step) in orders {
        let inputs = batches.of_step(&plan, step);
        training.step(&inputs, plan.momentum(step), plan.learning_rate(step), &mut Clock::off());
    }
}
