//! The other mode: whole stores with their real gRPC edges, and the real client, over simulated TCP.
//!
//! Owns a run of it, from its options to its verdict: stores and clients are hosts of turmoil, each with a
//! runtime of its own in simulated time; sockets are simulated, and what goes over them is HTTP/2 as tonic
//! writes it. The mass of seeds is run without it ([`crate::world`], many times faster): this is for what
//! stands between a store and its sockets, and between a caller and his.
//!
//! | Read | for |
//! |---|---|
//! | [`net`] | the sockets |
//! | [`host`] | a store |
//! | [`client`] | what is called |
//! | [`plan`] | what goes wrong |
//! | [`bugs`] | the controls |
//!
//! Invariant: what comes out follows from [`Options`], but for what `docs/testing.md` names.

pub mod bugs;
pub mod client;
pub mod host;
pub mod net;
pub mod plan;

use crate::invariants::{Findings, Violation, linearizable, liveness, no_panic};
use crate::observer::{Looked, Observer};
use crate::trace::Trace;
use crate::workload::{Ledger, Tally};
use bugs::Bug;
use client::Caller;
use host::{Common, Host, name_of};
use net::Cable;
use plan::{FAIR_MS, Fault, Planned};
use rdb_types::StoreId;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::sleep;

/// Faults begin when the cluster has had time to form.
const FIRST_FAULT_MS: u64 = 3_000;
/// How long a store stays down that ended by itself.
const RESTART_MS: u64 = 500;
/// The grain of time: messages arrive, and hosts take turns, this often.
const TICK: Duration = Duration::from_millis(1);
/// Clients, each a host with a connection to each store.
const CLIENTS: u64 = 2;
/// Callers that share a client.
const CALLERS: u64 = 4;
/// From healing to the last look: nothing is called any more, and replicas are equal.
const QUIET: Duration = Duration::from_secs(3);
/// A run that is longer than this after its healing hangs.
const LONGEST_END_MS: u64 = 120_000;

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// Everything follows from it.
    pub seed: u64,
    /// A rule that is broken on purpose.
    pub bug: Option<Bug>,
    /// Operations a second, of all callers together, while nothing is broken.
    pub rate: u64,
    /// How long faults go on, in simulated seconds.
    pub fault_s: u64,
    /// Print every event.
    pub print: bool,
}

