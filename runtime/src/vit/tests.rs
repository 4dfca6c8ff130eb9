use super::*;
use crate::{
    kernels::fallback::counted,
    pack::TensorData,
    quant::{quantise_matrix, Layout},
    rng::{Rng, Stream},
};
extern crate std;
use std::{string::ToString, vec, vec::Vec};

const CONFIG: VitConfig = VitConfig {
    grid: 3,
    patch: 4,
    codes: 20,
    code_dim: 5,
    embed_dim: 24,
    depth: 2,
    num_heads: 3,
    decoder_depth: 1,
    mlp_ratio: 2,
};

/// A section with random weights, at an address that is a multiple of 4.
struct Bytes(Vec<u32>, usize);

impl Bytes {
    fn new(precision: Precision, layout: Layout) -> Self {
        let section = section(&CONFIG, |param, write| {
            let rng = Rng::new(3, Stream::Init, param.index(&CONFIG) as u64);
            let (rows, cols) = param.shape(&CONFIG).matrix();
            // Biases of 0: what all tokens share would give them all one code.
            let is_vector = param.shape(&CONFIG).dims().len() == 1;
            let value = |i: usize| match is_vector {
                true => f32::from(u8::from(param.to_string().ends_with("weight"))),
                false => rng.normal(i as u64) as f32 * 0.5,
            };
            let values: Vec<f32> = (0..rows * cols).map(value).collect();
            if precision == Precision::Int8 && param.is_matrix() {
                let (mut weights, mut scales) = (vec![0; layout.elements(rows, cols)], vec![0.0; rows]);
                quantise_matrix(&values, (rows, cols), layout, &mut weights, &mut scales)?;
                return write(TensorData::Int8 { weights: &weights, scales: &scales, layout });
            }
            write(TensorData::F32(&values))
        })
        .unwrap();
        let words = section.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        Self(words, section.len())
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_le_bytes()).take(self.1).collect()
    }

    fn flipped(&self, bit: usize) -> Self {
        let mut words = self.0.clone();
        words[bit / 32] ^= 1 << (bit % 32);
        Self(words, self.1)
    }

    fn vit<R>(&self, then: impl FnOnce(Result<Vit<'_>, Error>) -> R) -> R {
        let bytes = self.bytes();
        let mut memory = vec![0u8; bytes.len() + 64];
        let start = memory.as_ptr().align_offset(64);
        memory[start..start + bytes.len()].copy_from_slice(&bytes);
        then(Vit::new(&memory[start..start + bytes.len()]))
    }
}

fn image(seed: u64) -> Vec<u8> {
    let rng = Rng::new(seed, Stream::Evaluation, 0);
    (0..CONFIG.tokens() * CONFIG.patch_values()).map(|i| rng.bits(i as u64 / 5) as u8).collect()
}

/// Ids and pixels of an image.
fn run(vit: &Vit<'_>, memory: &mut [u8], rgb: &[u8]) -> (Vec<u16>, Vec<u8>) {
    let mut scratch = Scratch::for_vit(memory, &CONFIG).unwrap();
    let (mut ids, mut decoded) = (vec![u16::MAX; CONFIG.tokens()], vec![0xA5; rgb.len()]);
    vit.encode(rgb, &mut scratch, &mut ids).unwrap();
    vit.decode(&ids, &mut scratch, &mut decoded).unwrap();
    (ids, decoded)
}

#[test]
fn order_and_index_agree() {
    for (i, param) in VitParam::all(&CONFIG).enumerate() {
        assert_eq!(param.index(&CONFIG), i, "{param}");
    }
    assert_eq!(VitParam::all(&CONFIG).count(), VitParam::count(&CONFIG));
}

#[test]
fn the_same_bits_whatever_kernel_layout_and_memory() {
    let sections = [Layout::ROW_MAJOR, Layout { nr: 16, kt: 4 }].map(|layout| Bytes::new(Precision::Int8, layout));
    let mut small = vec![0x5A; Scratch::vit_bytes(&CONFIG)];
    let mut fast = vec![0xA5; Scratch::vit_fast_bytes(&CONFIG)];
    for seed in 0..4 {
        let rgb = image(seed);
        let mut found = Vec::new();
        for section in &sections {
            section.vit(|vit| {
                let vit = vit.unwrap();
                for kernels in Kernels::available() {
                    found.push(run(&vit.with_kernels(kernels), &mut small, &rgb));
                    found.push(run(&vit.with_kernels(kernels), &mut fast, &rgb));
                }
            });
        }
        assert!(found.iter().all(|one| *one == found[0]), "seed {seed}");
        let distinct: std::collections::BTreeSet<u16> = found[0].0.iter().copied().collect();
        assert!(distinct.len() > 2, "{:?}: random weights give several codes", found[0].0);
    }
}

