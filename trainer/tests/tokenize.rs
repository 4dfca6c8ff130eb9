//! `sorcen tokenize` on folders and shards as they come: every kind of file, faulty ones, kills, parts.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sorcen_trainer::data::{ImageQuery, ImageSet, TokenDataset};
use sorcen_trainer::tokenizer::PatchTokenizer;

fn fixtures(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// Runs `sorcen` in `dir`: exit code, standard output, standard error.
fn sorcen(dir: &Path, args: &str) -> (i32, String, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_sorcen")).args(args.split_whitespace()).current_dir(dir).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn succeeds(dir: &Path, args: &str) -> (String, String) {
    let (code, out, err) = sorcen(dir, args);
    assert_eq!(code, 0, "sorcen {args}\n{out}{err}");
    (out, err)
}

/// Every file of a folder.
fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let entry = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.unwrap();
        (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
    };
    let mut all: Vec<_> = dir.read_dir().unwrap().map(entry).collect();
    all.sort();
    all
}

/// A tokenizer of flat grey patches of side 8.
fn write_tokenizer(dir: &Path) {
    let patches = (0..64u8).flat_map(|grey| [grey * 4; 192]).collect();
    PatchTokenizer::new(patches, 64, 8).unwrap().save(&dir.join("t.safetensors")).unwrap();
}

#[test]
fn every_kind_of_file_shows_the_same_picture() {
    let mut query = ImageQuery { images: vec![fixtures("images")], size: Some(32), ..ImageQuery::default() };
    let text = "file\nplain.jpg\ncmyk.jpg\nturned.jpg\nlossy.webp\nlossless.webp\nanimated.gif\npalette.png\n\
                alpha.png\ngrey.png\ngrey16.png\n";
    let temp = tempfile::tempdir().unwrap();
    let csv = temp.path().join("files.csv");
    std::fs::write(&csv, text).unwrap();
    query.labels = vec![csv];
    query.class_column = "file".into();
    let set = ImageSet::open(&query).unwrap();
    // 48x32 cut to 32x32: the quarters keep their corners.
    let corners = |image: usize| {
        let rgb = set.rgb(image).unwrap();
        [(2, 2), (29, 2), (2, 29), (29, 29)].map(|(x, y)| <[u8; 3]>::try_from(&rgb[(y * 32 + x) * 3..][..3]).unwrap())
    };
    let colours = [[200, 30, 30], [30, 160, 60], [40, 60, 200], [240, 240, 240]];
    let grey = [81, 110, 70, 240].map(|grey| [grey; 3]);
    let names: Vec<&str> = text.lines().skip(1).collect();
    for (image, name) in names.iter().enumerate() {
        let mut expected = if name.starts_with("grey") { grey } else { colours };
        if *name == "alpha.png" {
            expected[0] = [255; 3];
        }
        let tolerance = if name.ends_with("png") || *name == "lossless.webp" { 1 } else { 14 };
        for (found, expected) in corners(image).iter().zip(&expected) {
            let far = found.iter().zip(expected).any(|(a, b)| a.abs_diff(*b) > tolerance);
            assert!(!far, "{name}: {:?}, expected {expected:?}", corners(image));
        }
    }
}

/// A folder with good images and every planted fault; the faulty ones.
fn write_faulty(dir: &Path) -> [&'static str; 4] {
    let photos = dir.join("photos");
    for class in ["a", "b"] {
        std::fs::create_dir_all(photos.join(class)).unwrap();
    }
    for name in ["plain.jpg", "cmyk.jpg", "animated.gif"] {
        std::fs::copy(fixtures("images").join(name), photos.join("a").join(name)).unwrap();
    }
    let jpeg = std::fs::read(fixtures("images/plain.jpg")).unwrap();
    std::fs::write(photos.join("a/cut.jpg"), &jpeg[..jpeg.len() * 3 / 4]).unwrap();
    std::fs::write(photos.join("b/text.png"), "this is no picture").unwrap();
    std::fs::write(photos.join("b/empty.jpg"), "").unwrap();
    image::RgbImage::new(1, 1).save(photos.join("b/dot.png")).unwrap();
    std::fs::copy(fixtures("images/grey16.png"), photos.join("b/grey16.png")).unwrap();
    [
        "a/cut.jpg: contents: expected a PNG, JPEG, WebP or GIF image, found a JPEG file that is cut off",
        "b/dot.png: image: expected sides of at least 8",
        "b/empty.jpg: ",
        "b/text.png: contents",
    ]
}

