//! When a switch is over, as the leader of the meta region decides it.
//!
//! Owns the decision, and the words for why a switch was given up. It looks at states, not at events: the
//! row of the namespace, what its regions report, and for how long this leader has seen the attempt. So
//! it may be asked at any time, by any store, again and again, and a leader that comes new goes on where
//! the other was. The only thing that it is given beside states is a time, and a new leader's clock
//! begins anew: at worst a switch that cannot end is given up later.
//!
//! Invariants: an attempt is settled only when every region has followed it; one that leads back is never
//! given up, as there is nothing else to go to.

use super::{RegionView, text_of};
use crate::region::meta::modes::{being_undone, under_way};
use rdb_proto::raft::{NamespaceRow, SwitchProgress};
use rdb_types::RegionId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What is to be done about a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// All regions have followed: the attempt has ended.
    Settle,
    /// It took too long.
    GiveUp {
        /// What kept it.
        why: String,
        /// The stores that it waited for.
        waiting_for: Vec<u32>,
    },
    /// Nothing now.
    Wait,
}

/// What is to be done about a namespace. `seen_for`: how long this store has led the meta region and known
/// the row's attempt.
pub fn next(
    row: &NamespaceRow,
    regions: &BTreeMap<RegionId, RegionView>,
    seen_for: Duration,
    switch_timeout: Duration,
) -> Next {
    if !under_way(row) {
        return Next::Wait;
    }
    let mut left = regions
        .iter()
        .filter(|(_, region)| !region.followed(row.target, row.attempt))
        .peekable();
    if left.peek().is_none() {
        // No region at all: the map of regions is not known here yet.
        return if regions.is_empty() {
            Next::Wait
        } else {
            Next::Settle
        };
    }
    if being_undone(row) || seen_for < switch_timeout {
        return Next::Wait;
    }
    let waiting_for: BTreeSet<u32> = left
        .clone()
        .filter_map(|(_, region)| progress_of(region, row.attempt))
        .flat_map(|progress| progress.waiting_for.iter().copied())
        .collect();
    let reasons: Vec<String> = left
        .map(|(id, region)| reason(*id, region, row.attempt))
        .collect();
    Next::GiveUp {
        why: format!(
            "it was not {} within {} ms: {}",
            text_of(row.target),
            switch_timeout.as_millis(),
            reasons.join("; ")
        ),
        waiting_for: waiting_for.into_iter().collect(),
    }
}

/// What the leader of a region says of this very attempt.
pub fn progress_of(region: &RegionView, attempt: u64) -> Option<&SwitchProgress> {
    let progress = region.progress.as_ref();
    progress.filter(|progress| progress.attempt == attempt)
}

/// What keeps a region, as its leader says it; of a single store without naming it twice.
pub fn why_of(progress: &SwitchProgress) -> &str {
    let why = progress.why.as_str();
    match progress.waiting_for.as_slice() {
        [store] => why.strip_prefix(&format!("store {store}: ")).unwrap_or(why),
        _ => why,
    }
}

