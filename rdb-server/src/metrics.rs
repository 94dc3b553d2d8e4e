//! The numbers of a store, as `/metrics` shows them.
//!
//! Owns the registry: what is counted as it happens is here, what can be read off the regions is read
//! when somebody scrapes. No key ever stands in a label; a namespace's name does only if it exists.

use crate::error::{Error, code};
use crate::namespace::Namespaces;
use crate::peer::eventual::Counters;
use crate::peer_manager::PeerManager;
use crate::transport::grpc::{Kind, Places};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use rdb_types::{NamespaceId, NamespaceName, Reason, StoreId};
use std::fmt;
use std::sync::{Arc, OnceLock};
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

/// All numbers of a store.
pub struct Metrics {
    registry: OnceLock<Registry>,
    requests: Family<RequestLabels, Counter>,
    seconds: Family<LatencyLabels, Histogram, fn() -> Histogram>,
    quorum_rejections: Family<NamespaceLabel, Counter>,
    convergence: Family<NamespaceLabel, Histogram, fn() -> Histogram>,
    conflicts: Family<NamespaceLabel, Counter>,
    wild_stamps: Family<NamespaceLabel, Counter>,
    repairs: Family<NamespaceLabel, Counter>,
    lag_breaches: Family<StoreLabels, Counter>,
    namespaces: OnceLock<Namespaces>,
}

impl Counters for Metrics {
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
            seconds: Family::new_with_constructor(latency_histogram),
            quorum_rejections: Family::default(),
            convergence: Family::new_with_constructor(latency_histogram),
            conflicts: Family::default(),
            wild_stamps: Family::default(),
            repairs: Family::default(),
            lag_breaches: Family::default(),
            namespaces: OnceLock::new(),
        })
    }

    /// Adds the regions' and the engine's own numbers. Once.
    pub fn attach(&self, manager: Arc<PeerManager>, namespaces: Namespaces, places: Arc<Places>) {
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
            "Streams that were held because a stamp was further ahead than any clock may be",
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
        registry.register_collector(Box::new(Regions {
            manager,
            namespaces: namespaces.clone(),
            places,
        }));
        // A second call would change nothing.
        let _ = self.namespaces.set(namespaces);
        let _ = self.registry.set(registry);
    }

    /// The text that `/metrics` answers.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut out = String::new();
        // A series that begins with its first refusal hides that refusal from whoever looks at rates.
        let tables = self.namespaces.get().map(Namespaces::tables);
        let rows = tables.iter().flat_map(|tables| tables.namespaces.values());
        let known = rows.filter(|row| !row.deleted).map(|row| row.name.as_str());
        for namespace in known.chain([NamespaceName::DEFAULT]) {
            let label = NamespaceLabel {
                namespace: namespace.to_owned(),
            };
            drop(self.quorum_rejections.get_or_create(&label));
        }
        if let Some(registry) = self.registry.get() {
            text::encode(&mut out, registry)?;
        }
        Ok(out)
    }

    fn label_of_id(&self, namespace: NamespaceId) -> NamespaceLabel {
        let tables = self.namespaces.get().map(Namespaces::tables);
        let row = tables
            .as_ref()
            .and_then(|tables| tables.namespaces.get(&namespace));
        NamespaceLabel {
            namespace: row.map_or_else(|| "unknown".to_owned(), |row| row.name.clone()),
        }
    }

    /// A namespace's label: its name if it exists, so that labels are bounded by what exists.
    fn label(&self, namespace: &str) -> String {
        let name = if namespace.is_empty() {
            NamespaceName::DEFAULT
        } else {
            namespace
        };
        let known = self
            .namespaces
            .get()
            .is_some_and(|namespaces| namespaces.tables().namespace(name).is_some());
        if known {
            name.to_owned()
        } else {
            "unknown".to_owned()
        }
    }
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
        // Looked up now: the request itself may have created the namespace.
        let namespace = self.metrics.label(&self.namespace);
        let (mut ok, mut any) = (0, false);
        for error in errors {
            any = true;
            match error {
                None => ok += 1,
                Some(error) => {
                    if error.reason == Reason::NoQuorum {
                        let label = NamespaceLabel {
                            namespace: namespace.clone(),
                        };
                        self.metrics.quorum_rejections.get_or_create(&label).inc();
                    }
                    self.count(&namespace, label_of(code(error.reason)), 1);
                }
            }
        }
        if ok > 0 {
            self.count(&namespace, label_of(Code::Ok), ok);
        }
        if any {
            let labels = LatencyLabels {
                method: self.method,
                mode: "strong",
            };
            self.metrics
                .seconds
                .get_or_create(&labels)
                .observe(self.started.elapsed().as_secs_f64());
        }
    }

    fn count(&self, namespace: &str, code: String, by: u64) {
        let labels = RequestLabels {
            method: self.method,
            namespace: namespace.to_owned(),
            code,
        };
        self.metrics.requests.get_or_create(&labels).inc_by(by);
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

/// What is read off the regions when somebody scrapes.
struct Regions {
    manager: Arc<PeerManager>,
    namespaces: Namespaces,
    places: Arc<Places>,
}

impl fmt::Debug for Regions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Regions")
    }
}

