//! Watches the inside of all stores: what they hold, what they say of themselves, what they send.
//!
//! Owns the invariants that need no client. Looks at disks and reports, and at every message of Raft as it
//! passes; changes nothing.

use crate::invariants::{Findings, applied, committed, digests, one_leader, sane_time};
use crate::network::{Answer, Letter, Tap};
use crate::trace::Trace;
use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use rdb_proto::raft::{self, peer_request};
use rdb_server::peer::Peer;
use rdb_server::region::state::NamespaceState;
use rdb_server::store::StoreCore;
use rdb_storage::{Family, KeyRange, StorageError, View};
use rdb_types::{Digest, GlobalKey, Mode, NamespaceId, Record, RegionId, StoreId};
use std::collections::BTreeMap;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// How long the log below a snapshot that was put in place may stay on a slow disk.
const PURGED_WITHIN_MS: u64 = 3_000;

/// What was seen so far.
#[derive(Default)]
struct Seen {
    leaders: one_leader::Leaders,
    committed: committed::Committed,
    applied: applied::Applied,
    digests: digests::Digests,
    present: sane_time::Present,
    /// How far any store knew each region's log to be committed.
    known_committed: BTreeMap<RegionId, u64>,
    /// For each replica, up to where its log was compared.
    compared: BTreeMap<(StoreId, RegionId), u64>,
    /// For each replica, how many snapshots were begun or put in place, and when that changed (ms).
    installs: BTreeMap<(StoreId, RegionId), (u64, u64)>,
}

/// Watches one cluster.
#[derive(Clone)]
pub struct Observer {
    findings: Findings,
    trace: Trace,
    seen: Arc<Mutex<Seen>>,
}

/// How much was looked at: a run in which nothing happened proves nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// Leaders of terms.
    pub leaders: usize,
    /// Committed entries.
    pub entries: usize,
    /// Digests at an index.
    pub digests: usize,
}

impl Observer {
    /// Reports to `findings`; `trace` has the time.
    pub fn new(findings: Findings, trace: Trace) -> Observer {
        Observer {
            findings,
            trace,
            seen: Arc::default(),
        }
    }

    /// How much was looked at.
    pub fn looked(&self) -> Looked {
        let seen = self.seen.lock();
        Looked {
            leaders: seen.leaders.count(),
            entries: seen.committed.count(),
            digests: seen.digests.count(),
        }
    }

    /// A store starts again from its disk.
    pub fn restarted(&self, store: StoreId) {
        let mut seen = self.seen.lock();
        seen.applied.restarted(store);
        seen.compared.retain(|(of, _), _| *of != store);
        seen.installs.retain(|(of, _), _| *of != store);
    }

    /// Looks at a store's clock, at `now_ms` of the simulation. The clocks before the stores.
    pub fn clock(&self, store: StoreId, core: &StoreCore, now_ms: u64) {
        let clock = &core.manager().context().clock;
        let mut seen = self.seen.lock();
        seen.present.shows(store, clock.unix_ms(), now_ms);
    }

    /// Looks at how far a store knows the logs to be committed. All stores before the first is looked at.
    pub fn commits(&self, core: &StoreCore) {
        let mut seen = self.seen.lock();
        for peer in core.manager().peers() {
            let known = seen.known_committed.entry(peer.id()).or_default();
            *known = peer.report().commit_index.max(*known);
        }
    }

    /// Looks at a running store. `disk` is what it has written.
    pub fn look(&self, store: StoreId, core: &StoreCore, disk: &dyn View) {
        for peer in core.manager().peers() {
            self.look_at(store, &peer, disk);
        }
    }

    fn look_at(&self, store: StoreId, peer: &Peer, disk: &dyn View) {
        let report = peer.report();
        let region = peer.id();
        let mut seen = self.seen.lock();
        let seen = &mut *seen;
        if u64::from(report.leader) == u64::from(store.get()) {
            let verdict = seen.leaders.seen(region, report.term, store);
            self.findings.check(one_leader::NAME, verdict);
        }
        // What counts is what any store knows to be committed. This one's own word may be older than what it has
        // applied: it is given behind a sync that its log waits for, and a fresh copy is of another's log.
        let known = seen.known_committed.get(&region).copied();
        let committed = known.unwrap_or(0).max(report.commit_index);
        // A replica that has just been opened has not said yet how far its log is committed.
        if report.term > 0 {
            let verdict = seen
                .applied
                .seen(store, region, report.applied_index, committed);
            self.findings.check(applied::NAME, verdict);
        }
        let last_stamp = peer.cell().with(|summary| summary.last_stamp);
        let verdict = seen.present.applied(store, region, last_stamp);
        self.findings.check(sane_time::NAME, verdict);
        let (index, namespaces) = peer.cell().with(|summary| {
            let digests = summary.namespaces.iter();
            let digests: Vec<_> = strong(digests).collect();
            (summary.applied_index, digests)
        });
        for (namespace, digest) in namespaces {
            let verdict = seen.digests.seen(region, index, namespace, digest, store);
            self.findings.check(digests::NAME, verdict);
        }
        // What a snapshot replaced may lie in the log until it is purged, a moment later. Then all that is
        // left is compared again.
        let now_ms = self.trace.now_ms();
        let installs = peer.cell().with(|summary| summary.installs);
        let known = seen
            .installs
            .entry((store, region))
            .or_insert((installs, now_ms));
        if known.0 != installs {
            *known = (installs, now_ms);
            seen.compared.remove(&(store, region));
        }
        if installs > 0 && now_ms - known.1 < PURGED_WITHIN_MS {
            return;
        }
        let from = seen.compared.get(&(store, region)).copied().unwrap_or(0);
        // What was applied was written behind its entries: up to there, the disk has what the log has. An
        // entry beyond may still be on its way to the disk, where an overwritten one stands.
        let upto = report.applied_index;
        if let Err(error) = compare(&mut seen.committed, disk, store, region, from, upto)
            .map(|verdict| self.findings.check(committed::NAME, verdict))
        {
            self.findings
                .report(committed::NAME, format!("store {store}: {error}"));
        }
        seen.compared.insert((store, region), upto);
    }

