//! Models of sizes that no recorded vector has: imported, run beside the float reference, and differentiated.

use std::path::Path;
use std::process::Command;

use burn::backend::{Autodiff, Flex};
use burn::tensor::Tensor;
use clap::Parser;
use safetensors::tensor::{Dtype, TensorView};
use safetensors::SafeTensors;
use sorcen_runtime::rng::{Rng, Stream};
use sorcen_runtime::ModelConfig;
use sorcen_tests::compare::largest_difference;
use sorcen_trainer::checkpoint::{self, TensorList};
use sorcen_trainer::masking::{Crop, MaskOptions};
use sorcen_trainer::model::layers::Dropout;
use sorcen_trainer::model::weight::Weights;
use sorcen_trainer::model::Weight;
use sorcen_trainer::step::{Echo, HeadSizes, LossOptions, Pretraining, StepInputs};

type B = Autodiff<Flex>;

/// Images of a batch.
const BATCH: usize = 2;
/// How far Burn may be from the reference, of latent and features (of size 1) and of logits.
const LATENT: f64 = 2e-5;
const LOGITS: f64 = 1e-4;

/// Official vocabulary and grid with other widths, depths and head counts, and a small compact one.
fn configs() -> [ModelConfig; 2] {
    [
        ModelConfig {
            embed_dim: 60,
            depth: 3,
            num_heads: 5,
            decoder_embed_dim: 56,
            decoder_depth: 1,
            decoder_num_heads: 7,
            ..ModelConfig::vit_b()
        },
        ModelConfig {
            embed_dim: 24,
            depth: 1,
            num_heads: 1,
            decoder_embed_dim: 40,
            decoder_depth: 3,
            decoder_num_heads: 4,
            mlp_ratio: 3,
            ..ModelConfig::micro(5, 37)
        },
    ]
}

/// Writes a model, teacher and heads of random weights, none at its initial 0 or 1, under the official names.
fn write_random(config: &ModelConfig, path: &Path) {
    let sizes = HeadSizes { projector_hidden: 20, projector_dim: 12, predictor_hidden: 16, classifier_hidden: 9 };
    let device = Default::default();
    let run = Pretraining::<B>::new(config, LossOptions::default(), &sizes, 4, 0, &device);
    let (mut list, mut number) = (TensorList::default(), 0);
    let mut push = |name: &str, dims: &[usize]| {
        number += 1;
        let rng = Rng::new(7, Stream::Init, number);
        let count: usize = dims.iter().product();
        let is_scale = name.ends_with("running_var") || dims.len() == 1 && name.ends_with("weight");
        let deviation = if dims.len() == 2 { 1.5 / (dims[1] as f64).sqrt() } else { 0.2 };
        let value = |i: u64| if is_scale { 1.0 + 0.3 * rng.uniform(i) } else { deviation * rng.normal(i) } as f32;
        list.push(name, dims, &(0..count as u64).map(value).collect::<Vec<_>>());
    };
    run.networks.visit("", &mut |name, weight: &Weight<B>| push(name, weight.dims()));
    run.teacher.visit("", &mut |name, weight: &Weight<Flex>| push(name, weight.dims()));
    list.write(path).unwrap();
}

fn sorcen(arguments: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_sorcen")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn import(config: &ModelConfig, dir: &Path) -> String {
    let [from, out] = ["random.safetensors", "model"].map(|name| dir.join(name));
    write_random(config, &from);
    let [from, out] = [from, out].map(|path| path.display().to_string());
    let heads = [config.num_heads, config.decoder_num_heads].map(|heads| heads.to_string());
    let flags = ["--heads", &heads[0], "--decoder_heads", &heads[1], "--with_training_state"];
    sorcen(&[&["import", "--from", &from, "--out", &out], &flags[..]].concat());
    assert_eq!(checkpoint::read_config(Path::new(&out)).unwrap(), *config);
    out
}

fn floats(path: &Path, name: &str) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensor(name).unwrap().data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// `sorcen-export`'s own verb.
#[derive(Parser)]
struct ExportRun {
    #[command(flatten)]
    args: sorcen_export::cli::run::Args,
}

