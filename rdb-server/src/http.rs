//! The HTTP port: the JSON gateway, its OpenAPI document, and the probes.
//!
//! Owns the routes, and what a request and an answer look like in HTTP. Decides nothing: every route makes the
//! same message that a gRPC client would send, calls the same service with it, in this process, and writes down
//! what came back. So limits, deadlines, request ids, sessions, metrics and refusals are those of gRPC.
//!
//! | File | Owns |
//! |---|---|
//! | `call.rs` | a request: address, parameters, headers, body, deadline |
//! | `kv.rs`, `listing.rs` | keys and values; many of them, streamed |
//! | `namespaces.rs`, `modes.rs`, `conflicts.rs`, `cluster.rs` | what people and tools ask |
//! | `shapes.rs`, `bytes.rs`, `query.rs` | JSON documents; bytes in addresses and in JSON; parameters |
//! | `problem.rs` | refusals |
//! | `openapi.rs` | the document that describes all this, and the page that shows it |
//! | `probes.rs`, `accept.rs` | `/livez`, `/readyz`, `/metrics`; connections |
//!
//! Invariants: no value of a client is ever served as something that a browser would run; what was refused
//! here never reached a service, and a change that was is `not_applied`.

mod accept;
mod bytes;
mod call;
mod cluster;
mod conflicts;
mod kv;
mod listing;
mod modes;
mod namespaces;
mod openapi;
mod probes;
mod problem;
mod query;
mod shapes;

pub use accept::{Bounded, CONNECTIONS, IDLE};
pub use probes::Probes;

use crate::admin_service::AdminService;
use crate::config::LiveConfig;
use crate::error::Error;
use crate::kv_service::KvService;
use crate::raft_service::ModeService;
use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::middleware;
use axum::response::Response;
use axum::routing::get;
use problem::Problem;
use rdb_types::Reason;
use std::sync::Arc;

/// What the routes call.
#[derive(Clone)]
pub struct Gateway {
    /// What the probes look at.
    pub probes: Probes,
    /// Keys and values.
    pub kv: KvService,
    /// Namespaces and modes.
    pub modes: Arc<ModeService>,
    /// The cluster.
    pub admin: Arc<AdminService>,
    /// Limits and the default deadline.
    pub config: LiveConfig,
}

/// The routes. Each of `/v1` stands in [`openapi::Api`], too; a test compares them.
pub fn routes(gateway: Gateway) -> Router {
    let key = || get(kv::get).put(kv::put).delete(kv::delete);
    Router::new()
        .route("/v1/kv/{ns}", get(listing::list))
        // A key that is written down without %2F is the same key.
        .route("/v1/kv/{ns}/{*key}", key())
        // The empty key: refused as such, and not as an address that is not there.
        .route("/v1/kv/{ns}/", key())
        .route(
            "/v1/namespaces",
            get(namespaces::list).post(namespaces::create),
        )
        .route(
            "/v1/namespaces/{ns}",
            get(namespaces::describe)
                .put(namespaces::replace)
                .patch(namespaces::change)
                .delete(namespaces::delete),
        )
        .route(
            "/v1/namespaces/{ns}/mode",
            get(modes::show).put(modes::switch).delete(modes::cancel),
        )
        .route(
            "/v1/namespaces/{ns}/replication",
            get(namespaces::replication),
        )
        .route("/v1/namespaces/{ns}/conflicts", get(conflicts::list))
        .route(
            "/v1/namespaces/{ns}/conflicts/restore",
            axum::routing::post(conflicts::restore),
        )
        .route("/v1/cluster", get(cluster::show))
        .route("/openapi.json", get(openapi::document))
        .route("/docs", get(openapi::page))
        .merge(probes::routes())
        .with_state(gateway)
        .fallback(async |request: Request| Problem::no_route(request.uri().path()))
        .method_not_allowed_fallback(async |request: Request| {
            Problem::no_method(request.method().as_str(), request.uri().path())
        })
        .layer(middleware::map_response(safe))
}

/// What is left of them while the store ends: the probes, for who has to see that it leaves. All else is refused, and was
/// not applied.
pub fn last_routes(gateway: Gateway) -> Router {
    probes::routes()
        .with_state(gateway)
        .fallback(async || {
            Problem::refused(Error::new(
                Reason::NotReady,
                "this store is shutting down: ask another one",
            ))
        })
        .layer(middleware::map_response(safe))
}

/// Whatever is answered is what its Content-Type says, whoever wrote it.
async fn safe(mut response: Response) -> Response {
    let nosniff = HeaderValue::from_static("nosniff");
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}
