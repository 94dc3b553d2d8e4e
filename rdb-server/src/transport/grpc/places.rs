//! Who may hold a connection to the port that clients and stores share.
//!
//! Owns the counting. A connection is nobody's until it has spoken; it takes a client's place, and gives
//! it back when it turns out to be another store's. Where all places of clients are taken, a few more
//! connections are let in on probation, so that a store can always come in and say who it is. Does no
//! IO and reads no clock.
//!
//! Invariants: at most `max_clients` connections that are not stores' are served; at most
//! [`PROBATION`] are on probation; connections of stores count for neither, since a store is one only
//! after its Hello was accepted. Each connection is counted once, and no more once it is gone.

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Connections beyond those of clients that may show that they are a store's. Larger than any cluster that
/// restarts at once, because clients who find no place stand here, too, until their time is over.
pub const PROBATION: usize = 64;

/// What a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A client's, or nobody's yet.
    Client,
    /// Beyond the places of clients: served nothing but a store's handshake.
    Probation,
    /// Another store's.
    Store,
}

/// The counts. Shared by those who accept, those who learn who is there, and those who show it.
#[derive(Debug)]
pub struct Places {
    max_clients: usize,
    counts: Mutex<Counts>,
    refused: AtomicU64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    clients: usize,
    probation: usize,
    stores: usize,
}

impl Counts {
    fn of(&mut self, kind: Kind) -> &mut usize {
        match kind {
            Kind::Client => &mut self.clients,
            Kind::Probation => &mut self.probation,
            Kind::Store => &mut self.stores,
        }
    }
}

impl Places {
    /// With places for so many clients.
    pub fn new(max_clients: usize) -> Arc<Places> {
        Arc::new(Places {
            max_clients,
            counts: Mutex::default(),
            refused: AtomicU64::new(0),
        })
    }

    /// How many clients may be connected.
    pub fn max_clients(&self) -> usize {
        self.max_clients
    }

    /// Open connections of a kind.
    pub fn open(&self, kind: Kind) -> usize {
        *self.counts.lock().of(kind)
    }

    /// Connections for which no client's place was left, since the start. A store's that then came in
    /// from probation is not among them.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// A place for a connection that was just accepted; `None`: not even on probation.
    pub(super) fn take(self: &Arc<Places>) -> Option<Arc<Place>> {
        let mut counts = self.counts.lock();
        let kind = if counts.clients < self.max_clients {
            Kind::Client
        } else if counts.probation < PROBATION {
            Kind::Probation
        } else {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        *counts.of(kind) += 1;
        Some(Arc::new(Place {
            places: Arc::clone(self),
            kind: Mutex::new(Some(kind)),
        }))
    }
}

/// What one connection holds.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    /// `None`: the connection is gone, whoever still looks at its place.
    kind: Mutex<Option<Kind>>,
}

impl Place {
    /// What the connection is now; one that is gone is nobody's.
    pub fn kind(&self) -> Kind {
        self.kind.lock().unwrap_or(Kind::Client)
    }

    /// It is another store's: its place is free for a client again.
    pub fn is_a_store(&self) {
        let mut kind = self.kind.lock();
        if let Some(before) = *kind {
            let mut counts = self.places.counts.lock();
            *counts.of(before) -= 1;
            *counts.of(Kind::Store) += 1;
            *kind = Some(Kind::Store);
        }
    }

    /// The connection is gone.
    pub(super) fn give_back(&self) {
        let Some(kind) = self.kind.lock().take() else {
            return;
        };
        *self.places.counts.lock().of(kind) -= 1;
        if kind == Kind::Probation {
            self.places.refused.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(places: &Places) -> [usize; 3] {
        [Kind::Client, Kind::Probation, Kind::Store].map(|kind| places.open(kind))
    }

    #[test]
    fn a_store_comes_in_when_clients_hold_every_place() {
        let places = Places::new(2);
        let clients: Vec<_> = (0..2).map(|_| places.take().unwrap()).collect();
        let late = places.take().unwrap();
        assert_eq!((late.kind(), counts(&places)), (Kind::Probation, [2, 1, 0]));
        late.is_a_store();
        late.is_a_store();
        assert_eq!((late.kind(), counts(&places)), (Kind::Store, [2, 0, 1]));
        // A store that came early leaves its place to a client.
        clients[0].is_a_store();
        assert_eq!(places.take().unwrap().kind(), Kind::Client);
        assert_eq!(counts(&places), [2, 0, 2]);
        late.give_back();
        late.give_back();
        late.is_a_store();
        assert_eq!((counts(&places), places.refused()), ([2, 0, 1], 0));
    }

    #[test]
    fn probation_is_bounded_and_whoever_does_not_pass_it_is_counted() {
        let places = Places::new(0);
        let waiting: Vec<_> = (0..PROBATION).map(|_| places.take().unwrap()).collect();
        assert!(places.take().is_none());
        assert_eq!(places.refused(), 1);
        waiting[0].give_back();
        assert_eq!(places.refused(), 2);
        assert!(places.take().is_some());
    }
}
