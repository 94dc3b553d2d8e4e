//! One region's replica on this store.
//!
//! Owns the region's consensus, its queue of writes ([`strong`]), its read rounds ([`reads`]) and its
//! knowledge of the quorum ([`quorum`]) and of damage to its data ([`damage`]). Knows regions, keys and namespace ids, never a namespace's
//! name, and nothing of gRPC.
//!
//! Invariant: the region's data has one writer, the state machine; everything here only asks it.

pub mod damage;
mod donation;
pub mod eventual;
pub mod load;
pub mod orders;
pub mod quorum;
pub mod reads;
mod room;
pub mod strong;
pub mod switch;
mod telling;

use crate::clock::{Standing, StoreClock};
use crate::config::LiveConfig;
use crate::contacts::Contacts;
use crate::error::Error;
use crate::eventual::{layout as eventual_layout, state::load_ids};
use crate::raft::{
    Inbound, NetworkSettings, QuorumView, RaftLogStore, RaftOf, RaftSettings, RegionNetwork,
    SnapshotSpool, StoreNode, raft_config,
};
use crate::region::fresh_copy::CopySource;
use crate::region::layout;
use crate::region::machine::SummaryCell;
use crate::region::{RegionMachine, expiring};
use crate::room::Rooms;
use crate::tasks::{self, Tasks};
use crate::transport::SharedTransport;
use damage::{Damage, ReadOf};
use donation::Donation;
use eventual::{Counters, Eventual, EventualCore, PolicyBook};
use futures::future::BoxFuture;
use openraft::async_runtime::WatchReceiver;
use orders::OrderBook;
use prost::Message;
use quorum::QuorumWatch;
use rdb_proto::convert;
use rdb_proto::raft::{self, WriteOp, WriteResult, command_outcome, peer_request, peer_response};
use rdb_storage::{Committer, Engine, Family, Reserve, View};
use rdb_types::{Mode, NamespaceId, Reason, Record, RegionId, Stamp, StoreId};
use reads::{ReadCore, Reads};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use strong::{StrongCore, StrongQueue, StrongSettings};
use switch::driver::{self, DriverCore, Progress};
use telling::Telling;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What all peers of a store share.
pub struct PeerContext {
    /// This store.
    pub me: StoreId,
    /// Its disk.
    pub engine: Arc<dyn Engine>,
    /// The thread that makes batches durable.
    pub committer: Committer,
    /// Its clock.
    pub clock: Arc<StoreClock>,
    /// The way to other stores.
    pub transport: SharedTransport,
    /// When each other store was heard of.
    pub contacts: Arc<Contacts>,
    /// How this store and the others are off for room.
    pub rooms: Arc<Rooms>,
    /// The room of its disk, and what is kept of it.
    pub reserve: Arc<dyn Reserve>,
    /// How much is to be kept.
    pub reserve_bytes: u64,
    /// Where the pieces of a snapshot wait until all are there.
    pub spool: Arc<dyn SnapshotSpool>,
    /// Raft's times and sizes.
    pub raft: RaftSettings,
    /// The configuration in force.
    pub config: LiveConfig,
    /// What the store runs.
    pub tasks: Tasks,
    /// Told when a region can no longer take part: this process has to start again.
    pub fatal: watch::Sender<Option<String>>,
    /// Writes in one log entry at most.
    pub max_batch: usize,
    /// Operations that may wait in one region.
    pub max_inflight: usize,
    /// How long request ids are remembered.
    pub request_id_retention: Duration,
    /// Policies of namespaces.
    pub policies: Arc<PolicyBook>,
    /// What the cluster's tables want of namespaces.
    pub orders: Arc<OrderBook>,
    /// Who counts what happens to eventual writes.
    pub counters: Arc<dyn Counters>,
}

