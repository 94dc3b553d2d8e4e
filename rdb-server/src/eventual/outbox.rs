//! What is sent to one other replica, and what it has.
//!
//! Owns the choice of entries: every store pushes what it accepted itself; what others accepted it passes
//! on only where nobody else does; what was lost goes out again. Knows nothing of bytes, connections or time.
//!
//! Invariant: nothing is chosen beyond the synced vector, nor anything that the other is known to have; and
//! when no push is under way, everything that the other is not known to have can be chosen.

use rdb_types::{NamespaceId, StoreId, VersionVector};
use std::collections::BTreeMap;

/// Pushes under way at the same time: while one is being synced there, the next is on its way.
const WINDOW: usize = 3;

/// What this replica can send of a namespace.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// Synced up to here.
    pub vector: VersionVector,
    /// Logs are gone up to here.
    pub truncated: VersionVector,
}

/// Consecutive entries of one origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Of which namespace.
    pub namespace: NamespaceId,
    /// Of whose log.
    pub origin: StoreId,
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
}

#[derive(Clone, Debug, Default)]
struct Progress {
    /// What the other has, synced, as it said.
    acknowledged: VersionVector,
    /// What was sent and may be under way.
    sent: VersionVector,
}

/// The state of sending to one replica.
#[derive(Clone, Debug, Default)]
pub struct Outbox {
    progress: BTreeMap<NamespaceId, Progress>,
    /// Pushes without an answer yet.
    under_way: usize,
    /// A push was not taken: nothing more goes out before all answers are there, and then what was lost goes
    /// out again. Another push that was taken says nothing of it.
    stuck: bool,
}

impl Outbox {
    /// Nothing is known of the other.
    pub fn new() -> Outbox {
        Outbox::default()
    }

    /// Whether the other ever said what it has of a namespace.
    pub fn knows(&self, namespace: NamespaceId) -> bool {
        self.progress.contains_key(&namespace)
    }

    /// The other has all this.
    pub fn acknowledged(&mut self, namespace: NamespaceId, vector: &VersionVector) {
        let progress = self.progress.entry(namespace).or_default();
        progress.acknowledged.join(vector);
        progress.sent.join(vector);
    }

    /// Whether another push may go out.
    pub fn is_open(&self) -> bool {
        self.under_way < WINDOW && !self.stuck
    }

    /// A push of these runs went out.
    pub fn sent(&mut self, runs: &[Run]) {
        self.under_way += 1;
        for run in runs {
            if let Some(progress) = self.progress.get_mut(&run.namespace) {
                progress.sent.raise(run.origin, run.last);
            }
        }
    }

    /// A push was answered, or will not be any more; what the answer says the other has is known already.
    /// Whether it has all of the push.
    pub fn answered(&mut self, runs: &[Run]) -> bool {
        let taken = runs.iter().all(|run| {
            let progress = self.progress.get(&run.namespace);
            progress.is_some_and(|progress| progress.acknowledged.get(run.origin) >= run.last)
        });
        self.stuck |= !taken;
        self.under_way = self.under_way.saturating_sub(1);
        if self.under_way == 0 && std::mem::take(&mut self.stuck) {
            for progress in self.progress.values_mut() {
                progress.sent = progress.acknowledged.clone();
            }
        }
        taken
    }

    /// Drops what is known of a namespace, until the other says anew what it has.
    pub fn forget(&mut self, namespace: NamespaceId) {
        self.progress.remove(&namespace);
    }

