//! A store and its ports, and the order in which they start and stop.
//!
//! Owns what a process has: the data directory, the ports, the HTTP services. The gRPC services and the
//! dialling of other stores are [`edges`]'; what a store does behind them is [`crate::store`]'s. Start: bind the ports (nothing is
//! touched when one is in use), open the data directory, the engine and the clock, serve; the store joins
//! its cluster in the background. Stop: hand over what is led, serve on for `shutdown_delay`, end the streams, stop
//! the regions, finish what the committer holds.
//!
//! Invariant: from the moment on that a store is told to end, `/readyz` says so, and it is answered until nothing else is left to
//! do: whoever balances load looks there, and an address that is not there tells less.

mod belongs;
mod disk;
mod edges;

use crate::clock::{PhysicalClock, SystemClock};
use crate::config::Config;
use crate::error::Error;
use crate::http;
use crate::logging::LogLevel;
use crate::peer_manager::PeerManager;
pub use crate::store::StartError;
use crate::store::StoreSetup;
pub use crate::store::reload::{NewConfig, ReadConfig, Reloaded};
use crate::tasks::Tasks;
use crate::transport::grpc::Tcp;
use disk::open_disk;
pub use edges::{Edges, WrapTransport};
use rdb_storage::OnFatal;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a leaving store tries to hand over what it leads.
const HAND_OVER: Duration = Duration::from_secs(2);
/// How long its open streams may take to end.
const DRAIN: Duration = Duration::from_secs(2);
/// How long the last answers of the probes may take.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

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
    /// Where a new configuration is read from; none: it is never read again.
    pub read_config: Option<ReadConfig>,
    /// The level of the process's log; none: it is not this store's to change.
    pub log_level: Option<Arc<LogLevel>>,
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
            read_config: None,
            log_level: None,
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
    /// The HTTP port once more, for the probes: its connections are let go of before it is.
    probed: std::net::TcpListener,
    fatal: watch::Receiver<Option<String>>,
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
            read_config,
            log_level,
        } = options;
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

        let (http_listener, probed) =
            twice(http_listener).map_err(|error| StartError::Disk(error.to_string()))?;

        let disk = open_disk(&config, on_fatal)?;
        let address = if config.store.addr.port() == 0 {
            addr.to_string()
        } else {
            config.advertised_addr()
        };
        let setup = StoreSetup {
            config,
            disk,
            clock,
            tasks: Tasks::system(),
            address,
            http_address: http_addr.to_string(),
        };
        let edges = Edges::open(setup, Arc::new(Tcp), wrap_transport)?;
        if let Some(read) = read_config {
            edges.core().reloader().reads(read);
        }
        if let Some(level) = log_level {
            edges.core().reloader().logs_at(level);
        }
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        edges.serve(&mut tasks, listener, &stop);
        let (routes, halt) = (edges.http(), stop.clone());
        tasks.spawn(async move {
            let served = axum::serve(http::Bounded::new(http_listener), routes)
                .with_graceful_shutdown(halt.cancelled_owned());
            if let Err(error) = served.await {
                tracing::error!(%error, "the HTTP port is closed");
            }
        });
        let (fatal, life) = (edges.core().failure(), edges.core().start());
        tracing::info!(store = edges.core().me().get(), %addr, %http_addr, "listening");
        Ok(Store {
            addr,
            http_addr,
            edges,
            life,
            tasks,
            stop,
            probed,
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
        self.edges.probes().ready()
    }

    /// What keeps it from being ready, in one line.
    pub fn missing(&self) -> Option<String> {
        self.edges.probes().missing()
    }

    /// The regions of this store.
    pub fn manager(&self) -> &Arc<PeerManager> {
        self.edges.core().manager()
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

    /// Reads the configuration again; the log says what came of it. What is wrong with it changes nothing.
    ///
    /// # Errors
    /// It is not taken up.
    pub fn reload(&self) -> Result<Reloaded, Error> {
        self.edges.core().reloader().reload()
    }

    /// Says that it leaves, gives away what it leads, and serves on for `shutdown_delay`, so that whoever balances load
    /// sends no more by the time of [`Store::shutdown`].
    pub async fn leave(&self) {
        let core = self.edges.core();
        let delay = core.config().load().store.shutdown_delay;
        if delay.is_zero() {
            return;
        }
        let until = Instant::now() + delay;
        self.edges.probes().leaving.store(true, Ordering::Release);
        core.manager().hand_over(HAND_OVER).await;
        tokio::time::sleep_until(until).await;
    }

    /// Ends in order.
    pub async fn shutdown(mut self) {
        self.edges.probes().leaving.store(true, Ordering::Release);
        // Where it gave its leads away before, it may have been elected again.
        self.edges.core().manager().hand_over(HAND_OVER).await;
        self.life.abort();
        // Before the port's other server ends: at no moment does nobody answer.
        let (answered, mut probes) = (CancellationToken::new(), JoinSet::new());
        serve_last(
            &mut probes,
            self.probed,
            self.edges.last_http(),
            answered.clone(),
        );
        self.stop.cancel();
        self.edges.close();
        let drained = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::info!("some streams did not end by themselves and are cut");
        }
        self.tasks.shutdown().await;
        self.edges.core().manager().shutdown().await;
        self.edges.hang_up();
        let committer = self.edges.core().committer().clone();
        // Waits for the disk, so not here.
        let _ = tokio::task::spawn_blocking(move || committer.shutdown()).await;
        answered.cancel();
        let answers = async { while probes.join_next().await.is_some() {} };
        // What did not end by then is cut.
        let _ = tokio::time::timeout(LAST_ANSWERS, answers).await;
        probes.shutdown().await;
        self.edges.core().tasks().abort_all();
    }
}

/// A port and, for later, the same port once more.
fn twice(listener: TcpListener) -> io::Result<(TcpListener, std::net::TcpListener)> {
    let first = listener.into_std()?;
    let second = first.try_clone()?;
    Ok((TcpListener::from_std(first)?, second))
}

/// Answers what is left to be answered, until `answered`.
fn serve_last(
    tasks: &mut JoinSet<()>,
    port: std::net::TcpListener,
    routes: axum::Router,
    answered: CancellationToken,
) {
    let port = match TcpListener::from_std(port) {
        Ok(port) => port,
        Err(error) => {
            tracing::warn!(%error, "the probes are not answered while this store ends");
            return;
        }
    };
    tasks.spawn(async move {
        let served = axum::serve(http::Bounded::new(port), routes)
            .with_graceful_shutdown(answered.cancelled_owned());
        if let Err(error) = served.await {
            tracing::warn!(%error, "the probes are not answered while this store ends");
        }
    });
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