/// One region's replica.
pub struct Peer {
    me: StoreId,
    descriptor: raft::RegionDescriptor,
    raft: RaftOf<RegionMachine>,
    cell: Arc<SummaryCell>,
    engine: Arc<dyn Engine>,
    log: RaftLogStore,
    inbound: Inbound<RegionMachine>,
    queue: StrongQueue,
    reads: Reads,
    eventual: Eventual,
    quorum: Arc<QuorumWatch>,
    rooms: Arc<Rooms>,
    /// What followers are told of this replica when it leads.
    view: Arc<QuorumView>,
    contacts: Arc<Contacts>,
    damage: Damage,
    progress: Progress,
    donation: tokio::sync::Mutex<Option<Donation>>,
    stop: CancellationToken,
}

impl Peer {
    /// Opens the region from disk and takes part in it. `founders`: its first voters.
    pub async fn start(
        context: &PeerContext,
        descriptor: raft::RegionDescriptor,
        founders: Vec<StoreId>,
    ) -> Result<Arc<Peer>, Error> {
        let region = RegionId(descriptor.id);
        let stop = CancellationToken::new();
        let machine = RegionMachine::open(
            context.me,
            descriptor.clone(),
            context.engine.clone(),
            context.committer.clone(),
            context.spool.clone(),
            Some(CopySource {
                me: context.me,
                region,
                transport: context.transport.clone(),
                spool: context.spool.clone(),
                stop: stop.clone(),
            }),
        )
        .await
        .map_err(|error| {
            Error::new(
                Reason::NotReady,
                format!("region {region} does not open: {error}"),
            )
        })?;
        let cell = machine.cell();
        cell.history()
            .bound(context.config.load().limits.watch_history);
        let log = RaftLogStore::open(context.engine.clone(), context.committer.clone(), region)?;
        let view = Arc::new(QuorumView::new());
        let network = RegionNetwork::new(
            region,
            context.transport.clone(),
            view.clone(),
            NetworkSettings::default(),
        );
        let config = raft_config(&format!("region {region}"), &context.raft)
            .map_err(|error| Error::new(Reason::InvalidArgument, error.to_string()))?;
        let raft = openraft::Raft::new(
            u64::from(context.me.get()),
            config,
            network,
            log.clone(),
            machine,
        )
        .await
        .map_err(|error| {
            Error::new(
                Reason::NotReady,
                format!("region {region} does not start: {error}"),
            )
        })?;
        let quorum = Arc::new(QuorumWatch::new(
            context.me,
            region,
            context.config.clone(),
            raft.metrics(),
            context.contacts.clone(),
            view.clone(),
            founders,
        ));
        let queue = StrongQueue::start(StrongCore {
            region,
            raft: raft.clone(),
            quorum: quorum.clone(),
            cell: cell.clone(),
            clock: context.clock.clone(),
            transport: context.transport.clone(),
            settings: StrongSettings {
                max_batch: context.max_batch,
                max_inflight: context.max_inflight,
                request_id_retention: context.request_id_retention,
            },
        });
        let reads = Reads::start(ReadCore {
            me: context.me,
            region,
            raft: raft.clone(),
            quorum: quorum.clone(),
            cell: cell.clone(),
            transport: context.transport.clone(),
        });
        let eventual = Eventual::start(
            EventualCore {
                me: context.me,
                descriptor: descriptor.clone(),
                engine: context.engine.clone(),
                committer: context.committer.clone(),
                clock: context.clock.clone(),
                cell: cell.clone(),
                quorum: quorum.clone(),
                rooms: context.rooms.clone(),
                transport: context.transport.clone(),
                config: context.config.clone(),
                policies: context.policies.clone(),
                counters: context.counters.clone(),
                fatal: context.fatal.clone(),
                max_inflight: context.max_inflight,
                request_id_retention: context.request_id_retention,
            },
            stop.clone(),
        )?;
        let peer = Arc::new(Peer {
            me: context.me,
            descriptor,
            inbound: Inbound::new(raft.clone(), region, context.spool.clone()),
            log,
            raft,
            cell,
            engine: context.engine.clone(),
            queue,
            reads,
            eventual,
            quorum,
            rooms: context.rooms.clone(),
            view,
            contacts: context.contacts.clone(),
            damage: Damage::none(region),
            progress: Progress::default(),
            donation: tokio::sync::Mutex::default(),
            stop: stop.clone(),
        });
        if region != RegionId::META {
            tasks::spawn(driver::run(DriverCore {
                me: context.me,
                peer: Arc::downgrade(&peer),
                transport: context.transport.clone(),
                orders: context.orders.clone(),
                config: context.config.clone(),
                progress: peer.progress.clone(),
                stop: stop.clone(),
            }));
            let telling = Telling {
                peer: Arc::downgrade(&peer),
                engine: context.engine.clone(),
                committer: context.committer.clone(),
                policies: context.policies.clone(),
                stop: stop.clone(),
            };
            tasks::spawn(telling.run());
        }
        tasks::spawn(watch_over(
            Arc::downgrade(&peer),
            context.clock.clone(),
            context.fatal.clone(),
            stop.clone(),
        ));
        tasks::spawn(keep_time(
            Arc::downgrade(&peer),
            context.clock.clone(),
            stop,
        ));
        Ok(peer)
    }

