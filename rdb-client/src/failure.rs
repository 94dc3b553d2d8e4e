//! How one attempt of a call failed.
//!
//! Owns the reading of a gRPC status and of a Batch answer's failure: which reason, whether anything
//! may have been applied, how long the store asks to wait. Knows nothing of retries.
//!
//! Invariants: `may_be_applied` is false only where that is certain: nothing was sent, the store says
//! so, or the store refused the request as such. A code that is not known here is final: only the
//! codes that `retry.rs` knows as passing are followed by another attempt.

use crate::error::ErrorKind;
use rdb_proto::kv;
use rdb_types::Reason;
use std::collections::BTreeMap;
use std::error::Error as _;
use std::time::Duration;
use tonic::{Code, ConnectError, Status, TimeoutExpired};
use tonic_types::StatusExt;

/// One attempt that failed.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) kind: ErrorKind,
    pub(crate) code: Code,
    pub(crate) reason: Option<Reason>,
    pub(crate) message: String,
    pub(crate) metadata: BTreeMap<String, String>,
    /// The least wait before a repeat that the store asks for.
    pub(crate) retry_after: Option<Duration>,
    /// Meaningful for writes only.
    pub(crate) may_be_applied: bool,
    /// The message itself was larger than the other side takes.
    pub(crate) oversized: Option<Oversized>,
}

/// A message that was refused unread, for its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Oversized {
    /// The most that is taken, where the answer says it.
    pub(crate) limit_bytes: Option<usize>,
}

impl Failure {
    fn local(kind: ErrorKind, code: Code, message: String, may_be_applied: bool) -> Failure {
        Failure {
            kind,
            code,
            reason: None,
            message,
            metadata: BTreeMap::new(),
            retry_after: None,
            may_be_applied,
            oversized: None,
        }
    }

    /// No connection: nothing was sent.
    pub(crate) fn connect(address: &str, why: &dyn std::fmt::Display) -> Failure {
        let message = format!("cannot connect to {address}: {why}");
        Failure::local(ErrorKind::Connect, Code::Unavailable, message, false)
    }

    /// The stream ended before this operation was sent on it.
    pub(crate) fn not_sent(address: &str) -> Failure {
        let message = format!("the stream to {address} ended before this was sent");
        Failure::local(ErrorKind::Broken, Code::Unavailable, message, false)
    }

    /// The store ended the stream, and owes answers.
    pub(crate) fn stream_ended(address: &str) -> Failure {
        let message = format!("{address} ended the stream before it answered");
        Failure::local(ErrorKind::Broken, Code::Unavailable, message, true)
    }

    /// The status with which a store ended a Batch stream. It answers no single operation: of those
    /// under way on the stream each may have been applied, unless the stream never began.
    pub(crate) fn from_stream_end(address: &str, status: &Status) -> Failure {
        let failure = Failure::from_status(address, status);
        match failure.oversized {
            // One message was, and nobody can tell whose; each operation is to be tried alone.
            Some(oversized) => Failure {
                oversized: Some(oversized),
                ..Failure::local(
                    ErrorKind::Refused,
                    Code::Unavailable,
                    format!("{address} ended the stream: {}", failure.message),
                    true,
                )
            },
            None => Failure {
                may_be_applied: failure.may_be_applied || !refuses_the_call(failure.code),
                ..failure
            },
        }
    }

    /// The same refusal, for an operation that is larger than the limit on its own: it was in the
    /// message that nobody read.
    pub(crate) fn for_too_large(self, address: &str, limit_bytes: usize) -> Failure {
        Failure {
            oversized: self.oversized,
            ..Failure::too_large(address, Some(limit_bytes))
        }
    }

    fn too_large(address: &str, limit_bytes: Option<usize>) -> Failure {
        let limit = limit_bytes.map_or(String::new(), |bytes| format!(" ({bytes} bytes)"));
        let message = format!(
            "the request is larger than {address} takes in one message{limit}; send a smaller value, or raise \
             limits.max_request on every store"
        );
        let mut metadata = BTreeMap::from([("field".to_owned(), "message".to_owned())]);
        if let Some(bytes) = limit_bytes {
            metadata.insert("limit".to_owned(), bytes.to_string());
        }
        Failure {
            reason: Some(Reason::InvalidArgument),
            metadata,
            oversized: Some(Oversized { limit_bytes }),
            ..Failure::local(ErrorKind::Refused, Code::InvalidArgument, message, false)
        }
    }

    /// The deadline passed.
    pub(crate) fn deadline(address: &str, sent: bool) -> Failure {
        let message = if sent {
            format!("{address} did not answer in time")
        } else {
            format!("the time was up before this could be sent to {address}")
        };
        let failure = Failure::local(ErrorKind::Deadline, Code::DeadlineExceeded, message, sent);
        Failure {
            reason: Some(Reason::DeadlineExceeded),
            ..failure
        }
    }

