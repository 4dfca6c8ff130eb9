//! The boards, and how QEMU is told of each.

use anyhow::{bail, Result};

/// A place where the examples run.
#[derive(Clone, Copy, PartialEq)]
pub struct Board {
    /// Folder under `boards/`, and name of the package.
    pub name: &'static str,
    /// Target triple; `None` is the machine this runs on.
    pub target: Option<&'static str>,
    /// How its programs are run.
    pub runner: Runner,
}

/// How a board's programs are run.
#[derive(Clone, Copy, PartialEq)]
pub enum Runner {
    /// QEMU emulates the whole machine: program, then arguments.
    System(&'static [&'static str]),
    /// The first words of a command that the program's path completes; empty: the program itself.
    Command(&'static [&'static str]),
}

/// All boards; the first is the host, whose output the others have to equal.
pub const BOARDS: [Board; 8] = [
    Board { name: "linux", target: None, runner: Runner::Command(&[]) },
    Board {
        name: "cortex-m4",
        target: Some("thumbv7em-none-eabihf"),
        runner: Runner::System(&["qemu-system-arm", "-machine", "mps2-an386"]),
    },
    Board {
        name: "cortex-m7",
        target: Some("thumbv7em-none-eabihf"),
        runner: Runner::System(&["qemu-system-arm", "-machine", "mps2-an500"]),
    },
    Board {
        name: "cortex-m33",
        target: Some("thumbv8m.main-none-eabihf"),
        runner: Runner::System(&["qemu-system-arm", "-machine", "mps2-an505"]),
    },
    Board {
        name: "cortex-m55",
        target: Some("thumbv8m.main-none-eabihf"),
        runner: Runner::System(&["qemu-system-arm", "-machine", "mps3-an547"]),
    },
    Board {
        name: "riscv32",
        target: Some("riscv32imafc-unknown-none-elf"),
        runner: Runner::System(&["qemu-system-riscv32", "-machine", "virt", "-bios", "none"]),
    },
    Board {
        name: "aarch64-linux",
        target: Some("aarch64-unknown-linux-gnu"),
        runner: Runner::Command(&["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]),
    },
    Board {
        name: "wasm32",
        target: Some("wasm32-unknown-unknown"),
        runner: Runner::Command(&["node", "boards/wasm32/run.mjs"]),
    },
];

/// The example programs.
pub const EXAMPLES: [&str; 9] =
    ["features", "int4", "fewshot", "generate", "inpaint", "tokenize", "selftest", "product", "kernels"];

impl Board {
    /// The board of a name.
    pub fn find(name: &str) -> Result<Board> {
        match BOARDS.into_iter().find(|board| board.name == name) {
            Some(board) => Ok(board),
            None => bail!("no board {name:?}; there are: {}", BOARDS.map(|board| board.name).join(", ")),
        }
    }

    /// Whether the program has the machine for itself: its memory is then measured.
    pub fn is_bare(&self) -> bool {
        matches!(self.runner, Runner::System(_))
    }

    /// Whether its programs have the standard library.
    pub fn has_std(&self) -> bool {
        self.target.is_none_or(|target| target.contains("linux"))
    }
}