    /// Forms the group, on the store that bootstraps. Does nothing when that was done before.
    pub async fn initialize(&self, members: BTreeMap<u64, StoreNode>) -> Result<(), Error> {
        let failed = |error: String| {
            Error::new(
                Reason::NotReady,
                format!("region {} cannot be initialised: {error}", self.id()),
            )
        };
        if self
            .raft
            .is_initialized()
            .await
            .map_err(|error| failed(error.to_string()))?
        {
            return Ok(());
        }
        self.raft
            .initialize(members)
            .await
            .map_err(|error| failed(error.to_string()))
    }

    /// The region's id.
    pub fn id(&self) -> RegionId {
        RegionId(self.descriptor.id)
    }

    /// Id and range.
    pub fn descriptor(&self) -> &raft::RegionDescriptor {
        &self.descriptor
    }

    /// Whether the region holds a global key.
    pub fn covers(&self, global: &[u8]) -> bool {
        layout::covers(&self.descriptor, global)
    }

    /// What was applied.
    pub fn cell(&self) -> &SummaryCell {
        &self.cell
    }

    /// Who leads, and whether it can.
    pub fn quorum(&self) -> &QuorumWatch {
        &self.quorum
    }

    /// What this store holds under a global key of an eventual namespace, which it goes on with while a
    /// snapshot replaces the rest of the region.
    ///
    /// # Errors
    /// A snapshot replaces this, too; the disk does not give the record, or not what was written.
    pub fn own(&self, namespace: NamespaceId, global: &[u8]) -> Result<Option<Record>, Error> {
        let before = self.own_settled(namespace)?;
        let stored = self.read(global)?;
        self.still(before)?;
        Ok(stored)
    }

    /// As [`Peer::settled`], for a namespace that is eventual.
    ///
    /// # Errors
    /// A snapshot replaces its rows right now.
    pub fn own_settled(&self, namespace: NamespaceId) -> Result<u64, Error> {
        let (installs, replaced) = self
            .cell
            .with(|summary| (summary.installs, summary.replacing.contains(&namespace)));
        if replaced {
            return Err(self.being_replaced());
        }
        Ok(installs)
    }

    /// What stands under a key of a namespace here, as its list of lost writes counts.
    ///
    /// # Errors
    /// As [`Peer::own`].
    pub fn standing(&self, namespace: NamespaceId, global: &[u8]) -> Result<Option<Record>, Error> {
        let strong = self.cell.with(|summary| {
            let state = summary.namespaces.get(&namespace);
            state.filter(|state| state.mode == Mode::Strong).cloned()
        });
        match strong {
            None => self.own(namespace, global),
            Some(state) => {
                let stored = self.stored(global)?;
                Ok(stored.filter(|record| state.counts(record)))
            }
        }
    }

