//! Callers that are wrong, half there, or not stores at all: a clear error each, the store unharmed.

use crate::harness::*;
use bytes::{Buf, BufMut, Bytes};
use futures::stream::StreamExt;
use rdb_proto::raft::peer_client::PeerClient;
use rdb_proto::raft::{
    Hello, Member, PeerRequest, PeerResponse, ReadIndexRequest, peer_request, peer_response,
};
use rdb_server::transport::grpc::{
    GrpcOptions, HANDSHAKE_TIMEOUT, Incoming, PROBATION, PeerService, Places,
};
use rdb_server::transport::{Lane, PeerHandler, Transport, TransportError};
use rdb_types::RegionId;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

fn hello(from: u32, to: u32) -> PeerRequest {
    let hello = Hello {
        from: Some(Member {
            store_id: from,
            ..Member::default()
        }),
        to_store: to,
        ..Hello::default()
    };
    PeerRequest {
        body: Some(peer_request::Body::Hello(hello)),
        ..PeerRequest::default()
    }
}

/// A stream of requests written by hand.
async fn connect(
    address: &str,
) -> (
    mpsc::Sender<PeerRequest>,
    impl Future<Output = Result<tonic::Streaming<PeerResponse>, tonic::Status>>,
) {
    let mut client = PeerClient::connect(format!("http://{address}"))
        .await
        .unwrap();
    let (sender, receiver) = mpsc::channel(16);
    (sender, async move {
        Ok(client
            .exchange(ReceiverStream::new(receiver))
            .await?
            .into_inner())
    })
}

