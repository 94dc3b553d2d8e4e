//! The demo's cluster: three stores in this process that talk over real TCP.
//!
//! Owns which stores run and what is wrong with the network between them. Does not know what clients
//! do with it.

use super::failed;
use super::node::Node;
use crate::exit::Error;
use futures::future::try_join_all;
use rdb_client::{Client, ClientError, ClientOptions, RetryPolicy};
use rdb_server::transport::faults::Faults;
use rdb_types::StoreId;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How many stores there are.
pub(super) const STORES: u16 = 3;

/// How long a start or a return may take before it counts as failed.
const GIVE_UP: Duration = Duration::from_secs(30);

/// Decides nothing here: no message is lost or delayed by chance in the demo, links are only cut.
const SEED: u64 = 1;

pub(super) struct Cluster {
    nodes: Vec<Node>,
    peers: BTreeMap<u16, String>,
    faults: Arc<Faults>,
}

impl Cluster {
    /// Three stores that do not run yet, with directories below `dir`.
    pub(super) fn new(dir: &Path) -> Result<Cluster, Error> {
        let ids = (1..=STORES).filter_map(|id| StoreId::new(id.into()));
        let nodes = ids
            .map(|id| Node::reserve(id, dir.join(format!("store-{id}"))))
            .collect::<Result<Vec<_>, _>>()?;
        let peers = nodes
            .iter()
            .map(|node| (node.id().get(), node.addr().to_string()))
            .collect();
        Ok(Cluster {
            nodes,
            peers,
            faults: Faults::new(SEED),
        })
    }

    /// Every store, in the order of the endpoints.
    pub(super) fn ids(&self) -> Vec<StoreId> {
        self.nodes.iter().map(Node::id).collect()
    }

    pub(super) fn addr(&self, store: StoreId) -> String {
        self.peers.get(&store.get()).cloned().unwrap_or_default()
    }

    pub(super) fn is_running(&self, store: StoreId) -> bool {
        self.nodes
            .iter()
            .any(|node| node.id() == store && node.is_running())
    }

    /// Starts those that do not run, and waits until all say that they are ready.
    pub(super) async fn start(&mut self) -> Result<(), Error> {
        let (peers, faults) = (&self.peers, &self.faults);
        try_join_all(self.nodes.iter_mut().map(|node| node.start(peers, faults))).await?;
        let give_up = Instant::now() + GIVE_UP;
        while let Some(node) = self.nodes.iter().find(|node| !node.is_ready()) {
            if Instant::now() > give_up {
                return Err(failed(format!(
                    "store {} is not ready after {} s",
                    node.id(),
                    GIVE_UP.as_secs()
                )));
            }
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Starts one store, and waits until its ports answer; whether it finds a quorum is another matter.
    pub(super) async fn start_one(&mut self, store: StoreId) -> Result<(), Error> {
        match self.nodes.iter_mut().find(|node| node.id() == store) {
            Some(node) => node.start(&self.peers, &self.faults).await,
            None => Ok(()),
        }
    }

    /// Kills a store without a warning.
    pub(super) fn kill(&mut self, store: StoreId) {
        if let Some(node) = self.nodes.iter_mut().find(|node| node.id() == store) {
            node.kill();
        }
    }

    /// Nothing passes any more between this store and the others. Clients still reach all of them.
    pub(super) fn isolate(&self, store: StoreId) {
        self.faults.isolate(store, &self.ids());
    }

    /// Takes every cut back.
    pub(super) fn heal(&self) {
        self.faults.heal();
    }

    /// The other stores that this one cannot talk to because of a cut.
    pub(super) fn cut_from(&self, store: StoreId) -> Vec<StoreId> {
        self.ids()
            .into_iter()
            .filter(|&other| self.faults.is_cut(store, other))
            .collect()
    }

    /// Stops those that run, in order.
    pub(super) async fn stop(&mut self) {
        futures::future::join_all(self.nodes.iter_mut().map(Node::stop)).await;
    }

    /// A client of the whole cluster, as a program would have one.
    pub(super) fn client(&self) -> Result<Client, ClientError> {
        Client::new(ClientOptions {
            discover: true,
            ..self.options(&self.ids())
        })
    }

    /// A client that knows these stores only, and learns of no others.
    pub(super) fn client_of(&self, stores: &[StoreId]) -> Result<Client, ClientError> {
        Client::new(self.options(stores))
    }

    fn options(&self, stores: &[StoreId]) -> ClientOptions {
        ClientOptions {
            retry: RetryPolicy {
                max_backoff: Duration::from_millis(100),
                ..RetryPolicy::default()
            },
            discover: false,
            ..ClientOptions::new(stores.iter().map(|&store| self.addr(store)))
        }
    }

    /// A client that asks one store, once: what it hears is that store's own answer.
    pub(super) fn probe(&self, store: StoreId) -> Result<Client, ClientError> {
        Client::new(ClientOptions {
            request_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_millis(500),
            retry: RetryPolicy {
                max_attempts: Some(1),
                ..RetryPolicy::default()
            },
            wait_for_ready: false,
            discover: false,
            ..ClientOptions::new([self.addr(store)])
        })
    }
}
