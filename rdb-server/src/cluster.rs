//! Who belongs to the cluster, and how it begins.
//!
//! Owns a store's membership: its identity, its promise, the plan that its cluster started from, and the
//! handshake with every store that it meets; what a meeting comes to is [`judge`]d. Knows nothing of
//! regions beyond their descriptors, and does no IO: what has to be on disk first is a [`Step`].
//!
//! A cluster begins like this. Every store of a `--peer` list starts without a cluster and dials all
//! others. The one with the smallest id is the planner. Every other one promises itself to the disk that
//! answers at the planner's address: it syncs that promise, and only then says so in its handshakes.
//! When everybody who answers the planner lists the same peers and has promised itself to the planner's
//! very disk, the planner draws up a plan (cluster id, members with the UUIDs of their disks, regions),
//! syncs it, and tells the others, who adopt it unchanged. Killed at any step, a store goes on from what
//! is on disk.
//!
//! Why at most one cluster comes of one list, whatever is killed when, and however many processes run
//! under one id (a disk is a data directory with its UUID; its lock admits one process at a time):
//! 1. A disk promises itself once. The promise is one row; the only task that writes it does so while
//!    there is none, and a start whose list has another planner is refused ([`keeps_promise`]).
//! 2. A plan by disk `u` names, besides `u`, only disks that hold a promise to `u`: the planner counts
//!    none without, and what a store says of its promise is on its disk already.
//! 3. One disk draws up one plan. The same task syncs it before anybody hears of it, and plans, adopts
//!    and promises nothing once there is one. A disk that has promised itself to another plans nothing.
//! 4. So two plans have no disk in common: were it a planner's in one, it has no promise to the other's
//!    (3); were it promised in both, it would hold two promises (1, 2). A second cluster out of one list
//!    would need a second data directory for every id of the list, which is to start all over again.
//!
//! Invariants:
//! - a disk is named by at most one plan, and adopts none that does not name it;
//! - nothing but the handshake is served unless both stores hold the same cluster's plan, which neither
//!   ever loses: so nothing of another cluster is served, and no stream outlives its judgement;
//! - a disk that was wiped never votes again under its old id: its UUID is not the one in the plan;
//! - nor does an older copy of a disk, once it meets a store that has met a start which it lacks ([`starts`]).

mod judge;
pub mod starts;

pub use judge::{Card, End, Verdict, judge, keeps_promise};

