//! A request, taken apart.
//!
//! Owns the reading of an address, of headers and of a body within its bounds, and the deadline. Knows nothing
//! of what a route does with them.
//!
//! Invariants: a body is read up to its limit and no further, and within the deadline; the deadline is that of
//! the whole request, from its headers to its answer.

use super::Gateway;
use super::bytes::{percent_decode, percent_decode_text};
use super::problem::Problem;
use super::query::Query;
use super::shapes::Object;
use crate::config::LiveConfig;
use crate::error::Error;
use crate::grpc_edge::due;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, header};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};

/// A request's own id, which makes a repeat safe.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("flaredb-request-id");
/// The token of a session, base64.
pub(super) const SESSION: HeaderName = HeaderName::from_static("flaredb-session");

/// The largest JSON body: a hundred times the largest that makes sense.
const MAX_JSON_BYTES: usize = 64 << 10;

/// A request.
pub(super) struct Call {
    /// The namespace of the address; empty where it has none.
    pub(super) namespace: String,
    /// What stands behind the namespace, slashes included.
    pub(super) key: Bytes,
    /// What stands behind the question mark.
    pub(super) query: Query,
    headers: HeaderMap,
    /// Never contended: a body can be sent to another thread and not be shared, and whoever borrows the rest
    /// of the call while he waits has to be able to go to another thread.
    body: Mutex<Body>,
    answer_by: Instant,
    config: LiveConfig,
}

impl Call {
    /// Reads all but the body.
    pub(super) fn of(gateway: &Gateway, request: Request) -> Result<Call, Error> {
        let timeout = gateway.config.load().consistency.request_timeout;
        let answer_by = Instant::now() + timeout;
        let (head, body) = request.into_parts();
        // `/v1/kv/NAMESPACE/KEY`, `/v1/namespaces/NAMESPACE/WHAT`.
        let mut parts = head.uri.path().splitn(5, '/').skip(3);
        let namespace = parts.next().unwrap_or_default();
        let key = parts.next().unwrap_or_default();
        Ok(Call {
            namespace: percent_decode_text("namespace", namespace, false)?,
            key: percent_decode("key", key, false)?,
            query: Query::parse(head.uri.query())?,
            headers: head.headers,
            body: Mutex::new(body),
            answer_by,
            config: gateway.config.clone(),
        })
    }

    /// A message as a service takes it, to be answered within what is left of the request's time.
    pub(super) fn rpc<T>(&self, message: T) -> tonic::Request<T> {
        due(message, self.answer_by)
    }

    /// Whether bytes that stand somewhere else than in the address may be a key.
    pub(super) fn check_key(&self, field: &str, key: &[u8]) -> Result<(), Error> {
        let max_key = self.config.load().limits.max_key.as_bytes();
        if key.len() as u64 > max_key {
            return Err(Error::over_limit(field, max_key, key.len() as u64));
        }
        Ok(())
    }

    /// A header that may be given once, as text.
    pub(super) fn header(&self, name: &HeaderName) -> Result<Option<&str>, Error> {
        let mut given = self.headers.get_all(name).iter();
        let Some(value) = given.next() else {
            return Ok(None);
        };
        if given.next().is_some() {
            return Err(Error::invalid(
                name.as_str(),
                format!("the header {name} is given twice"),
            ));
        }
        value.to_str().map(Some).map_err(|_| {
            Error::invalid(
                name.as_str(),
                format!("the header {name} holds bytes that are not ASCII text"),
            )
        })
    }

    /// The tags of a header that may hold several, in one line or in more.
    pub(super) fn header_list(&self, name: &HeaderName) -> Result<Option<String>, Error> {
        let mut lines = Vec::new();
        for value in self.headers.get_all(name) {
            let line = value.to_str().map_err(|_| {
                Error::invalid(
                    name.as_str(),
                    format!("the header {name} holds bytes that are not ASCII text"),
                )
            })?;
            lines.push(line);
        }
        Ok((!lines.is_empty()).then(|| lines.join(",")))
    }

    /// The id of the request; empty: it has none.
    pub(super) fn request_id(&self) -> Result<Bytes, Error> {
        let id = self.header(&REQUEST_ID)?.unwrap_or_default();
        Ok(Bytes::copy_from_slice(id.as_bytes()))
    }

    /// The session's token; empty: there is none.
    pub(super) fn session(&self) -> Result<Bytes, Error> {
        let text = self.header(&SESSION)?.unwrap_or_default();
        let token = BASE64_STANDARD.decode(text).map_err(|error| {
            Error::invalid(
                SESSION.as_str(),
                format!(
                    "the header {SESSION} is not base64 ({error}); hand back what an answer's header held, or nothing"
                ),
            )
        })?;
        if !token.is_empty() {
            crate::session::decode(&token)?;
        }
        Ok(token.into())
    }

    /// The body, any bytes: a value.
    pub(super) async fn value(&mut self) -> Result<Bytes, Problem> {
        let limit = self.config.load().limits.max_value.as_bytes();
        self.body("value", "limits.max_value", limit).await
    }

    /// The body, JSON.
    pub(super) async fn json<T: DeserializeOwned>(&mut self) -> Result<T, Problem> {
        let kind = self
            .header(&header::CONTENT_TYPE)
            .map_err(Problem::refused)?;
        let kind = kind.unwrap_or_default();
        let essence = kind.split(';').next().unwrap_or_default().trim();
        let is_json = essence.eq_ignore_ascii_case("application/json")
            || essence.eq_ignore_ascii_case("application/merge-patch+json");
        // A page of another site can have a browser send everything but this.
        if !is_json {
            return Err(Problem::not_json(kind));
        }
        let text = self
            .body("body", "this call", MAX_JSON_BYTES as u64)
            .await?;
        let parsed = serde_json::from_slice(&text).map(|Object(parsed)| parsed);
        parsed.map_err(|error| {
            let text = format!("the body is not what this call takes: {error}; /docs shows it");
            Problem::refused(Error::invalid("body", text))
        })
    }

    async fn body(&mut self, field: &str, key: &str, limit: u64) -> Result<Bytes, Problem> {
        let too_large = || Problem::too_large(field, key, limit);
        let body = std::mem::take(self.body.get_mut());
        // Said before it is sent: whoever waits for `100 Continue` need not send it.
        let announced = http_body::Body::size_hint(&body).lower();
        if announced > limit {
            return Err(too_large());
        }
        let read = async {
            let mut pieces = body.into_data_stream();
            let mut whole = BytesMut::new();
            while let Some(piece) = pieces.next().await {
                let piece = piece.map_err(|error| {
                    let text = format!("the body broke off ({error}); nothing was applied");
                    Problem::refused(Error::invalid(field, text))
                })?;
                if (whole.len() + piece.len()) as u64 > limit {
                    return Err(too_large());
                }
                whole.extend_from_slice(&piece);
            }
            Ok(whole.freeze())
        };
        match timeout_at(self.answer_by, read).await {
            Ok(read) => read,
            Err(_elapsed) => Err(Problem::too_slow()),
        }
    }
}
