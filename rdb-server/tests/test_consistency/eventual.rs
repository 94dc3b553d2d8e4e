//! Eventual namespaces: every replica accepts, alone too; all converge; nothing acknowledged is lost
//! unless a newer write won; nothing deleted comes back.

use crate::support::calls::{PATIENT, Plain, Refusal, text};
use crate::support::cluster::{Cluster, DATA};
use crate::support::wait::eventually;
use rdb_proto::kv;
use rdb_proto::raft::raft_service_client::RaftServiceClient;
use rdb_proto::raft::{CreateNamespaceRequest, NamespaceReport, Policies};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use tonic::Code;

const NAME: &str = "cart";

/// Creates the namespace and waits until every store serves it.
async fn create(cluster: &Cluster, policies: Policies) -> u32 {
    let channel = crate::support::calls::channel(cluster.addr(0)).await;
    let request = CreateNamespaceRequest {
        name: NAME.to_owned(),
        mode: kv::Mode::Eventual as i32,
        policies: Some(policies),
    };
    let made = RaftServiceClient::new(channel)
        .create_namespace(request)
        .await
        .unwrap();
    let id = made.into_inner().id;
    for store in 0..cluster.len() {
        eventually(PATIENT, "every store knows the namespace", async || {
            report(cluster, store, id).await.map(drop)
        })
        .await;
    }
    id
}

/// What a store says of its replica of the namespace.
async fn report(cluster: &Cluster, store: usize, id: u32) -> Result<NamespaceReport, String> {
    let report = cluster.report(store, DATA).await?;
    let mut namespaces = report.namespaces.into_iter();
    namespaces
        .find(|namespace| namespace.namespace_id == id)
        .ok_or_else(|| format!("store {} does not know it yet", store + 1))
}

/// Waits until all stores hold the same writes and say that they hold the same data.
async fn agree(cluster: &Cluster, id: u32) -> Vec<NamespaceReport> {
    let started = Instant::now();
    let reports = eventually(PATIENT, "all replicas hold the same writes", async || {
        let asked = (0..cluster.len()).map(|store| report(cluster, store, id));
        let reports = futures::future::try_join_all(asked).await?;
        let same = reports
            .windows(2)
            .all(|pair| pair[0].vector == pair[1].vector && pair[0].digest == pair[1].digest);
        if same {
            Ok(reports)
        } else {
            Err(format!("{reports:#?}"))
        }
    })
    .await;
    println!("equal after {:?}", started.elapsed());
    reports
}

/// As [`agree`], and asserts that scans show the same. Not while something is about to expire.
async fn converge(cluster: &Cluster, id: u32) -> Vec<NamespaceReport> {
    let reports = agree(cluster, id).await;
    let mut scans = Vec::new();
    for store in 0..cluster.len() {
        let plain = at(cluster, store).await;
        scans.push(plain.all("", kv::ReadOptions::default()).await.unwrap());
    }
    assert!(scans.windows(2).all(|pair| pair[0] == pair[1]), "{scans:?}");
    reports
}

async fn at(cluster: &Cluster, store: usize) -> Plain {
    Plain::on(cluster, store).await.namespace(NAME)
}

async fn value(store: &Plain, key: &str) -> Option<String> {
    text(&store.get(key).await.unwrap())
}

/// A read with a session token.
async fn after(
    store: &Plain,
    key: &str,
    session: &bytes::Bytes,
) -> Result<Option<String>, Refusal> {
    let options = kv::ReadOptions {
        session: session.clone(),
        ..Default::default()
    };
    match store.get_as(key, options).await {
        Ok(answer) => Ok(text(&answer)),
        Err(status) => Err(Refusal::of(&status)),
    }
}

