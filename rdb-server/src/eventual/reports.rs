//! What the other replicas say they hold, and what follows from it.
//!
//! Owns the conclusions: what may be forgotten, how far each replica is behind, how old the data here may
//! be, who needs a relay, when a copy is needed and from whom, and whose digest differs. Does no IO and
//! reads no clock.
//!
//! Invariants:
//! - a report counts only in the epoch that this replica is in, and not when it comes from a log that is
//!   ahead of this replica's;
//! - what is *settled* was seen by every replica, as this replica knows from reports all of which its
//!   own vector has caught up with since: so nothing older than it can still be under way to here. ("All
//!   have seen the tombstone" is not enough: an older write may be.)

use rdb_types::{Digest, Epoch, NamespaceId, StoreId, VersionVector};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// Two reports this far apart that show no progress mean that nobody brings the missing writes.
const STALLED: Duration = Duration::from_millis(400);

/// A replica that was not heard of for so long is not counted on.
const RECENT: Duration = Duration::from_secs(5);

/// What a replica holds of a namespace, synced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// In which epoch.
    pub epoch: Epoch,
    /// Up to which number all writes of each origin.
    pub vector: VersionVector,
    /// Of the live records at this vector and expiry.
    pub digest: Digest,
    /// Up to which time records were taken for expired.
    pub expired_through_ms: u64,
    /// It holds more than its vector says: a copy is being taken.
    pub partial: bool,
    /// Up to which number the log of each origin is gone there.
    pub truncated: VersionVector,
}

/// How far a replica is behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lag {
    /// Writes that some replica has and this one has not.
    pub writes: u64,
    /// The first missing write of each origin, for its age.
    pub first_missing: VersionVector,
}

#[derive(Clone, Debug)]
struct Heard {
    report: Report,
    applied_index: u64,
    at: Instant,
    /// An older vector, and when it was reported.
    before: (VersionVector, Instant),
    /// When this replica had all that the other had at that time.
    fresh_as_of: Option<Instant>,
    /// What has to be caught up with to be fresh as of a later time.
    chasing: Option<(Instant, VersionVector)>,
}

/// Reports that are complete, and wait until this replica has caught up with all of them.
#[derive(Clone, Debug)]
struct Round {
    of: BTreeSet<StoreId>,
    epoch: Epoch,
    join: VersionVector,
    meet: VersionVector,
}

#[derive(Clone, Debug, Default)]
struct Of {
    heard: BTreeMap<StoreId, Heard>,
    round: Option<Round>,
}

/// The reports of a region's other replicas.
#[derive(Clone, Debug, Default)]
pub struct Reports(BTreeMap<NamespaceId, Of>);

impl Reports {
    /// Takes a report. `asked` is when it was asked for: it says what was there then, or later.
    pub fn heard(
        &mut self,
        namespace: NamespaceId,
        from: StoreId,
        report: Report,
        applied_index: u64,
        asked: Instant,
    ) {
        let of = self.0.entry(namespace).or_default();
        let chasing = (asked, report.vector.clone());
        let heard = match of.heard.remove(&from) {
            Some(old) if old.at > asked => old,
            Some(old) => Heard {
                before: if asked - old.before.1 >= STALLED * 2 {
                    (old.report.vector, old.at)
                } else {
                    old.before
                },
                // An unfinished chase goes on: a busy replica would else never be caught up with.
                chasing: old.chasing.or(Some(chasing)),
                fresh_as_of: old.fresh_as_of,
                report,
                applied_index,
                at: asked,
            },
            None => Heard {
                before: (report.vector.clone(), asked),
                chasing: Some(chasing),
                fresh_as_of: None,
                report,
                applied_index,
                at: asked,
            },
        };
        of.heard.insert(from, heard);
    }

    /// Nothing more is said of a namespace.
    pub fn drop_namespace(&mut self, namespace: NamespaceId) {
        self.0.remove(&namespace);
    }

    /// What a replica said last.
    pub fn of(&self, namespace: NamespaceId, store: StoreId) -> Option<&Report> {
        Some(&self.0.get(&namespace)?.heard.get(&store)?.report)
    }

    /// When a replica's last report was asked for.
    pub fn age(&self, namespace: NamespaceId, store: StoreId, now: Instant) -> Option<Duration> {
        let heard = self.0.get(&namespace)?.heard.get(&store)?;
        Some(now.saturating_duration_since(heard.at))
    }