    /// The stamp under which a write with this request id was applied here, in the log or beside it; `None`:
    /// none was that is still remembered.
    ///
    /// # Errors
    /// The disk does not give the row, or not what was written.
    pub fn applied_at(&self, namespace: NamespaceId, id: &[u8]) -> Result<Option<Stamp>, Error> {
        let (view, region) = (self.engine.as_ref(), self.id());
        let in_log = self.cell.with(|summary| summary.ids);
        if let Some(stamp) = in_log.applied_at(view, region, namespace, id)? {
            return Ok(Some(stamp));
        }
        let own = load_ids(region, view)?;
        Ok(own.applied_at(view, eventual_layout::beside(region), namespace, id)?)
    }

    fn read(&self, global: &[u8]) -> Result<Option<Record>, Error> {
        let stored = self.engine.get(Family::Data, global);
        let stored = self.damage.check(ReadOf::Record, stored)?;
        stored
            .map(Record::decode)
            .transpose()
            .map_err(|error| self.damage.record(ReadOf::Record, &error))
    }

    /// What this store holds under a global key of a strong namespace of this region.
    ///
    /// # Errors
    /// A snapshot replaces the region; the disk does not give the record, or not what was written.
    pub fn stored(&self, global: &[u8]) -> Result<Option<Record>, Error> {
        let installs = self.settled()?;
        let stored = self.read(global)?;
        self.still(installs)?;
        Ok(stored)
    }

    /// Begins a look at the region's rows: what [`Peer::still`] wants to know after it.
    ///
    /// # Errors
    /// A snapshot replaces them right now.
    pub fn settled(&self) -> Result<u64, Error> {
        let installs = self.cell.with(|summary| summary.installs);
        if installs.is_multiple_of(2) {
            Ok(installs)
        } else {
            Err(self.being_replaced())
        }
    }

    /// Ends a look at the region's rows.
    ///
    /// # Errors
    /// They were being replaced meanwhile: what was seen may be half of each.
    pub fn still(&self, installs: u64) -> Result<(), Error> {
        if self.cell.with(|summary| summary.installs) == installs {
            Ok(())
        } else {
            Err(self.being_replaced())
        }
    }

    fn being_replaced(&self) -> Error {
        Error::new(
            Reason::NotReady,
            format!(
                "region {} is being replaced by a snapshot here; ask another store or try again",
                self.id()
            ),
        )
        .with("region", self.id())
    }

    /// What is known to be damaged here.
    pub fn damage(&self) -> &Damage {
        &self.damage
    }

    /// A frozen moment of the store's data.
    pub fn snapshot(&self) -> Arc<dyn View> {
        self.engine.snapshot()
    }

    /// Operations that wait here now.
    pub fn waiting(&self) -> usize {
        self.queue.waiting() + self.eventual.waiting()
    }

    /// The eventual namespaces of the region.
    pub fn eventual(&self) -> &Eventual {
        &self.eventual
    }

    /// Strong writes; see [`StrongQueue::write`].
    pub async fn write(
        &self,
        ops: Vec<WriteOp>,
        deadline: Instant,
    ) -> Result<Vec<WriteResult>, Error> {
        self.write_new(ops, false, deadline).await
    }

    /// Writes what was not answered before, in an eventual time of its namespace.
    async fn write_unanswered(
        &self,
        ops: Vec<WriteOp>,
        forwarded: bool,
        deadline: Instant,
    ) -> Result<Vec<WriteResult>, Error> {
        let namespaces: BTreeSet<NamespaceId> =
            ops.iter().map(|op| NamespaceId(op.namespace_id)).collect();
        if !namespaces
            .into_iter()
            .any(|namespace| self.eventual.was_eventual(namespace))
        {
            return self.queue.write(ops, forwarded, deadline).await;
        }
        let mut results = Vec::with_capacity(ops.len());
        let mut new = Vec::with_capacity(ops.len());
        for op in ops {
            let known = self.eventual.answered_before(&op)?;
            if known.is_none() {
                new.push(op);
            }
            results.push(known);
        }
        let mut written = if new.is_empty() {
            Vec::new()
        } else {
            self.queue.write(new, forwarded, deadline).await?
        }
        .into_iter();
        let results = results.into_iter();
        Ok(results
            .map(|known| known.or_else(|| written.next()).unwrap_or_default())
            .collect())
    }

