//! What a store is made of, and the order in which it starts and stops.
//!
//! Owns the wiring; [`disk`] opens what is stored, [`membership`] is what a store does by itself. Start:
//! bind the ports (nothing is touched when one is in use), open the data directory, the engine and the
//! clock, serve; then, in the background, join the cluster, open the regions, and keep the cluster's
//! tables and regions in agreement. Stop: hand over what is led, end
//! the streams, stop the regions, finish what the committer holds.

mod disk;
mod membership;

use crate::admin_service::AdminService;
use crate::clock::{PhysicalClock, StoreClock, SystemClock};
use crate::cluster::Cluster;
use crate::config::{Config, KeyChange, LiveConfig};
use crate::contacts::{Contacts, Listening};
use crate::grpc_edge::EdgeLayer;
use crate::http::{self, Probes};
use crate::kv_service::KvService;
use crate::metrics::Metrics;
use crate::namespace::Namespaces;
use crate::peer::PeerContext;
use crate::peer_manager::{PeerManager, StoreFacts};
use crate::raft::RaftSettings;
use crate::raft_service::ModeService;
use crate::router::Router;
use crate::stores::Stores;
use crate::transport::SharedTransport;
use crate::transport::grpc::{GrpcOptions, GrpcTransport, Incoming, PeerService, Places};
use arc_swap::ArcSwap;
use disk::{Disk, open_disk, same_members, stored_plan};
use rdb_proto::admin::admin_server::AdminServer;
use rdb_proto::kv::kv_server::KvServer;
use rdb_proto::raft::Member;
use rdb_proto::raft::raft_service_server::RaftServiceServer;
use rdb_storage::{Committer, DataDir, Engine, StorageError};
use rdb_types::StoreId;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long a leaving store tries to hand over what it leads.
const HAND_OVER: Duration = Duration::from_secs(2);
/// How long its open streams may take to end.
const DRAIN: Duration = Duration::from_secs(2);

/// Wraps the transport of a store, to inject faults.
pub type WrapTransport = Box<dyn FnOnce(StoreId, SharedTransport) -> SharedTransport + Send>;

/// What a store is started with.
pub struct StoreOptions {
    /// Checked configuration.
    pub config: Config,
    /// Where physical time comes from.
    pub clock: Arc<dyn PhysicalClock>,
    /// What happens when the disk can no longer be trusted. The process should end.
    pub on_fatal: Box<dyn Fn(&StorageError) + Send + Sync>,
    /// Ports that are bound already, client port first; else those of the configuration are bound.
    pub listeners: Option<(TcpListener, TcpListener)>,
    /// Puts something between the store and its network.
    pub wrap_transport: Option<WrapTransport>,
}

impl StoreOptions {
    /// The real clock, the real network; a disk that fails ends nothing but is logged.
    pub fn new(config: Config) -> StoreOptions {
        StoreOptions {
            config,
            clock: Arc::new(SystemClock::new()),
            on_fatal: Box::new(
                |error| tracing::error!(%error, "the disk can no longer be trusted"),
            ),
            listeners: None,
            wrap_transport: None,
        }
    }
}

/// Why a store does not start, or may not go on. One line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port cannot be bound.
    #[error(
        "cannot listen on {addr} ({key}): {source}; stop what uses it, or choose another with --{flag}"
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

/// A running store.
pub struct Store {
    addr: SocketAddr,
    http_addr: SocketAddr,
    parts: Arc<Parts>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
    fatal: watch::Receiver<Option<String>>,
}

/// What the tasks of a store share.
struct Parts {
    me: StoreId,
    config: LiveConfig,
    data_dir: Option<DataDir>,
    engine: Arc<dyn Engine>,
    committer: Committer,
    cluster: Arc<Cluster>,
    transport: SharedTransport,
    grpc: Arc<GrpcTransport>,
    peer_service: Arc<PeerService>,
    places: Arc<Places>,
    manager: Arc<PeerManager>,
    namespaces: Namespaces,
    probes: Probes,
}

