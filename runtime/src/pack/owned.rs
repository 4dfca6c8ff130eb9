//! [`OwnedPack`]: a pack in memory of our own, its weights in the order that a CPU likes best.

use super::{Data, Matrix, Pack, TensorData, Writer};
use crate::{
    error::Error,
    owned::OwnedBytes,
    quant::{
        int4::{self, Order},
        Layout,
    },
    schema,
};
use alloc::vec;

/// A pack that owns its bytes, aligned for wide loads.
///
/// ```no_run
/// use sorcen_runtime::{pack::OwnedPack, Kernels, Model, Pack};
/// # fn run(file: &[u8]) -> Result<(), sorcen_runtime::Error> {
/// let arranged = OwnedPack::arrange(&Pack::new(file)?, Kernels::detect().layout())?;
/// let model = Model::new(arranged.pack()?);
/// # Ok(()) }
/// ```
pub struct OwnedPack(OwnedBytes);

impl OwnedPack {
    /// A copy of a pack whose int8 weights are in `layout`, and its int4 weights in the order that goes with it, those of
    /// a ViT tokenizer too; everything else stays as it is.
    ///
    /// # Errors
    /// [`Error::Option`] for an invalid layout.
    pub fn arrange(pack: &Pack<'_>, layout: Layout) -> Result<Self, Error> {
        if !layout.is_valid() {
            return Err(Error::Option { name: "layout", expected: "nr 1 to 64, kt 0 or a power of two up to 64" });
        }
        let config = pack.config();
        let mut writer = Writer::new(OwnedBytes::default(), config).map_err(error)?;
        for param in schema::params(config) {
            match pack.precision(param) {
                Some(_) => arranged(pack.matrix(param), pack.bytes_of(param), layout, |data| writer.tensor(data)),
                None => writer.tensor(TensorData::Absent),
            }
            .map_err(error)?;
        }
        if let Some(tokenizer) = pack.tokenizer() {
            writer.tokenizer(tokenizer.codebook(), tokenizer.codes(), tokenizer.patch()).map_err(error)?;
        }
        if let Some(vit) = pack.vit() {
            writer.vit(&vit.arranged(layout)?).map_err(error)?;
        }
        if let Some(card) = pack.card() {
            writer.card(card).map_err(error)?;
        }
        if let Some(classifier) = pack.classifier() {
            writer.classifier(&classifier).map_err(error)?;
        }
        if let Some(test) = pack.self_test() {
            writer.self_test(&test).map_err(error)?;
        }
        let (_, bytes) = writer.finish().map_err(error)?;
        Ok(Self(bytes))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The pack, checked.
    ///
    /// # Errors
    /// As [`Pack::new`].
    pub fn pack(&self) -> Result<Pack<'_>, Error> {
        Pack::new(self.bytes())
    }
}

/// Hands a tensor on with its integers in `layout`, or in the order that goes with it; `bytes` are its own in the pack.
pub(crate) fn arranged<E: From<Error>>(
    Matrix { rows, cols, data }: Matrix<'_>,
    bytes: &[u8],
    layout: Layout,
    write: impl FnOnce(TensorData<'_>) -> Result<(), E>,
) -> Result<(), E> {
    match data {
        Data::F32(x) => write(TensorData::F32(x)),
        Data::F16(x) => write(TensorData::F16(x)),
        Data::Int4 { scales, order: from, .. } => {
            let order = Order::beside(layout);
            let mut packed = vec![0; order.bytes(rows, cols)];
            int4::arrange(bytes, from, (rows, cols), order, &mut packed)?;
            write(TensorData::Int4 { packed: &packed, scales, order })
        }
        Data::Int8 { weights: unordered, scales, layout: from } => {
            let mut weights = vec![0; layout.elements(rows, cols)];
            for row in 0..rows {
                for col in 0..cols {
                    weights[layout.index(row, col, cols)] = unordered[from.index(row, col, cols)];
                }
            }
            write(TensorData::Int8 { weights: &weights, scales, layout })
        }
    }
}

fn error(error: super::WriteError<Error>) -> Error {
    match error {
        super::WriteError::Pack(error) | super::WriteError::Sink(error) => error,
    }
}
