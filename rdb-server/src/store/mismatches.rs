//! What a store's configuration declares, told to the cluster; and who disagrees with the cluster.
//!
//! Owns the telling of changed declarations, each of which may be a vote (the meta region decides that),
//! and the looking: every store looks after itself, and the one that leads the meta region after all.
//! What counts as a mismatch is [`crate::modes::mismatch`]'s.

use super::StoreCore;
use crate::modes::mismatch::{Change, Has};
use crate::modes::{data_regions, regions, text_of};
use crate::region::meta::MetaState;
use rdb_proto::raft::{DeclaredNamespace, StoreStatus};
use rdb_types::{NamespaceId, StoreId};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(1);

/// The mode that a configuration declares for a namespace; 0: none.
pub(crate) fn declared_mode(declared: &[DeclaredNamespace], name: &str) -> i32 {
    let mut declared = declared.iter();
    declared
        .find(|declared| declared.name == name)
        .map_or(0, |declared| declared.mode)
}

impl StoreCore {
    /// Tells the cluster whenever this store's configuration declares something else than the cluster
    /// knows of it.
    pub(super) async fn declare_changes(&self) {
        let mut told = false;
        loop {
            let tables = self.namespaces.tables();
            let known = tables.stores.get(&self.me).map(|row| &row.declared);
            if known.is_some_and(|known| *known != self.manager.declared()) {
                // What does not work now is tried again in a second.
                match self.register_store().await {
                    Ok(()) => {
                        told = false;
                        tracing::info!("the cluster knows which modes this store declares now");
                    }
                    Err(error) if !told => {
                        told = true;
                        tracing::warn!(%error, "the cluster is not told yet which modes this store declares now");
                    }
                    Err(error) => {
                        tracing::debug!(%error, "the cluster is still not told which modes this store declares");
                    }
                }
            }
            tokio::select! {
                biased;
                () = self.reloader.taken_up() => {}
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
    }

    /// Looks for stores that declare or apply another mode than the cluster's, and says so once.
    pub(super) async fn look_for_mismatches(&self) {
        let stores = self.stores();
        // A store that does not answer has what it had when it last did.
        let mut statuses: BTreeMap<StoreId, StoreStatus> = BTreeMap::new();
        loop {
            let tables = self.namespaces.tables();
            let leads = self.leads_meta();
            if leads {
                let asked = stores.statuses(&tables).await;
                statuses.retain(|store, _| asked.contains_key(store));
                let answered = asked.into_iter();
                statuses.extend(answered.filter_map(|(store, status)| Some((store, status.ok()?))));
            } else {
                statuses = [(self.me, self.manager.status())].into();
            }
            for (row_name, change) in self.observe(&tables, &statuses, leads) {
                tell(&row_name, &change);
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    fn observe(
        &self,
        tables: &MetaState,
        statuses: &BTreeMap<StoreId, StoreStatus>,
        leads: bool,
    ) -> Vec<(String, Change)> {
        let now = (Instant::now(), self.manager.context().clock.unix_ms());
        let after = self.config.load().consistency.mismatch_after;
        let expected = data_regions(tables.cluster.as_ref());
        let mut kept = self.manager.mismatches();
        let mut changes = Vec::new();
        let exists = |id| {
            let row = tables.namespaces.get(&id);
            row.is_some_and(|row| !row.deleted)
        };
        kept.retain(|namespace, store| exists(namespace) && (leads || store == self.me));
        for row in tables.namespaces.values().filter(|row| !row.deleted) {
            let reports = statuses.values().flat_map(|status| &status.regions);
            let newest = regions(NamespaceId(row.id), &expected, reports);
            for (store, status) in statuses {
                let declared = declared_mode(&status.declared, &row.name);
                let has = Has::of(row, declared, &status.regions, &newest);
                let change = kept.observe(row, *store, has, now, after);
                changes.extend(change.map(|change| (row.name.clone(), change)));
            }
        }
        changes
    }
}

fn tell(namespace: &str, change: &Change) {
    let (store, has) = (change.store.get(), &change.has);
    let (declared, applied) = (text_of(has.declared), text_of(has.applied));
    if change.began {
        tracing::warn!(
            namespace,
            store,
            declared,
            applied,
            epoch = has.epoch,
            "a store disagrees with the cluster about a namespace's mode: it {}, and the cluster's counts",
            change.differs
        );
    } else {
        tracing::info!(
            namespace,
            store,
            declared,
            applied,
            epoch = has.epoch,
            "the store agrees with the cluster about the namespace's mode again"
        );
    }
}
