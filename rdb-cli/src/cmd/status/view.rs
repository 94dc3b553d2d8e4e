//! What a ClusterStatusResponse says about one region, store or namespace: many reports, one view.
//!
//! Pure. Knows nothing of printing, nor of what is good or bad.

use rdb_proto::admin::{ClusterStatusResponse, StoreSummary};
use rdb_proto::raft::{NamespaceRow, RegionReport};

/// A region, out of what its replicas report.
#[derive(Debug, Default)]
pub(crate) struct Region {
    pub(crate) leader: u32,
    pub(crate) term: u64,
    pub(crate) applied: u64,
    pub(crate) quorum: bool,
    /// Stores that report it.
    pub(crate) replicas: usize,
    pub(crate) keys: u64,
}

impl Region {
    pub(crate) fn of(answer: &ClusterStatusResponse, id: u64) -> Region {
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

pub(crate) fn reports(
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

pub(crate) fn name(store: &StoreSummary) -> (u32, &str) {
    let member = store.member.as_ref().or_else(|| {
        store
            .status
            .as_ref()
            .and_then(|status| status.member.as_ref())
    });
    member.map_or((0, "?"), |member| (member.store_id, &*member.address))
}

/// Keys of a namespace: the most that any replica of each region counts.
pub(crate) fn keys(answer: &ClusterStatusResponse, namespace: u32) -> u64 {
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

/// A switch of modes that is under way.
#[derive(Debug)]
pub(crate) struct Switch<'a> {
    pub(crate) row: &'a NamespaceRow,
    /// As long as any store has known of it.
    pub(crate) for_ms: u64,
    /// It was given up, or cancelled, and leads back.
    pub(crate) undone: bool,
    /// What its leaders say of it.
    pub(crate) step: String,
    pub(crate) waiting_for: Vec<u32>,
    pub(crate) why: String,
}

/// What switches.
pub(crate) fn switches(answer: &ClusterStatusResponse) -> Vec<Switch<'_>> {
    let rows = answer.namespaces.iter();
    let under_way = rows.filter(|row| !row.deleted && row.attempt > row.settled_attempt);
    under_way
        .map(|row| {
            let statuses = answer.stores.iter().flat_map(|store| &store.status);
            let known = statuses.clone().flat_map(|status| &status.switches);
            let known = known.filter(|it| it.namespace_id == row.id);
            let mut switch = Switch {
                row,
                for_ms: known.map(|it| it.for_ms).max().unwrap_or(0),
                undone: row.target == row.mode,
                step: String::new(),
                waiting_for: Vec::new(),
                why: String::new(),
            };
            let regions = statuses.flat_map(|status| &status.regions);
            let namespaces = regions.flat_map(|region| &region.namespaces);
            let progress = namespaces.filter(|it| it.namespace_id == row.id);
            for progress in progress.flat_map(|it| &it.progress) {
                if progress.attempt == row.attempt {
                    switch.step.clone_from(&progress.step);
                    switch.why.clone_from(&progress.why);
                    switch.waiting_for.extend(&progress.waiting_for);
                }
            }
            switch.waiting_for.sort_unstable();
            switch.waiting_for.dedup();
            switch
        })
        .collect()
}
