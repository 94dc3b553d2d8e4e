//! What is read off the regions, the engine and the connections when somebody scrapes.
//!
//! Owns the names of these numbers. Counts nothing itself.

use super::mode_label;
use crate::namespace::Namespaces;
use crate::peer_manager::PeerManager;
use crate::transport::grpc::{Kind, Places};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use rdb_proto::raft::NamespaceReport;
use rdb_types::{Mode, NamespaceId};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// What is read off the regions when somebody scrapes.
pub(super) struct Regions {
    manager: Weak<PeerManager>,
    places: Arc<Places>,
}

impl fmt::Debug for Regions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Regions")
    }
}

impl Regions {
    pub(super) fn new(manager: Weak<PeerManager>, places: Arc<Places>) -> Regions {
        Regions { manager, places }
    }

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

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// What the regions of this store say of a namespace together.
#[derive(Default)]
struct Totals {
    keys: u64,
    bytes: u64,
    epoch: u64,
    mode: i32,
    conflicts: u64,
    conflicts_dropped: u64,
    /// Of each other replica: missing writes, and the age of the oldest in milliseconds.
    lags: BTreeMap<u32, (u64, u64)>,
    /// Of each origin: regions in which its stream is held.
    held: BTreeMap<u32, u64>,
}

impl Totals {
    fn add(&mut self, report: &NamespaceReport) {
        self.keys += report.keys;
        self.bytes += report.bytes;
        self.epoch = self.epoch.max(report.epoch);
        self.mode = report.mode;
        self.conflicts += report.conflicts;
        self.conflicts_dropped += report.conflicts_dropped;
        for lag in &report.lags {
            let (writes, oldest_ms) = self.lags.entry(lag.store_id).or_default();
            *writes += lag.writes;
            *oldest_ms = lag.oldest_ms.max(*oldest_ms);
        }
        for held in &report.held {
            *self.held.entry(held.origin).or_default() += 1;
        }
    }

