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
}

impl Output {
    /// All outputs, in the order of tables.
    pub const ALL: [Output; 3] = [Output::Features, Output::Latent, Output::Logits];

    /// The name in tables and files.
    pub const fn name(self) -> &'static str {
        match self {
            Output::Features => "features",
            Output::Latent => "latent",
            Output::Logits => "logits",
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

/// The bounds of one comparison; both must hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Largest absolute difference of any element; infinite where only the direction counts.
    pub max_abs: f32,
    /// Smallest cosine of any row.
    pub min_cosine: f32,
}

/// The bounds for an output over a link.
pub const fn tolerance(link: Link, output: Output) -> Tolerance {
    const fn t(max_abs: f32, min_cosine: f32) -> Tolerance {
        Tolerance { max_abs, min_cosine }
    }
    match (link, output) {
        // Recorded float32 and float64 runs differ by up to 1.1e-6 (activations) and 2e-6 (logits);
        // these are the bounds the vectors' authors advise.
        (Link::Golden, Output::Features | Output::Latent) => t(2e-5, 0.999_999),
        (Link::Golden, Output::Logits) => t(5e-5, 0.999_999),
        // Deeper and wider models than the golden ones; sums of up to 4096 terms in another order.
        (Link::F32 | Link::F32Pack, Output::Features | Output::Latent) => t(2e-4, 0.999_999),
        (Link::F32, Output::Logits) => t(5e-4, 0.999_999),
        // Logits of a trained model reach 40; the runtime's portable GELU and exponential are within 5e-6, which
        // comes to 8e-4 there.
        (Link::F32Pack, Output::Logits) => t(2e-3, 0.999_999),
        // Half precision: 11 bits a weight. The differences scale with the model's values, so cosines.
        (Link::F16, _) => t(f32::INFINITY, 0.999_9),
        // 8 bits a weight and an activation. Features average over tokens, single tokens and logits do not.
        (Link::Int8, Output::Features) => t(f32::INFINITY, 0.9995),
        (Link::Int8, Output::Latent) => t(f32::INFINITY, 0.99),
        (Link::Int8, Output::Logits) => t(f32::INFINITY, 0.99),
        // 4 bits a weight: about 9 % off each. The demo model keeps its features within 0.995; logits of single
        // positions turn further.
        (Link::Int4, Output::Features) => t(f32::INFINITY, 0.99),
        (Link::Int4, Output::Latent) => t(f32::INFINITY, 0.9),
        (Link::Int4, Output::Logits) => t(f32::INFINITY, 0.7),
        // One range for all tokens of all images is coarser than one a token.
        (Link::Int8Static, Output::Features) => t(f32::INFINITY, 0.995),
        (Link::Int8Static, Output::Latent | Output::Logits) => t(f32::INFINITY, 0.95),
    }
}
