//! One Batch stream, from its opening to its end.
//!
//! Owns the queue to it and the task that reads its answers. A session that ended stays ended; its
//! endpoint opens another. Knows nothing of retries.

use super::gather::Gather;
use super::outstanding::Outstanding;
use super::{Answer, Submission};
use crate::failure::Failure;
use crate::node::{Connection, Node};
use crate::options::ClientOptions;
use prost::Message;
use rdb_proto::kv::{self, kv_client::KvClient};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

/// Answers of one message may be many values; a store bounds them, this only bounds nonsense.
pub(crate) const MAX_ANSWER_BYTES: usize = 64 << 20;

pub(crate) struct Session {
    address: Arc<str>,
    queue: mpsc::Sender<Submission>,
    outstanding: Arc<Outstanding>,
    next_id: AtomicU64,
}

impl Session {
    /// Opens a stream on `connection`; its end takes the connection away from `node` if that is what
    /// broke. Its messages are no larger than `max_message_bytes`, single operations excepted.
    pub(crate) fn open(
        node: Weak<Node>,
        address: &str,
        connection: Connection,
        options: &ClientOptions,
        max_message_bytes: usize,
    ) -> Session {
        let (session, gather, end) = Session::parts(address, options, max_message_bytes);
        // Whatever ends the task, also its runtime, nobody is left waiting.
        let closer = Closer {
            outstanding: session.outstanding.clone(),
            address: session.address.clone(),
            _end: end,
        };
        tokio::spawn(async move {
            let status = read(&closer.address, &connection, gather, &closer.outstanding).await;
            let failure = match &status {
                Ok(()) => Failure::stream_ended(&closer.address),
                Err(status) => Failure::from_stream_end(&closer.address, status),
            };
            tracing::debug!(
                endpoint = &*closer.address,
                error = failure.message,
                "batch stream ended"
            );
            if let Some(node) = node.upgrade() {
                node.learn(&failure);
                if failure.is_network() {
                    node.forget(&connection);
                }
            }
            closer.outstanding.close(&failure);
        });
        session
    }

    /// A session, the messages it makes, and what ends these when it is dropped.
    fn parts(
        address: &str,
        options: &ClientOptions,
        max_message_bytes: usize,
    ) -> (Session, Gather, oneshot::Sender<()>) {
        let address: Arc<str> = address.into();
        let outstanding = Arc::new(Outstanding::default());
        let (queue, queued) = mpsc::channel(options.max_queued_ops.max(1));
        let (end, ended) = oneshot::channel();
        let gather = Gather {
            queue: queued,
            outstanding: outstanding.clone(),
            ended,
            max_ops: options.max_batch_ops.max(1),
            max_bytes: max_message_bytes,
            taken: Vec::new(),
            paused: false,
        };
        (
            Session {
                address,
                queue,
                outstanding,
                next_id: AtomicU64::new(1),
            },
            gather,
            end,
        )
    }

    pub(crate) fn is_open(&self) -> bool {
        self.outstanding.is_open()
    }

    /// Sends an operation and waits for its answer, until the deadline.
    pub(crate) async fn call(&self, op: kv::batch_request::Op, deadline: Instant) -> Answer {
        let (reply, answer) = oneshot::channel();
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let room = match self.queue.try_reserve() {
            Ok(room) => room,
            Err(mpsc::error::TrySendError::Closed(())) => {
                return Err(Failure::not_sent(&self.address));
            }
            Err(mpsc::error::TrySendError::Full(())) => {
                match timeout_at(deadline, self.queue.reserve()).await {
                    Ok(Ok(room)) => room,
                    Ok(Err(_)) => return Err(Failure::not_sent(&self.address)),
                    Err(_) => return Err(Failure::deadline(&self.address, false)),
                }
            }
        };
        let body_bytes = body_bytes(&op);
        room.send(Submission {
            id,
            encoded_bytes: body_bytes + FRAME_BYTES,
            op,
            deadline,
            reply,
        });
        let mut ticket = Ticket {
            outstanding: &self.outstanding,
            id,
            answer,
        };
        match timeout_at(deadline, &mut ticket.answer).await {
            Ok(Ok(Err(failure))) => Err(match failure.oversized.and_then(|it| it.limit_bytes) {
                Some(limit) if body_bytes > limit => failure.for_too_large(&self.address, limit),
                _ => failure,
            }),
            Ok(Ok(answer)) => answer,
            // Dropped unsent: what was sent is answered, at the latest when the table is closed.
            Ok(Err(_)) => Err(Failure::not_sent(&self.address)),
            Err(_) => ticket.give_up(&self.address),
        }
    }
}

