//! A leader's snapshot, while it comes in.
//!
//! Owns the pieces of at most one transfer of one region, where they wait, and what is asked for
//! next. Does not install anything and knows nothing of connections.
//!
//! # Invariants
//!
//! - Pieces are kept in order and without a gap: one that begins elsewhere is not taken, and the
//!   answer names the offset that is wanted.
//! - A transfer under a higher vote ends one under a lower vote, never the other way round.
//! - Pieces lie where they can be thrown away: nothing of the region's own state changes before all
//!   are there. What a crash leaves of an unfinished transfer is removed at the next start.
//! - A finished one is durable before anybody hears of it, and stays until it is forgotten: installing
//!   it can begin anew from there, whatever happens in between.

use super::snapshot::io_error;
use super::{ReceivedSnapshot, Snapshot, SnapshotData, SnapshotMeta, Vote, wire};
use crate::error::Error;
use bytes::Bytes;
use parking_lot::Mutex;
use rdb_proto::raft;
use rdb_types::RegionId;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where the pieces of snapshots wait. One for a store.
pub trait SnapshotSpool: Send + Sync + 'static {
    /// An empty place for the pieces of one snapshot.
    ///
    /// # Errors
    /// The disk refuses.
    fn create(&self, region: RegionId) -> io::Result<Box<dyn Spooled>>;

    /// The snapshot of a region that was finished last, from its beginning; `None`: there is none, or
    /// it was forgotten.
    ///
    /// # Errors
    /// The disk refuses.
    fn finished(&self, region: RegionId) -> io::Result<Option<SnapshotStream>>;

    /// Lets the finished snapshot of a region go, if there is one.
    ///
    /// # Errors
    /// The disk refuses.
    fn forget(&self, region: RegionId) -> io::Result<()>;
}

/// All pieces of a snapshot, one after the other.
pub type SnapshotStream = Box<dyn Read + Send + Sync>;

/// The pieces of one snapshot. They go with it when it is dropped unfinished.
pub trait Spooled: Send {
    /// Adds a piece.
    ///
    /// # Errors
    /// The disk refuses; the pieces are of no use any more.
    fn append(&mut self, piece: &Bytes) -> io::Result<()>;

    /// All pieces are there: makes them durable, as what [`SnapshotSpool::finished`] shows, in place of
    /// an earlier one.
    ///
    /// # Errors
    /// The disk refuses.
    fn finish(self: Box<Self>) -> io::Result<SnapshotStream>;
}

/// Pieces in files of a directory that nobody else uses.
#[derive(Debug)]
pub struct FileSpool {
    dir: PathBuf,
    /// Makes names unique: a new transfer may begin while an old one is still being installed.
    created: AtomicU64,
}

/// What the files of unfinished transfers are called.
const SPOOL_PREFIX: &str = "snapshot-";
/// What those of finished ones are called. Others in the directory are left alone.
const FINISHED_PREFIX: &str = "install-";

impl FileSpool {
    /// Uses `dir`, which is created if it is not there, and removes what a crash left in it.
    ///
    /// # Errors
    /// The directory cannot be created, read or cleaned.
    pub fn new(dir: impl Into<PathBuf>) -> io::Result<FileSpool> {
        let dir = dir.into();
        std::fs::create_dir_all(&dir)?;
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            if entry
                .file_name()
                .to_string_lossy()
                .starts_with(SPOOL_PREFIX)
            {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(FileSpool {
            dir,
            created: AtomicU64::new(0),
        })
    }

    fn finished_path(&self, region: RegionId) -> PathBuf {
        self.dir.join(format!("{FINISHED_PREFIX}{region}"))
    }
}

fn open_stream(path: &Path) -> io::Result<SnapshotStream> {
    let reader = BufReader::with_capacity(64 << 10, File::open(path)?);
    Ok(Box::new(reader))
}

impl SnapshotSpool for FileSpool {
    fn create(&self, region: RegionId) -> io::Result<Box<dyn Spooled>> {
        let number = self.created.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(format!("{SPOOL_PREFIX}{region}-{number}"));
        let file = File::create_new(&path)?;
        Ok(Box::new(SpoolFile {
            file,
            path,
            finished_path: self.finished_path(region),
            finished: false,
        }))
    }

