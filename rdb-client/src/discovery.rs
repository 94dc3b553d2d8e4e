//! Learning who leads, which other stores there are, and which of them is nearest.
//!
//! Owns when the cluster is asked and what is read out of the answer. Only a hint comes of it: any
//! store serves any call, but the leader's own endpoint saves a hop. A store that cannot be connected
//! to from here (another network, a mapped port) is never preferred and never added.

use crate::client::{Client, with_deadline};
use crate::error::ErrorKind;
use crate::node::Node;
use crate::options::ReadOptions;
use bytes::Bytes;
use rdb_proto::admin::{ClusterStatusRequest, ClusterStatusResponse, admin_client::AdminClient};
use rdb_proto::kv::{self, kv_client::KvClient};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// How often the cluster is asked at most, while calls are made.
const INTERVAL: Duration = Duration::from_secs(3);
const TIMEOUT: Duration = Duration::from_secs(2);

pub(crate) struct Discovery {
    enabled: bool,
    began: Instant,
    /// Milliseconds after `began` at which the cluster is asked next.
    next_ms: AtomicU64,
}

impl Discovery {
    pub(crate) fn new(enabled: bool) -> Discovery {
        Discovery {
            enabled,
            began: Instant::now(),
            next_ms: AtomicU64::new(0),
        }
    }

