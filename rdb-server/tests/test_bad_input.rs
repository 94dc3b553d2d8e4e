//! What no client should send, sent to a real store: each is answered with a clear error (code,
//! reason, field), and the store serves on.
//!
//! Owns what all of these tests check. The way in: `arguments.rs` (keys, values, names, numbers),
//! `messages.rs` (bytes that are no good messages), `ports.rs` (bytes that are no messages at all, and
//! what probes and tools ask), `connections.rs` (more of them than there are places). The limits are those of `contracts/grpc.md`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test may stop at what it did not expect"
)]

#[path = "test_bad_input/arguments.rs"]
mod arguments;
#[path = "test_bad_input/connections.rs"]
mod connections;
#[path = "test_bad_input/messages.rs"]
mod messages;
#[path = "test_bad_input/ports.rs"]
mod ports;
mod support;

use rdb_proto::kv;
use support::calls::{Plain, Refusal, refused, text};
use support::cluster::Cluster;
use support::http;
use tonic::Code;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

async fn one() -> (Cluster, Plain) {
    let cluster = Cluster::start(1, &[]).await;
    let store = Plain::on(&cluster, 0).await;
    (cluster, store)
}

/// The store is unharmed: alive, ready, and it takes writes and serves reads.
async fn assert_serves(cluster: &Cluster, after: &str) {
    let store = Plain::on(cluster, 0).await;
    store
        .put("alive", after)
        .await
        .unwrap_or_else(|status| panic!("after {after}: {status:?}"));
    assert_eq!(
        text(&store.get("alive").await.unwrap()).as_deref(),
        Some(after)
    );
    assert_eq!(
        http::get(cluster.http_addr(0), "/readyz")
            .await
            .unwrap()
            .status,
        200,
        "after {after}"
    );
    assert!(!cluster.log(0).contains("panicked"), "after {after}");
}

/// The refusal of an argument: reason, field, and for a write the certainty that nothing happened.
#[track_caller]
fn assert_invalid<T: std::fmt::Debug>(
    answer: Result<T, tonic::Status>,
    field: &str,
    outcome: &str,
) -> Refusal {
    let refusal = refused(answer);
    refusal
        .is(Code::InvalidArgument, "INVALID_ARGUMENT")
        .field(field)
        .outcome(outcome);
    assert_eq!(
        refusal.retry_after, None,
        "repeating it cannot help: {refusal:?}"
    );
    refusal
}

fn put_request() -> kv::PutRequest {
    kv::PutRequest {
        key: "k".into(),
        value: "v".into(),
        ..Default::default()
    }
}
