//! Many keys: a scan as one JSON document, written while it is read.
//!
//! Owns the document's pieces, and the address of what follows. The scan is the service's: one frozen moment, in
//! pages, ended for a reader that takes nothing for too long.
//!
//! Invariants:
//! - no more than two pages of a scan are in memory, whatever its length;
//! - a document that has its end is whole: where the scan breaks off, the connection does.

use super::bytes::percent_encode;
use super::call::Call;
use super::problem::{Document, Problem};
use super::shapes::{Entry, Listing, Receipt};
use super::{Gateway, openapi::Refusals};
use crate::error::Error;
use crate::router::Patience;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use futures::{Stream, StreamExt};
use rdb_proto::kv::{self, kv_server::Kv};
use rdb_types::key::prefix_end;
use rdb_types::session::joined;
use std::io;
use std::time::Duration;
use tonic::Status;

/// How long the reader of a listing may take for a page. That he takes anything at all, his connection looks
/// ([`super::IDLE`]); this is what its slowest pace needs for one.
const PATIENCE: Patience = Patience(Duration::from_secs(300));

/// Entries of a listing that says no limit.
const DEFAULT_LIMIT: i64 = 1000;
/// The longest listing. It is streamed, so this only keeps numbers small.
const MAX_LIMIT: i64 = 1_000_000_000;

/// What is listed.
#[derive(Debug, Default)]
struct Asked {
    namespace: String,
    prefix: Bytes,
    start: Bytes,
    end: Bytes,
    /// The last key of the listing before.
    after: Option<Bytes>,
    limit: u32,
    reverse: bool,
    keys_only: bool,
    consistency: Option<Bytes>,
}

impl Asked {
    fn of(call: &mut Call) -> Result<(Asked, kv::ReadOptions), Error> {
        let query = &mut call.query;
        // Kept as it was given, for the address of what follows.
        let consistency = query.peek("consistency");
        let read = query.consistency()?;
        let limit = query.number("limit", 1..=MAX_LIMIT)?;
        let asked = Asked {
            prefix: query.bytes("prefix").unwrap_or_default(),
            start: query.bytes("start").unwrap_or_default(),
            end: query.bytes("end").unwrap_or_default(),
            after: query.bytes("after"),
            limit: u32::try_from(limit.unwrap_or(DEFAULT_LIMIT)).unwrap_or(u32::MAX),
            reverse: query.flag("reverse")?,
            keys_only: query.flag("keys_only")?,
            consistency,
            namespace: call.namespace.clone(),
        };
        query.done()?;
        // The scan begins right behind it, which the service would call by another name.
        if let Some(after) = &asked.after {
            call.check_key("after", after)?;
        }
        let options = kv::ReadOptions {
            consistency: read,
            session: call.session()?,
            seen_epoch: 0,
        };
        Ok((asked, options))
    }

    /// The scan that answers it: one entry more than is shown, to know whether there are more.
    fn scan(&self, read: kv::ReadOptions) -> kv::ScanRequest {
        let mut scan = kv::ScanRequest {
            namespace: self.namespace.clone(),
            prefix: self.prefix.clone(),
            start: self.start.clone(),
            end: self.end.clone(),
            limit: self.limit.saturating_add(1),
            reverse: self.reverse,
            keys_only: self.keys_only,
            read: Some(read),
        };
        let Some(after) = &self.after else {
            return scan;
        };
        if !scan.prefix.is_empty() {
            // The service takes a prefix or bounds; a listing that goes on has both.
            scan.end = prefix_end(&scan.prefix).unwrap_or_default();
            scan.start = std::mem::take(&mut scan.prefix);
        }
        if self.reverse {
            if scan.end.is_empty() || *after < scan.end {
                scan.end = after.clone();
            }
        } else {
            let mut next = BytesMut::with_capacity(after.len() + 1);
            next.put_slice(after);
            next.put_u8(0);
            scan.start = scan.start.max(next.freeze());
        }
        scan
    }

    /// The address of what follows `last`.
    fn next(&self, last: &[u8]) -> String {
        let mut text = format!(
            "/v1/kv/{}?limit={}",
            percent_encode(self.namespace.as_bytes()),
            self.limit
        );
        let bytes = [
            ("prefix", Some(&self.prefix)),
            ("start", Some(&self.start)),
            ("end", Some(&self.end)),
            ("consistency", self.consistency.as_ref()),
        ];
        for (name, value) in bytes {
            if let Some(value) = value.filter(|value| !value.is_empty()) {
                text.push_str(&format!("&{name}={}", percent_encode(value)));
            }
        }
        for (name, set) in [("reverse", self.reverse), ("keys_only", self.keys_only)] {
            if set {
                text.push_str(&format!("&{name}=true"));
            }
        }
        text.push_str(&format!("&after={}", percent_encode(last)));
        text
    }
}

