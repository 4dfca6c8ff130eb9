//! What is compared: methods, ablations, and features that need no training.

use clap::ValueEnum;

use crate::config::PretrainOptions;
use crate::step::Method;

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Variant {
    /// The method with its published constants: λ 0.1, K 15, JSM
    Sorcen,
    /// Reconstruction alone, on the same masks
    Mage,
    /// Sorcen with contrast weight λ = 0.01
    #[value(name = "lambda_0.01")]
    LambdaLow,
    /// Sorcen with λ = 1
    #[value(name = "lambda_1")]
    LambdaHigh,
    /// Sorcen with echoes from K = 5 candidates
    #[value(name = "topk_5")]
    TopkFew,
    /// Sorcen with K = 30
    #[value(name = "topk_30")]
    TopkMany,
    /// Sorcen whose teacher sees the whole echo: no jittered spatial masking
    #[value(name = "no_jsm")]
    NoJsm,
    /// The same encoder before training
    Untrained,
    /// The pictures' own pixels (with --bank_pictures and --split_pictures)
    Pictures,
    /// The pixels that the tokens stand for (with --tokenizer)
    Pixels,
    /// The tokens themselves, by how many are equal: k-NN alone
    Tokens,
}

impl Variant {
    /// Its name on the command line and in files.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_string())
    }

    /// Its name in the table.
    pub fn title(self) -> &'static str {
        match self {
            Self::Sorcen => "Sorcen (λ 0.1, K 15, JSM)",
            Self::Mage => "MAGE",
            Self::LambdaLow => "λ 0.01",
            Self::LambdaHigh => "λ 1",
            Self::TopkFew => "K 5",
            Self::TopkMany => "K 30",
            Self::NoJsm => "no JSM",
            Self::Untrained => "untrained encoder",
            Self::Pictures => "raw pixels",
            Self::Pixels => "pixels, decoded from the tokens",
            Self::Tokens => "tokens",
        }
    }

    /// Whether an encoder is pretrained for it.
    pub fn is_trained(self) -> bool {
        !matches!(self, Self::Untrained | Self::Pictures | Self::Pixels | Self::Tokens)
    }

    /// Whether it is Sorcen with one constant changed.
    pub fn is_ablation(self) -> bool {
        self.is_trained() && !matches!(self, Self::Sorcen | Self::Mage)
    }

    /// Changes what is its own in the options of a run.
    pub fn apply(self, options: &mut PretrainOptions) {
        let losses = &mut options.losses;
        match self {
            Self::Mage => losses.method = Method::Mage,
            Self::LambdaLow => losses.lambda = 0.01,
            Self::LambdaHigh => losses.lambda = 1.0,
            Self::TopkFew => losses.echo_topk = 5,
            Self::TopkMany => losses.echo_topk = 30,
            Self::NoJsm => options.jsm = false,
            Self::Sorcen | Self::Untrained | Self::Pictures | Self::Pixels | Self::Tokens => {}
        }
    }
}
