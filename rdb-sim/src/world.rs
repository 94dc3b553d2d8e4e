//! One run: a cluster, its clients, its faults; then healing, then the verdict.
//!
//! Owns the order of a run and everything in it. Pure in this sense: what comes out follows from
//! [`RunOptions`] and from nothing else.

use crate::aim::Aim;
use crate::ballot::Ballot;
use crate::bugs::{Bug, Bugs};
use crate::clock::MachineClock;
use crate::disk::Orders;
use crate::door::{Door, Refusal};
use crate::eventual_clients::{self, EventualClient, EventualLedger};
use crate::eventual_watch::{EventualLooked, EventualWatch, ShortLogs};
use crate::invariants::{Findings, Violation, convergence, done_or_undone, linearizable};
use crate::invariants::{liveness, no_panic};
use crate::network::{Network, Tap, Weather};
use crate::observer::{Looked, Observer};
use crate::plan::{Ask, Fault, Keep, Place, Planned, Step, plan};
use crate::store::{Ended, SimStore};
use crate::switch_watch::{SwitchWatch, Switches};
use crate::switched_clients::{self, SwitchedClient, SwitchedLedger};
use crate::trace::Trace;
use crate::workload::{self, Client, Ledger, Tally};
use rdb_proto::convert;
use rdb_proto::raft::SetTarget;
use rdb_server::config::{Config, NamespaceConfig, SplitKey};
use rdb_server::store::StartError;
use rdb_server::transport::Lane;
use rdb_storage::{Family, StorageError};
use rdb_types::{Durability, Mode, RegionId, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

/// How often the inside of the stores is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How long a store stays down that ended by itself.
const RESTART: Duration = Duration::from_millis(500);
/// Faults begin when the cluster has had time to form.
const FIRST_FAULT_MS: u64 = 2_000;

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Everything follows from it.
    pub seed: u64,
    /// The faults; `None`: those that follow from the seed.
    pub plan: Option<Vec<Planned>>,
    /// A rule that is broken on purpose.
    pub bug: Option<Bug>,
    /// Numbers of the plan's faults that are left out.
    pub without: BTreeSet<usize>,
    /// Stores.
    pub stores: u64,
    /// Clients.
    pub clients: u64,
    /// Operations a second, of all clients together, while nothing is broken.
    pub rate: u64,
    /// Clients of eventual namespaces, and their operations a second.
    pub eventual: (u64, u64),
    /// Clients of the namespace that is switched, and their operations a second.
    pub switched: (u64, u64),
    /// How long faults go on, in simulated seconds.
    pub fault_s: u64,
    /// Print every event.
    pub print: bool,
}

impl RunOptions {
    /// The usual run of a seed.
    pub fn new(seed: u64) -> RunOptions {
        RunOptions {
            seed,
            plan: None,
            bug: None,
            without: BTreeSet::new(),
            stores: 3,
            clients: 8,
            rate: 200,
            eventual: (5, 150),
            switched: (4, 80),
            fault_s: 60,
            print: false,
        }
    }
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// What did not hold.
    pub violations: Vec<Violation>,
    /// What went wrong on purpose.
    pub plan: Vec<Planned>,
    /// The hash of all events, and their number.
    pub trace: (u64, u64),
    /// Simulated milliseconds.
    pub simulated_ms: u64,
    /// Starts of stores after a crash.
    pub restarts: u64,
    /// What clients saw.
    pub tally: Tally,
    /// What was looked at inside.
    pub looked: Looked,
    /// What was looked at of eventual namespaces.
    pub eventual: EventualLooked,
    /// What was looked at of switches.
    pub switches: Switches,
    /// Switches that began by the votes of files alone.
    pub voted: u64,
    /// Writes of the switched namespace that were acknowledged: as strong, as eventual.
    pub switched_acknowledged: (usize, usize),
    /// Eventual writes that each store acknowledged in each simulated second.
    pub eventual_by_second: BTreeMap<(StoreId, u64), u64>,
}

