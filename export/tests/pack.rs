//! Packs: the same numbers for every target and every set of kernels, no rows that no id reaches.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use clap::ValueEnum;
use sorcen_export::{
    pack::{self, PackFile, PackOptions, Target},
    verify::random_tokens,
    Checkpoint,
};
use sorcen_runtime::{
    pack::Precision,
    quant::Layout,
    schema::{self, Param},
    scratch::{OwnedScratch, Plan},
    Kernels, Model, ModelConfig,
};

/// Bits of the features of an image and of its logits with every third token masked.
fn bits(model: &Model<'_>, ids: &[u16]) -> Vec<u32> {
    let config = model.config();
    let mut features = vec![0.0; config.embed_dim];
    let mut memory = OwnedScratch::new(config, Plan::Generate).unwrap();
    model.features(ids, &mut memory.get().unwrap(), &mut features).unwrap();
    let mut masked = ids.to_vec();
    masked.iter_mut().step_by(3).for_each(|id| *id = config.mask_token_id as u16);
    let mut numbers = features;
    let mut scratch = memory.get().unwrap();
    let latent = model.encode(&masked, None, &mut scratch).unwrap().into_latent();
    latent.decode(|_, logits| numbers.extend_from_slice(logits)).unwrap();
    numbers.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn every_target_gives_the_same_bits_on_every_kernel() {
    let dir = tempfile::tempdir().unwrap();
    // Widths that fill no tile.
    let config = ModelConfig { embed_dim: 36, num_heads: 3, decoder_embed_dim: 20, ..common::config() };
    let config = ModelConfig { decoder_num_heads: 5, ..config };
    Checkpoint::write(dir.path(), &config, common::weights(&config, 4)).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let ids: Vec<u16> = random_tokens(&config, 1, 0).iter().map(|&id| id as u16).collect();
    for precision in [Precision::Int8, Precision::Int4] {
        let (mut results, mut files) = (BTreeMap::<_, Vec<_>>::new(), BTreeSet::new());
        for &target in Target::value_variants() {
            let path = dir.path().join(format!("{target:?}.srcn"));
            pack::write(&checkpoint, &path, &PackOptions { target, ..PackOptions::new(precision) }).unwrap();
            let file = PackFile::open(&path).unwrap();
            files.insert(file.bytes().to_vec());
            let pack = file.pack(&path).unwrap();
            for kernels in Kernels::available() {
                let found = bits(&Model::with_kernels(pack, kernels), &ids);
                results.entry(found).or_default().push((target, kernels.name()));
            }
        }
        assert_eq!(results.len(), 1, "{precision:?}: {:?}", results.values());
        assert!(results.keys().all(|bits| bits.iter().collect::<BTreeSet<_>>().len() > 30), "they say something");
        let layouts: BTreeSet<_> = Target::value_variants().iter().map(|t| (t.layout().nr, t.layout().kt)).collect();
        assert_eq!(files.len(), layouts.len(), "{precision:?}");
    }
}

/// What this machine multiplies fastest is some target's order.
#[test]
fn every_kernel_has_a_target() {
    for kernels in Kernels::available() {
        assert!(Target::of(kernels.layout()).count() > 0, "{}: {:?}", kernels.name(), kernels.layout());
    }
    assert_eq!(Target::of(Layout { nr: 3, kt: 2 }).count(), 0);
}

/// Rows of ids that never occur (999 of the official vocabulary's 2025) are not stored.
#[test]
fn the_official_vocabulary_is_stored_as_far_as_it_is_used() {
    let (dir, checkpoint) = common::golden_checkpoint();
    let ids: Vec<u16> = random_tokens(&checkpoint.config, 1, 0).iter().map(|&id| id as u16).collect();
    let path = dir.path().join("model.srcn");
    let mut whole = sorcen_runtime::pack::Writer::new(Vec::new(), &checkpoint.config).unwrap();
    for param in schema::params(&checkpoint.config) {
        whole.tensor(sorcen_runtime::pack::TensorData::F32(checkpoint.tensor(param))).unwrap();
    }
    let (_, whole) = whole.finish().unwrap();
    std::fs::write(&path, whole).unwrap();
    let whole = PackFile::open(&path).unwrap();
    let whole = whole.pack(&path).unwrap();

    let path = dir.path().join("used.srcn");
    pack::write(&checkpoint, &path, &PackOptions::new(Precision::F32)).unwrap();
    let used = PackFile::open(&path).unwrap();
    let used = used.pack(&path).unwrap();
    let rows = |pack: &sorcen_runtime::Pack| pack.matrix(Param::WordEmbedding).rows;
    assert_eq!((rows(&whole), rows(&used)), (2025, 1026));
    assert_eq!(used.config(), whole.config());
    assert_eq!(bits(&Model::new(used), &ids), bits(&Model::new(whole), &ids));
}