impl Options {
    /// The usual run of a seed.
    pub fn new(seed: u64) -> Options {
        Options {
            seed,
            bug: None,
            rate: 200,
            fault_s: 30,
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
}

/// Runs it.
pub fn run(options: &Options) -> Report {
    no_panic::listen();
    let world = World::new(options);
    let (findings, plan) = (world.common.findings.clone(), world.plan.clone());
    let (trace, ledger) = (world.common.trace.clone(), world.ledger.clone());
    let observer = world.common.observer.clone();
    // Tasks catch their own; this is for what the network itself stumbles over.
    let restarts = catch_unwind(AssertUnwindSafe(|| world.run())).unwrap_or_default();
    let verdict = linearizable::check(&ledger.calls());
    findings.check(linearizable::NAME, verdict);
    let mut violations = findings.all();
    violations.extend(no_panic::heard().into_iter().map(|what| Violation {
        invariant: no_panic::NAME,
        what,
    }));
    Report {
        seed: options.seed,
        violations,
        plan,
        trace: (trace.hash(), trace.events()),
        simulated_ms: trace.now_ms(),
        restarts,
        tally: ledger.tally(),
        looked: observer.looked(),
    }
}

struct World {
    options: Options,
    plan: Vec<Planned>,
    stores: Vec<Arc<Host>>,
    clients: Vec<String>,
    common: Common,
    ledger: Ledger,
    /// Simulated microseconds that are over, for whoever is on no host.
    elapsed_us: Arc<AtomicU64>,
    /// When stores that are down are started again.
    due_ms: BTreeMap<usize, u64>,
    restarts: u64,
}

/// The network, with the hosts on it.
type Sim = turmoil::Sim<'static>;

impl World {
    fn new(options: &Options) -> World {
        let seed = options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x7c9;
        let ids: Vec<StoreId> = (1..=3).filter_map(StoreId::new).collect();
        let elapsed_us = Arc::new(AtomicU64::new(0));
        let outside = elapsed_us.clone();
        let trace = Trace::with_clock(options.print, move || {
            turmoil::sim_elapsed()
                .unwrap_or_else(|| Duration::from_micros(outside.load(Ordering::Relaxed)))
        });
        let findings = Findings::default();
        let common = Common {
            observer: Observer::new(findings.clone(), trace.clone()),
            findings: findings.clone(),
            trace: trace.clone(),
            bug: options.bug,
        };
        let store = |id: &StoreId| {
            let seed = seed ^ u64::from(id.get()).wrapping_mul(0x5702);
            Host::new(*id, seed, &ids, common.clone())
        };
        let names: Vec<String> = ids.iter().map(|id| name_of(*id)).collect();
        let clients: Vec<String> = (1..=CLIENTS).map(|n| format!("client-{n}")).collect();
        let until_ms = FIRST_FAULT_MS + options.fault_s * 1_000;
        World {
            options: options.clone(),
            plan: plan::plan(options.seed, &names, &clients, FIRST_FAULT_MS, until_ms),
            stores: ids.iter().map(store).collect(),
            clients,
            ledger: Ledger::new(findings, trace),
            common,
            elapsed_us,
            due_ms: BTreeMap::new(),
            restarts: 0,
        }
    }

    /// Runs it to its end; how many starts there were after a crash.
    fn run(mut self) -> u64 {
        let mut sim = self.network();
        let until_ms = FIRST_FAULT_MS + self.options.fault_s * 1_000;
        let mut faults = self.plan.clone().into_iter().enumerate().peekable();
        let mut healed = false;
        loop {
            let now_ms = sim.elapsed().as_millis() as u64;
            while let Some((number, planned)) =
                faults.next_if(|(_, planned)| planned.at_ms <= now_ms && !healed)
            {
                let fault = &planned.fault;
                self.common
                    .trace
                    .note(format_args!("fault {number}: {fault:?}"));
                self.inflict(&mut sim, fault, now_ms);
            }
            if now_ms >= until_ms && !healed {
                healed = true;
                self.common.trace.note(format_args!("healing"));
                self.mend(&sim);
                sim.set_max_message_latency(Duration::from_millis(FAIR_MS));
                self.due_ms.values_mut().for_each(|at| *at = now_ms);
            }
            self.start_due(&mut sim, now_ms);
            match sim.step() {
                Ok(false) if now_ms > until_ms + LONGEST_END_MS => {
                    let what = "the run does not come to its end".to_owned();
                    self.common.findings.report(liveness::NAME, what);
                    break;
                }
                Ok(false) => {}
                Ok(true) => break,
                Err(error) => {
                    let what = format!("a host ended: {error}");
                    self.common.findings.report(no_panic::NAME, what);
                    break;
                }
            }
            let elapsed_us = sim.elapsed().as_micros() as u64;
            self.elapsed_us.store(elapsed_us, Ordering::Relaxed);
        }
        self.restarts
    }

    fn network(&self) -> Sim {
        let mut sim = turmoil::Builder::new()
            .rng_seed(self.options.seed)
            .tick_duration(TICK)
            .min_message_latency(Duration::ZERO)
            .max_message_latency(Duration::from_millis(FAIR_MS))
            .simulation_duration(Duration::from_secs(7 * 86_400))
            // What is held arrives all at once.
            .tcp_capacity(1 << 16)
            .build();
        for store in &self.stores {
            let host = store.clone();
            sim.host(name_of(store.id), move || {
                let host = host.clone();
                async move {
                    host.run().await;
                    Ok(())
                }
            });
        }
        for (at, name) in self.clients.iter().enumerate() {
            sim.client(name.clone(), self.client(at as u64));
        }
        sim.client("auditor", self.auditor());
        sim
    }

    /// A client and its callers.
    fn client(&self, at: u64) -> impl Future<Output = turmoil::Result> + 'static {
        let (ledger, options) = (self.ledger.clone(), self.options.clone());
        let cable = self.cable();
        let mut stores: Vec<String> = self.stores.iter().map(|store| name_of(store.id)).collect();
        stores.rotate_left(at as usize % self.stores.len());
        let until_ms = FIRST_FAULT_MS + options.fault_s * 1_000;
        async move {
            // One sends plain calls, the others share streams.
            let client = client::connect(&stores, at > 0, &cable)?;
            let pace = Duration::from_secs(CLIENTS * CALLERS) / options.rate.max(1) as u32;
            let callers = (0..CALLERS).map(|caller| {
                let (client, ledger) = (client.clone(), ledger.clone());
                let number = at * CALLERS + caller;
                let caller = Caller::new(number, options.seed, client, ledger, options.bug);
                caller.run(until_ms, pace)
            });
            futures::future::join_all(callers).await;
            Ok(())
        }
    }

    /// Who comes after the healing, and asks each store.
    fn auditor(&self) -> impl Future<Output = turmoil::Result> + 'static {
        let (ledger, hosts) = (self.ledger.clone(), self.stores.clone());
        let cable = self.cable();
        let healed_ms = FIRST_FAULT_MS + self.options.fault_s * 1_000;
        async move {
            sleep(Duration::from_millis(healed_ms)).await;
            let mut clients = Vec::new();
            for host in &hosts {
                let name = name_of(host.id);
                let client = client::connect(std::slice::from_ref(&name), true, &cable)?;
                client::probe(&client, &ledger, &name, healed_ms).await;
                clients.push((client, name));
            }
            // Calls that were under way end by their own deadlines.
            sleep(client::TIMEOUT).await;
            for (at, (client, name)) in clients.iter().enumerate() {
                if let Err(error) = client::read_all(client, &ledger, 1_000 + at as u64).await {
                    let what = format!("{name} does not read: {error}");
                    ledger.findings.report(liveness::NAME, what);
                }
            }
            sleep(QUIET).await;
            hosts.iter().for_each(|host| host.recount());
            sleep(QUIET).await;
            Ok(())
        }
    }