/// Runs it.
///
/// # Errors
/// The system gives no runtime.
pub fn run(options: &RunOptions) -> std::io::Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()?;
    no_panic::listen();
    let mut report = runtime.block_on(async { World::new(options).run().await });
    drop(runtime);
    let panics = no_panic::heard().into_iter().map(|what| Violation {
        invariant: no_panic::NAME,
        what,
    });
    report.violations.extend(panics);
    Ok(report)
}

struct World {
    options: RunOptions,
    ids: Vec<StoreId>,
    stores: BTreeMap<StoreId, SimStore>,
    network: Network,
    door: Door,
    bugs: Bugs,
    aim: Arc<Aim>,
    observer: Observer,
    eventual: EventualWatch,
    switches: SwitchWatch,
    ballot: Ballot,
    ledger: Ledger,
    eventual_ledger: EventualLedger,
    switched_ledger: SwitchedLedger,
    /// Stores whose clock was ever moved or made to drift, and those that were moved far ahead.
    wild: BTreeSet<StoreId>,
    far_ahead: BTreeSet<StoreId>,
    findings: Findings,
    trace: Trace,
    began: Instant,
    says_ended: mpsc::Sender<(StoreId, Ended)>,
    hears_ended: mpsc::Receiver<(StoreId, Ended)>,
    /// When stores that are down are started again.
    due: BTreeMap<StoreId, Instant>,
    /// How long a store stays down that ends by an aimed crash.
    down: BTreeMap<StoreId, Duration>,
    /// How long a store stays down that dies at a step of a switch, in milliseconds.
    at_step_ms: u64,
    /// Stores with flipped bits. They may refuse to serve, or to start.
    damaged: BTreeSet<StoreId>,
    restarts: u64,
}

impl World {
    fn new(options: &RunOptions) -> World {
        let seed = options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5eed;
        let ids: Vec<StoreId> = (1..=options.stores).filter_map(StoreId::new).collect();
        let trace = Trace::new(options.print);
        let findings = Findings::default();
        let observer = Observer::new(findings.clone(), trace.clone());
        let bugs = Bugs::new(options.bug);
        let door = Door::new(seed ^ 0xd00);
        let aim = Arc::new(Aim::new(door.clone()));
        let peers: BTreeMap<u16, String> = ids
            .iter()
            .map(|id| (id.get(), format!("store-{id}")))
            .collect();
        let (says_ended, hears_ended) = mpsc::channel(64);
        let began = Instant::now();
        let stores = ids.iter().map(|id| {
            let clock = MachineClock::new(began);
            let seed = seed ^ u64::from(id.get()).wrapping_mul(0x5702);
            (*id, SimStore::new(*id, seed, clock, &peers, tune))
        });
        let stores: BTreeMap<StoreId, SimStore> = stores.collect();
        let disks = stores.iter().map(|(id, store)| (*id, store.disk.clone()));
        let eventual = EventualWatch::new(findings.clone(), trace.clone(), disks.collect());
        // The observers see what was sent, and the bugs change it after that.
        let mut taps: Vec<Arc<dyn Tap>> =
            vec![Arc::new(observer.clone()), Arc::new(eventual.clone())];
        taps.extend(bugs.taps());
        taps.push(Arc::new(ShortLogs(options.seed.is_multiple_of(4))));
        taps.push(aim.clone());
        let network = Network::new(seed ^ 0x2e7, trace.clone(), taps);
        World {
            options: options.clone(),
            stores,
            network,
            door,
            bugs,
            observer,
            eventual,
            aim: aim.clone(),
            switches: SwitchWatch::new(findings.clone(), trace.clone(), aim.clone()),
            ballot: Ballot::new(findings.clone(), trace.clone(), &ids),
            ledger: Ledger::new(findings.clone(), trace.clone()),
            eventual_ledger: EventualLedger::new(findings.clone(), trace.clone()),
            switched_ledger: SwitchedLedger::new(findings.clone(), trace.clone()),
            ids,
            wild: BTreeSet::new(),
            far_ahead: BTreeSet::new(),
            findings,
            trace,
            began,
            says_ended,
            hears_ended,
            due: BTreeMap::new(),
            down: BTreeMap::new(),
            at_step_ms: 0,
            damaged: BTreeSet::new(),
            restarts: 0,
        }
    }

