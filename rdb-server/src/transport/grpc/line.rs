//! One lane to one store, and the phases of its stream: idle, opening, open, resting after a failure.
//!
//! Owns when a stream is opened and what a broken one does to the calls. Knows nothing of other lanes;
//! what they share is in [`Link`].
//!
//! How it works: a call enters [`Calls`] under one lock, which fixes the order, and wakes the stream's
//! outbound half. That half takes requests straight from there whenever HTTP/2 has room, so exactly
//! those taken may have left. One task per stream dials, shakes hands and routes answers; it ends with
//! the stream. The next call after the rest starts another one, so a store that nobody talks to costs
//! nothing.
//!
//! Invariants:
//! - `attempt` numbers the streams. What belongs to an older number ends itself and changes nothing.
//! - No request is taken before the phase is `Open`.
//! - While the phase is neither `Opening` nor `Open` there are no calls and there is no task.

use super::LONGEST_WAIT;
use super::calls::{Answer, Calls, Waiting};
use super::link::{Link, NoStream, explain};
use crate::error::Error;
use crate::tasks;
use crate::transport::{Lane, TransportError};
use futures::Stream;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use prost::Message;
use rand::RngExt;
use rdb_proto::raft::{PeerRequest, PeerResponse, peer_request, peer_response};
use rdb_types::RegionId;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};

const BACK_OFF_MIN: Duration = Duration::from_millis(20);
const BACK_OFF_MAX: Duration = Duration::from_millis(500);

/// One lane to one store.
pub(super) struct Line {
    lane: Lane,
    link: Arc<Link>,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    attempt: u64,
    calls: Calls,
    /// Attempts in a row on which nobody answered, or one of the two refused.
    failures: u32,
    /// Why the last stream ended.
    why: String,
    /// Wakes the outbound half once there is something to take.
    outbound: Option<Waker>,
    task: Option<AbortHandle>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// No stream yet: the next call opens one.
    Idle,
    /// Dialling and shaking hands. Calls wait.
    Opening,
    /// Requests leave.
    Open,
    /// The stream ended. Calls fail at once until then; the first one after opens the next stream.
    Resting { until: Instant },
    /// Shut down, for good.
    Shut,
}

impl Line {
    pub(super) fn new(lane: Lane, link: Arc<Link>) -> Arc<Line> {
        let state = State {
            phase: Phase::Idle,
            attempt: 0,
            calls: Calls::new(),
            failures: 0,
            why: String::new(),
            outbound: None,
            task: None,
        };
        Arc::new(Line {
            lane,
            link,
            state: Mutex::new(state),
        })
    }