#[test]
fn faulty_images_are_reported_skipped_or_fatal() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    write_tokenizer(dir);
    let faults = write_faulty(dir);
    let tokenize = "tokenize --images photos --size 32 --tokenizer t.safetensors --out tokens";

    let (code, _, error) = sorcen(dir, tokenize);
    assert!(code == 1 && error.contains(faults[0]) && error.contains("--on_error skip"), "{error}");
    assert!(!dir.join("tokens").exists() && !dir.join("tokens.unfinished").exists());

    let (code, _, error) = sorcen(dir, &format!("{tokenize} --on_error report"));
    assert!(code == 1 && error.contains("4 of 8 images cannot be read"), "{error}");
    assert!(faults.iter().all(|fault| error.contains(fault)), "{error}");
    assert!(!dir.join("tokens").exists() && dir.join("tokens.unfinished").exists());

    let (out, error) = succeeds(dir, &format!("{tokenize} --on_error skip"));
    assert!(out.contains("4 images of 4x4 tokens") && out.contains("8 done before"), "{out}");
    assert!(faults.iter().all(|fault| error.contains(fault)) && error.contains("tokens.skipped.csv"), "{error}");
    assert!(!dir.join("tokens.unfinished").exists());
    let dataset = TokenDataset::open(&dir.join("tokens")).unwrap();
    assert_eq!(dataset.class_names(), ["a", "b"]);
    let files = ["a/animated.gif", "a/cmyk.jpg", "a/plain.jpg", "b/grey16.png"];
    assert_eq!(
        (dataset.column("file").unwrap(), dataset.labels()),
        (files.map(String::from).to_vec(), &[0, 0, 0, 1][..])
    );
    let skipped = std::fs::read_to_string(dir.join("tokens.skipped.csv")).unwrap();
    assert!(skipped.starts_with("image,reason\n2,") && skipped.lines().count() == 5, "{skipped}");
    succeeds(dir, "tokens verify tokens");

    std::fs::remove_file(dir.join("photos/b/grey16.png")).unwrap();
    let (code, _, error) = sorcen(
        dir,
        "tokenize --images photos/b --size 32 --tokenizer t.safetensors --out none --on_error skip --min_side 9",
    );
    assert!(code == 1 && error.contains("3 of 3 images cannot be read"), "{error}");
}

/// `images.idx`: `count` images of 32×32 pixels of no pattern.
fn write_idx(dir: &Path, count: u32) {
    let header = [0, 0, 8, 4].into_iter().chain([count, 32, 32, 3].into_iter().flat_map(u32::to_be_bytes));
    let pixels =
        (0..count * 3072).map(|i| (i.wrapping_mul(2_654_435_761) >> 21) as u8 & 0x7F | (i / 3072 % 2 * 128) as u8);
    std::fs::write(dir.join("images.idx"), header.chain(pixels).collect::<Vec<u8>>()).unwrap();
}

#[test]
fn killed_and_started_again_the_bytes_are_the_same() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    write_idx(dir, 700);
    std::fs::copy(fixtures("official/vqgan/vqgan_mini_checkpoint.ckpt"), dir.join("v.ckpt")).unwrap();
    let tokenize = |out: &str| format!("tokenize --images images.idx --tokenizer v.ckpt --out {out}");
    succeeds(dir, &tokenize("whole"));

    let mut kills = 0;
    for pieces in [1, 2] {
        let mut run = Command::new(env!("CARGO_BIN_EXE_sorcen"))
            .args(tokenize("killed").split_whitespace())
            .current_dir(dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let is_piece = |entry: &std::fs::DirEntry| entry.path().extension().is_some_and(|end| end == "piece");
        let pieces_in = |entries: std::fs::ReadDir| entries.flatten().filter(is_piece).count();
        let done = || dir.join("killed.unfinished").read_dir().map_or(0, pieces_in);
        let start = Instant::now();
        while done() < pieces && run.try_wait().unwrap().is_none() && start.elapsed() < Duration::from_secs(120) {
            std::thread::sleep(Duration::from_millis(2));
        }
        run.kill().unwrap(); // SIGKILL
        run.wait().unwrap();
        kills += usize::from(!dir.join("killed").exists());
    }
    assert!(kills > 0, "no kill came before the end");
    let (code, _, error) = sorcen(dir, &(tokenize("killed") + " --size 16"));
    assert!(
        code == 1 && error.contains("job.json: job: expected the same tokenizer, size, images and shard"),
        "{error}"
    );
    if !dir.join("killed").exists() {
        let (out, _) = succeeds(dir, &tokenize("killed"));
        assert!(out.contains("done before"), "{out}");
    }
    assert_eq!(contents(&dir.join("killed")), contents(&dir.join("whole")));

    for part in 0..3 {
        succeeds(dir, &(tokenize(&format!("part{part}")) + &format!(" --shard {part}/3")));
    }
    succeeds(dir, "tokens merge part0 part1 part2 --out merged");
    assert_eq!(contents(&dir.join("merged")), contents(&dir.join("whole")));
    let (code, _, error) = sorcen(dir, &(tokenize("new") + " --shard 3/3"));
    assert!(code == 2 && error.contains("expected I/N"), "{error}");
}

