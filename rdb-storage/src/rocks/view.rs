//! Reading from RocksDB: keys, scans, snapshots.
//!
//! Owns what outlives a single call: the iterator behind a scan and the frozen state of a
//! snapshot. Does not know how anything is written.
//!
//! # Invariants
//!
//! - What is handed out is a copy: a value never keeps a block of the cache alive.
//! - A snapshot keeps its database open and is released before it.

use std::sync::Arc;

use bytes::Bytes;
use rocksdb::{DBRawIterator, ReadOptions, Snapshot};

use super::Database;
use crate::{Family, KeyRange, StorageError, View, engine::Scan};

impl Database {
    pub(super) fn multi_get(
        &self,
        family: Family,
        keys: &[Bytes],
        options: &ReadOptions,
    ) -> Result<Vec<Option<Bytes>>, StorageError> {
        let handle = self.handle(family)?;
        self.db
            .batched_multi_get_cf_opt(handle, keys, false, options)
            .into_iter()
            .map(|result| match result {
                Ok(found) => Ok(found.map(|value| Bytes::copy_from_slice(&value))),
                Err(error) => Err(self.error("reading keys", &error)),
            })
            .collect()
    }

    pub(super) fn scan(
        &self,
        family: Family,
        range: &KeyRange,
        reverse: bool,
        mut options: ReadOptions,
    ) -> Scan<'_> {
        if range.is_empty() {
            return Box::new(std::iter::empty());
        }
        let handle = match self.handle(family) {
            Ok(handle) => handle,
            Err(error) => return Box::new(std::iter::once(Err(error))),
        };
        options.set_iterate_lower_bound(&range.start[..]);
        if let Some(end) = &range.end {
            options.set_iterate_upper_bound(&end[..]);
        }
        let mut iterator = self.db.raw_iterator_cf_opt(handle, options);
        if reverse {
            iterator.seek_to_last();
        } else {
            iterator.seek_to_first();
        }
        Box::new(RocksScan {
            database: self,
            iterator,
            reverse,
            started: false,
            done: false,
        })
    }
}

/// A RocksDB iterator as a [`Scan`].
struct RocksScan<'a> {
    database: &'a Database,
    iterator: DBRawIterator<'a>,
    reverse: bool,
    started: bool,
    done: bool,
}

impl Iterator for RocksScan<'_> {
    type Item = Result<(Bytes, Bytes), StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        // The first item is where the scan was positioned; moving on is left to the call that
        // needs it, so that a scan of one key reads one key.
        if std::mem::replace(&mut self.started, true) {
            if self.reverse {
                self.iterator.prev();
            } else {
                self.iterator.next();
            }
        }
        if let Some((key, value)) = self.iterator.item() {
            return Some(Ok((
                Bytes::copy_from_slice(key),
                Bytes::copy_from_slice(value),
            )));
        }
        self.done = true;
        // An iterator also becomes invalid by an error; without this look it would pass for
        // the end.
        match self.iterator.status() {
            Ok(()) => None,
            Err(error) => Some(Err(self.database.error("scanning", &error))),
        }
    }
}

/// A frozen state.
pub(super) struct RocksSnapshot {
    /// Reads at the snapshot. It holds the snapshot's raw pointer, so it goes first: fields are
    /// dropped in the order of their declaration.
    options: ReadOptions,
    /// Releases itself in the database below, so it goes before it.
    snapshot: Snapshot<'static>,
    database: Arc<Database>,
}

impl RocksSnapshot {
    pub(super) fn new(database: Arc<Database>) -> Self {
        let borrowed: Snapshot<'_> = database.db.snapshot();
        #[allow(
            unsafe_code,
            reason = "a snapshot that owns its database has to refer to its own field"
        )]
        // SAFETY: the snapshot borrows `database.db`, which lives on the heap behind the `Arc`
        // in the same struct: it does not move, nothing takes `&mut` of it or moves it out
        // (there is neither `Arc::get_mut` nor `Arc::into_inner` here), and it is dropped after
        // the snapshot because it is declared after it. The `'static` never leaves this struct.
        let snapshot = unsafe { std::mem::transmute::<Snapshot<'_>, Snapshot<'static>>(borrowed) };
        let mut options = ReadOptions::default();
        options.set_snapshot(&snapshot);
        Self {
            options,
            snapshot,
            database,
        }
    }
}

impl View for RocksSnapshot {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let handle = self.database.handle(family)?;
        match self
            .database
            .db
            .get_pinned_cf_opt(handle, key, &self.options)
        {
            Ok(found) => Ok(found.map(|value| Bytes::copy_from_slice(&value))),
            Err(error) => Err(self.database.error("reading a key", &error)),
        }
    }

    fn multi_get(
        &self,
        family: Family,
        keys: &[Bytes],
    ) -> Result<Vec<Option<Bytes>>, StorageError> {
        self.database.multi_get(family, keys, &self.options)
    }

    fn scan(&self, family: Family, range: &KeyRange, reverse: bool) -> Scan<'_> {
        let mut options = ReadOptions::default();
        options.set_snapshot(&self.snapshot);
        self.database.scan(family, range, reverse, options)
    }
}
