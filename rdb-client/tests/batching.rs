//! Many callers on one stream.

mod mock;

use mock::{Act, Net};
use rdb_client::{ClientOptions, ErrorKind, Outcome, PutOptions, ReadOptions, RetryPolicy};
use std::time::Duration;
use tonic::Code;

fn once() -> ClientOptions {
    let retry = RetryPolicy {
        max_attempts: Some(1),
        ..RetryPolicy::default()
    };
    ClientOptions {
        retry,
        discover: false,
        ..ClientOptions::default()
    }
}

#[tokio::test(start_paused = true)]
async fn callers_who_wait_together_travel_together() {
    let (net, client) = Net::with(&["a"], once());
    let callers = (0..64).map(|caller: u32| {
        let client = client.clone();
        tokio::spawn(async move {
            for _ in 0..10 {
                let key = format!("k{caller}");
                let answer = client
                    .get("n", key.clone(), ReadOptions::default())
                    .await
                    .unwrap();
                assert_eq!(answer.value, key, "the answer of another caller");
            }
        })
    });
    for caller in futures::future::join_all(callers).await {
        caller.unwrap();
    }
    assert_eq!(net.seen().len(), 640);
    assert!(
        net.messages() <= 640 / 8,
        "{} messages for 640 operations",
        net.messages()
    );
    assert_eq!(net.dials().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn messages_are_bounded() {
    let options = ClientOptions {
        max_batch_ops: 4,
        ..once()
    };
    let (net, client) = Net::with(&["a"], options);
    let calls = (0..64).map(|_| client.get("n", "k", ReadOptions::default()));
    for answer in futures::future::join_all(calls).await {
        answer.unwrap();
    }
    assert!(net.messages() >= 16, "{}", net.messages());

    // In bytes: 300 KiB each, 1 MiB a message.
    let (net, client) = Net::with(&["a"], once());
    let value = vec![0_u8; 300 << 10];
    let calls = (0..9).map(|_| client.put("n", "k", value.clone(), PutOptions::default()));
    for answer in futures::future::join_all(calls).await {
        answer.unwrap();
    }
    assert!(net.messages() >= 3, "{}", net.messages());
}

#[tokio::test(start_paused = true)]
async fn an_operation_too_large_for_a_message_travels_alone() {
    let (net, client) = Net::with(&["a"], once());
    client
        .put("n", "k", vec![0_u8; 2 << 20], PutOptions::default())
        .await
        .unwrap();
    client
        .put("n", "k", "small", PutOptions::default())
        .await
        .unwrap();
    let batched: Vec<bool> = net.seen().iter().map(|seen| seen.batched).collect();
    assert_eq!(batched, [false, true]);
}

/// Messages may grow beyond the 4 MiB that the scripted store reads, as tonic's servers do by default.
fn beyond_the_limit() -> ClientOptions {
    ClientOptions {
        max_batch_bytes: 64 << 20,
        discover: false,
        ..ClientOptions::default()
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_too_much_together_is_tried_alone_and_not_sent_together_again() {
    let (net, client) = Net::with(&["a"], beyond_the_limit());
    let both = || {
        let value = vec![0_u8; 3 << 20];
        [1, 2].map(|_| client.put("n", "k", value.clone(), PutOptions::default()))
    };
    for answer in futures::future::join_all(both()).await {
        answer.unwrap();
    }
    let batched = || -> Vec<bool> { net.seen().iter().map(|seen| seen.batched).collect() };
    assert_eq!(batched(), [false, false]);
    // The limit is known now.
    for answer in futures::future::join_all(both()).await {
        answer.unwrap();
    }
    assert_eq!(batched(), [false, false, true, true]);
    assert_eq!(net.messages(), 2, "one each");
    assert_eq!(net.dials().len(), 1);

    // Without an id nobody may repeat it.
    let (_net, client) = Net::with(&["a"], beyond_the_limit());
    let options = PutOptions {
        no_request_id: true,
        ..PutOptions::default()
    };
    let calls = [1, 2].map(|_| client.put("n", "k", vec![0_u8; 3 << 20], options.clone()));
    for answer in futures::future::join_all(calls).await {
        let error = answer.unwrap_err();
        assert_eq!((error.outcome, error.attempts), (Outcome::Unknown, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_too_large_alone_is_refused_for_good_with_the_limit() {
    let unary = ClientOptions {
        batch: false,
        ..beyond_the_limit()
    };
    for options in [beyond_the_limit(), unary] {
        let (net, client) = Net::with(&["a"], options);
        let error = client
            .put("n", "k", vec![0_u8; 5 << 20], PutOptions::default())
            .await
            .unwrap_err();
        assert_eq!(
            (error.code, error.outcome, error.attempts),
            (Code::InvalidArgument, Outcome::NotApplied, 1)
        );
        assert_eq!(error.metadata["limit"], "4194304");
        let text = error.to_string();
        assert!(text.contains("limits.max_request"), "{text}");
        assert!(!text.contains("repeat"), "{text}");
        assert!(net.seen().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn what_cancels_a_stream_costs_another_attempt() {
    let (net, client) = Net::with(&["a"], beyond_the_limit());
    net.script("a", [Act::EndStream(Code::Cancelled)]);
    client
        .put("n", "k", "v", PutOptions::default())
        .await
        .unwrap();
    let seen = net.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0].request_id(), seen[1].request_id());
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_is_waited_for_until_the_deadline() {
    let options = ClientOptions {
        max_queued_ops: 1,
        max_batch_ops: 1,
        ..once()
    };
    let (net, client) = Net::with(&["a"], options);
    let calls = (0..50).map(|_| client.put("n", "k", "v", PutOptions::default()));
    for answer in futures::future::join_all(calls).await {
        answer.unwrap();
    }
    assert_eq!(net.seen().len(), 50);
}

#[tokio::test(start_paused = true)]
async fn when_the_stream_ends_what_was_sent_is_unknown() {
    let (net, client) = Net::with(&["a"], once());
    net.script("a", [Act::Hang, Act::Hang, Act::EndStream(Code::Internal)]);
    let hanging = [1, 2].map(|_| {
        let client = client.clone();
        tokio::spawn(async move { client.put("n", "k", "v", PutOptions::default()).await })
    });
    tokio::time::sleep(Duration::from_millis(10)).await;
    let error = client
        .get("n", "k", ReadOptions::default())
        .await
        .unwrap_err();
    assert_eq!(
        (error.code, error.outcome),
        (Code::Internal, Outcome::NotAWrite)
    );
    for call in hanging {
        let error = call.await.unwrap().unwrap_err();
        assert_eq!(
            (error.code, error.outcome),
            (Code::Internal, Outcome::Unknown)
        );
    }
    client
        .put("n", "k", "v", PutOptions::default())
        .await
        .unwrap();
    assert_eq!(net.dials().len(), 1, "a new stream, on the same connection");
}

#[tokio::test(start_paused = true)]
async fn a_cut_connection_fails_everyone_on_it_at_once() {
    let (net, client) = Net::with(&["a"], once());
    net.script("a", [Act::Hang, Act::Cut]);
    let began = tokio::time::Instant::now();
    let calls = (0..2).map(|_| client.put("n", "k", "v", PutOptions::default()));
    for answer in futures::future::join_all(calls).await {
        let error = answer.unwrap_err();
        assert_eq!(
            (error.kind, error.outcome),
            (ErrorKind::Broken, Outcome::Unknown)
        );
    }
    assert!(
        began.elapsed() < Duration::from_millis(10),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn callers_that_go_away_do_not_disturb_the_others() {
    let (net, client) = Net::with(&["a"], once());
    net.script("a", vec![Act::Hang; 3]);
    for _ in 0..3 {
        let call = client.get("n", "gone", ReadOptions::default());
        tokio::time::timeout(Duration::from_millis(5), call)
            .await
            .unwrap_err();
    }
    let answer = client.get("n", "k", ReadOptions::default()).await.unwrap();
    assert_eq!(&answer.value[..], b"k");
    assert_eq!(net.dials().len(), 1);
}
