//! Links between stores that can be cut and healed: a TCP proxy for each directed pair.
//!
//! Owns the proxies. A cut link is silent: no byte passes, in neither direction, and no connection is
//! closed or refused, as when a cable is pulled. What was sent meanwhile arrives after the heal, as
//! TCP would send it again.

use crate::ChaosError;
use crate::node::Node;
use crate::ports::Port;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Proxies for every directed pair of stores.
pub struct Mesh {
    links: BTreeMap<(usize, usize), Link>,
}

struct Link {
    port: Port,
    cut: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Mesh {
    /// Listens for each pair; nothing is cut.
    pub async fn start(stores: &[SocketAddr]) -> Result<Mesh, ChaosError> {
        let mut links = BTreeMap::new();
        for from in 0..stores.len() {
            for (to, target) in stores.iter().enumerate().filter(|(to, _)| *to != from) {
                let port = Port::take()?;
                let listener = TcpListener::bind(port.addr())
                    .await
                    .map_err(|error| ChaosError::because("cannot listen for a link", error))?;
                let (cut, watch) = watch::channel(false);
                let task = tokio::spawn(accept(listener, *target, watch));
                links.insert((from, to), Link { port, cut, task });
            }
        }
        Ok(Mesh { links })
    }

    /// Where store `from` dials store `to`.
    pub fn address(&self, from: usize, to: usize) -> SocketAddr {
        self.links[&(from, to)].port.addr()
    }

    /// Cuts a store off from all others, both ways.
    pub fn isolate(&self, store: usize) {
        self.set(true, |from, to| from == store || to == store);
    }

    /// Cuts the connections between two stores, both ways.
    pub fn cut(&self, one: usize, other: usize) {
        self.set(true, |from, to| {
            (from, to) == (one, other) || (from, to) == (other, one)
        });
    }

    /// A store's own requests get nowhere any more, while those of the others still reach it and are
    /// answered: half of its network is dead.
    pub fn mute(&self, store: usize) {
        self.set(true, |from, _| from == store);
    }

    /// Cuts the connections that `from` made to `to`; those that `to` made are left.
    pub fn cut_dialled(&self, from: usize, to: usize) {
        self.set(true, |one, other| (one, other) == (from, to));
    }

    /// Heals everything.
    pub fn heal(&self) {
        self.set(false, |_, _| true);
    }

    fn set(&self, cut: bool, which: impl Fn(usize, usize) -> bool) {
        for ((from, to), link) in &self.links {
            if which(*from, *to) {
                link.cut.send_replace(cut);
            }
        }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        for link in self.links.values() {
            link.task.abort();
        }
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, cut: watch::Receiver<bool>) {
    while let Ok((inbound, _)) = listener.accept().await {
        let cut = cut.clone();
        tokio::spawn(async move {
            // An error is the end of the connection, as it would be without the proxy.
            let _ = carry(inbound, target, cut).await;
        });
    }
}

async fn carry(
    inbound: TcpStream,
    target: SocketAddr,
    mut cut: watch::Receiver<bool>,
) -> std::io::Result<()> {
    until_whole(&mut cut).await;
    let outbound = TcpStream::connect(target).await?;
    inbound.set_nodelay(true)?;
    outbound.set_nodelay(true)?;
    let (from_caller, to_caller) = inbound.into_split();
    let (from_target, to_target) = outbound.into_split();
    tokio::select! {
        () = pump(from_caller, to_target, cut.clone()) => {}
        () = pump(from_target, to_caller, cut.clone()) => {}
    }
    // The end of one side reaches the other only over a link that is whole.
    until_whole(&mut cut).await;
    Ok(())
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut cut: watch::Receiver<bool>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        until_whole(&mut cut).await;
        if to.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
    until_whole(&mut cut).await;
    // An error means that the other side is gone already.
    let _ = to.shutdown().await;
}

async fn until_whole(cut: &mut watch::Receiver<bool>) {
    // An error means that the mesh is gone and the test over.
    let _ = cut.wait_for(|cut| !*cut).await;
}

/// Proxies between these nodes, which dial them from the next start on.
///
/// # Errors
///
/// When no port is free.
pub async fn between(nodes: &mut [Node]) -> Result<Mesh, ChaosError> {
    let addrs: Vec<SocketAddr> = nodes.iter().map(Node::addr).collect();
    let mesh = Mesh::start(&addrs).await?;
    for (store, node) in nodes.iter_mut().enumerate() {
        let dialled = addrs.iter().enumerate().map(|(other, own)| {
            if other == store {
                *own
            } else {
                mesh.address(store, other)
            }
        });
        node.set_peers(&dialled.collect::<Vec<_>>());
    }
    Ok(mesh)
}
