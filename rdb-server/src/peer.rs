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
mod records;
mod report;
mod room;
pub mod strong;
pub mod switch;
mod telling;
mod watching;

use crate::clock::StoreClock;
use crate::config::LiveConfig;
use crate::contacts::Contacts;
use crate::error::Error;
use crate::raft::{
    Inbound, NetworkSettings, QuorumView, RaftLogStore, RaftOf, RaftSettings, RegionNetwork,
    SnapshotSpool, StoreNode, raft_config,
};
use crate::region::RegionMachine;
use crate::region::fresh_copy::CopySource;
use crate::region::layout;
use crate::region::machine::SummaryCell;
use crate::room::Rooms;
use crate::tasks::{self, Tasks};
use crate::transport::SharedTransport;
use damage::Damage;
use donation::Donation;
use eventual::{Counters, Eventual, EventualCore, PolicyBook};
use futures::future::BoxFuture;
use openraft::async_runtime::WatchReceiver;
use orders::OrderBook;
use prost::Message;
use quorum::QuorumWatch;
use rdb_proto::raft::{self, WriteOp, WriteResult, command_outcome, peer_request, peer_response};
use rdb_storage::{Committer, Engine, Reserve, View};
use rdb_types::{Mode, NamespaceId, Reason, RegionId, StoreId};
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
use watching::{keep_time, watch_over};

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
                // The process ends; see [`watching`].
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
}
