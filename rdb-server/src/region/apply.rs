//! What one log entry does to a region: from (state, entry) to (rows, answer).
//!
//! Owns the rules of strong writes: request ids, epochs, compare-and-swap, revisions, stamps in log
//! order, expiry. Knows nothing of who leads, who waits or when anything is written: it collects rows
//! in a [`WriteBatch`] that the caller writes as a whole.
//!
//! Invariants:
//! - deterministic: the same entries over the same state give the same rows and answers anywhere;
//! - an entry that is refused leaves no trace but the region's time;
//! - entries see what entries before them in the same batch did.

use super::dropping;
use super::expiring;
use super::layout;
use super::meta;
use super::request_ids::{Asked, Known, fingerprint};
use super::state::{NamespaceState, RegionState};
use crate::error::{Error, Outcome};
use crate::eventual::EventualState;
use crate::eventual::conflicts::ConflictChanges;
use crate::history::change::{At, Change, Kind as Happened};
use crate::raft::{LogId, Membership, StoredMembership};
use bytes::Bytes;
use rdb_proto::convert;
use rdb_proto::raft::command_outcome::Outcome as Answer;
use rdb_proto::raft::write_op::Kind;
use rdb_proto::raft::write_result::Applied;
use rdb_proto::raft::{
    self, CommandOutcome, WriteOp, WriteResult, command, command_outcome, write_result,
};
use rdb_storage::{Family, StorageError, View, WriteBatch};
use rdb_types::{GlobalKey, NamespaceId, Reason, Record, RequestId, Stamp, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Records that one tick removes at most, so that a tick stays small however many expire at once.
pub const EXPIRED_PER_TICK: usize = 1000;

/// Applies entries one after the other on top of a state and a view, and collects what they change.
pub struct Applier<'a> {
    me: StoreId,
    state: &'a mut RegionState,
    view: &'a dyn View,
    batch: WriteBatch,
    /// Records that entries of this batch wrote (`None`: deleted), by global key.
    fresh: BTreeMap<GlobalKey, Option<Record>>,
    fresh_ids: BTreeMap<Bytes, Bytes>,
    touched: BTreeSet<NamespaceId>,
    /// This replica's own rows of namespaces that it owns in this batch: those that are strong, or were when
    /// it began.
    own: BTreeMap<NamespaceId, EventualState>,
    conflicts: ConflictChanges,
    entries: usize,
    /// What readers see change, in order, and how much of it the present entry did.
    changes: Vec<(NamespaceId, Change)>,
    nth: u32,
}

