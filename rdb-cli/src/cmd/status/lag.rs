//! How far the replicas of eventual namespaces are, out of a ClusterStatusResponse.
//!
//! Pure. Invariant: a replica that answers is as far behind as its own vector says, measured against all
//! that any replica has; of one that does not answer there is only what the others last heard.

use super::view::{name, reports};
use rdb_proto::admin::ClusterStatusResponse;
use rdb_proto::convert::{self, vector};
use rdb_proto::raft::{HeldStream, NamespaceReport, NamespaceRow};
use rdb_types::{Mode, VersionVector};
use std::collections::BTreeMap;

/// An eventual namespace on one store, all regions together.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Replica {
    pub(crate) store: u32,
    pub(crate) reachable: bool,
    /// Writes that another replica has and this one has not; `None`: nobody knows.
    pub(crate) lag_writes: Option<u64>,
    /// Age of the oldest of them.
    pub(crate) lag_ms: u64,
    pub(crate) conflicts: u64,
    pub(crate) conflicts_dropped: u64,
    pub(crate) held: Vec<HeldStream>,
    /// Another replica has the same vector and another digest.
    pub(crate) differs: bool,
}

/// The namespaces that are eventual, each with its replicas.
pub(crate) fn of(answer: &ClusterStatusResponse) -> Vec<(&NamespaceRow, Vec<Replica>)> {
    let eventual =
        |row: &&NamespaceRow| !row.deleted && convert::mode(row.mode) == Some(Mode::Eventual);
    let rows = answer.namespaces.iter().filter(eventual);
    rows.map(|row| (row, replicas(answer, row.id))).collect()
}

fn replicas(answer: &ClusterStatusResponse, namespace: u32) -> Vec<Replica> {
    let mut replicas: BTreeMap<u32, Replica> = answer
        .stores
        .iter()
        .map(|store| {
            let replica = Replica {
                store: name(store).0,
                reachable: store.reachable,
                ..Replica::default()
            };
            (replica.store, replica)
        })
        .collect();
    for region in &answer.regions {
        let reports: BTreeMap<u32, &NamespaceReport> = reports(answer, region.id)
            .filter_map(|(store, report)| {
                let mut namespaces = report.namespaces.iter();
                let report = namespaces.find(|report| report.namespace_id == namespace)?;
                Some((name(store).0, report))
            })
            .collect();
        let vectors: BTreeMap<u32, VersionVector> = reports
            .iter()
            .map(|(store, report)| (*store, vector(&report.vector).unwrap_or_default()))
            .collect();
        let mut join = VersionVector::new();
        vectors.values().for_each(|vector| join.join(vector));
        for replica in replicas.values_mut() {
            let report = reports.get(&replica.store);
            let seen = reports.values().flat_map(|report| &report.lags);
            let seen = seen.filter(|lag| lag.store_id == replica.store);
            let writes = match vectors.get(&replica.store) {
                Some(own) => Some(own.missing(&join)),
                None => seen.clone().map(|lag| lag.writes).max(),
            };
            if writes.is_some_and(|writes| writes > 0) {
                let oldest_ms = seen.map(|lag| lag.oldest_ms).max();
                replica.lag_ms = replica.lag_ms.max(oldest_ms.unwrap_or(0));
            }
            // A region that holds nothing of the namespace is not reported, and adds nothing.
            if let Some(writes) = writes {
                *replica.lag_writes.get_or_insert(0) += writes;
            }
            let Some(report) = report else { continue };
            replica.conflicts += report.conflicts;
            replica.conflicts_dropped += report.conflicts_dropped;
            replica.held.extend(report.held.iter().cloned());
            replica.differs |= reports.values().any(|other| {
                vectors.get(&replica.store) == Some(&vector(&other.vector).unwrap_or_default())
                    && other.expired_through_ms == report.expired_through_ms
                    && !other.partial
                    && !report.partial
                    && other.epoch == report.epoch
                    && other.digest != report.digest
            });
        }
    }
    replicas.into_values().collect()
}

/// The namespace's objective for lag; 0: none.
pub(crate) fn objective_ms(row: &NamespaceRow) -> u64 {
    let policies = row.policies.as_ref();
    policies.map_or(0, |policies| {
        u64::try_from(policies.max_lag_ms).unwrap_or(0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdb_proto::admin::StoreSummary;
    use rdb_proto::raft::{
        Member, RegionDescriptor, RegionReport, ReplicaLag, StoreStatus, VectorPart,
    };

    fn report(sequence: u64, digest: u8, lags: &[(u32, u64, u64)]) -> NamespaceReport {
        NamespaceReport {
            namespace_id: 4,
            digest: vec![digest].into(),
            vector: vec![VectorPart {
                origin: 1,
                sequence,
            }],
            lags: lags
                .iter()
                .map(|(store_id, writes, oldest_ms)| ReplicaLag {
                    store_id: *store_id,
                    writes: *writes,
                    oldest_ms: *oldest_ms,
                    ..Default::default()
                })
                .collect(),
            conflicts: 2,
            ..Default::default()
        }
    }

    fn answer(reports: Vec<Option<NamespaceReport>>) -> ClusterStatusResponse {
        let stores = reports.into_iter().zip(1..).map(|(report, store_id)| {
            let status = report.map(|report| StoreStatus {
                regions: vec![RegionReport {
                    region_id: 2,
                    namespaces: vec![report],
                    ..Default::default()
                }],
                ..Default::default()
            });
            StoreSummary {
                member: Some(Member {
                    store_id,
                    ..Default::default()
                }),
                reachable: status.is_some(),
                status,
                ..Default::default()
            }
        });
        ClusterStatusResponse {
            stores: stores.collect(),
            regions: vec![RegionDescriptor {
                id: 2,
                ..Default::default()
            }],
            namespaces: vec![NamespaceRow {
                id: 4,
                mode: 2,
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    fn seen(reports: Vec<Option<NamespaceReport>>) -> Vec<(Option<u64>, u64, bool)> {
        let answer = answer(reports);
        let (_, replicas) = of(&answer).remove(0);
        replicas
            .iter()
            .map(|replica| (replica.lag_writes, replica.lag_ms, replica.differs))
            .collect()
    }

    #[test]
    fn who_answers_is_measured_by_its_own_vector_and_who_does_not_by_the_others() {
        let here = || Some(report(9, 7, &[(2, 99, 40), (3, 5, 70)]));
        assert_eq!(
            seen(vec![here(), Some(report(6, 8, &[])), None]),
            [
                (Some(0), 0, false),
                (Some(3), 40, false),
                (Some(5), 70, false)
            ]
        );
        // After a restart nobody has heard of the third.
        assert_eq!(
            seen(vec![Some(report(9, 7, &[])), None]),
            [(Some(0), 0, false), (None, 0, false)]
        );
    }

    #[test]
    fn different_data_under_equal_vectors_is_told() {
        assert_eq!(
            seen(vec![Some(report(9, 7, &[])), Some(report(9, 8, &[]))]),
            [(Some(0), 0, true), (Some(0), 0, true)]
        );
    }
}
