//! What the examples share: an entry point, logging, the demo pack, small inputs and pictures.
//!
//! An example is a function from its working memory to a result:
//!
//! ```ignore
//! sorcen_firmware::main!(draw, memory: Scratch::bytes(&CONFIG, Plan::Generate));
//!
//! fn draw(memory: &mut [u8]) -> Result<(), Error> { … }
//! ```
//!
//! The same source runs on bare metal (defmt over semihosting), as an ordinary program, and as wasm.
#![no_std]

pub mod data;
pub mod hash;
mod logging;
pub mod picture;

#[cfg_attr(target_os = "none", path = "platform/bare.rs")]
#[cfg_attr(target_family = "wasm", path = "platform/wasm.rs")]
#[cfg_attr(target_family = "unix", path = "platform/unix.rs")]
mod platform;

use sorcen_runtime::{Error, Model, ModelConfig, Pack};

#[cfg(not(target_os = "none"))]
#[doc(hidden)]
pub use platform::print;
#[doc(hidden)]
pub use static_cell::ConstStaticCell;

/// The sizes of the demo model, known at compile time so that its memory is, too.
pub const CONFIG: ModelConfig = ModelConfig::micro(8, 512);

/// Tokens of an image.
pub const TOKENS: usize = CONFIG.tokens();

/// The demo model, executed in place from flash.
///
/// # Errors
/// Those of [`Pack::new`], which checks the whole pack.
pub fn model() -> Result<Model<'static>, Error> {
    Ok(Model::new(Pack::new(data::demo_pack())?))
}

/// Runs an example and ends the program: exit code 0, or 1 after logging the error.
#[doc(hidden)]
pub fn start(run: impl FnOnce() -> Result<(), Error>) -> i32 {
    platform::prepare();
    let code = match run() {
        Ok(()) => 0,
        Err(error) => {
            platform::report(&error);
            1
        }
    };
    platform::finish(code)
}

/// Makes a function the program: `main!(run, memory: BYTES)` calls `run(&mut [u8])` with that many
/// bytes of static memory.
#[macro_export]
macro_rules! main {
    ($run:path, memory: $bytes:expr) => {
        /// The program.
        #[allow(unsafe_code)] // a symbol that the start-up code looks for
        #[no_mangle]
        extern "C" fn main() -> i32 {
            static MEMORY: $crate::ConstStaticCell<[u8; $bytes]> = $crate::ConstStaticCell::new([0; $bytes]);
            // `main` runs once, so that the memory is there.
            $crate::start(|| MEMORY.try_take().map_or(Ok(()), |memory| $run(memory)))
        }
    };
}
