//! `sorcen bench`: speed.

use clap::Subcommand;

use crate::bench::{train_steps, BenchOptions};
use crate::config::ModelChoice;
use crate::device::Device;
use crate::model::Precision;
use crate::step::Method;

/// Measure speed.
#[derive(Subcommand)]
pub enum Args {
    Train(TrainArgs),
}

/// Time training steps on random tokens: each phase, images a second, and how much of a plain matrix product's
/// speed is reached.
///
/// Operations are counted as the official method needs them (208.9 GFLOP an image for vit_b). The line `step` is
/// what training takes; the phases are timed in a second pass that waits for the device after each, so on a GPU
/// they add up to more.
///
/// Of several replicas (--devices), images a second are those of all, and the phases are the first replica's. Where
/// it exchanges numbers with the others (in teacher and optimizer; with mage in optimizer alone), it waits for the
/// slowest of them.
///
/// Example, the paper's protocol on one GPU: sorcen bench train --device cuda --precision bf16
#[derive(clap::Args)]
#[command(rename_all = "snake_case")]
pub struct TrainArgs {
    /// vit_b, vit_l, small, tiny, micro, or a FILE.json as in a checkpoint.
    #[arg(long, default_value = "vit_b")]
    model: ModelChoice,
    /// Side of the token grid, for the models without official sizes.
    #[arg(long, default_value_t = 16)]
    grid: usize,
    /// Codes, for the same.
    #[arg(long, default_value_t = 1024)]
    codes: usize,
    /// sorcen, or mage.
    #[arg(long, value_enum, default_value = "sorcen")]
    method: Method,
    /// Images of a step on each device, 2 to 65536.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..=65_536))]
    batch_size: u32,
    /// Devices to train on together, 1 to 1024, as of `pretrain`: with cuda, the first so many GPUs of this machine;
    /// with cpu, threads that share its cores.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    devices: u16,
    /// What matrix products take: f32; tf32, which CUDA's tensor cores make of f32; or bf16, with everything else, and
    /// the weights, in f32.
    #[arg(long, value_enum, default_value = "f32")]
    precision: Precision,
    /// Dropout rate.
    #[arg(long, default_value_t = 0.1)]
    dropout: f32,
    /// Steps before the clock starts.
    #[arg(long, default_value_t = 2)]
    warmup: usize,
    /// Steps that are timed.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Where to compute: cpu, or cuda or wgpu in a build with that feature.
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
///
/// # Errors
/// A model that is not valid, or options out of range.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let Args::Train(args) = args;
    let model = args.model.config(args.grid, args.codes)?;
    if let Err(error) = model.validate() {
        usage_unless!(false, "--model, --grid, --codes: expected a valid model, found {error}");
    }
    usage_unless!((0.0..1.0).contains(&args.dropout), "--dropout: expected 0 to below 1, found {}", args.dropout);
    let devices = usize::from(args.devices);
    if let Err(message) = args.precision.expect_on(args.device).and_then(|()| args.device.expect(devices)) {
        usage_unless!(false, "{message}");
    }
    let report = train_steps(&BenchOptions {
        model,
        method: args.method,
        batch_size: args.batch_size as usize,
        devices,
        precision: args.precision,
        dropout: args.dropout,
        warmup: args.warmup,
        steps: args.steps as usize,
        device: args.device,
    });
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(());
    }
    if devices > 1 {
        println!(
            "{devices} replicas of {} images a step; phases of the first, which waits for the others",
            args.batch_size
        );
    }
    let whole: f64 = report.phase_ms.iter().map(|(_, ms)| ms).sum();
    for (name, ms) in &report.phase_ms {
        println!("{name:<10} {ms:>10.1} ms {:>5.1} %", 100.0 * ms / whole);
    }
    println!("{:<10} {:>10.1} ms   {:.2} images/s", "step", report.step_ms, report.img_per_s);
    println!(
        "{:.1} GFLOP an image: {:.1} GFLOP/s, {:.0} % of a matrix product's {:.1} GFLOP/s{}",
        report.gflop_per_img,
        report.gflop_per_s,
        100.0 * report.share_of_matmul,
        report.matmul_gflop_per_s,
        if devices > 1 && args.device.count().is_some() { " on each device" } else { "" }
    );
    Ok(())
}
