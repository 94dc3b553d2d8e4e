//! What replicas that have applied the same hold, compared.
//!
//! Pure. Two digests of an eventual namespace can be compared where vector and expiry are equal: both
//! come from one state of the replica. A strong one reports its digest and how far it has applied one
//! after the other, so those are compared only where nothing moved between two looks.
//!
//! Invariant: `Equal` is said only when every replica was reached and compared.

use rdb_proto::raft::{RegionStatus, ReplicaStatus};
use rdb_proto::{convert, raft};
use rdb_types::Mode;
use std::collections::BTreeMap;

/// What a comparison came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    /// All replicas hold the same.
    Equal,
    /// Two that have applied the same do not.
    Different,
    /// They could not be compared.
    Apart,
}

/// What is said of one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Equal,
    Different,
    Behind,
    /// No other one that was reached has applied what it has, and none has applied something else.
    Alone,
    Unreachable,
}

impl State {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            State::Equal => "equal",
            State::Different => "DIFFERENT",
            State::Behind => "not at the same cut",
            State::Alone => "not compared",
            State::Unreachable => "unreachable",
        }
    }
}

/// A namespace, region by region, at one look.
#[derive(Clone, Debug)]
pub(crate) struct Cut {
    pub(crate) came: Came,
    pub(crate) regions: Vec<Region>,
}

impl Cut {
    /// `before`: the look before this one.
    pub(crate) fn of(regions: Vec<RegionStatus>, before: Option<&Cut>) -> Cut {
        let before = |id| {
            let mut regions = before.into_iter().flat_map(|cut| &cut.regions);
            regions.find(|region| region.id == id)
        };
        let regions: Vec<Region> = regions
            .into_iter()
            .map(|status| {
                let id = status.region_id;
                Region::of(status, before(id))
            })
            .collect();
        let all = || regions.iter().map(|region| region.came);
        let came = if all().any(|came| came == Came::Different) {
            Came::Different
        } else if all().all(|came| came == Came::Equal) {
            Came::Equal
        } else {
            Came::Apart
        };
        Cut { came, regions }
    }
}

/// One region's replicas.
#[derive(Clone, Debug)]
pub(crate) struct Region {
    pub(crate) id: u64,
    pub(crate) mode: i32,
    pub(crate) replicas: Vec<ReplicaStatus>,
    came: Came,
    /// Nothing moved since the look before.
    still: bool,
}

/// What a replica has to have in common with another to be compared.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Applied<'r> {
    epoch: u64,
    index: u64,
    vector: BTreeMap<u32, u64>,
    expired_through_ms: u64,
    digest_is_there: bool,
    /// Never equal to that of another: a copy is being taken.
    partial: Option<&'r u32>,
}

impl Region {
    fn of(status: RegionStatus, before: Option<&Region>) -> Region {
        let mut region = Region {
            id: status.region_id,
            mode: status.mode,
            replicas: status.replicas,
            came: Came::Apart,
            still: false,
        };
        region.still =
            before.is_some_and(|before| before.mode == region.mode && same(before, &region));
        region.came = region.compare();
        region
    }

    fn is_eventual(&self) -> bool {
        convert::mode(self.mode) == Some(Mode::Eventual)
    }

    fn applied<'r>(&self, replica: &'r ReplicaStatus) -> Applied<'r> {
        let eventual = self.is_eventual();
        Applied {
            epoch: replica.epoch,
            index: if eventual { 0 } else { replica.applied_index },
            vector: replica.vector.iter().map(|(k, v)| (*k, *v)).collect(),
            expired_through_ms: replica.expired_through_ms,
            digest_is_there: !replica.digest.is_empty(),
            partial: replica.partial.then_some(&replica.store_id),
        }
    }

    /// The replicas by what they hold, and that by what they have applied.
    fn groups(&self) -> BTreeMap<Applied<'_>, BTreeMap<&[u8], usize>> {
        let mut groups: BTreeMap<_, BTreeMap<&[u8], usize>> = BTreeMap::new();
        for replica in self.replicas.iter().filter(|replica| replica.reachable) {
            let digests = groups.entry(self.applied(replica)).or_default();
            *digests.entry(&replica.digest[..]).or_default() += 1;
        }
        groups
    }

    fn compare(&self) -> Came {
        if !self.is_eventual() && !self.still {
            return Came::Apart;
        }
        let groups = self.groups();
        if groups.values().any(|digests| digests.len() > 1) {
            return Came::Different;
        }
        let reached = self.replicas.iter().all(|replica| replica.reachable);
        let known = groups
            .keys()
            .all(|applied| applied.digest_is_there && applied.partial.is_none());
        if reached && known && groups.len() == 1 {
            Came::Equal
        } else {
            Came::Apart
        }
    }

    /// Whether what a replica says of its digest is of one moment, and of all that it holds.
    fn comparable(&self, replica: &ReplicaStatus) -> bool {
        let known = !replica.digest.is_empty() && !replica.partial;
        known && (self.is_eventual() || self.still)
    }

    pub(crate) fn state_of(&self, replica: &ReplicaStatus) -> State {
        if !replica.reachable {
            return State::Unreachable;
        }
        let groups = self.groups();
        let digests = groups.get(&self.applied(replica));
        match digests {
            Some(digests) if digests.len() > 1 && self.came == Came::Different => State::Different,
            // Of those that were reached; whether that is all, `came` says.
            Some(digests) if digests.len() == 1 && self.comparable(replica) => {
                match (digests.values().sum(), groups.len()) {
                    (2.., _) => State::Equal,
                    (_, 1) if self.replicas.len() > 1 => State::Alone,
                    (_, 1) => State::Equal,
                    _ => State::Behind,
                }
            }
            _ => State::Behind,
        }
    }

    /// Up to where a replica has applied, for people.
    pub(crate) fn cut_of(&self, replica: &ReplicaStatus) -> String {
        if !replica.reachable {
            return String::new();
        }
        if !self.is_eventual() {
            return format!("index {}", replica.applied_index);
        }
        let vector: BTreeMap<_, _> = replica.vector.iter().collect();
        let parts: Vec<String> = vector
            .into_iter()
            .map(|(origin, sequence)| format!("{origin}:{sequence}"))
            .collect();
        format!("{{{}}}", parts.join(" "))
    }
}

