//! Where results go: stdout, in the chosen format.
//!
//! Owns formats and their defaults. A command gives rows or documents; it never asks whether it talks
//! to a terminal.
//!
//! Invariant: json is one document, jsonl one a line, written as they come: output that is cut off
//! ends at a line.

use crate::args::Format;
use crate::exit::Error;
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;
use std::io::{self, BufWriter, IsTerminal, Write};

/// Rows of a table that are laid out together. A longer result is several tables, so that it appears
/// while it is read and is never held whole.
const ROWS_TOGETHER: usize = 1000;

/// Columns of a terminal that does not say how wide it is.
const UNKNOWN_COLUMNS: u16 = 80;

/// A result on its way out.
pub(crate) struct Output {
    out: BufWriter<io::StdoutLock<'static>>,
    format: Format,
    header: &'static [&'static str],
    rows: Vec<Vec<String>>,
    written: usize,
    is_list: bool,
}

/// One result, in every form.
pub(crate) struct Item {
    /// Cells, in the order of the header.
    pub(crate) row: Vec<String>,
    /// The document.
    pub(crate) json: Value,
    /// What raw prints, without the line's end.
    pub(crate) raw: Vec<u8>,
}

impl Output {
    /// For one result. `default` stands where the user chose nothing.
    pub(crate) fn one(chosen: Option<Format>, header: &'static [&'static str]) -> Output {
        Output::new(chosen, header, false)
    }

    /// For any number of results: json is an array.
    pub(crate) fn list(chosen: Option<Format>, header: &'static [&'static str]) -> Output {
        Output::new(chosen, header, true)
    }

    fn new(chosen: Option<Format>, header: &'static [&'static str], is_list: bool) -> Output {
        let default = if io::stdout().is_terminal() {
            Format::Table
        } else {
            Format::Jsonl
        };
        Output {
            out: BufWriter::new(io::stdout().lock()),
            format: chosen.unwrap_or(default),
            header,
            rows: Vec::new(),
            written: 0,
            is_list,
        }
    }

    /// Whether this is for people or for pipes, and not a document: what belongs to the whole result is
    /// then said on stderr.
    pub(crate) fn is_text(&self) -> bool {
        matches!(self.format, Format::Table | Format::Raw)
    }

    /// Whether this is columns for people.
    pub(crate) fn is_table(&self) -> bool {
        matches!(self.format, Format::Table)
    }

    /// Brings what was added to its reader, where it is written as it comes.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        self.out.flush().map_err(write_failed)
    }

    /// A line beside the columns, for what comes one by one and is not to wait for others.
    pub(crate) fn line(&mut self, text: &str) -> Result<(), Error> {
        writeln!(self.out, "{text}").map_err(write_failed)
    }

    /// Adds a result.
    pub(crate) fn add(&mut self, item: Item) -> Result<(), Error> {
        let first = self.written == 0;
        self.written += 1;
        let done = match self.format {
            Format::Table => {
                self.rows.push(item.row);
                if self.rows.len() == ROWS_TOGETHER {
                    self.flush_table()
                } else {
                    Ok(())
                }
            }
            Format::Jsonl => writeln!(self.out, "{}", item.json),
            Format::Json if self.is_list => {
                let indented = format!("{:#}", item.json).replace('\n', "\n  ");
                write!(
                    self.out,
                    "{}  {indented}",
                    if first { "[\n" } else { ",\n" }
                )
            }
            Format::Json => writeln!(self.out, "{:#}", item.json),
            Format::Raw => self
                .out
                .write_all(&item.raw)
                .and_then(|()| self.out.write_all(b"\n")),
        };
        done.map_err(write_failed)
    }

    /// Ends the output; not to be forgotten, or the last lines are missing.
    pub(crate) fn end(mut self) -> Result<(), Error> {
        let done = match self.format {
            Format::Table if self.rows.is_empty() && self.written > 0 => Ok(()),
            Format::Table => self.flush_table(),
            Format::Json if self.is_list && self.written == 0 => writeln!(self.out, "[]"),
            Format::Json if self.is_list => writeln!(self.out, "\n]"),
            Format::Json | Format::Jsonl | Format::Raw => Ok(()),
        };
        done.and_then(|()| self.out.flush()).map_err(write_failed)
    }

    fn flush_table(&mut self) -> io::Result<()> {
        let rows = std::mem::take(&mut self.rows);
        writeln!(self.out, "{}", table(self.header, rows))
    }
}

/// Bytes as they are, for `get`: nothing added, but a line's end where a person reads it.
pub(crate) fn raw(bytes: &[u8]) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    let ends_line = !out.is_terminal() || bytes.ends_with(b"\n");
    out.write_all(bytes)
        .and_then(|()| {
            if ends_line {
                Ok(())
            } else {
                out.write_all(b"\n")
            }
        })
        .and_then(|()| out.flush())
        .map_err(write_failed)
}

/// Text, a line's end added.
pub(crate) fn line(text: &str) -> Result<(), Error> {
    writeln!(io::stdout().lock(), "{text}").map_err(write_failed)
}

/// Columns without lines around them; no wider than the terminal.
pub(crate) fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    table_within(Table::new().width(), header, rows)
}

/// `terminal_columns`: as the terminal says; `None` off a terminal, where no line is broken.
fn table_within(terminal_columns: Option<u16>, header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic);
    match terminal_columns {
        // It does not know (a container's, an editor's terminal): that is not one letter a line.
        Some(0) => drop(table.set_width(UNKNOWN_COLUMNS)),
        Some(columns) => drop(table.set_width(columns)),
        None => {}
    }
    table.set_header(header.iter().copied());
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

/// Whether colours are welcome on stdout: a terminal, and no NO_COLOR (<https://no-color.org>).
pub(crate) fn colours() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn write_failed(error: io::Error) -> Error {
    Error::io("cannot write the result", &error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_that_does_not_know_its_width_is_80_columns_wide() {
        let table = |columns| {
            let row = ["region 2", &"leads ".repeat(30)]
                .map(str::to_owned)
                .to_vec();
            table_within(columns, &["WHAT", "STATE"], vec![row])
        };
        assert_eq!(table(Some(0)), table(Some(80)));
        let widest = |columns| table(columns).lines().map(str::len).max();
        assert!(widest(Some(0)).is_some_and(|columns| (60..=80).contains(&columns)));
        assert_eq!(table(None).lines().count(), 2);
        assert!(widest(Some(40)) <= Some(40));
    }
}
