//! kill -9 of a leader, of a majority, of all.

use crate::support::calls::{PATIENT, Plain, Refusal, refused, text};
use crate::support::cluster::{Cluster, DATA, SLOW_ELECTIONS};
use crate::support::load::{Load, LoadOptions};
use crate::support::wait::eventually;
use rdb_proto::kv;
use std::time::Duration;
use tokio::time::Instant;
use tonic::Code;

/// The aim after a leader's death is 3 s; the rest is for a busy test machine.
const WRITES_AGAIN: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_killed_under_load_loses_nothing() {
    let mut cluster = Cluster::start(3, &[]).await;
    let load = Load::start(&cluster, LoadOptions::default());
    let mut faults = Vec::new();
    for _ in 0..2 {
        load.more(150).await;
        let leader = cluster.leader_of(DATA).await;
        faults.push(Instant::now());
        cluster.kill(leader);
        load.more(150).await;
        cluster.restart(leader).await;
    }
    load.more(150).await;
    let loaded = load.stop().await;
    for fault in faults {
        let outage = loaded.outage(fault);
        println!(
            "writes again {} ms after the leader was killed",
            outage.as_millis()
        );
        assert!(
            outage < WRITES_AGAIN,
            "no write for {outage:?} after the leader was killed"
        );
    }
    println!(
        "longest time without an acknowledged write: {:?}",
        loaded.longest_silence()
    );
    loaded.judge(&cluster).await;
}

/// Asserts a refusal for want of a quorum, with all that the table of errors promises.
#[track_caller]
fn assert_no_quorum(refusal: &Refusal, outcomes: &[&str]) {
    refusal.is(Code::Unavailable, "NO_QUORUM");
    assert_eq!(
        (
            refusal.meta("region"),
            refusal.meta("reached"),
            refusal.meta("needed")
        ),
        ("2", "1", "2"),
        "{refusal:?}"
    );
    let leader = refusal.meta("leader");
    assert!(["1", "2", "3", "none"].contains(&leader), "{refusal:?}");
    assert!(
        outcomes.contains(&refusal.meta("outcome")),
        "one of {outcomes:?}: {refusal:?}"
    );
}