/// T010: a replica that has not heard of a write yet answers with what it has, and says how old that may
/// be; then it has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delayed_read_then_convergence() {
    let cluster = Cluster::start_meshed(3, &[]).await;
    let id = create(&cluster, Policies::default()).await;
    let [one, two] = [at(&cluster, 0).await, at(&cluster, 1).await];
    one.put("k", "old").await.unwrap();
    converge(&cluster, id).await;
    cluster.mesh().isolate(1);
    let written = one.put("k", "new").await.unwrap();
    assert_eq!(value(&two, "k").await.as_deref(), Some("old"));
    // Its bound grows while nobody tells it anything.
    eventually(
        PATIENT,
        "the bound says how long it was alone",
        async || {
            let receipt = two.get("k").await.unwrap().receipt.unwrap();
            if receipt.staleness_bound_ms >= 1000 {
                Ok(())
            } else {
                Err(format!("{receipt:?}"))
            }
        },
    )
    .await;
    let session = written.receipt.unwrap().session;
    let refusal = after(&two, "k", &session).await.unwrap_err();
    refusal.is(Code::Unavailable, "STALE_REPLICA");
    cluster.mesh().heal();
    converge(&cluster, id).await;
    assert_eq!(
        after(&two, "k", &session).await.unwrap().as_deref(),
        Some("new")
    );
    eventually(PATIENT, "the bound is known again", async || {
        let receipt = two.get("k").await.unwrap().receipt.unwrap();
        assert_eq!(receipt.mode, kv::Mode::Eventual as i32);
        if (1..60_000).contains(&receipt.staleness_bound_ms) {
            Ok(())
        } else {
            Err(format!("{receipt:?}"))
        }
    })
    .await;
}

/// T011: both sides of a cut write, also a store that is alone; the newest wins everywhere, and what lost
/// is known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partition_writes_on_both_sides_and_the_newest_wins() {
    let cluster = Cluster::start_meshed(3, &[]).await;
    let id = create(&cluster, Policies::default()).await;
    let stores = [
        at(&cluster, 0).await,
        at(&cluster, 1).await,
        at(&cluster, 2).await,
    ];
    stores[0].put("both", "before").await.unwrap();
    converge(&cluster, id).await;
    cluster.mesh().isolate(0);
    cluster.mesh().isolate(1);
    let mut newest = BTreeMap::new();
    for round in 0..20 {
        for (number, store) in stores.iter().enumerate() {
            let text = format!("{round} by {}", number + 1);
            let put = store.put("both", &text).await.unwrap();
            newest.insert(put.version, text);
            store
                .put(&format!("own/{}/{round}", number + 1), "v")
                .await
                .unwrap();
        }
    }
    // Longer than quorum_timeout: a store that is alone goes on.
    eventually(
        PATIENT,
        "the strong side knows that it is alone",
        async || {
            let refused = Plain::on(&cluster, 0).await.put("k", "v").await;
            refused.err().map(drop).ok_or_else(|| "written".to_owned())
        },
    )
    .await;
    let put = stores[0].put("both", "the last").await.unwrap();
    newest.insert(put.version, "the last".to_owned());
    cluster.mesh().heal();
    let reports = converge(&cluster, id).await;
    let (_, winner) = newest.last_key_value().unwrap();
    for store in &stores {
        assert_eq!(value(store, "both").await.as_ref(), Some(winner));
        assert_eq!(
            store
                .all("own/", kv::ReadOptions::default())
                .await
                .unwrap()
                .len(),
            60
        );
    }
    // Of each side only the last write lost to a concurrent one; those before it were overwritten in
    // sequence.
    for report in reports {
        assert_eq!((report.keys, report.conflicts), (61, 2), "{report:?}");
    }
}

/// What only the killed store has is not lost: it brings it when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_killed_before_it_replicated_brings_its_writes_back() {
    let mut cluster = Cluster::start_meshed(3, &[]).await;
    let id = create(&cluster, Policies::default()).await;
    let alone = at(&cluster, 2).await;
    cluster.mesh().isolate(2);
    for number in 0..50 {
        alone.put(&format!("k{number:02}"), "v").await.unwrap();
    }
    cluster.kill(2);
    at(&cluster, 0).await.put("meanwhile", "v").await.unwrap();
    cluster.mesh().heal();
    cluster.restart(2).await;
    let reports = converge(&cluster, id).await;
    assert_eq!(reports[0].keys, 51);
}

