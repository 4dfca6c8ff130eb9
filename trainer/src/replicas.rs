//! Replicas of a run: one a device, each in a thread of its own with its own batches, all with the same weights.
//!
//! They meet in sums alone: gathered rows are a sum of rows beside zeros, mean gradients one of all gradients. What
//! each computes is what a process of the official code computes, gradients of gathered rows included (a gather's
//! backward sums over processes, `DistributedDataParallel` takes the mean).

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use burn::tensor::backend::{Backend, DeviceOps};
use burn::tensor::{Tensor, TensorData};

use crate::kernels::Kernels;

/// A replica's place among those of its run, and the way to exchange numbers with them.
#[derive(Clone, Debug)]
pub struct Peers {
    rank: usize,
    meeting: Arc<Meeting>,
}

/// Where replicas wait for each other.
#[derive(Debug)]
struct Meeting {
    size: usize,
    round: Mutex<Round>,
    changed: Condvar,
}

/// A sum on its way.
#[derive(Debug)]
struct Round {
    /// What each has given.
    given: Vec<Option<Vec<f32>>>,
    /// The sum, and how many have yet to take it.
    sum: Option<(Arc<Vec<f32>>, usize)>,
    /// One has gone: nobody shall wait for it.
    broken: bool,
}

impl Default for Peers {
    fn default() -> Self {
        Self::of_run(1).remove(0)
    }
}

impl Peers {
    /// The places of `size` replicas, by rank.
    pub fn of_run(size: usize) -> Vec<Self> {
        let round = Round { given: vec![None; size], sum: None, broken: false };
        let meeting = Arc::new(Meeting { size, round: Mutex::new(round), changed: Condvar::new() });
        (0..size).map(|rank| Self { rank, meeting: meeting.clone() }).collect()
    }

    /// From 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many there are.
    pub fn size(&self) -> usize {
        self.meeting.size
    }

    /// The device of this replica: the backend's device of its number, where the backend has several.
    pub fn device<B: Backend>(&self) -> B::Device {
        device::<B>(self.rank)
    }

    /// The rows `[B, n]` of all replicas in order of rank, `[R*B, n]`. All call it, with as many rows.
    pub fn gather<B: Kernels>(&self, mine: Tensor<B, 2>) -> Tensor<B, 2> {
        let [rows, columns] = mine.dims();
        let device = mine.device();
        let zeros = |ranks: usize| Tensor::zeros([ranks * rows, columns], &device);
        let (before, after) = (self.rank, self.size() - 1 - self.rank);
        let parts = [(before > 0).then(|| zeros(before)), Some(mine), (after > 0).then(|| zeros(after))];
        let parts = Tensor::cat(parts.into_iter().flatten().collect(), 0);
        self.sum(parts)
    }

    /// This replica's rows of gathered ones.
    pub fn own<B: Backend>(&self, gathered: Tensor<B, 2>) -> Tensor<B, 2> {
        let [rows, columns] = gathered.dims();
        let rows = rows / self.size();
        gathered.slice([self.rank * rows..(self.rank + 1) * rows, 0..columns])
    }

    /// The sum of what all replicas give, the same bits for each. All call it, with the same shape.
    pub fn sum<B: Kernels, const D: usize>(&self, mine: Tensor<B, D>) -> Tensor<B, D> {
        if self.size() == 1 {
            return mine;
        }
        let shape = mine.shape();
        let count = shape.num_elements();
        B::sum_over_replicas(mine.reshape([count]), self).reshape(shape)
    }

    /// What the first replica gives, the same bits for each. All call it, with the same shape.
    pub fn first<B: Kernels, const D: usize>(&self, mine: Tensor<B, D>) -> Tensor<B, D> {
        match self.rank {
            0 => self.sum(mine),
            _ => self.sum(mine.zeros_like()),
        }
    }

    /// For each replica, in how many of its numbers it differs from the first one. All call it, with the same shapes.
    pub fn differences<B: Kernels>(&self, mine: Vec<Tensor<B, 2>>) -> Vec<f32> {
        if self.size() == 1 || mine.is_empty() {
            return vec![0.0; self.size()];
        }
        let mine = flat(mine);
        let count = mine.clone().not_equal(self.first(mine)).float().sum();
        self.gather(count.unsqueeze::<2>()).into_data().convert::<f32>().to_vec().unwrap_or_default()
    }

    /// The mean of what all replicas give, tensor by tensor: one sum of everything.
    pub fn mean<B: Kernels>(&self, mine: Vec<Tensor<B, 2>>) -> Vec<Tensor<B, 2>> {
        if self.size() == 1 || mine.is_empty() {
            return mine;
        }
        let dims: Vec<[usize; 2]> = mine.iter().map(Tensor::dims).collect();
        let mean = self.sum(flat(mine)) / self.size() as f64;
        let mut at = 0;
        let part = |[rows, columns]: [usize; 2]| {
            let first = at;
            at += rows * columns;
            mean.clone().narrow(0, first, rows * columns).reshape([rows, columns])
        };
        dims.into_iter().map(part).collect()
    }

