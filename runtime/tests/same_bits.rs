//! One model made of counter-generated weights, run on any target: the bits of its features,
//! logits and generated tokens are written down here and must come out everywhere.

use std::sync::OnceLock;

use proptest::prelude::*;
use sorcen_runtime::{
    generate::{generate, CountFrom, Generation, Options, Progress, Step},
    head::Classifier,
    pack::{Data, Matrix, OwnedPack, TensorData, Writer},
    quant::{
        int4::{self, Order},
        quantise_matrix, Layout,
    },
    rng::{splitmix64, Rng, Stream},
    sampler::{Greedy, Seeded},
    scratch::{OwnedScratch, Plan, Scratch},
    self_test::{self, SelfTest},
    team::Team,
    Error, Kernels, Model, ModelConfig, Pack,
};

const CONFIG: ModelConfig = ModelConfig { depth: 2, decoder_depth: 1, ..ModelConfig::micro(4, 30) };

/// A pack, int8 in this layout or else int4; weights are uniform numbers, so that no library function is involved.
fn pack(layout: Option<Layout>) -> Vec<u8> {
    pack_with(layout, |_| {})
}

/// The same, and what `more` adds.
fn pack_with(layout: Option<Layout>, more: impl FnOnce(&mut Writer<Vec<u8>>)) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), &CONFIG).unwrap();
    while let Some(param) = writer.next_param() {
        let rng = Rng::new(11, Stream::Init, param.index(&CONFIG) as u64);
        let shape = param.shape(&CONFIG);
        let numbers: Vec<f32> = (0..shape.elements()).map(|i| (rng.uniform(i as u64) as f32 - 0.5) * 0.5).collect();
        if !param.is_matrix() {
            writer.tensor(TensorData::F32(&numbers)).unwrap();
            continue;
        }
        let (rows, cols) = shape.matrix();
        let mut scales = vec![0.0; rows];
        let Some(layout) = layout else {
            let mut packed = vec![0; int4::bytes(rows, cols)];
            int4::quantise_matrix(&numbers, (rows, cols), &mut packed, &mut scales).unwrap();
            writer.tensor(TensorData::Int4 { packed: &packed, scales: &scales, order: Order::Rows }).unwrap();
            continue;
        };
        let mut weights = vec![0; layout.elements(rows, cols)];
        quantise_matrix(&numbers, (rows, cols), layout, &mut weights, &mut scales).unwrap();
        writer.tensor(TensorData::Int8 { weights: &weights, scales: &scales, layout }).unwrap();
    }
    more(&mut writer);
    writer.finish().unwrap().1
}

/// The int4 pack with its weights in panels.
fn int4_in_panels() -> Vec<u8> {
    let rows = pack(None);
    let panels = OwnedPack::arrange(&Pack::new(&rows).unwrap(), Layout { nr: 16, kt: 4 }).unwrap();
    assert_ne!(panels.bytes(), rows);
    panels.bytes().to_vec()
}

/// The same numbers, not quantised.
fn float_pack() -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), &CONFIG).unwrap();
    while let Some(param) = writer.next_param() {
        let rng = Rng::new(11, Stream::Init, param.index(&CONFIG) as u64);
        let numbers: Vec<f32> =
            (0..param.shape(&CONFIG).elements()).map(|i| (rng.uniform(i as u64) as f32 - 0.5) * 0.5).collect();
        writer.tensor(TensorData::F32(&numbers)).unwrap();
    }
    writer.finish().unwrap().1
}

