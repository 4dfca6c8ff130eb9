//! Does a pack run in so much RAM and flash? Answered before anyone flashes anything.

use std::str::FromStr;

use serde::Serialize;
use sorcen_runtime::{
    scratch::{Plan, Scratch},
    ModelConfig,
};

/// What a device has for a model, in bytes. On the command line `RAM/FLASH`, as in `512K/2M`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Budget {
    /// Working memory.
    pub ram: u64,
    /// Where the pack lies.
    pub flash: u64,
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size = |text: &str| -> Option<u64> {
            let (number, unit) = match text.trim().split_at_checked(text.trim().len().checked_sub(1)?)? {
                (number, "K" | "k") => (number, 1 << 10),
                (number, "M") => (number, 1 << 20),
                (number, "G") => (number, 1 << 30),
                _ => (text.trim(), 1),
            };
            number.parse::<u64>().ok()?.checked_mul(unit)
        };
        let sizes = text.split_once('/').and_then(|(ram, flash)| Some(Self { ram: size(ram)?, flash: size(flash)? }));
        sizes.ok_or_else(|| "expected RAM/FLASH in bytes, K, M or G (of 1024), as in 512K/2M".into())
    }
}

/// One use of a pack on a device.
#[derive(Clone, Debug, Serialize)]
pub struct Fit {
    /// `features` or `generate`.
    pub plan: &'static str,
    /// Bytes of scratch, token ids (2 each) and output (features: 4 a number); see [`Fit::COUNTED`].
    pub ram_needed: u64,
    /// Bytes of the pack.
    pub flash_needed: u64,
    /// What there is.
    pub budget: Budget,
    /// Whether both suffice.
    pub fits: bool,
}

impl Fit {
    /// What the numbers are of and what they leave out, as measured in `firmware-examples/README.md`.
    pub const COUNTED: &str =
        "RAM: the memory above, token ids and output. On top: code (70 to 150 kB of flash) and stack \
                               (about 4 kB of RAM)";

    /// For every use of a pack of `bytes`.
    pub fn of(config: &ModelConfig, bytes: u64, has_decoder: bool, budget: Budget) -> Vec<Self> {
        let fit = |(plan, name, output): (Plan, &'static str, usize)| {
            let ram_needed = (Scratch::bytes(config, plan) + 2 * config.tokens() + output) as u64;
            let fits = ram_needed <= budget.ram && bytes <= budget.flash;
            Self { plan: name, ram_needed, flash_needed: bytes, budget, fits }
        };
        let plans = [(Plan::Features, "features", 4 * config.embed_dim), (Plan::Generate, "generate", 0)];
        plans.into_iter().take(if has_decoder { 2 } else { 1 }).map(fit).collect()
    }
}

impl std::fmt::Display for Fit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let part = |name: &str, needed: u64, there: u64| match there.checked_sub(needed) {
            Some(left) => format!("{name} {needed} of {there} bytes ({left} left)"),
            None => format!("{name} {needed} of {there} bytes ({} too many)", needed - there),
        };
        let (ram, flash) = (self.budget.ram, self.budget.flash);
        let answer = if self.fits { "fits" } else { "DOES NOT FIT" };
        let (ram, flash) = (part("RAM", self.ram_needed, ram), part("flash", self.flash_needed, flash));
        write!(f, "{:<11} {answer}: {ram}, {flash}", self.plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_read() {
        assert_eq!("512K/2M".parse(), Ok(Budget { ram: 512 << 10, flash: 2 << 20 }));
        assert_eq!(" 100 / 1G".parse(), Ok(Budget { ram: 100, flash: 1 << 30 }));
        for wrong in ["512K", "K/2M", "1/2/3", "-1/2", "", "/", "99999999999G/1"] {
            assert!(wrong.parse::<Budget>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn one_byte_decides() {
        let config = ModelConfig::micro(8, 512);
        let needed = Fit::of(&config, 500, true, Budget { ram: 0, flash: 0 })[1].ram_needed;
        for (ram, flash, fits) in [(needed, 500, true), (needed - 1, 500, false), (needed, 499, false)] {
            assert_eq!(Fit::of(&config, 500, true, Budget { ram, flash })[1].fits, fits);
        }
        let text = Fit::of(&config, 500, false, Budget { ram: 1 << 20, flash: 400 })[0].to_string();
        assert!(text.contains("DOES NOT FIT") && text.contains("flash 500 of 400 bytes (100 too many)"), "{text}");
    }
}
