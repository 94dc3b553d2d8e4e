//! What the HTTP port promises, held against real `rdb-server` processes. The names of the tests are the
//! promises.
//!
//! The way in: `kv.rs` (one key, preconditions, sessions), `listing.rs` (many keys), `operating.rs` (namespaces,
//! modes, conflicts, the cluster), `edges.rs` (routes, refusals, the document, probes).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test may stop at what it did not expect"
)]

#[path = "test_http/edges.rs"]
mod http_edges;
#[path = "test_http/kv.rs"]
mod http_kv;
#[path = "test_http/listing.rs"]
mod http_listing;
#[path = "test_http/operating.rs"]
mod http_operating;
mod support;
#[path = "test_http/web.rs"]
mod web;

use support::cluster::Cluster;

async fn one() -> Cluster {
    Cluster::start(1, &[]).await
}
