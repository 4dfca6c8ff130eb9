//! `sorcen tokenize` on shards, folders and lists as other programs leave them: what is not taken is counted and named,
//! what is wrong with one image is a fault of that one, and nothing passes in silence.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use image::{ExtendedColorType, ImageEncoder as _, RgbImage};
use sorcen_export::tensors::TensorFile;
use sorcen_trainer::data::TokenDataset;
use sorcen_trainer::tokenizer::PatchTokenizer;

/// Runs `sorcen` in `dir`: exit code, and all that it says.
fn sorcen(dir: &Path, args: &str) -> (i32, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_sorcen")).args(args.split_whitespace()).current_dir(dir).output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.code().expect("an exit code"), text)
}

/// A folder with a tokenizer of flat grey patches of side 8.
fn workplace() -> (tempfile::TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let patches = (0..64u8).flat_map(|grey| [grey * 4; 192]).collect();
    PatchTokenizer::new(patches, 64, 8).unwrap().save(&temp.path().join("t.safetensors")).unwrap();
    let dir = temp.path().to_path_buf();
    (temp, dir)
}

/// Runs `tokenize` on `images` (with further flags) into a new folder; what it ends with, and the classes and labels of
/// the dataset, if there is one.
fn tokenize(dir: &Path, images: &str) -> (i32, String, Vec<String>, Vec<u16>) {
    let number = (0..).find(|n| !dir.join(format!("out{n}")).exists()).unwrap();
    let out = format!("out{number}");
    let (code, said) = sorcen(dir, &format!("tokenize --tokenizer t.safetensors --out {out} --images {images}"));
    let dataset = (code == 0).then(|| TokenDataset::open(&dir.join(&out)).unwrap());
    std::fs::create_dir_all(dir.join(&out)).unwrap(); // the next has another name
    let (classes, labels) =
        dataset.map_or_else(Default::default, |set| (set.class_names().to_vec(), set.labels().to_vec()));
    (code, said, classes, labels)
}

