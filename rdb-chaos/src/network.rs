//! How the stores reach each other, and how that is cut.
//!
//! Two kinds: [`namespaces`] (a network namespace for each store; root, Linux, iproute2) loses packets
//! in one direction or both, as a broken cable does; [`mesh`] (a TCP proxy for each directed pair, for
//! everybody) holds back what a connection carries. Clients reach every store all the time.
//!
//! Owns the choice.

pub mod mesh;
pub mod namespaces;

use crate::ChaosError;
use crate::node::Node;
use mesh::Mesh;
use namespaces::Namespaces;
use std::net::SocketAddr;
use std::path::Path;

/// Which kind to use.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Namespaces where that is possible, else proxies.
    #[default]
    Auto,
    /// Network namespaces, or nothing.
    Namespaces,
    /// TCP proxies.
    Proxies,
}

/// The network of a cluster.
pub enum Network {
    /// See [`namespaces`].
    Namespaces(Namespaces),
    /// See [`mesh`].
    Proxies(Mesh),
}

impl Network {
    /// Makes the network and the nodes on it, none of them started; and says, where that was left to it,
    /// why these are not namespaces.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub async fn make(
        kind: Kind,
        program: &Path,
        dir: &Path,
        count: usize,
        args: &[&str],
    ) -> Result<(Network, Vec<Node>, Option<String>), ChaosError> {
        let mut why_not = None;
        if kind != Kind::Proxies {
            match Namespaces::make(count) {
                Ok(namespaces) => {
                    let nodes = (0..count).map(|store| {
                        let (addr, http) = (namespaces.addr(store), namespaces.http_addr(store));
                        Node::at(program, dir, store, addr, http, args)
                    });
                    let mut nodes: Vec<Node> = nodes.collect();
                    let addrs: Vec<SocketAddr> = nodes.iter().map(Node::addr).collect();
                    for node in &mut nodes {
                        node.set_peers(&addrs);
                    }
                    return Ok((Network::Namespaces(namespaces), nodes, None));
                }
                Err(why) if kind == Kind::Namespaces => {
                    return Err(ChaosError::because("no network namespaces", why));
                }
                Err(why) => why_not = Some(why),
            }
        }
        let nodes = (0..count).map(|store| Node::new(program, dir, store, args));
        let mut nodes = nodes.collect::<Result<Vec<_>, _>>()?;
        let mesh = mesh::between(&mut nodes).await?;
        Ok((Network::Proxies(mesh), nodes, why_not))
    }

    /// The command in front of a store's process.
    pub fn wrapper(&self, store: usize) -> Vec<String> {
        match self {
            Network::Namespaces(namespaces) => namespaces.wrapper(store),
            Network::Proxies(_) => Vec::new(),
        }
    }

    /// What `from` sends does not reach `to` any more. (Between proxies: what `from` asks on connections
    /// that it made; with packets lost one way a connection dies both ways, so the difference is who
    /// may make new ones.)
    ///
    /// # Errors
    ///
    /// When that cannot be done.
    pub fn cut(&self, from: usize, to: usize) -> Result<(), ChaosError> {
        match self {
            Network::Namespaces(namespaces) => namespaces.cut(from, to),
            Network::Proxies(mesh) => {
                mesh.cut_dialled(from, to);
                Ok(())
            }
        }
    }

    /// Everybody reaches everybody again.
    ///
    /// # Errors
    ///
    /// When that cannot be done.
    pub fn heal(&self) -> Result<(), ChaosError> {
        match self {
            Network::Namespaces(namespaces) => namespaces.heal(),
            Network::Proxies(mesh) => {
                mesh.heal();
                Ok(())
            }
        }
    }

    /// What it is, for the reader of a run.
    pub fn name(&self) -> &'static str {
        match self {
            Network::Namespaces(_) => "network namespaces (packets are lost)",
            Network::Proxies(_) => "TCP proxies (connections stand still)",
        }
    }
}