    fn cable(&self) -> Cable {
        Cable {
            trace: self.common.trace.clone(),
        }
    }

    fn inflict(&mut self, sim: &mut Sim, fault: &Fault, now_ms: u64) {
        match fault {
            Fault::Partition(links) => links
                .iter()
                .for_each(|(a, b)| sim.partition(a.as_str(), b.as_str())),
            Fault::OneWay(from, to) => sim.partition_oneway(from.as_str(), to.as_str()),
            Fault::Hold(links) => links
                .iter()
                .for_each(|(a, b)| sim.hold(a.as_str(), b.as_str())),
            Fault::Mend => self.mend(sim),
            Fault::Latency(most_ms) => {
                sim.set_max_message_latency(Duration::from_millis(*most_ms));
            }
            Fault::Kill { store, down_ms } => {
                self.crash(sim, *store, true);
                self.due_ms.insert(*store, now_ms + down_ms);
            }
            Fault::PowerCut { store, down_ms } => {
                // Nobody hears of it: what the dying sockets say is lost. Its machine comes back to whole
                // links, whatever was cut before.
                let name = name_of(self.stores[*store].id);
                let others = self.others(*store);
                for other in &others {
                    sim.partition(name.as_str(), other.as_str());
                }
                self.crash(sim, *store, false);
                for other in &others {
                    sim.repair(name.as_str(), other.as_str());
                }
                self.due_ms.insert(*store, now_ms + down_ms);
            }
        }
    }

    /// Every other host.
    fn others(&self, store: usize) -> Vec<String> {
        let stores = self.stores.iter().enumerate();
        let stores = stores.filter(|(at, _)| *at != store);
        let stores = stores.map(|(_, store)| name_of(store.id));
        stores
            .chain(self.clients.iter().cloned())
            .chain(["auditor".to_owned()])
            .collect()
    }

    fn mend(&self, sim: &Sim) {
        for store in 0..self.stores.len() {
            let name = name_of(self.stores[store].id);
            for other in self.others(store) {
                sim.release(name.as_str(), other.as_str());
            }
        }
    }

    /// Ends the process of a store. Its disk keeps everything, or what was synced and some more.
    fn crash(&mut self, sim: &mut Sim, store: usize, everything: bool) {
        let host = &self.stores[store];
        if self.due_ms.contains_key(&store) {
            return;
        }
        sim.crash(name_of(host.id));
        let unsynced = host.disk.engine.unsynced_batches();
        let keep = if everything {
            unsynced
        } else {
            host.disk.some_unsynced()
        };
        self.common.trace.note(format_args!(
            "store {}: crash, {keep} of {unsynced} unsynced batches survive",
            host.id
        ));
        host.disk.engine.crash(keep);
    }

    /// Starts who is due, and sees to those who ended by themselves.
    fn start_due(&mut self, sim: &mut Sim, now_ms: u64) {
        for store in 0..self.stores.len() {
            if self.stores[store].has_failed() && !self.due_ms.contains_key(&store) {
                self.crash(sim, store, true);
                self.due_ms.insert(store, now_ms + RESTART_MS);
            }
        }
        let due: Vec<usize> = self
            .due_ms
            .iter()
            .filter(|(_, at)| **at <= now_ms)
            .map(|(store, _)| *store)
            .collect();
        for store in due {
            self.due_ms.remove(&store);
            self.stores[store].clear();
            sim.bounce(name_of(self.stores[store].id));
            self.restarts += 1;
        }
    }
}
