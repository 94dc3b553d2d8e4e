//! One key: GET, HEAD, PUT, DELETE, and compare-and-swap by preconditions.
//!
//! Owns ETags: a key's is its version in quotes. `If-Match: "version"` makes a PUT or DELETE a compare-and-swap,
//! `If-None-Match: *` one that expects nothing there, `If-Match: *` one that expects anything: the version that is read
//! first, and where another writer was faster, the one that he left. On a GET they save the value's way (304) or guard it (412).
//! A value is the body as it is; how it was served stands in headers.
//!
//! Invariant: a lost compare-and-swap is 412 and nothing else is, so a client can tell it from a refusal.

use super::call::{Call, REQUEST_ID, SESSION};
use super::problem::{Document, Problem};
use super::shapes::{Deleted, Put, Receipt, mode_name};
use super::{Gateway, openapi::Refusals};
use crate::error::Error;
use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use rdb_proto::kv::{self, compare_and_swap_request::Change, kv_server::Kv};
use rdb_types::namespace::MAX_TTL_MS;
use rdb_types::session::joined;

const MODE: HeaderName = HeaderName::from_static("flaredb-mode");
const EPOCH: HeaderName = HeaderName::from_static("flaredb-epoch");
const STORE: HeaderName = HeaderName::from_static("flaredb-store");
const REGION: HeaderName = HeaderName::from_static("flaredb-region");
const REVISION: HeaderName = HeaderName::from_static("flaredb-revision");
const STALENESS: HeaderName = HeaderName::from_static("flaredb-staleness-ms");
const EXPIRES: HeaderName = HeaderName::from_static("flaredb-expires-at-ms");

/// The tag of a version.
pub(super) fn etag(version: u64) -> String {
    format!("\"{version}\"")
}

/// What a write expects to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Anything,
    /// Some version, whichever: the key is there.
    Something,
    /// 0: nothing.
    Version(u64),
}

impl Expected {
    fn of(call: &Call) -> Result<Expected, Error> {
        let if_match = call.header(&header::IF_MATCH)?;
        let if_none_match = call.header(&header::IF_NONE_MATCH)?;
        match (if_match, if_none_match) {
            (None, None) => Ok(Expected::Anything),
            (None, Some("*")) => Ok(Expected::Version(0)),
            (None, Some(_)) => Err(Error::invalid(
                "If-None-Match",
                "If-None-Match of a write is *: it is done only where the key is not there",
            )),
            // What it would be compared with depends on when it comes: a repeat would be another request.
            (Some("*"), None) if !call.request_id()?.is_empty() => Err(Error::invalid(
                "If-Match",
                "If-Match: * does not go with FlareDB-Request-Id: name the version that the ETag has",
            )),
            (Some("*"), None) => Ok(Expected::Something),
            (Some(tag), None) => version_of(tag).map(Expected::Version).ok_or_else(|| {
                Error::invalid(
                    "If-Match",
                    format!(
                        "If-Match is {tag:?}; it is * or one version in quotes, as the header ETag of an answer has it: \"123\""
                    ),
                )
            }),
            (Some(_), Some(_)) => Err(Error::invalid(
                "If-None-Match",
                "If-Match and If-None-Match do not go together in one write",
            )),
        }
    }
}

/// The version that a strong tag names, written as [`etag`] writes it. A shell eats quotes, and a number without
/// them can mean nothing else.
fn version_of(tag: &str) -> Option<u64> {
    let digits = match tag.strip_prefix('"') {
        Some(quoted) => quoted.strip_suffix('"')?,
        None => tag,
    };
    let version: u64 = digits.parse().ok()?;
    (version.to_string() == digits).then_some(version)
}

/// Tags of a header on a read: any, or these.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Tags {
    Any,
    /// Whether it is weak (`W/`), and what stands between the quotes.
    These(Vec<(bool, String)>),
}

impl Tags {
    /// The tags of a header, if it was given.
    fn of(call: &Call, name: &HeaderName) -> Result<Option<Tags>, Error> {
        let Some(list) = call.header_list(name)? else {
            return Ok(None);
        };
        Tags::parse(&list).map(Some).ok_or_else(|| {
            Error::invalid(
                name.as_str(),
                format!(
                    "{name} is {list:?}; it is * or versions in quotes, as the header ETag has them"
                ),
            )
        })
    }

