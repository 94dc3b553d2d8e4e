//! Everything there is at one moment: the log, three replicas of one key, what the network keeps, and what may
//! still happen.
//!
//! The key had a value before the first moment. From then on it is written and deleted; what a replica has under it,
//! and what it knows that others have, is all that matters here.

use crate::log::Log;
use crate::world::{LOG, REPLICAS, Vector, store};
use rdb_server::eventual::EventualState;
use rdb_types::merge::{Winner, winner};
use rdb_types::{Record, Stamp};

/// A write, whole: it never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Write {
    /// In which eventual time it was acknowledged: the epoch of the seal before it.
    pub time: u8,
    pub origin: u8,
    pub sequence: u8,
    /// Larger than all that its writer had seen; unique, since it ends with the writer.
    pub stamp: u8,
    pub deletion: bool,
}

impl Write {
    pub fn within(self, vector: Vector) -> bool {
        self.origin == LOG || self.sequence <= vector.get(self.origin)
    }

    fn record(self) -> Record {
        Record {
            stamp: Stamp(u64::from(self.stamp)),
            tombstone: self.deletion,
            origin_sequence: u64::from(self.sequence),
            ..Record::default()
        }
    }
}

/// What a replica has, in memory or on its disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Replica {
    /// Up to where it has applied the log.
    pub applied: u8,
    pub vector: Vector,
    /// What has to be in whatever is merged.
    pub floor: Vector,
    /// The last number that it gave to a write of its own.
    pub given: u8,
    /// The largest stamp that it knows of.
    pub last_stamp: u8,
    /// What stands under the key, deletions included.
    pub standing: Option<Write>,
    /// It joins, and waits for its first copy.
    pub blank: bool,
    /// A seal went by without it: it waits for a fresh copy.
    pub stuck: bool,
}

impl Replica {
    pub fn waits(&self) -> bool {
        self.blank || self.stuck
    }

    /// A write comes in: the newest stays, as the code that ships says.
    pub fn merge(&mut self, write: Write) {
        let standing = self.standing.map(Write::record);
        if winner(standing.as_ref(), &write.record()) == Winner::Incoming {
            self.standing = Some(write);
        }
        self.last_stamp = self.last_stamp.max(write.stamp);
    }

    /// As the server has it.
    pub fn real(&self, me: u8) -> EventualState {
        EventualState {
            vector: self.vector.to_real(),
            floor: self.floor.to_real(),
            sequence_bound: u64::from(self.given.max(self.vector.get(me))),
            last_stamp: Stamp(u64::from(self.last_stamp)),
            ..EventualState::default()
        }
    }

    /// Takes what the server would have.
    pub fn set(&mut self, real: &EventualState) {
        let number = |number: u64| u8::try_from(number).unwrap();
        self.vector = Vector::from_real(&real.vector);
        self.floor = Vector::from_real(&real.floor);
        self.given = number(real.sequence_bound);
        self.last_stamp = number(real.last_stamp.0);
    }
}

/// What a replica heard of another, for as long as its process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Heard {
    pub applied: u8,
    pub epoch: u8,
    pub vector: Vector,
}

/// A store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Node {
    /// What it works with.
    pub written: Replica,
    /// What a crash leaves.
    pub durable: Replica,
    pub heard: [Option<Heard>; REPLICAS as usize],
    /// A copy that has arrived and is not merged yet.
    pub arrived: Option<Replica>,
}

/// What may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    pub puts: u8,
    pub deletions: u8,
    /// Copies that the network keeps.
    pub late: u8,
    pub crashes: u8,
    pub joins: u8,
    /// Seals that are begun and given up: the epoch is another, the time the same.
    pub aborts: u8,
    /// Times that end with a seal, and the next ones begin. A store may be left out.
    pub turns: u8,
}

/// A moment.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct World {
    pub log: Log,
    /// All that was ever acknowledged, in order.
    pub writes: Vec<Write>,
    pub nodes: [Node; REPLICAS as usize],
    /// Copies that the network kept: they come when they come, to whom they may, and again.
    pub late: Vec<Replica>,
    pub left: Budget,
}

impl World {
    pub fn node(&self, me: u8) -> &Node {
        &self.nodes[usize::from(me)]
    }

    pub fn node_mut(&mut self, me: u8) -> &mut Node {
        &mut self.nodes[usize::from(me)]
    }

    pub fn written(&self, me: u8) -> &Replica {
        &self.node(me).written
    }

    pub fn epoch(&self, replica: &Replica) -> u8 {
        self.log.at(replica.applied).seen.epoch
    }

    /// Of which eventual time it is.
    pub fn time(&self, replica: &Replica) -> u8 {
        self.log.at(replica.applied).seen.last_seal
    }

    /// Whether a replica takes writes.
    pub fn open(&self, me: u8) -> bool {
        let mine = self.written(me);
        !mine.waits() && self.named(me, mine.applied) && self.log.at(mine.applied).seen.open()
    }

    /// Whether an entry up to this index names a replica.
    pub fn named(&self, me: u8, index: u8) -> bool {
        self.log.at(index).members.all.contains(&store(me))
    }
}
