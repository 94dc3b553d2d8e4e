//! The regular duties of a region's eventual namespaces.
//!
//! Owns their rhythm: senders for the other replicas, expiry, forgetting, copies, repairs, and the
//! objectives for lag. Whether something is due, [`crate::eventual::reports`] says.
//!
//! Invariant: one copy at a time.

use super::{Served, Shared, copy, link};
use crate::error::Error;
use crate::eventual::EventualState;
use crate::tasks;
use rdb_types::{Epoch, NamespaceId, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::writer::Job;

/// How often everything is looked at.
const TURN: Duration = Duration::from_millis(250);
/// How often the log says again that an objective is missed.
const SAY_AGAIN: Duration = Duration::from_secs(30);

/// The task. Ends with the region.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut keeper = Keeper {
        shared: shared.clone(),
        links: BTreeMap::new(),
        copying: None,
        said: BTreeMap::new(),
    };
    loop {
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            () = tokio::time::sleep(TURN) => {}
        }
        shared.forget_dropped();
        let served = shared.served();
        if served.is_empty() {
            continue;
        }
        keeper.link(&shared.others());
        for (namespace, served) in served {
            if let Err(error) = keeper.keep(namespace, served).await {
                tracing::debug!(region = shared.region.0, namespace_id = namespace.0, %error, "not kept now");
            }
        }
    }
}

struct Keeper {
    shared: Arc<Shared>,
    links: BTreeMap<StoreId, JoinHandle<()>>,
    copying: Option<JoinHandle<()>>,
    /// When the log last said that a replica misses its objective.
    said: BTreeMap<(NamespaceId, StoreId), Instant>,
}

impl Keeper {
    /// One sender for each other replica.
    fn link(&mut self, others: &BTreeSet<StoreId>) {
        self.links.retain(|_, link| !link.is_finished());
        for store in others {
            let shared = &self.shared;
            self.links
                .entry(*store)
                .or_insert_with(|| tasks::spawn(link::run(shared.clone(), *store)));
        }
    }

    async fn keep(&mut self, namespace: NamespaceId, served: Served) -> Result<(), Error> {
        let shared = self.shared.clone();
        // In this order: who is named by an entry behind the index begins with a copy from behind it, and
        // that holds all that the vector says. The replicas are those as of the index.
        let durable = shared.durable_state(namespace);
        let own = shared.own_report(served.epoch, &durable);
        let (applied_index, others) = shared.applied();
        let settled = {
            let mut reports = shared.reports.lock();
            reports.applied(namespace, &shared.state(namespace).vector);
            others.and_then(|others| reports.settled(namespace, &own, applied_index, &others))
        };
        // A clock that is off buries nothing.
        let now_ms = shared.core.clock.stamping_ms();
        loop {
            let settled = settled.clone();
            let all = shared
                .do_job(|reply| Job::Keep {
                    namespace,
                    expired_through_ms: now_ms,
                    settled,
                    log_bytes: shared.core.config.load().limits.origin_log.as_bytes(),
                    reply,
                })
                .await?;
            if all {
                break;
            }
        }
        self.watch_lag(namespace, served.epoch, &durable, now_ms);
        self.mend(namespace, served);
        Ok(())
    }

    /// Says when a replica is further behind than the namespace's objective.
    fn watch_lag(
        &mut self,
        namespace: NamespaceId,
        epoch: Epoch,
        durable: &EventualState,
        now_ms: u64,
    ) {
        let epoch = epoch.0;
        let objective_ms = self.shared.core.policies.of(namespace).max_lag_ms;
        if objective_ms == 0 {
            return;
        }
        let now = Instant::now();
        for lag in self.shared.lags(namespace, durable, now, now_ms) {
            let Some(store) = StoreId::new(u64::from(lag.store_id)) else {
                continue;
            };
            if lag.oldest_ms <= objective_ms {
                if self.said.remove(&(namespace, store)).is_some() {
                    tracing::info!(
                        region = self.shared.region.0,
                        namespace_id = namespace.0,
                        epoch,
                        store = store.get(),
                        "the replica is within the objective for lag again"
                    );
                }
                continue;
            }
            let said = self.said.get(&(namespace, store));
            if said.is_none_or(|said| now.saturating_duration_since(*said) >= SAY_AGAIN) {
                if said.is_none() {
                    self.shared.core.counters.lag_breached(namespace, store);
                }
                self.said.insert((namespace, store), now);
                tracing::warn!(
                    region = self.shared.region.0,
                    namespace_id = namespace.0,
                    epoch,
                    store = store.get(),
                    writes = lag.writes,
                    lag_ms = lag.oldest_ms,
                    objective_ms,
                    "a replica is further behind than the namespace's max_lag"
                );
            }
        }
    }

    /// Takes a copy where the logs do not go back far enough, or where data differs that should not.
    fn mend(&mut self, namespace: NamespaceId, served: Served) {
        if self
            .copying
            .as_ref()
            .is_some_and(|task| !task.is_finished())
        {
            return;
        }
        let shared = self.shared.clone();
        let durable = shared.durable_state(namespace);
        let own = shared.own_report(served.epoch, &durable);
        let (behind, differing) = {
            let reports = shared.reports.lock();
            let behind = reports.copy_from(namespace, &own, &durable.floor, Instant::now());
            (behind, reports.differing(namespace, &own))
        };
        let region = shared.region.0;
        let from = match (behind, differing) {
            (Some(from), _) => {
                tracing::info!(
                    region,
                    namespace_id = namespace.0,
                    from = from.get(),
                    "what is missing here is in no log any more: taking a copy"
                );
                from
            }
            (None, Some(from)) => {
                tracing::error!(
                    region,
                    namespace_id = namespace.0,
                    store = from.get(),
                    vector = %own.vector,
                    "two replicas have seen the same writes and hold different data, which is a defect or a damaged disk: comparing ranges and merging"
                );
                shared.core.counters.repaired(namespace);
                from
            }
            (None, None) => return,
        };
        self.copying = Some(tasks::spawn(async move {
            match copy::take(&shared, namespace, from).await {
                Ok(came) => tracing::info!(
                    region,
                    namespace_id = namespace.0,
                    records = came.records,
                    "the copy is complete"
                ),
                Err(error) => {
                    tracing::warn!(region, namespace_id = namespace.0, %error, "the copy is not complete; another one begins");
                }
            }
            // What it said before is answered by now.
            shared.reports.lock().forget(namespace, from);
        }));
    }
}
