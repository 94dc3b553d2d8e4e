//! A store and its gRPC edges: the services behind its port, and the way to the other stores.
//!
//! Owns which services there are and how they are set up. How a connection is accepted ([`Listen`]) and
//! dialled ([`Dial`]) comes as an argument; the ports themselves, the disk and the process are not its
//! business, so a simulator runs this very code over a network of its own.
//!
//! Invariant: what a service does belongs to the store ([`crate::tasks`]), and ends with it.

use super::belongs::BelongsLayer;
use crate::admin_service::AdminService;
use crate::grpc_edge::EdgeLayer;
use crate::http::{self, Gateway, Probes};
use crate::kv_service::KvService;
use crate::raft_service::ModeService;
use crate::store::{StartError, StoreCore, StoreSetup};
use crate::stores::Stores;
use crate::transport::SharedTransport;
use crate::transport::grpc::{
    Dial, GrpcOptions, GrpcTransport, Incoming, Listen, PeerService, Places,
};
use rdb_proto::admin::admin_server::AdminServer;
use rdb_proto::convert;
use rdb_proto::kv::kv_server::KvServer;
use rdb_proto::raft::raft_service_server::RaftServiceServer;
use rdb_types::{Mode, StoreId};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Wraps the transport of a store, to inject faults.
pub type WrapTransport = Box<dyn FnOnce(StoreId, SharedTransport) -> SharedTransport + Send>;

/// A store and what connects it to others.
pub struct Edges {
    core: Arc<StoreCore>,
    grpc: Arc<GrpcTransport>,
    options: GrpcOptions,
    peer_service: Arc<PeerService>,
    places: Arc<Places>,
    gateway: Gateway,
}

impl Edges {
    /// Puts a store and its edges together. Nothing is dialled or served yet. `wrap` puts something
    /// between the store and its network.
    ///
    /// # Errors
    /// The store cannot be opened.
    pub fn open(
        setup: StoreSetup,
        dial: Arc<dyn Dial>,
        wrap: Option<WrapTransport>,
    ) -> Result<Arc<Edges>, StartError> {
        let mut options = GrpcOptions::default();
        // An entry holds what one request brought, a message one entry at least.
        let largest = setup.config.limits.max_request.as_bytes();
        let largest = usize::try_from(largest).unwrap_or(usize::MAX);
        options.max_message_bytes = options
            .max_message_bytes
            .max(largest.saturating_mul(2).saturating_add(1 << 20));
        let mut dialler = None;
        let core = StoreCore::open(setup, |me, cluster| {
            let grpc = GrpcTransport::with_dial(me, cluster.clone(), options.clone(), dial);
            dialler = Some(grpc.clone());
            match wrap {
                Some(wrap) => wrap(me, grpc),
                None => grpc,
            }
        })?;
        let Some(grpc) = dialler else {
            return Err(StartError::Disk("the store was not given a network".into()));
        };
        let manager = core.manager();
        let peer_service = PeerService::new(manager.clone(), core.cluster().clone(), &options);
        let probes = Probes {
            cluster: core.cluster().clone(),
            manager: manager.clone(),
            namespaces: core.namespaces().clone(),
            metrics: core.metrics().clone(),
            leaving: Arc::default(),
        };
        let places = Places::new(core.config().load().limits.max_connections as usize);
        core.metrics().attach(core.manager(), places.clone());
        let stores = Stores::new(core.me(), core.manager().clone(), core.transport().clone());
        let gateway = Gateway {
            probes,
            kv: KvService::new(core.router(), core.config().clone(), core.metrics().clone()),
            modes: Arc::new(ModeService::new(
                core.manager().clone(),
                core.router(),
                stores.clone(),
            )),
            admin: Arc::new(AdminService::new(
                core.me(),
                core.manager().clone(),
                core.namespaces().clone(),
                stores,
                core.reloader().clone(),
            )),
            config: core.config().clone(),
        };
        Ok(Arc::new(Edges {
            core,
            grpc,
            options,
            peer_service,
            places,
            gateway,
        }))
    }

    /// The store behind them.
    pub fn core(&self) -> &Arc<StoreCore> {
        &self.core
    }

    /// What the HTTP port shows of it.
    pub(super) fn probes(&self) -> &Probes {
        &self.gateway.probes
    }

    /// The routes of the HTTP port. They call the services that gRPC calls.
    pub fn http(&self) -> axum::Router {
        let belongs = BelongsLayer::new(self.core.tasks().clone());
        http::routes(self.gateway.clone()).layer(belongs)
    }

    /// What the HTTP port still answers while the store ends.
    pub fn last_http(&self) -> axum::Router {
        let belongs = BelongsLayer::new(self.core.tasks().clone());
        http::last_routes(self.gateway.clone()).layer(belongs)
    }

    /// Ends the streams of other stores, and watches, which never end by themselves.
    pub fn close(&self) {
        self.core.manager().watches().close();
        self.peer_service.close();
    }

    /// Ends the connections to other stores.
    pub fn hang_up(&self) {
        self.grpc.shutdown();
    }

    /// Serves gRPC to whom `listener` accepts, until `stop`, in `tasks`.
    pub fn serve<L: Listen>(&self, tasks: &mut JoinSet<()>, listener: L, stop: &CancellationToken) {
        let core = &self.core;
        let config = core.config().load();
        let limits = &config.limits;
        let max_request = limits.max_request.as_bytes() as usize;
        let kv = KvServer::new(self.gateway.kv.clone())
            .max_decoding_message_size(max_request)
            .max_encoding_message_size(usize::MAX);
        let modes = RaftServiceServer::from_arc(self.gateway.modes.clone())
            .max_decoding_message_size(max_request)
            .max_encoding_message_size(usize::MAX);
        let admin = AdminServer::from_arc(self.gateway.admin.clone())
            .max_decoding_message_size(max_request);
        let (health_reporter, health) = tonic_health::server::health_reporter();
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(rdb_proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let incoming = Incoming::new(listener, self.places.clone());
        let server = self
            .options
            .server()
            .max_concurrent_streams(Some(1024))
            .layer(EdgeLayer::new(max_request as u64))
            .layer(BelongsLayer::new(core.tasks().clone()))
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
        let (probes, stop) = (self.probes().clone(), stop.clone());
        tasks.spawn(report_health(health_reporter, probes, stop));
    }
}

/// Tells `grpc.health.v1` how the store and each namespace are.
async fn report_health(
    mut reporter: tonic_health::server::HealthReporter,
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
        let tables = probes.namespaces.tables();
        for row in tables.namespaces.values() {
            if row.deleted {
                // Unless the name stands for another one by now.
                if tables.namespace(&row.name).is_none() {
                    reporter.clear_service_status(&row.name).await;
                }
                continue;
            }
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
            biased;
            () = stop.cancelled() => break,
            () = tokio::time::sleep(Duration::from_millis(250)) => {}
        }
    }
    reporter
        .set_service_status("", ServingStatus::NotServing)
        .await;
}
