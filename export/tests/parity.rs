//! The float reference, the exported ONNX (in tract) and the f32 pack against vectors recorded from the official code.

mod common;

use common::golden;
use ndarray::{s, Array2, ArrayView2, Axis};
use sorcen_export::{
    engine::{self, Engine},
    onnx,
    pack::{self, PackEngine, PackFile, PackOptions},
    reference::Reference,
    tolerance::{tolerance, Link, Output},
    tract::Tract,
};
use sorcen_runtime::pack::Precision;
use sorcen_tests::compare::largest_difference;

/// Every float engine on the golden weights, in turn.
fn with_engines(mut check: impl FnMut(&dyn Engine)) {
    let (dir, checkpoint) = common::golden_checkpoint();
    check(&Reference::new(checkpoint.clone()));
    onnx::export(&checkpoint, dir.path(), "test").unwrap();
    check(&Tract::open(dir.path()).unwrap());
    let path = dir.path().join("model.srcn");
    pack::write(&checkpoint, &path, &PackOptions::new(Precision::F32)).unwrap();
    let file = PackFile::open(&path).unwrap();
    check(&PackEngine::new(file.pack(&path).unwrap()));
}

/// Largest difference, checked to be within the tolerance and not vacuous.
#[track_caller]
fn assert_close<'a>(what: &str, bound: f32, ours: impl IntoIterator<Item = &'a f32>, golden: &[f32]) {
    let worst = largest_difference(ours, golden);
    println!("{what}: max abs {worst:.2e} (bound {bound:.0e})");
    assert!(worst <= bound.into(), "{what}: {worst} above {bound}");
    assert!(golden.iter().any(|v| v.abs() > 0.1), "{what}: the golden values are all but zero");
}

#[test]
fn encoder_and_decoder_with_dropped_tokens() {
    let set = golden("encdec");
    // What the official encoder sees: ids with 2024 at masked places, class token first.
    let ids = set.ints("encoder_input_ids").slice_move(s![.., 1..]);
    let drop = set.floats2("drop_mask").slice_move(s![.., 1..]).mapv(|v| v > 0.5);
    let positions: Vec<usize> = set.json["conditions"]["logit_positions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_u64().unwrap() as usize)
        .filter(|&p| p > 0) // 0 is the class token: no logits there
        .map(|p| p - 1)
        .collect();

    with_engines(|engine| {
        let name = engine.name().to_owned();
        let out = engine::run(engine, ids.view(), Some(drop.view())).unwrap();
        assert!(out.features.is_none(), "no features of an image with dropped tokens");
        let bound = tolerance(Link::Golden, Output::Latent).max_abs;
        assert_close(&format!("{name} latent"), bound, &out.latent, &set.floats("latent"));

        let bound = tolerance(Link::Golden, Output::Logits).max_abs;
        let ours = out.logits.select(Axis(1), &positions);
        let official = set.floats3("logits_slice").slice(s![.., 1.., ..]).iter().copied().collect::<Vec<_>>();
        assert_close(&format!("{name} logits"), bound, &ours, &official);

        // Every position, through summaries.
        assert!(out.logits.iter().all(|logit| logit.is_finite()), "{name}");
        let argmax = set.ints("logits_argmax1024");
        let max = set.floats2("logits_max1024");
        for ((b, t), &code) in argmax.slice(s![.., 1..]).indexed_iter() {
            let row = out.logits.slice(s![b, t, ..]);
            let best = row.iter().copied().fold(f32::MIN, f32::max);
            assert!((best - max[[b, t + 1]]).abs() <= bound, "{name} image {b} token {t}");
            assert!(best - row[code as usize] <= bound, "{name} image {b} token {t}: best code");
        }
    });
}

#[test]
fn probe_and_contrastive_features() {
    let set = golden("features");
    let ids = set.ints("token_ids");
    let bound = tolerance(Link::Golden, Output::Features).max_abs;
    with_engines(|engine| {
        let name = engine.name().to_owned();
        let out = engine::run(engine, ids.view(), None).unwrap();
        assert_close(&format!("{name} probe"), bound, &out.features.unwrap(), &set.floats("features_global_pool"));
        let contrastive = engine::contrastive_features(out.latent.view());
        assert_close(&format!("{name} contrastive"), bound, &contrastive, &set.floats("alt_norm_then_mean_patch"));
    });
}

/// Every step of the forward pass, so that a mistake is found where it begins.
#[test]
fn reference_layer_by_layer() {
    let set = golden("encdec");
    let (_dir, checkpoint) = common::golden_checkpoint();
    let reference = Reference::new(checkpoint);
    let ids = set.ints("encoder_input_ids");
    let drop = set.floats2("drop_mask");
    let bound = tolerance(Link::Golden, Output::Latent).max_abs;
    for image in 0..2 {
        let check = |name: &str, ours: ArrayView2<f32>| {
            let tensor = match name {
                "blocks.0" => "enc_block0_out",
                "blocks.1" => "enc_block1_out",
                "decoder_input" => "dec_input",
                "decoder_blocks.0" => "dec_block0_out",
                "decoder_blocks.1" => "dec_block1_out",
                "decoder_norm" => "dec_norm_out",
                _ => return false,
            };
            let golden = set.floats3(tensor);
            let golden: Vec<f32> = golden.index_axis(Axis(0), image).iter().copied().collect();
            assert_close(&format!("image {image} {name}"), bound, ours, &golden);
            true
        };
        let kept: Vec<usize> = (0..256).filter(|&t| drop[[image, t + 1]] < 0.5).collect();
        let kept_ids: Vec<usize> = kept.iter().map(|&t| ids[[image, t + 1]] as usize).collect();
        let mut checked = 0;
        let mut tap = |name: &str, ours: ArrayView2<f32>| checked += usize::from(check(name, ours));
        let (latent, _) = reference.encode_image(&kept_ids, &kept, &mut tap);
        let mut source = vec![0; 256];
        for (row, (&t, &id)) in kept.iter().zip(&kept_ids).enumerate() {
            if id != 2024 {
                source[t] = row + 1;
            }
        }
        reference.decode_image(latent.view(), &source, &mut tap);
        assert_eq!(checked, 6);
    }
}

#[test]
fn bad_input_is_named() {
    with_engines(|engine| {
        let says = |ids: Array2<i64>, positions: Array2<i64>, parts: &[&str]| {
            let error = engine.encode(ids.view(), positions.view()).err().expect("accepted").to_string();
            for part in parts {
                assert!(error.contains(part), "`{part}` not in: {error}");
            }
        };
        let one = |v: i64| Array2::from_elem((1, 1), v);
        says(one(1024), one(0), &["`token_ids`[0, 0]", "below 1024", "2024", "found 1024"]);
        says(one(-1), one(0), &["found -1"]);
        says(one(0), one(256), &["`positions`[0, 0]", "found 256"]);
        says(Array2::zeros((1, 2)), Array2::zeros((1, 2)), &["`positions`[0, 1]", "increasing"]);
        says(Array2::zeros((0, 2)), Array2::zeros((0, 2)), &["B at least 1"]);
        says(Array2::zeros((2, 2)), one(0), &["`positions`", "[2, 2]", "[1, 1]"]);
    });
}