/// What carries an operation in a message: its id, its timeout and the lengths, a little generously.
const FRAME_BYTES: usize = 32;

/// What an operation adds to a message.
pub(crate) fn encoded_bytes(op: &kv::batch_request::Op) -> usize {
    body_bytes(op) + FRAME_BYTES
}

/// The operation alone: what a plain call sends.
fn body_bytes(op: &kv::batch_request::Op) -> usize {
    match op {
        kv::batch_request::Op::Get(request) => request.encoded_len(),
        kv::batch_request::Op::Put(request) => request.encoded_len(),
        kv::batch_request::Op::Delete(request) => request.encoded_len(),
        kv::batch_request::Op::CompareAndSwap(request) => request.encoded_len(),
    }
}

/// Hands answers out until there are no more; `Ok`: the store ended the stream in order.
async fn read(
    address: &str,
    connection: &Connection,
    gather: Gather,
    outstanding: &Outstanding,
) -> Result<(), tonic::Status> {
    let mut client =
        KvClient::new(connection.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES);
    let mut answers = client.batch(gather).await?.into_inner();
    while let Some(mut message) = answers.message().await? {
        let also = std::mem::take(&mut message.also);
        outstanding.answer(std::iter::once(message).chain(also).map(|answer| {
            let result = match answer.result {
                Some(kv::batch_response::Result::Failure(failure)) => {
                    Err(Failure::from_wire(failure))
                }
                Some(result) => Ok(result),
                None => Err(Failure::nonsense(address, "without a result")),
            };
            (answer.id, result)
        }));
    }
    Ok(())
}

struct Closer {
    outstanding: Arc<Outstanding>,
    address: Arc<str>,
    _end: oneshot::Sender<()>,
}

impl Drop for Closer {
    fn drop(&mut self) {
        self.outstanding
            .close(&Failure::stream_ended(&self.address));
    }
}

/// A waiting caller. Dropping it, answered or not, leaves nothing in the table.
struct Ticket<'a> {
    outstanding: &'a Outstanding,
    id: u64,
    answer: oneshot::Receiver<Answer>,
}