#[test]
fn no_kernel_falls_back_to_plain_loops() {
    let mut memory = vec![0; Scratch::vit_bytes(&CONFIG)];
    for kernels in Kernels::available() {
        Bytes::new(Precision::Int8, kernels.layout()).vit(|vit| {
            let calls = counted(|| _ = run(&vit.unwrap().with_kernels(kernels), &mut memory, &image(1)));
            assert_eq!(calls > 0, kernels.name() == "scalar", "{}: {calls} plain products", kernels.name());
        });
    }
}

#[test]
fn int8_is_near_the_floats() {
    let mut memory = vec![0; Scratch::vit_bytes(&CONFIG)];
    let mut decoded = |precision| {
        Bytes::new(precision, Layout::ROW_MAJOR).vit(|vit| {
            let (vit, mut scratch) = (vit.unwrap(), Scratch::for_vit(&mut memory, &CONFIG).unwrap());
            let ids: Vec<u16> = (0..CONFIG.tokens() as u16).map(|i| i * 2).collect();
            let mut rgb = vec![0; CONFIG.tokens() * CONFIG.patch_values()];
            vit.decode(&ids, &mut scratch, &mut rgb).unwrap();
            rgb
        })
    };
    let (float, int) = (decoded(Precision::F32), decoded(Precision::Int8));
    // How much of the picture is error: root mean square over the deviation of the floats' pixels.
    let [float, int] = [float, int].map(|pixels| pixels.into_iter().map(f64::from).collect::<Vec<_>>());
    let squares = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>();
    let mean = float.iter().sum::<f64>() / float.len() as f64;
    let signal = squares(&mut float.iter().map(|p| p - mean));
    let lost = (squares(&mut float.iter().zip(&int).map(|(a, b)| a - b)) / signal).sqrt();
    assert!(signal / float.len() as f64 > 50.0 * 50.0, "a picture of some contrast: {signal}");
    assert!((0.01..0.06).contains(&lost), "{lost} of the pixels");
}

#[test]
fn damaged_sections_are_refused_or_run() {
    let section = Bytes::new(Precision::Int8, Layout::ROW_MAJOR);
    let whole = section.bytes();
    for len in (0..whole.len()).step_by(61).chain([whole.len() - 65]) {
        let cut = Bytes(section.0.clone(), len);
        cut.vit(|vit| assert!(vit.is_err(), "{len} bytes"));
    }
    // No checksum stands before this: every field of header and table is reached.
    let front = 8 * weights_start(&CONFIG);
    let mut memory = vec![0; Scratch::vit_bytes(&CONFIG)];
    let mut accepted = 0;
    for bit in (0..front).chain((front..8 * whole.len()).step_by(1009)) {
        section.flipped(bit).vit(|vit| {
            if let Ok(vit) = vit {
                accepted += 1;
                if *vit.config() == CONFIG {
                    run(&vit, &mut memory, &image(1));
                }
            }
        });
    }
    assert!(accepted > 0, "weights of other values are weights");
}

#[test]
fn bad_input_is_named() {
    let (mut rgb, mut ids) = (image(0), vec![0; CONFIG.tokens()]);
    let needed = Scratch::vit_bytes(&CONFIG);
    let mut memory = vec![0; needed];
    assert_eq!(Scratch::for_vit(&mut memory[1..], &CONFIG).err(), Some(Error::Scratch { needed, found: needed - 1 }));
    Bytes::new(Precision::F32, Layout::ROW_MAJOR).vit(|vit| {
        let vit = vit.unwrap();
        let mut scratch = Scratch::for_vit(&mut memory, &CONFIG).unwrap();
        assert!(matches!(vit.encode(&rgb[1..], &mut scratch, &mut ids), Err(Error::Length { item: "rgb", .. })));
        assert!(matches!(vit.encode(&rgb, &mut scratch, &mut ids[1..]), Err(Error::Length { item: "ids", .. })));
        ids[4] = 20;
        let error = vit.decode(&ids, &mut scratch, &mut rgb);
        assert_eq!(error, Err(Error::TokenId { index: 4, limit: 20, found: 20 }));
        let other = VitConfig { embed_dim: 12, ..CONFIG };
        let mut scratch = Scratch::for_vit(&mut memory, &other).unwrap();
        assert!(matches!(vit.encode(&rgb, &mut scratch, &mut ids), Err(Error::ScratchShape { .. })));
    });
    let refused = |config: VitConfig| match section(&config, |_, _| Ok(())) {
        Err(Error::Config { field, .. }) => field,
        other => panic!("accepted: {other:?}"),
    };
    assert_eq!(refused(VitConfig { num_heads: 5, ..CONFIG }), "num_heads");
    assert_eq!(refused(VitConfig { codes: 1, ..CONFIG }), "codes");
    assert_eq!(refused(VitConfig { grid: 65, ..CONFIG }), "grid");
}
