//! Which stores declare or apply another mode than the cluster's, and since when.
//!
//! Owns what counts as a mismatch, its words, and the memory of when each began. Pure: it is told what was
//! found, and when. A declaration that differs counts at once; a store that has not applied the cluster's
//! mode and epoch counts once it has not for some time, as every change needs a moment. The memory is
//! this store's own: after a restart everything began anew.
//!
//! Invariants: the committed mode wins whatever is found here; each mismatch begins once and ends once.

use super::{RegionView, text_of};
use rdb_proto::raft::{ModeMismatch, NamespaceReport, NamespaceRow, RegionReport};
use rdb_types::{NamespaceId, RegionId, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// What a store has of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Has {
    /// As on the wire; 0: its configuration says nothing.
    pub declared: i32,
    /// 0: it does not know the namespace.
    pub applied: i32,
    /// The highest of its regions.
    pub epoch: u64,
    /// A region in which it is not where the cluster is: that region's epoch here and there.
    pub behind: Option<(RegionId, u64, u64)>,
    /// It waits for a fresh copy, and serves nothing until then.
    pub fresh_copy_needed: bool,
}

impl Has {
    /// From what a store reports of its regions, measured against the newest that is known of each.
    pub fn of(
        row: &NamespaceRow,
        declared: i32,
        reports: &[RegionReport],
        newest: &BTreeMap<RegionId, RegionView>,
    ) -> Has {
        let mut has = Has {
            declared,
            ..Has::default()
        };
        for report in reports {
            let region = RegionId(report.region_id);
            let Some(newest) = newest.get(&region) else {
                continue;
            };
            let mut namespaces = report.namespaces.iter();
            let own = namespaces.find(|own| own.namespace_id == row.id);
            has.add(region, own, newest);
        }
        has
    }

    fn add(&mut self, region: RegionId, own: Option<&NamespaceReport>, newest: &RegionView) {
        let (mode, epoch) = own.map_or((0, 0), |own| (own.mode, own.epoch));
        // Of regions that differ the mode of the one that is ahead is told.
        if epoch >= self.epoch && mode != 0 {
            self.applied = mode;
        }
        self.epoch = self.epoch.max(epoch);
        self.fresh_copy_needed |= own.is_some_and(|own| own.fresh_copy_needed);
        if epoch < newest.epoch {
            self.behind = Some((region, epoch, newest.epoch));
        }
    }

    /// Whether its configuration says something else than the namespace is, or is on its way to. Which of
    /// the two it will be is not known before the switch has ended.
    pub fn declares_another(&self, row: &NamespaceRow) -> bool {
        self.declared != 0 && self.declared != row.target && self.declared != row.mode
    }

    /// Whether it is not where the cluster is. While a namespace switches its regions may be in either mode.
    pub fn applies_another(&self, row: &NamespaceRow) -> bool {
        let switching = row.attempt > row.settled_attempt;
        self.behind.is_some()
            || self.fresh_copy_needed
            || (!switching && self.applied != 0 && self.applied != row.mode)
    }

    /// What of it is not the cluster's, in words.
    pub fn differs(&self, row: &NamespaceRow) -> String {
        let mut words = Vec::new();
        if self.declares_another(row) {
            words.push(format!("declares {}", text_of(self.declared)));
        }
        if self.applies_another(row) {
            words.push(self.applies());
        }
        words.join(" and ")
    }

    /// What it applies that is not the cluster's, in words.
    pub fn applies(&self) -> String {
        let copy = if self.fresh_copy_needed {
            ", and waits for a fresh copy"
        } else {
            ""
        };
        match self.behind {
            Some((region, epoch, newest)) => format!(
                "applies {} (epoch {epoch} of region {region}, where the cluster is at {newest}){copy}",
                text_of(self.applied)
            ),
            None => format!("applies {}{copy}", text_of(self.applied)),
        }
    }
}

