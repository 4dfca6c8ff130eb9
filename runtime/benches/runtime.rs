//! How fast this core is: `cargo bench -p sorcen-runtime [-- encoder | generate]`.
//!
//! - `encoder`: whole encoders of three sizes with random weights, int8 and int4 on every kernel that this
//!   CPU has, also as a share of what the core does with registers alone; with `COSINE=1` in the
//!   environment, how close they come to float weights (cosine of the features). Beside each, the class token alone.
//! - `generate`: one step of masked generation.
//!
//! `encoder` also takes the names of sizes, precisions and kernels: `-- encoder base int4 avx2`. Times are those
//! on the processor, not on the wall; on a busy machine only the minimum means anything.

use std::{env, hint::black_box};

use sorcen_runtime::{
    generate::{generate, Options},
    pack::{OwnedPack, Precision, TensorData, Writer},
    quant::{
        int4::{self, Order},
        quantise_matrix, Layout,
    },
    rng::{Rng, Stream},
    sampler::Seeded,
    schema::{Param, Part},
    scratch::{OwnedScratch, Plan},
    Kernels, Model, ModelConfig, Pack,
};

type AnyError = Box<dyn std::error::Error>;

fn main() -> Result<(), AnyError> {
    let wanted: Vec<String> = env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|w| w == name);
    if wants("encoder") {
        let named = |all: &[&str], name: &str| {
            wanted.iter().any(|w| w == name) || !all.iter().any(|n| wanted.iter().any(|w| w == n))
        };
        let kernels: Vec<&str> = Kernels::available().map(|k| k.name()).collect();
        for (name, config) in SIZES {
            if named(&SIZES.map(|(name, _)| name), name) {
                for precision in [Precision::Int8, Precision::Int4] {
                    if named(&["int8", "int4"], precision.name()) {
                        encoder(name, &config, precision, |k| named(&kernels, k))?;
                    }
                }
            }
        }
    }
    if wants("generate") {
        step("tiny 8x8", &ModelConfig::tiny(8, 512))?;
    }
    Ok(())
}

/// The sizes of the published comparison.
const SIZES: [(&str, ModelConfig); 3] = [
    ("base", ModelConfig::vit_b()),
    ("small", ModelConfig { embed_dim: 192, depth: 12, num_heads: 3, ..ModelConfig::vit_b() }),
    ("tiny", ModelConfig { embed_dim: 128, depth: 4, num_heads: 4, ..ModelConfig::tiny(8, 1024) }),
];

fn encoder(
    name: &str,
    config: &ModelConfig,
    precision: Precision,
    wants: impl Fn(&str) -> bool,
) -> Result<(), AnyError> {
    let rng = Rng::new(5, Stream::Init, 1);
    let ids: Vec<u16> = (0..config.tokens()).map(|i| (rng.bits(i as u64) % 1024) as u16).collect();
    let macs = encoder_macs(config);
    let bytes = random_pack(config, precision, false)?;
    let arranged = OwnedPack::arrange(&Pack::new(&bytes)?, Kernels::detect().layout())?;
    let mut scratch = OwnedScratch::new(config, Plan::Features)?;
    let (mut feature, mut class) = (vec![0.0; config.embed_dim], vec![0.0; config.embed_dim]);
    let mut features = Vec::new();
    for k in Kernels::available().filter(|k| wants(k.name())) {
        // The specification is for checking, not for speed.
        if k.name() == "scalar" && macs > 1e9 {
            continue;
        }
        let model = Model::with_kernels(arranged.pack()?, k);
        let runs = if macs > 1e10 { 7 } else { 60 };
        let times = time(runs, || {
            model.encode(&ids, None, &mut scratch.get()?)?.into_latent().contrastive_feature(&mut feature)
        })?;
        report(&format!("encoder {name} {} {}", precision.name(), k.name()), times, macs);
        let times = time(runs, || model.class_token_feature(&ids, &mut scratch.get()?, &mut class))?;
        report("  its class token alone", times, 0.0);
        features.push(feature.clone());
    }
    if env::var_os("COSINE").is_some() {
        let bytes = random_pack(config, Precision::F32, false)?;
        let model = Model::new(Pack::new(&bytes)?);
        let times =
            time(1, || model.encode(&ids, None, &mut scratch.get()?)?.into_latent().contrastive_feature(&mut feature))?;
        report(&format!("encoder {name} f32 {}", model.kernels().name()), times, macs);
        for found in features {
            println!("    cosine {:.6}", cosine(&found, &feature));
        }
    }
    Ok(())
}

