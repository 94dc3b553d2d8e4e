//! Watches: changes as they are told, taken up again after a failure.
//!
//! Owns where a watch goes on, and after which failures it does. Knows nothing of how a store orders changes.
//!
//! Invariants: a watch goes on from the token of the last message that was given, so nothing is left out; in a
//! strong namespace nothing is given twice; what a store does not hold any more is asked of all others before
//! the caller hears `COMPACTED`.

use crate::batch::MAX_ANSWER_BYTES;
use crate::call::Call;
use crate::client::Client;
use crate::error::{ClientError, ErrorKind, Outcome};
use crate::failure::Failure;
use crate::node::Node;
use crate::options::WatchOptions;
use bytes::Bytes;
use futures::Stream;
use futures::stream::{self, StreamExt};
use parking_lot::Mutex;
use rdb_proto::kv::{self, kv_client::KvClient};
use rdb_types::Reason;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Code, Streaming};

/// A store says how far it is every 2 s at least. One that says nothing for this long is left.
const SILENCE: Duration = Duration::from_secs(10);
/// The longest wait before a watch that was ended is taken up again, whatever the store asks for.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

impl Client {
    /// What changes in a namespace, from now on or from where the options say, message by message as a store
    /// tells it. Messages without events tell how far it is. An error is the last item.
    ///
    /// The watch goes on by itself when its store or connection fails, when it was too slow, and across a change of
    /// mode: in a strong namespace without a gap and without telling anything twice; in an eventual one without a gap,
    /// and another store may tell again what this one did. `COMPACTED` means that no store holds all that has
    /// changed since: scan, and watch from the token of the scan's receipt.
    ///
    /// Read it, or drop it: what is not read takes room that other calls on the same connection need.
    pub fn watch(
        &self,
        namespace: &str,
        options: WatchOptions,
    ) -> impl Stream<Item = Result<kv::WatchResponse, ClientError>> + Send + Unpin + use<> {
        let watch = Watch {
            client: self.clone(),
            timeout: options.timeout,
            rest: Rest::new(namespace, options),
            stream: None,
            done: false,
        };
        stream::unfold(watch, |mut watch| async move {
            watch.next().await.map(|item| (item, watch))
        })
        .boxed()
    }
}

struct Watch {
    client: Client,
    timeout: Option<Duration>,
    rest: Rest,
    stream: Option<(Arc<Node>, Streaming<kv::WatchResponse>)>,
    done: bool,
}

impl Watch {
    async fn next(&mut self) -> Option<Result<kv::WatchResponse, ClientError>> {
        if self.done {
            return None;
        }
        let message = self.read().await;
        match &message {
            Ok(message) => self.rest.told(message),
            Err(_) => self.done = true,
        }
        Some(message)
    }

    async fn read(&mut self) -> Result<kv::WatchResponse, ClientError> {
        if let Some((node, stream)) = &mut self.stream {
            let failure = match message(node, stream, Instant::now() + SILENCE).await {
                Ok(message) => return Ok(message),
                Err(failure) => failure,
            };
            tracing::debug!(
                endpoint = node.address(),
                error = failure.message,
                "watch interrupted"
            );
            if failure.is_network() || failure.kind == ErrorKind::Deadline {
                node.failed(Instant::now());
            }
            self.stream = None;
            let learned = self.client.learned();
            learned.note_refusal(&self.rest.namespace, &failure);
            if !goes_on(&failure) {
                return Err(error_of(failure, 1));
            }
            sleep(failure.retry_after.unwrap_or_default().min(LONGEST_WAIT)).await;
        }
        let (stream, first) = self.begin().await?;
        self.stream = Some(stream);
        Ok(first)
    }

    /// Asks for what was not told yet, where somebody holds it.
    async fn begin(
        &self,
    ) -> Result<((Arc<Node>, Streaming<kv::WatchResponse>), kv::WatchResponse), ClientError> {
        let call = Call::read("watch", &self.rest.namespace, self.timeout);
        let request = self.rest.request();
        let gone = Mutex::new(Gone::default());
        let begun = self
            .client
            .run(call, |node, deadline, _| {
                let (request, gone) = (request.clone(), &gone);
                async move {
                    let begun = begin_at(&node, request, deadline).await;
                    begun.map_err(|failure| {
                        let alone = self.client.is_pinned();
                        let others = self.client.endpoints().len();
                        gone.lock().heard(node.address(), failure, alone, others)
                    })
                }
            })
            .await;
        begun.map_err(|error| match gone.into_inner().last {
            // Nobody who could be asked holds it.
            Some(gone) => error_of(gone, error.attempts),
            None => error,
        })
    }
}

async fn begin_at(
    node: &Arc<Node>,
    request: kv::WatchRequest,
    deadline: Instant,
) -> Result<((Arc<Node>, Streaming<kv::WatchResponse>), kv::WatchResponse), Failure> {
    // The store is told no deadline: it would end the stream by it.
    let mut stream = node
        .unary(deadline, async |channel| {
            KvClient::new(channel)
                .max_decoding_message_size(MAX_ANSWER_BYTES)
                .watch(request)
                .await
        })
        .await?;
    // The first message comes at once, and belongs to the attempt.
    let first = message(node, &mut stream, deadline).await?;
    Ok(((node.clone(), stream), first))
}

