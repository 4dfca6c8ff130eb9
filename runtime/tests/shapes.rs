//! Every model that `validate` accepts runs, the smallest too: on every kernel, in little and in much memory, with
//! weights of any precision and order, and all give the same bits. And a scratch serves the sizes that it was made for
//! and no others.

use proptest::prelude::*;
use sorcen_runtime::{
    generate::{generate, Options},
    pack::{OwnedPack, Precision, TensorData, Writer},
    quant::{
        int4::{self, Order},
        quantise_matrix, Layout,
    },
    rng::{Rng, Stream},
    sampler::Seeded,
    scratch::{Plan, Scratch},
    team::Team,
    vit::{self, Vit, VitConfig, VitParam},
    Error, Kernels, Model, ModelConfig, OwnedBytes, Pack,
};

/// How a weight is stored.
#[derive(Clone, Copy, Debug)]
struct Stored {
    precision: Precision,
    layout: Layout,
}

const ORDERS: [Layout; 5] = [
    Layout::ROW_MAJOR,
    Layout { nr: 16, kt: 4 },
    Layout { nr: 4, kt: 4 },
    Layout { nr: 3, kt: 1 },
    Layout { nr: 64, kt: 64 },
];

/// Uniform numbers as a tensor, stored in this way where it can be.
fn with_tensor<R>(
    seed: u64,
    index: usize,
    (rows, cols): (usize, usize),
    is_matrix: bool,
    Stored { precision, layout }: Stored,
    then: impl FnOnce(TensorData<'_>) -> R,
) -> R {
    let rng = Rng::new(seed, Stream::Init, index as u64);
    let numbers: Vec<f32> = (0..rows * cols).map(|i| rng.uniform(i as u64) as f32 - 0.5).collect();
    let mut scales = vec![0.0; rows];
    match precision {
        Precision::Int8 if is_matrix => {
            let mut weights = vec![0; layout.elements(rows, cols)];
            quantise_matrix(&numbers, (rows, cols), layout, &mut weights, &mut scales).unwrap();
            then(TensorData::Int8 { weights: &weights, scales: &scales, layout })
        }
        Precision::Int4 if is_matrix => {
            let mut packed = vec![0; int4::bytes(rows, cols)];
            int4::quantise_matrix(&numbers, (rows, cols), &mut packed, &mut scales).unwrap();
            let order = Order::beside(layout);
            let mut arranged = vec![0; order.bytes(rows, cols)];
            int4::arrange(&packed, Order::Rows, (rows, cols), order, &mut arranged).unwrap();
            then(TensorData::Int4 { packed: &arranged, scales: &scales, order })
        }
        Precision::F16 => {
            // Halves of a few bits: 0.5 to 1 and -0.5 to -1.
            let halves: Vec<u16> = numbers.iter().map(|x| 0x3800 | (x.to_bits() >> 16) as u16 & 0x83FF).collect();
            then(TensorData::F16(&halves))
        }
        _ => then(TensorData::F32(&numbers)),
    }
}

fn model_pack(config: &ModelConfig, seed: u64, stored: &[Stored]) -> OwnedBytes {
    let mut writer = Writer::new(OwnedBytes::default(), config).unwrap();
    while let Some(param) = writer.next_param() {
        let index = param.index(config);
        let stored = stored[index % stored.len()];
        let shape = param.shape(config).matrix();
        with_tensor(seed, index, shape, param.is_matrix(), stored, |data| writer.tensor(data)).unwrap();
    }
    writer.finish().unwrap().1
}

fn vit_section(config: &VitConfig, seed: u64, stored: &[Stored]) -> OwnedBytes {
    let section = vit::section(config, |param, write| {
        let index = param.index(config);
        let stored = match param {
            VitParam::Codebook => Stored { precision: Precision::F32, layout: Layout::ROW_MAJOR },
            _ => stored[index % stored.len()],
        };
        with_tensor(seed, index, param.shape(config).matrix(), param.is_matrix(), stored, write)
    });
    OwnedBytes::from(&section.unwrap()[..])
}

fn bits(found: &mut Vec<u32>, x: &[f32]) {
    found.extend(x.iter().map(|x| x.to_bits()));
}

/// Everything that a model computes, as bits.
fn run_model(model: &Model<'_>, scratch: &mut Scratch<'_>) -> Vec<u32> {
    let config = *model.config();
    let mask = config.mask_token_id as u16;
    let id = |i: usize| if i % 3 == 1 { mask } else { (i * 5 % config.codebook_size) as u16 };
    let ids: Vec<u16> = (0..config.tokens()).map(id).collect();
    let (mut found, mut feature) = (Vec::new(), vec![0.0; config.embed_dim]);
    model.features(&ids, scratch, &mut feature).unwrap();
    bits(&mut found, &feature);
    model.class_token_feature(&ids, scratch, &mut feature).unwrap();
    bits(&mut found, &feature);
    // All tokens, the last alone, none.
    for first in [0, config.tokens() - 1, config.tokens()] {
        let positions: Vec<u16> = (first as u16..config.tokens() as u16).collect();
        let latent = model.encode(&ids[first..], Some(&positions), scratch).unwrap().into_latent();
        bits(&mut found, latent.rows());
        latent.decode(|_, logits| bits(&mut found, logits)).unwrap();
    }
    let mut drawn = vec![mask; config.tokens()];
    let options = Options { steps: 3, ..Options::default() };
    generate(model, &mut drawn, &options, &mut Seeded(7), scratch, |_| {}).unwrap();
    assert!(drawn.iter().all(|id| usize::from(*id) < config.codebook_size));
    found.extend(drawn.into_iter().map(u32::from));
    found
}

fn check_model(config: &ModelConfig, seed: u64, stored: &[Stored]) {
    config.validate().unwrap();
    let bytes = model_pack(config, seed, stored);
    let pack = Pack::new(&bytes).unwrap();
    let arranged = OwnedPack::arrange(&pack, Kernels::detect().layout()).unwrap();
    let expected = {
        let mut memory = vec![0; Scratch::bytes(config, Plan::Generate)];
        let mut scratch = Scratch::new(&mut memory, config, Plan::Generate).unwrap();
        run_model(&Model::with_kernels(pack, Kernels::SCALAR), &mut scratch)
    };
    let mut two = Team::new(config, 2).unwrap();
    for kernels in Kernels::available() {
        for (what, pack) in [("as written", pack), ("arranged", arranged.pack().unwrap())] {
            let model = Model::with_kernels(pack, kernels);
            let what = format!("{}, {what}, {config:?}, {stored:?}", kernels.name());
            for bytes in [Scratch::bytes(config, Plan::Generate), Scratch::fast_bytes(config, Plan::Generate)] {
                let mut memory = vec![0xA5; bytes];
                let mut scratch = Scratch::new(&mut memory, config, Plan::Generate).unwrap();
                assert!(run_model(&model, &mut scratch) == expected, "{bytes} bytes, {what}");
            }
            let regions = Scratch::regions(config, Plan::Generate);
            let (mut fast, mut slow) = (vec![0xA5; regions.fast], vec![0x5A; regions.slow]);
            let mut scratch = Scratch::in_regions(&mut fast, &mut slow, config, Plan::Generate).unwrap();
            assert!(run_model(&model, &mut scratch) == expected, "two regions, {what}");
            // The encoder alone, and by two threads.
            let ids = vec![(config.codebook_size - 1) as u16; config.tokens()];
            let mut feature = vec![0.0; config.embed_dim];
            model.features(&ids, &mut scratch, &mut feature).unwrap();
            for bytes in [Scratch::bytes(config, Plan::Features), Scratch::fast_bytes(config, Plan::Features)] {
                let (mut memory, mut alone) = (vec![0xA5; bytes], vec![0.0; config.embed_dim]);
                let mut scratch = Scratch::new(&mut memory, config, Plan::Features).unwrap();
                model.features(&ids, &mut scratch, &mut alone).unwrap();
                assert!(alone == feature, "{bytes} bytes for features, {what}");
            }
            let mut team = vec![0.0; config.embed_dim];
            two.features(&model, &ids, &mut team).unwrap();
            assert!(team == feature, "two threads, {what}");
        }
    }
}

fn check_vit(config: &VitConfig, seed: u64, stored: &[Stored]) {
    config.validate().unwrap();
    let bytes = vit_section(config, seed, stored);
    let vit = Vit::new(&bytes).unwrap();
    let rng = Rng::new(seed, Stream::Evaluation, 0);
    let rgb: Vec<u8> = (0..config.side() * config.side() * 3).map(|i| rng.bits(i as u64) as u8).collect();
    let mut expected = None;
    for kernels in Kernels::available() {
        for bytes in [Scratch::vit_bytes(config), Scratch::vit_fast_bytes(config)] {
            let mut memory = vec![0xA5; bytes];
            let mut scratch = Scratch::for_vit(&mut memory, config).unwrap();
            let vit = vit.with_kernels(kernels);
            let (mut ids, mut decoded) = (vec![u16::MAX; config.tokens()], vec![0xA5; rgb.len()]);
            vit.encode(&rgb, &mut scratch, &mut ids).unwrap();
            vit.decode(&ids, &mut scratch, &mut decoded).unwrap();
            let found = (ids, decoded);
            let expected = expected.get_or_insert_with(|| found.clone());
            assert!(found == *expected, "{}, {bytes} bytes, {config:?}, {stored:?}", kernels.name());
        }
    }
}

/// A width and a number of heads that divides it.
fn width() -> impl Strategy<Value = (usize, usize)> {
    let widths = prop_oneof![1usize..=20, prop::sample::select(vec![31, 32, 33, 48, 63, 64, 65, 96])];
    widths.prop_flat_map(|width| {
        let divisors: Vec<usize> = (1..=width).filter(|heads| width.is_multiple_of(*heads)).collect();
        (Just(width), prop::sample::select(divisors))
    })
}

fn stored() -> impl Strategy<Value = Vec<Stored>> {
    let precision = prop_oneof![
        4 => Just(Precision::Int8),
        2 => Just(Precision::Int4),
        1 => Just(Precision::F32),
        1 => Just(Precision::F16),
    ];
    let one = (precision, prop::sample::select(&ORDERS[..]));
    prop::collection::vec(one.prop_map(|(precision, layout)| Stored { precision, layout }), 1..8)
}

fn models() -> impl Strategy<Value = ModelConfig> {
    let ids = (2usize..12, 0usize..4, any::<prop::sample::Index>(), any::<prop::sample::Index>());
    let ratio = prop_oneof![6 => 1usize..=4, 1 => Just(16usize)];
    let eps = prop::sample::select(vec![f32::MIN_POSITIVE, 1e-6, 0.5]);
    (1usize..=3, ids, width(), 1usize..=2, width(), 1usize..=2, ratio, eps).prop_map(
        |(
            grid,
            (codes, more, class, mask),
            (dim, heads),
            depth,
            (decoder_dim, decoder_heads),
            decoder_depth,
            ratio,
            eps,
        )| {
            let class = class.index(2 + more);
            let mask = (class + 1 + mask.index(1 + more)) % (2 + more);
            ModelConfig {
                grid,
                codebook_size: codes,
                vocab_size: codes + 2 + more,
                class_token_id: codes + class,
                mask_token_id: codes + mask,
                embed_dim: dim,
                depth,
                num_heads: heads,
                decoder_embed_dim: decoder_dim,
                decoder_depth,
                decoder_num_heads: decoder_heads,
                mlp_ratio: ratio,
                layer_norm_eps: eps,
            }
        },
    )
}

fn vits() -> impl Strategy<Value = VitConfig> {
    let ratio = prop_oneof![6 => 1usize..=4, 1 => Just(16usize)];
    (1usize..=3, 1usize..=5, 2usize..9, 1usize..20, width(), 1usize..=2, 1usize..=2, ratio).prop_map(
        |(grid, patch, codes, code_dim, (embed_dim, num_heads), depth, decoder_depth, mlp_ratio)| VitConfig {
            grid,
            patch,
            codes,
            code_dim,
            embed_dim,
            depth,
            num_heads,
            decoder_depth,
            mlp_ratio,
        },
    )
}

const INT8: [Stored; 1] = [Stored { precision: Precision::Int8, layout: Layout { nr: 16, kt: 4 } }];

/// Hidden layers no wider than the model, one token or few.
#[test]
fn the_smallest_models_run() {
    check_model(&ModelConfig { mlp_ratio: 1, ..ModelConfig::micro(1, 32) }, 1, &INT8);
    for (grid, dim, mlp_ratio) in [(1, 1, 1), (1, 2, 1), (1, 16, 1), (1, 64, 2), (2, 4, 1), (2, 1, 16)] {
        for stored in
            ORDERS.map(|layout| [Precision::Int8, Precision::Int4].map(|precision| Stored { precision, layout }))
        {
            let one_head = ModelConfig { num_heads: 1, decoder_num_heads: 1, mlp_ratio, ..ModelConfig::micro(grid, 2) };
            check_model(&ModelConfig { embed_dim: dim, decoder_embed_dim: dim, depth: 1, ..one_head }, 2, &stored);
            let (patch, codes, code_dim, num_heads) = (1, 2, 1, 1);
            let (depth, decoder_depth) = (1, 1);
            let vit =
                VitConfig { grid, patch, codes, code_dim, embed_dim: dim, depth, num_heads, decoder_depth, mlp_ratio };
            check_vit(&vit, 3, &stored);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn every_valid_model_runs(config in models(), seed: u64, stored in stored()) {
        check_model(&config, seed, &stored);
    }

    #[test]
    fn every_valid_tokenizer_runs(config in vits(), seed: u64, stored in stored()) {
        check_vit(&config, seed, &stored);
    }

    /// Whatever a scratch was made for and whoever asks for it: what a scratch of its own gives, or an error.
    #[test]
    fn another_scratch_gives_the_same_or_an_error(
        ours in models(), theirs in models(), same in 0usize..6, plan in prop::sample::select(vec![Plan::Features, Plan::Generate]), large: bool,
    ) {
        // Few differences are harder to see than many.
        let theirs = match same {
            0 => theirs,
            1 => ModelConfig { codebook_size: ours.codebook_size, vocab_size: ours.vocab_size, mask_token_id: ours.mask_token_id, class_token_id: ours.class_token_id, ..theirs },
            2 => ModelConfig { embed_dim: theirs.embed_dim, num_heads: theirs.num_heads, ..ours },
            3 => ModelConfig { decoder_embed_dim: theirs.decoder_embed_dim, decoder_num_heads: theirs.decoder_num_heads, ..ours },
            4 => ModelConfig { mlp_ratio: theirs.mlp_ratio, grid: theirs.grid, ..ours },
            _ => ModelConfig { codebook_size: theirs.codebook_size, vocab_size: theirs.vocab_size, mask_token_id: theirs.mask_token_id, class_token_id: theirs.class_token_id, ..ours },
        };
        let bytes = model_pack(&ours, 5, &INT8);
        let model = Model::new(Pack::new(&bytes).unwrap());
        let ids = vec![0; ours.tokens()];
        let options = Options { steps: 2, ..Options::default() };
        let all = |scratch: &mut Scratch<'_>| {
            let mut feature = vec![0.0; ours.embed_dim];
            model.class_token_feature(&ids, scratch, &mut feature)?;
            model.features(&ids, scratch, &mut feature)?;
            let mut found = Vec::new();
            bits(&mut found, &feature);
            let decoded = model.encode(&ids, None, scratch)?.into_latent().decode(|_, logits| bits(&mut found, logits));
            let mut drawn = vec![ours.mask_token_id as u16; ours.tokens()];
            let generated = generate(&model, &mut drawn, &options, &mut Seeded(1), scratch, |_| {});
            assert_eq!(decoded.is_ok(), generated.is_ok());
            decoded.and(generated)?;
            Ok::<_, Error>((found, drawn))
        };
        let mut memory = vec![0; Scratch::bytes(&ours, Plan::Generate)];
        let expected = all(&mut Scratch::new(&mut memory, &ours, Plan::Generate).unwrap()).unwrap();
        let their_bytes = if large { Scratch::fast_bytes(&theirs, plan) } else { Scratch::bytes(&theirs, plan) };
        let mut memory = vec![0xA5; their_bytes];
        match all(&mut Scratch::new(&mut memory, &theirs, plan).unwrap()) {
            Ok(found) => prop_assert!(found == expected && plan == Plan::Generate),
            Err(Error::ScratchPlan { expected, found }) => {
                prop_assert!((expected, found) == ("Plan::Generate", "Plan::Features") && plan == Plan::Features);
            }
            Err(Error::ScratchShape { needed, found, .. }) => prop_assert_ne!(needed, found),
            Err(error) => panic!("{error}"),
        }
    }
}

fn message<T>(result: Result<T, Error>) -> String {
    result.err().expect("an error").to_string()
}

#[test]
fn a_scratch_says_what_it_was_made_for() {
    let [small, large] = [32, 512].map(|codes| ModelConfig::micro(8, codes));
    let bytes = model_pack(&large, 1, &INT8);
    let model = Model::new(Pack::new(&bytes).unwrap());
    let ids = [0; 64];
    let mut memory = vec![0; Scratch::fast_bytes(&large, Plan::Generate)];

    let needed = Scratch::bytes(&large, Plan::Features);
    let too_small = message(Scratch::new(&mut memory[..needed - 1], &large, Plan::Features));
    assert_eq!(too_small, format!("scratch memory: expected at least {needed} bytes, found {}", needed - 1));

    let mut scratch = Scratch::new(&mut memory, &small, Plan::Generate).unwrap();
    let other_codes = message(model.encode(&ids, None, &mut scratch));
    let expected =
        "scratch memory: made for a model of other sizes: expected 4096 numbers of an MLP's hidden layer, found 2048";
    assert!(other_codes.starts_with("scratch memory: made for a model of other sizes: expected"), "{other_codes}");
    let mut memory = vec![0; Scratch::bytes(&large, Plan::Generate)];
    let mut scratch = Scratch::new(&mut memory, &small, Plan::Generate).unwrap();
    assert_eq!(message(model.encode(&ids, None, &mut scratch)), expected);

    let mut scratch = Scratch::new(&mut memory, &large, Plan::Features).unwrap();
    let latent = model.encode(&ids, None, &mut scratch).unwrap().into_latent();
    let other_plan = "scratch memory: expected one made for Plan::Generate, found one made for Plan::Features";
    assert_eq!(message(latent.decode(|_, _| {})), other_plan);
    let mut drawn = [large.mask_token_id as u16; 64];
    let error = generate(&model, &mut drawn, &Options::default(), &mut Seeded(1), &mut scratch, |_| {});
    assert_eq!(message(error), other_plan);

    let vit = VitConfig {
        grid: 8,
        patch: 8,
        codes: 9,
        code_dim: 4,
        embed_dim: 128,
        depth: 1,
        num_heads: 2,
        decoder_depth: 1,
        mlp_ratio: 1,
    };
    let section = vit_section(&vit, 1, &INT8);
    let tokenizer = Vit::new(&section).unwrap();
    let (rgb, mut ids) = (vec![7; 64 * 64 * 3], [0; 64]);
    let error = message(tokenizer.encode(&rgb, &mut scratch, &mut ids));
    assert_eq!(error, "scratch memory: expected one made for a ViT tokenizer, found one made for Plan::Features");
    // As many bytes and more in every buffer, in rows of another length.
    let other = VitConfig { grid: 16, patch: 16, embed_dim: 64, ..vit };
    let mut memory = vec![0; Scratch::vit_fast_bytes(&other)];
    let mut scratch = Scratch::for_vit(&mut memory, &other).unwrap();
    let expected = "scratch memory: made for a model of other sizes: expected 64 rows of a sequence, found 256";
    assert_eq!(message(tokenizer.encode(&rgb, &mut scratch, &mut ids)), expected);
    assert_eq!(message(tokenizer.decode(&[0; 64], &mut scratch, &mut vec![0; 64 * 64 * 3])), expected);
    let error = message(model.encode(&[0; 64], None, &mut scratch));
    assert_eq!(error, "scratch memory: expected one made for Plan::Features, found one made for a ViT tokenizer");
}