/// List keys
///
/// In the order of the keys' bytes, from one frozen moment, streamed. `next` is the address of what follows.
#[utoipa::path(
    get,
    path = "/v1/kv/{ns}",
    tag = "kv",
    operation_id = "list_keys",
    params(
        super::openapi::NamespacePath,
        ("prefix" = Option<String>, Query, max_length = 4097, description = "Only keys that begin with it; percent-encoded bytes"),
        ("start" = Option<String>, Query, max_length = 4097, description = "The first key; not together with a prefix"),
        ("end" = Option<String>, Query, max_length = 4097, description = "The key before which it ends; not together with a prefix"),
        ("after" = Option<String>, Query, max_length = 4096, description = "Go on behind this key, as `next` does"),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 1_000_000_000i64, description = "Entries at most; 1000 where it is not given"),
        ("reverse" = Option<bool>, Query, description = "Last key first"),
        ("keys_only" = Option<bool>, Query, description = "Leave the values out"),
        ("consistency" = inline(Option<super::shapes::Consistency>), Query, description = "As of a single value"),
        super::openapi::SessionHeader,
    ),
    responses(
        (status = 200, description = "The keys, with their values", body = Listing),
        (status = 404, description = "No such namespace", body = Document, content_type = "application/problem+json"),
        Refusals,
    )
)]
pub(super) async fn list(
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response, Problem> {
    let mut call = Call::of(&gateway, request).map_err(|error| Problem::of(&error))?;
    let (asked, read) = Asked::of(&mut call).map_err(|error| Problem::of(&error))?;
    let before = read.session.clone();
    let mut message = call.rpc(asked.scan(read));
    message.extensions_mut().insert(PATIENCE);
    let mut pages = gateway.kv.scan(message).await?.into_inner();
    // While nothing is sent, a refusal still has a status.
    let first = match pages.next().await {
        Some(page) => page?,
        None => kv::ScanResponse::default(),
    };
    let writer = Writer {
        left: asked.limit as usize,
        asked,
        written: 0,
        last: None,
        more: false,
        receipt: kv::Receipt {
            session: before.clone(),
            ..Default::default()
        },
        before,
    };
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    let body = Body::from_stream(document(writer, first, pages));
    Ok((headers, body).into_response())
}

/// The document, a piece for each page.
fn document(
    writer: Writer,
    first: kv::ScanResponse,
    pages: impl Stream<Item = Result<kv::ScanResponse, Status>> + Unpin + Send,
) -> impl Stream<Item = Result<Bytes, io::Error>> {
    let begin = futures::stream::iter([Ok(first)]).chain(pages);
    futures::stream::unfold(Some((writer, begin)), async |state| {
        let (mut writer, mut pages) = state?;
        match pages.next().await {
            Some(Ok(page)) => {
                let piece = writer.page(page);
                let state = piece.is_ok().then_some((writer, pages));
                Some((piece, state))
            }
            None => Some((writer.end(), None)),
            Some(Err(status)) => {
                tracing::debug!(error = status.message(), "a listing broke off");
                let error = io::Error::other(status.message().to_owned());
                Some((Err(error), None))
            }
        }
    })
}

/// A listing that is being written.
struct Writer {
    asked: Asked,
    /// Entries that may still be written.
    left: usize,
    written: usize,
    last: Option<Bytes>,
    more: bool,
    /// Of all pages together.
    receipt: kv::Receipt,
    /// The session's token of the request.
    before: Bytes,
}

impl Writer {
    fn page(&mut self, page: kv::ScanResponse) -> Result<Bytes, io::Error> {
        if let Some(receipt) = page.receipt {
            let stalest = self.receipt.staleness_bound_ms;
            let session = joined(&self.receipt.session, &self.before, &receipt.session);
            self.receipt = kv::Receipt {
                session,
                staleness_bound_ms: receipt.staleness_bound_ms.max(stalest),
                ..receipt
            };
        }
        let mut out = Vec::new();
        for entry in &page.entries {
            if self.left == 0 {
                self.more = true;
                break;
            }
            out.extend_from_slice(match self.written {
                0 => b"{\"entries\":[\n",
                _ => b",\n",
            });
            serde_json::to_writer(&mut out, &Entry::of(entry, self.asked.keys_only))?;
            self.left -= 1;
            self.written += 1;
            self.last = Some(entry.key.clone());
        }
        Ok(out.into())
    }

    fn end(&self) -> Result<Bytes, io::Error> {
        let mut out = Vec::new();
        if self.written == 0 {
            out.extend_from_slice(b"{\"entries\":[");
        }
        let next = match &self.last {
            Some(last) if self.more => Some(self.asked.next(last)),
            _ => None,
        };
        out.extend_from_slice(b"\n],\"next\":");
        serde_json::to_writer(&mut out, &next)?;
        out.extend_from_slice(b",\"receipt\":");
        serde_json::to_writer(&mut out, &Receipt::from(&self.receipt))?;
        out.extend_from_slice(b"}\n");
        Ok(out.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(prefix: &'static str, after: Option<&'static str>, reverse: bool) -> Asked {
        Asked {
            namespace: "n".into(),
            prefix: prefix.into(),
            after: after.map(Bytes::from),
            limit: 2,
            reverse,
            ..Asked::default()
        }
    }

    #[test]
    fn a_listing_goes_on_behind_its_last_key_in_either_direction() {
        let scan = asked("p", Some("p1"), false).scan(kv::ReadOptions::default());
        assert_eq!(
            (&scan.prefix[..], &scan.start[..], &scan.end[..]),
            (&b""[..], &b"p1\0"[..], &b"q"[..])
        );
        let scan = asked("p", Some("p1"), true).scan(kv::ReadOptions::default());
        assert_eq!((&scan.start[..], &scan.end[..]), (&b"p"[..], &b"p1"[..]));
        let scan = asked("", Some("p1"), true).scan(kv::ReadOptions::default());
        assert_eq!((&scan.start[..], &scan.end[..]), (&b""[..], &b"p1"[..]));
        // From outside of the prefix: nothing is listed twice, and nothing beyond.
        let scan = asked("p", Some("a"), false).scan(kv::ReadOptions::default());
        assert_eq!((&scan.start[..], &scan.end[..]), (&b"p"[..], &b"q"[..]));
        assert_eq!(scan.limit, 3);
    }

    #[test]
    fn the_next_address_says_all_that_this_one_said() {
        let mut asked = asked("p/", None, true);
        asked.consistency = Some("stale".into());
        assert_eq!(
            asked.next(b"p/\xff&"),
            "/v1/kv/n?limit=2&prefix=p%2F&consistency=stale&reverse=true&after=p%2F%FF%26"
        );
    }
}
