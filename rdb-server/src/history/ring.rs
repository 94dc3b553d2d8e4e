//! The last changes of one namespace in a region, and the looking through them.
//!
//! Owns their numbers, which count on for as long as the store runs and mean nothing anywhere else.
//!
//! Invariants: what is held is one piece without a gap up to the newest change; what is not is covered by
//! [`Lost`]; a turn (a change of mode) and a break (a snapshot came) are never passed unnoticed.

use super::change::{At, Change, Own, Time};
use super::place::{Lost, Place};
use bytes::Bytes;
use rdb_types::Epoch;
use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::Arc;

/// Changes that are looked at in one piece: a watch holds the history's lock for that long.
const LOOKED_AT: usize = 4096;
/// Bytes of changes at which a piece is full.
const PIECE_BYTES: usize = 64 << 10;

/// Which keys a watch is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys {
    /// This one.
    One(Bytes),
    /// Those that begin so; empty: all.
    Prefix(Bytes),
}

impl Keys {
    fn has(&self, key: &[u8]) -> bool {
        match self {
            Keys::One(one) => key == one,
            Keys::Prefix(prefix) => key.starts_with(prefix),
        }
    }
}

/// Why a watch ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The namespace was switched. Everything up to then was told.
    Turned {
        /// What it is now.
        time: Time,
        /// The epoch of that.
        epoch: Epoch,
    },
    /// The region was replaced by a snapshot: what changed meanwhile is not known here.
    Replaced,
    /// What was to be told next is not held any more: the reader was too slow.
    Overrun,
    /// The namespace was deleted.
    Deleted,
}

/// Where a watch stands in a ring.
#[derive(Clone, Debug)]
pub struct Cursor {
    /// The next change to look at.
    next: u64,
    /// Changes before this number were there when the watch began: what of them is to be told, `from` says.
    began: u64,
    turns: u64,
    breaks: u64,
    from: Place,
    /// Of an eventual time: changes that are older than what the client was told of the same key.
    overtaken: BTreeSet<u64>,
    /// Up to where it was told.
    pub place: Place,
}

/// What a look came to.
#[derive(Clone, Debug, Default)]
pub struct Piece {
    /// To be told, in this order.
    pub changes: Vec<Change>,
    /// There may be more already.
    pub more: bool,
}

/// The last changes of a namespace.
#[derive(Debug)]
pub struct Ring {
    changes: VecDeque<Change>,
    /// The number of the first of them.
    first: u64,
    bytes: usize,
    lost: Option<Lost>,
    time: Time,
    epoch: Epoch,
    /// The region's revision when that time began here.
    since_revision: u64,
    /// In an eventual time: what this replica has applied.
    own: Own,
    turns: u64,
    breaks: u64,
    /// The number of the first change after the last turn.
    turned: u64,
}

/// Where the region's log stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The next entry.
    pub next_index: u64,
    /// The revision.
    pub revision: u64,
}