    /// Gets a command into the region's log and brings back what apply answered.
    pub async fn command(
        &self,
        command: raft::Command,
        deadline: Instant,
    ) -> Result<command_outcome::Outcome, Error> {
        self.queue
            .command(command.encode_to_vec().into(), false, deadline)
            .await
    }

    /// Resolves when a read here is linearizable.
    pub async fn barrier(&self, deadline: Instant) -> Result<u64, Error> {
        self.reads.barrier(false, deadline).await
    }

    /// Why this replica is not fit for linearizable reads now although it hears its leader: it is being
    /// filled by a snapshot, or has not applied what was committed a while ago. `None`: it keeps up.
    pub fn behind(&self) -> Option<String> {
        if self.settled().is_err() {
            return Some("a snapshot is being installed here".to_owned());
        }
        self.reads.behind()
    }

    /// How old the data here may be at most; `None`: not known.
    pub fn staleness(&self) -> Option<Duration> {
        self.reads.staleness()
    }

    /// A request of another store. Queued when this returns.
    pub fn handle(
        self: &Arc<Self>,
        from: StoreId,
        request: peer_request::Body,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<peer_response::Body, Error>> {
        if let peer_request::Body::Append(append) = &request {
            self.quorum
                .heard_leader(Duration::from_millis(append.quorum_age_ms));
            if !self.log.agrees(append) {
                // The process ends; see `watch_over`.
                let message = format!(
                    "region {} has another history on this store, which stops",
                    self.id()
                );
                let refused = Error::new(Reason::Refused, message).with("region", self.id());
                return Box::pin(std::future::ready(Err(refused)));
            }
        }
        if let Some(refused) = self.held_back(&request) {
            return Box::pin(std::future::ready(Err(refused)));
        }
        let request = match self.inbound.handle(from, request) {
            Ok(answer) => return answer,
            Err(request) => request,
        };
        let deadline = Instant::now() + timeout;
        let peer = Arc::clone(self);
        let request = match request {
            // The list of a strong namespace is the log's.
            peer_request::Body::RemoveConflicts(remove)
                if self.is_strong(NamespaceId(remove.namespace_id)) =>
            {
                return Box::pin(async move {
                    peer.remove_set_aside(remove, deadline).await?;
                    let reply = raft::RemoveConflictsReply {};
                    Ok(peer_response::Body::RemoveConflicts(reply))
                });
            }
            other => match self.eventual.handle(from, other) {
                Ok(answer) => return answer,
                Err(request) => request,
            },
        };
        Box::pin(async move {
            match request {
                peer_request::Body::ReadRegion(read) => {
                    let piece = peer.donate(read).await?;
                    Ok(peer_response::Body::RegionPiece(piece))
                }
                peer_request::Body::ReadIndex(_) => {
                    let index = peer.reads.barrier(true, deadline).await?;
                    Ok(peer_response::Body::ReadIndex(raft::ReadIndexReply {
                        index,
                    }))
                }
                peer_request::Body::Write(write) => {
                    let results = peer.write_new(write.ops, true, deadline).await?;
                    Ok(peer_response::Body::Write(raft::WriteForwardReply {
                        results,
                    }))
                }
                peer_request::Body::Propose(propose) => {
                    let outcome = peer.queue.command(propose.command, true, deadline).await?;
                    let outcome = raft::CommandOutcome {
                        outcome: Some(outcome),
                    };
                    Ok(peer_response::Body::Propose(raft::ProposeReply {
                        outcome: outcome.encode_to_vec().into(),
                    }))
                }
                _ => Err(Error::new(
                    Reason::Unimplemented,
                    "this store does not know that request; upgrade it",
                )),
            }
        })
    }

    fn is_strong(&self, namespace: NamespaceId) -> bool {
        self.namespace(namespace)
            .is_some_and(|(mode, _)| mode == Mode::Strong)
    }

    /// Takes writes out of the list of those that were set aside, on all replicas.
    async fn remove_set_aside(
        &self,
        remove: raft::RemoveConflicts,
        deadline: Instant,
    ) -> Result<(), Error> {
        let remove = raft::RemoveSetAside {
            namespace_id: remove.namespace_id,
            rows: remove.rows,
        };
        let command = raft::Command {
            kind: Some(raft::command::Kind::RemoveSetAside(remove)),
        };
        match self.command(command, deadline).await? {
            command_outcome::Outcome::Error(error) => Err(Error::from_wire(error)),
            _ => Ok(()),
        }
    }

    /// What this replica knows of itself.
    pub fn report(&self) -> raft::RegionReport {
        // Copied out before anything else looks at the same watch: a second look while a writer waits
        // for the first to end would wait for ever.
        let (leader, term, commit_index, last_index) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            let commit_index = metrics.local_committed.map_or(0, |id| id.index);
            (
                metrics.current_leader.unwrap_or(0),
                metrics.current_term,
                commit_index,
                metrics.last_log_index.unwrap_or(0),
            )
        };
        let strong = convert::mode_to_wire(Mode::Strong);
        let mut namespaces: Vec<raft::NamespaceReport> = self.cell.with(|summary| {
            summary
                .namespaces
                .iter()
                .filter(|(_, state)| state.mode == Mode::Strong)
                .map(|(id, state)| raft::NamespaceReport {
                    namespace_id: id.0,
                    mode: convert::mode_to_wire(state.mode),
                    epoch: state.epoch.0,
                    digest: state.digest.to_bytes().to_vec().into(),
                    keys: state.keys,
                    bytes: state.bytes,
                    ..Default::default()
                })
                .collect()
        });
        namespaces.extend(self.eventual.reports());
        self.cell.with(|summary| {
            for report in &mut namespaces {
                let id = NamespaceId(report.namespace_id);
                if let Some(state) = summary.namespaces.get(&id) {
                    report.attempt = state.attempt;
                }
                let pause = summary.pauses.get(&id).copied().unwrap_or_default();
                report.write_pause_us = pause.last.as_micros() as u64;
                report.progress = self.progress.of(id);
                report.fresh_copy_needed = summary.fresh_copy.is_some();
            }
        });
        for report in namespaces.iter_mut().filter(|report| report.mode == strong) {
            let id = NamespaceId(report.namespace_id);
            if self.cell.with(|summary| {
                summary
                    .namespaces
                    .get(&id)
                    .is_some_and(|state| !state.fences.is_empty())
            }) {
                let own = self.eventual.state(id);
                report.conflicts = own.conflicts;
                report.conflicts_dropped = own.conflicts_dropped;
            }
        }
        raft::RegionReport {
            region_id: self.descriptor.id,
            leader: leader as u32,
            term,
            applied_index: self.cell.applied_index(),
            commit_index,
            last_index,
            quorum: self.quorum.available(),
            quorum_age_ms: self.quorum.age().as_millis() as u64,
            behind: match self.quorum.confirmed() {
                true => self.behind().unwrap_or_default(),
                // Nobody to be behind.
                false => String::new(),
            },
            namespaces,
            damage: self.damage.first().unwrap_or_default().to_owned(),
            waiting_writes: self.waiting() as u64,
        }
    }