    /// The store answered something that fits no request.
    pub(crate) fn nonsense(address: &str, what: &str) -> Failure {
        let message = format!("{address} answered {what}");
        Failure::local(ErrorKind::Broken, Code::Internal, message, true)
    }

    /// From a call's status: either the store's own words, or what the transport made up.
    pub(crate) fn from_status(address: &str, status: &Status) -> Failure {
        match transport_error(status) {
            Some(Transport::Connect) => Failure::connect(address, &status.message()),
            Some(Transport::Timeout) => Failure::deadline(address, true),
            Some(Transport::Broken) => {
                let message = format!("the connection to {address} broke: {}", status.message());
                Failure::local(ErrorKind::Broken, Code::Unavailable, message, true)
            }
            // tonic's servers watch the deadline too, and call its end so.
            None if status.code() == Code::Cancelled
                && status.message() == TimeoutExpired(()).to_string() =>
            {
                Failure::deadline(address, true)
            }
            // What tonic's servers say of a message that they did not read: no reason, no details.
            None if status.code() == Code::OutOfRange && status.details().is_empty() => {
                match limit_of(status.message()) {
                    Some(limit_bytes) => Failure::too_large(address, Some(limit_bytes)),
                    None => Failure::answered(
                        status.code(),
                        None,
                        status.message().to_owned(),
                        BTreeMap::new(),
                        None,
                    ),
                }
            }
            None => {
                let details = status.get_error_details();
                let (reason, metadata) = match details.error_info() {
                    Some(info) => (
                        info.reason.parse().ok(),
                        info.metadata.clone().into_iter().collect(),
                    ),
                    None => (None, BTreeMap::new()),
                };
                let retry_after = details.retry_info().and_then(|info| info.retry_delay);
                let code = status.code();
                Failure::answered(
                    code,
                    reason,
                    status.message().to_owned(),
                    metadata,
                    retry_after,
                )
            }
        }
    }

    /// From an answer within a Batch.
    pub(crate) fn from_wire(wire: kv::Failure) -> Failure {
        let retry_after =
            (wire.retry_after_ms > 0).then(|| Duration::from_millis(wire.retry_after_ms));
        let reason = wire.reason.parse().ok();
        Failure::answered(
            Code::from_i32(wire.code),
            reason,
            wire.message,
            wire.metadata,
            retry_after,
        )
    }

    fn answered(
        code: Code,
        reason: Option<Reason>,
        message: String,
        metadata: BTreeMap<String, String>,
        retry_after: Option<Duration>,
    ) -> Failure {
        let may_be_applied = match metadata.get("outcome").map(String::as_str) {
            Some("not_applied") => false,
            Some(_) => true,
            None => !refuses_the_request(code, reason),
        };
        let is_message = metadata
            .get("field")
            .is_some_and(|field| field == "message");
        let oversized =
            (reason == Some(Reason::InvalidArgument) && is_message).then(|| Oversized {
                limit_bytes: metadata.get("limit").and_then(|limit| limit.parse().ok()),
            });
        Failure {
            kind: if code == Code::DeadlineExceeded {
                ErrorKind::Deadline
            } else {
                ErrorKind::Refused
            },
            code,
            reason,
            message,
            metadata,
            retry_after,
            may_be_applied,
            oversized,
        }
    }

    /// Whether the connection is at fault, not the request or the store's state.
    pub(crate) fn is_network(&self) -> bool {
        matches!(self.kind, ErrorKind::Connect | ErrorKind::Broken)
    }

    /// The leader's address, where the answer names one.
    pub(crate) fn leader_address(&self) -> Option<&str> {
        ["leader_address", "leader"]
            .iter()
            .filter_map(|key| self.metadata.get(*key))
            .map(String::as_str)
            .find(|value| value.contains(':'))
    }
}

/// Codes by which a store turns a request away before anything happens. ResourceExhausted is one only
/// with a reason: the transport uses the bare code for a broken connection too.
fn refuses_the_request(code: Code, reason: Option<Reason>) -> bool {
    match code {
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented => true,
        Code::ResourceExhausted => reason.is_some(),
        _ => false,
    }
}

/// Codes by which a stream is turned away before it begins.
fn refuses_the_call(code: Code) -> bool {
    matches!(
        code,
        Code::Unimplemented | Code::Unauthenticated | Code::PermissionDenied
    )
}

/// The limit in "decoded message length too large: found 5 bytes, the limit is: 4 bytes".
fn limit_of(text: &str) -> Option<usize> {
    let (_, limit) = text
        .contains("message length too large")
        .then(|| text.split_once("the limit is: "))??;
    limit.split(' ').next()?.parse().ok()
}

enum Transport {
    Connect,
    Timeout,
    Broken,
}