    /// Whether it is time; says so to one caller only.
    fn is_due(&self) -> bool {
        if !self.enabled {
            return false;
        }
        let now_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let next_ms = self.next_ms.load(Ordering::Relaxed);
        let later_ms = now_ms.saturating_add(INTERVAL.as_millis() as u64);
        now_ms >= next_ms
            && self
                .next_ms
                .compare_exchange(next_ms, later_ms, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

impl Client {
    /// Asks `node`, which just answered, about the cluster, beside the calls.
    pub(crate) fn discover_if_due(&self, node: &Arc<Node>) {
        if self.is_pinned() || !self.discovery().is_due() {
            return;
        }
        let (client, node) = (self.clone(), node.clone());
        tokio::spawn(async move { client.discover(&node).await });
    }

    async fn discover(&self, node: &Arc<Node>) {
        let deadline = Instant::now() + TIMEOUT;
        let answer = node
            .unary(deadline, async |channel| {
                AdminClient::new(channel)
                    .cluster_status(with_deadline(ClusterStatusRequest {}, deadline))
                    .await
            })
            .await;
        let status = match answer {
            Ok(status) => status,
            Err(failure) => {
                tracing::debug!(
                    endpoint = node.address(),
                    error = failure.message,
                    "the cluster's status is not known"
                );
                return;
            }
        };
        let map = read(&status);
        let mut positions = BTreeMap::new();
        for address in map.addresses {
            if let Some(position) = self.reachable(&address, deadline).await {
                positions.insert(address, position);
            }
        }
        for (namespace, address) in map.leaders {
            if let Some(position) = positions.get(&address)
                && !self.learned().is_eventual(&namespace)
            {
                self.endpoints().prefer(&namespace, *position);
            }
        }
        self.measure(deadline).await;
    }

    /// Finds out which store answers quickest, if there is a namespace where each of them could.
    async fn measure(&self, deadline: Instant) {
        let eventual = self.learned().eventual();
        let Some(namespace) = eventual.first() else {
            return;
        };
        let nodes = self.endpoints().all();
        let measured = nodes.iter().map(|node| probe(node, namespace, deadline));
        futures::future::join_all(measured).await;
        for namespace in &eventual {
            self.endpoints().prefer_nearest(namespace, Instant::now());
        }
    }

    /// The position of a store's address once a connection to it stands.
    async fn reachable(&self, address: &str, deadline: Instant) -> Option<usize> {
        let known = self
            .endpoints()
            .position_of(address)
            .and_then(|at| self.endpoints().node(at));
        let node = match known {
            Some(node) => node,
            None => {
                let address = crate::endpoints::parse(address).ok()?;
                Arc::new(Node::new(address, self.options(), self.dial().clone()).ok()?)
            }
        };
        node.connection(deadline).await.ok()?;
        self.endpoints().learn(node)
    }
}

/// Measures an answer: a read of what the store itself has, of a key that nobody writes.
async fn probe(node: &Arc<Node>, namespace: &str, deadline: Instant) {
    // Before the clock starts, so that making a connection is not part of it.
    if node.connection(deadline).await.is_err() {
        return;
    }
    let request = kv::GetRequest {
        namespace: namespace.to_owned(),
        key: Bytes::from_static(b"\0"),
        read: Some(ReadOptions::stale().to_wire()),
    };
    let began = Instant::now();
    let answer = node
        .unary(deadline, async |channel| {
            let mut client = KvClient::new(channel);
            client.get(with_deadline(request, deadline)).await
        })
        .await;
    // A refusal is an answer, too.
    let answered = match answer {
        Ok(_) => true,
        Err(failure) => failure.kind == ErrorKind::Refused,
    };
    if answered {
        node.measured(began.elapsed());
    }
}

/// What a client wants to know of a cluster.
#[derive(Debug, Default, PartialEq, Eq)]
struct Map {
    /// Stores that the asked one reaches.
    addresses: Vec<String>,
    /// Namespace -> address of the store that leads its (first) region.
    leaders: BTreeMap<String, String>,
}

fn read(status: &ClusterStatusResponse) -> Map {
    let mut addresses = BTreeMap::new();
    // Region -> (term, leader): the report of the highest term is the newest.
    let mut leaders: BTreeMap<u64, (u64, u32)> = BTreeMap::new();
    for store in &status.stores {
        let Some(member) = store.member.as_ref().filter(|_| store.reachable) else {
            continue;
        };
        addresses.insert(member.store_id, member.address.clone());
        for region in store
            .status
            .iter()
            .flat_map(|status| &status.regions)
            .filter(|region| region.leader != 0)
        {
            let newest = leaders.entry(region.region_id).or_default();
            *newest = (*newest).max((region.term, region.leader));
        }
    }
    let leader_of = |namespace_id: u32| {
        // A namespace's keys begin with its id, so it lies where its first key would.
        let first_key = namespace_id.to_be_bytes();
        let region = status.regions.iter().find(|region| {
            region.start[..] <= first_key[..]
                && (region.end.is_empty() || first_key[..] < region.end[..])
        })?;
        addresses.get(&leaders.get(&region.id)?.1).cloned()
    };
    let leaders = status
        .namespaces
        .iter()
        .filter(|row| !row.deleted)
        .filter_map(|row| Some((row.name.clone(), leader_of(row.id)?)))
        .collect();
    Map {
        addresses: addresses.values().cloned().collect(),
        leaders,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdb_proto::admin::StoreSummary;
    use rdb_proto::raft::{Member, NamespaceRow, RegionDescriptor, RegionReport, StoreStatus};

    fn store(id: u32, reachable: bool, regions: &[(u64, u32, u64)]) -> StoreSummary {
        let regions = regions
            .iter()
            .map(|&(region_id, leader, term)| RegionReport {
                region_id,
                leader,
                term,
                ..Default::default()
            })
            .collect();
        StoreSummary {
            member: Some(Member {
                store_id: id,
                address: format!("s{id}:1"),
                ..Default::default()
            }),
            reachable,
            status: reachable.then(|| StoreStatus {
                regions,
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn the_leader_of_the_newest_term_counts_where_it_is_reached() {
        let region = |id, start: &[u8], end: &[u8]| RegionDescriptor {
            id,
            start: start.to_vec().into(),
            end: end.to_vec().into(),
            generation: 1,
        };
        let namespace = |id, name: &str| NamespaceRow {
            id,
            name: name.into(),
            ..Default::default()
        };
        let status = ClusterStatusResponse {
            stores: vec![
                store(1, true, &[(2, 1, 5), (3, 3, 9)]),
                store(2, true, &[(2, 2, 6), (3, 0, 11)]),
                store(3, false, &[]),
            ],
            regions: vec![region(2, &[], &[0, 0, 0, 2]), region(3, &[0, 0, 0, 2], &[])],
            namespaces: vec![namespace(1, "default"), namespace(7, "logs")],
            ..Default::default()
        };
        let map = read(&status);
        assert_eq!(map.addresses, ["s1:1", "s2:1"]);
        // Region 3 is led by store 3, which cannot be reached: no preference for `logs`.
        assert_eq!(
            map.leaders,
            [("default".to_owned(), "s2:1".to_owned())].into()
        );
    }
}
