//! `sorcen import` of other programs' checkpoints.

use std::path::Path;

use half::bf16;
use sorcen_runtime::rng::{Rng, Stream};
use sorcen_runtime::{schema, ModelConfig};
use sorcen_trainer::checkpoint::{read_config, TensorFile, TensorList, WeightSource as _, MODEL};

use super::pickled::{call, dict, global, int, items, list, text, Storages, Value};
use super::{fails, position, succeeds};

/// A tensor of a model.
pub type Weight = (String, Vec<usize>, Vec<f32>);

const HEADS: &str = "--heads 2 --decoder_heads 2";

pub fn small() -> ModelConfig {
    ModelConfig { embed_dim: 8, depth: 1, num_heads: 2, ..narrow_decoder(ModelConfig::micro(2, 12)) }
}

fn narrow_decoder(config: ModelConfig) -> ModelConfig {
    ModelConfig { decoder_embed_dim: 6, decoder_depth: 1, decoder_num_heads: 2, ..config }
}

/// The whole model under the official names; all values differ.
pub fn weights(config: &ModelConfig) -> Vec<Weight> {
    let weight = |param: schema::Param| {
        let rng = Rng::new(1, Stream::Init, param.index(config) as u64);
        let dims = param.shape(config).dims().to_vec();
        let values = (0..dims.iter().product::<usize>() as u64).map(|i| rng.normal(i) as f32).collect();
        (param.to_string(), dims, values)
    };
    schema::params(config).map(weight).collect()
}

/// The state dict of `weights`, with `prefix` before the names.
fn state(storages: &mut Storages, weights: &[Weight], prefix: &str) -> Value {
    let entry = |(name, dims, values): &Weight| (format!("{prefix}{name}"), storages.floats(dims, values));
    dict(&weights.iter().map(entry).collect::<Vec<_>>())
}

/// That the checkpoint `dir` holds `weights`.
fn same(dir: &Path, weights: &[Weight]) {
    let file = TensorFile::open(&dir.join(MODEL)).unwrap();
    for (name, dims, values) in weights {
        assert_eq!(&file.values(name, dims).unwrap(), values, "{name}");
    }
}

#[test]
fn what_all_names_start_with_is_taken_away() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let weights = weights(&small());
    for (number, prefix) in ["module.", "_orig_mod.", "model.", "ema.", "module._orig_mod."].into_iter().enumerate() {
        let mut storages = Storages::default();
        let state = state(&mut storages, &weights, prefix);
        storages.write(&dir.join("w.pth"), &dict(&[("model", state)]));
        let said = succeeds(dir, &format!("import --from w.pth --out out{number} {HEADS}"));
        assert!(said.contains(&format!("note: w.pth: all names start with `{prefix}`")), "{said}");
        same(&dir.join(format!("out{number}")), &weights);
    }
    // In safetensors too; and not where one tensor has another.
    let write = |prefix: &str, other: &str| {
        let mut list = TensorList::default();
        for (name, dims, values) in &weights {
            let prefix = if name == "norm.bias" { other } else { prefix };
            list.push(&format!("{prefix}{name}"), dims, values);
        }
        list.write(&dir.join("w.safetensors")).unwrap();
    };
    write("module.", "module.");
    let said = succeeds(dir, &format!("import --from w.safetensors --out safe {HEADS}"));
    assert!(said.contains("all names start with `module.`"), "{said}");
    same(&dir.join("safe"), &weights);
    write("ema.", "model.");
    let said = fails(dir, &format!("import --from w.safetensors --out new {HEADS}"));
    assert!(
        said.contains("none of this name among 40 tensors: ema.blocks.0") && said.contains("and 36 more"),
        "{said}"
    );
}

