//! Writes our checkpoints as the official code's `.pth`.

use std::path::Path;

use burn::backend::{Autodiff, Flex};
use burn::tensor::Tensor;
use sorcen_export::atomic;
use sorcen_runtime::ModelConfig;

use crate::checkpoint::{self, TRAINING_STATE};
use crate::data::DataError;
use crate::import::SIZES;
use crate::model::weight::{Weight, Weights};
use crate::official;
use crate::optim::AdamWOptions;
use crate::step::Pretraining;
use crate::teacher::TEACHER;
use crate::torch::{self, Numbers, Value};

type Run = Pretraining<Autodiff<Flex>>;

/// A tensor of the official model.
struct Entry {
    name: String,
    dims: Vec<usize>,
    numbers: Numbers<'static>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Tensors of the model.
    pub tensors: usize,
    /// Whether the optimiser, and Sorcen's teacher and heads, are with them.
    pub with_training_state: bool,
    /// Tensors of a teacher with its own embedding and norm, which the official model has not.
    pub left_out: usize,
    /// What of the training state is not.
    pub note: Option<String>,
}

/// Writes the checkpoint folder `dir` as the file `out`, which is replaced as a whole.
///
/// The entries are those of the official code: `model`, and where there is a training state `optimizer`, `epoch`
/// and `scaler`, from which it goes on. Parameters that it has and does not use are zeros. An entry `config`, which it
/// does not look at, has the sizes that shapes do not show.
///
/// # Errors
/// [`DataError`] of the checkpoint, or where the file cannot be written: `out` is then as it was.
pub fn export(dir: &Path, out: &Path) -> Result<Exported, DataError> {
    let device = Default::default();
    let with_training_state = dir.join(TRAINING_STATE).exists();
    let mut left_out = 0;
    let mut note = None;
    let (config, model, history) = if with_training_state {
        let run: Run;
        (run, note) = checkpoint::open_training(dir, &device)?;
        let mut model = entries(&run.networks);
        let (teacher, others): (Vec<_>, _) =
            entries(&run.teacher).into_iter().partition(|entry| entry.name.starts_with(TEACHER));
        left_out = others.len();
        model.extend(teacher);
        let epochs = checkpoint::read_state(dir)?.epochs;
        (run.config, model, Some((run, epochs)))
    } else {
        let (config, model) = checkpoint::load_model::<Flex>(dir, &device)?;
        (config, entries(&model), None)
    };
    let updates = history.as_ref().map(|(run, _)| run.optimizer.updates);
    let model = complete(&config, model, updates);
    let mut root = Vec::new();
    if let Some((run, epochs)) = &history {
        root.push(("optimizer", optimizer(run, &model)));
        root.push(("epoch", Value::Int(epochs.saturating_sub(1) as i64)));
        root.push(("scaler", scaler()));
    }
    root.push((SIZES, sizes(&config)));
    let tensors = model.len();
    let state =
        model.into_iter().map(|Entry { name, dims, numbers }| (Value::Text(name), Value::Tensor(dims, numbers)));
    root.insert(0, ("model", Value::Dict(state.collect())));
    atomic::write_with(out, |file| torch::write("checkpoint", &Value::dict(root), file))?;
    Ok(Exported { tensors, with_training_state, left_out, note })
}

/// The fields of `config.json`.
fn sizes(config: &ModelConfig) -> Value<'static> {
    let ModelConfig { grid, codebook_size, vocab_size, class_token_id, mask_token_id, .. } = *config;
    let ModelConfig { embed_dim, depth, num_heads, .. } = *config;
    let ModelConfig { decoder_embed_dim, decoder_depth, decoder_num_heads, mlp_ratio, layer_norm_eps, .. } = *config;
    let size = |value: usize| Value::Int(value as i64);
    Value::dict([
        ("grid", size(grid)),
        ("codebook_size", size(codebook_size)),
        ("vocab_size", size(vocab_size)),
        ("class_token_id", size(class_token_id)),
        ("mask_token_id", size(mask_token_id)),
        ("embed_dim", size(embed_dim)),
        ("depth", size(depth)),
        ("num_heads", size(num_heads)),
        ("decoder_embed_dim", size(decoder_embed_dim)),
        ("decoder_depth", size(decoder_depth)),
        ("decoder_num_heads", size(decoder_num_heads)),
        ("mlp_ratio", size(mlp_ratio)),
        ("layer_norm_eps", Value::Float(layer_norm_eps.into())),
    ])
}

