//! What a switch would do, told without doing it.
//!
//! Pure. Owns the reading of rows and reports for a dry run. What it says is of the moment: writes go on
//! while it is put together.
//!
//! Invariant: whatever it is given, it changes nothing; would_succeed holds exactly where there are no
//! obstacles.

use crate::modes::{data_regions, text_of};
use crate::region::meta::MetaState;
use crate::region::meta::modes::under_way;
use rdb_proto::convert::{self, vector};
use rdb_proto::raft::{NamespaceReport, NamespaceRow, Plan, RegionReport, SetTarget, StoreStatus};
use rdb_types::{Mode, RegionId, StoreId, VersionVector};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What each store said of itself, or why it did not, and how long that took.
pub(super) type Answers = BTreeMap<StoreId, (Result<StoreStatus, String>, Duration)>;

/// Between the last write that an eventual namespace takes and the first that the strong one does, one
/// thing follows another: the beginning is committed, every replica says what it holds, every replica
/// promises, the end is committed. Each is a round trip to the slowest replica, and a sync there.
const ROUNDS: u32 = 4;
/// For a sync of an ordinary SSD; what a disk really takes is not measured.
const SYNC: Duration = Duration::from_millis(2);

/// What is asked for, and what is known.
pub(super) struct Asked<'a> {
    pub(super) row: &'a NamespaceRow,
    pub(super) tables: &'a MetaState,
    pub(super) target: Mode,
    pub(super) accept_missing: &'a BTreeSet<u32>,
    /// Whether the meta region could be asked; else the tables are this store's own copy.
    pub(super) meta_quorum: bool,
}

impl Asked<'_> {
    /// The plan.
    pub(super) fn plan(&self, answers: &Answers) -> Plan {
        let regions: Vec<_> = data_regions(self.tables.cluster.as_ref())
            .into_iter()
            .map(|id| Region::of(self.row, id, answers))
            .collect();
        let unreachable: BTreeMap<u32, &str> = answers
            .iter()
            .filter_map(|(store, (status, _))| {
                Some((u32::from(store.get()), status.as_ref().err()?.as_str()))
            })
            .collect();
        let skews = answers.values().filter_map(|(status, _)| {
            let clock = status.as_ref().ok()?.clock.as_ref()?;
            clock.skew_ms
        });
        let mut plan = Plan {
            unreachable_stores: unreachable.keys().copied().collect(),
            conflicts: regions.iter().map(Region::conflicts).sum(),
            clock_skew_us: skews
                .max_by_key(|skew| skew.unsigned_abs())
                .unwrap_or(0)
                .saturating_mul(1000),
            ..Plan::default()
        };
        if !self.changes_nothing() {
            (plan.stops_working, plan.starts_working) = differences(self.target);
            if self.target == Mode::Strong {
                let exchanged = |region: &Region<'_>| region.to_exchange(self.accept_missing);
                plan.writes_to_exchange = regions.iter().map(exchanged).sum();
                plan.estimated_write_pause_us = self.pause(answers).as_micros() as u64;
            }
            plan.obstacles = self.obstacles(&regions, &unreachable);
        }
        plan.would_succeed = plan.obstacles.is_empty();
        plan
    }

    fn changes_nothing(&self) -> bool {
        !under_way(self.row) && self.row.mode == convert::mode_to_wire(self.target)
    }

    fn pause(&self, answers: &Answers) -> Duration {
        let taking_part = answers.iter().filter(|(store, (status, _))| {
            status.is_ok() && !self.accept_missing.contains(&u32::from(store.get()))
        });
        let slowest = taking_part.map(|(_, (_, took))| *took).max();
        (slowest.unwrap_or_default() + SYNC) * ROUNDS
    }

    fn obstacles(&self, regions: &[Region<'_>], unreachable: &BTreeMap<u32, &str>) -> Vec<String> {
        let mut found = Vec::new();
        let command = SetTarget {
            name: self.row.name.clone(),
            mode: convert::mode_to_wire(self.target),
            accept_missing: self.accept_missing.iter().copied().collect(),
            cancel: false,
        };
        // Asked of a copy: what would be refused is said in the words of the refusal.
        if let Err(error) = self.tables.clone().set_target(&command) {
            found.push(error.message);
        }
        if !self.meta_quorum {
            found
                .push("the meta region has no quorum, so that nothing can be asked for".to_owned());
        }
        for region in regions {
            if !region.reports.values().any(|report| report.quorum) {
                found.push(format!("region {} has no quorum", region.id));
            }
        }
        if self.target == Mode::Eventual {
            return found;
        }
        let takes_part = |store: &u32| !self.accept_missing.contains(store);
        for (store, why) in unreachable.iter().filter(|(store, _)| takes_part(store)) {
            let known = format!("store {store} cannot be reached: ");
            let why = why.strip_prefix(&known).unwrap_or(why);
            found.push(format!(
                "store {store} cannot be reached ({why}): bring it back, or go on without it (accept_missing = [{store}]) and have what only it holds set aside"
            ));
        }
        for region in regions {
            found.extend(region.obstacles(takes_part));
        }
        found
    }
}