#[test]
fn one_of_several_sets_of_weights_is_chosen_by_name() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let weights = weights(&small());
    let mut doubled = weights.clone();
    doubled.iter_mut().for_each(|(_, _, values)| values.iter_mut().for_each(|value| *value *= 2.0));
    let file = |root: &dyn Fn(Value, Value) -> Value| {
        let mut storages = Storages::default();
        let (one, two) = (state(&mut storages, &weights, ""), state(&mut storages, &doubled, ""));
        storages.write(&dir.join("w.pth"), &root(one, two));
    };
    let import = |out: &str, key: &str| format!("import --from w.pth --out {out} {HEADS} {key}");

    file(&|one, _| dict(&[("model_ema", one), ("epoch", int(3))]));
    let said = fails(dir, &import("new", ""));
    assert!(said.contains("found `model_ema` with 40 tensors (") && said.contains("--key NAME"), "{said}");
    succeeds(dir, &import("ema", "--key model_ema"));
    same(&dir.join("ema"), &weights);

    file(&|one, _| dict(&[("model", text("vit_base")), ("state_dict", one)]));
    succeeds(dir, &import("beside", ""));
    same(&dir.join("beside"), &weights);

    file(&|one, two| dict(&[("model", one), ("model_ema", two)]));
    let said = succeeds(dir, &import("first", ""));
    assert!(said.contains("taken: `model`; not taken: `model_ema` with 40 tensors"), "{said}");
    same(&dir.join("first"), &weights);
    succeeds(dir, &import("second", "--key model_ema"));
    same(&dir.join("second"), &doubled);

    file(&|one, two| dict(&[("model", one), ("state_dict", two)]));
    let said = fails(dir, &import("new", ""));
    assert!(said.contains("`model` with 40 tensors") && said.contains("`state_dict` with 40 tensors"), "{said}");

    file(&|one, two| dict(&[("outer", dict(&[("student", one), ("teacher", two)]))]));
    succeeds(dir, &import("nested", "--key outer/teacher"));
    same(&dir.join("nested"), &doubled);

    // Two models in one state dict.
    let mut storages = Storages::default();
    let entry = |prefix: &str, storages: &mut Storages, weights: &[Weight]| {
        let entry = |(name, dims, values): &Weight| (format!("{prefix}{name}"), storages.floats(dims, values));
        weights.iter().map(entry).collect::<Vec<_>>()
    };
    let mut both = entry("model.", &mut storages, &weights);
    both.extend(entry("ema.", &mut storages, &doubled));
    storages.write(&dir.join("w.pth"), &dict(&[("state_dict", dict(&both))]));
    let said = fails(dir, &import("new", ""));
    assert!(said.contains("token_emb.word_embeddings.weight") && said.contains("among 80 tensors"), "{said}");
    succeeds(dir, &import("part", "--key ema"));
    same(&dir.join("part"), &doubled);
    let said = fails(dir, &import("new", "--key teacher"));
    assert!(said.contains("teacher") && said.contains("`state_dict` with 80 tensors"), "{said}");

    // No state dict at all.
    let module = call(global("models_sorcen", "SorcenViT"), &[]);
    for (value, expected) in [
        (module, "an object that models_sorcen.SorcenViT makes, not its state_dict()"),
        (dict(&[("epoch", int(3)), ("lr", int(1))]), "no tensor, but `epoch`: 3, `lr`: 1"),
        (list(&[int(1)]), "a list of 1"),
    ] {
        Storages::default().write(&dir.join("w.pth"), &value);
        let said = fails(dir, &import("new", ""));
        assert!(said.contains(expected), "{said}");
    }
    assert!(!dir.join("new").exists());
}

/// The small model with one tensor written by `one`, in a file.
fn with_one(dir: &Path, name: &str, one: impl Fn(&mut Storages, &[usize], &[f32]) -> Value) {
    let mut storages = Storages::default();
    let mut entries = Vec::new();
    for (other, dims, values) in &weights(&small()) {
        let value = match other == name {
            true => one(&mut storages, dims, values),
            false => storages.floats(dims, values),
        };
        entries.push((other.clone(), value));
    }
    storages.write(&dir.join("w.pth"), &dict(&[("model", dict(&entries))]));
}

