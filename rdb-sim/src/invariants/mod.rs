//! What must hold in every run, one file each.
//!
//! Owns the list of invariants and what was found against them. Each takes what it needs as it happens, or
//! judges what was gathered; none of them knows how a run is made.
//!
//! | Invariant | looks at |
//! |---|---|
//! | [`one_leader`] | who acts as leader of a term |
//! | [`committed`] | entries below the commit index, on every disk, at any time |
//! | [`applied`] | applied <= committed |
//! | [`digests`] | equal index, equal digest; and digest and data agree |
//! | [`sane_time`] | the times in stamps, beside what the stores' clocks show |
//! | [`linearizable`] | what clients read and wrote |
//! | [`nothing_lost`] | keys that were acknowledged, and keys that were refused |
//! | [`freshness`] | no answer is older than it says |
//! | [`answered_once`] | a request id has one answer |
//! | [`in_time`] | every call is answered by its deadline |
//! | [`no_panic`] | whether a task of a store panics |
//! | [`liveness`] | after everything healed, writes and reads go on |
//!
//! Of eventual namespaces:
//!
//! | Invariant | looks at |
//! |---|---|
//! | [`convergence`] | equal vectors, equal data; equal soon after the healing |
//! | [`kept`] | acknowledged writes, and deletions, in the end |
//! | [`sessions`] | what a session has seen, at any replica |
//! | [`accepted`] | whether a store that is cut off takes writes |
//! | [`synced_first`] | every entry, vector and record on the wire |
//! | [`entries_fixed`] | every entry on every wire and disk; and gaps |
//! | [`clocks_bounded`] | stamps of others on every disk |
//!
//! Of namespaces that are switched between the two:
//!
//! | Invariant | looks at |
//! |---|---|
//! | [`one_mode`] | every step of a change of mode on every disk, and every receipt |
//! | [`sealed_alike`] | what each replica holds at the moment at which a seal takes effect |
//! | [`promises_bind`] | what a participant of a seal holds that is replaced by a copy |
//! | [`old_times`] | every entry that is written to a log, and the seal before it |
//! | [`survives_seals`] | acknowledged writes, in every seal behind them |
//! | [`sealed_linearizable`] | what clients read and wrote between a seal and the next eventual time |
//! | [`kept`] | acknowledged writes in the end, or where they are listed as set aside |
//! | [`done_or_undone`] | whether a switch ends, once everything is healed |
//! | [`voted_by_all`] | switches that nobody asked for, and what the stores' files declare |

pub mod accepted;
pub mod answered_once;
pub mod applied;
pub mod clocks_bounded;
pub mod committed;
pub mod convergence;
pub mod digests;
pub mod done_or_undone;
pub mod entries_fixed;
pub mod freshness;
pub mod in_time;
pub mod kept;
pub mod linearizable;
pub mod liveness;
pub mod no_panic;
pub mod nothing_lost;
pub mod old_times;
pub mod one_leader;
pub mod one_mode;
pub mod promises_bind;
pub mod sane_time;
pub mod sealed_alike;
pub mod sealed_linearizable;
pub mod sessions;
pub mod survives_seals;
pub mod synced_first;
pub mod voted_by_all;

use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which one.
    pub invariant: &'static str,
    /// What was seen.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)
    }
}

/// Everything that was found in a run; clones write to the same.
#[derive(Clone, Default)]
pub struct Findings(Arc<Mutex<Vec<Violation>>>);

impl Findings {
    /// Most that are kept: the first ones tell the story.
    const KEPT: usize = 20;

    /// Reports a violation.
    pub fn report(&self, invariant: &'static str, what: String) {
        let mut found = self.0.lock();
        if found.len() < Self::KEPT {
            found.push(Violation { invariant, what });
        }
    }

    /// Reports what a check brought.
    pub fn check(&self, invariant: &'static str, verdict: Result<(), String>) {
        if let Err(what) = verdict {
            self.report(invariant, what);
        }
    }

    /// Whether something was found.
    pub fn any(&self) -> bool {
        !self.0.lock().is_empty()
    }

    /// What was found.
    pub fn all(&self) -> Vec<Violation> {
        self.0.lock().clone()
    }
}