/// A pack of each kind, in the order that most kernels like best.
fn packs() -> [(&'static str, Vec<u8>); 3] {
    [("int8", pack(Some(Layout { nr: 16, kt: 4 }))), ("int4", int4_in_panels()), ("f32", float_pack())]
}

fn hash(state: u64, values: impl IntoIterator<Item = u32>) -> u64 {
    values.into_iter().fold(state, |state, value| splitmix64(state ^ u64::from(value)))
}

/// Hashes of (features, logits, generated tokens).
fn run(pack: &[u8], kernels: Kernels, bytes: usize) -> Result<[u64; 3], Error> {
    let model = Model::with_kernels(Pack::new(pack)?, kernels);
    let mut memory = vec![0; bytes];
    let mut scratch = Scratch::new(&mut memory, &CONFIG, Plan::Generate)?;
    let ids: Vec<u16> = (0..16).map(|i| if i % 5 == 0 { 31 } else { (i * 7 % 30) as u16 }).collect();

    let mut features = [0.0f32; CONFIG.embed_dim];
    model.features(&ids, &mut scratch, &mut features)?;
    let features = hash(0, features.map(f32::to_bits));

    let mut logits = 0;
    let kept: Vec<u16> = (0..16).step_by(2).collect();
    let kept_ids: Vec<u16> = kept.iter().map(|&p| ids[usize::from(p)]).collect();
    let latent = model.encode(&kept_ids, Some(&kept), &mut scratch)?.into_latent();
    latent.decode(|_, row| logits = hash(logits, row.iter().map(|x| x.to_bits())))?;

    let mut tokens = 0;
    for seed in 0..2 {
        let mut ids = [31u16; 16];
        generate(&model, &mut ids, &Options::default(), &mut Seeded(seed), &mut scratch, |_| {})?;
        tokens = hash(tokens, ids.map(u32::from));
    }
    Ok([features, logits, tokens])
}

/// The kernels that CPUs of this kind may have, as the standard library knows them.
fn all_kernels() -> &'static [&'static str] {
    match std::env::consts::ARCH {
        "x86_64" => &["avx512vnni", "avxvnni", "avx2", "sse2", "scalar"],
        "aarch64" => &["i8mm", "dotprod", "neon", "scalar"],
        _ => &["scalar"],
    }
}

/// The kernels that this CPU can run, as the standard library sees it, the fastest first.
fn expected_kernels() -> Vec<&'static str> {
    let mut names = vec![];
    #[cfg(target_arch = "x86_64")]
    {
        use std::is_x86_feature_detected as has;
        let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
        names.extend((avx512 && has!("avx512vnni")).then_some("avx512vnni"));
        names.extend(has!("avxvnni").then_some("avxvnni"));
        names.extend(has!("avx2").then_some("avx2"));
        names.push("sse2");
    }
    #[cfg(target_arch = "aarch64")]
    {
        use std::arch::is_aarch64_feature_detected as has;
        names.extend(has!("i8mm").then_some("i8mm"));
        names.extend(has!("dotprod").then_some("dotprod"));
        names.push("neon");
    }
    #[cfg(target_arch = "wasm32")]
    names.extend(cfg!(target_feature = "simd128").then_some("simd128"));
    names.push("scalar");
    names
}

#[test]
fn no_kernel_is_missing() {
    let found: Vec<_> = Kernels::available().map(|k| k.name()).collect();
    println!("kernels: {}", found.join(" "));
    // For tests/run, which says what it could not test.
    let lacking: Vec<_> = all_kernels().iter().copied().filter(|name| !found.contains(name)).collect();
    if !lacking.is_empty() {
        println!("not on this CPU: {}", lacking.join(" "));
    }
    assert_eq!(found, expected_kernels());
    // A script that picks the CPU says what has to be there: `SORCEN_KERNELS="i8mm dotprod neon scalar"`.
    if let Ok(names) = std::env::var("SORCEN_KERNELS") {
        assert_eq!(found, names.split_whitespace().collect::<Vec<_>>());
    }
    // One that forces kernels by a cfg: `SORCEN_FORCED=avx2`.
    if let Ok(name) = std::env::var("SORCEN_FORCED") {
        assert_eq!(Kernels::detect().name(), if found.contains(&&name[..]) { &name } else { "scalar" });
    }
}

