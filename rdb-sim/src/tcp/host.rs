//! One store of this mode: a disk that stays, and a process on a simulated host that comes and goes.
//!
//! Owns starting the store of `rdb-server` with its real gRPC edges over simulated sockets, and looking at
//! it from inside while it runs. Does not decide when it ends: the host's runtime is dropped, with every
//! task and socket in it.

use super::bugs::{Bug, Watched};
use super::net::{Cable, Port};
use crate::bugs::Bugs;
use crate::clock::EPOCH_MS;
use crate::disk::Disk;
use crate::invariants::{Findings, liveness};
use crate::observer::Observer;
use crate::trace::Trace;
use rdb_server::clock::PhysicalClock;
use rdb_server::config::{Config, SplitKey};
use rdb_server::raft::MemorySpool;
use rdb_server::server::Edges;
use rdb_server::store::{self, StoreSetup};
use rdb_server::tasks::{Blocking, Tasks};
use rdb_storage::Committer;
use rdb_types::StoreId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Where stores listen.
pub const PORT: u16 = 50051;
/// How often the inside of a store is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// What all hosts of a run share.
#[derive(Clone)]
pub struct Common {
    /// What happened.
    pub trace: Trace,
    /// What was found.
    pub findings: Findings,
    /// Who looks at the stores.
    pub observer: Observer,
    /// A rule that is broken on purpose.
    pub bug: Option<Bug>,
}

/// A store of the simulated cluster.
pub struct Host {
    /// Its id.
    pub id: StoreId,
    /// Its disk.
    pub disk: Arc<Disk>,
    common: Common,
    engine: Arc<dyn rdb_storage::Engine>,
    /// Finished snapshots are on the disk, and survive.
    spool: Arc<MemorySpool>,
    config: Config,
    seed: u64,
    starts: AtomicU64,
    /// The store may not go on: whoever runs it starts it again.
    failed: AtomicBool,
    /// The digests are to be compared with the data.
    recount: AtomicBool,
}

/// A clock that is a little off, and right in its pace.
struct HostClock {
    trace: Trace,
    ahead_ms: u64,
}

impl PhysicalClock for HostClock {
    fn unix_ms(&self) -> u64 {
        EPOCH_MS + self.ahead_ms + self.trace.now_ms()
    }

    fn wall_unix_ms(&self) -> u64 {
        self.unix_ms()
    }
}

/// The network's name of a store.
pub fn name_of(id: StoreId) -> String {
    format!("store-{id}")
}

impl Host {
    /// A store that never ran.
    pub fn new(id: StoreId, seed: u64, ids: &[StoreId], common: Common) -> Arc<Host> {
        let mut config = Config::default();
        config.store.id = id.get();
        let peer = |id: &StoreId| (id.get(), format!("{}:{PORT}", name_of(*id)));
        config.cluster.peers = ids.iter().map(peer).collect::<BTreeMap<_, _>>();
        // As in the other mode: two data regions, and snapshots after hundreds of entries.
        config.cluster.bootstrap_split = vec![SplitKey {
            namespace_id: 1,
            key: b"m".to_vec(),
        }];
        config.raft.snapshot_after = 300;
        let disk = Disk::new(seed ^ 0xd15c);
        let lie = (common.bug == Some(Bug::SyncIsALie))
            .then_some(crate::bugs::Bug::AcknowledgeBeforeSync);
        Arc::new(Host {
            id,
            engine: Bugs::new(lie).engine(id, disk.engine.clone()),
            disk,
            common,
            spool: Arc::default(),
            config,
            seed,
            starts: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            recount: AtomicBool::new(false),
        })
    }

    /// Whether it ended by itself since the last start.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// It is about to start.
    pub fn clear(&self) {
        self.failed.store(false, Ordering::Relaxed);
    }

    /// Asks for the digests to be compared with the data, at the next look. Nothing may be going on.
    pub fn recount(&self) {
        self.recount.store(true, Ordering::Relaxed);
    }

    /// The process: runs until its host is taken away.
    pub async fn run(self: Arc<Host>) {
        if let Err(error) = self.serve().await {
            let what = format!("store {} does not start: {error}", self.id);
            self.common.trace.note(format_args!("{what}"));
            self.common.findings.report(liveness::NAME, what);
        }
        self.failed.store(true, Ordering::Relaxed);
        std::future::pending::<()>().await;
    }

    /// Ends when the store may not go on.
    async fn serve(self: &Arc<Host>) -> Result<(), store::StartError> {
        let Common {
            trace, observer, ..
        } = &self.common;
        let start = self.starts.fetch_add(1, Ordering::Relaxed);
        observer.restarted(self.id);
        let seed = self.seed.wrapping_add(start.wrapping_mul(0x9e37));
        let tasks = Tasks::new(seed, Blocking::Inline);
        let host = self.clone();
        let (committer, driver) = Committer::manual(
            self.engine.clone(),
            Box::new(move |_| host.failed.store(true, Ordering::Relaxed)),
        );
        // No order stops this disk: hosts are taken away from outside.
        tasks.spawn(
            self.disk
                .clone()
                .drive(self.id, driver, trace.clone(), |_| {}),
        );
        let setup = StoreSetup {
            config: self.config.clone(),
            disk: store::Disk {
                engine: self.engine.clone(),
                committer,
                spool: self.spool.clone(),
                store_uuid: format!("disk-{}", self.id),
                reserve: Arc::new(rdb_storage::Boundless),
                incarnation: seed,
                data_dir: None,
            },
            clock: Arc::new(HostClock {
                trace: trace.clone(),
                ahead_ms: self.seed % 100,
            }),
            tasks: tasks.clone(),
            address: format!("{}:{PORT}", name_of(self.id)),
            http_address: format!("{}:80", name_of(self.id)),
        };
        let cable = Arc::new(Cable {
            trace: trace.clone(),
        });
        let (seen, bug) = (observer.clone(), self.common.bug);
        let wrap: rdb_server::server::WrapTransport =
            Box::new(move |me, inner| Watched::new(me, inner, seen, bug));
        let edges = tasks.within(|| Edges::open(setup, cable, Some(wrap)))?;
        let port = Port::bind(PORT, trace.clone())
            .await
            .map_err(|error| store::StartError::Disk(format!("port {PORT}: {error}")))?;
        let (mut served, stop) = (JoinSet::new(), CancellationToken::new());
        edges.serve(&mut served, port, &stop);
        trace.note(format_args!("store {}: start", self.id));
        let core = edges.core();
        let failure = core.failure();
        core.start();
        while failure.borrow().is_none() && !self.has_failed() {
            sleep(LOOK).await;
            let disk = self.disk.engine.as_ref();
            observer.clock(self.id, core, trace.now_ms());
            observer.look(self.id, core, disk);
            if self.recount.swap(false, Ordering::Relaxed) {
                observer.recount(self.id, core, disk);
            }
        }
        trace.note(format_args!("store {}: may not go on", self.id));
        Ok(())
    }
}
