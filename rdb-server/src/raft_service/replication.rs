//! Who holds what of a namespace: one answer out of what all stores that can be reached say.
//!
//! Pure. Owns the joining of reports; knows nothing of how they were fetched.
//!
//! Invariants: a replica that answers is as far behind as its own vector says, measured against all that
//! any replica has; what is said of one that does not answer is what the others last heard of it.

use rdb_proto::convert::{self, vector};
use rdb_proto::raft::{
    NamespaceReport, NamespaceRow, RegionDescriptor, RegionReport, RegionStatus, ReplicaStatus,
    StoreStatus,
};
use rdb_types::{Mode, RegionId, StoreId, VersionVector};
use std::collections::BTreeMap;
use std::time::Duration;

/// What every store said of itself, or why it did not.
pub(super) type Statuses = BTreeMap<StoreId, Result<StoreStatus, String>>;

/// The replication of a namespace, region by region. `contact_age`: how long ago a store was heard of.
pub(super) fn of(
    row: &NamespaceRow,
    regions: &[RegionDescriptor],
    statuses: &Statuses,
    contact_age: impl Fn(StoreId) -> Option<Duration>,
) -> Vec<RegionStatus> {
    regions
        .iter()
        .filter(|region| RegionId(region.id) != RegionId::META)
        .map(|region| Region::of(row, region.id, statuses).status(statuses, &contact_age))
        .collect()
}

/// A region as its replicas report it.
struct Region<'s> {
    id: u64,
    mode: i32,
    reports: BTreeMap<StoreId, &'s RegionReport>,
    /// Of the namespace; a replica that has not heard of it yet is missing.
    namespaces: BTreeMap<StoreId, &'s NamespaceReport>,
    /// All that any replica has applied.
    join: VersionVector,
    commit_index: u64,
}

