//! Whether a region has a leader with a quorum, as far as this replica can know.
//!
//! A leader knows by the acknowledgements that it gets; a follower by the leader's requests, which say
//! how old the leader's own knowledge is. So a follower of a leader that was cut off from the rest
//! learns of it, too. The consensus library never makes an isolated leader step down: it is this that
//! keeps its callers from hanging.

use crate::config::LiveConfig;
use crate::contacts::Contacts;
use crate::error::{Error, Outcome};
use crate::raft::{Metrics, QuorumView, TypeConfig};
use openraft::async_runtime::WatchReceiver;
use openraft::{Instant as _, ServerState};
use parking_lot::Mutex;
use rdb_types::{Reason, RegionId, StoreId};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Where a request of this region has to go now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// This replica leads.
    Lead,
    /// Another one does.
    Follow(StoreId),
    /// Nobody is known to lead, but not for long yet.
    Wait,
    /// There has been no leader with a quorum for `quorum_timeout`.
    Lost,
}

/// Where the consensus shows what it knows.
pub type MetricsReceiver = openraft::alias::WatchReceiverOf<TypeConfig, Metrics>;

/// Watches one region's quorum.
pub struct QuorumWatch {
    me: StoreId,
    region: RegionId,
    config: LiveConfig,
    metrics: MetricsReceiver,
    contacts: Arc<Contacts>,
    view: Arc<QuorumView>,
    /// The voters that the region begins with.
    founders: Vec<StoreId>,
    /// The latest moment at which a leader is known to have had a quorum; at first the start.
    last_good: Mutex<Instant>,
    /// Whether that was ever more than the start.
    seen: AtomicBool,
}

impl QuorumWatch {
    /// Nothing is known yet: the time to find a leader begins now.
    pub fn new(
        me: StoreId,
        region: RegionId,
        config: LiveConfig,
        metrics: MetricsReceiver,
        contacts: Arc<Contacts>,
        view: Arc<QuorumView>,
        founders: Vec<StoreId>,
    ) -> QuorumWatch {
        QuorumWatch {
            me,
            region,
            config,
            metrics,
            contacts,
            view,
            founders,
            last_good: Mutex::new(Instant::now()),
            seen: AtomicBool::new(false),
        }
    }

    /// A leader's request came, sent when its last acknowledgement by a quorum was this old.
    pub fn heard_leader(&self, quorum_age: Duration) {
        if let Some(at) = Instant::now().checked_sub(quorum_age) {
            let mut good = self.last_good.lock();
            *good = good.max(at);
            self.seen.store(true, Ordering::Relaxed);
        }
    }

    /// How long ago a leader is known to have had a quorum.
    pub fn age(&self) -> Duration {
        let acked = {
            let metrics = self.metrics.borrow_watched();
            let alone = metrics
                .membership_config
                .membership()
                .voter_ids()
                .all(|voter| voter == metrics.id);
            match metrics.state {
                // A group of one is its own quorum; nobody acknowledges anything to it.
                ServerState::Leader if alone => Some(Duration::ZERO),
                ServerState::Leader => metrics.last_quorum_acked.map(|at| at.elapsed()),
                _ => None,
            }
        };
        let mut good = self.last_good.lock();
        if let Some(at) = acked.and_then(|age| Instant::now().checked_sub(age)) {
            *good = good.max(at);
            self.seen.store(true, Ordering::Relaxed);
        }
        good.elapsed()
    }

    fn timeout(&self) -> Duration {
        self.config.load().consistency.quorum_timeout
    }

    /// Whether there is a leader with a quorum, or was within `quorum_timeout`.
    pub fn available(&self) -> bool {
        self.age() < self.timeout()
    }

    /// Whether a leader with a quorum is known now, and not only hoped for since the start.
    pub fn confirmed(&self) -> bool {
        self.available() && self.seen.load(Ordering::Relaxed)
    }

    /// Where a request has to go now.
    pub fn route(&self) -> Route {
        if !self.available() {
            return Route::Lost;
        }
        match self.leader() {
            Some(leader) if leader == self.me => Route::Lead,
            Some(leader) => Route::Follow(leader),
            None => Route::Wait,
        }
    }

    /// The last known leader.
    pub fn leader(&self) -> Option<StoreId> {
        self.metrics
            .borrow_watched()
            .current_leader
            .and_then(StoreId::new)
    }

    /// Whether this replica leads.
    pub fn is_leader(&self) -> bool {
        self.leader() == Some(self.me)
    }

    /// The voters, this replica included where it is one. Until it has heard of any membership, those
    /// that the region begins with.
    pub fn voters(&self) -> Vec<StoreId> {
        let voters: Vec<StoreId> = self
            .metrics
            .borrow_watched()
            .membership_config
            .membership()
            .voter_ids()
            .filter_map(StoreId::new)
            .collect();
        if voters.is_empty() {
            return self.founders.clone();
        }
        voters
    }

