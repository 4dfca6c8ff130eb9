//! How far apart two computations of the same thing may be: the one table, for `verify` and for the tests.
//!
//! Integers (ids, positions) have tolerance 0 everywhere and are not listed.

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// The linear probe's feature `[D]` of an image: standardised, so of size 1.
    Features,
    /// The encoder's output `[1+N, D]` after the final norm.
    Latent,
    /// The logits `[T, K]` of the codes.
    Logits,
    /// The same of one step of generation: every token kept, most of them masked.
    Step,
}

impl Output {
    /// All outputs, in the order of tables.
    pub const ALL: [Output; 4] = [Output::Features, Output::Latent, Output::Logits, Output::Step];

    /// The name in tables and files.
    pub const fn name(self) -> &'static str {
        match self {
            Output::Features => "features",
            Output::Latent => "latent",
            Output::Logits => "logits",
            Output::Step => "step",
        }
    }
}

/// Against what, and in which arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Official golden vectors (tiny model, PyTorch, float32) ↔ any of our float32 implementations.
    Golden,
    /// Reference ↔ another float32 implementation (ONNX, Burn): same weights, other summation order.
    F32,
    /// Reference ↔ f32 pack in the runtime: portable polynomials in place of exact functions.
    F32Pack,
    /// Reference ↔ weights stored as f16.
    F16,
    /// Reference ↔ int8 weights and activations.
    Int8,
    /// Reference ↔ int4 weights, int8 activations.
    Int4,
    /// Reference ↔ int8 weights and activations whose ranges were fixed beforehand (QDQ).
    Int8Static,
}

/// The bounds of one comparison; all must hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Largest absolute difference of any element; infinite where the differences scale with the values.
    pub max_abs: f32,
    /// Smallest cosine of any row.
    pub min_cosine: f32,
    /// Largest length of the difference over the length of the reference, both as one vector. A cosine does not see a
    /// factor: outputs twice as large are 1 apart by this, outputs of 0 too.
    pub max_relative: f32,
    /// The same for any single row, so that one that is wrong does not hide among many.
    pub max_row_relative: f32,
}

/// The bounds for an output over a link.
pub const fn tolerance(link: Link, output: Output) -> Tolerance {
    const fn exact(max_abs: f32) -> Tolerance {
        Tolerance { max_abs, min_cosine: 0.999_999, max_relative: 1e-4, max_row_relative: 1e-3 }
    }
    const fn close(min_cosine: f32, max_relative: f32, max_row_relative: f32) -> Tolerance {
        Tolerance { max_abs: f32::INFINITY, min_cosine, max_relative, max_row_relative }
    }
    match (link, output) {
        // Recorded float32 and float64 runs differ by up to 1.1e-6 (activations) and 2e-6 (logits);
        // these are the bounds the vectors' authors advise.
        (Link::Golden, Output::Features | Output::Latent) => exact(2e-5),
        (Link::Golden, Output::Logits | Output::Step) => exact(5e-5),
        // Deeper and wider models than the golden ones; sums of up to 4096 terms in another order.
        (Link::F32 | Link::F32Pack, Output::Features | Output::Latent) => exact(2e-4),
        (Link::F32, Output::Logits | Output::Step) => exact(5e-4),
        // Logits of a trained model reach 40; the runtime's portable GELU and exponential are within 5e-6, which
        // comes to 8e-4 there.
        (Link::F32Pack, Output::Logits | Output::Step) => exact(2e-3),
        // From here on the differences scale with the model's values. In brackets what the bundled model measures, of all
        // rows and of the worst. Half precision: 11 bits a weight (logits 9e-4, 2e-3).
        (Link::F16, _) => close(0.999_9, 0.01, 0.02),
        // 8 bits a weight and an activation (0.006, 0.008; 0.015, 0.05; 0.04, 0.09). Features average over tokens, single
        // tokens and logits do not.
        (Link::Int8, Output::Features) => close(0.9995, 0.03, 0.05),
        (Link::Int8, Output::Latent) => close(0.99, 0.05, 0.2),
        (Link::Int8, Output::Logits | Output::Step) => close(0.99, 0.1, 0.2),
        // 4 bits a weight: about 9 % off each (0.07, 0.1; 0.11, 0.25; 0.25, 0.66). The demo model keeps its features
        // within 0.995; logits of single positions turn further.
        (Link::Int4, Output::Features) => close(0.99, 0.15, 0.2),
        (Link::Int4, Output::Latent) => close(0.9, 0.3, 0.5),
        (Link::Int4, Output::Logits | Output::Step) => close(0.7, 0.5, 0.9),
        // One range for all tokens of all images is coarser than one a token (0.007, 0.01; 0.02, 0.06; 0.05, 0.16).
        (Link::Int8Static, Output::Features) => close(0.995, 0.05, 0.12),
        (Link::Int8Static, Output::Latent | Output::Logits | Output::Step) => close(0.95, 0.12, 0.35),
    }
}

/// Which form of a tokenizer is held against its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenizerLink {
    /// A codebook of patches, whatever runs it.
    Patches,
    /// A ViT in f32: a pack's, ONNX.
    Vit,
    /// A ViT with int8 weights and activations.
    VitInt8,
}

/// The bounds of a tokenizer's comparison; all must hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenizerTolerance {
    /// Smallest share of tokens with the same id.
    pub same_ids: f32,
    /// Largest difference of a pixel, in steps of 1/255.
    pub pixel_max: u8,
    /// Largest mean difference of the pixels, in steps of 1/255.
    pub pixel_mean: f32,
}

/// The bounds for a form of a tokenizer.
pub const fn tokenizer_tolerance(link: TokenizerLink) -> TokenizerTolerance {
    match link {
        // Whole numbers.
        TokenizerLink::Patches => TokenizerTolerance { same_ids: 1.0, pixel_max: 0, pixel_mean: 0.0 },
        // Sums in another order: a vector between two codes may go to either, a pixel between two steps too.
        TokenizerLink::Vit => TokenizerTolerance { same_ids: 0.995, pixel_max: 1, pixel_mean: 0.02 },
        // Some 1 % of the ids of trained tokenizers differ.
        TokenizerLink::VitInt8 => TokenizerTolerance { same_ids: 0.9, pixel_max: 64, pixel_mean: 2.0 },
    }
}
