//! What the command line says where something is wrong, and that nothing is lost.

mod common;

use std::{fs, process::Command};

use common::{fail, sorcen_export, succeed};
use ndarray::Array2;
use sorcen_export::tensors::TensorWriter;

#[test]
fn failures_are_named() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    common::checkpoint(&dir.join("model"), 1);
    succeed(dir, "pack --checkpoint model --out m.srcn");

    // 2: usage.
    fail(dir, "pack --checkpoint model", 2, &["--out"]);
    fail(dir, "pack --checkpoint model --precision int3 --out x", 2, &["int3", "int8"]);
    fail(dir, "run --checkpoint model --pack m.srcn --input i --output o", 2, &["--pack"]);
    fail(dir, "verify --checkpoint model", 2, &["--onnx", "--pack"]);
    fail(dir, "launch", 2, &["launch"]);

    // 1: files.
    fail(dir, "onnx --checkpoint nowhere --out x", 1, &["nowhere", "config.json"]);
    fail(dir, "run --pack m.srcn --input nothing --output o", 1, &["nothing", "cannot read"]);
    fail(dir, "inspect .", 1, &["model.safetensors", "encoder.onnx"]);
    fail(dir, "inspect model/config.json", 1, &["config.json: expected a pack (a file), found a file"]);
    let mut bytes = fs::read(dir.join("m.srcn")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(dir.join("flipped.srcn"), &bytes).unwrap();
    fail(dir, "inspect flipped.srcn", 1, &["flipped.srcn", "weights", "CRC-32"]);
    fs::write(dir.join("short.srcn"), &bytes[..middle]).unwrap();
    fail(dir, "inspect short.srcn", 1, &["short.srcn", "truncated"]);
    fs::write(dir.join("encoder.onnx"), [8, 8, 1]).unwrap();
    fs::write(dir.join("decoder.onnx"), [8, 8, 1]).unwrap();
    fail(dir, "run --onnx . --input i --output o", 1, &["encoder.onnx", "an ONNX file of this exporter"]);
    let mut ids = TensorWriter::default();
    ids.ints("token_ids", Array2::from_elem((1, 9), 15).view());
    ids.write(&dir.join("ids")).unwrap();
    fail(dir, "run --onnx . --input ids --output o", 1, &["encoder.onnx"]);
    fail(dir, "run --pack m.srcn --input ids --output o", 1, &["`token_ids`[0, 0]", "below 12", "19", "found 15"]);

    // 1: numbers out of tolerance, with the table.
    common::checkpoint(&dir.join("other"), 2);
    let out = sorcen_export(dir, "verify --checkpoint other --pack m.srcn --images 1");
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stdout).contains("FAILED"));
    assert!(String::from_utf8_lossy(&out.stderr).contains("4 of 4 comparisons are out of tolerance"));

    // Outputs that cannot be: below a file, in the system's own folder, a folder of that name.
    fail(dir, "pack --checkpoint model --out m.srcn/x.srcn", 1, &["m.srcn", "create the folder"]);
    fail(dir, "pack --checkpoint model --out /proc/nowhere/x.srcn", 1, &["/proc/nowhere", "create the folder"]);
    fail(dir, "onnx --checkpoint model --out m.srcn", 1, &["m.srcn"]);
    fail(dir, "pack --checkpoint model --out model", 1, &["model", "cannot write"]);
    // Folders in place of files.
    fs::create_dir(dir.join("folder.srcn")).unwrap();
    fail(
        dir,
        "run --pack folder.srcn --input ids --output o",
        1,
        &["folder.srcn", "expected a pack (a file), found an empty folder"],
    );
    fail(dir, "run --pack m.srcn --input model --output o", 1, &["model", "cannot read"]);

    // Nothing half-written.
    for made in ["x", "o", "g.safetensors"] {
        assert!(!dir.join(made).exists(), "{made}");
    }
}

#[test]
#[cfg(unix)]
fn a_full_disk_is_named_and_the_old_file_stays() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    common::checkpoint(&dir.join("model"), 1);
    for (line, old) in [
        ("onnx --checkpoint model --out onnx", "onnx/encoder.onnx"),
        ("pack --checkpoint model --out m.srcn", "m.srcn"),
        ("generate --checkpoint model --images 9 --steps 9 --output ids", "ids"),
    ] {
        fs::create_dir_all(dir.join(old).parent().unwrap()).unwrap();
        fs::write(dir.join(old), "old").unwrap();
        // No file may grow beyond 1 KiB, as the kernel would have it on a full disk (and no signal).
        let limited = format!("trap '' XFSZ; ulimit -f 1; exec \"$0\" {line}");
        let program = env!("CARGO_BIN_EXE_sorcen-export");
        let out = Command::new("bash").args(["-c", &limited, program]).current_dir(dir).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{line}: {said}");
        assert!(said.contains(&format!("{old}: cannot write: ")), "{line}: {said}");
        assert_eq!(fs::read_to_string(dir.join(old)).unwrap(), "old", "{line}");
    }
    assert_eq!(fs::read_dir(dir.join("onnx")).unwrap().count(), 1, "nothing half-written");
}

