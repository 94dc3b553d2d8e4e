//! What the stores' files declare of the switched namespace, who asked for a switch, and whether one began of which
//! neither is the cause.
//!
//! Owns both as they really were, beside the cluster's tables, which say what the stores have told. Changes nothing.
//!
//! A switch that was asked for by somebody who heard nothing of it is told by what it leads to: so one that nobody asked
//! for may pass for such a one, but none that was asked for passes for one by votes.

use crate::invariants::{Findings, voted_by_all};
use crate::switched_clients::SWITCHED;
use crate::trace::Trace;
use parking_lot::Mutex;
use rdb_proto::convert;
use rdb_server::store::StoreCore;
use rdb_types::{Mode, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How long a store may take to tell the cluster what its file declared, in milliseconds.
const TOLD_WITHIN_MS: u64 = 10_000;

#[derive(Default)]
struct Seen {
    /// What each file declared, and since when; the newest last.
    files: BTreeMap<StoreId, Vec<(u64, Mode)>>,
    /// Who asked and has not heard: for which mode, `None` for the one before.
    open: BTreeMap<u64, Option<Mode>>,
    /// Who asked and never will hear.
    lost: Vec<Option<Mode>>,
    numbered: u64,
    /// Attempts that came of asking.
    asked: BTreeSet<u64>,
    attempt: u64,
    /// Since when that is the newest.
    since_ms: u64,
    /// The mode in force when it was first seen.
    mode: Mode,
    voted: u64,
}

/// Watches one cluster; clones are the same.
#[derive(Clone)]
pub struct Ballot {
    findings: Findings,
    trace: Trace,
    seen: Arc<Mutex<Seen>>,
}

/// A switch that somebody asks for.
pub struct Asking {
    ballot: Ballot,
    number: u64,
}

impl Asking {
    /// It is in the tables.
    pub fn answered(self, attempt: u64) {
        let mut seen = self.ballot.seen.lock();
        seen.open.remove(&self.number);
        seen.asked.insert(attempt);
    }

    /// It is not, and will not be.
    pub fn refused(self) {
        self.ballot.seen.lock().open.remove(&self.number);
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let mut seen = self.ballot.seen.lock();
        if let Some(mode) = seen.open.remove(&self.number) {
            seen.lost.push(mode);
        }
    }
}

impl Ballot {
    /// All files declare the namespace strong.
    pub fn new(findings: Findings, trace: Trace, stores: &[StoreId]) -> Ballot {
        let files = stores.iter().map(|store| (*store, vec![(0, Mode::Strong)]));
        let seen = Seen {
            files: files.collect(),
            mode: Mode::Strong,
            ..Seen::default()
        };
        Ballot {
            findings,
            trace,
            seen: Arc::new(Mutex::new(seen)),
        }
    }

    /// A store's file is edited.
    pub fn declares(&self, store: StoreId, mode: Mode) {
        let now_ms = self.trace.now_ms();
        let mut seen = self.seen.lock();
        seen.files.entry(store).or_default().push((now_ms, mode));
    }

    /// Somebody asks for a mode; `None`: for the one before.
    pub fn asks(&self, mode: Option<Mode>) -> Asking {
        let mut seen = self.seen.lock();
        seen.numbered += 1;
        let number = seen.numbered;
        seen.open.insert(number, mode);
        Asking {
            ballot: self.clone(),
            number,
        }
    }

    /// Switches that began by votes alone.
    pub fn voted(&self) -> u64 {
        self.seen.lock().voted
    }

    /// Looks at the tables that a store has.
    pub fn look(&self, core: &StoreCore) {
        let tables = core.namespaces().tables();
        let Some(row) = tables.namespace(SWITCHED) else {
            return;
        };
        let mut seen = self.seen.lock();
        let seen = &mut *seen;
        if row.attempt <= seen.attempt {
            return;
        }
        let (known, now_ms) = (seen.attempt, self.trace.now_ms());
        let (before, since_ms) = (seen.mode, seen.since_ms);
        (seen.attempt, seen.since_ms) = (row.attempt, now_ms);
        seen.mode = convert::mode(row.mode).unwrap_or_default();
        let Some(target) = convert::mode(row.target) else {
            return;
        };
        // One that leads back is given up, or was cancelled; of several since the last look nothing is known.
        if row.attempt > known + 1 || target == before || seen.asked.contains(&row.attempt) {
            return;
        }
        let may_be = |mode: &Option<Mode>| mode.is_none_or(|mode| mode == target);
        if seen.open.values().any(may_be) {
            return;
        }
        if let Some(at) = seen.lost.iter().position(may_be) {
            seen.lost.remove(at);
            return;
        }
        seen.voted += 1;
        let from_ms = since_ms.saturating_sub(TOLD_WITHIN_MS);
        let verdict = voted_by_all::check(row.attempt, target, &seen.files, from_ms);
        self.findings.check(voted_by_all::NAME, verdict);
    }
}