    fn finished(&self, region: RegionId) -> io::Result<Option<SnapshotStream>> {
        match open_stream(&self.finished_path(region)) {
            Ok(stream) => Ok(Some(stream)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn forget(&self, region: RegionId) -> io::Result<()> {
        match std::fs::remove_file(self.finished_path(region)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

struct SpoolFile {
    file: File,
    path: PathBuf,
    finished_path: PathBuf,
    finished: bool,
}

impl Drop for SpoolFile {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "a received snapshot could not be removed; it will be at the next start");
        }
    }
}

impl Spooled for SpoolFile {
    fn append(&mut self, piece: &Bytes) -> io::Result<()> {
        self.file.write_all(piece)
    }

    fn finish(mut self: Box<Self>) -> io::Result<SnapshotStream> {
        self.file.sync_all()?;
        std::fs::rename(&self.path, &self.finished_path)?;
        self.finished = true;
        if let Some(dir) = self.finished_path.parent() {
            File::open(dir)?.sync_all()?;
        }
        open_stream(&self.finished_path)
    }
}

/// Pieces in memory: for simulated stores and stores without a disk. What is finished outlives a store
/// that is opened again over the same spool, as it does on a disk.
#[derive(Clone, Debug, Default)]
pub struct MemorySpool {
    finished: Arc<Mutex<BTreeMap<RegionId, VecDeque<Bytes>>>>,
}

impl SnapshotSpool for MemorySpool {
    fn create(&self, region: RegionId) -> io::Result<Box<dyn Spooled>> {
        Ok(Box::new(SpoolMemory {
            region,
            spool: self.clone(),
            pieces: VecDeque::new(),
        }))
    }

    fn finished(&self, region: RegionId) -> io::Result<Option<SnapshotStream>> {
        let pieces = self.finished.lock().get(&region).cloned();
        Ok(pieces.map(|pieces| Box::new(MemoryStream(pieces)) as SnapshotStream))
    }

    fn forget(&self, region: RegionId) -> io::Result<()> {
        self.finished.lock().remove(&region);
        Ok(())
    }
}

struct SpoolMemory {
    region: RegionId,
    spool: MemorySpool,
    pieces: VecDeque<Bytes>,
}

impl Spooled for SpoolMemory {
    fn append(&mut self, piece: &Bytes) -> io::Result<()> {
        self.pieces.push_back(piece.clone());
        Ok(())
    }

    fn finish(self: Box<Self>) -> io::Result<SnapshotStream> {
        let SpoolMemory {
            region,
            spool,
            pieces,
        } = *self;
        spool.finished.lock().insert(region, pieces.clone());
        Ok(Box::new(MemoryStream(pieces)))
    }
}

struct MemoryStream(VecDeque<Bytes>);

impl Read for MemoryStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.0.front().is_some_and(Bytes::is_empty) {
            self.0.pop_front();
        }
        let Some(piece) = self.0.front_mut() else {
            return Ok(0);
        };
        let taken = piece.split_to(piece.len().min(buffer.len()));
        buffer[..taken.len()].copy_from_slice(&taken);
        Ok(taken.len())
    }
}

/// What a piece led to.
#[derive(Debug)]
pub enum Received {
    /// It was taken, or was not the one wanted: the next one begins at this offset.
    Next(u64),
    /// All are there.
    Complete {
        /// Of the leader that sent it.
        vote: Vote,
        /// To be installed.
        snapshot: Snapshot,
    },
    /// This very snapshot was installed before: its sender did not hear of it.
    Installed,
    /// A leader with this vote is sending one already.
    HigherVote(Vote),
}

/// The incoming side of a region's snapshots.
pub struct SnapshotReceiver {
    region: RegionId,
    spool: Arc<dyn SnapshotSpool>,
    transfer: Option<Transfer>,
    /// Whose last piece may come again.
    installed: Option<String>,
}

struct Transfer {
    id: String,
    vote: Vote,
    meta: SnapshotMeta,
    received: u64,
    spooled: Box<dyn Spooled>,
}

impl SnapshotReceiver {
    /// Nothing received yet.
    pub fn new(region: RegionId, spool: Arc<dyn SnapshotSpool>) -> SnapshotReceiver {
        SnapshotReceiver {
            region,
            spool,
            transfer: None,
            installed: None,
        }
    }

