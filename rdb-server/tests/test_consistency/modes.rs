//! Modes: asked for, voted for by configuration, planned, cancelled, given up; and who disagrees with the
//! cluster about them.

use crate::support::calls::{PATIENT, Plain, Refusal, channel, text};
use crate::support::cluster::Cluster;
use crate::support::http;
use crate::support::wait::eventually;
use rdb_proto::admin::ReloadRequest;
use rdb_proto::admin::admin_client::AdminClient;
use rdb_proto::raft::raft_service_client::RaftServiceClient;
use rdb_proto::raft::{
    CreateNamespaceRequest, GetModeRequest, ListNamespaceModesRequest, ModeChange, NamespaceMode,
    State, StoreMode, UpdateNamespaceModeRequest,
};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Status};

pub(super) const NAME: &str = "logs";
pub(super) const STRONG: i32 = 1;
pub(super) const EVENTUAL: i32 = 2;

/// Three stores, each with a file of its own that declares `logs` in this mode.
pub(super) async fn declared(mode: &str, args: &[&str]) -> Cluster {
    let mut cluster = Cluster::prepare(3, args);
    for store in 0..3 {
        declare(&cluster, store, mode);
        let file = file(&cluster, store).display().to_string();
        cluster.node_mut(store).set_flag("--config", &file);
        cluster.launch(store);
    }
    cluster.wait_all_ready().await;
    for store in 0..3 {
        eventually(PATIENT, "every store knows the namespace", async || {
            let mode = mode_at(&cluster, store).await?;
            let known = mode.stores.iter().filter(|store| store.applied != 0);
            if known.count() == 3 {
                Ok(())
            } else {
                Err(format!("{mode:?}"))
            }
        })
        .await;
    }
    cluster
}

/// Three stores on a mesh, none of which declares `logs`; it was created eventual.
pub(super) async fn created_meshed(args: &[&str]) -> Cluster {
    let cluster = Cluster::start_meshed(3, args).await;
    let create = CreateNamespaceRequest {
        name: NAME.to_owned(),
        mode: EVENTUAL,
        ..CreateNamespaceRequest::default()
    };
    let created = modes(&cluster, 0).await.create_namespace(create).await;
    created.unwrap();
    settles(&cluster, 0, "all stores know the namespace", |mode| {
        mode.stores.iter().all(|store| store.applied == EVENTUAL)
    })
    .await;
    cluster
}

fn file(cluster: &Cluster, store: usize) -> PathBuf {
    cluster.dir().join(format!("store-{}.toml", store + 1))
}

fn declare(cluster: &Cluster, store: usize, mode: &str) {
    let declared = format!("[namespaces.{NAME}]\nmode = \"{mode}\"\n");
    fs::write(file(cluster, store), declared).unwrap();
}

fn hang_up(cluster: &Cluster, store: usize) {
    cluster.node(store).signal("HUP").unwrap();
}

pub(super) async fn modes(cluster: &Cluster, store: usize) -> RaftServiceClient<Channel> {
    RaftServiceClient::new(channel(cluster.addr(store)).await)
}

pub(super) async fn mode_at(cluster: &Cluster, store: usize) -> Result<NamespaceMode, String> {
    let namespace = NAME.to_owned();
    let asked = modes(cluster, store)
        .await
        .get_mode(GetModeRequest { namespace })
        .await;
    asked
        .map(tonic::Response::into_inner)
        .map_err(|status| status.to_string())
}

/// Waits until a store says that the namespace is so, and lists it so.
pub(super) async fn settles(
    cluster: &Cluster,
    store: usize,
    what: &str,
    is_so: impl Fn(&NamespaceMode) -> bool,
) -> NamespaceMode {
    eventually(PATIENT, what, async || {
        let mode = mode_at(cluster, store).await?;
        if is_so(&mode) {
            Ok(mode)
        } else {
            Err(format!("{mode:#?}"))
        }
    })
    .await
}

pub(super) fn is_stable(mode: &NamespaceMode, in_force: i32) -> bool {
    mode.state == State::Stable as i32 && mode.mode == in_force && mode.target == in_force
}

fn of_store(mode: &NamespaceMode, store: usize) -> &StoreMode {
    let mut stores = mode.stores.iter();
    stores
        .find(|of| of.store_id == store as u32 + 1)
        .expect("it is listed")
}

