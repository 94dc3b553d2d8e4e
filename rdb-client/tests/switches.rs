//! A namespace changes its mode under its callers: those with a budget for retries do not notice, and no
//! write is done twice.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop at what it did not expect"
)]

mod mock;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use mock::{Act, Net, Seen, Stage};
use rdb_client::proto::kv::batch_request::Op;
use rdb_client::proto::kv::{Mode, Receipt};
use rdb_client::{Client, ClientError, ClientOptions, Outcome, PutOptions};
use rdb_client::{ReadOptions, RetryPolicy};
use rdb_types::{Epoch, NamespaceId, Reason, RegionId, SessionToken, StoreId, VersionVector};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::sleep;
use tonic::Code;

const STORES: [&str; 3] = ["a", "b", "c"];

const STRONG: Stage = Stage {
    eventual: false,
    sealing: false,
    epoch: 1,
};
const EVENTUAL: Stage = Stage {
    eventual: true,
    sealing: false,
    epoch: 2,
};
const SEALING: Stage = Stage {
    eventual: true,
    sealing: true,
    epoch: 3,
};
const STRONG_AGAIN: Stage = Stage {
    eventual: false,
    sealing: false,
    epoch: 4,
};

fn options(max_attempts: Option<u32>) -> ClientOptions {
    ClientOptions {
        retry: RetryPolicy {
            jitter: false,
            max_attempts,
            ..RetryPolicy::default()
        },
        discover: false,
        ..ClientOptions::default()
    }
}

fn all_at(net: &Net, stage: Stage) {
    for store in STORES {
        net.stage(store, stage);
    }
}

/// Stores, and a client that has heard how the namespace is served.
async fn told(stage: Stage) -> (Net, Client) {
    let (net, client) = Net::with(&STORES, options(None));
    all_at(&net, stage);
    put(&client).await.unwrap();
    (net, client)
}

async fn put(client: &Client) -> Result<(), ClientError> {
    let written = client.put("n", "k", "v", PutOptions::default()).await;
    written.map(drop)
}

fn epochs_told(seen: &Seen) -> u64 {
    match &seen.op {
        Op::Get(get) => get.read.as_ref().unwrap().seen_epoch,
        Op::Put(put) => put.seen_epoch,
        other => panic!("{other:?}"),
    }
}

