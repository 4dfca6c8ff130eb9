//! `sorcen tokens import` of other programs' arrays.

use std::io::{BufWriter, Write as _};
use std::path::Path;

use sorcen_trainer::data::TokenDataset;
use sorcen_trainer::zip::ZipWriter;

use super::pickled::{dict, Storages};
use super::{fails, position, succeeds};

/// Ids of three images of 2×2 tokens.
const IDS: [[u16; 4]; 3] = [[0, 1, 2, 3], [1023, 512, 7, 8], [300, 301, 302, 303]];
const LABELS: [i64; 3] = [2, 0, 1];

fn flat() -> Vec<i64> {
    IDS.as_flattened().iter().map(|&id| id.into()).collect()
}

/// The same column by column.
fn turned() -> Vec<i64> {
    (0..4).flat_map(|token| IDS.map(|row| row[token].into())).collect()
}

fn bytes<const N: usize>(values: &[i64], bytes: fn(i64) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&value| bytes(value)).collect()
}

fn check(dir: &Path) {
    let dataset = TokenDataset::open(dir).unwrap();
    assert_eq!(dataset.labels(), LABELS.map(|label| label as u16));
    let mut ids = [0; 4];
    for (index, expected) in IDS.iter().enumerate() {
        dataset.stream("vqgan").unwrap().ids(index, &mut ids);
        assert_eq!(&ids, expected, "{}: image {index}", dir.display());
    }
}

