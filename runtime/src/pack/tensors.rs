//! Tensors in place: a table of entries, and the numbers that they point to.

use half::f16;

use super::{check_reserved, tensor, u32_at, u64_at, Precision, ALIGN, INT4_IN_PANELS};
use crate::{
    error::Error,
    kernels::bytes::{as_f32, as_i8, as_u16},
    quant::{
        int4::{self, Order},
        Layout,
    },
};

/// A matrix `[rows, cols]` in a pack (linears are `[out, in]`).
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'p> {
    /// Output channels.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// The numbers.
    pub data: Data<'p>,
}

/// The numbers of a [`Matrix`].
#[derive(Clone, Copy, Debug)]
pub enum Data<'p> {
    /// Row-major.
    F32(&'p [f32]),
    /// Row-major, IEEE half bits.
    F16(&'p [u16]),
    /// `weight = scale[row] * int8`, in a blocked layout.
    Int8 {
        /// Blocked values, -127 to 127.
        weights: &'p [i8],
        /// One finite, non-negative scale a row.
        scales: &'p [f32],
        /// The order of the values.
        layout: Layout,
    },
    /// `weight = scale[row] * multiplier[row, group] * int4`; see [`crate::quant::int4`].
    Int4 {
        /// Two weights a byte, groups of 32 columns, rows padded to whole groups.
        weights: &'p [u8],
        /// One byte a group.
        multipliers: &'p [u8],
        /// One finite, non-negative scale a row.
        scales: &'p [f32],
        /// The order of both.
        order: Order,
    },
}

impl Data<'_> {
    /// Whether these are integers in another order than the one for which `best` stands.
    pub(crate) fn is_in_another_order(&self, best: Layout) -> bool {
        match *self {
            Data::Int8 { layout, .. } => layout != best,
            Data::Int4 { order, .. } => order != Order::beside(best),
            Data::F32(_) | Data::F16(_) => false,
        }
    }
}

/// A vector (or a table of rows) of floats.
#[derive(Clone, Copy, Debug)]
pub enum Vector<'p> {
    /// IEEE single.
    F32(&'p [f32]),
    /// IEEE half bits.
    F16(&'p [u16]),
}

impl Vector<'_> {
    /// Number of elements.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(crate) const fn len(&self) -> usize {
        match self {
            Vector::F32(x) => x.len(),
            Vector::F16(x) => x.len(),
        }
    }

    /// Element `i`; 0 past the end.
    #[inline]
    pub fn get(&self, i: usize) -> f32 {
        match self {
            Vector::F32(x) => x.get(i).copied().unwrap_or(0.0),
            Vector::F16(x) => x.get(i).map_or(0.0, |&bits| f16::from_bits(bits).to_f32()),
        }
    }

    /// `f(x[i], self[start + i])` for all of `x` that there is an element for.
    #[inline(always)]
    pub(crate) fn onto(&self, start: usize, x: &mut [f32], f: impl Fn(&mut f32, f32)) {
        match self {
            Vector::F32(v) => {
                for (x, v) in x.iter_mut().zip(v.get(start..).unwrap_or(&[])) {
                    f(x, *v);
                }
            }
            Vector::F16(v) => {
                for (x, v) in x.iter_mut().zip(v.get(start..).unwrap_or(&[])) {
                    f(x, f16::from_bits(*v).to_f32());
                }
            }
        }
    }

    /// Iterates over elements `start..`.
    #[inline]
    pub fn iter_from(&self, start: usize) -> impl Iterator<Item = f32> + '_ {
        let (full, half): (&[f32], &[u16]) = match self {
            Vector::F32(x) => (x.get(start..).unwrap_or(&[]), &[]),
            Vector::F16(x) => (&[], x.get(start..).unwrap_or(&[])),
        };
        full.iter().copied().chain(half.iter().map(|&bits| f16::from_bits(bits).to_f32()))
    }
}

/// Whether none of the weights is -128, four at a time.
fn lacks_minus_128(weights: &[i8]) -> bool {
    let (words, rest) = weights.as_chunks::<4>();
    let found = words.iter().fold(0, |found, word| {
        let word = u32::from_le_bytes(word.map(|w| w as u8)) ^ 0x8080_8080;
        found | word.wrapping_sub(0x0101_0101) & !word & 0x8080_8080 // not zero if a byte of the word is
    });
    found == 0 && rest.iter().all(|w| *w != -128)
}