pub(super) fn request(mode: i32) -> UpdateNamespaceModeRequest {
    UpdateNamespaceModeRequest {
        namespace: NAME.to_owned(),
        mode,
        wait: true,
        ..Default::default()
    }
}

/// What came, and how it ended.
pub(super) async fn update(
    cluster: &Cluster,
    store: usize,
    request: UpdateNamespaceModeRequest,
) -> (Vec<ModeChange>, Result<(), Status>) {
    let mut changes = Vec::new();
    let mut client = modes(cluster, store).await;
    let mut stream = match client.update_namespace_mode(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return (changes, Err(status)),
    };
    loop {
        match stream.message().await {
            Ok(Some(change)) => changes.push(change),
            Ok(None) => return (changes, Ok(())),
            Err(status) => return (changes, Err(status)),
        }
    }
}

/// Switches and waits: the last word.
pub(super) async fn switch(cluster: &Cluster, store: usize, mode: i32) -> ModeChange {
    let (changes, ended) = update(cluster, store, request(mode)).await;
    ended.unwrap_or_else(|status| panic!("{status:?} after {changes:#?}"));
    let last = changes.last().expect("there is a last word").clone();
    assert_eq!(last.step, "done", "{changes:#?}");
    assert_eq!(last.regions_done, last.regions_total);
    last
}

pub(super) async fn metric(cluster: &Cluster, store: usize, line: &str) -> Result<(), String> {
    let page = http::get(cluster.http_addr(store), "/metrics").await?.body;
    if page.lines().any(|found| found == line) {
        Ok(())
    } else {
        let of_modes = page.lines().filter(|line| line.contains("mode"));
        Err(format!("no {line} in {:#?}", of_modes.collect::<Vec<_>>()))
    }
}

/// T016, T018: which store declares what, since when, in the listing, the log and the metrics of that store
/// and of the one that leads; and it goes away with the file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mismatch_is_seen_named_and_gone() {
    let cluster = declared("strong", &[]).await;
    let calm = settles(&cluster, 0, "all agree", |mode| !mode.mismatched).await;
    assert!(calm.mismatch.is_empty());
    declare(&cluster, 1, "eventual");
    hang_up(&cluster, 1);
    let odd = settles(&cluster, 2, "the vote is counted", |mode| {
        mode.mismatch.contains("vote for")
    })
    .await;
    assert!(is_stable(&odd, STRONG), "{odd:#?}");
    let says = |part: &str| odd.mismatch.contains(part);
    assert!(says("store 2 declares eventual"), "{}", odd.mismatch);
    assert!(says("1 of 3 stores"), "{}", odd.mismatch);
    assert!(
        says("flaredb ns set-mode logs eventual"),
        "{}",
        odd.mismatch
    );
    let stores: Vec<_> = odd
        .stores
        .iter()
        .map(|of| (of.declared, of.applied))
        .collect();
    assert_eq!(
        stores,
        [(STRONG, STRONG), (EVENTUAL, STRONG), (STRONG, STRONG)]
    );
    assert!(of_store(&odd, 1).mismatched_since_ms > 1_700_000_000_000);
    assert_eq!(of_store(&odd, 0).mismatched_since_ms, 0);
    let listed = modes(&cluster, 0)
        .await
        .list_namespace_modes(ListNamespaceModesRequest {})
        .await
        .unwrap()
        .into_inner();
    let listed: Vec<_> = listed
        .namespaces
        .iter()
        .map(|mode| (mode.namespace.as_str(), mode.mismatched))
        .collect();
    assert_eq!(listed, [("default", false), (NAME, true)]);

    let line = |value| format!("flaredb_namespace_mode_mismatch{{namespace=\"{NAME}\"}} {value}");
    let odd_in_log = "a store disagrees with the cluster about a namespace's mode";
    eventually(PATIENT, "its metrics say it", async || {
        metric(&cluster, 1, &line(1)).await
    })
    .await;
    assert_eq!(cluster.log(1).matches(odd_in_log).count(), 1);
    let leader = cluster.leader_of(crate::support::cluster::META).await;
    eventually(PATIENT, "those of the leader say it", async || {
        metric(&cluster, leader, &line(1)).await
    })
    .await;

    declare(&cluster, 1, "strong");
    hang_up(&cluster, 1);
    settles(&cluster, 2, "all agree again", |mode| !mode.mismatched).await;
    for store in [1, leader] {
        eventually(PATIENT, "the metrics say that, too", async || {
            metric(&cluster, store, &line(0)).await
        })
        .await;
    }
    let again = "the store agrees with the cluster about the namespace's mode again";
    assert!(cluster.log(1).contains(again), "{}", cluster.log(1));
    // The vote is taken back: two others are not all.
    for store in [0, 2] {
        declare(&cluster, store, "eventual");
        hang_up(&cluster, store);
    }
    let two = settles(&cluster, 1, "both votes are counted", |mode| {
        mode.mismatch.contains("2 of 3 stores vote for eventual")
    })
    .await;
    assert!(is_stable(&two, STRONG), "{two:#?}");
}

