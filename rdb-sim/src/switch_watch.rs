//! Watches changes of mode inside all stores, as their disks see them, and judges them in the end.
//!
//! Owns an engine in front of each store's disk that sees every batch before it is written: so each step of
//! a change of mode is seen at the very moment at which it takes effect, with what the replica holds then.
//! Changes nothing.

use crate::aim::Aim;
use crate::clock::EPOCH_MS;
use crate::disk::Disk;
use crate::eventual_watch::ANY_TIME_MS;
use crate::invariants::sealed_alike::{self, Sealed};
use crate::invariants::{Findings, convergence, digests, done_or_undone, kept, one_mode};
use crate::invariants::{old_times, promises_bind, sealed_linearizable, survives_seals};
use crate::plan::Step;
use crate::store::Process;
use crate::switched_clients::{SWITCHED, SwitchedLedger};
use crate::trace::Trace;
use crate::workload::number_of;
use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use rdb_proto::convert;
use rdb_proto::raft::{
    ConflictRow, InstallMark, OriginEntry, RegionDescriptor, RegionNamespaceRow,
};
use rdb_server::eventual::{EventualState, layout as own};
use rdb_server::modes::RegionView;
use rdb_server::peer::Peer;
use rdb_server::region::layout;
use rdb_server::region::state::NamespaceState;
use rdb_storage::{
    Engine, EngineStats, Family, KeyRange, Op, Scan, StorageError, View, WriteBatch,
};
use rdb_types::{Epoch, GlobalKey, Mode, NamespaceId, Record, RegionId, Stamp, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How much was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Switches {
    /// Regions that became eventual.
    pub opened: u64,
    /// Regions that became strong.
    pub sealed: u64,
    /// Seals that were given up.
    pub aborted: u64,
    /// Calls that were judged between a seal and the next eventual time.
    pub judged: u64,
    /// Writes that are listed as set aside.
    pub set_aside: u64,
    /// How long after the healing the last switch had ended, in milliseconds.
    pub settled_ms: u64,
}

#[derive(Default)]
struct Seen {
    /// What each region holds.
    regions: BTreeMap<RegionId, RegionDescriptor>,
    modes: one_mode::Modes,
    sealed: BTreeMap<one_mode::Place, Sealed>,
    damaged: BTreeSet<StoreId>,
    count: Switches,
}

/// Watches one cluster.
#[derive(Clone)]
pub struct SwitchWatch {
    findings: Findings,
    trace: Trace,
    aim: Arc<Aim>,
    seen: Arc<Mutex<Seen>>,
}

impl SwitchWatch {
    /// Reports to `findings`, and tells `aim` of steps.
    pub fn new(findings: Findings, trace: Trace, aim: Arc<Aim>) -> SwitchWatch {
        SwitchWatch {
            findings,
            trace,
            aim,
            seen: Arc::default(),
        }
    }

    /// What `store` gets as its engine.
    pub fn engine(&self, store: StoreId, inner: Arc<dyn Engine>) -> Arc<dyn Engine> {
        Arc::new(Watched {
            store,
            inner,
            watch: self.clone(),
        })
    }

    /// Learns what the regions of a store hold.
    pub fn look(&self, process: &Process) {
        let mut seen = self.seen.lock();
        for peer in process.core.manager().data_peers() {
            let regions = &mut seen.regions;
            regions
                .entry(peer.id())
                .or_insert_with(|| peer.descriptor().clone());
        }
    }

    /// A bit flips on a store's disk: it may not be able to keep what it promised.
    pub fn damaged(&self, store: StoreId) {
        self.seen.lock().damaged.insert(store);
    }

    /// A region is about to be replaced by a snapshot here, with `before` as what the replica holds.
    fn replaced(&self, store: StoreId, region: RegionId, before: &dyn View) -> Option<()> {
        let seen = self.seen.lock();
        if seen.damaged.contains(&store) {
            return None;
        }
        let rows = KeyRange::prefix(&layout::region(region));
        for (key, row) in before.scan(Family::Region, &rows, false).flatten() {
            let (Some(namespace), Some(state)) = (layout::namespace_of(&key), read(row)) else {
                continue;
            };
            let place = (region, namespace, state.epoch.0 + 1);
            let (Some(sealing), Some(sealed)) = (&state.sealing, seen.sealed.get(&place)) else {
                continue;
            };
            if sealing.participants.contains(&store) {
                let held = EventualState::load(region, namespace, before).ok()?;
                let at = (region, namespace);
                let verdict = promises_bind::check(store, at, &held.vector, &sealed.fence);
                self.findings.check(promises_bind::NAME, verdict);
            }
        }
        Some(())
    }

    /// An entry is about to be written to an origin's log, with `before` as what the replica holds.
    fn entry(&self, store: StoreId, before: &dyn View, key: &Bytes, value: &Bytes) -> Option<()> {
        let (region, namespace, dot) = own::entry_of(key)?;
        let entry = OriginEntry::decode(value.clone()).ok()?;
        if entry.filler_from > 0 {
            return Some(());
        }
        let row = layout::region_namespace(region, namespace);
        let state = read(before.get(Family::Region, &row).ok()??)?;
        let (epoch, sealed) = (Epoch(entry.epoch), state.last_seal());
        let verdict = old_times::check(store, (region, namespace), dot, epoch, sealed);
        self.findings.check(old_times::NAME, verdict);
        Some(())
    }

    /// How much was looked at.
    pub fn switches(&self) -> Switches {
        self.seen.lock().count
    }

    /// A batch is about to change a namespace's row. `before`: the row as it is, and all that the replica
    /// holds.
    fn step(
        &self,
        store: StoreId,
        (region, namespace): (RegionId, NamespaceId),
        before: &dyn View,
        row: &Bytes,
    ) -> Result<(), StorageError> {
        let Some(new) = read(row.clone()) else {
            return Ok(());
        };
        let key = layout::region_namespace(region, namespace);
        let old = before.get(Family::Region, &key)?.and_then(read);
        if old.as_ref().is_some_and(|old| old.epoch == new.epoch) {
            return Ok(());
        }
        let place = (region, namespace, new.epoch.0);
        let way = one_mode::Way {
            mode: new.mode,
            sealing: new.sealing.is_some(),
        };
        let mut seen = self.seen.lock();
        let first = match seen.modes.seen(place, way, store) {
            Ok(first) => first,
            Err(why) => {
                self.findings.report(one_mode::NAME, why);
                return Ok(());
            }
        };
        let Some(old) = old else { return Ok(()) };
        if old.epoch.0 + 1 != new.epoch.0 {
            return Ok(());
        }
        if first {
            let count = &mut seen.count;
            let step = match (old.mode, new.mode, &old.sealing) {
                (Mode::Strong, Mode::Eventual, _) => {
                    count.opened += 1;
                    Step::Opened
                }
                (_, Mode::Strong, _) => {
                    count.sealed += 1;
                    Step::Sealed
                }
                (_, _, Some(_)) => {
                    count.aborted += 1;
                    Step::Aborted
                }
                (_, _, None) => Step::Begun,
            };
            self.aim.stepped(step, region);
            self.trace.note(format_args!(
                "store {store}: region {region}, namespace {namespace}: epoch {}, {}{}",
                new.epoch,
                new.mode,
                if way.sealing { ", sealing" } else { "" }
            ));
        }
        if new.mode == Mode::Strong
            && let Some(sealing) = &old.sealing
        {
            let held = EventualState::load(region, namespace, before)?;
            let Some(descriptor) = seen.regions.get(&region) else {
                return Ok(());
            };
            let records = in_range(before, &held_range(descriptor, namespace), |record| {
                new.counts(record)
            })?;
            let fence = new.fences.last().map(|fence| fence.vector.clone());
            let sealed = seen.sealed.entry(place).or_insert_with(|| Sealed {
                by: store,
                fence: fence.unwrap_or_default(),
                participants: sealing.participants.clone(),
                records: records.clone(),
            });
            let verdict = sealed_alike::check(store, &held.vector, &records, sealed);
            self.findings.check(sealed_alike::NAME, verdict);
        }
        Ok(())
    }

    /// Why the switched namespace is not everywhere where the tables want it; `None`: it is.
    pub fn unsettled(&self, running: &[(StoreId, Process)], stores: usize) -> Option<String> {
        if running.len() < stores {
            return Some("a store is down".to_owned());
        }
        let mut wanted: Option<(i32, u64)> = None;
        for (store, process) in running {
            let tables = process.core.namespaces().tables();
            let Some(row) = tables.namespace(SWITCHED) else {
                return Some(format!("store {store} does not know the namespace"));
            };
            let known = tables.stores.get(store).map(|row| &row.declared);
            if known.is_none_or(|known| *known != process.core.manager().declared()) {
                return Some(format!("store {store} has not told what its file declares"));
            }
            if row.settled_attempt != row.attempt {
                return Some(format!(
                    "attempt {} has not ended: {}",
                    row.attempt,
                    progress(running, NamespaceId(row.id), row.target, row.attempt)
                ));
            }
            if *wanted.get_or_insert((row.target, row.attempt)) != (row.target, row.attempt) {
                return Some(format!("store {store} has other tables"));
            }
            let namespace = NamespaceId(row.id);
            for peer in process.core.manager().data_peers() {
                let followed = peer.cell().with(|summary| {
                    let state = summary.namespaces.get(&namespace)?;
                    let there = summary.fresh_copy.is_none()
                        && state.sealing.is_none()
                        && convert::mode_to_wire(state.mode) == row.target
                        && state.attempt >= row.attempt;
                    (!there).then(|| {
                        format!(
                            "store {store} has region {} as {}{} by attempt {} of {}{}",
                            peer.id(),
                            state.mode,
                            if state.sealing.is_some() {
                                ", sealing,"
                            } else {
                                ""
                            },
                            state.attempt,
                            row.attempt,
                            summary.fresh_copy.as_deref().unwrap_or_default()
                        )
                    })
                });
                if followed.is_some() {
                    return followed;
                }
            }
        }
        None
    }

    /// The last switch had ended so long after the healing; or why it had not.
    pub fn settled(&self, after_ms: u64, why: Option<&str>) {
        self.seen.lock().count.settled_ms = after_ms;
        self.findings
            .check(done_or_undone::NAME, done_or_undone::check(why));
    }

    /// Judges everything. Nothing may be going on, and all switches have ended. `sane`: no majority of the
    /// clocks ever was wrong; else what can expire may have. `converged`: no stream is held for a wild clock.
    pub fn judge(
        &self,
        running: &[(StoreId, Process)],
        disks: &BTreeMap<StoreId, Arc<Disk>>,
        ledger: &SwitchedLedger,
        (sane, converged): (bool, bool),
    ) {
        let Some(namespace) = running.iter().find_map(|(_, process)| {
            let tables = process.core.namespaces().tables();
            tables.namespace(SWITCHED).map(|row| NamespaceId(row.id))
        }) else {
            return;
        };
        let now_ms = if sane {
            EPOCH_MS + self.trace.now_ms()
        } else {
            ANY_TIME_MS
        };
        let mut seen = self.seen.lock();
        for store in running.iter().map(|(store, _)| store) {
            if let Some(disk) = disks.get(store) {
                match listed(disk.engine.as_ref(), namespace) {
                    Ok(rows) => seen.count.set_aside += ledger.set_aside(rows),
                    Err(error) => {
                        let why = format!("store {store}: {error}");
                        self.findings.report(kept::NAME, why);
                    }
                }
            }
        }
        for (place, mode, wrote, store) in ledger.receipts() {
            let place = (place.0, namespace, place.1);
            let verdict = seen.modes.served(place, mode, wrote, store);
            self.findings.check(one_mode::NAME, verdict);
        }
        let mut before: BTreeMap<RegionId, u64> = BTreeMap::new();
        for ((region, of, epoch), sealed) in &seen.sealed {
            if *of != namespace {
                continue;
            }
            let last = before.insert(*region, *epoch).unwrap_or(0);
            ledger.with(|acked, writes, _| {
                let place = (*region, *epoch, last);
                let verdict = survives_seals::check(place, sealed, acked, SWITCHED, writes, now_ms);
                self.findings.check(survives_seals::NAME, verdict);
            });
        }
        let mut judged = 0;
        for (region, epoch) in ledger.strong_times() {
            let sealed = seen.sealed.get(&(region, namespace, epoch));
            // A namespace begins with nothing; any other strong time begins with a seal.
            if sealed.is_none() && epoch > 1 {
                continue;
            }
            let initial = |key: &Bytes| {
                let record = sealed?.records.get(key)?;
                Some(number_of(&record.value))
            };
            ledger.with(|_, _, calls| {
                match sealed_linearizable::check((region, epoch), calls, initial) {
                    Ok(calls) => judged += calls as u64,
                    Err(why) => self.findings.report(sealed_linearizable::NAME, why),
                }
            });
        }
        seen.count.judged = judged;
        drop(seen);
        // A stream that is held by design is not everywhere.
        if converged {
            self.compare(running, disks, namespace, ledger, now_ms);
        }
    }

    /// Compares what all replicas hold, with each other and with what was acknowledged.
    fn compare(
        &self,
        running: &[(StoreId, Process)],
        disks: &BTreeMap<StoreId, Arc<Disk>>,
        namespace: NamespaceId,
        ledger: &SwitchedLedger,
        now_ms: u64,
    ) {
        let mut first: BTreeMap<RegionId, (StoreId, u64, BTreeMap<Bytes, Record>)> =
            BTreeMap::new();
        for (store, process) in running {
            let Some(disk) = disks.get(store) else {
                continue;
            };
            let mut held = BTreeMap::new();
            for peer in process.core.manager().data_peers() {
                let region = peer.id();
                let Some(state) = peer
                    .cell()
                    .with(|summary| summary.namespaces.get(&namespace).cloned())
                else {
                    continue;
                };
                let rows = match of_peer(&peer, namespace, &state, disk.engine.as_ref()) {
                    Ok(rows) => rows,
                    Err(error) => {
                        let why = format!("store {store}: {error}");
                        self.findings.report(convergence::NAME, why);
                        continue;
                    }
                };
                held.extend(rows.clone());
                if state.mode != Mode::Strong {
                    continue;
                }
                let index = peer.cell().applied_index();
                match first.get(&region) {
                    None => {
                        first.insert(region, (*store, index, rows));
                    }
                    Some((other, at, known)) if *at == index && *known != rows => {
                        self.findings.report(
                            digests::NAME,
                            format!(
                                "stores {other} and {store} hold different records of namespace {namespace} in region {region} at index {index}"
                            ),
                        );
                    }
                    Some(_) => {}
                }
            }
            ledger.with(|_, writes, _| {
                for at in writes.keys() {
                    let found = held.get(&at.1);
                    let found = found.map(|record| (record, number_of(&record.value)));
                    if let Err((name, why)) = writes.check(&at, found, now_ms) {
                        self.findings.report(name, format!("store {store}: {why}"));
                    }
                }
            });
        }
    }
}

fn read(row: Bytes) -> Option<NamespaceState> {
    NamespaceState::from_row(&RegionNamespaceRow::decode(row).ok()?)
}

/// What the leaders of the regions say of a switch.
fn progress(
    running: &[(StoreId, Process)],
    namespace: NamespaceId,
    target: i32,
    attempt: u64,
) -> String {
    let reports: Vec<_> = running
        .iter()
        .flat_map(|(_, process)| process.core.manager().data_peers())
        .map(|peer| peer.report())
        .collect();
    let mut left: Vec<String> = Vec::new();
    for report in &reports {
        for of in report
            .namespaces
            .iter()
            .filter(|of| of.namespace_id == namespace.0)
        {
            let view = RegionView {
                mode: of.mode,
                attempt: of.attempt,
                sealing: of.sealing,
                ..RegionView::default()
            };
            if !view.followed(target, attempt)
                && let Some(progress) = &of.progress
            {
                left.push(format!("region {}: {progress:?}", report.region_id));
            }
        }
    }
    left.join("; ")
}

/// The part of a namespace that lies in a region.
fn held_range(descriptor: &RegionDescriptor, namespace: NamespaceId) -> KeyRange {
    let whole = KeyRange {
        start: GlobalKey::namespace_start(namespace),
        end: GlobalKey::namespace_end(namespace),
    };
    layout::intersect(descriptor, &whole)
}

/// Records on a disk that count, by user key.
fn in_range(
    disk: &dyn View,
    range: &KeyRange,
    counts: impl Fn(&Record) -> bool,
) -> Result<BTreeMap<Bytes, Record>, StorageError> {
    let mut records = BTreeMap::new();
    for item in disk.scan(Family::Data, range, false) {
        let (key, value) = item?;
        let record = Record::decode(value)
            .map_err(|error| StorageError::corruption("a record", error.to_string()))?;
        if let Some(global) = GlobalKey::from_bytes(key).filter(|_| counts(&record)) {
            records.insert(global.user_key(), record);
        }
    }
    Ok(records)
}

fn of_peer(
    peer: &Peer,
    namespace: NamespaceId,
    state: &NamespaceState,
    disk: &dyn View,
) -> Result<BTreeMap<Bytes, Record>, StorageError> {
    let held = held_range(peer.descriptor(), namespace);
    let own = peer.eventual().state(namespace);
    in_range(disk, &held, |record| match state.mode {
        Mode::Strong => state.counts(record),
        Mode::Eventual => own.is_live(record),
    })
}

/// What a store lists as set aside.
fn listed(disk: &dyn View, namespace: NamespaceId) -> Result<Vec<(Bytes, Stamp)>, StorageError> {
    let mut rows = Vec::new();
    for region in 1..=16 {
        let range = own::conflicts(RegionId(region), namespace);
        for item in disk.scan(Family::Conflicts, &range, false) {
            let row = ConflictRow::decode(item?.1)
                .map_err(|error| StorageError::corruption("a conflict", error.to_string()))?;
            if row.set_aside {
                rows.push((row.key, Stamp(row.stamp)));
            }
        }
    }
    Ok(rows)
}

/// An engine that is looked at.
struct Watched {
    store: StoreId,
    inner: Arc<dyn Engine>,
    watch: SwitchWatch,
}

impl View for Watched {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.inner.get(family, key)
    }

    fn scan(&self, family: Family, range: &KeyRange, reverse: bool) -> Scan<'_> {
        self.inner.scan(family, range, reverse)
    }
}