    /// The sum by way of the host's memory, in order of rank.
    pub fn sum_on_host<B: Backend>(&self, mine: Tensor<B, 1>) -> Tensor<B, 1> {
        let device = mine.device();
        let values = mine.into_data().convert::<f32>().to_vec::<f32>().unwrap_or_default();
        let count = values.len();
        let sum = self.meet(values);
        Tensor::from_data(TensorData::new(sum.to_vec(), [count]), &device)
    }

    fn meet(&self, mine: Vec<f32>) -> Arc<Vec<f32>> {
        let Meeting { size, changed, .. } = &*self.meeting;
        let wait = |round| changed.wait(round).unwrap_or_else(PoisonError::into_inner);
        let mut round = self.round();
        while round.sum.is_some() {
            round = wait(round); // for those who have yet to take the last one
        }
        round.given[self.rank] = Some(mine);
        if round.given.iter().all(Option::is_some) {
            let mut given = round.given.iter_mut().filter_map(Option::take);
            let mut sum = given.next().unwrap_or_default();
            for other in given {
                sum.iter_mut().zip(&other).for_each(|(sum, other)| *sum += other);
            }
            round.sum = Some((Arc::new(sum), *size));
            changed.notify_all();
        }
        loop {
            if let Some((sum, left)) = &mut round.sum {
                let sum = sum.clone();
                *left -= 1;
                if *left == 0 {
                    round.sum = None;
                    changed.notify_all();
                }
                return sum;
            }
            assert!(!round.broken, "another replica has stopped");
            round = wait(round);
        }
    }

    fn round(&self) -> MutexGuard<'_, Round> {
        self.meeting.round.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be held by a replica's thread: if it panics, the others do not wait for it.
    pub fn presence(&self) -> Presence {
        Presence(self.clone())
    }
}

/// See [`Peers::presence`].
#[derive(Debug)]
pub struct Presence(Peers);

impl Drop for Presence {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.round().broken = true;
            self.0.meeting.changed.notify_all();
        }
    }
}

/// All numbers of `tensors`, one after another.
fn flat<B: Backend>(tensors: Vec<Tensor<B, 2>>) -> Tensor<B, 1> {
    let flat = tensors.into_iter().map(|tensor| {
        let [rows, columns] = tensor.dims();
        tensor.reshape([rows * columns])
    });
    Tensor::cat(flat.collect(), 0)
}

/// The backend's device number `rank`; on backends with one device, that one.
pub fn device<B: Backend>(rank: usize) -> B::Device {
    use burn::tensor::backend::{Device as _, DeviceId};
    let first = B::Device::default().id();
    B::Device::from_id(DeviceId::new(first.type_id, first.index_id + rank as u16))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::Flex;

    #[test]
    fn sums_and_gathered_rows_are_the_same_for_all() {
        let numbers =
            |rank: usize| Tensor::<Flex, 2>::from_floats([[rank as f32, 0.1], [0.2, 0.3]], &Default::default());
        let meet = |peers: Peers| {
            let _here = peers.presence();
            (0..50)
                .map(|_| {
                    (peers.gather(numbers(peers.rank())).into_data(), peers.sum(numbers(peers.rank())).into_data())
                })
                .next_back()
                .unwrap()
        };
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = Peers::of_run(3).into_iter().map(|peers| scope.spawn(move || meet(peers))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (gathered, sum) in &results {
            let rows = |rank: f32| [rank, 0.1, 0.2, 0.3];
            assert_eq!(gathered.to_vec::<f32>().unwrap(), [rows(0.0), rows(1.0), rows(2.0)].concat());
            assert_eq!(sum.to_vec::<f32>().unwrap(), [3.0, 0.1 + 0.1 + 0.1, 0.2 + 0.2 + 0.2, 0.3 + 0.3 + 0.3]);
        }
        let [first, second] = [0, 1].map(|rank| Peers::of_run(2)[rank].own(numbers(7)).into_data());
        assert_eq!((first.to_vec::<f32>().unwrap(), second.to_vec::<f32>().unwrap()), (vec![7.0, 0.1], vec![0.2, 0.3]));
    }

    #[test]
    fn nobody_waits_for_one_that_is_gone() {
        let mut peers = Peers::of_run(2);
        let (other, mine) = (peers.remove(1), peers.remove(0));
        let gone = std::thread::spawn(move || {
            let _here = other.presence();
            panic!("as a test");
        });
        let waiting = std::thread::spawn(move || mine.meet(vec![1.0]));
        assert!(gone.join().is_err() && waiting.join().is_err());
    }
}
