//! How long the encoder takes on this machine, and how close it comes to reference features.
//!
//! ```text
//! cargo run --release -p sorcen-runtime --example encoder_latency -- \
//!     --pack model.srcn --tokens tokens.u16 --threads 1 --runs 20 --features features.npy
//! ```
//! `--tokens`: little-endian u16 ids of one image, class token first. Prints milliseconds per run,
//! one a line, after one run to warm up. `--features F.npy`: float32 `[D]` or `[N, D]`; prints
//! `cos X`, the cosine between our feature (final norm, then patch mean) and the first row.
//! Last comes `rss_mib X`, the most memory that the process held (Linux).

use std::{env, error::Error, fs, path::Path, process::ExitCode, time::Instant};

use sorcen_runtime::{
    pack::OwnedPack,
    scratch::{OwnedScratch, Plan},
    team::Team,
    Model, OwnedBytes, Pack,
};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let flag = |name: &str| env::args().skip_while(|a| a != name).nth(1);
    let path = |name: &str| flag(name).ok_or(format!("{name} FILE is needed"));
    let (pack, tokens) = (path("--pack")?, path("--tokens")?);
    let named = |file: &str, error: &dyn std::fmt::Display| format!("{file}: {error}");
    let runs: usize = flag("--runs").map_or(Ok(10), |n| n.parse()).map_err(|e| format!("--runs: {e}"))?;
    let threads: usize = flag("--threads").map_or(Ok(1), |n| n.parse()).map_err(|e| format!("--threads: {e}"))?;

    let file = OwnedBytes::read(Path::new(&pack)).map_err(|e| named(&pack, &e))?;
    let mut model = Model::new(Pack::new(&file).map_err(|e| named(&pack, &e))?);
    let arranged;
    if model.is_in_another_order() {
        arranged = OwnedPack::arrange(model.pack(), model.kernels().layout())?;
        model = Model::new(arranged.pack()?);
    }
    let config = *model.config();
    let tokens = fs::read(&tokens).map_err(|e| named(&tokens, &e))?;
    let ids: Vec<u16> = tokens.chunks_exact(2).skip(1).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
    let mut scratch = OwnedScratch::new(&config, Plan::Features)?;
    let mut team = if threads == 1 { None } else { Some(Team::new(&config, threads)?) };
    let mut feature = vec![0.0; config.embed_dim];
    eprintln!("kernels: {}", model.kernels().name());
    for run in 0..=runs {
        let start = Instant::now();
        match &mut team {
            Some(team) => team.contrastive_features(&model, &ids, &mut feature)?,
            None => model.encode(&ids, None, &mut scratch.get()?)?.into_latent().contrastive_feature(&mut feature)?,
        }
        if run > 0 {
            println!("{:.3}", start.elapsed().as_secs_f64() * 1e3);
        }
    }
    if let Some(file) = flag("--features") {
        let bytes = fs::read(&file).map_err(|e| named(&file, &e))?;
        println!("cos {:.6}", cosine(&feature, &first_row(&bytes, feature.len()).map_err(|e| named(&file, &e))?));
    }
    if let Some(mib) = peak_mib() {
        println!("rss_mib {mib:.1}");
    }
    Ok(())
}

/// The first `count` numbers of a float32 `.npy` file.
fn first_row(bytes: &[u8], count: usize) -> Result<Vec<f32>, String> {
    let header = bytes.get(..10).filter(|b| b.starts_with(b"\x93NUMPY\x01")).ok_or("not a .npy file, version 1")?;
    let start = 10 + usize::from(u16::from_le_bytes([header[8], header[9]]));
    let description = bytes.get(10..start).map(String::from_utf8_lossy).ok_or("the header is cut short")?;
    if !description.contains("'<f4'") || description.contains("'fortran_order': True") {
        return Err(format!("expected float32 in C order, found {description}"));
    }
    let numbers = bytes.get(start..start + 4 * count).ok_or(format!("fewer than {count} numbers"))?;
    Ok(numbers.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The most memory that this process held, in MiB.
fn peak_mib() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<f64>().ok()? / 1024.0)
}
