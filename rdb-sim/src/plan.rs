//! What goes wrong in a run, and when: a list that follows from the seed.
//!
//! Owns the kinds of faults and the mix. A plan is made before the run, so that a failing run can be tried
//! again with some of its faults left out. Carries nothing out.

use crate::disk::Point;
use crate::network::Weather;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use rdb_types::{Mode, StoreId};
use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;

/// What survives of the unsynced writes of a store that crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: the machine lost its power.
    Nothing,
    /// Everything: only the process died.
    Everything,
    /// The first few, as many as chance says.
    Some,
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// These links (from, to) are cut, all others mended.
    Cuts(Shape, BTreeSet<(StoreId, StoreId)>),
    /// The network behaves like this.
    Weather(Weather),
    /// These stores die at once, and come back.
    Crash {
        /// Who.
        stores: Vec<StoreId>,
        /// After how long each is started again.
        down_ms: u64,
        /// What their disks keep.
        keep: Keep,
    },
    /// A store dies at a point of its `after`th sync from now.
    CrashAtSync {
        /// Who.
        store: StoreId,
        /// Where.
        point: Point,
        /// How many groups of writes pass before.
        after: u32,
        /// After how long it is started again.
        down_ms: u64,
    },
    /// A store dies right after its `after`th vote from now has left it.
    CrashAfterVote {
        /// Who.
        store: StoreId,
        /// How many votes pass before.
        after: u32,
        /// After how long it is started again.
        down_ms: u64,
    },
    /// Whoever drives a switch dies when this step takes effect the next time.
    CrashAtStep {
        /// At which.
        step: Step,
        /// Who.
        whom: Driving,
        /// After how long it is started again.
        down_ms: u64,
    },
    /// The store's next sync fails.
    FailSync(StoreId),
    /// The disk is full, or has room again.
    Full(StoreId, bool),
    /// Syncs take up to this long, in microseconds.
    SlowDisk(StoreId, u64),
    /// A bit flips on the disk: in a record, an entry of the log, or what describes them.
    FlipBit {
        /// Whose.
        store: StoreId,
        /// Where.
        place: Place,
        /// Which one of its values.
        nth: usize,
    },
    /// The store's disk is copied back from before its bits flipped, and the store started again.
    Mend(StoreId),
    /// The wall clock jumps: the store goes by it from its next start on, or when a majority agrees.
    ClockJump(StoreId, i64),
    /// The wall clock gains this much in a million.
    ClockDrift(StoreId, i64),
    /// What the store passes on of eventual writes is on its way for so many milliseconds more; all else that
    /// it sends is as quick as ever.
    Clog(StoreId, u64),
    /// No fault: somebody asks this store to switch a namespace.
    Switch(StoreId, Ask),
    /// No fault: the store's file declares that namespace in this mode, and the store reads it again.
    Declare(StoreId, Mode),
}

impl Fault {
    /// Whether it has no meaning where nobody switches.
    pub fn is_about_switches(&self) -> bool {
        matches!(
            self,
            Fault::Switch(..) | Fault::Declare(..) | Fault::CrashAtStep { .. } | Fault::Clog(..)
        )
    }
}

/// What is asked of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// To be the other of the two modes than it has now.
    Other,
    /// To be strong.
    Strong,
    /// To be strong, also without this store.
    StrongWithout(StoreId),
    /// To be eventual.
    Eventual,
    /// To go back to what it was.
    Cancel,
}

/// A step of a change of mode, in a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// It is in the cluster's tables: no region was told yet.
    Asked,
    /// The region became eventual.
    Opened,
    /// A seal was begun.
    Begun,
    /// The region became strong.
    Sealed,
    /// A seal was given up.
    Aborted,
}

impl Step {
    /// Every step.
    pub const ALL: [Step; 5] = [
        Step::Asked,
        Step::Opened,
        Step::Begun,
        Step::Sealed,
        Step::Aborted,
    ];
}

