//! [`OwnedPack`]: a pack in memory of our own, its weights in the order that a CPU likes best.

use super::{Data, Pack, Sink, TensorData, Writer};
use crate::{
    error::Error,
    kernels::bytes::{of_lines, of_lines_mut, Line},
    quant::{
        int4::{self, Order},
        Layout,
    },
    schema,
};
use alloc::vec::Vec;

/// A pack that owns its bytes, aligned for wide loads.
///
/// ```no_run
/// use sorcen_runtime::{pack::OwnedPack, Kernels, Model, Pack};
/// # fn run(file: &[u8]) -> Result<(), sorcen_runtime::Error> {
/// let arranged = OwnedPack::arrange(&Pack::new(file)?, Kernels::detect().layout())?;
/// let model = Model::new(arranged.pack()?);
/// # Ok(()) }
/// ```
pub struct OwnedPack {
    lines: Vec<Line>,
    len: usize,
}

impl OwnedPack {
    /// A copy of a pack whose int8 weights are in `layout`, and its int4 weights in the order that goes with it;
    /// everything else stays as it is.
    ///
    /// # Errors
    /// [`Error::Option`] for an invalid layout.
    pub fn arrange(pack: &Pack<'_>, layout: Layout) -> Result<Self, Error> {
        if !layout.is_valid() {
            return Err(Error::Option { name: "layout", expected: "nr 1 to 64, kt 0 or a power of two up to 64" });
        }
        let config = pack.config();
        let mut writer = Writer::new(Self { lines: Vec::new(), len: 0 }, config).map_err(error)?;
        let (mut arranged, mut packed) = (Vec::new(), Vec::new());
        for param in schema::params(config) {
            let matrix = pack.matrix(param);
            let data = match matrix.data {
                _ if pack.precision(param).is_none() => TensorData::Absent,
                Data::F32(x) => TensorData::F32(x),
                Data::F16(x) => TensorData::F16(x),
                Data::Int4 { scales, order: from, .. } => {
                    let (shape, order) = ((matrix.rows, matrix.cols), Order::beside(layout));
                    packed.clear();
                    packed.resize(order.bytes(matrix.rows, matrix.cols), 0);
                    int4::arrange(pack.bytes_of(param), from, shape, order, &mut packed)?;
                    TensorData::Int4 { packed: &packed, scales, order }
                }
                Data::Int8 { weights, scales, layout: from } => {
                    arranged.clear();
                    arranged.resize(layout.elements(matrix.rows, matrix.cols), 0);
                    for row in 0..matrix.rows {
                        for col in 0..matrix.cols {
                            let to = layout.index(row, col, matrix.cols);
                            arranged[to] = weights[from.index(row, col, matrix.cols)];
                        }
                    }
                    TensorData::Int8 { weights: &arranged, scales, layout }
                }
            };
            writer.tensor(data).map_err(error)?;
        }
        if let Some(tokenizer) = pack.tokenizer() {
            writer.tokenizer(tokenizer.codebook(), tokenizer.codes(), tokenizer.patch()).map_err(error)?;
        }
        if let Some(vit) = pack.vit() {
            writer.vit(vit.bytes()).map_err(error)?;
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
        let (_, owned) = writer.finish().map_err(error)?;
        Ok(owned)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &of_lines(&self.lines)[..self.len]
    }

    /// The pack, checked.
    ///
    /// # Errors
    /// As [`Pack::new`].
    pub fn pack(&self) -> Result<Pack<'_>, Error> {
        Pack::new(self.bytes())
    }
}

impl Sink for OwnedPack {
    type Error = Error;

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let start = offset as usize;
        let end = start + bytes.len();
        self.len = self.len.max(end);
        self.lines.resize(self.lines.len().max(end.div_ceil(size_of::<Line>())), Line::default());
        of_lines_mut(&mut self.lines)[start..end].copy_from_slice(bytes);
        Ok(())
    }
}

fn error(error: super::WriteError<Error>) -> Error {
    match error {
        super::WriteError::Pack(error) | super::WriteError::Sink(error) => error,
    }
}
