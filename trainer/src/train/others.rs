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
pub struct Others(Vec<Sender<Order>>);

/// What all replicas do together.
#[derive(Clone)]
enum Order {
    /// A step of a plan.
    Step(Plan, u64),
    /// [`Pretraining::drift`].
    Compare,
}

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
                let mut batches = Batches::new(start.dataset, start.options, place.rank());
                let replica = start.replica::<B>(place);
                let (training, started) = match replica {
                    Ok((training, ..)) => (Some(training), Ok(())),
                    Err(error) => (None, Err(error)),
                };
                let told = tell.send(started);
                if let (Some(mut training), Ok(())) = (training, told) {
                    obey(&mut training, &mut batches, &take);
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
        self.order(Order::Step(plan.clone(), step));
    }

    /// That all have the weights of `first`, which has done `step` steps.
    ///
    /// # Errors
    /// [`TrainError::Drift`] names those that have not.
    pub fn agree_with<B: TrainBackend>(&self, first: &Pretraining<B>, step: u64) -> Result<(), TrainError> {
        self.order(Order::Compare);
        let counts = first.drift();
        let apart: Vec<usize> = (0..counts.len()).filter(|&rank| counts[rank] != 0.0).collect();
        match apart.is_empty() {
            true => Ok(()),
            false => Err(TrainError::Drift { step, apart }),
        }
    }

    fn order(&self, order: Order) {
        for replica in &self.0 {
            let _ = replica.send(order.clone()); // one that is gone breaks the first sum
        }
    }
}

fn obey<B: TrainBackend>(training: &mut Pretraining<B>, batches: &mut Batches<'_>, orders: &Receiver<Order>) {
    for order in orders {
        match order {
            Order::Step(plan, step) => {
                let inputs = batches.of_step(&plan, step);
                training.step(&inputs, plan.momentum(step), plan.learning_rate(step), &mut Clock::off());
            }
            Order::Compare => drop(training.drift()),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::{Autodiff, Flex};

    use super::*;
    use crate::config::{Duration, ModelChoice, PretrainOptions};
    use crate::data::{StreamSpec, TokenDataset, TokenDatasetWriter};
    use crate::model::weight::Weights as _;

    type B = Autodiff<Flex>;

    /// Two replicas; the weights of the second become others before step 2.
    #[test]
    fn a_replica_that_drifts_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let spec = StreamSpec { name: "vqgan".into(), grid: 4, codebook_size: 16, tokenizer: None };
        let mut writer = TokenDatasetWriter::create(&data, vec!["a".into()], &[spec]).unwrap();
        for image in 0..16u16 {
            writer.push(0, &[&(0..16).map(|t| (image + t) % 16).collect::<Vec<_>>()]).unwrap();
        }
        writer.finish(None).unwrap();
        let dataset = TokenDataset::open(&data).unwrap();
        let mut options = PretrainOptions::new(&data, dir.path(), ModelChoice::Micro, Duration::Steps(4));
        (options.batch_size, options.devices) = (4, 2);
        let model = options.model.config(4, 16).unwrap();
        let plan = Plan::new(&options, &model, 4, 2);
        let start = Start { options: &options, model: &model, dataset: &dataset, earlier: None };

        let mut places = Peers::of_run(2);
        let (second, first) = (places.pop().unwrap(), places.pop().unwrap());
        std::thread::scope(|scope| {
            let (give, take) = channel();
            let start = &start;
            scope.spawn(move || {
                let _here = second.presence();
                let (mut training, ..) = start.replica::<B>(second).unwrap();
                let mut batches = Batches::new(start.dataset, start.options, 1);
                for order in &take {
                    if let Order::Step(_, 2) = order {
                        training.networks.visit_mut("", &mut |name, weight| {
                            if name == "norm.bias" {
                                weight.set(weight.get() + 1e-6);
                            }
                        });
                    }
                    let (once, orders) = channel();
                    once.send(order).unwrap();
                    drop(once);
                    obey(&mut training, &mut batches, &orders);
                }
            });
            let others = Others(vec![give]);
            let _here = first.presence();
            let (mut training, ..) = start.replica::<B>(first).unwrap();
            let mut batches = Batches::new(&dataset, &options, 0);
            let mut errors = Vec::new();
            for step in 0..4 {
                others.step(&plan, step);
                let inputs = batches.of_step(&plan, step);
                training.step(&inputs, plan.momentum(step), plan.learning_rate(step), &mut Clock::off());
                errors.push(others.agree_with(&training, step + 1).map_err(|error| error.to_string()));
            }
            assert_eq!(errors[..2], [Ok(()), Ok(())]);
            let message = errors[2].clone().unwrap_err();
            assert!(
                message.starts_with("step 3: the weights of replica 1 are no longer those of replica 0"),
                "{message}"
            );
        });
    }
}
