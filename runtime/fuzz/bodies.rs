//! What the fuzz targets do with their input; `runtime/tests/fuzz.rs` does the same with inputs of a fixed seed.

use std::sync::OnceLock;

use sorcen_runtime::{
    generate::{generate, Options},
    head::Classifier,
    pack::{reseal, Data, Matrix, OwnedPack, Precision, SliceSink, TensorData, Writer},
    quant::{
        int4::{self, Order},
        quantise_matrix, Layout,
    },
    rng::{Rng, Stream},
    sampler::{Greedy, Seeded},
    schema,
    scratch::{Plan, Scratch},
    self_test::SelfTest,
    team::Team,
    vit::{section, Vit, VitConfig, VitParam},
    Error, Kernels, Model, ModelConfig, Pack,
};

/// As small as a model with all its parts gets: a pack of a few kilobytes.
const CONFIG: ModelConfig = ModelConfig {
    embed_dim: 8,
    depth: 1,
    num_heads: 2,
    decoder_embed_dim: 8,
    decoder_depth: 1,
    decoder_num_heads: 2,
    mlp_ratio: 2,
    ..ModelConfig::micro(3, 5)
};

/// A ViT tokenizer for it, as small.
const VIT: VitConfig = VitConfig {
    grid: CONFIG.grid,
    patch: 2,
    codes: CONFIG.codebook_size,
    code_dim: 3,
    embed_dim: 8,
    depth: 1,
    num_heads: 2,
    decoder_depth: 1,
    mlp_ratio: 2,
};

/// Bytes that are taken one after the other; zeros where they end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let (taken, rest) = self.0.split_at(N.min(self.0.len()));
        array[..taken.len()].copy_from_slice(taken);
        self.0 = rest;
        array
    }

    fn byte(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    fn index(&mut self, end: usize) -> usize {
        usize::from(u16::from_le_bytes(self.array())) % end
    }
}

/// A pack in memory, where its numbers may be read in place.
struct File {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl File {
    fn new(bytes: &[u8]) -> Self {
        let mut memory = vec![0; bytes.len() + 64];
        let start = memory.as_ptr().align_offset(64);
        memory[start..start + bytes.len()].copy_from_slice(bytes);
        Self { memory, start, len: bytes.len() }
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..][..self.len]
    }
}

/// A pack of numbers that follow from a seed.
fn write(
    seed: u64,
    mut choose: impl FnMut(usize) -> (Precision, Layout),
    mut special: impl FnMut(usize) -> Option<f32>,
) -> Vec<u8> {
    let mut buffer = vec![0xA5; 100_000];
    let mut writer = Writer::new(SliceSink(&mut buffer), &CONFIG).unwrap();
    while let Some(param) = writer.next_param() {
        let index = param.index(&CONFIG);
        let shape = param.shape(&CONFIG).matrix();
        let mut numbers = numbers(seed, index, shape);
        if let Some(value) = special(index) {
            numbers[index % (shape.0 * shape.1)] = value;
        }
        encoded(&numbers, shape, param.is_matrix(), choose(index), |data| writer.tensor(data)).unwrap();
    }
    writer.tokenizer(&core::array::from_fn::<u8, { 5 * 2 * 2 * 3 }, _>(|i| (i * 7) as u8), 5, 2).unwrap();
    writer.card("{\"name\":\"fuzz\"}").unwrap();
    let weights: [i8; 3 * CONFIG.embed_dim] = core::array::from_fn(|i| (i * 29 % 255) as i8 | 1);
    let data = Data::Int8 { weights: &weights, scales: &[0.01, 0.02, 0.03], layout: Layout::ROW_MAJOR };
    let weight = Matrix { rows: 3, cols: CONFIG.embed_dim, data };
    writer.classifier(&Classifier::new(weight, &[0.5, 0.25, -0.5], Some("a\nb\nc")).unwrap()).unwrap();
    // Its outputs are not this model's: it finds that.
    let (ids, features, confidences) = ([1; CONFIG.tokens()], [0.5; CONFIG.embed_dim], [-1.0; CONFIG.tokens()]);
    let golden = SelfTest::new(&CONFIG, 0.0, &ids, &features, &ids, &confidences).unwrap();
    writer.self_test(&golden).unwrap();
    // Last, so that what stands before it stays where it is for the corpus.
    let vit = section(&VIT, |param, write| {
        let (index, shape) = (param.index(&VIT), param.shape(&VIT).matrix());
        let choice = if param == VitParam::Codebook { (Precision::F32, Layout::ROW_MAJOR) } else { choose(index) };
        encoded(&numbers(!seed, index, shape), shape, param.is_matrix(), choice, write)
    });
    writer.vit(&vit.unwrap()).unwrap();
    let (len, _) = writer.finish().unwrap();
    buffer.truncate(len as usize);
    buffer
}

