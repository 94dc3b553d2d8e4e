//! The numbers of a store, as `/metrics` shows them.
//!
//! Owns the registry: what is counted as it happens is here, what can be read off the regions and the engine is
//! read when somebody scrapes ([`regions`], [`machine`]). All of it is listed in [`catalog`]. No key ever stands in a
//! label; a namespace's name does only if it exists.

pub mod catalog;
mod machine;
mod regions;
mod served;

use crate::error::{Error, code};
use crate::namespace::Namespaces;
use crate::peer::eventual::Counters;
use crate::peer_manager::PeerManager;
use crate::region::meta::MetaState;
use crate::transport::grpc::Places;
use machine::Machine;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use rdb_proto::raft::ServedRequests;
use rdb_types::{Mode, NamespaceId, NamespaceName, Reason, StoreId};
use regions::Regions;
use served::Served;
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use tokio::time::Instant;
use tonic::Code;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    namespace: String,
    code: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct LatencyLabels {
    method: &'static str,
    mode: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct NamespaceLabel {
    namespace: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StoreLabels {
    namespace: String,
    store: u32,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct SwitchLabels {
    namespace: String,
    from: &'static str,
    to: &'static str,
    outcome: &'static str,
}

/// All numbers of a store.
pub struct Metrics {
    registry: OnceLock<Registry>,
    requests: Family<RequestLabels, Counter>,
    served: Served,
    seconds: Family<LatencyLabels, Histogram, fn() -> Histogram>,
    quorum_rejections: Family<NamespaceLabel, Counter>,
    no_space_rejections: Family<NamespaceLabel, Counter>,
    convergence: Family<NamespaceLabel, Histogram, fn() -> Histogram>,
    conflicts: Family<NamespaceLabel, Counter>,
    wild_stamps: Family<NamespaceLabel, Counter>,
    repairs: Family<NamespaceLabel, Counter>,
    lag_breaches: Family<StoreLabels, Counter>,
    switches: Family<SwitchLabels, Counter>,
    write_pauses: Family<SwitchLabels, Histogram, fn() -> Histogram>,
    /// Not held: the regions count into this, and a store that is gone has to let go of its disk.
    manager: OnceLock<Weak<PeerManager>>,
}

impl Counters for Metrics {
    fn served(&self) -> Vec<ServedRequests> {
        self.served.all()
    }

    fn converged(&self, namespace: NamespaceId, after: Duration) {
        let histogram = self.convergence.get_or_create(&self.label_of_id(namespace));
        histogram.observe(after.as_secs_f64());
    }

    fn conflicts(&self, namespace: NamespaceId, found: u64) {
        let counter = self.conflicts.get_or_create(&self.label_of_id(namespace));
        counter.inc_by(found);
    }

    fn wild_stamp(&self, namespace: NamespaceId) {
        let counter = self.wild_stamps.get_or_create(&self.label_of_id(namespace));
        counter.inc();
    }

    fn repaired(&self, namespace: NamespaceId) {
        let counter = self.repairs.get_or_create(&self.label_of_id(namespace));
        counter.inc();
    }

    fn lag_breached(&self, namespace: NamespaceId, store: StoreId) {
        let NamespaceLabel { namespace } = self.label_of_id(namespace);
        let labels = StoreLabels {
            namespace,
            store: u32::from(store.get()),
        };
        self.lag_breaches.get_or_create(&labels).inc();
    }
}

fn latency_histogram() -> Histogram {
    // 50 us to 13 s, doubling.
    Histogram::new(std::iter::successors(Some(0.000_05), |bound| Some(bound * 2.0)).take(19))
}

impl Metrics {
    /// Nothing counted yet; [`Metrics::attach`] adds what is read off the regions.
    pub fn new() -> Arc<Metrics> {
        Arc::new(Metrics {
            registry: OnceLock::new(),
            requests: Family::default(),
            served: Served::default(),
            seconds: Family::new_with_constructor(latency_histogram),
            quorum_rejections: Family::default(),
            no_space_rejections: Family::default(),
            convergence: Family::new_with_constructor(latency_histogram),
            conflicts: Family::default(),
            wild_stamps: Family::default(),
            repairs: Family::default(),
            lag_breaches: Family::default(),
            switches: Family::default(),
            write_pauses: Family::new_with_constructor(latency_histogram),
            manager: OnceLock::new(),
        })
    }

    /// Adds the regions' and the engine's own numbers. Once.
    pub fn attach(&self, manager: &Arc<PeerManager>, places: Arc<Places>) {
        let manager = Arc::downgrade(manager);
        let mut registry = Registry::with_prefix("flaredb");
        registry.register("requests", "Requests answered", self.requests.clone());
        registry.register_with_unit(
            "request",
            "Time to answer a request",
            Unit::Seconds,
            self.seconds.clone(),
        );
        registry.register(
            "quorum_rejections",
            "Requests refused for want of a quorum",
            self.quorum_rejections.clone(),
        );
        registry.register(
            "no_space_rejections",
            "Requests refused because disks are full, this store's or so many that no quorum has room",
            self.no_space_rejections.clone(),
        );
        registry.register_with_unit(
            "convergence",
            "Time from accepting an eventual write elsewhere to applying it here",
            Unit::Seconds,
            self.convergence.clone(),
        );
        registry.register(
            "conflicts",
            "Eventual writes that were found to have lost to a concurrent one",
            self.conflicts.clone(),
        );
        registry.register(
            "clock_skew_rejections",
            "Requests refused because a clock is off, here or where they were stamped, and streams of other stores that were held for it",
            self.wild_stamps.clone(),
        );
        registry.register(
            "replica_repairs",
            "Times that two replicas had seen the same writes and held different data",
            self.repairs.clone(),
        );
        registry.register(
            "replication_lag_breaches",
            "Times that a replica fell further behind than the namespace's max_lag",
            self.lag_breaches.clone(),
        );
        registry.register(
            "mode_switches",
            "Switches of modes that ended while this store led the meta region",
            self.switches.clone(),
        );
        registry.register_with_unit(
            "mode_switch_write_pause",
            "Time without writes in a switch of modes",
            Unit::Seconds,
            self.write_pauses.clone(),
        );
        registry.register_collector(Box::new(Regions::new(manager.clone())));
        registry.register_collector(Box::new(Machine::new(manager.clone(), places)));
        // A second call would change nothing.
        let _ = self.manager.set(manager);
        let _ = self.registry.set(registry);
    }

    /// A switch of modes ended; where it is done, for how long it took no writes.
    pub fn switched(
        &self,
        namespace: &str,
        from: &'static str,
        to: &'static str,
        outcome: &'static str,
        write_pause: Option<Duration>,
    ) {
        let labels = SwitchLabels {
            namespace: self.label(namespace),
            from,
            to,
            outcome,
        };
        self.switches.get_or_create(&labels).inc();
        if let Some(pause) = write_pause {
            let histogram = self.write_pauses.get_or_create(&labels);
            histogram.observe(pause.as_secs_f64());
        }
    }

    /// The text that `/metrics` answers.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut out = String::new();
        // A series that begins with its first refusal hides that refusal from whoever looks at rates.
        let tables = self.tables();
        let rows = tables.iter().flat_map(|tables| tables.namespaces.values());
        let known = rows.filter(|row| !row.deleted).map(|row| row.name.as_str());
        for namespace in known.chain([NamespaceName::DEFAULT]) {
            let label = NamespaceLabel {
                namespace: namespace.to_owned(),
            };
            for counter in [
                &self.quorum_rejections,
                &self.no_space_rejections,
                &self.conflicts,
                &self.wild_stamps,
                &self.repairs,
            ] {
                drop(counter.get_or_create(&label));
            }
        }
        if let Some(registry) = self.registry.get() {
            text::encode(&mut out, registry)?;
        }
        Ok(out)
    }

    fn tables(&self) -> Option<Arc<MetaState>> {
        let manager = self.manager.get()?.upgrade()?;
        Some(Namespaces::new(manager).tables())
    }

    fn label_of_id(&self, namespace: NamespaceId) -> NamespaceLabel {
        let tables = self.tables();
        let row = tables
            .as_ref()
            .and_then(|tables| tables.namespaces.get(&namespace));
        NamespaceLabel {
            namespace: row.map_or_else(|| "unknown".to_owned(), |row| row.name.clone()),
        }
    }

    /// The mode of a namespace, by its label.
    fn mode_of(&self, label: &str) -> &'static str {
        let tables = self.tables();
        let row = tables.as_ref().and_then(|tables| tables.namespace(label));
        mode_label(row.map_or(0, |row| row.mode))
    }

    /// A namespace's label: its name if it exists, so that labels are bounded by what exists.
    fn label(&self, namespace: &str) -> String {
        let name = if namespace.is_empty() {
            NamespaceName::DEFAULT
        } else {
            namespace
        };
        let tables = self.tables();
        let known = tables.is_some_and(|tables| tables.namespace(name).is_some());
        if known {
            name.to_owned()
        } else {
            "unknown".to_owned()
        }
    }

    /// Operations of one request were answered, which took so long.
    fn answered<'e>(
        &self,
        method: &'static str,
        namespace: &str,
        took: Duration,
        errors: impl Iterator<Item = Option<&'e Error>>,
    ) {
        // Looked up now: the request itself may have created the namespace.
        let namespace = self.label(namespace);
        let (mut ok, mut refused) = (0, 0);
        for error in errors {
            match error {
                None => ok += 1,
                Some(error) => {
                    refused += 1;
                    let counter = match error.reason {
                        Reason::NoQuorum => Some(&self.quorum_rejections),
                        Reason::NoSpace => Some(&self.no_space_rejections),
                        Reason::ClockSkew => Some(&self.wild_stamps),
                        _ => None,
                    };
                    if let Some(counter) = counter {
                        let label = NamespaceLabel {
                            namespace: namespace.clone(),
                        };
                        counter.get_or_create(&label).inc();
                    }
                    self.count(method, &namespace, label_of(code(error.reason)), 1);
                }
            }
        }
        if ok > 0 {
            self.count(method, &namespace, label_of(Code::Ok), ok);
        }
        if ok + refused > 0 {
            self.served.count(&namespace, method, ok + refused, refused);
            let labels = LatencyLabels {
                method,
                mode: self.mode_of(&namespace),
            };
            self.seconds
                .get_or_create(&labels)
                .observe(took.as_secs_f64());
        }
    }

    fn count(&self, method: &'static str, namespace: &str, code: String, by: u64) {
        let labels = RequestLabels {
            method,
            namespace: namespace.to_owned(),
            code,
        };
        self.requests.get_or_create(&labels).inc_by(by);
    }
}

