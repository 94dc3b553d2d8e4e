//! The edge between a region's state and the consensus library.
//!
//! Owns the region's state and is its only writer: entries come in here in log order, become one batch
//! ([`Applier`]), and are answered once the batch was written. Not synced: the log is, and it is purged
//! only by a write that stands behind these in the write-ahead log, so that a crash can cost a replay
//! but never an entry.

use super::apply::Applier;
use super::fresh_copy::CopySource;
use super::install::Installer;
use super::layout;
use super::state::{Pause, RegionState, Summary};
use super::switching;
use crate::eventual::EventualState;
use crate::history::History;
use crate::history::change::Change;
use crate::history::ring::Head;
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
use rand::Rng;
use rdb_proto::raft::{self, SwitchStep, command, switch_step::Step};
use rdb_storage::{Committer, Durability, Engine, StorageError, WriteBatch};
use rdb_types::{Mode, NamespaceId, StoreId};
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use tokio::time::Instant;

/// Entries that are applied with one batch at most.
const ENTRIES_PER_BATCH: usize = 256;

/// What readers see of a region: its [`Summary`], the applied index to wait on, and its last changes.
pub struct SummaryCell {
    summary: RwLock<Summary>,
    applied: watch::Sender<u64>,
    owner: tokio::sync::Mutex<()>,
    history: History,
}

impl SummaryCell {
    fn new(mut summary: Summary, history: History) -> SummaryCell {
        // A seal that is under way since before this start is not waited for without end.
        let sealing = summary.namespaces.iter();
        let sealing = sealing.filter(|(_, state)| state.sealing.is_some());
        let sealing: Vec<_> = sealing.map(|(namespace, _)| *namespace).collect();
        for namespace in sealing {
            note_pause(&mut summary, namespace, true);
        }
        let (applied, _) = watch::channel(summary.applied_index);
        SummaryCell {
            summary: RwLock::new(summary),
            applied,
            owner: tokio::sync::Mutex::new(()),
            history,
        }
    }

    /// Held while the data of an eventual namespace is changed, and while such a namespace goes from one
    /// owner to the other: so neither the log nor the replica's own writer changes what is the other's.
    pub async fn own(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.owner.lock().await
    }

    /// The last changes of the region.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Tells of every change of the applied index.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
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

    fn publish(
        &self,
        state: &RegionState,
        touched: &BTreeSet<NamespaceId>,
        changes: Vec<(NamespaceId, Change)>,
    ) {
        let head = Head {
            next_index: state.applied.map_or(0, |id| id.index + 1),
            revision: state.revision,
        };
        let states = touched
            .iter()
            .filter_map(|namespace| Some((*namespace, state.namespaces.get(namespace)?)));
        self.history.applied(head, states, changes);
        {
            let mut summary = self.summary.write();
            summary.applied_index = state.applied.map_or(0, |id| id.index);
            if summary.membership.log_id() != state.membership.log_id() {
                summary.membership.clone_from(&state.membership);
            }
            summary.last_stamp = state.last_stamp;
            summary.revision = state.revision;
            summary.ids = state.ids;
            summary.unswept = !state.unswept.is_empty();
            for namespace in touched {
                if let Some(dropped) = state.dropped.get(namespace) {
                    summary.namespaces.remove(namespace);
                    summary.pauses.remove(namespace);
                    summary.dropped.insert(*namespace, *dropped);
                } else if let Some(namespace_state) = state.namespaces.get(namespace) {
                    let refuses = namespace_state.sealing.is_some();
                    note_pause(&mut summary, *namespace, refuses);
                    summary
                        .namespaces
                        .insert(*namespace, namespace_state.clone());
                }
            }
            summary.meta.clone_from(&state.meta);
        }
        // Last, so that a watch which began before this is told.
        let gone = touched.iter();
        self.history
            .forget(gone.filter(|namespace| state.dropped.contains_key(namespace)));
        self.announce(state);
    }

    /// From here on the rows are not to be read, and not even eventual namespaces of these be written.
    fn begin_installing(&self, replacing: BTreeSet<NamespaceId>) {
        let mut summary = self.summary.write();
        summary.installs += 1;
        summary.replacing = replacing;
    }

    /// This replica serves nothing until it has a fresh copy.
    fn needs_fresh_copy(&self, why: &str) {
        self.summary.write().fresh_copy = Some(why.to_owned());
    }

    /// The rows are those of `state` now.
    fn replace(&self, state: &RegionState) {
        let mut summary = self.summary.write();
        let installs = summary.installs + 1;
        let pauses = std::mem::take(&mut summary.pauses);
        *summary = Summary {
            installs,
            pauses,
            ..state.summary()
        };
        for (namespace, namespace_state) in &state.namespaces {
            note_pause(&mut summary, *namespace, namespace_state.sealing.is_some());
        }
        drop(summary);
        self.announce(state);
    }