/// The numbers of a weight.
fn numbers(seed: u64, index: usize, (rows, cols): (usize, usize)) -> Vec<f32> {
    let rng = Rng::new(seed, Stream::Init, index as u64);
    (0..rows * cols).map(|i| rng.normal(i as u64) as f32 * 0.3).collect()
}

/// Hands numbers to `write` in a precision; vectors stay floats.
fn encoded<R>(
    numbers: &[f32],
    (rows, cols): (usize, usize),
    is_matrix: bool,
    (precision, layout): (Precision, Layout),
    write: impl FnOnce(TensorData<'_>) -> R,
) -> R {
    match precision {
        Precision::Int8 if is_matrix => {
            let (mut weights, mut scales) = (vec![0; layout.elements(rows, cols)], vec![0.0; rows]);
            quantise_matrix(numbers, (rows, cols), layout, &mut weights, &mut scales).unwrap();
            write(TensorData::Int8 { weights: &weights, scales: &scales, layout })
        }
        Precision::Int4 if is_matrix => {
            let (mut packed, mut scales) = (vec![0; int4::bytes(rows, cols)], vec![0.0; rows]);
            int4::quantise_matrix(numbers, (rows, cols), &mut packed, &mut scales).unwrap();
            let order = Order::beside(layout);
            let mut arranged = vec![0; order.bytes(rows, cols)];
            int4::arrange(&packed, Order::Rows, (rows, cols), order, &mut arranged).unwrap();
            write(TensorData::Int4 { packed: &arranged, scales: &scales, order })
        }
        // As written: a half that is too large is infinite, which a reader refuses.
        Precision::F16 => write(TensorData::F16(&numbers.iter().map(|&x| half_bits(x)).collect::<Vec<_>>())),
        _ => write(TensorData::F32(numbers)),
    }
}

/// Half-precision bits of a number, cut off; enough for weights.
fn half_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let (sign, exponent) = ((bits >> 16) as u16 & 0x8000, (bits >> 23 & 0xFF) as i32 - 127 + 15);
    match exponent {
        ..=0 => sign,
        31.. => sign | 0x7C00,
        _ => sign | (exponent as u16) << 10 | (bits >> 13) as u16 & 0x3FF,
    }
}

/// The valid packs that are tampered with.
fn bases() -> &'static [Vec<u8>] {
    static BASES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    BASES.get_or_init(|| {
        let panels = Layout { nr: 16, kt: 4 };
        [
            (Precision::Int8, Layout::ROW_MAJOR),
            (Precision::Int8, panels),
            (Precision::Int8, Layout { nr: 3, kt: 1 }),
            (Precision::Int4, Layout::ROW_MAJOR),
            (Precision::F16, Layout::ROW_MAJOR),
            (Precision::F32, Layout::ROW_MAJOR),
            (Precision::Int4, panels),
        ]
        .map(|choice| write(1, |_| choice, |_| None))
        .into()
    })
}