fn step(name: &str, config: &ModelConfig) -> Result<(), AnyError> {
    let bytes = random_pack(config, Precision::Int8, true)?;
    let arranged = OwnedPack::arrange(&Pack::new(&bytes)?, Kernels::detect().layout())?;
    let model = Model::new(arranged.pack()?);
    let mut scratch = OwnedScratch::new(config, Plan::Generate)?;
    let options = Options { steps: 1, ..Options::default() };
    let times = time(30, || {
        let mut ids = vec![config.mask_token_id as u16; config.tokens()];
        generate(&model, &mut ids, &options, &mut Seeded(0), &mut scratch.get()?, |_| {})?;
        black_box(ids);
        Ok(())
    })?;
    report(&format!("generate {name}, one step, {}", model.kernels().name()), times, 0.0);
    Ok(())
}

/// Seconds of each run, after one to warm up.
fn time(runs: usize, mut run: impl FnMut() -> Result<(), sorcen_runtime::Error>) -> Result<Vec<f64>, AnyError> {
    run()?;
    let mut times = Vec::new();
    for _ in 0..runs {
        let start = cpu_seconds();
        run()?;
        times.push(cpu_seconds() - start);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// Seconds that this thread has been on a processor.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn report(what: &str, times: Vec<f64>, macs: f64) {
    let (least, median) = (times[0], times[times.len() / 2]);
    let peak = Kernels::detect().peak_macs_per_second(|work| {
        let start = cpu_seconds();
        work();
        cpu_seconds() - start
    });
    print!("{what:<40} min {:9.3} ms  median {:9.3} ms", least * 1e3, median * 1e3);
    if macs > 0.0 {
        print!("  {:6.1} GMAC/s", macs / least / 1e9);
        if let Some(peak) = peak {
            print!(", {:.0} % of {:.0}", 100.0 * macs / least / peak, peak / 1e9);
        }
    }
    println!();
}

fn encoder_macs(c: &ModelConfig) -> f64 {
    let (tokens, dim, depth) = (c.sequence() as f64, c.embed_dim as f64, c.depth as f64);
    depth * (tokens * (4 + 2 * c.mlp_ratio) as f64 * dim * dim + 2.0 * tokens * tokens * dim)
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// A pack of random weights (Xavier for matrices), in rows: int8, int4 or float.
fn random_pack(config: &ModelConfig, precision: Precision, decoder: bool) -> Result<Vec<u8>, AnyError> {
    let mut writer = Writer::new(Vec::new(), config)?;
    while let Some(param) = writer.next_param() {
        if param.is_decoder() && !decoder {
            writer.tensor(TensorData::Absent)?;
            continue;
        }
        let rng = Rng::new(11, Stream::Init, param.index(config) as u64);
        let (rows, cols) = param.shape(config).matrix();
        let (mean, width) = match param {
            Param::NormWeight
            | Param::EmbeddingNormWeight
            | Param::Block { part: Part::Norm1Weight | Part::Norm2Weight, .. } => (1.0, 0.1),
            Param::WordEmbedding | Param::PositionEmbedding => (0.0, 0.04),
            _ if param.is_matrix() => (0.0, (6.0 / (rows + cols) as f32).sqrt()),
            _ => (0.0, 0.04),
        };
        let numbers: Vec<f32> =
            (0..rows * cols).map(|i| mean + (2.0 * rng.uniform(i as u64) as f32 - 1.0) * width).collect();
        let mut scales = vec![0.0; rows];
        match precision {
            Precision::Int8 if param.is_matrix() => {
                let mut weights = vec![0; rows * cols];
                quantise_matrix(&numbers, (rows, cols), Layout::ROW_MAJOR, &mut weights, &mut scales)?;
                writer.tensor(TensorData::Int8 { weights: &weights, scales: &scales, layout: Layout::ROW_MAJOR })?;
            }
            Precision::Int4 if param.is_matrix() => {
                let mut packed = vec![0; int4::bytes(rows, cols)];
                int4::quantise_matrix(&numbers, (rows, cols), &mut packed, &mut scales)?;
                writer.tensor(TensorData::Int4 { packed: &packed, scales: &scales, order: Order::Rows })?;
            }
            _ => writer.tensor(TensorData::F32(&numbers))?,
        }
    }
    Ok(writer.finish()?.1)
}