/// Every kernel that runs here, every layout, little and much memory.
/// Runs a pack on all kernels, with little and with much memory.
fn check(what: &str, pack: &[u8], expected: [u64; 3]) {
    let (least, fast) = (Scratch::bytes(&CONFIG, Plan::Generate), Scratch::fast_bytes(&CONFIG, Plan::Generate));
    assert!(least < fast);
    for k in Kernels::available() {
        for bytes in [least, fast] {
            let found = run(pack, k, bytes).unwrap();
            assert_eq!(found, expected, "{}, {what}, {bytes} bytes, found {found:#x?}", k.name());
        }
    }
}

#[test]
fn the_golden_bits() {
    for (nr, kt) in [(1, 0), (16, 4), (4, 4), (8, 32), (3, 1)] {
        let expected = [0x7f8e_4212_2ac5_5d49, 0x78b2_5778_aedc_56e7, 0x351c_88eb_300c_8786];
        check(&format!("layout {nr}x{kt}"), &pack(Some(Layout { nr, kt })), expected);
    }
}

#[test]
fn the_golden_bits_of_int4() {
    for (what, pack) in [("int4", pack(None)), ("int4 in panels", int4_in_panels())] {
        check(what, &pack, [0x7850_026b_fb12_b31c, 0x61a4_760f_8f7d_226a, 0xf189_71d9_affe_e4ba]);
    }
}

/// A device that computes the golden outputs passes; each kind of difference is found.
#[test]
fn the_self_test_finds_every_difference() {
    let plain = pack(Some(Layout::ROW_MAJOR));
    let model = Model::new(Pack::new(&plain).unwrap());
    let mut memory = vec![0; Scratch::bytes(&CONFIG, Plan::Generate)];
    let mut scratch = Scratch::new(&mut memory, &CONFIG, Plan::Generate).unwrap();
    let ids: Vec<u16> = (0..32).map(|i| if i % 3 == 0 { 31 } else { (i * 11 % 30) as u16 }).collect();
    let (mut features, mut drawn, mut confidences) = ([0.0; 2 * 64], [0; 32], [0.0; 32]);
    self_test::record(&model, &ids, &mut scratch, &mut features, &mut drawn, &mut confidences).unwrap();
    assert_eq!(self_test::tolerance(&model), 0.0);
    assert!(self_test::record(&model, &ids, &mut scratch, &mut features, &mut [], &mut []).is_err());

    let run = |test: &SelfTest<'_>, kernels, plan| {
        let bytes = pack_with(Some(Layout { nr: 16, kt: 4 }), |writer| writer.self_test(test).unwrap());
        let model = Model::with_kernels(Pack::new(&bytes).unwrap(), kernels);
        let mut memory = vec![0; Scratch::bytes(&CONFIG, plan)];
        let mut scratch = Scratch::new(&mut memory, &CONFIG, plan).unwrap();
        model.self_test(&mut scratch)
    };
    let test = SelfTest::new(&CONFIG, 0.0, &ids, &features, &drawn, &confidences).unwrap();
    for kernels in Kernels::available() {
        for (plan, decoder) in [(Plan::Generate, true), (Plan::Features, false)] {
            assert_eq!(run(&test, kernels, plan), Ok(self_test::Passed { inputs: 2, decoder }), "{}", kernels.name());
        }
    }
    let k = Kernels::detect();
    let failure = |tolerance, features: &[f32], drawn: &[u16], confidences: &[f32]| {
        let test = SelfTest::new(&CONFIG, tolerance, &ids, features, drawn, confidences).unwrap();
        match run(&test, k, Plan::Generate) {
            Err(Error::SelfTest { item, input, element, .. }) => Some((item, input, element)),
            other => other.map(|_| None).unwrap(),
        }
    };
    let nudged = |numbers: &[f32], at: usize, by: u32| {
        let mut numbers = numbers.to_vec();
        numbers[at] = f32::from_bits(numbers[at].to_bits() + by);
        numbers
    };
    assert_eq!(failure(0.0, &nudged(&features, 70, 1), &drawn, &confidences), Some(("feature", 1, 6)));
    assert_eq!(failure(0.0, &features, &drawn, &nudged(&confidences, 31, 1)), Some(("confidence", 1, 15)));
    let mut other = drawn;
    other[4] = (other[4] + 1) % 30;
    assert_eq!(failure(0.0, &features, &other, &confidences), Some(("token", 0, 4)));
    assert_eq!(failure(1e-3, &nudged(&features, 70, 1 << 16), &[], &[]), Some(("feature", 1, 6)));
    // Within a tolerance, where tokens are drawn greedily.
    let test = SelfTest::new(&CONFIG, 1e-3, &ids[..16], &features[..64], &[], &[]).unwrap();
    assert_eq!(run(&test, k, Plan::Generate), Ok(self_test::Passed { inputs: 1, decoder: false }));
    assert_eq!(model.self_test(&mut scratch), Err(Error::MissingSection { section: "self-test" }));
}