    async fn run(mut self) -> Report {
        let until_ms = FIRST_FAULT_MS + self.options.fault_s * 1_000;
        let plan = self
            .options
            .plan
            .take()
            .unwrap_or_else(|| plan(self.options.seed, &self.ids, FIRST_FAULT_MS, until_ms));
        let switched = self.options.switched.0 > 0;
        let network = tokio::spawn(self.network.clone().run());
        for id in self.ids.clone() {
            self.start(id);
        }
        let mut clients = JoinSet::new();
        let until = self.began + Duration::from_millis(until_ms);
        let pace = Duration::from_secs(self.options.clients) / (self.options.rate.max(1) as u32);
        for number in 0..self.options.clients {
            let client = Client::new(
                number,
                self.options.seed,
                self.door.clone(),
                self.ledger.clone(),
                self.ids.clone(),
            );
            clients.spawn(client.run(until, pace));
        }
        let (count, rate) = self.options.eventual;
        let pace = Duration::from_secs(count) / (rate.max(1) as u32);
        for number in 0..count {
            let client = EventualClient::new(
                number,
                self.options.seed,
                self.door.clone(),
                self.eventual_ledger.clone(),
                self.ids.clone(),
            );
            clients.spawn(client.run(until, pace));
        }
        let (count, rate) = self.options.switched;
        let pace = Duration::from_secs(count) / (rate.max(1) as u32);
        for number in 0..count {
            let client = SwitchedClient::new(
                number,
                self.options.seed,
                self.door.clone(),
                self.switched_ledger.clone(),
                self.ids.clone(),
            );
            clients.spawn(client.run(until, pace));
        }
        for (number, planned) in plan.iter().enumerate() {
            self.live_until(self.began + Duration::from_millis(planned.at_ms))
                .await;
            let left_out = self.options.without.contains(&number);
            if !left_out && (switched || !planned.fault.is_about_switches()) {
                self.trace
                    .note(format_args!("fault {number}: {:?}", planned.fault));
                self.inflict(&planned.fault).await;
            }
        }
        self.live_until(until).await;
        self.heal().await;
        let healed = Instant::now();
        // Calls that were under way end by their own deadlines.
        while let Ok(Some(_)) = timeout_at(Instant::now() + LOOK, clients.join_next()).await {}
        self.follow(healed).await;
        let mut eventual = self.converge().await;
        // Where a stream is held by design, all of that time was waited for it.
        let since = if eventual.held > 0 {
            Instant::now()
        } else {
            healed
        };
        self.probe(since).await;
        while clients.join_next().await.is_some() {}
        self.settle(eventual.held == 0).await;
        let (running, sane) = (self.door.running(), self.far_ahead.len() < 2);
        let disks = self.stores.iter();
        let disks = disks.map(|(id, store)| (*id, store.disk.clone()));
        let judged = (sane, eventual.held == 0);
        self.switches
            .judge(&running, &disks.collect(), &self.switched_ledger, judged);
        let looked = self.eventual.looked();
        eventual.entries = looked.entries;
        eventual.digests = looked.digests;
        eventual.acknowledged = self
            .eventual_ledger
            .with_writes(|writes| writes.acknowledged());
        let verdict = linearizable::check(&self.ledger.calls());
        self.findings.check(linearizable::NAME, verdict);
        network.abort();
        // The network knows its taps, one tap knows the stores, the stores know the network: taken apart,
        // so that the memory of one run is not that of all.
        for id in &self.ids {
            self.door.close(*id);
            self.network.unplug(*id);
        }
        self.stores.clear();
        Report {
            seed: self.options.seed,
            violations: self.findings.all(),
            plan,
            trace: (self.trace.hash(), self.trace.events()),
            simulated_ms: self.trace.now_ms(),
            restarts: self.restarts,
            tally: self.ledger.tally(),
            looked: self.observer.looked(),
            eventual,
            switches: self.switches.switches(),
            voted: self.ballot.voted(),
            switched_acknowledged: self.switched_ledger.acknowledged(),
            eventual_by_second: self.eventual_ledger.by_second(),
        }
    }