    /// The term that this replica is in.
    pub fn term(&self) -> u64 {
        self.raft.metrics().borrow_watched().current_term
    }

    /// The last entry of this replica's log.
    pub fn last_index(&self) -> u64 {
        let metrics = self.raft.metrics();
        let last = metrics.borrow_watched().last_log_index;
        last.unwrap_or(0)
    }

    /// While this replica leads: up to which index of the log each other one has said to be.
    pub fn followers(&self) -> Vec<(StoreId, u64)> {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let replication = metrics.replication.iter().flatten();
        replication
            .filter(|(store, _)| **store != metrics.id)
            .filter_map(|(store, matching)| {
                let index = matching.as_ref().map_or(0, |id| id.index);
                Some((StoreId::new(*store)?, index))
            })
            .collect()
    }

    /// What this replica knows of a namespace: mode and epoch.
    pub fn namespace(&self, namespace: NamespaceId) -> Option<(rdb_types::Mode, rdb_types::Epoch)> {
        self.cell.with(|summary| {
            summary
                .namespaces
                .get(&namespace)
                .map(|state| (state.mode, state.epoch))
        })
    }

    /// Hands the lead over, if this replica has it: to the given store, or to any other voter.
    pub async fn transfer_leader(&self, to: Option<StoreId>) -> Result<bool, Error> {
        if !self.quorum.is_leader() {
            return Ok(false);
        }
        let metrics = self.raft.metrics();
        let best = {
            let metrics = metrics.borrow_watched();
            let caught_up = metrics
                .replication
                .iter()
                .flatten()
                .filter(|(id, _)| **id != metrics.id)
                .max_by_key(|(_, at)| at.map(|at| at.index));
            to.map(|to| u64::from(to.get()))
                .or(caught_up.map(|(id, _)| *id))
        };
        let Some(best) = best else { return Ok(false) };
        let failed = |error: String| {
            Error::new(
                Reason::NotReady,
                format!("region {} keeps its leader: {error}", self.id()),
            )
        };
        self.raft
            .trigger()
            .transfer_leader(best)
            .await
            .map_err(|error| failed(error.to_string()))?;
        Ok(true)
    }

