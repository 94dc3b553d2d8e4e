//! Reads register histories in Jepsen's log format.
//!
//! Owns the format: one event a line, its fields separated by white space, behind an optional log
//! prefix that ends in ` - `:
//!
//! ```text
//! INFO  jepsen.util - 0  :invoke  :cas    [3 1]
//! INFO  jepsen.util - 0  :ok      :cas    [3 1]
//! INFO  jepsen.util - 1  :invoke  :read   nil
//! INFO  jepsen.util - 1  :fail    :read   :timed-out
//! ```
//!
//! Does not judge. Invariant: a line is understood or refused, never skipped; a history with a hole
//! in it proves nothing. The exceptions are blank lines and the events of `:nemesis`, who is not a
//! client.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use crate::history::{Call, Op, Outcome, Value};

/// Why a log could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read, or is not text.
    #[error("{file}: cannot be read: {source}")]
    Read {
        /// As the caller named it.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// A line is not an event, or an event that cannot follow those before it.
    #[error("{file}:{line}: {what}")]
    Line {
        /// As the caller named it.
        file: String,
        /// The first line is 1.
        line: u64,
        /// What is wrong with the line.
        what: String,
    },
    /// No event at all: a log that was cut to nothing must not pass as a good history.
    #[error("{file}: holds no event; a history in Jepsen's log format was expected")]
    Empty {
        /// As the caller named it.
        file: String,
    },
}

/// Reads a log file: [`parse`].
pub fn read_file(path: &Path) -> Result<Vec<Call>, Error> {
    let file = path.display().to_string();
    match fs::read_to_string(path) {
        Ok(text) => parse(&file, &text),
        Err(source) => Err(Error::Read { file, source }),
    }
}

/// Reads the text of a log of one register, which gets the key 0. `file` is for error messages.
///
/// Times are line numbers. `:fail :cas [from to]` lost, as the register did not hold `from`;
/// another `:fail` (`:fail :read :timed-out`) says only that nothing was applied. `:info`, and a
/// call that never ended, are unknown.
///
/// # Errors
///
/// On the first line that is not an event, completes no call, or completes another than the one
/// its process has under way.
pub fn parse(file: &str, text: &str) -> Result<Vec<Call>, Error> {
    let mut calls: Vec<Call> = Vec::new();
    let mut open: HashMap<u64, usize> = HashMap::new();
    for (line, content) in (1..).zip(text.lines()) {
        Event::parse(content)
            .and_then(|event| match event {
                Some(event) => apply(&mut calls, &mut open, line, &event),
                None => Ok(()),
            })
            .map_err(|what| Error::Line {
                file: file.to_owned(),
                line,
                what,
            })?;
    }
    if calls.is_empty() {
        return Err(Error::Empty {
            file: file.to_owned(),
        });
    }
    Ok(calls)
}

fn apply(
    calls: &mut Vec<Call>,
    open: &mut HashMap<u64, usize>,
    line: u64,
    event: &Event<'_>,
) -> Result<(), String> {
    let Event {
        process,
        kind,
        function,
        value,
    } = *event;
    if kind == Kind::Invoke {
        let op = invoked_op(function, value)?;
        if let Some(index) = open.insert(process, calls.len()) {
            let since = calls[index].invoked_ns;
            return Err(format!(
                "process {process} invokes a call while its call of line {since} is under way"
            ));
        }
        let outcome = Outcome::Unknown;
        calls.push(Call {
            process,
            key: 0,
            op,
            invoked_ns: line,
            returned_ns: None,
            outcome,
        });
        return Ok(());
    }

    let Some(index) = open.remove(&process) else {
        return Err(format!(
            "process {process} completes a call but has none under way"
        ));
    };
    let call = &mut calls[index];
    let said = format!("{function} {value}");
    let invoked = || format!("\"{}\" of line {}", call.op, call.invoked_ns);
    if function != name_of(call.op) {
        return Err(format!(
            "process {process} completes {} as \"{said}\"",
            invoked()
        ));
    }
    let repeats = || invoked_op(function, value).ok() == Some(call.op);
    let outcome = match kind {
        Kind::Ok if call.op == Op::Read => Outcome::Read(content(value)?),
        Kind::Ok if repeats() => Outcome::Done,
        Kind::Fail if repeats() && matches!(call.op, Op::Cas { .. }) => Outcome::CasLost,
        // `:fail` with a reason, or of a read or write: it was not applied, and nothing is known.
        Kind::Fail if repeats() || value.starts_with(':') => Outcome::NotApplied,
        Kind::Info if repeats() || value.starts_with(':') => Outcome::Unknown,
        _ => {
            return Err(format!(
                "process {process} completes {} with \"{said}\"",
                invoked()
            ));
        }
    };
    call.outcome = outcome;
    call.returned_ns = Some(line);
    Ok(())
}