impl Store {
    /// Binds, opens and serves. Joining the cluster goes on in the background; see [`Store::ready`]
    /// and [`Store::failed`].
    pub async fn start(options: StoreOptions) -> Result<Store, StartError> {
        let StoreOptions {
            config,
            clock,
            on_fatal,
            listeners,
            wrap_transport,
        } = options;
        let me = StoreId::new(u64::from(config.store.id)).ok_or_else(|| {
            StartError::Disk(format!(
                "{} is not a store id; ids are 1 to {}",
                config.store.id,
                StoreId::MAX
            ))
        })?;
        let (listener, http_listener) = match listeners {
            Some(listeners) => listeners,
            None => (
                listen(config.store.addr, "store.addr", "addr").await?,
                listen(config.store.http_addr, "store.http_addr", "http-addr").await?,
            ),
        };
        let addr = listener
            .local_addr()
            .map_err(|error| StartError::Disk(error.to_string()))?;
        let http_addr = http_listener
            .local_addr()
            .map_err(|error| StartError::Disk(error.to_string()))?;

        let Disk {
            data_dir,
            engine,
            spool,
            store_uuid,
        } = open_disk(&config)?;
        let committer = Committer::start(engine.clone(), on_fatal);
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
                "the data directory belongs to cluster {found}, but its database does not know it: the database was replaced; bring the old one back"
            )));
        }

        let address = if config.store.addr.port() == 0 {
            addr.to_string()
        } else {
            config.advertised_addr()
        };
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
        if let Some(plan) = &plan {
            same_members(plan, me, &peers)?;
        }
        let cluster = Cluster::new(member.clone(), &peers, plan)
            .ok_or_else(|| StartError::Disk("the store has no id".into()))?;

        let contacts = Arc::new(Contacts::new());
        let mut grpc_options = GrpcOptions::default();
        // An entry holds what one request brought, a message one entry at least.
        let largest = usize::try_from(config.limits.max_request.as_bytes()).unwrap_or(usize::MAX);
        grpc_options.max_message_bytes = grpc_options
            .max_message_bytes
            .max(largest.saturating_mul(2).saturating_add(1 << 20));
        let grpc = GrpcTransport::new(me, cluster.clone(), grpc_options.clone());
        let wrapped: SharedTransport = match wrap_transport {
            Some(wrap) => wrap(me, grpc.clone()),
            None => grpc.clone(),
        };
        let transport: SharedTransport = Listening::new(wrapped, contacts.clone());
        let live: LiveConfig = Arc::new(ArcSwap::from_pointee(config.clone()));
        let (failed, fatal) = watch::channel(None);
        let context = PeerContext {
            me,
            engine: engine.clone(),
            committer: committer.clone(),
            clock,
            transport: transport.clone(),
            contacts,
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
            fatal: failed.clone(),
            max_batch: config.raft.max_batch as usize,
            max_inflight: config.limits.max_inflight as usize,
            request_id_retention: config.consistency.request_id_retention,
        };
        let facts = StoreFacts {
            member,
            http_address: http_addr.to_string(),
        };
        let manager = PeerManager::new(context, cluster.clone(), facts);
        let namespaces = Namespaces::new(manager.clone());
        let metrics = Metrics::new();
        let places = Places::new(config.limits.max_connections as usize);
        metrics.attach(manager.clone(), namespaces.clone(), places.clone());
        let peer_service = PeerService::new(manager.clone(), cluster.clone(), &grpc_options);
        let probes = Probes {
            cluster: cluster.clone(),
            manager: manager.clone(),
            namespaces: namespaces.clone(),
            metrics: metrics.clone(),
            leaving: Arc::default(),
        };
        let parts = Arc::new(Parts {
            me,
            data_dir,
            engine,
            committer,
            cluster,
            transport: transport.clone(),
            grpc,
            peer_service,
            places,
            manager: manager.clone(),
            namespaces: namespaces.clone(),
            probes,
            config: live,
        });

        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        parts.serve_grpc(&mut tasks, listener, &stop, &metrics, &grpc_options);
        let (probes, halt) = (parts.probes.clone(), stop.clone());
        tasks.spawn(async move {
            let served = axum::serve(http::Bounded::new(http_listener), http::routes(probes))
                .with_graceful_shutdown(halt.cancelled_owned());
            if let Err(error) = served.await {
                tracing::error!(%error, "the HTTP port is closed");
            }
        });
        let (life, halt) = (parts.clone(), stop.clone());
        tasks.spawn(async move {
            let lived = tokio::select! {
                () = halt.cancelled() => return,
                lived = life.live() => lived,
            };
            if let Err(error) = lived {
                tracing::error!(%error, "this store cannot go on");
                let _ = failed.send(Some(error.message));
            }
        });
        tracing::info!(store = me.get(), %addr, %http_addr, "listening");
        Ok(Store {
            addr,
            http_addr,
            parts,
            tasks,
            stop,
            fatal,
        })
    }

    /// Where clients and stores dial.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where probes and metrics are.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// Whether requests can be served.
    pub fn ready(&self) -> bool {
        self.parts.probes.ready()
    }

    /// The regions of this store.
    pub fn manager(&self) -> &Arc<PeerManager> {
        &self.parts.manager
    }

    /// Resolves when the store finds that it may not go on; one line that says why.
    pub async fn failed(&self) -> String {
        let mut fatal = self.fatal.clone();
        match fatal.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            // Stopped in order: nothing failed.
            Err(_) => std::future::pending().await,
        }
    }

    /// Takes up a new configuration: the changes that are in force now, and those that wait for a
    /// restart.
    pub fn reload(&self, new: &Config) -> (Vec<KeyChange>, Vec<KeyChange>) {
        let old = self.parts.config.load();
        let changes = old.diff_reloadable(new);
        self.parts.config.store(Arc::new(old.reloaded(new)));
        changes
    }

    /// Leaves in order.
    pub async fn shutdown(mut self) {
        self.parts.probes.leaving.store(true, Ordering::Release);
        self.parts.manager.hand_over(HAND_OVER).await;
        self.stop.cancel();
        self.parts.peer_service.close();
        let drained = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::info!("some streams did not end by themselves and are cut");
        }
        self.tasks.shutdown().await;
        self.parts.manager.shutdown().await;
        self.parts.grpc.shutdown();
        let committer = self.parts.committer.clone();
        // Waits for the disk, so not here.
        let _ = tokio::task::spawn_blocking(move || committer.shutdown()).await;
    }
}