/// A mismatch that began or ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Of which namespace.
    pub namespace: NamespaceId,
    /// At which store.
    pub store: StoreId,
    /// As it is now.
    pub has: Has,
    /// It began; else it ended.
    pub began: bool,
    /// What of it is not the cluster's, in words.
    pub differs: String,
}

#[derive(Clone, Debug)]
struct Since {
    at: Instant,
    unix_ms: u64,
    told: bool,
    /// As it was when it was last looked at, and what of it is not applied as the cluster has it.
    has: Has,
    applies: String,
}

/// Since when stores mismatch.
#[derive(Debug, Default)]
pub struct Mismatches(BTreeMap<(NamespaceId, StoreId), Since>);

impl Mismatches {
    /// Takes note of what a store has now; says whether a mismatch began or ended by that.
    pub fn observe(
        &mut self,
        row: &NamespaceRow,
        store: StoreId,
        has: Has,
        (now, unix_ms): (Instant, u64),
        mismatch_after: Duration,
    ) -> Option<Change> {
        let namespace = NamespaceId(row.id);
        let place = (namespace, store);
        let change = |began, has: Has| Change {
            namespace,
            store,
            differs: has.differs(row),
            has,
            began,
        };
        let declares = has.declares_another(row);
        if !declares && !has.applies_another(row) {
            let ended = self.0.remove(&place)?;
            return ended.told.then(|| change(false, has));
        }
        let since = self.0.entry(place).or_insert(Since {
            at: now,
            unix_ms,
            told: false,
            has: Has::default(),
            applies: String::new(),
        });
        since.has = has.clone();
        since.applies = if has.applies_another(row) {
            has.applies()
        } else {
            String::new()
        };
        let counts = declares || now.saturating_duration_since(since.at) >= mismatch_after;
        if since.told || !counts {
            return None;
        }
        since.told = true;
        Some(change(true, has))
    }

    /// Forgets all that is not said to be worth keeping: namespaces that are gone, stores that somebody
    /// else looks after.
    pub fn retain(&mut self, keep: impl Fn(NamespaceId, StoreId) -> bool) {
        self.0
            .retain(|(namespace, store), _| keep(*namespace, *store));
    }

    /// Those that count, for other stores.
    pub fn to_wire(&self) -> Vec<ModeMismatch> {
        let told = self.0.iter().filter(|(_, since)| since.told);
        told.map(|((namespace, store), since)| ModeMismatch {
            namespace_id: namespace.0,
            store_id: u32::from(store.get()),
            since_ms: i64::try_from(since.unix_ms).unwrap_or(i64::MAX),
            applied: since.has.applied,
            epoch: since.has.epoch,
            applies: since.applies.clone(),
        })
        .collect()
    }