/// Who drives a switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Driving {
    /// The leader of the meta region: the namespace as a whole.
    Namespace,
    /// The leader of the region in which the step takes effect.
    Region,
}

impl Driving {
    /// Both.
    pub const ALL: [Driving; 2] = [Driving::Namespace, Driving::Region];
}

/// Where a bit flips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a record of a user.
    Record,
    /// In an entry of a log.
    Entry,
    /// In a vote, or in what a log says of itself.
    LogState,
    /// In what describes a region.
    Region,
    /// In the table of request ids.
    RequestIds,
}

impl Place {
    /// Every place.
    pub const ALL: [Place; 5] = [
        Place::Record,
        Place::Entry,
        Place::LogState,
        Place::Region,
        Place::RequestIds,
    ];
}

/// The shape of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// No cuts.
    Whole,
    /// Two sides that do not hear each other.
    Halves,
    /// One store alone.
    Alone,
    /// Two sides that have one store in common.
    Bridge,
    /// Every store hears its neighbours only; with three stores, two of them do not hear each other.
    Ring,
    /// One store is heard but hears nobody.
    Deaf,
    /// One store hears but is heard by nobody.
    Mute,
    /// One direction of one link.
    OneWay,
}

/// A fault and its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// When, in milliseconds from the beginning of the run.
    pub at_ms: u64,
    /// What.
    pub fault: Fault,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>6} ms  {:?}", self.at_ms, self.fault)
    }
}

/// The plan of a seed: faults from `from_ms` to `until_ms`, for these stores.
pub fn plan(seed: u64, stores: &[StoreId], from_ms: u64, until_ms: u64) -> Vec<Planned> {
    let mut chance = Xoshiro256PlusPlus::seed_from_u64(seed ^ 0x7a11);
    // Some runs are calm and some are not; a calm one lets rare things ripen.
    let pause_ms = *[500, 1_500, 4_000].choose(&mut chance).unwrap_or(&1_500);
    let mut planned = Vec::new();
    let mut at_ms = from_ms;
    loop {
        at_ms += chance.random_range(pause_ms / 4..=pause_ms * 2);
        if at_ms >= until_ms {
            break;
        }
        let fault = fault(&mut chance, stores);
        // What is begun is ended after a while, whatever comes between.
        let end = match &fault {
            Fault::Full(store, true) => Some(Fault::Full(*store, false)),
            Fault::FlipBit { store, .. } => Some(Fault::Mend(*store)),
            Fault::SlowDisk(store, us) if *us > 2_000 => Some(Fault::SlowDisk(*store, 900)),
            Fault::Cuts(shape, _) if *shape != Shape::Whole => {
                Some(Fault::Cuts(Shape::Whole, BTreeSet::new()))
            }
            _ => None,
        };
        planned.push(Planned { at_ms, fault });
        if let Some(fault) = end {
            let at_ms = (at_ms + chance.random_range(200..=6_000)).min(until_ms);
            planned.push(Planned { at_ms, fault });
        }
    }
    // In some runs nobody asks for a switch: there are those alone that the stores' files vote for.
    let by_votes = seed % 4 == 2;
    if !by_votes {
        switches(seed, stores, from_ms, until_ms, &mut planned);
    }
    let every_ms = if by_votes { 600..=2_500 } else { 1_500..=7_000 };
    declarations(seed, stores, (from_ms, until_ms), every_ms, &mut planned);
    planned.sort_by_key(|planned| planned.at_ms);
    planned
}