/// T015, T017: every file is edited, one after the other, and the last store's word starts the switch: by
/// SIGHUP, by Reload and by a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_change_of_configuration_switches_the_namespace() {
    let mut cluster = declared("strong", &[]).await;
    let store = Plain::on(&cluster, 0).await.namespace(NAME);
    store.put("k", "before").await.unwrap();
    for store in 0..3 {
        declare(&cluster, store, "eventual");
    }
    hang_up(&cluster, 0);
    let mut admin = AdminClient::new(channel(cluster.addr(1)).await);
    let reloaded = admin.reload(ReloadRequest {}).await.unwrap().into_inner();
    assert_eq!(reloaded.store_id, 2);
    assert_eq!(reloaded.changed.len(), 1, "{reloaded:?}");
    assert!(
        reloaded.changed[0].contains("namespaces.logs.mode"),
        "{reloaded:?}"
    );
    let voted = settles(&cluster, 2, "two have voted", |mode| {
        mode.mismatch.contains("2 of 3 stores")
    })
    .await;
    assert!(is_stable(&voted, STRONG), "{voted:#?}");
    // Reading the same file again is no second vote.
    hang_up(&cluster, 0);
    cluster.stop(2).await;
    cluster.restart(2).await;
    for store in 0..3 {
        let mode = settles(&cluster, store, "it is eventual, and all agree", |mode| {
            is_stable(mode, EVENTUAL) && !mode.mismatched
        })
        .await;
        assert!(
            mode.stores.iter().all(|of| of.applied == EVENTUAL),
            "{mode:#?}"
        );
        let plain = Plain::on(&cluster, store).await.namespace(NAME);
        assert_eq!(
            text(&plain.get("k").await.unwrap()).as_deref(),
            Some("before")
        );
        plain.put(&format!("k{store}"), "after").await.unwrap();
    }
}

/// A namespace of two regions goes there and back, as one, watched from any store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_of_two_regions_switches_as_one() {
    let cluster = declared("strong", &["--bootstrap-split", "2/m"]).await;
    let plain = Plain::on(&cluster, 0).await.namespace(NAME);
    for key in ["a", "z"] {
        plain.put(key, "1").await.unwrap();
    }
    let before = mode_at(&cluster, 0).await.unwrap().epoch;
    let there = switch(&cluster, 1, EVENTUAL).await;
    assert_eq!((there.mode, there.regions_total), (EVENTUAL, 2));
    assert_eq!((there.epoch, there.write_pause_us), (before + 1, 0));
    // Asked for what is there already, it is done at once.
    assert_eq!(switch(&cluster, 2, EVENTUAL).await.epoch, there.epoch);
    let mode = mode_at(&cluster, 0).await.unwrap();
    assert!(is_stable(&mode, EVENTUAL), "{mode:#?}");
    // The files disagree now, and are told so; that is no vote.
    assert!(
        mode.mismatch.contains("store 1 declares strong"),
        "{mode:#?}"
    );
    assert!(!mode.mismatch.contains("vote for"), "{mode:#?}");
    for key in ["a", "z"] {
        plain.put(key, "2").await.unwrap();
    }
    let back = switch(&cluster, 2, STRONG).await;
    println!("write pause {} us", back.write_pause_us);
    assert!(
        back.epoch > there.epoch && back.write_pause_us > 0,
        "{back:?}"
    );
    for store in 0..3 {
        let plain = Plain::on(&cluster, store).await.namespace(NAME);
        for key in ["a", "z"] {
            let read = plain.get(key).await.unwrap();
            assert_eq!(text(&read).as_deref(), Some("2"));
        }
    }
    let version = plain.get("a").await.unwrap().version;
    assert!(plain.cas("a", version, "3", "").await.unwrap().success);
    let leader = cluster.leader_of(crate::support::cluster::META).await;
    let labels = format!("namespace=\"{NAME}\",from=\"eventual\",to=\"strong\",outcome=\"done\"");
    metric(
        &cluster,
        leader,
        &format!("flaredb_mode_switches_total{{{labels}}} 1"),
    )
    .await
    .unwrap();
}

