//! What a replica does: takes writes, brings and takes entries, tells what it has, forgets, takes copies.
//!
//! The counterpart of `peer/eventual` and `eventual/fold.rs`, made small. What may be forgotten, which copy may be
//! merged, what a drop does to the floor and what is kept when a copy replaces all is decided by the code that ships
//! ([`Reports::settled`], [`EventualState`]).

use super::world::{Heard, Replica, World, Write};
use crate::rules::{Rule, Rules};
use crate::world::{NAMESPACE, REPLICAS, Set, Vector, store};
use rdb_server::eventual::{Report, Reports};
use rdb_server::region::switching::{self, Change};
use rdb_types::{Dot, Epoch, VersionVector};
use std::sync::LazyLock;
use tokio::time::Instant;

/// Time is not looked at here.
static NOW: LazyLock<Instant> = LazyLock::new(Instant::now);

impl World {
    /// What leaves a replica: what is synced.
    pub fn leaves(&self, rules: Rules, me: u8) -> &Replica {
        match rules.keep(Rule::SyncBeforeSending) {
            true => &self.node(me).durable,
            false => &self.node(me).written,
        }
    }

    pub fn sync(&mut self, rules: Rules, me: u8) {
        let node = self.node_mut(me);
        let floor = node.durable.floor;
        node.durable = node.written;
        node.durable.stuck = false;
        if !rules.keep(Rule::FloorWithDrop) {
            node.durable.floor = floor;
        }
    }

    /// Takes a write of a client: synced, then acknowledged.
    pub fn write(&mut self, rules: Rules, me: u8, deletion: bool) {
        let mine = *self.written(me);
        let write = Write {
            time: self.time(&mine),
            origin: me,
            sequence: mine.vector.get(me).max(mine.given) + 1,
            // The next beyond all that it knows of, and the writer.
            stamp: (mine.last_stamp / 4 + 1) * 4 + me,
            deletion,
        };
        let at = self.writes.binary_search(&write).unwrap_or_else(|at| at);
        self.writes.insert(at, write);
        let next = &mut self.node_mut(me).written;
        next.merge(write);
        next.vector.raise(me, write.sequence);
        next.given = write.sequence;
        self.sync(rules, me);
    }

    /// Whether `from` has entries of an origin that `to` lacks.
    pub fn passes(&self, rules: Rules, from: u8, to: u8, origin: u8) -> bool {
        let (theirs, mine) = (self.leaves(rules, from), self.written(to));
        let have = mine.vector.get(origin);
        self.open(from)
            && self.open(to)
            && self.epoch(theirs) == self.epoch(mine)
            && theirs.vector.get(origin) > have
    }

    pub fn pass(&mut self, rules: Rules, from: u8, to: u8, origin: u8) {
        let last = self.leaves(rules, from).vector.get(origin);
        let time = self.time(self.written(to));
        let have = self.written(to).vector.get(origin);
        let brought = |write: &Write| {
            let new = write.sequence > have && write.sequence <= last;
            write.origin == origin && write.time == time && new
        };
        let writes: Vec<Write> = self.writes.iter().copied().filter(brought).collect();
        let mine = &mut self.node_mut(to).written;
        writes.into_iter().for_each(|write| mine.merge(write));
        mine.vector.raise(origin, last);
    }

    /// What a replica tells of itself; `None`: it is not eventual now.
    pub fn report(&self, rules: Rules, me: u8) -> Option<Heard> {
        let mine = self.written(me);
        let seen = self.log.at(mine.applied).seen;
        if mine.waits() || seen.strong {
            return None;
        }
        // Who looks at the index first may apply an entry, and more, before it looks at the vector.
        let early = u8::from(!rules.keep(Rule::IndexAfterVector));
        Some(Heard {
            applied: mine.applied.saturating_sub(early),
            epoch: seen.epoch,
            vector: self.leaves(rules, me).vector,
        })
    }

    /// Up to where everything may be forgotten here.
    fn settled(&self, rules: Rules, me: u8) -> Option<VersionVector> {
        let (node, mine) = (self.node(me), self.written(me));
        // Who looks at the replicas first may apply the entry that names another before it looks at the index.
        let early = u8::from(!rules.keep(Rule::ReplicasOfIndex));
        let members = &self.log.at(mine.applied.saturating_sub(early)).members;
        let members = match rules.keep(Rule::LearnersReport) {
            true => &members.all,
            false => &members.voters,
        };
        let mut others = members.clone();
        others.remove(&store(me));
        let mut own = Report {
            epoch: Epoch(u64::from(self.epoch(mine))),
            vector: node.durable.vector.to_real(),
            ..Report::default()
        };
        let mut reports = Reports::default();
        for (from, heard) in (0..REPLICAS).zip(node.heard) {
            let Some(mut heard) = heard else { continue };
            if !rules.keep(Rule::ReportOfEpoch) {
                heard.epoch = self.epoch(mine);
            }
            if !rules.keep(Rule::ReportOfLog) {
                heard.applied = 0;
            }
            let report = Report {
                epoch: Epoch(u64::from(heard.epoch)),
                vector: heard.vector.to_real(),
                ..Report::default()
            };
            if !rules.keep(Rule::OwnCoversReports) {
                own.vector.join(&report.vector);
            }
            let index = u64::from(heard.applied);
            reports.heard(NAMESPACE, store(from), report, index, *NOW);
        }
        reports.settled(NAMESPACE, &own, u64::from(mine.applied), &others)
    }

