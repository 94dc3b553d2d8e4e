//! The cluster as the store that is asked sees it.

use super::namespaces::read;
use super::problem::Problem;
use super::shapes::Cluster;
use super::{Gateway, openapi::Refusals};
use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use rdb_proto::admin::{self, admin_server::Admin};

/// Stores, regions and namespaces
///
/// Answered from the asked store's own tables, without a quorum, too.
#[utoipa::path(
    get,
    path = "/v1/cluster",
    tag = "cluster",
    operation_id = "cluster_status",
    responses((status = 200, description = "The cluster", body = Cluster), Refusals)
)]
pub(super) async fn show(
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response, Problem> {
    let call = read(&gateway, request)?;
    let message = call.rpc(admin::ClusterStatusRequest {});
    let found = gateway.admin.cluster_status(message).await?.into_inner();
    Ok(Json(Cluster::from(found)).into_response())
}