/// Adds the switches, which follow from the seed by themselves: faults are those that they were without.
fn switches(
    seed: u64,
    stores: &[StoreId],
    from_ms: u64,
    until_ms: u64,
    planned: &mut Vec<Planned>,
) {
    let mut chance = Xoshiro256PlusPlus::seed_from_u64(seed ^ 0x5717c4);
    let pause_ms = *[400, 900, 2_500].choose(&mut chance).unwrap_or(&900);
    // In some runs no switch may leave a store out: then nothing at all may be set aside.
    let leaves_out = chance.random_bool(0.5);
    let mut at_ms = from_ms;
    loop {
        at_ms += chance.random_range(pause_ms / 4..=pause_ms * 2);
        if at_ms >= until_ms {
            return;
        }
        let one = |chance: &mut Xoshiro256PlusPlus| {
            let at = chance.random_range(0..stores.len());
            stores[at]
        };
        let store = one(&mut chance);
        let ask = match chance.random_range(0..100) {
            0..60 => Ask::Other,
            60..70 => Ask::Strong,
            70..80 => Ask::Eventual,
            80..86 => Ask::Cancel,
            _ if leaves_out => Ask::StrongWithout(one(&mut chance)),
            _ => Ask::Strong,
        };
        if let Ask::StrongWithout(missing) = ask
            && missing != store
            && chance.random_bool(0.6)
        {
            leave_out(
                &mut chance,
                stores,
                (from_ms, until_ms),
                at_ms,
                (store, missing),
                planned,
            );
        } else if chance.random_bool(0.2) {
            // Then replicas hold different writes when the namespace is sealed.
            let clogged = one(&mut chance);
            let by_ms = chance.random_range(100..=900);
            for (at_ms, by_ms) in [(at_ms.saturating_sub(400), by_ms), (at_ms + 2_500, 0)] {
                planned.push(Planned {
                    at_ms: at_ms.clamp(from_ms, until_ms),
                    fault: Fault::Clog(clogged, by_ms),
                });
            }
        }
        if chance.random_bool(0.15) {
            planned.push(Planned {
                at_ms,
                fault: crash_at_step(&mut chance),
            });
        }
        planned.push(Planned {
            at_ms,
            fault: Fault::Switch(store, ask),
        });
    }
}

/// Whoever drives a switch dies at one of its steps.
fn crash_at_step(chance: &mut Xoshiro256PlusPlus) -> Fault {
    Fault::CrashAtStep {
        step: *Step::ALL.choose(chance).unwrap_or(&Step::Begun),
        whom: *Driving::ALL.choose(chance).unwrap_or(&Driving::Region),
        down_ms: *[50, 300, 1_500].choose(chance).unwrap_or(&300),
    }
}

/// Adds rolling changes of the stores' files, one store after the other. With some the last store takes its time, and with
/// others it is missed: then there is no switch.
fn declarations(
    seed: u64,
    stores: &[StoreId],
    (from_ms, until_ms): (u64, u64),
    every_ms: RangeInclusive<u64>,
    planned: &mut Vec<Planned>,
) {
    let mut chance = Xoshiro256PlusPlus::seed_from_u64(seed ^ 0xba110);
    let mut order = stores.to_vec();
    let (mut at_ms, mut mode) = (from_ms, Mode::Strong);
    loop {
        at_ms += chance.random_range(every_ms.clone());
        if at_ms >= until_ms {
            return;
        }
        mode = match mode {
            Mode::Strong => Mode::Eventual,
            Mode::Eventual => Mode::Strong,
        };
        order.shuffle(&mut chance);
        let late_ms = *[0, 0, 1_200].choose(&mut chance).unwrap_or(&0);
        let voters = match chance.random_bool(0.15) {
            true => order.len() - 1,
            false => order.len(),
        };
        if chance.random_bool(0.15) {
            planned.push(Planned {
                at_ms,
                fault: crash_at_step(&mut chance),
            });
        }
        for (number, store) in (1..).zip(&order[..voters]) {
            at_ms += chance.random_range(10..=300);
            if number == order.len() {
                at_ms += late_ms;
            }
            planned.push(Planned {
                at_ms: at_ms.min(until_ms),
                fault: Fault::Declare(*store, mode),
            });
        }
    }
}

