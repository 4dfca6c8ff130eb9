//! `sorcen bench train` as a user runs it.

use std::process::Command;

#[test]
fn phases_add_up() {
    let sorcen = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_sorcen")).args(["bench", "train"]).args(arguments).output();
        let output = output.unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let small = ["--model", "micro", "--grid", "4", "--codes", "64", "--batch_size", "8", "--steps", "3", "--json"];
    let (code, json) = sorcen(&small);
    assert_eq!(code, Some(0));
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    let phases = report["phase_ms"].as_array().unwrap();
    let names: Vec<_> = phases.iter().map(|phase| phase[0].as_str().unwrap()).collect();
    assert_eq!(names, ["data", "student", "decoder", "teacher", "backward", "optimizer"]);
    assert!(phases.iter().all(|phase| phase[1].as_f64().unwrap() > 0.0), "{json}");
    let number = |name: &str| report[name].as_f64().unwrap();
    assert!((number("img_per_s") * number("step_ms") / 8e3 - 1.0).abs() < 1e-6);
    assert!(number("share_of_matmul") > 0.0 && number("share_of_matmul") < 1.0, "{json}");

    // Two replicas: the images of both, and the phases of one, as a person is told.
    let two = [&small[..6], &["--batch_size", "4", "--steps", "3", "--devices", "2"]].concat();
    let (code, json) = sorcen(&[&two[..], &["--json"]].concat());
    assert_eq!(code, Some(0));
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    let number = |name: &str| report[name].as_f64().unwrap();
    assert_eq!(number("devices"), 2.0);
    assert!((number("img_per_s") * number("step_ms") / 8e3 - 1.0).abs() < 1e-6, "{json}");
    assert!(report["phase_ms"].as_array().unwrap().iter().all(|phase| phase[1].as_f64().unwrap() > 0.0), "{json}");
    assert!((number("share_of_matmul") * number("matmul_gflop_per_s") / number("gflop_per_s") - 1.0).abs() < 1e-6);
    let (_, text) = sorcen(&two);
    assert!(
        text.starts_with("2 replicas of 4 images a step; phases of the first, which waits for the others\n"),
        "{text}"
    );
    assert_eq!(sorcen(&["--devices", "0"]).0, Some(2));

    assert_eq!(sorcen(&["--batch_size", "1"]).0, Some(2));
    assert_eq!(sorcen(&["--dropout", "1"]).0, Some(2));
}