    /// Up to where everything may be forgotten, if something newly may. `own` is this replica's synced
    /// report, `others` all other replicas of the region, learners too.
    pub fn settled(
        &mut self,
        namespace: NamespaceId,
        own: &Report,
        own_applied_index: u64,
        others: &BTreeSet<StoreId>,
    ) -> Option<VersionVector> {
        if others.is_empty() {
            return Some(own.vector.clone());
        }
        let of = self.0.get_mut(&namespace)?;
        if of
            .round
            .as_ref()
            .is_none_or(|round| round.of != *others || round.epoch != own.epoch)
        {
            of.round = None;
            let mut round: Option<Round> = None;
            for store in others {
                let heard = of.heard.get(store)?;
                if heard.report.epoch != own.epoch || heard.applied_index > own_applied_index {
                    return None;
                }
                let vector = &heard.report.vector;
                round = Some(match round {
                    None => Round {
                        of: others.clone(),
                        epoch: own.epoch,
                        join: vector.clone(),
                        meet: vector.clone(),
                    },
                    Some(mut round) => {
                        round.join.join(vector);
                        round.meet = round.meet.meet(vector);
                        round
                    }
                });
            }
            of.round = round;
        }
        let caught_up = of.round.take_if(|round| own.vector.covers(&round.join))?;
        Some(caught_up.meet)
    }

    /// Everything that any replica is known to have.
    pub fn known(&self, namespace: NamespaceId, own: &VersionVector) -> VersionVector {
        let mut known = own.clone();
        for heard in self
            .0
            .get(&namespace)
            .into_iter()
            .flat_map(|of| of.heard.values())
        {
            known.join(&heard.report.vector);
        }
        known
    }

    /// How far another replica is behind, as of its last report; `None`: it never reported.
    pub fn lag(&self, namespace: NamespaceId, store: StoreId, own: &VersionVector) -> Option<Lag> {
        let report = self.of(namespace, store)?;
        let known = self.known(namespace, own);
        Some(lag_of(&report.vector, &known))
    }

    /// How far this replica is behind.
    pub fn own_lag(&self, namespace: NamespaceId, own: &VersionVector) -> Lag {
        lag_of(own, &self.known(namespace, own))
    }

    /// Says how far this replica is, which ends the chases that it has caught up with.
    pub fn applied(&mut self, namespace: NamespaceId, own: &VersionVector) {
        let Some(of) = self.0.get_mut(&namespace) else {
            return;
        };
        for heard in of.heard.values_mut() {
            if let Some((asked, _)) = heard.chasing.take_if(|(_, vector)| own.covers(vector)) {
                heard.fresh_as_of = heard.fresh_as_of.max(Some(asked));
            }
        }
    }

    /// How old the data here may be at most: all that the other replicas had that long ago is in it.
    /// `None`: not known, since one of them was not heard of.
    pub fn staleness(
        &self,
        namespace: NamespaceId,
        others: &BTreeSet<StoreId>,
        now: Instant,
    ) -> Option<Duration> {
        let of = self.0.get(&namespace);
        others
            .iter()
            .map(|store| {
                let fresh = of?.heard.get(store)?.fresh_as_of?;
                Some(now.saturating_duration_since(fresh))
            })
            .try_fold(Duration::ZERO, |oldest, age| Some(oldest.max(age?)))
    }

    /// Whether nobody brings a replica the writes of an origin that it misses and this one has.
    pub fn is_stalled(
        &self,
        namespace: NamespaceId,
        store: StoreId,
        origin: StoreId,
        own: &VersionVector,
    ) -> bool {
        let heard = self.0.get(&namespace).and_then(|of| of.heard.get(&store));
        heard.is_some_and(|heard| {
            let now = heard.report.vector.get(origin);
            now < own.get(origin)
                && heard.before.0.get(origin) == now
                && heard.at.saturating_duration_since(heard.before.1) >= STALLED
        })
    }

    /// A replica to take a copy from, if the writes that are missing here are in nobody's log any more.
    pub fn copy_from(
        &self,
        namespace: NamespaceId,
        own: &Report,
        floor: &VersionVector,
        now: Instant,
    ) -> Option<StoreId> {
        let heard = &self.0.get(&namespace)?.heard;
        // Who has not been heard of for a while may have the log, and cannot send it.
        let reports = || {
            heard
                .iter()
                .filter(|(_, heard)| now.saturating_duration_since(heard.at) < RECENT)
                .map(|(store, heard)| (*store, &heard.report))
                .filter(|(_, report)| report.epoch == own.epoch)
        };
        let mut known = own.vector.clone();
        for (_, report) in reports() {
            known.join(&report.vector);
        }
        let lost = known.iter().any(|(origin, last)| {
            let have = own.vector.get(origin);
            have < last
                && reports()
                    .filter(|(_, report)| report.vector.get(origin) > have)
                    .all(|(_, report)| report.truncated.get(origin) > have)
        });
        if !lost {
            return None;
        }
        reports()
            .filter(|(_, report)| !report.partial && report.vector.covers(floor))
            .filter(|(_, report)| own.vector.missing(&report.vector) > 0)
            .max_by_key(|(_, report)| own.vector.missing(&report.vector))
            .map(|(store, _)| store)
    }

