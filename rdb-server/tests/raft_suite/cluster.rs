//! Three replicas of one region in one process, in simulated time, over a network that can be cut.
//!
//! Everything between the state machine and the transport is the real thing. A store's disk is a
//! [`MemoryEngine`] whose committer runs as a task, so that stopping a store loses what was not
//! synced.

use crate::machine::{TestMachine, contents};
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rdb_proto::raft::{peer_request, peer_response};
use rdb_server::error::Error;
use rdb_server::raft::{
    Command, Inbound, Metrics, NetworkSettings, QuorumView, RaftLogStore, RaftOf, RaftSettings,
    RegionNetwork, SnapshotSpool, StoreNode, raft_config,
};
use rdb_server::transport::{Lane, PeerHandler, Transport, TransportError};
use rdb_storage::{Committer, MemoryEngine};
use rdb_types::{Reason, RegionId, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

pub(crate) const REGION: RegionId = RegionId(7);

pub(crate) fn store_id(id: u64) -> StoreId {
    StoreId::new(id).unwrap()
}

/// What all stores share: who is there, and which ways are cut.
#[derive(Default)]
pub(crate) struct Net {
    state: Mutex<NetState>,
}

#[derive(Default)]
struct NetState {
    handlers: BTreeMap<StoreId, Arc<dyn PeerHandler>>,
    cut: BTreeSet<(StoreId, StoreId)>,
    latency: Duration,
    /// Pieces of snapshots that arrived: offset and length.
    chunks: Vec<(u64, usize)>,
    /// Breaks the connection instead of answering, for this many of the next pieces.
    break_after_chunks: Option<usize>,
    /// Appends with entries that are under way, and the most there ever were.
    appends: (usize, usize),
}

impl Net {
    /// Nothing gets from `from` to `to` any more, and nobody is told.
    pub(crate) fn cut_one_way(&self, from: u64, to: u64) {
        self.state.lock().cut.insert((store_id(from), store_id(to)));
    }

    pub(crate) fn isolate(&self, store: u64) {
        for other in (1..=3).filter(|other| *other != store) {
            self.cut_one_way(store, other);
            self.cut_one_way(other, store);
        }
    }

    pub(crate) fn heal(&self) {
        self.state.lock().cut.clear();
    }

    /// How long each message takes from now on.
    pub(crate) fn set_latency(&self, latency: Duration) {
        self.state.lock().latency = latency;
    }

    pub(crate) fn chunks(&self) -> Vec<(u64, usize)> {
        self.state.lock().chunks.clone()
    }

    /// After `count` more pieces of snapshots the connection breaks, once.
    pub(crate) fn break_after_chunks(&self, count: usize) {
        self.state.lock().break_after_chunks = Some(count);
    }

    /// Hands a request to a store, as another one would.
    pub(crate) fn ask(
        &self,
        from: u64,
        to: u64,
        request: peer_request::Body,
    ) -> BoxFuture<'static, Result<peer_response::Body, Error>> {
        let handler = self.state.lock().handlers[&store_id(to)].clone();
        handler.handle(store_id(from), REGION, request, Duration::from_secs(1))
    }

    pub(crate) fn most_appends_under_way(&self) -> usize {
        self.state.lock().appends.1
    }

    fn is_cut(&self, from: StoreId, to: StoreId) -> bool {
        self.state.lock().cut.contains(&(from, to))
    }
}

/// A message on its way.
type Delivery = BoxFuture<'static, ()>;

/// One store's way into the [`Net`]. A lane to a store is a queue, so that order is kept whatever the
/// latency.
struct NetTransport {
    me: StoreId,
    net: Arc<Net>,
    /// The store was killed: what is left of it reaches nobody.
    dead: Arc<AtomicBool>,
    lanes: Mutex<BTreeMap<(StoreId, Lane), mpsc::UnboundedSender<Delivery>>>,
}

