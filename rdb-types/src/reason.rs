//! Why a request was refused: the names that clients, stores and people share.

use std::fmt;
use std::str::FromStr;

/// How the text of a refusal says that one attempt of a write did nothing. A client whose other attempts
/// may have done something leaves it out.
pub const NOT_APPLIED: &str = "the write was not applied";

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// The reason in a `google.rpc.ErrorInfo` of domain `flaredb`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason { $($(#[$doc])* $variant,)* }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)*];

            /// As it stands in answers.
            pub fn as_str(self) -> &'static str {
                match self { $(Reason::$variant => $name,)* }
            }
        }
    };
}

reasons! {
    /// No leader with a quorum for `quorum_timeout`.
    NoQuorum = "NO_QUORUM",
    /// A forwarded request reached a store that does not lead.
    NotLeader = "NOT_LEADER",
    /// The leader was lost while the write was under way.
    OutcomeUnknown = "OUTCOME_UNKNOWN",
    /// The namespace is being switched.
    ModeSwitching = "MODE_SWITCHING",
    /// The namespace was switched while the write was under way.
    ModeChanged = "MODE_CHANGED",
    /// This replica has not seen what the caller has.
    StaleReplica = "STALE_REPLICA",
    /// The caller or the sender is behind a mode change.
    StaleEpoch = "STALE_EPOCH",
    /// The session names writes that were set aside.
    SessionLost = "SESSION_LOST",
    /// The store is starting, joining or leaving.
    NotReady = "NOT_READY",
    /// The namespace's mode does not offer this.
    WrongMode = "WRONG_MODE",
    /// The request id is older than the table's memory.
    RequestIdExpired = "REQUEST_ID_EXPIRED",
    /// The store's clock is off.
    ClockSkew = "CLOCK_SKEW",
    /// There is no such namespace.
    NamespaceNotFound = "NAMESPACE_NOT_FOUND",
    /// There is one already.
    AlreadyExists = "ALREADY_EXISTS",
    /// Another switch is under way.
    SwitchInProgress = "SWITCH_IN_PROGRESS",
    /// The switch was given up.
    SwitchAborted = "SWITCH_ABORTED",
    /// The history asked for is gone.
    Compacted = "COMPACTED",
    /// The request is not well formed, or over a limit.
    InvalidArgument = "INVALID_ARGUMENT",
    /// Too much is waiting.
    Overloaded = "OVERLOADED",
    /// The disk is full.
    NoSpace = "NO_SPACE",
    /// A quota is used up.
    QuotaExceeded = "QUOTA_EXCEEDED",
    /// Stored data is damaged.
    Corruption = "CORRUPTION",
    /// The caller's deadline passed.
    DeadlineExceeded = "DEADLINE_EXCEEDED",
    /// Not built yet.
    Unimplemented = "UNIMPLEMENTED",
    /// A store that may not take part: wrong cluster, wrong disk, wrong version.
    Refused = "REFUSED",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Reason {
    type Err = ();

    fn from_str(text: &str) -> Result<Reason, ()> {
        Reason::ALL
            .iter()
            .copied()
            .find(|reason| reason.as_str() == text)
            .ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_read_back() {
        for reason in Reason::ALL {
            assert_eq!(reason.as_str().parse(), Ok(*reason));
        }
        assert!("NO_SUCH_REASON".parse::<Reason>().is_err());
    }
}
