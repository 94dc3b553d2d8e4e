//! Whether an attempt that failed is followed by another, when, and where.
//!
//! Owns that decision, as a pure function: no clock, no randomness, no network (the draw of the
//! jitter comes in as a number). Knows nothing of messages.
//!
//! Invariant: a request that may have been applied is repeated only where a repeat is safe: under a
//! request id, and in an eventual namespace only at the store that may have applied it.

use crate::error::ErrorKind;
use crate::failure::Failure;
use crate::options::RetryPolicy;
use rdb_types::Reason;
use std::time::Duration;
use tonic::Code;

/// What a repeat of a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Safety {
    /// A read.
    Read,
    /// A write with a request id: stores apply it once.
    Identified,
    /// A write without one: a repeat may apply it twice.
    Anonymous,
}

impl Safety {
    pub(crate) fn is_write(self) -> bool {
        self != Safety::Read
    }
}

/// Which endpoint a write that may have been applied may be repeated at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    /// At any.
    No,
    /// At the one that was asked just now: the namespace is eventual, and no other one knows.
    Here,
    /// At one that was asked before.
    There,
    /// At none: several may have applied it, each unknown to the others.
    Nowhere,
}

/// What to do after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    GiveUp,
    Again {
        wait: Duration,
        /// This endpoint will not do better: prefer one that this call has not tried.
        elsewhere: bool,
    },
}

/// What the decision looks at beside the failure.
#[derive(Clone, Copy)]
pub(crate) struct Situation<'a> {
    pub(crate) safety: Safety,
    /// Attempts made, this one included.
    pub(crate) attempts: u32,
    /// Whether some endpoint is neither tried in this round nor known to be down.
    pub(crate) other_endpoint: bool,
    /// See [`crate::ClientOptions::wait_for_ready`].
    pub(crate) wait_for_ready: bool,
    /// Every store takes the call itself: another one is not worse.
    pub(crate) eventual: bool,
    /// Where a write may be repeated that an eventual namespace may have taken.
    pub(crate) bound: Bound,
    /// What the last store that answered an earlier attempt of this call said, if one did.
    pub(crate) heard: Option<&'a Failure>,
    pub(crate) policy: &'a RetryPolicy,
    /// Evenly drawn from [0, 1].
    pub(crate) draw: f64,
}

/// Decides.
pub(crate) fn next(failure: &Failure, situation: &Situation<'_>) -> Next {
    let Situation {
        safety,
        attempts,
        policy,
        ..
    } = *situation;
    let unsafe_repeat = safety == Safety::Anonymous && failure.may_be_applied;
    let exhausted = policy.max_attempts.is_some_and(|most| attempts >= most);
    let passing = is_passing(failure)
        // That store's clock is off; what another accepts is stamped by its own.
        || failure.reason == Some(Reason::ClockSkew) && situation.other_endpoint
        // That store's disk is full; of a strong namespace it is the whole region's.
        || failure.reason == Some(Reason::NoSpace)
            && situation.eventual
            && situation.other_endpoint;
    let gone = match situation.bound {
        // Whoever waits for a store that is gone learns no more than that it is not known.
        Bound::Here => failure.kind == ErrorKind::Connect,
        Bound::Nowhere => true,
        Bound::No | Bound::There => false,
    };
    if unsafe_repeat || exhausted || gone || !passing {
        return Next::GiveUp;
    }
    if let Some(told) = failure.retry_after.filter(|_| is_being_switched(failure)) {
        // That takes as long as the store says, however often it was asked; and callers who were refused
        // together do not return together.
        let spread = if policy.jitter {
            situation.draw.clamp(0.0, 1.0)
        } else {
            0.0
        };
        return Next::Again {
            wait: told + told.mul_f64(spread),
            elsewhere: false,
        };
    }
    let elsewhere = concerns_the_endpoint(failure) && situation.bound == Bound::No;
    let at_once = failure.is_network() || situation.eventual;
    if at_once && elsewhere && situation.other_endpoint {
        return Next::Again {
            wait: Duration::ZERO,
            elsewhere,
        };
    }
    if !situation.wait_for_ready && !situation.other_endpoint {
        let told = match failure.kind {
            ErrorKind::Refused => Some(failure),
            _ => situation.heard,
        };
        // A store waits for a quorum itself before it says that there is none. Where one says anything
        // else, waiting for the others is waiting for the cluster.
        let in_vain = match told {
            Some(told) => told.reason == Some(Reason::NoQuorum),
            None => failure.kind == ErrorKind::Connect,
        };
        if in_vain {
            return Next::GiveUp;
        }
    }
    let bound = bound(policy, attempts);
    let drawn = if policy.jitter {
        bound.mul_f64(situation.draw.clamp(0.0, 1.0))
    } else {
        bound
    };
    Next::Again {
        wait: drawn.max(failure.retry_after.unwrap_or_default()),
        elsewhere,
    }
}

