//! What a replica does by itself: apply the log, take writes and messages, answer the leader, take copies.
//!
//! The counterpart of `peer/eventual` and `region/machine.rs`, made small. Whether a replica may become strong with
//! what it holds, and what a copy may be merged into, is decided by the code that ships
//! ([`switching::may_go_on`], [`switching::same_time`], [`switching::fence_after`]).

use super::rules::{Rule, Rules};
use super::world::{
    ACKNOWLEDGED_BEHIND_SEAL, Late, PARTICIPANT_LEFT_BEHIND, Question, REPLICAS, Replica, Said,
    Set, Vector, World, Write, small, store,
};
use rdb_proto::raft::switch_step::Step;
use rdb_server::eventual::EventualState;
use rdb_server::region::switching::{self, Change};
use rdb_types::Digest;
use std::hash::{DefaultHasher, Hash, Hasher};

impl World {
    /// Applies the next entry. `false`: there is none, or this replica may not go on.
    pub fn apply(&mut self, rules: Rules, me: u8) -> bool {
        let mine = *self.written(me);
        if mine.waits() || mine.applied == self.log.end() {
            return false;
        }
        let before = self.log.at(mine.applied);
        let place = self.log.at(mine.applied + 1);
        let mut next = Replica {
            applied: mine.applied + 1,
            ..mine
        };
        if place.put {
            let index = mine.applied + 1;
            let is_it = |write: Write| write.is_strong() && write.sequence == index;
            next.data = next.data.with(self.filter(Set(u16::MAX), is_it));
        }
        match &place.change {
            Some((Change::Sealed, step)) => {
                let Some(Step::Seal(seal)) = &step.step else {
                    unreachable!("only a seal seals")
                };
                let own = EventualState {
                    vector: mine.vector.to_real(),
                    digest: self.digest(mine.data),
                    ..EventualState::default()
                };
                let may = switching::may_go_on(&before.state, store(me), seal, &own);
                if may.is_err() && rules.keep(Rule::FenceChecked) {
                    if before.seen.sealing.is_some_and(|set| set.has(me)) {
                        self.broken = self.broken.with(Set::one(PARTICIPANT_LEFT_BEHIND));
                    }
                    self.node_mut(me).written.stuck = true;
                    return false;
                }
                next.given = next.given.max(mine.vector.get(me));
            }
            Some((Change::Opened, _)) => next.vector = place.seen.fence,
            _ => {}
        }
        self.node_mut(me).written = next;
        true
    }

    pub fn apply_all(&mut self, rules: Rules, me: u8) {
        while self.apply(rules, me) {}
    }

    /// Whether a replica takes an eventual write of a client now.
    pub fn takes_writes(&self, rules: Rules, me: u8) -> bool {
        let seen = self.seen(me);
        let open = seen.open() || !seen.strong && !rules.keep(Rule::ClosedWhileSealed);
        let mine = self.written(me);
        open && !mine.stuck && (!mine.blank || !rules.keep(Rule::WritesAfterNamed))
    }

    /// Takes one: synced, then acknowledged.
    pub fn write(&mut self, rules: Rules, me: u8) {
        let (mine, seen) = (*self.written(me), self.seen(me));
        let sequence = mine.vector.get(me).max(mine.given) + 1;
        let behind = self.log.places().any(|(index, place)| {
            let takes_part = |before: u8| {
                let sealing = self.log.at(before).seen.sealing;
                sealing.is_some_and(|set| set.has(me))
            };
            let sealed = matches!(&place.change, Some((Change::Sealed, _)));
            sealed && place.seen.epoch > seen.epoch && takes_part(index - 1)
        });
        if behind {
            self.broken = self.broken.with(Set::one(ACKNOWLEDGED_BEHIND_SEAL));
        }
        let write = Write {
            epoch: seen.epoch,
            origin: me,
            sequence,
            stamp: match rules.keep(Rule::StampsBeyondStrong) {
                true => self.newest(mine.data).max(seen.last_stamp) + 1,
                false => self.newest(self.eventual(mine.data)) + 1,
            },
        };
        let new = self.acknowledged(write);
        let node = self.node_mut(me);
        node.written.vector.raise(me, sequence);
        node.written.given = sequence;
        node.written.data = node.written.data.with(new);
        node.sync();
    }

    /// What a replica can lose of what another one has, too: a record was not written, or not as it was.
    pub fn losable(&self, me: u8) -> Set {
        let others = (0..REPLICAS).filter(|other| *other != me);
        let held = others.map(|other| self.node(other).durable.data);
        let held = held.fold(Set::default(), Set::with);
        let mine = self.written(me).data;
        mine.without(mine.without(held))
    }

    /// It loses the first of them, and does not know.
    pub fn damage(&mut self, me: u8) {
        let losable = self.losable(me);
        let first = (0..small(self.writes.len())).find(|at| losable.has(*at));
        if let Some(first) = first {
            let node = self.node_mut(me);
            node.written.data = node.written.data.without(Set::one(first));
            node.written.lost = node.written.lost.with(Set::one(first));
            node.sync();
        }
    }

