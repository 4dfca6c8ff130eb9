//! Probing: LARS and the head against vectors recorded from the official code; the verbs as a user runs them.

mod common;

use std::path::Path;
use std::process::Command;

use burn::backend::{flex::FlexDevice, Autodiff, Flex};
use burn::tensor::{Tensor, TensorData};
use common::{tolerance, Failures, Golden};
use sorcen_trainer::checkpoint::{TensorFile, WeightSource};
use sorcen_trainer::eval::ProbeHead;
use sorcen_trainer::losses::cross_entropy;
use sorcen_trainer::model::indices;
use sorcen_trainer::model::layers::Linear;
use sorcen_trainer::model::weight::Weights;
use sorcen_trainer::optim::{Lars, LarsOptions};

type B = Autodiff<Flex>;
const DEVICE: FlexDevice = FlexDevice;

fn matrix(values: &[f32], dims: [usize; 2]) -> Tensor<B, 2> {
    Tensor::from_data(TensorData::new(values.to_vec(), dims), &DEVICE)
}

fn values<const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().to_vec().unwrap()
}

#[test]
fn lars_follows_the_official_trajectory() {
    let (golden, mut failures) = (Golden::open("common/lars.safetensors"), Failures::default());
    let (grad_w, grad_b) = (golden.floats("grad_w"), golden.floats("grad_b"));
    for (run, weight_decay, zero) in [("wd0", 0.0, false), ("wd005", 0.05, false), ("zero", 0.0, true)] {
        let mut linear = Linear::<B>::new(3, 5, &DEVICE);
        if !zero {
            linear.weight.set_from(golden.floats("w0"), &DEVICE);
        }
        linear.bias.set_from(golden.floats("b0"), &DEVICE);
        let mut lars = Lars::<B>::new(LarsOptions { weight_decay, ..LarsOptions::default() });
        for (step, lr) in [0.1, 0.4, 1.6].into_iter().enumerate() {
            // A loss whose gradients are the recorded ones.
            let loss = (linear.weight.get() * matrix(&grad_w[step * 15..][..15], [5, 3])).sum()
                + (linear.bias.get() * matrix(&grad_b[step * 5..][..5], [1, 5])).sum();
            lars.update(&mut linear, &mut loss.backward(), lr);
            let momentum = lars.buffers["weight"].to_data().to_vec().unwrap();
            for (what, found) in [("w", linear.weight.to_vec()), ("b", linear.bias.to_vec()), ("mu_w", momentum)] {
                let name = format!("{run}_{what}{}", step + 1);
                failures.compare(&name, &found, &golden.get(&name), tolerance::WEIGHTS);
            }
        }
    }
    failures.check();
}

#[test]
fn the_head_trains_like_the_official_one() {
    let (golden, mut failures) = (Golden::open("common/linprobe_head.safetensors"), Failures::default());
    let mut head = ProbeHead::<B>::new(12, 7, 0, &DEVICE);
    head.visit_mut("", &mut |name, weight| match name {
        "1.weight" => weight.set_from(golden.floats("weight0"), &DEVICE),
        "1.bias" => weight.set_from(golden.floats("bias0"), &DEVICE),
        _ => {} // the running statistics start at 0 and 1
    });
    let mut lars = Lars::<B>::new(LarsOptions::default());
    for (n, lr) in [(1, 0.4), (2, 0.8), (3, 1.6)] {
        let labels: Vec<i32> = golden.get(&format!("labels{n}")).iter().map(|&label| label as i32).collect();
        let (logits, statistics) = head.forward_train(matrix(&golden.floats(&format!("features{n}")), [16, 12]));
        let loss = cross_entropy(logits.clone(), indices(&labels, &DEVICE));
        let mut compare = |what: &str, found: &[f32], tolerance: f32| {
            let name = format!("{what}{n}");
            failures.compare(&name, found, &golden.get(&name), tolerance);
        };
        compare("logits", &values(logits), tolerance::LOGITS);
        compare("loss", &values(loss.clone()), tolerance::LOSSES);
        let mut grads = loss.backward();
        head.visit("", &mut |name, weight| {
            if name == "1.weight" {
                let gradient = weight.gradient(&grads).unwrap().into_data().to_vec::<f32>().unwrap();
                compare("grad_weight", &gradient, tolerance::GRADIENTS);
            }
        });
        head.update_statistics(statistics);
        lars.update(&mut head, &mut grads, lr);
        head.visit("", &mut |name, weight| {
            let recorded = name.trim_start_matches(['0', '1', '.']);
            compare(recorded, &weight.to_vec(), tolerance::WEIGHTS);
        });
    }
    let logits = values(head.forward(matrix(&golden.floats("eval_features"), [5, 12])));
    failures.compare("eval_logits", &logits, &golden.get("eval_logits"), tolerance::LOGITS);
    failures.check();
}

