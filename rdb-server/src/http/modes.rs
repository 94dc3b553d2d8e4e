//! The mode of a namespace: which it is, switching it, planning and cancelling a switch.

use super::call::Call;
use super::namespaces::{change_of, read};
use super::problem::{Document, Problem};
use super::shapes::{ModeChange, ModeTarget, NamespaceMode, Number, Plan};
use super::{Gateway, openapi::Refusals};
use crate::error::Error;
use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use rdb_proto::raft::{self, raft_service_server::RaftService};
use rdb_types::StoreId;

/// The mode of a namespace, and which stores disagree
#[utoipa::path(
    get,
    path = "/v1/namespaces/{ns}/mode",
    tag = "modes",
    operation_id = "get_mode",
    params(super::openapi::NamespacePath),
    responses(
        (status = 200, description = "The mode", body = NamespaceMode),
        (status = 404, description = "No such namespace", body = Document, content_type = "application/problem+json"),
        Refusals,
    )
)]
pub(super) async fn show(
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response, Problem> {
    let call = read(&gateway, request)?;
    let message = call.rpc(raft::GetModeRequest {
        namespace: call.namespace.clone(),
    });
    let found = gateway.modes.get_mode(message).await?.into_inner();
    Ok(Json(NamespaceMode::from(found)).into_response())
}

/// Switch a namespace to another mode
///
/// Answers once the target is recorded; GET shows how far it is. `dry_run` only says what would happen.
#[utoipa::path(
    put,
    path = "/v1/namespaces/{ns}/mode",
    tag = "modes",
    operation_id = "set_mode",
    params(
        super::openapi::NamespacePath,
        ("dry_run" = Option<bool>, Query, description = "Plan it, and change nothing"),
    ),
    request_body(content = ModeTarget, content_type = "application/json"),
    responses(
        (status = 200, description = "The plan of a dry run", body = Plan),
        (status = 202, description = "The target is recorded, and the cluster goes there", body = ModeChange),
        (status = 404, description = "No such namespace", body = Document, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = Document, content_type = "application/problem+json"),
        (status = 415, description = "The body is not said to be JSON", body = Document, content_type = "application/problem+json"),
        Refusals,
    )
)]
pub(super) async fn switch(
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response, Problem> {
    let parsed = Call::of(&gateway, request).and_then(|mut call| {
        let dry_run = call.query.flag("dry_run")?;
        call.query.done()?;
        Ok((call, dry_run))
    });
    let (mut call, dry_run) = parsed.map_err(Problem::refused)?;
    let target: ModeTarget = call.json().await?;
    let stores = target.accept_missing.into_iter().map(store_id);
    let stores = stores.collect::<Result<_, _>>();
    let message = raft::UpdateNamespaceModeRequest {
        namespace: call.namespace.clone(),
        mode: target.mode.into(),
        accept_missing: stores.map_err(Problem::refused)?,
        dry_run,
        ..Default::default()
    };
    let change = ask(&gateway, &call, message).await?;
    Ok(match change.plan {
        Some(plan) => Json(Plan::from(plan)).into_response(),
        None => accepted(change),
    })
}

/// A store's id as the service takes it, which has fewer numbers than JSON.
fn store_id(Number(number): Number) -> Result<u32, Error> {
    let id = StoreId::new(number).ok_or_else(|| {
        let text = format!(
            "{number} is no store's id: these are from 1 to {}",
            StoreId::MAX
        );
        Error::invalid("accept_missing", text)
    })?;
    Ok(u32::from(id.get()))
}

/// Cancel a switch
///
/// One that has not sealed the namespace yet is undone.
#[utoipa::path(
    delete,
    path = "/v1/namespaces/{ns}/mode",
    tag = "modes",
    operation_id = "cancel_switch",
    params(super::openapi::NamespacePath),
    responses(
        (status = 202, description = "It is being undone, or there was nothing to cancel", body = ModeChange),
        (status = 404, description = "No such namespace", body = Document, content_type = "application/problem+json"),
        Refusals,
    )
)]
pub(super) async fn cancel(
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response, Problem> {
    let call = change_of(&gateway, request)?;
    let message = raft::UpdateNamespaceModeRequest {
        namespace: call.namespace.clone(),
        cancel: true,
        ..Default::default()
    };
    Ok(accepted(ask(&gateway, &call, message).await?))
}

/// Asks without waiting for the end: one message comes back.
async fn ask(
    gateway: &Gateway,
    call: &Call,
    message: raft::UpdateNamespaceModeRequest,
) -> Result<raft::ModeChange, Problem> {
    let changes = gateway.modes.update_namespace_mode(call.rpc(message));
    let mut changes = changes.await?.into_inner();
    Ok(changes.next().await.transpose()?.unwrap_or_default())
}

fn accepted(change: raft::ModeChange) -> Response {
    (StatusCode::ACCEPTED, Json(ModeChange::from(change))).into_response()
}