impl Regions {
    fn gauges(
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        rows: impl Iterator<Item = (Vec<(&'static str, String)>, i64)>,
    ) -> fmt::Result {
        let gauge = ConstGauge::new(0i64);
        let mut descriptor = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
        for (labels, value) in rows {
            ConstGauge::new(value).encode(descriptor.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl Collector for Regions {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let reports: Vec<_> = self
            .manager
            .peers()
            .iter()
            .map(|peer| (peer.report(), peer.quorum().is_leader()))
            .collect();
        let region = |id: u64| vec![("region", id.to_string())];
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        type Field = fn(&(rdb_proto::raft::RegionReport, bool)) -> u64;
        let fields: [(&str, &str, Field); 5] = [
            (
                "quorum_available",
                "1 while a leader with a quorum is known",
                |(report, _)| u64::from(report.quorum),
            ),
            (
                "raft_is_leader",
                "1 on the store that leads the region",
                |(_, leads)| u64::from(*leads),
            ),
            ("raft_term", "Term of the region's leader", |(report, _)| {
                report.term
            }),
            (
                "raft_commit_index",
                "Last log index known to be committed",
                |(report, _)| report.commit_index,
            ),
            (
                "raft_applied_index",
                "Last log index applied here",
                |(report, _)| report.applied_index,
            ),
        ];
        for (name, help, field) in fields {
            Self::gauges(
                &mut encoder,
                name,
                help,
                reports
                    .iter()
                    .map(|report| (region(report.0.region_id), number(field(report)))),
            )?;
        }
        let name = "storage_damaged_reads";
        let help = "Reads that found stored data damaged";
        let counter = ConstCounter::new(0u64);
        let mut descriptor = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
        for peer in self.manager.peers() {
            let labels = region(peer.id().0);
            let found = ConstCounter::new(peer.damage().found());
            found.encode(descriptor.encode_family(&labels)?)?;
        }
        let tables = self.namespaces.tables();
        let mut totals = std::collections::BTreeMap::new();
        for (report, _) in &reports {
            for namespace in &report.namespaces {
                if let Some(row) = tables
                    .namespaces
                    .get(&rdb_types::NamespaceId(namespace.namespace_id))
                    .filter(|row| !row.deleted)
                {
                    let total = totals
                        .entry(row.name.clone())
                        .or_insert((0u64, 0u64, 0u64, row.mode));
                    total.0 += namespace.keys;
                    total.1 += namespace.bytes;
                    total.2 = total.2.max(namespace.epoch);
                    total.3 = namespace.mode;
                }
            }
        }
        let labelled = |name: &String| vec![("namespace", name.clone())];
        Self::gauges(
            &mut encoder,
            "namespace_keys",
            "Records on this store",
            totals
                .iter()
                .map(|(name, total)| (labelled(name), number(total.0))),
        )?;
        Self::gauges(
            &mut encoder,
            "namespace_bytes",
            "Bytes of keys and values on this store",
            totals
                .iter()
                .map(|(name, total)| (labelled(name), number(total.1))),
        )?;
        Self::gauges(
            &mut encoder,
            "namespace_epoch",
            "Grows with every step of a mode change",
            totals
                .iter()
                .map(|(name, total)| (labelled(name), number(total.2))),
        )?;
        Self::gauges(
            &mut encoder,
            "namespace_mode",
            "1 for the mode in force",
            totals.iter().map(|(name, total)| {
                let mode =
                    rdb_proto::convert::mode(total.3).map_or("unknown", rdb_types::Mode::as_str);
                (
                    vec![("namespace", name.clone()), ("mode", mode.to_owned())],
                    1,
                )
            }),
        )?;
        let kinds = [
            ("client", Kind::Client),
            ("probation", Kind::Probation),
            ("store", Kind::Store),
        ];
        Self::gauges(
            &mut encoder,
            "connections",
            "Open connections to the client port; on probation is who found no client's place and may be a store",
            kinds.into_iter().map(|(name, kind)| {
                let open = self.places.open(kind) as u64;
                (vec![("kind", name.to_owned())], number(open))
            }),
        )?;
        let engine = self.manager.context().engine.stats();
        let committer = self.manager.context().committer.stats();
        let clock = &self.manager.context().clock;
        Self::gauges(
            &mut encoder,
            "clock_off",
            "1 while a majority of the stores is against this store's clock",
            std::iter::once((Vec::new(), i64::from(clock.off().is_some()))),
        )?;
        Self::gauges(
            &mut encoder,
            "clock_skew_ms",
            "How far this store's clock is ahead of the middle of those read lately; absent: none was",
            clock.skew().map(|skew| (Vec::new(), skew.0)).into_iter(),
        )?;
        for (name, help, value) in [
            (
                "storage_disk_bytes",
                "Bytes of the database on disk",
                engine.disk_bytes,
            ),
            (
                "storage_memtable_bytes",
                "Bytes of writes held in memory",
                engine.memtable_bytes,
            ),
            (
                "storage_cache_bytes",
                "Bytes of the block cache in use",
                engine.cache_bytes,
            ),
            (
                "storage_queued_bytes",
                "Bytes of batches that wait for the committer",
                committer.queued_bytes,
            ),
        ] {
            Self::gauges(
                &mut encoder,
                name,
                help,
                std::iter::once((Vec::new(), number(value))),
            )?;
        }
        for (name, help, value) in [
            (
                "connections_refused",
                "Connections closed because clients held all that limits.max_connections allows",
                self.places.refused(),
            ),
            (
                "storage_syncs",
                "Syncs of the write-ahead log",
                engine.syncs,
            ),
            (
                "storage_commit_submissions",
                "Batches submitted to the committer",
                committer.submissions,
            ),
            (
                "storage_commit_groups",
                "Groups that the committer wrote; batches per group is how well a sync is shared",
                committer.groups,
            ),
        ] {
            let counter = ConstCounter::new(value);
            let descriptor = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(descriptor)?;
        }
        Ok(())
    }
}
