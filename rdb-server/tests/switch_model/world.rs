//! Everything there is at one moment: the log, three replicas, what is under way between them, and what may
//! still happen to them. Small, since millions of these are made and compared.

use super::log::{Log, Seen};
use rdb_server::peer::switch::Drive;
use rdb_types::{NamespaceId, StoreId, VersionVector};
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

pub const NAMESPACE: NamespaceId = NamespaceId(7);
pub const REPLICAS: u8 = 3;
/// The origin of strong writes: the log.
pub const LOG: u8 = REPLICAS;

/// A number of a model is a small one.
pub fn small(number: impl TryInto<u8>) -> u8 {
    number.try_into().ok().unwrap()
}

/// Replicas are counted from 0, stores from 1.
pub fn store(replica: u8) -> StoreId {
    StoreId::new(u64::from(replica) + 1).unwrap()
}

pub fn replica(store: StoreId) -> u8 {
    small(store.get()) - 1
}

/// Writes, or replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Set(pub u16);

impl Set {
    pub fn one(item: u8) -> Set {
        Set(1 << item)
    }

    pub fn of_stores(stores: &BTreeSet<StoreId>) -> Set {
        let stores = stores.iter().map(|store| Set::one(replica(*store)));
        stores.fold(Set::default(), Set::with)
    }

    pub fn has(self, item: u8) -> bool {
        self.0 & 1 << item != 0
    }

    pub fn with(self, other: Set) -> Set {
        Set(self.0 | other.0)
    }

    pub fn without(self, other: Set) -> Set {
        Set(self.0 & !other.0)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The same items, when a new one took the place `at` and moved the later ones up.
    fn moved(self, at: u8) -> Set {
        let below = (1 << at) - 1;
        Set(self.0 & below | (self.0 & !below) << 1)
    }
}

/// A version vector of three origins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Vector(pub [u8; REPLICAS as usize]);

impl Vector {
    pub fn get(self, origin: u8) -> u8 {
        self.0[usize::from(origin)]
    }

    pub fn raise(&mut self, origin: u8, sequence: u8) {
        let at = &mut self.0[usize::from(origin)];
        *at = sequence.max(*at);
    }

    pub fn join(&mut self, other: Vector) {
        (0..REPLICAS).for_each(|origin| self.raise(origin, other.get(origin)));
    }

    pub fn covers(self, other: Vector) -> bool {
        (0..REPLICAS).all(|origin| self.get(origin) >= other.get(origin))
    }

    pub fn from_real(vector: &VersionVector) -> Vector {
        let mut small_one = Vector::default();
        for (origin, sequence) in vector.iter() {
            small_one.raise(replica(origin), small(sequence));
        }
        small_one
    }

    pub fn to_real(self) -> VersionVector {
        let parts = (0..REPLICAS).map(|origin| (store(origin), u64::from(self.get(origin))));
        parts.filter(|(_, sequence)| *sequence > 0).collect()
    }
}

/// A write that was acknowledged. All are of one key, which keeps all of them: so a lost one is seen even
/// where a newer one would hide it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Write {
    /// In which it was acknowledged.
    pub epoch: u8,
    pub origin: u8,
    /// The number at its origin; of a strong write the index in the log.
    pub sequence: u8,
    pub stamp: u8,
}

impl Write {
    pub fn is_strong(self) -> bool {
        self.origin == LOG
    }

    pub fn within(self, vector: Vector) -> bool {
        self.is_strong() || self.sequence <= vector.get(self.origin)
    }
}

/// What a replica has, in memory or on its disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Replica {
    /// Up to where it has applied the log.
    pub applied: u8,
    pub vector: Vector,
    /// The last number that it gave to a write of its own.
    pub given: u8,
    /// The writes that it holds.
    pub data: Set,
    /// The writes that it has set aside.
    pub aside: Set,
    /// It waits for a fresh copy and serves nothing.
    pub stuck: bool,
    /// It joins, and waits for its first copy.
    pub blank: bool,
    /// Writes whose records it has lost, and does not know. Its log has them.
    pub lost: Set,
}

impl Replica {
    /// Whether it may do nothing before it has a copy.
    pub fn waits(&self) -> bool {
        self.stuck || self.blank
    }
}

/// A store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Node {
    /// What it works with.
    pub written: Replica,
    /// What a crash leaves.
    pub durable: Replica,
}

impl Node {
    pub fn sync(&mut self) {
        self.durable = Replica {
            stuck: false,
            ..self.written
        };
    }
}

/// What a leader asked of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    pub epoch: u8,
    /// The fence, and who holds the writes of each origin.
    pub promise: Option<(Vector, [u8; REPLICAS as usize])>,
}

/// What it said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Said {
    pub epoch: u8,
    pub vector: Vector,
    pub data: Set,
    pub last_stamp: u8,
    /// It cannot promise.
    pub refuses: bool,
}

/// A question under way, or its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Call {
    pub leader: u8,
    pub to: u8,
    pub round: u8,
    pub question: Question,
    pub answer: Option<Said>,
}

