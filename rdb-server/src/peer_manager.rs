//! The peers of this store: from a region's id to its replica.
//!
//! Owns the map and the life of the peers, and takes the requests of other stores to them. Never looks
//! into a log, and knows no namespace's name.

use crate::clock::Standing;
use crate::cluster::Cluster;
use crate::contacts::Contacts;
use crate::error::Error;
use crate::host::{DiskWatch, Process};
use crate::modes::mismatch::Mismatches;
use crate::modes::since::SwitchTimes;
use crate::peer::{Peer, PeerContext};
use crate::room;
use crate::router::watch::Watches;
use crate::transport::PeerHandler;
use futures::future::BoxFuture;
use parking_lot::{Mutex, MutexGuard, RwLock};
use rdb_proto::convert;
use rdb_proto::raft::{self, peer_request, peer_response};
use rdb_types::{Policies, Reason, RegionId, StoreId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// What the store says of itself when another one asks for its status.
#[derive(Clone, Debug, Default)]
pub struct StoreFacts {
    /// Id, disk, address.
    pub member: raft::Member,
    /// Where its HTTP port is.
    pub http_address: String,
}

/// All peers of this store.
pub struct PeerManager {
    context: PeerContext,
    peers: RwLock<BTreeMap<RegionId, Arc<Peer>>>,
    contacts: Arc<Contacts>,
    cluster: Arc<Cluster>,
    facts: StoreFacts,
    mismatches: Mutex<Mismatches>,
    switches: Mutex<SwitchTimes>,
    disk: DiskWatch,
    watches: Watches,
    started: Instant,
}

impl PeerManager {
    /// No peers yet.
    pub fn new(context: PeerContext, cluster: Arc<Cluster>, facts: StoreFacts) -> Arc<PeerManager> {
        let contacts = context.contacts.clone();
        Arc::new(PeerManager {
            context,
            peers: RwLock::default(),
            contacts,
            cluster,
            facts,
            mismatches: Mutex::default(),
            switches: Mutex::default(),
            disk: DiskWatch::default(),
            watches: Watches::default(),
            started: Instant::now(),
        })
    }

    /// The watches that this store serves.
    pub fn watches(&self) -> &Watches {
        &self.watches
    }

    /// What all peers share.
    pub fn context(&self) -> &PeerContext {
        &self.context
    }

    /// Starts the peer of a region, unless it runs already.
    pub async fn open(&self, descriptor: raft::RegionDescriptor) -> Result<Arc<Peer>, Error> {
        let region = RegionId(descriptor.id);
        if let Some(peer) = self.peer(region) {
            return Ok(peer);
        }
        let founders = self.cluster.plan().map_or_else(Vec::new, |plan| {
            let ids = plan.members.iter();
            ids.filter_map(|member| StoreId::new(u64::from(member.store_id)))
                .collect()
        });
        let peer = Peer::start(&self.context, descriptor, founders).await?;
        self.peers.write().insert(region, peer.clone());
        Ok(peer)
    }

    /// The peer of a region.
    pub fn peer(&self, region: RegionId) -> Option<Arc<Peer>> {
        self.peers.read().get(&region).cloned()
    }

    /// Every peer, in the order of their ids.
    pub fn peers(&self) -> Vec<Arc<Peer>> {
        self.peers.read().values().cloned().collect()
    }

    /// The peers of data regions, in the order of their ranges.
    pub fn data_peers(&self) -> Vec<Arc<Peer>> {
        let mut peers: Vec<_> = self
            .peers()
            .into_iter()
            .filter(|peer| peer.id() != RegionId::META)
            .collect();
        peers.sort_by(|a, b| a.descriptor().start.cmp(&b.descriptor().start));
        peers
    }

    /// What this store's replicas of the data regions know of themselves.
    pub fn data_reports(&self) -> Vec<raft::RegionReport> {
        self.data_peers().iter().map(|peer| peer.report()).collect()
    }

    /// The peer of the region that holds a global key.
    pub fn peer_of_key(&self, global: &[u8]) -> Option<Arc<Peer>> {
        self.peers
            .read()
            .values()
            .find(|peer| peer.covers(global))
            .cloned()
    }

    /// How long ago another store was heard of; of one that never was, how long this store has run.
    pub fn contact_age(&self, store: StoreId) -> Duration {
        let age = self.contacts.age(store);
        age.unwrap_or_else(|| self.started.elapsed())
    }

    /// For how long this store has run.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// What this store says of itself.
    pub fn status(&self) -> raft::StoreStatus {
        let disk = self.disk.look(self.context.engine.as_ref());
        let disk = disk.map(|disk| raft::DiskStatus {
            reserve_bytes: room::kept_bytes(self.context.reserve_bytes, disk.total_bytes),
            held_bytes: self.context.reserve.held_bytes(),
            room: self.context.rooms.own().to_wire(),
            stalled: self.context.rooms.stalled(),
            ..disk
        });
        // Without a disk of its own it is a guest in somebody's process, whose memory says nothing of it.
        let resident_bytes = disk.and_then(|_| Process::now().resident_bytes);
        let under_way = self.switches().under_way(Instant::now()).into_iter();
        let switches = under_way.map(|(id, since)| raft::SwitchUnderWay {
            namespace_id: id.0,
            for_ms: since.as_millis() as u64,
        });
        raft::StoreStatus {
            member: Some(self.facts.member.clone()),
            regions: self.peers().iter().map(|peer| peer.report()).collect(),
            declared: self.declared(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: self.started.elapsed().as_millis() as u64,
            http_address: self.facts.http_address.clone(),
            clock: Some(self.clock_status()),
            mismatches: self.mismatches().to_wire(),
            disk,
            resident_bytes: resident_bytes.unwrap_or(0),
            switches: switches.collect(),
            served: self.context.counters.served(),
        }
    }

    /// Which stores disagree with the cluster about modes, as far as this one looks after them. Held for
    /// moments only.
    pub fn mismatches(&self) -> MutexGuard<'_, Mismatches> {
        self.mismatches.lock()
    }

    /// Which switches of modes are under way, and since when. Held for moments only.
    pub fn switches(&self) -> MutexGuard<'_, SwitchTimes> {
        self.switches.lock()
    }

    fn clock_status(&self) -> raft::ClockStatus {
        let clock = &self.context.clock;
        let standing = clock.standing();
        raft::ClockStatus {
            off: matches!(standing, Standing::Off(_)),
            unconfirmed: matches!(standing, Standing::Unconfirmed(_)),
            skew_ms: clock.skew().map(|skew| skew.0),
            hybrid_unix_ms: clock.hybrid_ms(),
        }
    }

    /// The namespaces that the configuration in force declares.
    pub fn declared(&self) -> Vec<raft::DeclaredNamespace> {
        let config = self.context.config.load();
        let with_mode = config
            .namespaces
            .iter()
            .filter_map(|(name, namespace)| Some((name, namespace, namespace.mode?)));
        with_mode
            .map(|(name, namespace, mode)| raft::DeclaredNamespace {
                name: name.clone(),
                mode: convert::mode_to_wire(mode),
                policies: Some(convert::policies_to_wire(&Policies {
                    durability: namespace.durability,
                    max_lag_ms: namespace.max_lag.map_or(0, |lag| lag.as_millis() as u64),
                    ttl_ms: namespace.ttl.map_or(0, |ttl| ttl.as_millis() as u64),
                    conflict_log_bytes: namespace.conflict_log.as_bytes(),
                })),
            })
            .collect()
    }

    /// What this store says of itself in the store table.
    pub fn facts(&self) -> &StoreFacts {
        &self.facts
    }

    /// Hands over what this store leads, so that its going costs nobody an election.
    pub async fn hand_over(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        for peer in self.peers() {
            if let Err(error) = peer.transfer_leader(None).await {
                tracing::warn!(region = peer.id().0, %error, "the lead is not handed over");
            }
        }
        while Instant::now() < deadline
            && self
                .peers()
                .iter()
                .any(|peer| peer.quorum().is_leader() && peer.quorum().voters().len() > 1)
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // What was taken before is answered before the streams are cut.
        while Instant::now() < deadline && self.peers().iter().any(|peer| peer.waiting() > 0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    /// Stops all peers.
    pub async fn shutdown(&self) {
        self.watches.close();
        for peer in self.peers() {
            peer.shutdown().await;
        }
        self.peers.write().clear();
    }
}

impl PeerHandler for PeerManager {
    fn handle(
        &self,
        from: StoreId,
        region: RegionId,
        request: peer_request::Body,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<peer_response::Body, Error>> {
        self.contacts.heard_from(from);
        if let peer_request::Body::Status(_) = request {
            let status = self.status();
            return Box::pin(async move { Ok(peer_response::Body::Status(status)) });
        }
        if let peer_request::Body::ClockReading(_) = request {
            let unix_ms = self.context.clock.unix_ms();
            let room = self.context.rooms.own().to_wire();
            let reading = raft::ClockReading { unix_ms, room };
            let reading = peer_response::Body::ClockReading(reading);
            return Box::pin(async move { Ok(reading) });
        }
        match self.peer(region) {
            Some(peer) => {
                // Whoever brought the request: what it starts is this store's.
                let tasks = self.context.tasks.clone();
                let answer = tasks.within(|| peer.handle(from, request, timeout));
                Box::pin(async move { tasks.enter(answer).await })
            }
            None => Box::pin(async move {
                Err(Error::new(
                    Reason::NotReady,
                    format!("region {region} is not open here yet"),
                ))
            }),
        }
    }
}