#[test]
fn a_classifier_in_the_pack_is_run_on_its_feature() {
    let weights: Vec<i8> = (0..3 * 64).map(|i| (i * 29 % 255 - 127) as i8).collect();
    let data = Data::Int8 { weights: &weights, scales: &[0.01, 0.02, 0.03], layout: Layout::ROW_MAJOR };
    let head = Classifier::new(Matrix { rows: 3, cols: 64, data }, &[0.5, 0.25, -0.5], Some("a\nb\nc")).unwrap();
    let bytes = pack_with(Some(Layout::ROW_MAJOR), |writer| writer.classifier(&head).unwrap());
    let ids: Vec<u16> = (0..16).map(|i| (i * 7 % 30) as u16).collect();
    for kernels in Kernels::available() {
        let model = Model::with_kernels(Pack::new(&bytes).unwrap(), kernels);
        let mut memory = vec![0; Scratch::bytes(&CONFIG, Plan::Features)];
        let mut scratch = Scratch::new(&mut memory, &CONFIG, Plan::Features).unwrap();
        let mut feature = [0.0; 64];
        model.features(&ids, &mut scratch, &mut feature).unwrap();
        let found = model.classify(&ids, &mut scratch).unwrap();
        assert_eq!(found, head.classify(&feature).unwrap());
        let found = hash(0, [found.class as u32, found.logit.to_bits(), found.probability.to_bits()]);
        assert_eq!(found, 0xc4bf_3484_439b_31a5, "{}, found {found:#x}", kernels.name());
    }
    let model_without = pack(Some(Layout::ROW_MAJOR));
    let model = Model::new(Pack::new(&model_without).unwrap());
    let mut memory = vec![0; Scratch::bytes(&CONFIG, Plan::Features)];
    let mut scratch = Scratch::new(&mut memory, &CONFIG, Plan::Features).unwrap();
    assert_eq!(model.classify(&ids, &mut scratch).err(), Some(Error::MissingSection { section: "classifier" }));
}

