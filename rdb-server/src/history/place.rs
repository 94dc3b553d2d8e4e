//! How far a watch is: which changes it is still to be told, and whether a history still holds them.
//!
//! Owns the order of changes across regions' logs, eventual times and changes of mode, as pure functions. Knows
//! nothing of who watches, nor of how changes are kept.
//!
//! Invariants:
//! - in a strong time a place is a place in the region's log: the same on every replica, so that going on from
//!   it anywhere tells every change once;
//! - in an eventual time it is a vector: what it covers was told, or was overwritten by what was. Another replica may
//!   tell some of it again, and leaves nothing out. It never covers what the replica that tells has not applied: else
//!   something older that this one tells could stay the last that its reader hears of a key;
//! - of a time that is over, everything beyond the place is told before anything of the next.

use super::change::{At, Change, Kind, Own, Time};
use crate::region::state::{FENCES_KEPT, NamespaceState};
use rdb_types::{Epoch, Mode, NamespaceId, RegionId, SessionToken, VersionVector, WatchPlace};

/// A place in the log of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogPlace {
    /// The first change that was not told: the entry, and which of its changes.
    Next(u64, u32),
    /// All up to this revision was seen. What expired right behind it may have been, too: that is told.
    After(u64),
}

/// How far a watch is in a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// In which time.
    pub time: Time,
    /// The highest epoch that it was told of.
    pub epoch: Epoch,
    /// The region's revision.
    pub revision: u64,
    /// Where in the log, in a strong time.
    pub log: LogPlace,
    /// What was told, in an eventual time.
    pub vector: VersionVector,
    /// Up to which time it was told of what expired; `None`: nobody says.
    pub expired_through_ms: Option<u64>,
}

/// What a history does not hold any more, or never did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The time of the newest of it.
    pub time: Time,
    /// In a strong time: the place right behind it.
    pub next: (u64, u32),
    /// The revision right before that.
    pub revision: u64,
    /// In an eventual time: what covers it.
    pub own: Own,
}

impl Lost {
    /// One more change is lost.
    pub fn add(&mut self, change: &Change) {
        if self.time < change.time() {
            self.time = change.time();
            self.own = Own::default();
        }
        match change.at {
            At::Log { index, nth } => {
                self.next = (index, nth + 1);
                self.revision = self.revision.max(change.revision);
            }
            At::Own { dot, buried_ms } => {
                if let Some(dot) = dot {
                    self.own.vector.raise(dot.origin, dot.sequence);
                }
                self.own.expired_through_ms = self.own.expired_through_ms.max(buried_ms);
            }
        }
    }
}

impl Place {
    /// Right behind a revision of a strong time.
    pub fn after(time: Time, epoch: Epoch, revision: u64) -> Place {
        Place {
            time,
            epoch,
            revision,
            log: LogPlace::After(revision),
            vector: VersionVector::new(),
            expired_through_ms: None,
        }
    }

    /// Where a session that brings this token is, as a replica judges that has applied its epoch. `None`: it is of so
    /// long ago that nobody can tell.
    pub fn of_session(token: &SessionToken, state: &NamespaceState) -> Option<Place> {
        let before = state.fences.iter().rev();
        let seal = before
            .map(|fence| fence.epoch)
            .find(|epoch| *epoch <= token.epoch());
        let since = match seal {
            Some(since) => since,
            None if state.fences.len() < FENCES_KEPT => Epoch(0),
            None => return None,
        };
        // A strong time is one epoch; what comes behind it is eventual.
        let strong = since.max(Epoch::FIRST) == token.epoch();
        let began_eventual = state.mode == Mode::Eventual && state.epoch == Epoch::FIRST;
        let eventual = token.writes(since).is_some() || !strong || began_eventual;
        Some(Place {
            time: Time { since, eventual },
            epoch: token.epoch(),
            revision: token.revision(),
            log: LogPlace::After(token.revision()),
            vector: token.writes(since).cloned().unwrap_or_default(),
            expired_through_ms: None,
        })
    }

