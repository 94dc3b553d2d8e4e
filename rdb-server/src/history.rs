//! The last changes of a region, for watches: what was applied here, in the order in which it was.
//!
//! | File | Owns |
//! |---|---|
//! | [`change`] | one change, and its place in the order |
//! | [`place`] | how far a watch is, which survives stores and changes of mode: pure |
//! | [`ring`] | the changes of one namespace, and what a watch is told next: pure |
//!
//! Fed by the state machine and by the writer of eventual namespaces, each after its batch can be read. Watches
//! read from it at their own speed and hold nothing of it: a reader that is too slow finds its place gone. Knows
//! nothing of requests.
//!
//! Why memory and not the logs: a log says what was asked for, not what came of it (a compare-and-swap that lost, a write
//! that lost to a newer one, what expired); and no reader of it makes a writer wait.
//!
//! Invariants:
//! - changes of a strong time come in the order of the log, those of an eventual time in the order in which they
//!   became visible here;
//! - at most so many changes of a namespace are held, or those of one batch if it has more; at most
//!   [`HISTORY_BYTES`] of a region, whatever that costs;
//! - writers wait for readers for as long as one looks through a few thousand changes, at most.

pub mod change;
pub mod place;
pub mod ring;

#[cfg(test)]
#[path = "history/tests.rs"]
mod tests;

use crate::eventual::EventualState;
use crate::region::state::{NamespaceState, RegionState};
use crate::watch;
use change::{Change, Own, Time};
use parking_lot::RwLock;
use place::{Lost, Place};
use rdb_types::{Mode, NamespaceId};
use ring::{Cursor, Ended, Head, Keys, Piece, Ring};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of changes that a region holds at most.
pub const HISTORY_BYTES: usize = 64 << 20;
/// Changes of a namespace that are held, unless somebody says.
const CHANGES: usize = 10_000;

/// The last changes of a region.
pub struct History {
    inner: RwLock<Inner>,
    changes: AtomicUsize,
    grown: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    rings: BTreeMap<NamespaceId, Ring>,
    head: Head,
    bytes: usize,
}

/// A place that is not held any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compacted {
    /// The oldest one that is.
    pub oldest: Place,
}

fn time_of(state: &NamespaceState) -> Time {
    Time::new(state.last_seal(), state.mode)
}

/// What an eventual time begins with.
fn opened(state: &NamespaceState) -> Own {
    let fence = state.fences.last();
    Own {
        vector: fence.map(|fence| fence.vector.clone()).unwrap_or_default(),
        expired_through_ms: state.buried_through_ms,
    }
}

fn applied(own: &EventualState) -> Own {
    Own {
        vector: own.vector.clone(),
        expired_through_ms: own.expired_through_ms,
    }
}

/// Where a watch begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    /// At what is next.
    Now,
    /// Behind a place.
    Behind(Place),
    /// Behind a revision of the region.
    BehindRevision(u64),
}

/// Everything that has happened to a namespace so far.
fn all(state: &NamespaceState, own: Option<&EventualState>, head: Head) -> Lost {
    let mut lost = Lost {
        time: time_of(state),
        next: (head.next_index, 0),
        revision: head.revision,
        own: own.map(applied).unwrap_or_default(),
    };
    if let Some(own) = own {
        // Records of a copy may stand here before the vector says so.
        lost.own.vector.join(&own.partial);
    }
    lost
}

impl Default for History {
    fn default() -> History {
        History {
            inner: RwLock::default(),
            changes: AtomicUsize::new(CHANGES),
            grown: watch::channel(0).0,
        }
    }
}

impl History {
    /// Of a region that is opened like this: what happened before is not known. `own` reads this replica's row of an
    /// eventual namespace.
    ///
    /// # Errors
    /// Reading failed.
    pub fn open<E>(
        state: &RegionState,
        own: impl FnMut(NamespaceId) -> Result<EventualState, E>,
    ) -> Result<History, E> {
        let history = History::default();
        history.replace(state, &BTreeSet::new(), own)?;
        Ok(history)
    }

