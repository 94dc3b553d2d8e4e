//! The batch stream: many operations in a message, many messages under way.
//!
//! Owns the window of a stream, its end, and which answer goes into which message. What an operation
//! asks for, and how it is worked on, is the service's.
//!
//! Invariants: every operation of a message that was read is answered once, under its own id, before the
//! stream ends; while [`BATCH_WINDOW`] groups of a stream are under way, no more is read from it.

use super::KvService;
use super::group::{Answer, Group, method_of, namespace_of};
use crate::error::{Error, Outcome};
use crate::grpc_edge::{LONGEST_CALL, in_our_words};
use crate::metrics::Timed;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, Stream, StreamExt};
use rdb_proto::kv::{self, batch_response};
use rdb_types::Reason;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// Groups of one stream that are worked on at once before reading pauses; those of one message may pass it.
const BATCH_WINDOW: usize = 64;

/// The answers of a stream.
pub(super) type Answers = Pin<Box<dyn Stream<Item = Result<kv::BatchResponse, Status>> + Send>>;

/// Works on a stream until it ends, and answers.
pub(super) fn serve(service: KvService, mut requests: Streaming<kv::BatchRequest>) -> Answers {
    let (answers, reader) = mpsc::channel(BATCH_WINDOW);
    tokio::spawn(async move {
        let mut work = FuturesUnordered::new();
        let mut open = true;
        let mut end = None;
        while open || !work.is_empty() {
            tokio::select! {
                // Answers first: there are never more of them than were read.
                biased;
                Some(response) = work.next(), if !work.is_empty() => {
                    // An error: the runtime is shutting down, and the stream with it.
                    let Ok(response) = response else { return };
                    if answers.send(Ok(response)).await.is_err() {
                        return;
                    }
                }
                message = requests.next(), if open && work.len() < BATCH_WINDOW => match message {
                    // Spawned, so that one message does not wait for another one's disk.
                    Some(Ok(message)) => {
                        work.extend(service.message(message).into_iter().map(tokio::spawn));
                    }
                    Some(Err(status)) => {
                        end = Some(service.end_of_stream(status));
                        open = false;
                    }
                    None => open = false,
                },
            }
        }
        // Last, because it ends the stream: every message before it has its answer by now.
        if let Some(status) = end {
            let _ = answers.send(Err(status)).await; // the reader may be gone
        }
    });
    Box::pin(ReceiverStream::new(reader))
}

impl KvService {
    /// What a batch stream ends with whose next message could not be taken.
    fn end_of_stream(&self, status: Status) -> Status {
        let max_request_bytes = self.config.load().limits.max_request.as_bytes();
        match in_our_words(&status, max_request_bytes) {
            Some(mut error) => {
                error.message.push_str(
                    ". The stream ends with it; the messages before it were answered each on its own",
                );
                error.to_status(false)
            }
            None => status,
        }
    }

