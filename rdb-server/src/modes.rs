//! The modes of namespaces as the cluster sees them: how far each region has followed, and what disagrees.
//!
//! Owns the joining of what stores report to one view of each region. When a switch is over is decided in
//! [`reconciler`], which stores disagree with the cluster in [`mismatch`], for how long a switch has been under way
//! in [`since`]. All of it is pure: reports,
//! rows and times come as arguments. What a region does to follow is the region's own business.
//!
//! Invariant: a report is a committed fact of its region's log. So of the reports of one region the newest
//! counts, whoever brings it, and an old one does no harm.

pub mod mismatch;
pub mod reconciler;
pub mod since;

use rdb_proto::convert;
use rdb_proto::raft::{ClusterRow, NamespaceReport, RegionReport, State, SwitchProgress};
use rdb_types::{Mode, NamespaceId, RegionId};
use std::collections::BTreeMap;

/// A mode of the wire, in words.
pub fn text_of(mode: i32) -> &'static str {
    convert::mode(mode).map_or("nothing", Mode::as_str)
}

/// The regions that hold namespaces.
pub fn data_regions(cluster: Option<&ClusterRow>) -> Vec<RegionId> {
    let regions = cluster.into_iter().flat_map(|cluster| &cluster.regions);
    let ids = regions.map(|region| RegionId(region.id));
    ids.filter(|region| *region != RegionId::META).collect()
}

/// A region of a namespace, as the newest reports of it say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RegionView {
    /// As on the wire; 0: the region has not heard of the namespace, or nobody reports it.
    pub mode: i32,
    /// The newest.
    pub epoch: u64,
    /// The highest that the region was told.
    pub attempt: u64,
    /// It is taking no writes while its replicas come to agree.
    pub sealing: bool,
    /// From the store that leads it, of its newest attempt.
    pub progress: Option<SwitchProgress>,
    /// The longest that any replica, of those at the newest epoch, took no writes in the last change of
    /// mode.
    pub write_pause_us: u64,
    /// Replicas that report it at all, and those of them that are at the newest epoch.
    pub replicas: usize,
    /// See [`RegionView::replicas`].
    pub replicas_there: usize,
}

impl RegionView {
    /// Whether the region is where this attempt leads.
    pub fn followed(&self, target: i32, attempt: u64) -> bool {
        self.mode == target && self.attempt >= attempt && !self.sealing
    }

    fn add(&mut self, report: &NamespaceReport) {
        self.replicas += 1;
        let newest = (report.epoch, report.attempt) >= (self.epoch, self.attempt);
        if report.epoch > self.epoch {
            self.replicas_there = 0;
            self.write_pause_us = 0;
        }
        if report.epoch >= self.epoch {
            self.replicas_there += 1;
            self.write_pause_us = self.write_pause_us.max(report.write_pause_us);
        }
        if newest {
            self.mode = report.mode;
            self.epoch = report.epoch;
            self.attempt = report.attempt;
            self.sealing = report.sealing;
        }
        let known = self
            .progress
            .as_ref()
            .map_or(0, |progress| progress.attempt);
        // A store that led the region before may still tell of an earlier attempt.
        if let Some(progress) = &report.progress
            && progress.attempt >= known
        {
            self.progress = Some(progress.clone());
        }
    }
}

/// What is known of a namespace's regions. Those that nobody reports are there, too.
pub fn regions<'r>(
    namespace: NamespaceId,
    expected: &[RegionId],
    reports: impl IntoIterator<Item = &'r RegionReport>,
) -> BTreeMap<RegionId, RegionView> {
    let mut views: BTreeMap<RegionId, RegionView> = expected
        .iter()
        .map(|region| (*region, RegionView::default()))
        .collect();
    for report in reports {
        let Some(view) = views.get_mut(&RegionId(report.region_id)) else {
            continue;
        };
        let mut namespaces = report.namespaces.iter();
        if let Some(of) = namespaces.find(|of| of.namespace_id == namespace.0) {
            view.add(of);
        }
    }
    views
}