async fn listen(
    addr: SocketAddr,
    key: &'static str,
    flag: &'static str,
) -> Result<TcpListener, StartError> {
    TcpListener::bind(addr)
        .await
        .map_err(|source| StartError::Listen {
            addr,
            key,
            flag,
            source,
        })
}

impl Parts {
    fn serve_grpc(
        self: &Arc<Self>,
        tasks: &mut JoinSet<()>,
        listener: TcpListener,
        stop: &CancellationToken,
        metrics: &Arc<Metrics>,
        options: &GrpcOptions,
    ) {
        let config = self.config.load();
        let limits = &config.limits;
        let max_request = limits.max_request.as_bytes() as usize;
        let router = Router::new(self.me, self.manager.clone(), self.namespaces.clone());
        let stores = Stores::new(self.me, self.manager.clone(), self.transport.clone());
        let kv = KvServer::new(KvService::new(router, self.config.clone(), metrics.clone()))
            .max_decoding_message_size(max_request)
            .max_encoding_message_size(usize::MAX);
        let modes = RaftServiceServer::new(ModeService::new(
            self.manager.clone(),
            self.namespaces.clone(),
            stores.clone(),
        ))
        .max_decoding_message_size(max_request);
        let admin = AdminServer::new(AdminService::new(
            self.me,
            self.manager.clone(),
            self.namespaces.clone(),
            stores,
        ))
        .max_decoding_message_size(max_request);
        let (health_reporter, health) = tonic_health::server::health_reporter();
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(rdb_proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let incoming = Incoming::new(listener, self.places.clone());
        let server = options
            .server()
            .max_concurrent_streams(Some(1024))
            .layer(EdgeLayer::new(max_request as u64))
            .add_service(health)
            .add_optional_service(reflection().build_v1().ok())
            .add_optional_service(reflection().build_v1alpha().ok())
            .add_service(self.peer_service.server())
            .add_service(kv)
            .add_service(modes)
            .add_service(admin)
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        tasks.spawn(async move {
            if let Err(error) = server.await {
                tracing::error!(%error, "the gRPC port is closed");
            }
        });
        let (probes, stop) = (self.probes.clone(), stop.clone());
        tasks.spawn(report_health(health_reporter, probes, stop));
    }
}

/// Tells `grpc.health.v1` how the store and each namespace are.
async fn report_health(
    reporter: tonic_health::server::HealthReporter,
    probes: Probes,
    stop: CancellationToken,
) {
    use tonic_health::ServingStatus;
    let status = |serving: bool| {
        if serving {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        }
    };
    let kv = <KvServer<KvService> as tonic::server::NamedService>::NAME;
    loop {
        let ready = probes.ready();
        reporter.set_service_status("", status(ready)).await;
        reporter.set_service_status(kv, status(ready)).await;
        let data_quorum = probes
            .manager
            .data_peers()
            .iter()
            .all(|peer| peer.quorum().available());
        for row in probes
            .namespaces
            .tables()
            .namespaces
            .values()
            .filter(|row| !row.deleted)
        {
            reporter
                .set_service_status(row.name.clone(), status(ready && data_quorum))
                .await;
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(Duration::from_millis(250)) => {}
        }
    }
    reporter
        .set_service_status("", ServingStatus::NotServing)
        .await;
}