    /// Stops taking part.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        // An error means that the task ended by itself before.
        let _ = self.raft.shutdown().await;
    }

    fn expiry_due(&self, now_ms: u64) -> bool {
        // What is left of an eventual time is swept with the ticks, too.
        if self.cell.with(|summary| summary.unswept) {
            return true;
        }
        for first in expiring::firsts(self.engine.as_ref(), self.id()) {
            match self.damage.check(ReadOf::Expiry, first) {
                Ok((namespace, at_ms)) if at_ms <= now_ms && self.is_strong(namespace) => {
                    return true;
                }
                Ok(_) => {}
                Err(_) => return false,
            }
        }
        false
    }

    /// A replica that waits for a fresh copy neither stands for election nor leads: whoever leads answers
    /// for everybody.
    async fn stand_back(&self, standing_back: &mut bool) {
        let waits = self.cell.with(|summary| summary.fresh_copy.is_some());
        if waits != *standing_back {
            self.raft.runtime_config().elect(!waits);
            *standing_back = waits;
        }
        if waits {
            // Tried again at the next turn.
            let _ = self.transfer_leader(None).await;
        }
    }

    /// A leader whose own time must not get into stamps leaves its regions' time standing still: it offers
    /// the lead to another store, as long as it has it, but does not do so again when it gets it back (the
    /// others may be no better, or gone). `done`: it has led no more since its clock was found wrong.
    async fn give_up_timing(&self, standing: Standing, told: &mut bool, done: &mut bool) {
        let wrong = match standing {
            Standing::Fine => None,
            Standing::Unconfirmed(until) if Instant::now() < until => None,
            Standing::Unconfirmed(_) => Some("not confirmed by a majority".to_owned()),
            Standing::Off(skew) => Some(skew.to_string()),
        };
        let Some(wrong) = wrong else {
            (*told, *done) = (false, false);
            return;
        };
        *done |= *told && !self.quorum.is_leader();
        if *done || self.quorum.voters().len() < 2 {
            return;
        }
        match self.transfer_leader(None).await {
            Ok(true) if !std::mem::replace(told, true) => tracing::warn!(
                region = self.id().0,
                "the lead is offered to another store, because the clock here is {wrong}"
            ),
            Ok(_) => {}
            Err(error) => tracing::debug!(region = self.id().0, %error, "the lead is kept for now"),
        }
    }

    /// A replica whose data is damaged does not lead while another one can: a leader answers reads for
    /// everybody and is where snapshots come from. It goes on to vote, to keep the log, and to stand for
    /// election: it may be the only one left that holds all acknowledged writes, and then it leads until
    /// another one has them.
    async fn give_up_leading(&self) {
        if self.damage.first().is_none() || self.quorum.voters().len() < 2 {
            return;
        }
        match self.transfer_leader(None).await {
            Ok(true) => tracing::warn!(
                region = self.id().0,
                "the lead is offered to another store, because the data here is damaged"
            ),
            Ok(false) => {}
            Err(error) => tracing::debug!(region = self.id().0, %error, "the lead is kept for now"),
        }
    }
}

