//! How one attempt of a call failed.
//!
//! Owns the reading of a gRPC status and of a Batch answer's failure: which reason, whether anything
//! may have been applied, how long the store asks to wait. Knows nothing of retries.
//!
//! Invariant: `may_be_applied` is false only where that is certain: nothing was sent, the store says
//! so, or the store refused the request as such.

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
        | Code::Unimplemented => true,
        Code::ResourceExhausted => reason.is_some(),
        _ => false,
    }
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
