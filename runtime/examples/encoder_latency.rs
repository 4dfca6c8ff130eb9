//! How long the encoder takes on this machine, and what it computes.
//!
//! ```text
//! cargo run --release -p sorcen-runtime --features std --example encoder_latency -- \
//!     --pack model.srcn --tokens tokens.u16 --runs 20
//! ```
//! `--tokens`: little-endian u16 ids of one image, class token first. Prints milliseconds per run,
//! one a line. `--features F.npy` writes the contrastive feature (final norm, then patch mean).

use std::{env, error::Error, fs, process::ExitCode, time::Instant};

use sorcen_runtime::{
    scratch::{OwnedScratch, Plan},
    Model, Pack,
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
    let pack_bytes = fs::read(path("--pack")?)?;
    let token_bytes = fs::read(path("--tokens")?)?;
    let runs: usize = flag("--runs").map_or(Ok(10), |n| n.parse())?;

    let model = Model::new(Pack::new(&pack_bytes)?);
    let config = *model.config();
    let ids: Vec<u16> = token_bytes.chunks_exact(2).skip(1).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
    let mut scratch = OwnedScratch::new(&config, Plan::Features)?;
    let mut feature = vec![0.0; config.embed_dim];
    for _ in 0..runs {
        let start = Instant::now();
        model.encode(&ids, None, &mut scratch.get()?)?.into_latent().contrastive_feature(&mut feature)?;
        println!("{:.3}", start.elapsed().as_secs_f64() * 1e3);
    }
    if let Some(file) = flag("--features") {
        fs::write(file, npy(&feature))?;
    }
    Ok(())
}

/// A one-dimensional float32 `.npy` file.
fn npy(values: &[f32]) -> Vec<u8> {
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({},), }}", values.len());
    let header = format!("{header:<117}\n"); // magic, version and length take 10 bytes: 128 in all
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.bytes());
    file.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    file
}