    /// Compares what a store keeps as digests with what it holds. Nothing may be going on.
    pub fn recount(&self, store: StoreId, core: &StoreCore, disk: &dyn View) {
        for peer in core.manager().peers() {
            let states = peer.cell().with(|summary| summary.namespaces.clone());
            let range = rdb_server::region::layout::data_range(peer.descriptor());
            match count(disk, &range, &states) {
                Ok(mut counted) => {
                    for (namespace, kept) in strong(states.iter()) {
                        let computed = counted.remove(&namespace).unwrap_or_default();
                        let verdict = digests::agree(store, peer.id(), namespace, kept, computed);
                        self.findings.check(digests::NAME, verdict);
                    }
                }
                Err(why) => self
                    .findings
                    .report(digests::NAME, format!("store {store}: {why}")),
            }
        }
    }
}

/// The digests that follow from the log: not those of eventual namespaces, of which each replica has its own.
fn strong<'a>(
    states: impl Iterator<Item = (&'a NamespaceId, &'a NamespaceState)>,
) -> impl Iterator<Item = (NamespaceId, Digest)> {
    states
        .filter(|(_, state)| state.mode == Mode::Strong)
        .map(|(namespace, state)| (*namespace, state.digest))
}

/// Compares the entries `from..=upto` of a store with what was seen committed. The outer error: the disk
/// cannot be read.
fn compare(
    committed: &mut committed::Committed,
    disk: &dyn View,
    store: StoreId,
    region: RegionId,
    from: u64,
    upto: u64,
) -> Result<Result<(), String>, StorageError> {
    let key = |index: u64| -> Bytes {
        [region.0.to_be_bytes(), index.to_be_bytes()]
            .concat()
            .into()
    };
    if upto <= from {
        return Ok(Ok(()));
    }
    let range = KeyRange::new(key(from + 1), key(upto + 1));
    for item in disk.scan(Family::RaftLog, &range, false) {
        let (_, value) = item?;
        let entry = raft::Entry::decode(value.clone())
            .map_err(|error| StorageError::corruption("the log", error.to_string()))?;
        let id = entry.log_id.unwrap_or_default();
        let content = xxh3_64(&value);
        if let Err(why) = committed.seen(region, id.index, id.term, content, store) {
            return Ok(Err(why));
        }
    }
    Ok(Ok(()))
}

/// Records that count: the dead of an eventual time may still stand there for a while.
fn count(
    disk: &dyn View,
    range: &KeyRange,
    states: &BTreeMap<NamespaceId, NamespaceState>,
) -> Result<BTreeMap<NamespaceId, Digest>, String> {
    let mut counted: BTreeMap<NamespaceId, Digest> = BTreeMap::new();
    for item in disk.scan(Family::Data, range, false) {
        let (key, value) = item.map_err(|error| error.to_string())?;
        let record = Record::decode(value).map_err(|error| error.to_string())?;
        let global = GlobalKey::from_bytes(key.clone())
            .ok_or_else(|| format!("{} is no key", key.escape_ascii()))?;
        let namespace = global.namespace();
        let state = states.get(&namespace);
        if state.is_none_or(|state| state.counts(&record)) {
            let digest = counted.entry(namespace).or_default();
            digest.add(&global.user_key(), &record);
        }
    }
    Ok(counted)
}

impl Tap for Observer {
    fn request(&self, letter: &mut Letter) -> Option<Answer> {
        if let peer_request::Body::Append(append) = &letter.body
            && let Some(vote) = &append.vote
        {
            let verdict = self
                .seen
                .lock()
                .leaders
                .seen(letter.region, vote.term, letter.from);
            self.findings.check(one_leader::NAME, verdict);
        }
        None
    }

    fn answer(&self, _: &Letter, _: &mut Answer) {}
}