    /// Lets time pass: stores that are due start, those that ended are cleared away, the inside is looked
    /// at.
    async fn live_until(&mut self, until: Instant) {
        let mut next_look = Instant::now();
        loop {
            let now = Instant::now();
            if now >= until {
                return;
            }
            if now >= next_look {
                self.look();
                next_look = now + LOOK;
            }
            let due: Vec<StoreId> = self
                .due
                .iter()
                .filter(|(_, at)| **at <= now)
                .map(|(id, _)| *id)
                .collect();
            for id in due {
                self.due.remove(&id);
                self.start(id);
            }
            let wake = self.due.values().copied().min().unwrap_or(until);
            tokio::select! {
                biased;
                Some((id, how)) = self.hears_ended.recv() => {
                    self.trace.note(format_args!("store {id}: ended: {how:?}"));
                    let down = match how {
                        Ended::AtStep => Duration::from_millis(self.at_step_ms),
                        _ => self.down.remove(&id).unwrap_or(RESTART),
                    };
                    self.crash(id, Keep::Some, down).await;
                }
                () = sleep_until(wake.min(next_look).min(until)) => {}
            }
        }
    }

    fn look(&self) {
        for (id, store) in &self.stores {
            if let Some(process) = store.process() {
                self.observer.clock(*id, &process.core, self.trace.now_ms());
                self.observer.commits(&process.core);
            }
        }
        for (id, store) in &self.stores {
            // What cannot be read cannot be compared; it is, once it is mended.
            if let Some(process) = store.process()
                && !self.damaged.contains(id)
            {
                self.observer
                    .look(*id, &process.core, store.disk.engine.as_ref());
                self.eventual.look(*id, process, self.far_ahead.len() < 2);
                self.switches.look(process);
                self.ballot.look(&process.core);
            }
        }
    }

    fn start(&mut self, id: StoreId) {
        let Some(store) = self.stores.get_mut(&id) else {
            return;
        };
        if store.process().is_some() {
            return;
        }
        self.observer.restarted(id);
        match store.start(
            &self.network,
            &self.bugs,
            &self.switches,
            &self.trace,
            &self.says_ended,
        ) {
            Ok(()) => {
                if let Some(process) = store.process() {
                    self.door.open(id, process.clone());
                }
            }
            Err(error) => {
                let what = format!("store {id} does not start: {error}");
                self.trace.note(format_args!("{what}"));
                // A disk that is full or fails a sync at the start is refused, as it should be.
                let disk_fault = matches!(
                    &error,
                    StartError::Storage(StorageError::NoSpace { .. } | StorageError::Io { .. })
                );
                if !self.damaged.contains(&id) && !disk_fault {
                    self.findings.report(liveness::NAME, what);
                }
                // As whoever runs a store does.
                self.due.insert(id, Instant::now() + RESTART);
            }
        }
    }

    async fn crash(&mut self, id: StoreId, keep: Keep, down: Duration) {
        self.door.close(id);
        let Some(store) = self.stores.get_mut(&id) else {
            return;
        };
        if store.process().is_none() {
            return;
        }
        let keep = match keep {
            Keep::Nothing => Some(0),
            Keep::Everything => Some(usize::MAX),
            Keep::Some => None,
        };
        self.eventual_ledger.crashed(id);
        let kept = store.crash(&self.network, &self.trace, keep).await;
        self.bugs.crashed(id, &store.disk.engine, kept);
        self.due.insert(id, Instant::now() + down);
        self.restarts += 1;
    }