/// What `tokenize` ends with, says, and makes: exit code, parts of the text, classes, labels.
struct Case(&'static str, i32, &'static [&'static str], &'static [&'static str], &'static [u16]);

fn check(dir: &Path, cases: &[Case]) {
    let mut wrong = Vec::new();
    for Case(images, code, parts, classes, labels) in cases {
        let found = tokenize(dir, images);
        let said = parts.iter().all(|part| found.1.contains(part));
        if !said
            || (found.0, &found.2[..], &found.3[..])
                != (*code, &classes.iter().map(|c| c.to_string()).collect::<Vec<_>>()[..], labels)
        {
            wrong.push(format!("{images}: expected {code} {parts:?} {classes:?} {labels:?}, found {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

fn write(path: PathBuf, bytes: impl AsRef<[u8]>) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// A picture of 16×16 pixels, flat.
fn png(grey: u8) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    RgbImage::from_pixel(16, 16, image::Rgb([grey; 3])).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn bmp() -> &'static [u8] {
    b"BM:\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\x01\0\0\0\x01\0\0\0\x01\0\x18\0"
}

/// A tar archive of files with these names, also such as are no text.
fn tar(files: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_old();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_size(bytes.len() as u64);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_cksum();
        archive.append(&header, *bytes).unwrap();
    }
    archive.into_inner().unwrap()
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn what_is_not_taken_is_counted_and_named() {
    let (_temp, dir) = workplace();
    let p = &png(40)[..];
    let dotted: Vec<(String, u8)> = (0..5).map(|n| (format!("img.00{n}.png"), n)).collect();
    let mut files: Vec<(&[u8], &[u8])> = dotted.iter().map(|(name, _)| (name.as_bytes(), p)).collect();
    files.push((b"x0.png", p));
    write(dir.join("dotted.tar"), tar(&files));
    files = vec![
        (b"a.jpg.txt", b"of an archive"),
        (b"README", b"text"),
        (b"cat/._0.png", b"AppleDouble"),
        (b"cat/0.png", p),
        (b"cat/0.tif", b"II*\0"),
        (b"cat/0.txt", b"a caption"),
        (b"cat/1.json", b"{}"),
        (b"n01/images/a.png", p),
        (b"n02/images/b.png", p),
    ];
    write(dir.join("stray.tar"), tar(&files));
    write(dir.join("empty.tar"), tar(&[]));
    for (name, bytes) in [
        ("cat/0.png", p),
        ("cat/plain", p),
        ("cat/img.000.png", p),
        ("cat/._0.png", b"AppleDouble"),
        ("cat/Thumbs.db", b"x"),
        ("dog/1.png", p),
        ("README.md", b"text"),
        ("desktop.ini", b"x"),
        (".ipynb_checkpoints/a.png", p),
    ] {
        write(dir.join("stray").join(name), bytes);
    }
    std::fs::create_dir_all(dir.join("stray/zebra")).unwrap();
    write(dir.join("list.csv"), "file,class\ndog/1.png,x\n");
    check(
        &dir,
        &[
            Case(
                "dotted.tar",
                0,
                &["key ends at the first dot", "(5): dotted.tar/img.000.png", "and 2 more"],
                &["image"],
                &[0],
            ),
            Case(
                "stray.tar empty.tar",
                0,
                &[
                    "note: not taken, no pictures by their names (3): stray.tar/a.jpg.txt, stray.tar/README",
                    "note: not taken, hidden (the name starts with a dot) (1): stray.tar/cat/._0.png",
                    "further pictures of a sample that has one (1): stray.tar/cat/0.tif",
                    "samples without a picture (1): stray.tar/cat/1.json",
                    "are one class, as a shard's class is the last folder (1): stray.tar: n01/images and n02/images",
                    "without a picture (1): empty.tar",
                ],
                &["cat", "images"],
                &[0, 1, 1],
            ),
            Case(
                "empty.tar",
                1,
                &["images: expected at least one", "found 0", "without a picture (1): empty.tar"],
                &[],
                &[],
            ),
            Case(
                "stray",
                0,
                &[
                    "note: not taken, no pictures by their names (3): stray/README.md, stray/cat/Thumbs.db",
                    "note: not taken, hidden (the name starts with a dot) (2): stray/.ipynb_checkpoints",
                    "classes without a picture (1): stray/zebra",
                ],
                &["cat", "dog", "zebra"],
                &[0, 0, 0, 1],
            ),
            Case(
                "stray --labels list.csv",
                0,
                &["pictures that --labels does not name (3): stray/cat/0.png"],
                &["x"],
                &[0],
            ),
        ],
    );
}

#[test]
fn shards_and_folders_say_the_same_of_what_is_faulty() {
    let (_temp, dir) = workplace();
    let p = &png(40)[..];
    let faulty: [(&str, &[u8], &str); 4] = [
        ("cat/empty.png", b"", "expected a PNG, JPEG, WebP or GIF image, found 0 bytes"),
        ("cat/m.bmp", bmp(), "expected a PNG, JPEG, WebP or GIF image, found The image format Bmp is not supported"),
        (
            "cat/t.TIFF",
            b"II*\0",
            "expected a PNG, JPEG, WebP or GIF image, found The image format Tiff is not supported",
        ),
        ("cat/text.jpg", b"text", "expected a PNG, JPEG, WebP or GIF image, found The image format could not"),
    ];
    let mut files: Vec<(&[u8], &[u8])> = vec![(b"cat/0.png", p)];
    write(dir.join("f/cat/0.png"), p);
    for (name, bytes, _) in &faulty {
        files.push((name.as_bytes(), bytes));
        write(dir.join("f").join(name), bytes);
    }
    write(dir.join("f.tar"), tar(&files));
    for images in ["f", "f.tar"] {
        let (code, said, _, labels) = tokenize(&dir, &format!("{images} --on_error skip"));
        assert!(code == 0 && labels == [0], "{said}");
        for (name, _, expected) in &faulty {
            let line = said.lines().find(|line| line.starts_with("image ") && line.contains(name));
            assert!(line.is_some_and(|line| line.contains(expected)), "{images}, {name}: {said}");
        }
        let (code, said, ..) = tokenize(&dir, images);
        assert!(code == 1 && said.contains("found 0 bytes") && said.contains("--on_error skip"), "{said}");
    }
}

#[test]
fn what_is_wrong_with_a_sample_or_a_shard_is_a_fault_of_that_one() {
    let (_temp, dir) = workplace();
    let (p, q) = (&png(40)[..], &png(80)[..]);
    let good = tar(&[(b"a.png", p), (b"a.cls", b"3"), (b"b.png", q), (b"b.cls", b"4")]);
    let members = good.len() - 1024; // without the end marker
    write(dir.join("good.tar"), &good);
    write(dir.join("cut_at_member.tar"), &good[..members]);
    write(dir.join("cut.tar"), &good[..1024 + 512]); // in `a.cls`
    write(dir.join("twice.tar"), [&good[..], &good].concat());
    write(dir.join("zero.tar"), b"");
    write(dir.join("text.tar"), "no tar archive ".repeat(100));
    write(dir.join("cut.tar.gz"), &gz(&good)[..60]);
    let with = |name: &str, a: (&[u8], &[u8])| {
        write(dir.join(name), tar(&[(b"a.png", p), a, (b"b.png", q), (b"b.cls", b"4")]));
    };
    with("nan.tar", (b"a.json", b"{\"class\":3,\"similarity\":NaN}"));
    with("surrogate.tar", (b"a.json", b"{\"class\":3,\"caption\":\"\\ud83d\"}"));
    with("list.tar", (b"a.json", b"{\"class\":[3]}"));
    with("unrelated.tar", (b"a.json", b"{\"caption\":\"a\"}"));
    with("bom.tar", (b"a.cls", b"\xEF\xBB\xBF4"));
    with("no_name.tar", (b"a.cls", b" \n"));
    with("utf16.tar", (b"a.cls", b"\xff\xfe0\0"));
    with("second.tar", (b"a.png", q));
    with("second_cls.tar", (b"b.cls", b"5"));
    write(
        dir.join("latin1.tar"),
        tar(&[(b"caf\xe9/a.png", p), (b"caf\xe8/b.png", q), (b"./c.png", q), (b"./d/d.png", q)]),
    );
    let mut links = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(p.len() as u64);
    links.append_data(&mut header.clone(), "cat/a.png", p).unwrap();
    for (kind, name) in [(tar::EntryType::Symlink, "cat/b.png"), (tar::EntryType::Link, "cat/c.png")] {
        header.set_entry_type(kind);
        header.set_size(0);
        links.append_link(&mut header, name, "cat/a.png").unwrap();
    }
    write(dir.join("links.tar"), links.into_inner().unwrap());
    // (shard, what is said, classes and labels with skip)
    let cases: [(&str, &str, &[&str], &[u16]); 16] = [
        ("cut_at_member.tar", "end: expected two blocks of zeros after the last member", &["3", "4"], &[0, 1]),
        ("cut.tar", "a.png: expected its class behind it, found the place where the archive is cut off", &[], &[]),
        ("twice.tar", "expected zeros after the end marker, found more at byte", &["3", "4"], &[0, 1]),
        ("zero.tar", "zero.tar: contents: expected a tar archive, found 0 bytes", &[], &[]),
        ("text.tar", "text.tar: contents after 0 bytes: expected a whole tar archive", &[], &[]),
        ("cut.tar.gz", "cut.tar.gz: contents: expected a tar archive", &[], &[]),
        ("nan.tar", "nan.tar: a.json: expected JSON", &["4"], &[0]),
        ("surrogate.tar", "surrogate.tar: a.json: expected JSON", &["4"], &[0]),
        ("list.tar", "a.json: expected the name of a class in the field `class`, found [3]", &["4"], &[0]),
        ("no_name.tar", "no_name.tar: a.cls: expected the name of a class, found an empty one", &["4"], &[0]),
        (
            "utf16.tar",
            "utf16.tar: a.cls: expected the name of a class, found \\xff\\xfe0\\x00 (no UTF-8)",
            &["4"],
            &[0],
        ),
        ("second.tar", "second.tar: a.png: expected one file of this name in the archive", &["4", "image"], &[1, 0]),
        ("second_cls.tar", "b.cls: expected one file of this name in the archive", &["image"], &[0]),
        ("latin1.tar", "found caf\\xe9 (no UTF-8)", &["d", "image"], &[1, 0]),
        ("latin1.tar", "caf\\xe8/b.png: expected a folder of the name of a class", &["d", "image"], &[1, 0]),
        ("links.tar", "b.png: expected a file, found a link to cat/a.png", &["cat"], &[0]),
    ];
    for (shard, expected, classes, labels) in cases {
        let (code, said, ..) = tokenize(&dir, shard);
        assert!(code == 1 && !said.contains("panicked"), "{shard}: {said}");
        let found = tokenize(&dir, &format!("{shard} --on_error skip"));
        assert!(found.1.contains(expected), "{shard}: {}", found.1);
        match labels {
            [] => assert_eq!(found.0, 1, "{}", found.1),
            _ => assert_eq!(
                (found.0, &found.3[..], &found.2[..]),
                (0, labels, &classes.iter().map(|c| c.to_string()).collect::<Vec<_>>()[..]),
                "{}",
                found.1
            ),
        }
        // Beside a good shard, the run goes on; `report` names it and makes nothing.
        let (code, said, _, found) = tokenize(&dir, &format!("{shard} good.tar --on_error skip"));
        assert!(code == 0 && found.len() == labels.len() + 2, "{said}");
        let (code, said, ..) = tokenize(&dir, &format!("good.tar {shard} --on_error report"));
        assert!(code == 1 && said.contains(expected) && said.contains("cannot be read"), "{said}");
    }
    check(
        &dir,
        &[
            Case("bom.tar", 0, &["one class, `4`"], &["4"], &[0, 0]),
            Case("unrelated.tar", 0, &["1 of 2 images have no class"], &["4", "image"], &[1, 0]),
        ],
    );
}

#[test]
fn gzipped_files_are_read_whole() {
    let (_temp, dir) = workplace();
    let good = tar(&[(b"a.png", &png(40)), (b"a.cls", b"3")]);
    for name in ["a.tar.gz", "a.tgz", "a.shard", "multi.tar.gz"] {
        let bytes = match name {
            "multi.tar.gz" => [gz(&good[..700]), gz(&good[700..])].concat(),
            _ => gz(&good),
        };
        write(dir.join(name), bytes);
    }
    write(dir.join("bomb.tar.gz"), gz(&[&good[..1024], &vec![0; 128 << 20]].concat()));
    let header: Vec<u8> =
        [0, 0, 8, 3].into_iter().chain([2u32, 16, 16].into_iter().flat_map(u32::to_be_bytes)).collect();
    let idx = [header, vec![40; 256], vec![80; 256]].concat();
    write(dir.join("multi"), [gz(&idx[..2]), gz(&idx[2..300]), gz(&idx[300..])].concat());
    write(dir.join("short"), gz(&idx[..300]));
    write(dir.join("long"), gz(&[&idx[..], &[0]].concat()));
    write(dir.join("labels.csv.gz"), gz(b"class\na\nb\n"));
    check(
        &dir,
        &[
            Case("a.tar.gz a.tgz a.shard multi.tar.gz", 0, &[], &["3"], &[0, 0, 0, 0]),
            Case("bomb.tar.gz a.tgz --on_error skip", 0, &["bomb.tar.gz", "when unpacked"], &["3"], &[0]),
            Case("multi --labels labels.csv.gz", 0, &[], &["a", "b"], &[0, 1]),
            Case("short", 1, &["length in bytes: expected 16 + the product of [2, 16, 16], found 300"], &[], &[]),
            Case("long", 1, &["found more than 528"], &[], &[]),
        ],
    );
}

#[test]
fn pictures_of_sizes_that_take_gigabytes_are_faults() {
    let (_temp, dir) = workplace();
    write(dir.join("p/a/good.png"), png(40));
    image::GrayImage::new(65535, 8).save(dir.join("p/a/narrow.png")).unwrap();
    let (code, said, _, labels) = tokenize(&dir, "p --size 4096 --on_error skip");
    // 4096 pixels are a grid of 512, more than a dataset takes: found before the work, without the picture.
    assert!(code == 1 && said.contains("expected 1 to 64, found 512") && !said.contains("narrow"), "{code} {said}");
    assert!(labels.is_empty());
    let (code, said, _, labels) = tokenize(&dir, "p --size 512 --more_views 1 --on_error skip");
    assert!(code == 0 && labels.len() == 3, "{said}"); // a crop of the narrow one fits
    let expected = "narrow.png: image: expected a picture that scales to at most 67108864 pixels";
    assert!(said.contains(expected) && said.contains("65535x8, which would become 4194240x512"), "{said}");
}

#[test]
fn folders_that_people_have() {
    let (_temp, dir) = workplace();
    let p = &png(40)[..];
    for name in ["train/n01/images/a.JPEG", "train/n02/images/b.JPEG", "train/n02/images/c.JPEG", "val/images/v.JPEG"] {
        write(dir.join("tiny").join(name), p);
    }
    write(dir.join("tiny/train/n01/n01_boxes.txt"), "a.JPEG 0 0 1 1");
    write(dir.join("tiny/val/val_annotations.txt"), "v.JPEG\tn01\t0\t0\t1\t1");
    for name in ["train/0.png", "plane/1.png"] {
        write(dir.join("vehicles").join(name), p);
    }
    write(dir.join("tokens/meta.json"), "{}");
    check(
        &dir,
        &[
            Case(
                "tiny/train",
                0,
                &[
                    "pictures in folders below their class's, taken as of that class (3): tiny/train/n01/images/a.JPEG",
                    "no pictures by their names (1): tiny/train/n01/n01_boxes.txt",
                ],
                &["n01", "n02"],
                &[0, 1, 1],
            ),
            Case(
                "tiny",
                1,
                &["layout: expected one folder per class, found train, val", "--images tiny/train"],
                &[],
                &[],
            ),
            Case("tiny/val", 1, &["val_annotations.txt: layout", "--labels list.csv", "awk"], &[], &[]),
            Case("tiny/val/images", 0, &["1 of 1 images have no class"], &["image"], &[0]),
            Case("vehicles", 0, &[], &["plane", "train"], &[0, 1]),
            Case("tokens", 1, &["found a token dataset"], &[], &[]),
            Case("tiny/train/n01/images/a.JPEG", 1, &["expected a folder of pictures", "found an image"], &[], &[]),
        ],
    );
}

#[test]
#[cfg(unix)]
fn pipes_and_links_in_folders() {
    use std::os::unix::fs::symlink;
    let (_temp, dir) = workplace();
    write(dir.join("f/cat/a.png"), png(40));
    let made = Command::new("mkfifo").args([dir.join("f/cat/pipe.png"), dir.join("f/pipe")]).status().unwrap();
    assert!(made.success());
    symlink("/dev/zero", dir.join("f/cat/zero.png")).unwrap();
    symlink("a.png", dir.join("f/cat/link.png")).unwrap();
    symlink("..", dir.join("f/cat/up")).unwrap();
    symlink("cat", dir.join("f/dog")).unwrap();
    write(dir.join("list.csv"), "file,class\ncat/a.png,x\ncat/pipe.png,x\ncat/zero.png,x\ngone.png,x\n");
    check(
        &dir,
        &[
            Case(
                "f",
                0,
                &[
                    "pipes, sockets or devices (5): f/cat/pipe.png, f/cat/zero.png",
                    "links to folders below a class's (2): f/cat/up",
                ],
                &["cat", "dog"],
                &[0, 0, 1, 1],
            ),
            Case(
                "f --labels list.csv --on_error skip",
                0,
                &[
                    "pipe.png: expected a file, found a pipe",
                    "zero.png: expected a file, found",
                    "gone.png: No such file",
                ],
                &["x"],
                &[0],
            ),
        ],
    );
    symlink("nowhere.png", dir.join("f/cat/gone.png")).unwrap();
    let (code, said, _, labels) = tokenize(&dir, "f --on_error skip");
    assert!(code == 0 && labels.len() == 4 && said.contains("cat/gone.png: No such file"), "{said}");
}

#[test]
fn lists_of_labels() {
    let (_temp, dir) = workplace();
    for name in ["f/1.png", "f/2.png"] {
        write(dir.join(name), png(40));
    }
    write(dir.join("s.tar"), tar(&[(b"1.png", &png(40))]));
    for (name, text) in [
        ("empty.csv", &b"file,class\n1.png,\n2.png,b\n"[..]),
        ("twice.csv", b"file,class,class\n1.png,a,x\n2.png,b,y\n"),
        ("list.txt", b"file,class\n1.png,a\n2.png,b\n"),
        ("bom.csv", b"\xEF\xBB\xBFfile,class\n1.png,a\n2.png,b\n"),
        ("latin1.csv", b"file,class\n1.png,caf\xe9\n2.png,b\n"),
        ("binary", b"\x89\0\x01\xff\xfe"),
        ("nothing.csv", b""),
    ] {
        write(dir.join(name), text);
    }
    check(
        &dir,
        &[
            Case("f --labels empty.csv", 1, &["empty.csv: row 1 (1.png,): expected the name of a class"], &[], &[]),
            Case("f --labels empty.csv --on_error skip", 0, &["empty.csv: row 1"], &["b"], &[0]),
            Case("f --labels twice.csv", 1, &["twice.csv: columns: expected names that are all different"], &[], &[]),
            Case("f --labels list.txt", 0, &[], &["a", "b"], &[0, 1]),
            Case("f --labels bom.csv", 0, &[], &["a", "b"], &[0, 1]),
            Case("f --labels latin1.csv", 1, &["latin1.csv: labels: expected a CSV file", "UTF-8"], &[], &[]),
            Case("f --labels binary", 1, &["binary: labels: expected a CSV file"], &[], &[]),
            Case("f --labels nothing.csv", 1, &["nothing.csv: labels: expected a CSV file", "found nothing"], &[], &[]),
            Case("s.tar --labels list.txt", 1, &["s.tar: --labels: expected none for a tar shard"], &[], &[]),
        ],
    );
}

#[test]
fn out_is_judged_before_the_work() {
    let (_temp, dir) = workplace();
    write(dir.join("f/a/1.png"), png(40));
    std::fs::create_dir(dir.join("here")).unwrap();
    write(dir.join("full/file"), "x");
    write(dir.join("file"), "x");
    for (from, out, expected) in [
        ("here", ".", "expected a path that ends in the name of a folder"),
        ("here", "..", "expected a path that ends in the name of a folder"),
        ("here", "../full", "expected a new or empty folder"),
        ("here", "../file", "expected a new or empty folder"),
    ] {
        // Neither images nor tokenizer are looked at: they are not there.
        let (code, said) = sorcen(&dir.join(from), &format!("tokenize --images no --tokenizer no --out {out}"));
        assert!(code == 1 && said.contains(expected), "{out}: {said}");
    }
    assert_eq!(dir.join("here").read_dir().unwrap().count(), 0, "nothing is left behind");
    assert!(dir.read_dir().unwrap().all(|entry| !entry.unwrap().path().to_string_lossy().contains("unfinished")));
}

#[test]
fn splits_agree_on_their_classes() {
    let (_temp, dir) = workplace();
    for (split, classes) in
        [("train", &["bird", "cat", "dog"][..]), ("val", &["cat", "dog"]), ("more", &["cat", "zebra"])]
    {
        for class in classes {
            for n in 0..6 {
                write(dir.join(format!("photos/{split}/{class}/{n}.png")), png(n * 40));
            }
        }
    }
    let tokenize = |split: &str, more: &str| {
        sorcen(&dir, &format!("tokenize --tokenizer t.safetensors --images photos/{split} --out data/{split} {more}"))
    };
    for split in ["train", "val"] {
        assert_eq!(tokenize(split, "").0, 0);
    }
    let expected = ["data/val: classes: expected the 3", "data/val lacks `bird`", "tokenize --classes_from data/train"];
    for verb in ["knn --data data", "tokens merge data/train data/val --out both"] {
        let (code, said) = sorcen(&dir, verb);
        assert!(code == 1 && expected.iter().all(|part| said.contains(part)), "{verb}: {said}");
    }
    std::fs::remove_dir_all(dir.join("data/val")).unwrap();
    assert_eq!(tokenize("val", "--classes_from data/train").0, 0);
    let val = TokenDataset::open(&dir.join("data/val")).unwrap();
    assert_eq!((val.class_names(), val.label(0)), (&["bird", "cat", "dog"].map(String::from)[..], 1));
    assert_eq!(sorcen(&dir, "knn --data data").0, 0);

    let (code, said) = tokenize("more", "--classes_from data/train");
    let expected = "expected one of the 3 classes of data/train (--classes_from), found `zebra`";
    assert!(code == 1 && said.contains(expected) && said.contains("more/zebra/0.png"), "{said}");
    let (code, said) = tokenize("more", "--classes_from nowhere");
    assert!(code == 1 && said.contains("nowhere"), "{said}");
    let (code, said) = tokenize("more", "--classes_from data/train --on_error skip");
    assert!(code == 0 && said.contains("6 images left out"), "{said}");

    // Labels of an idx file are numbers: `3` is the `03` of a set that goes to 12.
    let idx = |labels: &[u8]| [&[0, 0, 8, 1, 0, 0, 0, labels.len() as u8], labels].concat();
    let header: Vec<u8> =
        [0, 0, 8, 3].into_iter().chain([2u32, 16, 16].into_iter().flat_map(u32::to_be_bytes)).collect();
    write(dir.join("images"), [header, vec![40; 512]].concat());
    write(dir.join("l12"), idx(&[3, 12]));
    write(dir.join("l3"), idx(&[3, 3]));
    let (code, said) = sorcen(&dir, "tokenize --tokenizer t.safetensors --images images --labels l12 --out d12");
    assert_eq!(code, 0, "{said}");
    let line = "tokenize --tokenizer t.safetensors --images images --labels l3 --out d3 --classes_from d12";
    let (code, said) = sorcen(&dir, line);
    assert_eq!(code, 0, "{said}");
    assert_eq!(TokenDataset::open(&dir.join("d3")).unwrap().labels(), [0, 0]);
}

#[test]
fn merge_wants_every_part_once() {
    let (_temp, dir) = workplace();
    for n in 0..7 {
        write(dir.join(format!("f/a/{n}.png")), png(n * 30));
    }
    let tokenize = |more: &str| sorcen(&dir, &format!("tokenize --tokenizer t.safetensors --images f {more}"));
    for part in 0..3 {
        assert_eq!(tokenize(&format!("--shard {part}/3 --out part{part}")).0, 0);
    }
    assert_eq!(tokenize("--out whole").0, 0);
    assert_eq!(tokenize("--shard 1/2 --out half").0, 0);
    write(dir.join("f/a/8.png"), png(8));
    assert_eq!(tokenize("--shard 1/3 --out later").0, 0);
    let cases: [(&str, i32, &[&str]); 7] = [
        ("part0 part2", 1, &["expected all 3, from 0/3 to 2/3, found 2 of them, without 1/3"]),
        ("part0 part1 part1 part2", 1, &["part1: part 1/3: expected each part once, found it in part1 too"]),
        ("part0 half", 1, &["half: part: expected one of 3 of 7 images", "found part 1/2"]),
        ("part0 later part2", 1, &["later: part: expected one of 3 of 7 images, as part0, found part 1/3 of 8 images"]),
        ("part2 part0 part1", 0, &["in the order of their numbers"]),
        ("whole whole", 0, &["note: 2 of 2 datasets are not recorded as parts"]),
        ("part0 part1 part2", 0, &["7 images"]),
    ];
    for (parts, expected, texts) in cases {
        let _ = std::fs::remove_dir_all(dir.join("merged"));
        let (code, said) = sorcen(&dir, &format!("tokens merge {parts} --out merged"));
        assert!(code == expected && texts.iter().all(|text| said.contains(text)), "{parts}: {code} {said}");
        if code == 0 && parts.contains("part") {
            for file in ["meta.json", "tokens_vqgan.npy", "labels.npy", "items.csv"] {
                let read = |dataset: &str| std::fs::read(dir.join(dataset).join(file)).unwrap();
                assert_eq!(read("merged"), read("whole"), "{file}");
            }
        }
    }
    assert!(sorcen(&dir, "tokens inspect part1").1.contains("part    1/3 of a set of 7 images"));
}

/// A picture with a dark corner, its rows and columns as they are stored, and a PNG or JPEG that says it is to be turned.
fn turned(format: image::ImageFormat) -> Vec<u8> {
    let exif = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0".to_vec();
    let pixels = RgbImage::from_fn(48, 32, |x, y| image::Rgb([if x < 24 && y < 16 { 8 } else { 128 + x as u8 }; 3]));
    let mut bytes = Vec::new();
    match format {
        image::ImageFormat::Png => {
            let mut encoder = image::codecs::png::PngEncoder::new(&mut bytes);
            encoder.set_exif_metadata(exif).unwrap();
            encoder.write_image(pixels.as_raw(), 48, 32, ExtendedColorType::Rgb8).unwrap();
        }
        _ => {
            let mut encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 95);
            encoder.set_exif_metadata(exif).unwrap();
            encoder.write_image(pixels.as_raw(), 48, 32, ExtendedColorType::Rgb8).unwrap();
        }
    }
    bytes
}

/// One reader of pictures: `inpaint --image` and `tokenize` turn the same picture into the same tokens.
#[test]
fn inpaint_reads_pictures_as_tokenize_does() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let emoji = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/emoji");
    let emoji = emoji.display();
    let (png, jpeg) = (turned(image::ImageFormat::Png), turned(image::ImageFormat::Jpeg));
    let webp =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/images/lossless.webp")).unwrap();
    for (name, bytes) in [("a.png", png), ("b.jpg", jpeg), ("c.webp", webp)] {
        write(dir.join("photos").join(name), bytes);
    }
    let line = format!("tokenize --tokenizer {emoji}/tokenizer.safetensors --images photos --size 64 --out tokens");
    let (code, said) = sorcen(dir, &line);
    assert_eq!(code, 0, "{said}");
    let tokens = TokenDataset::open(&dir.join("tokens")).unwrap();
    let line = format!(
        "inpaint --checkpoint {emoji}/checkpoint --tokenizer {emoji}/tokenizer.safetensors --region 7,7,1,1 --steps 1 \
         --output i.safetensors"
    );
    let images = "--image photos/a.png --image photos/b.jpg --image photos/c.webp";
    let (code, said) = sorcen(dir, &format!("{line} --size 64 {images}"));
    assert_eq!(code, 0, "{said}");
    let ids = TensorFile::open(&dir.join("i.safetensors")).unwrap().ints("final_ids", 2).unwrap();
    let mut expected = vec![0; 64];
    for image in 0..3 {
        tokens.ids(image, &mut expected);
        let found: Vec<u16> = (0..64).map(|t| ids[[image, t]] as u16).collect();
        assert_eq!(found[..63], expected[..63], "image {image}: all but the token that is invented");
    }
    for (more, code, text) in [
        (images, 1, "a.png: expected 64x64 pixels, found 32x48 (give --size)"),
        ("--size 32 --image photos/a.png", 1, "--size: expected 64, the pixels a side that the model draws, found 32"),
        ("--size 64 --resize 16 --image photos/a.png", 2, "--resize: expected at least --size (64), found 16"),
        ("--size 64 --min_side 33 --image photos/a.png", 1, "a.png: expected sides of at least 33 pixels"),
        ("--size 64 --input i.safetensors", 2, "--size: expected --image too"),
        ("--size 64 --image /dev/zero", 1, "expected a file, found a pipe, socket or device"),
    ] {
        let (found, said) = sorcen(dir, &format!("{line} {more}"));
        assert!(found == code && said.contains(text), "{more}: {found} {said}");
    }
}