    /// As [`Place::of_session`], of a watch's token.
    pub fn of_watch(token: &WatchPlace, state: &NamespaceState) -> Option<Place> {
        let seen = Place::of_session(&token.seen, state)?;
        Some(Place {
            log: LogPlace::Next(token.index, token.nth),
            expired_through_ms: Some(token.expired_through_ms),
            ..seen
        })
    }

    /// As it goes out.
    pub fn token(&self, region: RegionId, namespace: NamespaceId) -> WatchPlace {
        let seen = SessionToken::new(region, namespace, self.epoch);
        let (index, nth) = match self.log {
            LogPlace::Next(index, nth) => (index, nth),
            LogPlace::After(_) => (0, 0),
        };
        WatchPlace {
            seen: match self.time.eventual {
                true => seen.with_writes(self.time.since, &self.vector),
                false => seen.at_revision(self.revision),
            },
            index,
            nth,
            expired_through_ms: self.expired_through_ms.unwrap_or_default(),
        }
    }

    /// Whether a change is beyond this place.
    pub fn wants(&self, change: &Change) -> bool {
        match change.time().cmp(&self.time) {
            std::cmp::Ordering::Less => return false,
            std::cmp::Ordering::Greater => return true,
            std::cmp::Ordering::Equal => {}
        }
        match (change.at, self.log) {
            (At::Log { index, nth }, LogPlace::Next(next, first)) => (index, nth) >= (next, first),
            (At::Log { .. }, LogPlace::After(revision)) if change.kind == Kind::Expire => {
                change.revision >= revision
            }
            (At::Log { .. }, LogPlace::After(revision)) => change.revision > revision,
            (At::Own { dot, buried_ms: 0 }, _) => dot.is_none_or(|dot| !self.vector.has(dot)),
            (At::Own { dot, buried_ms }, _) => {
                let told = self
                    .expired_through_ms
                    .is_some_and(|told| buried_ms <= told);
                !told || dot.is_some_and(|dot| !self.vector.has(dot))
            }
        }
    }

    /// Whether all that is beyond this place is held where this was lost.
    pub fn is_held(&self, lost: &Lost) -> bool {
        match lost.time.cmp(&self.time) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Greater => false,
            std::cmp::Ordering::Equal if self.time.eventual => {
                let told = self.expired_through_ms;
                self.vector.covers(&lost.own.vector)
                    && told.is_none_or(|told| told >= lost.own.expired_through_ms)
            }
            std::cmp::Ordering::Equal => match self.log {
                LogPlace::Next(index, nth) => (index, nth) >= lost.next,
                LogPlace::After(revision) => revision >= lost.revision,
            },
        }
    }

    /// The change was told.
    pub fn pass(&mut self, change: &Change) {
        match change.at {
            At::Log { index, nth } => {
                self.log = LogPlace::Next(index, nth + 1);
                self.revision = self.revision.max(change.revision);
                self.time = change.time();
                self.epoch = self.epoch.max(change.epoch);
            }
            // Within a batch it stays: nothing says which of the writes in it came before this one.
            At::Own { .. } => {
                if let Some(mark) = &change.mark {
                    self.reach(change.time(), change.epoch, mark);
                }
            }
        }
    }

    /// Everything up to here was told, in an eventual time.
    pub fn reach(&mut self, time: Time, epoch: Epoch, own: &Own) {
        if self.time < time {
            self.time = time;
            self.vector = VersionVector::new();
            self.expired_through_ms = Some(0);
        }
        self.epoch = self.epoch.max(epoch);
        self.vector.join(&own.vector);
        let told = self.expired_through_ms.unwrap_or_default();
        self.expired_through_ms = Some(told.max(own.expired_through_ms));
    }

    /// Everything before this entry was told, in a strong time.
    pub fn reach_index(&mut self, time: Time, epoch: Epoch, index: u64, revision: u64) {
        let ahead = match self.log {
            LogPlace::Next(next, nth) if self.time == time => (next, nth) > (index, 0),
            _ => false,
        };
        if !ahead {
            self.log = LogPlace::Next(index, 0);
        }
        self.time = self.time.max(time);
        self.epoch = self.epoch.max(epoch);
        self.revision = self.revision.max(revision);
    }
}
