use super::*;
use crate::{
    config::ModelConfig,
    error::Error,
    head::Classifier,
    quant::{
        int4::{self, Order},
        quantise_matrix, Layout,
    },
    schema::{self, Param},
    self_test::SelfTest,
};
extern crate std;
use std::{collections::BTreeSet, format, string::ToString, vec, vec::Vec};

/// A small pack with every section, written over a buffer full of 0xA5.
fn sample(precision: Precision, layout: Layout) -> Aligned64 {
    let config =
        ModelConfig { embed_dim: 12, decoder_embed_dim: 8, num_heads: 3, depth: 2, ..ModelConfig::micro(3, 14) };
    let mut buffer = vec![0xA5; 200_000];
    let mut writer = Writer::new(SliceSink(&mut buffer), &config).unwrap();
    while let Some(param) = writer.next_param() {
        let shape = param.shape(&config);
        let rng = crate::rng::Rng::new(5, crate::rng::Stream::Init, param.index(&config) as u64);
        let numbers: Vec<f32> = (0..shape.elements()).map(|i| rng.normal(i as u64) as f32 * 0.1).collect();
        let halves: Vec<u16> = numbers.iter().map(|&x| half::f16::from_f32(x).to_bits()).collect();
        let (rows, cols) = shape.matrix();
        let (mut weights, mut scales) = (vec![0; layout.elements(rows, cols)], vec![0.0; rows]);
        quantise_matrix(&numbers, (rows, cols), layout, &mut weights, &mut scales).unwrap();
        let (mut packed, mut scales4) = (vec![0; int4::bytes(rows, cols)], vec![0.0; rows]);
        int4::quantise_matrix(&numbers, (rows, cols), &mut packed, &mut scales4).unwrap();
        let order = Order::beside(layout);
        let mut arranged = vec![0; order.bytes(rows, cols)];
        int4::arrange(&packed, Order::Rows, (rows, cols), order, &mut arranged).unwrap();
        let data = match precision {
            Precision::Int8 if param.is_matrix() => TensorData::Int8 { weights: &weights, scales: &scales, layout },
            Precision::Int4 if param.is_matrix() => TensorData::Int4 { packed: &arranged, scales: &scales4, order },
            Precision::F16 => TensorData::F16(&halves),
            _ => TensorData::F32(&numbers),
        };
        writer.tensor(data).unwrap();
    }
    writer.tokenizer(&[7; 14 * 2 * 2 * 3], 14, 2).unwrap();
    writer.card("{\"name\":\"sample\"}").unwrap();
    writer.classifier(&classifier(precision)).unwrap();
    let drawn = [5; 9];
    let test = SelfTest::new(&config, 0.0, &[3; 9], &[0.5; 12], &drawn, &[-1.5; 9]).unwrap();
    writer.seal().unwrap();
    writer.self_test(&test).unwrap();
    let (len, _) = writer.finish().unwrap();
    Aligned64::new(&buffer[..len as usize])
}

/// Three classes of features 12 wide.
fn classifier(precision: Precision) -> Classifier<'static> {
    let layout = Layout::ROW_MAJOR;
    let data = match precision {
        Precision::F32 | Precision::F16 => Data::F32(&[0.25; 36]),
        _ => Data::Int8 { weights: &[-7; 36], scales: &[0.5, 1.0, 2.0], layout },
    };
    Classifier::new(Matrix { rows: 3, cols: 12, data }, &[1.0, 2.0, 3.0], Some("cat\ndog\nold tree")).unwrap()
}