    async fn inflict(&mut self, fault: &Fault) {
        match fault {
            Fault::Cuts(_, cut) => self.network.set_cuts(cut.clone()),
            Fault::Weather(weather) => self.network.set_weather(*weather),
            Fault::Crash {
                stores,
                down_ms,
                keep,
            } => {
                for id in stores {
                    self.crash(*id, *keep, Duration::from_millis(*down_ms))
                        .await;
                }
            }
            Fault::CrashAtSync {
                store,
                point,
                after,
                down_ms,
            } => {
                self.down.insert(*store, Duration::from_millis(*down_ms));
                self.on_disk(*store, |orders| orders.stop_at = Some((*point, *after)));
            }
            Fault::CrashAfterVote {
                store,
                after,
                down_ms,
            } => {
                self.down.insert(*store, Duration::from_millis(*down_ms));
                self.aim.at(*store, *after);
                // Votes are rare: make some by taking the leader's word away for a moment.
                self.depose().await;
            }
            Fault::CrashAtStep {
                step,
                whom,
                down_ms,
            } => {
                self.at_step_ms = *down_ms;
                self.aim.at_step(*step, *whom);
            }
            Fault::FailSync(id) => {
                if let Some(store) = self.stores.get(id) {
                    store.disk.engine.fail_next_sync();
                }
            }
            Fault::Full(id, full) => {
                if let Some(store) = self.stores.get(id) {
                    store.disk.engine.set_full(*full);
                }
            }
            Fault::SlowDisk(id, us) => self.on_disk(*id, |orders| orders.sync_us = *us),
            Fault::FlipBit { store, place, nth } => {
                let family = match place {
                    Place::Record => Family::Data,
                    Place::Entry => Family::RaftLog,
                    Place::LogState => Family::RaftState,
                    Place::Region => Family::Region,
                    Place::RequestIds => Family::RequestIds,
                };
                if let Some(store) = self.stores.get(store) {
                    store.disk.engine.damage(family, *nth);
                    self.damaged.insert(store.id);
                    self.switches.damaged(store.id);
                }
            }
            Fault::Mend(id) => self.mend(*id).await,
            Fault::ClockJump(id, by_ms) => {
                self.wild.insert(*id);
                if *by_ms > 1_000 {
                    self.far_ahead.insert(*id);
                }
                if let Some(store) = self.stores.get(id) {
                    store.clock.jump(*by_ms);
                }
            }
            Fault::Clog(id, by_ms) => {
                let by = Duration::from_millis(*by_ms);
                self.network.clog(*id, Lane::Origins, by);
            }
            Fault::Switch(id, ask) => self.switch(*id, *ask),
            Fault::Declare(id, mode) => {
                self.ballot.declares(*id, *mode);
                if let Some(store) = self.stores.get(id) {
                    store.declare(switched_clients::SWITCHED, *mode);
                }
            }
            Fault::ClockDrift(id, ppm) => {
                self.wild.insert(*id);
                if let Some(store) = self.stores.get(id) {
                    store.clock.drift(*ppm);
                }
            }
        }
    }

