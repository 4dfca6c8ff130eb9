//! Small models for the tests, and the program.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    borrow::Cow,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
};

use ndarray::{Array2, Array3};
use safetensors::{tensor::TensorView, SafeTensors};
use tempfile::TempDir;

use sorcen_export::{
    tokenizer::{PatchTokenizer, VitTokenizer},
    Checkpoint,
};
use sorcen_runtime::{
    rng::{Rng, Stream},
    schema::Param,
    tokens::{row_bytes, unpack_row},
    vit::{VitConfig, VitParam},
    ModelConfig,
};

/// 9 tokens of 12 codes, 16 and 8 wide, two blocks each: milliseconds.
pub fn config() -> ModelConfig {
    ModelConfig {
        grid: 3,
        codebook_size: 12,
        vocab_size: 20,
        class_token_id: 14,
        mask_token_id: 19,
        embed_dim: 16,
        depth: 2,
        num_heads: 4,
        decoder_embed_dim: 8,
        decoder_depth: 2,
        decoder_num_heads: 2,
        mlp_ratio: 2,
        layer_norm_eps: 1e-6,
    }
}

/// Random weights: gains around 1, everything else around 0.
pub fn weights(config: &ModelConfig, seed: u64) -> impl FnMut(Param) -> Cow<'static, [f32]> + use<> {
    let config = *config;
    move |param| {
        let rng = Rng::new(seed, Stream::Init, param.index(&config) as u64);
        let name = param.to_string();
        let gain =
            name.ends_with("weight") && (name.contains("norm") || name.contains("ln.") || name.contains("LayerNorm"));
        let mean = if gain { 1.0 } else { 0.0 };
        (0..param.shape(&config).elements() as u64).map(|i| mean + 0.2 * rng.normal(i) as f32).collect()
    }
}

/// Writes a checkpoint of random weights and opens it.
pub fn checkpoint(dir: &Path, seed: u64) -> Checkpoint {
    Checkpoint::write(dir, &config(), weights(&config(), seed)).unwrap();
    Checkpoint::open(dir).unwrap()
}

/// A set of official golden vectors.
pub struct Golden {
    path: PathBuf,
    pub json: serde_json::Value,
    bytes: Vec<u8>,
}

/// Reads `tests/fixtures/official/T/{name}`.
pub fn golden(name: &str) -> Golden {
    let path = fixtures().join(name);
    Golden {
        json: serde_json::from_slice(&fs::read(path.with_extension("json")).unwrap()).unwrap(),
        bytes: fs::read(path.with_extension("safetensors")).unwrap(),
        path,
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/official/T")
}

impl Golden {
    /// The file of the tensors.
    pub fn path(&self) -> PathBuf {
        self.path.with_extension("safetensors")
    }

    fn view(&self, name: &str) -> TensorView<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap().tensor(name).unwrap()
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.view(name).shape().to_vec()
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.view(name).data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub fn floats2(&self, name: &str) -> Array2<f32> {
        let shape = self.shape(name);
        Array2::from_shape_vec((shape[0], shape[1]), self.floats(name)).unwrap()
    }

    pub fn floats3(&self, name: &str) -> Array3<f32> {
        let shape = self.shape(name);
        Array3::from_shape_vec((shape[0], shape[1], shape[2]), self.floats(name)).unwrap()
    }

    pub fn ints(&self, name: &str) -> Array2<i64> {
        let shape = self.shape(name);
        Array2::from_shape_vec((shape[0], shape[1]), self.int_values(name)).unwrap()
    }

    pub fn ints3(&self, name: &str) -> Array3<i64> {
        let shape = self.shape(name);
        Array3::from_shape_vec((shape[0], shape[1], shape[2]), self.int_values(name)).unwrap()
    }

    fn int_values(&self, name: &str) -> Vec<i64> {
        self.view(name).data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

/// The bundled demo model.
pub fn demo() -> Arc<Checkpoint> {
    Arc::new(Checkpoint::open(&bundled().join("checkpoint")).unwrap())
}

/// `trainer/assets/emoji`
pub fn bundled() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../trainer/assets/emoji")
}

/// The first held-back emoji as the demo model's tokens, `[count, 64]`.
pub fn demo_tokens(count: usize) -> Array2<i64> {
    let bytes = fs::read(bundled().join("val/tokens_vqgan.npy")).unwrap();
    let data = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]])); // npy 1.0: magic, version, header length
    let mut ids = [0; 64];
    let mut tokens = Array2::zeros((count, ids.len()));
    let rows = bytes[data..].chunks_exact(row_bytes(ids.len(), 9));
    for (mut tokens, row) in tokens.rows_mut().into_iter().zip(rows) {
        unpack_row(row, 9, &mut ids).unwrap();
        tokens.iter_mut().zip(ids).for_each(|(token, id)| *token = id.into());
    }
    tokens
}

/// The configuration of the golden vectors called T: official vocabulary and grid, tiny widths.
pub fn golden_config() -> ModelConfig {
    ModelConfig {
        embed_dim: 64,
        depth: 2,
        num_heads: 4,
        decoder_embed_dim: 48,
        decoder_depth: 2,
        decoder_num_heads: 4,
        ..ModelConfig::vit_b()
    }
}

/// The golden weights as a checkpoint folder.
pub fn golden_checkpoint() -> (TempDir, Arc<Checkpoint>) {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(fixtures().join("weights.safetensors"), dir.path().join("model.safetensors")).unwrap();
    fs::write(dir.path().join("config.json"), serde_json::to_string(&golden_config()).unwrap()).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, Arc::new(checkpoint))
}

/// Pixels `[side, side, 3]` of an image of `grid` patches a side.
pub fn pixels(tokenizer: &PatchTokenizer, ids: &[u16], grid: usize) -> Vec<u8> {
    let side = grid * tokenizer.patch();
    let mut rgb = vec![0; side * side * 3];
    tokenizer.codebook().decode(ids, side, side, &mut rgb).unwrap();
    rgb
}

/// A small ViT tokenizer with random weights.
pub fn vit() -> VitTokenizer {
    let config = VitConfig {
        grid: 3,
        patch: 4,
        codes: 12,
        code_dim: 5,
        embed_dim: 16,
        depth: 2,
        num_heads: 2,
        decoder_depth: 1,
        mlp_ratio: 2,
    };
    let weights = VitParam::all(&config).enumerate().map(|(i, param)| {
        let rng = Rng::new(2, Stream::Init, i as u64);
        // Biases of 0: what all tokens share would give them all one code.
        let is_vector = param.shape(&config).dims().len() == 1;
        let value = |at: usize| match is_vector {
            true => f32::from(u8::from(param.to_string().ends_with("weight"))),
            false => 0.4 * rng.normal(at as u64) as f32,
        };
        (0..param.shape(&config).elements()).map(value).collect()
    });
    VitTokenizer::new(config, weights.collect()).unwrap()
}

/// Runs a line in `dir`.
pub fn sorcen_export(dir: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sorcen-export")).args(line.split_whitespace()).current_dir(dir).output().unwrap()
}

/// Runs a line that has to succeed; what it printed.
#[track_caller]
pub fn succeed(dir: &Path, line: &str) -> String {
    let out = sorcen_export(dir, line);
    assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Runs a line that has to fail with `code`, saying each of `parts`; all that it said.
#[track_caller]
pub fn fail(dir: &Path, line: &str, code: i32, parts: &[&str]) -> String {
    let out = sorcen_export(dir, line);
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{line}: {said}");
    for part in parts {
        assert!(said.contains(part), "{line}: `{part}` not in: {said}");
    }
    said.into_owned()
}
