//! The record of sizes and counts (`measured.csv`), and the tables of it in the README.

use std::{fs, path::PathBuf};

use anyhow::{bail, Context, Result};

use crate::{boards::BOARDS, operations::PRODUCTS, toolchain::root};

/// A value may grow by this much before it counts as a regression.
const SLACK: f64 = 1.05;

/// What is measured of every example: bytes, and executed instructions.
pub const MEASURES: [&str; 5] = ["code", "constants", "ram", "stack", "instructions"];

const HEADER: &str = "board,example,what,value";

/// One measurement: one of [`MEASURES`], or the instructions of one operation or product.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub board: String,
    pub example: String,
    pub what: String,
    pub value: u64,
}

fn file() -> PathBuf {
    root().join("measured.csv")
}

/// The record; empty where there is none yet.
pub fn read() -> Result<Vec<Entry>> {
    let Ok(text) = fs::read_to_string(file()) else { return Ok(Vec::new()) };
    let mut lines = text.lines();
    if lines.next() != Some(HEADER) {
        bail!("measured.csv: expected the columns {HEADER}");
    }
    lines.map(|line| parse(line).with_context(|| format!("measured.csv: {line:?}"))).collect()
}

fn parse(line: &str) -> Result<Entry> {
    let [board, example, what, value] = line.split(',').collect::<Vec<_>>()[..] else { bail!("expected 4 columns") };
    Ok(Entry { board: board.into(), example: example.into(), what: what.into(), value: value.parse()? })
}

/// Replaces what the record says of the boards that were measured, and shows all of it in the README.
pub fn renew(measured: Vec<Entry>) -> Result<()> {
    let old = read()?;
    let mut entries = Vec::new();
    for board in BOARDS {
        let of_board = |entries: &[Entry]| -> Vec<Entry> {
            entries.iter().filter(|entry| entry.board == board.name).cloned().collect()
        };
        let new = of_board(&measured);
        entries.extend(if new.is_empty() { of_board(&old) } else { new });
    }
    let mut text = format!("{HEADER}\n");
    for Entry { board, example, what, value } in &entries {
        text += &format!("{board},{example},{what},{value}\n");
    }
    fs::write(file(), text)?;
    let readme = root().join("README.md");
    let mut text = fs::read_to_string(&readme)?;
    for (name, table) in tables(&entries) {
        replace(&mut text, name, &table)?;
    }
    Ok(fs::write(readme, text)?)
}

/// Checks that the README shows the record.
pub fn check_readme() -> Result<()> {
    let text = fs::read_to_string(root().join("README.md"))?;
    for (name, table) in tables(&read()?) {
        if !text.contains(&table) {
            bail!("README.md does not show measured.csv ({name}); run: cargo fw bless");
        }
    }
    Ok(())
}

/// What got worse than the record allows, one line each.
pub fn regressions(record: &[Entry], measured: &[Entry]) -> Vec<String> {
    let mut worse = Vec::new();
    for Entry { board, example, what, value } in measured {
        if !MEASURES.contains(&what.as_str()) {
            continue;
        }
        match find(record, board, example, what) {
            None => worse.push(format!("{board} {example}: {what} is not in measured.csv")),
            Some(old) if *value as f64 > old as f64 * SLACK => {
                let percent = (*value as f64 / old as f64 - 1.0) * 100.0;
                worse.push(format!("{board} {example}: {what} {old} -> {value} (+{percent:.1} %)"));
            }
            Some(_) => {}
        }
    }
    worse
}

fn find(entries: &[Entry], board: &str, example: &str, what: &str) -> Option<u64> {
    let is_it = |entry: &&Entry| entry.board == board && entry.example == example && entry.what == what;
    entries.iter().find(is_it).map(|entry| entry.value)
}

/// Puts text between `<!-- NAME -->` and `<!-- end -->`.
fn replace(text: &mut String, name: &str, new: &str) -> Result<()> {
    let mark = format!("<!-- {name} -->\n");
    let start = text.find(&mark).with_context(|| format!("README.md: no {mark:?}"))? + mark.len();
    let end = start + text[start..].find("<!-- end -->").context("README.md: no <!-- end -->")?;
    text.replace_range(start..end, new);
    Ok(())
}