/// What comes before and after a switch at `at_ms` that may leave `missing` out: the namespace has to be
/// eventual before, and `missing` has to hear nobody. In some it is still heard, and goes on sending what it
/// accepts; in some of these the namespace is eventual again before it hears of the seal.
fn leave_out(
    chance: &mut Xoshiro256PlusPlus,
    stores: &[StoreId],
    (from_ms, until_ms): (u64, u64),
    at_ms: u64,
    (store, missing): (StoreId, StoreId),
    planned: &mut Vec<Planned>,
) {
    let deaf = chance.random_bool(0.5);
    let mut cut = BTreeSet::new();
    for other in stores.iter().filter(|other| **other != missing) {
        cut.insert((*other, missing));
        if !deaf {
            cut.insert((missing, *other));
        }
    }
    let shape = if deaf { Shape::Deaf } else { Shape::Alone };
    let mut whole_ms = at_ms + chance.random_range(500..=4_000);
    planned.push(Planned {
        at_ms: at_ms.saturating_sub(1_500).max(from_ms),
        fault: Fault::Switch(store, Ask::Eventual),
    });
    planned.push(Planned {
        at_ms: at_ms.saturating_sub(500).max(from_ms),
        fault: Fault::Cuts(shape, cut),
    });
    if chance.random_bool(0.5) {
        let open_ms = at_ms + chance.random_range(800..=2_000);
        whole_ms = whole_ms.max(open_ms + 1_500);
        planned.push(Planned {
            at_ms: open_ms.min(until_ms),
            fault: Fault::Switch(store, Ask::Eventual),
        });
    }
    planned.push(Planned {
        at_ms: whole_ms.min(until_ms),
        fault: Fault::Cuts(Shape::Whole, BTreeSet::new()),
    });
}

fn fault(chance: &mut Xoshiro256PlusPlus, stores: &[StoreId]) -> Fault {
    let one = |chance: &mut Xoshiro256PlusPlus| {
        let at = chance.random_range(0..stores.len());
        stores[at]
    };
    let store = one(chance);
    let down_ms = *[50, 300, 1_500, 5_000].choose(chance).unwrap_or(&300);
    let keep = *[Keep::Nothing, Keep::Everything, Keep::Some, Keep::Some]
        .choose(chance)
        .unwrap_or(&Keep::Some);
    match chance.random_range(0..100) {
        0..22 => cuts(chance, stores),
        22..30 => Fault::Weather(weather(chance)),
        30..44 => Fault::Crash {
            stores: vec![store],
            down_ms,
            keep,
        },
        44..50 => {
            let mut two: Vec<StoreId> = stores.to_vec();
            two.retain(|other| *other != store);
            Fault::Crash {
                stores: two,
                down_ms,
                keep,
            }
        }
        50..56 => Fault::Crash {
            stores: stores.to_vec(),
            down_ms,
            keep,
        },
        56..72 => Fault::CrashAtSync {
            store,
            point: *Point::ALL.choose(chance).unwrap_or(&Point::BeforeSync),
            after: chance.random_range(0..40),
            down_ms,
        },
        72..82 => Fault::CrashAfterVote {
            store,
            after: chance.random_range(0..2),
            down_ms: 50,
        },
        82..85 => Fault::FailSync(store),
        85..87 => Fault::Full(store, true),
        87..90 => Fault::FlipBit {
            store,
            place: *Place::ALL.choose(chance).unwrap_or(&Place::Record),
            nth: chance.random_range(0..10_000),
        },
        90..92 => Fault::SlowDisk(store, chance.random_range(5_000..=400_000)),
        92..96 => {
            let far = *[500, 3_600_000, 10 * 365 * 86_400_000]
                .choose(chance)
                .unwrap_or(&500);
            let sign = if chance.random_bool(0.5) { 1 } else { -1 };
            Fault::ClockJump(store, sign * far)
        }
        _ => Fault::ClockDrift(store, chance.random_range(-50_000..=50_000)),
    }
}

fn weather(chance: &mut Xoshiro256PlusPlus) -> Weather {
    let fastest_us = *[100, 500, 5_000, 30_000].choose(chance).unwrap_or(&500);
    Weather {
        fastest_us,
        slowest_us: fastest_us * chance.random_range(1..=6),
        lost_permille: *[0, 0, 10, 50, 300].choose(chance).unwrap_or(&0),
        repeated_permille: *[0, 20, 200].choose(chance).unwrap_or(&0),
        overtaking_permille: *[0, 20, 300].choose(chance).unwrap_or(&0),
    }
}