#[test]
fn run_is_that_of_the_reference() {
    for config in configs() {
        let dir = tempfile::tempdir().unwrap();
        let model = import(&config, dir.path());
        let (tokens, rng) = (config.tokens(), Rng::new(5, Stream::Evaluation, 0));
        let ids: Vec<i64> = (0..(BATCH * tokens) as u64)
            .map(|i| {
                if i % 3 == 0 {
                    config.mask_token_id as i64
                } else {
                    rng.below(i, config.codebook_size as u64) as i64
                }
            })
            .collect();
        // Every fourth, from another one on in each image.
        let dropped: Vec<i64> = (0..BATCH * tokens)
            .map(|i| i64::from(i % tokens < tokens / 4 * 4 && (i % tokens + i / tokens) % 4 == 0))
            .collect();
        for drop in [false, true] {
            let bytes = [&ids, &dropped].map(|ints| ints.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
            let view = |bytes| TensorView::new(Dtype::I64, vec![BATCH, tokens], bytes).unwrap();
            let mut tensors = vec![("token_ids", view(&bytes[0]))];
            if drop {
                tensors.push(("drop_mask", view(&bytes[1])));
            }
            let [input, ours, reference] = ["in", "ours", "reference"].map(|name| dir.path().join(name));
            safetensors::serialize_to_file(tensors, None, &input).unwrap();
            let [i, o, r] = [&input, &ours, &reference].map(|path| path.display().to_string());
            sorcen(&["run", "--checkpoint", &model, "--input", &i, "--output", &o]);
            let line = ExportRun::parse_from(["run", "--checkpoint", &model, "--input", &i, "--output", &r]);
            sorcen_export::cli::run::run(&line.args).unwrap();
            for (name, bound) in [("latent", LATENT), ("logits", LOGITS), ("features", LATENT)] {
                if name == "features" && drop {
                    continue;
                }
                let (found, expected) = (floats(&ours, name), floats(&reference, name));
                let worst = largest_difference(&found, &expected);
                println!("{} wide, {name}: {worst:.1e}", config.embed_dim);
                assert!(worst < bound, "{config:?}: {name}: {worst}");
            }
        }
    }
}

/// The loss along the gradient rises by the gradient's length: all weights that no stop-gradient is about.
#[test]
fn gradients_are_those_of_the_losses() {
    for config in configs() {
        let dir = tempfile::tempdir().unwrap();
        let model = import(&config, dir.path());
        let (mut run, note) = checkpoint::open_training::<B>(Path::new(&model), &Default::default()).unwrap();
        assert_eq!(note, None);
        run.options = LossOptions { lambda: 1.0, uniformity: 1.0, ..run.options };
        let (batch, tokens) = (4, config.tokens());
        let rng = Rng::new(5, Stream::Evaluation, 1);
        let draw = |count: usize, below: usize, from: u64| -> Vec<u16> {
            (0..count as u64).map(|i| rng.below(from + i, below as u64) as u16).collect()
        };
        let inputs = StepInputs {
            ids: draw(batch * tokens, config.codebook_size, 0),
            labels: draw(batch, 4, 1 << 20),
            masks: MaskOptions::default().draw(batch, tokens, 1, 1),
            echo: Echo::Given(draw(batch * tokens, config.codebook_size, 1 << 21)),
            crop: Crop::draw(batch, config.grid, 1, 1),
            dropout: Dropout::off(),
        };
        // The classifier watches detached features, the teacher and the logits read embedding and norm undifferentiated.
        let free = |name: &str| !["classifier", "token_emb", "norm."].iter().any(|part| name.starts_with(part));
        let loss = |run: &Pretraining<B>| {
            let (losses, _) = run.losses(&inputs);
            let value = losses.total.clone() - losses.classifier.clone();
            (f64::from(value.inner().into_scalar()), losses)
        };
        let (_, losses) = loss(&run);
        let grads = losses.total.backward();
        let mut directions = Vec::new();
        let mut square = 0.0;
        run.networks.visit("", &mut |name, weight| {
            let gradient = weight.gradient(&grads).filter(|_| free(name));
            square += gradient.as_ref().map_or(0.0, |g| f64::from(g.clone().square().sum().into_scalar()));
            directions.push(gradient);
        });
        let length = square.sqrt();
        let at = |distance: f64| {
            let mut moved = run.clone();
            let mut directions = directions.iter();
            moved.networks.visit_mut("", &mut |_, weight| {
                if let Some(Some(direction)) = directions.next() {
                    weight.set(Tensor::from_inner(weight.get().inner() + direction.clone() * (distance / length)));
                }
            });
            loss(&moved).0
        };
        let step = 2e-3;
        let slope = (at(step) - at(-step)) / (2.0 * step);
        println!("{} wide: gradient of length {length:.4}, slope {slope:.4}", config.embed_dim);
        assert!((slope - length).abs() < 0.02 * length, "{config:?}: slope {slope}, gradient's length {length}");
    }
}