/// A message that the network kept: it comes when it comes, to whom it may, and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Late {
    /// What a replica passed on of its eventual writes, with its epoch then.
    Writes {
        from: u8,
        epoch: u8,
        vector: Vector,
        data: Set,
    },
    /// A copy of the region.
    Snapshot {
        applied: u8,
        vector: Vector,
        data: Set,
    },
}

/// A step on its way into the log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Proposal {
    pub entry: super::log::Entry,
    /// Whether the leader that drives waits for its fate.
    pub awaited: bool,
}

/// What may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    pub writes: u8,
    pub puts: u8,
    pub crashes: u8,
    pub elections: u8,
    /// Questions, answers and steps of which nobody hears.
    pub losses: u8,
    pub late: u8,
    /// How often the patience with a seal is over.
    pub aborts: u8,
    pub joins: u8,
    /// Records that a replica loses of what others have, too.
    pub damages: u8,
}

/// The real drive, hashed once for each change.
#[derive(Clone, Debug)]
pub struct Driving {
    drive: Arc<Drive>,
    hash: u64,
}

impl Default for Driving {
    fn default() -> Driving {
        Driving::of(Drive::default())
    }
}

impl Driving {
    pub fn of(drive: Drive) -> Driving {
        let mut hasher = DefaultHasher::new();
        drive.hash(&mut hasher);
        let hash = hasher.finish();
        let drive = Arc::new(drive);
        Driving { drive, hash }
    }

    pub fn take(&self) -> Drive {
        (*self.drive).clone()
    }
}

impl PartialEq for Driving {
    fn eq(&self, other: &Driving) -> bool {
        self.hash == other.hash
    }
}

impl Hash for Driving {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write_u64(self.hash);
    }
}

/// A moment.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct World {
    pub log: Log,
    /// Which of the orders is in force; none before the first.
    pub ordered: Option<u8>,
    pub leader: Option<u8>,
    pub driving: Driving,
    /// The last round of questions of the present drive.
    pub round: u8,
    pub proposals: Vec<Proposal>,
    pub calls: Vec<Call>,
    pub late: Vec<Late>,
    /// All writes that were ever acknowledged, in order; sets of writes count them by their places here.
    pub writes: Vec<Write>,
    pub nodes: [Node; REPLICAS as usize],
    pub left: Budget,
    /// Promises that were broken in a step.
    pub broken: Set,
}

/// A step, not a state, broke these.
pub const ACKNOWLEDGED_BEHIND_SEAL: u8 = 0;
pub const PARTICIPANT_LEFT_BEHIND: u8 = 1;
pub const CANCELLED_CAME_BACK: u8 = 2;
pub const COPY_OF_NO_USE: u8 = 3;

impl World {
    pub fn node(&self, replica: u8) -> &Node {
        &self.nodes[usize::from(replica)]
    }

    pub fn node_mut(&mut self, replica: u8) -> &mut Node {
        &mut self.nodes[usize::from(replica)]
    }

    pub fn written(&self, replica: u8) -> &Replica {
        &self.node(replica).written
    }

    /// The namespace as far as a replica has applied the log.
    pub fn seen(&self, replica: u8) -> Seen {
        self.log.at(self.written(replica).applied).seen
    }

    /// Whether an entry up to this index names a replica.
    pub fn named(&self, replica: u8, index: u8) -> bool {
        self.log.at(index).members.all.contains(&store(replica))
    }

    /// Those writes of a set for which something holds.
    pub fn filter(&self, set: Set, holds: impl Fn(Write) -> bool) -> Set {
        let places = 0..small(self.writes.len());
        let places = places.filter(|at| set.has(*at) && holds(self.writes[usize::from(*at)]));
        places.map(Set::one).fold(Set::default(), Set::with)
    }

    pub fn eventual(&self, set: Set) -> Set {
        self.filter(set, |write| !write.is_strong())
    }

    pub fn newest(&self, set: Set) -> u8 {
        let places = 0..small(self.writes.len());
        let held = places.filter(|at| set.has(*at));
        let stamps = held.map(|at| self.writes[usize::from(at)].stamp);
        stamps.max().unwrap_or(0)
    }

    /// A write was acknowledged. Its place among the writes is the same whoever wrote first, so that equal worlds
    /// are equal. The set of it.
    pub fn acknowledged(&mut self, write: Write) -> Set {
        let at = self.writes.binary_search(&write).unwrap_or_else(|at| at);
        self.writes.insert(at, write);
        let at = small(at);
        let move_up = |set: &mut Set| *set = set.moved(at);
        for node in &mut self.nodes {
            for replica in [&mut node.written, &mut node.durable] {
                move_up(&mut replica.data);
                move_up(&mut replica.aside);
                move_up(&mut replica.lost);
            }
        }
        for late in &mut self.late {
            match late {
                Late::Writes { data, .. } | Late::Snapshot { data, .. } => move_up(data),
            }
        }
        for call in &mut self.calls {
            if let Some(said) = &mut call.answer {
                move_up(&mut said.data);
            }
        }
        Set::one(at)
    }
}