/// Changes a valid pack, fixes its checksums, and does all that a device might do with it.
///
/// The first byte chooses the pack, the kernels and the sampler, then come edits. Returns whether the pack was accepted.
pub fn hostile_pack(data: &[u8]) -> bool {
    let mut input = Input(data);
    let choice = usize::from(input.byte());
    let mut bytes = bases()[choice % bases().len()].clone();
    while !input.0.is_empty() {
        edit(&mut bytes, &mut input);
    }
    reseal(&mut bytes);
    let file = File::new(&bytes);
    let Ok(pack) = Pack::new(file.bytes()) else { return false };
    run(&pack, choice / bases().len());
    true
}

/// How far from the end of the first of them its ViT section begins; of the others, about.
fn vit_bytes() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| {
        let file = File::new(&bases()[0]);
        let vit = Pack::new(file.bytes()).unwrap().vit().unwrap().bytes();
        file.bytes().as_ptr_range().end as usize - vit.as_ptr() as usize
    })
}

/// Numbers that break arithmetic, offsets and sizes.
const SPECIAL: [u32; 16] = [
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0xFFFF,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFF,
    0x0000_0001,
    0x0080_0000, // the smallest normal f32
    0x7F7F_FFFF, // the largest
    0xFF7F_FFFF,
    0x7F80_0000, // infinity
    0x7FC0_0000, // not a number
    0x3F80_0000,
];

/// One change at a place.
fn edit(bytes: &mut Vec<u8>, input: &mut Input<'_>) {
    let what = input.byte();
    // Half of all changes hit what describes the file: header, section table, config, tensor table; a quarter of them the
    // last section, which describes itself.
    let start = if what >> 6 == 3 { bytes.len().saturating_sub(vit_bytes()) } else { 0 };
    let region = if what & 1 == 0 { (bytes.len() - start).min(2048) } else { bytes.len() - start };
    if region < 16 {
        return;
    }
    let at = start + input.index(region - 8);
    match what >> 1 & 7 {
        0 => bytes[at] ^= 1 << (input.byte() & 7),
        1 => bytes[at] = input.byte(),
        2 => bytes[at / 4 * 4..][..4].copy_from_slice(&SPECIAL[usize::from(input.byte() & 15)].to_le_bytes()),
        3 => bytes[at / 4 * 4..][..4].copy_from_slice(&input.array::<4>()),
        4 => bytes[at / 8 * 8..][..8].copy_from_slice(&input.array::<8>()),
        5 => {
            let (len, value) = (usize::from(input.byte()), input.byte());
            let end = bytes.len().min(at + len);
            bytes[at..end].fill(value);
        }
        6 => {
            // Every f32 of a stretch, so that whole tensors and scales get large.
            let value = SPECIAL[usize::from(input.byte() & 15)];
            let len = usize::from(input.byte());
            for word in bytes[at / 4 * 4..].chunks_exact_mut(4).take(len) {
                word.copy_from_slice(&value.to_le_bytes());
            }
        }
        _ => bytes.truncate(at + 8),
    }
}

/// The largest scratch that a fuzzer waits for.
const MEMORY: usize = 4 << 20;

