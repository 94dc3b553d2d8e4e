//! The edge between a region's state and the consensus library.
//!
//! Owns the region's state and is its only writer: entries come in here in log order, become one batch
//! ([`Applier`]), and are answered once the batch was written. Not synced: the log is, and it is purged
//! only by a write that stands behind these in the write-ahead log, so that a crash can cost a replay
//! but never an entry.

use super::apply::Applier;
use super::install::Installer;
use super::layout;
use super::state::{RegionState, Summary};
use crate::raft::snapshot::{FrozenSnapshot, SnapshotData};
use crate::raft::{
    Command, EntryResponder, LogId, Outcome, Snapshot, SnapshotMeta, SnapshotSpool,
    StoredMembership, TypeConfig,
};
use crate::watch;
use futures::{FutureExt, Stream, StreamExt};
use openraft::async_runtime::WatchReceiver;
use openraft::entry::RaftPayload;
use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use parking_lot::RwLock;
use rdb_proto::raft;
use rdb_storage::{Committer, Durability, Engine, StorageError};
use rdb_types::{NamespaceId, StoreId};
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

/// Entries that are applied with one batch at most.
const ENTRIES_PER_BATCH: usize = 256;

/// What readers see of a region: its [`Summary`], and the applied index to wait on.
pub struct SummaryCell {
    summary: RwLock<Summary>,
    applied: watch::Sender<u64>,
}

impl SummaryCell {
    fn new(summary: Summary) -> SummaryCell {
        let (applied, _) = watch::channel(summary.applied_index);
        SummaryCell {
            summary: RwLock::new(summary),
            applied,
        }
    }

    /// Looks at the summary. `read` must be short: apply waits for it.
    pub fn with<T>(&self, read: impl FnOnce(&Summary) -> T) -> T {
        read(&self.summary.read())
    }

    /// Index of the last entry applied.
    pub fn applied_index(&self) -> u64 {
        *self.applied.borrow()
    }

    /// Resolves once the entry at `index` was applied. Pending for ever if it never is: callers bring
    /// a deadline.
    pub async fn wait_applied(&self, index: u64) {
        let mut applied = self.applied.subscribe();
        // An error means that the region is gone; whoever waits is dropped with it.
        let _ = applied.wait_until_ge(&index).await;
    }

    fn publish(&self, state: &RegionState, touched: &BTreeSet<NamespaceId>) {
        {
            let mut summary = self.summary.write();
            summary.applied_index = state.applied.map_or(0, |id| id.index);
            summary.last_stamp = state.last_stamp;
            summary.revision = state.revision;
            for namespace in touched {
                if let Some(namespace_state) = state.namespaces.get(namespace) {
                    summary
                        .namespaces
                        .insert(*namespace, namespace_state.clone());
                }
            }
            summary.meta.clone_from(&state.meta);
        }
        self.announce(state);
    }

    /// From here on the rows are not to be read.
    fn begin_installing(&self) {
        self.summary.write().installs += 1;
    }

    /// The rows are those of `state` now.
    fn replace(&self, state: &RegionState) {
        let mut summary = self.summary.write();
        let installs = summary.installs + 1;
        *summary = Summary {
            installs,
            ..state.summary()
        };
        drop(summary);
        self.announce(state);
    }

    fn announce(&self, state: &RegionState) {
        let index = state.applied.map_or(0, |id| id.index);
        self.applied
            .send_if_modified(|applied| std::mem::replace(applied, index) != index);
    }
}

/// A region's state machine.
pub struct RegionMachine {
    me: StoreId,
    state: RegionState,
    engine: Arc<dyn Engine>,
    committer: Committer,
    installer: Installer,
    cell: Arc<SummaryCell>,
}

impl RegionMachine {
    /// Goes on from what is on disk; a region that a crash left half-filled is filled first.
    pub async fn open(
        me: StoreId,
        descriptor: raft::RegionDescriptor,
        engine: Arc<dyn Engine>,
        committer: Committer,
        spool: Arc<dyn SnapshotSpool>,
    ) -> Result<RegionMachine, io::Error> {
        let installer = Installer {
            descriptor: descriptor.clone(),
            committer: committer.clone(),
            spool: spool.clone(),
        };
        let interrupted = installer
            .interrupted(engine.as_ref())
            .map_err(io::Error::other)?;
        if let Some(meta) = &interrupted {
            tracing::info!(
                region = descriptor.id,
                "going on to install a snapshot that the last run did not finish"
            );
            installer.fill(meta).await?;
        }
        let mut state = RegionState::load(descriptor, engine.as_ref()).map_err(io::Error::other)?;
        if let Some(meta) = interrupted {
            state.membership = meta.last_membership;
        }
        // Either it is in place, or nothing of it was.
        spool.forget(state.id())?;
        let cell = Arc::new(SummaryCell::new(state.summary()));
        Ok(RegionMachine {
            me,
            state,
            engine,
            committer,
            installer,
            cell,
        })
    }