/// Runs `sorcen` in `dir`: exit code, standard output, standard error.
fn sorcen(dir: &Path, args: &str) -> (i32, String, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_sorcen")).args(args.split_whitespace()).current_dir(dir).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn json(dir: &Path, args: &str) -> serde_json::Value {
    let (code, out, err) = sorcen(dir, args);
    assert_eq!(code, 0, "sorcen {args}\n{out}{err}");
    serde_json::from_str(&out).unwrap()
}

fn emoji() -> String {
    format!("{}/assets/emoji", env!("CARGO_MANIFEST_DIR"))
}

/// Held-back base emoji, known from those of the training split; the bundled model as checkpoint or pack.
fn task() -> String {
    format!("--data {} --only skin_variation=0 --split test", emoji())
}

#[test]
fn linprobe_on_the_bundled_model() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let (task, checkpoint) = (task(), format!("--checkpoint {}/checkpoint", emoji()));
    let command = format!("linprobe {task} {checkpoint} --epochs 25 --seed 1 --json");
    let result = json(dir, &format!("{command} --output_dir probe"));
    let top1 = result["top1"].as_f64().unwrap();
    assert!((0.5..0.7).contains(&top1) && result["top5"].as_f64().unwrap() > 0.9, "{result}");
    assert!(result["best_top1"].as_f64().unwrap() >= top1);
    assert_eq!((&result["bank"], &result["queries"], &result["classes"]), (&2967.into(), &427.into(), &9.into()));
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&std::fs::read(dir.join("probe/result.json")).unwrap()).unwrap(),
        result
    );

    let log = std::fs::read_to_string(dir.join("probe/log.txt")).unwrap();
    let last: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!((log.lines().count(), &last["epoch"]), (25, &24.into()));
    assert!((last["test_acc1"].as_f64().unwrap() / 100.0 - top1).abs() < 1e-9, "{last}");

    // The head: official names, shapes, and the class names.
    let head = TensorFile::open(&dir.join("probe/head.safetensors")).unwrap();
    assert_eq!((head.shape("head.1.weight"), head.shape("head.0.running_var")), (Some(vec![9, 64]), Some(vec![64])));
    let bytes = std::fs::read(dir.join("probe/head.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().clone().unwrap();
    assert_eq!(metadata["format"], "sorcen-linear-head");
    let names: Vec<String> = serde_json::from_str(&metadata["class_names"]).unwrap();
    assert_eq!((names.len(), names[2].as_str()), (9, "Flags"));

    // The same seed gives the same head; the paper's warm-up and the official dropout give others.
    let weights = |out: &str| {
        let head = TensorFile::open(&dir.join(out).join("head.safetensors")).unwrap();
        [head.values("head.1.weight", &[9, 64]).unwrap(), head.values("head.0.running_var", &[64]).unwrap()].concat()
    };
    json(dir, &format!("{command} --output_dir again"));
    assert!(weights("again") == weights("probe"));
    json(dir, &format!("{command} --preset paper --output_dir paper"));
    assert!(weights("paper") != weights("probe"));
    let dropped = json(
        dir,
        &format!("linprobe {task} {checkpoint} --epochs 3 --official_probe_dropout --json --output_dir dropped"),
    );
    let plain = json(dir, &format!("linprobe {task} {checkpoint} --epochs 3 --json --output_dir plain"));
    assert_ne!(dropped["top1"], plain["top1"]);
    assert!(dropped["top1"].as_f64().unwrap() > 0.2, "{dropped}");

    // int8 features of the same model are worth about as much.
    let pack = json(
        dir,
        &format!("linprobe {task} --pack {}/demo.srcn --epochs 25 --seed 1 --json --output_dir pack", emoji()),
    );
    assert!((pack["top1"].as_f64().unwrap() - top1).abs() < 0.03, "{pack}");
}

#[test]
fn fewshot_on_the_bundled_model() {
    let temp = tempfile::tempdir().unwrap();
    let command = format!("fewshot {} --pack {}/demo.srcn --shots 1,10 --draws 2 --json", task(), emoji());
    let result = json(temp.path(), &command);
    let row = |at: usize, method: &str| result["top1"][at][method]["mean"].as_f64().unwrap();
    for method in ["linear_probe", "prototypes"] {
        assert!(row(0, method) > 0.15 && row(1, method) > row(0, method) + 0.1, "{method}: {result}");
        assert!(result["top1"][0][method]["half_width_95"].as_f64().unwrap() > 0.0);
        assert_eq!(result["top1"][0][method]["values"].as_array().unwrap().len(), 2);
    }
    assert_eq!(json(temp.path(), &command), result, "the same seed, the same draws");
    let (code, _, error) = sorcen(temp.path(), &command.replace("1,10", "500"));
    assert!(code == 1 && error.contains("expected at least 500 images of class"), "{error}");
}

#[test]
fn compare_is_gone_on_with() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let emoji = emoji();
    let command = format!(
        "compare --data {emoji} --train val --bank val --split test --only skin_variation=0 --steps 8 --batch_size 16 \
         --probe_epochs 9 --output_dir out --json"
    );
    let first = json(dir, &format!("{command} --seeds 1 --variants sorcen,mage"));
    assert_eq!(first["cells"].as_array().unwrap().len(), 2);
    let cell = dir.join("out/cells/sorcen/seed_0/cell.json");
    let (written, before) = (std::fs::metadata(&cell).unwrap().modified().unwrap(), std::fs::read(&cell).unwrap());

    // A cell that lost its result is measured again to the same numbers, from the training that is there;
    // finished ones are left alone; seeds and variants are added.
    std::fs::remove_file(dir.join("out/cells/mage/seed_0/cell.json")).unwrap();
    let all = format!("{command} --seeds 2 --variants sorcen,mage,no_jsm,untrained,tokens,pixels");
    let second = json(dir, &format!("{all} --tokenizer {emoji}/tokenizer.safetensors"));
    assert_eq!(second["cells"].as_array().unwrap().len(), 12);
    for at in 0..2 {
        assert_eq!(second["cells"][at]["linear_top1"], first["cells"][at]["linear_top1"], "{at}");
    }
    assert_eq!(std::fs::metadata(&cell).unwrap().modified().unwrap(), written);
    assert_eq!(std::fs::read(&cell).unwrap(), before);
    assert_eq!(second["rows"][0]["minus_baseline"]["baseline"], "mage");
    let table = std::fs::read_to_string(dir.join("out/compare.md")).unwrap();
    assert_eq!(second["echo_steps"], 0);
    let parts = ["| MAGE | 2 |", "| no JSM | 2 |", "| tokens | 2 | - |", "Sorcen minus MAGE, paired by seed"];
    for part in parts.into_iter().chain(["No echo was drawn"]) {
        assert!(table.contains(part), "{part}\n{table}");
    }

    let (code, _, error) = sorcen(dir, &format!("{} --variants tokens", command.replace("--steps 8", "--steps 9")));
    assert!(code == 1 && error.contains("settings.json: --steps: expected 8"), "{error}");
}

