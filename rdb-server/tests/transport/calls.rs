//! Calls over a connection that works.

use crate::harness::*;
use futures::future::join_all;
use futures::stream::{FuturesUnordered, StreamExt};
use rdb_server::transport::grpc::GrpcOptions;
use rdb_server::transport::{Lane, Transport, TransportError};
use rdb_types::{Reason, RegionId};
use std::time::{Duration, Instant};

#[tokio::test]
async fn requests_of_a_lane_arrive_in_the_order_of_their_calls() {
    let server = Server::start(2).await;
    let transport = dialler(&server.address);
    let commands: Vec<String> = (0..1000).map(|n| format!("echo {n}")).collect();
    let calls: Vec<_> = commands
        .iter()
        .map(|command| {
            transport.call(
                store(2),
                Lane::Append,
                RegionId(1),
                request(command.clone()),
                PATIENT,
            )
        })
        .collect();
    // Awaited last to first: the order is that of the calls, not of the polling.
    let mut answers = join_all(calls.into_iter().rev()).await;
    answers.reverse();
    let answers: Vec<String> = answers
        .into_iter()
        .map(|answer| text(answer).unwrap())
        .collect();
    assert_eq!(answers, commands);
    assert_eq!(server.seen(), commands);
}

#[tokio::test]
async fn answers_find_their_calls_in_whatever_order_they_come() {
    let server = Server::start(2).await;
    let transport = dialler(&server.address);
    let mut calls: FuturesUnordered<_> = [600, 300, 0]
        .into_iter()
        .map(|ms| {
            let transport = &transport;
            async move {
                (
                    ms,
                    ask(&**transport, store(2), &format!("sleep {ms}"), PATIENT)
                        .await
                        .unwrap(),
                )
            }
        })
        .collect();
    let mut finished = Vec::new();
    while let Some((ms, answer)) = calls.next().await {
        assert_eq!(answer, format!("sleep {ms}"));
        finished.push(ms);
    }
    assert_eq!(finished, [0, 300, 600]);
    let seen = server.seen();
    assert_eq!(
        seen,
        ["sleep 600", "sleep 300", "sleep 0"],
        "handed over in order all the same"
    );
}

#[tokio::test]
async fn a_call_that_is_not_answered_ends_at_its_timeout() {
    let server = Server::start(2).await;
    let transport = dialler(&server.address);
    ask(&*transport, store(2), "echo", PATIENT).await.unwrap();

    let started = Instant::now();
    let error = ask(&*transport, store(2), "never", Duration::from_millis(200))
        .await
        .unwrap_err();
    assert!(matches!(error, TransportError::NoAnswer { .. }), "{error}");
    assert!(started.elapsed() >= Duration::from_millis(200));
    assert!(started.elapsed() < Duration::from_secs(5));

    // Its answer comes after the timeout, and must not be taken for that of another call.
    let late = ask(
        &*transport,
        store(2),
        "sleep 300 late",
        Duration::from_millis(100),
    )
    .await
    .unwrap_err();
    assert!(matches!(late, TransportError::NoAnswer { .. }), "{late}");
    assert_eq!(
        ask(&*transport, store(2), "sleep 500", PATIENT)
            .await
            .unwrap(),
        "sleep 500"
    );
}