    /// All replicas, learners too.
    pub fn replicas(&self) -> BTreeSet<StoreId> {
        self.metrics
            .borrow_watched()
            .membership_config
            .membership()
            .nodes()
            .filter_map(|(store, _)| StoreId::new(*store))
            .collect()
    }

    /// Replicas that were heard of lately (this one counts), and how many are needed. Lately is half of
    /// `quorum_timeout`, so that who went with the quorum is not counted when its loss is said.
    pub fn reached_and_needed(&self) -> (u32, u32) {
        let (voters, lately) = (self.voters(), self.timeout() / 2);
        let reached = voters
            .iter()
            .filter(|store| {
                **store == self.me || self.contacts.age(**store).is_some_and(|age| age < lately)
            })
            .count();
        (reached as u32, (voters.len() / 2 + 1) as u32)
    }

    /// What followers are told with every request.
    pub fn refresh_view(&self) {
        self.view.set(self.age().as_millis() as u64);
    }

    /// The refusal of a region without a quorum: of a read, or of a change (what it is called, where its
    /// text shall say what became of it, and what did).
    pub fn lost(&self, change: Option<(Option<&str>, Outcome)>) -> Error {
        let (reached, needed) = self.reached_and_needed();
        let leader = self
            .leader()
            .map_or_else(|| "none".to_owned(), |leader| leader.to_string());
        let region = self.region;
        let seconds = self.age().as_secs_f32();
        let tail = match change {
            Some((Some(what), outcome)) => format!("; {}", outcome.clause(what)),
            Some((None, _)) => String::new(),
            // The cluster's tables are read in no other way.
            None if region == RegionId::META => String::new(),
            None => "; stale reads of keys still work (consistency STALE, `flaredb get --stale`)"
                .to_owned(),
        };
        let but = if reached >= needed {
            ", but none that leads"
        } else {
            ""
        };
        let message = format!(
            "region {region} has had no leader with a quorum for {seconds:.1} s: store {} reaches {reached} of {needed} needed replicas{but}{tail}. Check the stores and the network between them with `flaredb status`",
            self.me
        );
        let error = Error::new(Reason::NoQuorum, message)
            .with("region", region)
            .with("reached", reached)
            .with("needed", needed)
            .with("leader", leader);
        match change {
            Some((_, outcome)) => error.outcome(outcome),
            None => error,
        }
    }

    /// The refusal of a forwarded request that met a store which does not lead.
    pub fn not_leader(&self) -> Error {
        let leader = self.leader();
        let metrics = self.metrics.borrow_watched();
        let address = leader
            .and_then(|leader| {
                metrics
                    .membership_config
                    .membership()
                    .get_node(&u64::from(leader.get()))
                    .map(|node| node.address.clone())
            })
            .unwrap_or_default();
        Error::new(
            Reason::NotLeader,
            format!("store {} does not lead region {}", self.me, self.region),
        )
        .with(
            "leader",
            leader.map_or_else(|| "none".to_owned(), |leader| leader.to_string()),
        )
        .with("leader_address", address)
        .with("region", self.region)
        .outcome(Outcome::NotApplied)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use arc_swap::ArcSwap;
    use openraft::type_config::TypeConfigExt;

    #[tokio::test(start_paused = true)]
    async fn a_replica_that_heard_of_no_membership_counts_its_cluster() {
        let store = |id| StoreId::new(id).unwrap();
        let (_keep, metrics) = TypeConfig::watch_channel(Metrics::new_initial(2));
        let contacts = Arc::new(Contacts::new());
        let watch = QuorumWatch::new(
            store(2),
            RegionId(2),
            Arc::new(ArcSwap::from_pointee(Config::default())),
            metrics,
            contacts.clone(),
            Arc::new(QuorumView::default()),
            (1..=3).map(store).collect(),
        );
        let refusal = watch.lost(None);
        let counted = |error: &Error| {
            let of = |key| error.metadata[key].clone();
            (of("reached"), of("needed"))
        };
        assert_eq!(counted(&refusal), ("1".into(), "2".into()), "{refusal}");
        contacts.heard_from(store(3));
        assert_eq!(counted(&watch.lost(None)), ("2".into(), "2".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stale_read_is_advised_only_where_there_is_one() {
        let me = StoreId::new(1).unwrap();
        for (region, advised) in [(RegionId::META, false), (RegionId(2), true)] {
            let (_keep, metrics) = TypeConfig::watch_channel(Metrics::new_initial(1));
            let watch = QuorumWatch::new(
                me,
                region,
                Arc::new(ArcSwap::from_pointee(Config::default())),
                metrics,
                Arc::new(Contacts::new()),
                Arc::new(QuorumView::default()),
                vec![me],
            );
            let text = watch.lost(None).message;
            assert_eq!(text.contains("flaredb get --stale"), advised, "{text}");
            assert_eq!(text.contains("stale"), advised, "{text}");
        }
    }
}
