//! A QEMU plugin (API version 1, QEMU 4.2 and later) that counts executed guest instructions.
//!
//! `-plugin libcount.so,out=FILE`: at exit, FILE gets a line for every translated block that ran:
//! `EXECUTIONS ADDRESS ADDRESS …`, the addresses of its instructions in hexadecimal. The counts are
//! a function of the program alone; they are not cycles.
//!
//! `,mark=ADDRESS` (hexadecimal): whenever the function at that address is called, FILE gets a line `mark`, and counts
//! start again behind it.
#![allow(unsafe_code)] // QEMU's C interface

use std::{
    collections::BTreeMap,
    ffi::{c_char, c_int, c_void, CStr},
    fmt::Write,
    sync::Mutex,
};

/// The version of the interface that this is written for.
#[no_mangle]
pub static qemu_plugin_version: c_int = 1;

/// `QEMU_PLUGIN_INLINE_ADD_U64`.
const ADD: c_int = 0;
/// `QEMU_PLUGIN_CB_NO_REGS`.
const NO_REGISTERS: c_int = 0;

extern "C" {
    fn qemu_plugin_register_vcpu_tb_trans_cb(plugin: u64, callback: extern "C" fn(u64, *mut c_void));
    fn qemu_plugin_register_atexit_cb(plugin: u64, callback: extern "C" fn(u64, *mut c_void), data: *mut c_void);
    fn qemu_plugin_register_vcpu_tb_exec_cb(
        block: *mut c_void,
        callback: extern "C" fn(u32, *mut c_void),
        registers: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_register_vcpu_tb_exec_inline(block: *mut c_void, operation: c_int, counter: *mut u64, value: u64);
    fn qemu_plugin_tb_n_insns(block: *const c_void) -> usize;
    fn qemu_plugin_tb_get_insn(block: *const c_void, index: usize) -> *mut c_void;
    fn qemu_plugin_insn_vaddr(instruction: *const c_void) -> u64;
}

struct Counts {
    out: String,
    mark: Option<u64>,
    /// What was counted before the last mark.
    text: String,
    /// Addresses of a block's instructions, and its counter: leaked, QEMU's code writes to it.
    blocks: BTreeMap<Vec<u64>, &'static mut u64>,
}

static COUNTS: Mutex<Counts> =
    Mutex::new(Counts { out: String::new(), mark: None, text: String::new(), blocks: BTreeMap::new() });

/// QEMU translated a block of code: have it counted.
extern "C" fn translated(_: u64, block: *mut c_void) {
    let Ok(mut counts) = COUNTS.lock() else { return };
    // SAFETY: `block` and its instructions are valid during this call, by QEMU's contract.
    let addresses: Vec<u64> = unsafe {
        (0..qemu_plugin_tb_n_insns(block)).map(|i| qemu_plugin_insn_vaddr(qemu_plugin_tb_get_insn(block, i))).collect()
    };
    if counts.mark.is_some() && addresses.first() == counts.mark.as_ref() {
        // SAFETY: as above.
        unsafe { qemu_plugin_register_vcpu_tb_exec_cb(block, marked, NO_REGISTERS, std::ptr::null_mut()) };
    }
    let counter: &mut u64 = counts.blocks.entry(addresses).or_insert_with(|| Box::leak(Box::default()));
    // SAFETY: the counter is never freed; one virtual processor writes to it.
    unsafe { qemu_plugin_register_vcpu_tb_exec_inline(block, ADD, counter, 1) };
}

impl Counts {
    /// Moves what was counted into the text.
    fn take(&mut self) {
        for (addresses, count) in self.blocks.iter_mut().filter(|(_, count)| ***count > 0) {
            // Writing to a string does not fail.
            let _ = write!(self.text, "{count}");
            for address in addresses {
                let _ = write!(self.text, " {address:x}");
            }
            self.text.push('\n');
            **count = 0;
        }
    }
}

/// The guest calls the function that marks.
extern "C" fn marked(_: u32, _: *mut c_void) {
    let Ok(mut counts) = COUNTS.lock() else { return };
    counts.take();
    counts.text.push_str("mark\n");
}

/// The guest ended: write the file.
extern "C" fn ended(_: u64, _: *mut c_void) {
    let Ok(mut counts) = COUNTS.lock() else { return };
    counts.take();
    if let Err(error) = std::fs::write(&counts.out, &counts.text) {
        eprintln!("count: {}: {error}", counts.out);
    }
}

/// QEMU loads the plugin.
///
/// # Safety
/// Called by QEMU alone: `arguments` holds `count` strings.
#[no_mangle]
pub unsafe extern "C" fn qemu_plugin_install(
    plugin: u64,
    _: *const c_void,
    count: c_int,
    arguments: *const *const c_char,
) -> c_int {
    for i in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: QEMU passes `count` strings.
        let argument = unsafe { CStr::from_ptr(*arguments.add(i)) }.to_string_lossy();
        let Ok(mut counts) = COUNTS.lock() else { return 1 };
        let mark = argument.strip_prefix("mark=").and_then(|mark| u64::from_str_radix(mark, 16).ok());
        match (argument.strip_prefix("out="), mark) {
            (Some(file), _) => counts.out = file.to_owned(),
            (None, Some(mark)) => counts.mark = Some(mark),
            (None, None) => {
                eprintln!("count: unknown argument {argument}; there are: out=FILE, mark=ADDRESS");
                return 1;
            }
        }
    }
    // SAFETY: both callbacks live as long as the process.
    unsafe {
        qemu_plugin_register_vcpu_tb_trans_cb(plugin, translated);
        qemu_plugin_register_atexit_cb(plugin, ended, std::ptr::null_mut());
    }
    0
}
