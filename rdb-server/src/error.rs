//! What a store answers when it refuses: one type, one table.
//!
//! Owns the mapping of each [`Reason`] to a gRPC code and the metadata that goes with it. A refusal
//! travels unchanged from the store that decided it, through a forwarding one, to the client. Knows
//! nothing of how a request came in.
//!
//! Invariants: every refusal of a write says its outcome (`not_applied` or `unknown`), and RetryInfo
//! goes out only where a repeat is safe.

use rdb_proto::{kv, raft};
use rdb_types::Reason;
use std::collections::BTreeMap;
use std::time::Duration;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The domain of every ErrorInfo.
pub const DOMAIN: &str = "flaredb";

/// Whether a refused write may have been applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It never entered the log, or was rejected there.
    NotApplied,
    /// It may be applied, or may yet be.
    Unknown,
}

impl Outcome {
    /// As it stands in the metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::NotApplied => "not_applied",
            Outcome::Unknown => "unknown",
        }
    }

    /// As a message says it of `what` ("the write").
    pub fn clause(self, what: &str) -> String {
        match self {
            Outcome::NotApplied => format!("{what} was not applied"),
            Outcome::Unknown => format!("whether {what} was applied is not known"),
        }
    }
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Error {
    /// Which row of the table.
    pub reason: Reason,
    /// What, why, and what to do next.
    pub message: String,
    /// What the table promises for the reason.
    pub metadata: BTreeMap<String, String>,
}

impl Error {
    /// A refusal without metadata.
    pub fn new(reason: Reason, message: impl Into<String>) -> Error {
        Error {
            reason,
            message: message.into(),
            metadata: BTreeMap::new(),
        }
    }

    /// Adds metadata.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl ToString) -> Error {
        self.metadata.insert(key.to_owned(), value.to_string());
        self
    }

    /// Says what became of the write.
    #[must_use]
    pub fn outcome(self, outcome: Outcome) -> Error {
        self.with("outcome", outcome.as_str())
    }

    /// Whether the write may have been applied.
    pub fn is_unknown(&self) -> bool {
        self.metadata
            .get("outcome")
            .is_some_and(|outcome| outcome == Outcome::Unknown.as_str())
    }

    /// Whether a repeat can succeed at all.
    pub fn is_passing(&self) -> bool {
        matches!(code(self.reason), Code::Unavailable) || self.reason == Reason::Overloaded
    }

    /// A request that is not well formed or over a limit.
    pub fn invalid(field: &str, message: impl Into<String>) -> Error {
        Error::new(Reason::InvalidArgument, message).with("field", field)
    }

    /// As [`Error::invalid`], where a limit was broken.
    pub fn over_limit(field: &str, limit: u64, got: u64) -> Error {
        Error::invalid(
            field,
            format!("{field} has {got} bytes; the limit is {limit}"),
        )
        .with("limit", limit)
    }

    /// How long a client should wait before it repeats; `None` where it must not, or where the same request
    /// meets the same refusal again.
    ///
    /// `has_request_id`: the request was a write that brought one, or a read.
    pub fn retry_after(&self, has_request_id: bool) -> Option<Duration> {
        // Whether there will be room is for people to see to; that a later try costs nothing is sure.
        let passes = self.is_passing() || self.reason == Reason::NoSpace;
        if !passes || (self.is_unknown() && !has_request_id) {
            return None;
        }
        let ms = match self.reason {
            // It names another token to come with.
            Reason::SessionLost => return None,
            // The store that says so serves the new mode already, or does in moments.
            Reason::ModeChanged | Reason::StaleEpoch => 10,
            // A seal takes a few round trips between stores.
            Reason::ModeSwitching => 20,
            Reason::NotLeader | Reason::OutcomeUnknown => 20,
            Reason::NoQuorum | Reason::NotReady => 200,
            // Room comes with a compaction, or with a person.
            Reason::NoSpace => 1000,
            _ => 50,
        };
        Some(Duration::from_millis(ms))
    }

    /// As a gRPC status.
    pub fn to_status(&self, has_request_id: bool) -> Status {
        let mut details = ErrorDetails::new();
        details.set_error_info(
            self.reason.as_str(),
            DOMAIN,
            self.metadata
                .clone()
                .into_iter()
                .collect::<std::collections::HashMap<_, _>>(),
        );
        if let Some(delay) = self.retry_after(has_request_id) {
            details.set_retry_info(Some(delay));
        }
        Status::with_error_details(code(self.reason), self.message.clone(), details)
    }

    /// As an answer in a batch.
    pub fn to_failure(&self, has_request_id: bool) -> kv::Failure {
        kv::Failure {
            code: code(self.reason) as i32,
            reason: self.reason.as_str().to_owned(),
            message: self.message.clone(),
            metadata: self.metadata.clone(),
            retry_after_ms: self
                .retry_after(has_request_id)
                .map_or(0, |delay| delay.as_millis() as u64),
        }
    }

    /// As an answer to another store.
    pub fn to_wire(&self) -> raft::PeerError {
        raft::PeerError {
            reason: self.reason.as_str().to_owned(),
            message: self.message.clone(),
            metadata: self.metadata.clone(),
        }
    }

    /// From another store's answer. A reason of a newer build is kept as `NOT_READY`: unavailable,
    /// and its text says the rest.
    pub fn from_wire(wire: raft::PeerError) -> Error {
        Error {
            reason: wire.reason.parse().unwrap_or(Reason::NotReady),
            message: wire.message,
            metadata: wire.metadata,
        }
    }
}