    fn parse(list: &str) -> Option<Tags> {
        if list.trim() == "*" {
            return Some(Tags::Any);
        }
        let tags = list.split(',').map(|tag| {
            let tag = tag.trim();
            let (weak, tag) = match tag.strip_prefix("W/") {
                Some(tag) => (true, tag),
                None => (false, tag),
            };
            let is_bare = !weak && !tag.is_empty() && tag.bytes().all(|byte| byte.is_ascii_digit());
            let inside = match is_bare {
                true => tag,
                false => tag.strip_prefix('"')?.strip_suffix('"')?,
            };
            (!inside.contains(['"', ' '])).then(|| (weak, inside.to_owned()))
        });
        tags.collect::<Option<Vec<_>>>().map(Tags::These)
    }

    /// Whether they name a version; `weak`: weak tags count, too.
    fn name(&self, version: u64, weak: bool) -> bool {
        let version = version.to_string();
        match self {
            Tags::Any => true,
            Tags::These(tags) => tags
                .iter()
                .any(|(is_weak, tag)| (weak || !is_weak) && *tag == version),
        }
    }
}

/// How an answer was served, as headers. `asked`: the session's token of the request.
fn receipt_headers(receipt: &kv::Receipt) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let session = BASE64_STANDARD.encode(&receipt.session);
    let numbers = [
        (EPOCH, receipt.epoch),
        (STORE, u64::from(receipt.store_id)),
        (REGION, receipt.region_id),
        (REVISION, receipt.revision),
        (STALENESS, receipt.staleness_bound_ms),
    ];
    headers.insert(MODE, HeaderValue::from_static(mode_name(receipt.mode)));
    for (name, number) in numbers {
        headers.insert(name, HeaderValue::from(number));
    }
    if let Ok(session) = HeaderValue::try_from(session) {
        headers.insert(SESSION, session);
    }
    headers
}

/// The receipt of an answer, with a token that has also seen what `before`, the request's, had. `judged`: the
/// answer is that of a read, which brought it.
fn receipt_of(receipt: Option<kv::Receipt>, before: &Bytes, judged: bool) -> kv::Receipt {
    let mut receipt = receipt.unwrap_or_default();
    let asked: &[u8] = if judged { before } else { &[] };
    receipt.session = joined(before, asked, &receipt.session);
    receipt
}

