//! What this x86-64 processor can do, asked without the standard library.

use core::arch::x86_64::{__cpuid, __cpuid_count};

/// The parts of the instruction set that our kernels need, enabled by the operating system too.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Features {
    /// AVX2.
    pub avx2: bool,
    /// AVX2 and AVX-VNNI.
    pub avx_vnni: bool,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    pub avx512_vnni: bool,
}

impl Features {
    pub fn detect() -> Self {
        const OSXSAVE: u32 = 1 << 27;
        const AVX: u32 = 1 << 28;
        let none = Self::default();
        if __cpuid(0).eax < 7 || __cpuid(1).ecx & (OSXSAVE | AVX) != OSXSAVE | AVX {
            return none;
        }
        let saved = saved_state();
        let (ymm, zmm) = (saved & 0b110 == 0b110, saved & 0b1110_0110 == 0b1110_0110);
        let leaf = __cpuid_count(7, 0);
        let (f, dq, bw, vl) = (1 << 16, 1 << 17, 1 << 30, 1 << 31);
        let all = f | dq | bw | vl;
        let avx2 = ymm && leaf.ebx & (1 << 5) != 0;
        Self {
            avx2,
            avx_vnni: avx2 && leaf.eax >= 1 && __cpuid_count(7, 1).eax & (1 << 4) != 0,
            avx512_vnni: avx2 && zmm && leaf.ebx & all == all && leaf.ecx & (1 << 11) != 0,
        }
    }
}

/// Which registers the operating system saves (XCR0). Only to be called where OSXSAVE is set.
fn saved_state() -> u64 {
    // SAFETY: the caller has seen OSXSAVE, so the instruction exists and may be used.
    unsafe { xgetbv() }
}

#[target_feature(enable = "xsave")]
fn xgetbv() -> u64 {
    // SAFETY: register 0 exists wherever the instruction does.
    unsafe { core::arch::x86_64::_xgetbv(0) }
}

#[cfg(test)]
mod tests {
    use super::Features;
    extern crate std;

    #[test]
    fn agrees_with_the_standard_library() {
        let found = Features::detect();
        assert_eq!(found.avx2, std::is_x86_feature_detected!("avx2"));
        let vnni = std::is_x86_feature_detected!("avx512vnni")
            && std::is_x86_feature_detected!("avx512bw")
            && std::is_x86_feature_detected!("avx512dq")
            && std::is_x86_feature_detected!("avx512vl");
        assert_eq!(found.avx512_vnni, vnni);
        assert_eq!(found.avx_vnni, std::is_x86_feature_detected!("avxvnni"));
    }
}
