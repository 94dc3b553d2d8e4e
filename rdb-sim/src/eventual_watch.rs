//! Watches eventual namespaces inside all stores: what their disks hold for good, what they send.
//!
//! Owns the invariants of eventual namespaces that need no client, and the look at what all replicas hold
//! in the end. Changes nothing.

use crate::clock::EPOCH_MS;
use crate::disk::Disk;
use crate::eventual_clients::{EventualLedger, RELAXED, SYNCED, value_of};
use crate::invariants::{Findings, clocks_bounded, convergence, entries_fixed, kept, synced_first};
use crate::network::{Answer, Letter, Tap};
use crate::store::Process;
use crate::trace::Trace;
use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use rdb_proto::convert::vector;
use rdb_proto::raft::{self, OriginEntry, peer_request, peer_response};
use rdb_server::eventual::{EventualState, layout};
use rdb_server::layout_store;
use rdb_server::peer::Peer;
use rdb_server::region::layout::region_namespace;
use rdb_storage::{Family, KeyRange, StorageError, View};
use rdb_types::{
    Digest, GlobalKey, Mode, NamespaceId, Record, RegionId, Stamp, StoreId, VersionVector,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// Everything that can expire has.
pub const ANY_TIME_MS: u64 = u64::MAX / 2;

#[derive(Default)]
struct Seen {
    entries: entries_fixed::Entries,
    told: convergence::Told,
    /// Up to where each log on each disk was looked at.
    looked_at: BTreeMap<(StoreId, entries_fixed::Log), u64>,
}

/// How much was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventualLooked {
    /// Entries of origin logs.
    pub entries: usize,
    /// Digests at a vector.
    pub digests: usize,
    /// Acknowledged writes.
    pub acknowledged: usize,
    /// Replicas that could not converge, since a store had stamped with a wild clock while it was alone.
    pub held: usize,
    /// How long it took after the healing until all were equal, in milliseconds.
    pub converged_ms: u64,
}

/// Watches one cluster.
#[derive(Clone)]
pub struct EventualWatch {
    findings: Findings,
    trace: Trace,
    disks: Arc<BTreeMap<StoreId, Arc<Disk>>>,
    seen: Arc<Mutex<Seen>>,
}

/// The eventual namespaces of a region.
fn eventual_of(peer: &Peer) -> Vec<NamespaceId> {
    peer.cell().with(|summary| {
        let all = summary.namespaces.iter();
        let eventual = all.filter(|(_, state)| state.mode == Mode::Eventual);
        eventual.map(|(namespace, _)| *namespace).collect()
    })
}

impl EventualWatch {
    /// Reports to `findings`.
    pub fn new(
        findings: Findings,
        trace: Trace,
        disks: BTreeMap<StoreId, Arc<Disk>>,
    ) -> EventualWatch {
        EventualWatch {
            findings,
            trace,
            disks: Arc::new(disks),
            seen: Arc::default(),
        }
    }

    /// How much was looked at.
    pub fn looked(&self) -> EventualLooked {
        let seen = self.seen.lock();
        EventualLooked {
            entries: seen.entries.count(),
            digests: seen.told.count(),
            ..EventualLooked::default()
        }
    }

    fn durable(&self, store: StoreId) -> Option<Arc<dyn View>> {
        Some(self.disks.get(&store)?.engine.durable())
    }

    fn now_ms(&self) -> u64 {
        EPOCH_MS + self.trace.now_ms()
    }

    /// Looks at what a store's disk holds for good. `sane`: no majority of the clocks ever was wrong.
    pub fn look(&self, store: StoreId, process: &Process, sane: bool) {
        let Some(disk) = self.durable(store) else {
            return;
        };
        for peer in process.core.manager().data_peers() {
            // In the middle of a copy its rows are partly the donor's, and nobody goes by them: a start
            // from here would finish the copy first.
            let copying = disk.get(Family::Region, &layout_store::installing(peer.id()));
            if matches!(copying, Ok(Some(_))) {
                continue;
            }
            for namespace in eventual_of(&peer) {
                let place = (peer.id(), namespace);
                if let Err(error) = self.look_at(store, place, disk.as_ref(), sane) {
                    let why = format!("store {store}: {error}");
                    self.findings.report(entries_fixed::NAME, why);
                }
            }
        }
    }