    /// Whether a tombstone stands here that is settled.
    pub fn may_forget(&self, rules: Rules, me: u8) -> bool {
        let standing = self.written(me).standing;
        let Some(tombstone) = standing.filter(|write| write.deletion) else {
            return false;
        };
        self.settled(rules, me).is_some_and(|settled| {
            settled.has(Dot {
                origin: store(tombstone.origin),
                sequence: u64::from(tombstone.sequence),
            })
        })
    }

    /// Drops it.
    pub fn forget(&mut self, me: u8) {
        let mine = &mut self.node_mut(me).written;
        mine.standing = None;
        let mut real = mine.real(me);
        real.raise_floor();
        mine.floor = Vector::from_real(&real.floor);
    }

    /// Whether a replica merges a copy: one that it asked for, or the repair of a range.
    pub fn may_merge(&self, rules: Rules, me: u8, copy: &Replica) -> bool {
        let mine = self.written(me);
        let may = || mine.real(me).may_merge(&copy.vector.to_real());
        self.open(me)
            && self.epoch(copy) == self.epoch(mine)
            && (!rules.keep(Rule::FloorRefuses) || may())
    }

    pub fn merge_copy(&mut self, me: u8, copy: &Replica) {
        let mine = &mut self.node_mut(me).written;
        if let Some(write) = copy.standing {
            mine.merge(write);
        }
        mine.vector.join(copy.vector);
    }

    /// Whether a replica that waits may go on with this copy.
    pub fn may_take(&self, rules: Rules, me: u8, copy: &Replica) -> bool {
        let mine = self.written(me);
        let named = self.named(me, copy.applied) || !rules.keep(Rule::CopyAfterNamed);
        let later = mine.blank || copy.applied > mine.applied;
        mine.waits() && named && later && self.log.at(copy.applied).seen.open()
    }

    /// It replaces all that is here.
    pub fn take_copy(&mut self, rules: Rules, me: u8, copy: &Replica) {
        let mine = *self.written(me);
        let mut next = Replica {
            applied: copy.applied,
            standing: copy.standing,
            blank: false,
            stuck: false,
            ..mine
        };
        next.set(&mine.real(me).replaced_by(store(me), copy.real(me)));
        if !rules.keep(Rule::FloorComesAlong) {
            next.floor = mine.floor;
        }
        if !rules.keep(Rule::StampsGoOn) {
            next.last_stamp = copy.standing.map_or(0, |write| write.stamp);
        }
        self.node_mut(me).written = next;
        self.sync(rules, me);
    }

    /// Applies the next entry; a replica that a seal left out goes no further.
    pub fn apply(&mut self, me: u8) {
        let mine = *self.written(me);
        let before = self.log.at(mine.applied);
        let place = self.log.at(mine.applied + 1);
        let left_out = before
            .seen
            .sealing
            .is_some_and(|participants| !participants.has(me));
        let mut next = Replica {
            applied: mine.applied + 1,
            ..mine
        };
        match &place.change {
            Some((Change::Sealed, _)) if left_out => {
                next = Replica {
                    stuck: true,
                    ..mine
                };
            }
            Some((Change::Opened, _)) => {
                let fence = place.seen.fence;
                (next.vector, next.floor) = (fence, fence);
            }
            _ => {}
        }
        self.node_mut(me).written = next;
    }

    /// Whether a seal could end this time now, without `missing`: all others hold the same, synced.
    pub fn can_turn(&self, missing: Set) -> bool {
        let end = self.log.end();
        let members = &self.log.last().members;
        let takes_part = |who: &u8| members.all.contains(&store(*who)) && !missing.has(*who);
        let participants: Vec<u8> = (0..REPLICAS).filter(takes_part).collect();
        let Some(first) = participants.first() else {
            return false;
        };
        let stores = participants.iter().map(|who| store(*who)).collect();
        let visible = |who: u8| self.written(who).standing.filter(|write| !write.deletion);
        members.is_quorum(&stores)
            && participants.iter().all(|who| {
                let mine = self.written(*who);
                self.open(*who)
                    && mine.applied == end
                    && mine.vector == self.written(*first).vector
                    && visible(*who) == visible(*first)
                    && self.node(*who).durable == *mine
            })
    }

    /// Whether two replicas hold parts of one eventual time, as the code that ships tells them apart.
    pub fn same_time(&self, one: &Replica, other: &Replica) -> bool {
        let state = |replica: &Replica| &self.log.at(replica.applied).state;
        switching::same_time(state(one), state(other))
    }
}
