//! What a write does to a replica of an eventual namespace: from (state, write) to (rows, answer).
//!
//! Owns acceptance (stamp, number, request id) and merging of what other replicas accepted; expiry and the
//! dropping of tombstones and logs are `fold/forgetting.rs`, the finding of conflicts `fold/causality.rs`. Knows nothing of who waits or who is
//! told: it collects rows in a [`WriteBatch`] that the caller writes as a whole, and the states that are
//! true once it was written.
//!
//! Invariants:
//! - what comes later in a batch sees what came earlier in it;
//! - an entry is applied only when everything before it of the same origin was;
//! - a record changes only by [`rdb_types::merge`]'s law, or leaves when it is dead and nobody can bring
//!   anything older;
//! - a write that loses to one that had not seen it is in the conflict log; one that was overwritten in
//!   sequence is not.

mod causality;
mod forgetting;

use super::conflicts::{self, ConflictChanges};
use super::layout;
use super::state::{EventualState, write_ids};
use crate::error::{Error, Outcome};
use crate::history::change::{At, Change, Kind as Happened};
use crate::region::layout as rows;
use crate::region::request_ids::{Asked, IdTable, Known, fingerprint};
use bytes::Bytes;
use prost::Message;
use rdb_proto::convert::{vector, vector_to_wire};
use rdb_proto::raft::write_op::Kind;
use rdb_proto::raft::write_result::Applied;
use rdb_proto::raft::{OriginEntry, WriteOp};
use rdb_storage::{Family, StorageError, View, WriteBatch};
use rdb_types::merge::{Winner, winner};
use rdb_types::{
    Dot, Epoch, GlobalKey, NamespaceId, Reason, Record, RegionId, RequestId, Stamp, StoreId,
    VersionVector,
};
use std::collections::{BTreeMap, BTreeSet};

/// Own numbers that are reserved at a time for acknowledgements before the sync.
const RESERVED_NUMBERS: u64 = 1 << 16;

/// What became of an entry of another replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merged {
    /// It is in the batch.
    Applied,
    /// It was applied before.
    Known,
    /// Something before it is missing here.
    Gap,
}

/// Where an incoming record comes from, which tells what its writer had seen.
enum Source<'a> {
    /// An entry of an origin's log: it says so itself.
    Entry { seen: &'a VersionVector },
    /// A copy of a replica that had applied this.
    Copy { of: &'a VersionVector },
}

/// A batch under way.
pub struct Fold<'a> {
    me: StoreId,
    region: RegionId,
    view: &'a dyn View,
    states: BTreeMap<NamespaceId, EventualState>,
    ids: IdTable,
    /// Where the table of the region's log stands.
    log_ids: Option<IdTable>,
    batch: WriteBatch,
    /// Records that the batch changes.
    fresh: BTreeMap<GlobalKey, Option<Record>>,
    fresh_ids: BTreeMap<Bytes, Bytes>,
    fresh_entries: BTreeMap<Bytes, VersionVector>,
    conflicts: ConflictChanges,
    touched: BTreeSet<NamespaceId>,
    ids_changed: bool,
    largest: Stamp,
    found: u64,
    /// What readers see change, in order.
    changes: Vec<(NamespaceId, Change)>,
}

/// What a batch makes true.
pub struct Folded {
    /// The rows.
    pub batch: WriteBatch,
    /// The namespaces that it changed.
    pub states: BTreeMap<NamespaceId, EventualState>,
    /// Where the table of request ids stands.
    pub ids: IdTable,
    /// The largest stamp that was applied.
    pub largest: Stamp,
    /// Conflicts that were found.
    pub conflicts: u64,
    /// What readers see change, in order.
    pub changes: Vec<(NamespaceId, Change)>,
}

fn corrupt(region: RegionId, what: &str, why: impl std::fmt::Display) -> StorageError {
    StorageError::corruption(format!("{what} in region {region}"), why.to_string())
}

