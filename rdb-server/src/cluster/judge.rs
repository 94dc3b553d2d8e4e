//! What two stores that meet are to each other.
//!
//! Owns the judgement, as a pure function of what both say of themselves. Keeps nothing, and knows
//! neither disk nor network.
//!
//! Invariant: [`Verdict::Member`] is the only one that lets requests through, and what it rests on (both
//! disks hold the plan of one cluster, and go on where the other saw them last) never changes again while
//! both processes live. So a stream is judged once, at its start.

use super::starts::goes_on;
use crate::error::Error;
use rdb_proto::raft::{ClusterPlan, Member, Start, Starts};
use rdb_types::Reason;
use std::collections::BTreeSet;

/// What a store says of itself when it meets another.
#[derive(Clone, Debug, Default)]
pub struct Card {
    /// Wire version.
    pub wire_major: u32,
    /// Id, disk, address.
    pub member: Member,
    /// Ids of its `--peer` list, itself included.
    pub peers: BTreeSet<u32>,
    /// The one disk of the planner that may name this store's disk in a plan: what this store has
    /// promised, durably. The planner's own is its own disk. `None`: nobody yet.
    pub promised: Option<Member>,
    /// What its cluster started from. `None`: it belongs to no cluster yet.
    pub plan: Option<ClusterPlan>,
    /// The starts of its data directory.
    pub starts: Starts,
    /// The last start of the other one of the two that it has seen.
    pub seen: Option<Start>,
}

impl Card {
    /// The store of the list that draws up the plan: the one with the smallest id.
    pub fn planner(&self) -> Option<u32> {
        self.peers.first().copied()
    }

    fn is_planner(&self) -> bool {
        self.planner() == Some(self.member.store_id)
    }
}

/// On which end of the meeting this store stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It dialled: the other one is what listens at its listed address, of which there is one.
    Caller,
    /// It was dialled, from wherever.
    Called,
}

/// What a meeting comes to.
#[derive(Debug)]
pub enum Verdict {
    /// Both belong to one cluster: they may talk.
    Member,
    /// Nothing speaks against the other, but not both belong to a cluster yet.
    Wait,
    /// As `Wait`, and the other may be counted: it belongs to no cluster, lists the same peers, and has
    /// promised itself to this store where this is the planner.
    Agree,
    /// As `Agree`, and this store may promise itself to the other, which is the planner.
    Promise(Member),
    /// As `Wait`: this store joins the other's cluster.
    Adopt(ClusterPlan),
    /// The other has no place in this store's cluster. It is shown the plan, and ends by it.
    Stranger(Error),
    /// They may not talk.
    Refuse(Error),
    /// This store itself may not go on: the other's cluster does not know its disk.
    Fatal(Error),
    /// This store itself may never go on with this disk, member or not: it is an older copy of its own.
    Outdated(Error),
}

fn refused(message: String) -> Error {
    Error::new(Reason::Refused, message)
}

/// What `me` makes of `them`.
pub fn judge(me: &Card, them: &Card, end: End) -> Verdict {
    let (mine, theirs) = (me.member.store_id, them.member.store_id);
    if me.wire_major != them.wire_major {
        return Verdict::Refuse(refused(format!(
            "store {theirs} speaks wire version {}, store {mine} speaks {}: upgrade the older one",
            them.wire_major, me.wire_major
        )));
    }
    if mine == theirs {
        return Verdict::Refuse(refused(format!(
            "both ends say they are store {mine}: give every store an id of its own, and check the addresses of --peer"
        )));
    }
    match (&me.plan, &them.plan) {
        (Some(plan), Some(other)) if plan.cluster_id != other.cluster_id => {
            Verdict::Refuse(refused(format!(
                "store {theirs} belongs to cluster {}, store {mine} to cluster {}: check the addresses of --peer",
                other.cluster_id, plan.cluster_id
            )))
        }
        (Some(plan), Some(_)) => match place_in(plan, them) {
            Ok(()) => judge_disks(me, them).unwrap_or(Verdict::Member),
            Err(error) => Verdict::Refuse(error),
        },
        (Some(plan), None) => match place_in(plan, them) {
            Ok(()) => judge_disks(me, them).unwrap_or(Verdict::Wait),
            Err(error) => Verdict::Stranger(error),
        },
        (None, Some(plan)) => match place_in(plan, me) {
            Ok(()) => judge_disks(me, them).unwrap_or_else(|| Verdict::Adopt(plan.clone())),
            Err(error) => Verdict::Fatal(Error {
                message: format!("{} (says store {theirs}, which is in it)", error.message),
                ..error
            }),
        },
        (None, None) => judge_first_members(me, them, end),
    }
}