/// Whether the numbers of tensor `index` are such that a forward pass can use them.
pub(super) fn check_numbers(index: usize, data: &Data<'_>) -> Result<(), Error> {
    let index = index as u32;
    let all_finite = |finite: bool| if finite { Ok(()) } else { Err(Error::NotFinite { item: "tensor", index }) };
    let out_of_range = |expected, found| Err(Error::OutOfRange { item: "tensor", index, expected, found });
    let scales = match *data {
        Data::F32(x) => return all_finite(x.iter().all(|x| x.is_finite())),
        Data::F16(x) => return all_finite(x.iter().all(|&bits| f16::from_bits(bits).is_finite())),
        Data::Int8 { weights, .. } if !lacks_minus_128(weights) => {
            return out_of_range("int8 weights of -127 to 127", "one of -128")
        }
        Data::Int8 { scales, .. } | Data::Int4 { scales, .. } => scales,
    };
    all_finite(scales.iter().all(|scale| scale.is_finite()))?;
    match scales.iter().all(|scale| *scale >= 0.0) {
        true => Ok(()),
        false => out_of_range("scales of 0 or more", "a negative one"),
    }
}

/// A table of tensors and what it points to: the model's, or those of a section of its own.
///
/// Accessors take a tensor's number and its shape as a matrix, which the schema says.
#[derive(Clone, Copy)]
pub(crate) struct Tensors<'p> {
    table: &'p [u8],
    weights: &'p [u8],
}

/// What a tensor may be stored as.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    /// A matrix that quantisation applies to.
    pub is_matrix: bool,
    /// May be left out.
    pub is_optional: bool,
}

impl<'p> Tensors<'p> {
    /// A table of `count` entries over the bytes that they point to. [`check`](Self::check) each before use.
    pub fn new(table: &'p [u8], weights: &'p [u8], count: usize) -> Result<Self, Error> {
        let needed = count * tensor::BYTES;
        if table.len() != needed {
            return Err(Error::Truncated { item: "tensors", needed: needed as u64, found: table.len() as u64 });
        }
        Ok(Self { table, weights })
    }

    /// Whether tensor `index` is there.
    pub fn is_present(&self, index: usize) -> bool {
        self.entry(index).code() != 0
    }

    /// Rows that the table says a tensor has.
    pub fn rows(&self, index: usize) -> usize {
        u32_at(self.entry(index).0, tensor::ROWS) as usize
    }

    /// Precision of a tensor; `None` where it is absent.
    pub fn precision(&self, index: usize) -> Option<Precision> {
        Precision::from_code(self.entry(index).code())
    }

    /// Bytes that a tensor takes, scales included.
    pub fn bytes(&self, index: usize) -> usize {
        let entry = self.entry(index);
        entry.range(tensor::DATA_OFFSET).len() + entry.range(tensor::SCALES_OFFSET).len()
    }

