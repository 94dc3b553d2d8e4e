//! The receiving edge: what other stores send, handed to the [`PeerHandler`] in the order of each stream.
//!
//! Owns the handshake of inbound streams and their bounds. Knows nothing of what a request means.
//!
//! Invariants:
//! - Nothing is served before Hello was accepted; a stream without one ends after [`HANDSHAKE_TIMEOUT`],
//!   and one whose caller is told who is here and no more ends with that.
//! - At most `max_in_flight` requests of a stream are under way. While that many are, or while the
//!   caller does not read its answers, nothing more is read: HTTP/2 then holds the caller back.
//! - A request that is not understood is answered with INVALID_ARGUMENT; the stream goes on.

use super::{GrpcOptions, HANDSHAKE_TIMEOUT, LONGEST_WAIT, MESSAGE_SLACK_BYTES, Place};
use crate::error::Error;
use crate::transport::{Greeting, Handshake, PeerHandler};
use futures::Stream;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered, StreamExt};
use prost::Message;
use rdb_proto::raft::peer_server::{Peer, PeerServer};
use rdb_proto::raft::{Hello, PeerRequest, PeerResponse, peer_request, peer_response};
use rdb_types::{RegionId, StoreId};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Request, Response, Status, Streaming};

/// Serves the streams of other stores.
pub struct PeerService {
    handler: Arc<dyn PeerHandler>,
    handshake: Arc<dyn Handshake>,
    max_in_flight: usize,
    max_message_bytes: usize,
    closed: CancellationToken,
}

impl PeerService {
    /// A service for one store.
    pub fn new(
        handler: Arc<dyn PeerHandler>,
        handshake: Arc<dyn Handshake>,
        options: &GrpcOptions,
    ) -> Arc<PeerService> {
        Arc::new(PeerService {
            handler,
            handshake,
            max_in_flight: options.max_in_flight.max(1),
            max_message_bytes: options.max_message_bytes,
            closed: CancellationToken::new(),
        })
    }

    /// What a tonic server adds, with the size limits set.
    pub fn server(self: &Arc<PeerService>) -> PeerServer<PeerService> {
        let max_bytes = self.max_message_bytes.saturating_add(MESSAGE_SLACK_BYTES);
        PeerServer::from_arc(Arc::clone(self))
            .max_decoding_message_size(max_bytes)
            .max_encoding_message_size(max_bytes)
    }

    /// Ends every stream, and refuses new ones. A graceful shutdown of the server waits for its
    /// streams; these never end by themselves.
    pub fn close(&self) {
        self.closed.cancel();
    }

