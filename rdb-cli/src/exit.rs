//! How a command ends: exit codes, and the words on stderr.
//!
//! Owns the table of exit codes (a contract with scripts). Knows nothing of any one command.

use rdb_client::{ClientError, ErrorKind, Outcome};
use rdb_types::Reason;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use tonic::Code;

/// 1: anything that has no code of its own.
pub(crate) const ERROR: u8 = 1;
/// 2: the command line or the request is not well formed.
pub(crate) const USAGE: u8 = 2;
/// 3: the key or the namespace does not exist.
pub(crate) const NOT_FOUND: u8 = 3;
/// 4: no store answers, or the stores have no quorum.
pub(crate) const UNAVAILABLE: u8 = 4;
/// 5: a compare-and-swap lost.
pub(crate) const LOST: u8 = 5;

/// For `--help`.
pub(crate) const TABLE: &str = "Exit codes: 0 done, 1 error, 2 usage, 3 not found, 4 unavailable or no quorum, \
                                5 compare-and-swap lost.";

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub(crate) enum Error {
    /// What the client said.
    Client(Box<ClientError>),
    /// What was asked makes no sense.
    Usage(String),
    /// A file or a stream.
    Io(String),
    /// Who read our output went away. Not worth a word.
    BrokenPipe,
}

impl Error {
    pub(crate) fn io(what: &str, error: &io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Error::BrokenPipe,
            _ => Error::Io(format!("{what}: {error}")),
        }
    }
}

impl From<ClientError> for Error {
    fn from(error: ClientError) -> Error {
        Error::Client(Box::new(error))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Client(error) if error.kind == ErrorKind::Connect => write!(
                f,
                "{error}\n  Start a store with: rdb-server (on 127.0.0.1:50051, or with --addr where you ask)\n  \
                 or name others with --endpoints HOST:PORT,... (or FLAREDB_ENDPOINTS)"
            ),
            // What an HTTP/1 server's words look like to a gRPC library.
            Error::Client(error) if error.message.contains("compression flag") => write!(
                f,
                "{error}\n  No store answers there as a store does. If it is a store's HTTP port (50061 by default), \
                 ask its other one (50051)"
            ),
            Error::Client(error) => {
                write!(f, "{error}")?;
                if error.kind == ErrorKind::Deadline && error.outcome != Outcome::Unknown {
                    write!(
                        f,
                        "\n  or ask another store with --endpoints HOST:PORT,... (or FLAREDB_ENDPOINTS)"
                    )?;
                }
                if let Some(outcome) = unsaid_outcome(&error.message, &error.metadata) {
                    write!(f, "\n  {outcome}")?;
                }
                let id = error
                    .request_id
                    .as_deref()
                    .and_then(|id| std::str::from_utf8(id).ok());
                match id.filter(|_| error.is_repeatable()) {
                    Some(id) => write!(
                        f,
                        "\n  Repeated safely by the same command with --request-id {id}"
                    ),
                    None => Ok(()),
                }
            }
            Error::Usage(text) | Error::Io(text) => f.write_str(text),
            Error::BrokenPipe => Ok(()),
        }
    }
}

/// What became of a change, where the store knows it and its text does not say so.
fn unsaid_outcome(message: &str, metadata: &BTreeMap<String, String>) -> Option<&'static str> {
    let outcome = metadata.get("outcome")?;
    if message.contains("applied") {
        return None;
    }
    match outcome.as_str() {
        "not_applied" => Some("Nothing was applied."),
        "unknown" => Some("Whether it was applied is not known: look, or do it again."),
        _ => None,
    }
}

/// The exit code of a failure.
pub(crate) fn code(error: &Error) -> u8 {
    match error {
        Error::Client(error) => client_code(error),
        Error::Usage(_) => USAGE,
        Error::Io(_) => ERROR,
        Error::BrokenPipe => 0,
    }
}

fn client_code(error: &ClientError) -> u8 {
    match (error.kind, error.code) {
        (ErrorKind::Usage, _) | (_, Code::InvalidArgument) => USAGE,
        (_, Code::NotFound) => NOT_FOUND,
        (ErrorKind::Connect | ErrorKind::Broken | ErrorKind::Deadline, _)
        | (_, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled) => UNAVAILABLE,
        _ if error.reason == Some(Reason::Overloaded) => UNAVAILABLE,
        _ => ERROR,
    }
}

/// Says on stderr what went wrong, and gives the exit code.
pub(crate) fn report(error: &Error) -> ExitCode {
    if !matches!(error, Error::BrokenPipe) {
        note(&format!("flaredb: {error}"));
    }
    ExitCode::from(code(error))
}

/// A line for people, beside the data. A closed stderr has nobody to tell.
pub(crate) fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_a_change_is_said_once() {
        let said = |message: &str, outcome: &str| {
            let metadata = [("outcome".to_owned(), outcome.to_owned())];
            unsaid_outcome(message, &BTreeMap::from(metadata))
        };
        let no_quorum = "region 1 has had no leader with a quorum for 3.0 s";
        assert_eq!(said(no_quorum, "not_applied"), Some("Nothing was applied."));
        assert!(said(no_quorum, "unknown").is_some_and(|it| it.contains("not known")));
        assert_eq!(said("so the write was not applied", "not_applied"), None);
        assert_eq!(unsaid_outcome(no_quorum, &BTreeMap::new()), None, "a read");
    }
}
