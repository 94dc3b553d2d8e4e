//! From the queue of operations to messages.
//!
//! Owns how much goes into one message. It is the request stream itself: the connection polls it
//! when it can send, so what arrives meanwhile waits in the queue and travels together.
//!
//! Invariants: a message holds at least one operation, at most `max_ops`, and at most `max_bytes`
//! unless a single operation is larger; operations keep their order.

use super::Submission;
use super::outstanding::Outstanding;
use futures::{FutureExt, Stream};
use rdb_proto::kv;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

pub(super) struct Gather {
    pub(super) queue: mpsc::Receiver<Submission>,
    pub(super) outstanding: Arc<Outstanding>,
    /// Resolves when the answers ended: then nothing more is sent.
    pub(super) ended: oneshot::Receiver<()>,
    pub(super) max_ops: usize,
    pub(super) max_bytes: usize,
    /// Taken from the queue, in no message yet.
    pub(super) taken: Vec<Submission>,
    /// Let others run once since the last message.
    pub(super) paused: bool,
}

impl Stream for Gather {
    type Item = kv::BatchRequest;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<kv::BatchRequest>> {
        let this = self.get_mut();
        loop {
            if this.ended.poll_unpin(cx).is_ready() {
                return Poll::Ready(None);
            }
            let room = this.max_ops.saturating_sub(this.taken.len());
            if room > 0 {
                match this.queue.poll_recv_many(cx, &mut this.taken, room) {
                    Poll::Ready(0) if this.taken.is_empty() => return Poll::Ready(None),
                    Poll::Pending if this.taken.is_empty() => return Poll::Pending,
                    // Callers that were woken together (by the answers of one message) ask again one
                    // after the other. Giving way once lets those who are ready join; with nobody
                    // ready it costs less than a microsecond.
                    Poll::Ready(count) if count < room && !this.paused => {
                        this.paused = true;
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    _ => {}
                }
            }
            this.paused = false;
            if let Some(message) = this.message() {
                return Poll::Ready(Some(message));
            }
        }
    }
}

impl Gather {
    /// A message of what was taken, as far as it fits; `None`: nobody of those waits any more.
    fn message(&mut self) -> Option<kv::BatchRequest> {
        let fitting = fitting(&self.taken, self.max_bytes);
        let now = Instant::now();
        let mut message: Option<kv::BatchRequest> = None;
        let mut table = self.outstanding.lock();
        if table.is_closed() {
            // Unsent, and their callers learn it; the next poll ends the stream.
            self.taken.clear();
            return None;
        }
        for submission in self.taken.drain(..fitting) {
            let Submission {
                id,
                op,
                deadline,
                reply,
                ..
            } = submission;
            let left = deadline.saturating_duration_since(now);
            // Too late to be answered: dropped unsent, which is what its caller will find.
            if left.is_zero() || !table.enter(id, reply) {
                continue;
            }
            // 0 would mean the store's own timeout.
            let timeout_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
            let request = kv::BatchRequest {
                id,
                op: Some(op),
                also: Vec::new(),
                timeout_ms,
            };
            match &mut message {
                None => message = Some(request),
                Some(first) => first.also.push(request),
            }
        }
        message
    }
}

/// How many of these go into one message.
fn fitting(taken: &[Submission], max_bytes: usize) -> usize {
    let mut bytes = 0_usize;
    let over = taken.iter().position(|submission| {
        bytes = bytes.saturating_add(submission.encoded_bytes);
        bytes > max_bytes
    });
    over.unwrap_or(taken.len()).max(1).min(taken.len())
}
