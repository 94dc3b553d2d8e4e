//! A store and its ports, and the order in which they start and stop.
//!
//! Owns the edges of the process: the data directory, the ports, the gRPC and HTTP services, the dialling
//! of other stores. What a store does behind them is [`crate::store`]'s. Start: bind the ports (nothing is
//! touched when one is in use), open the data directory, the engine and the clock, serve; the store joins
//! its cluster in the background. Stop: hand over what is led, end the streams, stop the regions, finish
//! what the committer holds.

mod disk;

use crate::admin_service::AdminService;
use crate::clock::{PhysicalClock, SystemClock};
use crate::config::{Config, KeyChange};
use crate::grpc_edge::EdgeLayer;
use crate::http::{self, Probes};
use crate::kv_service::KvService;
use crate::peer_manager::PeerManager;
use crate::raft_service::ModeService;
pub use crate::store::StartError;
use crate::store::{StoreCore, StoreSetup, store_id};
use crate::stores::Stores;
use crate::tasks::Tasks;
use crate::transport::SharedTransport;
use crate::transport::grpc::{GrpcOptions, GrpcTransport, Incoming, PeerService, Places};
use disk::open_disk;
use rdb_proto::admin::admin_server::AdminServer;
use rdb_proto::convert;
use rdb_proto::kv::kv_server::KvServer;
use rdb_proto::raft::raft_service_server::RaftServiceServer;
use rdb_storage::OnFatal;
use rdb_types::{Mode, StoreId};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
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
    pub on_fatal: OnFatal,
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

/// A running store.
pub struct Store {
    addr: SocketAddr,
    http_addr: SocketAddr,
    edges: Arc<Edges>,
    life: JoinHandle<()>,
    tasks: JoinSet<()>,
    stop: CancellationToken,
    fatal: watch::Receiver<Option<String>>,
}

/// A store and what connects it to its ports.
struct Edges {
    core: Arc<StoreCore>,
    grpc: Arc<GrpcTransport>,
    peer_service: Arc<PeerService>,
    places: Arc<Places>,
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
        let me = store_id(&config)?;
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

        let disk = open_disk(&config, on_fatal)?;
        let address = if config.store.addr.port() == 0 {
            addr.to_string()
        } else {
            config.advertised_addr()
        };
        let mut grpc_options = GrpcOptions::default();
        // An entry holds what one request brought, a message one entry at least.
        let largest = usize::try_from(config.limits.max_request.as_bytes()).unwrap_or(usize::MAX);
        grpc_options.max_message_bytes = grpc_options
            .max_message_bytes
            .max(largest.saturating_mul(2).saturating_add(1 << 20));
        let mut dialler = None;
        let setup = StoreSetup {
            config,
            disk,
            clock,
            tasks: Tasks::system(),
            address,
            http_address: http_addr.to_string(),
        };
        let core = StoreCore::open(setup, |me, cluster| {
            let grpc = GrpcTransport::new(me, cluster.clone(), grpc_options.clone());
            dialler = Some(grpc.clone());
            match wrap_transport {
                Some(wrap) => wrap(me, grpc),
                None => grpc,
            }
        })?;
        let Some(grpc) = dialler else {
            return Err(StartError::Disk("the store was not given a network".into()));
        };
        let manager = core.manager();
        let peer_service = PeerService::new(manager.clone(), core.cluster().clone(), &grpc_options);
        let probes = Probes {
            cluster: core.cluster().clone(),
            manager: manager.clone(),
            namespaces: core.namespaces().clone(),
            metrics: core.metrics().clone(),
            leaving: Arc::default(),
        };
        let places = Places::new(core.config().load().limits.max_connections as usize);
        core.metrics().attach(core.manager(), places.clone());
        let edges = Arc::new(Edges {
            core: core.clone(),
            grpc,
            peer_service,
            places,
            probes,
        });

        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        edges.serve_grpc(&mut tasks, listener, &stop, &grpc_options);
        let (probes, halt) = (edges.probes.clone(), stop.clone());
        tasks.spawn(async move {
            let served = axum::serve(http::Bounded::new(http_listener), http::routes(probes))
                .with_graceful_shutdown(halt.cancelled_owned());
            if let Err(error) = served.await {
                tracing::error!(%error, "the HTTP port is closed");
            }
        });
        let (fatal, life) = (core.failure(), core.start());
        tracing::info!(store = me.get(), %addr, %http_addr, "listening");
        Ok(Store {
            addr,
            http_addr,
            edges,
            life,
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
        self.edges.probes.ready()
    }

    /// The regions of this store.
    pub fn manager(&self) -> &Arc<PeerManager> {
        self.edges.core.manager()
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
        let old = self.edges.core.config().load();
        let changes = old.diff_reloadable(new);
        self.edges.core.config().store(Arc::new(old.reloaded(new)));
        changes
    }

    /// Leaves in order.
    pub async fn shutdown(mut self) {
        self.edges.probes.leaving.store(true, Ordering::Release);
        self.edges.core.manager().hand_over(HAND_OVER).await;
        self.life.abort();
        self.stop.cancel();
        self.edges.peer_service.close();
        let drained = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::info!("some streams did not end by themselves and are cut");
        }
        self.tasks.shutdown().await;
        self.edges.core.manager().shutdown().await;
        self.edges.grpc.shutdown();
        let committer = self.edges.core.committer().clone();
        // Waits for the disk, so not here.
        let _ = tokio::task::spawn_blocking(move || committer.shutdown()).await;
        self.edges.core.tasks().abort_all();
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

impl Edges {
    fn serve_grpc(
        self: &Arc<Self>,
        tasks: &mut JoinSet<()>,
        listener: TcpListener,
        stop: &CancellationToken,
        options: &GrpcOptions,
    ) {
        let core = &self.core;
        let config = core.config().load();
        let limits = &config.limits;
        let max_request = limits.max_request.as_bytes() as usize;
        let stores = Stores::new(core.me(), core.manager().clone(), core.transport().clone());
        let kv = KvServer::new(KvService::new(
            core.router(),
            core.config().clone(),
            core.metrics().clone(),
        ))
        .max_decoding_message_size(max_request)
        .max_encoding_message_size(usize::MAX);
        let modes = RaftServiceServer::new(ModeService::new(
            core.manager().clone(),
            core.router(),
            stores.clone(),
        ))
        .max_decoding_message_size(max_request)
        .max_encoding_message_size(usize::MAX);
        let admin = AdminServer::new(AdminService::new(
            core.me(),
            core.manager().clone(),
            core.namespaces().clone(),
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
            // An eventual one is served by this store alone, too.
            let served = match convert::mode(row.mode) {
                Some(Mode::Eventual) => probes.serves_eventual(),
                _ => ready && data_quorum,
            };
            reporter
                .set_service_status(row.name.clone(), status(served))
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