#[tokio::test]
async fn a_refused_hello_tells_the_caller_why() {
    let server = Server::start(3).await; // where store 2 is looked for
    let transport = dialler(&server.address);
    for _ in 0..2 {
        match ask(&*transport, store(2), "echo", PATIENT).await {
            Err(TransportError::Unreachable { why, .. }) => {
                assert!(why.contains("this is store 3, not 2"), "{why}")
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn a_store_that_answers_as_somebody_else_gets_nothing() {
    // It accepts anybody, and is store 3.
    struct Impostor(Arc<Identity>);
    impl rdb_server::transport::Handshake for Impostor {
        fn hello(&self, to: rdb_types::StoreId) -> Hello {
            self.0.hello(to)
        }
        fn accept(
            &self,
            hello: &Hello,
        ) -> Result<rdb_server::transport::Greeting, rdb_server::error::Error> {
            self.0.accept(&Hello {
                to_store: 3,
                ..hello.clone()
            })
        }
        fn check_reply(
            &self,
            to: rdb_types::StoreId,
            reply: &rdb_proto::raft::HelloReply,
        ) -> Result<(), rdb_server::error::Error> {
            self.0.check_reply(to, reply)
        }
        fn address_of(&self, store: rdb_types::StoreId) -> Option<String> {
            self.0.address_of(store)
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let handler = Arc::new(Scripted::default());
    let options = GrpcOptions::default();
    let service = PeerService::new(
        Arc::clone(&handler) as Arc<dyn PeerHandler>,
        Arc::new(Impostor(Identity::new(store(3)))),
        &options,
    );
    tokio::spawn(
        options
            .server()
            .add_service(service.server())
            .serve_with_incoming(Incoming::new(listener, Places::new(MAX_CONNECTIONS))),
    );
    match ask(&*dialler(&address), store(2), "echo", PATIENT).await {
        Err(TransportError::Unreachable { why, .. }) => {
            assert!(why.contains("dialled store 2, found 3"), "{why}")
        }
        other => panic!("{other:?}"),
    }
    assert!(handler.seen.lock().is_empty());
}

#[tokio::test]
async fn a_stream_without_hello_is_let_go() {
    let server = Server::start(2).await;
    let (sender, stream) = connect(&server.address).await;
    let started = Instant::now();
    let status = tokio::time::timeout(HANDSHAKE_TIMEOUT * 4, stream)
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(status.message().contains("Hello"), "{status:?}");
    assert!(started.elapsed() >= HANDSHAKE_TIMEOUT - Duration::from_millis(50));
    drop(sender);

    let (sender, stream) = connect(&server.address).await;
    sender
        .send(PeerRequest {
            id: 1,
            body: Some(request("echo")),
            ..PeerRequest::default()
        })
        .await
        .unwrap();
    let status = stream.await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");

    let (sender, stream) = connect(&server.address).await;
    sender.send(hello(0, 2)).await.unwrap();
    let mut answers = stream.await.unwrap();
    match answers
        .message()
        .await
        .unwrap()
        .and_then(|answer| answer.body)
    {
        Some(peer_response::Body::Error(error)) => {
            assert!(error.message.contains("0 is not a store id"), "{error:?}")
        }
        other => panic!("{other:?}"),
    }
    assert!(
        answers.message().await.unwrap().is_none(),
        "the stream goes on after a refusal"
    );
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn who_is_only_told_who_answers_is_served_nothing() {
    let server = Server::start(2).await;
    let (sender, stream) = connect(&server.address).await;
    sender.send(hello(PARTED, 2)).await.unwrap();
    let behind = PeerRequest {
        id: 1,
        body: Some(request("echo")),
        ..PeerRequest::default()
    };
    sender.send(behind).await.unwrap();
    let mut answers = stream.await.unwrap();
    assert!(matches!(
        answers.next().await,
        Some(Ok(PeerResponse {
            body: Some(peer_response::Body::Hello(_)),
            ..
        }))
    ));
    assert!(answers.message().await.unwrap().is_none());
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn requests_that_make_no_sense_are_answered_and_the_stream_goes_on() {
    let server = Server::start(2).await;
    let (sender, stream) = connect(&server.address).await;
    sender.send(hello(1, 2)).await.unwrap();
    let mut answers = stream.await.unwrap();
    assert!(matches!(
        answers.next().await,
        Some(Ok(PeerResponse {
            body: Some(peer_response::Body::Hello(_)),
            ..
        }))
    ));
    let senseless = [
        PeerRequest {
            id: 7,
            ..PeerRequest::default()
        },
        PeerRequest {
            id: 8,
            ..hello(1, 2)
        },
        PeerRequest {
            id: 9,
            timeout_ms: u64::MAX,
            body: Some(peer_request::Body::ReadIndex(ReadIndexRequest {})),
            ..PeerRequest::default()
        },
    ];
    for request in senseless {
        let id = request.id;
        sender.send(request).await.unwrap();
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!(answer.id, id);
        match answer.body {
            Some(peer_response::Body::Error(error)) => {
                assert_eq!(error.reason, "INVALID_ARGUMENT", "{error:?}")
            }
            other => panic!("{other:?}"),
        }
    }
    // One that is not answered in time never is: its caller has taken the outcome for unknown by then.
    sender
        .send(PeerRequest {
            id: 10,
            timeout_ms: 50,
            body: Some(request("sleep 100")),
            ..PeerRequest::default()
        })
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    sender
        .send(PeerRequest {
            id: 11,
            timeout_ms: u64::MAX,
            body: Some(request("echo")),
            ..PeerRequest::default()
        })
        .await
        .unwrap();
    let answer = answers.message().await.unwrap().unwrap();
    assert!(
        matches!(
            answer,
            PeerResponse {
                id: 11,
                body: Some(peer_response::Body::Propose(_))
            }
        ),
        "{answer:?}"
    );
}

#[tokio::test]
async fn garbage_on_the_port_harms_nobody() {
    let server = Server::start(2).await;
    let transport = dialler(&server.address);
    ask(&*transport, store(2), "echo", PATIENT).await.unwrap();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let noise: Vec<u8> = (0..4096u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let garbage: [Vec<u8>; 6] = [
        noise.clone(),
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        [&preface[..], &noise].concat(),
        [&preface[..], &settings, &noise].concat(),
        [
            &preface[..],
            &settings,
            &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1],
        ]
        .concat(), // a frame of 16 MiB
        preface[..10].to_vec(),
    ];
    for bytes in &garbage {
        let mut stream = TcpStream::connect(&server.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // Whatever it says, it ends; a reset is an end as well.
        let _ = tokio::time::timeout(PATIENT, stream.read_to_end(&mut answer))
            .await
            .expect("the connection is held open");
    }
    assert_eq!(
        ask(&*transport, store(2), "echo still", PATIENT)
            .await
            .unwrap(),
        "echo still"
    );
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let server = Server::start(2).await;
    let mut silent = TcpStream::connect(&server.address).await.unwrap();
    let mut half = TcpStream::connect(&server.address).await.unwrap();
    half.write_all(b"PRI * HTTP").await.unwrap();
    let started = Instant::now();
    for stream in [&mut silent, &mut half] {
        let mut answer = Vec::new();
        let end = tokio::time::timeout(PATIENT, stream.read_to_end(&mut answer)).await;
        assert!(end.is_ok(), "held open, with {answer:?} for an answer");
    }
    assert!(started.elapsed() >= HANDSHAKE_TIMEOUT - Duration::from_millis(100));
}

#[tokio::test]
async fn there_are_so_many_connections_and_no_more() {
    let server = Server::start(2).await;
    let transport = dialler(&server.address);
    ask(&*transport, store(2), "echo", PATIENT).await.unwrap();
    // The one of the store that was let in does not count.
    let mut others = Vec::new();
    for _ in 0..MAX_CONNECTIONS + PROBATION {
        others.push(TcpStream::connect(&server.address).await.unwrap());
    }
    let mut one_more = TcpStream::connect(&server.address).await.unwrap();
    let started = Instant::now();
    // To the end: one that was let in would be greeted.
    let _ = tokio::time::timeout(PATIENT, one_more.read_to_end(&mut Vec::new()))
        .await
        .expect("one too many is held open");
    assert!(
        started.elapsed() < HANDSHAKE_TIMEOUT / 2,
        "not closed at once, but after {:?}",
        started.elapsed()
    );
    assert_eq!(
        ask(&*transport, store(2), "echo still", PATIENT)
            .await
            .unwrap(),
        "echo still"
    );
    // A place that becomes free is free.
    drop(others);
    let other = dialler(&server.address);
    assert_eq!(
        ask_until_answered(&*other, store(2), "echo other").await,
        "echo other"
    );
}

#[tokio::test]
async fn garbage_in_a_stream_ends_that_stream_alone() {
    let server = Server::start(2).await;
    let transport = dialler(&server.address);
    ask(&*transport, store(2), "echo", PATIENT).await.unwrap();

    // The same method under a codec whose messages are not ours: a varint that never ends.
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", server.address))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let messages = futures::stream::iter([Bytes::from(vec![0xff; 64])]);
    let path = "/flaredb.raft.v1.Peer/Exchange".parse().unwrap();
    let status = grpc
        .streaming(tonic::Request::new(messages), path, RawCodec)
        .await
        .map(|_| ())
        .unwrap_err();
    assert!(
        matches!(
            status.code(),
            Code::Internal | Code::InvalidArgument | Code::DataLoss | Code::Unknown
        ),
        "{status:?}"
    );

    assert_eq!(
        ask(&*transport, store(2), "echo still", PATIENT)
            .await
            .unwrap(),
        "echo still"
    );
}

/// Messages that are whatever bytes they are.
struct RawCodec;

impl tonic::codec::Codec for RawCodec {
    type Encode = Bytes;
    type Decode = ();
    type Encoder = RawCodec;
    type Decoder = RawCodec;

    fn encoder(&mut self) -> RawCodec {
        RawCodec
    }

    fn decoder(&mut self) -> RawCodec {
        RawCodec
    }
}

impl tonic::codec::Encoder for RawCodec {
    type Item = Bytes;
    type Error = tonic::Status;

    fn encode(
        &mut self,
        bytes: Bytes,
        buffer: &mut tonic::codec::EncodeBuf<'_>,
    ) -> Result<(), tonic::Status> {
        buffer.put(bytes);
        Ok(())
    }
}

impl tonic::codec::Decoder for RawCodec {
    type Item = ();
    type Error = tonic::Status;

    fn decode(
        &mut self,
        buffer: &mut tonic::codec::DecodeBuf<'_>,
    ) -> Result<Option<()>, tonic::Status> {
        buffer.advance(buffer.remaining());
        Ok(Some(()))
    }
}

#[tokio::test]
async fn a_message_over_the_receivers_limit_breaks_the_stream_and_not_the_pair() {
    let server = Server::start_with(
        2,
        "127.0.0.1:0",
        &GrpcOptions {
            max_message_bytes: 64 << 10,
            ..GrpcOptions::default()
        },
    )
    .await;
    let transport = dialler(&server.address);
    let large = transport
        .call(
            store(2),
            Lane::Control,
            RegionId(1),
            request(vec![b'x'; 1 << 20]),
            PATIENT,
        )
        .await;
    match large {
        Err(TransportError::NoAnswer { why, .. }) => assert!(why.contains("limit"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(
        ask_until_answered(&*transport, store(2), "echo after").await,
        "echo after"
    );
    assert_eq!(server.seen(), ["echo after"]);
}

#[tokio::test]
async fn a_closed_service_ends_its_streams_and_lets_the_server_stop() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let options = GrpcOptions::default();
    let service = PeerService::new(
        Arc::new(Scripted::default()),
        Identity::new(store(2)),
        &options,
    );
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(
        options
            .server()
            .add_service(service.server())
            .serve_with_incoming_shutdown(
                Incoming::new(listener, Places::new(MAX_CONNECTIONS)),
                async move { drop(stopped.await) },
            ),
    );
    let transport = dialler(&address);
    ask(&*transport, store(2), "echo", PATIENT).await.unwrap();
    let outstanding = transport.call(
        store(2),
        Lane::Control,
        RegionId(1),
        request("never"),
        PATIENT,
    );
    tokio::time::sleep(Duration::from_millis(50)).await;
    service.close();
    stop.send(()).unwrap();
    match outstanding.await {
        Err(TransportError::NoAnswer { why, .. }) => {
            assert!(why.contains("shutting down"), "{why}")
        }
        other => panic!("{other:?}"),
    }
    tokio::time::timeout(PATIENT, serving)
        .await
        .expect("its streams keep the server from stopping")
        .unwrap()
        .unwrap();
}