fn tables(entries: &[Entry]) -> [(&'static str, String); 3] {
    [("measured", sizes_table(entries)), ("operations", operations_table(entries)), ("product", product_table(entries))]
}

/// A row for each board and example.
fn sizes_table(entries: &[Entry]) -> String {
    let mut text = String::from(
        "| board | example | code | constants | **flash** | static RAM | stack | **RAM** | million instructions |\n\
         |---|---|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for board in BOARDS {
        let mut examples: Vec<&str> = Vec::new();
        for entry in entries.iter().filter(|entry| entry.board == board.name) {
            if !examples.contains(&entry.example.as_str()) {
                examples.push(&entry.example);
            }
        }
        for example in examples {
            let value = |what| find(entries, board.name, example, what).unwrap_or(0);
            let [code, constants, ram, stack, instructions] = MEASURES.map(value);
            let kb = |bytes: u64| format!("{:.1}", bytes as f64 / 1000.0);
            text += &format!(
                "| {} | {example} | {} | {} | **{}** | {} | {} | **{}** | {:.1} |\n",
                board.name,
                kb(code),
                kb(constants),
                kb(code + constants),
                kb(ram),
                kb(stack),
                kb(ram + stack),
                instructions as f64 / 1e6,
            );
        }
    }
    text
}

/// A row for each operation, a column for each board.
fn operations_table(entries: &[Entry]) -> String {
    let is_operation = |entry: &&Entry| entry.example == "features" && !MEASURES.contains(&entry.what.as_str());
    let operations = || entries.iter().filter(is_operation);
    let (mut boards, mut rows): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    for entry in operations() {
        if !boards.contains(&entry.board.as_str()) {
            boards.push(&entry.board);
        }
        if !rows.contains(&entry.what.as_str()) {
            rows.push(&entry.what);
        }
    }
    let mut text = format!("| million instructions | {} |\n|---|{}\n", boards.join(" | "), "--:|".repeat(boards.len()));
    for row in rows {
        let cells: Vec<String> = boards
            .iter()
            .map(|board| operations().find(|entry| entry.board == *board && entry.what == row).map_or(0, |e| e.value))
            .map(|count| format!("{:.2}", count as f64 / 1e6))
            .collect();
        text += &format!("| {row} | {} |\n", cells.join(" | "));
    }
    text
}

/// Instructions of matrix products for each multiply-accumulate: a row for each product, a column for each board.
fn product_table(entries: &[Entry]) -> String {
    /// Four blocks of 65 rows: qkv, proj, fc1, fc2, and the scores of 4 heads 16 wide.
    const ENCODER: u64 = 4 * 65 * (64 * (3 * 64 + 64 + 256 + 256) + 65 * 64);
    let products = || entries.iter().filter(|entry| entry.example == "product");
    let (mut boards, mut rows): (Vec<&str>, Vec<(&str, u64)>) = (Vec::new(), Vec::new());
    for entry in products() {
        let Some(macs) = multiplications(&entry.what) else { continue };
        if !boards.contains(&entry.board.as_str()) {
            boards.push(&entry.board);
        }
        if !rows.contains(&(&entry.what, macs)) {
            rows.push((&entry.what, macs));
        }
    }
    let line = |name: &str, macs: u64, count: &dyn Fn(&str) -> Option<u64>| {
        let cells: Vec<String> =
            boards.iter().map(|board| format!("{:.3}", count(board).unwrap_or(0) as f64 / macs as f64)).collect();
        format!("| {name} | {} |\n", cells.join(" | "))
    };
    let mut text =
        format!("| rows × inputs × outputs | {} |\n|---|{}\n", boards.join(" | "), "--:|".repeat(boards.len()));
    for (what, macs) in rows {
        let (sizes, rest) = what.split_once(' ').unwrap_or((what, ""));
        let name = format!("{} {rest}", sizes.replace('x', "×"));
        text += &line(&name, macs, &|board| find(entries, board, "product", what));
    }
    for example in ["features", "int4"] {
        text += &line(&format!("**all of `{example}`**"), ENCODER, &|board| find(entries, board, example, PRODUCTS));
    }
    text
}

/// Multiply-accumulates of a product by its name, which starts with rows, inputs and outputs: `65x64x16 …`.
pub fn multiplications(name: &str) -> Option<u64> {
    let sizes = name.split(' ').next()?;
    let sizes: Vec<u64> = sizes.split('x').map(|size| size.parse().ok()).collect::<Option<_>>()?;
    (sizes.len() == 3).then(|| sizes.iter().product())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_of_more_than_five_percent_is_a_regression() {
        let entry = |what: &str, value| Entry { board: "b".into(), example: "e".into(), what: what.into(), value };
        let record = [entry("code", 100), entry("stack", 1000)];
        assert_eq!(regressions(&record, &[entry("code", 105), entry("stack", 900)]), Vec::<String>::new());
        assert_eq!(regressions(&record, &[entry("code", 106), entry("stack", 1051)]).len(), 2);
        assert_eq!(regressions(&[], &record).len(), 2);
        assert_eq!(regressions(&[], &[entry("GELU", 5)]), Vec::<String>::new());
    }

    #[test]
    fn a_product_is_named_by_its_sizes() {
        assert_eq!(multiplications("65x64x16 queries"), Some(65 * 64 * 16));
        assert_eq!([multiplications("code"), multiplications("65x64"), multiplications("")], [None; 3]);
    }
}
