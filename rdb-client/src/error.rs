//! What a call that failed tells its caller.
//!
//! Owns [`ClientError`] and its wording. Knows nothing of how attempts are made.

use crate::failure::Failure;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use rdb_types::Reason;
use std::collections::BTreeMap;
use std::fmt;
use tonic::{Code, Status};

/// What became of the request, over all its attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A write, and every attempt certainly did nothing.
    NotApplied,
    /// A write that may have been applied, or may yet be.
    Unknown,
    /// Nothing to apply.
    NotAWrite,
}

/// Where a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The call or the options are wrong; nothing was sent.
    Usage,
    /// No connection could be made.
    Connect,
    /// The connection broke before the answer came.
    Broken,
    /// The deadline passed before the answer came.
    Deadline,
    /// A store answered, and refused.
    Refused,
}

/// A call that failed. Its text says what failed, why, and what to do next.
#[derive(Clone, Debug, thiserror::Error)]
pub struct ClientError {
    /// The store's reason; `None` when no store gave one.
    pub reason: Option<Reason>,
    /// The gRPC code.
    pub code: Code,
    /// What a store, or the network, said.
    pub message: String,
    /// What the store's reason promises: region, leader, limits.
    pub metadata: BTreeMap<String, String>,
    /// What became of a write.
    pub outcome: Outcome,
    /// How often the call was tried.
    pub attempts: u32,
    /// Where it ended.
    pub kind: ErrorKind,
    /// What was called: `put`, `scan`.
    pub operation: &'static str,
    /// The id under which this write may be repeated safely.
    pub request_id: Option<Bytes>,
}

/// In the metadata of a write of unknown outcome: the namespace is eventual.
pub(crate) const MODE: &str = "mode";

impl ClientError {
    pub(crate) fn usage(operation: &'static str, message: impl Into<String>) -> ClientError {
        ClientError {
            reason: Some(Reason::InvalidArgument),
            code: Code::InvalidArgument,
            message: message.into(),
            metadata: BTreeMap::new(),
            outcome: Outcome::NotAWrite,
            attempts: 0,
            kind: ErrorKind::Usage,
            operation,
            request_id: None,
        }
    }

    /// A stream that had begun ended with this.
    pub(crate) fn of_stream(operation: &'static str, status: &Status) -> ClientError {
        let failure = Failure::from_status("the store", status);
        ClientError {
            reason: failure.reason,
            code: failure.code,
            message: failure.message,
            metadata: failure.metadata,
            outcome: Outcome::NotAWrite,
            attempts: 1,
            kind: failure.kind,
            operation,
            request_id: None,
        }
    }

    /// Whether a later try of the same call may succeed with nothing else changed.
    pub fn is_unavailable(&self) -> bool {
        matches!(
            self.code,
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled
        ) || self.reason == Some(Reason::Overloaded)
    }

    /// Whether this is a write of unknown outcome that may be repeated under its request id, and where
    /// that may help. What is wrong with the request, or broken in the store, does not pass by itself.
    pub fn is_repeatable(&self) -> bool {
        // Another store of an eventual namespace does not know the id.
        if self.metadata.contains_key(MODE) {
            return false;
        }
        let passes = self.is_unavailable() || matches!(self.kind, ErrorKind::Broken);
        self.outcome == Outcome::Unknown && self.request_id.is_some() && passes
    }

    /// With `SESSION_LOST`: the token to go on with, for whoever brings tokens of his own.
    pub fn fresh_session(&self) -> Option<Bytes> {
        let fresh = self.metadata.get("session")?;
        let fresh =
            (self.reason == Some(Reason::SessionLost)).then(|| BASE64_STANDARD.decode(fresh));
        fresh?.ok().map(Bytes::from)
    }

    /// What to say of an endpoint that may be a store's other port. A store of ours gives a reason with
    /// every refusal; an HTTP server knows no such page, or breaks the connection.
    const OTHER_PORT: &str = "if no call there is ever answered, it may be the port of --http-addr: clients need that of --addr (50051 unless set)";

    fn next_step(&self) -> Option<&'static str> {
        if self.outcome == Outcome::Unknown {
            return Some(match self.request_id {
                Some(_) if self.is_repeatable() => {
                    "the write may have been applied; repeat it with the same request id, or read before deciding"
                }
                _ if self.metadata.contains_key(MODE) => {
                    "the write may have been applied at that store, and no other knows its request id yet; read before deciding"
                }
                _ => "the write may have been applied; read before deciding",
            });
        }
        if self.code == Code::Unimplemented && self.reason.is_none() {
            return Some(Self::OTHER_PORT);
        }
        // No store of ours: those give a reason with every refusal.
        if self.kind == ErrorKind::Refused && self.reason.is_none() && !self.is_unavailable() {
            return Some(
                "no reason came with it, so it may be from something between: see its log, and the store's",
            );
        }
        // A store's refusal says itself what to do next.
        match self.kind {
            ErrorKind::Connect => Some("is a store running there?"),
            ErrorKind::Deadline => Some("try again, or allow a longer timeout"),
            // No attempt was answered, or that would be told.
            ErrorKind::Broken => Some(Self::OTHER_PORT),
            ErrorKind::Usage | ErrorKind::Refused => None,
        }
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed", self.operation)?;
        if self.attempts > 1 {
            write!(f, " after {} attempts", self.attempts)?;
        }
        f.write_str(": ")?;
        match self.reason {
            Some(reason) if self.kind != ErrorKind::Usage => write!(f, "{reason}: ")?,
            _ => {}
        }
        f.write_str(&self.message)?;
        match self.next_step() {
            Some(next) => write!(f, "; {next}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_says_what_why_and_what_next() {
        let error = ClientError {
            reason: Some(Reason::NoQuorum),
            code: Code::Unavailable,
            message: "region 2 reaches 1 of 3 replicas; see `flaredb status`".into(),
            metadata: BTreeMap::new(),
            outcome: Outcome::NotApplied,
            attempts: 4,
            kind: ErrorKind::Refused,
            operation: "put",
            request_id: None,
        };
        let text = error.to_string();
        assert!(
            text.starts_with("put failed after 4 attempts: NO_QUORUM: region 2 reaches 1 of 3")
        );
        assert!(text.contains("flaredb status"), "{text}");
        let unknown = ClientError {
            outcome: Outcome::Unknown,
            ..error
        };
        assert!(unknown.to_string().contains("may have been applied"));
    }

    #[test]
    fn an_endpoint_that_is_another_port_is_suspected() {
        // What tonic makes of an HTTP server's 404, and of a connection that it breaks.
        for (code, kind) in [
            (Code::Unimplemented, ErrorKind::Refused),
            (Code::Unavailable, ErrorKind::Broken),
        ] {
            let error = ClientError {
                reason: None,
                code,
                kind,
                outcome: Outcome::NotAWrite,
                ..ClientError::usage("get", "mapped from HTTP status code 404")
            };
            assert!(error.to_string().contains("--http-addr"), "{error}");
        }
    }

    #[test]
    fn an_error_stays_small() {
        // Results carry it by value everywhere; clippy's limit for that is 128 bytes.
        assert!(
            size_of::<ClientError>() <= 128,
            "{}",
            size_of::<ClientError>()
        );
    }
}