/// For how long a namespace took no writes when it became so. Only a seal makes anybody wait: what regions
/// report in an eventual namespace is of the last one.
pub fn write_pause_us(mode: i32, regions: &BTreeMap<RegionId, RegionView>) -> u64 {
    if convert::mode(mode) != Some(Mode::Strong) {
        return 0;
    }
    let pauses = regions.values().map(|region| region.write_pause_us);
    pauses.max().unwrap_or(0)
}

/// What people are told of a namespace's state.
pub fn state(under_way: bool, regions: &BTreeMap<RegionId, RegionView>) -> State {
    if regions.values().any(|region| region.sealing) {
        State::Sealing
    } else if under_way {
        State::Switching
    } else {
        State::Stable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(epoch: u64, attempt: u64, mode: i32) -> NamespaceReport {
        NamespaceReport {
            namespace_id: 7,
            epoch,
            attempt,
            mode,
            ..Default::default()
        }
    }

    fn view(reports: &[NamespaceReport]) -> RegionView {
        let reports: Vec<_> = reports
            .iter()
            .map(|report| RegionReport {
                region_id: 2,
                namespaces: vec![report.clone()],
                ..Default::default()
            })
            .collect();
        let mut views = regions(NamespaceId(7), &[RegionId(2), RegionId(3)], &reports);
        assert_eq!(views[&RegionId(3)], RegionView::default());
        views.remove(&RegionId(2)).unwrap()
    }

    #[test]
    fn the_newest_report_counts_whoever_brings_it() {
        let sealing = NamespaceReport {
            sealing: true,
            ..report(3, 4, 2)
        };
        // Of one epoch the higher attempt is the later.
        let told = report(3, 5, 2);
        for order in [
            [report(2, 3, 1), sealing.clone(), told.clone()],
            [told, report(2, 3, 1), sealing],
        ] {
            let view = view(&order);
            assert_eq!((view.mode, view.epoch, view.attempt), (2, 3, 5));
            assert!(!view.sealing);
            assert_eq!((view.replicas, view.replicas_there), (3, 2));
        }
    }

    #[test]
    fn the_pause_is_of_the_last_change_and_not_of_an_earlier_one() {
        let pause = |epoch, write_pause_us| NamespaceReport {
            write_pause_us,
            ..report(epoch, 1, 1)
        };
        for order in [
            [pause(5, 10), pause(4, 900), pause(5, 30)],
            [pause(4, 900), pause(5, 30), pause(5, 10)],
        ] {
            assert_eq!(view(&order).write_pause_us, 30);
        }
    }

    #[test]
    fn progress_is_of_the_newest_attempt() {
        let tells = |attempt, step: &str| NamespaceReport {
            progress: Some(SwitchProgress {
                step: step.into(),
                attempt,
                ..Default::default()
            }),
            ..report(3, 4, 2)
        };
        for order in [
            [tells(5, "draining"), tells(4, "sealing")],
            [tells(4, "sealing"), tells(5, "draining")],
        ] {
            let progress = view(&order).progress.unwrap();
            assert_eq!((progress.attempt, progress.step.as_str()), (5, "draining"));
        }
    }

    #[test]
    fn a_region_has_followed_when_it_is_told_is_there_and_is_not_sealing() {
        let there = RegionView {
            mode: 2,
            attempt: 4,
            ..Default::default()
        };
        assert!(there.followed(2, 4) && there.followed(2, 3));
        assert!(!there.followed(2, 5) && !there.followed(1, 4));
        let sealing = RegionView {
            sealing: true,
            ..there
        };
        assert!(!sealing.followed(2, 4));
        let of = |view: &RegionView| BTreeMap::from([(RegionId(2), view.clone())]);
        assert_eq!(state(true, &of(&sealing)), State::Sealing);
        let still = RegionView {
            sealing: false,
            ..sealing
        };
        assert_eq!(state(true, &of(&still)), State::Switching);
        assert_eq!(state(false, &of(&still)), State::Stable);
    }
}