impl From<rdb_storage::StorageError> for Error {
    fn from(error: rdb_storage::StorageError) -> Error {
        use rdb_storage::StorageError;
        let reason = match error {
            StorageError::NoSpace { .. } => Reason::NoSpace,
            StorageError::Corruption { .. } => Reason::Corruption,
            _ => Reason::NotReady,
        };
        Error::new(reason, error.to_string())
    }
}

/// The table of errors (specs/003-kvs-consistency/contracts/grpc.md): a reason's gRPC code.
pub fn code(reason: Reason) -> Code {
    match reason {
        Reason::NoQuorum
        | Reason::NotLeader
        | Reason::OutcomeUnknown
        | Reason::ModeSwitching
        | Reason::ModeChanged
        | Reason::StaleReplica
        | Reason::StaleEpoch
        | Reason::SessionLost
        | Reason::NotReady => Code::Unavailable,
        Reason::WrongMode | Reason::RequestIdExpired | Reason::ClockSkew | Reason::Refused => {
            Code::FailedPrecondition
        }
        Reason::NamespaceNotFound => Code::NotFound,
        Reason::AlreadyExists => Code::AlreadyExists,
        Reason::SwitchInProgress | Reason::SwitchAborted => Code::Aborted,
        Reason::Compacted => Code::OutOfRange,
        Reason::InvalidArgument => Code::InvalidArgument,
        Reason::Overloaded | Reason::NoSpace | Reason::QuotaExceeded => Code::ResourceExhausted,
        Reason::Corruption => Code::DataLoss,
        Reason::DeadlineExceeded => Code::DeadlineExceeded,
        Reason::Unimplemented => Code::Unimplemented,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_survives_the_way_through_another_store() {
        let error = Error::new(Reason::NoQuorum, "region 2 has no quorum")
            .with("region", 2)
            .outcome(Outcome::Unknown);
        assert_eq!(Error::from_wire(error.to_wire()), error);
    }

    #[test]
    fn clients_know_the_clause_that_they_may_have_to_leave_out() {
        let clause = Outcome::NotApplied.clause("the write");
        assert_eq!(clause, rdb_types::reason::NOT_APPLIED);
    }

    #[test]
    fn a_repeat_is_offered_only_where_it_is_safe() {
        let unknown = Error::new(Reason::OutcomeUnknown, "x").outcome(Outcome::Unknown);
        assert_eq!(unknown.retry_after(false), None);
        assert!(unknown.retry_after(true).is_some());
        let refused = Error::new(Reason::NoQuorum, "x").outcome(Outcome::NotApplied);
        assert!(refused.retry_after(false).is_some());
        assert_eq!(Error::invalid("key", "x").retry_after(true), None);
    }

    #[test]
    fn whoever_is_shed_hears_when_to_come_back() {
        for reason in [Reason::Overloaded, Reason::NoSpace] {
            for error in [
                Error::new(reason, "x"),
                Error::new(reason, "x").outcome(Outcome::NotApplied),
            ] {
                let status = error.to_status(false);
                assert_eq!(status.code(), Code::ResourceExhausted);
                assert!(status.get_error_details().retry_info().is_some(), "{error}");
                assert!(error.to_failure(false).retry_after_ms > 0, "{error}");
            }
            let unknown = Error::new(reason, "x").outcome(Outcome::Unknown);
            assert_eq!(unknown.retry_after(false), None, "it may be applied");
        }
    }

    #[test]
    fn a_status_carries_reason_domain_metadata_and_delay() {
        let status = Error::new(Reason::NoQuorum, "x")
            .with("region", 2)
            .outcome(Outcome::NotApplied)
            .to_status(false);
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!(
            (status.code(), info.reason.as_str(), info.domain.as_str()),
            (Code::Unavailable, "NO_QUORUM", DOMAIN)
        );
        assert_eq!(
            info.metadata.get("outcome").map(String::as_str),
            Some("not_applied")
        );
        assert!(details.retry_info().is_some());
    }
}