async fn message(
    node: &Node,
    stream: &mut Streaming<kv::WatchResponse>,
    deadline: Instant,
) -> Result<kv::WatchResponse, Failure> {
    match timeout_at(deadline, stream.message()).await {
        Ok(Ok(Some(message))) => Ok(message),
        Ok(Ok(None)) => Err(Failure::stream_ended(node.address())),
        Ok(Err(status)) => Err(Failure::from_status(node.address(), &status)),
        Err(_) => Err(Failure::deadline(node.address(), true)),
    }
}

/// Whether a watch that ended like this is asked for again. What one store does not hold, another may.
fn goes_on(failure: &Failure) -> bool {
    failure.is_network()
        || matches!(
            failure.code,
            Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded
        )
        || matches!(failure.reason, Some(Reason::Overloaded | Reason::Compacted))
}

fn error_of(failure: Failure, attempts: u32) -> ClientError {
    ClientError {
        reason: failure.reason,
        code: failure.code,
        message: failure.message,
        metadata: failure.metadata,
        outcome: Outcome::NotAWrite,
        attempts,
        kind: failure.kind,
        operation: "watch",
        request_id: None,
    }
}

/// Who does not hold what is asked for.
#[derive(Default)]
struct Gone {
    said: BTreeSet<String>,
    last: Option<Failure>,
}

impl Gone {
    /// The failure of an attempt, as the one to decide by: while others were not asked, that one store does not hold
    /// it is not the end.
    fn heard(&mut self, address: &str, failure: Failure, alone: bool, others: usize) -> Failure {
        if failure.reason != Some(Reason::Compacted) {
            return failure;
        }
        self.said.insert(address.to_owned());
        self.last = Some(failure.clone());
        if alone || self.said.len() >= others {
            return failure;
        }
        Failure {
            code: Code::Unavailable,
            reason: Some(Reason::StaleReplica),
            ..failure
        }
    }
}

/// What was not told yet.
#[derive(Debug, PartialEq, Eq)]
struct Rest {
    namespace: String,
    key: Bytes,
    prefix: Bytes,
    from_revision: u64,
    session: Bytes,
}

impl Rest {
    fn new(namespace: &str, options: WatchOptions) -> Rest {
        Rest {
            namespace: namespace.to_owned(),
            key: options.key,
            prefix: options.prefix,
            from_revision: options.from_revision,
            session: options.session,
        }
    }

    fn request(&self) -> kv::WatchRequest {
        kv::WatchRequest {
            namespace: self.namespace.clone(),
            key: self.key.clone(),
            prefix: self.prefix.clone(),
            from_revision: self.from_revision,
            session: self.session.clone(),
        }
    }

    fn told(&mut self, message: &kv::WatchResponse) {
        if !message.session.is_empty() {
            self.session = message.session.clone();
            self.from_revision = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: Code, reason: &str) -> Failure {
        Failure::from_wire(kv::Failure {
            code: code as i32,
            reason: reason.into(),
            ..Default::default()
        })
    }

    #[test]
    fn a_watch_goes_on_from_the_last_token_that_was_given() {
        let options = WatchOptions {
            key: Bytes::from_static(b"k"),
            from_revision: 7,
            ..WatchOptions::default()
        };
        let mut rest = Rest::new("n", options);
        assert_eq!(rest.request().from_revision, 7);
        for token in ["one", "two"] {
            rest.told(&kv::WatchResponse {
                session: token.into(),
                ..Default::default()
            });
            let request = rest.request();
            assert_eq!(
                (request.from_revision, &request.session[..]),
                (0, token.as_bytes())
            );
            assert_eq!(&request.key[..], b"k");
        }
    }

    #[test]
    fn only_what_passes_is_asked_again() {
        for (code, reason) in [
            (Code::Unavailable, "MODE_CHANGED"),
            (Code::Unavailable, "NOT_READY"),
            (Code::ResourceExhausted, "OVERLOADED"),
            (Code::OutOfRange, "COMPACTED"),
        ] {
            assert!(goes_on(&refused(code, reason)), "{reason}");
        }
        for (code, reason) in [
            (Code::InvalidArgument, "INVALID_ARGUMENT"),
            (Code::NotFound, "NAMESPACE_NOT_FOUND"),
            (Code::FailedPrecondition, "WRONG_MODE"),
        ] {
            assert!(!goes_on(&refused(code, reason)), "{reason}");
        }
        assert!(goes_on(&Failure::stream_ended("a:1")));
        assert!(goes_on(&Failure::deadline("a:1", true)));
    }

    #[test]
    fn all_stores_are_asked_before_it_is_gone() {
        let compacted = || refused(Code::OutOfRange, "COMPACTED");
        let mut gone = Gone::default();
        for address in ["a:1", "b:1", "a:1"] {
            let next = gone.heard(address, compacted(), false, 3);
            assert_eq!(next.reason, Some(Reason::StaleReplica));
        }
        let last = gone.heard("c:1", compacted(), false, 3);
        assert_eq!(last.reason, Some(Reason::Compacted));
        let pinned = Gone::default().heard("a:1", compacted(), true, 3);
        assert_eq!(pinned.reason, Some(Reason::Compacted));
    }
}