    /// What to send next of a namespace: own entries, and those of others where `relay` says so.
    pub fn runs(
        &self,
        namespace: NamespaceId,
        me: StoreId,
        held: &Held,
        relay: impl Fn(StoreId) -> bool,
    ) -> Vec<Run> {
        let Some(progress) = self.progress.get(&namespace) else {
            return Vec::new();
        };
        held.vector
            .iter()
            .filter(|(origin, _)| *origin == me || relay(*origin))
            .map(|(origin, last)| Run {
                namespace,
                origin,
                first: progress.sent.get(origin) + 1,
                last,
            })
            // What is gone from the log here cannot be sent; who needs it takes a copy.
            .filter(|run| run.first <= run.last && run.first > held.truncated.get(run.origin))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMESPACE: NamespaceId = NamespaceId(3);

    fn store(id: u64) -> StoreId {
        StoreId::new(id).unwrap()
    }

    fn vector(parts: &[(u64, u64)]) -> VersionVector {
        parts.iter().map(|(id, last)| (store(*id), *last)).collect()
    }

    fn runs(outbox: &Outbox, held: &Held, relay: bool) -> Vec<(u64, u64, u64)> {
        outbox
            .runs(NAMESPACE, store(1), held, |_| relay)
            .into_iter()
            .map(|run| (u64::from(run.origin.get()), run.first, run.last))
            .collect()
    }

    #[test]
    fn own_entries_go_out_and_others_only_as_a_relay() {
        let mut outbox = Outbox::new();
        let held = Held {
            vector: vector(&[(1, 5), (2, 3)]),
            truncated: VersionVector::new(),
        };
        assert!(
            runs(&outbox, &held, true).is_empty(),
            "what it has is not known"
        );
        outbox.acknowledged(NAMESPACE, &vector(&[(1, 2)]));
        assert_eq!(runs(&outbox, &held, false), [(1, 3, 5)]);
        assert_eq!(runs(&outbox, &held, true), [(1, 3, 5), (2, 1, 3)]);
    }

    /// A push of everything there is.
    fn push(outbox: &mut Outbox, held: &Held, namespace: NamespaceId) -> Vec<Run> {
        assert!(outbox.is_open());
        let runs = outbox.runs(namespace, store(1), held, |_| false);
        assert!(!runs.is_empty(), "nothing to push");
        outbox.sent(&runs);
        runs
    }

    fn up_to(last: u64) -> Held {
        Held {
            vector: vector(&[(1, last)]),
            truncated: VersionVector::new(),
        }
    }

    #[test]
    fn what_was_lost_is_sent_again_and_what_was_acknowledged_is_not() {
        let (mut outbox, held) = (Outbox::new(), up_to(5));
        outbox.acknowledged(NAMESPACE, &VersionVector::new());
        let lost = push(&mut outbox, &held, NAMESPACE);
        assert!(runs(&outbox, &held, false).is_empty());
        outbox.acknowledged(NAMESPACE, &vector(&[(1, 3)]));
        assert!(!outbox.answered(&lost));
        assert_eq!(runs(&outbox, &held, false), [(1, 4, 5)]);
    }

    /// The bug: of two pushes the first was lost and the second, of another namespace, taken. It was the
    /// last under way and it was fine; so the entries of the first counted as sent for good, and waited
    /// until somebody else relayed them.
    #[test]
    fn a_push_that_was_lost_goes_out_again_whatever_became_of_the_one_behind_it() {
        let other = NamespaceId(4);
        for first_answer in ["of the lost one", "of the taken one"] {
            let (mut outbox, held) = (Outbox::new(), up_to(5));
            outbox.acknowledged(NAMESPACE, &VersionVector::new());
            outbox.acknowledged(other, &VersionVector::new());
            let lost = push(&mut outbox, &held, NAMESPACE);
            let taken = push(&mut outbox, &held, other);
            if first_answer == "of the lost one" {
                assert!(!outbox.answered(&lost));
                assert!(!outbox.is_open(), "the order would be lost");
                outbox.acknowledged(other, &vector(&[(1, 5)]));
                assert!(outbox.answered(&taken));
            } else {
                outbox.acknowledged(other, &vector(&[(1, 5)]));
                assert!(outbox.answered(&taken));
                assert!(outbox.is_open(), "nothing is known to be lost");
                assert!(!outbox.answered(&lost));
            }
            assert!(outbox.is_open());
            assert_eq!(runs(&outbox, &held, false), [(1, 1, 5)], "{first_answer}");
            assert!(outbox.runs(other, store(1), &held, |_| false).is_empty());
        }
    }

    /// While one answer is missing nothing goes out again: it would arrive twice, and behind what it
    /// belongs in front of.
    #[test]
    fn after_a_loss_everything_waits_for_the_last_answer() {
        let mut outbox = Outbox::new();
        outbox.acknowledged(NAMESPACE, &VersionVector::new());
        let pushes: Vec<_> = (1..=WINDOW as u64)
            .map(|last| push(&mut outbox, &up_to(last), NAMESPACE))
            .collect();
        let held = up_to(9);
        assert!(!outbox.is_open(), "the window is full");
        for (answered, lost) in pushes.iter().enumerate() {
            assert!(!outbox.is_open(), "{answered} answers");
            assert_eq!(runs(&outbox, &held, false), [(1, WINDOW as u64 + 1, 9)]);
            assert!(!outbox.answered(lost));
        }
        assert!(outbox.is_open());
        assert_eq!(runs(&outbox, &held, false), [(1, 1, 9)]);
    }

    /// A report came between and said that it arrived: the answer to the push is not needed.
    #[test]
    fn what_arrived_without_an_answer_is_not_sent_again() {
        let (mut outbox, held) = (Outbox::new(), up_to(5));
        outbox.acknowledged(NAMESPACE, &VersionVector::new());
        let unanswered = push(&mut outbox, &held, NAMESPACE);
        outbox.acknowledged(NAMESPACE, &vector(&[(1, 5)]));
        assert!(outbox.answered(&unanswered));
        assert!(runs(&outbox, &held, false).is_empty());
    }

    /// What the other has is not known any more: a push under way was not taken, and nothing is sent before
    /// it says anew.
    #[test]
    fn a_push_of_a_namespace_that_was_forgotten_is_not_taken() {
        let (mut outbox, held) = (Outbox::new(), up_to(5));
        outbox.acknowledged(NAMESPACE, &VersionVector::new());
        let under_way = push(&mut outbox, &held, NAMESPACE);
        outbox.forget(NAMESPACE);
        assert!(!outbox.answered(&under_way));
        assert!(runs(&outbox, &held, false).is_empty());
        outbox.acknowledged(NAMESPACE, &vector(&[(1, 2)]));
        assert_eq!(runs(&outbox, &held, false), [(1, 3, 5)]);
    }

    #[test]
    fn what_the_log_no_longer_has_is_not_promised() {
        let mut outbox = Outbox::new();
        outbox.acknowledged(NAMESPACE, &vector(&[(1, 2)]));
        let held = Held {
            vector: vector(&[(1, 5)]),
            truncated: vector(&[(1, 3)]),
        };
        assert!(runs(&outbox, &held, false).is_empty());
    }
}