/// Puts a key, with an id or without.
fn put(key: &str, id: &str) -> kv::PutRequest {
    kv::PutRequest {
        key: key.to_owned().into(),
        value: "x".into(),
        request_id: id.to_owned().into(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn majority_killed_is_no_quorum_and_nothing_is_lost() {
    let quorum_timeout = Duration::from_secs(2);
    let in_time = quorum_timeout + Duration::from_secs(2);
    let mut cluster = Cluster::start(3, &[]).await;
    let mut acknowledged = Vec::new();
    let mut refused_keys = Vec::new();

    // Once the leader is what is left, once a follower.
    for round in ["leader", "follower"] {
        let leader = cluster.leader_of(DATA).await;
        let left = if round == "leader" {
            leader
        } else {
            cluster.other_than(&[leader])
        };
        let dead: Vec<usize> = (0..3).filter(|store| *store != left).collect();
        let store = Plain::on(&cluster, left).await;
        for number in 0..30 {
            let key = format!("{round}/acknowledged/{number}");
            store.put(&key, "x").await.unwrap();
            acknowledged.push(key);
        }
        // Known to be fresh: from here on the bound of stale reads counts.
        assert!(store.get(&acknowledged[0]).await.unwrap().found);
        cluster.kill_all(&dead);
        let killed = Instant::now();
        // A read that is under way when the loss is noticed hears of it as soon as a write does, and a
        // write that needs a namespace first hears of itself, not of the namespace.
        let (reader, key) = (store.clone(), acknowledged[0].clone());
        let read = tokio::spawn(async move {
            tokio::time::sleep(quorum_timeout - Duration::from_millis(250)).await;
            (refused(reader.get(&key).await), killed.elapsed())
        });
        let unborn = store.namespace(&format!("unborn-{round}"));
        let unborn = tokio::spawn(async move { refused(unborn.put("k", "v").await) });

        // The first write may have entered the leader's log. It is answered in time, whatever becomes of
        // it. (With an id where it is forwarded: without one a store may not go on looking for a leader.)
        let id = if round == "leader" {
            ""
        } else {
            "id-of-the-first"
        };
        let first = refused(store.put_as(put(&format!("{round}/first"), id)).await);
        let answered = killed.elapsed();
        println!(
            "{round} alone: NO_QUORUM {answered:?} after the others were killed, outcome {}",
            first.meta("outcome")
        );
        assert!(answered < in_time, "NO_QUORUM took {answered:?}");
        assert_no_quorum(&first, &["unknown", "not_applied"]);
        let (refusal, read_answered) = read.await.unwrap();
        println!("{round} alone: a read under way NO_QUORUM {read_answered:?}");
        assert_no_quorum(&refusal, &[""]);
        // By itself it would have waited for its own time-out, longer than this by far.
        assert!(
            read_answered < answered + quorum_timeout / 2,
            "the read was told {read_answered:?} after the others were killed, the write {answered:?}"
        );
        let unborn = unborn.await.unwrap();
        unborn
            .is(Code::Unavailable, "NO_QUORUM")
            .outcome("not_applied");
        let says = |part: &str| unborn.message.contains(part);
        assert!(
            says("had to be created first") && says("the write was not applied"),
            "{unborn:?}"
        );
        assert!(!says("whether"), "{unborn:?}");

        let may_be_repeated = !id.is_empty() || first.meta("outcome") == "not_applied";
        assert_eq!(first.retry_after.is_some(), may_be_repeated, "{first:?}");

        // From now on refused at once, and certainly not applied.
        for number in 0..20 {
            let key = format!("{round}/refused/{number}");
            let asked = Instant::now();
            let refusal = refused(store.put_as(put(&key, "")).await);
            assert_no_quorum(&refusal, &["not_applied"]);
            assert!(refusal.retry_after.is_some(), "{refusal:?}");
            assert!(
                asked.elapsed() < quorum_timeout,
                "a lost quorum is refused at once: {:?}",
                asked.elapsed()
            );
            refused_keys.push(key);
        }
        let refusal = refused(store.get(&acknowledged[0]).await);
        assert_no_quorum(&refusal, &[""]);

        // Stale reads go on, and their bound grows with the time that passes.
        let mut bounds = Vec::new();
        for _ in 0..3 {
            let got = store.get_stale(acknowledged.last().unwrap()).await.unwrap();
            assert!(got.found, "a write that this store has applied is there");
            bounds.push(got.receipt.unwrap().staleness_bound_ms);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        assert!(
            u128::from(bounds[0]) >= quorum_timeout.as_millis(),
            "{bounds:?}"
        );
        assert!(
            bounds.windows(2).all(|pair| pair[1] >= pair[0] + 250),
            "{bounds:?}"
        );
        let (entries, _) = store
            .scan(kv::ScanRequest {
                read: Some(crate::support::calls::stale()),
                limit: 5,
                ..Default::default()
            })
            .await
            .unwrap();
        assert_eq!(entries.len(), 5, "stale scans go on, too");

        for store in dead {
            cluster.launch(store);
        }
        cluster.wait_all_ready().await;
    }

    for reader in 0..3 {
        let store = Plain::on(&cluster, reader).await;
        for key in &acknowledged {
            assert!(
                store.get(key).await.unwrap().found,
                "{key} was acknowledged, and is lost at store {}",
                reader + 1
            );
        }
        for key in &refused_keys {
            assert!(
                !store.get(key).await.unwrap().found,
                "{key} was refused as not applied, and is there at store {}",
                reader + 1
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_killed_at_once_and_restarted() {
    let mut cluster = Cluster::start(3, &[]).await;
    let load = Load::start(
        &cluster,
        LoadOptions {
            timeout: Duration::from_secs(15),
            ..LoadOptions::default()
        },
    );
    let mut restarts = Vec::new();
    for _ in 0..2 {
        load.more(150).await;
        cluster.kill_all(&[0, 1, 2]);
        for store in 0..3 {
            cluster.launch(store);
        }
        restarts.push(Instant::now());
        cluster.wait_all_ready().await;
    }
    load.more(150).await;
    let loaded = load.stop().await;
    for restart in restarts {
        let outage = loaded.outage(restart);
        println!(
            "writes again {} ms after all were started again",
            outage.as_millis()
        );
        assert!(
            outage < Duration::from_secs(15),
            "no write for {outage:?} after all were started again"
        );
    }
    loaded.judge(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_killed_and_restarted_costs_no_write() {
    let mut cluster = Cluster::start(3, &SLOW_ELECTIONS).await;
    let leader = cluster.leader_of(DATA).await;
    let follower = cluster.other_than(&[leader]);
    let store = Plain::on(&cluster, leader).await;
    store.put("k", "before").await.unwrap();
    cluster.kill(follower);
    for number in 0..50 {
        store.put("k", &format!("without {number}")).await.unwrap();
    }
    assert_eq!(
        cluster.leader_among(DATA, &[leader]).await,
        leader,
        "a quorum is left, so nobody is elected"
    );
    cluster.restart(follower).await;
    let back = Plain::on(&cluster, follower).await;
    assert_eq!(
        text(&back.get("k").await.unwrap()).as_deref(),
        Some("without 49")
    );
    eventually(PATIENT, "the follower's own copy has it", async || {
        let got = text(
            &back
                .get_stale("k")
                .await
                .map_err(|status| status.to_string())?,
        );
        if got.as_deref() == Some("without 49") {
            Ok(())
        } else {
            Err(format!("{got:?}"))
        }
    })
    .await;
}
