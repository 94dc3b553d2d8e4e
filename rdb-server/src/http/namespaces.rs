//! Namespaces: list, create, describe, change, delete; and who holds what of one.

use super::call::Call;
use super::problem::{Document, Problem};
use super::shapes::{Namespace, NamespaceChange, NamespaceList, NewNamespace, Replication};
use super::{Gateway, openapi::Refusals};
use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use rdb_proto::raft::{self, raft_service_server::RaftService};

/// The request of a route that only reads, without any parameter.
pub(super) fn read(gateway: &Gateway, request: Request) -> Result<Call, Problem> {
    let call = Call::of(gateway, request).and_then(|call| call.query.done().map(|()| call));
    call.map_err(|error| Problem::of(&error))
}

/// The request of a route that changes something, without any parameter.
pub(super) fn change_of(gateway: &Gateway, request: Request) -> Result<Call, Problem> {
    let call = Call::of(gateway, request).and_then(|call| call.query.done().map(|()| call));
    call.map_err(Problem::refused)
}

/// List namespaces
#[utoipa::path(
    get,
    path = "/v1/namespaces",
    tag = "namespaces",
    operation_id = "list_namespaces",
    responses((status = 200, description = "All namespaces", body = NamespaceList), Refusals)
)]
pub(super) async fn list(
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response, Problem> {
    let call = read(&gateway, request)?;
    let message = call.rpc(raft::ListNamespacesRequest {});
    let found = gateway.modes.list_namespaces(message).await?.into_inner();
    let namespaces = found.namespaces.into_iter().map(Namespace::from).collect();
    Ok(Json(NamespaceList { namespaces }).into_response())
}

/// Create a namespace
///
/// Creating one that is there with the same mode and policies does no harm.
#[utoipa::path(
    post,
    path = "/v1/namespaces",
    tag = "namespaces",
    operation_id = "create_namespace",
    request_body(content = NewNamespace, content_type = "application/json"),
    responses(
        (status = 201, description = "It is there", body = Namespace, headers(("Location" = String, description = "Its address"))),
        (status = 413, description = "The body is too large", body = Document, content_type = "application/problem+json"),
        (status = 415, description = "The body is not said to be JSON", body = Document, content_type = "application/problem+json"),
        Refusals,
    )
)]
pub(super) async fn create(
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response, Problem> {
    let mut call = change_of(&gateway, request)?;
    let new: NewNamespace = call.json().await?;
    let message = call.rpc(raft::CreateNamespaceRequest {
        name: new.name,
        mode: new.mode.map_or(0, i32::from),
        policies: Some(
            new.policies
                .unwrap_or_default()
                .0
                .on(raft::Policies::default()),
        ),
    });
    let made = gateway.modes.create_namespace(message).await?.into_inner();
    let location = HeaderValue::try_from(format!("/v1/namespaces/{}", made.name));
    let mut response = (StatusCode::CREATED, Json(Namespace::from(made))).into_response();
    if let Ok(location) = location {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// Describe a namespace
#[utoipa::path(
    get,
    path = "/v1/namespaces/{ns}",
    tag = "namespaces",
    operation_id = "describe_namespace",
    params(super::openapi::NamespacePath),
    responses(
        (status = 200, description = "The namespace", body = Namespace),
        (status = 404, description = "No such namespace", body = Document, content_type = "application/problem+json"),
        Refusals,
    )
)]
pub(super) async fn describe(
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response, Problem> {
    let call = read(&gateway, request)?;
    Ok(Json(Namespace::from(described(&gateway, &call).await?)).into_response())
}

async fn described(gateway: &Gateway, call: &Call) -> Result<raft::Namespace, Problem> {
    let message = call.rpc(raft::DescribeNamespaceRequest {
        name: call.namespace.clone(),
    });
    Ok(gateway
        .modes
        .describe_namespace(message)
        .await?
        .into_inner())
}

/// Replace a namespace's policies
///
/// Those that are not given get their defaults. The mode is changed at `/mode`.
#[utoipa::path(
    put,
    path = "/v1/namespaces/{ns}",
    tag = "namespaces",
    operation_id = "replace_policies",
    params(super::openapi::NamespacePath),
    request_body(content = NamespaceChange, content_type = "application/json"),
    responses(
        (status = 200, description = "The namespace as it is now", body = Namespace),
        (status = 404, description = "No such namespace", body = Document, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = Document, content_type = "application/problem+json"),
        (status = 415, description = "The body is not said to be JSON", body = Document, content_type = "application/problem+json"),
        Refusals,
    )
)]
pub(super) async fn replace(
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response, Problem> {
    let mut call = change_of(&gateway, request)?;
    let change: NamespaceChange = call.json().await?;
    let policies = change.policies.0.on(raft::Policies::default());
    update(&gateway, &call, policies).await
}

/// Change some of a namespace's policies
///
/// Those that are not given stay as they are: they are read, changed and written, so of two callers at once one
/// may undo the other's change.
#[utoipa::path(
    patch,
    path = "/v1/namespaces/{ns}",
    tag = "namespaces",
    operation_id = "change_policies",
    params(super::openapi::NamespacePath),
    request_body(content = NamespaceChange, content_type = "application/json"),
    responses(
        (status = 200, description = "The namespace as it is now", body = Namespace),
        (status = 404, description = "No such namespace", body = Document, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large", body = Document, content_type = "application/problem+json"),
        (status = 415, description = "The body is not said to be JSON", body = Document, content_type = "application/problem+json"),
        Refusals,
    )
)]
pub(super) async fn change(
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response, Problem> {
    let mut call = change_of(&gateway, request)?;
    let change: NamespaceChange = call.json().await?;
    let now = described(&gateway, &call).await?;
    let policies = change.policies.0.on(now.policies.unwrap_or_default());
    update(&gateway, &call, policies).await
}

async fn update(
    gateway: &Gateway,
    call: &Call,
    policies: raft::Policies,
) -> Result<Response, Problem> {
    let message = call.rpc(raft::UpdateNamespaceRequest {
        name: call.namespace.clone(),
        policies: Some(policies),
    });
    let updated = gateway.modes.update_namespace(message).await?.into_inner();
    Ok(Json(Namespace::from(updated)).into_response())
}

/// Delete a namespace
///
/// With all that is in it, for good. A write does not bring its name back; creating it does. One that is being
/// switched is not deleted, nor is `default`.
#[utoipa::path(
    delete,
    path = "/v1/namespaces/{ns}",
    tag = "namespaces",
    operation_id = "delete_namespace",
    params(super::openapi::NamespacePath),
    responses(
        (status = 204, description = "It is gone"),
        (status = 404, description = "No such namespace", body = Document, content_type = "application/problem+json"),
        Refusals,
    )
)]
pub(super) async fn delete(
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response, Problem> {
    let call = change_of(&gateway, request)?;
    let message = call.rpc(raft::DeleteNamespaceRequest {
        name: call.namespace.clone(),
    });
    gateway.modes.delete_namespace(message).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Who holds what of a namespace
///
/// Works without a quorum.
#[utoipa::path(
    get,
    path = "/v1/namespaces/{ns}/replication",
    tag = "namespaces",
    operation_id = "replication",
    params(super::openapi::NamespacePath),
    responses(
        (status = 200, description = "Its replicas", body = Replication),
        (status = 404, description = "No such namespace", body = Document, content_type = "application/problem+json"),
        Refusals,
    )
)]
pub(super) async fn replication(
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response, Problem> {
    let call = read(&gateway, request)?;
    let message = call.rpc(raft::ReplicationStatusRequest {
        namespace: call.namespace.clone(),
    });
    let found = gateway.modes.replication_status(message).await?;
    let regions = found.into_inner().regions.into_iter();
    let regions = regions
        .map(super::shapes::RegionReplication::from)
        .collect();
    Ok(Json(Replication { regions }).into_response())
}