impl<'a> Applier<'a> {
    /// Nothing applied yet.
    pub fn new(me: StoreId, state: &'a mut RegionState, view: &'a dyn View) -> Applier<'a> {
        Applier {
            me,
            state,
            view,
            batch: WriteBatch::new(),
            fresh: BTreeMap::new(),
            fresh_ids: BTreeMap::new(),
            touched: BTreeSet::new(),
            own: BTreeMap::new(),
            conflicts: ConflictChanges::default(),
            entries: 0,
            changes: Vec::new(),
            nth: 0,
        }
    }

    /// Counts an entry as applied; a membership entry brings the members.
    pub fn applied(&mut self, log_id: LogId, membership: Option<Membership>) {
        self.entries += 1;
        self.nth = 0;
        self.state.applied = Some(log_id);
        if let Some(membership) = membership {
            self.state.membership = StoredMembership::new(Some(log_id), membership);
        }
    }

    /// Entries counted so far.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// What readers see change, in order, since this was last asked.
    pub fn take_changes(&mut self) -> Vec<(NamespaceId, Change)> {
        std::mem::take(&mut self.changes)
    }

    /// Readers see this change of a strong namespace.
    fn changed(&mut self, happened: Happened, global: &GlobalKey, record: &Record) {
        let namespace = global.namespace();
        let index = self.state.applied.map_or(0, |id| id.index);
        let state = self.state.namespaces.get(&namespace);
        let since = state.map_or(rdb_types::Epoch(0), NamespaceState::last_seal);
        let epoch = state.map_or(record.epoch, |state| state.epoch);
        let at = At::Log {
            index,
            nth: self.nth,
        };
        self.nth += 1;
        let change = Change {
            revision: self.state.revision,
            epoch,
            ..Change::new(happened, &global.user_key(), record, since, at)
        };
        self.changes.push((namespace, change));
    }

    /// Whether a command has to be the first of its batch: these look at rows on disk, and must find
    /// the same ones however the entries before it were cut into batches.
    pub fn starts_batch(command: &raft::Command) -> bool {
        matches!(
            command.kind,
            Some(
                command::Kind::Tick(_)
                    | command::Kind::DropNamespace(_)
                    | command::Kind::SwitchStep(_)
                    | command::Kind::SetAside(_)
                    | command::Kind::RemoveSetAside(_)
            )
        )
    }

    /// The rows of everything that was applied, the region's own included, and the namespaces whose
    /// state changed.
    ///
    /// # Errors
    /// Reading failed.
    pub fn finish(mut self) -> Result<(WriteBatch, BTreeSet<NamespaceId>), StorageError> {
        self.sweep()?;
        for (namespace, own) in &self.own {
            own.write_row(self.state.id(), *namespace, &mut self.batch);
        }
        for namespace in &self.touched {
            self.state.write_namespace_row(*namespace, &mut self.batch);
        }
        self.state.write_row(&mut self.batch);
        Ok((self.batch, self.touched))
    }

    /// Applies one command. `Err` is the disk's or a defect of ours, never the caller's.
    pub fn command(&mut self, command: &raft::Command) -> Result<CommandOutcome, StorageError> {
        let answer = match &command.kind {
            Some(command::Kind::Writes(writes)) => Answer::Writes(self.writes(writes)?),
            Some(command::Kind::Tick(tick)) => self.tick(Stamp(tick.stamp))?,
            Some(command::Kind::InstallNamespace(install)) => self.install_namespace(install),
            Some(command::Kind::InitCluster(init)) => {
                let plan = init.plan.clone().unwrap_or_default();
                self.meta(|meta| Ok((done(), meta.init_cluster(&plan))))?
            }
            Some(command::Kind::CreateNamespace(create)) => self.meta(|meta| {
                meta.create_namespace(create)
                    .map(|(row, rows)| (Answer::Namespace(row), rows))
            })?,
            Some(command::Kind::UpdateNamespace(update)) => self.meta(|meta| {
                meta.update_namespace(update)
                    .map(|(row, rows)| (Answer::Namespace(row), rows))
            })?,
            Some(command::Kind::DeleteNamespace(delete)) => self.meta(|meta| {
                meta.delete_namespace(delete)
                    .map(|(row, rows)| (Answer::Namespace(row), rows))
            })?,
            Some(command::Kind::SettleDeletion(settle)) => self.meta(|meta| {
                meta.settle_deletion(settle)
                    .map(|(row, rows)| (Answer::Namespace(row), rows))
            })?,
            Some(command::Kind::DropNamespace(drop)) => {
                self.drop_namespace(NamespaceId(drop.namespace_id))?
            }
            Some(command::Kind::RegisterStore(register)) => {
                self.meta(|meta| meta.register_store(register).map(|rows| (done(), rows)))?
            }
            Some(command::Kind::SetTarget(set)) => self.meta(|meta| {
                meta.set_target(set)
                    .map(|(row, rows)| (Answer::Namespace(row), rows))
            })?,
            Some(command::Kind::SettleTarget(settle)) => self.meta(|meta| {
                meta.settle_target(settle)
                    .map(|(row, rows)| (Answer::Namespace(row), rows))
            })?,
            Some(command::Kind::SwitchStep(step)) => self.switch(step)?,
            Some(command::Kind::SetAside(told)) => self.set_aside(told)?,
            Some(command::Kind::RemoveSetAside(remove)) => self.remove_set_aside(remove)?,
            None => return Err(newer("command")),
        };
        Ok(CommandOutcome {
            outcome: Some(answer),
        })
    }

    fn writes(
        &mut self,
        writes: &raft::WriteBatch,
    ) -> Result<raft::WriteForwardReply, StorageError> {
        let mut reserved = Stamp(writes.stamp);
        let retention_ms = writes.request_id_retention_ms;
        let region = self.state.id();
        let now = reserved.at_least_after(self.state.last_stamp);
        self.state
            .ids
            .turn_over(&mut self.batch, region, now, retention_ms);
        let mut results = Vec::with_capacity(writes.ops.len());
        for op in &writes.ops {
            let stamp = reserved.at_least_after(self.state.last_stamp);
            reserved = reserved.next();
            let outcome = match self.write(op, stamp, retention_ms)? {
                Ok(applied) => write_result::Outcome::Applied(applied),
                Err(error) => write_result::Outcome::Error(error.to_wire()),
            };
            results.push(WriteResult {
                outcome: Some(outcome),
            });
        }
        // Time passes, too, where nothing took effect.
        self.state.last_stamp = self.state.last_stamp.max(Stamp(writes.stamp));
        Ok(raft::WriteForwardReply { results })
    }

    fn write(
        &mut self,
        op: &WriteOp,
        stamp: Stamp,
        retention_ms: u64,
    ) -> Result<Result<Applied, Error>, StorageError> {
        let global = GlobalKey::new(NamespaceId(op.namespace_id), &op.key);
        let region = self.state.id();
        let id = RequestId::new(op.request_id.clone());
        let asked = id.as_ref().map(|id| Asked {
            region,
            namespace: NamespaceId(op.namespace_id),
            fingerprint: fingerprint(op),
            id,
            now: stamp,
        });
        if let Some(asked) = asked {
            match self
                .state
                .ids
                .look_up(self.view, &self.fresh_ids, asked, retention_ms)?
            {
                Ok(Known::New) => {}
                Ok(Known::Answered(applied)) => return Ok(Ok(applied)),
                Err(error) => return Ok(Err(error)),
            }
        }
        // After that: what was applied and is asked for again was not refused, whatever the namespace is by now.
        let epoch = match self.admit(op, &global) {
            Ok(epoch) => epoch,
            Err(error) => return Ok(Err(error.outcome(Outcome::NotApplied))),
        };
        let stored = self.record(&global)?;
        let current = stored.as_ref().filter(|record| !record.is_expired(stamp));
        let existed = current.is_some();
        let current_version = current.map_or(0, |record| record.stamp.0);
        let create_revision = current.map(|record| record.create_revision);
        let kind = Kind::try_from(op.kind).map_err(|_| newer("write"))?;
        let compares = matches!(kind, Kind::CasPut | Kind::CasDelete);
        let mut applied = Applied {
            epoch,
            existed,
            ..Applied::default()
        };
        if compares && current_version != op.expected_version {
            // Losing is an answer; it changes nothing, but a repeat must hear the same.
            applied.version = current_version;
            applied.revision = self.state.revision;
        } else if matches!(kind, Kind::Put | Kind::CasPut) {
            self.state.revision += 1;
            self.state.last_stamp = stamp;
            let revision = self.state.revision;
            let expires_at_ms = match u64::try_from(op.ttl_ms) {
                Ok(ttl_ms) if ttl_ms > 0 => stamp.unix_ms().saturating_add(ttl_ms),
                _ => 0,
            };
            let record = Record {
                tombstone: false,
                stamp,
                origin_sequence: 0,
                epoch: rdb_types::Epoch(epoch),
                revision,
                create_revision: create_revision.unwrap_or(revision),
                expires_at_ms,
                value: op.value.clone(),
            };
            self.changed(Happened::Put, &global, &record);
            self.replace(&global, stored, Some(record));
            applied = Applied {
                version: stamp.0,
                revision,
                swapped: compares,
                ..applied
            };
        } else {
            if existed {
                self.state.revision += 1;
                self.state.last_stamp = stamp;
                applied.version = stamp.0;
                let deletion = Record {
                    tombstone: true,
                    stamp,
                    ..Record::default()
                };
                self.changed(Happened::Delete, &global, &deletion);
            } else if let Some(expired) = &stored {
                // No tick has found it.
                self.changed(Happened::Expire, &global, expired);
            }
            self.replace(&global, stored, None);
            applied = Applied {
                revision: self.state.revision,
                swapped: compares,
                ..applied
            };
        }
        if let Some(asked) = asked {
            self.state
                .ids
                .remember(&mut self.batch, &mut self.fresh_ids, asked, applied);
        }
        Ok(Ok(applied))
    }

    /// Whether the write may be applied here at all; the epoch that it is applied under.
    fn admit(&self, op: &WriteOp, global: &GlobalKey) -> Result<u64, Error> {
        let namespace = NamespaceId(op.namespace_id);
        let region = self.state.id();
        if !layout::covers(&self.state.descriptor, global.as_bytes())
            || namespace == NamespaceId::META
        {
            return Err(Error::new(
                Reason::NotReady,
                format!("region {region} does not hold this key; try again"),
            )
            .with("region", region));
        }
        let Some(state) = self.state.namespaces.get(&namespace) else {
            return Err(match self.state.dropped.contains_key(&namespace) {
                true => was_deleted(namespace),
                false => not_installed(region, namespace),
            });
        };
        if state.epoch.0 != op.epoch || state.mode != rdb_types::Mode::Strong {
            return Err(Error::new(
                Reason::ModeChanged,
                "the namespace was switched while this write was under way; repeat it",
            )
            .with("namespace", namespace)
            .with("region", region)
            .with("epoch", state.epoch)
            .with("state", state.mode));
        }
        Ok(state.epoch.0)
    }

    /// The record of a key, as all replicas count: what is left from an eventual time and buried is none,
    /// whether or not it still stands here.
    fn record(&self, global: &GlobalKey) -> Result<Option<Record>, StorageError> {
        let state = self.state.namespaces.get(&global.namespace());
        let found = self.standing(global)?;
        Ok(found.filter(|record| state.is_none_or(|state| state.counts(record))))
    }

    /// What stands under a key on this replica.
    pub(super) fn standing(&self, global: &GlobalKey) -> Result<Option<Record>, StorageError> {
        if let Some(fresh) = self.fresh.get(global) {
            return Ok(fresh.clone());
        }
        let Some(stored) = self.view.get(Family::Data, global.as_bytes())? else {
            return Ok(None);
        };
        Record::decode(stored).map(Some).map_err(|error| {
            StorageError::corruption(
                format!("record in region {}", self.state.id()),
                error.to_string(),
            )
        })
    }

    /// Puts `new` where `old` was: the row, its place in the order of expiry, digest and counts.
    fn replace(&mut self, global: &GlobalKey, old: Option<Record>, new: Option<Record>) {
        let region = self.state.id();
        let namespace = global.namespace();
        let key = global.user_key();
        if let Some(state) = self.state.namespaces.get_mut(&namespace) {
            if let Some(old) = &old {
                state.digest.remove(&key, old);
                state.keys -= 1;
                state.bytes -= old.size_bytes(&key);
            }
            if let Some(new) = &new {
                state.digest.add(&key, new);
                state.keys += 1;
                state.bytes += new.size_bytes(&key);
            } else if old.is_some() {
                state.removed_in = state.epoch;
            }
            self.touched.insert(namespace);
        }
        if let Some(old) = old.as_ref().filter(|old| old.expires_at_ms != 0) {
            self.batch.delete(
                Family::Expiry,
                layout::expiring(region, old.expires_at_ms, global),
            );
        }
        match &new {
            Some(new) => {
                self.batch
                    .put(Family::Data, global.as_bytes().clone(), new.encode());
                if new.expires_at_ms != 0 {
                    self.batch.put(
                        Family::Expiry,
                        layout::expiring(region, new.expires_at_ms, global),
                        Bytes::new(),
                    );
                }
            }
            None if old.is_some() => self.batch.delete(Family::Data, global.as_bytes().clone()),
            None => {}
        }
        self.fresh.insert(global.clone(), new);
    }

    fn tick(&mut self, stamp: Stamp) -> Result<Answer, StorageError> {
        let now = stamp.at_least_after(self.state.last_stamp);
        self.state.last_stamp = now;
        let region = self.state.id();
        debug_assert!(self.fresh.is_empty(), "a tick starts its batch");
        let mut due = Vec::new();
        for first in expiring::firsts(self.view, region) {
            let (namespace, at_ms) = first?;
            if at_ms > now.unix_ms() || !self.state.is_strong(namespace) {
                continue;
            }
            let range = layout::expiring_through(region, namespace, now.unix_ms());
            let room = EXPIRED_PER_TICK - due.len();
            for item in self.view.scan(Family::Expiry, &range, false).take(room) {
                due.push(item?.0);
            }
        }
        for stored in due {
            let Some((expires_at_ms, global)) = layout::parse_expiring(&stored) else {
                return Err(StorageError::corruption(
                    format!("expiry of region {region}"),
                    "a key is too short",
                ));
            };
            match self.record(&global)? {
                Some(record) if record.expires_at_ms == expires_at_ms && record.is_expired(now) => {
                    self.changed(Happened::Expire, &global, &record);
                    self.replace(&global, Some(record), None);
                }
                // No record stands behind the row: only the row goes.
                _ => self.batch.delete(Family::Expiry, stored),
            }
        }
        Ok(done())
    }

    fn install_namespace(&mut self, install: &raft::InstallNamespace) -> Answer {
        let namespace = NamespaceId(install.namespace_id);
        let Some(mode) = convert::mode(install.mode) else {
            return refuse(Error::invalid(
                "mode",
                format!("{} is not a mode", install.mode),
            ));
        };
        if self.state.dropped.contains_key(&namespace) {
            return refuse(was_deleted(namespace));
        }
        if let std::collections::btree_map::Entry::Vacant(entry) =
            self.state.namespaces.entry(namespace)
        {
            entry.insert(NamespaceState::installed(mode, install.first_epoch));
            self.touched.insert(namespace);
        }
        done()
    }

    /// Lets go of all that this replica holds of a namespace, its own rows too, and remembers that. Whoever
    /// writes the namespace's data beside the log must not be at it.
    fn drop_namespace(&mut self, namespace: NamespaceId) -> Result<Answer, StorageError> {
        if self.state.dropped.contains_key(&namespace) || namespace == NamespaceId::META {
            return Ok(done());
        }
        let known = self.state.namespaces.remove(&namespace);
        let last = known.map_or(rdb_types::Epoch(0), |state| state.epoch);
        self.state.dropped.insert(namespace, last);
        self.state.unswept.remove(&namespace);
        self.own.remove(&namespace);
        self.touched.insert(namespace);
        let ranges = dropping::ranges(self.view, self.state, namespace)?;
        for (family, range) in ranges {
            // Every range of `dropping` has an end.
            if let Some(end) = range.end {
                self.batch.delete_range(family, range.start, end);
            }
        }
        Ok(done())
    }

    /// Runs a command of the meta region and writes the rows that it changed.
    fn meta(
        &mut self,
        run: impl FnOnce(&mut meta::MetaState) -> Result<(Answer, meta::Rows), Error>,
    ) -> Result<Answer, StorageError> {
        let Some(meta) = &self.state.meta else {
            return Ok(refuse(Error::new(
                Reason::NotReady,
                "this region holds no cluster tables",
            )));
        };
        let mut next = meta::MetaState::clone(meta);
        match run(&mut next) {
            Ok((answer, rows)) => {
                if !rows.is_empty() {
                    self.state.meta = Some(Arc::new(next));
                }
                for (key, value) in rows {
                    let global = GlobalKey::new(NamespaceId::META, &key);
                    let old = self.record(&global)?;
                    self.state.revision += 1;
                    let revision = self.state.revision;
                    let record = Record {
                        stamp: Stamp(revision),
                        revision,
                        create_revision: old.as_ref().map_or(revision, |old| old.create_revision),
                        value,
                        ..Record::default()
                    };
                    self.replace(&global, old, Some(record));
                }
                Ok(answer)
            }
            Err(error) => Ok(refuse(error)),
        }
    }
}

/// A log entry that this build cannot read. Skipping it would make this replica differ from the
/// others, so the region stops here.
fn newer(what: &str) -> StorageError {
    StorageError::Internal {
        doing: "applying a log entry",
        detail: format!("it holds a {what} that this build does not know: upgrade this store")
            .into(),
    }
}

fn done() -> Answer {
    Answer::Done(command_outcome::Done {})
}

fn refuse(error: Error) -> Answer {
    Answer::Error(error.to_wire())
}

/// The region has not been told of the namespace yet; whoever routes writes tells it first.
fn not_installed(region: rdb_types::RegionId, namespace: NamespaceId) -> Error {
    Error::new(
        Reason::NotReady,
        format!("region {region} does not serve namespace {namespace} yet; try again"),
    )
}

/// Its id is never used again.
pub(super) fn was_deleted(namespace: NamespaceId) -> Error {
    Error::new(
        Reason::NamespaceNotFound,
        "the namespace was deleted; create it again to use its name",
    )
    .with("namespace", namespace)
}

#[path = "apply_switch.rs"]
mod switch;

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