    /// Judges the caller by its Hello.
    fn accept(&self, hello: &Hello) -> Result<(StoreId, Greeting), Error> {
        let claimed = hello.from.as_ref().map_or(0, |member| member.store_id);
        let Some(from) = StoreId::new(u64::from(claimed)) else {
            return Err(Error::invalid(
                "from",
                format!("{claimed} is not a store id; ids are 1 to {}", StoreId::MAX),
            ));
        };
        Ok((from, self.handshake.accept(hello)?))
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    type ExchangeStream = BoxStream<'static, Result<PeerResponse, Status>>;

    async fn exchange(
        &self,
        request: Request<Streaming<PeerRequest>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let place = request.extensions().get::<Arc<Place>>().cloned();
        let mut requests = request.into_inner();
        let first = tokio::select! {
            biased;
            first = timeout(HANDSHAKE_TIMEOUT, requests.message()) => first,
            () = self.closed.cancelled() => return Err(shutting_down()),
        };
        let first = first.map_err(|_elapsed| {
            Status::deadline_exceeded(format!(
                "no Hello within {} ms",
                HANDSHAKE_TIMEOUT.as_millis()
            ))
        })??;
        let Some(PeerRequest {
            id,
            body: Some(peer_request::Body::Hello(hello)),
            ..
        }) = first
        else {
            return Err(Status::invalid_argument(
                "the first message of a stream between stores must be Hello",
            ));
        };
        let (accepted, body) = match self.accept(&hello) {
            Ok((from, Greeting { reply, served })) => {
                (served.then_some(from), peer_response::Body::Hello(reply))
            }
            Err(error) => (None, peer_response::Body::Error(error.to_wire())),
        };
        let first = PeerResponse {
            id,
            body: Some(body),
        };
        let Some(from) = accepted else {
            return Ok(Response::new(futures::stream::iter([Ok(first)]).boxed()));
        };
        // From here on the connection takes no client's place. Where it came by another way, it has none.
        if let Some(place) = place {
            place.is_a_store();
        }
        let serving = Serving {
            from,
            requests,
            handler: Arc::clone(&self.handler),
            max_in_flight: self.max_in_flight,
            max_message_bytes: self.max_message_bytes,
            running: FuturesUnordered::new(),
            first: Some(first),
            end: None,
            closed: Box::pin(self.closed.clone().cancelled_owned()),
        };
        Ok(Response::new(serving.boxed()))
    }
}

/// One accepted stream, as the stream of its answers: being polled for answers, it reads requests.
struct Serving {
    from: StoreId,
    requests: Streaming<PeerRequest>,
    handler: Arc<dyn PeerHandler>,
    max_in_flight: usize,
    max_message_bytes: usize,
    /// `None`: not answered in time. Its caller has stopped waiting and takes the outcome for unknown;
    /// a refusal that overtakes its timeout by a moment would say something else.
    running: FuturesUnordered<BoxFuture<'static, Option<PeerResponse>>>,
    first: Option<PeerResponse>,
    /// Set once the caller sends no more: what the stream ends with when all is answered.
    end: Option<Result<(), Status>>,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Stream for Serving {
    type Item = Result<PeerResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        if this.closed.as_mut().poll(context).is_ready() {
            // Once: the encoder ends the stream with the first error.
            return Poll::Ready(Some(Err(shutting_down())));
        }
        loop {
            while this.end.is_none() && this.running.len() < this.max_in_flight {
                match this.requests.poll_next_unpin(context) {
                    Poll::Ready(Some(Ok(request))) => this.start(request),
                    Poll::Ready(Some(Err(status))) => this.end = Some(Err(status)),
                    Poll::Ready(None) => this.end = Some(Ok(())),
                    Poll::Pending => break,
                }
            }
            return match ready!(this.running.poll_next_unpin(context)) {
                Some(Some(answer)) => Poll::Ready(Some(Ok(answer))),
                Some(None) => continue, // a place has become free
                None => match &mut this.end {
                    None => Poll::Pending,
                    Some(end) => Poll::Ready(std::mem::replace(end, Ok(())).err().map(Err)),
                },
            };
        }
    }
}

impl Serving {
    /// Hands a request over, in the order of the stream, and keeps what will be its answer.
    fn start(&mut self, request: PeerRequest) {
        let PeerRequest {
            id,
            region_id,
            timeout_ms,
            body,
        } = request;
        let body = match body {
            Some(peer_request::Body::Hello(_)) => Err(Error::invalid(
                "body",
                "Hello belongs at the start of a stream",
            )),
            Some(body) => Ok(body),
            None => Err(Error::invalid(
                "body",
                "the request is empty, or of a kind that this build does not know",
            )),
        };
        let limit = Duration::from_millis(timeout_ms).clamp(Duration::from_millis(1), LONGEST_WAIT);
        let max_bytes = self.max_message_bytes;
        self.running.push(match body {
            Err(error) => Box::pin(std::future::ready(Some(respond(id, Err(error), max_bytes)))),
            Ok(body) => {
                let answer = self
                    .handler
                    .handle(self.from, RegionId(region_id), body, limit);
                Box::pin(async move {
                    let answer = timeout(limit, answer).await.ok()?;
                    Some(respond(id, answer, max_bytes))
                })
            }
        });
    }
}

fn respond(id: u64, answer: Result<peer_response::Body, Error>, max_bytes: usize) -> PeerResponse {
    let body = answer.unwrap_or_else(|error| peer_response::Body::Error(error.to_wire()));
    let response = PeerResponse {
        id,
        body: Some(body),
    };
    let size_bytes = response.encoded_len();
    if size_bytes <= max_bytes {
        return response;
    }
    let error = Error::over_limit("answer", max_bytes as u64, size_bytes as u64);
    PeerResponse {
        id,
        body: Some(peer_response::Body::Error(error.to_wire())),
    }
}

fn shutting_down() -> Status {
    Status::unavailable("this store is shutting down")
}