/// Whether the disks of the two are those that they saw of each other last. `None`: nothing speaks against it.
fn judge_disks(me: &Card, them: &Card) -> Option<Verdict> {
    if let Some(seen) = them.seen.filter(|seen| !goes_on(&me.starts, *seen)) {
        return Some(Verdict::Outdated(older_copy(me, seen, them)));
    }
    let seen = me.seen.filter(|seen| !goes_on(&them.starts, *seen))?;
    Some(Verdict::Stranger(older_copy(them, seen, me)))
}

/// `of` has the wrong directory: `by` has seen another start of it.
fn older_copy(of: &Card, seen: Start, by: &Card) -> Error {
    let id = of.member.store_id;
    refused(format!(
        "the data directory of store {id} (UUID {}, start {}) is an older copy: store {} has met start {} of store {id}, which this one knows nothing of, so what store {id} acknowledged and voted for since the copy was made is missing here. Never start it again; bring back the directory that store {id} used last, or leave store {id} out: the others serve on while they are a majority",
        of.member.store_uuid, of.starts.count, by.member.store_id, seen.count
    ))
}

/// Two stores without a cluster.
fn judge_first_members(me: &Card, them: &Card, end: End) -> Verdict {
    let (mine, theirs) = (me.member.store_id, them.member.store_id);
    if me.peers != them.peers || !me.peers.contains(&theirs) {
        return Verdict::Refuse(refused(format!(
            "store {theirs} lists the peers {:?}, store {mine} lists {:?}: give all first members the same --peer list",
            them.peers, me.peers
        )));
    }
    match (&me.promised, &them.promised) {
        (Some(a), Some(b)) if !same_disk(a, b) => {
            return Verdict::Refuse(two_planners(me, a, them, b));
        }
        _ => {}
    }
    match end {
        End::Called => Verdict::Wait,
        End::Caller if me.is_planner() && them.promised.is_none() => Verdict::Wait,
        End::Caller if me.promised.is_none() && them.is_planner() => {
            Verdict::Promise(them.member.clone())
        }
        End::Caller => Verdict::Agree,
    }
}

fn same_disk(a: &Member, b: &Member) -> bool {
    a.store_id == b.store_id && a.store_uuid == b.store_uuid
}

/// The list is about to be begun with two data directories of the planner.
fn two_planners(me: &Card, mine: &Member, them: &Card, theirs: &Member) -> Error {
    // The planner is bound to its own directory; the other one of the two has promised itself.
    let (bound, to) = if me.is_planner() {
        (them, theirs)
    } else {
        (me, mine)
    };
    let other = if me.is_planner() { mine } else { theirs };
    refused(format!(
        "store {} has promised itself to the data directory {} of store {} (at {}), and here is another directory {} of that store (at {}): one of the two must go, for only one may begin the cluster. Run store {} with the directory that the promise was given to; if that one is gone for good and no cluster was begun with it, remove the data directory of store {} as well (it holds nothing yet) and start both again",
        bound.member.store_id,
        to.store_uuid,
        to.store_id,
        to.address,
        other.store_uuid,
        other.address,
        to.store_id,
        bound.member.store_id,
    ))
}

/// Whether a store is a member of the plan, with the disk that the plan names.
fn place_in(plan: &ClusterPlan, card: &Card) -> Result<(), Error> {
    let id = card.member.store_id;
    match plan.members.iter().find(|member| member.store_id == id) {
        None => {
            let members: BTreeSet<u32> =
                plan.members.iter().map(|member| member.store_id).collect();
            Err(refused(format!(
                "store {id} is not a member of cluster {}, whose members are {members:?}: check its id and the addresses of its --peer list",
                plan.cluster_id
            )))
        }
        Some(member) if member.store_uuid != card.member.store_uuid => Err(refused(format!(
            "store {id} of cluster {} has another data directory (UUID {}, at {}); this one (UUID {}) is new or was wiped. Bring back the directory that was used last, or end this process if the other one runs; a store that lost its disk must not vote under its old id",
            plan.cluster_id, member.store_uuid, member.address, card.member.store_uuid
        ))),
        Some(_) => Ok(()),
    }
}

