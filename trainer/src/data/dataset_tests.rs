use super::super::{gather, StreamSpec, TokenDatasetWriter};
use super::*;

const COUNT: usize = 5;

fn spec(name: &str, grid: usize, codebook_size: usize) -> StreamSpec {
    StreamSpec { name: name.into(), grid, codebook_size, tokenizer: Some("sha256:42".into()) }
}

fn ids(index: usize, tokens: usize, codes: usize) -> Vec<u16> {
    (0..tokens).map(|t| ((index * 37 + t * 11) % codes) as u16).collect()
}

/// A dataset of two streams in `dir/data`.
fn write(dir: &Path) -> PathBuf {
    let target = dir.join("data");
    let classes = vec!["cat".to_string(), "dog".to_string()];
    let specs = [spec(VQGAN, 3, 300), spec("dino", 2, 65_536)];
    let mut writer = TokenDatasetWriter::create(&target, classes, &specs).unwrap();
    for index in 0..COUNT {
        writer.push((index % 2) as u16, &[&ids(index, 9, 300), &ids(index, 4, 65_536)]).unwrap();
    }
    assert!(!target.exists(), "appears only when finished");
    writer.finish(Some("name,base\na,1\n\"b, c\",0\nd,1\ne,1\nf,0\n")).unwrap();
    target
}

#[test]
#[cfg(unix)]
fn what_no_disk_holds_is_not_begun() {
    let temp = tempfile::tempdir().unwrap();
    let create = |images: usize| {
        let target = temp.path().join("data");
        TokenDatasetWriter::create(&target, vec!["cat".into()], &[spec(VQGAN, 3, 300)]).unwrap().with_room_for(images)
    };
    let message = create(usize::MAX).unwrap_err().to_string();
    assert!(message.contains("data: expected 18446744073.710 GB free on the disk, found "), "{message}");
    assert_eq!(temp.path().read_dir().unwrap().count(), 0);
    create(COUNT).unwrap();
}

#[test]
fn round_trip() {
    let temp = tempfile::tempdir().unwrap();
    let dataset = TokenDataset::open(&write(temp.path())).unwrap();
    assert_eq!((dataset.len(), dataset.grid(), dataset.tokens(), dataset.codebook_size()), (COUNT, 3, 9, 300));
    assert_eq!(dataset.tokenizer(), Some("sha256:42"));
    assert_eq!(dataset.class_names(), ["cat", "dog"]);
    assert_eq!(dataset.labels(), [0, 1, 0, 1, 0]);
    let dino = dataset.stream("dino").unwrap();
    let (mut a, mut b) = (vec![0; 9], vec![0; 4]);
    for index in 0..COUNT {
        dataset.ids(index, &mut a);
        dino.ids(index, &mut b);
        assert_eq!((a.as_slice(), b.as_slice()), (&ids(index, 9, 300)[..], &ids(index, 4, 65_536)[..]));
    }
    assert_eq!(dataset.column("name").unwrap(), ["a", "b, c", "d", "e", "f"]);
    let message = dataset.column("colour").unwrap_err().to_string();
    assert!(message.contains("columns: expected one named colour, found [\"name\", \"base\"]"), "{message}");
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1, "no temporary folder is left");
}

/// Edits one file of a fresh dataset (its checksum brought up to date where `reseal`) and opens it.
fn damaged(file: &str, reseal: bool, edit: impl FnOnce(&mut Vec<u8>)) -> String {
    let temp = tempfile::tempdir().unwrap();
    let dir = write(temp.path());
    let mut bytes = std::fs::read(dir.join(file)).unwrap();
    edit(&mut bytes);
    std::fs::write(dir.join(file), &bytes).unwrap();
    if reseal {
        let mut meta: Meta = serde_json::from_slice(&std::fs::read(dir.join(META)).unwrap()).unwrap();
        meta.sha256.insert(file.into(), sha256_hex(&bytes));
        std::fs::write(dir.join(META), serde_json::to_vec(&meta).unwrap()).unwrap();
    }
    let message = TokenDataset::open(&dir).expect_err(file).to_string();
    assert!(message.contains(file), "{message}");
    message
}

fn replace(from: &'static str, to: &'static str) -> impl FnOnce(&mut Vec<u8>) {
    move |bytes| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        assert!(text.contains(from), "{from} in {text}");
        *bytes = text.replacen(from, to, 1).into_bytes();
    }
}

/// As [`replace`], for files that are not text.
fn patch(from: &'static [u8], to: &'static [u8]) -> impl FnOnce(&mut Vec<u8>) {
    move |bytes| {
        let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
        bytes[at..at + from.len()].copy_from_slice(to);
    }
}