    /// A replica that says it holds the same writes and shows another digest: one of the two is damaged.
    pub fn differing(&self, namespace: NamespaceId, own: &Report) -> Option<StoreId> {
        if own.partial {
            return None;
        }
        let heard = &self.0.get(&namespace)?.heard;
        heard
            .iter()
            .find(|(_, heard)| {
                let report = &heard.report;
                report.epoch == own.epoch
                    && !report.partial
                    && report.vector == own.vector
                    && report.expired_through_ms == own.expired_through_ms
                    && report.digest != own.digest
            })
            .map(|(store, _)| *store)
    }

    /// Forgets what a replica said of a namespace: it was acted on, and the next report counts.
    pub fn forget(&mut self, namespace: NamespaceId, store: StoreId) {
        if let Some(of) = self.0.get_mut(&namespace) {
            of.heard.remove(&store);
        }
    }
}

fn lag_of(vector: &VersionVector, known: &VersionVector) -> Lag {
    Lag {
        writes: vector.missing(known),
        first_missing: known
            .iter()
            .filter(|(origin, last)| vector.get(*origin) < *last)
            .map(|(origin, _)| (origin, vector.get(origin) + 1))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMESPACE: NamespaceId = NamespaceId(3);

    fn store(id: u64) -> StoreId {
        StoreId::new(id).unwrap()
    }

    fn vector(parts: &[(u64, u64)]) -> VersionVector {
        parts.iter().map(|(id, last)| (store(*id), *last)).collect()
    }

    fn report(parts: &[(u64, u64)]) -> Report {
        Report {
            epoch: Epoch(1),
            vector: vector(parts),
            ..Report::default()
        }
    }

    fn others() -> BTreeSet<StoreId> {
        [store(2), store(3)].into()
    }

    #[test]
    fn nothing_is_settled_before_every_replica_has_reported() {
        let (mut reports, now) = (Reports::default(), Instant::now());
        let own = report(&[(1, 5), (2, 5)]);
        reports.heard(NAMESPACE, store(2), report(&[(1, 5)]), 7, now);
        assert_eq!(reports.settled(NAMESPACE, &own, 9, &others()), None);
        reports.heard(NAMESPACE, store(3), report(&[(1, 4), (2, 2)]), 7, now);
        let settled = reports.settled(NAMESPACE, &own, 9, &others());
        assert_eq!(settled, Some(vector(&[(1, 4)])));
    }

    /// Store 3 has seen the tombstone (1, 5) and also has a write of its own that is older and not here
    /// yet: the tombstone must stay until that write has come.
    #[test]
    fn all_have_seen_it_is_not_enough() {
        let (mut reports, now) = (Reports::default(), Instant::now());
        let mut own = report(&[(1, 5)]);
        reports.heard(NAMESPACE, store(2), report(&[(1, 5)]), 7, now);
        reports.heard(NAMESPACE, store(3), report(&[(1, 5), (3, 1)]), 7, now);
        assert_eq!(reports.settled(NAMESPACE, &own, 9, &others()), None);
        own.vector.raise(store(3), 1);
        // Newer reports do not start the wait anew.
        reports.heard(NAMESPACE, store(3), report(&[(1, 5), (3, 9)]), 7, now);
        let settled = reports.settled(NAMESPACE, &own, 9, &others());
        assert_eq!(settled, Some(vector(&[(1, 5)])));
    }

    #[test]
    fn reports_of_another_epoch_or_a_newer_log_do_not_count() {
        let (mut reports, now) = (Reports::default(), Instant::now());
        let own = report(&[(1, 5)]);
        reports.heard(NAMESPACE, store(2), report(&[(1, 5)]), 7, now);
        reports.heard(NAMESPACE, store(3), report(&[(1, 5)]), 10, now);
        assert_eq!(reports.settled(NAMESPACE, &own, 9, &others()), None);
        let older = Report {
            epoch: Epoch(0),
            ..report(&[(1, 5)])
        };
        reports.heard(NAMESPACE, store(3), older, 9, now);
        assert_eq!(reports.settled(NAMESPACE, &own, 9, &others()), None);
    }

    #[test]
    fn the_data_is_as_fresh_as_the_replica_that_was_caught_up_with_longest_ago() {
        let (mut reports, began) = (Reports::default(), Instant::now());
        let at = |ms| began + Duration::from_millis(ms);
        let mut own = vector(&[(1, 5)]);
        reports.heard(NAMESPACE, store(2), report(&[(1, 5)]), 0, at(0));
        reports.heard(NAMESPACE, store(3), report(&[(3, 2)]), 0, at(100));
        reports.applied(NAMESPACE, &own);
        assert_eq!(reports.staleness(NAMESPACE, &others(), at(200)), None);
        own.raise(store(3), 2);
        reports.applied(NAMESPACE, &own);
        let staleness = reports.staleness(NAMESPACE, &others(), at(200));
        assert_eq!(staleness, Some(Duration::from_millis(200)));
    }

    #[test]
    fn lag_counts_what_anybody_has() {
        let (mut reports, now) = (Reports::default(), Instant::now());
        let own = vector(&[(1, 5)]);
        reports.heard(NAMESPACE, store(2), report(&[(1, 2)]), 0, now);
        reports.heard(NAMESPACE, store(3), report(&[(3, 4)]), 0, now);
        let lag = reports.lag(NAMESPACE, store(2), &own).unwrap();
        assert_eq!(lag.writes, 7);
        assert_eq!(lag.first_missing, vector(&[(1, 3), (3, 1)]));
        assert_eq!(reports.own_lag(NAMESPACE, &own).writes, 4);
        assert_eq!(reports.lag(NAMESPACE, store(4), &own), None);
    }

    #[test]
    fn a_relay_is_needed_when_two_reports_show_no_progress() {
        let (mut reports, began) = (Reports::default(), Instant::now());
        let at = |ms| began + Duration::from_millis(ms);
        let own = vector(&[(1, 5), (3, 5)]);
        let stalled = |reports: &Reports, origin| {
            reports.is_stalled(NAMESPACE, store(2), store(origin), &own)
        };
        reports.heard(NAMESPACE, store(2), report(&[(1, 1), (3, 5)]), 0, at(0));
        assert!(!stalled(&reports, 1));
        reports.heard(NAMESPACE, store(2), report(&[(1, 1), (3, 5)]), 0, at(500));
        assert!(stalled(&reports, 1) && !stalled(&reports, 3));
        reports.heard(NAMESPACE, store(2), report(&[(1, 2), (3, 5)]), 0, at(1000));
        assert!(!stalled(&reports, 1));
    }

    #[test]
    fn a_copy_is_needed_only_when_nobodys_log_has_it() {
        let (mut reports, now) = (Reports::default(), Instant::now());
        let (own, floor) = (report(&[(1, 1)]), VersionVector::new());
        let truncated = |to| Report {
            truncated: vector(&[(1, to)]),
            ..report(&[(1, 9)])
        };
        reports.heard(NAMESPACE, store(2), truncated(1), 0, now);
        reports.heard(NAMESPACE, store(3), truncated(5), 0, now);
        assert_eq!(reports.copy_from(NAMESPACE, &own, &floor, now), None);
        reports.heard(NAMESPACE, store(2), truncated(2), 0, now);
        let from = reports.copy_from(NAMESPACE, &own, &floor, now);
        assert!(from.is_some());
        // Who has not seen what this replica dropped a tombstone at may bring back what it deleted.
        let beyond = vector(&[(4, 1)]);
        assert_eq!(reports.copy_from(NAMESPACE, &own, &beyond, now), None);
    }

    #[test]
    fn only_equal_cuts_are_compared() {
        let (mut reports, now) = (Reports::default(), Instant::now());
        let own = report(&[(1, 5)]);
        let other = Report {
            digest: Digest(9),
            ..own.clone()
        };
        for same in [
            Report {
                expired_through_ms: 4,
                ..other.clone()
            },
            Report {
                partial: true,
                ..other.clone()
            },
            report(&[(1, 6)]),
            own.clone(),
        ] {
            reports.heard(NAMESPACE, store(2), same, 0, now);
            assert_eq!(reports.differing(NAMESPACE, &own), None);
        }
        reports.heard(NAMESPACE, store(2), other, 0, now);
        assert_eq!(reports.differing(NAMESPACE, &own), Some(store(2)));
    }
}