/// A store keeps its promise under every `--peer` list: it may begin, or wait for, only a cluster that is
/// planned by the disk that it promised itself to.
///
/// # Errors
/// The list has another planner; what to do about it.
pub fn keeps_promise(me: &Member, peers: &BTreeSet<u32>, promised: &Member) -> Result<(), String> {
    let planner = peers.first().copied().unwrap_or(me.store_id);
    if planner == promised.store_id {
        return Ok(());
    }
    Err(format!(
        "this store has promised itself to the data directory {} of store {} (at {}), which began or may still begin its cluster, but by the --peer list {peers:?} store {planner} would: give it the old list back; if no cluster was begun with that one, remove this store's data directory (it holds nothing yet)",
        promised.store_uuid, promised.store_id, promised.address
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u32, uuid: &str) -> Member {
        Member {
            store_id: id,
            store_uuid: uuid.into(),
            address: format!("host{id}:1"),
        }
    }

    fn plan(cluster: &str, members: &[(u32, &str)]) -> ClusterPlan {
        ClusterPlan {
            cluster_id: cluster.into(),
            members: members.iter().map(|(id, uuid)| member(*id, uuid)).collect(),
            ..ClusterPlan::default()
        }
    }

    /// A first member of the list 1, 2, 3; `promised`: to which disk of store 1.
    fn first(id: u32, uuid: &str, promised: Option<&str>) -> Card {
        Card {
            wire_major: 1,
            member: member(id, uuid),
            peers: BTreeSet::from([1, 2, 3]),
            promised: promised.map(|uuid| member(1, uuid)),
            ..Card::default()
        }
    }

    fn in_cluster(id: u32, uuid: &str, plan: ClusterPlan) -> Card {
        Card {
            plan: Some(plan),
            ..first(id, uuid, None)
        }
    }

    #[track_caller]
    fn refuses(verdict: Verdict, parts: &[&str]) {
        let (Verdict::Refuse(error) | Verdict::Stranger(error) | Verdict::Fatal(error)) = verdict
        else {
            panic!("{verdict:?}");
        };
        for part in parts {
            assert!(
                error.message.contains(part),
                "{part:?} in {}",
                error.message
            );
        }
    }

    #[test]
    fn a_promise_is_given_to_the_planner_that_listens_at_its_address_and_to_nobody_else() {
        let planner = first(1, "u1", Some("u1"));
        let two = first(2, "u2", None);
        let Verdict::Promise(to) = judge(&two, &planner, End::Caller) else {
            panic!("the planner answers at its address")
        };
        assert_eq!(to.store_uuid, "u1");
        assert!(matches!(judge(&two, &planner, End::Called), Verdict::Wait));
        let three = first(3, "u3", Some("u1"));
        assert!(matches!(judge(&two, &three, End::Caller), Verdict::Agree));
        // Once given, it stays.
        let two = first(2, "u2", Some("u1"));
        assert!(matches!(judge(&two, &planner, End::Caller), Verdict::Agree));
    }

    #[test]
    fn the_planner_counts_only_who_promised_itself_to_its_own_disk() {
        let planner = first(1, "u1", Some("u1"));
        let verdict = judge(&planner, &first(2, "u2", None), End::Caller);
        assert!(matches!(verdict, Verdict::Wait), "{verdict:?}");
        let verdict = judge(&planner, &first(2, "u2", Some("u1")), End::Caller);
        assert!(matches!(verdict, Verdict::Agree), "{verdict:?}");
        // Whoever comes in may come from anywhere.
        let verdict = judge(&planner, &first(2, "u2", Some("u1")), End::Called);
        assert!(matches!(verdict, Verdict::Wait), "{verdict:?}");
        refuses(
            judge(&planner, &first(2, "u2", Some("twin")), End::Caller),
            &["store 2 has promised itself to the data directory twin"],
        );
    }

    #[test]
    fn another_disk_of_the_planner_is_refused_with_what_to_do_on_both_ends() {
        let twin = first(1, "twin", Some("twin"));
        let two = first(2, "u2", Some("u1"));
        let parts = [
            "store 2 has promised itself to the data directory u1 of store 1 (at host1:1)",
            "another directory twin of that store",
            "remove the data directory of store 2",
        ];
        for end in [End::Caller, End::Called] {
            refuses(judge(&two, &twin, end), &parts);
            refuses(judge(&twin, &two, end), &parts);
            refuses(
                judge(&first(3, "u3", Some("twin")), &two, end),
                &["store 3 has promised itself to the data directory twin"],
            );
        }
    }

    #[test]
    fn nothing_but_one_cluster_on_both_disks_lets_requests_through() {
        let one = plan("c", &[(1, "u1"), (2, "u2"), (3, "u3")]);
        let other = plan("d", &[(1, "u1"), (2, "u2"), (3, "u3")]);
        let cards = [
            first(2, "u2", None),
            first(2, "u2", Some("u1")),
            in_cluster(2, "u2", other),
            in_cluster(2, "wiped", one.clone()),
        ];
        let mine = [
            first(1, "u1", Some("u1")),
            in_cluster(1, "u1", one.clone()),
            first(1, "twin", Some("twin")),
        ];
        for (me, them) in mine
            .iter()
            .flat_map(|me| cards.iter().map(move |them| (me, them)))
        {
            for end in [End::Caller, End::Called] {
                assert!(
                    !matches!(judge(me, them, end), Verdict::Member),
                    "{me:?} {them:?}"
                );
            }
        }
        let (me, them) = (
            in_cluster(1, "u1", one.clone()),
            in_cluster(2, "u2", one.clone()),
        );
        assert!(matches!(judge(&me, &them, End::Called), Verdict::Member));
        // One that has not joined yet does so by the plan that it is shown.
        let new = first(2, "u2", Some("u1"));
        assert!(matches!(judge(&me, &new, End::Called), Verdict::Wait));
        assert!(matches!(
            judge(&new, &me, End::Caller),
            Verdict::Adopt(adopted) if adopted == one
        ));
    }

    #[test]
    fn who_has_no_place_in_the_cluster_is_shown_it_and_ends() {
        let known = in_cluster(2, "u2", plan("c", &[(1, "u1"), (2, "u2")]));
        let wiped = first(1, "new", Some("new"));
        let fourth = Card {
            peers: BTreeSet::from([1, 2, 4]),
            ..first(4, "u4", None)
        };
        for (card, part) in [
            (&wiped, "was wiped"),
            (&fourth, "not a member of cluster c"),
        ] {
            let verdict = judge(&known, card, End::Called);
            assert!(matches!(verdict, Verdict::Stranger(_)), "{verdict:?}");
            let verdict = judge(card, &known, End::Caller);
            assert!(matches!(verdict, Verdict::Fatal(_)), "{verdict:?}");
            refuses(verdict, &[part, "says store 2"]);
        }
    }

    #[test]
    fn who_holds_an_older_copy_is_a_stranger_to_the_other_and_outdated_to_itself() {
        let one_plan = plan("c", &[(1, "u1"), (2, "u2")]);
        let starts = |count, newest_first: &[u64]| Starts {
            count,
            incarnations: newest_first.to_vec(),
            ..Starts::default()
        };
        let seen = |count, incarnation| Some(Start { count, incarnation });
        let met = |seen| Card {
            seen,
            ..in_cluster(1, "u1", one_plan.clone())
        };
        let cases = [
            // What store 1 has seen of store 2; the starts of store 2; whether that is an older copy.
            (None, starts(1, &[7]), false),
            (seen(2, 8), starts(2, &[8, 7]), false),
            (seen(2, 8), starts(3, &[9, 8, 7]), false),
            (seen(2, 8), starts(1, &[7]), true),
            (seen(2, 8), starts(2, &[9, 7]), true),
            (seen(2, 8), starts(3, &[10, 9, 7]), true),
            (seen(2, 8), Starts::default(), false),
        ];
        for (seen, starts, older) in cases {
            for joined in [true, false] {
                let copy = Card {
                    starts: starts.clone(),
                    plan: joined.then(|| one_plan.clone()),
                    ..in_cluster(2, "u2", one_plan.clone())
                };
                let (here, there) = (
                    judge(&met(seen), &copy, End::Called),
                    judge(&copy, &met(seen), End::Caller),
                );
                let what = format!("{seen:?} {starts:?} joined {joined}: {here:?} {there:?}");
                let stranger = matches!(here, Verdict::Stranger(_));
                let outdated = matches!(there, Verdict::Outdated(_));
                assert_eq!((stranger, outdated), (older, older), "{what}");
                if older {
                    refuses(here, &["store 2 (UUID u2", "is an older copy"]);
                } else if joined {
                    assert!(matches!(here, Verdict::Member), "{what}");
                    assert!(matches!(there, Verdict::Member), "{what}");
                }
            }
        }
    }

    #[test]
    fn strangers_are_refused() {
        let mine = in_cluster(1, "u1", plan("a", &[(1, "u1"), (2, "u2")]));
        let cases = [
            (
                in_cluster(2, "u2", plan("b", &[(2, "u2")])),
                "belongs to cluster b",
            ),
            (first(9, "u9", None), "not a member"),
            (first(1, "u1", None), "both ends"),
            (
                Card {
                    wire_major: 2,
                    ..first(2, "u2", None)
                },
                "wire version",
            ),
        ];
        for (them, part) in cases {
            refuses(judge(&mine, &them, End::Called), &[part]);
        }
        let me = first(1, "u1", Some("u1"));
        let other_list = Card {
            peers: BTreeSet::from([2, 3]),
            ..first(2, "u2", None)
        };
        for them in [other_list, first(9, "u9", None)] {
            refuses(judge(&me, &them, End::Caller), &["the same --peer list"]);
        }
    }

    #[test]
    fn a_promise_outlives_the_list_that_it_was_given_for() {
        let (me, promised) = (member(2, "u2"), member(1, "u1"));
        let keeps = |peers: &[u32]| keeps_promise(&me, &peers.iter().copied().collect(), &promised);
        assert_eq!((keeps(&[1, 2, 3]), keeps(&[1, 2])), (Ok(()), Ok(())));
        let error = keeps(&[2, 3]).unwrap_err();
        assert!(
            error.contains("the data directory u1 of store 1") && error.contains("remove"),
            "{error}"
        );
    }
}