/// A plan is told and nothing is done: not with all stores there, and not with one away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_changes_nothing() {
    let mut cluster = declared("eventual", &[]).await;
    let plain = Plain::on(&cluster, 0).await.namespace(NAME);
    plain.put("k", "v").await.unwrap();
    let dry = |accept_missing: &[u32]| UpdateNamespaceModeRequest {
        dry_run: true,
        accept_missing: accept_missing.to_vec(),
        ..request(STRONG)
    };
    let before = settles(&cluster, 0, "it is stable", |mode| {
        is_stable(mode, EVENTUAL)
    })
    .await;
    let tables_before = cluster.cluster_status(0).await.unwrap().namespaces;
    let (changes, ended) = update(&cluster, 1, dry(&[])).await;
    ended.unwrap();
    assert_eq!(changes.len(), 1, "{changes:#?}");
    let plan = changes[0].plan.clone().unwrap();
    assert!(plan.would_succeed && plan.obstacles.is_empty(), "{plan:?}");
    assert!(plan.estimated_write_pause_us > 0, "{plan:?}");
    assert!(
        plan.starts_working[0].contains("compare-and-swap"),
        "{plan:?}"
    );

    cluster.kill(2);
    let (changes, ended) = update(&cluster, 1, dry(&[])).await;
    ended.unwrap();
    let plan = changes[0].plan.clone().unwrap();
    assert_eq!(
        (plan.unreachable_stores, plan.would_succeed),
        (vec![3], false)
    );
    assert!(
        plan.obstacles[0].contains("store 3"),
        "{:?}",
        plan.obstacles
    );
    let (changes, ended) = update(&cluster, 1, dry(&[3])).await;
    ended.unwrap();
    assert!(
        changes[0].plan.clone().unwrap().would_succeed,
        "{changes:?}"
    );
    let (_, ended) = update(&cluster, 1, dry(&[2, 3])).await;
    Refusal::of(&ended.unwrap_err())
        .is(Code::InvalidArgument, "INVALID_ARGUMENT")
        .field("accept_missing");

    let after = mode_at(&cluster, 0).await.unwrap();
    assert_eq!(
        (after.epoch, after.mode, after.state),
        (before.epoch, before.mode, before.state)
    );
    let tables = cluster.cluster_status(0).await.unwrap().namespaces;
    assert_eq!(tables, tables_before);
    plain.put("k", "w").await.unwrap();
}

/// Of two opposite requests the later one is refused, until the first was cancelled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opposite_requests_are_refused_and_a_switch_can_be_cancelled() {
    let mut cluster = declared("eventual", &["--switch-timeout", "60s"]).await;
    let plain = Plain::on(&cluster, 0).await.namespace(NAME);
    plain.put("k", "v").await.unwrap();
    cluster.kill(2);
    let asked = UpdateNamespaceModeRequest {
        wait: false,
        ..request(STRONG)
    };
    let (changes, ended) = update(&cluster, 0, asked.clone()).await;
    ended.unwrap();
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].state, State::Switching as i32, "{changes:?}");
    // Waiting for store 3 it refuses nobody's writes.
    let switching = settles(&cluster, 1, "it is switching", |mode| mode.target == STRONG).await;
    assert_eq!(
        (switching.mode, switching.state),
        (EVENTUAL, State::Switching as i32)
    );
    plain.put("k", "w").await.unwrap();
    let (_, ended) = update(&cluster, 1, request(EVENTUAL)).await;
    let refusal = Refusal::of(&ended.unwrap_err());
    refusal.is(Code::Aborted, "SWITCH_IN_PROGRESS");
    assert_eq!(
        (refusal.meta("from"), refusal.meta("to")),
        ("eventual", "strong")
    );
    refusal.outcome("not_applied");
    let cancel = UpdateNamespaceModeRequest {
        cancel: true,
        ..request(0)
    };
    let (changes, ended) = update(&cluster, 1, cancel.clone()).await;
    ended.unwrap();
    assert_eq!(changes.last().unwrap().step, "done", "{changes:#?}");
    let mode = mode_at(&cluster, 0).await.unwrap();
    assert!(is_stable(&mode, EVENTUAL), "{mode:#?}");
    plain.put("k", "x").await.unwrap();
    // With nothing under way there is nothing to cancel.
    let (changes, ended) = update(&cluster, 0, cancel).await;
    ended.unwrap();
    assert_eq!(changes.last().unwrap().step, "done");
}

