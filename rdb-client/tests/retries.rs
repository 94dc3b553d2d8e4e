//! What a call does when stores refuse, hang, break and vanish: the promises at the top of `lib.rs`.

mod mock;

use bytes::Bytes;
use mock::{Act, Net, no_quorum, refuse, unknown};
use rdb_client::proto::{admin, raft};
use rdb_client::{
    Change, Client, ClientError, ClientOptions, ErrorKind, Outcome, PutOptions, ReadOptions,
    RetryPolicy, WriteOptions,
};
use rdb_types::Reason;
use std::time::Duration;
use tokio::time::Instant;
use tonic::Code;

const MS: Duration = Duration::from_millis(1);

/// Waits are exactly the bound: 10 ms, 20 ms, 40 ms.
fn exact() -> ClientOptions {
    let retry = RetryPolicy {
        jitter: false,
        ..RetryPolicy::default()
    };
    ClientOptions {
        retry,
        discover: false,
        ..ClientOptions::default()
    }
}

fn both_ways() -> [ClientOptions; 2] {
    [
        exact(),
        ClientOptions {
            batch: false,
            ..exact()
        },
    ]
}

async fn put(client: &Client, options: PutOptions) -> Result<u64, ClientError> {
    client
        .put("n", "k", "v", options)
        .await
        .map(|answer| answer.version)
}

fn within(timeout: Duration) -> PutOptions {
    PutOptions {
        timeout: Some(timeout),
        ..PutOptions::default()
    }
}

fn is_send<T: Send>(value: T) -> T {
    value
}

