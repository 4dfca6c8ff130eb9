//! `--checkpoint`, `--onnx` or `--pack`: which engine runs.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    checkpoint::Checkpoint,
    engine::Engine,
    error::Error,
    fingerprint::Fingerprint,
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
pub struct Opened<'e> {
    engine: Which<'e>,
    /// The tokenizer whose codes its model has learned.
    pub codes: Fingerprint,
}

#[derive(Clone, Copy)]
enum Which<'e> {
    /// Reference or tract.
    Host(&'e dyn Engine),
    /// The runtime.
    Pack(&'e PackEngine<'e>, &'e Path),
}

impl<'e> Opened<'e> {
    /// As any engine.
    pub fn engine(&self) -> &'e dyn Engine {
        match self.engine {
            Which::Host(engine) => engine,
            Which::Pack(engine, _) => engine,
        }
    }

    /// The runtime with a pack, and the pack's file, if it is that.
    pub fn pack(&self) -> Option<(&'e PackEngine<'e>, &'e Path)> {
        match self.engine {
            Which::Host(_) => None,
            Which::Pack(engine, path) => Some((engine, path)),
        }
    }
}

impl Source {
    /// Opens the engine and hands it to `use_it`.
    pub fn with<R>(&self, use_it: impl FnOnce(Opened) -> anyhow::Result<R>) -> anyhow::Result<R> {
        if let Some(dir) = &self.checkpoint {
            let checkpoint = Arc::new(Checkpoint::open(dir)?);
            let codes = Fingerprint::of_checkpoint(dir, &checkpoint.config)?;
            return use_it(Opened { engine: Which::Host(&Reference::new(checkpoint)), codes });
        }
        if let Some(dir) = &self.onnx {
            let tract = Tract::open(dir)?;
            let card = tract.card().as_object().cloned().unwrap_or_default();
            return use_it(Opened { engine: Which::Host(&tract), codes: Fingerprint::of_card(dir, &card) });
        }
        let path = self.pack.as_deref().ok_or_else(|| {
            Error::value("engine", "one of --checkpoint, --onnx and --pack", "none")
            // clap asks for one
        })?;
        let file = PackFile::open(path)?;
        let pack = file.pack(path)?;
        let codes = Fingerprint::of_pack(path, &pack);
        use_it(Opened { engine: Which::Pack(&PackEngine::new(pack), path), codes })
    }
}