/// An output that cannot be is found before the work: here work that would fail by itself (there is no decoder to draw
/// with), so that what is said shows what was looked at first.
#[test]
#[cfg(unix)]
fn outputs_are_looked_at_before_the_work() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    common::checkpoint(&dir.join("model"), 1);
    succeed(dir, "pack --checkpoint model --encoder_only --out e.srcn");
    let mut ids = TensorWriter::default();
    ids.ints("token_ids", Array2::from_elem((1, 9), 3).view());
    ids.write(&dir.join("ids.st")).unwrap();
    fs::create_dir(dir.join("folder.st")).unwrap();
    for line in [
        "generate --pack e.srcn --images 90",
        "inpaint --pack e.srcn --input ids.st --region 0,0,1,1 --images 90",
        "outpaint --pack e.srcn --input ids.st --images 90",
        "reconstruct --pack e.srcn --input ids.st --images 90",
    ] {
        fail(dir, &format!("{line} --out o.st"), 1, &["decoder"]);
        fail(dir, &format!("{line} --out folder.st"), 1, &["folder.st: cannot write"]);
        fail(dir, &format!("{line} --out e.srcn/o.st"), 1, &["e.srcn: cannot create the folder"]);
        let limited = format!("trap '' XFSZ; ulimit -f 1; exec \"$0\" {line} --out o.st");
        let program = env!("CARGO_BIN_EXE_sorcen-export");
        let out = Command::new("bash").args(["-c", &limited, program]).current_dir(dir).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{line}: {said}");
        assert!(said.contains("o.st: cannot write: expected room for "), "{line}: {said}");
    }
    let left: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with('.')), "nothing begun is left: {left:?}");
}

/// As in `sorcen-export … > /dev/full`: a message and exit code 1, whatever was to be printed.
#[test]
#[cfg(target_os = "linux")]
fn what_cannot_be_printed_is_an_error() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    common::checkpoint(&dir.join("model"), 1);
    succeed(dir, "pack --checkpoint model --out m.srcn");
    let mut ids = TensorWriter::default();
    ids.ints("token_ids", Array2::from_elem((1, 9), 3).view());
    ids.write(&dir.join("ids.st")).unwrap();
    for line in [
        "--help",
        "--version",
        "help pack",
        "inspect --help",
        "inspect m.srcn",
        "inspect m.srcn --json",
        "inspect m.srcn --as_rust",
        "inspect model --tensors",
        "onnx --checkpoint model --out onnx",
        "pack --checkpoint model --out n.srcn",
        "verify --checkpoint model --pack m.srcn --images 1",
        "run --pack m.srcn --input ids.st --output o.st",
        "generate --pack m.srcn --steps 2 --out g.st",
        "inpaint --pack m.srcn --input ids.st --region 0,0,1,1 --steps 2 --out g.st",
        "outpaint --pack m.srcn --input ids.st --steps 2 --out g.st",
        "reconstruct --pack m.srcn --input ids.st --steps 2 --out g.st",
    ] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let program = env!("CARGO_BIN_EXE_sorcen-export");
        let mut command = Command::new(program);
        let out = command.args(line.split(' ')).current_dir(dir).stdout(full).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{line}: {said}");
        let said: Vec<&str> = said.lines().filter(|line| !line.starts_with("note: ")).collect();
        assert!(said.len() == 1 && said[0].starts_with("error: failed printing to stdout: "), "{line}: {said:?}");
        // Nor is it worse where errors cannot be printed either.
        let full = || fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = Command::new(program);
        command.args(line.split(' ')).current_dir(dir).stdout(full()).stderr(full());
        assert_eq!(command.status().unwrap().code(), Some(1), "{line}");
    }
}

/// A folder or file of one kind where another is expected: what it is, and where the right one lies.
#[test]
fn what_lies_there_instead_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    common::checkpoint(&dir.join("run/checkpoint"), 1);
    succeed(dir, "pack --checkpoint run/checkpoint --out m.srcn");
    succeed(dir, "onnx --checkpoint run/checkpoint --out onnx");
    let run = "found a run's folder, whose checkpoint is run/checkpoint";
    for (line, parts) in [
        (
            "pack --out x.srcn --checkpoint run",
            ["run: expected a checkpoint folder (config.json, model.safetensors)", run],
        ),
        ("onnx --out x --checkpoint m.srcn", ["m.srcn: expected a checkpoint folder", "found a pack"]),
        (
            "verify --pack m.srcn --checkpoint onnx",
            ["onnx: expected a checkpoint folder", "found a folder of ONNX files"],
        ),
        ("generate --out x --pack run/checkpoint", ["expected a pack (a file)", "found a checkpoint folder"]),
        (
            "generate --out x --onnx run/checkpoint",
            ["expected an export folder (encoder.onnx", "found a checkpoint folder"],
        ),
        ("inspect run", ["`model.safetensors` or `encoder.onnx`", run]),
    ] {
        fail(dir, line, 1, &parts);
    }
}

