//! Stores that are cut off, or stand still, while the others go on.

use crate::replicas::assert_replicas_agree;
use crate::support::calls::{PATIENT, Plain, Refusal, text};
use crate::support::cluster::{Cluster, DATA, SLOW_ELECTIONS};
use crate::support::load::{Load, LoadOptions};
use crate::support::wait::eventually;
use rdb_check::{Op, Outcome, Recorder, check_linearizable};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Code;

/// A minority answers NO_QUORUM within this.
const MINORITY_KNOWS: Duration = Duration::from_secs(5);

/// And the majority writes again within this; 3 s is the aim, the rest is for a busy machine.
const MAJORITY_WRITES: Duration = Duration::from_secs(8);

/// Reads a register at a store and records what came of it.
async fn recorded_read(
    recorder: Recorder,
    process: u64,
    store: Plain,
) -> Result<Option<u64>, Refusal> {
    let token = recorder.invoke(process, 0, Op::Read);
    match store.get("k").await {
        Ok(answer) => {
            let value = text(&answer).map(|value| value.parse().unwrap());
            recorder.complete(token, Outcome::Read(value));
            Ok(value)
        }
        Err(status) => {
            recorder.complete(token, Outcome::NotApplied);
            Err(Refusal::of(&status))
        }
    }
}