    fn look_at(
        &self,
        store: StoreId,
        (region, namespace): (RegionId, NamespaceId),
        disk: &dyn View,
        sane: bool,
    ) -> Result<(), StorageError> {
        let state = EventualState::load(region, namespace, disk)?;
        let mut seen = self.seen.lock();
        let seen = &mut *seen;
        for (origin, last) in state.vector.iter() {
            let log = (region, namespace, origin, state.last_seal.0);
            let have = seen.looked_at.entry((store, log)).or_default();
            // What a copy brought stands in no log here.
            *have = (*have).max(state.truncated.get(origin));
            let range = layout::entries(region, namespace, origin, *have + 1, last);
            for item in disk.scan(Family::OriginLog, &range, false) {
                let (_, value) = item?;
                let entry = decode(&value)?;
                let first = match entry.filler_from {
                    0 => entry.sequence,
                    from => from,
                };
                let verdict = entries_fixed::follows(store, log, *have, first);
                self.findings.check(entries_fixed::GAPS, verdict);
                *have = entry.sequence;
                let place = format!("on the disk of store {store}");
                let verdict = seen
                    .entries
                    .seen(log, entry.sequence, xxh3_64(&value), &place);
                self.findings.check(entries_fixed::NAME, verdict);
                if sane {
                    let stamp = Stamp(entry.stamp);
                    let verdict = clocks_bounded::check(store, origin, stamp, self.now_ms());
                    self.findings.check(clocks_bounded::NAME, verdict);
                }
            }
            if *have < last {
                let verdict = entries_fixed::follows(store, log, *have, last + 1);
                self.findings.check(entries_fixed::GAPS, verdict);
                *have = last;
            }
        }
        Ok(())
    }

    /// Why not all replicas are equal yet; `None`: they are. Streams that are held for a stamp do not
    /// count where `wild` clocks explain them: (what, how many are held).
    pub fn differing(&self, running: &[(StoreId, Process)], wild: bool) -> (Option<String>, usize) {
        let mut first: BTreeMap<(RegionId, NamespaceId), (StoreId, EventualState)> =
            BTreeMap::new();
        let (mut why, mut held_count) = (None, 0);
        if running.len() < self.disks.len() {
            return (Some("a store is down".to_owned()), 0);
        }
        for (store, process) in running {
            for peer in process.core.manager().data_peers() {
                let held = peer.eventual().held();
                for namespace in eventual_of(&peer) {
                    if wild && held.keys().any(|(of, _)| *of == namespace) {
                        held_count += 1;
                    }
                    let state = peer.eventual().state(namespace);
                    let place = (peer.id(), namespace);
                    match first.get(&place) {
                        None => {
                            first.insert(place, (*store, state));
                        }
                        Some((other, known))
                            if known.vector != state.vector || !state.partial.is_empty() =>
                        {
                            why = Some(format!(
                                "namespace {namespace} of region {}: store {other} has {}, store {store} {}{}{}",
                                place.0,
                                known.vector,
                                state.vector,
                                if held.is_empty() {
                                    ""
                                } else {
                                    ", a stream is held"
                                },
                                if state.partial.is_empty() {
                                    ""
                                } else {
                                    ", a copy is under way"
                                },
                            ));
                        }
                        Some(_) => {}
                    }
                }
            }
        }
        (why, held_count)
    }