/// A store that is away holds a switch to strong up for switch_timeout, and is named; the namespace serves
/// on. Without that store it goes through.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_that_cannot_end_is_given_up_and_says_for_whom_it_waited() {
    let mut cluster = declared("eventual", &["--switch-timeout", "2s"]).await;
    let plain = Plain::on(&cluster, 0).await.namespace(NAME);
    plain.put("k", "v").await.unwrap();
    cluster.kill(2);
    let (changes, ended) = update(&cluster, 0, request(STRONG)).await;
    let refusal = Refusal::of(&ended.unwrap_err());
    refusal.is(Code::Aborted, "SWITCH_ABORTED");
    assert_eq!(refusal.meta("stores"), "3", "{refusal:?}");
    assert!(refusal.message.contains("--accept-missing"), "{refusal:?}");
    let last = changes.last().unwrap();
    assert!(last.step.starts_with("aborted: "), "{changes:#?}");
    let mode = settles(&cluster, 1, "it is undone", |mode| {
        is_stable(mode, EVENTUAL)
    })
    .await;
    assert_eq!(mode.mode, EVENTUAL);
    plain.put("k", "w").await.unwrap();

    let without = UpdateNamespaceModeRequest {
        accept_missing: vec![3],
        ..request(STRONG)
    };
    let (changes, ended) = update(&cluster, 1, without).await;
    ended.unwrap_or_else(|status| panic!("{status:?} after {changes:#?}"));
    assert_eq!(changes.last().unwrap().step, "done", "{changes:#?}");
    let read = eventually(PATIENT, "it is served as a strong one", async || {
        plain.get("k").await.map_err(|status| status.to_string())
    })
    .await;
    assert_eq!(text(&read).as_deref(), Some("w"));
    assert!(plain.cas("k", read.version, "x", "").await.unwrap().success);
}

/// Whoever asked for a switch may go away, and whoever leads the meta region, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_goes_on_without_its_caller_and_without_the_leader_that_began_it() {
    let mut cluster = declared("eventual", &["--switch-timeout", "60s"]).await;
    let leader = cluster.leader_of(crate::support::cluster::META).await;
    let other = cluster.other_than(&[leader]);
    let mut client = modes(&cluster, other).await;
    let stream = client.update_namespace_mode(request(STRONG)).await.unwrap();
    drop(stream);
    cluster.kill(leader);
    tokio::time::sleep(Duration::from_millis(300)).await;
    cluster.restart(leader).await;
    settles(&cluster, other, "it is strong", |mode| {
        is_stable(mode, STRONG)
    })
    .await;
    let plain = Plain::on(&cluster, other).await.namespace(NAME);
    plain.put("k", "v").await.unwrap();
}

/// Whoever looks why a switch stands still sees the modes all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn modes_are_told_without_a_quorum() {
    let cluster = created_meshed(&[]).await;
    let leader = cluster.leader_of(crate::support::cluster::META).await;
    let away = (leader + 1) % 3;
    cluster.mesh().isolate(away);
    eventually(
        PATIENT,
        "the one that is alone tells its modes",
        async || {
            let mode = mode_at(&cluster, away).await?;
            let reachable = mode.stores.iter().filter(|store| store.reachable).count();
            match (reachable, of_store(&mode, away).applied) {
                (1, EVENTUAL) => Ok(()),
                _ => Err(format!("{mode:#?}")),
            }
        },
    )
    .await;
}
