//! The change of a namespace's mode, as the leader of a region drives it: decided without doing.
//!
//! Owns what to ask of whom and what to propose next, given what the region's log says, what the meta region
//! wants, and what the replicas answered. Knows nothing of time, networks or records: the edge asks
//! ([`driver`]), the log decides ([`crate::region::switching`]), replicas answer ([`super::eventual`]).
//!
//! ```text
//! the log says             it is wanted   step
//! strong                   eventual       SetEventual
//! eventual                 strong         drain: ask all what they hold, again and again, until little is missing;
//!                                         then BeginSeal
//! sealing                  strong         report: ask each participant once more, it takes no writes any more;
//!                                         promise: tell the fence, and ask each to hold just that;
//!                                         all hold the same: Seal; patience is over, or they differ: AbortSeal
//! sealing                  anything else  AbortSeal
//! what is wanted already                  AbortSeal, so that the region was told
//! ```
//!
//! Invariants:
//! - nothing is remembered that the log and the replicas do not know: a new leader begins anew at the state
//!   that it finds, and comes to the same fence, since participants take no writes;
//! - BeginSeal is proposed only when every participant has answered, and little is missing anywhere: until
//!   then writes go on;
//! - Seal is proposed only with the promise of every participant, in the epoch of the seal, of one vector
//!   and one digest.

pub mod driver;

use super::orders::Order;
use crate::region::state::{NamespaceState, stores_to_wire};
use crate::region::switching::Members;
use rdb_proto::convert::vector_to_wire;
use rdb_proto::raft::switch_step::Step;
use rdb_proto::raft::{
    AbortSeal, AskSealing, BeginSeal, OriginHolder, Seal, SetEventual, SwitchProgress, SwitchStep,
};
use rdb_types::{Digest, Epoch, Mode, NamespaceId, Stamp, StoreId, VersionVector};
use std::collections::{BTreeMap, BTreeSet};

/// Writes that may be missing on all replicas together when a seal begins: a few milliseconds of them.
pub const DRAINED_WRITES: u64 = 2000;

/// What a replica says it holds, synced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Held {
    /// The epoch in which it says so.
    pub epoch: Epoch,
    /// Up to which number all writes of each origin.
    pub vector: VersionVector,
    /// Of what is alive.
    pub digest: Digest,
    /// Up to which time it has buried what expired.
    pub expired_through_ms: u64,
    /// It holds more than the vector says.
    pub partial: bool,
    /// No stamp there is above it.
    pub last_stamp: Stamp,
}

/// What a leader knows without asking.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'f> {
    /// Which namespace.
    pub namespace: NamespaceId,
    /// What the log says of it.
    pub state: &'f NamespaceState,
    /// What is wanted of it.
    pub order: &'f Order,
    /// Who replicates the region.
    pub members: &'f Members,
}

impl Facts<'_> {
    /// Whether nothing is left to do: the region has followed the order, or one that came later.
    pub fn followed(&self) -> bool {
        let Facts { state, order, .. } = self;
        state.attempt > order.attempt
            || (state.attempt == order.attempt
                && state.mode == order.target
                && state.sealing.is_none())
    }
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Ask a replica; its answer goes to [`Drive::heard`] with the round.
    Ask {
        /// Whom.
        to: StoreId,
        /// What.
        ask: AskSealing,
        /// Which round of questions it belongs to.
        round: u64,
    },
    /// Get a step into the log, and call [`Drive::proposed`] when its fate is known.
    Propose(SwitchStep),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
enum Phase {
    /// The log has to be looked at.
    #[default]
    Look,
    /// A round of questions is under way.
    Asking {
        asked: BTreeSet<StoreId>,
        answers: BTreeMap<StoreId, Result<Held, String>>,
        /// What everybody shall promise; `None`: they are asked what they hold.
        fence: Option<(VersionVector, u64)>,
    },
    /// A step is on its way into the log.
    Proposed,
}

/// A namespace's change of mode in one region, while this replica leads it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Drive {
    /// The epoch and the attempt that the phase is about.
    about: (u64, u64),
    phase: Phase,
    round: u64,
    /// What the last round showed, for whoever asks how far it is.
    remaining_writes: u64,
    waiting_for: BTreeMap<StoreId, String>,
}