    /// Compares everything that the replicas hold. Nothing may be going on, and all vectors are equal.
    /// `sane`: no majority of the clocks ever was wrong; else what can expire may have.
    pub fn compare(&self, running: &[(StoreId, Process)], ledger: &EventualLedger, sane: bool) {
        let mut all: BTreeMap<(RegionId, NamespaceId), (StoreId, BTreeMap<Bytes, Record>)> =
            BTreeMap::new();
        // What some replica counts as expired counts as expired.
        let mut cut: BTreeMap<(RegionId, NamespaceId), u64> = BTreeMap::new();
        for (_, process) in running {
            for peer in process.core.manager().data_peers() {
                for namespace in eventual_of(&peer) {
                    let through = peer.eventual().state(namespace).expired_through_ms;
                    let most = cut.entry((peer.id(), namespace)).or_default();
                    *most = (*most).max(through);
                }
            }
        }
        let mut found: BTreeMap<(StoreId, kept::At), Record> = BTreeMap::new();
        for (store, process) in running {
            let Some(disk) = self.disks.get(store) else {
                continue;
            };
            let names: BTreeMap<NamespaceId, &'static str> = [SYNCED, RELAXED]
                .into_iter()
                .filter_map(|name| {
                    let tables = process.core.namespaces().tables();
                    Some((NamespaceId(tables.namespace(name)?.id), name))
                })
                .collect();
            for peer in process.core.manager().data_peers() {
                for namespace in eventual_of(&peer) {
                    let place = (peer.id(), namespace);
                    let through_ms = cut.get(&place).copied().unwrap_or(0);
                    let rows = match self.count(*store, &peer, namespace, disk.engine.as_ref()) {
                        Ok(rows) => rows,
                        Err(why) => {
                            self.findings
                                .report(convergence::NAME, format!("store {store}: {why}"));
                            continue;
                        }
                    };
                    if let Some(name) = names.get(&namespace) {
                        for (key, record) in &rows {
                            found.insert((*store, (*name, key.clone())), record.clone());
                        }
                    }
                    let live: BTreeMap<Bytes, Record> = rows
                        .into_iter()
                        .filter(|(_, record)| {
                            !record.tombstone
                                && (record.expires_at_ms == 0 || record.expires_at_ms > through_ms)
                        })
                        .collect();
                    match all.get(&place) {
                        None => {
                            all.insert(place, (*store, live));
                        }
                        Some((other, known)) if *known != live => {
                            self.findings.report(
                                convergence::NAME,
                                different(place, *other, known, *store, &live),
                            );
                        }
                        Some(_) => {}
                    }
                }
            }
        }
        let now_ms = if sane { self.now_ms() } else { ANY_TIME_MS };
        ledger.with_writes(|writes| {
            for (store, _) in running {
                for at in writes.keys() {
                    let record = found.get(&(*store, at.clone()));
                    let found = record.map(|record| (record, value_of(&record.value)));
                    if let Err((name, why)) = writes.check(&at, found, now_ms) {
                        self.findings.report(name, format!("store {store}: {why}"));
                    }
                }
            }
        });
        ledger.check_absences(sane);
    }

    /// The records of a namespace on a disk; compared with what the replica keeps as their digest.
    fn count(
        &self,
        store: StoreId,
        peer: &Peer,
        namespace: NamespaceId,
        disk: &dyn View,
    ) -> Result<BTreeMap<Bytes, Record>, String> {
        let state = peer.eventual().state(namespace);
        let held = rdb_server::region::layout::intersect(
            peer.descriptor(),
            &KeyRange {
                start: GlobalKey::namespace_start(namespace),
                end: GlobalKey::namespace_end(namespace),
            },
        );
        let (mut digest, mut rows) = (Digest::default(), BTreeMap::new());
        let mut keys = 0;
        for item in disk.scan(Family::Data, &held, false) {
            let (key, value) = item.map_err(|error| error.to_string())?;
            let record = Record::decode(value).map_err(|error| error.to_string())?;
            let global = GlobalKey::from_bytes(key).ok_or("no key")?;
            if state.is_live(&record) {
                digest.add(&global.user_key(), &record);
                keys += 1;
            }
            rows.insert(global.user_key(), record);
        }
        if (digest, keys) != (state.digest, state.keys) {
            self.findings.report(
                convergence::NAME,
                format!(
                    "store {store} holds other records in namespace {namespace} of region {} than its digest says: {keys} live ones, and it counts {}",
                    peer.id(),
                    state.keys
                ),
            );
        }
        Ok(rows)
    }