    /// Takes a piece. Writes to the disk. Does not know the replica's own vote: whoever calls
    /// refuses a leader that is none any more.
    ///
    /// # Errors
    /// The message is not valid, or the disk refuses. The transfer begins anew after the latter.
    pub fn take(&mut self, chunk: raft::SnapshotChunk) -> Result<Received, Error> {
        const FIELD: &str = "snapshot_chunk";
        let invalid = |error: wire::WireError| Error::invalid(FIELD, error.to_string());
        let vote = wire::leaders_vote(chunk.vote.as_ref(), "SnapshotChunk").map_err(invalid)?;
        let Some(meta) = &chunk.meta else {
            return Err(Error::invalid(FIELD, "SnapshotChunk has no meta"));
        };
        let id = &meta.snapshot_id;
        if self.installed.as_ref() == Some(id) {
            return Ok(Received::Installed);
        }
        if let Some(transfer) = &self.transfer
            && transfer.vote > vote
        {
            return Ok(Received::HigherVote(transfer.vote));
        }

        // Out of its place until the piece is safe, so that a failed write ends the transfer.
        let mut transfer = match self.transfer.take_if(|transfer| transfer.id == *id) {
            Some(transfer) => transfer,
            None => {
                self.transfer = None; // frees the place of the old one first
                let meta = wire::snapshot_meta(meta).map_err(invalid)?;
                let spooled = self
                    .spool
                    .create(self.region)
                    .map_err(|error| spool_error(&error))?;
                Transfer {
                    id: id.clone(),
                    vote,
                    meta,
                    received: 0,
                    spooled,
                }
            }
        };
        transfer.vote = vote;
        if chunk.offset != transfer.received {
            let wanted = transfer.received;
            self.transfer = Some(transfer);
            return Ok(Received::Next(wanted));
        }
        transfer
            .spooled
            .append(&chunk.data)
            .map_err(|error| spool_error(&error))?;
        transfer.received += chunk.data.len() as u64;
        if !chunk.done {
            let wanted = transfer.received;
            self.transfer = Some(transfer);
            return Ok(Received::Next(wanted));
        }
        let Transfer {
            id,
            vote,
            meta,
            spooled,
            ..
        } = transfer;
        let stream = spooled.finish().map_err(|error| spool_error(&error))?;
        let snapshot = SnapshotData::Received(ReceivedSnapshot::new(id, stream));
        Ok(Received::Complete {
            vote,
            snapshot: Snapshot { meta, snapshot },
        })
    }

