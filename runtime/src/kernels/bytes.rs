//! Views of byte memory as numbers and back, checked for alignment and length.

#[cfg(target_endian = "big")]
compile_error!("packs are little-endian and used in place; big-endian targets are not supported");

macro_rules! view {
    ($name:ident, $name_mut:ident, $type:ty) => {
        #[allow(dead_code)] // which ones are needed depends on the instruction set
        /// The bytes as numbers; `None` unless aligned and a whole number of elements.
        pub(crate) fn $name(bytes: &[u8]) -> Option<&[$type]> {
            // SAFETY: every bit pattern is a valid value of this plain number type.
            let (head, numbers, tail) = unsafe { bytes.align_to::<$type>() };
            (head.is_empty() && tail.is_empty()).then_some(numbers)
        }

        /// The bytes of a scratch as numbers. They are aligned and whole (see [`crate::scratch`]): panics otherwise, since
        /// numbers that are left out would pass for results.
        pub(crate) fn $name_mut(bytes: &mut [u8]) -> &mut [$type] {
            // SAFETY: every bit pattern is a valid value, in both directions.
            let (head, numbers, tail) = unsafe { bytes.align_to_mut::<$type>() };
            assert!(head.is_empty() && tail.is_empty());
            numbers
        }
    };
}

view!(as_f32, as_f32_mut, f32);
view!(as_u16, as_u16_mut, u16);
view!(as_i16, as_i16_mut, i16);

/// The bytes as signed ones, which have no alignment to miss.
pub(crate) fn as_i8(bytes: &[u8]) -> &[i8] {
    // SAFETY: a byte is a byte.
    unsafe { bytes.align_to::<i8>().1 }
}

/// The bytes as signed ones.
pub(crate) fn as_i8_mut(bytes: &mut [u8]) -> &mut [i8] {
    // SAFETY: a byte is a byte, in both directions.
    unsafe { bytes.align_to_mut::<i8>().1 }
}

macro_rules! bytes_of {
    ($name:ident, $type:ty) => {
        /// The numbers as their little-endian bytes.
        pub(crate) fn $name(numbers: &[$type]) -> &[u8] {
            // SAFETY: plain numbers have no padding, and a byte has no alignment to keep.
            unsafe { numbers.align_to::<u8>().1 }
        }
    };
}

bytes_of!(of_f32, f32);
bytes_of!(of_u16, u16);
bytes_of!(of_i8, i8);

/// 64 bytes, aligned as wide loads and packs like it.
#[cfg(feature = "alloc")]
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; 64]);

#[cfg(feature = "alloc")]
impl Default for Line {
    fn default() -> Self {
        Self([0; 64])
    }
}

/// The lines as bytes.
#[cfg(feature = "alloc")]
pub(crate) fn of_lines(lines: &[Line]) -> &[u8] {
    // SAFETY: a line is 64 bytes without padding.
    unsafe { lines.align_to::<u8>().1 }
}

/// The lines as bytes to write.
#[cfg(feature = "alloc")]
pub(crate) fn of_lines_mut(lines: &mut [Line]) -> &mut [u8] {
    // SAFETY: a line is 64 bytes without padding, and any bytes are a line.
    unsafe { lines.align_to_mut::<u8>().1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_check_alignment_and_length() {
        let floats = [1.0f32, -2.5, 3.25];
        let bytes = of_f32(&floats);
        assert_eq!(bytes.len(), 12);
        assert_eq!(as_f32(bytes), Some(&floats[..]));
        assert_eq!(as_f32(&bytes[1..]), None);
        assert_eq!(as_f32(&bytes[..6]), None);
        assert_eq!(as_i8(&[255, 3]), [-1i8, 3]);
        assert_eq!(of_u16(&[0x0102]), &[2, 1]);
        assert_eq!(of_i8(&[-1]), &[255]);
    }

    /// Never fewer numbers than there are, which a zip would not notice.
    #[test]
    fn nothing_is_left_out_of_what_is_written() {
        extern crate std;
        let mut memory = [0.0f32; 4];
        // SAFETY: any bytes are floats.
        let bytes = unsafe { memory.align_to_mut::<u8>().1 };
        assert_eq!(as_i16_mut(&mut bytes[2..10]).len(), 4);
        for (start, end) in [(1, 9), (0, 7), (1, 8)] {
            let panics =
                std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| as_i16_mut(&mut bytes[start..end]).len()));
            assert!(panics.is_err(), "{start} {end}");
        }
    }
}