impl Drive {
    /// Looks at what the log says and at what is wanted; goes on from there.
    pub fn look(&mut self, facts: Facts<'_>) -> Vec<Effect> {
        let about = (facts.state.epoch.0, facts.order.attempt);
        if self.about != about {
            self.about = about;
            self.phase = Phase::Look;
        }
        if self.phase != Phase::Look || facts.followed() {
            return Vec::new();
        }
        let Facts {
            state,
            order,
            members,
            ..
        } = facts;
        let overtaken = order.attempt > state.attempt;
        match (&state.sealing, state.mode, order.target) {
            (Some(_), _, target) if overtaken || target != Mode::Strong => {
                self.propose(facts, abort("the switch was cancelled, or asked for anew"))
            }
            (Some(sealing), _, _) => self.ask(facts, sealing.participants.clone(), None),
            (None, Mode::Strong, Mode::Eventual) => {
                self.propose(facts, Step::SetEventual(SetEventual {}))
            }
            (None, Mode::Eventual, Mode::Strong) => self.ask(facts, members.all.clone(), None),
            (None, _, _) => self.propose(facts, abort("")),
        }
    }

    /// Takes an answer, or the news that there is none.
    pub fn heard(
        &mut self,
        facts: Facts<'_>,
        from: StoreId,
        round: u64,
        answer: Result<Held, String>,
    ) -> Vec<Effect> {
        if self.about != (facts.state.epoch.0, facts.order.attempt) || round != self.round {
            return self.look(facts);
        }
        let Phase::Asking {
            asked,
            answers,
            fence,
        } = &mut self.phase
        else {
            return Vec::new();
        };
        if !asked.contains(&from) {
            return Vec::new();
        }
        // Rounds begin anew with every lead, so an answer to a former one may bear the number of this. What it
        // says was true before the seal began; the answer to this round comes, too.
        if answer
            .as_ref()
            .is_ok_and(|held| held.epoch != facts.state.epoch)
        {
            return Vec::new();
        }
        answers.insert(from, answer);
        if answers.len() < asked.len() {
            return Vec::new();
        }
        let (answers, fence) = (std::mem::take(answers), fence.take());
        self.phase = Phase::Look;
        match &facts.state.sealing {
            None => self.drained(facts, answers),
            Some(_) => self.reported(facts, answers, fence),
        }
    }

    /// A proposed step is in the log, or was refused, or nobody knows: the log has to be looked at.
    pub fn proposed(&mut self) {
        if self.phase == Phase::Proposed {
            self.phase = Phase::Look;
        }
    }

    /// A seal takes too long: it is given up.
    pub fn patience_is_over(&mut self, facts: Facts<'_>) -> Vec<Effect> {
        if facts.state.sealing.is_none() || self.phase == Phase::Proposed {
            return Vec::new();
        }
        if let Phase::Asking { asked, answers, .. } = &self.phase {
            for store in asked.iter().filter(|store| !answers.contains_key(*store)) {
                self.waiting_for
                    .entry(*store)
                    .or_insert_with(|| "it does not answer".to_owned());
            }
        }
        let why = match self.why().as_str() {
            "" => "it took too long".to_owned(),
            why => why.to_owned(),
        };
        self.propose(facts, abort(&why))
    }

    /// How far it is.
    pub fn progress(&self, facts: Facts<'_>) -> SwitchProgress {
        let step = match (&facts.state.sealing, facts.state.mode, facts.order.target) {
            (Some(_), _, _) => "sealing",
            (None, Mode::Eventual, Mode::Strong) => "draining",
            _ => "installing",
        };
        SwitchProgress {
            step: step.to_owned(),
            remaining_writes: self.remaining_writes,
            waiting_for: self
                .waiting_for
                .keys()
                .map(|id| u32::from(id.get()))
                .collect(),
            why: self.why(),
            attempt: facts.order.attempt,
            estimated_write_pause_us: 0,
        }
    }

    fn why(&self) -> String {
        let parts = self.waiting_for.iter();
        let parts: Vec<_> = parts
            .map(|(store, why)| format!("store {store}: {why}"))
            .collect();
        parts.join("; ")
    }

    fn propose(&mut self, facts: Facts<'_>, step: Step) -> Vec<Effect> {
        self.phase = Phase::Proposed;
        vec![Effect::Propose(SwitchStep {
            namespace_id: facts.namespace.0,
            attempt: facts.order.attempt,
            expected_epoch: facts.state.epoch.0,
            step: Some(step),
        })]
    }

    fn ask(
        &mut self,
        facts: Facts<'_>,
        asked: BTreeSet<StoreId>,
        fence: Option<(VersionVector, u64, Vec<OriginHolder>)>,
    ) -> Vec<Effect> {
        self.round += 1;
        let ask = AskSealing {
            namespace_id: facts.namespace.0,
            epoch: facts.state.epoch.0,
            promise: fence.is_some(),
            ..AskSealing::default()
        };
        let ask = match &fence {
            None => ask,
            Some((fence, cut_ms, holders)) => AskSealing {
                fence: vector_to_wire(fence),
                expiry_cut_ms: *cut_ms,
                holders: holders.clone(),
                ..ask
            },
        };
        let effects = asked
            .iter()
            .map(|to| Effect::Ask {
                to: *to,
                ask: ask.clone(),
                round: self.round,
            })
            .collect();
        self.phase = Phase::Asking {
            asked,
            answers: BTreeMap::new(),
            fence: fence.map(|(fence, cut_ms, _)| (fence, cut_ms)),
        };
        effects
    }