    /// Whether a replica takes writes that another one passes on, sent in this epoch.
    pub fn takes_of(&self, rules: Rules, me: u8, epoch: u8) -> bool {
        let seen = self.seen(me);
        let sealed = seen.sealing.is_some() && rules.keep(Rule::PromiseBinds);
        // Who takes what comes while it is sealed takes what was sent before.
        let binds_less = seen.sealing.is_some() && seen.epoch == epoch + 1;
        let fits = seen.epoch == epoch || binds_less || !rules.keep(Rule::EpochOnArrival);
        !seen.strong && !sealed && fits && !self.written(me).waits()
    }

    /// Merges them, and syncs.
    pub fn merge(&mut self, me: u8, vector: Vector, data: Set) {
        let node = self.node_mut(me);
        node.written.vector.join(vector);
        node.written.data = node.written.data.with(data);
        node.sync();
    }

    /// What a replica would pass on: only what is synced, and only while the namespace is open.
    pub fn passes_on(&self, me: u8) -> Option<(u8, Vector, Set)> {
        let (node, seen) = (self.node(me), self.seen(me));
        let durable = &node.durable;
        (seen.open() && !node.written.waits()).then(|| {
            let data = self.eventual(durable.data.with(durable.lost));
            (seen.epoch, durable.vector, data)
        })
    }

    /// What a replica answers to the leader; `None`: it cannot yet. What it does for the answer is done.
    pub fn answer(&mut self, rules: Rules, me: u8, question: Question) -> Option<Said> {
        let (seen, waits) = (self.seen(me), self.written(me).waits());
        if waits || seen.strong || seen.epoch != question.epoch {
            return None;
        }
        let Some((fence, holders)) = question.promise else {
            if seen.sealing.is_none() {
                return Some(self.says(seen.epoch, &self.node(me).durable));
            }
            self.sync_for_answer(rules, me);
            return Some(self.says(seen.epoch, self.written(me)));
        };
        seen.sealing?;
        for origin in 0..REPLICAS {
            let have = self.written(me).vector.get(origin);
            if have < fence.get(origin) {
                let holder = holders[usize::from(origin)];
                let theirs = self.node(holder);
                if holder == me || theirs.written.waits() || self.seen(holder).epoch != seen.epoch {
                    return None;
                }
                let durable = &theirs.durable;
                if durable.vector.get(origin) < fence.get(origin) {
                    return None;
                }
                let log = durable.data.with(durable.lost);
                let missing = self.filter(log, |write| {
                    write.origin == origin && write.sequence > have && write.within(fence)
                });
                let mine = &mut self.node_mut(me).written;
                mine.vector.raise(origin, fence.get(origin));
                mine.data = mine.data.with(missing);
            }
        }
        self.sync_for_answer(rules, me);
        let said = self.says(seen.epoch, self.written(me));
        let refuses = said.vector != fence;
        Some(Said { refuses, ..said })
    }

    fn sync_for_answer(&mut self, rules: Rules, me: u8) {
        if rules.keep(Rule::SyncBeforeAnswer) {
            self.node_mut(me).sync();
        }
    }

    fn says(&self, epoch: u8, of: &Replica) -> Said {
        Said {
            epoch,
            vector: of.vector,
            data: of.data,
            last_stamp: self.newest(of.data),
            refuses: false,
        }
    }

    /// Of all that a replica holds. The same whatever other writes there are.
    pub fn digest(&self, data: Set) -> Digest {
        let mut digest = Digest::default();
        for (at, write) in self.writes.iter().enumerate() {
            if data.has(small(at)) {
                let mut hasher = DefaultHasher::new();
                write.hash(&mut hasher);
                digest.0 = digest.0.wrapping_add(u128::from(hasher.finish()));
            }
        }
        digest
    }

    /// A copy of the region as a replica has it.
    pub fn freeze(&self, me: u8) -> Late {
        let mine = self.written(me);
        Late::Snapshot {
            applied: mine.applied,
            vector: mine.vector,
            data: mine.data,
        }
    }

    /// Takes a copy of the region.
    pub fn install(&mut self, rules: Rules, me: u8, applied: u8, vector: Vector, data: Set) {
        let mine = *self.written(me);
        let known = &self.log.at(mine.applied).state;
        let comes = &self.log.at(applied).state;
        let was_strong = self.seen(me).strong;
        let mut next = Replica {
            applied,
            stuck: false,
            blank: false,
            ..mine
        };
        let both = !was_strong && !self.log.at(applied).seen.strong;
        if mine.blank {
            // It knew nothing of the namespace.
            (next.vector, next.data) = (vector, data);
        } else if both && !rules.keep(Rule::SameTime) {
            next.vector.join(vector);
            next.data = next.data.with(data);
        } else if !switching::same_time(known, comes) {
            if !was_strong && rules.keep(Rule::SetAside) {
                let fence = switching::fence_after(known, comes);
                let fence = fence.map(|fence| Vector::from_real(&fence.vector));
                let fence = fence.unwrap_or_default();
                let beyond = self.filter(mine.data, |write| !write.within(fence));
                next.aside = next.aside.with(beyond.without(data));
            }
            next.given = match rules.keep(Rule::NumbersOnce) {
                true => next.given.max(mine.vector.get(me)),
                false => 0,
            };
            next.vector = vector;
            next.data = data;
        }
        let node = self.node_mut(me);
        node.written = next;
        node.sync();
    }
}
