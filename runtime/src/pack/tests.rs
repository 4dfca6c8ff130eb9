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
    let cases: [(&str, Edit, &str); 35] = [
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
        (
            "a negative scale",
            |f| {
                let at = tensor_at(f, Param::WordEmbedding, tensor::SCALES_OFFSET);
                let offset = u64_at(f.bytes(), at) as usize + f.section_start(Section::Weights);
                f.bytes_mut()[offset..offset + 4].copy_from_slice(&(-0.5f32).to_le_bytes());
            },
            "tensor #0: expected scales of 0 or more, found a negative one",
        ),
        (
            "a weight of -128",
            |f| {
                let at = tensor_at(f, Param::WordEmbedding, tensor::DATA_OFFSET);
                let offset = u64_at(f.bytes(), at) as usize + f.section_start(Section::Weights);
                f.bytes_mut()[offset + 7] = 0x80;
            },
            "tensor #0: expected int8 weights of -127 to 127, found one of -128",
        ),
        (
            "a file shorter than its table",
            |f| f.bytes_mut()[header::FILE_LEN..][..8].copy_from_slice(&100u64.to_le_bytes()),
            "length of the file",
        ),
        ("reserved in the header", |f| f.bytes_mut()[header::END] = 1, "reserved bytes of the header"),
        ("an entry that is not counted", |f| f.bytes_mut()[section::TABLE_END - 1] = 1, "unused entries"),
        (
            "reserved in a section's entry",
            |f| f.bytes_mut()[header::BYTES + section::BYTES - 1] = 1,
            "reserved bytes of a section's entry",
        ),
        ("reserved in the config", |f| set(f, Section::Config, config::BYTES - 4, 7), "reserved bytes of the config"),
        (
            "reserved in a tensor's entry",
            |f| {
                let at = tensor_at(f, Param::WordEmbedding, tensor::DATA_OFFSET) - 1;
                f.bytes_mut()[at] = 1
            },
            "reserved bytes of a tensor's entry",
        ),
        ("reserved in the tokenizer", |f| set(f, Section::Tokenizer, 12, 7), "reserved bytes of the tokenizer"),
        ("reserved in the self-test", |f| set(f, Section::SelfTest, 12, 7), "reserved bytes of the self-test"),
        (
            "codes",
            |f| set(f, Section::Tokenizer, 0, 13),
            "codes of the tokenizer: expected 14 as in the model, found 13",
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

/// What a reader would refuse is not written.
#[test]
fn the_writer_refuses_what_the_reader_would() {
    let config = ModelConfig::micro(3, 14);
    type Refused = Result<(), WriteError<core::convert::Infallible>>;
    let with = |decoder: bool, more: &dyn Fn(&mut Writer<Vec<u8>>) -> Refused| {
        let mut writer = Writer::new(Vec::new(), &config).unwrap();
        while let Some(param) = writer.next_param() {
            let numbers = vec![0.5; param.shape(&config).elements()];
            let data = if param.is_decoder() && !decoder { TensorData::Absent } else { TensorData::F32(&numbers) };
            writer.tensor(data).unwrap();
        }
        more(&mut writer).map_err(|error| error.to_string()).unwrap_or_else(|error| panic!("{error}"));
        let (_, bytes) = writer.finish().unwrap();
        Pack::new(Aligned64::new(&bytes).bytes()).map(|_| ()).unwrap();
    };
    let refused = |more: &dyn Fn(&mut Writer<Vec<u8>>) -> Refused, expected: &str| {
        with(false, &|writer| {
            let error = more(writer).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
            Ok(()) // what was refused left no trace
        });
    };
    let head = |dim: usize| {
        let weights: &'static [f32] = vec![0.25; 3 * dim].leak();
        Classifier::new(Matrix { rows: 3, cols: dim, data: Data::F32(weights) }, &[0.0; 3], None).unwrap()
    };
    let test = |config: &ModelConfig, decoder: bool| {
        let (ids, features, confidences): (&'static [u16], &'static [f32], &'static [f32]) =
            (vec![3; config.tokens()].leak(), vec![0.5; config.embed_dim].leak(), vec![-1.0; config.tokens()].leak());
        let (drawn, confidences) = if decoder { (ids, confidences) } else { (&[][..], &[][..]) };
        SelfTest::new(config, 0.0, ids, features, drawn, confidences).unwrap()
    };
    with(true, &|writer| {
        writer.tokenizer(&[7; 14 * 12], 14, 2)?;
        writer.card("{}")?;
        writer.classifier(&head(64))?;
        writer.self_test(&test(&config, true))
    });
    refused(&|w| w.tokenizer(&[7; 13 * 12], 13, 2), "codes of the tokenizer: expected 14 as in the model, found 13");
    refused(&|w| w.classifier(&head(63)), "width of the classifier: expected 64 as in the model, found 63");
    refused(&|w| w.self_test(&test(&ModelConfig::micro(4, 14), false)), "ids of the self-test");
    refused(&|w| w.self_test(&test(&ModelConfig::tiny(3, 14), false)), "features of the self-test");
    refused(&|w| w.self_test(&test(&config, true)), "decoder in the self-test");
    refused(&|w| w.vit(&[]), "vit tokenizer: truncated");
    type Section<'a> = &'a dyn Fn(&mut Writer<Vec<u8>>) -> Refused;
    let twice: [Section<'_>; 4] =
        [&|w| w.tokenizer(&[7; 14 * 12], 14, 2), &|w| w.card("{}"), &|w| w.classifier(&head(64)), &|w| {
            w.self_test(&test(&config, false))
        }];
    for section in twice {
        refused(&|w| section(w).and_then(|()| section(w)), "section kind (twice)");
    }

    // Numbers, and a part of a decoder.
    let tensor = |special: &dyn Fn(Param) -> Option<f32>, absent: &dyn Fn(Param) -> bool| {
        let mut writer = Writer::new(Vec::new(), &config).unwrap();
        while let Some(param) = writer.next_param() {
            let mut numbers = vec![0.5; param.shape(&config).elements()];
            numbers[0] = special(param).unwrap_or(0.5);
            let data = if absent(param) { TensorData::Absent } else { TensorData::F32(&numbers) };
            if let Err(error) = writer.tensor(data) {
                return error.to_string();
            }
        }
        panic!("accepted");
    };
    let norm = |param| (param == Param::NormWeight).then_some(f32::NAN);
    assert!(tensor(&norm, &|_| false).contains("not finite"));
    let whole = |_| None;
    assert!(tensor(&whole, &|param| param == Param::HeadBias).contains("presence"));
    assert!(tensor(&whole, &|param| param == Param::DecoderEmbedWeight).contains("presence"));
    let mut writer = Writer::new(Vec::new(), &config).unwrap();
    let (mut weights, layout) = ([1i8; 16 * 64], Layout::ROW_MAJOR);
    weights[100] = -128;
    let error = writer.tensor(TensorData::Int8 { weights: &weights, scales: &[1.0; 16], layout }).unwrap_err();
    assert_eq!(error.to_string(), "tensor #0: expected int8 weights of -127 to 127, found one of -128");
    let (packed, mut scales) = (vec![0; int4::bytes(16, 64)], [1.0; 16]);
    scales[3] = -1.0;
    let error = writer.tensor(TensorData::Int4 { packed: &packed, scales: &scales, order: Order::Rows }).unwrap_err();
    assert_eq!(error.to_string(), "tensor #0: expected scales of 0 or more, found a negative one");
}

/// Too short is too short, wherever the bytes lie.
#[test]
fn too_short_input_is_truncated_at_any_address() {
    let file = sample(Precision::Int8, Layout::ROW_MAJOR);
    let mut shifted = vec![0; file.len + 64];
    for shift in 0..4 {
        let start = shifted.as_ptr().align_offset(64) + shift;
        for len in [0, 1, 3, 4, 63, 64, section::TABLE_END - 1, section::TABLE_END, file.len - 1] {
            shifted[start..start + len].copy_from_slice(&file.bytes()[..len]);
            let error = Pack::new(&shifted[start..start + len]).err().unwrap();
            assert!(matches!(error, Error::Truncated { item: "pack", .. }), "{len} bytes at {shift}: {error}");
        }
        shifted[start..start + file.len].copy_from_slice(file.bytes());
        let whole = Pack::new(&shifted[start..start + file.len]);
        assert_eq!(whole.err(), (shift > 0).then_some(Error::Alignment { item: "pack", needed: 4 }));
    }
    assert!(matches!(Pack::new(&[]), Err(Error::Truncated { item: "pack", found: 0, .. })));
    assert!(matches!(crate::vit::Vit::new(&[]), Err(Error::Truncated { item: "vit tokenizer", found: 0, .. })));
}

/// A pack with a ViT tokenizer: it has to be the model's, and is arranged with it.
#[test]
fn a_vit_tokenizer_belongs_to_its_model() {
    use crate::vit::{self, VitConfig};
    let model = ModelConfig::micro(3, 14);
    let vit = VitConfig {
        grid: 3,
        patch: 2,
        codes: 14,
        code_dim: 4,
        embed_dim: 20,
        depth: 1,
        num_heads: 2,
        decoder_depth: 1,
        mlp_ratio: 2,
    };
    let plain = Layout::ROW_MAJOR;
    let section = |config: &VitConfig, precision| {
        let section = vit::section(config, |param, write| {
            let shape = param.shape(config);
            let (rows, cols) = shape.matrix();
            let rng = crate::rng::Rng::new(5, crate::rng::Stream::Init, param.index(config) as u64);
            let numbers: Vec<f32> = (0..rows * cols).map(|i| rng.normal(i as u64) as f32 * 0.3).collect();
            let mut scales = vec![0.0; rows];
            match precision {
                Precision::Int8 if param.is_matrix() => {
                    let mut weights = vec![0; plain.elements(rows, cols)];
                    quantise_matrix(&numbers, (rows, cols), plain, &mut weights, &mut scales)?;
                    write(TensorData::Int8 { weights: &weights, scales: &scales, layout: plain })
                }
                Precision::Int4 if param.is_matrix() => {
                    let mut packed = vec![0; int4::bytes(rows, cols)];
                    int4::quantise_matrix(&numbers, (rows, cols), &mut packed, &mut scales)?;
                    write(TensorData::Int4 { packed: &packed, scales: &scales, order: Order::Rows })
                }
                _ => write(TensorData::F32(&numbers)),
            }
        });
        Aligned64::new(&section.unwrap())
    };
    let pack = |config: &VitConfig, precision| {
        let mut writer = Writer::new(Vec::new(), &model).unwrap();
        while let Some(param) = writer.next_param() {
            writer.tensor(TensorData::F32(&vec![0.5; param.shape(&model).elements()]))?;
        }
        writer.vit(section(config, precision).bytes())?;
        Ok::<_, WriteError<core::convert::Infallible>>(Aligned64::new(&writer.finish()?.1))
    };
    let refused = |config: &VitConfig| pack(config, Precision::F32).err().unwrap().to_string();
    let other = refused(&VitConfig { codes: 15, ..vit });
    assert_eq!(other, "codes of the vit tokenizer: expected 14 as in the model, found 15");
    let other = refused(&VitConfig { grid: 4, ..vit });
    assert_eq!(other, "grid of the vit tokenizer: expected 3 as in the model, found 4");
    // The same in a file.
    let mut file = pack(&vit, Precision::F32).unwrap();
    let at = file.section_start(Section::Config) + 4;
    file.bytes_mut()[at] = 13; // codes of the model
    reseal(file.bytes_mut());
    assert!(matches!(Pack::new(file.bytes()), Err(Error::OtherModel { expected: 13, found: 14, .. })));
    // Reserved bytes of the section.
    let mut bytes = section(&vit, Precision::F32);
    bytes.bytes_mut()[40] = 1;
    let error = crate::vit::Vit::new(bytes.bytes()).err().unwrap().to_string();
    assert!(error.contains("reserved bytes of the vit tokenizer"), "{error}");

    let rgb: Vec<u8> = (0..6 * 6 * 3).map(|i| (i * 37) as u8).collect();
    for precision in [Precision::Int8, Precision::Int4, Precision::F32] {
        let file = pack(&vit, precision).unwrap();
        let plain = Pack::new(file.bytes()).unwrap();
        for kernels in crate::Kernels::available() {
            let arranged = OwnedPack::arrange(&plain, kernels.layout()).unwrap();
            let arranged = arranged.pack().unwrap();
            assert!(!crate::Model::with_kernels(arranged, kernels).is_in_another_order(), "{}", kernels.name());
            let expected = precision != Precision::F32 && kernels.layout() != Layout::ROW_MAJOR;
            assert_eq!(crate::Model::with_kernels(plain, kernels).is_in_another_order(), expected);
            let mut memory = vec![0; crate::scratch::Scratch::vit_bytes(&vit)];
            let mut run = |pack: Pack<'_>| {
                let mut scratch = crate::scratch::Scratch::for_vit(&mut memory, &vit).unwrap();
                let (mut ids, mut decoded) = ([0; 9], vec![0; rgb.len()]);
                let vit = pack.vit().unwrap().with_kernels(kernels);
                vit.encode(&rgb, &mut scratch, &mut ids).unwrap();
                vit.decode(&ids, &mut scratch, &mut decoded).unwrap();
                (ids, decoded)
            };
            assert_eq!(run(plain), run(arranged), "{}", kernels.name());
        }
    }
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
