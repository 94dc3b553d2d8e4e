//! Which of two writes had seen the other, and the conflict log that follows from it.
//!
//! Owns the answers to "had its writer seen that one?" and what goes into the conflict log or leaves it for
//! them. Knows nothing of who wins: that is the law of [`rdb_types::merge`].
//!
//! Invariant: what was overwritten in sequence is not in the log.

use super::{Fold, Source, corrupt};
use crate::eventual::{conflicts, layout};
use bytes::Bytes;
use prost::Message;
use rdb_proto::convert::vector;
use rdb_proto::raft::{ConflictRow, OriginEntry};
use rdb_storage::{Family, StorageError};
use rdb_types::{Dot, NamespaceId, Record, Stamp};

impl Fold<'_> {
    /// Whether the writer of `incoming` had seen `current`, which is older.
    pub(super) fn incoming_saw(
        &self,
        current: &Record,
        incoming: &Record,
        source: &Source<'_>,
    ) -> bool {
        let Some(dot) = conflicts::dot(current) else {
            // Before any eventual write: all of them start from it.
            return true;
        };
        if incoming.stamp.store() == Some(dot.origin) {
            return true;
        }
        match source {
            Source::Entry { seen } => seen.has(dot),
            // Who had both has judged them, and lists what lost.
            Source::Copy { of } => of.has(dot),
        }
    }

    /// Whether the writer of `stored`, a record or conflict that is here, had seen `other`. `None`: its
    /// entry is no longer in the log.
    pub(super) fn stored_saw(
        &self,
        namespace: NamespaceId,
        stored: &Record,
        other: &Record,
    ) -> Result<Option<bool>, StorageError> {
        let (Some(stored), Some(other)) = (conflicts::dot(stored), conflicts::dot(other)) else {
            return Ok(Some(true));
        };
        self.dot_saw(namespace, stored, other)
    }

    fn dot_saw(
        &self,
        namespace: NamespaceId,
        stored: Dot,
        other: Dot,
    ) -> Result<Option<bool>, StorageError> {
        if stored.origin == other.origin {
            return Ok(Some(stored.sequence >= other.sequence));
        }
        let key = layout::entry(self.region, namespace, stored);
        if let Some(seen) = self.fresh_entries.get(&key) {
            return Ok(Some(seen.has(other)));
        }
        let Some(encoded) = self.view.get(Family::OriginLog, &key)? else {
            return Ok(None);
        };
        let entry = OriginEntry::decode(encoded)
            .map_err(|error| corrupt(self.region, "an entry of a log", error))?;
        Ok(Some(vector(&entry.seen).unwrap_or_default().has(other)))
    }

    /// Takes those writes out of the conflict log that `incoming` overwrote in sequence: its writer had
    /// seen them, and not yet what they lost to.
    pub(super) fn supersede(
        &mut self,
        namespace: NamespaceId,
        key: &Bytes,
        incoming: &Record,
        source: &Source<'_>,
    ) -> Result<(), StorageError> {
        if self
            .states
            .get(&namespace)
            .is_none_or(|state| state.conflicts == 0)
        {
            return Ok(());
        }
        let Source::Entry { seen } = source else {
            return Ok(());
        };
        let saw = |dot: Dot| {
            seen.has(dot)
                || (incoming.stamp.store() == Some(dot.origin)
                    && incoming.origin_sequence > dot.sequence)
        };
        let rows = self
            .conflicts
            .of_key(self.view, self.region, namespace, key)?;
        for row in rows.into_iter().filter(|row| !row.set_aside) {
            let (Some(loser), Some(victor)) = (conflicts::loser(&row), conflicts::victor(&row))
            else {
                continue;
            };
            if saw(loser) && !saw(victor) {
                self.touched.insert(namespace);
                if let Some(state) = self.states.get_mut(&namespace) {
                    self.conflicts
                        .remove(self.region, namespace, &row, state, &mut self.batch);
                }
            }
        }
        Ok(())
    }

    pub(super) fn conflict(
        &mut self,
        namespace: NamespaceId,
        key: &Bytes,
        loser: &Record,
        winner: &Record,
        reason: &str,
    ) -> Result<(), StorageError> {
        let row = conflicts::row(key, loser, winner, reason);
        // A write in the log already may have overwritten this one in sequence.
        if let Some(dot) = conflicts::dot(loser) {
            let there = self
                .conflicts
                .of_key(self.view, self.region, namespace, key)?;
            for later in there.iter().filter(|later| later.stamp > row.stamp) {
                if let Some(later) = conflicts::loser(later)
                    && self.dot_saw(namespace, later, dot)? == Some(true)
                {
                    return Ok(());
                }
            }
        }
        self.add_conflict(namespace, row)
    }

    /// Adds a row to the conflict log.
    ///
    /// # Errors
    /// Reading failed.
    pub fn add_conflict(
        &mut self,
        namespace: NamespaceId,
        row: ConflictRow,
    ) -> Result<(), StorageError> {
        self.touched.insert(namespace);
        self.found += 1;
        let Some(state) = self.states.get_mut(&namespace) else {
            return Ok(());
        };
        self.conflicts.add(
            self.view,
            self.region,
            namespace,
            row,
            state,
            &mut self.batch,
        )
    }

    /// Removes a row from the conflict log, if it is there.
    ///
    /// # Errors
    /// Reading failed.
    pub fn remove_conflict(
        &mut self,
        namespace: NamespaceId,
        key: &Bytes,
        stamp: Stamp,
    ) -> Result<(), StorageError> {
        let rows = self
            .conflicts
            .of_key(self.view, self.region, namespace, key)?;
        for row in rows.iter().filter(|row| row.stamp == stamp.0) {
            self.touched.insert(namespace);
            if let Some(state) = self.states.get_mut(&namespace) {
                self.conflicts
                    .remove(self.region, namespace, row, state, &mut self.batch);
            }
        }
        Ok(())
    }

    /// Keeps the conflict log of a namespace within its bound.
    ///
    /// # Errors
    /// Reading failed.
    pub fn bound_conflicts(
        &mut self,
        namespace: NamespaceId,
        bound_bytes: u64,
    ) -> Result<(), StorageError> {
        if !self.touched.contains(&namespace) {
            return Ok(());
        }
        let Some(state) = self.states.get_mut(&namespace) else {
            return Ok(());
        };
        self.conflicts.bound(
            self.view,
            self.region,
            namespace,
            bound_bytes,
            state,
            &mut self.batch,
        )
    }
}
