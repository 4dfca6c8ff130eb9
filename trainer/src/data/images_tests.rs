use super::*;
use flate2::{write::GzEncoder, Compression};
use std::io::Write;

fn idx(shape: &[u32], bytes: &[u8]) -> Vec<u8> {
    let mut file = vec![0, 0, 8, shape.len() as u8];
    file.extend(shape.iter().flat_map(|size| size.to_be_bytes()));
    file.extend(bytes);
    file
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

type Files = Vec<(&'static str, Vec<u8>)>;

/// A folder with the files given, and a query for `images` there.
fn folder(files: &[(&str, Vec<u8>)], images: &str, labels: &[&str]) -> (tempfile::TempDir, ImageQuery) {
    let temp = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = temp.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let query = ImageQuery {
        images: vec![temp.path().join(images)],
        labels: labels.iter().map(|name| temp.path().join(name)).collect(),
        class_column: "class".into(),
        ..ImageQuery::default()
    };
    (temp, query)
}

fn png(width: u32, height: u32, rgba: [u8; 4]) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let picture = image::RgbaImage::from_pixel(width, height, image::Rgba(rgba));
    picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect()
}

#[test]
fn idx_with_csv_labels_and_conditions() {
    let pixels: Vec<u8> = (0..4 * 12).collect();
    let csv = "name,class,split\na,dog,train\n\"b,b\",cat,test\nc,part,train\nd,emu,train\n";
    let files = [("f.gz", gz(&idx(&[4, 2, 2, 3], &pixels))), ("l.csv", csv.into())];
    let (_temp, mut query) = folder(&files, "f.gz", &["l.csv"]);
    query.keep = pairs(&[("split", "train")]);
    query.leave_out = pairs(&[("class", "part")]);
    let set = ImageSet::open(&query).unwrap();
    assert_eq!((set.len(), set.side()), (2, 2));
    assert_eq!(set.class_names(), ["cat", "dog", "emu"], "classes of all splits, not of those left out");
    assert_eq!([set.label(0), set.label(1)], [1, 2]);
    assert_eq!(set.rgb(1).unwrap(), pixels[36..]);
    assert_eq!(
        set.items_csv(&[0, 1], &["split".into(), "name".into()]).unwrap().unwrap(),
        "split,name\ntrain,a\ntrain,d\n"
    );
    query.keep = pairs(&[("split", "test")]);
    assert_eq!(
        ImageSet::open(&query).unwrap().items_csv(&[0], &[]).unwrap().unwrap(),
        "name,class,split\n\"b,b\",cat,test\n"
    );
}

#[test]
fn grey_idx_with_idx_labels() {
    let files = [("f", idx(&[2, 1, 1], &[7, 9])), ("l", idx(&[2], &[3, 12]))];
    let set = ImageSet::open(&folder(&files, "f", &["l"]).1).unwrap();
    assert_eq!(set.class_names(), ["03", "12"]);
    assert_eq!(set.rgb(1).unwrap(), [9, 9, 9]);
}

#[test]
fn folders_of_classes_and_scaling() {
    let files = [
        ("p/dog/b.png", png(4, 4, [10, 20, 30, 255])),
        ("p/cat/a.png", png(6, 3, [0, 0, 0, 0])),
        ("p/.hidden", b"no image".to_vec()),
    ];
    let (_temp, mut query) = folder(&files, "p", &[]);
    query.size = Some(2);
    let set = ImageSet::open(&query).unwrap();
    assert_eq!(set.class_names(), ["cat", "dog"]);
    assert_eq!(set.rgb(0).unwrap(), [255; 12], "transparent is white");
    assert_eq!(set.rgb(1).unwrap(), [10, 20, 30].repeat(4));
    assert_eq!(set.items_csv(&[0, 1], &[]).unwrap().unwrap(), "file\ncat/a.png\ndog/b.png\n");
}

#[test]
fn views_are_images_of_their_own() {
    let files = [("p/a/1.png", png(9, 6, [9, 8, 7, 255])), ("p/b/2.png", png(4, 4, [1, 2, 3, 255]))];
    let (_temp, mut query) = folder(&files, "p", &[]);
    (query.size, query.more_views) = (Some(3), 2);
    let set = ImageSet::open(&query).unwrap();
    assert_eq!((set.len(), set.class_names().len()), (6, 2));
    assert_eq!((0..6).map(|index| set.label(index)).collect::<Vec<_>>(), [0, 0, 0, 1, 1, 1]);
    assert_eq!(set.rgb(2).unwrap(), [9, 8, 7].repeat(9));
    let rows = "file,view\na/1.png,2\nb/2.png,0\n";
    assert_eq!(set.items_csv(&[2, 3], &[]).unwrap().unwrap(), rows);
    let other = ImageSet::open(&ImageQuery { more_views: 1, ..query }).unwrap();
    assert_ne!(set.digest(), other.digest());
}

#[test]
fn a_table_names_the_files_of_a_folder() {
    let files = [
        ("p/x.png", png(1, 1, [1, 1, 1, 255])),
        ("p/y.png", png(1, 1, [2, 2, 2, 255])),
        ("l.csv", b"file,class\ny.png,b\nx.png,a\n".to_vec()),
    ];
    let (_temp, query) = folder(&files, "p", &["l.csv"]);
    let set = ImageSet::open(&query).unwrap();
    assert_eq!([set.label(0), set.label(1)], [1, 0]);
    assert_eq!(set.rgb(0).unwrap(), [2; 3]);
}

#[test]
fn what_is_wrong_is_named() {
    let good = || ("p/a/1.png", png(2, 2, [0; 4]));
    let two = || idx(&[2, 1, 1], &[7, 9]);
    let cases: [(&str, Files, &str, &[&str]); 14] = [
        (
            "a/2.png: contents: expected a PNG, JPEG, WebP or GIF image, found",
            vec![good(), ("p/a/2.png", b"text".into())],
            "p",
            &[],
        ),
        ("a/2.png: contents", vec![good(), ("p/a/2.png", png(9, 9, [0; 4])[..60].into())], "p", &[]),
        (
            "a/2.png: image: expected 2x2 pixels, found 3x2 (give --size)",
            vec![good(), ("p/a/2.png", png(3, 2, [0; 4]))],
            "p",
            &[],
        ),
        ("x: images: expected a folder of pictures, an idx file or a tar archive, found nothing", vec![], "x", &[]),
        ("images: expected at least one that the conditions keep, found 0", vec![("p/.x", vec![])], "p", &[]),
        (
            "first bytes: expected images: a folder, a tar file (.tar, .tar.gz) or an idx file",
            vec![("f", b"hello".into())],
            "f",
            &[],
        ),
        (
            "length in bytes: expected 16 + the product of [2, 1, 1], found 17",
            vec![("f", idx(&[2, 1, 1], &[7]))],
            "f",
            &[],
        ),
        ("length in bytes", vec![("f", idx(&[u32::MAX; 4], &[7]))], "f", &[]),
        ("f: ", vec![("f", gz(&two())[..20].into())], "f", &[]),
        ("shape: expected [N, height, width]", vec![("f", idx(&[2], &[7, 9]))], "f", &[]),
        ("shape: expected square images", vec![("f", idx(&[1, 1, 2], &[7, 9]))], "f", &[]),
        (
            "l.csv: labels: expected 2 (the images), found 1",
            vec![("f", two()), ("l.csv", b"class\na\n".into())],
            "f",
            &["l.csv"],
        ),
        (
            "l.csv: columns: expected one named class, found [\"kind\"]",
            vec![("f", two()), ("l.csv", b"kind\na\nb\n".into())],
            "f",
            &["l.csv"],
        ),
        (
            "l.csv: table: expected rows as wide as the header",
            vec![("f", two()), ("l.csv", b"class,x\na,1\nb\n".into())],
            "f",
            &["l.csv"],
        ),
    ];
    for (expected, files, images, labels) in cases {
        let (_temp, query) = folder(&files, images, labels);
        let read = |set: ImageSet| (0..set.len()).try_for_each(|index| set.rgb(index).map(|_| ()));
        let message = ImageSet::open(&query).and_then(read).expect_err(expected).to_string();
        assert!(message.contains(expected), "expected {expected:?} in {message:?}");
    }
    let (_temp, mut query) = folder(&[("f", two())], "f", &[]);
    query.labels = vec!["a".into(), "b".into()];
    assert!(ImageSet::open(&query).unwrap_err().to_string().contains("--labels: files: expected 1, found 2"));
}