    fn is_eventual(&self) -> bool {
        rdb_proto::convert::mode(self.mode) == Some(Mode::Eventual)
    }
}

fn encode_namespaces(
    encoder: &mut DescriptorEncoder<'_>,
    totals: &BTreeMap<&str, Totals>,
) -> fmt::Result {
    let labelled = |name: &str| vec![("namespace", name.to_owned())];
    type Field = fn(&Totals) -> u64;
    let fields: [(&str, &str, Field); 3] = [
        ("namespace_keys", "Records on this store", |of| of.keys),
        (
            "namespace_bytes",
            "Bytes of keys and values on this store",
            |of| of.bytes,
        ),
        (
            "namespace_epoch",
            "Grows with every step of a mode change",
            |of| of.epoch,
        ),
    ];
    for (name, help, field) in fields {
        let rows = totals
            .iter()
            .map(|(name, of)| (labelled(name), number(field(of))));
        Regions::gauges(encoder, name, help, rows)?;
    }
    let modes = totals.iter().map(|(name, of)| {
        let mut labels = labelled(name);
        labels.push(("mode", mode_label(of.mode).to_owned()));
        (labels, 1)
    });
    Regions::gauges(encoder, "namespace_mode", "1 for the mode in force", modes)?;

    let eventual = || totals.iter().filter(|(_, of)| of.is_eventual());
    let of_store = |name: &str, store: &u32| {
        let mut labels = labelled(name);
        labels.push(("store", store.to_string()));
        labels
    };
    let listed = eventual().map(|(name, of)| (labelled(name), number(of.conflicts)));
    let help = "Writes in the conflict log of this store";
    Regions::gauges(encoder, "conflicts_listed", help, listed)?;
    let writes = eventual().flat_map(|(name, of)| {
        let lags = of.lags.iter();
        lags.map(|(store, (writes, _))| (of_store(name, store), number(*writes)))
    });
    let help = "Writes that another replica has not reported to have, as this store knows";
    Regions::gauges(encoder, "replication_lag_writes", help, writes)?;
    let held = eventual().flat_map(|(name, of)| {
        let held = of.held.iter();
        held.map(|(origin, streams)| (of_store(name, origin), number(*streams)))
    });
    let help = "Regions in which the writes of that store wait here, for a stamp further ahead than any clock may be";
    Regions::gauges(encoder, "held_streams", help, held)?;

    let (name, help) = (
        "replication_lag",
        "Age of the oldest write that another replica has not reported to have, as this store knows",
    );
    let gauge = ConstGauge::new(0f64);
    let mut descriptor =
        encoder.encode_descriptor(name, help, Some(&Unit::Seconds), gauge.metric_type())?;
    for (name, of) in eventual() {
        for (store, (_, oldest_ms)) in &of.lags {
            let labels = of_store(name, store);
            let seconds = Duration::from_millis(*oldest_ms).as_secs_f64();
            ConstGauge::new(seconds).encode(descriptor.encode_family(&labels)?)?;
        }
    }
    let (name, help) = (
        "conflicts_dropped",
        "Writes that the bound of the conflict log pushed out of it on this store",
    );
    let counter = ConstCounter::new(0u64);
    let mut descriptor = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
    for (name, of) in eventual() {
        let dropped = ConstCounter::new(of.conflicts_dropped);
        dropped.encode(descriptor.encode_family(&labelled(name))?)?;
    }
    Ok(())
}

impl Collector for Regions {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(manager) = self.manager.upgrade() else {
            return Ok(());
        };
        let reports: Vec<_> = manager
            .peers()
            .iter()
            .map(|peer| (peer.report(), peer.quorum().is_leader()))
            .collect();
        let region = |id: u64| vec![("region", id.to_string())];
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
            Regions::gauges(
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
        for peer in manager.peers() {
            let labels = region(peer.id().0);
            let found = ConstCounter::new(peer.damage().found());
            found.encode(descriptor.encode_family(&labels)?)?;
        }
        let tables = Namespaces::new(manager.clone()).tables();
        let mut totals: BTreeMap<&str, Totals> = BTreeMap::new();
        for namespace in reports.iter().flat_map(|(report, _)| &report.namespaces) {
            let row = tables.namespaces.get(&NamespaceId(namespace.namespace_id));
            if let Some(row) = row.filter(|row| !row.deleted) {
                totals.entry(&row.name).or_default().add(namespace);
            }
        }
        encode_namespaces(&mut encoder, &totals)?;
        let mismatched = manager.mismatches().namespaces();
        let rows = tables.namespaces.iter().filter(|(_, row)| !row.deleted);
        Regions::gauges(
            &mut encoder,
            "namespace_mode_mismatch",
            "1 while a store declares or applies another mode than the cluster's; each store knows of itself, the one that leads the meta region of all",
            rows.map(|(id, row)| {
                let labels = vec![("namespace", row.name.clone())];
                (labels, i64::from(mismatched.contains(id)))
            }),
        )?;
        let kinds = [
            ("client", Kind::Client),
            ("probation", Kind::Probation),
            ("store", Kind::Store),
        ];
        Regions::gauges(
            &mut encoder,
            "connections",
            "Open connections to the client port; on probation is who found no client's place and may be a store",
            kinds.into_iter().map(|(name, kind)| {
                let open = self.places.open(kind) as u64;
                (vec![("kind", name.to_owned())], number(open))
            }),
        )?;
        let engine = manager.context().engine.stats();
        let committer = manager.context().committer.stats();
        let clock = &manager.context().clock;
        Regions::gauges(
            &mut encoder,
            "clock_off",
            "1 while a majority of the stores is against this store's clock",
            std::iter::once((Vec::new(), i64::from(clock.off().is_some()))),
        )?;
        Regions::gauges(
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
            Regions::gauges(
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