#[test]
fn images_without_a_class_are_said_to_be() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    write_tokenizer(dir);
    std::fs::create_dir_all(dir.join("photos/a")).unwrap();
    for name in ["1.jpg", "2.jpg", "a/3.jpg"] {
        std::fs::copy(fixtures("images/plain.jpg"), dir.join("photos").join(name)).unwrap();
    }
    let tokenize = "tokenize --size 32 --tokenizer t.safetensors";
    let (out, note) = succeeds(dir, &format!("{tokenize} --images photos --out mixed"));
    assert!(out.contains("2 classes") && note.contains("note: 2 of 3 images have no class"), "{out}{note}");
    assert_eq!(TokenDataset::open(&dir.join("mixed")).unwrap().class_names(), ["a", "image"]);
    let (out, note) = succeeds(dir, &format!("{tokenize} --images photos/a --out flat"));
    assert!(out.contains("one class, `image`") && note.contains("note: 1 of 1 images have no class"), "{out}{note}");
    std::fs::rename(dir.join("photos/a"), dir.join("a")).unwrap();
    std::fs::create_dir(dir.join("folder")).unwrap();
    std::fs::rename(dir.join("a"), dir.join("folder/a")).unwrap();
    let (out, note) = succeeds(dir, &format!("{tokenize} --images folder --out one"));
    assert!(out.contains("one class, `a`") && note.is_empty(), "{out}{note}");
}

#[test]
fn parts_of_a_faulty_folder_merge_to_the_whole() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    write_tokenizer(dir);
    write_faulty(dir);
    let tokenize = "tokenize --images photos --size 32 --tokenizer t.safetensors --on_error skip";
    succeeds(dir, &format!("{tokenize} --out whole"));
    for part in 0..2 {
        succeeds(dir, &format!("{tokenize} --shard {part}/2 --out part{part}"));
    }
    succeeds(dir, "tokens merge part0 part1 --out merged");
    assert_eq!(contents(&dir.join("merged")), contents(&dir.join("whole")));
}

#[test]
fn tar_shards() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    write_tokenizer(dir);
    let mut shard = tar::Builder::new(std::fs::File::create(dir.join("s-000.tar")).unwrap());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        shard.append_data(&mut header, name, bytes).unwrap();
    };
    let jpeg = std::fs::read(fixtures("images/plain.jpg")).unwrap();
    let webp = std::fs::read(fixtures("images/lossless.webp")).unwrap();
    add("0001.jpg", &jpeg);
    add("0001.cls", b"10");
    add("0002.cls", b"9\n");
    add("0002.webp", &webp);
    add("0003.json", br#"{"class": 10, "caption": "a drawing"}"#);
    add("0003.txt", b"a drawing");
    add("0003.jpg", &jpeg[..100]);
    shard.finish().unwrap();
    drop(shard);
    succeeds(dir, "tokenize --images s-000.tar --size 32 --tokenizer t.safetensors --on_error skip --out tokens");
    let dataset = TokenDataset::open(&dir.join("tokens")).unwrap();
    assert_eq!(dataset.class_names(), ["9", "10"], "numbers by their value");
    assert_eq!(dataset.labels(), [1, 0]);
    assert_eq!(dataset.column("file").unwrap(), ["s-000.tar/0001.jpg", "s-000.tar/0002.webp"]);
    let skipped = std::fs::read_to_string(dir.join("tokens.skipped.csv")).unwrap();
    assert!(skipped.contains("s-000.tar: 0003.jpg: expected a PNG, JPEG, WebP or GIF image"), "{skipped}");

    let whole = std::fs::read(dir.join("s-000.tar")).unwrap();
    std::fs::write(dir.join("cut.tar"), &whole[..700]).unwrap();
    let (code, _, error) = sorcen(dir, "tokenize --images cut.tar --size 32 --tokenizer t.safetensors --out new");
    assert!(code == 1 && error.contains("cut.tar: "), "{error}");
}
