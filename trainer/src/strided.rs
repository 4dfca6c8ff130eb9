//! Where the elements of an array lie that need not lie one after another: PyTorch's views, Fortran's order.

/// Offset, sizes and strides, in elements; outermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strided {
    /// Where the first element is.
    pub offset: usize,
    /// Sizes.
    pub shape: Vec<usize>,
    /// How far apart neighbours are, of each index.
    pub strides: Vec<usize>,
}

impl Strided {
    /// An array whose first index runs fastest.
    pub fn fortran(shape: &[usize]) -> Self {
        let strides = shape.iter().scan(1usize, |next, &size| {
            let stride = *next;
            *next = next.saturating_mul(size);
            Some(stride)
        });
        Self { offset: 0, shape: shape.to_vec(), strides: strides.collect() }
    }

    /// Number of elements, where it is a number.
    pub fn count(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size))
    }

    /// How many elements the storage has at least, where that is a number.
    pub fn end(&self) -> Option<usize> {
        if self.shape.contains(&0) {
            return Some(0);
        }
        let mut steps = self.shape.iter().zip(&self.strides);
        let last =
            steps.try_fold(self.offset, |last, (&size, &stride)| last.checked_add((size - 1).checked_mul(stride)?));
        last?.checked_add(1)
    }

    /// Whether the elements lie one after another.
    pub fn is_contiguous(&self) -> bool {
        let mut next = Some(1usize);
        self.shape.iter().zip(&self.strides).rev().all(|(&size, &stride)| {
            let fits = size <= 1 || next == Some(stride);
            next = next.and_then(|next| next.checked_mul(size));
            fits
        })
    }

    /// Where element `index`, counted row by row, is.
    pub fn at(&self, mut index: usize) -> usize {
        self.shape.iter().zip(&self.strides).rev().fold(self.offset, |at, (&size, &stride)| {
            let here = index % size;
            index /= size;
            at + here * stride
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_where_they_lie() {
        let places = |view: &Strided| (0..view.count().unwrap()).map(|i| view.at(i)).collect::<Vec<_>>();
        let fortran = Strided::fortran(&[2, 3]);
        assert_eq!((places(&fortran), fortran.end()), (vec![0, 2, 4, 1, 3, 5], Some(6)));
        assert!(!fortran.is_contiguous() && Strided::fortran(&[1, 3]).is_contiguous());
        let expanded = Strided { offset: 2, shape: vec![2, 2], strides: vec![0, 1] };
        assert_eq!((places(&expanded), expanded.end(), expanded.is_contiguous()), (vec![2, 3, 2, 3], Some(4), false));
        let scalar = Strided { offset: 5, shape: vec![], strides: vec![] };
        assert_eq!((places(&scalar), scalar.end(), scalar.is_contiguous()), (vec![5], Some(6), true));
        let empty = Strided { offset: 9, shape: vec![0, 3], strides: vec![3, 1] };
        assert_eq!((places(&empty), empty.end()), (vec![], Some(0)));
        let huge = Strided { offset: 0, shape: vec![usize::MAX, 2], strides: vec![usize::MAX, 1] };
        assert_eq!((huge.count(), huge.end()), (None, None));
    }
}