#[tokio::test(start_paused = true)]
async fn every_attempt_carries_the_same_request_id_and_the_time_that_is_left() {
    for options in both_ways() {
        let (net, client) = Net::with(&["a"], options);
        net.script("a", [no_quorum(), unknown(), no_quorum()]);
        let began = Instant::now();
        assert_eq!(put(&client, PutOptions::default()).await.unwrap(), 7);
        // What the store asked for (200, 20, 200 ms) is more than the back-off (10, 20, 40 ms).
        let waited = began.elapsed();
        assert!(waited >= 420 * MS && waited < 430 * MS, "{waited:?}");
        let seen = net.seen();
        assert_eq!(seen.len(), 4);
        let id = seen[0].request_id();
        assert_eq!(id.len(), 16, "a UUID");
        assert!(seen.iter().all(|seen| seen.request_id() == id));
        let left: Vec<u64> = seen.iter().map(|seen| seen.timeout_ms).collect();
        for (left, most) in left.iter().zip([10_000, 9_800, 9_780, 9_580]) {
            assert!(*left <= most && *left + 10 >= most, "{left} of {most}");
        }

        let (net, client) = Net::with(&["a"], exact());
        put(&client, PutOptions::default()).await.unwrap();
        put(&client, PutOptions::default()).await.unwrap();
        assert_ne!(
            net.seen()[0].request_id(),
            net.seen()[1].request_id(),
            "two writes are two ids"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_without_an_id_is_repeated_only_while_nothing_can_have_been_applied() {
    for options in both_ways() {
        let (net, client) = Net::with(&["a"], options);
        let anonymous = || PutOptions {
            no_request_id: true,
            ..PutOptions::default()
        };
        net.script("a", [no_quorum(), unknown()]);
        let error = put(&client, anonymous()).await.unwrap_err();
        assert_eq!(
            (error.reason, error.outcome, error.attempts),
            (Some(Reason::OutcomeUnknown), Outcome::Unknown, 2)
        );
        assert_eq!(net.seen().len(), 2);
        assert!(net.seen().iter().all(|seen| seen.request_id().is_empty()));

        // An id of no bytes is none, for a store too.
        net.script("a", [unknown()]);
        let given = WriteOptions {
            no_request_id: true,
            ..WriteOptions::default()
        };
        assert_eq!(
            client.delete("n", "k", given).await.unwrap_err().outcome,
            Outcome::Unknown
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_callers_own_id_is_used() {
    let (net, client) = Net::with(&["a"], exact());
    let options = PutOptions {
        request_id: Some(Bytes::from_static(b"order-4711")),
        ..PutOptions::default()
    };
    net.script("a", [unknown()]);
    client
        .compare_and_swap("n", "k", 3, Change::Delete, options)
        .await
        .unwrap();
    assert!(
        net.seen()
            .iter()
            .all(|seen| &seen.request_id()[..] == b"order-4711")
    );
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_costs_the_timeout_and_no_more() {
    for options in both_ways() {
        let (net, client) = Net::with(&["a"], options);
        net.script("a", [Act::Hang, Act::Hang]);
        let began = Instant::now();
        let error = put(&client, within(700 * MS)).await.unwrap_err();
        assert!(
            began.elapsed() >= 700 * MS && began.elapsed() < 705 * MS,
            "{:?}",
            began.elapsed()
        );
        assert_eq!(
            (error.code, error.kind, error.outcome),
            (
                Code::DeadlineExceeded,
                ErrorKind::Deadline,
                Outcome::Unknown
            )
        );
        assert!(error.request_id.is_some(), "what it can be repeated under");

        let read = ReadOptions {
            timeout: Some(300 * MS),
            ..ReadOptions::default()
        };
        let error = client.get("n", "k", read).await.unwrap_err();
        assert_eq!(
            (error.kind, error.outcome),
            (ErrorKind::Deadline, Outcome::NotAWrite)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_is_not_asked_by_the_next_caller() {
    let (net, client) = Net::with(&["a", "b"], exact());
    net.script("a", vec![Act::Hang; 9]);
    put(&client, within(300 * MS)).await.unwrap_err();
    put(&client, within(300 * MS)).await.unwrap();
    assert_eq!(net.asked(), ["a", "b"]);
    // One in a hurry says nothing about the store.
    let (net, client) = Net::with(&["a", "b"], exact());
    net.script("a", [Act::Hang]);
    put(&client, within(20 * MS)).await.unwrap_err();
    put(&client, within(300 * MS)).await.unwrap();
    assert_eq!(net.asked(), ["a", "a"]);
}

#[tokio::test(start_paused = true)]
async fn the_last_refusal_is_told_rather_than_that_the_time_was_up() {
    let (net, client) = Net::with(&["a"], exact());
    net.script("a", vec![no_quorum(); 50]);
    let began = Instant::now();
    let error = put(&client, within(1000 * MS)).await.unwrap_err();
    assert!(began.elapsed() <= 1000 * MS);
    assert_eq!(
        (error.reason, error.outcome),
        (Some(Reason::NoQuorum), Outcome::NotApplied)
    );
    assert!(error.attempts >= 3, "{}", error.attempts);

    // Also where the time does run out in an attempt after it. What that one did is not known, so the
    // refusal's own word of what became of the write is not repeated: there is one verdict.
    net.script("a", []);
    let (net, client) = Net::with(&["a"], exact());
    net.script("a", [no_quorum(), Act::Hang]);
    let error = put(&client, within(1000 * MS)).await.unwrap_err();
    assert_eq!(
        (error.reason, error.kind, error.outcome),
        (Some(Reason::NoQuorum), ErrorKind::Refused, Outcome::Unknown)
    );
    assert_eq!(error.metadata["outcome"], "unknown");
    let text = error.to_string();
    assert!(text.contains("did not answer in time"), "{text}");
    assert!(text.contains("the write may have been applied"), "{text}");
    assert!(!text.contains("not applied"), "{text}");
    // A single verdict the other way round, too.
    net.script("a", vec![no_quorum(); 50]);
    let error = put(&client, within(500 * MS)).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("the write was not applied"), "{text}");
    assert!(!text.contains("may have been"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_stands_still_costs_a_second_where_there_are_others() {
    for options in both_ways() {
        let (net, client) = Net::with(&["a", "b"], options.clone());
        net.freeze("a");
        let began = Instant::now();
        put(&client, PutOptions::default()).await.unwrap();
        let waited = began.elapsed();
        assert!(waited <= 1100 * MS, "{waited:?}");

        // One that is only slow with its answer is not left for that.
        let (net, client) = Net::with(&["a", "b"], options);
        net.script("a", [Act::Hang]);
        put(&client, within(3000 * MS)).await.unwrap_err();
        assert_eq!(net.asked(), ["a"]);
    }
}

#[tokio::test(start_paused = true)]
async fn who_does_not_wait_hears_of_no_quorum_once_every_store_was_tried() {
    let net = Net::default();
    let hasty = ClientOptions {
        wait_for_ready: false,
        batch: false,
        ..exact()
    };
    net.start("a");
    net.start("b");
    net.start("c");
    net.freeze("b");
    net.freeze("c");
    let client = net.client(&["b", "a", "c"], hasty);
    net.script("a", vec![no_quorum(); 50]);
    let began = Instant::now();
    let error = put(&client, PutOptions::default()).await.unwrap_err();
    let waited = began.elapsed();
    assert!(waited <= 2500 * MS, "{waited:?}");
    assert_eq!(
        (error.reason, error.outcome),
        (Some(Reason::NoQuorum), Outcome::Unknown)
    );
}

#[tokio::test(start_paused = true)]
async fn one_unknown_attempt_makes_the_whole_call_unknown() {
    let (net, client) = Net::with(&["a"], exact());
    net.script("a", std::iter::once(unknown()).chain(vec![no_quorum(); 50]));
    let error = put(&client, within(900 * MS)).await.unwrap_err();
    assert_eq!(
        (error.reason, error.outcome),
        (Some(Reason::NoQuorum), Outcome::Unknown)
    );
    assert_eq!(
        error.metadata["outcome"], "unknown",
        "the last attempt's word is not the call's"
    );
}

#[tokio::test(start_paused = true)]
async fn refusals_of_the_request_itself_are_told_at_once_with_their_details() {
    for options in both_ways() {
        let (net, client) = Net::with(&["a", "b"], options);
        let metadata = vec![("field", "key".to_owned()), ("limit", "4096".to_owned())];
        net.script(
            "a",
            [Act::Refuse {
                code: Code::InvalidArgument,
                reason: "INVALID_ARGUMENT",
                metadata,
                retry_after_ms: 0,
            }],
        );
        let error = put(&client, PutOptions::default()).await.unwrap_err();
        assert_eq!(
            (error.reason, error.code),
            (Some(Reason::InvalidArgument), Code::InvalidArgument)
        );
        assert_eq!(
            (error.metadata["limit"].as_str(), error.outcome),
            ("4096", Outcome::NotApplied)
        );
        assert_eq!((error.attempts, net.asked()), (1, vec!["a".to_owned()]));
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_connection_goes_on_to_the_next_endpoint_at_once() {
    for options in both_ways() {
        let net = Net::default();
        net.start("c");
        let client = net.client(&["a", "b", "c"], options);
        let began = Instant::now();
        // Also without an id: nothing was sent anywhere before.
        put(
            &client,
            PutOptions {
                no_request_id: true,
                ..PutOptions::default()
            },
        )
        .await
        .unwrap();
        assert!(began.elapsed() < 5 * MS, "{:?}", began.elapsed());
        assert_eq!(net.dials(), ["a:1", "b:1", "c:1"]);
        put(&client, PutOptions::default()).await.unwrap();
        assert_eq!(
            net.dials().len(),
            3,
            "the endpoint that answered is asked first from now on"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_says_nothing_costs_one_connect_timeout() {
    let net = Net::default();
    net.silence("a");
    net.start("b");
    let client = net.client(&["a", "b"], exact());
    let began = Instant::now();
    // All of them wait for the same connection, not one after the other.
    let calls = (0..20).map(|_| put(&client, PutOptions::default()));
    for answer in futures::future::join_all(calls).await {
        answer.unwrap();
    }
    let waited = began.elapsed();
    assert!(waited >= 2000 * MS && waited < 2010 * MS, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn with_no_endpoint_at_all() {
    let net = Net::default();
    let client = net.client(
        &["a", "b"],
        ClientOptions {
            wait_for_ready: false,
            ..exact()
        },
    );
    let began = Instant::now();
    let error = put(&client, PutOptions::default()).await.unwrap_err();
    assert_eq!(
        (error.kind, error.code, error.outcome),
        (ErrorKind::Connect, Code::Unavailable, Outcome::NotApplied)
    );
    assert_eq!((error.attempts, began.elapsed() < 5 * MS), (2, true));
    assert!(error.to_string().contains("connection refused"), "{error}");

    let client = net.client(&["a", "b"], exact());
    let error = put(&client, within(500 * MS)).await.unwrap_err();
    assert_eq!(
        (error.kind, error.outcome),
        (ErrorKind::Connect, Outcome::NotApplied)
    );
    assert!(error.attempts > 4, "it kept trying: {}", error.attempts);

    // One that comes up in time is found.
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { put(&client, within(5000 * MS)).await }
    });
    tokio::time::sleep(1000 * MS).await;
    net.start("b");
    assert_eq!(waiting.await.unwrap().unwrap(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_breaks_is_replaced_and_the_write_repeated_under_its_id() {
    for options in both_ways() {
        let (net, client) = Net::with(&["a", "b"], options);
        put(&client, PutOptions::default()).await.unwrap();
        net.script("a", [Act::Cut]);
        put(&client, PutOptions::default()).await.unwrap();
        let seen = net.seen();
        assert_eq!(net.asked(), ["a", "a", "b"]);
        assert_eq!(seen[1].request_id(), seen[2].request_id());

        let (net, client) = Net::with(&["a", "b"], exact());
        net.script("a", [Act::Cut]);
        let error = put(
            &client,
            PutOptions {
                no_request_id: true,
                ..PutOptions::default()
            },
        )
        .await
        .unwrap_err();
        assert_eq!(
            (error.kind, error.outcome, net.asked().len()),
            (ErrorKind::Broken, Outcome::Unknown, 1)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_without_a_quorum_is_left_for_one_that_may_have_it() {
    let (net, client) = Net::with(&["a", "b"], exact());
    net.script("a", vec![no_quorum(); 50]);
    put(&client, PutOptions::default()).await.unwrap();
    put(&client, PutOptions::default()).await.unwrap();
    assert_eq!(net.asked(), ["a", "b", "b"], "and stays left");
    client
        .get("other", "k", ReadOptions::default())
        .await
        .unwrap();
    assert_eq!(
        net.asked()[3..],
        ["a", "b"],
        "another namespace may be led elsewhere"
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_store_said_is_told_rather_than_that_another_is_away() {
    let net = Net::default();
    net.start("a");
    let retry = RetryPolicy {
        max_attempts: Some(4),
        jitter: false,
        ..RetryPolicy::default()
    };
    let client = net.client(
        &["a", "b"],
        ClientOptions {
            wait_for_ready: false,
            retry,
            ..exact()
        },
    );
    net.script("a", vec![no_quorum(); 50]);
    let error = put(&client, PutOptions::default()).await.unwrap_err();
    assert_eq!(
        (error.reason, error.outcome),
        (Some(Reason::NoQuorum), Outcome::NotApplied)
    );
    assert_eq!(error.metadata["outcome"], "not_applied");
    assert_eq!(
        error.attempts, 2,
        "the store has waited for a quorum itself, and there is no other"
    );
    assert!(
        error.to_string().contains("cannot connect to b:1"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_leader_that_a_refusal_names_is_asked_next() {
    let (net, client) = Net::with(&["a", "b", "c"], exact());
    let metadata = vec![
        ("leader", "3".to_owned()),
        ("leader_address", "c:1".to_owned()),
        ("outcome", "not_applied".to_owned()),
    ];
    net.script(
        "a",
        [Act::Refuse {
            code: Code::Unavailable,
            reason: "NOT_LEADER",
            metadata,
            retry_after_ms: 20,
        }],
    );
    put(&client, PutOptions::default()).await.unwrap();
    put(&client, PutOptions::default()).await.unwrap();
    assert_eq!(net.asked(), ["a", "c", "c"]);
}

#[tokio::test(start_paused = true)]
async fn a_pinned_client_never_goes_elsewhere() {
    let (net, client) = Net::with(&["a", "b"], exact());
    let pinned = client.on_endpoint(1);
    net.script("b", [no_quorum(), no_quorum(), Act::Cut]);
    put(&pinned, PutOptions::default()).await.unwrap_err();
    assert_eq!(
        net.asked(),
        ["b", "b", "b"],
        "cut off from b, it does not ask a"
    );
}

#[tokio::test(start_paused = true)]
async fn an_overloaded_store_is_given_the_time_it_asks_for() {
    let (net, client) = Net::with(&["a", "b"], exact());
    net.script(
        "a",
        [refuse(
            Code::ResourceExhausted,
            "OVERLOADED",
            "not_applied",
            150,
        )],
    );
    let began = Instant::now();
    put(&client, PutOptions::default()).await.unwrap();
    assert!(began.elapsed() >= 150 * MS);
    assert_eq!(
        net.asked(),
        ["a", "a"],
        "no other store is less loaded: they forward"
    );
}

#[tokio::test(start_paused = true)]
async fn the_leader_is_learned_from_the_cluster() {
    let options = ClientOptions {
        discover: true,
        ..exact()
    };
    let (net, client) = Net::with(&["a", "b"], options);
    net.start("c");
    let store = |id, name: &str, reachable| admin::StoreSummary {
        member: Some(raft::Member {
            store_id: id,
            address: format!("{name}:1"),
            ..Default::default()
        }),
        reachable,
        status: Some(raft::StoreStatus {
            regions: vec![raft::RegionReport {
                region_id: 2,
                leader: 3,
                term: 5,
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    };
    net.tell_status(admin::ClusterStatusResponse {
        // d is nowhere: it must not be preferred, nor asked.
        stores: vec![
            store(1, "a", true),
            store(3, "c", true),
            store(4, "d", true),
        ],
        regions: vec![raft::RegionDescriptor {
            id: 2,
            ..Default::default()
        }],
        namespaces: vec![raft::NamespaceRow {
            id: 1,
            name: "n".into(),
            ..Default::default()
        }],
        ..Default::default()
    });
    put(&client, PutOptions::default()).await.unwrap();
    tokio::time::sleep(100 * MS).await;
    put(&client, PutOptions::default()).await.unwrap();
    assert_eq!(
        net.asked(),
        ["a", "c"],
        "an endpoint that was not configured"
    );
}

#[tokio::test(start_paused = true)]
async fn wrong_options_are_told_before_anything_is_sent() {
    let net = Net::default();
    let client = net.client(&["a"], exact());
    let error = put(
        &client,
        PutOptions {
            ttl: Some(Duration::ZERO),
            ..PutOptions::default()
        },
    )
    .await
    .unwrap_err();
    assert_eq!((error.kind, error.attempts), (ErrorKind::Usage, 0));
    let error = put(
        &client,
        PutOptions {
            ttl: Some(Duration::MAX),
            ..PutOptions::default()
        },
    )
    .await
    .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Usage);
    assert!(net.dials().is_empty());
    assert!(Client::new(ClientOptions::new(Vec::<String>::new())).is_err());
    assert!(Client::new(ClientOptions::new(["localhost"])).is_err());
    // An endless timeout is one, not an overflow.
    net.start("a");
    put(&client, within(Duration::MAX)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn calls_can_be_spawned() {
    let (_net, client) = Net::with(&["a"], exact());
    let namespaces = is_send(async {
        let _ = client.list_namespaces().await;
        let _ = client.create_namespace("n", None, None).await;
        let _ = client.cluster_status().await;
    });
    namespaces.await;
    is_send(client.delete("n", "k", WriteOptions::default()))
        .await
        .unwrap();
}
