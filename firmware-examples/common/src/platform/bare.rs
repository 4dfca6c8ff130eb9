//! Bare metal: defmt and files through semihosting, the peak of the stack by painting it.
#![allow(unsafe_code)] // the stack is memory that Rust does not own

#[cfg(target_arch = "arm")]
use cortex_m as _; // its critical section, which defmt needs
use defmt_semihosting as _;
#[cfg(target_arch = "riscv32")]
use riscv as _;
use semihosting::process;

/// Exit codes of a run that did not end by itself.
mod code {
    pub const PANIC: i32 = 101;
    pub const FAULT: i32 = 102;
}

const PAINT: u32 = 0xC5C5_C5C5;
/// Bytes below the frame of `prepare` that are left alone.
const OWN_FRAME: usize = 256;

extern "C" {
    static _stack_start: u8;
    #[cfg_attr(target_arch = "riscv32", link_name = "__estack")]
    static _stack_end: u8;
}

/// Lowest and highest address of the stack.
fn stack() -> (usize, usize) {
    (&raw const _stack_end as usize, &raw const _stack_start as usize)
}

/// Paints the unused stack.
#[inline(never)]
pub(crate) fn prepare() {
    let here = 0u32;
    let end = &raw const here as usize - OWN_FRAME;
    for word in (stack().0..end).step_by(4) {
        // SAFETY: between the linker's end of the stack and well below this frame, nothing lives.
        unsafe { (word as *mut u32).write_volatile(PAINT) };
    }
}

/// Bytes of stack that were ever used (holes that a large frame left untouched at its end are missed).
fn stack_peak() -> usize {
    let (low, high) = stack();
    // SAFETY: aligned words of the stack, only read.
    let untouched = |word: &usize| unsafe { (*word as *const u32).read_volatile() } == PAINT;
    high - low - 4 * (low..high).step_by(4).take_while(untouched).count()
}

/// Logs an error.
pub(crate) fn report(error: &sorcen_runtime::Error) {
    defmt::error!("{}", defmt::Debug2Format(error));
}

/// Reports the stack and ends the program.
pub(crate) fn finish(code: i32) -> i32 {
    let (low, high) = stack();
    defmt::debug!("stack: {} of {} bytes", stack_peak(), high - low);
    process::exit(code)
}

/// Writes a file on the host, where the emulator or debugger allows it.
pub(crate) fn save(name: &core::ffi::CStr, parts: [&[u8]; 2]) -> bool {
    use semihosting::{fs::File, io::Write};
    let write = |file: &mut File| parts.iter().try_for_each(|part| file.write_all(part));
    File::create(name).and_then(|mut file| write(&mut file)).is_ok()
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    defmt::error!("panic");
    process::exit(code::PANIC)
}

#[defmt::panic_handler]
fn defmt_panic() -> ! {
    process::exit(code::PANIC) // already logged
}

#[cfg(target_arch = "arm")]
#[cortex_m_rt::exception]
unsafe fn HardFault(_: &cortex_m_rt::ExceptionFrame) -> ! {
    process::exit(code::FAULT)
}

#[cfg(target_arch = "riscv32")]
#[riscv_rt::exception(riscv::interrupt::Exception::IllegalInstruction)]
fn illegal_instruction(_: &riscv_rt::TrapFrame) -> ! {
    process::exit(code::FAULT)
}