/// One line's event.
struct Event<'a> {
    process: u64,
    kind: Kind,
    function: &'a str,
    /// The rest of the line.
    value: &'a str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Invoke,
    Ok,
    Fail,
    Info,
}

impl<'a> Event<'a> {
    fn parse(line: &'a str) -> Result<Option<Self>, String> {
        let event = line
            .rsplit_once(" - ")
            .map_or(line, |(_prefix, event)| event);
        let mut rest = event;
        let mut field = |name: &str| {
            let trimmed = rest.trim_start();
            let (field, after) =
                trimmed.split_at(trimmed.find(char::is_whitespace).unwrap_or(trimmed.len()));
            rest = after;
            match field {
                "" => Err(format!(
                    "no {name}: expected \"PROCESS :invoke|:ok|:fail|:info \
                     :read|:write|:cas|:delete VALUE\", found {line:?}"
                )),
                field => Ok(field),
            }
        };
        if line.trim().is_empty() {
            return Ok(None);
        }
        let process = field("process")?;
        if process == ":nemesis" {
            return Ok(None);
        }
        let process = process
            .parse()
            .map_err(|_| format!("{process:?} is no process number"))?;
        let kind = match field("type")? {
            ":invoke" => Kind::Invoke,
            ":ok" => Kind::Ok,
            ":fail" => Kind::Fail,
            ":info" => Kind::Info,
            other => return Err(format!("unknown type {other:?}")),
        };
        let function = field("function")?;
        let value = rest.trim();
        Ok(Some(Event {
            process,
            kind,
            function,
            value,
        }))
    }
}

fn name_of(op: Op) -> &'static str {
    match op {
        Op::Read => ":read",
        Op::Write(_) => ":write",
        Op::Cas { .. } => ":cas",
        Op::Delete => ":delete",
    }
}

/// What an invocation asks for.
fn invoked_op(function: &str, value: &str) -> Result<Op, String> {
    match function {
        ":read" if value == "nil" || value.is_empty() => Ok(Op::Read),
        ":read" => Err(format!("a read is invoked with nil, not {value:?}")),
        ":delete" if value == "nil" || value.is_empty() => Ok(Op::Delete),
        ":delete" => Err(format!("a delete is invoked with nil, not {value:?}")),
        ":write" => number(value).map(Op::Write),
        ":cas" => {
            let inner = value
                .strip_prefix('[')
                .and_then(|value| value.strip_suffix(']'));
            let mut parts = inner.unwrap_or_default().split_whitespace();
            let (Some(from), Some(to), None) = (parts.next(), parts.next(), parts.next()) else {
                return Err(format!("a cas takes [FROM TO], not {value:?}"));
            };
            Ok(Op::Cas {
                from: content(from)?,
                to: number(to)?,
            })
        }
        other => Err(format!("unknown function {other:?}")),
    }
}

fn content(text: &str) -> Result<Option<Value>, String> {
    if text == "nil" {
        Ok(None)
    } else {
        number(text).map(Some)
    }
}

fn number(text: &str) -> Result<Value, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is no value: a number from 0 to {}", Value::MAX))
}