fn mode_label(wire: i32) -> &'static str {
    rdb_proto::convert::mode(wire).map_or("unknown", Mode::as_str)
}

/// A request whose time is taken.
pub struct Timed<'a> {
    metrics: &'a Metrics,
    method: &'static str,
    namespace: String,
    started: Instant,
}

impl<'a> Timed<'a> {
    /// The request came.
    pub fn start(metrics: &'a Metrics, method: &'static str, namespace: &str) -> Timed<'a> {
        Timed::since(metrics, method, namespace, Instant::now())
    }

    /// The request came at `started`.
    pub fn since(
        metrics: &'a Metrics,
        method: &'static str,
        namespace: &str,
        started: Instant,
    ) -> Timed<'a> {
        Timed {
            metrics,
            method,
            namespace: namespace.to_owned(),
            started,
        }
    }

    /// It was answered.
    pub fn done(self, error: Option<&Error>) {
        self.done_all(std::iter::once(error));
    }

    /// All of its operations were answered.
    pub fn done_all<'e>(self, errors: impl Iterator<Item = Option<&'e Error>>) {
        let took = self.started.elapsed();
        self.metrics
            .answered(self.method, &self.namespace, took, errors);
    }
}

/// A request that is answered by a stream. It counts once, by how that ended; its time is that until it began.
pub struct Streamed {
    metrics: Arc<Metrics>,
    method: &'static str,
    namespace: String,
    took: Duration,
    counted: bool,
}

impl Streamed {
    /// The stream of a request that came at `came` begins.
    pub fn begin(
        metrics: Arc<Metrics>,
        method: &'static str,
        namespace: String,
        came: Instant,
    ) -> Streamed {
        Streamed {
            metrics,
            method,
            namespace,
            took: came.elapsed(),
            counted: false,
        }
    }

    /// It ended.
    pub fn done(&mut self, error: Option<&Error>) {
        if !std::mem::replace(&mut self.counted, true) {
            let errors = std::iter::once(error);
            self.metrics
                .answered(self.method, &self.namespace, self.took, errors);
        }
    }
}

impl Drop for Streamed {
    /// Its reader wanted no more.
    fn drop(&mut self) {
        self.done(None);
    }
}

/// A code as gRPC writes it: `OK`, `RESOURCE_EXHAUSTED`.
fn label_of(code: Code) -> String {
    let mut label = String::new();
    for (at, letter) in format!("{code:?}").char_indices() {
        if at > 0 && letter.is_ascii_uppercase() {
            label.push('_');
        }
        label.push(letter.to_ascii_uppercase());
    }
    label
}
