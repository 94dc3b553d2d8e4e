//! The newest entries of a log, in memory.
//!
//! Owns which entries are held and when one may be let go. Pure: no lock, no disk.
//!
//! A leader sends an entry to its followers while its own disk is still busy with it, and applies it
//! a moment later: both read it here. Only a follower that fell behind needs the disk.
//!
//! # Invariants
//!
//! - The entries held are consecutive and end with the last entry of the log.
//! - An entry that is not known to be on the disk is never let go, whatever the bound says.

use super::Entry;
use std::collections::VecDeque;

/// What an entry costs beside its bytes.
const ENTRY_OVERHEAD_BYTES: usize = 96;

struct Held {
    entry: Entry,
    /// As it is encoded.
    size_bytes: usize,
    /// The write that brings it to the disk.
    write: u64,
}

/// The newest entries of a log.
pub struct LogTail {
    held: VecDeque<Held>,
    size_bytes: usize,
    limit_bytes: usize,
    /// All writes up to this one are on the disk.
    synced: u64,
}

impl LogTail {
    /// Holds about `limit_bytes` of entries that are on the disk.
    pub fn new(limit_bytes: usize) -> LogTail {
        LogTail {
            held: VecDeque::new(),
            size_bytes: 0,
            limit_bytes,
            synced: 0,
        }
    }

    /// The index of the first entry held.
    pub fn first(&self) -> Option<u64> {
        self.held.front().map(|held| held.entry.log_id.index)
    }

    /// Bytes of what is held.
    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    /// Adds the next entry, which the write numbered `write` brings to the disk. Numbers grow.
    pub fn push(&mut self, entry: Entry, size_bytes: usize, write: u64) {
        debug_assert!(
            self.held
                .back()
                .is_none_or(|last| last.entry.log_id.index + 1 == entry.log_id.index)
        );
        self.size_bytes += size_bytes + ENTRY_OVERHEAD_BYTES;
        self.held.push_back(Held {
            entry,
            size_bytes,
            write,
        });
        self.shrink();
    }

    /// Everything up to the write numbered `write` is on the disk.
    pub fn synced(&mut self, write: u64) {
        self.synced = self.synced.max(write);
        self.shrink();
    }

    /// Removes the entries from `index` on.
    pub fn truncate_from(&mut self, index: u64) {
        while self
            .held
            .back()
            .is_some_and(|last| last.entry.log_id.index >= index)
        {
            self.drop_one(VecDeque::pop_back);
        }
    }

    /// Removes the entries up to `index`, inclusive.
    pub fn purge_through(&mut self, index: u64) {
        while self.first().is_some_and(|first| first <= index) {
            self.drop_one(VecDeque::pop_front);
        }
    }

    /// Entries from `start` up to `end`, exclusive, as far as they are held; no more once
    /// `limit_bytes` of them are read, but at least one.
    pub fn read(&self, start: u64, end: u64, limit_bytes: usize) -> Vec<Entry> {
        let Some(first) = self.first() else {
            return Vec::new();
        };
        let skip = usize::try_from(start.saturating_sub(first)).unwrap_or(usize::MAX);
        let mut room = Room::new(limit_bytes);
        self.held
            .iter()
            .skip(skip)
            .take_while(|held| held.entry.log_id.index < end && room.take(held.size_bytes))
            .map(|held| held.entry.clone())
            .collect()
    }

    fn shrink(&mut self) {
        while self.size_bytes > self.limit_bytes
            && self
                .held
                .front()
                .is_some_and(|held| held.write <= self.synced)
        {
            self.drop_one(VecDeque::pop_front);
        }
    }

    fn drop_one(&mut self, pop: fn(&mut VecDeque<Held>) -> Option<Held>) {
        if let Some(held) = pop(&mut self.held) {
            self.size_bytes -= held.size_bytes + ENTRY_OVERHEAD_BYTES;
        }
    }
}

/// How much more one read may bring.
pub(super) struct Room {
    left_bytes: usize,
    first: bool,
}

impl Room {
    /// Room for `limit_bytes`, and for the first entry whatever its size.
    pub(super) fn new(limit_bytes: usize) -> Room {
        Room {
            left_bytes: limit_bytes,
            first: true,
        }
    }

    /// Whether the next entry still fits.
    pub(super) fn take(&mut self, size_bytes: usize) -> bool {
        if !std::mem::take(&mut self.first) && size_bytes > self.left_bytes {
            return false;
        }
        self.left_bytes = self.left_bytes.saturating_sub(size_bytes);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::{EntryPayload, log_id};
    use super::*;

    const SIZE: usize = 100;
    const COST: usize = SIZE + ENTRY_OVERHEAD_BYTES;

    fn tail(limit_entries: usize, entries: std::ops::Range<u64>) -> LogTail {
        let mut tail = LogTail::new(limit_entries * COST);
        for index in entries {
            // One write per entry, numbered as the entry.
            tail.push(
                Entry {
                    log_id: log_id(1, index),
                    payload: EntryPayload::Blank,
                },
                SIZE,
                index,
            );
        }
        tail
    }

    fn read(tail: &LogTail, start: u64, end: u64, limit_bytes: usize) -> Vec<u64> {
        tail.read(start, end, limit_bytes)
            .iter()
            .map(|entry| entry.log_id.index)
            .collect()
    }

    #[test]
    fn what_is_not_on_the_disk_stays_whatever_the_bound() {
        let mut tail = tail(2, 10..15);
        assert_eq!((tail.first(), tail.size_bytes()), (Some(10), 5 * COST));
        tail.synced(11);
        assert_eq!(tail.first(), Some(12));
        tail.synced(14);
        assert_eq!((tail.first(), tail.size_bytes()), (Some(13), 2 * COST));
        // An older write that reports later changes nothing.
        tail.synced(12);
        assert_eq!(tail.first(), Some(13));
    }

    #[test]
    fn an_old_sync_does_not_free_entries_that_replaced_truncated_ones() {
        let mut tail = tail(0, 10..13);
        tail.truncate_from(11);
        assert_eq!(tail.size_bytes(), COST);
        tail.push(
            Entry {
                log_id: log_id(2, 11),
                payload: EntryPayload::Blank,
            },
            SIZE,
            13,
        );
        tail.synced(12);
        assert_eq!(tail.first(), Some(11));
        tail.synced(13);
        assert_eq!((tail.first(), tail.size_bytes()), (None, 0));
    }

    #[test]
    fn reads_stay_within_what_is_held_and_within_their_limit() {
        let tail = tail(100, 10..15);
        assert_eq!(read(&tail, 10, 15, 1 << 20), [10, 11, 12, 13, 14]);
        assert_eq!(read(&tail, 3, 12, 1 << 20), [10, 11]);
        assert_eq!(read(&tail, 13, 99, 1 << 20), [13, 14]);
        assert_eq!(read(&tail, 15, 99, 1 << 20), [] as [u64; 0]);
        assert_eq!(read(&tail, 10, 15, 2 * SIZE), [10, 11]);
        assert_eq!(read(&tail, 10, 15, 0), [10]);
    }

    #[test]
    fn both_ends_can_be_cut() {
        let mut tail = tail(100, 10..15);
        tail.purge_through(11);
        tail.truncate_from(14);
        assert_eq!(read(&tail, 0, 99, 1 << 20), [12, 13]);
        tail.purge_through(99);
        assert_eq!((tail.first(), tail.size_bytes()), (None, 0));
    }
}