impl Ticket<'_> {
    /// The deadline passed: takes an answer that just came, or finds out whether it was sent.
    fn give_up(mut self, address: &str) -> Answer {
        self.answer.close();
        let sent = self.outstanding.forget(self.id);
        match self.answer.try_recv() {
            Ok(answer) => answer,
            Err(_) => Err(Failure::deadline(address, sent)),
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if !self.answer.is_terminated() {
            self.answer.close();
            self.outstanding.forget(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use futures::{StreamExt, poll};
    use std::pin::pin;
    use std::time::Duration;

    fn put(value: &'static [u8]) -> kv::batch_request::Op {
        kv::batch_request::Op::Put(kv::PutRequest {
            value: value.into(),
            ..Default::default()
        })
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(1)
    }

    fn values(message: &kv::BatchRequest) -> Vec<&[u8]> {
        std::iter::once(message)
            .chain(&message.also)
            .map(|request| match &request.op {
                Some(kv::batch_request::Op::Put(put)) => &put.value[..],
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn when_the_stream_ends_only_what_was_sent_may_be_applied() {
        let (session, mut gather, end) = Session::parts("a:1", &ClientOptions::default(), 1 << 20);
        let mut first = pin!(session.call(put(b"1"), soon()));
        let mut second = pin!(session.call(put(b"2"), soon()));
        assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
        assert_eq!(values(&gather.next().await.unwrap()), [b"1", b"2"]);
        let mut third = pin!(session.call(put(b"3"), soon()));
        assert!(poll!(&mut third).is_pending());

        drop(end);
        session.outstanding.close(&Failure::stream_ended("a:1"));
        assert!(gather.next().await.is_none(), "nothing more is sent");
        drop(gather);
        for sent in [first.await, second.await] {
            assert!(sent.unwrap_err().may_be_applied);
        }
        assert!(!third.await.unwrap_err().may_be_applied);
        assert!(
            !session
                .call(put(b"4"), soon())
                .await
                .unwrap_err()
                .may_be_applied
        );
        assert!(!session.is_open());
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_tells_what_was_sent_from_what_was_not() {
        let (session, mut gather, _end) = Session::parts("a:1", &ClientOptions::default(), 1 << 20);
        let mut sent = pin!(session.call(put(b"1"), soon()));
        assert!(poll!(&mut sent).is_pending());
        let message = gather.next().await.unwrap();
        assert_eq!(message.timeout_ms, 1000);
        let mut unsent = pin!(session.call(put(b"2"), soon()));
        assert!(poll!(&mut unsent).is_pending());
        let (sent, unsent) = (sent.await.unwrap_err(), unsent.await.unwrap_err());
        assert_eq!(
            (sent.kind, sent.may_be_applied),
            (ErrorKind::Deadline, true)
        );
        assert_eq!(
            (unsent.kind, unsent.may_be_applied),
            (ErrorKind::Deadline, false)
        );
        assert_eq!(session.outstanding.len(), 0);
        // The late one is not sent to be answered to nobody.
        let mut last = pin!(session.call(put(b"3"), soon()));
        assert!(poll!(&mut last).is_pending());
        assert_eq!(values(&gather.next().await.unwrap()), [b"3"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_late_is_not_sent_any_more() {
        let (session, mut gather, _end) = Session::parts("a:1", &ClientOptions::default(), 1 << 20);
        let mut late = pin!(session.call(put(b"1"), soon()));
        assert!(poll!(&mut late).is_pending());
        // The connection can send again only now; the caller has not looked at the clock yet.
        tokio::time::advance(Duration::from_secs(2)).await;
        let mut next = pin!(session.call(put(b"2"), soon()));
        assert!(poll!(&mut next).is_pending());
        assert_eq!(values(&gather.next().await.unwrap()), [b"2"]);
        assert!(!late.await.unwrap_err().may_be_applied);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_goes_away_leaves_nothing_behind() {
        let (session, mut gather, _end) = Session::parts("a:1", &ClientOptions::default(), 1 << 20);
        let (mut sent, mut stays) = (
            Box::pin(session.call(put(b"1"), soon())),
            Box::pin(session.call(put(b"2"), soon())),
        );
        assert!(poll!(&mut sent).is_pending() && poll!(&mut stays).is_pending());
        let message = gather.next().await.unwrap();
        assert_eq!(session.outstanding.len(), 2);
        drop(sent);
        assert_eq!(session.outstanding.len(), 1, "forgotten though it was sent");
        // Its answer, when it comes, disturbs nobody.
        let answer = || Ok(kv::batch_response::Result::Put(kv::PutResponse::default()));
        session
            .outstanding
            .answer([(message.id, answer()), (message.also[0].id, answer())].into_iter());
        assert!(stays.await.is_ok());

        let mut unsent = Box::pin(session.call(put(b"3"), soon()));
        assert!(poll!(&mut unsent).is_pending());
        drop(unsent);
        let mut next = pin!(session.call(put(b"4"), soon()));
        assert!(poll!(&mut next).is_pending());
        assert_eq!(values(&gather.next().await.unwrap()), [b"4"], "never sent");
    }

    #[tokio::test(start_paused = true)]
    async fn messages_close_before_they_grow_too_large() {
        let options = ClientOptions {
            max_batch_bytes: 250,
            max_batch_ops: 3,
            ..ClientOptions::default()
        };
        let (session, mut gather, _end) = Session::parts("a:1", &options, options.max_batch_bytes);
        let large: &'static [u8] = &[7; 100];
        let calls = [large, large, b"3", b"4", b"5", b"6", b"7"]
            .map(|value| Box::pin(session.call(put(value), soon())));
        let mut calls = calls;
        for call in &mut calls {
            assert!(poll!(call).is_pending());
        }
        let mut sizes = Vec::new();
        for _ in 0..3 {
            let message = gather.next().await.unwrap();
            sizes.push(values(&message).len());
        }
        assert_eq!(sizes, [1, 3, 3]);
    }
}
