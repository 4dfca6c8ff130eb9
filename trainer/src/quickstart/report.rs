//! `report.md`: what the run did, in numbers and pictures.

use std::fmt::Write;

/// A Markdown document, section by section.
#[derive(Default)]
pub struct Report {
    text: String,
}

impl Report {
    /// A document with a title and a first paragraph.
    pub fn new(title: &str, intro: &str) -> Self {
        Self { text: format!("# {title}\n\n{intro}\n") }
    }

    /// A section with Markdown contents.
    pub fn section(&mut self, title: &str, body: &str) {
        self.text += &format!("\n## {title}\n\n{}\n", body.trim_end());
    }

    /// The document.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// A Markdown table.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut out = String::new();
    let line = |cells: &mut dyn Iterator<Item = &str>| format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "));
    out += &line(&mut header.iter().copied());
    out += &line(&mut header.iter().map(|_| "---"));
    for row in rows {
        out += &line(&mut row.iter().map(String::as_str));
    }
    out
}

/// A picture with a caption.
pub fn picture(file: &str, caption: &str) -> String {
    let mut out = String::new();
    let _ = write!(out, "![{caption}]({file})\n\n{caption}\n\n");
    out
}

/// Bytes as a person reads them.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..=9_999 => format!("{bytes} B"),
        10_000..=9_999_999 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.2} MB", bytes as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_and_sizes() {
        let text = table(&["a", "b"], &[vec!["1".into(), "2".into()]]);
        assert_eq!(text, "| a | b |\n| --- | --- |\n| 1 | 2 |\n");
        assert_eq!([size(12), size(12_345), size(12_345_678)], ["12 B", "12.3 kB", "12.35 MB"]);
        let mut report = Report::new("t", "i");
        report.section("s", "body\n\n");
        assert_eq!(report.as_str(), "# t\n\ni\n\n## s\n\nbody\n");
    }
}
