//! What lies at a path where something else was expected, for messages that help.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read},
    path::Path,
};

use sorcen_runtime::pack::MAGIC;

use crate::{
    checkpoint::{CONFIG_FILE, WEIGHTS_FILE},
    onnx::ENCODER_FILE,
    tokenizer::{PATCH_FORMAT, VIT_FORMAT},
};

/// What [`at`] calls a pack.
pub const PACK: &str = "a pack";
/// What [`at`] calls a tokenizer's file that says so itself.
pub const TOKENIZER: &str = "a tokenizer's file";
/// What [`at`] calls any other file of tensors.
pub const SAFETENSORS: &str = "a safetensors file";
/// What a token dataset is, in messages.
pub const DATASET: &str = "a token dataset (a folder with meta.json, which `sorcen tokenize` writes)";
/// The folder of a run that holds its checkpoint.
const CHECKPOINT_DIR: &str = "checkpoint";
/// What every token dataset has.
const DATASET_FILE: &str = "meta.json";
/// What a folder of `sorcen tokenizer train` has.
const TOKENIZER_FILE: &str = "tokenizer.safetensors";
/// Entries of a folder that are looked at, and those that are named.
const ENTRIES: usize = 1000;
const NAMED: usize = 5;
/// Bytes of a file that are looked at.
const START: u64 = 4096;

/// What is there, in words: `a pack`, `a checkpoint folder`, `a folder of token datasets (train, val)`, …
pub fn at(path: &Path) -> String {
    match fs::metadata(path) {
        Ok(about) if about.is_dir() => folder(path, true),
        Ok(about) if about.is_file() => file(path).into(),
        Ok(_) => "neither a file nor a folder".into(),
        Err(error) if is_nothing(error.kind()) => "nothing".into(),
        Err(error) => format!("what cannot be read ({error})"),
    }
}