/// Features, class, self-test, logits, generation, both tokenizers and a team over an accepted pack: no panic, and the
/// same bits on two kernels.
fn run(pack: &Pack<'_>, choice: usize) {
    let config = *pack.config();
    assert!(pack.card().is_none_or(|card| card.len() <= pack.bytes()));
    for param in schema::params(&config) {
        assert!(pack.tensor_bytes(param) <= pack.bytes(), "{param}");
    }
    let bytes = if choice & 1 == 0 {
        Scratch::bytes(&config, Plan::Generate)
    } else {
        Scratch::fast_bytes(&config, Plan::Generate)
    };
    if bytes > MEMORY {
        return;
    }
    let all: Vec<Kernels> = Kernels::available().collect();
    let mut memory = vec![0x5A; bytes + 64];
    let (kernels, greedy) = (all[choice / 2 % all.len()], choice / 2 / all.len() % 2 == 1);
    let mut on = |k: Kernels| {
        let mut scratch = Scratch::new(&mut memory, &config, Plan::Generate).unwrap();
        outputs(&Model::with_kernels(*pack, k), &mut scratch, greedy).unwrap()
    };
    let found = on(kernels);
    assert_eq!(found, on(Kernels::SCALAR), "{}", kernels.name());
    if let Some(tokenizer) = pack.tokenizer() {
        let side = tokenizer.patch();
        let mut rgb = vec![0; 2 * side * side * 3];
        let mut ids = [0, (tokenizer.codes() - 1) as u16];
        tokenizer.decode(&ids, 2 * side, side, &mut rgb).unwrap();
        tokenizer.encode(&rgb, 2 * side, side, &mut ids).unwrap();
        assert!(ids.iter().all(|&id| usize::from(id) < tokenizer.codes()));
    }
    if let Some(vit) = pack.vit() {
        let found = tokens_and_pixels(&vit.with_kernels(kernels), choice & 1 == 1);
        let expected = tokens_and_pixels(&vit.with_kernels(Kernels::SCALAR), false);
        assert_eq!(found, expected, "ViT, {}", kernels.name());
    }
    // Threads cost more than such a model: a part of the packs.
    if choice % 5 == 4 {
        let ids: Vec<u16> = (0..3 * config.tokens()).map(|i| (i % config.codebook_size) as u16).collect();
        let mut team = Team::new(&config, 2).unwrap();
        let mut found = vec![0.0; 3 * config.embed_dim];
        team.features(&Model::with_kernels(*pack, kernels), &ids, &mut found).unwrap();
        let mut scratch = Scratch::new(&mut memory, &config, Plan::Generate).unwrap();
        for (ids, found) in ids.chunks_exact(config.tokens()).zip(found.chunks_exact(config.embed_dim)) {
            let mut expected = vec![0.0; config.embed_dim];
            Model::with_kernels(*pack, Kernels::SCALAR).features(ids, &mut scratch, &mut expected).unwrap();
            assert!(found.iter().map(bits).eq(expected.iter().map(bits)), "a team, {}", kernels.name());
        }
    }
}

/// What a ViT tokenizer makes of a picture and of codes; nothing where it is larger than a fuzzer waits for.
fn tokens_and_pixels(vit: &Vit<'_>, fast: bool) -> Option<(Vec<u16>, Vec<u8>)> {
    let config = *vit.config();
    let bytes = if fast { Scratch::vit_fast_bytes(&config) } else { Scratch::vit_bytes(&config) };
    if bytes > MEMORY {
        return None;
    }
    let mut memory = vec![0xC3; bytes + 64];
    let mut scratch = Scratch::for_vit(&mut memory, &config).unwrap();
    let mut rgb: Vec<u8> = (0..config.side() * config.side() * 3).map(|i| (i * 37) as u8).collect();
    let mut ids = vec![0; config.tokens()];
    vit.encode(&rgb, &mut scratch, &mut ids).unwrap();
    assert!(ids.iter().all(|&id| usize::from(id) < config.codes));
    vit.decode(&ids, &mut scratch, &mut rgb).unwrap();
    Some((ids, rgb))
}

/// The bits of a number, one NaN being as good as another.
fn bits(x: &f32) -> u32 {
    if x.is_nan() {
        u32::MAX
    } else {
        x.to_bits()
    }
}