/// The weights of a module.
fn entries<B: burn::tensor::backend::Backend>(module: &dyn Weights<B>) -> Vec<Entry> {
    let mut entries = Vec::new();
    module.visit("", &mut |name, weight: &Weight<B>| {
        let numbers = Numbers::F32(weight.to_vec());
        entries.push(Entry { name: name.to_string(), dims: weight.dims().to_vec(), numbers });
    });
    entries
}

/// Adds what the official model has besides, and brings all of it into its order.
fn complete(config: &ModelConfig, mut entries: Vec<Entry>, updates: Option<u64>) -> Vec<Entry> {
    for (name, dims) in official::unused(config) {
        let numbers = Numbers::F32(vec![0.0; dims.iter().product()]);
        entries.push(Entry { name: name.to_string(), dims, numbers });
    }
    let sequence = config.sequence();
    let numbers = Numbers::I64((0..sequence as i64).collect());
    // A buffer, and the first of its module.
    entries.insert(0, Entry { name: "token_emb.position_ids".into(), dims: vec![1, sequence], numbers });
    for head in ["projector", "momentum_projector", "predictor"] {
        let after = format!("{head}.projector.1.running_var");
        if let (Some(at), Some(updates)) = (entries.iter().position(|entry| entry.name == after), updates) {
            let name = format!("{head}.projector.1.num_batches_tracked");
            let numbers = Numbers::I64(vec![updates as i64]);
            entries.insert(at + 1, Entry { name, dims: Vec::new(), numbers });
        }
    }
    entries.sort_by_key(|entry| official::place(&entry.name)); // stable
    entries
}

/// `torch.optim.AdamW.state_dict()` of the official code's two groups.
fn optimizer(run: &Run, model: &[Entry]) -> Value<'static> {
    let groups = official::optimizer_groups(model.iter().map(|entry| (entry.name.as_str(), &entry.dims[..])));
    let AdamWOptions { beta1, beta2, eps, weight_decay, .. } = AdamWOptions::default();
    let numbers = |t: &Tensor<Flex, 2>| Numbers::F32(t.to_data().to_vec::<f32>().unwrap_or_default());
    let mut state = Vec::new();
    let mut param_groups = Vec::new();
    let mut number = 0;
    for (group, decay) in groups.iter().zip([0.0, weight_decay]) {
        let mut params = Vec::new();
        for name in group {
            if let Some((first, second)) = run.optimizer.moments.get(*name) {
                let dims = model.iter().find(|entry| entry.name == *name).map_or(Vec::new(), |e| e.dims.clone());
                let moments = Value::dict([
                    ("step", Value::Tensor(Vec::new(), Numbers::F32(vec![run.optimizer.updates as f32]))),
                    ("exp_avg", Value::Tensor(dims.clone(), numbers(first))),
                    ("exp_avg_sq", Value::Tensor(dims, numbers(second))),
                ]);
                state.push((Value::Int(number), moments));
            }
            params.push(Value::Int(number));
            number += 1;
        }
        param_groups.push(Value::dict([
            ("weight_decay", Value::Float(decay)),
            ("lr", Value::Float(0.0)), // the official code sets it before each step
            ("betas", Value::Tuple(vec![Value::Float(beta1), Value::Float(beta2)])),
            ("eps", Value::Float(eps)),
            ("amsgrad", Value::Bool(false)),
            ("maximize", Value::Bool(false)),
            ("foreach", Value::None),
            ("capturable", Value::Bool(false)),
            ("differentiable", Value::Bool(false)),
            ("fused", Value::None),
            ("params", Value::List(params)),
        ]));
    }
    Value::dict([("state", Value::Dict(state)), ("param_groups", Value::List(param_groups))])
}

/// `torch.cuda.amp.GradScaler.state_dict()` of a new one: moments are of unscaled gradients, so it holds nothing of
/// the run.
fn scaler() -> Value<'static> {
    Value::dict([
        ("scale", Value::Float(65_536.0)),
        ("growth_factor", Value::Float(2.0)),
        ("backoff_factor", Value::Float(0.5)),
        ("growth_interval", Value::Int(2000)),
        ("_growth_tracker", Value::Int(0)),
    ])
}
