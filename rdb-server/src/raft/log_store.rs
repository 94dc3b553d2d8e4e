//! One region's log and vote, on the disk that all regions of a store share.
//!
//! Owns what openraft's storage contract asks for: the order of writes, what may be read when, and
//! what happens after a failed one. The committer makes batches durable, [`super::log_tail`] holds
//! the newest entries; neither knows of the other. Knows nothing of what entries mean.
//!
//! # Invariants
//!
//! - `purged.index < every stored index <= last.index`, without a gap. A gap that is found is damage
//!   and named; it is never skipped.
//! - Writes of one region reach the disk in the order of the calls: the committer keeps the order in
//!   which batches are handed over, and there is one caller (openraft's core). So it is enough to
//!   wait for the disk where somebody is told: an append calls back after a sync, a vote is synced
//!   before the call returns. Truncation, purge and the commit index wait for nothing: a power loss
//!   keeps a prefix of the order, so it can undo them only together with all that came later, and
//!   none of that was acknowledged without a sync behind it.
//! - The first failed write is the last one: later batches build on it. What was already on its way
//!   behind it may still be written (after a full disk, say), so the failure is followed by a removal
//!   of everything from the failed place on. Nobody was told that any of it is durable.

use super::log_keys as keys;
use super::log_tail::{LogTail, Room};
use super::{Entry, LogId, LogState, TypeConfig, Vote, runtime, wire};
use bytes::Bytes;
use futures::Stream;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use parking_lot::Mutex;
use prost::Message;
use rdb_proto::raft;
use rdb_storage::{
    Committer, Durability, Engine, Family, KeyRange, StorageError, View, WriteBatch,
};
use rdb_types::RegionId;
use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

/// How much memory a region's log may use.
#[derive(Clone, Debug)]
pub struct LogStoreOptions {
    /// Newest entries that stay in memory although they are on the disk.
    pub cache_bytes: usize,
    /// What one read for a follower brings at most, so that one message is bounded. A single entry
    /// may be larger.
    pub read_bytes: usize,
}

impl Default for LogStoreOptions {
    fn default() -> Self {
        LogStoreOptions {
            cache_bytes: 8 << 20,
            read_bytes: 1 << 20,
        }
    }
}

/// The log of one region; see the [module](self). Clones are the same log: openraft reads through
/// some while it writes through one.
#[derive(Clone)]
pub struct RaftLogStore {
    shared: Arc<Shared>,
}

struct Shared {
    region: RegionId,
    engine: Arc<dyn Engine>,
    committer: Committer,
    options: LogStoreOptions,
    state: Mutex<State>,
}

struct State {
    /// As it is on the disk.
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    /// The index of the first entry, or where it will be.
    first: u64,
    /// Of the last entry, on the disk or not; as `purged` when there is none.
    last: Option<LogId>,
    tail: LogTail,
    /// Number of the last write.
    writes: u64,
    /// Grows with each truncation and purge, so that a read from the disk that met one notices.
    cuts: u64,
    failed: Option<StorageError>,
}

impl State {
    /// The indexes that the log holds.
    fn range(&self) -> (u64, u64) {
        (self.first, next_index(self.last))
    }

    fn begin_write(&mut self) -> io::Result<u64> {
        if let Some(error) = &self.failed {
            return Err(io::Error::other(error.clone()));
        }
        self.writes += 1;
        Ok(self.writes)
    }
}

fn next_index(id: Option<LogId>) -> u64 {
    id.map_or(0, |id| id.index + 1)
}

impl RaftLogStore {
    /// Opens the log of `region` with the default [`LogStoreOptions`]. Reads from the disk, so not
    /// to be called where that matters.
    ///
    /// # Errors
    /// What is stored cannot be read or does not fit together; the message names region and index.
    pub fn open(
        engine: Arc<dyn Engine>,
        committer: Committer,
        region: RegionId,
    ) -> Result<RaftLogStore, StorageError> {
        Self::open_with(engine, committer, region, LogStoreOptions::default())
    }

