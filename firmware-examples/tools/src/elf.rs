//! What a program takes of flash and RAM, and what it must not contain.

use anyhow::Result;
use object::{elf, Object, ObjectSection, ObjectSymbol, SectionFlags};

/// Bytes of a program, by kind.
#[derive(Clone, Copy, Default)]
pub struct Sizes {
    /// Machine code and vectors.
    pub code: u64,
    /// Constants in flash, the pack among them.
    pub constants: u64,
    /// Static memory.
    pub ram: u64,
}

/// Sizes of a program.
pub fn sizes(file: &[u8]) -> Result<Sizes> {
    let file = object::File::parse(file)?;
    let mut sizes = Sizes::default();
    for section in file.sections() {
        let SectionFlags::Elf { sh_flags } = section.flags() else { continue };
        let has = |flag: u32| sh_flags & u64::from(flag) != 0;
        // The stack and heap of riscv-rt are marks in the memory map, not static memory.
        if !has(elf::SHF_ALLOC) || matches!(section.name(), Ok(".stack" | ".heap")) {
            continue;
        }
        let in_file = section.kind() != object::SectionKind::UninitializedData;
        if has(elf::SHF_EXECINSTR) || section.name() == Ok(".vector_table") {
            sizes.code += section.size();
        } else if has(elf::SHF_WRITE) {
            sizes.ram += section.size();
            sizes.constants += if in_file { section.size() } else { 0 }; // copied to RAM at the start
        } else {
            sizes.constants += section.size();
        }
    }
    Ok(sizes)
}

/// Names of the panic machinery in a program.
pub fn panics(file: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(file)?;
    let names = file.symbols().filter_map(|symbol| symbol.name().ok().map(String::from));
    Ok(names
        .filter(|name| {
            name.contains("9panicking") || name.contains("core::panicking") || name.contains("rust_begin_unwind")
        })
        .collect())
}

/// Where the function `mark` starts, in a program that has one.
pub fn mark(file: &[u8]) -> Result<Option<u64>> {
    let file = object::File::parse(file)?;
    let thumb = u64::from(file.architecture() == object::Architecture::Arm); // set in addresses of Thumb code
    let mark = file.symbols().find(|symbol| symbol.name() == Ok("mark"));
    Ok(mark.map(|symbol| symbol.address() & !thumb))
}