/// Get a value
///
/// The body is the value, as it was written; the headers say its version (`ETag`) and how it was served.
/// `HEAD` answers the same without the value.
#[utoipa::path(
    get,
    path = "/v1/kv/{ns}/{key}",
    tag = "kv",
    operation_id = "get_value",
    params(
        super::openapi::KeyPath,
        ("consistency" = inline(Option<super::shapes::Consistency>), Query, description = "`default` is linearizable in a strong namespace and local in an eventual one"),
        ("If-None-Match" = Option<String>, Header, pattern = "^([*]|((W/)?\"[!#-+\\--~]*\"|[0-9]+)(, ?((W/)?\"[!#-+\\--~]*\"|[0-9]+))*)$", description = "304 where the key still has one of these versions; `*`: any"),
        ("If-Match" = Option<String>, Header, pattern = "^([*]|((W/)?\"[!#-+\\--~]*\"|[0-9]+)(, ?((W/)?\"[!#-+\\--~]*\"|[0-9]+))*)$", description = "412 where the key has none of these versions; `*`: any"),
        super::openapi::SessionHeader,
    ),
    responses(
        (status = 200, description = "The value", body = Vec<u8>, content_type = "application/octet-stream",
            headers(
                ("ETag" = String, description = "The version, in quotes"),
                ("FlareDB-Session" = String, description = "What the session has seen now; send it with the next request"),
                ("FlareDB-Mode" = String, description = "strong or eventual"),
                ("FlareDB-Epoch" = String, description = "Epoch of the namespace"),
                ("FlareDB-Store" = String, description = "Which store answered"),
                ("FlareDB-Region" = String, description = "Which region holds the key"),
                ("FlareDB-Revision" = String, description = "The region's revision; 0 in an eventual namespace"),
                ("FlareDB-Staleness-Ms" = String, description = "How old the value may be at most; 0: linearizable; 18446744073709551615: not known"),
                ("FlareDB-Expires-At-Ms" = Option<String>, description = "Unix time; absent: never"),
            )),
        (status = 304, description = "The key has the version of If-None-Match"),
        (status = 404, description = "No such key, or no such namespace", body = Document, content_type = "application/problem+json"),
        (status = 412, description = "The key has none of the versions of If-Match", body = Document, content_type = "application/problem+json"),
        Refusals,
    )
)]
pub(super) async fn get(
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response, Problem> {
    let mut call = Call::of(&gateway, request).map_err(|error| Problem::of(&error))?;
    let mut parse = || -> Result<_, Error> {
        let consistency = call.query.consistency()?;
        call.query.done()?;
        let if_match = Tags::of(&call, &header::IF_MATCH)?;
        let if_none_match = Tags::of(&call, &header::IF_NONE_MATCH)?;
        Ok((consistency, call.session()?, if_match, if_none_match))
    };
    let (consistency, session, if_match, if_none_match) =
        parse().map_err(|error| Problem::of(&error))?;
    let message = kv::GetRequest {
        namespace: call.namespace.clone(),
        key: call.key.clone(),
        read: Some(kv::ReadOptions {
            consistency,
            session: session.clone(),
            seen_epoch: 0,
        }),
    };
    let found = gateway.kv.get(call.rpc(message)).await?.into_inner();
    let mut headers = receipt_headers(&receipt_of(found.receipt, &session, true));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    let version = if found.found { found.version } else { 0 };
    if let Some(tags) = if_match
        && !(found.found && tags.name(version, false))
    {
        return Err(Problem::precondition(version).headers(headers));
    }
    if !found.found {
        return Err(Problem::no_key(&call.namespace).headers(headers));
    }
    if let Ok(tag) = HeaderValue::try_from(etag(version)) {
        headers.insert(header::ETAG, tag);
    }
    if found.expires_at_ms != 0 {
        headers.insert(EXPIRES, HeaderValue::from(found.expires_at_ms));
    }
    if if_none_match.is_some_and(|tags| tags.name(version, true)) {
        return Ok((StatusCode::NOT_MODIFIED, headers).into_response());
    }
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    Ok((headers, Body::from(found.value)).into_response())
}

/// Write a value
///
/// The body is the value, any bytes. With `If-Match` or `If-None-Match` it is a compare-and-swap, which needs a
/// strong namespace. With `FlareDB-Request-Id` it may be repeated and is done once.
#[utoipa::path(
    put,
    path = "/v1/kv/{ns}/{key}",
    tag = "kv",
    operation_id = "put_value",
    params(
        super::openapi::KeyPath,
        ("ttl_ms" = Option<i64>, Query, minimum = 0, maximum = 3_162_240_000_000i64, description = "Milliseconds until the key expires; 0 or absent: the namespace's default"),
        ("If-Match" = Option<String>, Header, pattern = "^([*]|\"(0|[1-9][0-9]{0,18})\"|0|[1-9][0-9]{0,18})$", description = "Only where the key has this version, as an `ETag` has it: `\"123\"`; `*`: only where it is there, without a request id"),
        ("If-None-Match" = inline(Option<super::shapes::Star>), Header, description = "`*`: only where the key is not there"),
        super::openapi::RequestIdHeader,
        super::openapi::SessionHeader,
    ),
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "The value"),
    responses(
        (status = 200, description = "Written", body = Put,
            headers(
                ("ETag" = String, description = "The new version, in quotes"),
                ("FlareDB-Session" = String, description = "What the session has seen now"),
            )),
        (status = 404, description = "The namespace was deleted, or stores create none by themselves (`consistency.auto_create`)", body = Document, content_type = "application/problem+json"),
        (status = 412, description = "The key has another version than `If-Match` says, or is there although `If-None-Match: *`", body = Document, content_type = "application/problem+json"),
        (status = 413, description = "The value is larger than `limits.max_value`", body = Document, content_type = "application/problem+json"),
        Refusals,
    )
)]
pub(super) async fn put(
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response, Problem> {
    let mut write = Write::of(&gateway, request, true)?;
    let value = write.call.value().await?;
    let (version, receipt) = match write.expected {
        Expected::Anything => {
            let message = kv::PutRequest {
                namespace: write.call.namespace.clone(),
                key: write.call.key.clone(),
                value,
                ttl_ms: write.ttl_ms,
                request_id: write.request_id.clone(),
                ..Default::default()
            };
            let done = gateway.kv.put(write.call.rpc(message)).await?.into_inner();
            (done.version, done.receipt)
        }
        Expected::Something => {
            let done = write.swap_any(&gateway, Change::Value(value)).await?;
            (done.new_version, done.receipt)
        }
        Expected::Version(version) => {
            let done = write.swap(&gateway, version, Change::Value(value)).await?;
            (done.new_version, done.receipt)
        }
    };
    let receipt = receipt_of(receipt, &write.session, false);
    let mut headers = write.answer_headers(&receipt);
    if let Ok(tag) = HeaderValue::try_from(etag(version)) {
        headers.insert(header::ETAG, tag);
    }
    let body = Put {
        version: version.into(),
        receipt: Receipt::from(&receipt),
    };
    Ok((headers, Json(body)).into_response())
}

/// Delete a key
///
/// A key that is not there is deleted, too: `existed` is false. With `If-Match` it is a compare-and-swap.
#[utoipa::path(
    delete,
    path = "/v1/kv/{ns}/{key}",
    tag = "kv",
    operation_id = "delete_key",
    params(
        super::openapi::KeyPath,
        ("If-Match" = Option<String>, Header, pattern = "^([*]|\"(0|[1-9][0-9]{0,18})\"|0|[1-9][0-9]{0,18})$", description = "Only where the key has this version; `*`: only where it is there, without a request id"),
        super::openapi::RequestIdHeader,
        super::openapi::SessionHeader,
    ),
    responses(
        (status = 200, description = "Deleted, or it was not there", body = Deleted,
            headers(("FlareDB-Session" = String, description = "What the session has seen now"))),
        (status = 404, description = "The namespace was deleted, or stores create none by themselves (`consistency.auto_create`)", body = Document, content_type = "application/problem+json"),
        (status = 412, description = "The key has another version", body = Document, content_type = "application/problem+json"),
        Refusals,
    )
)]
pub(super) async fn delete(
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response, Problem> {
    let write = Write::of(&gateway, request, false)?;
    let (existed, version, receipt) = match write.expected {
        Expected::Anything => {
            let message = kv::DeleteRequest {
                namespace: write.call.namespace.clone(),
                key: write.call.key.clone(),
                request_id: write.request_id.clone(),
                ..Default::default()
            };
            let done = gateway
                .kv
                .delete(write.call.rpc(message))
                .await?
                .into_inner();
            (done.existed, done.version, done.receipt)
        }
        Expected::Something => {
            let done = write.swap_any(&gateway, Change::Delete(true)).await?;
            (true, done.new_version, done.receipt)
        }
        Expected::Version(version) => {
            let done = write.swap(&gateway, version, Change::Delete(true)).await?;
            (version != 0, done.new_version, done.receipt)
        }
    };
    let receipt = receipt_of(receipt, &write.session, false);
    let headers = write.answer_headers(&receipt);
    let body = Deleted {
        existed,
        version: version.into(),
        receipt: Receipt::from(&receipt),
    };
    Ok((headers, Json(body)).into_response())
}

/// A write, but for its value.
struct Write {
    call: Call,
    expected: Expected,
    ttl_ms: i64,
    request_id: Bytes,
    session: Bytes,
}

impl Write {
    /// `has_value`: it is a PUT, so it may create, and may expire.
    fn of(gateway: &Gateway, request: Request, has_value: bool) -> Result<Write, Problem> {
        let parse = || -> Result<Write, Error> {
            let mut call = Call::of(gateway, request)?;
            let expected = Expected::of(&call)?;
            if !has_value && call.header(&header::IF_NONE_MATCH)?.is_some() {
                let text = "what is not there cannot be deleted: If-None-Match goes with PUT only";
                return Err(Error::invalid("If-None-Match", text));
            }
            let ttl_ms = if has_value {
                call.query.number("ttl_ms", 0..=MAX_TTL_MS)?
            } else {
                None
            };
            call.query.done()?;
            Ok(Write {
                expected,
                ttl_ms: ttl_ms.unwrap_or(0),
                request_id: call.request_id()?,
                session: call.session()?,
                call,
            })
        };
        parse().map_err(Problem::refused)
    }

    /// Compares and swaps; losing is a problem.
    async fn swap(
        &self,
        gateway: &Gateway,
        expected_version: u64,
        change: Change,
    ) -> Result<kv::CompareAndSwapResponse, Problem> {
        let done = self.try_swap(gateway, expected_version, change).await?;
        if done.success {
            return Ok(done);
        }
        Err(self.lost(done.current_version, done.receipt))
    }

    /// Changes what is there, whichever version it has. It loses only where nothing is.
    async fn swap_any(
        &self,
        gateway: &Gateway,
        change: Change,
    ) -> Result<kv::CompareAndSwapResponse, Problem> {
        let message = kv::GetRequest {
            namespace: self.call.namespace.clone(),
            key: self.call.key.clone(),
            read: None,
        };
        let found = gateway.kv.get(self.call.rpc(message)).await;
        let found = found.map_err(|status| {
            Problem::from(status).with("outcome", crate::error::Outcome::NotApplied.as_str())
        })?;
        let found = found.into_inner();
        let (mut there, mut receipt) = (found.version, found.receipt);
        if !found.found {
            there = 0;
        }
        // Each turn but the last means that another write got through, and the request's time ends them.
        while there != 0 {
            let done = self.try_swap(gateway, there, change.clone()).await?;
            if done.success {
                return Ok(done);
            }
            (there, receipt) = (done.current_version, done.receipt);
        }
        Err(self.lost(there, receipt))
    }

    async fn try_swap(
        &self,
        gateway: &Gateway,
        expected_version: u64,
        change: Change,
    ) -> Result<kv::CompareAndSwapResponse, Problem> {
        let message = kv::CompareAndSwapRequest {
            namespace: self.call.namespace.clone(),
            key: self.call.key.clone(),
            expected_version,
            change: Some(change),
            ttl_ms: self.ttl_ms,
            request_id: self.request_id.clone(),
            seen_epoch: 0,
        };
        let done = gateway.kv.compare_and_swap(self.call.rpc(message)).await?;
        Ok(done.into_inner())
    }

    /// The precondition does not hold: this version is there.
    fn lost(&self, there: u64, receipt: Option<kv::Receipt>) -> Problem {
        let receipt = receipt_of(receipt, &self.session, false);
        Problem::precondition(there)
            .with("outcome", crate::error::Outcome::NotApplied.as_str())
            .headers(self.answer_headers(&receipt))
    }

    fn answer_headers(&self, receipt: &kv::Receipt) -> HeaderMap {
        let mut headers = receipt_headers(receipt);
        if !self.request_id.is_empty()
            && let Ok(id) = HeaderValue::from_bytes(&self.request_id)
        {
            headers.insert(REQUEST_ID, id);
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_a_version_in_quotes_and_nothing_else() {
        assert_eq!(version_of(&etag(u64::MAX)), Some(u64::MAX));
        assert_eq!(version_of("5"), Some(5), "without its quotes");
        for tag in [
            "\"5",
            "\"\"",
            "\"+5\"",
            "\"05\"",
            "W/\"5\"",
            "*",
            "\"5\", \"6\"",
        ] {
            assert_eq!(version_of(tag), None, "{tag}");
        }
    }

    #[test]
    fn lists_of_tags_are_compared_weakly_or_strongly() {
        let names = |list, version, weak| Tags::parse(list).unwrap().name(version, weak);
        assert!(names("\"4\", W/\"5\"", 5, true));
        assert!(!names("\"4\", W/\"5\"", 5, false));
        assert!(names("*", 5, false));
        assert!(!names("\"15\",\"another-server's\"", 5, true));
        assert!(names("4, 5", 5, false), "without their quotes");
        for garbage in ["", "W/5", "\"5", "\"4\",", "*, \"5\""] {
            assert_eq!(Tags::parse(garbage), None, "{garbage:?}");
        }
    }
}
