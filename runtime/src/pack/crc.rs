//! CRC-32 (IEEE 802.3, as in zip and PNG), four bytes at a time: tables of 4 KiB.

/// `TABLES[k][byte]`: of a byte and `k` zeros behind it.
static TABLES: [[u32; 256]; 4] = {
    let mut tables = [[0; 256]; 4];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
            bit += 1;
        }
        tables[0][i] = crc;
        i += 1;
    }
    let mut k = 1;
    while k < 4 {
        let mut i = 0;
        while i < 256 {
            let crc = tables[k - 1][i];
            tables[k][i] = tables[0][(crc & 0xFF) as usize] ^ (crc >> 8);
            i += 1;
        }
        k += 1;
    }
    tables
};

/// A running checksum.
#[derive(Clone, Copy)]
pub(super) struct Crc(u32);

impl Crc {
    pub const fn new() -> Self {
        Self(!0)
    }

    #[inline(never)] // inlined, it runs out of registers on small cores
    pub fn update(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<4>();
        let mut crc = self.0;
        for word in words {
            let [a, b, c, d] = (crc ^ u32::from_le_bytes(*word)).to_le_bytes();
            let of = |k: usize, byte: u8| TABLES[k][usize::from(byte)];
            crc = of(3, a) ^ of(2, b) ^ of(1, c) ^ of(0, d);
        }
        for byte in rest {
            crc = TABLES[0][usize::from(crc as u8 ^ byte)] ^ (crc >> 8);
        }
        self.0 = crc;
    }

    pub const fn value(self) -> u32 {
        !self.0
    }
}

/// The checksum of some bytes.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.value()
}

#[cfg(test)]
mod tests {
    #[test]
    fn check_value() {
        assert_eq!(super::crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn a_piece_at_a_time_is_the_same() {
        let bytes: [u8; 67] = core::array::from_fn(|i| (i * 89 + 7) as u8);
        for cut in 0..bytes.len() {
            let mut crc = super::Crc::new();
            crc.update(&bytes[..cut]);
            crc.update(&bytes[cut..]);
            // By the definition: a bit at a time.
            let mut expected = !0u32;
            for byte in bytes {
                expected ^= u32::from(byte);
                for _ in 0..8 {
                    expected = if expected & 1 == 1 { (expected >> 1) ^ 0xEDB8_8320 } else { expected >> 1 };
                }
            }
            assert_eq!(crc.value(), !expected, "{cut}");
        }
    }
}