    /// Asks a store to switch the namespace, as its service does. Nobody waits for the answer: what was
    /// asked for is in the tables or not.
    fn switch(&self, id: StoreId, ask: Ask) {
        let Some(process) = self.stores.get(&id).and_then(SimStore::process) else {
            return;
        };
        let core = process.core.clone();
        let name = switched_clients::SWITCHED.to_owned();
        let tables = core.namespaces().tables();
        let Some(row) = tables.namespace(&name) else {
            return;
        };
        let wire = convert::mode_to_wire;
        let mut set = SetTarget {
            name,
            ..SetTarget::default()
        };
        match ask {
            Ask::Other if row.mode == wire(Mode::Strong) => set.mode = wire(Mode::Eventual),
            Ask::Other | Ask::Strong => set.mode = wire(Mode::Strong),
            Ask::Eventual => set.mode = wire(Mode::Eventual),
            Ask::StrongWithout(missing) => {
                set.mode = wire(Mode::Strong);
                set.accept_missing = vec![u32::from(missing.get())];
                self.switched_ledger.may_leave_out();
            }
            Ask::Cancel => set.cancel = true,
        }
        // Whoever asks does not know of it.
        if set.mode == wire(Mode::Strong) && self.bugs.leaves_out_unasked() {
            let other = self.ids.iter().find(|other| **other != id);
            set.accept_missing
                .extend(other.map(|other| u32::from(other.get())));
        }
        let asking = self
            .ballot
            .asks(convert::mode(set.mode).filter(|_| !set.cancel));
        let (trace, aim) = (self.trace.clone(), self.aim.clone());
        process.tasks.spawn(async move {
            let deadline = Instant::now() + Duration::from_secs(3);
            match core.namespaces().set_target(set, deadline).await {
                Ok(row) => {
                    asking.answered(row.attempt);
                    trace.note(format_args!(
                        "switch at store {id}: attempt {} to {}",
                        row.attempt, row.target
                    ));
                    aim.stepped(Step::Asked, RegionId::META);
                }
                Err(error) => {
                    if error
                        .metadata
                        .get("outcome")
                        .is_some_and(|of| of == "not_applied")
                    {
                        asking.refused();
                    }
                    trace.note(format_args!("switch at store {id}: {}", error.reason));
                }
            }
        });
    }

    /// Waits until the last switch has ended.
    async fn follow(&mut self, healed: Instant) {
        loop {
            let running = self.door.running();
            let why = self.switches.unsettled(&running, self.ids.len());
            let took_ms = healed.elapsed().as_millis() as u64;
            if why.is_none() || took_ms >= done_or_undone::WITHIN_MS {
                return self.switches.settled(took_ms, why.as_deref());
            }
            self.live_until(Instant::now() + Duration::from_millis(50))
                .await;
        }
    }

    /// Brings back what was on the disk before its bits flipped, and starts the store again.
    async fn mend(&mut self, id: StoreId) {
        if self.damaged.remove(&id) {
            self.crash(id, Keep::Everything, Duration::ZERO).await;
            if let Some(store) = self.stores.get(&id) {
                store.disk.engine.mend();
            }
        }
    }

    fn on_disk(&self, id: StoreId, change: impl FnOnce(&mut Orders)) {
        if let Some(store) = self.stores.get(&id) {
            store.disk.order(change);
        }
    }

    /// Crashes the store that leads the first data region.
    async fn depose(&mut self) {
        let leader = self.stores.iter().find(|(_, store)| {
            store.process().is_some_and(|process| {
                let peers = process.core.manager().data_peers();
                peers.first().is_some_and(|peer| peer.quorum().is_leader())
            })
        });
        if let Some(id) = leader.map(|(id, _)| *id) {
            self.crash(id, Keep::Some, Duration::from_millis(300)).await;
        }
    }

    /// Takes every fault back and starts who is down.
    async fn heal(&mut self) {
        self.trace.note(format_args!("healing"));
        self.network.set_cuts(BTreeSet::new());
        self.network.set_weather(Weather::FAIR);
        self.network.unclog();
        self.aim.lower();
        let mut with_failed_sync = Vec::new();
        for (id, store) in &self.stores {
            store.disk.engine.set_full(false);
            store.disk.order(|orders| *orders = Orders::FAIR);
            if store.disk.engine.is_failing() {
                with_failed_sync.push(*id);
            }
        }
        for id in self.damaged.clone() {
            self.mend(id).await;
        }
        // A disk whose sync failed is not healed by waiting: its machine is started again.
        for id in with_failed_sync {
            self.crash(id, Keep::Nothing, Duration::ZERO).await;
        }
        for at in self.due.values_mut() {
            *at = Instant::now();
        }
    }

