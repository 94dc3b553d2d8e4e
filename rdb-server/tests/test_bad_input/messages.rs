//! Messages that are too large, of another version, broken, or none; and batches with some of each.

use crate::support::calls::{Refusal, channel, refused};
use crate::support::cluster::Cluster;
use crate::{MIB, assert_serves, one, put_request};
use bytes::{BufMut, Bytes, BytesMut};
use rdb_proto::kv::{self, batch_request, batch_response};
use rdb_proto::raft::DeleteNamespaceRequest;
use rdb_proto::raft::raft_service_client::RaftServiceClient;
use tokio::net::TcpStream;
use tonic::Code;

/// A call whose message is given as bytes, framed already.
async fn raw(cluster: &Cluster, path: &'static str, frame: Bytes) -> Result<Bytes, tonic::Status> {
    let connection = h2_connection(cluster).await;
    let request = post(cluster, path).body(()).unwrap();
    let (answer, mut body) = connection
        .ready()
        .await
        .unwrap()
        .send_request(request, false)
        .unwrap();
    // The answer may be there before all was sent.
    let _ = body.send_data(frame, true);
    answered(answer).await
}

fn post(cluster: &Cluster, path: &str) -> tonic::codegen::http::request::Builder {
    tonic::codegen::http::Request::post(format!("http://{}{path}", cluster.addr(0)))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

async fn answered(answer: h2::client::ResponseFuture) -> Result<Bytes, tonic::Status> {
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
    too_large(&refusal);
    // A frame that claims to be 1 GiB, and brings 10 bytes.
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(1 << 30);
    frame.put_slice(&[0; 10]);
    too_large(&refused(
        raw(&cluster, "/flaredb.kv.v1.Kv/Put", frame.freeze()).await,
    ));
    assert!(!store.get("k").await.unwrap().found);
    assert_serves(&cluster, "large messages").await;
}

/// What a message over `limits.max_request` is answered with, wherever it came in.
#[track_caller]
fn too_large(refusal: &Refusal) {
    refusal
        .is(Code::InvalidArgument, "INVALID_ARGUMENT")
        .field("message")
        .outcome("not_applied");
    assert_eq!(refusal.meta("limit"), "4194304", "{refusal:?}");
    assert!(
        refusal.message.contains("limits.max_request"),
        "{refusal:?}"
    );
    assert_eq!(refusal.retry_after, None, "{refusal:?}");
    assert!(
        refusal.message.contains("the message has ") && !refusal.message.contains("decoded"),
        "{refusal:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_too_large_ends_its_stream_after_the_answers_before_it() {
    let (cluster, store) = one().await;
    let put = |id: u64, value: Vec<u8>| kv::BatchRequest {
        id,
        op: Some(batch_request::Op::Put(kv::PutRequest {
            key: format!("k{id}").into(),
            value: value.into(),
            ..Default::default()
        })),
        ..Default::default()
    };
    // Many before it, so that some are under way when it comes.
    let before = (1..=40).map(|id| put(id, vec![1; 100_000]));
    let messages: Vec<_> = before.chain([put(99, vec![1; 5 * MIB])]).collect();
    let mut answers = store
        .kv
        .clone()
        .batch(futures::stream::iter(messages))
        .await
        .unwrap()
        .into_inner();
    let mut answered = std::collections::BTreeSet::new();
    let end = loop {
        match answers.message().await {
            Ok(Some(answer)) => {
                for one in std::iter::once(&answer).chain(&answer.also) {
                    assert!(
                        matches!(one.result, Some(batch_response::Result::Put(_))),
                        "{one:?}"
                    );
                    answered.insert(one.id);
                }
            }
            end => break end,
        }
    };
    too_large(&refused(end));
    assert_eq!(
        answered.into_iter().collect::<Vec<_>>(),
        (1..=40).collect::<Vec<_>>()
    );
    assert!(!store.get("k99").await.unwrap().found);
    assert_serves(&cluster, "a large message in a stream").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_is_answered_by_the_store_and_not_by_the_transport() {
    use prost::Message;
    let (cluster, _) = one().await;
    let connection = h2_connection(&cluster).await;
    let call = async |timeout: &str, body: Option<Bytes>| {
        let request = post(&cluster, "/flaredb.kv.v1.Kv/Put")
            .header("grpc-timeout", timeout)
            .body(())
            .unwrap();
        let mut ready = connection.clone().ready().await.unwrap();
        let (answer, mut sending) = ready.send_request(request, false).unwrap();
        if let Some(body) = body {
            let _ = sending.send_data(body, true); // the answer may be there already
        }
        let answer = answered(answer).await;
        drop(sending);
        answer
    };
    // A message that never comes: no service saw it.
    for timeout in ["0m", "1m", "7m", "250m"] {
        refused(call(timeout, None).await)
            .is(Code::DeadlineExceeded, "DEADLINE_EXCEEDED")
            .outcome("not_applied");
    }
    // Whoever answers, and whenever it is, says what became of the write.
    let put = framed(&put_request().encode_to_vec());
    for turn in 0..200 {
        if let Err(status) = call(&format!("{}u", 50 * turn), Some(put.clone())).await {
            let refusal = Refusal::of(&status);
            refusal.is(Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
            assert!(
                ["not_applied", "unknown"].contains(&refusal.meta("outcome")),
                "{refusal:?}"
            );
        }
    }
    assert_serves(&cluster, "short deadlines").await;
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
    refusal
        .is(Code::InvalidArgument, "INVALID_ARGUMENT")
        .field("message")
        .outcome("not_applied");
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
        if path != "/flaredb.kv.v1.Kv/Put" {
            refusal
                .is(Code::Unimplemented, "UNIMPLEMENTED")
                .outcome("not_applied");
            assert!(
                refusal.message.contains("does not know that call"),
                "{refusal:?}"
            );
            assert!(!refusal.message.contains("compress"), "{refusal:?}");
        }
    }
    // Nobody deletes what he has not named.
    let mut namespaces = RaftServiceClient::new(channel(cluster.addr(0)).await);
    let request = DeleteNamespaceRequest::default();
    refused(namespaces.delete_namespace(request).await)
        .is(Code::InvalidArgument, "INVALID_ARGUMENT")
        .field("name")
        .outcome("not_applied");
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