/// A status that carries a source was made up on this side; one from a store has none.
fn transport_error(status: &Status) -> Option<Transport> {
    let mut source = status.source();
    source?;
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return Some(Transport::Connect);
        }
        if error.is::<TimeoutExpired>() {
            return Some(Transport::Timeout);
        }
        source = error.source();
    }
    Some(Transport::Broken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    #[test]
    fn reason_metadata_and_delay_are_read_from_the_details() {
        let mut details = ErrorDetails::new();
        let metadata = [("region", "2"), ("outcome", "not_applied"), ("leader", "3")];
        details.set_error_info(
            "NO_QUORUM",
            "flaredb",
            metadata.map(|(k, v)| (k.to_owned(), v.to_owned())),
        );
        details.set_retry_info(Some(Duration::from_millis(200)));
        let status = Status::with_error_details(Code::Unavailable, "no quorum", details);
        let failure = Failure::from_status("a:1", &status);
        assert_eq!(failure.reason, Some(Reason::NoQuorum));
        assert_eq!(failure.metadata["region"], "2");
        assert_eq!(failure.retry_after, Some(Duration::from_millis(200)));
        assert!(!failure.may_be_applied);
        assert_eq!(failure.kind, ErrorKind::Refused);
    }

    #[test]
    fn certain_refusals_and_uncertain_ones() {
        let plain = |code| Failure::from_status("a:1", &Status::new(code, "x")).may_be_applied;
        assert!(!plain(Code::InvalidArgument));
        assert!(!plain(Code::Unimplemented));
        assert!(plain(Code::Unavailable));
        assert!(
            plain(Code::ResourceExhausted),
            "the transport says this of a broken connection"
        );
        assert!(plain(Code::DeadlineExceeded));
        let overloaded = kv::Failure {
            code: Code::ResourceExhausted as i32,
            reason: "OVERLOADED".into(),
            retry_after_ms: 50,
            ..Default::default()
        };
        let failure = Failure::from_wire(overloaded);
        assert!(!failure.may_be_applied);
        assert_eq!(failure.retry_after, Some(Duration::from_millis(50)));
    }

    #[test]
    fn a_store_whose_watch_was_faster_says_deadline_too() {
        let failure = Failure::from_status("a:1", &Status::cancelled("Timeout expired"));
        assert_eq!(
            (failure.kind, failure.code),
            (ErrorKind::Deadline, Code::DeadlineExceeded)
        );
        assert!(failure.may_be_applied);
        let other = Failure::from_status("a:1", &Status::cancelled("by the operator"));
        assert_eq!(other.kind, ErrorKind::Refused);
    }

    #[test]
    fn a_message_that_is_too_large_is_final_and_says_the_limit() {
        let bare = Status::out_of_range(
            "Error, decoded message length too large: found 5242901 bytes, the limit is: 4194304 bytes",
        );
        let mut details = ErrorDetails::new();
        let metadata = [
            ("field", "message"),
            ("limit", "4194304"),
            ("outcome", "not_applied"),
        ];
        let metadata = metadata.map(|(k, v)| (k.to_owned(), v.to_owned()));
        details.set_error_info("INVALID_ARGUMENT", "flaredb", metadata);
        let told = Status::with_error_details(Code::InvalidArgument, "too large", details);
        for status in [bare, told] {
            let failure = Failure::from_status("a:1", &status);
            assert_eq!(failure.code, Code::InvalidArgument);
            assert_eq!(failure.reason, Some(Reason::InvalidArgument));
            assert_eq!(failure.metadata["limit"], "4194304");
            assert!(!failure.may_be_applied);
            let limit_bytes = Some(4_194_304);
            assert_eq!(failure.oversized, Some(Oversized { limit_bytes }));

            let of_a_stream = Failure::from_stream_end("a:1", &status);
            assert!(of_a_stream.may_be_applied, "others were on the stream");
            assert_eq!(of_a_stream.code, Code::Unavailable);
            assert!(of_a_stream.oversized.is_some());
        }
        let other = Failure::from_status("a:1", &Status::out_of_range("beyond the end"));
        assert_eq!((other.code, other.oversized), (Code::OutOfRange, None));
        assert!(!other.may_be_applied);
    }

    #[test]
    fn the_end_of_a_stream_is_no_refusal_of_what_was_on_it() {
        let end = |code| Failure::from_stream_end("a:1", &Status::new(code, "x")).may_be_applied;
        for code in [
            Code::OutOfRange,
            Code::InvalidArgument,
            Code::Cancelled,
            Code::Internal,
        ] {
            assert!(end(code), "{code:?}");
        }
        assert!(!end(Code::Unimplemented), "it never began");
    }

    #[test]
    fn a_reason_of_a_newer_store_is_kept_as_its_code() {
        let newer = kv::Failure {
            code: Code::Aborted as i32,
            reason: "NEW".into(),
            ..Default::default()
        };
        let failure = Failure::from_wire(newer);
        assert_eq!((failure.reason, failure.code), (None, Code::Aborted));
    }
}