#[test]
fn ways_to_write_a_tensor() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let import = |out: &str| format!("import --from w.pth --out {out} {HEADS}");
    let name = "norm.bias";

    // Parameters with attributes; a view that repeats itself; half the precision; a transposed matrix.
    with_one(dir, name, |storages, dims, values| {
        let tensor = storages.floats(dims, values);
        let arguments = [tensor, b"\x88".to_vec(), b"N".to_vec(), dict(&[("decay", int(0))])];
        call(global("torch._utils", "_rebuild_parameter_with_state"), &arguments)
    });
    succeeds(dir, &import("attributes"));
    same(&dir.join("attributes"), &weights(&small()));
    with_one(dir, name, |storages, _, _| storages.tensor("FloatStorage", 1.5f32.to_le_bytes().to_vec(), &[8], &[0]));
    succeeds(dir, &import("expanded"));
    let file = TensorFile::open(&dir.join("expanded").join(MODEL)).unwrap();
    assert_eq!(file.values(name, &[8]).unwrap(), [1.5; 8]);
    with_one(dir, name, |storages, dims, _| {
        let bytes = (0..8).flat_map(|i| bf16::from_f32(i as f32).to_le_bytes()).collect();
        storages.tensor("BFloat16Storage", bytes, dims, &[1])
    });
    succeeds(dir, &import("half"));
    let file = TensorFile::open(&dir.join("half").join(MODEL)).unwrap();
    assert_eq!(file.values(name, &[8]).unwrap(), std::array::from_fn::<f32, 8, _>(|i| i as f32));
    with_one(dir, "blocks.0.attn.proj.weight", |storages, _, values| {
        let turned = (0..64).flat_map(|i| values[i % 8 * 8 + i / 8].to_le_bytes()).collect();
        storages.tensor("FloatStorage", turned, &[8, 8], &[1, 8])
    });
    succeeds(dir, &import("transposed"));
    same(&dir.join("transposed"), &weights(&small()));

    // What is not read is not "none of this name".
    with_one(dir, name, |storages, dims, _| storages.typed("float8_e4m3fn", vec![0x38; 8], dims));
    let said = fails(dir, &import("new"));
    assert!(
        said.contains("w.pth: norm.bias: expected float32, float64") && said.contains("torch.float8_e4m3fn"),
        "{said}"
    );
    with_one(dir, name, |storages, dims, values| {
        call(global("torch._utils", "_rebuild_qtensor"), &[storages.floats(dims, values)])
    });
    let said = fails(dir, &import("new"));
    assert!(
        said.contains("norm.bias: expected a tensor [8], found an object made by torch._utils._rebuild_qtensor"),
        "{said}"
    );

    // A few bytes that claim to be a billion numbers ask for no memory.
    with_one(dir, "token_emb.word_embeddings.weight", |storages, _, _| {
        storages.tensor("FloatStorage", vec![0; 4], &[1 << 20, 1 << 10], &[0, 0])
    });
    let said = fails(dir, &import("new"));
    assert!(said.contains("expected no more elements than a file of"), "{said}");
    // Nor do sizes that one small tensor claims for all.
    with_one(dir, "norm.weight", |storages, _, _| storages.floats(&[9], &[1.0; 9]));
    let said = fails(dir, &import("new"));
    assert!(said.contains("norm.weight: expected shape [8], found [9]"), "{said}");
}

#[test]
fn formats_are_told_by_contents() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let weights = weights(&small());
    let mut storages = Storages::default();
    let state = state(&mut storages, &weights, "");
    for (number, protocol) in [2, 4].into_iter().enumerate() {
        storages.write_legacy(&dir.join("old.safetensors"), &state, protocol);
        succeeds(dir, &format!("import --from old.safetensors --out old{number} {HEADS}"));
        same(&dir.join(format!("old{number}")), &weights);
    }
    storages.write(&dir.join("pytorch_model.bin"), &state);
    succeeds(dir, &format!("import --from pytorch_model.bin --out bin {HEADS}"));
    same(&dir.join("bin"), &weights);
    let mut list = TensorList::default();
    weights.iter().for_each(|(name, dims, values)| list.push(name, dims, values));
    list.write(&dir.join("w.pt")).unwrap();
    succeeds(dir, &format!("import --from w.pt --out pt {HEADS}"));
    same(&dir.join("pt"), &weights);
    for (bytes, expected) in [
        (&b"<!DOCTYPE html><html>"[..], "found a page of HTML or XML"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"", "found an empty file"),
        (b"\x1f\x8b\x08\0", "gzip"),
    ] {
        std::fs::write(dir.join("w.pth"), bytes).unwrap();
        let said = fails(dir, "import --from w.pth --out new");
        assert!(said.contains("w.pth: contents: expected a PyTorch checkpoint") && said.contains(expected), "{said}");
    }
}