#[test]
fn every_damage_is_named() {
    let tokens = "tokens_vqgan.npy";
    let cases: [(&str, String); 15] = [
        ("SHA-256: expected", damaged(tokens, false, |b| b[150] ^= 1)),
        ("SHA-256: expected", damaged("labels.npy", false, |b| b.truncate(b.len() - 1))),
        ("SHA-256: expected", damaged("items.csv", false, |b| b[0] ^= 1)),
        ("length in bytes after the header: expected 55, found 54", damaged(tokens, true, |b| b.truncate(b.len() - 1))),
        ("numpy header: expected all of it", damaged(tokens, true, |b| b.truncate(90))),
        ("numpy header", damaged(tokens, true, |b| b.truncate(4))),
        ("numpy header", damaged(tokens, true, |b| b[1] = b'X')),
        ("dtype: expected \"|u1\", found \"<f4\"", damaged(tokens, true, patch(b"|u1", b"<f4"))),
        ("shape: expected [5, 11], found [6, 11]", damaged(tokens, true, patch(b"(5, ", b"(6, "))),
        ("image 0, token 6: expected an id below 300, found", damaged(tokens, true, |b| b[135..138].fill(255))),
        ("label of image 1: expected below 2", damaged("labels.npy", true, |b| b[130] = 2)),
        ("`version`: expected 1, found 2", damaged(META, false, replace("\"version\": 1", "\"version\": 2"))),
        ("`format`: expected sorcen-tokens", damaged(META, false, replace("sorcen-tokens", "tokens"))),
        ("`grid` of stream dino: expected 1 to 64", damaged(META, false, replace("\"grid\": 2", "\"grid\": 1000000"))),
        ("`streams`: expected one named vqgan", damaged(META, false, replace("\"vqgan\": {", "\"vq\": {"))),
    ];
    for (expected, message) in cases {
        assert!(message.contains(expected), "expected {expected:?} in {message:?}");
    }
}

#[test]
fn missing_files_are_named() {
    for file in [META, LABELS, "tokens_dino.npy", ITEMS] {
        let temp = tempfile::tempdir().unwrap();
        let dir = write(temp.path());
        std::fs::remove_file(dir.join(file)).unwrap();
        let message = TokenDataset::open(&dir).unwrap_err().to_string();
        let expected = if file == META { "expected a token dataset (a folder with meta.json" } else { "No such file" };
        assert!(message.contains(file) && message.contains(expected), "{message}");
    }
}

#[test]
fn writer_refuses_what_open_would_refuse() {
    let temp = tempfile::tempdir().unwrap();
    let target = write(temp.path());
    let create = |target: &Path, spec| TokenDatasetWriter::create(target, vec!["a".into()], &[spec]);
    let message = create(&target, spec(VQGAN, 2, 8)).unwrap_err().to_string();
    assert!(message.contains("expected a new or empty folder"), "{message}");
    let new = temp.path().join("new");
    assert!(create(&new, spec(VQGAN, 65, 8)).is_err());
    assert!(create(&new, spec(VQGAN, 2, 65_537)).is_err());
    assert!(create(&new, spec("../x", 2, 8)).is_err());
    let mut writer = create(&new, spec(VQGAN, 2, 8)).unwrap();
    assert!(writer.push(1, &[&[0; 4]]).unwrap_err().to_string().contains("label of image 0: expected below 1"));
    assert!(writer.push(0, &[]).is_err());
    assert!(writer.push(0, &[&[0; 5]]).unwrap_err().to_string().contains("tokens of image 0: expected 4, found 5"));
    assert!(writer.push(0, &[&[0, 8, 0, 0]]).unwrap_err().to_string().contains("token 1: expected an id below 8"));
    drop(writer);
    assert!(!new.exists());
    assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1, "the temporary folder is removed");
}

#[test]
fn gather_merges_and_selects() {
    let temp = tempfile::tempdir().unwrap();
    let dir = write(temp.path());
    let dataset = TokenDataset::open(&dir).unwrap();
    let out = temp.path().join("out");
    gather(&[(&dataset, vec![4, 1]), (&dataset, vec![2])], &out).unwrap();
    let gathered = TokenDataset::open(&out).unwrap();
    assert_eq!(gathered.labels(), [0, 1, 0]);
    assert_eq!(gathered.column("name").unwrap(), ["f", "b, c", "d"]);
    let mut dino = [0; 4];
    gathered.stream("dino").unwrap().ids(2, &mut dino);
    assert_eq!(dino, ids(2, 4, 65_536)[..]);

    let other = temp.path().join("other");
    TokenDatasetWriter::create(&other, dataset.class_names().to_vec(), &[spec(VQGAN, 3, 300)])
        .unwrap()
        .finish(None)
        .unwrap();
    let other = TokenDataset::open(&other).unwrap();
    let message = gather(&[(&dataset, vec![]), (&other, vec![])], &temp.path().join("new")).unwrap_err().to_string();
    assert!(message.contains("other: streams: expected"), "{message}");
}
