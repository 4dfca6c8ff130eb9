//! Whether what is put together goes together. Codes mean pictures to one tokenizer only, a head knows the features of
//! one checkpoint only; so each file says by a fingerprint what it was made with, and whoever takes two of them compares.

use std::{io::Write as _, path::Path};

use sha2::{Digest, Sha256};
use sorcen_runtime::{ModelConfig, Pack};

use crate::{
    card::{self, Card},
    checkpoint::WEIGHTS_FILE,
    dataset,
    error::Error,
    file,
    tensors::TensorFile,
    tokenizer::{AnyTokenizer, PatchTokenizer},
};

/// The entry of a pack's card, and of the metadata of a file of ids, with the fingerprint of a tokenizer.
pub const TOKENIZER: &str = "tokenizer";
/// The entry of a card, and of the metadata of a head's file, with the SHA-256 of a checkpoint's weights.
pub const CHECKPOINT: &str = "checkpoint_sha256";

/// What may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What made the codes.
    Tokenizer,
    /// Whose features they are.
    Checkpoint,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Tokenizer => "tokenizer",
            Self::Checkpoint => "checkpoint",
        }
    }

    /// The flag that takes another one.
    pub const fn flag(self) -> &'static str {
        match self {
            Self::Tokenizer => "--allow_other_tokenizer",
            Self::Checkpoint => "--allow_other_checkpoint",
        }
    }
}

/// What something was made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// What to call the thing: its file or folder.
    of: String,
    /// Of the tokenizer or checkpoint, where the thing says.
    value: Option<String>,
}

impl Fingerprint {
    /// What the thing called `of` says.
    pub fn new(of: impl ToString, value: Option<String>) -> Self {
        Self { of: of.to_string(), value }
    }

    /// The tokenizer in a file.
    pub fn of_tokenizer(path: &Path, tokenizer: &AnyTokenizer) -> Self {
        Self::new(path.display(), Some(tokenizer.fingerprint()))
    }

    /// The tokenizer whose codes a checkpoint has learned; `config` is its own.
    ///
    /// # Errors
    /// As [`card::of_run`].
    pub fn of_checkpoint(dir: &Path, config: &ModelConfig) -> Result<Self, Error> {
        Ok(Self::of_card(dir, &card::of_run(dir, config)?))
    }

    /// The tokenizer whose codes a pack's model has learned.
    pub fn of_pack(path: &Path, pack: &Pack) -> Self {
        Self::of_card(path, &pack_card(pack))
    }

    /// The tokenizer whose codes the model of a card has learned; `path` is what the card is about.
    pub fn of_card(path: &Path, card: &Card) -> Self {
        let value = card.get("data").and_then(|data| data["tokenizer"].as_str());
        Self::new(path.display(), value.map(str::to_owned))
    }

    /// The tokenizer in a pack.
    pub fn of_tokenizer_in(path: &Path, pack: &Pack) -> Self {
        let noted = pack_card(pack).get(TOKENIZER).and_then(|value| value.as_str().map(str::to_owned));
        let patches = || {
            let patches = pack.tokenizer().filter(|_| pack.vit().is_none())?;
            let tokenizer = PatchTokenizer::new(patches.codebook().to_vec(), patches.codes(), patches.patch()).ok()?;
            Some(tokenizer.fingerprint())
        };
        Self::new(format_args!("the tokenizer in {}", path.display()), noted.or_else(patches))
    }

    /// The tokenizer that made a token dataset.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Json`], naming the file.
    pub fn of_dataset(dir: &Path) -> Result<Self, Error> {
        Ok(Self::new(dir.display(), dataset::tokenizer(dir)?))
    }

    /// The tokenizer whose codes the ids in a file are.
    ///
    /// # Errors
    /// As [`TensorFile::metadata`].
    pub fn of_ids(path: &Path, file: &TensorFile) -> Result<Self, Error> {
        Ok(Self::new(path.display(), file.metadata()?.remove(TOKENIZER)))
    }

    /// What is said, if anything is.
    pub fn value(&self) -> Option<&str> {
        self.value.as_deref()
    }

    /// That `found` was made with what this was. Where one of the two does not say, that is noted on standard error, and
    /// where `allow` lets them differ, that they do.
    ///
    /// # Errors
    /// [`Error::Value`] with both fingerprints and the flag that takes them all the same.
    pub fn expect(&self, found: &Self, kind: Kind, allow: bool) -> Result<(), Error> {
        let (name, flag) = (kind.name(), kind.flag());
        match (&self.value, &found.value) {
            (Some(expected), Some(value)) if origin(expected) == origin(value) => Ok(()),
            (Some(expected), Some(value)) if allow => {
                note(&format!("{}: another {name} ({value}) than that of {} ({expected})", found.of, self.of));
                Ok(())
            }
            (Some(expected), Some(value)) => {
                let expected = format!("that of {}, `{expected}`", self.of);
                let found_value = format!("`{value}` ({flag} takes it all the same)");
                Err(Error::value(format!("{}: {name}", found.of), expected, found_value))
            }
            (expected, _) => {
                let (silent, other) = if expected.is_none() { (self, found) } else { (found, self) };
                let (silent, other) = (&silent.of, &other.of);
                note(&format!(
                    "{silent} does not say which {name} it was made with: whether it is that of {other} cannot be checked"
                ));
                Ok(())
            }
        }
    }
}

fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "note: {text}"); // no reason to stop where nobody can be told
}

/// The tokenizer that a fingerprint is about: one in a pack, rounded to int8, is that `of` the file it was made of.
fn origin(fingerprint: &str) -> &str {
    fingerprint.rsplit_once(" of ").map_or(fingerprint, |(_, origin)| origin)
}

/// SHA-256 of the weights of a checkpoint folder, hexadecimal.
///
/// # Errors
/// [`Error::Io`], naming the file.
pub fn weights(dir: &Path) -> Result<String, Error> {
    let file = file::read(&dir.join(WEIGHTS_FILE))?;
    Ok(Sha256::digest(&*file).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// SHA-256 of the weights of the checkpoint that a pack was made from, where it says.
pub fn weights_of(pack: &Pack) -> Option<String> {
    pack_card(pack).get(CHECKPOINT).and_then(|value| value.as_str().map(str::to_owned))
}

fn pack_card(pack: &Pack) -> Card {
    pack.card().and_then(|card| serde_json::from_str(card).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_an_error_that_says_the_way_out() {
        let of =
            |name: &str, value: &str| Fingerprint::new(name, Some(value).filter(|v| !v.is_empty()).map(str::to_owned));
        let check = |one: &str, other: &str, allow| of("a", one).expect(&of("b", other), Kind::Tokenizer, allow);
        check("vit 1", "vit 1", false).unwrap();
        check("vit 1", "packed vit 7 of vit 1", false).unwrap();
        check("vit 1", "", false).unwrap();
        check("", "vit 1", false).unwrap();
        check("vit 1", "vit 2", true).unwrap();
        let said = check("vit 1", "packed vit 1 of vit 2", false).unwrap_err().to_string();
        let expected = "b: tokenizer: expected that of a, `vit 1`, found `packed vit 1 of vit 2` \
                        (--allow_other_tokenizer takes it all the same)";
        assert_eq!(said, expected);
        let said = of("a", "1").expect(&of("b", "2"), Kind::Checkpoint, false).unwrap_err().to_string();
        assert!(said.starts_with("b: checkpoint: ") && said.contains("--allow_other_checkpoint"), "{said}");
    }
}
