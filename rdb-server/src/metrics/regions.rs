//! What is read off the regions and the cluster's tables when somebody scrapes.
//!
//! Owns the names of these numbers. Counts nothing itself.

use super::mode_label;
use crate::namespace::Namespaces;
use crate::peer_manager::PeerManager;
use crate::region::meta::MetaState;
use crate::region::meta::modes::being_undone;
use crate::router::watch::Watches;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use rdb_proto::raft::{NamespaceReport, NamespaceRow};
use rdb_types::{Epoch, Mode, NamespaceId};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Weak;
use std::time::Duration;
use tokio::time::Instant;

/// What is read off the regions when somebody scrapes.
pub(super) struct Regions {
    manager: Weak<PeerManager>,
}

impl fmt::Debug for Regions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Regions")
    }
}

impl Regions {
    pub(super) fn new(manager: Weak<PeerManager>) -> Regions {
        Regions { manager }
    }
}

/// Names, labels and values of one family.
pub(super) type Labels = Vec<(&'static str, String)>;

/// A family of whole numbers.
pub(super) fn gauges(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl Iterator<Item = (Labels, i64)>,
) -> fmt::Result {
    let gauge = ConstGauge::new(0i64);
    let mut descriptor = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
    for (labels, value) in rows {
        ConstGauge::new(value).encode(descriptor.encode_family(&labels)?)?;
    }
    Ok(())
}

/// A family of times, in seconds.
pub(super) fn seconds(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl Iterator<Item = (Labels, Duration)>,
) -> fmt::Result {
    let gauge = ConstGauge::new(0f64);
    let mut descriptor =
        encoder.encode_descriptor(name, help, Some(&Unit::Seconds), gauge.metric_type())?;
    for (labels, value) in rows {
        ConstGauge::new(value.as_secs_f64()).encode(descriptor.encode_family(&labels)?)?;
    }
    Ok(())
}

/// As the encoder takes it.
pub(super) fn number(value: u64) -> i64 {
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

    /// Whether it may have a conflict log: it is eventual, or was, and a switch may have set writes aside.
    fn may_list_conflicts(&self) -> bool {
        self.is_eventual() || self.epoch > Epoch::FIRST.0
    }
}

fn encode_watches(encoder: &mut DescriptorEncoder<'_>, watches: &Watches) -> fmt::Result {
    let open = ConstGauge::new(number(watches.open()));
    let (name, help) = ("watch_streams", "Watches that are open");
    let descriptor = encoder.encode_descriptor(name, help, None, open.metric_type())?;
    open.encode(descriptor)?;
    for (name, help, count) in [
        ("watch_events", "Changes told to watches", watches.events()),
        (
            "watch_cuts",
            "Watches that were ended because they were read too slowly",
            watches.cut(),
        ),
    ] {
        let counter = ConstCounter::new(count);
        let descriptor = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
        counter.encode(descriptor)?;
    }
    Ok(())
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
        gauges(encoder, name, help, rows)?;
    }
    let modes = totals.iter().map(|(name, of)| {
        let mut labels = labelled(name);
        labels.push(("mode", mode_label(of.mode).to_owned()));
        (labels, 1)
    });
    gauges(encoder, "namespace_mode", "1 for the mode in force", modes)?;

    let eventual = || totals.iter().filter(|(_, of)| of.is_eventual());
    let of_store = |name: &str, store: &u32| {
        let mut labels = labelled(name);
        labels.push(("store", store.to_string()));
        labels
    };
    let listing = || totals.iter().filter(|(_, of)| of.may_list_conflicts());
    let listed = listing().map(|(name, of)| (labelled(name), number(of.conflicts)));
    let help = "Writes in the conflict log of this store";
    gauges(encoder, "conflicts_listed", help, listed)?;
    let writes = eventual().flat_map(|(name, of)| {
        let lags = of.lags.iter();
        lags.map(|(store, (writes, _))| (of_store(name, store), number(*writes)))
    });
    let help = "Writes that another replica has not reported to have, as this store knows";
    gauges(encoder, "replication_lag_writes", help, writes)?;
    let held = eventual().flat_map(|(name, of)| {
        let held = of.held.iter();
        held.map(|(origin, streams)| (of_store(name, origin), number(*streams)))
    });
    let help = "Regions in which the writes of that store wait here, for a stamp further ahead than any clock may be";
    gauges(encoder, "held_streams", help, held)?;

    let oldest = eventual().flat_map(|(name, of)| {
        let lags = of.lags.iter();
        lags.map(|(store, (_, oldest_ms))| {
            (of_store(name, store), Duration::from_millis(*oldest_ms))
        })
    });
    let help = "Age of the oldest write that another replica has not reported to have, as this store knows";
    seconds(encoder, "replication_lag", help, oldest)?;
    let (name, help) = (
        "conflicts_dropped",
        "Writes that the bound of the conflict log pushed out of it on this store",
    );
    let counter = ConstCounter::new(0u64);
    let mut descriptor = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
    for (name, of) in listing() {
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
        let fields: [(&str, &str, Field); 6] = [
            (
                "waiting_writes",
                "Writes of clients that were taken here and are not answered yet",
                |(report, _)| report.waiting_writes,
            ),
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
            gauges(
                &mut encoder,
                name,
                help,
                reports
                    .iter()
                    .map(|report| (region(report.0.region_id), number(field(report)))),
            )?;
        }
        let followers = manager.peers().into_iter().flat_map(|peer| {
            let (id, last) = (peer.id().0, peer.last_index());
            let followers = peer.followers().into_iter();
            followers.map(move |(store, matching)| {
                let mut labels = region(id);
                labels.push(("store", store.get().to_string()));
                (labels, number(last.saturating_sub(matching)))
            })
        });
        gauges(
            &mut encoder,
            "raft_follower_lag_entries",
            "Entries of the region's log that another store has not said to have; from the store that leads it, once it has heard that one",
            followers,
        )?;
        let name = "storage_damaged_reads";
        let help = "Reads that found stored data damaged";
        let counter = ConstCounter::new(0u64);
        let mut descriptor = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
        for peer in manager.peers() {
            let labels = region(peer.id().0);
            let found = ConstCounter::new(peer.damage().found());
            found.encode(descriptor.encode_family(&labels)?)?;
        }
        encode_watches(&mut encoder, manager.watches())?;
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
        gauges(
            &mut encoder,
            "namespace_mode_mismatch",
            "1 while a store declares or applies another mode than the cluster's; each store knows of itself, the one that leads the meta region of all",
            rows.map(|(id, row)| {
                let labels = vec![("namespace", row.name.clone())];
                (labels, i64::from(mismatched.contains(id)))
            }),
        )?;
        let policies = rows_of(&tables).filter_map(|row| {
            let max_lag_ms = row.policies.as_ref()?.max_lag_ms;
            totals.get(&*row.name).filter(|of| of.is_eventual())?;
            let objective = u64::try_from(max_lag_ms).ok().filter(|ms| *ms > 0)?;
            Some((named(&row.name), Duration::from_millis(objective)))
        });
        seconds(
            &mut encoder,
            "replication_lag_objective",
            "How far a replica may be behind, as the namespace's max_lag says; absent: it says nothing",
            policies,
        )?;
        let under_way = manager.switches().under_way(Instant::now());
        let switches = rows_of(&tables).filter_map(|row| {
            let since = under_way.get(&NamespaceId(row.id))?;
            let mut labels = named(&row.name);
            // One that is undone leads back: what was asked for is what ended last.
            let end = row.last_switch.as_ref().filter(|_| being_undone(row));
            let to = end.map_or(row.target, |end| end.to);
            labels.push(("from", mode_label(row.mode).to_owned()));
            labels.push(("to", mode_label(to).to_owned()));
            Some((labels, *since))
        });
        seconds(
            &mut encoder,
            "mode_switch_under_way",
            "For how long a switch of modes has been under way, being undone included, as this store knows; absent: none is",
            switches,
        )
    }
}

fn named(name: &str) -> Labels {
    vec![("namespace", name.to_owned())]
}

fn rows_of(tables: &MetaState) -> impl Iterator<Item = &NamespaceRow> {
    tables.namespaces.values().filter(|row| !row.deleted)
}