/// A `.npy` file: its header as numpy writes it, in format `version`.
fn npy(version: u8, dtype: &str, fortran: bool, shape: &str, data: &[u8]) -> Vec<u8> {
    let fortran = if fortran { "True" } else { "False" };
    let header = format!("{{'descr': '{dtype}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
    let length = (header.len() as u32).to_le_bytes();
    let length = if version == 1 { &length[..2] } else { &length };
    [b"\x93NUMPY", &[version, 0][..], length, header.as_bytes(), data].concat()
}

fn npz(path: &Path, arrays: &[(&str, Vec<u8>)]) {
    let mut file = BufWriter::new(std::fs::File::create(path).unwrap());
    let mut zip = ZipWriter::new(&mut file);
    for (name, array) in arrays {
        zip.entry(&format!("{name}.npy"), array.len(), |write| write(array)).unwrap();
    }
    zip.finish().unwrap();
}

/// The same, deflated, as `np.savez_compressed` does it; of the first array's bytes `damage` bits are flipped, at its end.
fn npz_deflated(path: &Path, arrays: &[(&str, Vec<u8>)], damage: u8) {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (number, (name, array)) in arrays.iter().enumerate() {
        let mut crc = flate2::Crc::new();
        crc.update(array);
        let mut array = array.clone();
        if number == 0 {
            *array.last_mut().unwrap() ^= damage;
        }
        let mut packed = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        packed.write_all(&array).unwrap();
        let (packed, name) = (packed.finish().unwrap(), format!("{name}.npy"));
        let sizes = [crc.sum(), packed.len() as u32, array.len() as u32].map(u32::to_le_bytes).concat();
        let fields = [b"\x14\0\0\0\x08\0\0\0\0\0", &sizes[..], &(name.len() as u16).to_le_bytes(), &[0; 2]].concat();
        let start = (file.len() as u32).to_le_bytes();
        file.extend([b"PK\x03\x04", &fields[..], name.as_bytes(), &packed].concat());
        directory.extend([b"PK\x01\x02\x14\0", &fields[..], &[0; 10], &start, name.as_bytes()].concat());
    }
    let count = (arrays.len() as u16).to_le_bytes();
    let sizes = [directory.len() as u32, file.len() as u32].map(u32::to_le_bytes).concat();
    let end = [b"PK\x05\x06\0\0\0\0", &count[..], &count, &sizes, &[0; 2]].concat();
    std::fs::write(path, [file, directory, end].concat()).unwrap();
}

fn labels() -> (&'static str, Vec<u8>) {
    ("labels", npy(1, "<i8", false, "(3,)", &bytes(&LABELS, i64::to_le_bytes)))
}

#[test]
fn numpy_arrays_of_any_layout() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let (flat, turned) = (flat(), turned());
    let narrow = |value: i64| (value as u16).to_be_bytes();
    let cases = [
        ("plain", npy(1, "<i8", false, "(3, 4)", &bytes(&flat, i64::to_le_bytes))),
        ("version2", npy(2, "<i8", false, "(3, 4)", &bytes(&flat, i64::to_le_bytes))),
        ("version3", npy(3, "<i4", false, "(3, 2, 2)", &bytes(&flat, |value| (value as i32).to_le_bytes()))),
        ("big", npy(1, ">i8", false, "(3, 4)", &bytes(&flat, i64::to_be_bytes))),
        ("big16", npy(1, ">u2", false, "(3, 4)", &bytes(&flat, narrow))),
        ("fortran", npy(1, "<i8", true, "(3, 4)", &bytes(&turned, i64::to_le_bytes))),
        ("big_fortran", npy(1, ">u2", true, "(3, 4)", &bytes(&turned, narrow))),
    ];
    for (name, array) in cases {
        let arrays = [("tokens_vqgan", array), labels()];
        npz(&dir.join("t.npz"), &arrays);
        succeeds(dir, &format!("tokens import --from t.npz --out {name}"));
        check(&dir.join(name));
        npz_deflated(&dir.join("t.npz"), &arrays, 0);
        succeeds(dir, &format!("tokens import --from t.npz --out {name}_deflated"));
        check(&dir.join(format!("{name}_deflated")));
        // One bit: of the compressed bytes' contents, and of stored ones.
        npz_deflated(&dir.join("t.npz"), &arrays, 1);
        let said = fails(dir, "tokens import --from t.npz --out new");
        assert!(said.contains("t.npz: tokens_vqgan: ") && said.contains("damaged: expected CRC-32"), "{name}: {said}");
        npz(&dir.join("t.npz"), &arrays);
        let mut flipped = std::fs::read(dir.join("t.npz")).unwrap();
        let array = &arrays[0].1;
        let at = position(&flipped, array) + array.len() - 1;
        flipped[at] ^= 4;
        std::fs::write(dir.join("t.npz"), flipped).unwrap();
        let said = fails(dir, "tokens import --from t.npz --out new");
        assert!(said.contains("t.npz: tokens_vqgan: ") && said.contains("damaged: expected CRC-32"), "{name}: {said}");
    }
    for (shape, data, expected) in [
        ("(3, 4)", vec![0; 97], "expected as many bytes as its shape says"),
        ("(3, 4)", vec![0; 95], "expected as many bytes as its shape says"),
        ("(3, 32)", vec![0; 768], "T the square of 1 to 64"),
        ("(4, 4)", vec![0; 128], "as many rows as labels"),
        ("(4611686018427387904, 4611686018427387904)", vec![0; 8], "as many rows as labels"),
    ] {
        npz(&dir.join("t.npz"), &[("tokens_vqgan", npy(1, "<i8", false, shape, &data)), labels()]);
        let said = fails(dir, "tokens import --from t.npz --out new");
        assert!(said.contains("t.npz: tokens_vqgan: ") && said.contains(expected), "{shape}: {said}");
    }
    assert!(!dir.join("new").exists());
}

