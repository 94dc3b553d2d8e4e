//! What no client should send, sent to a real store: each is answered with a clear error (code,
//! reason, field), and the store serves on.
//!
//! Owns the table of bad requests. The limits are those of `surface.md`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test may stop at what it did not expect"
)]

mod support;

use bytes::{BufMut, Bytes, BytesMut};
use rdb_proto::kv::{self, batch_request, batch_response};
use rdb_proto::raft::raft_service_client::RaftServiceClient;
use rdb_proto::raft::{CreateNamespaceRequest, GetModeRequest, Policies};
use std::time::Duration;
use support::calls::{Plain, Refusal, channel, refused, text, timed};
use support::cluster::Cluster;
use support::http;
use support::wait::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

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
        *at = long.clone().into();
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
async fn messages_have_a_limit() {
    let (cluster, store) = one().await;
    let value = vec![1u8; 5 * MIB];
    let refusal = refused(
        store
            .put_as(kv::PutRequest {
                value: value.into(),
                ..put_request()
            })
            .await,
    );
    // Refused before it was read: nobody knows what it was, so there is no ErrorInfo.
    assert!(
        matches!(refusal.code, Code::OutOfRange | Code::ResourceExhausted),
        "{refusal:?}"
    );
    assert!(
        refusal.message.contains("4194304"),
        "the limit is named: {refusal:?}"
    );
    // A frame that claims to be 1 GiB, and brings 10 bytes.
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(1 << 30);
    frame.put_slice(&[0; 10]);
    let refusal = refused(raw(&cluster, "/flaredb.kv.v1.Kv/Put", frame.freeze()).await);
    assert!(
        matches!(refusal.code, Code::OutOfRange | Code::ResourceExhausted),
        "{refusal:?}"
    );
    assert!(!store.get("k").await.unwrap().found);
    assert_serves(&cluster, "large messages").await;
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
        assert_invalid(modes.create_namespace(request).await, "name", "");
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
    assert_invalid(modes.create_namespace(odd_mode).await, "mode", "");
    let negative = CreateNamespaceRequest {
        name: "fine".into(),
        policies: Some(Policies {
            ttl_ms: -1,
            ..Default::default()
        }),
        ..Default::default()
    };
    assert_invalid(
        modes.create_namespace(negative).await,
        "policies.ttl_ms",
        "",
    );
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

/// A call whose message is given as bytes, framed already.
async fn raw(cluster: &Cluster, path: &'static str, frame: Bytes) -> Result<Bytes, tonic::Status> {
    let connection = h2_connection(cluster).await;
    let request = tonic::codegen::http::Request::post(format!("http://{}{path}", cluster.addr(0)))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (answer, mut body) = connection
        .ready()
        .await
        .unwrap()
        .send_request(request, false)
        .unwrap();
    // The answer may be there before all was sent.
    let _ = body.send_data(frame, true);
    let mut answer = answer.await.unwrap();
    let mut bytes = BytesMut::new();
    while let Some(data) = answer.body_mut().data().await {
        bytes.extend_from_slice(&data.unwrap());
    }
    let trailers = answer.body_mut().trailers().await.unwrap();
    let headers = trailers.as_ref().unwrap_or_else(|| answer.headers());
    match tonic::Status::from_header_map(headers) {
        Some(status) if status.code() != Code::Ok => Err(status),
        _ => Ok(bytes.freeze()),
    }
}

async fn h2_connection(cluster: &Cluster) -> h2::client::SendRequest<Bytes> {
    let stream = TcpStream::connect(cluster.addr(0)).await.unwrap();
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    send
}

fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(message);
    frame.freeze()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_another_version_or_of_none() {
    use prost::Message;
    let (cluster, store) = one().await;
    // Fields of a newer client are passed over: 200 (a number) and 201 (bytes).
    let mut newer = put_request().encode_to_vec();
    prost::encoding::uint64::encode(200, &77, &mut newer);
    prost::encoding::string::encode(201, &"from the future".to_owned(), &mut newer);
    let answer = raw(&cluster, "/flaredb.kv.v1.Kv/Put", framed(&newer))
        .await
        .unwrap();
    let put = kv::PutResponse::decode(&answer[5..]).unwrap();
    assert_eq!(store.get("k").await.unwrap().version, put.version);

    // A message that is none.
    let refusal = refused(raw(&cluster, "/flaredb.kv.v1.Kv/Put", framed(&[0xFF; 40])).await);
    assert!(
        matches!(refusal.code, Code::Internal | Code::InvalidArgument),
        "{refusal:?}"
    );
    // A text field that is no UTF-8.
    let refusal = refused(
        raw(
            &cluster,
            "/flaredb.kv.v1.Kv/Put",
            framed(&[0x0A, 2, 0xC3, 0x28]),
        )
        .await,
    );
    assert!(
        matches!(refusal.code, Code::Internal | Code::InvalidArgument),
        "{refusal:?}"
    );
    // A frame that says it is compressed, and one that ends early.
    let refusal = refused(
        raw(
            &cluster,
            "/flaredb.kv.v1.Kv/Put",
            Bytes::from_static(&[1, 0, 0, 0, 1, 0]),
        )
        .await,
    );
    assert_ne!(refusal.code, Code::Ok);
    let refusal = refused(
        raw(
            &cluster,
            "/flaredb.kv.v1.Kv/Put",
            Bytes::from_static(&[0, 0, 0, 0, 99, 0]),
        )
        .await,
    );
    assert_ne!(refusal.code, Code::Ok);
    // Nothing at all, a call that does not exist, a service that does not exist.
    for path in [
        "/flaredb.kv.v1.Kv/Put",
        "/flaredb.kv.v1.Kv/Steal",
        "/no.such.Service/Call",
    ] {
        let refusal = refused(raw(&cluster, path, Bytes::new()).await);
        assert!(
            matches!(
                refusal.code,
                Code::Internal | Code::InvalidArgument | Code::Unimplemented | Code::Unknown
            ),
            "{path}: {refusal:?}"
        );
    }
    // What is declared and not built says so.
    let watch = refused(store.kv.clone().watch(kv::WatchRequest::default()).await);
    watch.is(Code::Unimplemented, "UNIMPLEMENTED");
    assert_serves(&cluster, "odd messages").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_operation_in_a_batch_harms_only_itself() {
    let (cluster, store) = one().await;
    let put = |id, key: &str, value: &str| {
        let put = kv::PutRequest {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            ..Default::default()
        };
        kv::BatchRequest {
            id,
            op: Some(batch_request::Op::Put(put)),
            ..Default::default()
        }
    };
    let elsewhere = kv::PutRequest {
        namespace: "Illegal".into(),
        ..put_request()
    };
    let mut message = put(1, "good", "1");
    message.also = vec![
        kv::BatchRequest {
            id: 2,
            op: None,
            ..Default::default()
        },
        put(3, "", "empty key"),
        put(4, &"k".repeat(5000), "long key"),
        kv::BatchRequest {
            id: 5,
            op: Some(batch_request::Op::Put(elsewhere)),
            ..Default::default()
        },
        put(6, "also good", "6"),
        // Nested ones are ignored.
        kv::BatchRequest {
            also: vec![put(8, "nested", "x")],
            ..put(7, "outer", "7")
        },
    ];
    let mut answers = store
        .kv
        .clone()
        .batch(futures::stream::iter([
            message,
            put(9, "next message", "9"),
        ]))
        .await
        .unwrap()
        .into_inner();
    let mut by_id = std::collections::BTreeMap::new();
    while let Some(answer) = answers.message().await.unwrap() {
        for answer in std::iter::once(kv::BatchResponse {
            also: Vec::new(),
            ..answer.clone()
        })
        .chain(answer.also)
        {
            assert!(
                by_id.insert(answer.id, answer.result.unwrap()).is_none(),
                "{} was answered twice",
                answer.id
            );
        }
    }
    assert_eq!(
        by_id.keys().copied().collect::<Vec<_>>(),
        [1, 2, 3, 4, 5, 6, 7, 9]
    );
    for (id, answer) in &by_id {
        let expected = match id {
            1 | 6 | 7 | 9 => None,
            2 => Some("op"),
            3 | 4 => Some("key"),
            _ => Some("namespace"),
        };
        match (answer, expected) {
            (batch_response::Result::Put(_), None) => {}
            (batch_response::Result::Failure(failure), Some(field)) => {
                assert_eq!(
                    (failure.code, failure.reason.as_str()),
                    (Code::InvalidArgument as i32, "INVALID_ARGUMENT"),
                    "{id}: {failure:?}"
                );
                let meta = |key: &str| failure.metadata.get(key).map(String::as_str);
                assert_eq!(
                    (meta("field"), meta("outcome"), failure.retry_after_ms),
                    (Some(field), Some("not_applied"), 0),
                    "{id}: {failure:?}"
                );
            }
            _ => panic!("{id}: {answer:?}"),
        }
    }
    assert!(store.get("also good").await.unwrap().found);
    assert!(!store.get("nested").await.unwrap().found);
    // A stream that ends in the middle of a message is the end of that stream only.
    let mut half = BytesMut::from(&framed(&[])[..]);
    half.put_slice(&[0, 0, 0, 0, 50, 1, 2, 3]);
    assert_ne!(
        refused(raw(&cluster, "/flaredb.kv.v1.Kv/Batch", half.freeze()).await).code,
        Code::Ok
    );
    assert_serves(&cluster, "broken batches").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_half_a_handshake_on_both_ports() {
    let (cluster, _) = one().await;
    let ports = [cluster.addr(0), cluster.http_addr(0)];
    let mut noise = vec![0u8; 64 * KIB];
    let mut state = 1u32;
    for byte in &mut noise {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (state >> 24) as u8;
    }
    let tls_hello = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3][..], &[7; 300]].concat();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let garbage: [(&str, Vec<u8>); 7] = [
        ("noise", noise),
        ("a TLS hello", tls_hello),
        ("zeros", vec![0; 10_000]),
        (
            "an endless header",
            [b"GET / HTTP/1.1\r\nX: ".to_vec(), vec![b'a'; MIB]].concat(),
        ),
        ("a preface and noise", [&preface[..], &[0xFF; 100]].concat()),
        (
            "a frame of 16 MiB",
            [&preface[..], &[0xFF, 0xFF, 0xFF, 0, 0, 0, 0, 0, 1]].concat(),
        ),
        (
            "RESET on stream 0",
            [&preface[..], &[0, 0, 4, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0]].concat(),
        ),
    ];
    for (what, bytes) in &garbage {
        for port in ports {
            let mut stream = TcpStream::connect(port).await.unwrap();
            // The store may close while this is being written.
            let _ = stream.write_all(bytes).await;
            let _ = stream.shutdown().await;
            // It answers or closes; it does not hang on to what is over.
            let mut answer = Vec::new();
            let closed =
                tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
            assert!(
                closed.is_ok(),
                "{what} on {port}: neither answered nor closed"
            );
        }
        assert_serves(&cluster, what).await;
    }
    // Silent ones: opened and nothing said; a preface and nothing more; half a request line.
    let mut silent = Vec::new();
    for start in [&b""[..], &preface[..], &preface[..10], b"GET /liv"] {
        for port in ports {
            for _ in 0..10 {
                let mut stream = TcpStream::connect(port).await.unwrap();
                stream.write_all(start).await.unwrap();
                silent.push(stream);
            }
        }
    }
    assert_serves(&cluster, "silent connections, still open").await;
    drop(silent);
    assert_serves(&cluster, "silent connections, closed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_reflection_probes_and_metrics_answer() {
    let (mut cluster, store) = one().await;
    store.namespace("orders").put("k", "v").await.unwrap();
    let mut health = HealthClient::new(channel(cluster.addr(0)).await);
    for service in ["", "flaredb.kv.v1.Kv", "default", "orders"] {
        eventually(
            Duration::from_secs(10),
            &format!("{service:?} is SERVING"),
            async || {
                let request = HealthCheckRequest {
                    service: service.to_owned(),
                };
                let answer = health
                    .check(request)
                    .await
                    .map_err(|status| status.to_string())?;
                let status = answer.into_inner().status();
                if status == ServingStatus::Serving {
                    Ok(())
                } else {
                    Err(format!("{status:?}"))
                }
            },
        )
        .await;
    }
    let unknown = health
        .check(HealthCheckRequest {
            service: "no-such-namespace".into(),
        })
        .await
        .unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);

    let mut reflection = ServerReflectionClient::new(channel(cluster.addr(0)).await);
    let ask = |message| {
        futures::stream::iter([ServerReflectionRequest {
            host: String::new(),
            message_request: Some(message),
        }])
    };
    let mut answers = reflection
        .server_reflection_info(ask(MessageRequest::ListServices(String::new())))
        .await
        .unwrap()
        .into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) =
        answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("not a list")
    };
    let names: Vec<String> = list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    for name in [
        "flaredb.kv.v1.Kv",
        "flaredb.raft.v1.RaftService",
        "flaredb.admin.v1.Admin",
        "grpc.health.v1.Health",
    ] {
        assert!(
            names.iter().any(|known| known == name),
            "{name} in {names:?}"
        );
    }
    let symbol = MessageRequest::FileContainingSymbol("flaredb.kv.v1.Kv.Put".into());
    let mut answers = reflection
        .server_reflection_info(ask(symbol))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    assert!(
        matches!(answer, Some(MessageResponse::FileDescriptorResponse(_))),
        "{answer:?}"
    );

    let port = cluster.http_addr(0);
    let live = http::get(port, "/livez").await.unwrap();
    assert_eq!((live.status, live.body.as_str()), (200, "ok\n"));
    let ready = http::get(port, "/readyz").await.unwrap();
    assert_eq!((ready.status, ready.body.as_str()), (200, "ready\n"));
    let verbose = http::get(port, "/readyz?verbose").await.unwrap();
    assert_eq!(verbose.status, 200);
    for check in [
        "[+] cluster: ok",
        "[+] tables: ok",
        "[+] region 1: ok",
        "[+] region 2: ok",
    ] {
        assert!(verbose.body.contains(check), "{check} in {}", verbose.body);
    }
    let metrics = http::get(port, "/metrics").await.unwrap();
    assert_eq!(metrics.status, 200);
    assert!(
        metrics
            .head
            .contains("content-type: application/openmetrics-text"),
        "{}",
        metrics.head
    );
    for line in [
        "flaredb_namespace_mode{namespace=\"orders\",mode=\"strong\"} 1",
        "flaredb_quorum_available{region=\"2\"} 1",
        "flaredb_raft_is_leader{region=\"2\"} 1",
        "flaredb_namespace_keys{namespace=\"orders\"} 1",
    ] {
        assert!(metrics.body.contains(line), "{line} in\n{}", metrics.body);
    }
    assert!(
        metrics
            .body
            .contains("flaredb_requests_total{method=\"Put\",namespace=\"orders\",code=\"OK\"} 1"),
        "{}",
        metrics.body
    );
    assert!(metrics.body.ends_with("# EOF\n"));
    assert_eq!(http::get(port, "/no/such/page").await.unwrap().status, 404);
    let posted = http::exchange(
        port,
        format!(
            "POST /livez HTTP/1.1\r\nHost: {port}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        .as_bytes(),
    )
    .await
    .unwrap();
    assert!(
        posted.starts_with(b"HTTP/1.1 405"),
        "{}",
        String::from_utf8_lossy(&posted)
    );

    // A store that waits for others is alive and not ready, and says for what.
    let mut waiting = Cluster::prepare(2, &[]);
    waiting.launch(0);
    let port = waiting.http_addr(0);
    let verbose = eventually(
        Duration::from_secs(10),
        "the waiting store answers",
        async || http::get(port, "/readyz?verbose").await,
    )
    .await;
    assert_eq!(verbose.status, 503);
    assert!(verbose.body.contains("[-] cluster: "), "{}", verbose.body);
    assert_eq!(http::get(port, "/livez").await.unwrap().status, 200);
    let refusal = refused(Plain::on(&waiting, 0).await.put("k", "v").await);
    refusal
        .is(Code::Unavailable, "NOT_READY")
        .outcome("not_applied");
    cluster.stop(0).await;
}