/// Values that no model takes are usage errors, and say the flag and its range.
#[test]
fn bad_values_are_usage_errors() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    for (value, expected) in [
        ("--steps 0", "1 to 4096"),
        ("--steps -1", "1 to 4096"),
        ("--steps 4000000000", "1 to 4096"),
        ("--temperature -1", "0 to 1000000"),
        ("--temperature nan", "0 to 1000000"),
        ("--token_temperature 0", "0.000001 to 1000000"),
        ("--seed -1", "0 or more"),
        ("--images 4000000000", "1 to 100000"),
        ("--scale 0", "1 to 255"),
        ("--columns -3", "1 to 255"),
    ] {
        let flag = value.split(' ').next().unwrap();
        fail(dir, &format!("generate --pack m.srcn --out x {value}"), 2, &[flag, expected]);
    }
    fail(dir, "generate --pack m.srcn --out x.jpg", 2, &["x.jpg", "--output", ".png", ".safetensors"]);
    fail(dir, "inpaint --pack m.srcn --image i --out x --region -1,0,1,1", 2, &["--region", "ROW,COLUMN,ROWS,COLUMNS"]);
    fail(dir, "reconstruct --pack m.srcn --image i --out x --known -0.5", 2, &["--known", "0 to below 1"]);
    fail(dir, "inspect m.srcn --fits -1/2", 2, &["--fits", "RAM/FLASH"]);
    fail(dir, "verify --checkpoint m --pack m.srcn --images -1", 2, &["--images", "1 to 100000"]);
    fail(dir, "onnx --checkpoint m --out x --precision int8 --covered 0.2", 2, &["--covered", "0.5 to 1"]);
    fail(dir, "onnx --checkpoint m --out x --tokens t", 2, &["--tokens: expected --precision int8"]);
    fail(
        dir,
        "onnx --checkpoint m --out x --images 8 --seed 1 --covered 1",
        2,
        &["--images, --seed, --covered: expected"],
    );
    fail(
        dir,
        "verify --checkpoint m --pack p --tokens t --seed 1",
        2,
        &["'--tokens <DIR|FILE>' cannot be used with '--seed <S>'"],
    );
    fail(dir, "pack --checkpoint m --out x --self_test -1", 2, &["--self_test", "1 to 65535"]);
}

#[test]
fn patterns_that_change_nothing_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    common::checkpoint(&dir.join("model"), 1);
    let names = "`blocks.0.attn.qkv.weight`";
    for (flags, parts) in [
        ("--keep foo=f16", ["--keep foo=f16: expected a part of a weight's name", names]),
        ("--int4 foo", ["--int4 foo: expected a part of a weight's name", names]),
        ("--int4 norm", ["--int4 norm: expected a weight that is stored so", "only matrices"]),
        ("--keep blocks=f16 --int4 blocks.*.mlp", ["--int4 blocks.*.mlp:", "the first flag that fits counts"]),
        ("--encoder_only --keep decoder=f32", ["--keep decoder=f32:", "no decoder"]),
    ] {
        fail(dir, &format!("pack --checkpoint model --out x.srcn {flags}"), 1, &parts);
    }
    assert!(!dir.join("x.srcn").exists());
}

/// Tokens that are no images of the model: file and tensor are named, nothing panics, whatever computes.
#[test]
fn bad_tokens_are_named() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    common::checkpoint(&dir.join("model"), 1);
    succeed(dir, "pack --checkpoint model --out m.srcn");
    let write = |name: &str, ids: Array2<i64>, drop: f32| {
        let mut file = TensorWriter::default();
        file.ints("token_ids", ids.view());
        file.floats("drop_mask", Array2::from_elem(ids.dim(), drop).view());
        file.write(&dir.join(name)).unwrap();
    };
    write("none", Array2::zeros((0, 9)), 0.0);
    write("dropped", Array2::zeros((2, 9)), 1.0);
    write("large", Array2::from_elem((2, 9), 15), 0.0);
    // The file of tokens is checked before what Burn is said to have made of it is looked for.
    let dropped = ["dropped: `drop_mask` row 0: expected at least one token that is kept, found all dropped"];
    fail(dir, "verify --checkpoint model --tokens dropped --burn none", 1, &dropped);
    let large = ["large: `token_ids`[0, 0]: expected a code below 12 or the mask id 19, found 15"];
    for engine in ["--checkpoint model", "--pack m.srcn"] {
        let run = |input: &str, parts: &[&str]| {
            fail(dir, &format!("run {engine} --input {input} --output o"), 1, parts);
        };
        run("none", &["none: `token_ids`: expected shape [B, 9], B at least 1, found [0, 9]"]);
        run("dropped", &dropped);
        run("large", &large);
    }
    fail(dir, "pack --checkpoint model --self_test 1 --self_test_tokens large --out x", 1, &large);
    fail(dir, "pack --checkpoint model --precision int4 --calibrate large --out x", 1, &large);
    fail(dir, "verify --checkpoint model --pack m.srcn --tokens large", 1, &large);
    fail(dir, "generate --pack m.srcn --input large --out x", 1, &large);
    fail(dir, "outpaint --pack m.srcn --input large --out x", 1, &large);
    assert!(!dir.join("x").exists() && !dir.join("o").exists());
}
