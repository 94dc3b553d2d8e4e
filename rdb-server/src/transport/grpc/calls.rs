//! The calls of one lane that are under way: which wait to be sent, which for their answer.
//!
//! Owns the order of requests and the matching of answers. Does no IO and reads no clock; a caller is
//! only the sending half of a channel.
//!
//! Invariants:
//! - Requests are taken in the order in which they were entered, each once.
//! - `queue` is sorted by id; its ids are those in `waiting` that are not `taken`.
//! - What was taken may have left. What was not taken has not, and after [`Calls::give_up`] or
//!   [`Calls::drain`] never will.

use crate::transport::TransportError;
use rdb_proto::raft::{PeerRequest, peer_response};
use std::collections::{HashMap, VecDeque};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// What a call brings.
pub(super) type Answer = Result<peer_response::Body, TransportError>;

/// The calls under way.
pub(super) struct Calls {
    next_id: u64,
    queue: VecDeque<Queued>,
    waiting: HashMap<u64, Waiting>,
}

struct Queued {
    id: u64,
    deadline: Instant,
    request: PeerRequest,
}

/// A call that has no answer yet.
pub(super) struct Waiting {
    /// `None`: the caller gave the answer up before the request was taken.
    pub(super) answer: Option<oneshot::Sender<Answer>>,
    /// Whether the request may have left.
    pub(super) taken: bool,
}

impl Calls {
    pub(super) fn new() -> Calls {
        // 0 is Hello's.
        Calls {
            next_id: 1,
            queue: VecDeque::new(),
            waiting: HashMap::new(),
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Puts a request behind all others, under an id of its own.
    pub(super) fn enter(
        &mut self,
        mut request: PeerRequest,
        deadline: Instant,
    ) -> (u64, oneshot::Receiver<Answer>) {
        let (sender, receiver) = oneshot::channel();
        let id = self.next_id;
        self.next_id += 1;
        request.id = id;
        self.queue.push_back(Queued {
            id,
            deadline,
            request,
        });
        self.waiting.insert(
            id,
            Waiting {
                answer: Some(sender),
                taken: false,
            },
        );
        (id, receiver)
    }

    /// The next request to send, which says how long its caller waits from `now` on.
    pub(super) fn take(&mut self, now: Instant) -> Option<PeerRequest> {
        let Queued {
            id,
            deadline,
            mut request,
        } = self.queue.pop_front()?;
        match self.waiting.get_mut(&id) {
            Some(waiting) if waiting.answer.is_some() => waiting.taken = true,
            // Its caller gave the answer up: sent all the same, and forgotten.
            _ => drop(self.waiting.remove(&id)),
        }
        let left = deadline.saturating_duration_since(now);
        request.timeout_ms = (left.as_millis() as u64).max(1);
        Some(request)
    }

    /// Whom an answer is for. `None`: nobody waits for it any more, or its request has not left, which
    /// is the other store's mistake.
    pub(super) fn answered(&mut self, id: u64) -> Option<oneshot::Sender<Answer>> {
        if !self.waiting.get(&id)?.taken {
            return None;
        }
        self.waiting.remove(&id)?.answer
    }

    /// Forgets a call, and its request if that has not left. `true`: it may have.
    pub(super) fn give_up(&mut self, id: u64) -> bool {
        self.waiting.remove(&id);
        match self.queue.binary_search_by_key(&id, |queued| queued.id) {
            Ok(at) => {
                self.queue.remove(at);
                false
            }
            Err(_taken) => true,
        }
    }

    /// Forgets a call's caller, but sends the request if it has not left.
    pub(super) fn abandon(&mut self, id: u64) {
        let Some(waiting) = self.waiting.get_mut(&id) else {
            return;
        };
        if waiting.taken {
            self.waiting.remove(&id);
        } else {
            waiting.answer = None;
        }
    }

    /// Hands out everything, in the order in which it was entered, and is empty.
    pub(super) fn drain(&mut self) -> Vec<Waiting> {
        self.queue.clear();
        let mut waiting: Vec<_> = self.waiting.drain().collect();
        waiting.sort_unstable_by_key(|(id, _)| *id);
        waiting.into_iter().map(|(_, waiting)| waiting).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn enter(calls: &mut Calls, now: Instant) -> (u64, oneshot::Receiver<Answer>) {
        calls.enter(PeerRequest::default(), now + Duration::from_millis(100))
    }

    fn ids(calls: &mut Calls, now: Instant) -> Vec<u64> {
        std::iter::from_fn(|| calls.take(now))
            .map(|request| request.id)
            .collect()
    }

    #[test]
    fn requests_are_taken_once_and_in_order() {
        let (mut calls, now) = (Calls::new(), Instant::now());
        let entered: Vec<_> = (0..4).map(|_| enter(&mut calls, now)).collect();
        assert_eq!(
            ids(&mut calls, now),
            entered.iter().map(|(id, _)| *id).collect::<Vec<_>>()
        );
        assert_eq!((ids(&mut calls, now), calls.len()), (vec![], 4));
    }

    #[test]
    fn a_request_says_how_long_its_caller_still_waits() {
        let (mut calls, now) = (Calls::new(), Instant::now());
        for _ in 0..2 {
            let _ = enter(&mut calls, now);
        }
        let later = now + Duration::from_millis(70);
        assert_eq!(calls.take(later).unwrap().timeout_ms, 30);
        assert_eq!(
            calls
                .take(later + Duration::from_secs(9))
                .unwrap()
                .timeout_ms,
            1,
            "0 would mean none"
        );
    }

    #[test]
    fn an_answer_is_for_a_call_that_was_taken_and_still_waits() {
        let (mut calls, now) = (Calls::new(), Instant::now());
        let (id, _receiver) = enter(&mut calls, now);
        assert!(calls.answered(id).is_none(), "it has not left");
        calls.take(now);
        assert!(calls.answered(id + 1).is_none());
        assert!(calls.answered(id).is_some());
        assert!(calls.answered(id).is_none(), "answered twice");
        assert_eq!(calls.len(), 0);
    }

    #[test]
    fn a_call_given_up_is_not_sent_if_it_can_be_helped() {
        let (mut calls, now) = (Calls::new(), Instant::now());
        let [(first, _a), (second, _b), (third, _c)] =
            std::array::from_fn(|_| enter(&mut calls, now));
        calls.take(now);
        assert!(calls.give_up(first), "it was taken");
        assert!(!calls.give_up(second));
        assert_eq!((ids(&mut calls, now), calls.len()), (vec![third], 1));
    }

    #[test]
    fn an_abandoned_call_is_sent_and_keeps_no_place() {
        let (mut calls, now) = (Calls::new(), Instant::now());
        let [(first, _a), (second, _b)] = std::array::from_fn(|_| enter(&mut calls, now));
        calls.abandon(first);
        assert_eq!(calls.len(), 2, "until it is sent it takes up room");
        assert_eq!(
            (ids(&mut calls, now), calls.len()),
            (vec![first, second], 1)
        );
        calls.abandon(second);
        assert_eq!(calls.len(), 0);
    }

    #[test]
    fn draining_tells_what_may_have_left() {
        let (mut calls, now) = (Calls::new(), Instant::now());
        let _receivers: Vec<_> = (0..3).map(|_| enter(&mut calls, now)).collect();
        calls.take(now);
        let taken = calls.drain().iter().filter(|waiting| waiting.taken).count();
        assert_eq!((taken, calls.len(), ids(&mut calls, now)), (1, 0, vec![]));
    }
}