    /// A tensor as a matrix; empty where it is absent.
    pub fn matrix(&self, index: usize, (rows, cols): (usize, usize)) -> Matrix<'p> {
        let entry = self.entry(index);
        let data = self.payload(entry.range(tensor::DATA_OFFSET));
        let data = match Precision::from_code(entry.code()) {
            Some(Precision::Int8) => Data::Int8 {
                weights: as_i8(data),
                scales: as_f32(self.payload(entry.range(tensor::SCALES_OFFSET))).unwrap_or(&[]),
                layout: entry.layout(),
            },
            Some(Precision::Int4) => {
                let order = entry.order();
                let (weights, multipliers) = data.split_at_checked(order.weight_bytes(rows, cols)).unwrap_or_default();
                let scales = as_f32(self.payload(entry.range(tensor::SCALES_OFFSET))).unwrap_or(&[]);
                Data::Int4 { weights, multipliers, scales, order }
            }
            Some(Precision::F16) => Data::F16(as_u16(data).unwrap_or(&[])),
            Some(Precision::F32) | None => Data::F32(as_f32(data).unwrap_or(&[])),
        };
        Matrix { rows, cols, data }
    }

    /// A tensor that is a vector or a table of positions; empty where it is absent.
    pub fn vector(&self, index: usize, shape: (usize, usize)) -> Vector<'p> {
        match self.matrix(index, shape).data {
            Data::F32(x) => Vector::F32(x),
            Data::F16(x) => Vector::F16(x),
            // `check` keeps these to matrices.
            Data::Int8 { .. } | Data::Int4 { .. } => Vector::F32(&[]),
        }
    }

    /// A tensor's numbers as they lie in the file.
    #[cfg(feature = "alloc")]
    pub fn bytes_of(&self, index: usize) -> &'p [u8] {
        self.payload(self.entry(index).range(tensor::DATA_OFFSET))
    }

    /// Everything about one tensor that a forward pass relies on.
    pub fn check(&self, index: usize, (rows, cols): (usize, usize), kind: Kind) -> Result<(), Error> {
        let entry = self.entry(index);
        let check = |property, expected: usize, found: u64| {
            if expected as u64 == found {
                Ok(())
            } else {
                Err(Error::Tensor { index: index as u16, property, expected: expected as u64, found })
            }
        };
        if entry.code() == 0 && kind.is_optional {
            return Ok(());
        }
        let layout = entry.layout();
        let (data_len, scales_len) = match Precision::from_code(entry.code()) {
            Some(Precision::F32) => (rows * cols * 4, 0),
            Some(Precision::F16) => (rows * cols * 2, 0),
            Some(Precision::Int8) if kind.is_matrix && layout.is_valid() => (layout.elements(rows, cols), rows * 4),
            Some(Precision::Int4) if int4::fits(kind.is_matrix, cols) => (entry.order().bytes(rows, cols), rows * 4),
            Some(Precision::Int8) if kind.is_matrix => {
                return Err(Error::Field {
                    field: "tensor layout",
                    found: (u64::from(layout.nr) << 8) | u64::from(layout.kt),
                })
            }
            _ => return Err(Error::Field { field: "tensor precision", found: entry.code().into() }),
        };
        check_reserved("reserved bytes of a tensor's entry", &entry.0[tensor::KT + 1..tensor::ROWS])?;
        check_reserved("reserved bytes of a tensor's entry", &entry.0[tensor::COLS + 4..tensor::DATA_OFFSET])?;
        check("rows", rows, u32_at(entry.0, tensor::ROWS).into())?;
        check("columns", cols, u32_at(entry.0, tensor::COLS).into())?;
        check("bytes", data_len, u64_at(entry.0, tensor::DATA_LEN))?;
        check("scale bytes", scales_len, u64_at(entry.0, tensor::SCALES_LEN))?;
        for (item, at) in [("tensor data", tensor::DATA_OFFSET), ("tensor scales", tensor::SCALES_OFFSET)] {
            let (offset, len) = (u64_at(entry.0, at), u64_at(entry.0, at + 8));
            if !offset.is_multiple_of(ALIGN as u64) {
                return Err(Error::Alignment { item, needed: ALIGN as u32 });
            }
            let end = offset.saturating_add(len);
            if end > self.weights.len() as u64 {
                return Err(Error::Truncated { item, needed: end, found: self.weights.len() as u64 });
            }
        }
        check_numbers(index, &self.matrix(index, (rows, cols)).data)
    }

    fn entry(&self, index: usize) -> Entry<'p> {
        let at = index * tensor::BYTES;
        Entry(self.table.get(at..at + tensor::BYTES).unwrap_or(&[]))
    }

    fn payload(&self, range: core::ops::Range<usize>) -> &'p [u8] {
        self.weights.get(range).unwrap_or(&[])
    }
}

/// One entry of the tensor table.
#[derive(Clone, Copy)]
struct Entry<'p>(&'p [u8]);

impl Entry<'_> {
    fn code(&self) -> u8 {
        self.0.get(tensor::PRECISION).copied().unwrap_or(0)
    }

    fn layout(&self) -> Layout {
        Layout { nr: self.0.get(tensor::NR).copied().unwrap_or(1), kt: self.0.get(tensor::KT).copied().unwrap_or(0) }
    }

    /// The order of int4 weights.
    fn order(&self) -> Order {
        if self.code() == INT4_IN_PANELS {
            Order::Panels
        } else {
            Order::Rows
        }
    }

    /// The byte range stored as (offset, length) at a position of the entry; empty where the tensor is absent, whatever
    /// its entry says.
    fn range(&self, at: usize) -> core::ops::Range<usize> {
        if self.code() == 0 {
            return 0..0;
        }
        let start = usize::try_from(u64_at(self.0, at)).unwrap_or(usize::MAX);
        let len = usize::try_from(u64_at(self.0, at + 8)).unwrap_or(0);
        start..start.saturating_add(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minus_128_is_found_wherever_it_is() {
        let all: [i8; 255] = core::array::from_fn(|i| (i as i16 - 127) as i8);
        for start in 0..8 {
            assert!(lacks_minus_128(&all[start..]));
            for place in start..all.len() {
                let mut weights = all;
                weights[place] = -128;
                assert!(!lacks_minus_128(&weights[start..]), "{start} {place}");
            }
        }
    }
}
