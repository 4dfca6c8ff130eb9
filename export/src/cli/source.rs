//! `--checkpoint`, `--onnx` or `--pack`: which engine runs.

use std::{path::PathBuf, sync::Arc};

use crate::{
    checkpoint::Checkpoint,
    engine::Engine,
    error::Error,
    pack::{PackEngine, PackFile},
    reference::Reference,
    tract::Tract,
};

/// Exactly one of the three.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub struct Source {
    /// Run a checkpoint folder with the float reference.
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,
    /// Run an export folder (encoder.onnx, decoder.onnx) in tract.
    #[arg(long, value_name = "DIR")]
    onnx: Option<PathBuf>,
    /// Run a pack with the runtime.
    #[arg(long, value_name = "FILE")]
    pack: Option<PathBuf>,
}

/// The engine that was asked for.
pub enum Opened<'e> {
    /// Reference or tract.
    Host(&'e dyn Engine),
    /// The runtime.
    Pack(&'e PackEngine<'e>),
}

impl<'e> Opened<'e> {
    /// As any engine.
    pub fn engine(&self) -> &'e dyn Engine {
        match self {
            Opened::Host(engine) => *engine,
            Opened::Pack(engine) => *engine,
        }
    }
}

impl Source {
    /// Opens the engine and hands it to `use_it`.
    pub fn with<R>(&self, use_it: impl FnOnce(Opened) -> anyhow::Result<R>) -> anyhow::Result<R> {
        if let Some(dir) = &self.checkpoint {
            let checkpoint = Arc::new(Checkpoint::open(dir)?);
            return use_it(Opened::Host(&Reference::new(checkpoint)));
        }
        if let Some(dir) = &self.onnx {
            return use_it(Opened::Host(&Tract::open(dir)?));
        }
        let path = self.pack.as_deref().ok_or_else(|| {
            Error::value("engine", "one of --checkpoint, --onnx and --pack", "none")
            // clap asks for one
        })?;
        let file = PackFile::open(path)?;
        use_it(Opened::Pack(&PackEngine::new(file.pack(path)?)))
    }
}
