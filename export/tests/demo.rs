//! The bundled pack's own head: its accuracy on held-back emoji.

mod common;

use std::fs;

use sorcen_export::{batch, pack::PackFile};
use sorcen_runtime::{tokens::unpack_row, Model};

/// The head was trained on the base pictures of `train` alone; `cargo test -p sorcen-export --test demo -- --nocapture`
/// prints what it makes of those of `test`. Integers: the same count on every machine.
#[test]
fn the_head_in_the_demo_pack_classifies_held_back_emoji() {
    let path = common::bundled().join("demo.srcn");
    let file = PackFile::open(&path).unwrap();
    let model = Model::new(file.pack(&path).unwrap());
    let head = model.pack().classifier().unwrap();

    let folder = common::bundled().join("test");
    let data = |name: &str| {
        let bytes = fs::read(folder.join(name)).unwrap();
        let start = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]])); // npy 1.0
        bytes[start..].to_vec()
    };
    let labels: Vec<u16> =
        data("labels.npy").chunks_exact(2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]])).collect();
    let items = fs::read_to_string(folder.join("items.csv")).unwrap();
    let is_base: Vec<bool> = items.lines().skip(1).map(|line| line.ends_with(",0")).collect();
    assert_eq!(labels.len(), is_base.len());
    let images: Vec<(Vec<u16>, u16)> = data("tokens_vqgan.npy")
        .chunks_exact(72)
        .zip(labels)
        .zip(is_base)
        .filter(|(_, is_base)| *is_base)
        .map(|((row, label), _)| {
            let mut ids = vec![0; 64];
            unpack_row(row, 9, &mut ids).unwrap();
            (ids, label)
        })
        .collect();
    let (ids, labels): (Vec<_>, Vec<_>) = images.into_iter().unzip();
    let features = batch::features(&model, &ids).unwrap();
    let is_right = |(feature, label): (&Vec<f32>, &u16)| head.classify(feature).unwrap().class == usize::from(*label);
    let right = features.iter().zip(&labels).filter(|pair| is_right(*pair)).count();
    println!("{right} of {} held-back emoji right: {:.1} %", ids.len(), 100.0 * right as f64 / ids.len() as f64);
    assert_eq!((ids.len(), head.classes()), (427, 9));
    assert_eq!(right, 260);
    assert!(head.names().unwrap().starts_with("Activities\nAnimals & Nature"));
}
