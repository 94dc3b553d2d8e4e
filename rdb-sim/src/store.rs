//! One simulated store: a disk and a clock that stay, and a process that comes and goes.
//!
//! Owns starting the very store of `rdb-server` over simulated edges, and ending it without warning. Does
//! not decide when.

use crate::bugs::Bugs;
use crate::clock::MachineClock;
use crate::disk::{Disk, DiskRoom, Point};
use crate::network::{Endpoint, Network};
use crate::switch_watch::SwitchWatch;
use crate::trace::Trace;
use parking_lot::Mutex;
use rdb_server::config::Config;
use rdb_server::kv_service::KvService;
use rdb_server::raft::MemorySpool;
use rdb_server::store::reload::NewConfig;
use rdb_server::store::{self, StoreCore, StoreSetup};
use rdb_server::tasks::{Blocking, Tasks};
use rdb_storage::Committer;
use rdb_types::{Mode, StoreId};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::mpsc;

/// What ended a store's process from inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop at this point of a sync.
    At(Point),
    /// Its disk can no longer be trusted.
    Disk,
    /// It said that it may not go on; whoever runs it starts it again.
    Failed,
    /// It was told to stop right after a vote had left it.
    AfterVote,
    /// When a step of a change of mode took effect.
    AtStep,
}

/// A store of the simulated cluster.
pub struct SimStore {
    /// Its id.
    pub id: StoreId,
    /// Its disk.
    pub disk: Arc<Disk>,
    /// Its machine's clock.
    pub clock: Arc<MachineClock>,
    /// Its file.
    config: Arc<Mutex<Config>>,
    uuid: String,
    /// Finished snapshots are on the disk, and survive.
    spool: Arc<MemorySpool>,
    seed: u64,
    incarnation: u64,
    process: Option<Process>,
}

/// What a crash takes away.
#[derive(Clone)]
pub struct Process {
    /// The store.
    pub core: Arc<StoreCore>,
    /// What its clients talk to.
    pub kv: KvService,
    /// What it runs.
    pub tasks: Tasks,
    /// Whether it has ended.
    pulled: Arc<Mutex<bool>>,
    stop: Arc<dyn Fn(Ended) + Send + Sync>,
}

impl Process {
    /// Ends it at once, from inside a task of its own, too.
    pub fn stop(&self, how: Ended) {
        (self.stop)(how);
    }
}

impl SimStore {
    /// A store that never ran.
    pub fn new(
        id: StoreId,
        seed: u64,
        clock: Arc<MachineClock>,
        peers: &BTreeMap<u16, String>,
        tune: impl FnOnce(&mut Config),
    ) -> SimStore {
        let mut config = Config::default();
        config.store.id = id.get();
        config.cluster.peers.clone_from(peers);
        tune(&mut config);
        SimStore {
            id,
            disk: Disk::new(seed ^ 0xd15c),
            clock,
            config: Arc::new(Mutex::new(config)),
            uuid: format!("disk-{id}"),
            spool: Arc::default(),
            seed,
            incarnation: 0,
            process: None,
        }
    }

    /// Its file is edited: it declares a namespace in another mode. A running store reads it again.
    pub fn declare(&self, namespace: &str, mode: Mode) {
        let mut config = self.config.lock();
        let declared = config.namespaces.entry(namespace.to_owned());
        declared.or_default().mode = Some(mode);
        drop(config);
        if let Some(process) = &self.process {
            // What is legal is taken up.
            let _ = process.core.reloader().reload();
        }
    }