    /// See [`crate::transport::Transport::call`].
    pub(super) fn call(
        self: Arc<Line>,
        region: RegionId,
        body: peer_request::Body,
        timeout: Duration,
    ) -> BoxFuture<'static, Answer> {
        let timeout = timeout.min(LONGEST_WAIT);
        let deadline = Instant::now() + timeout;
        let (id, answer) = match self.enter(region, body, deadline) {
            Ok(entered) => entered,
            Err(error) => return Box::pin(std::future::ready(Err(error))),
        };
        // Made before the future is first polled: a call that is dropped at once is given up, too.
        let mut call = Call {
            line: self,
            id,
            open: true,
        };
        Box::pin(async move {
            let outcome = timeout_at(deadline, answer).await;
            call.open = false;
            match outcome {
                Ok(Ok(answer)) => answer,
                // Nothing drops a sender without an answer; were it so, the request may have left.
                Ok(Err(_dropped)) => Err(call.line.no_answer("the call was forgotten")),
                Err(_elapsed) => Err(call.line.time_out(call.id, timeout)),
            }
        })
    }

    /// Takes a request in, or says why not.
    fn enter(
        self: &Arc<Line>,
        region: RegionId,
        body: peer_request::Body,
        deadline: Instant,
    ) -> Result<(u64, oneshot::Receiver<Answer>), TransportError> {
        let request = PeerRequest {
            region_id: region.0,
            body: Some(body),
            ..PeerRequest::default()
        };
        let (size_bytes, limit_bytes) =
            (request.encoded_len(), self.link.options.max_message_bytes);
        if size_bytes > limit_bytes {
            return Err(TransportError::Refused(Error::over_limit(
                "request",
                limit_bytes as u64,
                size_bytes as u64,
            )));
        }

        let mut state = self.state.lock();
        match state.phase {
            Phase::Shut => return Err(self.unreachable("this store is shutting down")),
            Phase::Resting { until } if Instant::now() < until => {
                return Err(self.unreachable(&state.why));
            }
            Phase::Idle | Phase::Resting { .. } | Phase::Opening | Phase::Open => {}
        }
        let in_flight = state.calls.len();
        if in_flight >= self.link.options.max_in_flight {
            return Err(self.unreachable(&format!(
                "too many requests in flight ({in_flight}) on its {:?} lane",
                self.lane
            )));
        }
        let entered = state.calls.enter(request, deadline);
        if matches!(state.phase, Phase::Idle | Phase::Resting { .. }) {
            state.attempt += 1;
            state.phase = Phase::Opening;
            state.task = Some(tasks::spawn(Arc::clone(self).run(state.attempt)).abort_handle());
        } else if state.phase == Phase::Open {
            let outbound = state.outbound.take();
            drop(state);
            if let Some(waker) = outbound {
                waker.wake();
            }
        }
        Ok(entered)
    }

    /// One stream, from dialling to its end.
    async fn run(self: Arc<Line>, attempt: u64) {
        let outbound = Outbound {
            line: Arc::clone(&self),
            attempt,
        };
        let mut answers = match self.link.open(outbound).await {
            Ok(answers) => answers,
            Err(why) => return self.broken(attempt, &why),
        };
        self.opened(attempt);
        let why = loop {
            match answers.message().await {
                Ok(Some(answer)) => self.answered(attempt, answer),
                Ok(None) => break "it closed the stream".to_owned(),
                Err(status) => break format!("the stream broke: {}", explain(&status)),
            }
        };
        self.broken(attempt, &NoStream::Broken(why));
    }

    /// The handshake is done: lets the requests go.
    fn opened(&self, attempt: u64) {
        let outbound = {
            let mut state = self.state.lock();
            if state.attempt != attempt || state.phase != Phase::Opening {
                return;
            }
            state.phase = Phase::Open;
            state.failures = 0;
            state.outbound.take()
        };
        tracing::debug!(store = %self.link.to, lane = ?self.lane, "connected");
        if let Some(waker) = outbound {
            waker.wake();
        }
    }

    /// The next request to send, once there is one. `Ready(None)`: this stream is over.
    fn next(&self, attempt: u64, context: &Context<'_>) -> Poll<Option<PeerRequest>> {
        let mut state = self.state.lock();
        if state.attempt != attempt || !matches!(state.phase, Phase::Opening | Phase::Open) {
            return Poll::Ready(None);
        }
        if state.phase == Phase::Open
            && let Some(request) = state.calls.take(Instant::now())
        {
            return Poll::Ready(Some(request));
        }
        match &mut state.outbound {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    /// Routes an answer. One that nobody waits for any more is dropped.
    fn answered(&self, attempt: u64, answer: PeerResponse) {
        let sender = {
            let mut state = self.state.lock();
            if state.attempt != attempt {
                return;
            }
            state.calls.answered(answer.id)
        };
        let Some(sender) = sender else { return };
        // The receiver may be gone: its caller has stopped waiting in this moment.
        let _ = sender.send(match answer.body {
            Some(peer_response::Body::Error(error)) => {
                Err(TransportError::Refused(Error::from_wire(error)))
            }
            Some(body) => Ok(body),
            None => Err(self.no_answer("it answered with something that this build does not know")),
        });
    }

    /// The stream is gone: settles all that waits, and rests.
    fn broken(&self, attempt: u64, no_stream: &NoStream) {
        let why = no_stream.why();
        let (waiting, outbound, was_open, failures) = {
            let mut state = self.state.lock();
            if state.attempt != attempt || state.phase == Phase::Shut {
                return;
            }
            let was_open = state.phase == Phase::Open;
            match no_stream {
                // It answered: whoever waits for it should hear soon when it is ready.
                NoStream::NotYet(_) => state.failures = 0,
                _ if was_open => {}
                _ => state.failures = state.failures.saturating_add(1),
            }
            state.phase = Phase::Resting {
                until: Instant::now() + back_off(state.failures),
            };
            state.why = why.to_owned();
            let (waiting, outbound, _this_task) = state.end();
            (waiting, outbound, was_open, state.failures)
        };
        // Once for each change; the attempts that follow are routine.
        match no_stream {
            _ if !was_open && failures > 1 => {
                tracing::debug!(store = %self.link.to, lane = ?self.lane, why, failures, "still not connected");
            }
            NoStream::Refused(_) => {
                tracing::warn!(store = %self.link.to, lane = ?self.lane, why, "refused");
            }
            NoStream::NotYet(_) => {
                tracing::debug!(store = %self.link.to, lane = ?self.lane, why, "nothing to be said yet");
            }
            NoStream::Broken(_) => {
                tracing::info!(store = %self.link.to, lane = ?self.lane, why, "disconnected");
            }
        }
        self.settle(waiting, outbound, why);
    }

    /// Ends the stream for good, and its task with it.
    pub(super) fn shut(&self) {
        let (waiting, outbound, task) = {
            let mut state = self.state.lock();
            state.phase = Phase::Shut;
            state.end()
        };
        if let Some(task) = task {
            task.abort();
        }
        self.link.hang_up();
        self.settle(waiting, outbound, "this store is shutting down");
    }

    /// Tells every caller, and lets the outbound half see that it is over.
    fn settle(&self, waiting: Vec<Waiting>, outbound: Option<Waker>, why: &str) {
        for Waiting { answer, taken } in waiting {
            if let Some(sender) = answer {
                let error = if taken {
                    self.no_answer(why)
                } else {
                    self.unreachable(why)
                };
                let _ = sender.send(Err(error)); // its caller may just have stopped waiting
            }
        }
        if let Some(waker) = outbound {
            waker.wake();
        }
    }

    fn time_out(&self, id: u64, after: Duration) -> TransportError {
        let after_ms = after.as_millis();
        if self.state.lock().calls.give_up(id) {
            self.no_answer(&format!("none within {after_ms} ms"))
        } else {
            self.unreachable(&format!(
                "the request could not be sent within {after_ms} ms"
            ))
        }
    }

    fn no_answer(&self, why: &str) -> TransportError {
        TransportError::NoAnswer {
            to: self.link.to,
            why: why.to_owned(),
        }
    }

    fn unreachable(&self, why: &str) -> TransportError {
        TransportError::Unreachable {
            to: self.link.to,
            why: why.to_owned(),
        }
    }
}

impl State {
    /// Ends the current attempt: hands out all that waited, whom to wake, and the task.
    fn end(&mut self) -> (Vec<Waiting>, Option<Waker>, Option<AbortHandle>) {
        self.attempt += 1;
        (self.calls.drain(), self.outbound.take(), self.task.take())
    }
}

/// A call under way. Dropped before its answer came, it gives the answer up, not the request.
struct Call {
    line: Arc<Line>,
    id: u64,
    open: bool,
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.open {
            self.line.state.lock().calls.abandon(self.id);
        }
    }
}

/// The sending half of one stream, which tonic polls whenever HTTP/2 has room.
struct Outbound {
    line: Arc<Line>,
    attempt: u64,
}

impl Stream for Outbound {
    type Item = PeerRequest;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<PeerRequest>> {
        self.line.next(self.attempt, context)
    }
}

/// 20 ms doubling to 500 ms, somewhere in the upper half of it: stores that lost a peer in the same
/// moment do not come back in the same moment.
fn back_off(failures: u32) -> Duration {
    let full = BACK_OFF_MIN
        .saturating_mul(1 << failures.min(8))
        .min(BACK_OFF_MAX);
    full / 2 + (full / 2).mul_f64(tasks::random().random())
}
