//! Sessions and retries across a switch: a session reads its own writes and never goes back, whichever store
//! it asks and whatever mode the namespace is in; and a caller that repeats what was refused does not notice.

use super::modes::{EVENTUAL, NAME, STRONG, declared, request, switch, update};
use super::switches::declared_meshed;
use crate::support::cluster::{Cluster, SLOW_ELECTIONS};
use rdb_client::{Client, ClientError, ClientOptions, PutOptions, ReadOptions, RetryPolicy};
use rdb_proto::kv::{GetResponse, Mode};
use rdb_proto::raft::UpdateNamespaceModeRequest;
use rdb_types::Reason;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::sleep;

fn number(answer: &GetResponse) -> u64 {
    let text = std::str::from_utf8(&answer.value).unwrap();
    if answer.found {
        text.parse().unwrap()
    } else {
        0
    }
}

/// What a session does until it is told to stop: writes a number, reads it at another store, and goes on from
/// there, so that its next write is stamped behind this one. Gives how often it was served in each mode.
async fn live(session: Client, key: String, stop: Arc<AtomicBool>) -> BTreeMap<i32, u64> {
    let mut served = BTreeMap::new();
    let (mut at, mut shared, mut version) = (0, 0, 0);
    for written in 1u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let value = written.to_string();
        let here = session.on_endpoint(at);
        let put = here.put(NAME, key.clone(), value, PutOptions::default());
        put.await.unwrap();
        at = (at + 1 + written as usize % 2) % 3;
        let here = session.on_endpoint(at);
        let options = match written % 3 {
            0 => ReadOptions::stale(),
            _ => ReadOptions::default(),
        };
        let read = here.get(NAME, key.clone(), options.clone()).await.unwrap();
        assert_eq!(
            number(&read),
            written,
            "{key} at store {}: {read:?}",
            at + 1
        );
        assert!(read.version > version, "{read:?} after {version}");
        version = read.version;
        *served.entry(read.receipt.unwrap().mode).or_default() += 1;
        let read = here.get(NAME, "shared", options).await.unwrap();
        assert!(number(&read) >= shared, "{read:?} after {shared}");
        shared = number(&read);
    }
    served
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_reads_its_own_writes_and_never_goes_back_across_switches() {
    let cluster = declared("strong", &SLOW_ELECTIONS).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut sessions = JoinSet::new();
    for number in 0..4 {
        let session = cluster.client().session();
        sessions.spawn(live(session, format!("own/{number}"), stop.clone()));
    }
    let writer = tokio::spawn({
        let (client, stop) = (cluster.client().on_endpoint(0), stop.clone());
        async move {
            let mut count = 0u64;
            while !stop.load(Ordering::Relaxed) {
                count += 1;
                let put = client.put(NAME, "shared", count.to_string(), PutOptions::default());
                put.await.unwrap();
                sleep(Duration::from_millis(2)).await;
            }
            count
        }
    });
    for round in 0..3 {
        sleep(Duration::from_millis(200)).await;
        switch(&cluster, round % 3, EVENTUAL).await;
        sleep(Duration::from_millis(200)).await;
        switch(&cluster, (round + 1) % 3, STRONG).await;
    }
    sleep(Duration::from_millis(200)).await;
    stop.store(true, Ordering::Relaxed);
    println!("{} writes of the shared key", writer.await.unwrap());
    while let Some(served) = sessions.join_next().await {
        let served = served.unwrap();
        println!("reads of a session by mode: {served:?}");
        assert_eq!(served.len(), 2, "in both modes: {served:?}");
    }
}

/// Each caller repeats a call once, at most.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_with_one_retry_sees_no_error_from_strong_to_eventual_under_load() {
    let cluster = declared("strong", &SLOW_ELECTIONS).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut callers = JoinSet::new();
    for number in 0..8 {
        let client = with_one_retry(&cluster);
        // Some go where the client finds it best, some stay at one store.
        let client = match number % 4 {
            3 => client,
            store => client.on_endpoint(store),
        };
        let stop = stop.clone();
        callers.spawn(async move {
            let mut modes = BTreeSet::new();
            for round in 0u64.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let key = format!("{number}/{}", round % 16);
                let options = PutOptions {
                    no_request_id: number % 2 == 0,
                    ..PutOptions::default()
                };
                let written = client.put(NAME, key.clone(), "v", options).await?;
                client.get(NAME, key, ReadOptions::default()).await?;
                modes.insert(written.receipt.unwrap_or_default().mode);
            }
            Ok::<_, ClientError>(modes)
        });
    }
    sleep(Duration::from_millis(300)).await;
    switch(&cluster, 1, EVENTUAL).await;
    sleep(Duration::from_millis(300)).await;
    stop.store(true, Ordering::Relaxed);
    while let Some(caller) = callers.join_next().await {
        let modes = caller
            .unwrap()
            .unwrap_or_else(|error| panic!("{error}: {error:?}"));
        assert!(modes.contains(&(Mode::Eventual as i32)), "{modes:?}");
    }
}

fn with_one_retry(cluster: &Cluster) -> Client {
    let options = ClientOptions {
        retry: RetryPolicy {
            max_attempts: Some(2),
            ..RetryPolicy::default()
        },
        ..ClientOptions::new(cluster.endpoints_from(0))
    };
    Client::new(options).unwrap()
}

/// Writes that were set aside are not silently missing from a session that has seen them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_whose_writes_were_set_aside_is_told_once_and_goes_on() {
    let cluster = declared_meshed("eventual", &[]).await;
    let [late, other] = [(); 2].map(|()| cluster.client().session());
    cluster.mesh().isolate(2);
    let put = |client: Client, key| async move {
        let written = client.put(NAME, key, "v", PutOptions::default()).await;
        written.unwrap();
    };
    put(late.on_endpoint(2), "late").await;
    put(other.on_endpoint(0), "other").await;
    let without = UpdateNamespaceModeRequest {
        accept_missing: vec![3],
        ..request(STRONG)
    };
    let (changes, ended) = update(&cluster, 0, without).await;
    ended.unwrap_or_else(|status| panic!("{status:?} after {changes:#?}"));
    // It goes on writing; only a read can tell.
    put(late.on_endpoint(0), "after").await;
    let read = |client: Client, key| async move {
        let read = client.get(NAME, key, ReadOptions::default()).await;
        read.map(|read| read.found)
    };
    let error = read(late.on_endpoint(1), "late").await.unwrap_err();
    assert_eq!(error.reason, Some(Reason::SessionLost), "{error}");
    assert_eq!(error.metadata["lost"], "1", "{error:?}");
    assert!(error.fresh_session().is_some());
    assert!(!read(late.on_endpoint(0), "late").await.unwrap());
    assert!(read(late.on_endpoint(1), "after").await.unwrap());
    // What was taken along is there for its session, on any store.
    for store in [0, 1] {
        assert!(read(other.on_endpoint(store), "other").await.unwrap());
    }
    cluster.mesh().heal();
    let back = cluster.client().session();
    let found = tokio::time::timeout(Duration::from_secs(20), async {
        // The store that was left behind waits for its fresh copy, and is asked until it has it.
        loop {
            match read(back.on_endpoint(2), "after").await {
                Ok(true) => return,
                Ok(false) | Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    });
    found.await.unwrap();
    assert!(!read(late.on_endpoint(2), "late").await.unwrap());
}
