//! Switches under load and under faults: whatever happens on the way, no acknowledged write is lost unless a
//! switch was told that it may be, and then it is set aside.

use super::modes::{
    EVENTUAL, NAME, STRONG, created_meshed, declared, is_stable, metric, mode_at, modes, request,
    settles, switch, update,
};
use crate::support::calls::{PATIENT, Plain, refused, text};
use crate::support::cluster::{Cluster, DATA, META};
use crate::support::wait::eventually;
use rdb_proto::kv;
use rdb_proto::raft::{
    Conflict, ListConflictsRequest, RestoreConflictRequest, State, UpdateNamespaceModeRequest,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Code;

/// Writers of keys that nobody else writes, each at one store.
struct Writers {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<(BTreeSet<String>, Duration)>,
}

impl Writers {
    fn start(cluster: &Cluster, stores: &[usize], each: usize) -> Writers {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for (writer, store) in stores.iter().cycle().take(stores.len() * each).enumerate() {
            let (stop, addr) = (stop.clone(), cluster.addr(*store));
            tasks.spawn(async move {
                let plain = Plain::at(addr).await.namespace(NAME);
                let plain = plain.timeout(Duration::from_secs(3));
                let (mut acknowledged, mut longest) = (BTreeSet::new(), Duration::ZERO);
                for number in 0.. {
                    let key = format!("{writer}/{number:06}");
                    let began = Instant::now();
                    // Under one request id, until it is acknowledged.
                    let write = kv::PutRequest {
                        key: key.clone().into(),
                        value: "v".into(),
                        request_id: uuid::Uuid::now_v7().as_bytes().to_vec().into(),
                        ..Default::default()
                    };
                    while plain.put_as(write.clone()).await.is_err() {
                        if stop.load(Ordering::Relaxed) {
                            return (acknowledged, longest);
                        }
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                    longest = longest.max(began.elapsed());
                    acknowledged.insert(key);
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
                (acknowledged, longest)
            });
        }
        Writers { stop, tasks }
    }

    /// All that was acknowledged, and the longest that a write took.
    async fn stop(mut self) -> (BTreeSet<String>, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        let (mut all, mut longest) = (BTreeSet::new(), Duration::ZERO);
        while let Some(ended) = self.tasks.join_next().await {
            let (acknowledged, took) = ended.unwrap();
            all.extend(acknowledged);
            longest = longest.max(took);
        }
        (all, longest)
    }
}

/// Waits until every store shows all of these keys.
async fn holds_all(cluster: &Cluster, acknowledged: &BTreeSet<String>) {
    for store in 0..cluster.len() {
        let plain = Plain::on(cluster, store).await.namespace(NAME);
        let what = format!("store {} shows all that was acknowledged", store + 1);
        eventually(PATIENT, &what, async || {
            let rows = plain.all("", kv::ReadOptions::default()).await;
            let rows = rows.map_err(|status| status.to_string())?;
            let found: BTreeSet<String> = rows
                .into_iter()
                .map(|(key, _)| String::from_utf8_lossy(&key).into_owned())
                .collect();
            let lost: Vec<_> = acknowledged.difference(&found).take(5).collect();
            if lost.is_empty() {
                Ok(())
            } else {
                Err(format!("not there, for example: {lost:?}"))
            }
        })
        .await;
    }
}

/// Strong to eventual and back, ten times, while all stores take writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_switches_there_and_back_under_load_lose_nothing() {
    let cluster = declared("strong", &[]).await;
    let writers = Writers::start(&cluster, &[0, 1, 2], 2);
    let (mut pauses, mut took) = (Vec::new(), Duration::ZERO);
    for round in 0..10 {
        let began = Instant::now();
        let there = switch(&cluster, round % 3, EVENTUAL).await;
        took = took.max(began.elapsed());
        assert_eq!(there.write_pause_us, 0);
        tokio::time::sleep(Duration::from_millis(100)).await;
        pauses.push(
            switch(&cluster, (round + 1) % 3, STRONG)
                .await
                .write_pause_us,
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (acknowledged, longest) = writers.stop().await;
    pauses.sort_unstable();
    println!(
        "{} writes; the longest took {longest:?}; to eventual within {took:?}; write pauses in us: {pauses:?}",
        acknowledged.len()
    );
    holds_all(&cluster, &acknowledged).await;
    let mode = mode_at(&cluster, 0).await.unwrap();
    assert!(is_stable(&mode, STRONG), "{mode:#?}");
}

/// The leader of the region is killed at some moment of a switch: it is done or undone, and nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_killed_at_any_moment_of_a_switch_loses_nothing() {
    let mut cluster = declared("eventual", &["--switch-timeout", "20s"]).await;
    let mut all = BTreeSet::new();
    for (round, after_ms) in [0, 5, 10, 20, 40, 80].into_iter().enumerate() {
        // To strong, every time: where a replica is asked, and all have to promise.
        switch(&cluster, 0, EVENTUAL).await;
        let leader = cluster.leader_of(DATA).await;
        let other = cluster.other_than(&[leader]);
        let plain = Plain::on(&cluster, leader).await.namespace(NAME);
        for number in 0..20 {
            let key = format!("{round}/{number}");
            plain.put(&key, "v").await.unwrap();
            all.insert(key);
        }
        let asked = UpdateNamespaceModeRequest {
            wait: false,
            ..request(STRONG)
        };
        let (_, ended) = update(&cluster, other, asked).await;
        ended.unwrap();
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        cluster.kill(leader);
        tokio::time::sleep(Duration::from_millis(300)).await;
        cluster.restart(leader).await;
        settles(&cluster, other, "it is strong", |mode| {
            is_stable(mode, STRONG)
        })
        .await;
        holds_all(&cluster, &all).await;
    }
}

/// Resolves as soon as a store has logged a line once more.
async fn logs_again(cluster: &Cluster, store: usize, line: &str, before: usize) {
    let give_up = Instant::now() + PATIENT;
    while cluster.log(store).matches(line).count() <= before {
        assert!(
            Instant::now() < give_up,
            "store {} never said: {line}",
            store + 1
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// What the driver of a region says when a seal has begun.
const BEING_SEALED: &str = "the namespace is being sealed";

/// Whoever drives a switch, in the meta region and in the data's, is killed as soon as it says that a step was taken:
/// the switch is done all the same, and nothing is lost. At least once that is between the begin of a seal and the seal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_killed_at_each_step_of_a_switch_loses_nothing() {
    let mut cluster = declared("strong", &["--switch-timeout", "30s"]).await;
    let mut all = BTreeSet::new();
    let there = [
        "a namespace switches its mode",
        "the namespace becomes eventual",
        "a switch of modes is done",
    ];
    let back = [
        "a namespace switches its mode",
        // While it waits for a store that sleeps.
        "",
        // As often as it takes to come before the seal is committed.
        BEING_SEALED,
        BEING_SEALED,
        BEING_SEALED,
        BEING_SEALED,
        BEING_SEALED,
        BEING_SEALED,
        BEING_SEALED,
        BEING_SEALED,
        "the namespace becomes strong",
        "a switch of modes is done",
    ];
    let mut between_begin_and_seal = false;
    let steps = there.map(|step| (EVENTUAL, step));
    let steps = steps.into_iter().chain(back.map(|step| (STRONG, step)));
    for (round, (target, step)) in steps.enumerate() {
        if step == BEING_SEALED && between_begin_and_seal {
            continue;
        }
        let from = if target == STRONG { EVENTUAL } else { STRONG };
        if !is_stable(&mode_at(&cluster, 0).await.unwrap(), from) {
            switch(&cluster, 0, from).await;
        }
        let coordinator = cluster.leader_of(META).await;
        cluster.move_leader(DATA, coordinator).await;
        let [asked, sleeps] = [1, 2].map(|next| (coordinator + next) % 3);
        let plain = Plain::on(&cluster, asked).await.namespace(NAME);
        for number in 0..20 {
            let key = format!("{round}/{number}");
            plain.put(&key, "v").await.unwrap();
            all.insert(key);
        }
        let before = cluster.log(coordinator).matches(step).count();
        if step.is_empty() {
            cluster.node(sleeps).signal("STOP").unwrap();
        }
        let request = UpdateNamespaceModeRequest {
            wait: false,
            ..request(target)
        };
        let (_, ended) = update(&cluster, asked, request).await;
        ended.unwrap();
        if step.is_empty() {
            let what = "the switch waits for the store that sleeps";
            settles(&cluster, asked, what, |mode| {
                mode.state == State::Switching as i32 && mode.target == target
            })
            .await;
        } else {
            logs_again(&cluster, coordinator, step, before).await;
        }
        cluster.kill(coordinator);
        if step.is_empty() {
            cluster.node(sleeps).signal("CONT").unwrap();
        }
        if step == BEING_SEALED {
            // Without the one that was killed no seal is committed: either it was, or a seal is under way.
            let what = "a seal is under way, or was committed";
            let mode = settles(&cluster, asked, what, |mode| {
                mode.state == State::Sealing as i32 || is_stable(mode, target)
            })
            .await;
            between_begin_and_seal |= mode.state == State::Sealing as i32;
        }
        cluster.restart(coordinator).await;
        let what = format!("the switch is done, though its coordinator was killed at: {step:?}");
        settles(&cluster, asked, &what, |mode| is_stable(mode, target)).await;
        holds_all(&cluster, &all).await;
    }
    assert!(
        between_begin_and_seal,
        "every seal was committed before its coordinator died"
    );
}

/// Ten switches while stores are killed with -9 and started again, one after the other, each at a moment of
/// its own: every switch is done in the end, and nothing that was acknowledged is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_switches_under_kill_9_lose_nothing() {
    let mut cluster = declared("strong", &["--switch-timeout", "30s"]).await;
    let writers = Writers::start(&cluster, &[0, 1, 2], 1);
    for round in 0..10_usize {
        let target = if round.is_multiple_of(2) {
            EVENTUAL
        } else {
            STRONG
        };
        let (victim, asked) = (round % 3, (round + 1) % 3);
        let request = UpdateNamespaceModeRequest {
            wait: false,
            ..request(target)
        };
        eventually(PATIENT, "the switch is taken", async || {
            let (_, ended) = update(&cluster, asked, request.clone()).await;
            ended.map_err(|status| status.to_string())
        })
        .await;
        // From the first of its steps to well behind the last one.
        tokio::time::sleep(Duration::from_millis([0, 3, 8, 15, 30][round / 2])).await;
        cluster.kill(victim);
        tokio::time::sleep(Duration::from_millis(400)).await;
        cluster.restart(victim).await;
        settles(&cluster, asked, "the switch is done", |mode| {
            is_stable(mode, target)
        })
        .await;
    }
    let (acknowledged, longest) = writers.stop().await;
    println!(
        "{} writes; the longest took {longest:?}",
        acknowledged.len()
    );
    assert!(acknowledged.len() > 100, "{}", acknowledged.len());
    holds_all(&cluster, &acknowledged).await;
}

async fn set_aside(cluster: &Cluster, store: usize) -> Result<Vec<Conflict>, String> {
    let request = ListConflictsRequest {
        namespace: NAME.to_owned(),
        ..Default::default()
    };
    let mut client = modes(cluster, store).await;
    let listing = client.list_conflicts(request).await;
    let mut listing = listing.map_err(|status| status.to_string())?.into_inner();
    let mut found = Vec::new();
    while let Some(row) = listing
        .message()
        .await
        .map_err(|status| status.to_string())?
    {
        if row.set_aside {
            found.push(row);
        }
    }
    Ok(found)
}

/// A store that a switch left behind comes back: what only it held is set aside, write by write, nothing of it
/// is in the namespace, and it can be restored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_late_writes_of_a_store_left_behind_are_set_aside_and_can_be_restored() {
    let cluster = declared_meshed("eventual", &[]).await;
    let [one, late] = [0, 2].map(|store| Plain::on(&cluster, store));
    let [one, late] = [one.await.namespace(NAME), late.await.namespace(NAME)];
    one.put("shared", "before").await.unwrap();
    eventually(PATIENT, "the third store has it", async || {
        let read = late
            .get("shared")
            .await
            .map_err(|status| status.to_string())?;
        text(&read).map(drop).ok_or_else(|| "not yet".to_owned())
    })
    .await;
    cluster.mesh().isolate(2);
    for number in 0..5 {
        late.put(&format!("late/{number}"), "of store 3")
            .await
            .unwrap();
    }
    late.put("shared", "late").await.unwrap();
    let asked = kv::PutRequest {
        key: "asked".into(),
        value: "with an id".into(),
        request_id: "a request of before".into(),
        ..Default::default()
    };
    late.put_as(asked.clone()).await.unwrap();
    let without = UpdateNamespaceModeRequest {
        accept_missing: vec![3],
        ..request(STRONG)
    };
    let (changes, ended) = update(&cluster, 0, without).await;
    ended.unwrap_or_else(|status| panic!("{status:?} after {changes:#?}"));
    one.put("shared", "after").await.unwrap();
    cluster.mesh().heal();

    let found = eventually(PATIENT, "its late writes are set aside", async || {
        let found = set_aside(&cluster, 0).await?;
        if found.len() == 7 {
            Ok(found)
        } else {
            Err(format!("{found:#?}"))
        }
    })
    .await;
    // The namespace is strong, and its log is watched all the same.
    eventually(PATIENT, "the metrics count them", async || {
        let line = format!("flaredb_conflicts_listed{{namespace=\"{NAME}\"}} 7");
        metric(&cluster, 0, &line).await
    })
    .await;
    let keys: Vec<_> = found.iter().map(|row| row.key.clone()).collect();
    assert!(keys.contains(&"late/0".into()) && keys.contains(&"shared".into()));
    eventually(
        PATIENT,
        "the third store serves what the others do",
        async || {
            let rows = late.all("", kv::ReadOptions::default()).await;
            let rows = rows.map_err(|status| status.to_string())?;
            match rows.as_slice() {
                [(key, value)] if key == "shared" && value == "after" => Ok(()),
                rows => Err(format!("{rows:?}")),
            }
        },
    )
    .await;
    // Its client repeats the request: what was set aside is not known any more, so it is a new write. Whoever
    // restores it on top is told.
    late.put_as(asked).await.unwrap();
    let id = found
        .iter()
        .find(|row| row.key == "asked")
        .unwrap()
        .id
        .clone();
    let of_the_repeated = RestoreConflictRequest {
        namespace: NAME.to_owned(),
        id,
        ..Default::default()
    };
    let restored = modes(&cluster, 0)
        .await
        .restore_conflict(of_the_repeated)
        .await;
    let restored = restored.unwrap().into_inner();
    assert_eq!(restored.restored, 1);
    let warned = |warning: &String| warning.contains("its request was sent again since");
    assert!(restored.warnings.iter().any(warned), "{restored:?}");
    let restore = RestoreConflictRequest {
        namespace: NAME.to_owned(),
        all: true,
        if_untouched: true,
        ..Default::default()
    };
    let restored = modes(&cluster, 1).await.restore_conflict(restore).await;
    let restored = restored.unwrap().into_inner();
    assert_eq!(
        (restored.restored, restored.skipped),
        (5, 1),
        "{restored:?}"
    );
    for number in 0..5 {
        let read = late.get(&format!("late/{number}")).await.unwrap();
        assert_eq!(text(&read).as_deref(), Some("of store 3"));
    }
    assert_eq!(
        text(&late.get("shared").await.unwrap()).as_deref(),
        Some("after")
    );
}

/// Regression: a write was set aside, and the namespace was eventual again. The key was written and deleted there, and
/// once all had seen that, nothing of it was left: `if_untouched` brought back what was deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_was_deleted_after_a_write_was_set_aside_is_not_brought_back_unasked() {
    let cluster = declared_meshed("eventual", &[]).await;
    let [one, late] = [0, 2].map(|store| Plain::on(&cluster, store));
    let [one, late] = [one.await.namespace(NAME), late.await.namespace(NAME)];
    cluster.mesh().isolate(2);
    late.put("k", "late").await.unwrap();
    let without = UpdateNamespaceModeRequest {
        accept_missing: vec![3],
        ..request(STRONG)
    };
    let (changes, ended) = update(&cluster, 0, without).await;
    ended.unwrap_or_else(|status| panic!("{status:?} after {changes:#?}"));
    cluster.mesh().heal();
    eventually(
        PATIENT,
        "its write is set aside",
        async || match set_aside(&cluster, 0).await?.len() {
            1 => Ok(()),
            found => Err(format!("{found} are")),
        },
    )
    .await;
    switch(&cluster, 1, EVENTUAL).await;
    one.put("k", "new").await.unwrap();
    assert!(one.delete("k", "").await.unwrap().existed);
    // Until all have seen the deletion its tombstone says it; afterwards the floor does. Either way, and in between.
    for _ in 0..20 {
        let restore = RestoreConflictRequest {
            namespace: NAME.to_owned(),
            all: true,
            if_untouched: true,
            ..Default::default()
        };
        let restored = modes(&cluster, 0).await.restore_conflict(restore).await;
        let restored = restored.unwrap().into_inner();
        assert_eq!(
            (restored.restored, restored.skipped),
            (0, 1),
            "{restored:?}"
        );
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    assert!(!one.get("k").await.unwrap().found);
}

/// A store sleeps through a switch that was allowed to leave it behind. It is listed by what it said last; to whoever
/// knows of nothing newer it serves on in the time that has ended; and when it is back nothing of that time is in the
/// namespace, neither a write that it took alone nor a request that lay at its door while it slept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_slept_through_a_switch_sneaks_nothing_in() {
    let cluster = created_meshed(&["--mismatch-after", "1s"]).await;
    let leader = cluster.leader_of(META).await;
    let away = cluster.other_than(&[leader]);
    let [there, here] = [leader, away].map(|store| Plain::on(&cluster, store));
    let [there, here] = [there.await.namespace(NAME), here.await.namespace(NAME)];
    let old = there.put("shared", "before").await.unwrap();
    let old = old.receipt.unwrap().epoch;

    cluster.mesh().isolate(away);
    let without = UpdateNamespaceModeRequest {
        accept_missing: vec![away as u32 + 1],
        ..request(STRONG)
    };
    let (changes, ended) = update(&cluster, leader, without).await;
    ended.unwrap_or_else(|status| panic!("{status:?} after {changes:#?}"));
    // A client that still is in the old time is served in the new one, and told so.
    let from_old = kv::PutRequest {
        key: "from the old time".into(),
        value: "v".into(),
        request_id: "seen the old time".into(),
        seen_epoch: old,
        ..Default::default()
    };
    let new = there.put_as(from_old.clone()).await.unwrap();
    let new = new.receipt.unwrap().epoch;
    assert!(new > old, "{new} and {old}");
    // One that counts on the old time is not.
    let only_old = kv::PutRequest {
        key: "only in the old time".into(),
        request_id: "only in the old time".into(),
        only_epoch: old,
        ..from_old.clone()
    };
    let refusal = refused(there.put_as(only_old).await);
    refusal
        .is(Code::Unavailable, "MODE_CHANGED")
        .outcome("not_applied");

    let says = format!("store {} does not answer, and by its last answer", away + 1);
    let odd = settles(
        &cluster,
        leader,
        "it is listed by its last answer",
        |mode| mode.mismatch.contains(&says),
    )
    .await;
    let listed = &odd.stores[away];
    // It was last asked up to a second before the cut, when it may not have known of the namespace yet.
    let last = (listed.applied, listed.epoch);
    assert!([(EVENTUAL, old), (0, 0)].contains(&last), "{odd:#?}");
    assert!(
        !listed.reachable && listed.mismatched_since_ms > 0,
        "{odd:#?}"
    );
    assert!(is_stable(&odd, STRONG), "{odd:#?}");

    // Who has seen the new time goes to another store; who has not is taken for what he is.
    let seen_new = kv::PutRequest {
        key: "from the new time".into(),
        request_id: "seen the new time".into(),
        seen_epoch: new,
        ..from_old.clone()
    };
    let refusal = refused(here.put_as(seen_new).await);
    refusal
        .is(Code::Unavailable, "STALE_REPLICA")
        .outcome("not_applied");
    let read = kv::ReadOptions {
        seen_epoch: new,
        ..Default::default()
    };
    refused(here.get_as("shared", read).await).is(Code::Unavailable, "STALE_REPLICA");
    let late = here.put("late", "v").await.unwrap().receipt.unwrap();
    assert_eq!((late.mode, late.epoch), (EVENTUAL, old));

    // It sleeps, its links are mended, and requests wait for it to wake.
    cluster.node(away).signal("STOP").unwrap();
    cluster.mesh().heal();
    let mut asleep = JoinSet::new();
    for number in 0..8 {
        let (here, key) = (here.clone(), format!("asleep/{number}"));
        asleep.spawn(async move {
            let seen_old = kv::PutRequest {
                key: key.clone().into(),
                value: "v".into(),
                request_id: key.clone().into(),
                seen_epoch: old,
                ..Default::default()
            };
            (key, here.put_as(seen_old).await)
        });
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    cluster.node(away).signal("CONT").unwrap();
    let (mut in_old, mut in_new) = (BTreeSet::from(["late".to_owned()]), BTreeSet::new());
    while let Some(ended) = asleep.join_next().await {
        let (key, answer) = ended.unwrap();
        match answer.map(|put| put.receipt.unwrap()) {
            Ok(receipt) if receipt.epoch == old => in_old.insert(key),
            Ok(receipt) => {
                assert_eq!((receipt.mode, receipt.epoch), (STRONG, new));
                in_new.insert(key)
            }
            // Not acknowledged: it may be anywhere, or nowhere.
            Err(_) => false,
        };
    }
    println!("taken in the old time: {in_old:?}; in the new one: {in_new:?}");
    eventually(PATIENT, "what it took alone is set aside", async || {
        let found = set_aside(&cluster, leader).await?;
        let found = found
            .iter()
            .map(|row| String::from_utf8_lossy(&row.key).into_owned());
        let found: BTreeSet<String> = found.collect();
        if in_old.is_subset(&found) && in_new.is_disjoint(&found) {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    })
    .await;
    settles(&cluster, leader, "it has followed", |mode| {
        !mode.mismatched && mode.stores.iter().all(|store| store.epoch == new)
    })
    .await;
    in_new.extend(["shared".to_owned(), "from the old time".to_owned()]);
    holds_all(&cluster, &in_new).await;
    for store in 0..3 {
        let plain = Plain::on(&cluster, store).await.namespace(NAME);
        for key in &in_old {
            assert!(!plain.get(key).await.unwrap().found, "{key} at {store}");
        }
    }
}

pub(super) async fn declared_meshed(mode: &str, args: &[&str]) -> Cluster {
    let declares = format!("{NAME}={mode}");
    let args = [&["--namespace-mode", &declares], args].concat();
    let cluster = Cluster::start_meshed(3, &args).await;
    settles(&cluster, 0, "all stores know the namespace", |mode| {
        mode.stores.iter().all(|store| store.applied != 0)
    })
    .await;
    cluster
}