#[test]
fn compare_with_the_pictures_themselves() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    for (class, base) in [("dark", 0u8), ("light", 150)] {
        std::fs::create_dir_all(dir.join("photos").join(class)).unwrap();
        for n in 0..8u8 {
            let photo = image::RgbImage::from_fn(8, 8, |x, _| image::Rgb([base + n * 9 + u8::from(x < 4) * 20; 3]));
            photo.save(dir.join("photos").join(class).join(format!("{n}.png"))).unwrap();
        }
    }
    for verb in [
        "tokenizer train --images photos --codes 8 --patch 4 --out t.safetensors",
        "tokenize --images photos --tokenizer t.safetensors --out data/all",
    ] {
        let (code, _, error) = sorcen(dir, verb);
        assert_eq!(code, 0, "{verb}\n{error}");
    }
    let command = "compare --data data --train all --bank all --split all --seeds 1 --k 1 --tokenizer t.safetensors \
                   --variants pictures,pixels,tokens --json --bank_pictures photos";
    let result = json(dir, &format!("{command} --split_pictures photos --output_dir out"));
    assert_eq!(result["cells"][0]["knn_top1"], 1.0, "each picture is its own nearest");
    assert_eq!(result["cells"][2]["linear_top1"], serde_json::Value::Null, "tokens have no linear probe");
    for at in 0..2 {
        assert!(result["cells"][at]["linear_top1"].as_f64().unwrap() > 0.8, "{result}");
    }
    let (code, _, error) = sorcen(dir, &format!("{command} --split_pictures photos/dark --output_dir other"));
    assert!(code == 1 && error.contains("photos/dark: images: expected 16"), "{error}");
}

#[test]
fn what_is_wrong_is_said() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    std::fs::create_dir(dir.join("full")).unwrap();
    std::fs::write(dir.join("full/file"), "").unwrap();
    let (task, emoji) = (task(), emoji());
    let encoder = format!("--checkpoint {emoji}/checkpoint");
    let cases = [
        (2, format!("linprobe {task} --output_dir new"), "--checkpoint"),
        (2, format!("linprobe {task} --pack p --official_probe_dropout --output_dir new"), "cannot be used with"),
        (1, format!("linprobe {task} {encoder} --output_dir full"), "full: expected a new or empty folder"),
        (2, format!("linprobe {task} {encoder} --epochs 0 --output_dir new"), "epochs: expected at least 1, found 0"),
        (1, format!("linprobe {task} --checkpoint nowhere --output_dir new"), "nowhere"),
        (
            1,
            format!("linprobe {task} {encoder} --lr 1e38 --output_dir diverged"),
            "train loss: expected a finite number",
        ),
        (2, format!("fewshot {task} {encoder} --shots 0"), "--shots: expected at least 1, found 0"),
        (1, format!("compare {task} --variants pixels --output_dir new"), "expected --tokenizer"),
        (2, format!("compare {task} --bank_pictures p --output_dir new"), "--split_pictures"),
    ];
    for (expected, args, message) in cases {
        let (code, _, error) = sorcen(dir, &args);
        assert!(code == expected && error.contains(message), "sorcen {args}: exit {code}\n{error}");
    }
}
