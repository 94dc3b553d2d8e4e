//! Eventual namespaces: who is asked, what is repeated where, and what a session hands back.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop at what it did not expect"
)]

mod mock;

use bytes::Bytes;
use mock::{Act, Net, refuse, unknown};
use rdb_client::proto::kv::batch_request::Op;
use rdb_client::proto::kv::{GetRequest, Receipt};
use rdb_client::{Client, ClientOptions, Outcome, PutOptions, ReadOptions, RetryPolicy};
use rdb_types::{Epoch, NamespaceId, RegionId, SessionToken, StoreId};
use std::time::Duration;
use tokio::time::Instant;
use tonic::Code;

fn options() -> ClientOptions {
    ClientOptions {
        retry: RetryPolicy {
            jitter: false,
            ..RetryPolicy::default()
        },
        discover: false,
        ..ClientOptions::default()
    }
}

fn token(region: u64, parts: &[(u64, u64)]) -> Bytes {
    let store = |id| StoreId::new(id).unwrap();
    let vector = parts.iter().map(|(id, at)| (store(*id), *at)).collect();
    SessionToken::new(RegionId(region), NamespaceId(5), Epoch(3))
        .with_writes(Epoch(0), &vector)
        .encode()
}

fn receipt(region_id: u64, parts: &[(u64, u64)]) -> Receipt {
    Receipt {
        mode: 2,
        epoch: 3,
        region_id,
        session: token(region_id, parts),
        ..Default::default()
    }
}

/// A client that knows from an answer of `a` that the namespace is eventual.
async fn told() -> (Net, Client) {
    let (net, client) = Net::with(&["a", "b"], options());
    net.serve_as(receipt(2, &[(1, 1)]));
    put(&client).await.unwrap();
    assert_eq!(net.asked(), ["a"]);
    (net, client)
}

async fn put(client: &Client) -> Result<u64, rdb_client::ClientError> {
    let written = client.put("n", "k", "v", PutOptions::default()).await;
    written.map(|answer| answer.version)
}

fn gets(net: &Net) -> Vec<GetRequest> {
    let seen = net.seen().into_iter();
    seen.filter_map(|seen| match seen.op {
        Op::Get(get) => Some(get),
        _ => None,
    })
    .collect()
}

#[tokio::test(start_paused = true)]
async fn a_write_that_may_have_been_taken_is_repeated_at_the_same_store_only() {
    let (net, client) = told().await;
    net.script("a", [unknown()]);
    put(&client).await.unwrap();
    assert_eq!(net.asked(), ["a", "a", "a"]);
    let ids: Vec<Bytes> = net.seen()[1..].iter().map(|it| it.request_id()).collect();
    assert_eq!(ids[0], ids[1]);

    // The store is gone before it answered: nobody else knows what it took.
    net.script("a", [Act::Cut]);
    let began = Instant::now();
    let error = put(&client).await.unwrap_err();
    assert_eq!(error.outcome, Outcome::Unknown);
    assert!(!error.is_repeatable(), "{error}");
    assert!(
        error.to_string().contains("read before deciding"),
        "{error}"
    );
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "the deadline is not waited for"
    );
    assert_eq!(net.asked(), ["a", "a", "a", "a"]);

    // What comes later goes to the other one.
    put(&client).await.unwrap();
    assert_eq!(net.asked().last().unwrap(), "b");
}

#[tokio::test(start_paused = true)]
async fn what_was_certainly_not_taken_goes_to_the_next_store_at_once() {
    for refusal in [
        refuse(Code::Unavailable, "STALE_REPLICA", "not_applied", 50),
        refuse(Code::FailedPrecondition, "CLOCK_SKEW", "not_applied", 0),
    ] {
        let (net, client) = told().await;
        net.script("a", [refusal]);
        let began = Instant::now();
        put(&client).await.unwrap();
        assert!(began.elapsed() < Duration::from_millis(5));
        assert_eq!(net.asked(), ["a", "a", "b"]);
        // And stays there, where it was answered.
        put(&client).await.unwrap();
        assert_eq!(net.asked().last().unwrap(), "b");
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_hands_back_all_that_its_answers_have_seen() {
    let (net, client) = told().await;
    let session = client.session();
    let read = |client: Client| async move {
        let read = client.get("n", "k", ReadOptions::default()).await;
        read.unwrap();
    };
    read(client.clone()).await;
    put(&session).await.unwrap();
    net.serve_as(receipt(2, &[(2, 7)]));
    read(session.clone()).await;
    read(session.clone()).await;
    let asked: Vec<_> = gets(&net)
        .into_iter()
        .map(|get| get.read.unwrap())
        .collect();
    let tokens: Vec<&Bytes> = asked.iter().map(|read| &read.session).collect();
    let all = token(2, &[(1, 1), (2, 7)]);
    assert_eq!(tokens, [&Bytes::new(), &token(2, &[(1, 1)]), &all]);
    assert!(asked.iter().all(|read| read.seen_epoch == 3));

    // A key of another region, which the session has written to before.
    net.serve_as(receipt(9, &[(3, 3)]));
    put(&session).await.unwrap();
    net.serve_as(receipt(2, &[(2, 7)]));
    read(session.clone()).await;
    let asked = gets(&net);
    let last_two: Vec<Bytes> = asked[asked.len() - 2..]
        .iter()
        .map(|get| get.read.clone().unwrap().session)
        .collect();
    assert_eq!(
        last_two,
        [token(9, &[(3, 3)]), all],
        "asked again with what it has seen of that region"
    );
}