    /// All replicas have said what they hold, while writes go on: whether little enough is missing.
    fn drained(
        &mut self,
        facts: Facts<'_>,
        answers: BTreeMap<StoreId, Result<Held, String>>,
    ) -> Vec<Effect> {
        let mut known = VersionVector::new();
        for held in answers.values().flatten() {
            known.join(&held.vector);
        }
        let (mut missing, mut left_out) = (0, BTreeSet::new());
        self.waiting_for.clear();
        for (store, answer) in answers {
            let why = match answer {
                Err(why) => Some(why),
                Ok(held) if held.partial => Some("it is taking a copy".to_owned()),
                Ok(held) => {
                    let writes = held.vector.missing(&known);
                    missing += writes;
                    (writes > DRAINED_WRITES).then(|| format!("{writes} writes are missing there"))
                }
            };
            match why {
                Some(_) if facts.order.accept_missing.contains(&store) => {
                    left_out.insert(store);
                }
                Some(why) => {
                    self.waiting_for.insert(store, why);
                }
                None => {}
            }
        }
        self.remaining_writes = missing;
        if !self.waiting_for.is_empty() {
            return Vec::new();
        }
        let begin = BeginSeal {
            accept_missing: stores_to_wire(&left_out),
        };
        self.propose(facts, Step::BeginSeal(begin))
    }

    /// All participants have answered, and none takes writes any more.
    fn reported(
        &mut self,
        facts: Facts<'_>,
        answers: BTreeMap<StoreId, Result<Held, String>>,
        fence: Option<(VersionVector, u64)>,
    ) -> Vec<Effect> {
        let mut held = BTreeMap::new();
        self.waiting_for.clear();
        for (store, answer) in answers {
            match answer {
                Ok(answer) if answer.partial => {
                    self.waiting_for
                        .insert(store, "a copy that it takes is not complete".to_owned());
                }
                Ok(answer) => {
                    held.insert(store, answer);
                }
                Err(why) => {
                    self.waiting_for.insert(store, why);
                }
            }
        }
        if !self.waiting_for.is_empty() {
            return Vec::new();
        }
        let Some((fence, cut_ms)) = fence else {
            return self.ask_promises(facts, &held);
        };
        let mut digests = held.values().map(|held| held.digest);
        let digest = digests.next().unwrap_or_default();
        if digests.any(|other| other != digest) || held.values().any(|held| held.vector != fence) {
            let stores: Vec<_> = held.keys().map(StoreId::to_string).collect();
            let why = format!(
                "stores {} have seen the same writes and hold other data; it is compared and repaired while the namespace is eventual",
                stores.join(", ")
            );
            return self.propose(facts, abort(&why));
        }
        let last_stamp = held.values().map(|held| held.last_stamp).max();
        let seal = Seal {
            fence: vector_to_wire(&fence),
            digest: digest.to_bytes().to_vec().into(),
            expiry_cut_ms: cut_ms,
            last_stamp: last_stamp.unwrap_or_default().0,
            participants: stores_to_wire(&held.keys().copied().collect()),
        };
        self.propose(facts, Step::Seal(seal))
    }

    fn ask_promises(&mut self, facts: Facts<'_>, held: &BTreeMap<StoreId, Held>) -> Vec<Effect> {
        let (mut fence, mut cut_ms) = (VersionVector::new(), 0);
        for held in held.values() {
            fence.join(&held.vector);
            cut_ms = cut_ms.max(held.expired_through_ms);
        }
        let has = |origin, last| {
            let holder = held
                .iter()
                .find(|(_, held)| held.vector.get(origin) == last);
            holder.map(|(store, _)| u32::from(store.get()))
        };
        let holders = fence
            .iter()
            .filter_map(|(origin, last)| {
                Some(OriginHolder {
                    origin: u32::from(origin.get()),
                    store_id: has(origin, last)?,
                })
            })
            .collect();
        let asked = held.keys().copied().collect();
        self.ask(facts, asked, Some((fence, cut_ms, holders)))
    }
}

fn abort(why: &str) -> Step {
    Step::AbortSeal(AbortSeal {
        why: why.to_owned(),
    })
}

#[cfg(test)]
#[path = "switch_tests.rs"]
mod tests;
