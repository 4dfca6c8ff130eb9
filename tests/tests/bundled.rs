//! The bundled files belong together, and the demo pack is the bundled checkpoint's.

use sorcen_export::{
    pack::{self, PackFile, PackOptions},
    tokenizer::{AnyTokenizer, PatchTokenizer},
    Checkpoint,
};
use sorcen_runtime::{
    generate::{generate, Options},
    pack::Precision,
    rng::splitmix64,
    sampler::Seeded,
    schema,
    scratch::{OwnedScratch, Plan},
    Model,
};
use sorcen_tests::bundled;
use sorcen_trainer::data::TokenDataset;

#[test]
fn the_demo_pack_is_made_from_the_bundled_checkpoint() {
    let path = bundled().join("demo.srcn");
    let file = PackFile::open(&path).unwrap();
    let demo = file.pack(&path).unwrap();
    let checkpoint = Checkpoint::open(&bundled().join("checkpoint")).unwrap();
    let tokenizer = PatchTokenizer::open(&bundled().join("tokenizer.safetensors")).unwrap();
    assert_eq!(demo.config(), &checkpoint.config);
    assert_eq!(demo.tokenizer().unwrap().codebook(), tokenizer.patches());

    let dir = tempfile::tempdir().unwrap();
    let again = dir.path().join("again.srcn");
    let tokenizer = AnyTokenizer::Patches(tokenizer);
    let rules = vec!["pos=f32".parse().unwrap()]; // as the README of the bundled data says
    let options = PackOptions { tokenizer: Some(&tokenizer), rules, ..PackOptions::new(Precision::Int8) };
    pack::write(&checkpoint, &again, &options).unwrap();
    let again_file = PackFile::open(&again).unwrap();
    let again = again_file.pack(&again).unwrap();
    for param in schema::params(demo.config()) {
        assert_eq!(demo.precision(param), again.precision(param), "{param}");
        assert_eq!(format!("{:?}", demo.matrix(param)), format!("{:?}", again.matrix(param)), "{param}");
    }
    // Where it comes from, and what may be done with it.
    assert_eq!(demo.card(), again.card());
    let (card, train) = (demo.card().unwrap(), TokenDataset::open(&bundled().join("train")).unwrap());
    let tokenizer = train.tokenizer().unwrap();
    for part in [&format!("\"sha256\":\"{}\"", train.digest()), &format!("\"tokenizer\":\"{tokenizer}\"")] {
        assert!(card.contains(part), "{part} not in {card}");
    }
    assert!(card.contains("\"licence\":") && card.contains("CC-BY 4.0") && card.contains("\"runs\":"), "{card}");
}

#[test]
fn the_datasets_fit_the_model() {
    let checkpoint = Checkpoint::open(&bundled().join("checkpoint")).unwrap();
    for name in ["train", "val", "test"] {
        let data = TokenDataset::open(&bundled().join(name)).unwrap();
        assert_eq!((data.grid(), data.codebook_size()), (checkpoint.config.grid, checkpoint.config.codebook_size));
    }
}

/// The golden image of the demo pack: firmware has to draw the same one.
#[test]
fn the_demo_pack_draws_its_golden_image() {
    let path = bundled().join("demo.srcn");
    let file = PackFile::open(&path).unwrap();
    let model = Model::new(file.pack(&path).unwrap());
    let config = model.config();
    let mut scratch = OwnedScratch::new(config, Plan::Generate).unwrap();
    let mut ids = vec![config.mask_token_id as u16; config.tokens()];
    generate(&model, &mut ids, &Options::default(), &mut Seeded(0), &mut scratch.get().unwrap(), |_| {}).unwrap();
    let hash = ids.iter().fold(0, |state, &id| splitmix64(state ^ u64::from(id)));
    assert_eq!(hash, GOLDEN, "{ids:?}");
}

/// Hash of the ids drawn with seed 0 and the published options; changes with the pack, never with the machine.
const GOLDEN: u64 = 0x5a68_e419_8aed_3cb1;
