//! One region's log and vote, on the disk that all regions of a store share.
//!
//! Owns what openraft's storage contract asks for: the order of writes, what may be read when, and
//! what happens after a failed one. The committer makes batches durable, [`super::log_state`] knows
//! what the log is; neither knows of the other. Knows nothing of what entries mean.
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

use super::log_disk;
use super::log_keys as keys;
use super::log_state::{LogContents, ReadPlan};
use super::log_tail::Room;
use super::{Entry, LogId, LogState, TypeConfig, Vote, log_id, runtime, wire};
use futures::Stream;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use parking_lot::Mutex;
use prost::Message;
use rdb_proto::raft;
use rdb_storage::{Committer, Durability, Engine, Family, StorageError, WriteBatch};
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
    contents: Mutex<LogContents>,
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
        let stored = log_disk::load(&*engine, region)?;
        let contents = LogContents::new(stored, options.cache_bytes);
        let shared = Shared {
            region,
            engine,
            committer,
            options,
            contents: Mutex::new(contents),
        };
        Ok(RaftLogStore {
            shared: Arc::new(shared),
        })
    }

    /// Looks at what a leader sends before it is taken; see [`RaftLogStore::contradicted`].
    pub fn agrees(&self, append: &raft::AppendRequest) -> bool {
        let term = append.vote.as_ref().map_or(0, |vote| vote.term);
        let entries = append
            .entries
            .iter()
            .filter_map(|entry| entry.log_id.as_ref());
        let ids = append.prev.iter().chain(entries);
        let ids = ids.map(|id| log_id(id.term, id.index));
        self.shared.contents.lock().agrees(term, ids)
    }

    /// In words, once a leader has sent something else for what is committed here: this replica and that
    /// leader have different histories, and this one must not take part any more.
    pub fn contradicted(&self) -> Option<String> {
        let committed = self.shared.contents.lock().contradicted()?;
        Some(format!(
            "region {} has stopped: the leader's log contradicts what is committed here up to entry {}. A store has lost what it had acknowledged (an older copy of its data directory?), so this store goes on no more and changes nothing. Keep all data directories as they are: this one holds acknowledged writes that the leader does not have",
            self.shared.region, committed.index
        ))
    }

    /// Bytes of entries that are held in memory.
    pub fn cached_bytes(&self) -> usize {
        self.shared.contents.lock().cached_bytes()
    }

    /// Entries that exist from `start` up to `end`, exclusive; no more once `limit_bytes` are read.
    async fn read(&self, start: u64, end: u64, limit_bytes: usize) -> io::Result<Vec<Entry>> {
        loop {
            let ReadPlan {
                on_disk,
                in_memory,
                cuts,
            } = self
                .shared
                .contents
                .lock()
                .plan_read(start, end, limit_bytes);
            if on_disk.is_empty() {
                return Ok(in_memory);
            }
            // Only old entries come from the disk, and only for those who fell behind: not on a
            // thread that has other requests to answer.
            let (engine, region) = (self.shared.engine.clone(), self.shared.region);
            let mut room = Room::new(limit_bytes);
            let expected = on_disk.end - on_disk.start;
            let from_disk = runtime::blocking(move || {
                let (start, end) = (on_disk.start, on_disk.end);
                let entries = log_disk::read(&*engine, region, start, end, &mut room);
                (entries, room)
            });
            let (entries, mut room) = from_disk.await?;
            if self.shared.contents.lock().cuts() != cuts {
                continue; // the log was cut meanwhile; what was read may be of before or after
            }
            let mut entries = entries.map_err(io::Error::other)?;
            if entries.len() as u64 == expected {
                let fits = |entry: &Entry| room.take(wire::entry_to_wire(entry).encoded_len());
                entries.extend(in_memory.into_iter().take_while(fits));
            }
            return Ok(entries);
        }
    }

    /// Writes and waits until it is on the disk.
    async fn write_synced(&self, batch: WriteBatch) -> io::Result<()> {
        let (sender, receiver) = futures::channel::oneshot::channel();
        self.shared.contents.lock().begin_write()?;
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
        if self.contents.lock().has_failed() {
            self.remove_from(damaged_from);
        }
    }

    /// Stops all further writes and removes what may have slipped in behind the failed one.
    fn fail(&self, error: &StorageError, damaged_from: Option<u64>) {
        let first = self.contents.lock().fail(error);
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
        delete_entries(&mut batch, self.region, index, u64::MAX);
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
        Ok(self.shared.contents.lock().vote)
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
        let contents = self.shared.contents.lock();
        Ok(LogState {
            last_purged_log_id: contents.purged,
            last_log_id: contents.last,
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
        self.shared.contents.lock().vote = Some(*vote);
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
            let mut contents = self.shared.contents.lock();
            contents.begin_write()?;
            contents.committed = committed;
        }
        self.shared
            .submit(batch, Durability::Written, None, |_, _| ());
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.shared.contents.lock().committed)
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
        // Encoded before the lock is taken, which every reader needs.
        let mut batch = WriteBatch::new();
        let mut encoded = Vec::new();
        for entry in entries {
            let value = wire::entry_to_wire(&entry).encode_to_vec();
            let key = keys::entry(self.shared.region, entry.log_id.index);
            encoded.push((entry, value.len()));
            batch.put(Family::RaftLog, key, value);
        }
        let begun = self.shared.contents.lock().append(encoded);
        let (write, damaged_from) = match begun {
            Ok(begun) => begun,
            Err(error) => {
                callback.io_completed(Err(io::Error::new(error.kind(), error.to_string())));
                return Err(error);
            }
        };
        self.shared.submit(
            batch,
            Durability::Synced,
            Some(damaged_from),
            move |shared, result| {
                if result.is_ok() {
                    shared.contents.lock().synced(write);
                }
                callback.io_completed(result.map_err(io::Error::other));
            },
        );
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let (from, behind_last) = self.shared.contents.lock().truncate_after(last)?;
        let mut batch = WriteBatch::new();
        delete_entries(&mut batch, self.shared.region, from, behind_last);
        self.shared
            .submit(batch, Durability::Written, Some(from), |_, _| ());
        Ok(())
    }

    async fn purge(&mut self, through: LogId) -> Result<(), io::Error> {
        let (first, damaged_from) = {
            let mut contents = self.shared.contents.lock();
            if contents.purged >= Some(through) {
                return Ok(());
            }
            contents.purge(through)?
        };
        let region = self.shared.region;
        let mut batch = WriteBatch::new();
        delete_entries(&mut batch, region, first, through.index + 1);
        let value = wire::log_id_to_wire(&through).encode_to_vec();
        batch.put(Family::RaftState, keys::state(region, keys::PURGED), value);
        self.shared
            .submit(batch, Durability::Written, damaged_from, |_, _| ());
        Ok(())
    }
}

/// Removes the entries from `start` up to `end`; none, if that is before.
fn delete_entries(batch: &mut WriteBatch, region: RegionId, start: u64, end: u64) {
    batch.delete_range(
        Family::RaftLog,
        keys::entry(region, start),
        keys::entry(region, end),
    );
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
