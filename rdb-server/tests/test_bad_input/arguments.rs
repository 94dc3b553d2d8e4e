//! Keys, values, names, lifetimes and deadlines beyond what `contracts/grpc.md` allows.

use crate::support::calls::{channel, refused, text, timed};
use crate::{KIB, MIB, assert_invalid, assert_serves, one, put_request};
use bytes::Bytes;
use rdb_proto::kv;
use rdb_proto::raft::raft_service_client::RaftServiceClient;
use rdb_proto::raft::{CreateNamespaceRequest, GetModeRequest, Policies};
use tonic::{Code, Request};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_values_have_limits() {
    let (cluster, store) = one().await;
    // Just inside.
    let key = "k".repeat(4 * KIB);
    store
        .put_as(kv::PutRequest {
            key: key.clone().into(),
            value: vec![1; MIB].into(),
            ..Default::default()
        })
        .await
        .unwrap();
    assert_eq!(store.get(&key).await.unwrap().value.len(), MIB);
    // Just outside.
    let long = "k".repeat(4 * KIB + 1);
    for (field, limit, refusal) in [
        (
            "key",
            "4096",
            assert_invalid(store.put(&long, "v").await, "key", "not_applied"),
        ),
        (
            "key",
            "4096",
            assert_invalid(store.get(&long).await, "key", ""),
        ),
        (
            "key",
            "4096",
            assert_invalid(store.delete(&long, "").await, "key", "not_applied"),
        ),
        (
            "key",
            "4096",
            assert_invalid(store.cas(&long, 0, "v", "").await, "key", "not_applied"),
        ),
        (
            "value",
            "1048576",
            assert_invalid(
                store
                    .put_as(kv::PutRequest {
                        value: vec![1; MIB + 1].into(),
                        ..put_request()
                    })
                    .await,
                "value",
                "not_applied",
            ),
        ),
        (
            "value",
            "1048576",
            assert_invalid(
                store.cas("k", 0, &"v".repeat(MIB + 1), "").await,
                "value",
                "not_applied",
            ),
        ),
        (
            "request_id",
            "64",
            assert_invalid(
                store
                    .put_as(kv::PutRequest {
                        request_id: vec![b'i'; 65].into(),
                        ..put_request()
                    })
                    .await,
                "request_id",
                "not_applied",
            ),
        ),
        (
            "request_id",
            "64",
            assert_invalid(
                store.delete("k", &"i".repeat(65)).await,
                "request_id",
                "not_applied",
            ),
        ),
    ] {
        assert_eq!(refusal.meta("limit"), limit, "{field}: {refusal:?}");
    }
    store
        .put_as(kv::PutRequest {
            request_id: vec![b'i'; 64].into(),
            ..put_request()
        })
        .await
        .unwrap();
    store.delete("k", "").await.unwrap();
    // An empty key is none; an empty value is one.
    assert_invalid(store.put("", "v").await, "key", "not_applied");
    assert_invalid(store.get("").await, "key", "");
    assert_invalid(store.delete("", "").await, "key", "not_applied");
    store.put("empty", "").await.unwrap();
    assert_eq!(
        text(&store.get("empty").await.unwrap()).as_deref(),
        Some("")
    );
    for bound in ["start", "end", "prefix"] {
        let mut scan = kv::ScanRequest::default();
        let at = match bound {
            "start" => &mut scan.start,
            "end" => &mut scan.end,
            _ => &mut scan.prefix,
        };
        // A byte more than the longest key is where a scan goes on behind it.
        *at = format!("{long}k").into();
        assert_invalid(store.scan(scan).await, bound, "");
    }
    let both = kv::ScanRequest {
        prefix: "a".into(),
        start: "b".into(),
        ..Default::default()
    };
    assert_invalid(store.scan(both).await, "prefix", "");
    // Backwards is empty, and no error.
    let (entries, _) = store
        .scan(kv::ScanRequest {
            start: "z".into(),
            end: "a".into(),
            ..Default::default()
        })
        .await
        .unwrap();
    assert!(entries.is_empty(), "{entries:?}");
    assert!(
        !store.get("k").await.unwrap().found,
        "what was refused left no trace"
    );
    assert_serves(&cluster, "long keys and values").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_have_legal_names() {
    let (cluster, store) = one().await;
    let long = "n".repeat(65);
    for name in [
        "Upper",
        "1digit",
        "_under",
        "sp ace",
        "sl/ash",
        "ümlaut",
        "nul\0",
        ".",
        long.as_str(),
    ] {
        let store = store.namespace(name);
        assert_invalid(store.put("k", "v").await, "namespace", "not_applied");
        assert_invalid(store.get("k").await, "namespace", "");
        assert_invalid(store.delete("k", "").await, "namespace", "not_applied");
        assert_invalid(
            store.scan(kv::ScanRequest::default()).await,
            "namespace",
            "",
        );
    }
    let mut modes = RaftServiceClient::new(channel(cluster.addr(0)).await);
    for name in ["", "Upper", long.as_str()] {
        let request = CreateNamespaceRequest {
            name: name.to_owned(),
            ..Default::default()
        };
        assert_invalid(modes.create_namespace(request).await, "name", "not_applied");
    }
    assert_invalid(
        modes
            .get_mode(GetModeRequest {
                namespace: "Upper".into(),
            })
            .await,
        "namespace",
        "",
    );
    refused(
        modes
            .get_mode(GetModeRequest {
                namespace: "missing".into(),
            })
            .await,
    )
    .is(Code::NotFound, "NAMESPACE_NOT_FOUND");
    let odd_mode = CreateNamespaceRequest {
        name: "fine".into(),
        mode: 77,
        ..Default::default()
    };
    assert_invalid(
        modes.create_namespace(odd_mode).await,
        "mode",
        "not_applied",
    );
    let with = |policies| CreateNamespaceRequest {
        name: "fine".into(),
        policies: Some(policies),
        ..Default::default()
    };
    let ttl = |ttl_ms| Policies {
        ttl_ms,
        ..Default::default()
    };
    let lag = |max_lag_ms| Policies {
        max_lag_ms,
        ..Default::default()
    };
    let log = |conflict_log_bytes| Policies {
        conflict_log_bytes,
        ..Default::default()
    };
    for (policies, field, limit) in [
        (ttl(-1), "policies.ttl_ms", ""),
        (ttl(i64::MAX), "policies.ttl_ms", "3162240000000"),
        (ttl(3_162_240_000_001), "policies.ttl_ms", "3162240000000"),
        (lag(-1), "policies.max_lag_ms", ""),
        (lag(i64::MAX), "policies.max_lag_ms", "2592000000"),
        (
            log(u64::MAX),
            "policies.conflict_log_bytes",
            "1099511627776",
        ),
    ] {
        let refusal = assert_invalid(
            modes.create_namespace(with(policies)).await,
            field,
            "not_applied",
        );
        assert_eq!(refusal.meta("limit"), limit, "{refusal:?}");
    }
    // What nobody asked for is the default, and shown as such.
    let made = modes.create_namespace(with(ttl(3_162_240_000_000))).await;
    let policies = made.unwrap().into_inner().policies.unwrap();
    assert_eq!(policies.durability, "sync");
    assert_eq!(policies.ttl_ms, 3_162_240_000_000);
    // Asking for the same again, with the default written out, is no other request.
    let again = Policies {
        durability: "sync".into(),
        ..ttl(3_162_240_000_000)
    };
    modes.create_namespace(with(again)).await.unwrap();
    // An empty name means `default`; the longest is fine.
    store.put("k", "v").await.unwrap();
    assert_eq!(
        text(&store.namespace("default").get("k").await.unwrap()).as_deref(),
        Some("v")
    );
    store
        .namespace(&"n".repeat(64))
        .put("k", "v")
        .await
        .unwrap();
    assert_serves(&cluster, "illegal names").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lifetimes_and_deadlines_are_checked() {
    let (cluster, store) = one().await;
    for ttl_ms in [-1, i64::MIN, i64::MAX, 200 * 366 * 24 * 3600 * 1000] {
        assert_invalid(
            store
                .put_as(kv::PutRequest {
                    ttl_ms,
                    ..put_request()
                })
                .await,
            "ttl_ms",
            "not_applied",
        );
    }
    store
        .put_as(kv::PutRequest {
            ttl_ms: 50 * 366 * 24 * 3600 * 1000,
            ..put_request()
        })
        .await
        .unwrap();
    assert!(store.get("k").await.unwrap().found);
    store.delete("k", "").await.unwrap();

    // A deadline that has passed: nothing is applied. (The header by hand: a client library would not
    // even send it.) The gRPC library looks at the header, too, and may answer first.
    for timeout in ["0m", "0n"] {
        let mut expired = Request::new(put_request());
        expired
            .metadata_mut()
            .insert("grpc-timeout", timeout.parse().unwrap());
        let refusal = refused(store.kv.clone().put(expired).await);
        match refusal.reason.as_str() {
            "" => assert!(
                matches!(refusal.code, Code::Cancelled | Code::DeadlineExceeded),
                "{refusal:?}"
            ),
            _ => assert_eq!(
                (refusal.code, refusal.reason.as_str()),
                (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
                "{refusal:?}"
            ),
        }
        let mut expired = Request::new(kv::GetRequest {
            key: "k".into(),
            ..Default::default()
        });
        expired
            .metadata_mut()
            .insert("grpc-timeout", timeout.parse().unwrap());
        let refusal = refused(store.kv.clone().get(expired).await);
        assert!(
            matches!(refusal.code, Code::Cancelled | Code::DeadlineExceeded),
            "{refusal:?}"
        );
    }
    assert!(!store.get("k").await.unwrap().found);
    // A deadline that is no number is not taken for one.
    let mut odd = Request::new(put_request());
    odd.metadata_mut()
        .insert("grpc-timeout", "soon".parse().unwrap());
    store.kv.clone().put(odd).await.unwrap();

    // A token that no answer held.
    for session in [&b"nonsense"[..], &[1; 16], &[9; 17], &[1; 4000]] {
        let read = kv::ReadOptions {
            consistency: kv::Consistency::Stale as i32,
            session: Bytes::copy_from_slice(session),
            ..Default::default()
        };
        assert_invalid(store.get_as("k", read).await, "session", "");
    }
    // A consistency or an epoch of the future.
    let unseen = kv::ReadOptions {
        seen_epoch: 99,
        ..Default::default()
    };
    refused(store.get_as("k", unseen).await).is(Code::Unavailable, "STALE_REPLICA");
    // A compare-and-swap that says nothing to do.
    let nothing = kv::CompareAndSwapRequest {
        key: "k".into(),
        ..Default::default()
    };
    assert_invalid(
        store
            .kv
            .clone()
            .compare_and_swap(timed(nothing, store.timeout))
            .await,
        "change",
        "not_applied",
    );
    assert_serves(&cluster, "odd numbers").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_read_asks_for_is_checked_however_it_is_served() {
    let (cluster, store) = one().await;
    store.put("k", "v").await.unwrap();
    for consistency in [3, 77, -1, i32::MAX] {
        let read = kv::ReadOptions {
            consistency,
            ..Default::default()
        };
        assert_invalid(store.get_as("k", read.clone()).await, "consistency", "");
        assert_invalid(store.all("k", read).await, "consistency", "");
    }
    for consistency in [0, 1, 2] {
        let read = kv::ReadOptions {
            consistency,
            session: Bytes::from_static(b"nonsense"),
            ..Default::default()
        };
        assert_invalid(store.get_as("k", read.clone()).await, "session", "");
        assert_invalid(store.all("k", read).await, "session", "");
    }
    assert_serves(&cluster, "odd reads").await;
}
