//! A batch of the writer under way: each job handed to [`Fold`], or refused.
//!
//! Owns the checks before anything is folded: is the namespace served here and in this epoch, does the region hold the
//! key, is the stamp one that a clock may have. Knows nothing of when the batch is written or who is told.
//!
//! Invariants:
//! - a job that is refused left no trace in the batch, but for entries before the one that cannot be taken;
//! - an entry whose stamp is wild holds its origin's stream and touches neither clock nor disk.

use super::super::{Hold, Served, Shared, leaving};
use super::job::{Came, Job, SealWork};
use crate::error::{Error, Outcome};
use crate::eventual::{Fold, Merged, conflicts};
use crate::region::layout::covers;
use bytes::Bytes;
use prost::Message;
use rdb_proto::raft::{OriginEntry, OriginRun, StoredRecord, WriteOp, WriteResult, write_result};
use rdb_storage::StorageError;
use rdb_types::{
    Durability, Epoch, GlobalKey, NamespaceId, Reason, Record, Stamp, StoreId, VersionVector,
};
use std::collections::{BTreeMap, BTreeSet};
use tokio::time::Instant;

/// A batch under way.
pub(super) struct Round<'r, 'v> {
    pub(super) shared: &'r Shared,
    pub(super) fold: &'r mut Fold<'v>,
    /// Namespaces whose lost numbers were accounted for since the start, and in which eventual time.
    pub(super) filled: &'r mut BTreeMap<NamespaceId, Epoch>,
    /// The next stamp for a write of a client, or why there is none.
    pub(super) stamps: Result<Stamp, Error>,
    /// Entries of others that were applied, by their stamps.
    pub(super) converged: Vec<(NamespaceId, Stamp)>,
}

impl Round<'_, '_> {
    /// Brings a namespace in. `None`: it is not served here.
    pub(super) fn enter(&mut self, namespace: NamespaceId) -> Option<Served> {
        let served = self.shared.serves(namespace)?;
        if self.fold.state(namespace).is_none() {
            let state = self.shared.state(namespace);
            // Looked up before this batch is written: what is durable is never read off a later one.
            self.shared.durable_state(namespace);
            let (last_seal, last_number) = (state.last_seal, state.sequence_bound);
            self.shared.core.clock.observe(state.last_stamp);
            self.fold.with(namespace, || state);
            // Numbers that were acknowledged before their sync may be gone with a crash, and those that were
            // set aside are gone, and somebody may know them. They are never given out again: what is
            // missing of them becomes an empty entry.
            if served.open && self.filled.insert(namespace, last_seal) != Some(last_seal) {
                self.fold.fill(namespace, last_number);
            }
        }
        Some(served)
    }

    /// As [`Round::enter`], where it takes writes.
    fn enter_open(&mut self, namespace: NamespaceId) -> Option<Served> {
        self.enter(namespace).filter(|served| served.open)
    }

    /// Does a job, as far as it may be done. `Err` inside is for whoever asked.
    pub(super) fn fold(&mut self, job: &Job) -> Result<Result<Came, Error>, StorageError> {
        match job {
            Job::Writes { ops, .. } => self.writes(ops),
            Job::Push { from, runs, .. } => self.push(*from, runs),
            Job::Copied {
                namespace,
                epoch,
                records,
                of,
                whole,
                ..
            } => {
                let served = self.enter_open(*namespace);
                if served.is_none_or(|served| served.epoch != *epoch) {
                    return Ok(Err(switching(*namespace)));
                }
                self.copied(*namespace, records, of, whole.as_ref())
            }
            Job::Keep {
                namespace,
                expired_through_ms,
                settled,
                log_bytes,
                ..
            } => {
                if self.enter_open(*namespace).is_none() {
                    return Ok(Ok(Came::Kept(true)));
                }
                let mut all = self.fold.expire(*namespace, *expired_through_ms)?;
                if let Some(settled) = settled {
                    all &= self.fold.forget(*namespace, settled)?;
                }
                self.fold.shorten(*namespace, *log_bytes);
                self.bound_conflicts(*namespace)?;
                Ok(Ok(Came::Kept(all)))
            }
            Job::RemoveConflicts {
                namespace, rows, ..
            } => {
                if self.enter_open(*namespace).is_none() {
                    return Ok(Err(switching(*namespace)));
                }
                for (key, stamp) in rows {
                    self.fold.remove_conflict(*namespace, key, *stamp)?;
                }
                Ok(Ok(Came::Done))
            }
            Job::Seal {
                namespace,
                epoch,
                work,
                ..
            } => self.seal(*namespace, *epoch, work),
        }
    }

