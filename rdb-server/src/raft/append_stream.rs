//! Appends to one follower, several under way at once.
//!
//! Owns the window and the order of answers. How one request is sent is a parameter.
//!
//! ```text
//! requests -> send, at most `window` under way -> answers, in the order of the requests
//! ```
//!
//! # Invariants
//!
//! - Requests are handed over in order, and answers come out in the order of their requests: openraft
//!   takes an answer as covering all before it.
//! - After an error, a conflict or a higher vote the stream ends: what was sent behind it built on
//!   something that is not there. openraft opens another stream from where the follower really is.

use super::TypeConfig;
use super::network::RpcError;
use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, Stream, StreamExt};
use openraft::raft::{AppendEntriesRequest, StreamAppendResult};
use std::pin::Pin;
use std::task::{Context, Poll};

type Answer = Result<StreamAppendResult<TypeConfig>, RpcError>;

/// See the [module](self).
pub(super) struct AppendStream<S, F> {
    /// `None` once it has ended.
    requests: Option<S>,
    send: F,
    window: usize,
    under_way: FuturesOrdered<BoxFuture<'static, Answer>>,
    failed: bool,
}

impl<S, F> AppendStream<S, F>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
    F: Fn(AppendEntriesRequest<TypeConfig>) -> BoxFuture<'static, Answer>,
{
    /// `send` hands a request over before it returns.
    pub(super) fn new(requests: S, window: usize, send: F) -> AppendStream<S, F> {
        let window = window.max(1);
        AppendStream {
            requests: Some(requests),
            send,
            window,
            under_way: FuturesOrdered::new(),
            failed: false,
        }
    }

    /// Sends what is ready to be sent and has room.
    fn fill(&mut self, context: &mut Context<'_>) {
        while self.under_way.len() < self.window
            && let Some(requests) = &mut self.requests
        {
            match requests.poll_next_unpin(context) {
                Poll::Ready(Some(request)) => self.under_way.push_back((self.send)(request)),
                Poll::Ready(None) => self.requests = None,
                Poll::Pending => return,
            }
        }
    }
}

impl<S, F> Stream for AppendStream<S, F>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
    F: Fn(AppendEntriesRequest<TypeConfig>) -> BoxFuture<'static, Answer> + Unpin,
{
    type Item = Answer;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Answer>> {
        let this = &mut *self;
        if this.failed {
            return Poll::Ready(None);
        }
        this.fill(context);
        match this.under_way.poll_next_unpin(context) {
            Poll::Ready(Some(answer)) => {
                this.failed = !matches!(answer, Ok(Ok(_)));
                if this.failed {
                    // Nobody waits for the others any more.
                    this.requests = None;
                    this.under_way = FuturesOrdered::new();
                }
                Poll::Ready(Some(answer))
            }
            // Nothing is under way: done, if there is nothing more to send either.
            Poll::Ready(None) if this.requests.is_none() => Poll::Ready(None),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::{Vote, log_id};
    use futures::FutureExt;
    use futures::channel::{mpsc, oneshot};
    use openraft::raft::StreamAppendError;
    use parking_lot::Mutex;
    use std::sync::Arc;

    fn request(index: u64) -> AppendEntriesRequest<TypeConfig> {
        let vote = Vote::new_committed(1, 1);
        AppendEntriesRequest {
            vote,
            prev_log_id: Some(log_id(1, index)),
            entries: vec![],
            leader_commit: None,
        }
    }

    /// What was sent, each with the way to answer it.
    type Sent = Arc<Mutex<Vec<(u64, Option<oneshot::Sender<Answer>>)>>>;

    fn sender(
        sent: &Sent,
    ) -> impl Fn(AppendEntriesRequest<TypeConfig>) -> BoxFuture<'static, Answer> + Unpin + use<>
    {
        let sent = sent.clone();
        move |request| {
            let (answer, answered) = oneshot::channel();
            sent.lock()
                .push((request.prev_log_id.unwrap().index, Some(answer)));
            answered.map(Result::unwrap).boxed()
        }
    }

    fn answer(sent: &Sent, nth: usize, answer: StreamAppendResult<TypeConfig>) {
        sent.lock()[nth].1.take().unwrap().send(Ok(answer)).unwrap();
    }

    fn sent_indexes(sent: &Sent) -> Vec<u64> {
        sent.lock().iter().map(|(index, _)| *index).collect()
    }

    #[test]
    fn requests_go_out_up_to_the_window_and_answers_come_in_order() {
        let sent = Sent::default();
        let requests = futures::stream::iter((0..5).map(request));
        let mut stream = AppendStream::new(requests, 3, sender(&sent));
        assert!(stream.next().now_or_never().is_none());
        assert_eq!(sent_indexes(&sent), [0, 1, 2]);

        // An answer that overtakes waits for those before it.
        answer(&sent, 1, Ok(Some(log_id(1, 1))));
        assert!(stream.next().now_or_never().is_none());
        answer(&sent, 0, Ok(Some(log_id(1, 0))));
        let next = |stream: &mut AppendStream<_, _>| {
            stream.next().now_or_never().unwrap().unwrap().unwrap()
        };
        assert_eq!(next(&mut stream), Ok(Some(log_id(1, 0))));
        assert_eq!(next(&mut stream), Ok(Some(log_id(1, 1))));
        assert!(stream.next().now_or_never().is_none());
        assert_eq!(sent_indexes(&sent), [0, 1, 2, 3, 4]);

        for nth in 2..5 {
            answer(&sent, nth, Ok(None));
            assert_eq!(next(&mut stream), Ok(None));
        }
        assert!(stream.next().now_or_never().unwrap().is_none());
    }

    #[test]
    fn an_open_input_keeps_the_stream_open() {
        let sent = Sent::default();
        let (input, requests) = mpsc::unbounded();
        let mut stream = AppendStream::new(requests, 3, sender(&sent));
        assert!(stream.next().now_or_never().is_none());
        input.unbounded_send(request(7)).unwrap();
        assert!(stream.next().now_or_never().is_none());
        assert_eq!(sent_indexes(&sent), [7]);
        answer(&sent, 0, Ok(None));
        assert!(stream.next().now_or_never().is_some());
        assert!(stream.next().now_or_never().is_none());
        drop(input);
        assert!(stream.next().now_or_never().unwrap().is_none());
    }

    #[test]
    fn a_refusal_ends_the_stream_and_takes_nothing_more() {
        for refusal in [
            StreamAppendError::Conflict(log_id(1, 0)),
            StreamAppendError::HigherVote(Vote::new(9, 2)),
        ] {
            let sent = Sent::default();
            let requests = futures::stream::iter((0..9).map(request));
            let mut stream = AppendStream::new(requests, 2, sender(&sent));
            assert!(stream.next().now_or_never().is_none());
            answer(&sent, 0, Err(refusal.clone()));
            assert_eq!(
                stream.next().now_or_never().unwrap().unwrap().unwrap(),
                Err(refusal)
            );
            assert!(stream.next().now_or_never().unwrap().is_none());
            assert_eq!(sent_indexes(&sent), [0, 1]);
        }
    }
}
