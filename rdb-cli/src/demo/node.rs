//! One store of the demo: a runtime of its own, ports of its own, a data directory.
//!
//! Owns the store's life: start, sudden death, orderly end. Does not know the other stores, except
//! their addresses, nor what is stored.
//!
//! Invariants:
//! - A killed store executes nothing more: its runtime is gone, and with it every task, connection
//!   and port. What the operating system has of its files stays, as it does after `kill -9`.
//! - The ports stay this store's while it is down: sockets that are bound and never listen hold them.
//!   Nothing else in this process can be given one of them by chance, and whoever dials meanwhile is
//!   refused, as by a machine where nothing runs.

use super::failed;
use crate::exit::Error;
use rdb_server::config::Config;
use rdb_server::server::{StartError, Store, StoreOptions};
use rdb_server::transport::faults::{Faults, FaultyTransport};
use rdb_storage::DataDirError;
use rdb_types::StoreId;
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Runtime;
use tokio::time::{Instant, sleep, timeout};

/// How long a start waits for a killed predecessor to let go of the database: its committer still
/// finishes what it was given.
const LET_GO: Duration = Duration::from_secs(10);
/// How long an orderly end may take before it becomes a sudden one.
const ORDERLY: Duration = Duration::from_secs(6);
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// A store, running or not.
pub(super) struct Node {
    id: StoreId,
    ports: [Port; 2],
    data_dir: PathBuf,
    running: Option<Running>,
}

struct Running {
    // Dropped in this order: first nothing runs any more, then what it held goes.
    runtime: OwnRuntime,
    store: Store,
}

impl Node {
    /// A store that does not run yet, with ports that nobody else has.
    pub(super) fn reserve(id: StoreId, data_dir: PathBuf) -> Result<Node, Error> {
        let port = || Port::reserve().map_err(|error| failed(format!("no free port: {error}")));
        Ok(Node {
            id,
            ports: [port()?, port()?],
            data_dir,
            running: None,
        })
    }

    pub(super) fn id(&self) -> StoreId {
        self.id
    }

    /// Where clients and other stores dial.
    pub(super) fn addr(&self) -> SocketAddr {
        self.ports[0].addr
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Whether it says that it can serve requests.
    pub(super) fn is_ready(&self) -> bool {
        self.running
            .as_ref()
            .is_some_and(|running| running.store.ready())
    }

    /// Starts it on its data directory. Joining the cluster goes on afterwards.
    pub(super) async fn start(
        &mut self,
        peers: &BTreeMap<u16, String>,
        faults: &Arc<Faults>,
    ) -> Result<(), Error> {
        if self.running.is_some() {
            return Ok(());
        }
        let give_up = Instant::now() + LET_GO;
        loop {
            match self.try_start(peers, faults).await {
                Ok(running) => {
                    self.running = Some(running);
                    return Ok(());
                }
                Err(StartError::DataDir(DataDirError::InUse { .. }) | StartError::Storage(_))
                    if Instant::now() < give_up =>
                {
                    sleep(Duration::from_millis(20)).await;
                }
                Err(error) => {
                    return Err(failed(format!("store {} does not start: {error}", self.id)));
                }
            }
        }
    }

    async fn try_start(
        &self,
        peers: &BTreeMap<u16, String>,
        faults: &Arc<Faults>,
    ) -> Result<Running, StartError> {
        let mut config = Config::default();
        config.store.id = self.id.get();
        config.store.addr = self.ports[0].addr;
        config.store.http_addr = self.ports[1].addr;
        config.store.data_dir.clone_from(&self.data_dir);
        config.cluster.name = "demo".to_owned();
        config.cluster.peers.clone_from(peers);
        let faults = Arc::clone(faults);
        let runtime = OwnRuntime::new(self.id)
            .map_err(|error| StartError::Disk(format!("no threads: {error}")))?;
        // On the store's runtime, so that all it spawns lives and dies there.
        let started = runtime.spawn(async move {
            let mut options = StoreOptions::new(config);
            let listen = |addr, key, flag| {
                Port::listen(addr).map_err(|source| StartError::Listen {
                    addr,
                    key,
                    flag,
                    source,
                })
            };
            options.listeners = Some((
                listen(options.config.store.addr, "store.addr", "addr")?,
                listen(
                    options.config.store.http_addr,
                    "store.http_addr",
                    "http-addr",
                )?,
            ));
            options.wrap_transport = Some(Box::new(move |me, inner| {
                FaultyTransport::new(me, inner, faults)
            }));
            Store::start(options).await
        });
        let store = started
            .await
            .map_err(|error| StartError::Disk(format!("its start broke: {error}")))??;
        Ok(Running { runtime, store })
    }

    /// Ends it in the middle of whatever it does.
    pub(super) fn kill(&mut self) {
        self.running = None;
    }

    /// Ends it in order.
    pub(super) async fn stop(&mut self) {
        if let Some(Running { runtime, store }) = self.running.take() {
            let left = runtime.spawn(store.shutdown());
            if !matches!(timeout(ORDERLY, left).await, Ok(Ok(()))) {
                tracing::warn!(store = self.id.get(), "did not end in order and is cut off");
            }
        }
    }
}

/// A runtime that ends at once when it is dropped, and may be dropped anywhere.
struct OwnRuntime(Option<Runtime>);

impl OwnRuntime {
    fn new(store: StoreId) -> io::Result<OwnRuntime> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        // Three stores share the machine with their clients; two threads keep a slow disk from
        // stopping heartbeats.
        let runtime = builder
            .worker_threads(2)
            .thread_name(format!("store-{store}"))
            .enable_all()
            .build()?;
        Ok(OwnRuntime(Some(runtime)))
    }

    async fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, String> {
        match &self.0 {
            Some(runtime) => runtime.spawn(work).await.map_err(|error| error.to_string()),
            None => Err("its runtime is gone".to_owned()),
        }
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A port of this machine that is ours until it is dropped.
struct Port {
    addr: SocketAddr,
    /// Never listens.
    _holder: TcpSocket,
}

impl Port {
    fn reserve() -> io::Result<Port> {
        let holder = bound(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        Ok(Port {
            addr: holder.local_addr()?,
            _holder: holder,
        })
    }

    /// Listens on a reserved port. Needs the runtime that will accept.
    fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
        bound(addr)?.listen(BACKLOG)
    }
}

/// Both the holder and the listener say that the address may be shared; only one of them listens.
fn bound(addr: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn a_reserved_port_refuses_until_somebody_listens_and_again_afterwards() {
        let port = Port::reserve().unwrap();
        let refused = |result: io::Result<TcpStream>| {
            result.unwrap_err().kind() == io::ErrorKind::ConnectionRefused
        };
        assert!(refused(TcpStream::connect(port.addr).await));
        for _ in 0..2 {
            let listener = Port::listen(port.addr).unwrap();
            TcpStream::connect(port.addr).await.unwrap();
            drop(listener);
            assert!(refused(TcpStream::connect(port.addr).await));
        }
    }
}
