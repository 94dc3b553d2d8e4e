//! Regions and replicas: several regions at once, snapshots, equal digests.

use crate::support::calls::{PATIENT, Plain, linearizable, refused, stale, text};
use crate::support::cluster::{Cluster, DATA, SLOW_ELECTIONS};
use crate::support::http;
use crate::support::load::{Load, LoadOptions};
use crate::support::wait::eventually;
use rdb_check::convergence::{self, Replica};
use rdb_client::{Client, ClientOptions, ReadOptions};
use rdb_proto::kv::{self, batch_request, batch_response};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tonic::Code;

/// Waits until all replicas of a region have applied the same index, and asserts that they then have
/// equal digests, counts and scans.
pub(crate) async fn assert_replicas_agree(cluster: &Cluster, region: u64) {
    let replicas = eventually(
        PATIENT,
        &format!("all replicas of region {region} have applied the same"),
        async || {
            let asked = (0..cluster.len()).map(|store| cluster.report(store, region));
            let mut reports = futures::future::try_join_all(asked).await?;
            if reports
                .windows(2)
                .any(|pair| pair[0].applied_index != pair[1].applied_index)
            {
                return Err(format!(
                    "applied {:?}",
                    reports
                        .iter()
                        .map(|report| report.applied_index)
                        .collect::<Vec<_>>()
                ));
            }
            let mut replicas = Vec::new();
            for (store, report) in reports.iter_mut().enumerate() {
                report
                    .namespaces
                    .sort_by_key(|namespace| namespace.namespace_id);
                let plain = Plain::on(cluster, store).await;
                let scan = plain
                    .all("", stale())
                    .await
                    .map_err(|status| status.to_string());
                replicas.push(Replica {
                    name: format!("store {}", store + 1),
                    digest: Ok((report.applied_index, report.namespaces.clone())),
                    scan,
                });
            }
            Ok(replicas)
        },
    )
    .await;
    let namespaces = &replicas[0].digest.as_ref().unwrap().1;
    assert!(
        namespaces.iter().any(|namespace| namespace.keys > 0),
        "equal and empty proves nothing: {namespaces:?}"
    );
    assert!(
        namespaces
            .iter()
            .all(|namespace| namespace.digest.len() == 16),
        "{namespaces:?}"
    );
    if let Err(problems) = convergence::check(&replicas) {
        panic!("replicas of region {region} differ: {problems:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_agree_on_digests() {
    let mut cluster = Cluster::start(3, &[]).await;
    let load = Load::start(&cluster, LoadOptions::default());
    load.more(150).await;
    let follower = cluster.other_than(&[cluster.leader_of(DATA).await]);
    cluster.kill(follower);
    load.more(150).await;
    cluster.restart(follower).await;
    load.stop().await.judge(&cluster).await;
    assert_replicas_agree(&cluster, DATA).await;
    // A digest is about content: it changes with a write, and comes back with the content.
    let digest = async |cluster: &Cluster| {
        let report = cluster.report(0, DATA).await.unwrap();
        report
            .namespaces
            .into_iter()
            .map(|namespace| namespace.digest)
            .collect::<Vec<_>>()
    };
    let before = digest(&cluster).await;
    let store = Plain::on(&cluster, 0).await;
    store.put("extra", "x").await.unwrap();
    assert_ne!(digest(&cluster).await, before);
    store.delete("extra", "").await.unwrap();
    assert_eq!(digest(&cluster).await, before);
}

fn put_op(id: u64, key: &str) -> kv::BatchRequest {
    let put = kv::PutRequest {
        key: key.to_owned().into(),
        value: format!("value of {key}").into(),
        ..Default::default()
    };
    kv::BatchRequest {
        id,
        op: Some(batch_request::Op::Put(put)),
        ..Default::default()
    }
}

fn get_op(id: u64, key: &str) -> kv::BatchRequest {
    let get = kv::GetRequest {
        key: key.to_owned().into(),
        ..Default::default()
    };
    kv::BatchRequest {
        id,
        op: Some(batch_request::Op::Get(get)),
        ..Default::default()
    }
}

/// Sends one message with all operations, and gives the answers by id.
async fn batch(
    store: &Plain,
    mut ops: Vec<kv::BatchRequest>,
) -> BTreeMap<u64, batch_response::Result> {
    let count = ops.len();
    let mut message = ops.remove(0);
    message.also = ops;
    let mut answers = store
        .kv
        .clone()
        .batch(futures::stream::iter([message]))
        .await
        .unwrap()
        .into_inner();
    let mut by_id = BTreeMap::new();
    while by_id.len() < count {
        let answer = answers
            .message()
            .await
            .unwrap()
            .expect("every operation is answered");
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
    by_id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_data_regions_in_one_cluster() {
    let mut cluster = Cluster::start(
        3,
        &[&["--bootstrap-split", "1/m"], &SLOW_ELECTIONS[..]].concat(),
    )
    .await;
    let left = DATA;
    let right = DATA + 1;
    let status = cluster.cluster_status(0).await.unwrap();
    assert_eq!(
        status.regions.len(),
        3,
        "tables, left, right: {:?}",
        status.regions
    );
    let store = Plain::on(&cluster, 0).await;

    // Every key goes to its region, the split key itself to the right one.
    for (key, region) in [("a", left), ("lzzz", left), ("m", right), ("z", right)] {
        let put = store.put(key, key).await.unwrap();
        assert_eq!(put.receipt.unwrap().region_id, region, "{key}");
        let got = store.get(key).await.unwrap();
        assert_eq!(
            (text(&got).as_deref(), got.receipt.unwrap().region_id),
            (Some(key), region)
        );
    }
    // Leaders of their own.
    cluster.move_leader(left, 0).await;
    cluster.move_leader(right, 1).await;
    assert_eq!(
        (
            cluster.leader_of(left).await,
            cluster.leader_of(right).await
        ),
        (0, 1)
    );

    // One batch for both, at a store that leads one of them, and at one that leads none.
    for (at, name) in [(0, "first"), (2, "second")] {
        let store = Plain::on(&cluster, at).await;
        let keys = [
            format!("b-{name}"),
            format!("x-{name}"),
            format!("c-{name}"),
            format!("y-{name}"),
        ];
        let written = batch(
            &store,
            keys.iter()
                .zip(1..)
                .map(|(key, id)| put_op(id, key))
                .collect(),
        )
        .await;
        let regions: Vec<u64> = written
            .values()
            .map(|answer| match answer {
                batch_response::Result::Put(put) => put.receipt.as_ref().unwrap().region_id,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(regions, [left, right, left, right]);
        let read = batch(
            &store,
            keys.iter()
                .zip(1..)
                .map(|(key, id)| get_op(id, key))
                .collect(),
        )
        .await;
        for (key, answer) in keys.iter().zip(read.values()) {
            match answer {
                batch_response::Result::Get(got) => {
                    assert_eq!(text(got), Some(format!("value of {key}")))
                }
                other => panic!("{other:?}"),
            }
        }
    }
    // A scan crosses the boundary, in either direction, and stops in the second region.
    let keys = |entries: Vec<kv::KeyValue>| {
        entries
            .into_iter()
            .map(|entry| String::from_utf8(entry.key.to_vec()).unwrap())
            .collect::<Vec<_>>()
    };
    let all = [
        "a", "b-first", "b-second", "c-first", "c-second", "lzzz", "m", "x-first", "x-second",
        "y-first", "y-second", "z",
    ];
    for at in 0..3 {
        let store = Plain::on(&cluster, at).await;
        let (entries, receipts) = store.scan(kv::ScanRequest::default()).await.unwrap();
        assert_eq!(keys(entries), all);
        assert_eq!(
            receipts
                .iter()
                .map(|receipt| receipt.region_id)
                .collect::<Vec<_>>(),
            [left, right]
        );
        let (entries, _) = store
            .scan(kv::ScanRequest {
                reverse: true,
                limit: 8,
                ..Default::default()
            })
            .await
            .unwrap();
        assert_eq!(
            keys(entries),
            all.iter().rev().take(8).copied().collect::<Vec<_>>()
        );
        let inside = kv::ScanRequest {
            start: "c-second".into(),
            end: "x-second".into(),
            ..Default::default()
        };
        assert_eq!(
            keys(store.scan(inside).await.unwrap().0),
            ["c-second", "lzzz", "m", "x-first"]
        );
        let only_right = kv::ScanRequest {
            prefix: "y".into(),
            ..Default::default()
        };
        assert_eq!(
            keys(store.scan(only_right).await.unwrap().0),
            ["y-first", "y-second"]
        );
    }
    // A namespace made by its first write is in both regions at once.
    let both = Plain::on(&cluster, 2).await.namespace("both");
    both.put("a", "x").await.unwrap();
    both.put("z", "x").await.unwrap();
    assert_eq!(
        Plain::on(&cluster, 1)
            .await
            .namespace("both")
            .all("", linearizable())
            .await
            .unwrap()
            .len(),
        2
    );

    // One leader dies; the other region does not notice, and its own elects another.
    cluster.kill(1);
    let store = Plain::on(&cluster, 0).await;
    store.put("a", "still led").await.unwrap();
    eventually(PATIENT, "the right region has a leader again", async || {
        store
            .put("z", "led again")
            .await
            .map_err(|status| status.to_string())
    })
    .await;
    cluster.restart(1).await;
    for at in 0..3 {
        let store = Plain::on(&cluster, at).await;
        assert_eq!(
            text(&store.get("a").await.unwrap()).as_deref(),
            Some("still led")
        );
        assert_eq!(
            text(&store.get("z").await.unwrap()).as_deref(),
            Some("led again")
        );
    }
    assert_replicas_agree(&cluster, left).await;
    assert_replicas_agree(&cluster, right).await;
}

/// A follower that hears its leader and cannot catch up: it needs a snapshot, and has nowhere to put it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_is_far_behind_says_so_and_lets_nobody_wait() {
    let cluster = Cluster::start(3, &["--snapshot-after", "100"]).await;
    let leader = cluster.leader_of(DATA).await;
    let follower = cluster.other_than(&[leader]);
    let snapshots = cluster.node(follower).data_dir().join("snapshots");
    let aside = cluster.dir().join("aside");
    cluster.pause(follower);
    std::fs::rename(&snapshots, &aside).unwrap();
    let store = Plain::on(&cluster, leader).await;
    // More than the connection to it holds, and several snapshots' worth of log: it catches up neither from
    // what is on the way nor from what the leader keeps.
    let large = "x".repeat(8 << 10);
    for number in 0..1200 {
        store.put(&format!("k{number}"), &large).await.unwrap();
    }
    store.put("k299", "x").await.unwrap();
    cluster.resume(follower);

    let http = cluster.http_addr(follower);
    let body = eventually(PATIENT, "the follower is not ready", async || {
        let answer = http::get(http, "/readyz").await?;
        match answer.status {
            503 if answer.body.contains("catching up") => Ok(answer.body),
            status => Err(format!("{status} {}", answer.body)),
        }
    })
    .await;
    assert!(body.contains("region 2"), "{body}");
    let behind = Plain::on(&cluster, follower).await;
    for _ in 0..3 {
        let asked = Instant::now();
        let refusal = refused(behind.timeout(Duration::from_secs(10)).get("k299").await);
        refusal
            .is(Code::Unavailable, "STALE_REPLICA")
            .outcome("not_applied");
        assert!(refusal.message.contains("catching up"), "{refusal:?}");
        assert_eq!(refusal.meta("region"), "2", "{refusal:?}");
        assert!(
            asked.elapsed() < Duration::from_secs(3),
            "{:?}",
            asked.elapsed()
        );
    }
    // The client library asks another one.
    let client = Client::new(ClientOptions::new(cluster.endpoints_from(follower))).unwrap();
    let asked = Instant::now();
    let got = client.get("default", "k299", ReadOptions::default()).await;
    assert_eq!(text(&got.unwrap()).as_deref(), Some("x"));
    assert!(asked.elapsed() < Duration::from_secs(5));
    let report = cluster.report(follower, DATA).await.unwrap();
    assert!(report.behind.contains("catching up"), "{}", report.behind);

    std::fs::rename(&aside, &snapshots).unwrap();
    eventually(PATIENT, "the follower is ready again", async || {
        let answer = http::get(http, "/readyz").await?;
        (answer.status == 200).then_some(()).ok_or(answer.body)
    })
    .await;
    assert_eq!(
        text(&behind.get("k299").await.unwrap()).as_deref(),
        Some("x")
    );
    assert_eq!(cluster.report(follower, DATA).await.unwrap().behind, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follower_away_past_compaction_catches_up_by_snapshot() {
    let mut cluster = Cluster::start(3, &["--snapshot-after", "200"]).await;
    let leader = cluster.leader_of(DATA).await;
    let follower = cluster.other_than(&[leader]);
    let store = Plain::on(&cluster, leader).await;
    store.put("before", "x").await.unwrap();
    store.put("deleted later", "x").await.unwrap();
    cluster.kill(follower);

    // One write an entry: several snapshots' worth of log, with all that a snapshot has to carry.
    let with = |key: String, ttl_ms, id: String| kv::PutRequest {
        key: key.into(),
        value: vec![7; 200].into(),
        ttl_ms,
        request_id: id.into(),
        ..Default::default()
    };
    store.delete("deleted later", "").await.unwrap();
    let once = store
        .put_as(with("once".into(), 0, "id-once".into()))
        .await
        .unwrap();
    let writers = (0..8).map(|writer| {
        let store = store.clone();
        async move {
            for number in 0..250 {
                let key = format!("k/{writer}/{:03}", number % 100);
                let ttl_ms = if number % 10 == 0 { 3_600_000 } else { 0 };
                store
                    .put_as(with(key, ttl_ms, format!("id-{writer}-{number}")))
                    .await
                    .unwrap();
            }
        }
    });
    futures::future::join_all(writers).await;
    store
        .put_as(with("short".into(), 300, String::new()))
        .await
        .unwrap();
    store.put("once", "newer").await.unwrap();
    let away_by = cluster.report(leader, DATA).await.unwrap().last_index;
    assert!(
        away_by > 800,
        "the log has to be longer than what is kept of it: {away_by}"
    );

    let log_before = cluster.log(follower).len();
    cluster.restart(follower).await;
    let back = Plain::on(&cluster, follower).await;
    assert_eq!(
        text(&back.get("once").await.unwrap()).as_deref(),
        Some("newer")
    );
    assert!(!back.get("deleted later").await.unwrap().found);
    eventually(
        PATIENT,
        "the short-lived key is gone at the store that came back",
        async || {
            let got = back
                .get("short")
                .await
                .map_err(|status| status.to_string())?;
            if got.found {
                Err("it is there".to_owned())
            } else {
                Ok(())
            }
        },
    )
    .await;
    let log = cluster.log(follower);
    assert!(
        log[log_before..].contains("installed a snapshot"),
        "it must not have caught up from the log"
    );
    assert_replicas_agree(&cluster, DATA).await;

    // It can lead, and knows the ids of writes that it never saw in a log.
    cluster.move_leader(DATA, follower).await;
    let again = back
        .put_as(with("once".into(), 0, "id-once".into()))
        .await
        .unwrap();
    assert_eq!(again.version, once.version);
    assert_eq!(
        text(&back.get("once").await.unwrap()).as_deref(),
        Some("newer"),
        "a repeat was applied"
    );
    let entry = back
        .scan(kv::ScanRequest {
            prefix: "k/0/000".into(),
            ..Default::default()
        })
        .await
        .unwrap()
        .0;
    assert!(entry[0].expires_at_ms > 0, "expiry came along: {entry:?}");
    // And once more from disk.
    cluster.kill(follower);
    cluster.restart(follower).await;
    assert_replicas_agree(&cluster, DATA).await;
}