    /// Waits until all replicas of eventual namespaces have seen the same.
    async fn converge(&mut self) -> EventualLooked {
        let began = Instant::now();
        loop {
            let running = self.door.running();
            let (differs, held) = self.eventual.differing(&running, !self.wild.is_empty());
            let took_ms = began.elapsed().as_millis() as u64;
            let late = took_ms >= convergence::WITHIN_MS;
            let Some(why) = differs.filter(|_| !late || held == 0) else {
                return EventualLooked {
                    held: if late { held } else { 0 },
                    converged_ms: took_ms,
                    ..EventualLooked::default()
                };
            };
            if late {
                let verdict = convergence::in_time(None, &why);
                self.findings.check(convergence::NAME, verdict);
                return EventualLooked::default();
            }
            self.live_until(Instant::now() + Duration::from_millis(50))
                .await;
        }
    }

    /// Every store has to serve again.
    async fn probe(&mut self, healed: Instant) {
        let limit = healed + Duration::from_millis(liveness::WITHIN_MS);
        for id in self.ids.clone() {
            let mut took_ms = None;
            while Instant::now() < limit {
                let (door, ledger) = (self.door.clone(), self.ledger.clone());
                let mut probe =
                    tokio::spawn(async move { workload::probe(&door, &ledger, id).await });
                // Stores that still end or wait for their start are seen to meanwhile.
                while !probe.is_finished() {
                    self.live_until(Instant::now() + Duration::from_millis(10))
                        .await;
                }
                if let Ok(Ok(())) = (&mut probe).await {
                    took_ms = Some(healed.elapsed().as_millis() as u64);
                    break;
                }
                self.live_until(Instant::now() + Duration::from_millis(50))
                    .await;
            }
            let verdict = liveness::check(&format!("serving at store {id}"), took_ms);
            self.findings.check(liveness::NAME, verdict);
        }
    }

    /// Waits until nothing moves, reads everything at every store, compares everything.
    async fn settle(&mut self, converged: bool) {
        let give_up = Instant::now() + Duration::from_millis(liveness::WITHIN_MS);
        self.live_until(Instant::now() + Duration::from_secs(1))
            .await;
        for id in self.ids.clone() {
            let read = workload::read_all(&self.door, &self.ledger, id, give_up).await;
            if let Err(refusal) = read {
                let Refusal {
                    reason, message, ..
                } = refusal;
                let what = format!("store {id} does not read: {reason}: {message}");
                self.findings.report(liveness::NAME, what);
            }
        }
        sleep(Duration::from_secs(1)).await;
        self.look();
        for (id, store) in &self.stores {
            if let Some(process) = store.process() {
                let disk = store.disk.engine.as_ref();
                self.observer.recount(*id, &process.core, disk);
            }
        }
        if converged {
            let sane = self.far_ahead.len() < 2;
            self.eventual
                .compare(&self.door.running(), &self.eventual_ledger, sane);
        }
    }
}

/// What simulated stores are configured to: as shipped, but for what would make rare things too rare.
fn tune(config: &mut Config) {
    // Ids follow the names: the eventual namespaces come first, then those of strong clients, then
    // the one that is switched.
    for (name, mode, durability) in [
        (
            eventual_clients::RELAXED,
            Mode::Eventual,
            Durability::Relaxed,
        ),
        (eventual_clients::SYNCED, Mode::Eventual, Durability::Sync),
        (workload::PUTS_NAMESPACE, Mode::Strong, Durability::Sync),
        (workload::REGISTER_NAMESPACE, Mode::Strong, Durability::Sync),
        (switched_clients::SWITCHED, Mode::Strong, Durability::Sync),
    ] {
        let namespace = NamespaceConfig {
            mode: Some(mode),
            durability,
            ..NamespaceConfig::default()
        };
        config.namespaces.insert(name.to_owned(), namespace);
    }
    // Four data regions, a namespace of each kind cut in two, and snapshots after hundreds of entries
    // instead of thousands.
    let split = |namespace_id| SplitKey {
        namespace_id,
        key: b"m".to_vec(),
    };
    config.cluster.bootstrap_split = vec![split(2), split(4), split(5)];
    config.raft.snapshot_after = 300;
    config.consistency.request_timeout = workload::ATTEMPT;
}
