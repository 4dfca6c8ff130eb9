//! How often the plain loops ran where a kernel's own might have: nothing else tells, since all give the same bits.

extern crate std;
use core::cell::Cell;

std::thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

/// One of the portable products runs, on this thread.
pub(super) fn count() {
    CALLS.set(CALLS.get() + 1);
}

/// How many portable products `work` runs on this thread.
pub(crate) fn counted(work: impl FnOnce()) -> usize {
    let before = CALLS.get();
    work();
    CALLS.get() - before
}

#[cfg(feature = "alloc")]
mod tests {
    use super::{counted, std};
    use crate::{
        generate::{generate, Options},
        kernels::Kernels,
        pack::{OwnedPack, TensorData, Writer},
        quant::{int4, quantise_matrix, Layout},
        rng::{Rng, Stream},
        sampler::Seeded,
        scratch::{Plan, Scratch},
        Model, ModelConfig, Pack,
    };
    use std::{vec, vec::Vec};

    const CONFIG: ModelConfig = ModelConfig::micro(4, 30);

    /// Numbers quantised in rows: `write` gets them as int4 or int8.
    fn quantised<E>(
        (rows, cols): (usize, usize),
        seed: u64,
        is_int4: bool,
        write: impl FnOnce(TensorData<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let rng = Rng::new(13, Stream::Init, seed);
        let numbers: Vec<f32> = (0..rows * cols).map(|i| rng.normal(i as u64) as f32 * 0.1).collect();
        let mut scales = vec![0.0; rows];
        if is_int4 {
            let mut packed = vec![0; int4::bytes(rows, cols)];
            int4::quantise_matrix(&numbers, (rows, cols), &mut packed, &mut scales).unwrap();
            return write(TensorData::Int4 { packed: &packed, scales: &scales, order: int4::Order::Rows });
        }
        let (mut weights, layout) = (vec![0; rows * cols], Layout::ROW_MAJOR);
        quantise_matrix(&numbers, (rows, cols), layout, &mut weights, &mut scales).unwrap();
        write(TensorData::Int8 { weights: &weights, scales: &scales, layout })
    }

    /// A pack in rows, as a file may bring it.
    fn pack(is_int4: bool) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), &CONFIG).unwrap();
        while let Some(param) = writer.next_param() {
            let shape = param.shape(&CONFIG);
            match param.is_matrix() {
                true => {
                    let seed = param.index(&CONFIG) as u64;
                    quantised(shape.matrix(), seed, is_int4, |data| writer.tensor(data)).unwrap();
                }
                false => writer.tensor(TensorData::F32(&vec![0.5; shape.elements()])).unwrap(),
            }
        }
        writer.finish().unwrap().1
    }

    /// Features, class token and two steps of generation.
    fn run(pack: &Pack<'_>, kernels: Kernels, bytes: usize) -> usize {
        let model = Model::with_kernels(*pack, kernels);
        let mut memory = vec![0; bytes];
        let mut scratch = Scratch::new(&mut memory, &CONFIG, Plan::Generate).unwrap();
        let (mut ids, mut feature) = ([CONFIG.mask_token_id as u16; CONFIG.tokens()], [0.0; CONFIG.embed_dim]);
        counted(|| {
            model.features(&ids, &mut scratch, &mut feature).unwrap();
            model.class_token_feature(&ids, &mut scratch, &mut feature).unwrap();
            let options = Options { steps: 2, ..Options::default() };
            generate(&model, &mut ids, &options, &mut Seeded(1), &mut scratch, |_| {}).unwrap();
        })
    }

    /// Weights in the order that a kernel wants never reach the plain loops; in another they do, which shows that the
    /// counter counts.
    #[test]
    fn no_kernel_falls_back_to_plain_loops() {
        let without_int4 = ["sse2", "simd128"]; // as the README's table says
        let (least, fast) = (Scratch::bytes(&CONFIG, Plan::Generate), Scratch::fast_bytes(&CONFIG, Plan::Generate));
        for (is_int4, k) in [false, true].into_iter().flat_map(|int4| Kernels::available().map(move |k| (int4, k))) {
            let plain = pack(is_int4);
            let (rows, what) = (Pack::new(&plain).unwrap(), if is_int4 { "int4" } else { "int8" });
            let arranged = OwnedPack::arrange(&rows, k.layout()).unwrap();
            let falls_back = k.name() == "scalar" || is_int4 && without_int4.contains(&k.name());
            for bytes in [least, fast] {
                let calls = run(&arranged.pack().unwrap(), k, bytes);
                assert_eq!(calls > 0, falls_back, "{}, {what}: {calls} plain products", k.name());
                if k.layout() != Layout::ROW_MAJOR {
                    assert!(run(&rows, k, bytes) > 0, "{}, {what} in rows", k.name());
                }
            }
        }
    }
}