    /// As [`RaftLogStore::open`], with bounds of one's own.
    ///
    /// # Errors
    /// As [`RaftLogStore::open`].
    pub fn open_with(
        engine: Arc<dyn Engine>,
        committer: Committer,
        region: RegionId,
        options: LogStoreOptions,
    ) -> Result<RaftLogStore, StorageError> {
        let view: &dyn View = &*engine;
        let vote =
            read_state::<raft::Vote>(view, region, keys::VOTE)?.map(|wire| wire::vote(&wire));
        let log_id = |name| {
            Ok(read_state::<raft::LogId>(view, region, name)?.map(|wire| wire::log_id(&wire)))
        };
        let purged = log_id(keys::PURGED)?;
        let mut committed = log_id(keys::COMMITTED)?;

        let mut last = purged;
        let stored = keys::all_entries(region);
        if let Some(found) = view.scan(Family::RaftLog, &stored, false).next() {
            let first = index_of_key(region, &found?.0)?;
            if first != next_index(purged) {
                let detail = format!(
                    "its first entry is {first}, but {} was expected",
                    next_index(purged)
                );
                return Err(damage(region, None, detail));
            }
        }
        if let Some(found) = view.scan(Family::RaftLog, &stored, true).next() {
            let (key, value) = found?;
            let index = index_of_key(region, &key)?;
            last = Some(decode_entry(region, index, value)?.log_id);
        }
        // Only a hint for openraft, which may apply that far again. After a full disk it can be
        // ahead of a log that lost its end.
        if committed.is_some_and(|committed| committed.index >= next_index(last)) {
            committed = None;
        }

        let tail = LogTail::new(options.cache_bytes);
        let first = next_index(purged);
        let state = State {
            vote,
            committed,
            purged,
            first,
            last,
            tail,
            writes: 0,
            cuts: 0,
            failed: None,
        };
        let shared = Shared {
            region,
            engine,
            committer,
            options,
            state: Mutex::new(state),
        };
        Ok(RaftLogStore {
            shared: Arc::new(shared),
        })
    }

    /// Bytes of entries that are held in memory.
    pub fn cached_bytes(&self) -> usize {
        self.shared.state.lock().tail.size_bytes()
    }

    /// Entries that exist from `start` up to `end`, exclusive; no more once `limit_bytes` are read.
    async fn read(&self, start: u64, end: u64, limit_bytes: usize) -> io::Result<Vec<Entry>> {
        loop {
            let (start, split, newest, cuts) = {
                let state = self.shared.state.lock();
                let (first, behind_last) = state.range();
                let (start, end) = (start.max(first), end.min(behind_last));
                if start >= end {
                    return Ok(Vec::new());
                }
                let split = state.tail.first().unwrap_or(behind_last).min(end);
                let newest = state.tail.read(start.max(split), end, limit_bytes);
                if start >= split {
                    return Ok(newest);
                }
                (start, split, newest, state.cuts)
            };
            // Only old entries come from the disk, and only for those who fell behind: not on a
            // thread that has other requests to answer.
            let shared = self.shared.clone();
            let from_disk =
                runtime::blocking(move || shared.read_disk(start, split, limit_bytes)).await?;
            if self.shared.state.lock().cuts != cuts {
                continue; // the log was cut meanwhile; what was read may be of before or after
            }
            let (mut entries, mut room) = from_disk.map_err(io::Error::other)?;
            if entries.len() as u64 == split - start {
                let fits = |entry: &Entry| room.take(wire::entry_to_wire(entry).encoded_len());
                entries.extend(newest.into_iter().take_while(fits));
            }
            return Ok(entries);
        }
    }

    /// Writes and waits until it is on the disk.
    async fn write_synced(&self, batch: WriteBatch) -> io::Result<()> {
        let (sender, receiver) = futures::channel::oneshot::channel();
        self.shared.state.lock().begin_write()?;
        self.shared
            .submit(batch, Durability::Synced, None, move |_, result| {
                // Whoever waited may be gone, together with the whole replica.
                let _ = sender.send(result);
            });
        match receiver.await {
            Ok(result) => result.map_err(io::Error::other),
            Err(_) => Err(io::Error::other(StorageError::Closed)),
        }
    }
}

impl Shared {
    /// Hands a batch over. Called without the lock, because a committer that is closed calls back at
    /// once. `damaged_from`: the first index that is not to be trusted should the write fail.
    fn submit(
        self: &Arc<Self>,
        batch: WriteBatch,
        durability: Durability,
        damaged_from: Option<u64>,
        done: impl FnOnce(&Shared, Result<(), StorageError>) + Send + 'static,
    ) {
        let shared = self.clone();
        let called_back = move |result: Result<(), StorageError>| {
            if let Err(error) = &result {
                shared.fail(error, damaged_from);
            }
            done(&shared, result);
        };
        self.committer
            .submit(batch, durability, Box::new(called_back));
        // A failure that was noticed between this call's first look and its submit has already been
        // cleaned up behind, so this batch needs a clean-up of its own.
        if self.state.lock().failed.is_some() {
            self.remove_from(damaged_from);
        }
    }

