//! One trained model through every engine: Burn ≈ reference ≈ ONNX ≈ pack f32, pack int8 close.

use std::sync::Arc;

use burn_flex::Flex;
use ndarray::Array2;
use sorcen_export::{
    engine::{self, Outputs},
    onnx,
    pack::{self, PackEngine, PackFile, PackOptions},
    reference::Reference,
    tolerance::{tolerance, Link, Output},
    tract::Tract,
    Checkpoint, Engine,
};
use sorcen_runtime::pack::Precision;
use sorcen_tests::{
    bundled,
    compare::{cosine, largest_difference},
};
use sorcen_trainer::{data::TokenDataset, engine::BurnEngine};

const IMAGES: usize = 8;

/// Every row of an output within the table's bounds; all that are not, not just the first.
fn differences(name: &str, link: Link, expected: &Outputs, found: &Outputs) -> Vec<String> {
    let rows = |outputs: &Outputs| -> [(Output, Array2<f32>); 2] {
        let flat = |x: &ndarray::Array3<f32>| {
            let (b, t, d) = x.dim();
            x.to_shape((b * t, d)).unwrap().to_owned()
        };
        [(Output::Latent, flat(&outputs.latent)), (Output::Logits, flat(&outputs.logits))]
    };
    let mut wrong = Vec::new();
    for ((output, expected), (_, found)) in rows(expected).into_iter().zip(rows(found)) {
        let bound = tolerance(link, output);
        assert_eq!(expected.dim(), found.dim());
        for (i, (e, f)) in expected.rows().into_iter().zip(found.rows()).enumerate() {
            let (max_abs, cosine) = (largest_difference(f, e), cosine(f, e));
            if !(max_abs <= bound.max_abs.into() && cosine >= bound.min_cosine.into()) {
                wrong.push(format!("{name} {} row {i}: max abs {max_abs}, cosine {cosine}", output.name()));
            }
        }
    }
    wrong
}

#[test]
fn every_engine_computes_the_bundled_model() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = Arc::new(Checkpoint::open(&bundled().join("checkpoint")).unwrap());
    onnx::export(&checkpoint, dir.path(), "").unwrap();
    let pack_file = |precision: Precision| {
        let path = dir.path().join(precision.name());
        pack::write(&checkpoint, &path, &PackOptions::new(precision)).unwrap();
        PackFile::open(&path).unwrap()
    };
    let files = [Precision::F32, Precision::F16, Precision::Int8].map(pack_file);
    let pack = |i: usize| PackEngine::new(files[i].pack(dir.path()).unwrap());

    let data = TokenDataset::open(&bundled().join("val")).unwrap();
    let ids = Array2::from_shape_fn((IMAGES, data.tokens()), |(image, t)| {
        let mut ids = vec![0; data.tokens()];
        data.ids(image, &mut ids);
        if t % 7 == image % 7 {
            checkpoint.config.mask_token_id as i64
        } else {
            i64::from(ids[t])
        }
    });
    let drop_mask = Array2::from_shape_fn(ids.dim(), |(image, t)| (t + image) % 2 == 0);

    let burn = BurnEngine::<Flex>::open(&bundled().join("checkpoint"), Default::default()).unwrap();
    let engines: [(&str, Link, Box<dyn Engine>); 5] = [
        ("burn", Link::F32, Box::new(burn)),
        ("onnx", Link::F32, Box::new(Tract::open(dir.path()).unwrap())),
        ("pack f32", Link::F32Pack, Box::new(pack(0))),
        ("pack f16", Link::F16, Box::new(pack(1))),
        ("pack int8", Link::Int8, Box::new(pack(2))),
    ];
    let reference = Reference::new(checkpoint.clone());
    let mut wrong = Vec::new();
    for dropped in [None, Some(drop_mask.view())] {
        let expected = engine::run(&reference, ids.view(), dropped).unwrap();
        for (name, link, engine) in &engines {
            let found = engine::run(engine.as_ref(), ids.view(), dropped).unwrap();
            wrong.extend(differences(name, *link, &expected, &found));
        }
    }
    assert!(wrong.is_empty(), "{} rows out of tolerance:\n{}", wrong.len(), wrong.join("\n"));
}
