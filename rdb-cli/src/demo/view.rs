//! What the stores say of themselves, as far as the demo asks.
//!
//! Owns the reading of a ClusterStatus: who leads, how far each replica is, what its data add up to.
//! Pure; knows nothing of how the status was come by.

use super::cluster::Cluster;
use rdb_client::Client;
use rdb_client::proto::admin::ClusterStatusResponse;
use rdb_client::proto::raft::{NamespaceReport, RegionReport};
use rdb_types::{RegionId, StoreId};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How often a status is asked for while something is waited for.
const POLL: Duration = Duration::from_millis(20);

/// One store's view of the cluster.
pub(super) struct View(pub(super) ClusterStatusResponse);

impl View {
    /// Asks the cluster, through `client`.
    pub(super) async fn ask(client: &Client) -> Option<View> {
        client.cluster_status().await.ok().map(View)
    }

    /// Asks until the answer has it, or until `within` has passed.
    pub(super) async fn wait<T>(
        client: &Client,
        within: Duration,
        find: impl Fn(&View) -> Option<T>,
    ) -> Option<T> {
        let give_up = Instant::now() + within;
        loop {
            if let Some(found) = View::ask(client).await.as_ref().and_then(&find) {
                return Some(found);
            }
            if Instant::now() > give_up {
                return None;
            }
            sleep(POLL).await;
        }
    }

    /// The store that leads the data, by the newest term that any replica knows of.
    pub(super) fn leader(&self) -> Option<StoreId> {
        let newest = self
            .reports()
            .filter(|(_, report)| report.leader != 0)
            .max_by_key(|(_, report)| report.term)?;
        StoreId::new(newest.1.leader.into())
    }

    /// The highest index that any replica knows to be committed, in each data region.
    pub(super) fn committed(&self) -> BTreeMap<u64, u64> {
        let mut committed = BTreeMap::new();
        for (_, report) in self.reports() {
            let index: &mut u64 = committed.entry(report.region_id).or_default();
            *index = (*index).max(report.commit_index);
        }
        committed
    }

    /// Whether a store has applied all of that.
    pub(super) fn has_applied(&self, store: StoreId, committed: &BTreeMap<u64, u64>) -> bool {
        committed.iter().all(|(region, index)| {
            self.reports().any(|(of, report)| {
                of == store && report.region_id == *region && report.applied_index >= *index
            })
        })
    }

    /// What a store's replica of a namespace adds up to, for each region: how far it has applied, and
    /// the digest of what it holds.
    pub(super) fn digests(
        &self,
        store: StoreId,
        namespace: &str,
    ) -> Result<Vec<(u64, u64, String)>, String> {
        let row = self
            .0
            .namespaces
            .iter()
            .find(|row| row.name == namespace && !row.deleted);
        let id = row
            .ok_or_else(|| format!("the cluster does not know the namespace {namespace}"))?
            .id;
        let of_store = self.reports().filter(|(of, _)| *of == store);
        let digests: Vec<_> = of_store
            .filter_map(|(_, report)| {
                let of_namespace = |namespace: &&NamespaceReport| namespace.namespace_id == id;
                let digest = &report.namespaces.iter().find(of_namespace)?.digest;
                let hex = digest.iter().map(|byte| format!("{byte:02x}")).collect();
                Some((report.region_id, report.applied_index, hex))
            })
            .collect();
        if digests.is_empty() {
            Err(format!("store {store} reports no replica of {namespace}"))
        } else {
            Ok(digests)
        }
    }

    /// Whether every store answers and has applied the same.
    pub(super) fn is_settled(&self, cluster: &Cluster) -> bool {
        let committed = self.committed();
        let all_last = self
            .reports()
            .all(|(_, report)| report.last_index == report.applied_index);
        !committed.is_empty()
            && all_last
            && cluster
                .ids()
                .into_iter()
                .all(|store| self.has_applied(store, &committed))
    }

    /// The reports on data regions, of all stores that answered.
    fn reports(&self) -> impl Iterator<Item = (StoreId, &RegionReport)> {
        let stores = self
            .0
            .stores
            .iter()
            .filter_map(|store| Some((store.member.as_ref()?, store.status.as_ref()?)));
        stores.flat_map(|(member, status)| {
            let id = StoreId::new(member.store_id.into());
            let data = status
                .regions
                .iter()
                .filter(|report| report.region_id != RegionId::META.0);
            data.filter_map(move |report| Some((id?, report)))
        })
    }
}
