//! Refusals as HTTP says them: `application/problem+json` (RFC 9457).
//!
//! Owns the mapping of gRPC codes to HTTP's, and the form. Reason, message and metadata come from the refusal
//! of the service as they are, so both edges say the same; only what HTTP has of its own (no such route, a
//! precondition that failed, a key that is not there) gets a reason here. Knows nothing of who refused.
//!
//! Invariant: `Retry-After` goes out only where gRPC gives RetryInfo, that is where a repeat is safe.

use crate::error::{Error, Outcome};
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use rdb_types::Reason;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use utoipa::ToSchema;

/// The media type of a refusal.
pub(super) const MEDIA_TYPE: &str = "application/problem+json";

/// The key that was asked for is not there.
const KEY_NOT_FOUND: &str = "KEY_NOT_FOUND";
/// A precondition of the request (`If-Match`, `If-None-Match`) does not hold.
const PRECONDITION_FAILED: &str = "PRECONDITION_FAILED";
/// There is no such page here.
const ROUTE_NOT_FOUND: &str = "ROUTE_NOT_FOUND";
/// The page is there, and not for this method.
const METHOD_NOT_ALLOWED: &str = "METHOD_NOT_ALLOWED";
/// The body is of a media type that is not taken.
const UNSUPPORTED_MEDIA_TYPE: &str = "UNSUPPORTED_MEDIA_TYPE";

/// Why a request was refused.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct Document {
    /// `urn:flaredb:reason:` and the reason.
    #[serde(rename = "type")]
    #[schema(example = "urn:flaredb:reason:NO_QUORUM")]
    kind: String,
    /// The reason, for people.
    #[schema(example = "no quorum")]
    title: String,
    /// The status of the answer.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What happened, why, and what to do next.
    detail: String,
    /// As in gRPC's ErrorInfo; see contracts/grpc.md.
    #[schema(example = "NO_QUORUM")]
    reason: String,
    /// Of a write: `not_applied`, or `unknown` if it may be applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<String>,
    /// Which field, header or parameter is at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    /// What else the reason tells: region, leader, limit, ...
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
    /// A repeat is safe, and may succeed after so long. Absent: do not repeat.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

/// A refusal, ready to be sent.
#[derive(Debug)]
pub(super) struct Problem(Box<Inner>);

#[derive(Debug)]
struct Inner {
    status: StatusCode,
    reason: String,
    detail: String,
    metadata: BTreeMap<String, String>,
    retry_after: Option<Duration>,
    headers: HeaderMap,
}

impl Problem {
    fn new(status: StatusCode, reason: &str, detail: impl Into<String>) -> Problem {
        Problem(Box::new(Inner {
            status,
            reason: reason.to_owned(),
            detail: detail.into(),
            metadata: BTreeMap::new(),
            retry_after: None,
            headers: HeaderMap::new(),
        }))
    }

    /// What the gateway itself refuses of a read.
    pub(super) fn of(error: &Error) -> Problem {
        Problem::from(error.to_status(true))
    }

    /// What the gateway itself refuses of a change, before any service had it.
    pub(super) fn refused(error: Error) -> Problem {
        Problem::of(&error.outcome(Outcome::NotApplied))
    }

    /// The key is not there.
    pub(super) fn no_key(namespace: &str) -> Problem {
        let namespace = match namespace {
            "" => "default",
            name => name,
        };
        Problem::new(
            StatusCode::NOT_FOUND,
            KEY_NOT_FOUND,
            format!("namespace {namespace} has no such key"),
        )
        .with("namespace", namespace)
    }

    /// A precondition does not hold: what is there has another version (0: nothing is there).
    pub(super) fn precondition(current_version: u64) -> Problem {
        let there = match current_version {
            0 => "the key is not there".to_owned(),
            version => format!("the key has version {version}"),
        };
        let mut problem = Problem::new(
            StatusCode::PRECONDITION_FAILED,
            PRECONDITION_FAILED,
            format!(
                "the request is for another version: {there}; read it, and decide again with what is there"
            ),
        )
        .with("current_version", current_version);
        if current_version != 0 {
            problem = problem.header(header::ETAG, &super::kv::etag(current_version));
        }
        problem
    }

    /// There is no such route.
    pub(super) fn no_route(path: &str) -> Problem {
        Problem::new(
            StatusCode::NOT_FOUND,
            ROUTE_NOT_FOUND,
            format!(
                "there is no {path} here; /openapi.json lists what there is, and /docs shows it"
            ),
        )
    }

    /// The route is for other methods; axum adds which.
    pub(super) fn no_method(method: &str, path: &str) -> Problem {
        Problem::new(
            StatusCode::METHOD_NOT_ALLOWED,
            METHOD_NOT_ALLOWED,
            format!("{path} does not take {method}; the header Allow says what it takes"),
        )
    }