    /// What readers look at.
    pub fn cell(&self) -> Arc<SummaryCell> {
        self.cell.clone()
    }

    /// Freezes the region as it is now. The rows that describe it are part of it.
    /// What lies at one index is always the same, and so is the id: a transfer that was given up goes on
    /// where it was.
    fn freeze(&self) -> Snapshot {
        let index = self.state.applied.map_or(0, |id| id.index);
        let id = format!("{}-{}-{index}", self.me, self.state.id());
        let ranges = layout::replicated_ranges(&self.state.descriptor, &self.state.eventual());
        Snapshot {
            meta: SnapshotMeta {
                last_log_id: self.state.applied,
                last_membership: self.state.membership.clone(),
            },
            snapshot: SnapshotData::Frozen(FrozenSnapshot::new(id, self.engine.snapshot(), ranges)),
        }
    }

    fn apply_one(applier: &mut Applier<'_>, payload: Decoded) -> Result<Outcome, StorageError> {
        match payload {
            Decoded::Command(command) => applier.command(&command).map(Outcome),
            Decoded::Nothing => Ok(Outcome::default()),
        }
    }
}

enum Decoded {
    Command(raft::Command),
    Nothing,
}

fn decode(payload: &EntryPayload<Command, u64, crate::raft::StoreNode>) -> io::Result<Decoded> {
    match payload {
        EntryPayload::Normal(command) => command
            .decode()
            .map(Decoded::Command)
            .map_err(io::Error::other),
        EntryPayload::Blank | EntryPayload::Membership(_) => Ok(Decoded::Nothing),
    }
}

impl RaftStateMachine<TypeConfig> for RegionMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Freezer;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.state.applied, self.state.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder, io::Error>> + Unpin + OptionalSend,
    {
        let mut held = None;
        loop {
            let first = match held.take() {
                Some(held) => held,
                None => match entries.next().await {
                    Some(item) => {
                        let item = item?;
                        let decoded = decode(&item.0.payload)?;
                        (item, decoded)
                    }
                    None => return Ok(()),
                },
            };
            let mut answers = Vec::new();
            let (batch, touched) = {
                let mut applier = Applier::new(&mut self.state, self.engine.as_ref());
                let mut next = Some(first);
                while let Some(((entry, responder), decoded)) = next.take() {
                    applier.applied(entry.log_id, entry.payload.get_membership());
                    let outcome =
                        Self::apply_one(&mut applier, decoded).map_err(io::Error::other)?;
                    if let Some(responder) = responder {
                        answers.push((responder, outcome));
                    }
                    // Only what is there already: a batch never waits for an entry.
                    if applier.entries() < ENTRIES_PER_BATCH
                        && let Some(Some(item)) = entries.next().now_or_never()
                    {
                        let item = item?;
                        let decoded = decode(&item.0.payload)?;
                        match &decoded {
                            Decoded::Command(command) if Applier::starts_batch(command) => {
                                held = Some((item, decoded))
                            }
                            _ => next = Some((item, decoded)),
                        }
                    }
                }
                applier.finish()
            };
            self.committer
                .commit(batch, Durability::Written)
                .await
                .map_err(io::Error::other)?;
            self.cell.publish(&self.state, &touched);
            for (responder, outcome) in answers {
                responder.send(outcome);
            }
        }
    }

    async fn get_snapshot_builder(&mut self) -> Freezer {
        Freezer(Some(self.freeze()))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        self.cell.begin_installing();
        self.installer.keep(snapshot).await?;
        self.installer.fill(meta).await?;
        let index = meta.last_log_id.map_or(0, |id| id.index);
        let mut state = RegionState::load(self.state.descriptor.clone(), self.engine.as_ref())
            .map_err(io::Error::other)?;
        state.membership = meta.last_membership.clone();
        self.state = state;
        self.cell.replace(&self.state);
        tracing::info!(region = self.state.id().0, index, "installed a snapshot");
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        // The state machine is durable itself: its present state is always the newest snapshot.
        Ok(self.state.applied.is_some().then(|| self.freeze()))
    }
}

/// A snapshot that was taken already: freezing is instant, there is nothing left to build.
pub struct Freezer(Option<Snapshot>);

impl RaftSnapshotBuilder<TypeConfig> for Freezer {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        self.0
            .take()
            .ok_or_else(|| io::Error::other("a snapshot is built once"))
    }
}