/// The class token alone, without the rest of the last block: of whole images and of some tokens, after any number of
/// blocks that were run step by step, with little and with much memory.
#[test]
fn the_class_token_alone_has_the_bits_of_the_whole() {
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let all: Vec<u16> = (0..16).map(|i| if i % 5 == 0 { 31 } else { (i * 7 % 30) as u16 }).collect();
    let some = [1, 2, 5, 11, 12];
    let some_ids: Vec<u16> = some.iter().map(|&p| all[usize::from(p)]).collect();
    let cases: [(&[u16], Option<&[u16]>); 3] = [(&all, None), (&some_ids, Some(&some)), (&[], Some(&[]))];
    let (least, fast) = (Scratch::bytes(&CONFIG, Plan::Features), Scratch::fast_bytes(&CONFIG, Plan::Features));
    for (what, pack) in packs() {
        for (k, bytes) in Kernels::available().flat_map(|k| [(k, least), (k, fast)]) {
            let model = Model::with_kernels(Pack::new(&pack).unwrap(), k);
            let mut memory = vec![0; bytes];
            let mut scratch = Scratch::new(&mut memory, &CONFIG, Plan::Features).unwrap();
            for (ids, positions) in cases {
                let expected = bits(model.encode(ids, positions, &mut scratch).unwrap().into_latent().class_token());
                for steps in 0..=CONFIG.depth {
                    let mut found = [0.0; CONFIG.embed_dim];
                    let mut run = model.start(ids, positions, &mut scratch).unwrap();
                    (0..steps).for_each(|_| _ = run.step());
                    run.class_token_feature(&mut found).unwrap();
                    assert!(bits(&found) == expected, "{what}, {}, {} tokens, {steps} steps", k.name(), ids.len());
                }
            }
            let mut found = [0.0; CONFIG.embed_dim];
            model.class_token_feature(&all, &mut scratch, &mut found).unwrap();
            let error = model.class_token_feature(&all, &mut scratch, &mut found[1..]);
            assert_eq!(error, Err(Error::Length { item: "out", needed: 64, found: 63 }));
            assert_eq!(bits(&found), bits(model.encode(&all, None, &mut scratch).unwrap().into_latent().class_token()));
        }
    }
}

/// A block at a time, and with the working memory in two regions.
#[test]
fn steps_and_regions_give_the_same_bits() {
    let bytes = pack(Some(Layout::ROW_MAJOR));
    let model = Model::new(Pack::new(&bytes).unwrap());
    let mut memory = vec![0; Scratch::bytes(&CONFIG, Plan::Generate)];
    let mut scratch = Scratch::new(&mut memory, &CONFIG, Plan::Generate).unwrap();
    let regions = Scratch::regions(&CONFIG, Plan::Generate);
    let (mut fast, mut slow) = (vec![0xA5; regions.fast], vec![0x5A; regions.slow]);
    let mut two = Scratch::in_regions(&mut fast, &mut slow, &CONFIG, Plan::Generate).unwrap();

    let ids: Vec<u16> = (0..16).map(|i| if i % 5 == 0 { 31 } else { (i * 7 % 30) as u16 }).collect();
    let (mut expected, mut found) = ([0.0; 64], [0.0; 64]);
    model.features(&ids, &mut scratch, &mut expected).unwrap();
    let mut run = model.start(&ids, None, &mut two).unwrap();
    assert!(run.step()); // two blocks
    assert!(!run.step() && !run.step());
    run.finish().probe_feature(&mut found).unwrap();
    assert_eq!(found.map(f32::to_bits), expected.map(f32::to_bits));

    let options = Options { steps: 3, ..Options::default() };
    let (mut expected, mut found) = (ids.clone(), ids.clone());
    let mut steps = Vec::new();
    generate(&model, &mut expected, &options, &mut Seeded(3), &mut scratch, |s| steps.push(s.drawn.to_vec())).unwrap();
    let mut draws = Seeded(3);
    let mut run = Generation::new(&model, &mut found, &options, &mut draws, &mut two).unwrap();
    let mut units = String::new();
    while let Some(progress) = run.advance() {
        match progress {
            Progress::Block => units.push('b'),
            Progress::Step(step) => {
                assert_eq!(step.drawn, steps[step.index]);
                assert!((0..16).all(|at| step.is_given(at) == (ids[at] != 31)));
                units.push('s');
            }
        }
    }
    assert!(run.advance().is_none());
    assert_eq!(units, "bbbsbbbsbbbs"); // 2 + 1 blocks, then the draw
    assert_eq!(found, expected);
    let mut known = [1; 16];
    let mut run = Generation::new(&model, &mut known, &options, &mut draws, &mut two).unwrap();
    assert!(run.advance().is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// Whatever is given and however it is drawn: known tokens stay, unknown ones become codes.
    #[test]
    fn given_tokens_are_never_changed(
        seed: u64,
        given in proptest::collection::vec(proptest::option::of(0u16..30), 16),
        steps in 1usize..20,
        temperature in prop_oneof![Just(0.0), 0.0..20.0f64, Just(1e300)],
        count_from in prop_oneof![Just(CountFrom::Unknown), Just(CountFrom::Grid)],
        greedy: bool,
    ) {
        let bytes = PACK.get_or_init(|| pack(Some(Layout::ROW_MAJOR)));
        let model = Model::new(Pack::new(bytes).unwrap());
        let mut memory = vec![0; Scratch::fast_bytes(&CONFIG, Plan::Generate)];
        let mut scratch = Scratch::new(&mut memory, &CONFIG, Plan::Generate).unwrap();
        let start: Vec<u16> = given.iter().map(|id| id.unwrap_or(31)).collect();
        let mut ids = start.clone();
        let options = Options { steps, temperature, token_temperature: 0.7, count_from };
        let mut unknown = 16;
        let on_step = |step: Step<'_>| {
            let left = step.input.iter().filter(|id| **id == 31).count();
            assert!(left <= unknown, "{left} of {unknown}"); // confidences beyond f32 are equal: none wins
            unknown = left;
            for (at, given) in given.iter().enumerate() {
                assert_eq!(step.is_given(at), given.is_some());
                assert!(given.is_none_or(|id| id == step.input[at] && id == step.drawn[at]));
                assert!(step.drawn[at] < 30);
            }
        };
        if greedy {
            generate(&model, &mut ids, &options, &mut Greedy(seed), &mut scratch, on_step).unwrap();
        } else {
            generate(&model, &mut ids, &options, &mut Seeded(seed), &mut scratch, on_step).unwrap();
        }
        prop_assert!(ids.iter().zip(&given).all(|(id, given)| *id < 30 && given.is_none_or(|given| given == *id)));
    }
}

