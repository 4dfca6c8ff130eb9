//! WebAssembly: two functions of the host, which `boards/wasm32/run.mjs` provides.
#![allow(unsafe_code)] // calls into the host

use core::fmt::Write;

#[link(wasm_import_module = "host")]
extern "C" {
    /// Prints UTF-8 text.
    fn log(text: *const u8, length: usize);
    /// Writes a file of two parts.
    fn save_file(
        name: *const u8,
        name_length: usize,
        head: *const u8,
        head_length: usize,
        body: *const u8,
        body_length: usize,
    );
}

/// Hands pieces of text on as they are formatted.
struct Log;

impl Write for Log {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        // SAFETY: the host only reads these bytes during the call.
        unsafe { log(text.as_ptr(), text.len()) };
        Ok(())
    }
}

/// Prints a line of log.
#[doc(hidden)]
pub fn print(line: core::fmt::Arguments<'_>) {
    // `Log` never fails.
    let _ = writeln!(Log, "{line}");
}

pub(crate) fn prepare() {}

pub(crate) fn report(error: &sorcen_runtime::Error) {
    print(format_args!("error: {error}"));
}

pub(crate) fn finish(code: i32) -> i32 {
    code
}

pub(crate) fn save(name: &core::ffi::CStr, [head, body]: [&[u8]; 2]) -> bool {
    let name = name.to_bytes();
    // SAFETY: the host only reads these bytes during the call.
    unsafe { save_file(name.as_ptr(), name.len(), head.as_ptr(), head.len(), body.as_ptr(), body.len()) };
    true
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    core::arch::wasm32::unreachable()
}
