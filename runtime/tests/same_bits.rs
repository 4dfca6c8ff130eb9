//! One model made of counter-generated weights, run on any target: the bits of its features,
//! logits and generated tokens are written down here and must come out everywhere.

use sorcen_runtime::{
    generate::{generate, Options},
    pack::{SliceSink, TensorData, Writer},
    quant::{int4, quantise_matrix, Layout},
    rng::{splitmix64, Rng, Stream},
    sampler::Seeded,
    scratch::{Plan, Scratch},
    Error, Kernels, Model, ModelConfig, Pack,
};

const CONFIG: ModelConfig = ModelConfig { depth: 2, decoder_depth: 1, ..ModelConfig::micro(4, 30) };

/// A pack, int8 in this layout or else int4; weights are uniform numbers, so that no library function is involved.
fn pack(layout: Option<Layout>) -> Vec<u8> {
    let mut buffer = vec![0; 600_000];
    let mut writer = Writer::new(SliceSink(&mut buffer), &CONFIG).unwrap();
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
            writer.tensor(TensorData::Int4 { packed: &packed, scales: &scales }).unwrap();
            continue;
        };
        let mut weights = vec![0; layout.elements(rows, cols)];
        quantise_matrix(&numbers, (rows, cols), layout, &mut weights, &mut scales).unwrap();
        writer.tensor(TensorData::Int8 { weights: &weights, scales: &scales, layout }).unwrap();
    }
    let (len, _) = writer.finish().unwrap();
    buffer.truncate(len as usize);
    buffer
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
    println!("kernels: {:?}", Kernels::available().map(|k| k.name()).collect::<Vec<_>>());
    for (nr, kt) in [(1, 0), (16, 4), (4, 4), (8, 32), (3, 1)] {
        let expected = [0x7f8e_4212_2ac5_5d49, 0x78b2_5778_aedc_56e7, 0x351c_88eb_300c_8786];
        check(&format!("layout {nr}x{kt}"), &pack(Some(Layout { nr, kt })), expected);
    }
}

#[test]
fn the_golden_bits_of_int4() {
    check("int4", &pack(None), [0x7850_026b_fb12_b31c, 0x61a4_760f_8f7d_226a, 0xf189_71d9_affe_e4ba]);
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
    assert!(matches!(latent.decode(|_, _| {}), Err(Error::Scratch { .. })));
}
