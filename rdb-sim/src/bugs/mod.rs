//! Bugs that are planted to see whether they are caught: one rule broken at a time.
//!
//! Owns the list, and the adapters that break the rules: an engine that lies ([`engine`]), a network that
//! lies ([`wire`]), a disk that comes back other than it was ([`crash`]); what of them concerns eventual
//! namespaces is in [`eventual`], and what concerns changes of mode in [`switching`], [`promises`] and [`votes`]. The server's code
//! has no part in it and no hook for it: it is handed a worse world.
//!
//! Invariant: without a bug, every adapter hands through what it is given.

mod crash;
mod engine;
mod eventual;
mod promises;
mod switching;
mod votes;
mod wire;

use crate::network::Tap;
use parking_lot::Mutex;
use rdb_storage::{Engine, MemoryEngine, WriteBatch};
use rdb_types::StoreId;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Bug {
    /// A sync returns before anything is durable.
    AcknowledgeBeforeSync,
    /// A vote never reaches the disk.
    VoteNotPersisted,
    /// A follower's linearizable read does not ask the leader.
    ReadIndexSkipped,
    /// A conflicting end of the log stays on the disk behind the new entries.
    TruncationIgnored,
    /// A batch that was being written at a crash is half there: data without applied index, or the reverse.
    TornBatch,
    /// A restart takes the last synced entry for a torn tail and cuts it.
    TailCutAtRestart,
    /// A snapshot comes without the table of request ids.
    RequestIdsNotInSnapshot,
    /// A snapshot lacks some records.
    SnapshotIncomplete,
    /// A follower acknowledges entries that it dropped.
    AcknowledgeWithoutStoring,
    /// A vote is granted to anybody who asks.
    VoteAlwaysGranted,
    /// Entries of a deposed leader are taken as the present one's.
    OldTermAccepted,
    /// The leader counts entries as committed as soon as they are sent.
    CommittedTooEarly,
    /// A forwarded write whose answer was lost is reported as never sent.
    SentReportedAsUnsent,
    /// A forwarded write loses its request id.
    RequestIdDropped,
    /// A wiped disk comes back under its old identity, and votes.
    WipedDiskVotes,
    /// A record is now and then not written.
    RecordNotWritten,
    /// Who passes an entry on gives it a new stamp.
    RestampOnRelay,
    /// A restart finds a vector that ends before what the replica had.
    VectorLostOnRestart,
    /// A deletion leaves no tombstone.
    TombstoneDroppedEarly,
    /// A copy, or a snapshot of the region, removes what the replica accepted itself.
    CopyWipesOwnWrites,
    /// An entry that is missing is taken as seen.
    GapAccepted,
    /// Now and then a stamp gets onto a disk that is an hour ahead.
    FarFutureStampMerged,
    /// Entries of origin logs are taken as synced when they are written.
    UnsyncedEntrySent,
    /// A tombstone is dropped once all have seen it, whatever older is still under way.
    NaiveTombstoneRule,
    /// A fence is drawn without what one of the replicas holds: another one's report counts for it.
    DrainOneShort,
    /// A promise counts for two replicas.
    PromiseCountedTwice,
    /// A store's vote for another mode, in its file, counts for another store, too.
    VotesCountedTwice,
    /// A replica promises without looking whether it holds the fence.
    FenceSkipped,
    /// A replica that has promised merges more.
    PromiseNotBinding,
    /// A replica says that it takes no more writes before that is synced.
    ReportBeforeSync,
    /// A restart forgets that a seal was begun.
    BeginForgottenAtRestart,
    /// Entries are taken whatever epoch they are of, where they arrive and where they are applied.
    EpochUnchecked,
    /// What a fresh copy would have set aside is lost.
    LateWritesDropped,
    /// A fresh copy is put over what a replica held, which stays where the copy has nothing.
    CopyMergedAcrossSeal,
    /// At a seal the answers to requests of the eventual time are forgotten.
    IdsForgottenAtSeal,
    /// A switch leaves a store out that nobody allowed it to leave out.
    LeftOutUnasked,
}

/// The adapters of one run.
#[derive(Clone)]
pub struct Bugs {
    bug: Option<Bug>,
    /// What each store wrote since its last sync.
    unsynced: Arc<Mutex<BTreeMap<StoreId, Vec<WriteBatch>>>>,
    disks: promises::Disks,
}

impl Bugs {
    /// With one bug, or none.
    pub fn new(bug: Option<Bug>) -> Bugs {
        Bugs {
            bug,
            unsynced: Arc::default(),
            disks: Arc::default(),
        }
    }

    /// What `store` gets as its engine.
    pub fn engine(&self, store: StoreId, real: Arc<MemoryEngine>) -> Arc<dyn Engine> {
        self.disks.lock().insert(store, real.clone());
        match self.bug {
            None => real,
            Some(bug) => Arc::new(engine::Lying::new(bug, store, real, self.unsynced.clone())),
        }
    }

    /// Whether a switch is asked for as if it were allowed to leave a store out.
    pub fn leaves_out_unasked(&self) -> bool {
        self.bug == Some(Bug::LeftOutUnasked)
    }

    /// What looks at the network's messages.
    pub fn taps(&self) -> Vec<Arc<dyn Tap>> {
        match self.bug {
            None => Vec::new(),
            Some(bug) => vec![Arc::new(wire::Forger::new(bug, self.disks.clone()))],
        }
    }

    /// Called when a store has crashed, with what survived of its unsynced batches.
    pub fn crashed(&self, store: StoreId, disk: &MemoryEngine, kept: usize) {
        let unsynced = self.unsynced.lock().remove(&store).unwrap_or_default();
        if let Some(bug) = self.bug {
            crash::spoil(bug, disk, unsynced.get(kept));
        }
    }
}