/// Whether nothing moved between two looks.
fn same(before: &Region, now: &Region) -> bool {
    let of = |replica: &raft::ReplicaStatus| {
        (
            replica.store_id,
            replica.applied_index,
            replica.digest.clone(),
        )
    };
    before
        .replicas
        .iter()
        .map(of)
        .eq(now.replicas.iter().map(of))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(store_id: u32, sequence: u64, digest: u8) -> ReplicaStatus {
        ReplicaStatus {
            store_id,
            reachable: true,
            vector: [(1, sequence)].into(),
            applied_index: sequence,
            digest: vec![digest; 16].into(),
            ..Default::default()
        }
    }

    fn came(mode: Mode, replicas: &[ReplicaStatus], twice: bool) -> Cut {
        let status = || {
            vec![RegionStatus {
                region_id: 2,
                mode: convert::mode_to_wire(mode),
                replicas: replicas.to_vec(),
                ..Default::default()
            }]
        };
        let first = Cut::of(status(), None);
        if twice {
            Cut::of(status(), Some(&first))
        } else {
            first
        }
    }

    #[test]
    fn equal_vectors_with_equal_digests_are_equal_and_nothing_less_is() {
        let equal = [replica(1, 5, 7), replica(2, 5, 7)];
        let cut = came(Mode::Eventual, &equal, false);
        assert_eq!(cut.came, Came::Equal);
        assert_eq!(cut.regions[0].state_of(&equal[0]), State::Equal);
        assert_eq!(cut.regions[0].cut_of(&equal[0]), "{1:5}");

        let behind = [replica(1, 5, 7), replica(2, 4, 6)];
        let away = ReplicaStatus {
            reachable: false,
            ..replica(2, 5, 7)
        };
        let expired = ReplicaStatus {
            expired_through_ms: 1,
            ..replica(2, 5, 6)
        };
        let partial = ReplicaStatus {
            partial: true,
            ..replica(2, 5, 6)
        };
        let unheard = ReplicaStatus {
            digest: Default::default(),
            ..replica(2, 5, 7)
        };
        for other in [behind[1].clone(), away, expired, partial, unheard] {
            let cut = came(Mode::Eventual, &[replica(1, 5, 7), other.clone()], false);
            assert_eq!(cut.came, Came::Apart, "{other:?}");
        }
    }

    #[test]
    fn those_that_were_reached_are_compared_when_one_is_not() {
        let away = ReplicaStatus {
            reachable: false,
            ..replica(3, 0, 0)
        };
        for mode in [Mode::Strong, Mode::Eventual] {
            let states = |replicas: &[ReplicaStatus]| {
                let cut = came(mode, replicas, true);
                assert_eq!(cut.came, Came::Apart, "{mode}");
                let region = &cut.regions[0];
                replicas
                    .iter()
                    .map(|replica| region.state_of(replica))
                    .collect::<Vec<_>>()
            };
            assert_eq!(
                states(&[replica(1, 5, 7), replica(2, 5, 7), away.clone()]),
                [State::Equal, State::Equal, State::Unreachable]
            );
            assert_eq!(
                states(&[replica(1, 5, 7), replica(2, 4, 6), away.clone()]),
                [State::Behind, State::Behind, State::Unreachable]
            );
            let alone = ReplicaStatus {
                reachable: false,
                ..replica(2, 5, 7)
            };
            assert_eq!(
                states(&[replica(1, 5, 7), alone, away.clone()]),
                [State::Alone, State::Unreachable, State::Unreachable]
            );
        }
    }

    #[test]
    fn equal_vectors_with_different_digests_are_a_defect() {
        let replicas = [replica(1, 5, 7), replica(2, 5, 8), replica(3, 4, 7)];
        let cut = came(Mode::Eventual, &replicas, false);
        assert_eq!(cut.came, Came::Different);
        let states: Vec<State> = replicas
            .iter()
            .map(|it| cut.regions[0].state_of(it))
            .collect();
        assert_eq!(states, [State::Different, State::Different, State::Behind]);
    }

    #[test]
    fn a_strong_namespace_is_compared_once_nothing_moves() {
        let equal = [replica(1, 5, 7), replica(2, 5, 7)];
        assert_eq!(came(Mode::Strong, &equal, false).came, Came::Apart);
        assert_eq!(came(Mode::Strong, &equal, true).came, Came::Equal);
        let different = [replica(1, 5, 7), replica(2, 5, 8)];
        assert_eq!(came(Mode::Strong, &different, false).came, Came::Apart);
        assert_eq!(came(Mode::Strong, &different, true).came, Came::Different);
    }
}