fn is_done_once(net: &Net) {
    let mut times: BTreeMap<Bytes, usize> = BTreeMap::new();
    for id in net.done() {
        *times.entry(id).or_default() += 1;
    }
    assert!(times.values().all(|times| *times == 1), "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn callers_with_a_budget_do_not_notice_a_switch_there_and_back() {
    let (net, client) = Net::with(&STORES, options(None));
    all_at(&net, STRONG);
    let callers: Vec<_> = (0..9)
        .map(|number| {
            // Some stay at one store, as if it were the nearest.
            let client = match number % 3 {
                0 => client.clone(),
                _ => client.on_endpoint(number % 3),
            };
            let anonymous = number % 2 == 0;
            tokio::spawn(async move {
                let mut modes = BTreeSet::new();
                for round in 0..150 {
                    let receipt = if (round + number) % 3 == 0 {
                        let read = client.get("n", "k", ReadOptions::default());
                        read.await.unwrap().receipt
                    } else {
                        let options = PutOptions {
                            no_request_id: anonymous,
                            ..PutOptions::default()
                        };
                        let written = client.put("n", "k", "v", options);
                        written.await.unwrap().receipt
                    };
                    modes.insert(receipt.unwrap().mode);
                    sleep(Duration::from_millis(3)).await;
                }
                modes
            })
        })
        .collect();
    // Each store hears of each step a little later than the one before it.
    for stage in [EVENTUAL, SEALING, STRONG_AGAIN] {
        sleep(Duration::from_millis(60)).await;
        for store in STORES {
            if stage.epoch == STRONG_AGAIN.epoch {
                net.share_ids();
            }
            net.stage(store, stage);
            sleep(Duration::from_millis(7)).await;
        }
    }
    for caller in callers {
        let modes = caller.await.unwrap();
        assert_eq!(modes.len(), 2, "each was served in both");
    }
    // One client: what one caller hears the others tell.
    let told: Vec<u64> = net.seen().iter().map(epochs_told).collect();
    assert!(told.is_sorted(), "{told:?}");
    assert_eq!(told.last(), Some(&STRONG_AGAIN.epoch));
    let with_id = net.done().into_iter().filter(|id| !id.is_empty());
    let times = with_id.fold(BTreeMap::<Bytes, usize>::new(), |mut times, id| {
        *times.entry(id).or_default() += 1;
        times
    });
    assert!(times.values().all(|times| *times == 1), "{times:?}");
}

/// The store that answers `MODE_CHANGED` serves the new mode when it says so.
#[tokio::test(start_paused = true)]
async fn from_strong_to_eventual_one_retry_is_enough() {
    let (net, client) = Net::with(&STORES, options(Some(2)));
    all_at(&net, STRONG);
    put(&client).await.unwrap();
    // Refused by the log, under the epoch that the store had when it was asked.
    net.script(
        "a",
        [Act::Refuse {
            code: Code::Unavailable,
            reason: "MODE_CHANGED",
            metadata: vec![
                ("outcome", "not_applied".to_owned()),
                ("region", "2".to_owned()),
                ("epoch", "2".to_owned()),
                ("state", "eventual".to_owned()),
            ],
            retry_after_ms: 10,
        }],
    );
    all_at(&net, EVENTUAL);
    put(&client).await.unwrap();
    let last = net.seen().pop().unwrap();
    assert_eq!(
        epochs_told(&last),
        2,
        "what the refusal told is passed on at once"
    );
}

#[tokio::test(start_paused = true)]
async fn an_unknown_write_of_an_eventual_time_goes_anywhere_once_the_namespace_is_strong() {
    let (net, client) = told(EVENTUAL).await;
    net.script("a", [Act::DoAndCut]);
    let writer = tokio::spawn({
        let client = client.clone();
        async move { put(&client).await }
    });
    sleep(Duration::from_millis(5)).await;
    // The seal takes the write along, and everybody knows its id from then on. Another caller hears of it.
    net.share_ids();
    all_at(&net, STRONG_AGAIN);
    let other = client.on_endpoint(1);
    other.get("n", "k", ReadOptions::default()).await.unwrap();
    writer.await.unwrap().unwrap();
    is_done_once(&net);
    assert_ne!(net.asked().last().unwrap(), "a");
}

#[tokio::test(start_paused = true)]
async fn an_unknown_write_of_an_eventual_time_stays_where_it_was_while_nobody_heard_of_a_seal() {
    let (net, client) = told(EVENTUAL).await;
    net.script("a", [Act::DoAndForget]);
    put(&client).await.unwrap();
    assert_eq!(net.asked(), ["a", "a", "a"]);
    is_done_once(&net);

    net.script("a", [Act::DoAndCut]);
    assert_eq!(put(&client).await.unwrap_err().outcome, Outcome::Unknown);
    is_done_once(&net);
}

/// The store took the write as an eventual one, though the client knew nothing of that yet.
#[tokio::test(start_paused = true)]
async fn an_unknown_write_that_was_sent_as_strong_is_not_taken_anew_where_it_is_eventual_by_now() {
    for first in [Act::DoAndForget, Act::DoAndCut] {
        let (net, client) = told(STRONG).await;
        all_at(&net, EVENTUAL);
        net.script("a", [first.clone()]);
        let written = put(&client).await;
        is_done_once(&net);
        assert_eq!(net.done().len(), 2, "the first one, and this");
        match first {
            // The others refuse it; the store that took it knows its id.
            Act::DoAndForget => {
                written.unwrap();
                assert_eq!(net.asked(), ["a", "a", "b", "a"]);
            }
            // That store is gone.
            _ => {
                let error = written.unwrap_err();
                assert_eq!(error.outcome, Outcome::Unknown, "{error}");
                assert!(!error.is_repeatable(), "{error}");
            }
        }
        // What comes later is written as ever.
        put(&client).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_write_of_a_strong_time_goes_anywhere() {
    let (net, client) = told(STRONG).await;
    net.script("a", [Act::DoAndCut]);
    put(&client).await.unwrap();
    is_done_once(&net);
    let Op::Put(first) = &net.seen()[1].op else {
        panic!("no put")
    };
    let Some(Op::Put(last)) = net.seen().pop().map(|seen| seen.op) else {
        panic!("no put")
    };
    assert_eq!((first.only_epoch, last.only_epoch), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_region_that_is_behind_another_is_asked_with_its_own_epoch() {
    let (net, client) = Net::with(&STORES, options(None));
    net.serve_as(Receipt {
        mode: Mode::Strong as i32,
        epoch: 9,
        region_id: 7,
        ..Default::default()
    });
    put(&client).await.unwrap();
    // The next key lies in a region that the client has not heard of.
    all_at(&net, STRONG_AGAIN);
    put(&client).await.unwrap();
    let told: Vec<u64> = net.seen().iter().map(epochs_told).collect();
    assert_eq!(told, [0, 9, 4]);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_lost_writes_says_so_once_and_goes_on() {
    let (net, client) = Net::with(&["a"], options(None));
    let session = client.session();
    let token = |epoch| SessionToken::new(RegionId(2), NamespaceId(5), Epoch(epoch));
    let served = |token: &SessionToken| {
        net.serve_as(Receipt {
            mode: Mode::Eventual as i32,
            epoch: token.epoch().0,
            region_id: 2,
            session: token.encode(),
            ..Default::default()
        });
    };
    let late: VersionVector = [(StoreId::new(3).unwrap(), 7)].into_iter().collect();
    served(&token(1).with_writes(Epoch(0), &late));
    put(&session).await.unwrap();
    // The namespace became strong without the store that had it.
    let fresh = token(3).at_revision(5);
    net.script(
        "a",
        [Act::Refuse {
            code: Code::Unavailable,
            reason: "SESSION_LOST",
            metadata: vec![
                ("region", "2".to_owned()),
                ("session", BASE64_STANDARD.encode(fresh.encode())),
            ],
            retry_after_ms: 0,
        }],
    );
    served(&token(3).at_revision(6));
    let read = |client: Client| async move { client.get("n", "k", ReadOptions::default()).await };
    let error = read(session.clone()).await.unwrap_err();
    assert_eq!(error.reason, Some(Reason::SessionLost));
    assert_eq!((error.attempts, error.outcome), (1, Outcome::NotAWrite));
    assert_eq!(error.fresh_session(), Some(fresh.encode()));
    read(session.clone()).await.unwrap();
    read(session.clone()).await.unwrap();
    let asked: Vec<Bytes> = net
        .seen()
        .into_iter()
        .filter_map(|seen| match seen.op {
            Op::Get(get) => Some(get.read.unwrap().session),
            _ => None,
        })
        .collect();
    assert_eq!(
        asked,
        [
            token(1).with_writes(Epoch(0), &late).encode(),
            fresh.encode(),
            token(3).at_revision(6).encode()
        ]
    );
}
