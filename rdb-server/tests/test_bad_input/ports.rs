//! Bytes that belong to no protocol, connections that say nothing, and what probes and tools ask.

use crate::support::calls::{Plain, channel, refused};
use crate::support::cluster::Cluster;
use crate::support::http;
use crate::support::wait::eventually;
use crate::{KIB, MIB, assert_serves, one};
use rdb_proto::kv::{self, batch_request};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

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

/// A browser on the wrong port, and a client that wants TLS: answered in words, and said in the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_protocol_on_the_grpc_port_is_told_which_port_that_is() {
    for (sent, logged) in [
        (
            &b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"[..],
            "HTTP/1; probes and metrics",
        ),
        (&[0x16, 3, 1, 0, 5, 1, 0, 1, 0, 1], "TLS, which this port"),
        (b"PRI * HTTP/3", "no protocol that is spoken here"),
    ] {
        let (cluster, _) = one().await;
        let mut stream = TcpStream::connect(cluster.addr(0)).await.unwrap();
        stream.write_all(sent).await.unwrap();
        let mut answer = Vec::new();
        let closed =
            tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer)).await;
        closed.expect("closed").unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(answer.contains("FlareDB's gRPC port"), "{answer}");
        eventually(Duration::from_secs(10), "the log says it", async || {
            let log = cluster.log(0);
            if log.contains(logged) {
                Ok(())
            } else {
                Err(log)
            }
        })
        .await;
        assert_serves(&cluster, logged).await;
    }
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

    // One operation of each kind in a batch.
    let key = || "batched".to_owned().into();
    let op = |id, op| kv::BatchRequest {
        id,
        op: Some(op),
        ..Default::default()
    };
    let namespace = || "orders".to_owned();
    let put = kv::PutRequest {
        namespace: namespace(),
        key: key(),
        ..Default::default()
    };
    let delete = kv::DeleteRequest {
        namespace: namespace(),
        key: key(),
        ..Default::default()
    };
    let swap = kv::CompareAndSwapRequest {
        namespace: namespace(),
        key: key(),
        change: Some(kv::compare_and_swap_request::Change::Delete(true)),
        ..Default::default()
    };
    // Refused before it is grouped with others.
    let illegal = kv::DeleteRequest {
        namespace: namespace(),
        ..Default::default()
    };
    let mut message = op(1, batch_request::Op::Put(put));
    message.also = vec![
        op(2, batch_request::Op::Delete(delete)),
        op(3, batch_request::Op::CompareAndSwap(swap)),
        op(4, batch_request::Op::Delete(illegal)),
    ];
    let mut answers = store
        .kv
        .clone()
        .batch(futures::stream::iter([message]))
        .await
        .unwrap()
        .into_inner();
    while answers.message().await.unwrap().is_some() {}

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
        "flaredb_quorum_rejections_total{namespace=\"orders\"} 0",
        "flaredb_quorum_rejections_total{namespace=\"default\"} 0",
    ] {
        assert!(metrics.body.contains(line), "{line} in\n{}", metrics.body);
    }
    for (method, code, count) in [
        ("Put", "OK", 2),
        ("Delete", "OK", 1),
        ("CompareAndSwap", "OK", 1),
        ("Delete", "INVALID_ARGUMENT", 1),
    ] {
        let line = format!(
            "flaredb_requests_total{{method=\"{method}\",namespace=\"orders\",code=\"{code}\"}} {count}\n"
        );
        assert!(metrics.body.contains(&line), "{line} in\n{}", metrics.body);
    }
    assert!(
        !metrics.body.contains("method=\"Write\""),
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
