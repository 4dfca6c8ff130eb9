//! Generation with the official randomness: the same ids at every step, from every engine.

mod common;

use common::golden;
use ndarray::{Array2, Axis};
use sorcen_export::{
    engine::Engine,
    generate::{generate, generate_pack, generate_with, recorded_count_from, Randomness, Replay},
    onnx,
    pack::{self, PackEngine, PackFile, PackOptions},
    reference::Reference,
    tensors::TensorFile,
    tract::Tract,
};
use sorcen_runtime::{
    generate::{CountFrom, Options},
    pack::Precision,
    rng::{Rng, Stream},
    sampler::{Distribution, Draws},
};

#[test]
fn replayed_ids_are_exact_in_every_engine() {
    let (dir, checkpoint) = common::golden_checkpoint();
    onnx::export(&checkpoint, dir.path(), "test").unwrap();
    let tract = Tract::open(dir.path()).unwrap();
    let path = dir.path().join("model.srcn");
    pack::write(&checkpoint, &path, &PackOptions::new(Precision::F32)).unwrap();
    let file = PackFile::open(&path).unwrap();
    let packed = PackEngine::new(file.pack(&path).unwrap());
    let reference = Reference::new(checkpoint.clone());

    // Every engine on one set, the reference and the device's loop on all.
    let all: [&dyn Engine; 2] = [&reference, &tract];
    let sets = [("gen_uncond", &all[..]), ("gen_counter", &[]), ("gen_inpaint", &[]), ("gen_inpaint_n128", &all[..1])];
    for (name, engines) in sets {
        let set = golden(name);
        let recorded = TensorFile::open(&set.path()).unwrap();
        let replay = Randomness::Replay(Replay::read(&recorded, &checkpoint.config).unwrap());
        let input_ids = set.ints3("input_ids");
        let start = input_ids.index_axis(Axis(0), 0);
        let count_from = recorded_count_from(&checkpoint.config, input_ids.view());
        assert_eq!(count_from, if name == "gen_inpaint" { CountFrom::Grid } else { CountFrom::Unknown }, "{name}");
        let options = Options { count_from, ..Options::default() };
        let ours = engines.iter().map(|engine| (engine.name(), generate(*engine, start, &options, &replay)));
        for (engine, ours) in ours.chain([(packed.name(), generate_pack(&packed, start, &options, &replay))]) {
            let ours = ours.unwrap();
            for step in 0..20 {
                let (ours, official) = (ours.input_ids.index_axis(Axis(0), step), input_ids.index_axis(Axis(0), step));
                assert_eq!(ours, official, "{name}, {engine}, input of step {step}");
            }
            assert_eq!(ours.final_ids, set.ints("final_ids"), "{name}, {engine}, final ids");
        }
    }
}

/// The rule by which `gen_counter` was made: a Gumbel number for every code.
struct GumbelMax {
    image: u64,
}

impl Draws for GumbelMax {
    fn choose(&mut self, step: usize, position: usize, distribution: &Distribution<'_>) -> u16 {
        let rng = Rng::new(101, Stream::Sample, step as u64);
        let noisy = |(code, weight): (usize, &f32)| {
            let index = (self.image * 256 + position as u64) * 1024 + code as u64;
            (code as u16, weight.ln() + rng.gumbel(index) as f32)
        };
        let codes = distribution.weights().iter().enumerate().map(noisy);
        codes.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0
    }

    fn gumbel(&mut self, step: usize, position: usize) -> f64 {
        Rng::new(101, Stream::Confidence, step as u64).gumbel(self.image * 256 + position as u64)
    }
}

#[test]
fn counter_noise_gives_the_official_images() {
    let (_dir, checkpoint) = common::golden_checkpoint();
    let set = golden("gen_counter");
    let start = Array2::from_elem((2, 256), 2024);
    let reference = Reference::new(checkpoint);
    let draws = |image| GumbelMax { image: image as u64 };
    let ours = generate_with(&reference, start.view(), &Options::default(), draws).unwrap();
    assert_eq!(ours.input_ids, set.ints3("input_ids"));
    assert_eq!(ours.final_ids, set.ints("final_ids"));
}

#[test]
fn seeds_give_the_same_images_in_both_loops() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = common::checkpoint(dir.path(), 3);
    let path = dir.path().join("model.srcn");
    pack::write(&checkpoint, &path, &PackOptions::new(Precision::Int8)).unwrap();
    let file = PackFile::open(&path).unwrap();
    let engine = PackEngine::new(file.pack(&path).unwrap());
    let mut start = Array2::from_elem((3, 9), 19);
    start[[1, 4]] = 7;
    start.row_mut(2).fill(5); // nothing to do
    let options = Options { steps: 5, ..Options::default() };
    for randomness in [Randomness::Seeded(1), Randomness::Greedy(1)] {
        let ours = generate(&engine, start.view(), &options, &randomness).unwrap();
        let theirs = generate_pack(&engine, start.view(), &options, &randomness).unwrap();
        assert_eq!(ours, theirs);
        assert_eq!(ours.final_ids[[1, 4]], 7);
        assert_eq!(ours.final_ids.row(2), start.row(2));
        assert!(ours.final_ids.iter().all(|&id| id < 12));
    }
}
