//! The region's log as consensus leaves it: what is committed, in one order for all replicas.
//!
//! What a step does to the namespace is [`switching::take`]'s to say, the code that ships. A replica is somewhere in
//! this log; how entries get there, what is lost with a leader and what comes late is the world's business.

use super::rules::{Rule, Rules};
use super::world::{NAMESPACE, Set, Vector, small};
use prost::Message;
use rdb_proto::raft::{SwitchStep, switch_step::Step};
use rdb_server::region::state::NamespaceState;
use rdb_server::region::switching::{self, Change, Members};
use rdb_types::{Mode, StoreId};
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// What can be proposed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    /// A step of a switch, encoded: so it can be hashed.
    Step(Arc<[u8]>),
    /// A strong write that a client made in this epoch.
    Put { epoch: u8 },
    /// A store is named a member: a voter, or a learner.
    Join { replica: u8, votes: bool },
}

impl Entry {
    pub fn step(step: &SwitchStep) -> Entry {
        Entry::Step(step.encode_to_vec().into())
    }
}

/// What the model looks at of a namespace, all the time.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub strong: bool,
    pub epoch: u8,
    /// The participants of a seal that is under way.
    pub sealing: Option<Set>,
    pub last_seal: u8,
    /// What the last seal ended with.
    pub fence: Vector,
    /// The region's time.
    pub last_stamp: u8,
}

impl Seen {
    /// Whether replicas take writes.
    pub fn open(&self) -> bool {
        !self.strong && self.sealing.is_none()
    }
}

/// A place in the log.
#[derive(Clone, Debug)]
pub struct Placed {
    entry: Entry,
    /// The step, if it counted, and what it changed.
    pub change: Option<(Change, SwitchStep)>,
    /// Whether this is a strong write that was applied.
    pub put: bool,
    /// Who replicates the region from here on.
    pub members: Arc<Members>,
    /// The namespace from here on.
    pub state: NamespaceState,
    pub seen: Seen,
}

/// The log. Equal logs are equal in their entries; all else follows from these.
#[derive(Clone, Debug)]
pub struct Log {
    places: Arc<Vec<Placed>>,
    hash: u64,
}

impl PartialEq for Log {
    fn eq(&self, other: &Log) -> bool {
        self.hash == other.hash && self.places.len() == other.places.len()
    }
}

impl Hash for Log {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write_u64(self.hash);
    }
}

/// These replicas, as voters.
pub fn voters(replicas: impl IntoIterator<Item = u8>) -> Members {
    let all: BTreeSet<StoreId> = replicas.into_iter().map(super::world::store).collect();
    Members {
        voters: all.clone(),
        all,
    }
}

impl Log {
    /// A region in which the namespace was just installed.
    pub fn new(mode: Mode, members: Members) -> Log {
        let state = NamespaceState::new(mode);
        let first = Placed {
            entry: Entry::Put { epoch: 0 },
            change: None,
            put: false,
            members: Arc::new(members),
            seen: see(&state, 0),
            state,
        };
        Log {
            places: Arc::new(vec![first]),
            hash: 0,
        }
    }

    /// Index of the last entry; 0 is where all begin.
    pub fn end(&self) -> u8 {
        small(self.places.len()) - 1
    }

    pub fn at(&self, index: u8) -> &Placed {
        &self.places[usize::from(index)]
    }

    pub fn last(&self) -> &Placed {
        self.at(self.end())
    }

    pub fn places(&self) -> impl Iterator<Item = (u8, &Placed)> {
        self.places.iter().enumerate().map(|(i, p)| (small(i), p))
    }

    /// Appends what consensus has agreed on. `true`: a step of an attempt that was overtaken has counted.
    pub fn append(&mut self, entry: Entry, rules: Rules) -> bool {
        let before = self.last();
        let mut members = before.members.clone();
        let (mut state, mut last_stamp) = (before.state.clone(), before.seen.last_stamp);
        let (mut change, mut put, mut overtaken) = (None, false, false);
        match &entry {
            Entry::Put { epoch } => {
                put = before.seen.strong && before.seen.epoch == *epoch
                    || !rules.keep(Rule::EpochOfWrites);
                last_stamp += u8::from(put);
            }
            Entry::Join { replica, votes } => {
                if before.seen.sealing.is_none() || !rules.keep(Rule::NoJoinWhileSealed) {
                    let joined = Arc::make_mut(&mut members);
                    joined.all.insert(super::world::store(*replica));
                    if *votes {
                        joined.voters.insert(super::world::store(*replica));
                    }
                }
            }
            Entry::Step(encoded) => {
                let mut step = SwitchStep::decode(&encoded[..]).unwrap();
                assert_eq!(step.namespace_id, NAMESPACE.0);
                overtaken = step.attempt < state.attempt;
                if !rules.keep(Rule::EpochInApply) {
                    step.expected_epoch = state.epoch.0;
                }
                if !rules.keep(Rule::AttemptInApply) {
                    step.attempt = step.attempt.max(state.attempt);
                }
                let mut counted = taking_part(&members, rules);
                if let Some(Step::BeginSeal(begin)) = &step.step
                    && !rules.keep(Rule::QuorumTakesPart)
                {
                    // Whoever is left is a quorum of itself.
                    let missing = begin.accept_missing.iter();
                    for store in missing.filter_map(|id| StoreId::new(u64::from(*id))) {
                        counted.voters.remove(&store);
                    }
                }
                let taken = switching::take(&mut state, &counted, &step).ok();
                if let (Some(Change::Sealed), Some(Step::Seal(seal))) = (taken, &step.step)
                    && rules.keep(Rule::SealLiftsTime)
                {
                    last_stamp = last_stamp.max(small(seal.last_stamp));
                }
                change = taken.map(|taken| (taken, step));
            }
        }
        let broke = overtaken && change.as_ref().is_some_and(|(c, _)| *c != Change::Told);
        let mut hasher = DefaultHasher::new();
        (self.hash, &entry).hash(&mut hasher);
        self.hash = hasher.finish();
        Arc::make_mut(&mut self.places).push(Placed {
            entry,
            change,
            put,
            members,
            seen: see(&state, last_stamp),
            state,
        });
        broke
    }
}

impl std::fmt::Display for Placed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.entry, &self.change) {
            (Entry::Put { epoch }, _) => write!(f, "put of epoch {epoch}, counted: {}", self.put),
            (Entry::Join { replica, votes }, _) => {
                let store = super::world::store(*replica);
                let counts = self.members.all.contains(&store);
                write!(f, "store {store} joins, voter: {votes}, counted: {counts}")
            }
            (_, None) => write!(f, "a step that does not count"),
            (_, Some((change, step))) => {
                write!(f, "{change:?} by attempt {}", step.attempt)
            }
        }
    }
}

/// Who has a part in a switch.
pub fn taking_part(members: &Members, rules: Rules) -> Members {
    let mut members = members.clone();
    if !rules.keep(Rule::LearnersTakePart) {
        members.all.clone_from(&members.voters);
    }
    members
}

fn see(state: &NamespaceState, last_stamp: u8) -> Seen {
    let fence = state.fences.last().map(|fence| &fence.vector);
    Seen {
        strong: state.mode == Mode::Strong,
        epoch: small(state.epoch.0),
        sealing: state
            .sealing
            .as_ref()
            .map(|sealing| Set::of_stores(&sealing.participants)),
        last_seal: small(state.last_seal().0),
        fence: fence.map(Vector::from_real).unwrap_or_default(),
        last_stamp,
    }
}