#[test]
fn numbers_are_read_as_they_were_written() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let weights = weights(&small());
    // Of the other byte order: converted; of none that there is: refused.
    let mut storages = Storages::default();
    let big = |(name, dims, values): &Weight| {
        let bytes = values.iter().flat_map(|value| value.to_be_bytes()).collect();
        (name.clone(), storages.tensor("FloatStorage", bytes, dims, &super::pickled::contiguous(dims)))
    };
    let entries: Vec<_> = weights.iter().map(big).collect();
    storages.write_in_order(&dir.join("w.pth"), &dict(&entries), "big");
    succeeds(dir, &format!("import --from w.pth --out big {HEADS}"));
    same(&dir.join("big"), &weights);
    storages.write_in_order(&dir.join("w.pth"), &dict(&entries), "middle");
    let said = fails(dir, &format!("import --from w.pth --out new {HEADS}"));
    assert!(said.contains("byteorder \"middle\", expected little or big"), "{said}");

    // One bit, of a weight and of the pickle.
    let mut storages = Storages::default();
    let state = state(&mut storages, &weights, "");
    storages.write(&dir.join("w.pth"), &state);
    let whole = std::fs::read(dir.join("w.pth")).unwrap();
    let (_, _, values) = weights.iter().find(|(name, ..)| name == "norm.bias").unwrap();
    let needle: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    for (needle, expected) in [(&needle[..], "norm.bias"), (b"_rebuild_tensor_v2", "data.pkl")] {
        let mut flipped = whole.clone();
        flipped[position(&whole, needle)] ^= 1;
        std::fs::write(dir.join("w.pth"), flipped).unwrap();
        let said = fails(dir, &format!("import --from w.pth --out new {HEADS}"));
        assert!(said.contains(expected) && said.contains("damaged: expected CRC-32"), "{said}");
    }
}

/// The official rule: a vocabulary of K + 1001, the class token K + 76, the mask token K + 1000.
#[test]
fn a_vocabulary_that_may_be_two_is_asked_about() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let config = ModelConfig { vocab_size: 1513, ..small() };
    let mut storages = Storages::default();
    let official = state(&mut storages, &weights(&config), "");
    storages.write(&dir.join("w.pth"), &dict(&[("model", official)]));
    let import = |out: &str, more: &str| format!("import --from w.pth --out {out} {HEADS} {more}");
    let said = fails(dir, &import("new", ""));
    assert!(
        said.contains("codebook_size: expected --codebook_size 512 (the official") && said.contains("or 1511"),
        "{said}"
    );
    for (codes, class, mask) in [(512, 588, 1512), (1511, 1511, 1512)] {
        let out = codes.to_string();
        let said = succeeds(dir, &import(&out, &format!("--codebook_size {codes}")));
        assert!(said.contains(&format!("{codes} codes (class token {class}, mask token {mask})")), "{said}");
        let found = read_config(&dir.join(out)).unwrap();
        assert_eq!((found.codebook_size, found.class_token_id, found.mask_token_id), (codes, class, mask));
    }
    let said = fails(dir, &import("new", "--codebook_size 1024"));
    assert!(said.contains("expected 512 or 1511, for a vocabulary of 1513, found 1024"), "{said}");

    // Both counts of heads in one go.
    let said = fails(dir, "import --from w.pth --out new --codebook_size 512");
    assert!(said.contains("heads: expected --heads and --decoder_heads, since"), "{said}");

    // LEASE's vocabulary of 17030 has another rule, and its model other parts.
    let mut storages = Storages::default();
    let config = ModelConfig { vocab_size: 17_030, ..small() };
    let mut lease = weights(&config);
    lease.push(("proj_to_dino.0.weight".into(), vec![4, 8], vec![0.5; 32]));
    let lease = state(&mut storages, &lease, "");
    storages.write(&dir.join("w.pth"), &dict(&[("model", lease)]));
    let said = fails(dir, &import("new", ""));
    assert!(said.contains("proj_to_dino.0.weight: expected a Sorcen or MAGE model, found a LEASE"), "{said}");
}

#[test]
fn tensors_that_the_model_has_not_are_named() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let mut weights = weights(&small());
    let mut storages = Storages::default();
    let model = weights.clone();
    for name in ["vqgan.a", "vqgan.b", "projector.projector.3.bias", "cls_token", "adapter.down"] {
        weights.push((name.into(), vec![1], vec![1.0]));
    }
    let entries = state(&mut storages, &weights, "");
    let meta = items(&[(int(3), int(4))]);
    storages.write(&dir.join("w.pth"), &dict(&[("model", entries), ("args", meta)]));
    let said = succeeds(dir, &format!("import --from w.pth --out out {HEADS}"));
    assert!(said.contains("left out: adapter (1), projector (1), vqgan (2) tensors"), "{said}");
    same(&dir.join("out"), &model);
}
