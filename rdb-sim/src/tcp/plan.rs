//! What goes wrong in a run over simulated TCP: a list that follows from the seed.
//!
//! Owns the kinds of faults and the mix. Carries nothing out. Hosts are named as the network names them.

use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use std::fmt;

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// What is sent between the two is lost, in both directions.
    Partition(Vec<(String, String)>),
    /// What the first sends to the second is lost.
    OneWay(String, String),
    /// What is sent between the two waits until the links are mended.
    Hold(Vec<(String, String)>),
    /// Every link works again, and what was held arrives.
    Mend,
    /// A message takes up to so many milliseconds.
    Latency(u64),
    /// The process of a store is killed: its sockets close, its disk keeps everything.
    Kill {
        /// Whose.
        store: usize,
        /// After how long it is started again.
        down_ms: u64,
    },
    /// The machine of a store loses its power: its sockets fall silent, its disk loses what was not synced.
    PowerCut {
        /// Whose.
        store: usize,
        /// After how long it is started again.
        down_ms: u64,
    },
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

/// A fair network: a message takes at most so many milliseconds.
pub const FAIR_MS: u64 = 2;

/// The plan of a seed: faults from `from_ms` to `until_ms`, in a cluster of `stores` with `clients`.
pub fn plan(
    seed: u64,
    stores: &[String],
    clients: &[String],
    from_ms: u64,
    until_ms: u64,
) -> Vec<Planned> {
    let mut chance = Xoshiro256PlusPlus::seed_from_u64(seed ^ 0x7c9);
    let pause_ms = *[800, 2_000, 4_000].choose(&mut chance).unwrap_or(&2_000);
    let mut planned = Vec::new();
    let mut at_ms = from_ms;
    loop {
        at_ms += chance.random_range(pause_ms / 4..=pause_ms * 2);
        if at_ms >= until_ms {
            break;
        }
        let fault = fault(&mut chance, stores, clients);
        let end = match &fault {
            Fault::Partition(_) | Fault::OneWay(..) | Fault::Hold(_) => Some(Fault::Mend),
            Fault::Latency(_) => Some(Fault::Latency(FAIR_MS)),
            _ => None,
        };
        planned.push(Planned { at_ms, fault });
        if let Some(fault) = end {
            let at_ms = (at_ms + chance.random_range(200..=5_000)).min(until_ms);
            planned.push(Planned { at_ms, fault });
        }
    }
    planned.sort_by_key(|planned| planned.at_ms);
    planned
}

fn fault(chance: &mut Xoshiro256PlusPlus, stores: &[String], clients: &[String]) -> Fault {
    let store = chance.random_range(0..stores.len());
    let down_ms = *[50, 300, 1_500, 4_000].choose(chance).unwrap_or(&300);
    match chance.random_range(0..100) {
        0..22 => Fault::Partition(links(chance, store, stores, clients)),
        22..30 => {
            let other = (store + chance.random_range(1..stores.len())) % stores.len();
            Fault::OneWay(stores[store].clone(), stores[other].clone())
        }
        30..46 => Fault::Hold(links(chance, store, stores, clients)),
        46..56 => Fault::Latency(*[20, 60, 250].choose(chance).unwrap_or(&60)),
        56..80 => Fault::Kill { store, down_ms },
        _ => Fault::PowerCut { store, down_ms },
    }
}

/// Some of the links of a store: to the others, to clients, to everybody, or to one.
fn links(
    chance: &mut Xoshiro256PlusPlus,
    store: usize,
    stores: &[String],
    clients: &[String],
) -> Vec<(String, String)> {
    let others = || {
        let others = stores.iter().enumerate().filter(|(at, _)| *at != store);
        others.map(|(_, name)| name).collect::<Vec<_>>()
    };
    let ends: Vec<&String> = match chance.random_range(0..4) {
        0 => others(),
        1 => clients.iter().collect(),
        2 => others().into_iter().chain(clients).collect(),
        _ => others().choose(chance).copied().into_iter().collect(),
    };
    let link = |end: &String| (stores[store].clone(), end.clone());
    ends.into_iter().map(link).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_seed_has_one_plan_and_every_kind_of_fault_is_planned() {
        let names = |what: &str, count| (1..=count).map(|n| format!("{what}-{n}")).collect();
        let (stores, clients): (Vec<_>, Vec<_>) = (names("store", 3), names("client", 2));
        let of = |seed| plan(seed, &stores, &clients, 0, 60_000);
        assert_eq!(of(4), of(4));
        assert_ne!(of(4), of(5));
        let all = (0..100).flat_map(of).map(|planned| {
            let name = format!("{:?}", planned.fault);
            name.split(['(', ' ']).next().unwrap_or_default().to_owned()
        });
        let kinds = [
            "Hold",
            "Kill",
            "Latency",
            "Mend",
            "OneWay",
            "Partition",
            "PowerCut",
        ];
        assert_eq!(
            all.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>(),
            kinds
        );
    }
}