/// The upper bound of the wait after so many attempts.
fn bound(policy: &RetryPolicy, attempts: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(20);
    policy
        .initial_backoff
        .saturating_mul(1 << doublings)
        .min(policy.max_backoff)
}

/// Whether the same request can succeed later.
fn is_passing(failure: &Failure) -> bool {
    match failure.code {
        // A session that names lost writes stays lost; the answer brings a fresh token instead.
        Code::Unavailable => failure.reason != Some(Reason::SessionLost),
        Code::ResourceExhausted => failure.reason == Some(Reason::Overloaded),
        // No store says so: something between cancelled the call, as a proxy does that restarts.
        Code::Cancelled => failure.reason.is_none(),
        // The time is up, or the request itself is refused.
        _ => false,
    }
}

/// Whether the namespace changes its mode just now: every store says so, for moments.
fn is_being_switched(failure: &Failure) -> bool {
    matches!(
        failure.reason,
        Some(Reason::ModeSwitching | Reason::ModeChanged)
    )
}

/// Whether another endpoint may answer where this one could not. A namespace that is being switched
/// or a store that is overloaded is no better anywhere else: stores forward to each other.
fn concerns_the_endpoint(failure: &Failure) -> bool {
    match failure.reason {
        // Not its state, but the company in one message was at fault.
        None if failure.oversized.is_some() => false,
        None => true,
        Some(reason) => matches!(
            reason,
            Reason::NoQuorum
                | Reason::NotLeader
                | Reason::NotReady
                | Reason::OutcomeUnknown
                | Reason::StaleReplica
                | Reason::StaleEpoch
                | Reason::ClockSkew
                | Reason::NoSpace
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdb_proto::kv;

    fn refused(code: Code, reason: &str, outcome: &str, retry_after_ms: u64) -> Failure {
        let metadata = [("outcome".to_owned(), outcome.to_owned())].into();
        let code = code as i32;
        Failure::from_wire(kv::Failure {
            code,
            reason: reason.into(),
            message: String::new(),
            metadata,
            retry_after_ms,
        })
    }

    fn decide(
        failure: &Failure,
        safety: Safety,
        attempts: u32,
        other_endpoint: bool,
        draw: f64,
    ) -> Next {
        let policy = RetryPolicy::default();
        next(
            failure,
            &Situation {
                safety,
                attempts,
                other_endpoint,
                wait_for_ready: true,
                eventual: false,
                bound: Bound::No,
                heard: None,
                policy: &policy,
                draw,
            },
        )
    }

    fn wait_ms(next: Next) -> u128 {
        match next {
            Next::Again { wait, .. } => wait.as_millis(),
            Next::GiveUp => panic!("gave up"),
        }
    }

    #[test]
    fn a_write_that_may_be_applied_needs_an_id_to_be_repeated() {
        let unknown = refused(Code::Unavailable, "OUTCOME_UNKNOWN", "unknown", 0);
        let refused = refused(Code::Unavailable, "NO_QUORUM", "not_applied", 0);
        assert_eq!(
            decide(&unknown, Safety::Anonymous, 1, true, 0.5),
            Next::GiveUp
        );
        assert!(matches!(
            decide(&unknown, Safety::Identified, 1, true, 0.5),
            Next::Again { .. }
        ));
        assert!(matches!(
            decide(&unknown, Safety::Read, 1, true, 0.5),
            Next::Again { .. }
        ));
        assert!(matches!(
            decide(&refused, Safety::Anonymous, 1, true, 0.5),
            Next::Again { .. }
        ));
    }

    #[test]
    fn only_what_passes_is_repeated() {
        for (code, reason) in [
            (Code::InvalidArgument, "INVALID_ARGUMENT"),
            (Code::FailedPrecondition, "WRONG_MODE"),
            (Code::NotFound, "NAMESPACE_NOT_FOUND"),
            (Code::ResourceExhausted, "NO_SPACE"),
            (Code::Unavailable, "SESSION_LOST"),
            (Code::Unimplemented, "UNIMPLEMENTED"),
            (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
            (Code::DataLoss, "CORRUPTION"),
        ] {
            let failure = refused(code, reason, "not_applied", 10);
            assert_eq!(
                decide(&failure, Safety::Identified, 1, true, 0.0),
                Next::GiveUp,
                "{reason}"
            );
        }
        for (code, reason, elsewhere) in [
            (Code::Unavailable, "NO_QUORUM", true),
            (Code::Unavailable, "NOT_READY", true),
            (Code::Unavailable, "MODE_SWITCHING", false),
            (Code::ResourceExhausted, "OVERLOADED", false),
        ] {
            let failure = refused(code, reason, "not_applied", 10);
            let next = decide(&failure, Safety::Identified, 1, true, 0.0);
            assert_eq!(
                next,
                Next::Again {
                    wait: Duration::from_millis(10),
                    elsewhere
                },
                "{reason}"
            );
        }
    }

    #[test]
    fn waits_double_are_jittered_and_never_less_than_the_store_asks() {
        let failure = refused(Code::Unavailable, "NO_QUORUM", "not_applied", 0);
        let waits =
            [1, 2, 3, 6, 7, 40].map(|n| wait_ms(decide(&failure, Safety::Read, n, false, 1.0)));
        assert_eq!(waits, [10, 20, 40, 320, 500, 500]);
        assert_eq!(wait_ms(decide(&failure, Safety::Read, 3, false, 0.5)), 20);
        assert_eq!(wait_ms(decide(&failure, Safety::Read, 3, false, 0.0)), 0);
        let asks = refused(Code::Unavailable, "NO_QUORUM", "not_applied", 200);
        assert_eq!(wait_ms(decide(&asks, Safety::Read, 1, true, 0.0)), 200);
        assert_eq!(wait_ms(decide(&asks, Safety::Read, 9, true, 1.0)), 500);
    }

    #[test]
    fn a_failed_connection_goes_on_at_once_while_there_is_somewhere_to_go() {
        let failure = Failure::connect("a:1", &"refused");
        assert_eq!(
            wait_ms(decide(&failure, Safety::Anonymous, 1, true, 1.0)),
            0
        );
        assert_eq!(
            wait_ms(decide(&failure, Safety::Anonymous, 1, false, 1.0)),
            10
        );
        let policy = RetryPolicy::default();
        let impatient = Situation {
            safety: Safety::Read,
            attempts: 3,
            other_endpoint: false,
            wait_for_ready: false,
            eventual: false,
            bound: Bound::No,
            heard: None,
            policy: &policy,
            draw: 0.0,
        };
        assert_eq!(next(&failure, &impatient), Next::GiveUp);

        // Nor for a quorum that a store has waited for itself; but for one that is starting.
        for (reason, gives_up) in [("NO_QUORUM", true), ("NOT_READY", false)] {
            let said = refused(Code::Unavailable, reason, "not_applied", 0);
            let then_away = Situation {
                heard: Some(&said),
                ..impatient
            };
            assert_eq!(
                next(&said, &impatient) == Next::GiveUp,
                gives_up,
                "{reason}"
            );
            assert_eq!(
                next(&failure, &then_away) == Next::GiveUp,
                gives_up,
                "{reason}"
            );
            let elsewhere = Situation {
                other_endpoint: true,
                ..then_away
            };
            assert_ne!(next(&said, &elsewhere), Next::GiveUp, "{reason}");
        }
    }

    #[test]
    fn what_an_eventual_namespace_may_have_taken_is_repeated_there_or_not_at_all() {
        let policy = RetryPolicy::default();
        let situation = |eventual, bound: Bound| Situation {
            safety: Safety::Identified,
            attempts: 1,
            other_endpoint: true,
            wait_for_ready: true,
            eventual,
            bound,
            heard: None,
            policy: &policy,
            draw: 1.0,
        };
        let broken = Failure::stream_ended("a:1");
        let wait = Duration::from_millis(10);
        let there = Next::Again {
            wait,
            elsewhere: false,
        };
        assert_eq!(next(&broken, &situation(true, Bound::Here)), there);
        let gone = Failure::connect("a:1", &"refused");
        assert_eq!(next(&gone, &situation(true, Bound::Here)), Next::GiveUp);
        // Another one was asked meanwhile, in vain.
        assert_eq!(next(&gone, &situation(true, Bound::There)), there);
        assert_eq!(
            next(&broken, &situation(true, Bound::Nowhere)),
            Next::GiveUp
        );
        // What certainly was not applied goes to another one, at once.
        let at_once = Next::Again {
            wait: Duration::ZERO,
            elsewhere: true,
        };
        let stale = refused(Code::Unavailable, "STALE_REPLICA", "not_applied", 50);
        let skewed = refused(Code::FailedPrecondition, "CLOCK_SKEW", "not_applied", 0);
        let full = refused(Code::ResourceExhausted, "NO_SPACE", "not_applied", 1000);
        for failure in [&gone, &stale, &skewed, &full] {
            assert_eq!(next(failure, &situation(true, Bound::No)), at_once);
        }
        // Of a strong namespace a full disk is the region's, whoever is asked.
        assert_eq!(next(&full, &situation(false, Bound::No)), Next::GiveUp);
        assert_ne!(next(&stale, &situation(false, Bound::No)), at_once);
    }

    #[test]
    fn a_switch_is_waited_for_as_long_as_the_store_says_however_often() {
        let policy = RetryPolicy::default();
        for (reason, safety) in [
            ("MODE_SWITCHING", Safety::Anonymous),
            ("MODE_CHANGED", Safety::Anonymous),
            ("MODE_SWITCHING", Safety::Read),
        ] {
            let failure = refused(Code::Unavailable, reason, "not_applied", 20);
            for (attempts, draw, wait_ms) in [(1, 0.0, 20), (1, 1.0, 40), (30, 0.5, 30)] {
                let situation = Situation {
                    safety,
                    attempts,
                    other_endpoint: true,
                    wait_for_ready: false,
                    eventual: true,
                    bound: Bound::No,
                    heard: None,
                    policy: &policy,
                    draw,
                };
                let again = Next::Again {
                    wait: Duration::from_millis(wait_ms),
                    elsewhere: false,
                };
                assert_eq!(next(&failure, &situation), again, "{reason}");
            }
        }
        let unknown = refused(Code::Unavailable, "MODE_CHANGED", "unknown", 20);
        assert_eq!(
            decide(&unknown, Safety::Anonymous, 1, true, 0.0),
            Next::GiveUp
        );
    }

    #[test]
    fn attempts_can_be_bounded() {
        let failure = Failure::connect("a:1", &"refused");
        let policy = RetryPolicy {
            max_attempts: Some(2),
            ..RetryPolicy::default()
        };
        let decide = |attempts| {
            let situation = Situation {
                safety: Safety::Read,
                attempts,
                other_endpoint: true,
                wait_for_ready: true,
                eventual: false,
                bound: Bound::No,
                heard: None,
                policy: &policy,
                draw: 0.0,
            };
            next(&failure, &situation)
        };
        assert_ne!(decide(1), Next::GiveUp);
        assert_eq!(decide(2), Next::GiveUp);
    }
}