fn cuts(chance: &mut Xoshiro256PlusPlus, stores: &[StoreId]) -> Fault {
    let shape = *[
        Shape::Halves,
        Shape::Alone,
        Shape::Bridge,
        Shape::Ring,
        Shape::Deaf,
        Shape::Mute,
        Shape::OneWay,
    ]
    .choose(chance)
    .unwrap_or(&Shape::Alone);
    let mut order = stores.to_vec();
    for at in (1..order.len()).rev() {
        order.swap(at, chance.random_range(0..=at));
    }
    let first = order[0];
    let mut cut = BTreeSet::new();
    let both = |cut: &mut BTreeSet<_>, a: StoreId, b: StoreId| cut.extend([(a, b), (b, a)]);
    match shape {
        Shape::Whole => {}
        Shape::Alone => order[1..]
            .iter()
            .for_each(|other| both(&mut cut, first, *other)),
        Shape::Halves => {
            let (left, right) = order.split_at(order.len() / 2);
            for a in left {
                right.iter().for_each(|b| both(&mut cut, *a, *b));
            }
        }
        Shape::Bridge => {
            let (left, right) = order[1..].split_at((order.len() - 1) / 2);
            for a in left {
                right.iter().for_each(|b| both(&mut cut, *a, *b));
            }
        }
        Shape::Ring => {
            let count = order.len();
            for a in 0..count {
                for b in 0..a {
                    let near = a - b == 1 || (count > 3 && a - b == count - 1);
                    if !near {
                        both(&mut cut, order[a], order[b]);
                    }
                }
            }
        }
        Shape::Deaf => cut.extend(order[1..].iter().map(|other| (*other, first))),
        Shape::Mute => cut.extend(order[1..].iter().map(|other| (first, *other))),
        Shape::OneWay => {
            cut.insert((first, order[1]));
        }
    }
    Fault::Cuts(shape, cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stores(count: u64) -> Vec<StoreId> {
        (1..=count).filter_map(StoreId::new).collect()
    }

    #[test]
    fn a_seed_has_one_plan() {
        let of = |seed| plan(seed, &stores(3), 1_000, 60_000);
        assert_eq!(of(4), of(4));
        assert_ne!(of(4), of(5));
    }

    #[test]
    fn every_kind_of_fault_is_planned() {
        let mut seen = BTreeSet::new();
        for seed in 0..200 {
            for planned in plan(seed, &stores(3), 0, 60_000) {
                let name = format!("{:?}", planned.fault);
                seen.insert(name.split(['(', ' ']).next().unwrap_or_default().to_owned());
            }
        }
        let all = [
            "ClockDrift",
            "ClockJump",
            "Clog",
            "Crash",
            "CrashAfterVote",
            "CrashAtStep",
            "CrashAtSync",
            "Cuts",
            "Declare",
            "FailSync",
            "FlipBit",
            "Full",
            "Mend",
            "SlowDisk",
            "Switch",
            "Weather",
        ];
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), all);
    }

    #[test]
    fn a_bridge_and_a_ring_leave_a_way_to_everybody() {
        let mut chance = Xoshiro256PlusPlus::seed_from_u64(1);
        for _ in 0..200 {
            for count in [3, 5] {
                let stores = stores(count);
                let Fault::Cuts(Shape::Bridge | Shape::Ring, cut) = cuts(&mut chance, &stores)
                else {
                    continue;
                };
                let mut reached = BTreeSet::from([stores[0]]);
                for _ in &stores {
                    for a in reached.clone() {
                        reached.extend(stores.iter().filter(|b| !cut.contains(&(a, **b))));
                    }
                }
                assert_eq!(reached.len(), stores.len());
                assert!(!cut.is_empty());
            }
        }
    }
}