    /// Stops all further writes and removes what may have slipped in behind the failed one.
    fn fail(&self, error: &StorageError, damaged_from: Option<u64>) {
        let first = {
            let mut state = self.state.lock();
            let first = state.failed.is_none();
            state.failed.get_or_insert_with(|| error.clone());
            first
        };
        if matches!(error, StorageError::Closed) {
            return; // shutting down: nothing that came later was taken either
        }
        if first {
            tracing::error!(region = self.region.0, %error, "the log cannot be written any more");
        }
        self.remove_from(damaged_from);
    }

    fn remove_from(&self, index: Option<u64>) {
        let Some(index) = index else { return };
        let mut batch = WriteBatch::new();
        let KeyRange { start, end } = keys::entries(self.region, index, u64::MAX);
        batch.delete_range(Family::RaftLog, start, end.unwrap_or_default());
        let region = self.region;
        let done = move |result: Result<(), StorageError>| {
            if let Err(error) = result {
                // Opening finds the gap, if there is one, and refuses it.
                tracing::error!(region = region.0, index, %error, "what follows a failed write could not be removed");
            }
        };
        self.committer
            .submit(batch, Durability::Written, Box::new(done));
    }

    /// Entries from `start` up to `end`, all of which the log holds, and the room that is left.
    fn read_disk(
        &self,
        start: u64,
        end: u64,
        limit_bytes: usize,
    ) -> Result<(Vec<Entry>, Room), StorageError> {
        let mut entries = Vec::new();
        let mut room = Room::new(limit_bytes);
        let mut expected = start;
        for found in self.engine.scan(
            Family::RaftLog,
            &keys::entries(self.region, start, end),
            false,
        ) {
            let (key, value) = found?;
            if index_of_key(self.region, &key)? != expected {
                break;
            }
            if !room.take(value.len()) {
                return Ok((entries, room));
            }
            entries.push(decode_entry(self.region, expected, value)?);
            expected += 1;
        }
        match expected == end {
            true => Ok((entries, room)),
            false => Err(damage(
                self.region,
                Some(expected),
                "it is missing".to_owned(),
            )),
        }
    }
}

impl RaftLogReader<TypeConfig> for RaftLogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (start, end) = bounds(&range);
        self.read(start, end, usize::MAX).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.shared.state.lock().vote)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, self.shared.options.read_bytes).await
    }

    /// Piece by piece: what a replica has to apply after it was away can be all that the log holds.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + Send
    where
        RB: RangeBounds<u64> + Clone + Debug + Send,
    {
        let (start, end) = bounds(&range);
        let reader = Pieces {
            log: self.clone(),
            next: start,
            end,
            piece: VecDeque::new(),
        };
        futures::stream::try_unfold(reader, Pieces::next)
    }
}

/// A range that is being read piece by piece.
struct Pieces {
    log: RaftLogStore,
    next: u64,
    end: u64,
    piece: VecDeque<Entry>,
}

impl Pieces {
    async fn next(mut self) -> io::Result<Option<(Entry, Pieces)>> {
        if self.piece.is_empty() {
            let limit_bytes = self.log.shared.options.read_bytes;
            self.piece = self
                .log
                .read(self.next, self.end, limit_bytes)
                .await?
                .into();
        }
        let Some(entry) = self.piece.pop_front() else {
            return Ok(None);
        };
        self.next = entry.log_id.index + 1;
        Ok(Some((entry, self)))
    }
}

impl RaftLogStorage<TypeConfig> for RaftLogStore {
    type LogReader = RaftLogStore;

    async fn get_log_state(&mut self) -> Result<LogState, io::Error> {
        let state = self.shared.state.lock();
        Ok(LogState {
            last_purged_log_id: state.purged,
            last_log_id: state.last,
        })
    }