impl Transport for NetTransport {
    fn call(
        &self,
        to: StoreId,
        lane: Lane,
        region: RegionId,
        request: peer_request::Body,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<peer_response::Body, TransportError>> {
        let deadline = Instant::now() + timeout;
        let (me, net) = (self.me, self.net.clone());
        let latency = net.state.lock().latency;
        let arrives = Instant::now() + latency;
        let (sender, answer) = tokio::sync::oneshot::channel();
        let delivery = {
            let (net, dead) = (net.clone(), self.dead.clone());
            async move {
                sleep_until(arrives).await;
                if dead.load(Ordering::Relaxed) || net.is_cut(me, to) {
                    sleep_until(deadline).await;
                    return; // the answer never comes
                }
                let handler = net.state.lock().handlers.get(&to).cloned();
                let Some(handler) = handler else {
                    let _ = sender.send(Err(TransportError::Unreachable {
                        to,
                        why: "it is not there".to_owned(),
                    }));
                    return;
                };
                let breaks = net.note(&request);
                let answered = handler.handle(me, region, request, timeout);
                tokio::spawn(async move {
                    let answer = answered.await;
                    sleep(latency).await;
                    if breaks {
                        let _ = sender.send(Err(TransportError::NoAnswer {
                            to,
                            why: "it broke".to_owned(),
                        }));
                    } else if net.is_cut(to, me) {
                        sleep_until(deadline).await;
                    } else {
                        let _ = sender.send(answer.map_err(TransportError::Refused));
                    }
                });
            }
        };
        #[allow(
            clippy::disallowed_methods,
            reason = "a test's network; who sends has a window"
        )]
        let new_lane = || {
            let (queue, mut messages) = mpsc::unbounded_channel::<Delivery>();
            tokio::spawn(async move {
                while let Some(delivery) = messages.recv().await {
                    delivery.await;
                }
            });
            queue
        };
        let entries = matches!(lane, Lane::Append);
        net.count_append(entries, 1);
        self.lanes
            .lock()
            .entry((to, lane))
            .or_insert_with(new_lane)
            .send(delivery.boxed())
            .unwrap();
        async move {
            let answer = timeout_at(deadline, answer).await;
            net.count_append(entries, -1);
            match answer {
                Ok(Ok(answer)) => answer,
                _ => Err(TransportError::NoAnswer {
                    to,
                    why: "nothing came back in time".to_owned(),
                }),
            }
        }
        .boxed()
    }
}

impl Net {
    /// Counts pieces of snapshots; whether the connection breaks at this one.
    fn note(&self, request: &peer_request::Body) -> bool {
        let peer_request::Body::SnapshotChunk(chunk) = request else {
            return false;
        };
        let mut state = self.state.lock();
        state.chunks.push((chunk.offset, chunk.data.len()));
        let Some(left) = &mut state.break_after_chunks else {
            return false;
        };
        let breaks = *left == 0;
        if breaks {
            state.break_after_chunks = None;
        } else {
            *left -= 1;
        }
        breaks
    }

    fn count_append(&self, counts: bool, by: isize) {
        if counts {
            let (now, most) = &mut self.state.lock().appends;
            *now = now.saturating_add_signed(by);
            *most = (*most).max(*now);
        }
    }
}

struct Handler(Inbound<TestMachine>);

impl PeerHandler for Handler {
    fn handle(
        &self,
        from: StoreId,
        region: RegionId,
        request: peer_request::Body,
        _timeout: Duration,
    ) -> BoxFuture<'static, Result<peer_response::Body, Error>> {
        assert_eq!(region, REGION);
        match self.0.handle(from, request) {
            Ok(answer) => answer,
            Err(_) => {
                futures::future::ready(Err(Error::new(Reason::Unimplemented, "not Raft's"))).boxed()
            }
        }
    }
}

pub(crate) struct Store {
    pub(crate) raft: RaftOf<TestMachine>,
    /// Writes and syncs what the committer was given.
    disk: tokio::task::JoinHandle<()>,
    dead: Arc<AtomicBool>,
}

pub(crate) struct Cluster {
    pub(crate) net: Arc<Net>,
    pub(crate) disks: BTreeMap<u64, Arc<MemoryEngine>>,
    pub(crate) stores: BTreeMap<u64, Store>,
    pub(crate) settings: RaftSettings,
    pub(crate) network: NetworkSettings,
    pub(crate) spool: Arc<dyn SnapshotSpool>,
}

impl Cluster {
    /// Three stores that are not members of anything yet.
    pub(crate) async fn new(
        settings: RaftSettings,
        network: NetworkSettings,
        spool: Arc<dyn SnapshotSpool>,
    ) -> Cluster {
        let disks = (1..=3)
            .map(|id| (id, Arc::new(MemoryEngine::new())))
            .collect();
        let mut cluster = Cluster {
            net: Arc::default(),
            disks,
            stores: BTreeMap::new(),
            settings,
            network,
            spool,
        };
        for id in 1..=3 {
            cluster.start(id).await;
        }
        cluster
    }

    /// Three stores that elected a leader.
    pub(crate) async fn formed(
        settings: RaftSettings,
        network: NetworkSettings,
        spool: Arc<dyn SnapshotSpool>,
    ) -> Cluster {
        let cluster = Cluster::new(settings, network, spool).await;
        let node = |id: u64| StoreNode {
            store_uuid: format!("uuid-{id}"),
            address: format!("store-{id}:1"),
        };
        let members: BTreeMap<u64, StoreNode> = (1..=3).map(|id| (id, node(id))).collect();
        cluster.stores[&1].raft.initialize(members).await.unwrap();
        cluster.leader(&[1, 2, 3]).await;
        cluster
    }