impl<'s> Region<'s> {
    fn of(row: &NamespaceRow, id: u64, statuses: &'s Statuses) -> Region<'s> {
        let answered = statuses
            .iter()
            .filter_map(|(store, status)| Some((*store, status.as_ref().ok()?)));
        let reports: BTreeMap<_, _> = answered
            .filter_map(|(store, status)| {
                let mut regions = status.regions.iter();
                Some((store, regions.find(|report| report.region_id == id)?))
            })
            .collect();
        let namespaces: BTreeMap<_, _> = reports
            .iter()
            .filter_map(|(store, report)| {
                let mut namespaces = report.namespaces.iter();
                Some((*store, namespaces.find(|of| of.namespace_id == row.id)?))
            })
            .collect();
        let newest = namespaces.values().max_by_key(|report| report.epoch);
        let mut join = VersionVector::new();
        for report in namespaces.values() {
            join.join(&vector(&report.vector).unwrap_or_default());
        }
        Region {
            id,
            mode: newest.map_or(row.mode, |report| report.mode),
            commit_index: reports
                .values()
                .map(|report| report.commit_index)
                .max()
                .unwrap_or(0),
            reports,
            namespaces,
            join,
        }
    }

    fn status(
        &self,
        statuses: &Statuses,
        contact_age: &impl Fn(StoreId) -> Option<Duration>,
    ) -> RegionStatus {
        // Of those who know a leader, the newest term knows best.
        let leading = self.reports.values().filter(|report| report.leader != 0);
        RegionStatus {
            region_id: self.id,
            leader: leading
                .max_by_key(|report| report.term)
                .map_or(0, |report| report.leader),
            quorum: self.reports.values().any(|report| report.quorum),
            mode: self.mode,
            replicas: statuses
                .keys()
                .map(|store| self.replica(*store, contact_age(*store)))
                .collect(),
        }
    }

    fn replica(&self, store: StoreId, contact_age: Option<Duration>) -> ReplicaStatus {
        let report = self.reports.get(&store);
        let namespace = self.namespaces.get(&store).copied();
        let own = namespace
            .and_then(|namespace| vector(&namespace.vector))
            .unwrap_or_default();
        // As the other replicas see this one.
        let seen = self
            .namespaces
            .values()
            .flat_map(|namespace| &namespace.lags)
            .filter(|lag| lag.store_id == u32::from(store.get()));
        let last_contact = seen
            .clone()
            .map(|lag| lag.contact_age_ms)
            .chain(contact_age.map(|age| age.as_millis() as u64))
            .min();
        let eventual = convert::mode(self.mode) == Some(Mode::Eventual);
        let lag_writes = match (report, eventual) {
            (Some(report), false) => self.commit_index.saturating_sub(report.applied_index),
            (Some(_), true) => own.missing(&self.join),
            (None, _) => seen.clone().map(|lag| lag.writes).max().unwrap_or(0),
        };
        let lag_ms = if lag_writes == 0 {
            0
        } else {
            seen.map(|lag| lag.oldest_ms).max().unwrap_or(0)
        };
        let namespace = namespace.cloned().unwrap_or_default();
        ReplicaStatus {
            store_id: u32::from(store.get()),
            reachable: report.is_some(),
            last_contact_ms: last_contact.map_or(-1, saturated),
            lag_writes,
            lag_ms: saturated(lag_ms),
            vector: own
                .iter()
                .map(|(origin, sequence)| (u32::from(origin.get()), sequence))
                .collect(),
            applied_index: report.map_or(0, |report| report.applied_index),
            digest: namespace.digest,
            epoch: namespace.epoch,
            keys: namespace.keys,
            expired_through_ms: namespace.expired_through_ms,
            partial: namespace.partial,
            conflicts: namespace.conflicts,
            conflicts_dropped: namespace.conflicts_dropped,
            held: namespace.held,
        }
    }
}

fn saturated(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdb_proto::raft::{ReplicaLag, VectorPart};

    fn store(id: u64) -> StoreId {
        StoreId::new(id).unwrap()
    }

    fn row() -> NamespaceRow {
        NamespaceRow {
            id: 7,
            mode: convert::mode_to_wire(Mode::Eventual),
            ..Default::default()
        }
    }

    fn regions() -> Vec<RegionDescriptor> {
        let region = |id| RegionDescriptor {
            id,
            ..Default::default()
        };
        vec![region(RegionId::META.0), region(2)]
    }

    fn eventual(parts: &[(u32, u64)], lags: &[(u32, u64, u64, u64)]) -> NamespaceReport {
        NamespaceReport {
            namespace_id: 7,
            mode: convert::mode_to_wire(Mode::Eventual),
            epoch: 1,
            vector: parts
                .iter()
                .map(|(origin, sequence)| VectorPart {
                    origin: *origin,
                    sequence: *sequence,
                })
                .collect(),
            lags: lags
                .iter()
                .map(|(store_id, writes, oldest_ms, contact_age_ms)| ReplicaLag {
                    store_id: *store_id,
                    writes: *writes,
                    oldest_ms: *oldest_ms,
                    contact_age_ms: *contact_age_ms,
                })
                .collect(),
            ..Default::default()
        }
    }

    fn says(namespace: NamespaceReport, applied: u64, commit: u64) -> Result<StoreStatus, String> {
        Ok(StoreStatus {
            regions: vec![RegionReport {
                region_id: 2,
                applied_index: applied,
                commit_index: commit,
                namespaces: vec![namespace],
                ..Default::default()
            }],
            ..Default::default()
        })
    }

    #[test]
    fn each_replica_is_measured_against_all_that_any_of_them_has() {
        let statuses: Statuses = [
            // Both sides of a cut wrote; the third store does not answer.
            (
                store(1),
                says(
                    eventual(&[(1, 10), (2, 3)], &[(2, 1, 5, 1), (3, 9, 700, 80)]),
                    4,
                    4,
                ),
            ),
            (
                store(2),
                says(
                    eventual(&[(1, 7), (2, 4)], &[(1, 1, 8, 2), (3, 5, 900, 60)]),
                    4,
                    4,
                ),
            ),
            (store(3), Err("gone".to_owned())),
        ]
        .into();
        let regions = of(&row(), &regions(), &statuses, |of| {
            (of == store(1)).then_some(Duration::ZERO)
        });
        assert_eq!(regions.len(), 1, "the tables are no namespace's");
        let seen: Vec<_> = regions[0]
            .replicas
            .iter()
            .map(|replica| {
                (
                    replica.reachable,
                    replica.lag_writes,
                    replica.lag_ms,
                    replica.last_contact_ms,
                )
            })
            .collect();
        assert_eq!(
            seen,
            [(true, 1, 8, 0), (true, 3, 5, 1), (false, 9, 900, 60)]
        );
        assert_eq!(regions[0].replicas[1].vector, [(1, 7), (2, 4)].into());
    }

    #[test]
    fn a_store_that_nobody_ever_heard_of_says_so() {
        let statuses: Statuses = [
            (store(1), says(eventual(&[], &[]), 1, 1)),
            (store(2), Err("gone".to_owned())),
        ]
        .into();
        let regions = of(&row(), &regions(), &statuses, |_| None);
        assert_eq!(regions[0].replicas[1].last_contact_ms, -1);
        assert!(!regions[0].replicas[1].reachable);
    }

    #[test]
    fn a_strong_replica_is_behind_by_entries_of_the_log() {
        let strong = || NamespaceReport {
            namespace_id: 7,
            mode: convert::mode_to_wire(Mode::Strong),
            epoch: 1,
            ..Default::default()
        };
        let statuses: Statuses = [
            (store(1), says(strong(), 20, 20)),
            (store(2), says(strong(), 17, 18)),
        ]
        .into();
        let row = NamespaceRow {
            mode: convert::mode_to_wire(Mode::Strong),
            ..row()
        };
        let regions = of(&row, &regions(), &statuses, |_| None);
        let lags: Vec<_> = regions[0]
            .replicas
            .iter()
            .map(|replica| replica.lag_writes)
            .collect();
        assert_eq!(lags, [0, 3]);
    }
}