    /// The snapshot with this id is in place: its pieces can go.
    pub fn installed(&mut self, id: String) {
        self.installed = Some(id);
        if let Err(error) = self.spool.forget(self.region) {
            tracing::warn!(region = self.region.0, %error, "an installed snapshot could not be removed; the next one takes its place");
        }
    }
}

fn spool_error(error: &io::Error) -> Error {
    Error::from(io_error("receiving a snapshot", error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::log_id;
    use rdb_types::Reason;

    fn chunk(
        id: &str,
        term: u64,
        offset: u64,
        data: &'static str,
        done: bool,
    ) -> raft::SnapshotChunk {
        let meta = SnapshotMeta {
            last_log_id: Some(log_id(term, 10)),
            last_membership: Default::default(),
        };
        raft::SnapshotChunk {
            vote: Some(wire::vote_to_wire(&Vote::new_committed(term, 1))),
            meta: Some(wire::snapshot_meta_to_wire(&meta, id)),
            offset,
            data: data.into(),
            done,
        }
    }

    fn next(received: Result<Received, Error>) -> u64 {
        match received {
            Ok(Received::Next(offset)) => offset,
            other => panic!("{other:?}"),
        }
    }

    fn complete(received: Result<Received, Error>) -> (Vote, SnapshotMeta, String) {
        let Ok(Received::Complete { vote, snapshot }) = received else {
            panic!("{received:?}")
        };
        let SnapshotData::Received(data) = snapshot.snapshot else {
            panic!("it was received")
        };
        let mut text = String::new();
        data.into_stream().read_to_string(&mut text).unwrap();
        (vote, snapshot.meta, text)
    }

    /// The same through memory and through files; those of unfinished transfers go with them.
    fn each_spool(test: impl Fn(SnapshotReceiver)) {
        test(SnapshotReceiver::new(
            RegionId(2),
            Arc::new(MemorySpool::default()),
        ));
        let dir = tempfile::tempdir().unwrap();
        test(SnapshotReceiver::new(
            RegionId(2),
            Arc::new(FileSpool::new(dir.path()).unwrap()),
        ));
        let names = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = names
            .filter(|name| name.to_string_lossy().starts_with(SPOOL_PREFIX))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    fn pieces_are_put_together_and_a_wrong_one_is_told_where_to_go_on() {
        each_spool(|mut receiver| {
            assert_eq!(next(receiver.take(chunk("a", 1, 0, "one ", false))), 4);
            // Again, as after a lost answer; then one from the future.
            assert_eq!(next(receiver.take(chunk("a", 1, 0, "one ", false))), 4);
            assert_eq!(next(receiver.take(chunk("a", 1, 99, "late", true))), 4);
            assert_eq!(next(receiver.take(chunk("a", 1, 4, "two ", false))), 8);
            let (vote, meta, text) = complete(receiver.take(chunk("a", 1, 8, "three", true)));
            assert_eq!(
                (vote, text.as_str()),
                (Vote::new_committed(1, 1), "one two three")
            );
            assert_eq!(meta.last_log_id, Some(log_id(1, 10)));

            receiver.installed("a".to_owned());
            assert!(matches!(
                receiver.take(chunk("a", 1, 8, "three", true)),
                Ok(Received::Installed)
            ));
            assert_eq!(next(receiver.take(chunk("b", 1, 0, "x", false))), 1);
        });
    }

    #[test]
    fn a_higher_vote_takes_over_and_a_lower_one_does_not() {
        each_spool(|mut receiver| {
            assert_eq!(next(receiver.take(chunk("a", 5, 0, "aaaa", false))), 4);
            let lower = receiver.take(chunk("b", 4, 0, "b", true));
            assert!(
                matches!(lower, Ok(Received::HigherVote(vote)) if vote == Vote::new_committed(5, 1))
            );
            // Another snapshot begins at its beginning, whatever it is asked to go on with.
            assert_eq!(next(receiver.take(chunk("c", 6, 4, "c", false))), 0);
            assert_eq!(
                complete(receiver.take(chunk("c", 6, 0, "ccc", true))).2,
                "ccc"
            );
        });
    }

    #[test]
    fn what_is_not_valid_is_refused() {
        each_spool(|mut receiver| {
            for broken in [
                raft::SnapshotChunk {
                    vote: None,
                    ..chunk("a", 1, 0, "", true)
                },
                raft::SnapshotChunk {
                    meta: None,
                    ..chunk("a", 1, 0, "", true)
                },
                raft::SnapshotChunk {
                    vote: Some(wire::vote_to_wire(&Vote::new(1, 1))),
                    ..chunk("a", 1, 0, "", true)
                },
            ] {
                assert_eq!(
                    receiver.take(broken).unwrap_err().reason,
                    Reason::InvalidArgument
                );
            }
        });
    }

    #[test]
    fn a_disk_that_refuses_ends_the_transfer_and_the_next_try_begins_anew() {
        struct Full(std::sync::atomic::AtomicBool);
        struct FullPieces;
        impl SnapshotSpool for Full {
            fn create(&self, region: RegionId) -> io::Result<Box<dyn Spooled>> {
                match self.0.swap(false, Ordering::Relaxed) {
                    true => Ok(Box::new(FullPieces)),
                    false => MemorySpool::default().create(region),
                }
            }
            fn finished(&self, _: RegionId) -> io::Result<Option<SnapshotStream>> {
                Ok(None)
            }
            fn forget(&self, _: RegionId) -> io::Result<()> {
                Ok(())
            }
        }
        impl Spooled for FullPieces {
            fn append(&mut self, _: &Bytes) -> io::Result<()> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn finish(self: Box<Self>) -> io::Result<SnapshotStream> {
                Err(io::ErrorKind::StorageFull.into())
            }
        }
        let mut receiver = SnapshotReceiver::new(RegionId(2), Arc::new(Full(true.into())));
        assert_eq!(
            receiver
                .take(chunk("a", 1, 0, "aa", false))
                .unwrap_err()
                .reason,
            Reason::NoSpace
        );
        assert_eq!(next(receiver.take(chunk("a", 1, 2, "aa", false))), 0);
        assert_eq!(
            complete(receiver.take(chunk("a", 1, 0, "aa", true))).2,
            "aa"
        );
    }

    #[test]
    fn a_finished_snapshot_stays_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let files = || FileSpool::new(dir.path()).unwrap();
        let memory = MemorySpool::default();
        let again: [(Arc<dyn SnapshotSpool>, Arc<dyn SnapshotSpool>); 2] = [
            (Arc::new(files()), Arc::new(files())),
            (Arc::new(memory.clone()), Arc::new(memory)),
        ];
        for (spool, reopened) in again {
            assert!(spool.finished(RegionId(2)).unwrap().is_none());
            let mut receiver = SnapshotReceiver::new(RegionId(2), spool);
            drop(complete(receiver.take(chunk("a", 1, 0, "aa", true))));
            let read = || {
                let mut text = String::new();
                let stream = reopened.finished(RegionId(2)).unwrap();
                stream.map(|mut stream| stream.read_to_string(&mut text).unwrap())?;
                Some(text)
            };
            assert_eq!(read().as_deref(), Some("aa"));
            assert_eq!(
                read().as_deref(),
                Some("aa"),
                "from the beginning each time"
            );
            assert!(reopened.finished(RegionId(3)).unwrap().is_none());
            receiver.installed("a".to_owned());
            assert_eq!(read(), None);
            reopened.forget(RegionId(2)).unwrap();
        }
    }

    #[test]
    fn what_a_crash_left_is_removed_at_the_start_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let spool = FileSpool::new(dir.path()).unwrap();
        std::mem::forget(spool.create(RegionId(2)).unwrap());
        std::fs::write(dir.path().join("a file of somebody's"), "").unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        FileSpool::new(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