use crate::error::Error;
use crate::raft::StoreNode;
use crate::transport::{Greeting, Handshake};
use parking_lot::Mutex;
use rdb_proto::raft::{ClusterPlan, Hello, HelloReply, Member, Start, Starts};
use rdb_proto::{WIRE_MAJOR, WIRE_MINOR};
use rdb_types::{Reason, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::Notify;

/// A store's membership.
pub struct Cluster {
    me: StoreId,
    state: Mutex<State>,
    /// Tells the joining task that its next step may be another one.
    changed: Notify,
    /// Tells whoever runs the store that its disk is outdated.
    ended: Notify,
    /// Configured addresses; they win over those in the plan, so that a store can move.
    addresses: BTreeMap<StoreId, String>,
    /// Hands what was seen of another store to the disk.
    note: NoteSeen,
}

/// Hands a start that was seen of a store to the disk, without waiting. What this store writes afterwards
/// must not be durable before it.
pub type NoteSeen = Box<dyn Fn(u32, Start) + Send + Sync>;

/// What a store finds on its disk.
#[derive(Default)]
pub struct Kept {
    /// What its cluster started from.
    pub plan: Option<ClusterPlan>,
    /// The planner's disk that it has promised itself to.
    pub promised: Option<Member>,
    /// The starts of the disk, this one included.
    pub starts: Starts,
    /// The last start that it has seen of each other store.
    pub seen: BTreeMap<u32, Start>,
}

struct State {
    /// Says only what is on disk.
    card: Card,
    /// The last start of each other store; on disk, or on its way there before anything that comes of it.
    seen: BTreeMap<u32, Start>,
    /// This disk is an older copy of the store's.
    outdated: Option<Error>,
    /// The planner's disk, as it answered; a promise to it is not on disk yet.
    wanted: Option<Member>,
    /// A plan that another store sent and that is not on disk here yet.
    offered: Option<ClusterPlan>,
    fatal: Option<Error>,
    /// Stores without a cluster that agreed with this one when they were last dialled.
    agreed: BTreeMap<u32, Member>,
}

/// What start-up has to do next.
#[derive(Debug)]
pub enum Step {
    /// Ask the other stores.
    Ask {
        /// Stores that have not agreed yet.
        missing: Vec<u32>,
        /// The smallest id of the list.
        planner: u32,
    },
    /// Write to disk that this store has promised itself to this disk of the planner.
    Promise(Member),
    /// All agree: draw up the plan with these members.
    Plan(Vec<Member>),
    /// Write this plan to disk.
    Adopt(ClusterPlan),
    /// This store belongs to a cluster.
    Run(ClusterPlan),
}

impl State {
    fn next_step(&self) -> Result<Step, Error> {
        if let Some(error) = &self.outdated {
            return Err(error.clone());
        }
        if let Some(plan) = &self.card.plan {
            return Ok(Step::Run(plan.clone()));
        }
        if let Some(plan) = &self.offered {
            return Ok(Step::Adopt(plan.clone()));
        }
        if let Some(error) = &self.fatal {
            return Err(error.clone());
        }
        if let (None, Some(wanted)) = (&self.card.promised, &self.wanted) {
            return Ok(Step::Promise(wanted.clone()));
        }
        let me = self.card.member.store_id;
        let planner = self.card.planner().unwrap_or(me);
        let missing: Vec<u32> = self
            .card
            .peers
            .iter()
            .copied()
            .filter(|id| *id != me && !self.agreed.contains_key(id))
            .collect();
        if planner == me && missing.is_empty() {
            let mut members = self.agreed.clone();
            members.insert(me, self.card.member.clone());
            return Ok(Step::Plan(members.into_values().collect()));
        }
        Ok(Step::Ask { missing, planner })
    }

    /// What this store says of itself to another.
    fn card_for(&self, other: u32) -> Card {
        Card {
            seen: self.seen.get(&other).copied(),
            ..self.card.clone()
        }
    }

    /// Takes in what a meeting came to. `Ok`: whether they may talk. The flag: whether the next step may
    /// be another one.
    fn take(&mut self, them: &Member, verdict: Verdict, end: End) -> (Result<bool, Error>, bool) {
        // Who listens at a listed address now counts, and not who did before.
        let counted = match end {
            End::Caller => self.agreed.remove(&them.store_id),
            End::Called => None,
        };
        match verdict {
            Verdict::Member => (Ok(true), false),
            Verdict::Wait => (Ok(false), false),
            Verdict::Agree => {
                let news = counted.as_ref() != Some(them);
                self.agreed.insert(them.store_id, them.clone());
                (Ok(false), news)
            }
            Verdict::Promise(planner) => {
                let news = self.wanted.is_none();
                self.wanted.get_or_insert(planner);
                (Ok(false), news)
            }
            Verdict::Adopt(plan) => {
                let news = self.offered.is_none();
                self.offered.get_or_insert(plan);
                (Ok(false), news)
            }
            Verdict::Stranger(error) if end == End::Called => {
                tracing::warn!(store = them.store_id, %error, "shown the cluster, in which it has no place");
                (Ok(false), false)
            }
            Verdict::Stranger(error) | Verdict::Refuse(error) => (Err(error), false),
            Verdict::Fatal(error) => {
                let news = self.fatal.is_none();
                self.fatal.get_or_insert_with(|| error.clone());
                (Err(error), news)
            }
            Verdict::Outdated(error) => {
                self.outdated.get_or_insert_with(|| error.clone());
                (Err(error), true)
            }
        }
    }
}

impl Cluster {
    /// With what is on disk and what is configured.
    pub fn new(
        me: Member,
        peers: &BTreeMap<StoreId, String>,
        kept: Kept,
        note: NoteSeen,
    ) -> Option<Arc<Cluster>> {
        let Kept {
            plan,
            promised,
            starts,
            seen,
        } = kept;
        let id = StoreId::new(u64::from(me.store_id))?;
        let peer_ids: BTreeSet<u32> = first_members(id, peers);
        let is_planner = peer_ids.first() == Some(&me.store_id);
        let card = Card {
            wire_major: WIRE_MAJOR,
            peers: peer_ids,
            promised: promised.or_else(|| is_planner.then(|| me.clone())),
            member: me,
            plan,
            starts,
            seen: None,
        };
        let state = State {
            card,
            seen,
            outdated: None,
            wanted: None,
            offered: None,
            fatal: None,
            agreed: BTreeMap::new(),
        };
        Some(Arc::new(Cluster {
            me: id,
            state: Mutex::new(state),
            changed: Notify::new(),
            ended: Notify::new(),
            addresses: peers.clone(),
            note,
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

    /// The promise is on disk: from now on this store says so.
    pub fn promised(&self, to: Member) {
        self.state.lock().card.promised = Some(to);
        self.changed.notify_one();
    }

    /// The plan is on disk: from now on this store belongs to the cluster.
    pub fn joined(&self, plan: ClusterPlan) {
        self.state.lock().card.plan = Some(plan);
        self.changed.notify_one();
    }

    /// What start-up has to do next.
    ///
    /// # Errors
    /// A store that is in a cluster says that this one has no place in it.
    pub fn next_step(&self) -> Result<Step, Error> {
        self.state.lock().next_step()
    }

    /// Resolves when [`Cluster::next_step`] may answer something else than when it was last asked. For
    /// one task at a time.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Why this store may never go on with its disk, if another one has found out.
    pub fn outdated(&self) -> Option<Error> {
        self.state.lock().outdated.clone()
    }

    /// Resolves once [`Cluster::outdated`] says why. For one task at a time.
    pub async fn ended(&self) -> Error {
        loop {
            if let Some(error) = self.outdated() {
                return error;
            }
            self.ended.notified().await;
        }
    }

    /// `Ok`: whether they may talk.
    fn meet(&self, them: &Card, end: End) -> Result<bool, Error> {
        let mut state = self.state.lock();
        let me = state.card_for(them.member.store_id);
        let verdict = judge(&me, them, end);
        if let (Verdict::Member, Some(start)) = (&verdict, starts::latest(&them.starts))
            && me.seen.is_none_or(|seen| seen.count < start.count)
        {
            // Under the lock, so that the disk hears of starts in their order; and before the other is
            // served: what comes of that is written behind it.
            state.seen.insert(them.member.store_id, start);
            (self.note)(them.member.store_id, start);
        }
        let (answer, changed) = state.take(&them.member, verdict, end);
        drop(state);
        if changed {
            self.changed.notify_one();
            self.ended.notify_one();
        }
        answer
    }

    fn card_for(&self, other: u32) -> Card {
        self.state.lock().card_for(other)
    }
}

/// The ids of a `--peer` list, this store's included.
pub fn first_members(me: StoreId, peers: &BTreeMap<StoreId, String>) -> BTreeSet<u32> {
    peers
        .keys()
        .chain([&me])
        .map(|store| u32::from(store.get()))
        .collect()
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

fn peers_of_wire(peers: &[Member]) -> BTreeSet<u32> {
    peers.iter().map(|member| member.store_id).collect()
}

fn cluster_id(card: &Card) -> String {
    let id = card.plan.as_ref().map(|plan| plan.cluster_id.clone());
    id.unwrap_or_default()
}

impl Handshake for Cluster {
    fn hello(&self, to: StoreId) -> Hello {
        let card = self.card_for(u32::from(to.get()));
        Hello {
            wire_major: WIRE_MAJOR,
            wire_minor: WIRE_MINOR,
            cluster_id: cluster_id(&card),
            from: Some(card.member),
            to_store: u32::from(to.get()),
            peers: peers_to_wire(&card.peers),
            plan: card.plan,
            promised: card.promised,
            starts: Some(card.starts),
            seen: card.seen,
        }
    }

    fn accept(&self, hello: &Hello) -> Result<Greeting, Error> {
        if hello.to_store != u32::from(self.me.get()) {
            return Err(Error::new(
                Reason::Refused,
                format!(
                    "you dialled store {}, but this is store {}: check the addresses of --peer",
                    hello.to_store, self.me
                ),
            ));
        }
        let them = Card {
            wire_major: hello.wire_major,
            member: hello.from.clone().unwrap_or_default(),
            peers: peers_of_wire(&hello.peers),
            promised: hello.promised.clone(),
            plan: hello.plan.clone(),
            starts: hello.starts.clone().unwrap_or_default(),
            seen: hello.seen,
        };
        let served = self.meet(&them, End::Called)?;
        let card = self.card_for(them.member.store_id);
        Ok(Greeting {
            served,
            reply: HelloReply {
                wire_major: WIRE_MAJOR,
                wire_minor: WIRE_MINOR,
                cluster_id: cluster_id(&card),
                me: Some(card.member),
                peers: peers_to_wire(&card.peers),
                plan: card.plan,
                promised: card.promised,
                starts: Some(card.starts),
                seen: card.seen,
            },
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
        let them = Card {
            wire_major: reply.wire_major,
            member,
            peers: peers_of_wire(&reply.peers),
            promised: reply.promised.clone(),
            plan: reply.plan.clone(),
            starts: reply.starts.clone().unwrap_or_default(),
            seen: reply.seen,
        };
        if self.meet(&them, End::Caller)? {
            return Ok(());
        }
        Err(Error::new(
            Reason::NotReady,
            format!("stores {} and {to} are not both in a cluster yet", self.me),
        ))
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
mod tests;
