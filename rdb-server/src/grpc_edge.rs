//! Where gRPC itself answers a client: in our words, and in time.
//!
//! Owns the layer between tonic and the services of clients. tonic refuses what it cannot decode, and
//! calls whose time is over, with a bare status: no reason, no outcome, nothing to do next. This layer
//! reads the caller's deadline when the headers come, answers before tonic's own timer does, and puts
//! tonic's refusals into the words of [`Error`]. A call on a connection for which no client's place was
//! left is refused here, too. Knows the names of the services and nothing of what
//! they do.
//!
//! Invariants: what was refused before a service had the request is `not_applied`; a write that a
//! service had and did not answer in time is `unknown`; the stream between stores passes untouched.

use crate::error::{Error, Outcome};
use crate::transport::grpc::{Kind, Place};
use futures::future::BoxFuture;
use rdb_proto::admin::admin_server;
use rdb_proto::kv::kv_server;
use rdb_proto::raft::{peer_server, raft_service_server};
use rdb_types::Reason;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::{Code, Status};
use tower::{Layer, Service};

/// The longest that a call may wait, whatever its caller says.
pub const LONGEST_CALL: Duration = Duration::from_secs(3600);

/// The services whose answers are put into our words.
const SERVICES: [&str; 3] = [
    kv_server::SERVICE_NAME,
    raft_service_server::SERVICE_NAME,
    admin_server::SERVICE_NAME,
];

/// Calls that change nothing, so that one without an answer has no outcome to speak of.
const READS: [&str; 10] = [
    "Get",
    "Scan",
    "Watch",
    "GetMode",
    "ListNamespaceModes",
    "DescribeNamespace",
    "ListNamespaces",
    "ReplicationStatus",
    "ListConflicts",
    "ClusterStatus",
];

/// When a call came, and how long its caller waits: an extension of the request.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// When a service has to answer at the latest; `None`: the caller did not say.
    answer_by: Option<Instant>,
    /// Whether a service has it.
    began: Arc<AtomicBool>,
}

/// When the caller's time is over (`None`: he did not say), a little early, so that the service's answer, which knows more, comes
/// first. Says that a service has the call from now on.
pub fn deadline_of<T>(request: &tonic::Request<T>) -> Option<Instant> {
    let arrival = request.extensions().get::<Arrival>()?;
    arrival.began.store(true, Ordering::Release);
    arrival.answer_by
}

/// A call of another edge in this process, to be answered by then.
pub(crate) fn due<T>(message: T, answer_by: Instant) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.extensions_mut().insert(Arrival {
        answer_by: Some(answer_by),
        began: Arc::default(),
    });
    request
}

/// Puts the [`Edge`] around tonic's services.
#[derive(Clone, Copy, Debug)]
pub struct EdgeLayer {
    max_request_bytes: u64,
}

impl EdgeLayer {
    /// For services that decode messages of at most `max_request_bytes`.
    pub fn new(max_request_bytes: u64) -> EdgeLayer {
        EdgeLayer { max_request_bytes }
    }
}

impl<S> Layer<S> for EdgeLayer {
    type Service = Edge<S>;

    fn layer(&self, inner: S) -> Edge<S> {
        Edge {
            inner,
            max_request_bytes: self.max_request_bytes,
        }
    }
}

/// The layer around one connection's services.
#[derive(Clone, Debug)]
pub struct Edge<S> {
    inner: S,
    max_request_bytes: u64,
}

impl<S, B> Service<Request<B>> for Edge<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Error: Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let path = request.uri().path();
        let Some(method) = our_method(path) else {
            if service_of(path) == Some(peer_server::SERVICE_NAME) {
                return Box::pin(self.inner.call(request));
            }
            let (call, limit) = (self.inner.call(request), self.max_request_bytes);
            // tonic knows no such service, and says nothing but that.
            return Box::pin(async move {
                let response = call.await?;
                let unknown = bare_status(response.headers())
                    .filter(|status| status.code() == Code::Unimplemented)
                    .and_then(|status| in_our_words(&status, limit));
                Ok(unknown.map_or(response, |error| error.to_status(false).into_http()))
            });
        };
        if on_probation(&request) {
            let refused = no_place().to_status(true).into_http();
            return Box::pin(std::future::ready(Ok(refused)));
        }
        let is_read = READS.contains(&method);
        let came = Instant::now();
        let patience = timeout_of(request.headers());
        let began = Arc::new(AtomicBool::new(false));
        request.extensions_mut().insert(Arrival {
            answer_by: patience.map(|timeout| came + less(timeout, 10)),
            began: began.clone(),
        });
        let call = self.inner.call(request);
        let max_request_bytes = self.max_request_bytes;
        Box::pin(async move {
            let answered = match patience {
                None => call.await,
                // tonic's timer runs for the whole timeout and looks at this future first, so this one is
                // always the first to be over.
                Some(timeout) => match timeout_at(came + less(timeout, 20), call).await {
                    Ok(answered) => answered,
                    Err(_elapsed) => {
                        let error = too_late(began.load(Ordering::Acquire), is_read);
                        return Ok(error.to_status(false).into_http());
                    }
                },
            };
            Ok(match answered {
                Ok(response) if !began.load(Ordering::Acquire) => {
                    match bare_status(response.headers())
                        .and_then(|status| in_our_words(&status, max_request_bytes))
                    {
                        Some(error) => error.to_status(false).into_http(),
                        None => response,
                    }
                }
                answered => answered?,
            })
        })
    }
}

/// The method that a path names, if it is one of a service for clients.
fn our_method(path: &str) -> Option<&str> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    SERVICES.contains(&service).then_some(method)
}