#[tokio::test]
async fn a_refusal_reaches_the_caller_unchanged() {
    let server = Server::start(2).await;
    let transport = dialler(&server.address);
    match ask(&*transport, store(2), "refuse", PATIENT).await {
        Err(TransportError::Refused(error)) => {
            assert_eq!(
                (error.reason, error.message.as_str()),
                (Reason::NotLeader, "ask store 3")
            );
            assert_eq!(error.metadata.get("leader").map(String::as_str), Some("3"));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn dropping_a_call_gives_up_the_answer_and_not_the_request() {
    let server = Server::start(2).await;
    let transport = dialler_with(
        &server.address,
        GrpcOptions {
            max_in_flight: 4,
            ..GrpcOptions::default()
        },
    );
    drop(transport.call(
        store(2),
        Lane::Control,
        RegionId(1),
        request("echo dropped"),
        PATIENT,
    ));
    ask(&*transport, store(2), "echo", PATIENT).await.unwrap();
    assert_eq!(server.seen(), ["echo dropped", "echo"]);
    // Nor does a dropped call keep its place: more of them than there are places, one after another.
    for n in 0..12 {
        let call = ask(&*transport, store(2), "never", PATIENT);
        assert!(
            tokio::time::timeout(Duration::from_millis(20), call)
                .await
                .is_err(),
            "call {n} was refused"
        );
    }
}

#[tokio::test]
async fn a_lane_takes_so_many_calls_and_no_more() {
    let server = Server::start(2).await;
    let transport = dialler_with(
        &server.address,
        GrpcOptions {
            max_in_flight: 3,
            ..GrpcOptions::default()
        },
    );
    ask(&*transport, store(2), "echo", PATIENT).await.unwrap();
    let call = |command: &'static str, lane| {
        transport.call(store(2), lane, RegionId(1), request(command), PATIENT)
    };
    let waiting: Vec<_> = (0..3).map(|_| call("sleep 200", Lane::Control)).collect();
    match call("echo", Lane::Control).await {
        Err(TransportError::Unreachable { why, .. }) => {
            assert!(why.contains("too many requests in flight"), "{why}")
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        text(call("echo other lane", Lane::Append).await).unwrap(),
        "echo other lane"
    );
    for answer in join_all(waiting).await {
        answer.unwrap();
    }
    assert_eq!(
        text(call("echo again", Lane::Control).await).unwrap(),
        "echo again"
    );
}

#[tokio::test]
async fn a_message_at_the_limit_passes_and_one_over_it_is_refused_in_words() {
    let options = GrpcOptions {
        max_message_bytes: 2 << 20,
        ..GrpcOptions::default()
    };
    let server = Server::start_with(2, "127.0.0.1:0", &options).await;
    let transport = dialler_with(&server.address, options.clone());
    let call = |bytes: usize| {
        transport.call(
            store(2),
            Lane::Bulk,
            RegionId(1),
            request(vec![b'x'; bytes]),
            PATIENT,
        )
    };

    // The frame's own fields take a few bytes: id and timeout are not counted, region and lengths are.
    let largest = (1..40)
        .map(|fields| options.max_message_bytes - fields)
        .find(|&bytes| {
            let body = rdb_proto::raft::PeerRequest {
                region_id: 1,
                body: Some(request(vec![b'x'; bytes])),
                ..Default::default()
            };
            prost::Message::encoded_len(&body) <= options.max_message_bytes
        });
    let largest = largest.unwrap();
    // It is echoed: the answer is at its limit, too, or just over it because of its id.
    match call(largest - 16).await.unwrap() {
        rdb_proto::raft::peer_response::Body::Propose(reply) => {
            assert_eq!(reply.outcome.len(), largest - 16)
        }
        other => panic!("{other:?}"),
    }
    call(largest)
        .await
        .map_err(|error| assert!(matches!(error, TransportError::Refused(_)), "{error}"))
        .ok();
    assert_eq!(
        server.seen().last().map(|command| command.len()),
        Some(largest),
        "the limit itself was not served"
    );

    match call(largest + 1).await {
        Err(TransportError::Refused(error)) => {
            assert_eq!(error.reason, Reason::InvalidArgument);
            assert_eq!(
                error.metadata.get("limit"),
                Some(&options.max_message_bytes.to_string())
            );
            assert!(error.message.contains("request"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    match text(
        transport
            .call(
                store(2),
                Lane::Bulk,
                RegionId(1),
                request("large 2097153"),
                PATIENT,
            )
            .await,
    ) {
        Err(TransportError::Refused(error)) => assert!(error.message.contains("answer"), "{error}"),
        other => panic!("{other:?}"),
    }
    // One stream all the while: nothing broke it, so nothing was Unreachable.
    call(10).await.unwrap();
}

#[tokio::test]
async fn lanes_that_stand_still_do_not_hold_up_another() {
    // The receiver takes one request at a time and never finishes the first: the lane fills up.
    let options = GrpcOptions {
        max_in_flight: 1,
        ..GrpcOptions::default()
    };
    let server = Server::start_with(2, "127.0.0.1:0", &options).await;
    let transport = dialler(&server.address);
    let mut stuck = Vec::new();
    for lane in [Lane::Append, Lane::Forward, Lane::Bulk] {
        let call = |command: Vec<u8>| {
            transport.call(store(2), lane, RegionId(1), request(command), PATIENT)
        };
        stuck.push(call(b"never".to_vec()));
        stuck.extend((0..16).map(|_| call(vec![b'x'; 1 << 20])));
    }
    while server.seen().len() < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    for n in 0..20 {
        let command = format!("echo {n}");
        assert_eq!(
            ask(&*transport, store(2), &command, PATIENT).await.unwrap(),
            command
        );
    }
    drop(stuck);
}

#[tokio::test]
async fn a_store_that_calls_itself_and_one_without_an_address_are_told_so() {
    let transport = dialler("127.0.0.1:1");
    match ask(&*transport, store(1), "echo", PATIENT).await {
        Err(TransportError::Refused(error)) => assert!(error.message.contains("itself"), "{error}"),
        other => panic!("{other:?}"),
    }
    match ask(&*transport, store(9), "echo", PATIENT).await {
        Err(TransportError::Unreachable { to, why }) => {
            assert_eq!(to, store(9));
            assert!(why.contains("not a member"), "{why}");
        }
        other => panic!("{other:?}"),
    }
}
