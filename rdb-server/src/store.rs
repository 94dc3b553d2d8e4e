//! A store without its ports: what it is whatever network, disk and clock it is given.
//!
//! Owns the wiring of a store's parts and its life: join the cluster ([`joining`]), compare clocks, look after
//! the room on its disk ([`room`]), open the regions, and keep the cluster's tables and regions in agreement ([`switches`], [`mismatches`]). Listening, dialling and the process around it are
//! [`crate::server`]'s; a simulator brings edges of its own and runs this very code.

pub(crate) mod clocks;
pub mod joining;
mod mismatches;
mod neighbours;
pub mod reload;
pub mod room;
mod starts;
mod switches;

use crate::clock::{PhysicalClock, StoreClock};
use crate::cluster::{Cluster, Kept, first_members};
use crate::config::{Config, LiveConfig};
use crate::contacts::{Contacts, Listening};
use crate::error::Error;
use crate::layout_store as layout;
use crate::metrics::Metrics;
use crate::namespace::Namespaces;
use crate::peer::PeerContext;
use crate::peer::eventual::PolicyBook;
use crate::peer::orders::OrderBook;
use crate::peer_manager::{PeerManager, StoreFacts};
use crate::raft::{RaftSettings, SnapshotSpool};
use crate::router::Router;
use crate::tasks::Tasks;
use crate::transport::SharedTransport;
use arc_swap::ArcSwap;
use joining::{same_members, stored_plan, stored_promise};
pub(crate) use mismatches::declared_mode;
use rdb_proto::raft::Member;
use rdb_storage::{Committer, DataDir, Engine, Family, Reserve, StorageError};
use rdb_types::{RegionId, StoreId};
use reload::Reloader;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// What to do about a port that cannot be bound.
fn remedy(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::AddrNotAvailable => {
            "no interface of this machine has that address: use one that it has"
        }
        std::io::ErrorKind::PermissionDenied => "ask for the permission that the port needs",
        _ => "stop what uses it",
    }
}

/// Why a store does not start, or may not go on. One line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port cannot be bound.
    #[error(
        "cannot listen on {addr} ({key}): {source}; {}, or choose another with --{flag}",
        remedy(.source)
    )]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The key of the configuration.
        key: &'static str,
        /// Its flag.
        flag: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The data directory is refused.
    #[error(transparent)]
    DataDir(#[from] rdb_storage::DataDirError),
    /// The database does not open.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Something in the directory cannot be used.
    #[error("{0}")]
    Disk(String),
}

/// The disk of a store.
pub struct Disk {
    /// What it holds.
    pub engine: Arc<dyn Engine>,
    /// Who writes it.
    pub committer: Committer,
    /// Where the pieces of a snapshot wait.
    pub spool: Arc<dyn SnapshotSpool>,
    /// Its identity: a disk that was wiped is another one.
    pub store_uuid: String,
    /// Its room, and what is kept of it for the time when it is full.
    pub reserve: Arc<dyn Reserve>,
    /// A random number, fresh with every start: a copy of the disk draws another one.
    pub incarnation: u64,
    /// Where all this lies; none for a disk in memory.
    pub data_dir: Option<DataDir>,
}

/// What a store is made of.
pub struct StoreSetup {
    /// Checked configuration.
    pub config: Config,
    /// Its disk.
    pub disk: Disk,
    /// Where physical time comes from.
    pub clock: Arc<dyn PhysicalClock>,
    /// Who runs its tasks, and where its chance comes from.
    pub tasks: Tasks,
    /// host:port where clients and other stores dial.
    pub address: String,
    /// host:port of probes and metrics.
    pub http_address: String,
}

/// A store's parts.
pub struct StoreCore {
    me: StoreId,
    config: LiveConfig,
    data_dir: Option<DataDir>,
    engine: Arc<dyn Engine>,
    committer: Committer,
    cluster: Arc<Cluster>,
    transport: SharedTransport,
    manager: Arc<PeerManager>,
    namespaces: Namespaces,
    metrics: Arc<Metrics>,
    policies: Arc<PolicyBook>,
    orders: Arc<OrderBook>,
    reloader: Arc<Reloader>,
    tasks: Tasks,
    failed: watch::Sender<Option<String>>,
}