    fn announce(&self, state: &RegionState) {
        let index = state.applied.map_or(0, |id| id.index);
        self.applied
            .send_if_modified(|applied| std::mem::replace(applied, index) != index);
    }
}

/// Measures how long a namespace takes no writes.
fn note_pause(summary: &mut Summary, namespace: NamespaceId, refuses: bool) {
    let known = summary.pauses.get(&namespace).copied().unwrap_or_default();
    let pause = match (known.since, refuses) {
        (None, true) => Pause {
            since: Some(Instant::now()),
            ..known
        },
        (Some(since), false) => Pause {
            since: None,
            last: since.elapsed(),
        },
        _ => return,
    };
    summary.pauses.insert(namespace, pause);
}

/// A region's state machine.
pub struct RegionMachine {
    me: StoreId,
    state: RegionState,
    engine: Arc<dyn Engine>,
    committer: Committer,
    installer: Installer,
    /// Where a fresh copy comes from, if there are other replicas at all.
    source: Option<CopySource>,
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
        source: Option<CopySource>,
    ) -> Result<RegionMachine, io::Error> {
        let installer = Installer {
            me,
            descriptor: descriptor.clone(),
            engine: engine.clone(),
            committer: committer.clone(),
            spool: spool.clone(),
        };
        let interrupted = installer.resume().await?;
        let mut state = RegionState::load(descriptor, engine.as_ref()).map_err(io::Error::other)?;
        if let Some(meta) = interrupted {
            state.membership = meta.last_membership;
        }
        // Either they are in place, or nothing of them was.
        spool.forget(state.id())?;
        spool.forget(installer.fetched_slot())?;
        let history = History::open(&state, |namespace| {
            EventualState::load(state.id(), namespace, engine.as_ref())
        })
        .map_err(io::Error::other)?;
        let cell = Arc::new(SummaryCell::new(state.summary(), history));
        Ok(RegionMachine {
            me,
            state,
            engine,
            committer,
            installer,
            source,
            cell,
        })
    }

    /// What readers look at.
    pub fn cell(&self) -> Arc<SummaryCell> {
        self.cell.clone()
    }

    /// Freezes the region as it is now. The rows that describe it are part of it, and so are those of
    /// eventual namespaces.
    ///
    /// What the log made lies at one index always the same, and so is the id: a transfer that was given up
    /// goes on where it was. What eventual namespaces hold is another thing each time.
    async fn freeze(&self) -> io::Result<Snapshot> {
        let index = self.state.applied.map_or(0, |id| id.index);
        let mut id = format!("{}-{}-{index}", self.me, self.state.id());
        let mut states = self.state.namespaces.values();
        let is_eventual = states.any(|state| state.mode == Mode::Eventual);
        if is_eventual {
            id = format!("{id}-{:016x}", crate::tasks::random().next_u64());
        }
        let ranges = layout::replicated_ranges(&self.state.descriptor, &BTreeSet::new());
        let view = self.engine.snapshot();
        if is_eventual {
            // Nothing leaves a store before it is synced.
            let barrier = self.committer.commit(WriteBatch::new(), Durability::Synced);
            barrier.await.map_err(io::Error::other)?;
        }
        Ok(Snapshot {
            meta: SnapshotMeta {
                last_log_id: self.state.applied,
                last_membership: self.state.membership.clone(),
            },
            snapshot: SnapshotData::Frozen(FrozenSnapshot::new(id, view, ranges)),
        })
    }

    /// Why this replica may not go on from what it holds when a seal takes effect; `None`: it may, or the
    /// seal does not count.
    fn refused_by(&self, step: &SwitchStep) -> io::Result<Option<String>> {
        let Some(Step::Seal(seal)) = &step.step else {
            return Ok(None);
        };
        let namespace = NamespaceId(step.namespace_id);
        let Some(state) = self.state.namespaces.get(&namespace) else {
            return Ok(None);
        };
        if switching::take(&mut state.clone(), &self.state.members(), step).is_err() {
            return Ok(None);
        }
        let own = EventualState::load(self.state.id(), namespace, self.engine.as_ref())
            .map_err(io::Error::other)?;
        Ok(switching::may_go_on(state, self.me, seal, &own).err())
    }

    /// Takes the region as another replica has it, which has applied `index` at least. Ends when it is in
    /// place: until then this replica applies nothing.
    async fn take_fresh_copy(&mut self, why: &str, index: u64) -> io::Result<()> {
        let region = self.state.id();
        tracing::warn!(
            region = region.0,
            index,
            why,
            "this replica cannot go on with what it holds: it takes a fresh copy, and sets aside what nobody else has"
        );
        self.cell.needs_fresh_copy(why);
        let Some(source) = &self.source else {
            return Err(io::Error::other(format!(
                "region {region} needs a fresh copy, and there is no other replica: {why}"
            )));
        };
        let slot = self.installer.fetched_slot();
        let members = self.state.members();
        let meta = source.fetch(&members.all, index, slot).await?;
        self.install(&meta, slot).await?;
        tracing::info!(region = region.0, index, "the fresh copy is in place");
        Ok(())
    }

    /// Replaces the region by a finished snapshot.
    async fn install(&mut self, meta: &SnapshotMeta, slot: rdb_types::RegionId) -> io::Result<()> {
        let plan = match self.installer.plan(meta, slot).await {
            Ok(plan) => plan,
            Err(error) => {
                self.cell.begin_installing(BTreeSet::new());
                return Err(error);
            }
        };
        let replacing = plan.replacing();
        {
            let _owner = self.cell.own().await;
            self.cell.begin_installing(replacing.clone());
        }
        self.installer.fill(plan).await?;
        let mut state = RegionState::load(self.state.descriptor.clone(), self.engine.as_ref())
            .map_err(io::Error::other)?;
        state.membership = meta.last_membership.clone();
        self.state = state;
        self.break_history(&replacing).await?;
        self.cell.replace(&self.state);
        Ok(())
    }

    /// The rows were replaced, but for eventual namespaces that this replica goes on with in its own.
    async fn break_history(&self, replaced: &BTreeSet<NamespaceId>) -> io::Result<()> {
        // So that none of those is written between the reading of its row and the use of it.
        let _owner = self.cell.own().await;
        let states = self.state.namespaces.keys();
        let kept = states.filter(|namespace| !replaced.contains(namespace));
        let load =
            |namespace| EventualState::load(self.state.id(), namespace, self.engine.as_ref());
        let broken = self
            .cell
            .history()
            .replace(&self.state, &kept.copied().collect(), load);
        broken.map_err(io::Error::other)
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

impl Decoded {
    /// Whether it may take a namespace's data from the replica's own writer.
    fn changes_owner(&self) -> bool {
        let dropped = match self {
            Decoded::Command(command) => {
                matches!(command.kind, Some(command::Kind::DropNamespace(_)))
            }
            Decoded::Nothing => false,
        };
        dropped || self.switch_step().is_some()
    }

    fn switch_step(&self) -> Option<&SwitchStep> {
        match self {
            Decoded::Command(raft::Command {
                kind: Some(command::Kind::SwitchStep(step)),
            }) => Some(step),
            _ => None,
        }
    }
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
            let index = first.0.0.log_id.index;
            if self
                .state
                .applied
                .is_some_and(|applied| applied.index >= index)
            {
                // A fresh copy went beyond it. Whoever asked hears that its fate is not known.
                if let Some(responder) = first.0.1 {
                    responder.send(Outcome::default());
                }
                continue;
            }
            // A change of mode takes the namespace from one owner to the other.
            let cell = self.cell.clone();
            let mut owner = None;
            if first.1.changes_owner() {
                owner = Some(cell.own().await);
            }
            if let Some(step) = first.1.switch_step()
                && let Some(why) = self.refused_by(step)?
            {
                drop(owner);
                self.take_fresh_copy(&why, index).await?;
                held = Some(first);
                continue;
            }
            let mut answers = Vec::new();
            let (batch, touched, changes) = {
                let mut applier = Applier::new(self.me, &mut self.state, self.engine.as_ref());
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
                let changes = applier.take_changes();
                let (batch, touched) = applier.finish().map_err(io::Error::other)?;
                (batch, touched, changes)
            };
            self.committer
                .commit(batch, Durability::Written)
                .await
                .map_err(io::Error::other)?;
            self.cell.publish(&self.state, &touched, changes);
            drop(owner);
            for (responder, outcome) in answers {
                responder.send(outcome);
            }
        }
    }

    async fn get_snapshot_builder(&mut self) -> Freezer {
        Freezer(Some(self.freeze().await))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        let index = meta.last_log_id.map_or(0, |id| id.index);
        if self
            .state
            .applied
            .is_some_and(|applied| applied.index >= index)
        {
            // A fresh copy went beyond it meanwhile.
            return Ok(());
        }
        self.installer.keep(snapshot).await?;
        self.install(meta, self.state.id()).await?;
        tracing::info!(region = self.state.id().0, index, "installed a snapshot");
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        // The state machine is durable itself: its present state is always the newest snapshot.
        match self.state.applied {
            Some(_) => self.freeze().await.map(Some),
            None => Ok(None),
        }
    }
}

/// A snapshot that was taken already: freezing is instant, there is nothing left to build.
pub struct Freezer(Option<io::Result<Snapshot>>);

impl RaftSnapshotBuilder<TypeConfig> for Freezer {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        self.0
            .take()
            .ok_or_else(|| io::Error::other("a snapshot is built once"))?
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
