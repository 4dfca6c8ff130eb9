use super::*;
use sorcen_runtime::rng::{Rng, Stream};

const SIDE: usize = 8;

/// Pictures made of `kinds` random 4×4 patches, with a little noise.
fn images(count: usize, kinds: u64, noise: u64) -> Vec<Vec<u8>> {
    let rng = Rng::new(5, Stream::Evaluation, 0);
    let pixel = |image: usize, y: usize, x: usize, channel: usize| {
        let kind = rng.below((image * 4 + y / 4 * 2 + x / 4) as u64, kinds);
        let base = rng.bits(1_000_000 + kind * 1000 + ((y % 4 * 4 + x % 4) * 3 + channel) as u64) as u8;
        let jitter = rng.below(2_000_000 + (((image * SIDE + y) * SIDE + x) * 3 + channel) as u64, noise + 1);
        base.saturating_sub(jitter as u8)
    };
    let all = |image| (0..SIDE * SIDE * 3).map(move |i| pixel(image, i / 3 / SIDE, i / 3 % SIDE, i % 3)).collect();
    (0..count).map(all).collect()
}

fn options(codes: usize) -> TrainOptions {
    TrainOptions { codes, patch: 4, iterations: 8, seed: 3 }
}

#[test]
fn finds_the_patches_that_pictures_are_made_of() {
    let images = images(40, 6, 0);
    let tokenizer = train(&images, SIDE, &options(6), |_| {}).unwrap();
    let report = check(&tokenizer, &images, SIDE).unwrap();
    assert_eq!((report.mse, report.codes_used, report.images), (0.0, 6, 40));
    assert!(report.perplexity > 5.0 && report.perplexity <= 6.0, "{report:?}");
}

#[test]
fn error_falls_and_every_code_is_used() {
    let images = images(60, 200, 20);
    let mut errors = Vec::new();
    let mut chosen = Vec::new();
    let tokenizer = train(&images, SIDE, &options(32), |progress| match progress {
        TrainProgress::Chosen(codes) => chosen.push(codes),
        TrainProgress::Round(round, error) => {
            errors.push(error);
            assert_eq!(round, errors.len() as u64);
        }
    })
    .unwrap();
    assert!(chosen.into_iter().eq(1..=32), "each first code is told of");
    assert_eq!(errors.len(), 8);
    assert!(errors.windows(2).all(|pair| pair[1] <= pair[0] * 1.0001), "{errors:?}");
    let report = check(&tokenizer, &images, SIDE).unwrap();
    assert_eq!(report.codes_used, 32);
    // Medians are kinder to the eye than to the mean squared error.
    assert!(report.mse <= errors[7] * 1.25, "{report:?} {errors:?}");
}

#[test]
fn same_codes_for_any_number_of_threads() {
    let images = images(30, 100, 9);
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| train(&images, SIDE, &options(16), |_| {}).unwrap())
    };
    assert_eq!(on(1), on(3));
    let other = train(&images, SIDE, &TrainOptions { seed: 4, ..options(16) }, |_| {}).unwrap();
    assert_ne!(on(1), other, "the seed matters");
}

#[test]
fn refuses_what_cannot_be_trained() {
    let images = images(2, 3, 0);
    let failed = |options| train(&images, SIDE, &options, |_| {}).unwrap_err().to_string();
    assert!(failed(TrainOptions { patch: 3, ..options(2) }).contains("patch"));
    assert!(failed(TrainOptions { patch: 0, ..options(2) }).contains("patch"));
    assert!(failed(options(9)).contains("--codes: expected 1 to "));
    assert!(failed(options(0)).contains("codes"));
}

#[test]
fn files_are_told_apart() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("t.safetensors");
    let tokenizer = train(&images(20, 9, 0), SIDE, &options(5), |_| {}).unwrap();
    tokenizer.save(&path).unwrap();
    let opened = open(&path, Device::Cpu).unwrap();
    assert_eq!(opened.fingerprint(), tokenizer.fingerprint());
    assert!(tokenizer.fingerprint().starts_with("patch-codebook 5x4x4 sha256:"));

    let mut damaged = std::fs::read(&path).unwrap();
    damaged.pop();
    std::fs::write(&path, damaged).unwrap();
    let error = open(&path, Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("t.safetensors") && error.contains("complete safetensors file"), "{error}");
}

#[test]
fn bundled_codes_decode_to_themselves() {
    let tokenizer = train(&images(50, 40, 0), SIDE, &options(16), |_| {}).unwrap();
    let ids: Vec<u16> = (0..16).collect();
    let picture = tokenizer.decode(&ids, 4).unwrap();
    assert_eq!(tokenizer.encode_all(&[picture], 16).unwrap(), [ids]);
}
