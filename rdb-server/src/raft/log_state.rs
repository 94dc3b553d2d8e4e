//! What a region's log is at this moment, on the disk or on its way there.
//!
//! Owns the ends of the log, its newest entries, and what each change does to them. Pure: no lock, no
//! disk; [`super::log_store`] has both.
//!
//! # Invariants
//!
//! - The log holds the entries from `first` up to `last`, or none, and then `last` is what was purged.
//! - What is not in the tail is on the disk.
//! - After a failed write nothing changes any more.
//! - What is known to be committed is never removed, and no leader has another entry in its place, unless a
//!   store has lost what it acknowledged (an older copy of its disk, say): then all ends here, before it
//!   spreads. openraft takes it for granted and does not look.

use super::log_disk::{Stored, next_index};
use super::log_tail::LogTail;
use super::{Entry, LogId, Vote};
use rdb_storage::StorageError;
use std::io;

pub(super) struct LogContents {
    /// As it is on the disk.
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    /// Of the last entry; as `purged` when there is none.
    pub(super) last: Option<LogId>,
    /// The index of the first entry, or where it will be.
    first: u64,
    tail: LogTail,
    /// Number of the last write.
    writes: u64,
    /// Grows with each truncation and purge, so that a read from the disk that met one notices.
    cuts: u64,
    failed: Option<StorageError>,
    /// A leader asked for a committed entry to be removed: which one.
    contradicted: Option<LogId>,
}

/// Where the entries of a read are.
pub(super) struct ReadPlan {
    /// Those on the disk, end exclusive. Empty, if all are in memory.
    pub(super) on_disk: std::ops::Range<u64>,
    /// Those behind them.
    pub(super) in_memory: Vec<Entry>,
    /// To be compared after the disk was read.
    pub(super) cuts: u64,
}

impl LogContents {
    pub(super) fn new(stored: Stored, cache_bytes: usize) -> LogContents {
        LogContents {
            vote: stored.vote,
            committed: stored.committed,
            purged: stored.purged,
            last: stored.last,
            first: next_index(stored.purged),
            tail: LogTail::new(cache_bytes),
            writes: 0,
            cuts: 0,
            failed: None,
            contradicted: None,
        }
    }

    /// The last committed entry here, once a leader has asked for it to be removed.
    pub(super) fn contradicted(&self) -> Option<LogId> {
        self.contradicted
    }

    /// Where those of the entries from `start` up to `end`, exclusive, are that exist.
    pub(super) fn plan_read(&self, start: u64, end: u64, limit_bytes: usize) -> ReadPlan {
        let behind_last = next_index(self.last);
        let (start, end) = (start.max(self.first), end.min(behind_last));
        let split = self.tail.first().unwrap_or(behind_last).min(end);
        ReadPlan {
            on_disk: start..split,
            in_memory: self.tail.read(start.max(split), end, limit_bytes),
            cuts: self.cuts,
        }
    }

    /// See [`ReadPlan::cuts`].
    pub(super) fn cuts(&self) -> u64 {
        self.cuts
    }

    pub(super) fn cached_bytes(&self) -> usize {
        self.tail.size_bytes()
    }

    /// Looks at what the log of a leader holds, who leads in `term`. Whether it can be: such a leader holds
    /// all that was committed in earlier terms, and terms grow along a log.
    pub(super) fn agrees(&mut self, term: u64, ids: impl IntoIterator<Item = LogId>) -> bool {
        let voted = self.vote.map_or(0, |vote| vote.leader_id.term);
        let Some(committed) = self.committed.filter(|_| term >= voted) else {
            return true; // nothing to compare, or a leader of the past
        };
        let conflicts = |id: LogId| {
            let later = id.leader_id.term > committed.leader_id.term;
            let known = (id.index == committed.index).then_some(committed);
            id.index <= committed.index && (later || known.is_some_and(|known| known != id))
        };
        if ids.into_iter().any(conflicts) {
            self.contradicted = Some(committed);
        }
        self.contradicted.is_none()
    }

    /// Refuses once a write has failed. Answers the number of this one.
    pub(super) fn begin_write(&mut self) -> io::Result<u64> {
        if let Some(error) = &self.failed {
            return Err(io::Error::other(error.clone()));
        }
        self.writes += 1;
        Ok(self.writes)
    }

    /// Takes entries with their sizes. Answers the number of the write that is to bring them to the
    /// disk, and the first index that is lost should it fail.
    pub(super) fn append(&mut self, entries: Vec<(Entry, usize)>) -> io::Result<(u64, u64)> {
        let write = self.begin_write()?;
        let lost_from = next_index(self.last);
        for (entry, size_bytes) in entries {
            if self.last == self.purged {
                // Right behind what was purged, in all that Raft does; openraft's suite of tests
                // begins elsewhere.
                self.first = entry.log_id.index;
            }
            self.last = Some(entry.log_id);
            self.tail.push(entry, size_bytes, write);
        }
        Ok((write, lost_from))
    }

    /// Removes the entries behind `last`. Answers the range of indexes to remove from the disk, end
    /// exclusive.
    ///
    /// # Errors
    /// A write has failed; or what is to be removed was committed, and may be applied and acknowledged.
    pub(super) fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<(u64, u64)> {
        self.begin_write()?;
        if let Some(committed) = self.committed
            && next_index(last) <= committed.index
        {
            self.contradicted = Some(committed);
            return Err(io::Error::other(format!(
                "entry {} is to be removed, and all up to entry {} is committed here",
                next_index(last),
                committed.index
            )));
        }
        self.cuts += 1;
        let from = next_index(last);
        let behind_last = next_index(self.last);
        self.tail.truncate_from(from);
        if behind_last > from {
            // Back to what was purged, if nothing is left.
            self.last = last.max(self.purged);
        }
        Ok((from, behind_last))
    }

    /// Removes the entries up to `through`, inclusive. Answers the first index to remove from the
    /// disk, and the first one that is lost should that fail: a snapshot may cover more than the log
    /// ever held, and what is appended behind it would leave a gap.
    pub(super) fn purge(&mut self, through: LogId) -> io::Result<(u64, Option<u64>)> {
        self.begin_write()?;
        self.cuts += 1;
        self.tail.purge_through(through.index);
        self.purged = Some(through);
        let first = std::mem::replace(&mut self.first, through.index + 1);
        let beyond = self.last.is_none_or(|last| last.index < through.index);
        if beyond {
            self.last = Some(through);
        }
        Ok((first, beyond.then_some(through.index + 1)))
    }

    /// The write with this number, and all before it, is on the disk.
    pub(super) fn synced(&mut self, write: u64) {
        self.tail.synced(write);
    }

    /// A write failed. Whether it is the first that did.
    pub(super) fn fail(&mut self, error: &StorageError) -> bool {
        let first = self.failed.is_none();
        self.failed.get_or_insert_with(|| error.clone());
        first
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.is_some()
    }
}
