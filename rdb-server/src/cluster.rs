//! Who belongs to the cluster, and how it begins.
//!
//! Owns a store's membership: its identity, the plan that its cluster started from, and the judgement
//! of every store that it meets. Knows nothing of regions beyond their descriptors.
//!
//! A cluster begins like this. Every store of a `--peer` list starts without a cluster. The one with
//! the smallest id asks all others. Only when every one of them has answered that it belongs to no
//! cluster and lists the same peers does it draw up a plan (cluster id, members with the UUIDs of
//! their disks, regions), sync it, and tell the others, who adopt it unchanged. Killed at any step, it
//! goes on from what is on disk.
//!
//! Invariants:
//! - one list of peers never forms two clusters: only its smallest id plans, only with the consent of
//!   all, and a store adopts one plan once;
//! - a disk that was wiped never votes again under its old id: its UUID is not the one in the plan;
//! - nothing but the handshake is served between stores that do not know each other as members.

use crate::error::Error;
use crate::raft::StoreNode;
use crate::transport::Handshake;
use parking_lot::Mutex;
use rdb_proto::raft::{ClusterPlan, Hello, HelloReply, Member, StoreStatus};
use rdb_proto::{WIRE_MAJOR, WIRE_MINOR};
use rdb_types::{Reason, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::Notify;

/// What a store says of itself when it meets another.
#[derive(Clone, Debug, Default)]
pub struct Card {
    /// Wire version.
    pub wire_major: u32,
    /// Id, disk, address.
    pub member: Member,
    /// Empty: no cluster yet.
    pub cluster_id: String,
    /// Ids of its `--peer` list, itself included.
    pub peers: BTreeSet<u32>,
    /// What its cluster started from.
    pub plan: Option<ClusterPlan>,
}

/// What a meeting comes to.
#[derive(Debug)]
pub enum Verdict {
    /// They may talk.
    Fine,
    /// They may talk, and this store joins the other's cluster.
    Adopt(ClusterPlan),
    /// They may not talk.
    Refuse(Error),
    /// This store itself may not go on: its disk is not the one that the cluster knows.
    Fatal(Error),
}

fn refuse(message: String) -> Verdict {
    Verdict::Refuse(Error::new(Reason::Refused, message))
}

/// What `me` makes of `them`.
pub fn judge(me: &Card, them: &Card) -> Verdict {
    let (mine, theirs) = (me.member.store_id, them.member.store_id);
    if me.wire_major != them.wire_major {
        return refuse(format!(
            "store {theirs} speaks wire version {}, store {mine} speaks {}: upgrade the older one",
            them.wire_major, me.wire_major
        ));
    }
    if mine == theirs {
        return refuse(format!(
            "both ends say they are store {mine}: give every store an id of its own, and check the addresses of --peer"
        ));
    }
    match (&me.plan, &them.plan) {
        (Some(plan), Some(other)) if plan.cluster_id != other.cluster_id => refuse(format!(
            "store {theirs} belongs to cluster {}, store {mine} to cluster {}: check the addresses of --peer",
            other.cluster_id, plan.cluster_id
        )),
        (Some(plan), _) => match known_disk(plan, them) {
            Ok(()) => Verdict::Fine,
            Err(error) => Verdict::Refuse(error),
        },
        (None, Some(plan)) => match known_disk(plan, me) {
            Ok(()) => Verdict::Adopt(plan.clone()),
            Err(error) => Verdict::Fatal(error),
        },
        (None, None) if me.peers != them.peers => refuse(format!(
            "store {theirs} lists the peers {:?}, store {mine} lists {:?}: give all first members the same --peer list",
            them.peers, me.peers
        )),
        (None, None) => Verdict::Fine,
    }
}

/// Whether a store is a member of the plan, with the disk that the plan names.
fn known_disk(plan: &ClusterPlan, card: &Card) -> Result<(), Error> {
    let id = card.member.store_id;
    let refused = |why: String| Err(Error::new(Reason::Refused, why));
    match plan.members.iter().find(|member| member.store_id == id) {
        None => refused(format!(
            "store {id} is not a member of cluster {}",
            plan.cluster_id
        )),
        Some(member) if member.store_uuid != card.member.store_uuid => refused(format!(
            "store {id} of cluster {} has another data directory (UUID {}); this one (UUID {}) is new or was wiped. Bring the old directory back; a store that lost its disk must not vote under its old id",
            plan.cluster_id, member.store_uuid, card.member.store_uuid
        )),
        Some(_) => Ok(()),
    }
}

/// A store's membership.
pub struct Cluster {
    me: StoreId,
    state: Mutex<State>,
    /// Woken when something changed that start-up waits for.
    changed: Notify,
    /// Configured addresses; they win over those in the plan, so that a store can move.
    addresses: BTreeMap<StoreId, String>,
}

struct State {
    card: Card,
    /// A plan that another store sent and that is not on disk here yet.
    offered: Option<ClusterPlan>,
    fatal: Option<Error>,
    /// Stores without a cluster that agreed with this one.
    agreed: BTreeMap<u32, Member>,
}

impl Cluster {
    /// With what is on disk (`plan`) and what is configured.
    pub fn new(
        me: Member,
        peers: &BTreeMap<StoreId, String>,
        plan: Option<ClusterPlan>,
    ) -> Option<Arc<Cluster>> {
        let id = StoreId::new(u64::from(me.store_id))?;
        let card = Card {
            wire_major: WIRE_MAJOR,
            cluster_id: plan
                .as_ref()
                .map(|plan| plan.cluster_id.clone())
                .unwrap_or_default(),
            peers: peers
                .keys()
                .map(|store| u32::from(store.get()))
                .chain([me.store_id])
                .collect(),
            member: me,
            plan,
        };
        let state = State {
            card,
            offered: None,
            fatal: None,
            agreed: BTreeMap::new(),
        };
        Some(Arc::new(Cluster {
            me: id,
            state: Mutex::new(state),
            changed: Notify::new(),
            addresses: peers.clone(),
        }))
    }

    /// What the cluster started from, once this store belongs to one.
    pub fn plan(&self) -> Option<ClusterPlan> {
        self.state.lock().card.plan.clone()
    }

    /// The members, as a region's first membership.
    pub fn nodes(plan: &ClusterPlan) -> BTreeMap<u64, StoreNode> {
        plan.members
            .iter()
            .map(|member| {
                (
                    u64::from(member.store_id),
                    StoreNode {
                        store_uuid: member.store_uuid.clone(),
                        address: member.address.clone(),
                    },
                )
            })
            .collect()
    }

    /// The other stores that this one knows of: members, else configured peers.
    pub fn others(&self) -> Vec<StoreId> {
        let state = self.state.lock();
        let ids: BTreeSet<u32> = match &state.card.plan {
            Some(plan) => plan.members.iter().map(|member| member.store_id).collect(),
            None => state.card.peers.clone(),
        };
        ids.into_iter()
            .filter_map(|id| StoreId::new(u64::from(id)))
            .filter(|store| *store != self.me)
            .collect()
    }

    /// The plan is on disk: from now on this store belongs to the cluster.
    pub fn joined(&self, plan: ClusterPlan) {
        let mut state = self.state.lock();
        state.card.cluster_id.clone_from(&plan.cluster_id);
        state.card.plan = Some(plan);
        drop(state);
        self.changed.notify_waiters();
    }

    /// What start-up has to do next.
    pub fn next_step(&self) -> Result<Step, Error> {
        let state = self.state.lock();
        if let Some(error) = &state.fatal {
            return Err(error.clone());
        }
        if let Some(plan) = &state.card.plan {
            return Ok(Step::Run(plan.clone()));
        }
        if let Some(plan) = &state.offered {
            return Ok(Step::Adopt(plan.clone()));
        }
        let me = state.card.member.store_id;
        let missing: Vec<u32> = state
            .card
            .peers
            .iter()
            .copied()
            .filter(|id| *id != me && !state.agreed.contains_key(id))
            .collect();
        if state.card.peers.first() == Some(&me) && missing.is_empty() {
            let mut members: BTreeMap<u32, Member> = state.agreed.clone();
            members.insert(me, state.card.member.clone());
            return Ok(Step::Plan(members.into_values().collect()));
        }
        Ok(Step::Ask {
            missing,
            planner: state.card.peers.first().copied().unwrap_or(me),
        })
    }

    /// Resolves when [`Cluster::next_step`] may answer something else.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Takes in what another store said of itself after the handshake: it may have joined a cluster
    /// since.
    pub fn heard(&self, status: &StoreStatus) -> Result<(), Error> {
        let Some(plan) = &status.plan else {
            return Ok(());
        };
        let card = Card {
            wire_major: WIRE_MAJOR,
            member: status.member.clone().unwrap_or_default(),
            cluster_id: plan.cluster_id.clone(),
            peers: BTreeSet::new(),
            plan: Some(plan.clone()),
        };
        self.meet(&card)
    }

    fn meet(&self, them: &Card) -> Result<(), Error> {
        let mut state = self.state.lock();
        let verdict = judge(&state.card, them);
        let answer = match verdict {
            Verdict::Fine => {
                if state.card.plan.is_none() {
                    state
                        .agreed
                        .insert(them.member.store_id, them.member.clone());
                }
                Ok(())
            }
            Verdict::Adopt(plan) => {
                state.offered.get_or_insert(plan);
                Ok(())
            }
            Verdict::Refuse(error) => Err(error),
            Verdict::Fatal(error) => {
                state.fatal = Some(error.clone());
                Err(error)
            }
        };
        drop(state);
        self.changed.notify_waiters();
        answer
    }

    fn card(&self) -> Card {
        self.state.lock().card.clone()
    }
}

/// What start-up has to do next.
#[derive(Debug)]
pub enum Step {
    /// Ask the other stores; these have not agreed yet, and this one will plan.
    Ask {
        /// Stores that have not answered.
        missing: Vec<u32>,
        /// The smallest id of the list.
        planner: u32,
    },
    /// All agree: draw up the plan with these members.
    Plan(Vec<Member>),
    /// Write this plan to disk.
    Adopt(ClusterPlan),
    /// This store belongs to a cluster.
    Run(ClusterPlan),
}

fn peers_to_wire(peers: &BTreeSet<u32>) -> Vec<Member> {
    peers
        .iter()
        .map(|id| Member {
            store_id: *id,
            ..Member::default()
        })
        .collect()
}

impl Handshake for Cluster {
    fn hello(&self, to: StoreId) -> Hello {
        let card = self.card();
        Hello {
            wire_major: WIRE_MAJOR,
            wire_minor: WIRE_MINOR,
            from: Some(card.member),
            to_store: u32::from(to.get()),
            cluster_id: card.cluster_id,
            peers: peers_to_wire(&card.peers),
            plan: card.plan,
        }
    }

    fn accept(&self, hello: &Hello) -> Result<HelloReply, Error> {
        if hello.to_store != u32::from(self.me.get()) {
            return Err(Error::new(
                Reason::Refused,
                format!(
                    "you dialled store {}, but this is store {}: check the addresses of --peer",
                    hello.to_store, self.me
                ),
            ));
        }
        self.meet(&Card {
            wire_major: hello.wire_major,
            member: hello.from.clone().unwrap_or_default(),
            cluster_id: hello.cluster_id.clone(),
            peers: hello.peers.iter().map(|member| member.store_id).collect(),
            plan: hello.plan.clone(),
        })?;
        let card = self.card();
        Ok(HelloReply {
            wire_major: WIRE_MAJOR,
            wire_minor: WIRE_MINOR,
            me: Some(card.member),
            cluster_id: card.cluster_id,
            peers: peers_to_wire(&card.peers),
            plan: card.plan,
        })
    }

    fn check_reply(&self, to: StoreId, reply: &HelloReply) -> Result<(), Error> {
        let member = reply.me.clone().unwrap_or_default();
        if member.store_id != u32::from(to.get()) {
            return Err(Error::new(
                Reason::Refused,
                format!(
                    "store {} answers at the address of store {to}: check the addresses of --peer",
                    member.store_id
                ),
            ));
        }
        self.meet(&Card {
            wire_major: reply.wire_major,
            member,
            cluster_id: reply.cluster_id.clone(),
            peers: reply.peers.iter().map(|member| member.store_id).collect(),
            plan: reply.plan.clone(),
        })
    }

    fn address_of(&self, store: StoreId) -> Option<String> {
        if let Some(address) = self.addresses.get(&store) {
            return Some(address.clone());
        }
        let state = self.state.lock();
        let plan = state.card.plan.as_ref()?;
        plan.members
            .iter()
            .find(|member| member.store_id == u32::from(store.get()))
            .map(|member| member.address.clone())
    }
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

    fn card(id: u32, uuid: &str, plan: Option<ClusterPlan>) -> Card {
        Card {
            wire_major: WIRE_MAJOR,
            member: member(id, uuid),
            cluster_id: plan
                .as_ref()
                .map(|plan| plan.cluster_id.clone())
                .unwrap_or_default(),
            peers: BTreeSet::from([1, 2, 3]),
            plan,
        }
    }

    fn cluster(id: u32) -> Arc<Cluster> {
        let peers = (1..=3)
            .map(|id| (StoreId::new(id).unwrap(), format!("host{id}:1")))
            .collect();
        Cluster::new(member(id, &format!("u{id}")), &peers, None).unwrap()
    }

    /// Two stores meet as they do on the wire.
    fn meet(caller: &Cluster, called: &Cluster) -> Result<(), Error> {
        let reply = called.accept(&caller.hello(called.me))?;
        caller.check_reply(called.me, &reply)
    }

    #[test]
    fn only_the_smallest_id_plans_and_only_when_all_agreed() {
        let (one, two, three) = (cluster(1), cluster(2), cluster(3));
        assert!(matches!(one.next_step(), Ok(Step::Ask { .. })));
        meet(&one, &two).unwrap();
        match one.next_step() {
            Ok(Step::Ask { missing, planner }) => assert_eq!((missing, planner), (vec![3], 1)),
            other => panic!("{other:?}"),
        }
        meet(&one, &three).unwrap();
        let Ok(Step::Plan(members)) = one.next_step() else {
            panic!("all agreed")
        };
        assert_eq!(members.len(), 3);
        meet(&two, &three).unwrap();
        assert!(
            matches!(two.next_step(), Ok(Step::Ask { .. })),
            "store 2 is not the smallest"
        );
        one.joined(ClusterPlan {
            members,
            ..plan("c", &[])
        });
        meet(&one, &two).unwrap();
        let Ok(Step::Adopt(adopted)) = two.next_step() else {
            panic!("offered")
        };
        two.joined(adopted);
        // Store 3 hears of it from store 2.
        meet(&three, &two).unwrap();
        assert!(matches!(three.next_step(), Ok(Step::Adopt(plan)) if plan.cluster_id == "c"));
    }

    #[test]
    fn a_wiped_disk_is_refused_and_stops_itself() {
        let known = plan("c", &[(1, "u1"), (2, "u2"), (3, "u3")]);
        let wiped = card(1, "new", None);
        assert!(matches!(
            judge(&wiped, &card(2, "u2", Some(known.clone()))),
            Verdict::Fatal(_)
        ));
        assert!(matches!(
            judge(&card(2, "u2", Some(known.clone())), &wiped),
            Verdict::Refuse(_)
        ));
        // The one with the smallest id, too: it finds a cluster instead of planning one.
        let one = cluster(1);
        let two = Cluster::new(
            member(2, "u2"),
            &BTreeMap::new(),
            Some(plan("c", &[(1, "old"), (2, "u2")])),
        )
        .unwrap();
        let reply = HelloReply {
            wire_major: WIRE_MAJOR,
            me: Some(member(2, "u2")),
            cluster_id: "c".into(),
            plan: two.plan(),
            ..HelloReply::default()
        };
        assert!(one.check_reply(StoreId::new(2).unwrap(), &reply).is_err());
        assert!(one.next_step().unwrap_err().message.contains("wiped"));
    }

    #[test]
    fn strangers_are_refused() {
        let mine = card(1, "u1", Some(plan("a", &[(1, "u1"), (2, "u2")])));
        let cases = [
            (
                card(2, "u2", Some(plan("b", &[(2, "u2")]))),
                "belongs to cluster b",
            ),
            (card(9, "u9", None), "not a member"),
            (card(1, "u1", None), "both ends"),
            (
                Card {
                    wire_major: WIRE_MAJOR + 1,
                    ..card(2, "u2", None)
                },
                "wire version",
            ),
        ];
        for (them, part) in cases {
            match judge(&mine, &them) {
                Verdict::Refuse(error) => {
                    assert!(error.message.contains(part), "{}", error.message)
                }
                other => panic!("{part}: {other:?}"),
            }
        }
        let other_list = Card {
            peers: BTreeSet::from([2, 3]),
            ..card(2, "u2", None)
        };
        assert!(matches!(
            judge(&card(1, "u1", None), &other_list),
            Verdict::Refuse(_)
        ));
    }

    #[test]
    fn a_wrong_address_is_named() {
        let (one, two) = (cluster(1), cluster(2));
        let error = two
            .accept(&one.hello(StoreId::new(3).unwrap()))
            .unwrap_err();
        assert!(
            error
                .message
                .contains("you dialled store 3, but this is store 2"),
            "{}",
            error.message
        );
    }
}
