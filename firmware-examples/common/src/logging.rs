//! One macro for a line of log: defmt on bare metal (formatted on the host), text elsewhere.

/// Logs a line. `{}` and `{:?}` mean the same in both.
#[cfg(target_os = "none")]
#[macro_export]
macro_rules! info {
    ($($arguments:tt)*) => { defmt::info!($($arguments)*) };
}

/// Logs a line. `{}` and `{:?}` mean the same in both.
#[cfg(not(target_os = "none"))]
#[macro_export]
macro_rules! info {
    ($($arguments:tt)*) => { $crate::print(core::format_args!($($arguments)*)) };
}