    fn sent(&self, letter: &Letter, push: &raft::PushOrigins) {
        let Some(disk) = self.durable(letter.from) else {
            return;
        };
        let mut seen = self.seen.lock();
        for run in &push.runs {
            let Some(origin) = StoreId::new(u64::from(run.origin)) else {
                continue;
            };
            let namespace = NamespaceId(run.namespace_id);
            let place = (letter.region, namespace);
            let Some(state) = self.synced(letter.from, place, disk.as_ref()) else {
                continue;
            };
            // Made before a seal and sent behind it: of the time before, which who gets it refuses.
            if run.epoch <= state.last_seal.0 {
                continue;
            }
            let log = (letter.region, namespace, origin, state.last_seal.0);
            for bytes in &run.entries {
                let Ok(entry) = decode(bytes) else { continue };
                let place = format!("as store {} sends it", letter.from);
                let verdict = seen
                    .entries
                    .seen(log, entry.sequence, xxh3_64(bytes), &place);
                self.findings.check(entries_fixed::NAME, verdict);
                let forgotten = entry.sequence <= state.truncated.get(origin);
                let on_disk = forgotten || state.vector.get(origin) >= entry.sequence;
                let place = (letter.region, namespace, origin);
                let verdict = synced_first::entry(letter.from, place, entry.sequence, on_disk);
                self.findings.check(synced_first::NAME, verdict);
            }
        }
    }

    /// What a store's disk holds for good of a namespace; `None`: it is another eventual time's. What a change
    /// of mode does is as durable as the log that it follows from, before it is synced itself.
    fn synced(
        &self,
        store: StoreId,
        (region, namespace): (RegionId, NamespaceId),
        durable: &dyn View,
    ) -> Option<EventualState> {
        let written = self.disks.get(&store)?.engine.clone();
        let written = EventualState::load(region, namespace, written.as_ref()).ok()?;
        let state = EventualState::load(region, namespace, durable).ok()?;
        (state.last_seal == written.last_seal).then_some(state)
    }

    fn told(&self, letter: &Letter, namespace: u32, told: &[raft::VectorPart]) {
        let (store, namespace) = (letter.to, NamespaceId(namespace));
        let (Some(disk), Some(told)) = (self.durable(store), vector(told)) else {
            return;
        };
        let place = (letter.region, namespace);
        if let Some(state) = self.synced(store, place, disk.as_ref()) {
            let verdict = synced_first::vector(store, place, &told, &state.vector);
            self.findings.check(synced_first::NAME, verdict);
        }
    }

    /// A store says how it stands while a namespace is being sealed: that it takes no more writes is synced.
    fn is_there(&self, letter: &Letter, namespace: u32, epoch: u64) {
        let (Some(durable), Some(written)) = (self.durable(letter.to), self.disks.get(&letter.to))
        else {
            return;
        };
        let key = region_namespace(letter.region, NamespaceId(namespace));
        let row = |disk: &dyn View| {
            let row = disk.get(Family::Region, &key).ok()??;
            raft::RegionNamespaceRow::decode(row).ok()
        };
        let written = row(written.engine.as_ref());
        if written.is_none_or(|row| row.sealing.is_none() || row.epoch != epoch) {
            return;
        }
        let durable = row(durable.as_ref()).map_or(0, |row| row.epoch);
        let verdict = synced_first::epoch(letter.to, letter.region, epoch, durable);
        self.findings.check(synced_first::NAME, verdict);
    }

    fn copied(&self, letter: &Letter, namespace: u32, reply: &raft::CompareRangeReply) {
        self.told(letter, namespace, &reply.vector);
        let Some(disk) = self.durable(letter.to) else {
            return;
        };
        let place = (letter.region, NamespaceId(namespace));
        if self.synced(letter.to, place, disk.as_ref()).is_none() {
            return;
        }
        for stored in &reply.records {
            let global = GlobalKey::new(NamespaceId(namespace), &stored.key);
            let (Ok(on_disk), Ok(record)) = (
                disk.get(Family::Data, global.as_bytes()),
                Record::decode(stored.record.clone()),
            ) else {
                continue;
            };
            let newest = on_disk.and_then(|stored| Record::decode(stored).ok());
            let dead = record.tombstone || record.expires_at_ms > 0;
            if newest.is_none_or(|newest| newest.stamp < record.stamp) && !dead {
                let why = format!(
                    "store {} sent a record of namespace {namespace} in a copy, which is not synced there",
                    letter.to
                );
                self.findings.report(synced_first::NAME, why);
            }
        }
    }
}