/// Keeps what followers are told about the quorum fresh, and says in the log who leads, when the quorum
/// is lost and when it is back, and when the region's consensus has ended.
async fn watch_over(
    peer: std::sync::Weak<Peer>,
    clock: Arc<StoreClock>,
    fatal: watch::Sender<Option<String>>,
    stop: CancellationToken,
) {
    let (mut leader, mut available) = (None, true);
    let (mut told, mut done, mut standing_back) = (false, false, false);
    let (mut turn, mut told_of_room) = (0u32, false);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
        let Some(peer) = peer.upgrade() else { return };
        let region = peer.id().0;
        peer.quorum.refresh_view();
        turn = turn.wrapping_add(1);
        if turn.is_multiple_of(5) {
            peer.judge_room();
            // A store that has just started is not ready before it has caught up.
            peer.reads.catch_up();
        }
        if turn.is_multiple_of(50) {
            // Once a second the data here is made sure of, so that a stale read after a cut can say how
            // stale it is.
            peer.reads.staleness();
            peer.stand_back(&mut standing_back).await;
            peer.give_up_leading().await;
            peer.lead_with_room(&mut told_of_room).await;
            peer.give_up_timing(clock.standing(), &mut told, &mut done)
                .await;
        }
        let now = peer.quorum.leader();
        let term = peer.term();
        if now != leader {
            match now {
                Some(elected) => tracing::info!(
                    region,
                    term,
                    leader = elected.get(),
                    here = peer.quorum.is_leader(),
                    "a leader is elected"
                ),
                None => tracing::info!(
                    region,
                    term,
                    lost = leader.map(StoreId::get),
                    "the leader is lost"
                ),
            }
            leader = now;
        }
        let has_quorum = peer.quorum.available();
        if has_quorum != available {
            let (reached, needed) = peer.quorum.reached_and_needed();
            if has_quorum {
                tracing::info!(region, term, reached, needed, "the quorum is back");
            } else {
                tracing::warn!(
                    region,
                    term,
                    reached,
                    needed,
                    "no leader with a quorum: writes and linearizable reads are refused"
                );
            }
            available = has_quorum;
        }
        if let Some(why) = peer.log.contradicted() {
            tracing::error!(region, "{why}");
            let _ = fatal.send(Some(why));
            return;
        }
        let ended = peer.raft.metrics().borrow_watched().running_state.clone();
        if let Err(error) = ended
            && !stop.is_cancelled()
        {
            let why = format!(
                "region {region} has stopped: {error}. Free disk space or mend the disk if that is the cause, and start the store again"
            );
            tracing::error!(region, %error, "the region has stopped");
            let _ = fatal.send(Some(why));
            return;
        }
    }
}

/// On the leader, moves the region's time on when a record is due to expire and nobody writes.
async fn keep_time(peer: std::sync::Weak<Peer>, clock: Arc<StoreClock>, stop: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
        let Some(peer) = peer.upgrade() else { return };
        // By the time that a stamp would bear: a tick with an older one would remove nothing.
        if peer.quorum.is_leader() && peer.expiry_due(clock.stamping_ms()) {
            // What fails here is tried again at the next turn.
            let Ok(stamp) = clock.reserve(1).await else {
                continue;
            };
            let tick = raft::Command {
                kind: Some(raft::command::Kind::Tick(raft::Tick { stamp: stamp.0 })),
            };
            let _ = peer
                .command(tick, Instant::now() + Duration::from_secs(1))
                .await;
        }
    }
}