/// Beyond the end of the logs a replica takes a copy, and keeps what it wrote alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_away_past_truncation_takes_a_copy_and_keeps_its_own_writes() {
    let cluster = Cluster::start_meshed(3, &["--origin-log", "64KiB"]).await;
    let id = create(&cluster, Policies::default()).await;
    let [one, two, three] = [
        at(&cluster, 0).await,
        at(&cluster, 1).await,
        at(&cluster, 2).await,
    ];
    three.put("shared", "old").await.unwrap();
    one.put("deleted meanwhile", "old").await.unwrap();
    converge(&cluster, id).await;
    cluster.mesh().isolate(2);
    for number in 0..10 {
        three.put(&format!("own/{number}"), "v").await.unwrap();
    }
    let large = "x".repeat(4096);
    for number in 0..100 {
        one.put(&format!("one/{number:03}"), &large).await.unwrap();
        two.put(&format!("two/{number:03}"), &large).await.unwrap();
    }
    one.delete("deleted meanwhile", "").await.unwrap();
    two.put("shared", "new").await.unwrap();
    // Long enough for the logs to be cut.
    eventually(PATIENT, "the two others agree", async || {
        let reports = [
            report(&cluster, 0, id).await?,
            report(&cluster, 1, id).await?,
        ];
        if reports[0].vector == reports[1].vector {
            Ok(())
        } else {
            Err(format!("{reports:?}"))
        }
    })
    .await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    cluster.mesh().heal();
    let reports = converge(&cluster, id).await;
    assert_eq!(reports[2].keys, 211);
    assert_eq!(value(&three, "shared").await.as_deref(), Some("new"));
    assert_eq!(value(&three, "deleted meanwhile").await, None);
    eventually(PATIENT, "the log says that a copy was taken", async || {
        let log = cluster.log(2);
        if log.contains("the copy is complete") {
            Ok(())
        } else {
            Err("it does not".to_owned())
        }
    })
    .await;
}

/// A deletion outlives a replica's absence: nothing that it deleted comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_deleted_while_a_store_was_away_stays_deleted() {
    let mut cluster = Cluster::start(3, &[]).await;
    let id = create(&cluster, Policies::default()).await;
    let one = at(&cluster, 0).await;
    for number in 0..30 {
        one.put(&format!("k{number:02}"), "v").await.unwrap();
    }
    converge(&cluster, id).await;
    cluster.kill(2);
    for number in 0..30 {
        assert!(
            one.delete(&format!("k{number:02}"), "")
                .await
                .unwrap()
                .existed
        );
    }
    // Several rounds of housekeeping, which must not forget the deletions while a replica is away.
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.restart(2).await;
    let reports = converge(&cluster, id).await;
    assert!(reports.iter().all(|report| report.keys == 0), "{reports:?}");
    // And once all have seen them they go from the disks, too: what comes later finds nothing.
    tokio::time::sleep(Duration::from_secs(2)).await;
    one.put("k00", "new").await.unwrap();
    let reports = converge(&cluster, id).await;
    assert!(reports.iter().all(|report| report.keys == 1), "{reports:?}");
}

/// What was acknowledged is on disk: kill -9 of all stores at once loses none of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eventual_writes_survive_the_kill_of_all() {
    let mut cluster = Cluster::start(3, &[]).await;
    let id = create(&cluster, Policies::default()).await;
    let mut writers = tokio::task::JoinSet::new();
    let count = Arc::new(AtomicUsize::new(0));
    for store in 0..3 {
        let (plain, count) = (at(&cluster, store).await, count.clone());
        writers.spawn(async move {
            let mut acknowledged = Vec::new();
            for number in 0.. {
                let key = format!("{store}/{number:05}");
                if plain.put(&key, "v").await.is_err() {
                    break;
                }
                acknowledged.push(key);
                count.fetch_add(1, Ordering::Relaxed);
            }
            acknowledged
        });
    }
    eventually(PATIENT, "all three write", async || {
        let written = count.load(Ordering::Relaxed);
        if written >= 300 {
            Ok(())
        } else {
            Err(written.to_string())
        }
    })
    .await;
    cluster.kill_all(&[0, 1, 2]);
    let acknowledged: Vec<String> = writers.join_all().await.into_iter().flatten().collect();
    for store in 0..3 {
        cluster.launch(store);
    }
    cluster.wait_all_ready().await;
    converge(&cluster, id).await;
    let there = at(&cluster, 1).await;
    let there: Vec<bytes::Bytes> = there
        .all("", kv::ReadOptions::default())
        .await
        .unwrap()
        .into_iter()
        .map(|(key, _)| key)
        .collect();
    println!("{} acknowledged, {} there", acknowledged.len(), there.len());
    for key in acknowledged {
        assert!(
            there
                .binary_search(&bytes::Bytes::from(key.clone()))
                .is_ok(),
            "{key} is lost"
        );
    }
}