/// What stops working and what starts to, in a namespace that becomes so.
fn differences(target: Mode) -> (Vec<String>, Vec<String>) {
    let strong = [
        "compare-and-swap and transactions",
        "linearizable reads: what was acknowledged is what every later read sees",
    ];
    let eventual = [
        "writes at a store that is cut off from the majority",
        "reads of the newest data that such a store has, without asking for stale ones",
    ];
    let [strong, eventual] = [strong, eventual].map(|of| of.map(str::to_owned).to_vec());
    match target {
        Mode::Strong => (eventual, strong),
        Mode::Eventual => (strong, eventual),
    }
}

/// A region as its replicas report it.
struct Region<'a> {
    id: RegionId,
    reports: BTreeMap<StoreId, &'a RegionReport>,
    /// Of the namespace.
    namespaces: BTreeMap<StoreId, &'a NamespaceReport>,
}

impl<'a> Region<'a> {
    fn of(row: &NamespaceRow, id: RegionId, answers: &'a Answers) -> Region<'a> {
        let mut region = Region {
            id,
            reports: BTreeMap::new(),
            namespaces: BTreeMap::new(),
        };
        for (store, (status, _)) in answers {
            let regions = status.iter().flat_map(|status| &status.regions);
            for report in regions.filter(|report| report.region_id == id.0) {
                region.reports.insert(*store, report);
                let mut namespaces = report.namespaces.iter();
                if let Some(of) = namespaces.find(|of| of.namespace_id == row.id) {
                    region.namespaces.insert(*store, of);
                }
            }
        }
        region
    }

    /// Every replica finds the same ones by itself, sooner or later.
    fn conflicts(&self) -> u64 {
        let conflicts = self.namespaces.values().map(|report| report.conflicts);
        conflicts.max().unwrap_or(0)
    }

    /// Writes that some replica which takes part does not have; of one that does not answer, as many as the
    /// others have not heard from it.
    fn to_exchange(&self, accept_missing: &BTreeSet<u32>) -> u64 {
        let takes_part = |store: u32| !accept_missing.contains(&store);
        let vectors: Vec<VersionVector> = self
            .namespaces
            .iter()
            .filter(|(store, _)| takes_part(u32::from(store.get())))
            .filter_map(|(_, report)| vector(&report.vector))
            .collect();
        let Some(first) = vectors.first() else {
            return 0;
        };
        let (mut join, mut meet) = (first.clone(), first.clone());
        for vector in &vectors {
            join.join(vector);
            meet = meet.meet(vector);
        }
        let answered = |store: u32| {
            let mut stores = self.namespaces.keys();
            stores.any(|id| u32::from(id.get()) == store)
        };
        let lags = self.namespaces.values().flat_map(|report| &report.lags);
        let unheard = lags
            .filter(|lag| takes_part(lag.store_id) && !answered(lag.store_id))
            .map(|lag| lag.writes);
        meet.missing(&join).max(unheard.max().unwrap_or(0))
    }

    fn obstacles(&self, takes_part: impl Fn(&u32) -> bool) -> Vec<String> {
        let mut found = Vec::new();
        for (store, report) in &self.namespaces {
            if !takes_part(&u32::from(store.get())) {
                continue;
            }
            let id = self.id;
            if report.fresh_copy_needed {
                found.push(format!(
                    "store {store} waits for a fresh copy of region {id}"
                ));
            }
            for held in &report.held {
                found.push(format!(
                    "store {store} holds back the writes of store {} in region {id}: they are stamped {} ms ahead",
                    held.origin, held.ahead_ms
                ));
            }
        }
        found
    }
}

/// Says of a plan in a line what it comes to, for the log.
pub(super) fn line(row: &NamespaceRow, target: Mode, plan: &Plan) -> String {
    format!(
        "{} from {} to {target}: {}",
        row.name,
        text_of(row.mode),
        if plan.would_succeed {
            "would succeed".to_owned()
        } else {
            plan.obstacles.join("; ")
        }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdb_proto::raft::{ClockStatus, ClusterPlan, HeldStream, Member, ReplicaLag, VectorPart};
    use rdb_proto::raft::{DeclaredNamespace, RegionDescriptor};

    fn tables(mode: i32) -> MetaState {
        let mut tables = MetaState::default();
        let region = |id| RegionDescriptor {
            id,
            ..Default::default()
        };
        tables.init_cluster(&ClusterPlan {
            members: (1..=3)
                .map(|store_id| Member {
                    store_id,
                    ..Default::default()
                })
                .collect(),
            regions: vec![region(RegionId::META.0), region(2)],
            namespaces: vec![DeclaredNamespace {
                name: "logs".into(),
                mode,
                policies: None,
            }],
            default_mode: 1,
            ..Default::default()
        });
        tables
    }

    fn has(sequences: [u64; 3]) -> NamespaceReport {
        let parts = (1..).zip(sequences);
        NamespaceReport {
            namespace_id: 2,
            mode: 2,
            vector: parts
                .map(|(origin, sequence)| VectorPart { origin, sequence })
                .collect(),
            conflicts: sequences[0],
            ..Default::default()
        }
    }

    fn says(namespace: NamespaceReport, skew_ms: i64) -> Result<StoreStatus, String> {
        Ok(StoreStatus {
            regions: vec![RegionReport {
                region_id: 2,
                quorum: true,
                namespaces: vec![namespace],
                ..Default::default()
            }],
            clock: Some(ClockStatus {
                skew_ms: Some(skew_ms),
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    fn answers(said: [Result<StoreStatus, String>; 3]) -> Answers {
        let stores = (1..).filter_map(StoreId::new);
        let took = (1..).map(Duration::from_millis);
        stores.zip(said.into_iter().zip(took)).collect()
    }

    fn away() -> Result<StoreStatus, String> {
        Err("store 3 cannot be reached: connection refused".into())
    }

    fn plan(tables: &MetaState, target: Mode, missing: &[u32], answers: &Answers) -> Plan {
        let before = tables.clone();
        let asked = Asked {
            row: tables.namespace("logs").unwrap(),
            tables,
            target,
            accept_missing: &missing.iter().copied().collect(),
            meta_quorum: true,
        };
        let plan = asked.plan(answers);
        assert_eq!(*tables, before);
        plan
    }

    #[test]
    fn the_writes_that_any_replica_lacks_are_counted_once() {
        let all = answers([
            says(has([5, 2, 0]), 3),
            says(has([4, 2, 1]), -20),
            says(has([5, 0, 1]), 0),
        ]);
        let plan = plan(&tables(2), Mode::Strong, &[], &all);
        // One of store 1, two of store 2, one of store 3.
        assert_eq!(plan.writes_to_exchange, 4);
        assert_eq!((plan.conflicts, plan.clock_skew_us), (5, -20_000));
        // Four rounds with the slowest store, 3 ms away, and a sync.
        assert_eq!(plan.estimated_write_pause_us, 20_000);
        assert_eq!((plan.would_succeed, plan.obstacles.len()), (true, 0));
        assert!(plan.starts_working[0].contains("compare-and-swap"));
    }

    #[test]
    fn a_store_that_is_away_is_an_obstacle_on_the_way_to_strong_unless_it_may_be_missing() {
        let mut first = has([5, 0, 0]);
        first.lags = vec![ReplicaLag {
            store_id: 3,
            writes: 70,
            ..Default::default()
        }];
        let two = answers([says(first, 0), says(has([5, 0, 0]), 0), away()]);
        let with_it = plan(&tables(2), Mode::Strong, &[], &two);
        assert_eq!(with_it.unreachable_stores, [3]);
        assert_eq!(with_it.writes_to_exchange, 70);
        assert!(!with_it.would_succeed);
        let text = &with_it.obstacles[0];
        assert!(
            text.contains("store 3 cannot be reached (connection refused)"),
            "{text}"
        );
        let without = plan(&tables(2), Mode::Strong, &[3], &two);
        assert_eq!(
            (without.would_succeed, without.writes_to_exchange),
            (true, 0)
        );
        assert_eq!(without.unreachable_stores, [3]);
        let eventual = plan(&tables(1), Mode::Eventual, &[], &two);
        assert!(eventual.would_succeed);
        assert_eq!(eventual.estimated_write_pause_us, 0);
        assert!(eventual.stops_working[0].contains("compare-and-swap"));
    }

    #[test]
    fn what_would_be_refused_or_would_wait_is_an_obstacle() {
        let mut copying = has([1, 1, 1]);
        copying.fresh_copy_needed = true;
        let mut holds = has([1, 1, 1]);
        holds.held = vec![HeldStream {
            origin: 1,
            held_ms: 1,
            ahead_ms: 90_000,
        }];
        let all = answers([says(has([1, 1, 1]), 0), says(copying, 0), says(holds, 0)]);
        let waits = plan(&tables(2), Mode::Strong, &[], &all);
        assert_eq!(waits.obstacles.len(), 2, "{:?}", waits.obstacles);
        let mut switching = tables(2);
        let ask = SetTarget {
            name: "logs".into(),
            mode: 1,
            ..Default::default()
        };
        switching.set_target(&ask).unwrap();
        let refused = plan(&switching, Mode::Eventual, &[], &all);
        assert!(refused.obstacles[0].contains("--cancel"), "{refused:?}");
        let alone = plan(
            &tables(1),
            Mode::Eventual,
            &[],
            &answers([away(), away(), away()]),
        );
        assert_eq!(alone.obstacles, ["region 2 has no quorum"]);
    }

    #[test]
    fn what_is_there_already_needs_nothing() {
        let plan = plan(
            &tables(1),
            Mode::Strong,
            &[],
            &answers([away(), away(), away()]),
        );
        assert!(plan.would_succeed);
        assert_eq!(plan.unreachable_stores, [1, 2, 3]);
        assert!(plan.stops_working.is_empty() && plan.starts_working.is_empty());
    }
}
