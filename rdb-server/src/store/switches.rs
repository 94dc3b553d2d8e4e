//! Switches of modes, as a store drives them.
//!
//! Owns the doing around two states that are looked at again and again: what the cluster's tables want is
//! told to the regions of this store, whose leaders act on it; and where this store leads the meta region,
//! a switch that all regions have followed is settled, and one that takes too long is given up. What is
//! decided is [`crate::modes::reconciler`]'s. Nothing is kept but timers: a store that is killed at any
//! step leaves all that matters in logs, and whoever leads next goes on.

use super::StoreCore;
use super::neighbours::{self, Neighbours};
use crate::modes::reconciler::{Next, next};
use crate::modes::{RegionView, data_regions, regions, text_of, write_pause_us};
use crate::region::meta::MetaState;
use crate::region::meta::modes::{being_undone, under_way};
use crate::stores::Stores;
use futures::FutureExt;
use futures::future::{BoxFuture, pending};
use rdb_proto::raft::{NamespaceRow, RegionReport, SettleTarget};
use rdb_types::{NamespaceId, RegionId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks while nothing is to be done. A change of the tables is seen at once.
const IDLE: Duration = Duration::from_secs(1);
/// Between two looks at the regions while a namespace switches.
const BUSY: Duration = Duration::from_millis(30);
/// Between two questions to the other stores, while a namespace switches: what this store's own replicas
/// have applied mostly tells enough.
const ASKING: Duration = Duration::from_millis(250);
/// For the meta region to take a word.
const PATIENCE: Duration = Duration::from_secs(5);

/// Since when this store, leading the meta region, has known of an attempt.
struct Seen {
    attempt: u64,
    since: Instant,
}

/// What the other stores said last of their regions.
struct Others<'a> {
    stores: Stores,
    asking: Option<BoxFuture<'a, Vec<RegionReport>>>,
    answered_at: Option<Instant>,
    reports: Vec<RegionReport>,
}

impl StoreCore {
    /// Tells this store's regions what the tables say, as soon as they say it; and the log, which of the stores
    /// in them are heard of.
    pub(super) async fn keep_books(&self) {
        let mut neighbours = Neighbours::default();
        loop {
            let seen = self.namespaces.applied_index();
            let tables = self.namespaces.tables();
            self.manager
                .switches()
                .look(tables.namespaces.values(), Instant::now());
            let changes = neighbours.look(self.me, &tables.stores, |store| {
                self.manager.contact_age(store)
            });
            neighbours::tell(&tables.stores, changes);
            self.policies.set(self.namespaces.policies());
            self.orders.set(self.namespaces.orders());
            self.namespaces.changed(seen, IDLE).await;
        }
    }

    /// Ends the switches that are under way, for as long as this store leads the meta region.
    pub(super) async fn drive_switches(&self) {
        let mut others = Others {
            stores: self.stores(),
            asking: None,
            answered_at: None,
            reports: Vec::new(),
        };
        let mut seen: BTreeMap<NamespaceId, Seen> = BTreeMap::new();
        loop {
            let index = self.namespaces.applied_index();
            let tables = self.namespaces.tables();
            let switching = self.switching(&tables);
            seen.retain(|id, _| switching.iter().any(|row| row.id == id.0));
            for row in &switching {
                self.drive(row, &tables, &mut seen, &others.reports).await;
            }
            if switching.is_empty() {
                others.rest();
                self.namespaces.changed(index, IDLE).await;
            } else {
                others.ask_if_due(&tables);
                tokio::select! {
                    biased;
                    () = others.answer() => {}
                    () = self.namespaces.changed(index, BUSY) => {}
                }
            }
        }
    }

    /// Asks the stores of this cluster.
    pub(super) fn stores(&self) -> Stores {
        Stores::new(self.me, self.manager.clone(), self.transport.clone())
    }

    /// What is under way and this store's to end.
    fn switching(&self, tables: &MetaState) -> Vec<NamespaceRow> {
        if !self.leads_meta() {
            return Vec::new();
        }
        let rows = tables.namespaces.values();
        rows.filter(|row| !row.deleted && under_way(row))
            .cloned()
            .collect()
    }