/// Bits of features, class token and logits, and tokens.
fn outputs(model: &Model<'_>, scratch: &mut Scratch<'_>, greedy: bool) -> Result<Vec<u32>, Error> {
    let config = *model.config();
    let mask = config.mask_token_id as u16;
    let ids: Vec<u16> =
        (0..config.tokens()).map(|i| if i % 4 == 1 { mask } else { (i * 3 % config.codebook_size) as u16 }).collect();
    let mut feature = vec![0.0; config.embed_dim];
    model.features(&ids, scratch, &mut feature)?;
    let mut found: Vec<u32> = feature.iter().map(bits).collect();
    model.class_token_feature(&ids, scratch, &mut feature)?;
    found.extend(feature.iter().map(bits));
    if model.pack().classifier().is_some() {
        let prediction = model.classify(&ids, scratch)?;
        found.extend([prediction.class as u32, bits(&prediction.logit), bits(&prediction.probability)]);
    }
    // A golden output that is not ours is an error, and none at all too; neither may panic.
    let tested = model.self_test(scratch);
    found.extend(tested.is_ok().then_some(1));
    if !model.pack().has_decoder() {
        return Ok(found);
    }
    let kept: Vec<u16> = (0..config.tokens() as u16).step_by(2).collect();
    let kept_ids: Vec<u16> = kept.iter().map(|&p| ids[usize::from(p)]).collect();
    let latent = model.encode(&kept_ids, Some(&kept), scratch)?.into_latent();
    latent.decode(|_, logits| found.extend(logits.iter().map(bits)))?;
    let mut drawn = ids.clone();
    let options = Options { steps: 2, ..Options::default() };
    if greedy {
        generate(model, &mut drawn, &options, &mut Greedy(3), scratch, |_| {})?;
    } else {
        generate(model, &mut drawn, &options, &mut Seeded(3), scratch, |_| {})?;
    }
    for (id, given) in drawn.iter().zip(&ids) {
        assert!(usize::from(*id) < config.codebook_size, "a drawn id is a code");
        assert!(*given == mask || given == id, "known tokens stay");
    }
    found.extend(drawn.into_iter().map(u32::from));
    Ok(found)
}

/// Writes a pack of chosen precisions and layouts, reads it back, and arranges it anew: nothing changes.
pub fn round_trip(data: &[u8]) {
    let mut input = Input(data);
    let seed = u64::from_le_bytes(input.array());
    let choices: Vec<(Precision, Layout)> = (0..schema::count(&CONFIG))
        .map(|_| {
            let [precision, nr, kt] = input.array();
            let precision =
                [Precision::Int8, Precision::Int4, Precision::F16, Precision::F32][usize::from(precision % 4)];
            let kt = if kt % 8 == 7 { 0 } else { 1 << (kt % 8) };
            (precision, Layout { nr: nr % 64 + 1, kt })
        })
        .collect();
    let special: [u8; 4] = input.array();
    let special = Some(f32::from_le_bytes(special)).filter(|x| x.is_finite() && x.abs() < 6e4);
    let bytes = write(seed, |i| choices[i], |_| special);
    let file = File::new(&bytes);
    let pack = Pack::new(file.bytes()).unwrap();
    assert_eq!(pack.config(), &CONFIG);
    assert_eq!((pack.bytes(), pack.card()), (bytes.len(), Some("{\"name\":\"fuzz\"}")));
    assert_eq!(pack.tokenizer().unwrap().codes(), 5);
    assert_eq!(pack.vit().unwrap().config(), &VIT);
    for (param, (precision, layout)) in schema::params(&CONFIG).zip(&choices) {
        let expected = match precision {
            Precision::Int8 | Precision::Int4 if !param.is_matrix() => Precision::F32,
            other => *other,
        };
        assert_eq!(pack.precision(param), Some(expected), "{param}");
        if let Data::Int8 { layout: found, .. } = pack.matrix(param).data {
            assert_eq!(found, *layout, "{param}");
        }
    }
    let vit = tokens_and_pixels(&pack.vit().unwrap().with_kernels(Kernels::SCALAR), false);
    let arranged = OwnedPack::arrange(&pack, Kernels::detect().layout()).unwrap();
    let mut memory = vec![0; Scratch::fast_bytes(&CONFIG, Plan::Generate)];
    let mut scratch = Scratch::new(&mut memory, &CONFIG, Plan::Generate).unwrap();
    let greedy = seed % 2 == 1;
    let expected = outputs(&Model::with_kernels(pack, Kernels::SCALAR), &mut scratch, greedy).unwrap();
    let found = outputs(&Model::new(arranged.pack().unwrap()), &mut scratch, greedy).unwrap();
    assert_eq!(expected, found);
    assert_eq!(vit, tokens_and_pixels(&arranged.pack().unwrap().vit().unwrap(), true));
}