impl Engine for Watched {
    fn write(&self, batch: &WriteBatch) -> Result<(), StorageError> {
        for op in batch.ops() {
            if let Op::Put {
                family: Family::OriginLog,
                key,
                value,
            } = op
            {
                self.watch.entry(self.store, self, key, value);
            }
            if let Op::Put {
                family: Family::Region,
                key,
                value,
            } = op
                && key.get(..8) == Some(&[0; 8])
                && let Ok(mark) = InstallMark::decode(value.clone())
                && let Some(region) = installed(key, &mark)
            {
                self.watch.replaced(self.store, region, self);
            }
            if let Op::Put {
                family: Family::Region,
                key,
                value,
            } = op
                && key.len() == 12
                && let (Some(region), Some(namespace)) = (region_of(key), layout::namespace_of(key))
            {
                // A disk that is damaged on purpose is not looked at.
                let _ = self
                    .watch
                    .step(self.store, (region, namespace), self, value);
            }
        }
        self.inner.write(batch)
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.inner.sync()
    }

    fn snapshot(&self) -> Arc<dyn View> {
        self.inner.snapshot()
    }

    fn stats(&self) -> EngineStats {
        self.inner.stats()
    }
}

/// The region that the mark of an installation is of; `None`: it is another row.
fn installed(key: &Bytes, mark: &InstallMark) -> Option<RegionId> {
    mark.meta.as_ref()?;
    let region = RegionId(mark.slot & !(1 << 63));
    (*key == rdb_server::layout_store::installing(region)).then_some(region)
}

fn region_of(key: &Bytes) -> Option<RegionId> {
    let id = key.get(..8)?.try_into().ok().map(u64::from_be_bytes)?;
    (id > 0).then_some(RegionId(id))
}