static PACK: OnceLock<Vec<u8>> = OnceLock::new();

/// Any number of threads and of images at once.
#[test]
fn the_bits_of_a_team() {
    const IMAGES: usize = 31; // more than run together
    let dim = CONFIG.embed_dim;
    let ids: Vec<u16> = (0..16 * IMAGES).map(|i| (i * i % 31) as u16).map(|id| id + u16::from(id == 30)).collect();
    for (what, pack) in packs() {
        for k in Kernels::available() {
            let model = Model::with_kernels(Pack::new(&pack).unwrap(), k);
            let mut scratch = OwnedScratch::new(&CONFIG, Plan::Features).unwrap();
            let [mut features, mut contrastive, mut class] = [(); 3].map(|()| vec![0.0; IMAGES * dim]);
            let outs = features.chunks_exact_mut(dim).zip(contrastive.chunks_exact_mut(dim));
            for ((ids, (feature, contrastive)), class) in
                ids.chunks_exact(16).zip(outs).zip(class.chunks_exact_mut(dim))
            {
                model.features(ids, &mut scratch.get().unwrap(), feature).unwrap();
                let mut memory = scratch.get().unwrap();
                let latent = model.encode(ids, None, &mut memory).unwrap().into_latent();
                latent.contrastive_feature(contrastive).unwrap();
                class.copy_from_slice(latent.class_token());
            }
            for threads in [1, 2, 3, 7] {
                let mut team = Team::new(&CONFIG, threads).unwrap();
                assert_eq!(team.threads(), threads);
                for images in [1, 5, IMAGES] {
                    let (ids, mut out) = (&ids[..16 * images], vec![0.0; images * dim]);
                    team.features(&model, ids, &mut out).unwrap();
                    assert!(out == features[..images * dim], "{what}, {}, {threads} threads, {images}", k.name());
                    team.contrastive_features(&model, ids, &mut out).unwrap();
                    assert!(out == contrastive[..images * dim], "{what}, {}, {threads} threads, {images}", k.name());
                    team.class_token_features(&model, ids, &mut out).unwrap();
                    assert!(out == class[..images * dim], "{what}, {}, {threads} threads, {images}", k.name());
                }
            }
        }
    }
}

