//! What leaves a replica of an eventual namespace: expired records, tombstones, entries of logs.
//!
//! Owns the burial of what has expired and the dropping of what is dead, a bounded piece at a time. When that may
//! be is the caller's to say ([`crate::eventual::reports`]).
//!
//! Invariants: what is buried stays, hidden, until it is dropped, unless it came through the log; dropping raises
//! the floor below which no copy is merged.

use super::{Fold, corrupt};
use crate::eventual::{conflicts, layout};
use crate::history::change::{At, Change, Kind as Happened};
use crate::region::layout as rows;
use rdb_storage::{Family, StorageError};
use rdb_types::{GlobalKey, NamespaceId, Record, StoreId, VersionVector};
use std::collections::BTreeSet;

/// Dead records that one batch drops, and expiring ones that it buries, at most.
const BURIED_PER_BATCH: usize = 1000;

impl Fold<'_> {
    /// Buries what has expired up to `through_ms`, as much as fits a batch. Such a record keeps its stamp
    /// and stays, hidden, until it may be dropped. Answers whether all of it was.
    ///
    /// # Errors
    /// Reading failed, or what was read is damaged.
    pub fn expire(
        &mut self,
        namespace: NamespaceId,
        through_ms: u64,
    ) -> Result<bool, StorageError> {
        let Some(state) = self.states.get(&namespace) else {
            return Ok(true);
        };
        if through_ms <= state.expired_through_ms {
            return Ok(true);
        }
        let range = rows::expiring_through(self.region, namespace, through_ms);
        let mut due: BTreeSet<(u64, GlobalKey)> = BTreeSet::new();
        let (mut all, mut limit_ms) = (true, through_ms);
        for item in self.view.scan(Family::Expiry, &range, false) {
            let (key, _) = item?;
            let (at_ms, global) = rows::parse_expiring(&key)
                .ok_or_else(|| corrupt(self.region, "an expiry", "its key is too short"))?;
            // Whole milliseconds only: the state says up to which one all are buried.
            if due.len() >= BURIED_PER_BATCH && due.last().is_some_and(|(last, _)| *last < at_ms) {
                all = false;
                limit_ms = at_ms - 1;
                break;
            }
            due.insert((at_ms, global));
        }
        // What this batch has written is not in the view yet, and expires all the same.
        due.extend(self.fresh.iter().filter_map(|(global, record)| {
            let at_ms = record
                .as_ref()
                .filter(|record| !record.tombstone)?
                .expires_at_ms;
            let is_due = at_ms > state.expired_through_ms && at_ms <= limit_ms;
            (is_due && global.namespace() == namespace).then(|| (at_ms, global.clone()))
        }));
        // As far as something expired, not as far as time has gone: replicas that hold the same records
        // then say the same, whenever each of them looked.
        let Some(reached) = due.last().map(|(at_ms, _)| *at_ms) else {
            return Ok(true);
        };
        for (at_ms, global) in due {
            let current = self.record(&global)?;
            match current {
                // Still counted as live, so that taking it out takes it out of the digest.
                Some(record) if record.expires_at_ms == at_ms && !record.tombstone => {
                    self.bury(&global, &record);
                }
                _ => self
                    .batch
                    .delete(Family::Expiry, rows::expiring(self.region, at_ms, &global)),
            }
        }
        if let Some(state) = self.change(namespace) {
            state.expired_through_ms = reached;
        }
        Ok(all)
    }

    /// Takes an expired record out of what is alive. Its row in the data stays as it is, unless it came
    /// through the log: all replicas began with it, so nobody can bring anything older.
    fn bury(&mut self, global: &GlobalKey, record: &Record) {
        let (region, namespace) = (self.region, global.namespace());
        let key = global.user_key();
        self.batch.delete(
            Family::Expiry,
            rows::expiring(region, record.expires_at_ms, global),
        );
        if let Some(dot) = conflicts::dot(record) {
            self.batch.put(
                Family::Expiry,
                rows::dead(region, namespace, dot),
                global.as_bytes().clone(),
            );
        } else {
            self.batch.delete(Family::Data, global.as_bytes().clone());
            self.fresh.insert(global.clone(), None);
        }
        let Some(state) = self.change(namespace).filter(|state| state.is_live(record)) else {
            return;
        };
        state.digest.remove(&key, record);
        state.keys = state.keys.saturating_sub(1);
        state.bytes = state.bytes.saturating_sub(record.size_bytes(&key));
        let at = At::Own {
            dot: conflicts::dot(record),
            buried_ms: record.expires_at_ms,
        };
        let change = Change {
            epoch: state.epoch.max(record.epoch),
            revision: 0,
            ..Change::new(Happened::Expire, &key, record, state.last_seal, at)
        };
        self.changes.push((namespace, change));
    }

    /// Forgets what all replicas have seen, and of which nobody can bring anything older (see
    /// [`crate::eventual::reports`]): logs, tombstones and expired records, as much as fits a batch. Answers
    /// whether all of it was.
    ///
    /// # Errors
    /// Reading failed, or what was read is damaged.
    pub fn forget(
        &mut self,
        namespace: NamespaceId,
        settled: &VersionVector,
    ) -> Result<bool, StorageError> {
        let mut buried = Vec::new();
        let mut all = true;
        for (origin, last) in settled.iter() {
            let range = rows::dead_through(self.region, namespace, origin, last);
            for item in self.view.scan(Family::Expiry, &range, false) {
                if buried.len() >= BURIED_PER_BATCH {
                    all = false;
                    break;
                }
                buried.push(item?);
            }
        }
        for (row, global) in buried {
            let global = GlobalKey::from_bytes(global)
                .ok_or_else(|| corrupt(self.region, "a dead record", "its key is too short"))?;
            let current = self.record(&global)?;
            let Some(state) = self.states.get(&namespace) else {
                return Ok(true);
            };
            // The row names one write; another may stand under the key by now.
            let named = |record: &Record| {
                conflicts::dot(record)
                    .is_some_and(|dot| rows::dead(self.region, namespace, dot) == row)
            };
            if let Some(record) = current
                .as_ref()
                .filter(|record| named(record) && !state.is_live(record))
            {
                let record = record.clone();
                self.replace(&global, Some(record), None);
                if let Some(state) = self.change(namespace) {
                    state.raise_floor();
                }
            } else {
                self.batch.delete(Family::Expiry, row);
            }
        }
        if all {
            self.truncate(namespace, settled);
        }
        Ok(all)
    }

    /// Removes the entries of all logs up to `through`.
    pub fn truncate(&mut self, namespace: NamespaceId, through: &VersionVector) {
        let Some(state) = self.states.get(&namespace) else {
            return;
        };
        let gone: Vec<(StoreId, u64, u64)> = through
            .iter()
            .map(|(origin, last)| (origin, state.truncated.get(origin), last))
            .filter(|(origin, first, last)| last > first && *last <= state.vector.get(*origin))
            .collect();
        if gone.is_empty() {
            return;
        }
        let before = state.log_entries().max(1);
        for (origin, first, last) in gone {
            let range = layout::entries(self.region, namespace, origin, first + 1, last);
            if let Some(end) = range.end {
                self.batch.delete_range(Family::OriginLog, range.start, end);
            }
            if let Some(state) = self.change(namespace) {
                state.truncated.raise(origin, last);
            }
        }
        if let Some(state) = self.change(namespace) {
            let left = state.log_entries() as f64 / before as f64;
            state.log_bytes = (state.log_bytes as f64 * left) as u64;
        }
    }

    /// Shortens the logs to about `bound_bytes`, whoever still needs them: who does takes a copy. The
    /// longest log goes first.
    pub fn shorten(&mut self, namespace: NamespaceId, bound_bytes: u64) {
        let Some(state) = self.states.get(&namespace) else {
            return;
        };
        if state.log_bytes <= bound_bytes {
            return;
        }
        let excess = state.log_bytes - bound_bytes;
        let each = state.log_bytes / state.log_entries().max(1);
        let entries = excess / each.max(1) + 1;
        let longest = state
            .vector
            .iter()
            .map(|(origin, last)| (last - state.truncated.get(origin).min(last), origin))
            .max();
        if let Some((length, origin)) = longest {
            let through = state.truncated.get(origin) + entries.min(length);
            self.truncate(namespace, &[(origin, through)].into_iter().collect());
        }
    }
}