    async fn get_log_reader(&mut self) -> RaftLogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let mut batch = WriteBatch::new();
        let key = keys::state(self.shared.region, keys::VOTE);
        batch.put(
            Family::RaftState,
            key,
            wire::vote_to_wire(vote).encode_to_vec(),
        );
        self.write_synced(batch).await?;
        self.shared.state.lock().vote = Some(*vote);
        Ok(())
    }

    /// Written, not synced: a replica that was killed finds it, one that lost power may find an
    /// older one, and either learns the newest from its leader.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let mut batch = WriteBatch::new();
        let key = keys::state(self.shared.region, keys::COMMITTED);
        match &committed {
            Some(id) => batch.put(
                Family::RaftState,
                key,
                wire::log_id_to_wire(id).encode_to_vec(),
            ),
            None => batch.delete(Family::RaftState, key),
        }
        {
            let mut state = self.shared.state.lock();
            state.begin_write()?;
            state.committed = committed;
        }
        self.shared
            .submit(batch, Durability::Written, None, |_, _| ());
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.shared.state.lock().committed)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let mut batch = WriteBatch::new();
        let (write, damaged_from) = {
            let mut state = self.shared.state.lock();
            let write = match state.begin_write() {
                Ok(write) => write,
                Err(error) => {
                    drop(state);
                    callback.io_completed(Err(io::Error::new(error.kind(), error.to_string())));
                    return Err(error);
                }
            };
            let damaged_from = next_index(state.last);
            for entry in entries {
                if state.last == state.purged {
                    // Behind what was purged, in all that Raft does; openraft's suite begins elsewhere.
                    state.first = entry.log_id.index;
                }
                let value = wire::entry_to_wire(&entry).encode_to_vec();
                let size_bytes = value.len();
                batch.put(
                    Family::RaftLog,
                    keys::entry(self.shared.region, entry.log_id.index),
                    value,
                );
                state.last = Some(entry.log_id);
                state.tail.push(entry, size_bytes, write);
            }
            (write, damaged_from)
        };
        self.shared.submit(
            batch,
            Durability::Synced,
            Some(damaged_from),
            move |shared, result| {
                if result.is_ok() {
                    shared.state.lock().tail.synced(write);
                }
                callback.io_completed(result.map_err(io::Error::other));
            },
        );
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let from = next_index(last);
        {
            let mut state = self.shared.state.lock();
            state.begin_write()?;
            state.cuts += 1;
            state.tail.truncate_from(from);
            if next_index(state.last) > from {
                // Back to what was purged, if nothing is left.
                state.last = last.max(state.purged);
            }
        }
        let mut batch = WriteBatch::new();
        let KeyRange { start, end } = keys::entries(self.shared.region, from, u64::MAX);
        batch.delete_range(Family::RaftLog, start, end.unwrap_or_default());
        self.shared
            .submit(batch, Durability::Written, Some(from), |_, _| ());
        Ok(())
    }

    async fn purge(&mut self, through: LogId) -> Result<(), io::Error> {
        let damaged_from = {
            let mut state = self.shared.state.lock();
            if state.purged >= Some(through) {
                return Ok(());
            }
            state.begin_write()?;
            state.cuts += 1;
            state.tail.purge_through(through.index);
            state.purged = Some(through);
            state.first = through.index + 1;
            // A snapshot may cover more than the log ever held. Should this write fail, what is
            // appended behind it would leave a gap.
            let beyond = state.last.is_none_or(|last| last.index < through.index);
            if beyond {
                state.last = Some(through);
            }
            beyond.then_some(through.index + 1)
        };
        let region = self.shared.region;
        let mut batch = WriteBatch::new();
        batch.delete_range(
            Family::RaftLog,
            keys::entry(region, 0),
            keys::entry(region, through.index + 1),
        );
        let value = wire::log_id_to_wire(&through).encode_to_vec();
        batch.put(Family::RaftState, keys::state(region, keys::PURGED), value);
        self.shared
            .submit(batch, Durability::Written, damaged_from, |_, _| ());
        Ok(())
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

fn damage(region: RegionId, index: Option<u64>, detail: String) -> StorageError {
    let at = match index {
        Some(index) => format!("entry {index} in the log of region {region}"),
        None => format!("the log of region {region}"),
    };
    StorageError::Corruption {
        at: at.into(),
        detail: detail.into(),
    }
}

fn index_of_key(region: RegionId, key: &[u8]) -> Result<u64, StorageError> {
    keys::index_of(region, key)
        .ok_or_else(|| damage(region, None, format!("{key:?} is no key of an entry")))
}

fn decode_entry(region: RegionId, index: u64, value: Bytes) -> Result<Entry, StorageError> {
    let decoded = raft::Entry::decode(value)
        .map_err(|error| wire::WireError::undecodable("Entry", &error))
        .and_then(wire::entry)
        .map_err(|error| damage(region, Some(index), error.to_string()))?;
    if decoded.log_id.index != index {
        return Err(damage(
            region,
            Some(index),
            format!("it says that it is entry {}", decoded.log_id),
        ));
    }
    Ok(decoded)
}

fn read_state<M: Message + Default>(
    view: &dyn View,
    region: RegionId,
    name: &'static str,
) -> Result<Option<M>, StorageError> {
    let Some(value) = view.get(Family::RaftState, &keys::state(region, name))? else {
        return Ok(None);
    };
    let decoded = M::decode(value)
        .map_err(|error| damage(region, None, format!("its {name} is unreadable: {error}")))?;
    Ok(Some(decoded))
}
