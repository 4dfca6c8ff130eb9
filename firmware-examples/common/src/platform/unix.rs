//! An ordinary program: the host's run, which every board has to equal, and other Linux machines.

extern crate std;

/// Prints a line of log.
#[doc(hidden)]
pub fn print(line: core::fmt::Arguments<'_>) {
    std::println!("{line}");
}

pub(crate) fn prepare() {}

pub(crate) fn report(error: &sorcen_runtime::Error) {
    std::eprintln!("error: {error}");
}

pub(crate) fn finish(code: i32) -> i32 {
    code
}

pub(crate) fn save(name: &core::ffi::CStr, parts: [&[u8]; 2]) -> bool {
    name.to_str().is_ok_and(|name| std::fs::write(name, parts.concat()).is_ok())
}