    /// The body is not JSON by its header.
    pub(super) fn not_json(got: &str) -> Problem {
        let got = match got {
            "" => "no Content-Type".to_owned(),
            got => format!("Content-Type {got}"),
        };
        Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            UNSUPPORTED_MEDIA_TYPE,
            format!(
                "this takes JSON, and the request has {got}: send `Content-Type: application/json` (curl --json does)"
            ),
        )
        .with("field", "Content-Type")
        .with("outcome", Outcome::NotApplied.as_str())
    }

    /// The body is larger than it may be. Nothing of it was kept.
    pub(super) fn too_large(field: &str, key: &str, limit: u64) -> Problem {
        let text = format!(
            "the body is larger than {key} allows ({limit} bytes); nothing was applied: send less, or raise the limit on all stores"
        );
        let error = Error::invalid(field, text).with("limit", limit);
        Problem::refused(error).status(StatusCode::PAYLOAD_TOO_LARGE)
    }

    /// The body did not arrive in time.
    pub(super) fn too_slow() -> Problem {
        let text = "the body did not arrive within consistency.request_timeout; nothing was applied: send it faster, or in smaller pieces";
        Problem::refused(Error::new(Reason::DeadlineExceeded, text))
            .status(StatusCode::REQUEST_TIMEOUT)
    }

    fn status(mut self, status: StatusCode) -> Problem {
        self.0.status = status;
        self
    }

    /// Adds metadata.
    #[must_use]
    pub(super) fn with(mut self, key: &str, value: impl ToString) -> Problem {
        self.0.metadata.insert(key.to_owned(), value.to_string());
        self
    }

    /// Adds a header, if it can be one.
    #[must_use]
    pub(super) fn header(mut self, name: HeaderName, value: &str) -> Problem {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.0.headers.insert(name, value);
        }
        self
    }

    /// Adds headers.
    #[must_use]
    pub(super) fn headers(mut self, headers: HeaderMap) -> Problem {
        self.0.headers.extend(headers);
        self
    }
}

impl From<Status> for Problem {
    fn from(status: Status) -> Problem {
        let details = status.get_error_details();
        let info = details.error_info();
        let reason = info.map_or("INTERNAL", |info| info.reason.as_str());
        let metadata: BTreeMap<String, String> = info
            .map(|info| info.metadata.clone().into_iter().collect())
            .unwrap_or_default();
        let of_value = metadata.get("field").is_some_and(|field| field == "value");
        let http = if of_value && metadata.contains_key("limit") {
            StatusCode::PAYLOAD_TOO_LARGE
        } else {
            status_of(status.code(), reason)
        };
        let mut problem = Problem::new(http, reason, status.message());
        problem.0.metadata = metadata;
        problem.0.retry_after = details.retry_info().and_then(|retry| retry.retry_delay);
        problem
    }
}

/// The table: a gRPC code as HTTP's. Reasons that HTTP has a better word for come first.
fn status_of(code: Code, reason: &str) -> StatusCode {
    if reason == Reason::NoSpace.as_str() {
        return StatusCode::INSUFFICIENT_STORAGE;
    }
    match code {
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::FailedPrecondition | Code::Aborted => StatusCode::CONFLICT,
        Code::OutOfRange => StatusCode::GONE,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Inner {
            status,
            reason,
            detail,
            metadata,
            retry_after,
            headers,
        } = *self.0;
        let mut metadata = metadata;
        let document = Document {
            kind: format!("urn:flaredb:reason:{reason}"),
            title: reason.to_lowercase().replace('_', " "),
            status: status.as_u16(),
            detail,
            outcome: metadata.remove("outcome"),
            field: metadata.remove("field"),
            metadata,
            retry_after_ms: retry_after.map(|delay| delay.as_millis() as u64),
            reason,
        };
        // Text and numbers only: it cannot fail, and a refusal without words is one all the same.
        let text = serde_json::to_vec(&document).unwrap_or_default();
        let mut response = Response::new(Body::from(text));
        *response.status_mut() = status;
        response.headers_mut().extend(headers);
        let answer = response.headers_mut();
        answer.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        answer.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(delay) = retry_after {
            // Whole seconds, and never less than the delay.
            let seconds = delay.as_millis().div_ceil(1000).max(1) as u64;
            answer.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::code;

    #[test]
    fn every_reason_has_a_status_and_unavailable_is_503() {
        for reason in Reason::ALL {
            let problem = Problem::of(&Error::new(*reason, "x"));
            let expected = match reason {
                Reason::NoSpace => 507,
                Reason::Overloaded | Reason::QuotaExceeded => 429,
                Reason::Corruption => 500,
                Reason::Unimplemented => 501,
                Reason::DeadlineExceeded => 504,
                Reason::InvalidArgument => 400,
                Reason::NamespaceNotFound => 404,
                Reason::Compacted => 410,
                _ if code(*reason) == Code::Unavailable => 503,
                _ => 409,
            };
            assert_eq!(problem.0.status.as_u16(), expected, "{reason}");
        }
    }

    #[test]
    fn retry_after_is_whole_seconds_and_only_where_a_repeat_is_safe() {
        let refused = Error::new(Reason::NoQuorum, "x").outcome(Outcome::NotApplied);
        let response = Problem::of(&refused).into_response();
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        let unknown = Error::new(Reason::OutcomeUnknown, "x").outcome(Outcome::Unknown);
        let response = Problem::from(unknown.to_status(false)).into_response();
        assert!(!response.headers().contains_key(header::RETRY_AFTER));
    }

    #[test]
    fn a_value_over_the_limit_is_413_and_a_key_is_400() {
        let status = |field| Problem::of(&Error::over_limit(field, 4, 5)).0.status;
        assert_eq!(status("value"), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(status("key"), StatusCode::BAD_REQUEST);
    }
}
