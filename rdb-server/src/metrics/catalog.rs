//! Every metric that a store exports, by the name that a query uses, with its labels.
//!
//! Owns the list that dashboards, alert rules and the operator's page are held against (`tests/test_operations`), and
//! a live cluster's own page is. Counts nothing.
//!
//! Invariant: a store exports just these, with just these labels. Never a key in a label; a namespace does only if it
//! exists.

/// What kind of number it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Goes up and down.
    Gauge,
    /// Only grows, from zero at the store's start.
    Counter,
    /// `_bucket`, `_sum` and `_count`.
    Histogram,
    /// Always 1: what is told is in the labels.
    Info,
}

/// A metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    /// As queries name it; of a histogram without the ending.
    pub name: &'static str,
    /// What kind of number it is.
    pub kind: Kind,
    /// Its labels, in their order; a histogram's `le` is not among them.
    pub labels: &'static [&'static str],
}

const fn of(name: &'static str, kind: Kind, labels: &'static [&'static str]) -> Exported {
    Exported { name, kind, labels }
}

use Kind::{Counter, Gauge, Histogram, Info};

/// All of them.
pub const CATALOG: &[Exported] = &[
    of("flaredb_build_info", Info, &["version"]),
    of("flaredb_uptime_seconds", Gauge, &[]),
    of("flaredb_namespace_mode", Gauge, &["namespace", "mode"]),
    of("flaredb_namespace_epoch", Gauge, &["namespace"]),
    of("flaredb_namespace_mode_mismatch", Gauge, &["namespace"]),
    of("flaredb_namespace_keys", Gauge, &["namespace"]),
    of("flaredb_namespace_bytes", Gauge, &["namespace"]),
    of(
        "flaredb_replication_lag_seconds",
        Gauge,
        &["namespace", "store"],
    ),
    of(
        "flaredb_replication_lag_writes",
        Gauge,
        &["namespace", "store"],
    ),
    of(
        "flaredb_replication_lag_objective_seconds",
        Gauge,
        &["namespace"],
    ),
    of(
        "flaredb_replication_lag_breaches_total",
        Counter,
        &["namespace", "store"],
    ),
    of("flaredb_convergence_seconds", Histogram, &["namespace"]),
    of("flaredb_quorum_available", Gauge, &["region"]),
    of("flaredb_raft_is_leader", Gauge, &["region"]),
    of("flaredb_raft_term", Gauge, &["region"]),
    of("flaredb_raft_commit_index", Gauge, &["region"]),
    of("flaredb_raft_applied_index", Gauge, &["region"]),
    of(
        "flaredb_raft_follower_lag_entries",
        Gauge,
        &["region", "store"],
    ),
    of("flaredb_waiting_writes", Gauge, &["region"]),
    of(
        "flaredb_requests_total",
        Counter,
        &["method", "namespace", "code"],
    ),
    of("flaredb_request_seconds", Histogram, &["method", "mode"]),
    of("flaredb_quorum_rejections_total", Counter, &["namespace"]),
    of("flaredb_no_space_rejections_total", Counter, &["namespace"]),
    of("flaredb_conflicts_total", Counter, &["namespace"]),
    of("flaredb_conflicts_listed", Gauge, &["namespace"]),
    of("flaredb_conflicts_dropped_total", Counter, &["namespace"]),
    of(
        "flaredb_clock_skew_rejections_total",
        Counter,
        &["namespace"],
    ),
    of("flaredb_held_streams", Gauge, &["namespace", "store"]),
    of("flaredb_replica_repairs_total", Counter, &["namespace"]),
    of(
        "flaredb_mode_switches_total",
        Counter,
        &["namespace", "from", "to", "outcome"],
    ),
    of(
        "flaredb_mode_switch_write_pause_seconds",
        Histogram,
        &["namespace", "from", "to", "outcome"],
    ),
    of(
        "flaredb_mode_switch_under_way_seconds",
        Gauge,
        &["namespace", "from", "to"],
    ),
    of("flaredb_store_contact_age_seconds", Gauge, &["store"]),
    of("flaredb_clock_off", Gauge, &[]),
    of("flaredb_clock_skew_ms", Gauge, &[]),
    of("flaredb_clock_max_skew_ms", Gauge, &[]),
    of("flaredb_connections", Gauge, &["kind"]),
    of("flaredb_connections_refused_total", Counter, &[]),
    of("flaredb_watch_streams", Gauge, &[]),
    of("flaredb_watch_events_total", Counter, &[]),
    of("flaredb_watch_cuts_total", Counter, &[]),
    of("flaredb_storage_damaged_reads_total", Counter, &["region"]),
    of("flaredb_storage_disk_bytes", Gauge, &[]),
    of("flaredb_storage_free_bytes", Gauge, &[]),
    of("flaredb_storage_total_bytes", Gauge, &[]),
    of("flaredb_storage_reserve_bytes", Gauge, &[]),
    of("flaredb_storage_reserve_held_bytes", Gauge, &[]),
    of("flaredb_storage_room_level", Gauge, &[]),
    of("flaredb_storage_memtable_bytes", Gauge, &[]),
    of("flaredb_storage_cache_bytes", Gauge, &[]),
    of("flaredb_storage_table_reader_bytes", Gauge, &[]),
    of("flaredb_storage_queued_bytes", Gauge, &[]),
    of("flaredb_storage_pending_compaction_bytes", Gauge, &[]),
    of("flaredb_storage_background_errors_total", Counter, &[]),
    of("flaredb_storage_written_bytes_total", Counter, &[]),
    of("flaredb_storage_syncs_total", Counter, &[]),
    of("flaredb_storage_commit_submissions_total", Counter, &[]),
    of("flaredb_storage_commit_groups_total", Counter, &[]),
    of("flaredb_log_dropped_lines_total", Counter, &[]),
    of("flaredb_process_resident_memory_bytes", Gauge, &[]),
    of("flaredb_process_anonymous_memory_bytes", Gauge, &[]),
    of("flaredb_process_cpu_seconds_total", Counter, &[]),
    of("flaredb_process_open_files", Gauge, &[]),
    of("flaredb_process_max_files", Gauge, &[]),
    of("flaredb_process_threads", Gauge, &[]),
];

impl Exported {
    /// The names that queries use.
    pub fn series(&self) -> Vec<String> {
        match self.kind {
            Histogram => ["_bucket", "_sum", "_count"]
                .iter()
                .map(|ending| format!("{}{ending}", self.name))
                .collect(),
            Gauge | Counter | Info => vec![self.name.to_owned()],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_name_twice_and_endings_as_their_kinds_demand() {
        let names: BTreeSet<_> = CATALOG.iter().map(|it| it.name).collect();
        assert_eq!(names.len(), CATALOG.len());
        for it in CATALOG {
            assert_eq!(
                it.name.ends_with("_total"),
                it.kind == Counter,
                "{}",
                it.name
            );
            assert!(!it.labels.contains(&"key"), "{}", it.name);
        }
    }
}
