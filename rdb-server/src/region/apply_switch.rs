//! Steps of a change of mode, and writes that were set aside: what they do to this replica's rows.
//!
//! The data of a namespace has one owner at a time: the log while it is strong, this replica's own writer
//! while it is eventual. Owns the handing over. Which step counts is [`super::super::switching`]'s to say.
//!
//! Invariants:
//! - nothing here grows with the number of records: they stay where they are;
//! - a seal is applied only by a replica that [`switching::may_go_on`]; others take a fresh copy first.

use super::{Applier, done, newer, not_installed, refuse};
use crate::error::{Error, Outcome};
use crate::eventual::{EventualState, conflicts, layout as own};
use crate::region::layout;
use crate::region::switching::{self, Change};
use bytes::Bytes;
use rdb_proto::raft::command_outcome::Outcome as Answer;
use rdb_proto::raft::switch_step::Step;
use rdb_proto::raft::{self, SwitchStep};
use rdb_storage::{Family, StorageError};
use rdb_types::{Digest, Epoch, GlobalKey, NamespaceId, Reason, Stamp, VersionVector};

/// Dead rows that one batch removes at most.
const SWEPT_PER_BATCH: usize = 256;

impl Applier<'_> {
    pub(super) fn switch(&mut self, step: &SwitchStep) -> Result<Answer, StorageError> {
        let namespace = NamespaceId(step.namespace_id);
        let (region, members) = (self.state.id(), self.state.members());
        let Some(state) = self.state.namespaces.get_mut(&namespace) else {
            return Ok(refuse(not_installed(region, namespace)));
        };
        let change = match switching::take(state, &members, step) {
            Ok(change) => change,
            Err(error) => return Ok(refuse(error)),
        };
        self.touched.insert(namespace);
        match change {
            Change::Opened => self.open(namespace)?,
            Change::Sealed => {
                let Some(Step::Seal(seal)) = &step.step else {
                    return Err(newer("step of a switch"));
                };
                self.seal(namespace, seal)?;
            }
            Change::Told | Change::Begun | Change::Aborted => {}
        }
        Ok(done())
    }

    /// Hands a namespace's records to the replica's own writer: all replicas start from the same.
    fn open(&mut self, namespace: NamespaceId) -> Result<(), StorageError> {
        let last_stamp = self.state.last_stamp;
        let own = self.own_of(namespace)?.clone();
        let Some(state) = self.state.namespaces.get(&namespace) else {
            return Ok(());
        };
        let vector = state.fences.last().map(|fence| fence.vector.clone());
        let vector = vector.unwrap_or_default();
        let opened = EventualState {
            epoch: state.epoch,
            last_seal: state.last_seal(),
            truncated: vector.clone(),
            floor: vector.clone(),
            vector,
            digest: state.digest,
            keys: state.keys,
            bytes: state.bytes,
            expired_through_ms: state.buried_through_ms,
            partial: VersionVector::new(),
            log_bytes: 0,
            last_stamp: own.last_stamp.max(last_stamp),
            ..own
        };
        self.own.insert(namespace, opened);
        Ok(())
    }

    /// Takes a namespace's records over from the replica's own writer, which holds just what the seal says.
    fn seal(&mut self, namespace: NamespaceId, seal: &raft::Seal) -> Result<(), StorageError> {
        let (region, me) = (self.state.id(), self.me);
        let own = self.own_of(namespace)?.clone();
        let Some(state) = self.state.namespaces.get_mut(&namespace) else {
            return Ok(());
        };
        (state.keys, state.bytes) = (own.keys, own.bytes);
        // What was deleted in the time that ends leaves nothing from here on.
        state.removed_in = Epoch(state.epoch.0.saturating_sub(1));
        let sealed = EventualState {
            epoch: state.epoch,
            last_seal: state.last_seal(),
            truncated: own.vector.clone(),
            floor: own.vector.clone(),
            digest: Digest::default(),
            keys: 0,
            bytes: 0,
            partial: VersionVector::new(),
            // A number that was given out is never given out again.
            sequence_bound: own.sequence_bound.max(own.vector.get(me)),
            log_bytes: 0,
            ..own
        };
        // The region's time goes on beyond all that is in the namespace, and beyond all that was buried.
        let last = self.state.last_stamp.max(Stamp(seal.last_stamp));
        self.state.last_stamp = last.at_unix_ms_or_later(seal.expiry_cut_ms);
        let logs = own::all_entries(region, namespace);
        if let Some(end) = logs.end {
            self.batch.delete_range(Family::OriginLog, logs.start, end);
        }
        self.own.insert(namespace, sealed);
        self.state.unswept.insert(namespace);
        Ok(())
    }

    /// This replica's own row of a namespace that the log owns.
    fn own_of(&mut self, namespace: NamespaceId) -> Result<&mut EventualState, StorageError> {
        use std::collections::btree_map::Entry;
        match self.own.entry(namespace) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let own = EventualState::load(self.state.id(), namespace, self.view)?;
                Ok(entry.insert(own))
            }
        }
    }

    /// Removes dead records of the last eventual time, some at a time. Nobody sees them: a namespace that is
    /// strong counts them as absent.
    pub(super) fn sweep(&mut self) -> Result<(), StorageError> {
        let (region, mut room) = (self.state.id(), SWEPT_PER_BATCH);
        let unswept: Vec<NamespaceId> = self.state.unswept.iter().copied().collect();
        for namespace in unswept {
            if !self.state.is_strong(namespace) {
                self.state.unswept.remove(&namespace);
                continue;
            }
            let range = layout::all_dead(region, namespace);
            let rows: Result<Vec<_>, _> = self
                .view
                .scan(Family::Expiry, &range, false)
                .take(room)
                .collect();
            let rows = rows?;
            if rows.len() < room {
                self.state.unswept.remove(&namespace);
            }
            room -= rows.len();
            for (row, global) in rows {
                self.sweep_one(row, global)?;
            }
            if room == 0 {
                return Ok(());
            }
        }
        Ok(())
    }

    fn sweep_one(&mut self, row: Bytes, global: Bytes) -> Result<(), StorageError> {
        let region = self.state.id();
        let global = GlobalKey::from_bytes(global).ok_or_else(|| {
            StorageError::corruption(format!("a dead record of region {region}"), "no key")
        })?;
        let standing = self.standing(&global)?;
        let state = self.state.namespaces.get(&global.namespace());
        // Another record may stand under the key by now.
        if let (Some(record), Some(state)) = (standing, state)
            && !state.counts(&record)
        {
            self.batch.delete(Family::Data, global.as_bytes().clone());
        }
        self.batch.delete(Family::Expiry, row);
        Ok(())
    }

    /// Lists writes that a store has set aside, with what stands in their place.
    pub(super) fn set_aside(&mut self, told: &raft::SetAside) -> Result<Answer, StorageError> {
        let namespace = NamespaceId(told.namespace_id);
        if !self.state.is_strong(namespace) {
            return Ok(refuse(not_the_logs(namespace)));
        }
        let region = self.state.id();
        self.own_of(namespace)?;
        for row in &told.rows {
            // The store that tells has the row already, as it was before it knew what stands there now.
            self.remove_row(namespace, &row.key, row.stamp)?;
            let current = self.record(&GlobalKey::new(namespace, &row.key))?;
            if current
                .as_ref()
                .is_some_and(|current| current.stamp.0 == row.stamp)
            {
                continue;
            }
            let mut row = row.clone();
            row.set_aside = true;
            if let Some(current) = &current {
                row.winner_stamp = current.stamp.0;
                row.winner_origin = u32::from(current.stamp.store_bits());
                row.winner_sequence = current.origin_sequence;
            }
            if let Some(own) = self.own.get_mut(&namespace) {
                self.conflicts
                    .add(self.view, region, namespace, row, own, &mut self.batch)?;
            }
        }
        let bound_bytes = match told.bound_bytes {
            0 => conflicts::DEFAULT_BYTES,
            bytes => bytes,
        };
        if let Some(own) = self.own.get_mut(&namespace) {
            self.conflicts.bound(
                self.view,
                region,
                namespace,
                bound_bytes,
                own,
                &mut self.batch,
            )?;
        }
        Ok(done())
    }

    /// Takes writes out of the listing that were restored.
    pub(super) fn remove_set_aside(
        &mut self,
        remove: &raft::RemoveSetAside,
    ) -> Result<Answer, StorageError> {
        let namespace = NamespaceId(remove.namespace_id);
        if !self.state.is_strong(namespace) {
            return Ok(refuse(not_the_logs(namespace)));
        }
        self.own_of(namespace)?;
        for place in &remove.rows {
            self.remove_row(namespace, &place.key, place.stamp)?;
        }
        Ok(done())
    }

    /// Takes a row out of the list, if it is there.
    fn remove_row(
        &mut self,
        namespace: NamespaceId,
        key: &Bytes,
        stamp: u64,
    ) -> Result<(), StorageError> {
        let region = self.state.id();
        let rows = self.conflicts.of_key(self.view, region, namespace, key)?;
        for row in rows.iter().filter(|row| row.stamp == stamp) {
            if let Some(own) = self.own.get_mut(&namespace) {
                self.conflicts
                    .remove(region, namespace, row, own, &mut self.batch);
            }
        }
        Ok(())
    }
}

fn not_the_logs(namespace: NamespaceId) -> Error {
    Error::new(
        Reason::WrongMode,
        "the namespace is eventual: each replica keeps its own list",
    )
    .with("namespace", namespace)
    .outcome(Outcome::NotApplied)
}