    async fn drive(
        &self,
        row: &NamespaceRow,
        tables: &MetaState,
        seen: &mut BTreeMap<NamespaceId, Seen>,
        others: &[RegionReport],
    ) {
        let id = NamespaceId(row.id);
        let now = Instant::now();
        let known = seen.get(&id).filter(|seen| seen.attempt == row.attempt);
        let since = known.map_or(now, |seen| seen.since);
        if known.is_none() {
            let attempt = row.attempt;
            seen.insert(id, Seen { attempt, since });
            announce(row);
        }
        let own = self.manager.data_reports();
        let expected = data_regions(tables.cluster.as_ref());
        let views = regions(id, &expected, own.iter().chain(others));
        let limit = self.config.load().consistency.switch_timeout;
        let (why, waiting_for) = match next(row, &views, now - since, limit) {
            Next::Wait => return,
            Next::Settle => (String::new(), Vec::new()),
            Next::GiveUp { why, waiting_for } => (why, waiting_for),
        };
        let settle = SettleTarget {
            namespace_id: row.id,
            attempt: row.attempt,
            why: why.clone(),
            waiting_for,
        };
        match self.namespaces.settle(settle, now + PATIENCE).await {
            // Somebody was faster, or this copy of the tables was old.
            Ok(after) if !is_end_of(row, &after, !why.is_empty()) => {}
            Ok(_) if !why.is_empty() => {
                tracing::warn!(namespace = %row.name, to = text_of(row.target), attempt = row.attempt, %why, "a switch of modes is given up, and what was done of it is undone");
            }
            Ok(after) => self.settled(row, &after, &views, since.elapsed()),
            Err(error) => {
                tracing::debug!(namespace = %row.name, %error, "the end of a switch cannot be written down yet");
            }
        }
    }

    /// Says and counts how a switch ended.
    fn settled(
        &self,
        before: &NamespaceRow,
        after: &NamespaceRow,
        views: &BTreeMap<RegionId, RegionView>,
        took: Duration,
    ) {
        let end = after.last_switch.clone().unwrap_or_default();
        let (from, to) = (text_of(end.from), text_of(end.to));
        let name = &after.name;
        if before.mode == after.mode {
            tracing::info!(namespace = %name, from, to, attempt = before.attempt, why = %end.why, "a switch of modes is undone");
            self.metrics.switched(name, from, to, "aborted", None);
            return;
        }
        let pause = Duration::from_micros(write_pause_us(after.mode, views));
        tracing::info!(namespace = %name, from, to, attempt = before.attempt, ?took, write_pause = ?pause, "a switch of modes is done");
        self.metrics.switched(name, from, to, "done", Some(pause));
    }
}

impl Others<'_> {
    fn ask_if_due(&mut self, tables: &Arc<MetaState>) {
        let fresh = self.answered_at.is_some_and(|at| at.elapsed() < ASKING);
        if self.asking.is_some() || fresh {
            return;
        }
        let (stores, tables) = (self.stores.clone(), tables.clone());
        let asked = async move {
            let statuses = stores.statuses(&tables).await.into_values();
            statuses
                .flatten()
                .flat_map(|status| status.regions)
                .collect()
        };
        self.asking = Some(asked.boxed());
    }

    /// Takes up the answers once they are there.
    async fn answer(&mut self) {
        let Some(asking) = &mut self.asking else {
            return pending().await;
        };
        self.reports = asking.await;
        self.asking = None;
        self.answered_at = Some(Instant::now());
    }

    fn rest(&mut self) {
        self.asking = None;
        self.reports.clear();
    }
}

/// Whether the row after a word of this store is that word's doing.
fn is_end_of(before: &NamespaceRow, after: &NamespaceRow, given_up: bool) -> bool {
    if given_up {
        after.attempt == before.attempt + 1 && being_undone(after)
    } else {
        after.settled_attempt == before.attempt
    }
}

fn announce(row: &NamespaceRow) {
    let (mode, target) = (text_of(row.mode), text_of(row.target));
    if being_undone(row) {
        let end = row.last_switch.clone().unwrap_or_default();
        tracing::info!(namespace = %row.name, mode, attempt = row.attempt, why = %end.why, "a namespace goes back to its mode");
    } else {
        tracing::info!(namespace = %row.name, from = mode, to = target, attempt = row.attempt, accept_missing = ?row.accept_missing, "a namespace switches its mode");
    }
}