    fn bound_conflicts(&mut self, namespace: NamespaceId) -> Result<(), StorageError> {
        let policies = self.shared.core.policies.of(namespace);
        let bound_bytes = match policies.conflict_log_bytes {
            0 => conflicts::DEFAULT_BYTES,
            bytes => bytes,
        };
        self.fold.bound_conflicts(namespace, bound_bytes)
    }

    fn retention_ms(&self) -> u64 {
        self.shared.core.request_id_retention.as_millis() as u64
    }

    fn writes(&mut self, ops: &[WriteOp]) -> Result<Result<Came, Error>, StorageError> {
        let mut stamp = match &self.stamps {
            Ok(stamp) => *stamp,
            Err(error) => return Ok(Err(error.clone().outcome(Outcome::NotApplied))),
        };
        let Some(first) = ops.first() else {
            return Ok(Ok(Came::Done));
        };
        let namespace = NamespaceId(first.namespace_id);
        let served = self.enter(namespace);
        let seen = self.fold.state(namespace).map(|state| state.last_stamp);
        debug_assert!(
            seen.is_none_or(|seen| stamp > seen),
            "{stamp:?} is not beyond {seen:?}, which was seen here"
        );
        self.fold.prefetch(
            ops.iter()
                .map(|op| GlobalKey::new(namespace, &op.key))
                .collect(),
        )?;
        let relaxed = self.shared.core.policies.of(namespace).durability == Durability::Relaxed;
        let retention_ms = self.retention_ms();
        let mut results = Vec::with_capacity(ops.len());
        for op in ops {
            let outcome = match self.admit(op, namespace, served) {
                Err(error) => Err(error),
                Ok(served) => self
                    .fold
                    .accept(op, served.epoch, stamp, relaxed, retention_ms)?,
            };
            stamp = stamp.next();
            results.push(WriteResult {
                outcome: Some(match outcome {
                    Ok(applied) => write_result::Outcome::Applied(applied),
                    Err(error) => write_result::Outcome::Error(error.to_wire()),
                }),
            });
        }
        self.stamps = Ok(stamp);
        let last = self
            .fold
            .state(namespace)
            .map_or(0, |state| state.vector.get(self.shared.core.me));
        Ok(Ok(Came::Writes {
            results,
            early: relaxed.then_some((namespace, last)),
        }))
    }

    fn admit(
        &self,
        op: &WriteOp,
        namespace: NamespaceId,
        served: Option<Served>,
    ) -> Result<Served, Error> {
        let changed = || {
            Error::new(
                Reason::ModeChanged,
                "the namespace was switched while this write was under way; repeat it",
            )
            .with("namespace", namespace)
            .with("region", self.shared.region)
            .outcome(Outcome::NotApplied)
        };
        // It is strong by now.
        let served = served.ok_or_else(|| self.with_state(changed(), namespace))?;
        if !served.open {
            let quorum = &self.shared.core.quorum;
            if !quorum.available() {
                return Err(quorum.lost(Some((Some("the write"), Outcome::NotApplied))));
            }
            return Err(switching(namespace)
                .with("region", self.shared.region)
                .with("epoch", served.epoch));
        }
        if op.epoch != served.epoch.0 || op.namespace_id != namespace.0 {
            return Err(self.with_state(changed(), namespace));
        }
        let global = GlobalKey::new(namespace, &op.key);
        if !covers(&self.shared.core.descriptor, global.as_bytes()) {
            return Err(Error::new(
                Reason::NotReady,
                format!(
                    "region {} does not hold this key; try again",
                    self.shared.region
                ),
            )
            .outcome(Outcome::NotApplied));
        }
        Ok(served)
    }

    /// A refusal that tells what the log says of a namespace.
    fn with_state(&self, error: Error, namespace: NamespaceId) -> Error {
        let state = self.shared.core.cell.with(|summary| {
            let state = summary.namespaces.get(&namespace)?;
            Some((state.epoch, state.mode))
        });
        match state {
            Some((epoch, mode)) => error.with("epoch", epoch).with("state", mode),
            None => error,
        }
    }