/// The store id of a configuration.
///
/// # Errors
/// It is out of range.
pub fn store_id(config: &Config) -> Result<StoreId, StartError> {
    StoreId::new(u64::from(config.store.id)).ok_or_else(|| {
        StartError::Disk(format!(
            "{} is not a store id; ids are 1 to {}",
            config.store.id,
            StoreId::MAX
        ))
    })
}

impl StoreCore {
    /// Puts the parts together. `connect` brings the way to the other stores, given who they are. Nothing
    /// runs before [`StoreCore::live`].
    ///
    /// # Errors
    /// The disk cannot be used, or belongs to another cluster.
    pub fn open(
        setup: StoreSetup,
        connect: impl FnOnce(StoreId, &Arc<Cluster>) -> SharedTransport,
    ) -> Result<Arc<StoreCore>, StartError> {
        let StoreSetup {
            config,
            disk,
            clock,
            tasks,
            address,
            http_address,
        } = setup;
        let Disk {
            engine,
            committer,
            spool,
            store_uuid,
            reserve,
            incarnation,
            data_dir,
        } = disk;
        let me = store_id(&config)?;
        let clock = StoreClock::open(
            me,
            clock,
            engine.as_ref(),
            committer.clone(),
            config.consistency.max_clock_skew,
        )?;
        let plan = stored_plan(engine.as_ref())?;
        if let Some(found) = data_dir.as_ref().and_then(|dir| dir.identity().cluster_id)
            && plan.is_none()
        {
            return Err(StartError::Disk(format!(
                "the data directory belongs to cluster {found}, but its database does not know it: the database was replaced; bring back the one that was used last"
            )));
        }
        let member = Member {
            store_id: u32::from(me.get()),
            store_uuid,
            address,
        };
        let peers: BTreeMap<StoreId, String> = config
            .cluster
            .peers
            .iter()
            .filter_map(|(id, address)| Some((StoreId::new(u64::from(*id))?, address.clone())))
            .collect();
        let list = match &plan {
            Some(plan) => {
                same_members(plan, me, &peers)?;
                None
            }
            None => Some(first_members(me, &peers)),
        };
        let kept = Kept {
            promised: stored_promise(engine.as_ref(), &member, list.as_ref())?,
            plan,
            seen: starts::seen(engine.as_ref())?,
            starts: starts::count_start(engine.as_ref(), incarnation)?,
        };
        let note = starts::notes(committer.clone());
        let cluster = Cluster::new(member.clone(), &peers, kept, note)
            .ok_or_else(|| StartError::Disk("the store has no id".into()))?;
        let contacts = Arc::new(Contacts::new());
        let transport: SharedTransport = Listening::new(connect(me, &cluster), contacts.clone());
        let live: LiveConfig = Arc::new(ArcSwap::from_pointee(config.clone()));
        let reloader = Reloader::new(live.clone());
        let (failed, _) = watch::channel(None);
        let (policies, metrics) = (Arc::<PolicyBook>::default(), Metrics::new());
        let orders = Arc::<OrderBook>::default();
        let context = PeerContext {
            me,
            engine: engine.clone(),
            committer: committer.clone(),
            clock,
            transport: transport.clone(),
            contacts,
            rooms: Arc::default(),
            reserve,
            reserve_bytes: config.storage.reserve.as_bytes(),
            spool,
            raft: RaftSettings {
                heartbeat: config.raft.heartbeat,
                election_min: config.raft.election_min,
                election_max: config.raft.election_max,
                snapshot_after: config.raft.snapshot_after,
                // A quarter: who was away for a moment is served from the log, and the log stays small.
                keep_after_snapshot: config.raft.snapshot_after / 4,
                ..RaftSettings::default()
            },
            config: live.clone(),
            tasks: tasks.clone(),
            fatal: failed.clone(),
            max_batch: config.raft.max_batch as usize,
            max_inflight: config.limits.max_inflight as usize,
            request_id_retention: config.consistency.request_id_retention,
            policies: policies.clone(),
            orders: orders.clone(),
            counters: metrics.clone(),
        };
        let facts = StoreFacts {
            member,
            http_address,
        };
        let manager = PeerManager::new(context, cluster.clone(), facts);
        let namespaces = Namespaces::new(manager.clone());
        Ok(Arc::new(StoreCore {
            me,
            config: live,
            data_dir,
            engine,
            committer,
            cluster,
            transport,
            manager,
            namespaces,
            metrics,
            policies,
            orders,
            reloader,
            tasks,
            failed,
        }))
    }