impl Ring {
    /// Nothing has happened yet, or `lost` has.
    pub fn new(time: Time, epoch: Epoch, own: Own, lost: Option<Lost>) -> Ring {
        Ring {
            changes: VecDeque::new(),
            first: 0,
            bytes: 0,
            since_revision: lost.as_ref().map_or(0, |lost| lost.revision),
            lost,
            time,
            epoch,
            own,
            turns: 0,
            breaks: 0,
            turned: 0,
        }
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Changes that it holds.
    pub fn count(&self) -> usize {
        self.changes.len()
    }

    /// What it does not hold.
    pub fn lost(&self) -> Option<&Lost> {
        self.lost.as_ref()
    }

    /// In which time the namespace is.
    pub fn time(&self) -> Time {
        self.time
    }

    fn end(&self) -> u64 {
        self.first + self.changes.len() as u64
    }

    /// The namespace is in this time and epoch, and the region at this revision; `own`: what it begins with, where it is an
    /// eventual one.
    pub fn is_in(&mut self, time: Time, epoch: Epoch, revision: u64, own: impl FnOnce() -> Own) {
        self.epoch = epoch;
        if self.time != time {
            self.time = time;
            self.since_revision = revision;
            self.own = own();
            self.turns += 1;
            self.turned = self.end();
        }
    }

    /// Other rows stand in the place of those that were there: nobody knows what changed.
    pub fn replace(&mut self, time: Time, epoch: Epoch, own: Own, lost: Lost) {
        self.first = self.end();
        self.changes.clear();
        self.bytes = 0;
        self.breaks += 1;
        self.is_in(time, epoch, lost.revision, Own::default);
        self.since_revision = lost.revision;
        self.lost = Some(lost);
        self.own = own;
    }

    /// One more change.
    pub fn push(&mut self, change: Change) {
        self.bytes += change.bytes();
        self.changes.push_back(change);
    }

    /// The batch of an eventual time is whole: with it the replica has applied this.
    pub fn mark(&mut self, own: Own, epoch: Epoch, pushed: bool) {
        self.epoch = self.epoch.max(epoch);
        if let Some(last) = self.changes.back_mut().filter(|_| pushed) {
            last.mark = Some(Arc::new(own.clone()));
        }
        self.own = own;
    }

    /// Lets the oldest change go. `false`: there is none.
    pub fn forget_one(&mut self) -> bool {
        let Some(change) = self.changes.pop_front() else {
            return false;
        };
        self.first += 1;
        self.bytes -= change.bytes();
        match &mut self.lost {
            Some(lost) => lost.add(&change),
            none => {
                let mut lost = Lost {
                    time: change.time(),
                    next: (0, 0),
                    revision: 0,
                    own: Own::default(),
                };
                lost.add(&change);
                *none = Some(lost);
            }
        }
        true
    }

    /// Begins a watch at what is next.
    pub fn watch_from_now(&self, head: Head) -> Cursor {
        let mut place = Place::after(self.time, self.epoch, head.revision);
        self.reach_end(&mut place, head);
        self.cursor(place, self.end())
    }

    /// The place right behind a revision, also where it is of a strong time before the present one: then all of the eventual
    /// time in between comes behind it. `None`: what comes behind it is not all held.
    pub fn behind(&self, revision: u64) -> Option<Place> {
        let lost = self.lost.as_ref().map_or(0, |lost| lost.revision);
        if lost > revision {
            return None;
        }
        let (time, epoch) = if revision >= self.since_revision {
            (self.time, self.epoch)
        } else {
            // Behind the last change that it covers, or else before the oldest.
            let is_covered =
                |change: &&Change| !change.time().eventual && change.revision <= revision;
            let last = self.changes.iter().rev().find(is_covered);
            let known = last.or(self.changes.front());
            known.map_or((self.time, self.epoch), |change| {
                (change.time(), change.epoch)
            })
        };
        Some(Place::after(time, epoch, revision))
    }

    /// Begins a watch behind a place. `None`: what comes behind it is not all held.
    pub fn watch_from(&self, place: Place) -> Option<Cursor> {
        if self.lost.as_ref().is_some_and(|lost| !place.is_held(lost)) {
            return None;
        }
        let mut cursor = self.cursor(place, self.first);
        if self.time.eventual && cursor.place.time == self.time {
            // What this replica lacks of what the client was told, it may have to be told again: something older
            // comes between now.
            let (place, own) = (&mut cursor.place, &self.own);
            place.vector = place.vector.meet(&own.vector);
            let told = place.expired_through_ms;
            place.expired_through_ms = told.map(|told| told.min(own.expired_through_ms));
        }
        // Which keys the client was told newer of.
        let mut told: HashSet<&[u8]> = HashSet::new();
        for (at, change) in self.changes.iter().enumerate().rev() {
            if !cursor.from.time.eventual || change.time() != cursor.from.time {
                continue;
            }
            let number = self.first + at as u64;
            if cursor.from.wants(change) {
                if told.contains(&change.key[..]) {
                    cursor.overtaken.insert(number);
                }
            } else if matches!(
                change.at,
                At::Own {
                    dot: Some(_),
                    buried_ms: 0
                }
            ) {
                told.insert(&change.key);
            }
        }
        Some(cursor)
    }

    fn cursor(&self, place: Place, next: u64) -> Cursor {
        Cursor {
            next,
            began: self.end(),
            turns: self.turns,
            breaks: self.breaks,
            from: place.clone(),
            overtaken: BTreeSet::new(),
            place,
        }
    }

    fn reach_end(&self, place: &mut Place, head: Head) {
        if self.time.eventual {
            place.reach(self.time, self.epoch, &self.own);
        } else {
            place.reach_index(self.time, self.epoch, head.next_index, head.revision);
        }
    }

    /// What a watch is told next.
    ///
    /// # Errors
    /// It ends.
    pub fn look(&self, cursor: &mut Cursor, keys: &Keys, head: Head) -> Result<Piece, Ended> {
        if cursor.breaks != self.breaks {
            return Err(Ended::Replaced);
        }
        if cursor.next < self.first {
            return Err(Ended::Overrun);
        }
        let turned = cursor.turns != self.turns;
        let end = if turned { self.turned } else { self.end() };
        let skipped = usize::try_from(cursor.next - self.first).unwrap_or(usize::MAX);
        let mut piece = Piece::default();
        let mut bytes = 0;
        for change in self.changes.iter().skip(skipped).take(LOOKED_AT) {
            if cursor.next >= end || bytes >= PIECE_BYTES {
                break;
            }
            let number = cursor.next;
            cursor.next += 1;
            // In an eventual time what is applied from now on is told, also where the client heard of it from
            // a store that was ahead: it may have been told something older by this one.
            let live = number >= cursor.began && change.time().eventual;
            if !live && (!cursor.from.wants(change) || cursor.overtaken.contains(&number)) {
                continue;
            }
            if keys.has(&change.key) {
                bytes += change.bytes();
                piece.changes.push(change.clone());
            }
            cursor.place.pass(change);
        }
        if cursor.next < end {
            piece.more = true;
            return Ok(piece);
        }
        if !turned {
            self.reach_end(&mut cursor.place, head);
        } else if piece.changes.is_empty() {
            return Err(Ended::Turned {
                time: self.time,
                epoch: self.epoch,
            });
        } else {
            piece.more = true;
        }
        Ok(piece)
    }

    /// The oldest place from which a watch can go on here.
    pub fn oldest(&self, head: Head) -> Place {
        match &self.lost {
            None => Place {
                vector: Default::default(),
                ..Place::after(self.time, self.epoch, 0)
            },
            Some(lost) if lost.time.eventual => Place {
                vector: lost.own.vector.clone(),
                expired_through_ms: Some(lost.own.expired_through_ms),
                ..Place::after(lost.time, self.epoch, 0)
            },
            Some(lost) => Place {
                log: super::place::LogPlace::Next(lost.next.0, lost.next.1),
                ..Place::after(lost.time, self.epoch, lost.revision.min(head.revision))
            },
        }
    }
}