/// Whether the file system means that there is no such path.
pub fn is_nothing(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// Whether a folder is a token dataset.
pub fn is_dataset(dir: &Path) -> bool {
    dir.join(DATASET_FILE).is_file()
}

/// Names of the token datasets in a folder, sorted.
pub fn datasets(dir: &Path) -> Vec<String> {
    let names = names(dir).unwrap_or_default();
    names.into_iter().filter(|name| is_dataset(&dir.join(name))).collect()
}

/// Names of what is in a folder, sorted; of a large one, not all.
fn names(dir: &Path) -> std::io::Result<Vec<String>> {
    let name = |entry: std::io::Result<fs::DirEntry>| Some(entry.ok()?.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = fs::read_dir(dir)?.take(ENTRIES).filter_map(name).collect();
    names.sort();
    Ok(names)
}

/// What is there, where that is certainly no source of images (a folder, an idx file, a tar archive).
pub fn instead_of_images(path: &Path) -> Option<String> {
    const OTHERS: [&str; 9] = [
        "nothing",
        PACK,
        "a checkpoint folder",
        "a folder of ONNX files",
        "a run's folder",
        "a token dataset",
        "a folder of token datasets",
        "a tokenizer's f", // file, folder
        "an image",
    ];
    let found = at(path);
    OTHERS.iter().any(|other| found.starts_with(other)).then_some(found)
}

/// What a file holds, by how it begins.
fn file(path: &Path) -> &'static str {
    let mut start = Vec::new();
    if File::open(path).and_then(|file| file.take(START).read_to_end(&mut start)).is_err() {
        return "a file that cannot be read";
    }
    let says = |format: &str| start.windows(format.len()).any(|window| window == format.as_bytes());
    match &start[..] {
        [] => "an empty file",
        bytes if bytes.starts_with(&MAGIC) => PACK,
        [_, _, _, _, _, _, 0, 0, b'{', ..] if says(PATCH_FORMAT) || says(VIT_FORMAT) => TOKENIZER,
        [_, _, _, _, _, _, 0, 0, b'{', ..] => SAFETENSORS,
        [0x89, b'P', b'N', b'G', ..] | [0xff, 0xd8, 0xff, ..] | [b'G', b'I', b'F', b'8', ..] => "an image",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "an image",
        [b'P', b'K', 3, 4, ..] => "a ZIP file (.pt, .pth and .npz are such)",
        [0x1f, 0x8b, ..] => "a gzip file",
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => "a numpy file",
        bytes if bytes.get(257..262) == Some(b"ustar") => "a tar archive",
        _ => "a file",
    }
}

/// What a folder holds; its subfolders are looked into where `deeper`.
fn folder(dir: &Path, deeper: bool) -> String {
    let has = |name: &str| dir.join(name).is_file();
    let checkpoint = dir.join(CHECKPOINT_DIR);
    match () {
        () if has(CONFIG_FILE) || has(WEIGHTS_FILE) => return "a checkpoint folder".into(),
        () if has(ENCODER_FILE) => return "a folder of ONNX files".into(),
        () if is_dataset(dir) => return "a token dataset".into(),
        () if checkpoint.join(CONFIG_FILE).is_file() => {
            return format!("a run's folder, whose checkpoint is {}", checkpoint.display());
        }
        () if has(TOKENIZER_FILE) || checkpoint.join(TOKENIZER_FILE).is_file() => {
            return "a tokenizer's folder".into();
        }
        () => {}
    }
    let Ok(names) = names(dir) else { return OTHERS[2].into() };
    let those = |wanted: &dyn Fn(&Path) -> bool| -> Vec<String> {
        names.iter().filter(|name| wanted(&dir.join(name))).cloned().collect()
    };
    let datasets = those(&is_dataset);
    if !datasets.is_empty() {
        return format!("a folder of token datasets ({})", some(&datasets));
    }
    let images = those(&is_image);
    if !images.is_empty() {
        return format!("a folder of images ({})", some(&images));
    }
    if deeper {
        // The first subfolder that is anything tells what the others are.
        for name in those(&|path| path.is_dir()) {
            let within = folder(&dir.join(&name), false);
            match within.starts_with("a folder of images") {
                true => return format!("a folder with folders of images ({})", some(&those(&|path| path.is_dir()))),
                false if OTHERS.iter().any(|other| within.starts_with(other)) => {}
                false => return format!("another folder, in which `{name}` is {within}"),
            }
        }
    }
    match names.is_empty() {
        true => OTHERS[0].into(),
        false => format!("{} ({})", OTHERS[1], some(&those(&|_| true))),
    }
}

/// Folders of which there is nothing to say.
const OTHERS: [&str; 3] = ["an empty folder", "another folder", "a folder that cannot be read"];

fn is_image(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    matches!(&extension[..], "png" | "jpg" | "jpeg" | "webp" | "gif" | "bmp" | "tif" | "tiff") && path.is_file()
}

/// The first names of a list.
fn some(names: &[String]) -> String {
    let more = if names.len() > NAMED { ", …" } else { "" };
    names[..names.len().min(NAMED)].join(", ") + more
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_folders_are_called_what_they_are() {
        let temp = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| {
            let path = temp.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        let png = b"\x89PNG\r\n\x1a\n";
        put("a.srcn", &[&MAGIC[..], &[0; 9]].concat());
        put(
            "t.safetensors",
            &[&[90, 0, 0, 0, 0, 0, 0, 0], b"{\"format\":\"".as_slice(), PATCH_FORMAT.as_bytes()].concat(),
        );
        put("m.safetensors", b"\x02\0\0\0\0\0\0\0{}");
        put("x.png", png);
        put("nothing.bin", b"");
        put("notes.txt", b"words");
        put("w.pth", b"PK\x03\x04....");
        put("run/checkpoint/config.json", b"{}");
        put("run/log.txt", b"");
        put("onnx/encoder.onnx", b"");
        put("vit/checkpoint/tokenizer.safetensors", b"");
        for split in ["train", "val"] {
            put(&format!("data/{split}/meta.json"), b"{}");
        }
        put("home/data/train/meta.json", b"{}");
        put("photos/cats/1.png", png);
        put("photos/dogs/1.JPG", b"\xff\xd8\xff");
        put("photos/readme", b"");
        put("misc/a", b"");
        put("misc/b/c", b"");
        fs::create_dir(temp.path().join("empty")).unwrap();
        (0..9).for_each(|n| put(&format!("many/{n}.png"), png));
        for (name, expected) in [
            ("a.srcn", "a pack"),
            ("t.safetensors", "a tokenizer's file"),
            ("m.safetensors", "a safetensors file"),
            ("x.png", "an image"),
            ("nothing.bin", "an empty file"),
            ("notes.txt", "a file"),
            ("w.pth", "a ZIP file (.pt, .pth and .npz are such)"),
            ("nowhere", "nothing"),
            ("notes.txt/meta.json", "nothing"),
            ("run/checkpoint", "a checkpoint folder"),
            ("onnx", "a folder of ONNX files"),
            ("vit", "a tokenizer's folder"),
            ("data/train", "a token dataset"),
            ("data", "a folder of token datasets (train, val)"),
            ("home", "another folder, in which `data` is a folder of token datasets (train)"),
            ("photos/cats", "a folder of images (1.png)"),
            ("photos", "a folder with folders of images (cats, dogs)"),
            ("many", "a folder of images (0.png, 1.png, 2.png, 3.png, 4.png, …)"),
            ("misc", "another folder (a, b)"),
            ("empty", "an empty folder"),
        ] {
            assert_eq!(at(&temp.path().join(name)), expected, "{name}");
        }
        let run = at(&temp.path().join("run"));
        assert!(run.starts_with("a run's folder, whose checkpoint is ") && run.ends_with("checkpoint"), "{run}");
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_file_is_not_opened() {
        let temp = tempfile::tempdir().unwrap();
        let pipe = temp.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert_eq!(at(&pipe), "neither a file nor a folder");
    }
}