/// What keeps a region, in words.
fn reason(id: RegionId, region: &RegionView, attempt: u64) -> String {
    if region.replicas == 0 {
        return format!("nobody says how region {id} is");
    }
    let Some(progress) = progress_of(region, attempt) else {
        return format!("region {id} has no leader that takes it there");
    };
    let mut text = format!("region {id}");
    let stores: Vec<String> = progress.waiting_for.iter().map(u32::to_string).collect();
    match stores.as_slice() {
        [] => text.push_str(&format!(" is {}", progress.step)),
        [store] => text.push_str(&format!(" waits for store {store}")),
        stores => text.push_str(&format!(" waits for stores {}", stores.join(", "))),
    }
    if !progress.why.is_empty() {
        text.push_str(&format!(" ({})", why_of(progress)));
    }
    if progress.remaining_writes > 0 {
        text.push_str(&format!(
            ", with {} writes still to be exchanged",
            progress.remaining_writes
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRONG: i32 = 1;
    const EVENTUAL: i32 = 2;
    const LIMIT: Duration = Duration::from_secs(10);

    fn row(mode: i32, target: i32, attempt: u64, settled_attempt: u64) -> NamespaceRow {
        NamespaceRow {
            mode,
            target,
            attempt,
            settled_attempt,
            ..Default::default()
        }
    }

    fn at(mode: i32, attempt: u64) -> RegionView {
        RegionView {
            mode,
            attempt,
            replicas: 3,
            ..Default::default()
        }
    }

    fn sealing(attempt: u64) -> RegionView {
        RegionView {
            sealing: true,
            ..at(EVENTUAL, attempt)
        }
    }

    fn of(views: &[RegionView]) -> BTreeMap<RegionId, RegionView> {
        let ids = (2..).map(RegionId);
        ids.zip(views.iter().cloned()).collect()
    }

    #[test]
    fn a_switch_is_over_when_every_region_has_followed() {
        let to_strong = row(EVENTUAL, STRONG, 4, 3);
        let undone = row(EVENTUAL, EVENTUAL, 5, 3);
        for (row, regions, over) in [
            // Nothing is asked for.
            (row(STRONG, STRONG, 3, 3), &[at(STRONG, 3)][..], false),
            (row(STRONG, STRONG, 0, 0), &[at(STRONG, 0)], false),
            // Not begun, not all, all.
            (to_strong.clone(), &[at(EVENTUAL, 3)], false),
            (to_strong.clone(), &[sealing(4)], false),
            (to_strong.clone(), &[at(STRONG, 4), at(EVENTUAL, 4)], false),
            (to_strong.clone(), &[at(STRONG, 4), at(STRONG, 4)], true),
            // It is where it should be by an earlier attempt: a step of that may still be under way.
            (to_strong.clone(), &[at(STRONG, 3)], false),
            // A later one was asked for meanwhile, as this region knows already.
            (to_strong.clone(), &[at(STRONG, 5)], true),
            // Nobody reports, or the regions are not known.
            (to_strong.clone(), &[RegionView::default()], false),
            (to_strong, &[], false),
            // The way back.
            (undone.clone(), &[at(STRONG, 4), at(EVENTUAL, 5)], false),
            (undone.clone(), &[sealing(4), at(EVENTUAL, 5)], false),
            (undone, &[at(EVENTUAL, 5), at(EVENTUAL, 5)], true),
        ] {
            let next = next(&row, &of(regions), Duration::ZERO, LIMIT);
            let expected = if over { Next::Settle } else { Next::Wait };
            assert_eq!(next, expected, "{row:?} {regions:?}");
        }
    }

    #[test]
    fn only_what_does_not_lead_back_is_given_up_and_only_in_time() {
        let given_up = |row: &NamespaceRow, seen_for| {
            let regions = of(&[at(EVENTUAL, 3), at(STRONG, 9)]);
            let next = next(row, &regions, seen_for, LIMIT);
            matches!(next, Next::GiveUp { .. })
        };
        let to_strong = row(EVENTUAL, STRONG, 4, 3);
        assert!(!given_up(&to_strong, LIMIT - Duration::from_millis(1)));
        assert!(given_up(&to_strong, LIMIT));
        assert!(!given_up(&row(STRONG, STRONG, 5, 3), LIMIT * 1000));
        assert!(!given_up(&row(STRONG, STRONG, 3, 3), LIMIT * 1000));
    }

    #[test]
    fn whoever_gives_up_says_what_kept_it() {
        let waits = RegionView {
            progress: Some(SwitchProgress {
                step: "draining".into(),
                remaining_writes: 12,
                waiting_for: vec![3],
                why: "store 3: it does not answer".into(),
                attempt: 4,
                ..Default::default()
            }),
            ..at(EVENTUAL, 3)
        };
        let earlier = RegionView {
            progress: Some(SwitchProgress {
                attempt: 3,
                waiting_for: vec![1],
                ..Default::default()
            }),
            ..at(EVENTUAL, 3)
        };
        let regions = of(&[waits, at(STRONG, 4), earlier, RegionView::default()]);
        let row = row(EVENTUAL, STRONG, 4, 3);
        let Next::GiveUp { why, waiting_for } = next(&row, &regions, LIMIT, LIMIT) else {
            panic!("it is too late");
        };
        assert_eq!(waiting_for, [3]);
        assert_eq!(
            why,
            "it was not strong within 10000 ms: region 2 waits for store 3 (it does not answer), with 12 writes \
             still to be exchanged; region 4 has no leader that takes it there; nobody says how region 5 is"
        );
    }
}