#[test]
fn a_team_refuses_what_does_not_fit() {
    let pack = pack(Some(Layout::ROW_MAJOR));
    let model = Model::new(Pack::new(&pack).unwrap());
    assert!(matches!(Team::new(&CONFIG, 0), Err(Error::Option { name: "threads", .. })));
    let mut team = Team::new(&CONFIG, 2).unwrap();
    let mut out = vec![0.0; 2 * CONFIG.embed_dim];
    let mut error = |ids: &[u16], out: &mut [f32]| team.features(&model, ids, out).unwrap_err();
    assert_eq!(error(&[0; 33], &mut out), Error::Length { item: "ids", needed: 32, found: 33 });
    assert!(matches!(error(&[0; 16], &mut out), Error::Length { item: "out", .. }));
    assert!(matches!(error(&[99; 32], &mut out), Error::TokenId { index: 0, .. }));
    let mut small = Team::new(&ModelConfig { embed_dim: CONFIG.embed_dim / 2, ..CONFIG }, 2).unwrap();
    assert!(matches!(small.features(&model, &[0; 32], &mut out), Err(Error::ScratchShape { .. })));
    team.features(&model, &[], &mut []).unwrap();
}

#[test]
fn known_tokens_stay_and_bad_input_is_an_error() {
    let bytes = pack(Some(Layout::ROW_MAJOR));
    let model = Model::new(Pack::new(&bytes).unwrap());
    let mut memory = vec![0; Scratch::bytes(&CONFIG, Plan::Generate)];
    let mut scratch = Scratch::new(&mut memory, &CONFIG, Plan::Generate).unwrap();
    let given: Vec<u16> = (0..16).map(|i| if i % 3 == 0 { i as u16 } else { 31 }).collect();
    let mut ids = given.clone();
    let mut steps = 0;
    generate(&model, &mut ids, &Options::default(), &mut Seeded(5), &mut scratch, |step| {
        steps += 1;
        assert!(step.drawn.iter().all(|&id| id < 30));
        for (given, (input, drawn)) in given.iter().zip(step.input.iter().zip(step.drawn)) {
            assert!(*given == 31 || (given == input && given == drawn));
        }
    })
    .unwrap();
    assert_eq!(steps, 20);
    assert!(ids.iter().all(|&id| id < 30));

    let mut features = [0.0; CONFIG.embed_dim];
    let mut error = |ids: &[u16], out: &mut [f32]| model.features(ids, &mut scratch, out).unwrap_err();
    assert_eq!(error(&[0; 15], &mut features), Error::Length { item: "ids", needed: 16, found: 15 });
    assert_eq!(error(&[30; 16], &mut features), Error::TokenId { index: 0, limit: 30, found: 30 });
    assert!(matches!(error(&[0; 16], &mut features[1..]), Error::Length { item: "out", .. }));
    let position = model.encode(&[0, 0], Some(&[3, 3]), &mut scratch).err();
    assert_eq!(position, Some(Error::Position { index: 1, found: 3 }));
    for options in [
        Options { steps: 0, ..Options::default() },
        Options { temperature: f64::NAN, ..Options::default() },
        Options { token_temperature: 0.0, ..Options::default() },
    ] {
        let result = generate(&model, &mut ids, &options, &mut Seeded(0), &mut scratch, |_| {});
        assert!(matches!(result, Err(Error::Option { .. })));
    }
    let mut small = vec![0; Scratch::bytes(&CONFIG, Plan::Features)];
    let mut small = Scratch::new(&mut small, &CONFIG, Plan::Features).unwrap();
    let all = [0; 16];
    let latent = model.encode(&all, None, &mut small).unwrap().into_latent();
    assert!(matches!(latent.decode(|_, _| {}), Err(Error::ScratchPlan { .. })));
}
