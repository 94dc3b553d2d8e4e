//! What a ClusterStatusResponse says about one region, store or namespace: many reports, one view.
//!
//! Pure. Knows nothing of printing, nor of what is good or bad.

use rdb_proto::admin::{ClusterStatusResponse, StoreSummary};
use rdb_proto::raft::RegionReport;

/// A region, out of what its replicas report.
#[derive(Debug, Default)]
pub(super) struct Region {
    pub(super) leader: u32,
    pub(super) term: u64,
    pub(super) applied: u64,
    pub(super) quorum: bool,
    /// Stores that report it.
    pub(super) replicas: usize,
    pub(super) keys: u64,
}

impl Region {
    pub(super) fn of(answer: &ClusterStatusResponse, id: u64) -> Region {
        let mut region = Region::default();
        let mut newest_term = 0;
        for (_, report) in reports(answer, id) {
            region.replicas += 1;
            region.quorum |= report.quorum;
            region.term = region.term.max(report.term);
            // Of those who know a leader, the newest term knows best.
            if report.leader != 0 && report.term >= newest_term {
                (region.leader, newest_term) = (report.leader, report.term);
            }
            if report.applied_index >= region.applied {
                region.applied = report.applied_index;
                region.keys = report
                    .namespaces
                    .iter()
                    .map(|namespace| namespace.keys)
                    .sum();
            }
        }
        region
    }
}

pub(super) fn reports(
    answer: &ClusterStatusResponse,
    region: u64,
) -> impl Iterator<Item = (&StoreSummary, &RegionReport)> {
    answer
        .stores
        .iter()
        .filter(|store| store.reachable)
        .flat_map(move |store| {
            let reports = store.status.iter().flat_map(|status| &status.regions);
            reports
                .filter(move |report| report.region_id == region)
                .map(move |report| (store, report))
        })
}

pub(super) fn name(store: &StoreSummary) -> (u32, &str) {
    let member = store.member.as_ref().or_else(|| {
        store
            .status
            .as_ref()
            .and_then(|status| status.member.as_ref())
    });
    member.map_or((0, "?"), |member| (member.store_id, &*member.address))
}

/// Keys of a namespace: the most that any replica of each region counts.
pub(super) fn keys(answer: &ClusterStatusResponse, namespace: u32) -> u64 {
    let of_region = |id| {
        reports(answer, id)
            .flat_map(|(_, report)| &report.namespaces)
            .filter(|report| report.namespace_id == namespace)
            .map(|report| report.keys)
            .max()
            .unwrap_or(0)
    };
    answer
        .regions
        .iter()
        .map(|region| of_region(region.id))
        .sum()
}