/// A relaxed acknowledgement costs no number twice: after a crash the replicas still agree.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relaxed_writes_survive_a_killed_process_and_converge() {
    let mut cluster = Cluster::start(3, &[]).await;
    let id = create(
        &cluster,
        Policies {
            durability: "relaxed".to_owned(),
            ..Policies::default()
        },
    )
    .await;
    for round in 0..3 {
        let one = at(&cluster, 0).await;
        for number in 0..100 {
            one.put(&format!("{round}/{number}"), "v").await.unwrap();
        }
        cluster.kill(0);
        cluster.restart(0).await;
    }
    let reports = converge(&cluster, id).await;
    // A killed process loses nothing that it handed to the system; only a power loss could.
    assert_eq!(reports[0].keys, 300);
}

/// What an eventual namespace cannot do it says, with what to do instead; and nothing of it happens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_needs_a_strong_namespace_is_refused_with_a_hint() {
    let cluster = Cluster::start(1, &[]).await;
    create(&cluster, Policies::default()).await;
    let store = at(&cluster, 0).await;
    store.put("k", "v").await.unwrap();
    let refused = Refusal::of(&store.cas("k", 0, "w", "").await.unwrap_err());
    refused.is(Code::FailedPrecondition, "WRONG_MODE");
    assert_eq!(refused.meta("namespace"), NAME);
    assert_eq!(refused.meta("mode"), "eventual");
    assert!(!refused.meta("hint").is_empty());
    assert_eq!(refused.meta("outcome"), "not_applied");
    let linearizable = crate::support::calls::linearizable();
    let refused = Refusal::of(&store.get_as("k", linearizable).await.unwrap_err());
    refused.is(Code::FailedPrecondition, "WRONG_MODE");
    assert_eq!(value(&store, "k").await.as_deref(), Some("v"));
}

/// A repeat of a request id is answered once, also by a store that only heard of the write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_eventual_write_is_applied_once() {
    let cluster = Cluster::start(3, &[]).await;
    let id = create(&cluster, Policies::default()).await;
    let [one, two] = [at(&cluster, 0).await, at(&cluster, 1).await];
    let put = |value: &'static str| kv::PutRequest {
        key: "k".into(),
        value: value.into(),
        request_id: uuid_of(1),
        ..Default::default()
    };
    let first = one.put_as(put("v")).await.unwrap();
    one.put("k", "newer").await.unwrap();
    assert_eq!(one.put_as(put("v")).await.unwrap().version, first.version);
    converge(&cluster, id).await;
    assert_eq!(two.put_as(put("v")).await.unwrap().version, first.version);
    assert_eq!(value(&two, "k").await.as_deref(), Some("newer"));
    let refused = Refusal::of(&one.put_as(put("other")).await.unwrap_err());
    refused.is(Code::InvalidArgument, "INVALID_ARGUMENT");
}

fn uuid_of(number: u8) -> bytes::Bytes {
    let mut id = *uuid::Uuid::now_v7().as_bytes();
    id[15] = number;
    // The same for all calls of a test: the time part is fixed by the first.
    static ID: std::sync::OnceLock<[u8; 16]> = std::sync::OnceLock::new();
    bytes::Bytes::copy_from_slice(ID.get_or_init(|| id))
}

/// A time to live hides a record on every replica, and it stays hidden.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_records_are_gone_everywhere_and_digests_agree() {
    let cluster = Cluster::start(3, &[]).await;
    let id = create(&cluster, Policies::default()).await;
    let one = at(&cluster, 0).await;
    for number in 0..20 {
        let request = kv::PutRequest {
            key: format!("short/{number}").into(),
            value: "v".into(),
            ttl_ms: 1000,
            ..Default::default()
        };
        one.put_as(request).await.unwrap();
    }
    one.put("long", "v").await.unwrap();
    let reports = agree(&cluster, id).await;
    assert!(reports[0].keys >= 1);
    eventually(
        PATIENT,
        "what expired is counted out everywhere",
        async || {
            let reports = agree(&cluster, id).await;
            if reports.iter().all(|report| report.keys == 1) {
                Ok(())
            } else {
                Err(format!("{reports:?}"))
            }
        },
    )
    .await;
    for store in 0..3 {
        assert_eq!(value(&at(&cluster, store).await, "short/3").await, None);
        assert_eq!(
            value(&at(&cluster, store).await, "long").await.as_deref(),
            Some("v")
        );
    }
}