    /// The running process.
    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    /// Starts the process. `ended` hears when it ends from inside.
    ///
    /// # Errors
    /// The store refuses to start on this disk.
    pub fn start(
        &mut self,
        network: &Network,
        bugs: &Bugs,
        switches: &SwitchWatch,
        trace: &Trace,
        ended: &mpsc::Sender<(StoreId, Ended)>,
    ) -> Result<(), store::StartError> {
        self.incarnation += 1;
        let tasks = Tasks::new(
            self.seed
                .wrapping_add(self.incarnation.wrapping_mul(0x9e37)),
            Blocking::Inline,
        );
        let pulled = Arc::new(Mutex::new(false));
        let id = self.id;
        let engine = switches.engine(id, bugs.engine(id, self.disk.engine.clone()));
        let stop = {
            let (network, tasks, ended) = (network.clone(), tasks.clone(), ended.clone());
            let pulled = pulled.clone();
            move |how: Ended| {
                if std::mem::replace(&mut *pulled.lock(), true) {
                    return;
                }
                network.unplug(id);
                tasks.abort_all();
                // There is room for one word of each store at a time.
                let _ = ended.try_send((id, how));
            }
        };
        let (fatal, at) = (stop.clone(), stop.clone());
        let (committer, driver) =
            Committer::manual(engine.clone(), Box::new(move |_| fatal(Ended::Disk)));
        tasks.spawn(
            self.disk
                .clone()
                .drive(id, driver, trace.clone(), move |point| {
                    at(Ended::At(point));
                }),
        );
        let setup = StoreSetup {
            config: self.config.lock().clone(),
            disk: store::Disk {
                engine,
                committer,
                spool: self.spool.clone(),
                store_uuid: self.uuid.clone(),
                reserve: Arc::new(DiskRoom(self.disk.engine.clone())),
                incarnation: self.seed.wrapping_add(self.incarnation),
                data_dir: None,
            },
            clock: Arc::new(self.clock.of_process()),
            tasks: tasks.clone(),
            address: format!("store-{id}"),
            http_address: format!("store-{id}-http"),
        };
        let opened = tasks.within(|| StoreCore::open(setup, |me, _| network.transport(me)));
        let core = match opened {
            Ok(core) => core,
            Err(error) => {
                // The process ends before it has said anything to anybody, and what it wrote may be lost.
                tasks.abort_all();
                let keep = self.disk.some_unsynced();
                self.disk.engine.crash(keep);
                return Err(error);
            }
        };
        network.plug(
            id,
            Endpoint {
                incarnation: self.incarnation,
                handler: core.manager().clone(),
                cluster: core.cluster().clone(),
                tasks: tasks.clone(),
            },
        );
        core.start();
        let file = self.config.clone();
        core.reloader().reads(Box::new(move || {
            Ok(NewConfig {
                config: file.lock().clone(),
                warnings: Vec::new(),
            })
        }));
        let (mut failure, failed) = (core.failure(), stop.clone());
        // Not one of the store's tasks: it outlives them to see them fail.
        tokio::spawn(async move {
            if failure.wait_for(Option::is_some).await.is_ok() {
                failed(Ended::Failed);
            }
        });
        let kv = KvService::new(core.router(), core.config().clone(), core.metrics().clone());
        trace.note(format_args!("store {id}: start"));
        self.process = Some(Process {
            core,
            kv,
            tasks,
            pulled,
            stop: Arc::new(stop),
        });
        Ok(())
    }

    /// Ends the process without warning, and takes from the disk what was not synced, but for the first
    /// `keep` batches of it (`None`: a random number).
    /// Returns how many survived.
    pub async fn crash(&mut self, network: &Network, trace: &Trace, keep: Option<usize>) -> usize {
        let Some(process) = self.process.take() else {
            return 0;
        };
        *process.pulled.lock() = true;
        network.unplug(self.id);
        process.tasks.abort_all();
        let tasks = process.tasks.clone();
        drop(process);
        // Each task is dropped when the runtime comes by it.
        while tasks.count() > 0 {
            tokio::task::yield_now().await;
        }
        let unsynced = self.disk.engine.unsynced_batches();
        let keep = keep
            .unwrap_or_else(|| self.disk.some_unsynced())
            .min(unsynced);
        trace.note(format_args!(
            "store {}: crash, {} of {unsynced} unsynced batches survive",
            self.id, keep
        ));
        self.disk.engine.crash(keep);
        self.disk.order(|orders| orders.stop_at = None);
        keep
    }
}
