//! Writes that lost a conflict: listing them, streamed, and restoring them.
//!
//! Invariant: as in [`super::listing`], a document that has its end is whole.

use super::call::Call;
use super::namespaces::change_of;
use super::problem::{Document, Problem};
use super::shapes::{Conflict, ConflictList, Restore, Restored};
use super::{Gateway, openapi::Refusals};
use crate::raft_service::MISSING_STORES;
use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use rdb_proto::raft::{self, raft_service_server::RaftService};
use std::io;

/// Conflicts of a listing that says no limit.
const DEFAULT_LIMIT: i64 = 1000;
/// The longest listing.
const MAX_LIMIT: i64 = 1_000_000_000;
/// Conflicts that go out as one piece.
const PIECE: usize = 64;

/// List the writes that lost
///
/// The logs of all replicas that can be reached, joined.
#[utoipa::path(
    get,
    path = "/v1/namespaces/{ns}/conflicts",
    tag = "conflicts",
    operation_id = "list_conflicts",
    params(
        super::openapi::NamespacePath,
        ("prefix" = Option<String>, Query, description = "Only of keys that begin with it; percent-encoded bytes"),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 1_000_000_000i64, description = "At most so many; 1000 where it is not given"),
    ),
    responses(
        (status = 200, description = "The conflicts, oldest first", body = ConflictList),
        (status = 404, description = "No such namespace", body = Document, content_type = "application/problem+json"),
        Refusals,
    )
)]
pub(super) async fn list(
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response, Problem> {
    let parsed = Call::of(&gateway, request).and_then(|mut call| {
        let prefix = call.query.bytes("prefix").unwrap_or_default();
        let limit = call.query.number("limit", 1..=MAX_LIMIT)?;
        call.query.done()?;
        Ok((call, prefix, limit.unwrap_or(DEFAULT_LIMIT)))
    });
    let (call, prefix, limit) = parsed.map_err(|error| Problem::of(&error))?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let message = call.rpc(raft::ListConflictsRequest {
        namespace: call.namespace.clone(),
        prefix,
        // One more than is shown, to know whether there are more.
        limit: u32::try_from(limit.saturating_add(1)).unwrap_or(u32::MAX),
    });
    let found = gateway.modes.list_conflicts(message).await?;
    let missing = found.metadata().get(MISSING_STORES);
    let missing = missing.and_then(|stores| stores.to_str().ok());
    // Numbers with commas between them: JSON as they are.
    let missing = format!("[{}]", missing.unwrap_or_default());
    let mut rows = found.into_inner();
    // While nothing is sent, a refusal still has a status.
    let first = rows.next().await.transpose()?;
    let rows = futures::stream::iter(first.map(Ok)).chain(rows);
    let mut written = 0;
    let pieces = rows.ready_chunks(PIECE).map(move |rows| {
        let mut out = Vec::new();
        for row in rows {
            let row = row.map_err(|status| io::Error::other(status.message().to_owned()))?;
            if written < limit {
                if written > 0 {
                    out.extend_from_slice(b",\n");
                }
                serde_json::to_writer(&mut out, &Conflict::from(row))?;
            }
            written += 1;
        }
        Ok::<_, io::Error>((Bytes::from(out), written > limit))
    });
    let begin = futures::stream::iter([Ok(Bytes::from_static(b"{\"conflicts\":[\n"))]);
    let body = futures::stream::unfold(Some((Box::pin(pieces), false, missing)), async |state| {
        let (mut pieces, more, missing) = state?;
        match pieces.next().await {
            Some(Ok((piece, more))) => Some((Ok(piece), Some((pieces, more, missing)))),
            Some(Err(error)) => Some((Err(error), None)),
            None => {
                let end = format!("\n],\"more\":{more},\"missing_stores\":{missing}}}\n");
                Some((Ok(Bytes::from(end)), None))
            }
        }
    });
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, Body::from_stream(begin.chain(body))).into_response())
}

/// Write lost values once more
///
/// One, by its id, or all. Each becomes an ordinary new write.
#[utoipa::path(
    post,
    path = "/v1/namespaces/{ns}/conflicts/restore",
    tag = "conflicts",
    operation_id = "restore_conflicts",
    params(super::openapi::NamespacePath),
    request_body(content = Restore, content_type = "application/json"),
    responses(
        (status = 200, description = "What came of it", body = Restored),
        (status = 404, description = "No such namespace", body = Document, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = Document, content_type = "application/problem+json"),
        (status = 415, description = "The body is not said to be JSON", body = Document, content_type = "application/problem+json"),
        Refusals,
    )
)]
pub(super) async fn restore(
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response, Problem> {
    let mut call = change_of(&gateway, request)?;
    let restore: Restore = call.json().await?;
    let message = call.rpc(raft::RestoreConflictRequest {
        namespace: call.namespace.clone(),
        id: restore.id,
        all: restore.all,
        if_untouched: restore.if_untouched,
    });
    let came = gateway.modes.restore_conflict(message).await?.into_inner();
    Ok(Json(Restored::from(came)).into_response())
}