    /// Holds so many changes of a namespace from now on.
    pub fn bound(&self, changes: u64) {
        let changes = usize::try_from(changes).unwrap_or(usize::MAX).max(1);
        self.changes.store(changes, Ordering::Relaxed);
    }

    /// Tells of every change, and of every end of watches.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.grown.subscribe()
    }

    fn tell(&self) {
        self.grown.send_if_modified(|turn| {
            *turn += 1;
            true
        });
    }

    /// Entries of the log were applied: where namespaces are by now, and what changed, in that order: who changes a
    /// namespace's mode begins a batch.
    pub fn applied<'s>(
        &self,
        head: Head,
        states: impl Iterator<Item = (NamespaceId, &'s NamespaceState)>,
        changes: Vec<(NamespaceId, Change)>,
    ) {
        let grew = !changes.is_empty();
        let mut turned = false;
        {
            let inner = &mut *self.inner.write();
            inner.head = head;
            for (namespace, state) in states {
                let (time, begin) = (time_of(state), || opened(state));
                let ring = inner.rings.entry(namespace);
                let ring = ring.or_insert_with(|| Ring::new(time, state.epoch, begin(), None));
                turned |= ring.time() != time;
                ring.is_in(time, state.epoch, head.revision, begin);
            }
            inner.push(changes, self.changes.load(Ordering::Relaxed));
        }
        if grew || turned {
            self.tell();
        }
    }

    /// These namespaces are gone: whoever watches one hears of it.
    pub fn forget<'n>(&self, gone: impl Iterator<Item = &'n NamespaceId>) {
        let mut told = false;
        {
            let inner = &mut *self.inner.write();
            for namespace in gone {
                told |= inner.forget(*namespace);
            }
        }
        if told {
            self.tell();
        }
    }

    /// A batch of eventual namespaces can be read: what changed, and what was applied with it.
    pub fn written<'s>(
        &self,
        states: impl Iterator<Item = (NamespaceId, &'s EventualState)>,
        changes: Vec<(NamespaceId, Change)>,
    ) {
        let changed: BTreeSet<NamespaceId> =
            changes.iter().map(|(namespace, _)| *namespace).collect();
        {
            let inner = &mut *self.inner.write();
            inner.push(changes, self.changes.load(Ordering::Relaxed));
            for (namespace, own) in states {
                if let Some(ring) = inner.rings.get_mut(&namespace) {
                    ring.mark(applied(own), own.epoch, changed.contains(&namespace));
                }
            }
        }
        if !changed.is_empty() {
            self.tell();
        }
    }

    /// The rows are those of another replica now, but for `kept` eventual namespaces. `own` as in [`History::open`].
    ///
    /// # Errors
    /// Reading failed.
    pub fn replace<E>(
        &self,
        state: &RegionState,
        kept: &BTreeSet<NamespaceId>,
        mut own: impl FnMut(NamespaceId) -> Result<EventualState, E>,
    ) -> Result<(), E> {
        let mut owns = BTreeMap::new();
        for (namespace, of) in &state.namespaces {
            if of.mode == Mode::Eventual {
                owns.insert(*namespace, own(*namespace)?);
            }
        }
        {
            let inner = &mut *self.inner.write();
            inner.head = Head {
                next_index: state.applied.map_or(0, |id| id.index + 1),
                revision: state.revision,
            };
            for namespace in state.dropped.keys() {
                inner.forget(*namespace);
            }
            for (namespace, of) in &state.namespaces {
                let own = owns.get(namespace);
                let lost = all(of, own, inner.head);
                let begin = own.map(applied).unwrap_or_default();
                match inner.rings.get_mut(namespace) {
                    None => {
                        let ring = Ring::new(time_of(of), of.epoch, begin, Some(lost));
                        inner.rings.insert(*namespace, ring);
                    }
                    Some(ring) if kept.contains(namespace) && ring.time() == time_of(of) => {
                        ring.is_in(time_of(of), of.epoch, inner.head.revision, Own::default);
                    }
                    Some(ring) => {
                        inner.bytes -= ring.bytes();
                        ring.replace(time_of(of), of.epoch, begin, lost);
                    }
                }
            }
        }
        self.tell();
        Ok(())
    }

    /// Begins a watch. `mode`: of a namespace that the region was not told of yet.
    ///
    /// # Errors
    /// What comes behind that place is not all held.
    pub fn watch(
        &self,
        namespace: NamespaceId,
        mode: Mode,
        from: Begin,
    ) -> Result<Cursor, Box<Compacted>> {
        let inner = &mut *self.inner.write();
        let ring = inner.rings.entry(namespace).or_insert_with(|| {
            let time = Time::new(rdb_types::Epoch(0), mode);
            Ring::new(time, rdb_types::Epoch::FIRST, Own::default(), None)
        });
        let begun = match from {
            Begin::Now => Some(ring.watch_from_now(inner.head)),
            Begin::Behind(place) => ring.watch_from(place),
            Begin::BehindRevision(revision) => ring
                .behind(revision)
                .and_then(|place| ring.watch_from(place)),
        };
        begun.ok_or_else(|| {
            let oldest = ring.oldest(inner.head);
            Box::new(Compacted { oldest })
        })
    }

    /// The oldest place of a namespace from which a watch can go on.
    pub fn oldest(&self, namespace: NamespaceId) -> Option<Place> {
        let inner = self.inner.read();
        let ring = inner.rings.get(&namespace)?;
        Some(ring.oldest(inner.head))
    }

    /// What a watch is told next.
    ///
    /// # Errors
    /// It ends.
    pub fn look(
        &self,
        namespace: NamespaceId,
        cursor: &mut Cursor,
        keys: &Keys,
    ) -> Result<Piece, Ended> {
        let inner = self.inner.read();
        match inner.rings.get(&namespace) {
            Some(ring) => ring.look(cursor, keys, inner.head),
            None => Err(Ended::Deleted),
        }
    }

    /// Bytes that are held.
    pub fn bytes(&self) -> usize {
        self.inner.read().bytes
    }
}