fn decode(bytes: &Bytes) -> Result<OriginEntry, StorageError> {
    OriginEntry::decode(bytes.clone())
        .map_err(|error| StorageError::corruption("an entry of a log", error.to_string()))
}

fn different(
    (region, namespace): (RegionId, NamespaceId),
    one: StoreId,
    of_one: &BTreeMap<Bytes, Record>,
    two: StoreId,
    of_two: &BTreeMap<Bytes, Record>,
) -> String {
    let keys = of_one.keys().chain(of_two.keys());
    let first = keys
        .filter(|key| of_one.get(*key) != of_two.get(*key))
        .min();
    let shown = |records: &BTreeMap<Bytes, Record>| {
        let record = first.and_then(|key| records.get(key));
        record.map_or_else(|| "nothing".to_owned(), |record| format!("{record:?}"))
    };
    format!(
        "stores {one} and {two} have equal vectors in namespace {namespace} of region {region}, and under key {}: {} and {}",
        first.map_or_else(String::new, |key| key.escape_ascii().to_string()),
        shown(of_one),
        shown(of_two)
    )
}

impl Tap for EventualWatch {
    fn request(&self, letter: &mut Letter) -> Option<Answer> {
        if let peer_request::Body::PushOrigins(push) = &letter.body {
            self.sent(letter, push);
        }
        None
    }

    fn answer(&self, letter: &Letter, answer: &mut Answer) {
        match answer {
            Ok(peer_response::Body::PushOrigins(reply)) => {
                for part in &reply.vectors {
                    self.told(letter, part.namespace_id, &part.vector);
                }
            }
            Ok(peer_response::Body::Reports(reply)) => {
                for report in &reply.reports {
                    self.told(letter, report.namespace_id, &report.vector);
                    let (Some(vector), Some(digest)) =
                        (vector(&report.vector), Digest::from_bytes(&report.digest))
                    else {
                        continue;
                    };
                    if report.partial {
                        continue;
                    }
                    let namespace = NamespaceId(report.namespace_id);
                    let place = (letter.region, namespace, report.epoch);
                    let verdict = self.seen.lock().told.seen(
                        place,
                        &vector,
                        report.expired_through_ms,
                        digest,
                        letter.to,
                    );
                    self.findings.check(convergence::NAME, verdict);
                }
            }
            Ok(peer_response::Body::Sealing(reply)) => {
                if let peer_request::Body::AskSealing(request) = &letter.body {
                    self.told(letter, request.namespace_id, &reply.vector);
                    self.is_there(letter, request.namespace_id, reply.epoch);
                }
            }
            Ok(peer_response::Body::CompareRange(reply)) => {
                if let peer_request::Body::CompareRange(request) = &letter.body {
                    self.copied(letter, request.namespace_id, reply);
                }
            }
            _ => {}
        }
    }
}

/// Some replica says that its logs are gone, which it may do at any time: who is behind takes a copy
/// instead. Real logs are as long as a gigabyte, which no run fills.
pub struct ShortLogs(pub bool);

impl Tap for ShortLogs {
    fn request(&self, _: &mut Letter) -> Option<Answer> {
        None
    }

    fn answer(&self, _: &Letter, answer: &mut Answer) {
        if let (true, Ok(peer_response::Body::Reports(reply))) = (self.0, answer) {
            for report in &mut reply.reports {
                let all: Option<VersionVector> = vector(&report.vector);
                if all.is_some() {
                    report.truncated.clone_from(&report.vector);
                }
            }
        }
    }
}