    /// The namespaces in which a store mismatches.
    pub fn namespaces(&self) -> BTreeSet<NamespaceId> {
        let told = self.0.iter().filter(|(_, since)| since.told);
        told.map(|((namespace, _), _)| *namespace).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modes::regions;

    const STRONG: i32 = 1;
    const EVENTUAL: i32 = 2;
    const AFTER: Duration = Duration::from_secs(10);

    fn row(mode: i32, target: i32) -> NamespaceRow {
        NamespaceRow {
            id: 7,
            mode,
            target,
            attempt: 1,
            settled_attempt: u64::from(mode == target),
            ..Default::default()
        }
    }

    fn store(id: u64) -> StoreId {
        StoreId::new(id).unwrap()
    }

    fn says(mode: i32, epoch: u64) -> RegionReport {
        RegionReport {
            region_id: 2,
            namespaces: vec![NamespaceReport {
                namespace_id: 7,
                mode,
                epoch,
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn what_counts_as_another_mode() {
        let settled = row(STRONG, STRONG);
        let switching = row(STRONG, EVENTUAL);
        let newest = regions(NamespaceId(7), &[RegionId(2)], &[says(STRONG, 5)]);
        for (row, declared, report, declares, applies) in [
            (&settled, 0, says(STRONG, 5), false, false),
            (&settled, STRONG, says(STRONG, 5), false, false),
            (&settled, EVENTUAL, says(STRONG, 5), true, false),
            (&settled, 0, says(EVENTUAL, 4), false, true),
            (&settled, 0, says(EVENTUAL, 5), false, true),
            (
                &settled,
                0,
                RegionReport {
                    region_id: 2,
                    ..Default::default()
                },
                false,
                true,
            ),
            // On the way there either mode is applied somewhere, and either may be declared.
            (&switching, EVENTUAL, says(EVENTUAL, 5), false, false),
            (&switching, STRONG, says(STRONG, 5), false, false),
            (&switching, 0, says(STRONG, 4), false, true),
        ] {
            let has = Has::of(row, declared, std::slice::from_ref(&report), &newest);
            assert_eq!(has.declares_another(row), declares, "{has:?}");
            assert_eq!(has.applies_another(row), applies, "{has:?}");
        }
        let behind = Has::of(&settled, 0, &[says(EVENTUAL, 4)], &newest);
        assert_eq!(
            behind.applies(),
            "applies eventual (epoch 4 of region 2, where the cluster is at 5)"
        );
    }

    #[test]
    fn a_declaration_counts_at_once_and_a_lag_after_a_while_and_each_is_told_once() {
        let mut kept = Mismatches::default();
        let row = row(STRONG, STRONG);
        let began = Instant::now();
        let mut look = |has: Has, after_s: u64| {
            let now = (began + Duration::from_secs(after_s), 1000 + after_s);
            let change = kept.observe(&row, store(2), has, now, AFTER);
            (change.map(|change| change.began), kept.to_wire())
        };
        let declares = Has {
            declared: EVENTUAL,
            ..Has::default()
        };
        let mismatch = |since_ms| {
            vec![ModeMismatch {
                namespace_id: 7,
                store_id: 2,
                since_ms,
                ..Default::default()
            }]
        };
        let lags = |since_ms| {
            vec![ModeMismatch {
                applied: EVENTUAL,
                epoch: 3,
                applies: "applies eventual (epoch 3 of region 2, where the cluster is at 5)".into(),
                ..mismatch(since_ms).remove(0)
            }]
        };
        assert_eq!(look(Has::default(), 0), (None, vec![]));
        assert_eq!(look(declares.clone(), 1), (Some(true), mismatch(1001)));
        assert_eq!(look(declares, 2), (None, mismatch(1001)));
        assert_eq!(look(Has::default(), 3), (Some(false), vec![]));
        assert_eq!(look(Has::default(), 4), (None, vec![]));
        let behind = Has {
            applied: EVENTUAL,
            epoch: 3,
            behind: Some((RegionId(2), 3, 5)),
            ..Has::default()
        };
        assert_eq!(look(behind.clone(), 5), (None, vec![]));
        assert_eq!(look(behind.clone(), 14), (None, vec![]));
        assert_eq!(look(behind.clone(), 15), (Some(true), lags(1005)));
        assert_eq!(look(Has::default(), 16), (Some(false), vec![]));
        // It caught up in time: nobody is told.
        assert_eq!(look(behind, 17), (None, vec![]));
        assert_eq!(look(Has::default(), 18), (None, vec![]));
    }

    #[test]
    fn what_somebody_else_looks_after_is_forgotten() {
        let mut kept = Mismatches::default();
        let row = row(STRONG, STRONG);
        let now = (Instant::now(), 1);
        for id in 1..=3 {
            let has = Has {
                declared: EVENTUAL,
                ..Has::default()
            };
            kept.observe(&row, store(id), has, now, AFTER);
        }
        assert_eq!(kept.namespaces(), [NamespaceId(7)].into());
        kept.retain(|_, of| of == store(2));
        assert_eq!(kept.to_wire().len(), 1);
        kept.retain(|_, _| false);
        assert!(kept.namespaces().is_empty());
    }
}
