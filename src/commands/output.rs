//! What commands print: aligned tables for people, JSON for programs.

use std::io::{self, Write};

use api::ErrorReport;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use unicode_width::UnicodeWidthStr;

/// Prints on standard output as one JSON line.
///
/// # Errors
/// Standard output is gone.
pub fn json(value: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, value).map_err(io::Error::from)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Prints a line on standard output.
///
/// # Errors
/// Standard output is gone.
pub fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// Says something beside the answer, on standard error. If nobody hears it, nothing is lost.
pub fn aside(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", printable(text));
}

/// Says what went wrong on standard error.
pub fn error(report: &ErrorReport, as_json: bool) {
    let mut out = io::stderr().lock();
    if as_json {
        let _ = serde_json::to_writer(&mut out, report).map(|()| out.write_all(b"\n"));
        return;
    }
    let _ = writeln!(out, "backhaul: {}", printable(&report.message));
    for cause in report.causes.iter().filter(|cause| !report.message.contains(*cause)) {
        let _ = writeln!(out, "  because: {}", printable(cause));
    }
    if let Some(next) = &report.next {
        let _ = writeln!(out, "  next: {}", printable(next));
    }
}

/// Prints rows under headings, columns aligned by what they take on a terminal; the last column is not padded.
///
/// # Errors
/// Standard output is gone.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.width());
        cells.max().unwrap_or(0).max(headings[column].width())
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let mut out = io::BufWriter::new(io::stdout().lock());
    let headings: Vec<String> = headings.iter().map(|heading| (*heading).to_owned()).collect();
    for row in std::iter::once(&headings).chain(&rows) {
        let mut text = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', width - cell.width() + 2));
        }
        writeln!(out, "{}", text.trim_end())?;
    }
    out.flush()
}

/// Text from outside, safe on a terminal: control characters and marks that turn the direction of writing are replaced.
pub fn printable(text: &str) -> String {
    let harmful =
        |c: char| c.is_control() || matches!(c, '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if harmful(c) { '\u{FFFD}' } else { c }).collect()
}

/// A point in time, in this machine's time zone.
pub fn time(milliseconds: i64) -> String {
    match Timestamp::from_millisecond(milliseconds) {
        Ok(time) => time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => "?".into(),
    }
}

/// A word of the API, as it stands on the wire.
pub fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(value) => value.to_string(),
        Err(_) => "?".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_moves_the_cursor() {
        assert_eq!(printable("a\x1b[2Jb\n\u{202E}c\u{9b}"), "a\u{FFFD}[2Jb\u{FFFD}\u{FFFD}c\u{FFFD}");
        assert_eq!(printable("東京 🗼 \"quoted\" ../x"), "東京 🗼 \"quoted\" ../x");
    }

    #[test]
    fn words_are_those_of_the_wire() {
        assert_eq!(word(&api::JobMode::Delta), "delta");
        assert_eq!(word(&api::TaskKind::Unknown), "unknown");
    }
}