    /// One message of a batch stream: its operations grouped by namespace and kind, one answer message
    /// for each group.
    fn message(&self, message: kv::BatchRequest) -> Vec<BoxFuture<'static, kv::BatchResponse>> {
        let mut refused = Vec::new();
        let mut groups: BTreeMap<(String, bool, u64), Group> = BTreeMap::new();
        let mut message = message;
        let also = std::mem::take(&mut message.also);
        for request in std::iter::once(message).chain(also) {
            let id = request.id;
            let named = request
                .op
                .as_ref()
                .map(|op| (method_of(op), namespace_of(op).to_owned()));
            let timeout_ms = request.timeout_ms.min(LONGEST_CALL.as_millis() as u64);
            let decoded = match request.op {
                Some(op) => self.decode(op),
                None => Err(Error::invalid("op", "this operation is empty, or of a kind that this store does not know; upgrade it").outcome(Outcome::NotApplied)),
            };
            match decoded {
                Err(error) => {
                    let (method, namespace) = named.unwrap_or(("Batch", String::new()));
                    Timed::start(&self.metrics, method, &namespace).done(Some(&error));
                    refused.push((id, Err((error, false))));
                }
                // Operations with about the same time left go together, within a tenth of a second.
                Ok(decoded) => decoded.join(&mut groups, id, timeout_ms.div_ceil(100) * 100),
            }
        }
        let mut work: Vec<BoxFuture<'static, kv::BatchResponse>> = Vec::new();
        if !refused.is_empty() {
            work.push(async move { response_of(refused) }.boxed());
        }
        for ((namespace, _, timeout_ms), group) in groups {
            let service = self.clone();
            let timeout = (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms));
            work.push(
                async move {
                    let began = Instant::now();
                    let methods = group.methods();
                    let asked = group.asked();
                    let work = service.run(group, service.deadline(timeout));
                    let answers = guarded(asked, work).await;
                    // Each operation counts under its own name; the group's time is that of each kind in it.
                    let kinds: BTreeSet<&'static str> = methods.iter().copied().collect();
                    for kind in kinds {
                        let its = answers
                            .iter()
                            .zip(&methods)
                            .filter(|(_, method)| **method == kind);
                        Timed::since(&service.metrics, kind, &namespace, began).done_all(
                            its.map(|((_, answer), _)| {
                                answer.as_ref().err().map(|(error, _)| error)
                            }),
                        );
                    }
                    response_of(answers)
                }
                .boxed(),
            );
        }
        work
    }
}

/// An operation that waits for its answer: its id, and for a write whether it has a request id.
type Asked = (u64, Option<bool>);

impl Group {
    fn asked(&self) -> Vec<Asked> {
        match self {
            Group::Reads { ids, .. } => ids.iter().map(|id| (*id, None)).collect(),
            Group::Writes { ids, ops, .. } => {
                let has_ids = ops.iter().map(|(op, _)| Some(!op.request_id.is_empty()));
                ids.iter().copied().zip(has_ids).collect()
            }
        }
    }
}

/// The answers of a group; were there a panic in its work, each operation of it hears of that under its
/// own id, and the stream goes on.
async fn guarded(asked: Vec<Asked>, work: impl Future<Output = Vec<Answer>>) -> Vec<Answer> {
    // Nothing that the work holds is looked at again.
    if let Ok(answers) = AssertUnwindSafe(work).catch_unwind().await {
        return answers;
    }
    let failed = |(id, write): Asked| {
        let error = match write {
            None => Error::new(
                Reason::NotReady,
                "this store failed at the read, its log says where; try again, and please report this",
            ),
            Some(_) => Error::new(
                Reason::OutcomeUnknown,
                "this store failed at the write, its log says where; whether it was applied is not known: please report this",
            )
            .outcome(Outcome::Unknown),
        };
        (id, Err((error, write.unwrap_or(true))))
    };
    asked.into_iter().map(failed).collect()
}

fn response_of(answers: Vec<Answer>) -> kv::BatchResponse {
    let mut responses = answers.into_iter().map(|(id, answer)| {
        let result = answer.unwrap_or_else(|(error, has_id)| {
            batch_response::Result::Failure(error.to_failure(has_id))
        });
        kv::BatchResponse {
            id,
            result: Some(result),
            also: Vec::new(),
        }
    });
    let first = responses.next().unwrap_or_default();
    kv::BatchResponse {
        also: responses.collect(),
        ..first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_answered_to_each_operation_under_its_own_id() {
        let asked = vec![(7, None), (9, Some(true)), (11, Some(false))];
        let response = response_of(guarded(asked, async { panic!("a broken invariant") }).await);
        let answers: Vec<_> = std::iter::once(&response).chain(&response.also).collect();
        let said: Vec<_> = answers
            .iter()
            .map(|answer| match &answer.result {
                Some(batch_response::Result::Failure(failure)) => {
                    let outcome = failure.metadata.get("outcome").map(String::as_str);
                    (answer.id, outcome, failure.retry_after_ms > 0)
                }
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            said,
            [
                (7, None, true),
                (9, Some("unknown"), true),
                (11, Some("unknown"), false)
            ]
        );
    }
}
