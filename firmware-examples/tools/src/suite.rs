//! Every example on every board: what it says, what it costs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{bail, Context, Result};

use crate::{
    boards::{Board, EXAMPLES},
    elf, emulator,
    operations::{self, Counts},
    record::{self, Entry, MEASURES},
    toolchain::{self, root, target_dir, Purpose},
};

/// The examples whose instructions are recorded by operation: the encoder.
const SPLIT: [&str; 2] = ["features", "int4"];
/// The example whose products are recorded one by one.
const PRODUCT: &str = "product";

/// An example's log, the same on every board; it stands beside the example.
fn snapshot(example: &str) -> PathBuf {
    root().join("examples").join(format!("{example}.txt"))
}

/// Compares boards with the snapshots, their sizes and counts with the record; reports everything that differs.
///
/// `SORCEN_NO_SIZES=1` leaves sizes and counts out.
pub fn test(boards: &[Board]) -> Result<()> {
    let purpose = match std::env::var("SORCEN_NO_SIZES").as_deref() {
        Ok("1") => Purpose::Run,
        _ => Purpose::Measure,
    };
    let mut wrong = Vec::new();
    let mut measured = Vec::new();
    for board in boards {
        measured.extend(run_board(board, purpose, &mut |example, log| {
            let expected =
                fs::read_to_string(snapshot(example)).with_context(|| snapshot(example).display().to_string())?;
            if log != expected {
                wrong.push(format!("{} {example}: {}", board.name, first_difference(&expected, log)));
            }
            Ok(())
        })?);
    }
    wrong.extend(record::regressions(&record::read()?, &measured));
    record::check_readme()?;
    if !wrong.is_empty() {
        bail!("{}\n(cargo fw bless renews snapshots and record)", wrong.join("\n"));
    }
    println!("{}", summary(boards, &measured));
    Ok(())
}

/// What was compared, and what was not.
fn summary(boards: &[Board], measured: &[Entry]) -> String {
    let programs = format!("{} programs give the host's bits", boards.len() * EXAMPLES.len());
    let bare = boards.iter().filter(|board| board.is_bare()).map(|board| board.name);
    let (compared, skipped): (Vec<&str>, Vec<&str>) =
        bare.partition(|name| measured.iter().any(|entry| entry.board == *name));
    let compared = match compared[..] {
        [] => String::new(),
        _ => {
            let count = measured.iter().filter(|entry| MEASURES.contains(&entry.what.as_str())).count();
            format!("; {count} sizes, stacks and counts as recorded, of {}", compared.join(", "))
        }
    };
    let skipped = match skipped[..] {
        [] => String::new(),
        _ => format!("; skipped (SORCEN_NO_SIZES=1): sizes, stacks and counts of {}", skipped.join(", ")),
    };
    programs + &compared + &skipped
}

/// Takes the host's logs as snapshots, which boards have to equal, and records what is measured on them.
pub fn bless(boards: &[Board]) -> Result<()> {
    let mut measured = Vec::new();
    for board in boards {
        measured.extend(run_board(board, Purpose::Measure, &mut |example, log| {
            if board.target.is_none() {
                return Ok(fs::write(snapshot(example), log)?);
            }
            let expected = fs::read_to_string(snapshot(example))?;
            if log != expected {
                bail!("{} {example} differs from the host: {}", board.name, first_difference(&expected, log));
            }
            Ok(())
        })?);
    }
    for picture in ["generate.png", "inpaint.png", "tokenize.png"] {
        let file = target_dir().join("pictures/linux").join(picture);
        fs::copy(&file, root().join("pictures").join(picture)).with_context(|| file.display().to_string())?;
    }
    record::renew(measured)
}

/// Renews the sizes of boards in the record, without running anything.
pub fn sizes(boards: &[Board]) -> Result<()> {
    let mut sizes = Vec::new();
    for board in boards.iter().filter(|board| board.is_bare()) {
        println!("{}", board.name);
        let programs = toolchain::build(board, &EXAMPLES, Purpose::Measure)?;
        for example in EXAMPLES {
            let found = elf::sizes(&fs::read(programs.path(example))?)?;
            for (what, value) in MEASURES.iter().zip([found.code, found.constants, found.ram]) {
                sizes.push(Entry { board: board.name.into(), example: example.into(), what: (*what).into(), value });
            }
        }
    }
    let mut record = record::read()?;
    for new in sizes {
        let place = |old: &&mut Entry| (&old.board, &old.example, &old.what) == (&new.board, &new.example, &new.what);
        let old = record.iter_mut().find(place);
        old.with_context(|| format!("{} {} is not in the record yet; run: cargo fw bless", new.board, new.example))?
            .value = new.value;
    }
    record::renew(record)
}

