//! Matrix products with `f32` sums that stay `f32`; and of `f32` factors that stay `f32`, too.
//!
//! What Burn calls a product of `f32` is one of TF32 wherever the device has it: its kernels for tensor cores round factors
//! to 11 bits of mantissa (cubek's `adjust_dtypes`), and autotune prefers them for all but small matrices. Those below
//! have no tensor cores in them.

use burn::tensor::DType;
use burn_cubecl::cubecl::tune::{local_tuner, LocalTuner, Tunable, TunableSet, TuneGroup};
use burn_cubecl::kernel::matmul::{init_matmul_output, matmul, MatmulStrategy};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, CubeTuneId};
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::launch::{launch_ref, MatmulAutotuneKey, MatmulGlobalScale, Strategy};
use cubek::matmul::routines::double_unit::DoubleUnitSelectionArgs;
use cubek::matmul::routines::simple_unit::SimpleUnitSelectionArgs;
use cubek::matmul::routines::{BlueprintStrategy::Inferred, TileSizeSelection};
use cubek::std::InputBinding;

use crate::model::Precision;

type Factors<R> = (CubeTensor<R>, CubeTensor<R>, CubeTensor<R>);

/// `lhs · rhs`, of factors in the type that `precision` stores them in; `f32`.
pub fn product<R: CubeRuntime>(lhs: CubeTensor<R>, rhs: CubeTensor<R>, precision: Precision) -> CubeTensor<R> {
    match precision {
        // Elsewhere no product of `f32` is of less.
        Precision::F32 if R::name(&lhs.client) == "cuda" => exact(lhs, rhs),
        _ => matmul(lhs, rhs, None, MatmulStrategy::default(), DType::F32)
            .unwrap_or_else(|_| unreachable!("autotune has a kernel for whatever comes")),
    }
}

/// A product of `f32`, by the fastest kernel that multiplies such numbers.
pub(super) fn exact<R: CubeRuntime>(lhs: CubeTensor<R>, rhs: CubeTensor<R>) -> CubeTensor<R> {
    static TUNER: LocalTuner<MatmulAutotuneKey, CubeTuneId> = local_tuner!();
    let output = init_matmul_output(&lhs, &rhs, DType::F32);
    let (client, id) = (lhs.client.clone(), CubeTuneId::new(&lhs.client, &lhs.device));
    let kernels = TUNER.init(kernels::<R>);
    TUNER.execute(&id, &client, kernels, (lhs, rhs, output.clone()));
    output
}

/// The kernels to choose from. The first always works; it is not tried where it would take long.
fn kernels<R: CubeRuntime>() -> TunableSet<MatmulAutotuneKey, Factors<R>, ()> {
    let all = TuneGroup::<MatmulAutotuneKey>::new("exact", |_| 1);
    let last = |key: &MatmulAutotuneKey| match key.analysis.scale_global {
        MatmulGlobalScale::Small => 1,
        _ => 0,
    };
    let tunable =
        |strategy: Strategy| Tunable::new(&strategy.to_string(), move |factors: Factors<R>| launch(&strategy, factors));
    let others = [TileSizeSelection::MaxTileSize, TileSizeSelection::MinTileSize]
        .into_iter()
        .flat_map(|tile_size| {
            [
                Strategy::SimpleUnit(Inferred(SimpleUnitSelectionArgs { tile_size })),
                Strategy::DoubleUnit(Inferred(DoubleUnitSelectionArgs { tile_size })),
            ]
        })
        .chain([
            Strategy::GemvPlaneParallel(Inferred(Default::default())),
            Strategy::GemvUnitPerpendicular(Inferred(Default::default())),
        ]);
    let first = tunable(Strategy::Naive).group(&all, last);
    let set = TunableSet::new(key::<R>, trial::<R>);
    others.fold(set.with(first), |set, strategy| set.with(tunable(strategy).group(&all, |_| 1)))
}

fn key<R: CubeRuntime>((lhs, rhs, out): &Factors<R>) -> MatmulAutotuneKey {
    MatmulAutotuneKey::generate(
        &lhs.client,
        lhs.meta.shape(),
        rhs.meta.shape(),
        lhs.meta.strides(),
        rhs.meta.strides(),
        lhs.dtype.into(),
        rhs.dtype.into(),
        out.dtype.into(),
        None,
        None,
    )
}

/// What a kernel is tried on: the result goes to a tensor of its own.
fn trial<R: CubeRuntime>(_: &MatmulAutotuneKey, (lhs, rhs, out): &Factors<R>) -> Factors<R> {
    (lhs.clone(), rhs.clone(), out.copy())
}

fn launch<R: CubeRuntime>(strategy: &Strategy, (lhs, rhs, out): Factors<R>) -> Result<(), String> {
    let client = out.client.clone();
    let mut types = MatmulElems::from_globals(&MatmulGlobalElems {
        lhs: lhs.dtype.into(),
        rhs: rhs.dtype.into(),
        out: out.dtype.into(),
    });
    let [lhs, rhs] = [lhs, rhs].map(|factor| {
        let dtype = factor.dtype;
        InputBinding::new(factor.binding(), dtype.into())
    });
    launch_ref(strategy, &client, lhs, rhs, out.binding(), &mut types).map_err(|error| format!("{error:?}"))
}