    pub(crate) async fn start(&mut self, id: u64) {
        let disk = self.disks[&id].clone();
        let (committer, mut driver) =
            Committer::manual(disk.clone(), Box::new(|error| panic!("{error}")));
        let writer = tokio::spawn(async move {
            while let Some(group) = driver.next_group().await {
                // A disk that takes a moment, so that things overlap: before the write, and between
                // the write and the sync.
                sleep(Duration::from_micros(100)).await;
                let Some(written) = driver.write(group) else {
                    continue;
                };
                sleep(Duration::from_micros(100)).await;
                driver.sync(written);
            }
        });
        let log = RaftLogStore::open(disk.clone(), committer, REGION).unwrap();
        let machine = TestMachine::new(REGION, id, disk);
        let dead = Arc::new(AtomicBool::new(false));
        let transport = NetTransport {
            me: store_id(id),
            net: self.net.clone(),
            dead: dead.clone(),
            lanes: Mutex::default(),
        };
        let network = RegionNetwork::new(
            REGION,
            Arc::new(transport),
            Arc::new(QuorumView::new()),
            self.network.clone(),
        );
        let config = raft_config("test", &self.settings).unwrap();
        let raft = RaftOf::new(id, config, network, log, machine)
            .await
            .unwrap();
        let handler = Handler(Inbound::new(raft.clone(), REGION, self.spool.clone()));
        self.net
            .state
            .lock()
            .handlers
            .insert(store_id(id), Arc::new(handler));
        self.stores.insert(
            id,
            Store {
                raft,
                disk: writer,
                dead,
            },
        );
    }

    /// The process dies: what its disk had not synced is lost.
    pub(crate) async fn kill(&mut self, id: u64) {
        self.net.state.lock().handlers.remove(&store_id(id));
        let store = self.stores.remove(&id).unwrap();
        store.dead.store(true, Ordering::Relaxed);
        store.disk.abort();
        let _ = store.disk.await;
        // What waits for the disk would wait for ever, the core included.
        let _ = tokio::time::timeout(Duration::from_millis(1), store.raft.shutdown()).await;
        // The state machine writes past the committer; all of it is lost.
        self.disks[&id].crash(0);
    }

    pub(crate) fn metrics(&self, id: u64) -> Metrics {
        use openraft::async_runtime::WatchReceiver;
        self.stores[&id].raft.metrics().borrow_watched().clone()
    }

    /// Waits until one of `among` leads and the others follow it.
    pub(crate) async fn leader(&self, among: &[u64]) -> u64 {
        eventually("a leader", || {
            let leader = self
                .metrics(among[0])
                .current_leader
                .filter(|leader| among.contains(leader))?;
            let terms: BTreeSet<u64> = among
                .iter()
                .map(|id| self.metrics(*id).current_term)
                .collect();
            let agreed = among
                .iter()
                .all(|id| self.metrics(*id).current_leader == Some(leader));
            (agreed && terms.len() == 1 && self.metrics(leader).state.is_leader()).then_some(leader)
        })
        .await
    }

    /// Writes through `leader`, many at once; answers which were acknowledged within the time given.
    pub(crate) async fn write(
        &self,
        leader: u64,
        keys: impl IntoIterator<Item = String>,
        within: Duration,
    ) -> Vec<String> {
        let raft = &self.stores[&leader].raft;
        let writes = keys.into_iter().map(|key| async move {
            let write = async {
                // A leader refuses writes until a quorum has followed it; then nothing was written.
                while raft
                    .client_write(Command(key.clone().into()))
                    .await
                    .is_err()
                {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(within, write)
                .await
                .ok()
                .map(|()| key.clone())
        });
        futures::future::join_all(writes)
            .await
            .into_iter()
            .flatten()
            .collect()
    }

    /// Writes all of `keys` through whoever leads among `among`.
    pub(crate) async fn write_all(&self, among: &[u64], keys: Vec<String>) {
        let leader = self.leader(among).await;
        let acknowledged = self
            .write(leader, keys.clone(), Duration::from_secs(5))
            .await;
        assert_eq!(
            acknowledged.len(),
            keys.len(),
            "writes were lost although nothing was broken"
        );
    }

    /// Waits until all stores have applied all that is in any log, and hold the same.
    pub(crate) async fn converged(&self) -> Vec<(bytes::Bytes, u64)> {
        // After all were down, what is committed shows only once a leader has an entry of its own in.
        self.leader(&self.stores.keys().copied().collect::<Vec<_>>())
            .await;
        eventually("all stores to be equal", || {
            let metrics = self.stores.keys().map(|id| self.metrics(*id));
            let at: BTreeSet<_> = metrics
                .map(|m| (m.last_applied.map(|id| id.index), m.last_log_index))
                .collect();
            let contents: BTreeSet<_> = self
                .stores
                .keys()
                .map(|id| contents(&*self.disks[id], REGION))
                .collect();
            let all_applied = at.len() == 1 && at.iter().all(|(applied, last)| applied == last);
            (all_applied && contents.len() == 1).then(|| contents.into_iter().next().unwrap())
        })
        .await
    }
}

/// What `what` answers once it does, within a simulated minute.
pub(crate) async fn eventually<T>(waiting_for: &str, what: impl Fn() -> Option<T>) -> T {
    for _ in 0..12_000 {
        if let Some(found) = what() {
            return found;
        }
        sleep(Duration::from_millis(5)).await;
    }
    panic!("waited a minute for {waiting_for}");
}

pub(crate) fn keys(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{name}-{n:05}")).collect()
}
