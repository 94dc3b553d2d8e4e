//! Operations that were sent and are not answered yet.
//!
//! Owns the table from id to waiting caller. Knows nothing of messages beyond their ids.
//!
//! Invariants: answers are handed over while the table is locked, so that a caller who finds its id
//! gone and no answer was never sent; once closed the table takes nothing.

use super::Answer;
use crate::failure::Failure;
use parking_lot::Mutex;
use std::collections::HashMap;
use tokio::sync::oneshot;

#[derive(Default)]
pub(super) struct Outstanding {
    table: Mutex<Table>,
}

#[derive(Default)]
pub(super) struct Table {
    closed: bool,
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
}

impl Table {
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Enters an operation that is about to be sent; `false` when its caller is gone.
    pub(super) fn enter(&mut self, id: u64, reply: oneshot::Sender<Answer>) -> bool {
        // Looked at under the lock: a caller that gives up first drops its end, then looks for its id.
        let wanted = !reply.is_closed() && !self.closed;
        if wanted {
            self.waiting.insert(id, reply);
        }
        wanted
    }
}

impl Outstanding {
    /// For entering a message's operations in one go.
    pub(super) fn lock(&self) -> parking_lot::MutexGuard<'_, Table> {
        self.table.lock()
    }

    pub(super) fn is_open(&self) -> bool {
        !self.table.lock().closed
    }

    /// Hands answers to those who wait. An id that nobody waits for is a caller that went away.
    pub(super) fn answer(&self, answers: impl Iterator<Item = (u64, Answer)>) {
        let mut table = self.table.lock();
        for (id, answer) in answers {
            if let Some(reply) = table.waiting.remove(&id) {
                let _ = reply.send(answer);
            }
        }
    }

    /// Forgets an operation; `true`: it had been sent.
    pub(super) fn forget(&self, id: u64) -> bool {
        self.table.lock().waiting.remove(&id).is_some()
    }

    /// Nothing more will be answered: `failure` to everyone who waits.
    pub(super) fn close(&self, failure: &Failure) {
        let mut table = self.table.lock();
        table.closed = true;
        let mut waiting: Vec<_> = table.waiting.drain().collect();
        // Who asked first hears first.
        waiting.sort_unstable_by_key(|(id, _)| *id);
        for (_, reply) in waiting {
            let _ = reply.send(Err(failure.clone()));
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.table.lock().waiting.len()
    }
}
