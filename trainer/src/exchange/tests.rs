use super::*;
use crate::data::sha256_hex;
use std::io::Write as _;

/// Three images, two streams, in `dir/data`.
fn dataset(dir: &Path) -> TokenDataset {
    let spec = |name: &str, grid, codebook_size| StreamSpec { name: name.into(), grid, codebook_size, tokenizer: None };
    let classes = vec!["cat".to_string(), "naïve dog".to_string()];
    let specs = [spec(VQGAN, 2, 1024), spec("dino", 1, 32_768)];
    let mut writer = TokenDatasetWriter::create(&dir.join("data"), classes, &specs).unwrap();
    for index in 0..3u16 {
        let ids = [index, 1023 - index, 7, 512].map(|id| id);
        writer.push(index % 2, &[&ids, &[20_000 + index]]).unwrap();
    }
    writer.finish(None).unwrap();
    TokenDataset::open(&dir.join("data")).unwrap()
}

fn same(a: &TokenDataset, b: &TokenDataset) {
    assert_eq!((a.len(), a.labels()), (b.len(), b.labels()));
    for ((name, a), (other, b)) in a.streams().zip(b.streams()) {
        assert_eq!((name, a.grid(), a.codebook_size()), (other, b.grid(), b.codebook_size()));
        let (mut left, mut right) = (vec![0; a.tokens()], vec![0; b.tokens()]);
        for index in 0..3 {
            a.ids(index, &mut left);
            b.ids(index, &mut right);
            assert_eq!(left, right, "{name} of image {index}");
        }
    }
}

#[test]
fn out_and_in_again() {
    let temp = tempfile::tempdir().unwrap();
    let original = dataset(temp.path());
    for (file, names) in [("t.npz", ["cat", "naïve dog"]), ("t.pt", ["0", "1"])] {
        let (file, out) = (temp.path().join(file), temp.path().join(names[0]));
        export(&original, &file).unwrap();
        let imported = import(&file, &out, &ImportOptions::default()).unwrap();
        assert_eq!(imported, Imported { images: 3, left_out: vec![] });
        let again = TokenDataset::open(&out).unwrap();
        same(&original, &again);
        assert_eq!(again.class_names(), names);
    }
    let error = export(&original, &temp.path().join("t.parquet")).unwrap_err().to_string();
    assert!(error.contains("t.parquet: extension: expected .pt or .npz, found .parquet"), "{error}");
}

/// `torch.load` of it gave `tokens_dino` [3, 1], `tokens_vqgan` [3, 4] and `labels` [3], all int64.
#[test]
fn a_pt_file_has_the_same_bytes_as_ever() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("t.pt");
    export(&dataset(temp.path()), &file).unwrap();
    let digest = sha256_hex(&std::fs::read(&file).unwrap());
    assert_eq!(digest, "5a353025e175e4dc26cfc8c7525e7fba86c93096001e882af944e72442d10387");
}

/// An `.npz` of arrays `(name, dtype, shape, bytes)`, deflated as `np.savez_compressed` does it where `deflate`.
fn npz(path: &Path, arrays: &[(&str, &str, &[usize], Vec<u8>)], deflate: bool) {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).unwrap());
    let mut zip = crate::zip::ZipWriter::new(&mut file);
    for (name, dtype, shape, bytes) in arrays {
        let array = [&crate::data::npy::header(dtype, shape)[..], bytes].concat();
        zip.entry(&format!("{name}.npy"), array.len(), |write| write(&array)).unwrap();
    }
    zip.finish().unwrap();
    if deflate {
        // The writer is built without compression: the entry's method and bytes are replaced by hand.
        let [(name, dtype, shape, bytes)] = arrays else { panic!("one array") };
        let array = [&crate::data::npy::header(dtype, shape)[..], bytes].concat();
        let mut packed = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        packed.write_all(&array).unwrap();
        let packed = packed.finish().unwrap();
        let name = format!("{name}.npy");
        let mut crc = flate2::Crc::new();
        crc.update(&array);
        let sizes = [crc.sum(), packed.len() as u32, array.len() as u32].map(u32::to_le_bytes).concat();
        let name_length = (name.len() as u16).to_le_bytes();
        let local = [b"PK\x03\x04\x14\0\0\0\x08\0\0\0\0\0", &sizes[..], &name_length, &[0; 2], name.as_bytes()];
        let central =
            [b"PK\x01\x02\x14\0\x14\0\0\0\x08\0\0\0\0\0", &sizes[..], &name_length, &[0; 16], name.as_bytes()];
        let (local, central) = (local.concat(), central.concat());
        let start = (local.len() + packed.len()) as u32;
        let end = [
            b"PK\x05\x06\0\0\0\0\x01\0\x01\0",
            &(central.len() as u32).to_le_bytes()[..],
            &start.to_le_bytes(),
            &[0; 2],
        ];
        std::fs::write(path, [local, packed, central, end.concat()].concat()).unwrap();
    }
}