impl<'a> Fold<'a> {
    /// A batch over the rows of `view`.
    pub fn new(me: StoreId, region: RegionId, view: &'a dyn View, ids: IdTable) -> Fold<'a> {
        Fold {
            me,
            region,
            view,
            states: BTreeMap::new(),
            ids,
            log_ids: None,
            batch: WriteBatch::new(),
            fresh: BTreeMap::new(),
            fresh_ids: BTreeMap::new(),
            fresh_entries: BTreeMap::new(),
            conflicts: ConflictChanges::default(),
            touched: BTreeSet::new(),
            ids_changed: false,
            largest: Stamp::ZERO,
            found: 0,
            changes: Vec::new(),
        }
    }

    /// Has requests looked up in the table of the region's log, too, in namespaces that were switched.
    pub fn knowing(&mut self, log_ids: IdTable) {
        self.log_ids = Some(log_ids);
    }

    /// Brings a namespace in as it was before this batch. Everything below needs it.
    pub fn with(&mut self, namespace: NamespaceId, state: impl FnOnce() -> EventualState) {
        self.states.entry(namespace).or_insert_with(state);
    }

    /// Reads the records of these keys at once, so that each need not be read by itself.
    ///
    /// # Errors
    /// Reading failed, or a record is damaged.
    pub fn prefetch(&mut self, keys: BTreeSet<GlobalKey>) -> Result<(), StorageError> {
        let wanted: Vec<GlobalKey> = keys
            .into_iter()
            .filter(|key| !self.fresh.contains_key(key))
            .collect();
        let stored: Vec<Bytes> = wanted.iter().map(|key| key.as_bytes().clone()).collect();
        let found = self.view.multi_get(Family::Data, &stored)?;
        for (key, stored) in wanted.into_iter().zip(found) {
            let record = stored.map(|stored| self.decode(stored)).transpose()?;
            self.fresh.insert(key, record);
        }
        Ok(())
    }

    /// The largest stamp that the batch has applied so far.
    pub fn largest(&self) -> Stamp {
        self.largest
    }

    /// The state of a namespace in this batch.
    pub fn state(&self, namespace: NamespaceId) -> Option<&EventualState> {
        self.states.get(&namespace)
    }

    fn decode(&self, stored: Bytes) -> Result<Record, StorageError> {
        Record::decode(stored).map_err(|error| corrupt(self.region, "a record", error))
    }

    fn record(&mut self, global: &GlobalKey) -> Result<Option<Record>, StorageError> {
        if let Some(record) = self.fresh.get(global) {
            return Ok(record.clone());
        }
        let stored = self.view.get(Family::Data, global.as_bytes())?;
        let record = stored.map(|stored| self.decode(stored)).transpose()?;
        self.fresh.insert(global.clone(), record.clone());
        Ok(record)
    }

    /// Changes a namespace's state; `None` where [`Fold::with`] did not bring it in.
    fn change(&mut self, namespace: NamespaceId) -> Option<&mut EventualState> {
        self.touched.insert(namespace);
        self.states.get_mut(&namespace)
    }

    /// Accepts a write of a client under the given stamp, which has to be beyond every stamp applied here:
    /// its writer says that it has seen them. `relaxed` reserves numbers for early
    /// acknowledgements. `Err` inside is for the client.
    ///
    /// # Errors
    /// Reading failed, or what was read is damaged.
    pub fn accept(
        &mut self,
        op: &WriteOp,
        epoch: Epoch,
        stamp: Stamp,
        relaxed: bool,
        retention_ms: u64,
    ) -> Result<Result<Applied, Error>, StorageError> {
        let namespace = NamespaceId(op.namespace_id);
        let id = RequestId::new(op.request_id.clone());
        let print = if id.is_some() { fingerprint(op) } else { 0 };
        let asked = id.as_ref().map(|id| Asked {
            region: layout::beside(self.region),
            namespace,
            fingerprint: print,
            id,
            now: stamp,
        });
        if let Some(asked) = asked {
            self.turn_ids(stamp, retention_ms);
            match self
                .ids
                .look_up(self.view, &self.fresh_ids, asked, retention_ms)?
            {
                Ok(Known::New) => {}
                Ok(Known::Answered(applied)) => return Ok(Ok(applied)),
                Err(error) => return Ok(Err(error)),
            }
            // It may have been asked for when the namespace was strong.
            if let Some(log_ids) = self.log_ids.filter(|_| epoch > Epoch::FIRST) {
                let of_log = Asked {
                    region: self.region,
                    ..asked
                };
                let found = log_ids.look_up(self.view, &BTreeMap::new(), of_log, u64::MAX)?;
                match found {
                    Ok(Known::New) => {}
                    Ok(Known::Answered(applied)) => return Ok(Ok(applied)),
                    Err(error) => return Ok(Err(error)),
                }
            }
        }
        let deletion = match Kind::try_from(op.kind) {
            Ok(Kind::Put) => false,
            Ok(Kind::Delete) => true,
            Ok(Kind::CasPut | Kind::CasDelete) | Err(_) => {
                return Ok(Err(Error::new(
                    Reason::WrongMode,
                    "compare-and-swap needs a strong namespace",
                )
                .outcome(Outcome::NotApplied)));
            }
        };
        let global = GlobalKey::new(namespace, &op.key);
        let current = self.record(&global)?;
        let me = self.me;
        let Some(state) = self.states.get_mut(&namespace) else {
            return Ok(Err(not_here(self.region, namespace)));
        };
        state.epoch = epoch;
        let sequence = state.vector.get(me) + 1;
        if relaxed && sequence + RESERVED_NUMBERS / 2 > state.sequence_bound {
            state.sequence_bound = sequence + RESERVED_NUMBERS;
        }
        let existed = current
            .as_ref()
            .is_some_and(|record| state.is_live(record) && !record.is_expired(stamp));
        let expires_at_ms = match u64::try_from(op.ttl_ms) {
            Ok(ttl_ms) if ttl_ms > 0 && !deletion => stamp.unix_ms().saturating_add(ttl_ms),
            _ => 0,
        };
        let seen = state.vector.clone();
        let entry = OriginEntry {
            sequence,
            filler_from: 0,
            stamp: stamp.0,
            epoch: epoch.0,
            key: op.key.clone(),
            value: if deletion {
                Bytes::new()
            } else {
                op.value.clone()
            },
            deletion,
            expires_at_ms,
            seen: vector_to_wire(&seen),
            request_id: op.request_id.clone(),
            fingerprint: print,
            existed,
        };
        let dot = Dot {
            origin: self.me,
            sequence,
        };
        self.log(namespace, dot, entry.encode_to_vec().into(), seen);
        let record = record_of(&entry);
        self.largest = self.largest.max(stamp);
        if let Some(state) = self.change(namespace) {
            state.last_stamp = state.last_stamp.max(stamp);
        }
        // The stamp is beyond all that was applied here (the caller's duty): it wins. Should it not, it
        // loses here as it does everywhere else.
        if winner(current.as_ref(), &record) == Winner::Incoming {
            self.replace(&global, current, Some(record));
        }
        let applied = answer(&entry);
        if let Some(asked) = asked {
            self.ids
                .remember(&mut self.batch, &mut self.fresh_ids, asked, applied);
        }
        Ok(Ok(applied))
    }

    /// Merges an entry of another replica's log, whoever brought it. `encoded` is what is kept: an entry
    /// never changes.
    ///
    /// # Errors
    /// Reading failed, or what was read is damaged.
    pub fn merge(
        &mut self,
        namespace: NamespaceId,
        origin: StoreId,
        entry: &OriginEntry,
        encoded: Bytes,
        retention_ms: u64,
    ) -> Result<Merged, StorageError> {
        let Some(state) = self.states.get(&namespace) else {
            return Ok(Merged::Gap);
        };
        let have = state.vector.get(origin);
        if entry.sequence <= have {
            return Ok(Merged::Known);
        }
        let first = match entry.filler_from {
            0 => entry.sequence,
            from => from,
        };
        if first > have + 1 {
            return Ok(Merged::Gap);
        }
        let seen = vector(&entry.seen).unwrap_or_default();
        let dot = Dot {
            origin,
            sequence: entry.sequence,
        };
        self.log(namespace, dot, encoded, seen.clone());
        if entry.filler_from > 0 {
            return Ok(Merged::Applied);
        }
        let record = record_of(entry);
        self.largest = self.largest.max(record.stamp);
        if let Some(state) = self.change(namespace) {
            state.epoch = state.epoch.max(record.epoch);
            state.last_stamp = state.last_stamp.max(record.stamp);
        }
        if let Some(id) = RequestId::new(entry.request_id.clone()) {
            self.turn_ids(record.stamp, retention_ms);
            let asked = Asked {
                region: layout::beside(self.region),
                namespace,
                fingerprint: entry.fingerprint,
                id: &id,
                now: record.stamp,
            };
            self.ids
                .remember(&mut self.batch, &mut self.fresh_ids, asked, answer(entry));
        }
        self.merge_record(namespace, &entry.key, record, Source::Entry { seen: &seen })?;
        Ok(Merged::Applied)
    }

    /// Says that numbers from the vector's end up to `last` were given out, lost in a crash, and seen by
    /// nobody: they become one empty entry.
    pub fn fill(&mut self, namespace: NamespaceId, last: u64) {
        let me = self.me;
        let Some(state) = self.states.get(&namespace) else {
            return;
        };
        let have = state.vector.get(me);
        if last <= have {
            return;
        }
        let seen = state.vector.clone();
        let entry = OriginEntry {
            sequence: last,
            filler_from: have + 1,
            ..OriginEntry::default()
        };
        let dot = Dot {
            origin: me,
            sequence: last,
        };
        self.log(namespace, dot, entry.encode_to_vec().into(), seen);
    }

    fn log(&mut self, namespace: NamespaceId, dot: Dot, encoded: Bytes, seen: VersionVector) {
        let key = layout::entry(self.region, namespace, dot);
        let bytes = (key.len() + encoded.len()) as u64;
        self.batch.put(Family::OriginLog, key.clone(), encoded);
        self.fresh_entries.insert(key, seen);
        if let Some(state) = self.change(namespace) {
            state.vector.raise(dot.origin, dot.sequence);
            state.log_bytes += bytes;
            state.settle_partial();
        }
    }

    fn turn_ids(&mut self, now: Stamp, retention_ms: u64) {
        self.ids_changed = true;
        let region = layout::beside(self.region);
        self.ids
            .turn_over(&mut self.batch, region, now, retention_ms);
    }

    /// Merges records of a copy. `of` is what the replica that they come from had applied. `false`: that is
    /// behind the floor, and nothing was merged. Here and not when they arrive: a tombstone may be dropped
    /// in between.
    ///
    /// # Errors
    /// Reading failed, or what was read is damaged.
    pub fn merge_copied(
        &mut self,
        namespace: NamespaceId,
        records: impl IntoIterator<Item = (Bytes, Record)>,
        of: &VersionVector,
    ) -> Result<bool, StorageError> {
        let state = self.states.get(&namespace);
        if state.is_none_or(|state| !state.may_merge(of)) {
            return Ok(false);
        }
        for (key, record) in records {
            self.largest = self.largest.max(record.stamp);
            if let Some(state) = self.change(namespace) {
                state.last_stamp = state.last_stamp.max(record.stamp);
                state.partial.join(of);
                state.settle_partial();
            }
            self.merge_record(namespace, &key, record, Source::Copy { of })?;
        }
        Ok(true)
    }

    /// Ends a copy: everything up to `of` has been merged.
    pub fn copied(&mut self, namespace: NamespaceId, of: &VersionVector) {
        let region = self.region;
        let Some(state) = self.states.get(&namespace) else {
            return;
        };
        let ahead: Vec<(StoreId, u64)> = of
            .iter()
            .filter(|(origin, sequence)| *sequence > state.vector.get(*origin))
            .collect();
        for (origin, sequence) in ahead {
            // The log of this origin is one piece up to its end; what the copy brought is not in it.
            let gone = layout::entries(region, namespace, origin, 0, sequence);
            if let Some(end) = gone.end {
                self.batch.delete_range(Family::OriginLog, gone.start, end);
            }
            if let Some(state) = self.change(namespace) {
                state.truncated.raise(origin, sequence);
                state.vector.raise(origin, sequence);
            }
        }
        if let Some(state) = self.change(namespace) {
            state.settle_partial();
        }
    }

    fn merge_record(
        &mut self,
        namespace: NamespaceId,
        key: &Bytes,
        incoming: Record,
        source: Source<'_>,
    ) -> Result<(), StorageError> {
        let global = GlobalKey::new(namespace, key);
        // It expired here, and was dropped, as it will be where it comes from.
        let is_over = conflicts::dot(&incoming).is_none()
            && self
                .states
                .get(&namespace)
                .is_some_and(|state| !state.is_live(&incoming));
        if is_over {
            return Ok(());
        }
        let current = self.record(&global)?;
        self.supersede(namespace, key, &incoming, &source)?;
        match winner(current.as_ref(), &incoming) {
            Winner::Same => {}
            Winner::Incoming => {
                if let Some(current) = &current
                    && !self.incoming_saw(current, &incoming, &source)
                {
                    self.conflict(namespace, key, current, &incoming, OVERTAKEN)?;
                }
                self.replace(&global, current, Some(incoming));
            }
            Winner::Current => {
                if let Some(current) = &current {
                    match self.stored_saw(namespace, current, &incoming)? {
                        Some(true) => {}
                        Some(false) => {
                            self.conflict(namespace, key, &incoming, current, LATE)?;
                        }
                        None => self.conflict(namespace, key, &incoming, current, UNKNOWN)?,
                    }
                }
            }
        }
        Ok(())
    }

    /// Replaces the record of a key: row, counts, digest, indexes.
    fn replace(&mut self, global: &GlobalKey, old: Option<Record>, new: Option<Record>) {
        let (region, namespace) = (self.region, global.namespace());
        let key = global.user_key();
        self.touched.insert(namespace);
        let Some(state) = self.states.get_mut(&namespace) else {
            return;
        };
        let was_live = old.as_ref().is_some_and(|old| state.is_live(old));
        let happened = match &new {
            Some(new) if state.is_live(new) => Some((Happened::Put, new)),
            Some(new) if was_live && new.tombstone => Some((Happened::Delete, new)),
            // It was over before it came.
            Some(new) if was_live => Some((Happened::Expire, new)),
            _ => None,
        };
        if let Some((happened, record)) = happened {
            let at = At::Own {
                dot: conflicts::dot(record),
                buried_ms: 0,
            };
            let change = Change::new(happened, &key, record, state.last_seal, at);
            self.changes.push((namespace, change));
        }
        for (record, counts) in [(&old, false), (&new, true)] {
            let Some(record) = record else { continue };
            let live = state.is_live(record);
            if live && counts {
                state.digest.add(&key, record);
                state.keys += 1;
                state.bytes += record.size_bytes(&key);
            } else if live {
                state.digest.remove(&key, record);
                state.keys = state.keys.saturating_sub(1);
                state.bytes = state.bytes.saturating_sub(record.size_bytes(&key));
            }
            let index = if live && record.expires_at_ms > 0 {
                Some((
                    rows::expiring(region, record.expires_at_ms, global),
                    Bytes::new(),
                ))
            } else if live {
                None
            } else {
                conflicts::dot(record).map(|dot| {
                    let row = rows::dead(region, namespace, dot);
                    (row, global.as_bytes().clone())
                })
            };
            match index {
                Some((row, value)) if counts => self.batch.put(Family::Expiry, row, value),
                Some((row, _)) => self.batch.delete(Family::Expiry, row),
                None => {}
            }
        }
        match &new {
            Some(new) => self
                .batch
                .put(Family::Data, global.as_bytes().clone(), new.encode()),
            None => self.batch.delete(Family::Data, global.as_bytes().clone()),
        }
        self.fresh.insert(global.clone(), new);
    }

    /// Ends the batch.
    pub fn finish(mut self) -> Folded {
        let touched = std::mem::take(&mut self.touched);
        self.states
            .retain(|namespace, _| touched.contains(namespace));
        for (namespace, state) in &self.states {
            state.write_row(self.region, *namespace, &mut self.batch);
        }
        if self.ids_changed {
            write_ids(&self.ids, self.region, &mut self.batch);
        }
        Folded {
            batch: self.batch,
            states: self.states,
            ids: self.ids,
            largest: self.largest,
            conflicts: self.found,
            changes: self.changes,
        }
    }
}

impl EventualState {
    /// Ends a copy once the vector says all that it brought.
    fn settle_partial(&mut self) {
        if !self.partial.is_empty() && self.vector.covers(&self.partial) {
            self.partial = VersionVector::new();
        }
    }
}

const OVERTAKEN: &str = "a newer write that had not seen it won";
const LATE: &str = "it arrived after a newer write that had not seen it";
const UNKNOWN: &str =
    "it arrived after a newer write whose log entry is gone: whether that had seen it is not known";

fn not_here(region: RegionId, namespace: NamespaceId) -> Error {
    Error::new(
        Reason::NotReady,
        format!("region {region} does not know namespace {namespace} yet; try again"),
    )
    .outcome(Outcome::NotApplied)
}

/// The record that an entry makes.
fn record_of(entry: &OriginEntry) -> Record {
    Record {
        tombstone: entry.deletion,
        stamp: Stamp(entry.stamp),
        origin_sequence: entry.sequence,
        epoch: Epoch(entry.epoch),
        revision: 0,
        create_revision: 0,
        expires_at_ms: entry.expires_at_ms,
        value: entry.value.clone(),
    }
}

/// What the client heard, or would have heard.
fn answer(entry: &OriginEntry) -> Applied {
    Applied {
        version: entry.stamp,
        revision: 0,
        epoch: entry.epoch,
        existed: entry.existed,
        swapped: false,
        replayed: false,
    }
}