impl Inner {
    fn forget(&mut self, namespace: NamespaceId) -> bool {
        let ring = self.rings.remove(&namespace);
        self.bytes -= ring.as_ref().map_or(0, Ring::bytes);
        ring.is_some()
    }

    fn push(&mut self, changes: Vec<(NamespaceId, Change)>, most: usize) {
        let mut pushed: BTreeMap<NamespaceId, usize> = BTreeMap::new();
        for (namespace, change) in changes {
            let Some(ring) = self.rings.get_mut(&namespace) else {
                continue;
            };
            self.bytes += change.bytes();
            ring.push(change);
            *pushed.entry(namespace).or_default() += 1;
        }
        for (namespace, batch) in pushed {
            // Whoever is not behind has a chance to read a batch before it goes.
            let most = most.max(batch);
            if let Some(ring) = self.rings.get_mut(&namespace) {
                let before = ring.bytes();
                while ring.count() > most && ring.forget_one() {}
                self.bytes -= before - ring.bytes();
            }
        }
        while self.bytes > HISTORY_BYTES {
            let largest = self.rings.values_mut().max_by_key(|ring| ring.bytes());
            let Some(ring) = largest else { return };
            let before = ring.bytes();
            // Some at a time: finding the largest looks at all of them.
            let enough = before - before.min(HISTORY_BYTES / 64);
            while ring.bytes() > enough && ring.forget_one() {}
            self.bytes -= before - ring.bytes();
            if before == ring.bytes() {
                return;
            }
        }
    }
}