#[test]
fn torch_tensors_of_any_layout() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let import = |out: &str| format!("tokens import --from t.pt --out {out}");
    for (dtype, size) in [("uint16", 2), ("uint32", 4), ("uint64", 8)] {
        let mut storages = Storages::default();
        let ids = flat().iter().flat_map(|id| id.to_le_bytes()[..size].to_vec()).collect();
        let arrays = [("tokens_vqgan", storages.typed(dtype, ids, &[3, 4])), ("labels", storages.longs(&[3], &LABELS))];
        storages.write(&dir.join("t.pt"), &dict(&arrays));
        succeeds(dir, &import(dtype));
        check(&dir.join(dtype));
    }
    let mut storages = Storages::default();
    let ids = storages.tensor("LongStorage", bytes(&turned(), i64::to_le_bytes), &[3, 4], &[1, 3]);
    let labels = storages.longs(&[3], &LABELS);
    storages.write(&dir.join("t.pt"), &dict(&[("tokens_vqgan", ids), ("labels", labels)]));
    succeeds(dir, &import("turned"));
    check(&dir.join("turned"));

    let mut storages = Storages::default();
    let big = |values: &[i64]| bytes(values, i64::to_be_bytes);
    let ids = storages.tensor("LongStorage", big(&flat()), &[3, 4], &[4, 1]);
    let labels = storages.tensor("LongStorage", big(&LABELS), &[3], &[1]);
    let root = dict(&[("tokens", ids), ("labels", labels)]);
    storages.write_in_order(&dir.join("t.pt"), &root, "big");
    succeeds(dir, &import("big"));
    check(&dir.join("big"));

    // One bit of an id; a view beyond its storage.
    let mut storages = Storages::default();
    let root = dict(&[("tokens", storages.longs(&[3, 4], &flat())), ("labels", storages.longs(&[3], &LABELS))]);
    storages.write(&dir.join("t.pt"), &root);
    let mut flipped = std::fs::read(dir.join("t.pt")).unwrap();
    let at = position(&flipped, &bytes(&flat(), i64::to_le_bytes));
    flipped[at] ^= 1;
    std::fs::write(dir.join("t.pt"), flipped).unwrap();
    let said = fails(dir, &import("new"));
    assert!(said.contains("t.pt: tokens: ") && said.contains("damaged: expected CRC-32"), "{said}");
    for strides in [[4, 2], [1, 4]] {
        let mut storages = Storages::default();
        let ids = storages.tensor("LongStorage", big(&flat()), &[3, 4], &strides);
        let labels = storages.longs(&[3], &LABELS);
        storages.write(&dir.join("t.pt"), &dict(&[("tokens", ids), ("labels", labels)]));
        let said = fails(dir, &import("new"));
        assert!(said.contains("t.pt: tokens: expected elements inside its storage"), "{said}");
    }
    assert!(!dir.join("new").exists());
}

#[test]
fn arrays_are_chosen_and_named() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let ids = |values: &[i64]| npy(1, "<i8", false, "(3, 4)", &bytes(values, i64::to_le_bytes));
    let arrays = [("tokens", ids(&[5; 12])), ("tokens_vqgan", ids(&flat())), ("paths", ids(&[0; 12])), labels()];
    npz(&dir.join("t.npz"), &arrays);
    let said = fails(dir, "tokens import --from t.npz --out new");
    assert!(said.contains("t.npz: arrays: expected one of tokens_vqgan and tokens, or --tokens"), "{said}");
    let said = succeeds(dir, "tokens import --from t.npz --tokens tokens_vqgan --out chosen");
    assert!(said.contains("note: t.npz: left out: paths, tokens"), "{said}");
    check(&dir.join("chosen"));
    let said = fails(dir, "tokens import --from t.npz --tokens codes --out new");
    assert!(said.contains("expected codes (--tokens), found labels, paths, tokens, tokens_vqgan"), "{said}");

    // By contents, not by name.
    npz(&dir.join("t.pt"), &arrays[1..]);
    succeeds(dir, "tokens import --from t.pt --out by_contents");
    check(&dir.join("by_contents"));
    let mut storages = Storages::default();
    let root = dict(&[("tokens", storages.longs(&[3, 4], &flat())), ("labels", storages.longs(&[3], &LABELS))]);
    storages.write(&dir.join("t.npz"), &root);
    succeeds(dir, "tokens import --from t.npz --out torch");
    check(&dir.join("torch"));
    std::fs::write(dir.join("t.npz"), ids(&flat())).unwrap();
    let said = fails(dir, "tokens import --from t.npz --out new");
    assert!(said.contains("found one array (.npy)"), "{said}");

    // A byte order mark is no part of a class.
    std::fs::write(dir.join("names.txt"), "\u{FEFF}cat\r\ndog\nbird\n").unwrap();
    succeeds(dir, "tokens import --from t.pt --class_names names.txt --out named");
    assert_eq!(TokenDataset::open(&dir.join("named")).unwrap().class_names(), ["cat", "dog", "bird"]);
}