/// Writes the register until a store of the majority takes it.
async fn recorded_write(recorder: &Recorder, process: u64, stores: &[Plain], value: u64) {
    let started = Instant::now();
    for turn in 0.. {
        let token = recorder.invoke(process, 0, Op::Write(value));
        match stores[turn % stores.len()]
            .timeout(Duration::from_secs(2))
            .put("k", &value.to_string())
            .await
        {
            Ok(_) => return recorder.complete(token, Outcome::Done),
            Err(status) => {
                let refusal = Refusal::of(&status);
                if refusal.meta("outcome") == "not_applied" {
                    recorder.complete(token, Outcome::NotApplied);
                }
                assert!(
                    started.elapsed() < PATIENT,
                    "the majority takes no write: {refusal:?}"
                );
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

fn judge(recorder: Recorder) {
    let calls = recorder.calls();
    let verdict = check_linearizable(&calls);
    println!("{} calls: {verdict}", calls.len());
    assert!(verdict.is_linearizable(), "{verdict}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn minority_reads_are_never_stale() {
    let cluster = Cluster::start_meshed(3, &[]).await;
    let recorder = Recorder::new();

    // Once the minority is the leader that does not know it yet, once a follower.
    for (round, minority_leads) in [(1, true), (2, false)] {
        let leader = cluster.leader_of(DATA).await;
        let minority = if minority_leads {
            leader
        } else {
            cluster.other_than(&[leader])
        };
        let rest: Vec<usize> = (0..3).filter(|store| *store != minority).collect();
        let majority = [
            Plain::on(&cluster, rest[0]).await,
            Plain::on(&cluster, rest[1]).await,
        ];
        let store = Plain::on(&cluster, minority).await;
        let old = round * 1000;
        recorded_write(&recorder, 1, &majority, old).await;
        assert_eq!(
            recorded_read(recorder.clone(), 2, store.clone())
                .await
                .unwrap(),
            Some(old)
        );

        cluster.mesh().isolate(minority);
        let isolated = Instant::now();
        // Readers that never stop asking the minority, from before it can know.
        let mut readers = JoinSet::new();
        for process in 10..14 {
            let (recorder, store) = (recorder.clone(), store.clone());
            readers.spawn(async move {
                let (mut refusals, mut knew_after) = (0u32, None);
                while isolated.elapsed() < Duration::from_secs(5) {
                    match recorded_read(recorder.clone(), process, store.clone()).await {
                        // Before the cut took effect, or wrong: the checker knows.
                        Ok(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                        Err(refusal) => {
                            refusal.is(Code::Unavailable, "NO_QUORUM");
                            refusals += 1;
                            knew_after.get_or_insert(isolated.elapsed());
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    }
                }
                (refusals, knew_after)
            });
        }
        // The majority goes on.
        recorded_write(&recorder, 1, &majority, old + 1).await;
        let written = Instant::now();
        println!(
            "round {round}: the majority writes again {:?} after the cut",
            isolated.elapsed()
        );
        assert!(
            isolated.elapsed() < MAJORITY_WRITES,
            "the majority took {:?}",
            isolated.elapsed()
        );
        assert_ne!(cluster.leader_among(DATA, &rest).await, minority);

        // Until the minority knows, and longer: a stale read is old, and says so.
        let mut old_ones = 0;
        while isolated.elapsed() < Duration::from_secs(4) {
            let asked = Instant::now();
            let got = store.get_stale("k").await.unwrap();
            let bound = Duration::from_millis(got.receipt.as_ref().unwrap().staleness_bound_ms);
            if text(&got) != Some((old + 1).to_string()) {
                old_ones += 1;
                assert!(
                    bound >= asked - written,
                    "the value was replaced {:?} ago, and the read claims to be {bound:?} old at most",
                    asked - written
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(
            old_ones > 10,
            "a store that was cut off cannot have heard of the write"
        );

        for (refusals, knew_after) in readers.join_all().await {
            let knew_after = knew_after.expect("the minority must refuse");
            println!(
                "round {round}: NO_QUORUM at the minority after {knew_after:?}, {refusals} times"
            );
            assert!(
                knew_after < MINORITY_KNOWS,
                "the minority took {knew_after:?}"
            );
        }
        let refusal = store
            .timeout(Duration::from_secs(3))
            .put("k", "0")
            .await
            .map_err(|status| Refusal::of(&status))
            .unwrap_err();
        refusal
            .is(Code::Unavailable, "NO_QUORUM")
            .outcome("not_applied");

        cluster.mesh().heal();
        let healed = Instant::now();
        let value = eventually(PATIENT, "the minority reads again", async || {
            recorded_read(recorder.clone(), 3, store.clone())
                .await
                .map_err(|refusal| format!("{refusal:?}"))
        })
        .await;
        println!(
            "round {round}: the minority reads again {:?} after the heal",
            healed.elapsed()
        );
        assert_eq!(value, Some(old + 1));
    }
    judge(recorder);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paused_leader_serves_nothing_stale_when_it_wakes() {
    let cluster = Cluster::start(3, &[]).await;
    let recorder = Recorder::new();
    for round in 1..=2 {
        let leader = cluster.leader_of(DATA).await;
        let rest: Vec<usize> = (0..3).filter(|store| *store != leader).collect();
        let majority = [
            Plain::on(&cluster, rest[0]).await,
            Plain::on(&cluster, rest[1]).await,
        ];
        let frozen = Plain::on(&cluster, leader).await;
        let old = round * 1000;
        recorded_write(&recorder, 1, &majority, old).await;
        assert_eq!(
            recorded_read(recorder.clone(), 2, frozen.clone())
                .await
                .unwrap(),
            Some(old)
        );

        cluster.pause(leader);
        let paused = Instant::now();
        recorded_write(&recorder, 1, &majority, old + 1).await;
        println!(
            "round {round}: writes again {:?} after the leader stood still",
            paused.elapsed()
        );
        // These reach the frozen store before it wakes: it finds them in its sockets, and believes for
        // a moment that it still leads.
        let mut readers = JoinSet::new();
        for process in 10..40 {
            readers.spawn(recorded_read(recorder.clone(), process, frozen.clone()));
        }
        tokio::time::sleep(Duration::from_secs(3).saturating_sub(paused.elapsed())).await;
        cluster.resume(leader);
        // And these find it just awake.
        for process in 40..70 {
            readers.spawn(recorded_read(recorder.clone(), process, frozen.clone()));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let answers = readers.join_all().await;
        let served = answers.iter().filter(|answer| answer.is_ok()).count();
        println!(
            "round {round}: {served} of {} reads served by the store that woke, {} refused",
            answers.len(),
            answers.len() - served
        );
        assert!(
            answers
                .iter()
                .flatten()
                .all(|value| *value == Some(old + 1)),
            "every read came after the write: {answers:?}"
        );
        for refusal in answers.iter().filter_map(|answer| answer.as_ref().err()) {
            assert_eq!(refusal.code, Code::Unavailable, "{refusal:?}");
        }
        eventually(PATIENT, "the store that woke reads again", async || {
            let read = recorded_read(recorder.clone(), 3, frozen.clone()).await;
            read.map_err(|refusal| format!("{refusal:?}"))
        })
        .await;
    }
    judge(recorder);
}

/// The leader is cut off, made mute, frozen, and a follower cut off, under load; each time the rest
/// goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_cut_off_muted_and_frozen_under_load_lose_nothing() {
    let cluster = Cluster::start_meshed(3, &[]).await;
    let load = Load::start(&cluster, LoadOptions::default());
    let mut faults = Vec::new();
    for fault in [
        "leader cut off",
        "leader mute",
        "leader frozen",
        "follower cut off",
    ] {
        load.more(60).await;
        let leader = cluster.leader_of(DATA).await;
        faults.push((fault, Instant::now()));
        match fault {
            "leader cut off" => cluster.mesh().isolate(leader),
            "leader mute" => cluster.mesh().mute(leader),
            "leader frozen" => cluster.pause(leader),
            _ => cluster.mesh().isolate(cluster.other_than(&[leader])),
        }
        tokio::time::sleep(Duration::from_millis(2600)).await;
        cluster.mesh().heal();
        cluster.resume(leader);
    }
    load.more(60).await;
    let loaded = load.stop().await;
    for (fault, at) in faults {
        let outage = loaded.outage(at);
        println!("{fault}: a write was taken again after {outage:?}");
        assert!(outage < MAJORITY_WRITES, "{fault}: no write for {outage:?}");
    }
    println!(
        "longest time without an acknowledged write: {:?}",
        loaded.longest_silence()
    );
    loaded.judge(&cluster).await;
    assert_replicas_agree(&cluster, DATA).await;
}

/// A leader and a follower do not hear each other, and both hear the third: nobody is elected for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_between_two_stores_leaves_a_stable_leader() {
    let cluster = Cluster::start_meshed(3, &SLOW_ELECTIONS).await;
    let leader = cluster.leader_of(DATA).await;
    let other = cluster.other_than(&[leader]);
    let bridge = cluster.other_than(&[leader, other]);
    let term = cluster.report(leader, DATA).await.unwrap().term;
    cluster.mesh().cut(leader, other);
    let cut = Instant::now();

    // Leader and bridge go on; who does not hear the leader says so, and deposes nobody.
    let serving = [
        Plain::on(&cluster, leader).await,
        Plain::on(&cluster, bridge).await,
    ];
    let deaf = Plain::on(&cluster, other).await;
    let refusal = eventually(
        MINORITY_KNOWS,
        "the store that does not hear the leader refuses",
        async || {
            for store in &serving {
                store
                    .timeout(Duration::from_secs(2))
                    .put("k", "x")
                    .await
                    .map_err(|status| format!("{:?}", Refusal::of(&status)))?;
            }
            match deaf.get("k").await {
                Ok(_) => Err("it serves reads".to_owned()),
                Err(status) => Ok(Refusal::of(&status)),
            }
        },
    )
    .await;
    refusal.is(Code::Unavailable, "NO_QUORUM");
    while cut.elapsed() < Duration::from_secs(5) {
        for store in &serving {
            store
                .timeout(Duration::from_secs(2))
                .put("k", "y")
                .await
                .unwrap();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let report = cluster.report(leader, DATA).await.unwrap();
    assert_eq!(
        (report.leader as usize, report.term),
        (leader + 1, term),
        "the leader was deposed"
    );

    cluster.mesh().heal();
    let value = eventually(PATIENT, "it serves again", async || {
        deaf.get("k").await.map_err(|status| status.to_string())
    })
    .await;
    assert_eq!(text(&value).as_deref(), Some("y"));
    assert_eq!(
        cluster.report(leader, DATA).await.unwrap().term,
        term,
        "coming back deposes nobody"
    );
}
