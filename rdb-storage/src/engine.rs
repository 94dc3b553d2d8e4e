//! The contract of an engine.
//!
//! Owns what reading, writing and syncing mean; [`crate::conformance`] holds every engine to
//! it. Does not know how any engine works.
//!
//! # Invariants
//!
//! - Keys are ordered as byte strings.
//! - A [`View`] that is a snapshot never changes. Reading through the engine itself sees the
//!   latest written state, synced or not; one scan sees one moment of it.
//! - After `sync` returned `Ok`, everything whose `write` had returned before `sync` was
//!   called survives a power loss.

use std::sync::Arc;

use bytes::Bytes;
use rdb_types::key::prefix_end;

use crate::{Family, StorageError, WriteBatch};

/// Keys in `[start, end)`; no `end` means up to the last key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// The first key inside.
    pub start: Bytes,
    /// The first key outside, or none.
    pub end: Option<Bytes>,
}

impl KeyRange {
    /// Every key.
    pub fn all() -> Self {
        Self {
            start: Bytes::new(),
            end: None,
        }
    }

    /// Keys in `[start, end)`.
    pub fn new(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        Self {
            start: start.into(),
            end: Some(end.into()),
        }
    }

    /// Keys from `start` on.
    pub fn from(start: impl Into<Bytes>) -> Self {
        Self {
            start: start.into(),
            end: None,
        }
    }

    /// Keys that begin with `prefix`; the empty prefix means every key.
    pub fn prefix(prefix: &[u8]) -> Self {
        Self {
            start: Bytes::copy_from_slice(prefix),
            end: prefix_end(prefix),
        }
    }

    /// Whether no key can be inside.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// Whether `key` is inside.
    pub fn contains(&self, key: &[u8]) -> bool {
        *self.start <= *key && self.end.as_ref().is_none_or(|end| *key < **end)
    }
}

/// What a scan yields: keys with their values, in order. After an error it ends.
pub type Scan<'a> = Box<dyn Iterator<Item = Result<(Bytes, Bytes), StorageError>> + Send + 'a>;

/// Reading. The engine (latest state) and a snapshot (frozen state) both are views.
pub trait View: Send + Sync {
    /// The value of `key`.
    ///
    /// # Errors
    /// Reading failed, or what was read is damaged.
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, StorageError>;

    /// The values of `keys`, each at the place of its key. On the engine itself the keys may
    /// be read at different moments; take a snapshot where that matters.
    ///
    /// # Errors
    /// As [`View::get`]; one bad key fails the whole call.
    fn multi_get(
        &self,
        family: Family,
        keys: &[Bytes],
    ) -> Result<Vec<Option<Bytes>>, StorageError> {
        keys.iter().map(|key| self.get(family, key)).collect()
    }

    /// Keys in `range` with their values, ascending, or descending if `reverse`. The whole
    /// scan sees the moment of this call; reading happens while the caller iterates.
    fn scan(&self, family: Family, range: &KeyRange, reverse: bool) -> Scan<'_>;
}

/// Writing, syncing, freezing.
pub trait Engine: View + 'static {
    /// Applies a batch: whole, visible to every reader when this returns. Durable only after
    /// a later [`Engine::sync`].
    ///
    /// # Errors
    /// [`StorageError::NoSpace`]: nothing was applied and the engine goes on. Any other: it is
    /// unknown what is on disk, and the engine is to be given up.
    fn write(&self, batch: &WriteBatch) -> Result<(), StorageError>;

    /// Makes everything durable whose `write` returned before this was called.
    ///
    /// # Errors
    /// Final. What was written since the last good sync may be lost whatever a second try
    /// says, so there must be none.
    fn sync(&self) -> Result<(), StorageError>;

    /// The state of this moment, frozen. It keeps the engine open as long as it lives.
    fn snapshot(&self) -> Arc<dyn View>;

    /// Gives back the room of what was deleted, as far as nobody reads it any more. For when the disk is
    /// full: it rewrites all that deletions lie beside, which takes long, needs some room for a while, and is
    /// else done little by little by itself. Ends soon after `stop` says so.
    ///
    /// # Errors
    /// There was no room even for that, or the disk failed. What was written is as it was.
    fn reclaim(&self, stop: &dyn Fn() -> bool) -> Result<(), StorageError> {
        let _ = stop;
        Ok(())
    }

    /// Numbers for the operator.
    fn stats(&self) -> EngineStats;
}

/// Numbers that an operator looks at. Sizes are what is in use now, counters grow from zero
/// at open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Bytes of all files of the engine.
    pub disk_bytes: u64,
    /// Bytes that can still be written to the engine's file system; none where that is unknown
    /// or has no bound. A store should refuse new data some time before this is zero: deleting
    /// and compacting need room, too.
    pub free_disk_bytes: Option<u64>,
    /// Bytes of the engine's file system; none where that is unknown or has no bound.
    pub total_disk_bytes: Option<u64>,
    /// Bytes in memory that are not yet in sorted files.
    pub memtable_bytes: u64,
    /// Bytes of the block cache in use.
    pub cache_bytes: u64,
    /// Bytes of indexes and filters that are held outside the block cache.
    pub table_reader_bytes: u64,
    /// Keys, by family, in the order of [`Family::ALL`]; an estimate.
    pub estimated_keys: [u64; Family::ALL.len()],
    /// Bytes that background compaction still has to rewrite.
    pub pending_compaction_bytes: u64,
    /// Background errors since open; anything but zero needs a look at the log.
    pub background_errors: u64,
    /// Batches written since open.
    pub writes: u64,
    /// Bytes of these batches.
    pub written_bytes: u64,
    /// Syncs since open.
    pub syncs: u64,
}

impl EngineStats {
    /// Keys of one family; an estimate.
    pub fn estimated_keys(&self, family: Family) -> u64 {
        self.estimated_keys[family.index()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contains_follows_the_bounds() {
        let range = KeyRange::new("b", "d");
        assert!(!range.contains(b"a"));
        assert!(range.contains(b"b"));
        assert!(range.contains(b"czzz"));
        assert!(!range.contains(b"d"));
        assert!(KeyRange::all().contains(b""));
        assert!(KeyRange::new("b", "b").is_empty());
        assert!(KeyRange::new("c", "b").is_empty());
        assert!(!KeyRange::prefix(b"\xff").is_empty());
    }
}