/// Bytes at an address that is a multiple of 64.
struct Aligned64 {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned64 {
    fn new(bytes: &[u8]) -> Self {
        let mut memory = vec![0; bytes.len() + 64];
        let start = memory.as_ptr().align_offset(64);
        memory[start..start + bytes.len()].copy_from_slice(bytes);
        Self { memory, start, len: bytes.len() }
    }
    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
    fn section_start(&self, wanted: Section) -> usize {
        (0..section::MAX)
            .map(|i| header::BYTES + i * section::BYTES)
            .find(|&at| u32_at(self.bytes(), at) == wanted.code())
            .map(|at| u64_at(self.bytes(), at + section::OFFSET) as usize)
            .unwrap()
    }
}

#[test]
fn round_trip() {
    for (precision, layout) in [
        (Precision::F32, Layout::ROW_MAJOR),
        (Precision::F16, Layout::ROW_MAJOR),
        (Precision::Int8, Layout::ROW_MAJOR),
        (Precision::Int8, Layout { nr: 4, kt: 4 }),
        (Precision::Int4, Layout::ROW_MAJOR),
        (Precision::Int4, Layout { nr: 16, kt: 4 }),
    ] {
        let file = sample(precision, layout);
        let pack = Pack::new(file.bytes()).unwrap();
        assert_eq!(pack.config().embed_dim, 12);
        assert!(pack.has_decoder());
        assert_eq!(pack.card(), Some("{\"name\":\"sample\"}"));
        assert_eq!(pack.tokenizer().unwrap().codes(), 14);
        let head = pack.classifier().unwrap();
        assert_eq!(format!("{head:?}"), format!("{:?}", classifier(precision)));
        assert_eq!((head.name(2), head.name(3)), (Some("old tree"), None));
        let test = pack.self_test().unwrap();
        assert_eq!((test.inputs(), test.ids(), test.drawn()), (1, &[3; 9][..], &[5; 9][..]));
        assert_eq!((test.features(), test.confidences()), (&[0.5; 12][..], &[-1.5; 9][..]));
        let config = *pack.config();
        for param in schema::params(&config) {
            let integer = matches!(precision, Precision::Int8 | Precision::Int4);
            let expected = if integer && !param.is_matrix() { Precision::F32 } else { precision };
            let half_a_step = if precision == Precision::Int4 { 0.03 } else { 0.003 };
            assert_eq!(pack.precision(param), Some(expected), "{param}");
            let rng = crate::rng::Rng::new(5, crate::rng::Stream::Init, param.index(&config) as u64);
            let (rows, cols) = param.shape(&config).matrix();
            let mut row = vec![0.0; cols];
            pack.matrix(param).row_into(rows - 1, &mut row);
            for (col, found) in row.iter().enumerate() {
                let number = rng.normal(((rows - 1) * cols + col) as u64) as f32 * 0.1;
                assert!((number - found).abs() < half_a_step, "{param} {col}: {number} {found}");
            }
        }
        assert!(!file.bytes().windows(8).any(|w| w == [0xA5; 8]), "bytes that were never written");
        // Padding after the pack is allowed: flash pages.
        let padded = Aligned64::new(&[file.bytes(), &[0xFF; 100]].concat());
        assert_eq!(Pack::new(padded.bytes()).unwrap().bytes(), file.len);
    }
}

#[test]
fn every_truncation_is_rejected() {
    let file = sample(Precision::Int8, Layout::ROW_MAJOR);
    for len in (0..file.len).step_by(97).chain(file.len - 1..file.len) {
        let cut = Aligned64::new(&file.bytes()[..len]);
        assert!(matches!(Pack::new(cut.bytes()), Err(Error::Truncated { .. })), "{len}");
    }
}

#[test]
fn every_flipped_bit_is_rejected_or_harmless() {
    let mut file = sample(Precision::Int8, Layout::ROW_MAJOR);
    let mut kinds = BTreeSet::new();
    for at in (0..file.len).step_by(13) {
        let bit = 1 << (at % 8);
        file.bytes_mut()[at] ^= bit;
        match Pack::new(file.bytes()) {
            // Only padding between sections is outside every checksum.
            Ok(_) => assert!(file.bytes()[at] == bit, "bit at {at} accepted"),
            Err(error) => {
                kinds.insert(error.to_string().split_whitespace().take(2).collect::<Vec<_>>().join(" "));
            }
        }
        file.bytes_mut()[at] ^= bit;
    }
    assert!(kinds.len() >= 5, "{kinds:?}");
}

#[test]
fn each_field_is_checked_behind_the_checksums() {
    type Edit = fn(&mut Aligned64);
    fn tensor_at(file: &Aligned64, param: Param, field: usize) -> usize {
        let config = *Pack::new(file.bytes()).unwrap().config();
        file.section_start(Section::Tensors) + param.index(&config) * tensor::BYTES + field
    }
    fn set(file: &mut Aligned64, section: Section, at: usize, value: u32) {
        let at = file.section_start(section) + at;
        file.bytes_mut()[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    let cases: [(&str, Edit, &str); 24] = [
        ("magic", |f| f.bytes_mut()[0] = b'X', "magic"),
        ("version", |f| f.bytes_mut()[header::VERSION] = 9, "version"),
        ("sections", |f| f.bytes_mut()[header::SECTIONS] = 200, "section count"),
        (
            "grid",
            |f| {
                let at = f.section_start(Section::Config);
                f.bytes_mut()[at] = 0
            },
            "grid",
        ),
        (
            "eps",
            |f| {
                let at = f.section_start(Section::Config) + 48;
                f.bytes_mut()[at..at + 4].fill(0xFF)
            },
            "layer_norm_eps",
        ),
        (
            "precision",
            |f| {
                let at = tensor_at(f, Param::NormWeight, tensor::PRECISION);
                f.bytes_mut()[at] = 77
            },
            "precision",
        ),
        (
            "int8 vector",
            |f| {
                let at = tensor_at(f, Param::NormWeight, tensor::PRECISION);
                f.bytes_mut()[at] = 3
            },
            "precision",
        ),
        (
            "rows",
            |f| {
                let at = tensor_at(f, Param::WordEmbedding, tensor::ROWS);
                f.bytes_mut()[at] += 1
            },
            "rows",
        ),
        (
            "layout",
            |f| {
                let at = tensor_at(f, Param::WordEmbedding, tensor::NR);
                f.bytes_mut()[at] = 0
            },
            "layout",
        ),
        (
            "offset",
            |f| {
                let at = tensor_at(f, Param::WordEmbedding, tensor::DATA_OFFSET) + 5;
                f.bytes_mut()[at] = 1
            },
            "truncated",
        ),
        (
            "alignment",
            |f| {
                let at = tensor_at(f, Param::WordEmbedding, tensor::DATA_OFFSET);
                f.bytes_mut()[at] += 4
            },
            "alignment",
        ),
        (
            "scale",
            |f| {
                let at = tensor_at(f, Param::WordEmbedding, tensor::SCALES_OFFSET);
                let offset = u64_at(f.bytes(), at) as usize + f.section_start(Section::Weights);
                f.bytes_mut()[offset..offset + 4].copy_from_slice(&f32::NAN.to_le_bytes());
            },
            "not finite",
        ),
        ("classes", |f| set(f, Section::Classifier, 0, 0), "classes"),
        ("more classes", |f| set(f, Section::Classifier, 0, 4), "classifier: truncated"),
        ("width", |f| set(f, Section::Classifier, 4, 11), "width"),
        ("head's precision", |f| set(f, Section::Classifier, 8, 4), "precision"),
        ("names", |f| set(f, Section::Classifier, 12, u32::MAX), "classifier: truncated"),
        ("bias", |f| set(f, Section::Classifier, 16, f32::NAN.to_bits()), "not finite"),
        (
            "a name too many",
            |f| {
                let bytes = f.bytes_mut();
                let at = bytes.windows(8).position(|w| w == b"old tree").unwrap();
                bytes[at + 3] = b'\n'
            },
            "names of classes",
        ),
        ("inputs", |f| set(f, Section::SelfTest, 0, 0), "self-test: truncated"),
        ("many inputs", |f| set(f, Section::SelfTest, 0, u32::MAX), "self-test: truncated"),
        ("decoder", |f| set(f, Section::SelfTest, 4, 2), "decoder"),
        ("tolerance", |f| set(f, Section::SelfTest, 8, f32::INFINITY.to_bits()), "tolerance"),
        ("golden id", |f| set(f, Section::SelfTest, 16 + 4 * (12 + 9), 14), "id below 14"),
    ];
    for (name, edit, expected) in cases {
        let mut file = sample(Precision::Int8, Layout::ROW_MAJOR);
        edit(&mut file);
        reseal(file.bytes_mut());
        match Pack::new(file.bytes()) {
            Ok(_) => panic!("{name}: accepted"),
            Err(error) => assert!(error.to_string().contains(expected), "{name}: {error}"),
        }
    }
}

#[test]
fn the_writer_refuses_what_does_not_fit() {
    let config = ModelConfig::micro(3, 14);
    let mut buffer = vec![0; 500_000];
    let mut writer = Writer::new(SliceSink(&mut buffer), &config).unwrap();
    assert!(matches!(writer.tensor(TensorData::F32(&[0.0; 3])), Err(WriteError::Pack(Error::Tensor { .. }))));
    assert!(writer.tensor(TensorData::Absent).is_err());
    assert!(matches!(writer.finish(), Err(WriteError::Pack(Error::Tensor { property: "number of tensors", .. }))));
    let mut tiny = [0; 10];
    assert!(matches!(Writer::new(SliceSink(&mut tiny), &config), Err(WriteError::Sink(Error::Truncated { .. }))));
}

/// The official vocabulary has ids that never occur; a pack without their rows says the same of all others.
#[test]
fn rows_that_are_not_used_may_be_left_out() {
    let config = ModelConfig { vocab_size: 25, class_token_id: 17, mask_token_id: 24, ..ModelConfig::micro(3, 14) };
    let cols = config.embed_dim;
    let values: Vec<f32> = (0..25 * cols).map(|i| (i * 37 % 101) as f32 - 50.0).collect();
    let words = |rows: &[usize], precision| {
        let chosen: Vec<f32> = rows.iter().flat_map(|&row| values[row * cols..][..cols].to_vec()).collect();
        let mut writer = Writer::new(Vec::new(), &config).unwrap();
        let layout = Layout { nr: 16, kt: 4 };
        let (mut weights, mut scales) = (vec![0; layout.elements(rows.len(), cols)], vec![0.0; rows.len()]);
        quantise_matrix(&chosen, (rows.len(), cols), layout, &mut weights, &mut scales).unwrap();
        let (mut packed, mut scales4) = (vec![0; int4::bytes(rows.len(), cols)], vec![0.0; rows.len()]);
        int4::quantise_matrix(&chosen, (rows.len(), cols), &mut packed, &mut scales4).unwrap();
        writer.tensor(match precision {
            Precision::Int8 => TensorData::Int8 { weights: &weights, scales: &scales, layout },
            Precision::Int4 => TensorData::Int4 { packed: &packed, scales: &scales4, order: Order::Rows },
            _ => TensorData::F32(&chosen),
        })?;
        while let Some(param) = writer.next_param() {
            writer.tensor(TensorData::F32(&vec![1.0; param.shape(&config).elements()]))?;
        }
        let (_, bytes) = writer.finish()?;
        Ok::<_, WriteError<core::convert::Infallible>>(Aligned64::new(&bytes))
    };
    let all: Vec<usize> = (0..25).collect();
    let used: Vec<usize> = (0..14).chain([17, 24]).collect();
    assert_eq!(used.len(), config.used_ids());
    for precision in [Precision::F32, Precision::Int8, Precision::Int4] {
        let [all, part] = [&all, &used].map(|rows| words(rows, precision).unwrap());
        let [all, part] = [&all, &part].map(|file| Pack::new(file.bytes()).unwrap());
        assert_eq!([all, part].map(|pack| pack.matrix(Param::WordEmbedding).rows), [25, 16]);
        assert!(part.tensor_bytes(Param::WordEmbedding) < all.tensor_bytes(Param::WordEmbedding));
        for &id in &used {
            let [expected, found] = [all, part].map(|pack| {
                let mut row = vec![0.0; cols];
                pack.matrix(Param::WordEmbedding).row_into(pack.word_row(id), &mut row);
                row
            });
            assert_eq!(expected, found, "{precision:?} {id}");
        }
    }
    assert!(matches!(words(&used[1..], Precision::Int8), Err(WriteError::Pack(Error::Tensor { .. }))));
    assert!(matches!(words(&all[..17], Precision::F32), Err(WriteError::Pack(Error::Tensor { .. }))));

    // A table that says fewer rows than there are, behind right checksums.
    let mut file = words(&all, Precision::Int8).unwrap();
    let at = file.section_start(Section::Tensors) + tensor::ROWS;
    file.bytes_mut()[at] = 16;
    reseal(file.bytes_mut());
    let error = Pack::new(file.bytes()).err().unwrap().to_string();
    assert!(error.contains("bytes"), "{error}");
}