    /// This store.
    pub fn me(&self) -> StoreId {
        self.me
    }

    /// The configuration in force.
    pub fn config(&self) -> &LiveConfig {
        &self.config
    }

    /// Takes up new configurations.
    pub fn reloader(&self) -> &Arc<Reloader> {
        &self.reloader
    }

    /// Who writes the disk.
    pub fn committer(&self) -> &Committer {
        &self.committer
    }

    /// Who belongs to the cluster.
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// The way to other stores.
    pub fn transport(&self) -> &SharedTransport {
        &self.transport
    }

    /// The regions of this store, which take the requests of other stores.
    pub fn manager(&self) -> &Arc<PeerManager> {
        &self.manager
    }

    /// The namespaces that requests name.
    pub fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// Its numbers.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// What it runs.
    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Takes requests to regions. One for a store: it bounds the scans.
    pub fn router(&self) -> Router {
        Router::new(self.me, self.manager.clone(), self.namespaces.clone())
    }

    /// One line that says why the store may not go on, once it is so.
    pub fn failure(&self) -> watch::Receiver<Option<String>> {
        self.failed.subscribe()
    }

    /// Joins, opens the regions and takes part, until the store may not go on or its tasks are aborted.
    pub fn start(self: &Arc<Self>) -> JoinHandle<()> {
        self.watch_room();
        let core = self.clone();
        self.tasks.spawn(async move {
            let lived = tokio::select! {
                biased;
                outdated = core.cluster.ended() => Err(outdated),
                lived = core.live() => lived,
            };
            if let Some(outdated) = core.cluster.outdated() {
                let (engine, why) = (core.engine.as_ref(), &outdated.message);
                // Where this fails, the next start is refused by the other stores again.
                if let Err(error) = starts::refuse(engine, &core.committer, why).await {
                    tracing::warn!(%error, "that this directory is not to be used is not kept in it");
                }
            }
            if let Err(error) = lived {
                tracing::error!(%error, "this store cannot go on");
                core.failed.send_replace(Some(error.message));
            }
        })
    }

    /// Everything that a store does by itself.
    async fn live(&self) -> Result<(), Error> {
        let plan = self.join().await?;
        tracing::info!(cluster = %plan.cluster_id, members = plan.members.len(), regions = plan.regions.len(), "member of the cluster");
        // Before the regions: nothing is stamped until the clock knows that it is one of several.
        self.compare_clocks();
        let bootstraps = self
            .engine
            .get(Family::Region, &layout::row("bootstraps"))?
            .is_some();
        for descriptor in &plan.regions {
            let peer = self.manager.open(descriptor.clone()).await?;
            if bootstraps {
                peer.initialize(Cluster::nodes(&plan)).await?;
            }
        }
        self.follow_meta();
        let registered = async {
            self.register(&plan).await?;
            // None of these ends.
            futures::join!(
                self.declare_changes(),
                self.install_namespaces(),
                self.drive_switches(),
                self.look_for_mismatches(),
            );
            Ok(())
        };
        tokio::select! {
            biased;
            registered = registered => registered,
            () = self.keep_books() => Ok(()),
        }
    }

    /// Whether this store leads the meta region, as far as it knows.
    fn leads_meta(&self) -> bool {
        let peer = self.manager.peer(RegionId::META);
        peer.is_some_and(|peer| peer.quorum().is_leader())
    }

    /// Keeps regions and cluster in agreement about which namespaces there are.
    async fn install_namespaces(&self) {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            // What does not work now is tried again in a second.
            if self.leads_meta()
                && let Err(error) = self
                    .namespaces
                    .reconcile(Instant::now() + Duration::from_secs(5))
                    .await
            {
                tracing::debug!(%error, "regions do not know all namespaces yet");
            }
        }
    }
}