/// Prints the executed instructions of an example by operation.
pub fn operations(board: &str, example: &str) -> Result<()> {
    let board = Board::find(board)?;
    if !board.is_bare() {
        bail!("instructions are counted on microcontrollers, not on {}", board.name);
    }
    let program = toolchain::build(&board, &[example], Purpose::Run)?.path(example);
    let (run, counts) = count(&board, &program, &mut |_| {})?;
    println!("{:>14}  all", counts.total());
    for (name, count) in counts.by_operation(&program)? {
        println!("{count:>14}  {name}");
    }
    if example == PRODUCT {
        for (name, count) in products(&counts, &program, &run)? {
            let each = record::multiplications(&name).map_or(0.0, |macs| count as f64 / macs as f64);
            println!("{count:>14}  {name}: {each:.3} for each multiply-accumulate");
        }
    }
    Ok(())
}

/// Instructions of each product: what its line in the log begins with, and the count between its marks.
fn products(counts: &Counts, program: &Path, run: &emulator::Run) -> Result<Vec<(String, u64)>> {
    let parts = counts.by_part(program)?;
    let names = run.log.iter().filter_map(|line| line.split_once(": hash "));
    let counts = parts.iter().skip(1).map(|part| part.get(operations::PRODUCTS).copied().unwrap_or(0));
    Ok(names.map(|(name, _)| name.to_owned()).zip(counts).collect())
}

/// Builds and runs all examples on a board, hands each log to `check`, returns what was measured.
fn run_board(board: &Board, purpose: Purpose, check: &mut dyn FnMut(&str, &str) -> Result<()>) -> Result<Vec<Entry>> {
    let programs = toolchain::build(board, &EXAMPLES, purpose)?;
    let mut measured = Vec::new();
    for example in EXAMPLES {
        let program = programs.path(example);
        println!("{} {example}", board.name);
        if !board.is_bare() {
            check(example, &text(&emulator::run(board, &program, None, &mut |_| {})?))?;
            continue;
        }
        let file = fs::read(&program)?;
        if programs.without_panics {
            let panics = elf::panics(&file)?;
            if !panics.is_empty() {
                bail!("{} {example} can panic: {}", board.name, panics.join(", "));
            }
        }
        let (run, counts) = count(board, &program, &mut |_| {})?;
        check(example, &text(&run))?;
        if purpose == Purpose::Run {
            continue; // the summary says so
        }
        let sizes = elf::sizes(&file)?;
        let stack = run.stack.with_context(|| format!("{} {example} did not report its stack", board.name))?;
        let values = [sizes.code, sizes.constants, sizes.ram, stack, counts.total()];
        let mut add = |what: &str, value| {
            measured.push(Entry { board: board.name.into(), example: example.into(), what: what.into(), value });
        };
        MEASURES.iter().zip(values).for_each(|(what, value)| add(what, value));
        if SPLIT.contains(&example) {
            counts.by_operation(&program)?.into_iter().for_each(|(operation, count)| add(operation, count));
        }
        if example == PRODUCT {
            products(&counts, &program, &run)?.iter().for_each(|(product, count)| add(product, *count));
        }
    }
    Ok(measured)
}

/// Runs a program under the counting plugin.
fn count(board: &Board, program: &Path, on_line: &mut dyn FnMut(&str)) -> Result<(emulator::Run, Counts)> {
    let folder = target_dir().join("count");
    fs::create_dir_all(&folder)?;
    let out = folder.join(format!("{}.txt", board.name));
    let argument = operations::argument(&operations::plugin()?, &out, elf::mark(&fs::read(program)?)?);
    let run = emulator::run(board, program, Some(argument), on_line)?;
    Ok((run, Counts::read(&out)?))
}

fn text(run: &emulator::Run) -> String {
    run.log.iter().map(|line| format!("{line}\n")).collect()
}

fn first_difference(expected: &str, found: &str) -> String {
    let (mut expected, mut found) = (expected.lines(), found.lines());
    for line in 1.. {
        match (expected.next(), found.next()) {
            (None, None) => break,
            (a, b) if a == b => {}
            (a, b) => return format!("line {line}: expected {a:?}, found {b:?}"),
        }
    }
    "nothing but line ends".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_compared_is_said() {
        let boards = ["linux", "cortex-m4", "riscv32"].map(|name| Board::find(name).unwrap());
        let entry = |board: &str| Entry { board: board.into(), example: "e".into(), what: "code".into(), value: 1 };
        let all = summary(&boards, &[entry("cortex-m4"), entry("cortex-m4"), entry("riscv32")]);
        assert_eq!(
            all,
            "27 programs give the host's bits; 3 sizes, stacks and counts as recorded, of cortex-m4, riscv32"
        );
        let none = summary(&boards, &[]);
        assert!(
            !none.contains("recorded")
                && none.ends_with("(SORCEN_NO_SIZES=1): sizes, stacks and counts of cortex-m4, riscv32")
        );
    }
}