fn words(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn any_integers_and_compressed_arrays() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("t.npz");
    npz(
        &path,
        &[("tokens", "<i8", &[2, 2, 2], words(&[1, 2, 3, 4, 5, 6, 7, 8])), ("labels", "|u1", &[2], vec![1, 0])],
        false,
    );
    let options = ImportOptions { codes: [(VQGAN.to_string(), 9)].into(), ..ImportOptions::default() };
    import(&path, &temp.path().join("out"), &options).unwrap();
    let dataset = TokenDataset::open(&temp.path().join("out")).unwrap();
    assert_eq!((dataset.grid(), dataset.codebook_size(), dataset.labels()), (2, 9, &[1, 0][..]));

    npz(&path, &[("labels", "<i4", &[3], vec![5, 0, 0, 0, 255, 255, 255, 255, 0, 1, 0, 0])], true);
    let file = NpzFile::open(&path).unwrap();
    let mut labels = [0; 3];
    file.open_ints("labels").unwrap().read(&mut labels).unwrap();
    assert_eq!(labels, [5, -1, 256]);
}

#[test]
fn what_is_wrong_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("t.npz");
    let failed = |arrays: &[(&str, &str, &[usize], Vec<u8>)], options: ImportOptions| {
        npz(&path, arrays, false);
        let error = import(&path, &temp.path().join("out"), &options).unwrap_err().to_string();
        assert!(!temp.path().join("out").exists());
        error
    };
    let (tokens, labels) =
        (("tokens_vqgan", "<i8", &[1, 4][..], words(&[0, 1, 2, 3])), ("labels", "|u1", &[1][..], vec![0]));
    let with = |ids: [i64; 4]| [("tokens_vqgan", "<i8", &[1, 4][..], words(&ids)), labels.clone()];
    let plain = ImportOptions::default;
    let cases = [
        ("arrays: expected one named labels, found tokens_vqgan", failed(std::slice::from_ref(&tokens), plain())),
        ("arrays: expected tokens_vqgan or tokens, found labels", failed(std::slice::from_ref(&labels), plain())),
        ("have not), found [1, 3]", { failed(&[("tokens", "<i8", &[1, 3], words(&[0; 3])), labels.clone()], plain()) }),
        ("tokens_vqgan of image 0: expected 0 to 65535, found -1", failed(&with([0, 0, -1, 0]), plain())),
        ("image 0, token 1: expected an id below 1024, found 1024", failed(&with([0, 1024, 0, 0]), plain())),
        ("label of image 0: expected below 0", {
            failed(&[tokens.clone(), labels.clone()], ImportOptions { class_names: Some(vec![]), ..plain() })
        }),
        ("expected integers, found <f4", {
            failed(&[("tokens", "<f4", &[1, 1], vec![0; 4]), labels.clone()], plain())
        }),
        ("expected as many bytes as its shape says", {
            failed(&[("tokens", "<i8", &[1, 4], words(&[0; 2])), labels.clone()], plain())
        }),
    ];
    for (expected, message) in cases {
        assert!(message.contains(expected), "expected {expected:?} in {message:?}");
    }
    std::fs::write(&path, "text").unwrap();
    let error = import(&path, &temp.path().join("out"), &plain()).unwrap_err().to_string();
    assert!(
        error.contains("t.npz: contents: expected a PyTorch checkpoint (.pt) or a zip file of arrays (.npz)"),
        "{error}"
    );
}