    fn push(
        &mut self,
        from: StoreId,
        runs: &[OriginRun],
    ) -> Result<Result<Came, Error>, StorageError> {
        let mut namespaces = BTreeSet::new();
        for run in runs {
            let namespace = NamespaceId(run.namespace_id);
            namespaces.insert(namespace);
            // One that is not known here yet, or of another epoch, is told what this replica has, and
            // nothing of it is taken.
            if let Some(served) = self.enter_open(namespace)
                && served.epoch.0 == run.epoch
                && let Err(error) = self.run(from, namespace, run)?
            {
                return Ok(Err(error));
            }
        }
        Ok(Ok(Came::Push(namespaces)))
    }

    /// Merges a run up to the first entry that cannot be taken.
    fn run(
        &mut self,
        from: StoreId,
        namespace: NamespaceId,
        run: &OriginRun,
    ) -> Result<Result<(), Error>, StorageError> {
        let Some(origin) = StoreId::new(u64::from(run.origin)) else {
            return Ok(Err(Error::invalid("origin", "that is not a store")));
        };
        let mut entries = Vec::with_capacity(run.entries.len());
        for encoded in &run.entries {
            match OriginEntry::decode(encoded.clone()) {
                Ok(entry) => entries.push((entry, encoded.clone())),
                Err(error) => return Ok(Err(Error::invalid("entries", error.to_string()))),
            }
        }
        self.fold.prefetch(
            entries
                .iter()
                .filter(|(entry, _)| entry.filler_from == 0)
                .map(|(entry, _)| GlobalKey::new(namespace, &entry.key))
                .collect(),
        )?;
        let retention_ms = self.retention_ms();
        for (entry, encoded) in entries {
            if origin == self.shared.core.me {
                let own = self
                    .fold
                    .state(namespace)
                    .map_or(0, |state| state.vector.get(origin));
                if entry.sequence > own {
                    self.forgotten(from, namespace, entry.sequence, own);
                }
                continue;
            }
            let stamp = Stamp(entry.stamp);
            if entry.filler_from == 0 {
                let global = GlobalKey::new(namespace, &entry.key);
                let sound = stamp.store() == Some(origin)
                    && covers(&self.shared.core.descriptor, global.as_bytes());
                if !sound {
                    return Ok(Err(Error::invalid(
                        "entries",
                        "an entry was not stamped by its origin, or lies outside of the region",
                    )));
                }
                if self.is_held(namespace, origin, stamp) {
                    break;
                }
            }
            match self
                .fold
                .merge(namespace, origin, &entry, encoded, retention_ms)?
            {
                Merged::Applied if entry.filler_from == 0 => {
                    self.converged.push((namespace, stamp))
                }
                Merged::Applied | Merged::Known => {}
                Merged::Gap => break,
            }
        }
        self.bound_conflicts(namespace)?;
        Ok(Ok(()))
    }

    /// What a seal asks for: nothing else changes the namespace while it is under way.
    fn seal(
        &mut self,
        namespace: NamespaceId,
        epoch: Epoch,
        work: &SealWork,
    ) -> Result<Result<Came, Error>, StorageError> {
        let served = self.enter(namespace);
        if matches!(work, SealWork::Look) && served.is_some_and(|served| served.open) {
            return Ok(Ok(Came::Kept(true)));
        }
        if served.is_none_or(|served| served.open || served.epoch != epoch) {
            return Ok(Err(Error::new(
                Reason::StaleEpoch,
                format!("namespace {namespace} is not being sealed in epoch {epoch} here"),
            )));
        }
        match work {
            SealWork::Look => Ok(Ok(Came::Kept(true))),
            SealWork::Bury { cut_ms } => {
                let all = self.fold.expire(namespace, *cut_ms)?;
                Ok(Ok(Came::Kept(all)))
            }
            SealWork::Gather {
                origin,
                entries,
                fence,
            } => self.gather(namespace, *origin, entries, fence),
        }
    }

    fn gather(
        &mut self,
        namespace: NamespaceId,
        origin: StoreId,
        entries: &[Bytes],
        fence: &VersionVector,
    ) -> Result<Result<Came, Error>, StorageError> {
        let refuse = |why: &str| {
            Ok(Err(Error::new(
                Reason::NotReady,
                format!("writes of store {origin} cannot be taken for the seal: {why}"),
            )))
        };
        let retention_ms = self.retention_ms();
        for encoded in entries {
            let Ok(entry) = OriginEntry::decode(encoded.clone()) else {
                return refuse("one cannot be read");
            };
            if entry.sequence > fence.get(origin) {
                return refuse("one is beyond the fence");
            }
            let stamp = Stamp(entry.stamp);
            if entry.filler_from == 0 && self.is_held(namespace, origin, stamp) {
                return refuse("one is stamped further ahead than any clock may be");
            }
            let merged =
                self.fold
                    .merge(namespace, origin, &entry, encoded.clone(), retention_ms)?;
            if merged == Merged::Gap {
                return refuse("one before them is missing");
            }
        }
        self.bound_conflicts(namespace)?;
        Ok(Ok(Came::Kept(true)))
    }