/// The service that a path names.
fn service_of(path: &str) -> Option<&str> {
    let (service, _) = path.strip_prefix('/')?.split_once('/')?;
    Some(service)
}

/// Whether the call came on a connection beyond those that clients may have.
fn on_probation<B>(request: &Request<B>) -> bool {
    let place = request.extensions().get::<Arc<Place>>();
    place.is_some_and(|place| place.kind() == Kind::Probation)
}

fn no_place() -> Error {
    Error::new(
        Reason::Overloaded,
        "this store has as many connections as limits.max_connections allows: ask another store, let callers share a connection, or raise the limit",
    )
    .with("field", "limits.max_connections")
    .outcome(Outcome::NotApplied)
}

/// A refusal without details, if this is one: our own always have some.
fn bare_status(headers: &HeaderMap) -> Option<Status> {
    if headers.contains_key("grpc-status-details-bin") {
        return None;
    }
    Status::from_header_map(headers).filter(|status| status.code() != Code::Ok)
}

/// What tonic says of a message that it could not take, as every other refusal is said. `None`: it is of
/// another kind.
///
/// `status` must come from tonic's decoder: it was made before any service saw the message.
pub fn in_our_words(status: &Status, max_request_bytes: u64) -> Option<Error> {
    let said = status.message();
    let error = match status.code() {
        Code::OutOfRange | Code::ResourceExhausted => {
            let has = found_bytes(said).map_or_else(
                || "the message is larger than".to_owned(),
                |bytes| format!("the message has {bytes} bytes, more than"),
            );
            Error::invalid(
                "message",
                format!(
                    "{has} limits.max_request ({max_request_bytes} bytes) allows; it was not read and nothing of it was applied: send less in one message, or raise the limit on all stores"
                ),
            )
            .with("limit", max_request_bytes)
        }
        Code::Internal => Error::invalid(
            "message",
            format!(
                "the message cannot be decoded ({said}); nothing of it was applied: send what kv.proto describes"
            ),
        ),
        Code::Unimplemented if said.is_empty() => Error::new(
            Reason::Unimplemented,
            "this store does not know that call; see which calls it has by reflection, or upgrade it",
        ),
        Code::Unimplemented => Error::new(
            Reason::Unimplemented,
            format!(
                "this store cannot take the call as it was sent ({said}): send it uncompressed"
            ),
        ),
        _ => return None,
    };
    Some(error.outcome(Outcome::NotApplied))
}

/// The size in tonic's "Error, decoded message length too large: found 5 bytes, the limit is: 4 bytes".
fn found_bytes(said: &str) -> Option<u64> {
    let (_, found) = said.split_once("found ")?;
    found.split(' ').next()?.parse().ok()
}

fn too_late(began: bool, is_read: bool) -> Error {
    let error = |text| Error::new(Reason::DeadlineExceeded, text);
    match (began, is_read) {
        (false, _) => error(
            "the deadline passed while the message was still arriving; nothing of it was applied: give the call more time",
        )
        .outcome(Outcome::NotApplied),
        (true, true) => {
            error("the deadline passed before there was an answer; give the call more time")
        }
        (true, false) => error(
            "the deadline passed before there was an answer; whether it was applied is not known: read it, or repeat it under the same request id",
        )
        .outcome(Outcome::Unknown),
    }
}

/// A timeout shortened by one part in `parts`, but by no more than 200 ms divided by `parts`.
fn less(timeout: Duration, parts: u32) -> Duration {
    timeout.saturating_sub((timeout / parts).min(Duration::from_millis(200) / parts))
}

/// The caller's timeout, from the `grpc-timeout` header.
fn timeout_of(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let amount: u64 = digits.parse().ok()?;
    let timeout = match unit {
        "H" => Duration::from_secs(amount.saturating_mul(3600)),
        "M" => Duration::from_secs(amount.saturating_mul(60)),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    };
    Some(timeout.min(LONGEST_CALL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_services_of_clients_are_spoken_for() {
        assert_eq!(our_method("/flaredb.kv.v1.Kv/Put"), Some("Put"));
        assert_eq!(our_method("/flaredb.raft.v1.Peer/Exchange"), None);
        assert_eq!(our_method("/grpc.health.v1.Health/Check"), None);
        assert_eq!(our_method("flaredb.kv.v1.Kv"), None);
    }

    #[test]
    fn a_timeout_is_read_in_every_unit_and_garbage_is_none() {
        let parse = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            timeout_of(&headers)
        };
        assert_eq!(parse("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse("7u"), Some(Duration::from_micros(7)));
        assert_eq!(parse("99999999H"), Some(LONGEST_CALL));
        for garbage in ["", "m", "5", "-5m", "5x", "m5"] {
            assert_eq!(parse(garbage), None, "{garbage:?}");
        }
    }

    #[test]
    fn the_service_answers_before_the_edge_and_the_edge_before_tonic() {
        for ms in [1, 20, 200, 1000, 3_600_000] {
            let timeout = Duration::from_millis(ms);
            let (service, edge) = (less(timeout, 10), less(timeout, 20));
            assert!(service < edge && edge < timeout, "{ms} ms");
            assert!(timeout - service <= Duration::from_millis(20), "{ms} ms");
        }
    }

    #[test]
    fn only_what_the_decoder_says_is_translated() {
        let large = in_our_words(&Status::out_of_range("found 9 bytes"), 4).unwrap();
        assert_eq!(large.reason, Reason::InvalidArgument);
        assert_eq!(large.metadata.get("limit").map(String::as_str), Some("4"));
        assert!(large.message.contains("has 9 bytes"), "{large}");
        assert!(!large.is_unknown());
        assert_eq!(in_our_words(&Status::unavailable("x"), 4), None);
    }
}