    /// Somebody has writes of this store that it does not know: its disk is an old copy. It must not give
    /// the same numbers to other writes.
    fn forgotten(&self, from: StoreId, namespace: NamespaceId, theirs: u64, own: u64) {
        let why = format!(
            "store {from} holds write {theirs} of this store in namespace {namespace}, and this disk ends at {own}: it is older than what the cluster has seen. Was it restored from an older copy? Bring back the directory that was used last, or leave this store out"
        );
        tracing::error!(
            region = self.shared.region.0,
            why,
            "this store cannot go on"
        );
        let _ = self.shared.core.fatal.send(Some(why));
    }

    /// Whether an origin's stream is held for this stamp.
    fn is_held(&self, namespace: NamespaceId, origin: StoreId, stamp: Stamp) -> bool {
        let mut held = self.shared.held.lock();
        let Some(ahead_ms) = self.shared.core.clock.is_wild(stamp) else {
            if held.remove(&(namespace, origin)).is_some() {
                tracing::info!(
                    region = self.shared.region.0,
                    namespace_id = namespace.0,
                    origin = origin.get(),
                    "the stream goes on"
                );
            }
            return false;
        };
        let now = Instant::now();
        let hold = held.entry((namespace, origin)).or_insert_with(|| {
            tracing::error!(
                region = self.shared.region.0,
                namespace_id = namespace.0,
                origin = origin.get(),
                ahead_ms,
                "a write is stamped further ahead than any clock may be: this origin's writes wait. Mend the clock of the store that is wrong"
            );
            self.shared.core.counters.wild_stamp(namespace);
            Hold {
                since: now,
                ahead_ms,
            }
        });
        hold.ahead_ms = ahead_ms;
        true
    }

    fn copied(
        &mut self,
        namespace: NamespaceId,
        records: &[StoredRecord],
        of: &VersionVector,
        whole: Option<&VersionVector>,
    ) -> Result<Result<Came, Error>, StorageError> {
        let mut decoded = Vec::with_capacity(records.len());
        for stored in records {
            let global = GlobalKey::new(namespace, &stored.key);
            let record = match Record::decode(stored.record.clone()) {
                Ok(record) if covers(&self.shared.core.descriptor, global.as_bytes()) => record,
                Ok(_) => {
                    return Ok(Err(Error::invalid(
                        "records",
                        "one lies outside of the region",
                    )));
                }
                Err(error) => return Ok(Err(Error::invalid("records", error.to_string()))),
            };
            if let Some(origin) = record.stamp.store()
                && self.is_held(namespace, origin, record.stamp)
            {
                return Ok(Err(Error::new(
                    Reason::ClockSkew,
                    "a copy holds a stamp that is further ahead than any clock may be",
                )));
            }
            decoded.push((stored.key.clone(), record));
        }
        self.fold.prefetch(
            decoded
                .iter()
                .map(|(key, _)| GlobalKey::new(namespace, key))
                .collect(),
        )?;
        if !self.fold.merge_copied(namespace, decoded, of)? {
            return Ok(Err(Error::new(
                Reason::StaleReplica,
                "the copy is from before a tombstone was dropped here: a newer one is asked for",
            )));
        }
        if let Some(whole) = whole {
            let me = self.shared.core.me;
            let own = self
                .fold
                .state(namespace)
                .map_or(0, |state| state.vector.get(me));
            if whole.get(me) > own {
                self.forgotten(me, namespace, whole.get(me), own);
                return Ok(Err(leaving()));
            }
            self.fold.copied(namespace, whole);
        }
        self.bound_conflicts(namespace)?;
        Ok(Ok(Came::Done))
    }
}

/// Nothing is taken while a namespace is being sealed.
fn switching(namespace: NamespaceId) -> Error {
    Error::new(
        Reason::ModeSwitching,
        "the namespace is being switched to strong, which takes moments: repeat it",
    )
    .with("namespace", namespace)
    .with("state", "sealing")
    .outcome(Outcome::NotApplied)
}
