//! How a cluster begins, and how a store starts and leaves: with real processes, killed while they
//! form a cluster, with wrong directories, ids, ports and lists.
//!
//! What is refused is refused with one clear line and exit 1, and nothing on disk is touched.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test may stop at what it did not expect"
)]
#![allow(clippy::print_stdout, reason = "what was measured is worth reading")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::calls::{PATIENT, Plain, refused, text};
use support::cluster::{Cluster, DATA};
use support::http;
use support::process::{Node, run_to_exit, server};
use support::wait::eventually;
use tokio::time::Instant;
use tonic::Code;

/// A process that refuses to start ends within this.
const ENDS: Duration = Duration::from_secs(15);

/// The cluster id that each store has noted, once all have one; they must be equal.
async fn assert_one_cluster(cluster: &mut Cluster) -> String {
    cluster.wait_all_ready().await;
    let mut ids = Vec::new();
    for store in 0..cluster.len() {
        ids.push(cluster.cluster_status(store).await.unwrap().cluster_id);
    }
    assert!(
        !ids[0].is_empty() && ids.iter().all(|id| *id == ids[0]),
        "one list of peers, one cluster: {ids:?}"
    );
    for store in 0..cluster.len() {
        let noted = fs::read_to_string(cluster.node(store).data_dir().join("STORE")).unwrap();
        assert!(
            noted.contains(&ids[0]),
            "store {} notes its cluster: {noted}",
            store + 1
        );
    }
    ids.remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_killed_while_they_form_a_cluster_form_one() {
    // Killed at other moments in each round; started in another order each time.
    for (round, kill_after_ms) in [0, 60, 120, 200, 300, 450].into_iter().enumerate() {
        let mut cluster = Cluster::prepare(3, &[]);
        let order = [[0, 1, 2], [2, 1, 0], [1, 2, 0]][round % 3];
        for store in order {
            cluster.launch(store);
        }
        // As soon as the planner may be drawing up its plan, everybody dies; then each alone.
        tokio::time::sleep(Duration::from_millis(kill_after_ms)).await;
        cluster.kill_all(&[0, 1, 2]);
        for store in order {
            cluster.launch(store);
        }
        tokio::time::sleep(Duration::from_millis(kill_after_ms / 2)).await;
        for store in order {
            cluster.kill(store);
            cluster.launch(store);
        }
        let id = assert_one_cluster(&mut cluster).await;
        let store = Plain::on(&cluster, round % 3).await;
        store.put("k", "v").await.unwrap();
        // A restart of all finds the same cluster and the same data.
        cluster.kill_all(&[0, 1, 2]);
        for store in order {
            cluster.launch(store);
        }
        assert_eq!(
            assert_one_cluster(&mut cluster).await,
            id,
            "a restart is not another beginning"
        );
        let store = Plain::on(&cluster, (round + 1) % 3).await;
        assert_eq!(text(&store.get("k").await.unwrap()).as_deref(), Some("v"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_begins_a_cluster_without_all_of_the_list() {
    let mut cluster = Cluster::prepare(3, &[]);
    cluster.launch(0);
    cluster.launch(1);
    for store in [0, 1] {
        let http = cluster.http_addr(store);
        eventually(PATIENT, "it listens", async || {
            http::get(http, "/livez").await
        })
        .await;
    }
    // Two of three would be a quorum; yet nobody may know that the third is not in a cluster already.
    tokio::time::sleep(Duration::from_secs(2)).await;
    for store in [0, 1] {
        assert_eq!(
            http::get(cluster.http_addr(store), "/readyz")
                .await
                .unwrap()
                .status,
            503
        );
        assert!(
            cluster
                .log(store)
                .contains("waiting for the other first members"),
            "{}",
            cluster.log(store)
        );
        refused(Plain::on(&cluster, store).await.put("k", "v").await)
            .is(Code::Unavailable, "NOT_READY")
            .outcome("not_applied");
    }
    cluster.launch(2);
    assert_one_cluster(&mut cluster).await;
    Plain::on(&cluster, 2).await.put("k", "v").await.unwrap();
}

/// A second process under the id of a store, with a directory of its own, at an address that no list has.
fn twin_of(cluster: &Cluster, store: usize) -> Node {
    let dir = cluster.dir().join("twin");
    fs::create_dir_all(&dir).unwrap();
    let mut twin = Node::new(server(), &dir, store, &[]).unwrap();
    let listed: Vec<_> = (0..cluster.len()).map(|at| cluster.addr(at)).collect();
    twin.set_peers(&listed);
    // It says that it is where the real one is.
    twin.set_flag("--advertise-addr", &cluster.addr(store).to_string());
    twin
}

/// The clusters that these directories belong to.
fn clusters_of(dirs: &[PathBuf]) -> BTreeSet<String> {
    let noted = |dir: &PathBuf| {
        let text = fs::read_to_string(dir.join("STORE")).ok()?;
        let line = text.lines().find(|line| line.starts_with("cluster_id"))?;
        Some(line.split('"').nth(1)?.to_owned())
    };
    dirs.iter()
        .filter_map(noted)
        .filter(|id| !id.is_empty())
        .collect()
}

async fn says(what: &str, log: impl Fn() -> String) {
    eventually(PATIENT, &format!("a log says {what:?}"), async || {
        let log = log();
        if log.contains(what) { Ok(()) } else { Err(log) }
    })
    .await;
}

/// A reader's find: the list was consented to by id, not by disk, so that stores 2 and 3 agreed with any
/// number of planners. Two clusters began, and as streams were judged once, one wrote into the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_directories_of_the_planner_begin_one_cluster() {
    // In each round the twin comes at another moment; 9: after all others.
    for (round, twin_at) in [0, 1, 2, 9, 0, 1].into_iter().enumerate() {
        let mut cluster = Cluster::prepare(3, &[]);
        let mut twin = twin_of(&cluster, 0);
        let order = [[0, 1, 2], [2, 1, 0], [1, 2, 0]][round % 3];
        for (turn, store) in order.into_iter().enumerate() {
            if turn == twin_at {
                twin.launch().unwrap();
            }
            tokio::time::sleep(Duration::from_millis(30 * round as u64)).await;
            cluster.launch(store);
        }
        if twin_at > 2 {
            twin.launch().unwrap();
        }
        // Those that the list leads to are the cluster. The twin sees that it is none of it, and ends.
        let id = assert_one_cluster(&mut cluster).await;
        let ended = twin.wait_exit(ENDS).await.unwrap();
        assert_eq!(ended.code(), Some(1), "{}", twin.log());
        let last = twin.log().lines().last().unwrap_or_default().to_owned();
        assert!(last.contains("has another data directory"), "{last:?}");
        let mut dirs: Vec<_> = (0..3)
            .map(|at| cluster.node(at).data_dir().to_owned())
            .collect();
        dirs.push(twin.data_dir().to_owned());
        assert_eq!(clusters_of(&dirs), BTreeSet::from([id]), "round {round}");
        let store = Plain::on(&cluster, round % 3).await;
        store.put("k", "v").await.unwrap();
        cluster.kill_all(&[0, 1, 2]);
        for store in order {
            cluster.launch(store);
        }
        assert_one_cluster(&mut cluster).await;
        let store = Plain::on(&cluster, (round + 1) % 3).await;
        assert_eq!(text(&store.get("k").await.unwrap()).as_deref(), Some("v"));
    }
}

/// The planner's directory is replaced while the cluster forms, by turns with the old one at the very
/// address that all others dial.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directories_of_the_planner_that_take_turns_begin_one_cluster() {
    let mut begun = 0;
    for turn_ms in [40, 90, 150, 240, 380] {
        let mut cluster = Cluster::prepare(3, &[]);
        let first = cluster.node(0).data_dir().to_owned();
        let second = cluster.dir().join("second");
        let (mut acknowledged, mut dirs) = (Vec::new(), vec![first.clone(), second.clone()]);
        dirs.extend([1, 2].map(|at| cluster.node(at).data_dir().to_owned()));
        cluster.launch(1);
        cluster.launch(2);
        for (turn, dir) in [&first, &second, &first, &second].into_iter().enumerate() {
            cluster.kill(0);
            cluster.node_mut(0).set_data_dir(dir.clone());
            cluster.launch(0);
            tokio::time::sleep(Duration::from_millis(turn_ms * (turn as u64 + 1))).await;
            let (key, store) = (format!("k{turn}"), Plain::on(&cluster, turn % 3).await);
            let patient = store.timeout(Duration::from_millis(600));
            if patient.put(&key, "v").await.is_ok() {
                acknowledged.push(key);
            }
        }
        let clusters = clusters_of(&dirs);
        assert!(clusters.len() <= 1, "after {turn_ms} ms: {clusters:?}");
        begun += clusters.len();
        if clusters.is_empty() {
            assert_eq!(acknowledged, Vec::<String>::new());
            continue;
        }
        // The one whose directory the cluster knows, and everybody else, have what was acknowledged.
        let known = dirs.iter().take(2).find(|dir| {
            let one = [(*dir).clone()];
            clusters_of(&one) == clusters
        });
        cluster.kill_all(&[0, 1, 2]);
        cluster
            .node_mut(0)
            .set_data_dir(known.expect("the planner began it").clone());
        for store in 0..3 {
            cluster.launch(store);
        }
        assert_one_cluster(&mut cluster).await;
        for key in acknowledged {
            let store = Plain::on(&cluster, 1).await;
            let read = store.get(&key).await.unwrap();
            assert_eq!(text(&read).as_deref(), Some("v"), "{key}");
        }
    }
    println!("{begun} of 5 rounds began a cluster");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planner_that_lost_its_directory_is_told_what_to_do_and_that_helps() {
    let mut cluster = Cluster::prepare(3, &[]);
    let lost = cluster.node(0).data_dir().to_owned();
    cluster.launch(0);
    cluster.launch(1);
    says("waiting for this store to begin the cluster", || {
        cluster.log(1)
    })
    .await;
    // Killed as well, store 2 still knows whom it promised itself to.
    cluster.kill_all(&[0, 1]);
    fs::remove_dir_all(&lost).unwrap();
    for store in 0..3 {
        cluster.launch(store);
    }
    says("store 2 has promised itself to the data directory", || {
        cluster.log(0)
    })
    .await;
    says("store 2 has promised itself to the data directory", || {
        cluster.log(1)
    })
    .await;
    assert!(
        cluster
            .log(0)
            .contains("remove the data directory of store 2")
    );
    // Under another list it keeps its promise, too.
    cluster.kill(1);
    let mut alone = cluster.node(1).args().to_vec();
    while let Some(at) = alone.iter().position(|arg| arg == "--peer") {
        alone.drain(at..at + 2);
    }
    let exit = run_to_exit(&alone, ENDS).await;
    assert!(
        exit.refused().contains("give it the old list back"),
        "{exit:?}"
    );
    // As told.
    fs::remove_dir_all(cluster.node(1).data_dir()).unwrap();
    cluster.launch(1);
    assert_one_cluster(&mut cluster).await;
    Plain::on(&cluster, 1).await.put("k", "v").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_place_in_the_cluster_ends_with_one_line() {
    let mut cluster = Cluster::start(3, &[]).await;
    // A second store 2, where nobody would dial it; and a store 4, by whose list the others are members.
    let twin = twin_of(&cluster, 1);
    let mut fourth = Node::new(server(), &cluster.dir().join("twin"), 3, &[]).unwrap();
    let mut listed: Vec<_> = (0..3).map(|at| cluster.addr(at)).collect();
    listed.push(fourth.addr());
    fourth.set_peers(&listed);
    for (node, words) in [
        (&twin, ["store 2 of cluster", "has another data directory"]),
        (&fourth, ["store 4 is not a member of cluster", "--peer"]),
    ] {
        for _start in 0..2 {
            let exit = run_to_exit(node.args(), ENDS).await;
            let line = exit.refused();
            for word in words {
                assert!(line.contains(word), "{word:?} in {line:?}");
            }
        }
    }
    assert_one_cluster(&mut cluster).await;
    Plain::on(&cluster, 1).await.put("k", "v").await.unwrap();
}

/// Every file of a directory with its size and the time of its last change.
fn fingerprint(dir: &Path) -> BTreeMap<String, (u64, Option<std::time::SystemTime>)> {
    let mut files = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let entry = entry.unwrap();
            let meta = entry.metadata().unwrap();
            if meta.is_dir() {
                dirs.push(entry.path());
            } else {
                files.insert(
                    entry.path().display().to_string(),
                    (meta.len(), meta.modified().ok()),
                );
            }
        }
    }
    files
}

fn with_flag(args: &[String], flag: &str, value: &str) -> Vec<String> {
    let mut args = args.to_vec();
    let at = args.iter().position(|arg| arg == flag).unwrap();
    args[at + 1] = value.to_owned();
    args
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_directory_under_an_old_id_is_refused_and_the_cluster_goes_on() {
    let mut cluster = Cluster::start(3, &[]).await;
    let store = Plain::on(&cluster, 0).await;
    store.put("k", "before").await.unwrap();
    cluster.kill(2);
    let data_dir = cluster.node(2).data_dir().to_owned();
    let kept = cluster.dir().join("kept");
    fs::rename(&data_dir, &kept).unwrap();

    // A fresh disk under the old id.
    let exit = run_to_exit(cluster.node(2).args(), ENDS).await;
    let line = exit.refused();
    for word in ["store 3", "wiped", "data directory"] {
        assert!(line.contains(word), "{word:?} in {line:?}");
    }
    store.put("k", "goes on").await.unwrap();
    assert_eq!(cluster.cluster_status(0).await.unwrap().stores.len(), 3);
    // Again, now with what the refused start left behind.
    run_to_exit(cluster.node(2).args(), ENDS).await.refused();

    // A directory that lost only its database.
    fs::remove_dir_all(&data_dir).unwrap();
    fs::rename(&kept, &data_dir).unwrap();
    let db = data_dir.join("db");
    let db_kept = cluster.dir().join("db-kept");
    fs::rename(&db, &db_kept).unwrap();
    let exit = run_to_exit(cluster.node(2).args(), ENDS).await;
    assert!(exit.refused().contains("lost its database"), "{exit:?}");
    assert!(!db.exists(), "a refused start makes nothing");

    // The real one comes back, and is up to date.
    fs::rename(&db_kept, &db).unwrap();
    cluster.restart(2).await;
    let back = Plain::on(&cluster, 2).await;
    assert_eq!(
        text(&back.get("k").await.unwrap()).as_deref(),
        Some("goes on")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_use_or_belongs_to_another_is_refused_and_untouched() {
    let mut cluster = Cluster::start(1, &[]).await;
    Plain::on(&cluster, 0).await.put("k", "v").await.unwrap();
    let args = cluster.node(0).args().to_vec();
    let data_dir = cluster.node(0).data_dir().to_owned();
    // Ports that nobody else wants, and a second directory.
    let spare = Cluster::prepare(1, &[]);
    let (addr, http) = (spare.addr(0).to_string(), spare.http_addr(0).to_string());
    let elsewhere = with_flag(&with_flag(&args, "--addr", &addr), "--http-addr", &http);
    let other_dir = cluster.dir().join("other").display().to_string();

    // The directory is in use.
    let exit = run_to_exit(&elsewhere, ENDS).await;
    assert!(
        exit.refused().contains("in use by another process (pid "),
        "{exit:?}"
    );
    // The client port is, or the HTTP port: no directory is made.
    for (flag, port) in [
        ("--addr", cluster.addr(0)),
        ("--http-addr", cluster.http_addr(0)),
    ] {
        let clash = with_flag(
            &with_flag(&elsewhere, flag, &port.to_string()),
            "--data-dir",
            &other_dir,
        );
        let exit = run_to_exit(&clash, ENDS).await;
        let line = exit.refused();
        assert!(
            line.contains("cannot listen on")
                && line.contains(&port.to_string())
                && line.contains(flag),
            "{line:?}"
        );
        assert!(!Path::new(&other_dir).exists(), "nothing is touched");
    }
    // An address that no interface has is nobody's to stop.
    let away = with_flag(&elsewhere, "--addr", "192.0.2.1:50051");
    let exit = run_to_exit(&with_flag(&away, "--data-dir", &other_dir), ENDS).await;
    let line = exit.refused();
    assert!(
        line.contains("no interface of this machine") && !line.contains("stop what uses it"),
        "{line:?}"
    );
    // The store that runs did not notice.
    Plain::on(&cluster, 0)
        .await
        .put("k", "still here")
        .await
        .unwrap();

    // Another id over the same directory.
    cluster.stop(0).await;
    let before = fingerprint(&data_dir);
    let exit = run_to_exit(&with_flag(&args, "--store-id", "2"), ENDS).await;
    let line = exit.refused();
    assert!(
        line.contains("belongs to store 1") && line.contains("not to store 2"),
        "{line:?}"
    );
    // A directory that holds something else.
    let foreign = cluster.dir().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis.txt"), "years of work").unwrap();
    let exit = run_to_exit(
        &with_flag(&args, "--data-dir", &foreign.display().to_string()),
        ENDS,
    )
    .await;
    assert!(
        exit.refused().contains("is not a data directory"),
        "{exit:?}"
    );
    assert_eq!(
        fs::read_dir(&foreign).unwrap().count(),
        1,
        "nothing is touched"
    );
    assert_eq!(fingerprint(&data_dir), before, "nothing is touched");

    // A cluster of one starts again, also without --peer, and has everything.
    cluster.restart(0).await;
    assert_eq!(
        text(&Plain::on(&cluster, 0).await.get("k").await.unwrap()).as_deref(),
        Some("still here")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn different_peer_lists_form_no_cluster() {
    let mut cluster = Cluster::prepare(3, &[]);
    // Store 2 has never heard of store 3.
    let (first, second) = (cluster.addr(0), cluster.addr(1));
    cluster
        .node_mut(1)
        .set_flag("--peer", &format!("1={first}"));
    let args = ["--peer".to_owned(), format!("2={second}")];
    cluster.node_mut(1).add_args(&args);
    for store in 0..3 {
        cluster.launch(store);
    }
    let complaint = "give all first members the same --peer list";
    eventually(PATIENT, "somebody says that the lists differ", async || {
        let found = (0..3).any(|store| cluster.log(store).contains(complaint));
        if found {
            Ok(())
        } else {
            Err("nothing in the logs".to_owned())
        }
    })
    .await;
    for store in 0..3 {
        assert_ne!(
            http::get(cluster.http_addr(store), "/readyz")
                .await
                .unwrap()
                .status,
            200,
            "store {}",
            store + 1
        );
        assert!(
            !cluster.log(store).contains("beginning a cluster"),
            "nobody may begin one"
        );
    }
    // Corrected, they are one cluster.
    cluster.kill(1);
    let third = cluster.addr(2);
    cluster
        .node_mut(1)
        .add_args(&["--peer".to_owned(), format!("3={third}")]);
    cluster.launch(1);
    assert_one_cluster(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_of_another_cluster_is_refused_and_both_go_on() {
    let mut one = Cluster::start(3, &[]).await;
    let mut other = Cluster::start(1, &[]).await;
    Plain::on(&one, 0).await.put("k", "one").await.unwrap();
    Plain::on(&other, 0).await.put("k", "other").await.unwrap();
    // Store 1 of the other cluster now believes that store 2 of the first is its peer.
    other.kill(0);
    let stranger = one.addr(1);
    let own = other.addr(0);
    let mut misled = other.node(0).args().to_vec();
    misled.extend([
        "--peer".to_owned(),
        format!("1={own}"),
        "--peer".to_owned(),
        format!("2={stranger}"),
    ]);
    // Its directory knows better: it is not served as if it were the other cluster's.
    let exit = run_to_exit(&misled, ENDS).await;
    assert!(exit.refused().contains("belongs to cluster"), "{exit:?}");
    other.restart(0).await;
    assert_eq!(
        text(&Plain::on(&other, 0).await.get("k").await.unwrap()).as_deref(),
        Some("other")
    );
    // And store 3 of the first one is sent to the other cluster instead of to store 1.
    one.kill(2);
    let (second, third) = (one.addr(1), one.addr(2));
    one.node_mut(2).set_flag("--peer", &format!("1={own}"));
    one.node_mut(2).add_args(&[
        "--peer".to_owned(),
        format!("2={second}"),
        "--peer".to_owned(),
        format!("3={third}"),
    ]);
    one.launch(2);
    let store = Plain::on(&one, 0).await;
    eventually(PATIENT, "the refusal is in a log", async || {
        let refusal = "belongs to cluster";
        let found = one.log(2).contains(refusal) || other.log(0).contains(refusal);
        if found {
            Ok(())
        } else {
            Err("nothing in the logs".to_owned())
        }
    })
    .await;
    store.put("k", "one goes on").await.unwrap();
    Plain::on(&other, 0)
        .await
        .put("k", "other goes on")
        .await
        .unwrap();
    assert_eq!(
        text(&store.get("k").await.unwrap()).as_deref(),
        Some("one goes on")
    );
    let (id, other_id) = (
        one.cluster_status(0).await.unwrap().cluster_id,
        other.cluster_status(0).await.unwrap().cluster_id,
    );
    assert_ne!(id, other_id);
    // Corrected, it is back.
    one.kill(2);
    let first = one.addr(0);
    one.node_mut(2).set_flag("--peer", &format!("1={first}"));
    one.node_mut(2).add_args(&[
        "--peer".to_owned(),
        format!("2={second}"),
        "--peer".to_owned(),
        format!("3={third}"),
    ]);
    one.launch(2);
    assert_eq!(assert_one_cluster(&mut one).await, id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_leaves_in_order_and_hands_the_lead_over() {
    let mut cluster = Cluster::start(3, &[]).await;
    let leader = cluster.leader_of(DATA).await;
    let other = Plain::on(&cluster, cluster.other_than(&[leader])).await;
    other.put("k", "0").await.unwrap();
    // Writers that go on meanwhile.
    let stop = tokio_util::sync::CancellationToken::new();
    let (halt, writer) = (stop.clone(), other.clone());
    let writing = tokio::spawn(async move {
        let (mut longest, mut count) = (Duration::ZERO, 0u64);
        while !halt.is_cancelled() {
            let asked = Instant::now();
            writer.put("k", &count.to_string()).await.unwrap();
            longest = longest.max(asked.elapsed());
            count += 1;
        }
        (longest, count)
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let asked = Instant::now();
    let status = cluster.stop(leader).await;
    println!("left in order after {:?}", asked.elapsed());
    assert_eq!(status.code(), Some(0), "{}", cluster.log(leader));
    assert!(
        asked.elapsed() < Duration::from_secs(8),
        "leaving took {:?}",
        asked.elapsed()
    );
    tokio::time::sleep(Duration::from_millis(300)).await;
    stop.cancel();
    let (longest, count) = writing.await.unwrap();
    println!("{count} writes meanwhile, the slowest took {longest:?}");
    assert!(
        longest < Duration::from_millis(1500),
        "the lead was not handed over: a write took {longest:?}"
    );
    assert!(!cluster.log(leader).contains("panicked"));

    // It comes back, and all three leave one after the other.
    cluster.restart(leader).await;
    let last = cluster.leader_of(DATA).await;
    for store in (0..3).filter(|store| *store != last).chain([last]) {
        assert_eq!(
            cluster.stop(store).await.code(),
            Some(0),
            "{}",
            cluster.log(store)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_config_says_what_is_wrong_and_touches_nothing() {
    let cluster = Cluster::prepare(1, &[]);
    let file = cluster.dir().join("flaredb.toml");
    let data_dir = cluster.dir().join("untouched");
    let run = async |text: &str| {
        fs::write(&file, text).unwrap();
        let args = [
            "--config".to_owned(),
            file.display().to_string(),
            "--check-config".to_owned(),
        ];
        run_to_exit(&args, ENDS).await
    };
    let good = format!(
        "[store]\nid = 7\ndata_dir = {:?}\n[consistency]\nquorum_timeout = \"3s\"\n",
        data_dir.display().to_string()
    );
    let exit = run(&good).await;
    assert_eq!(exit.status.code(), Some(0), "{exit:?}");
    assert!(!exit.stdout.is_empty(), "{exit:?}");

    let exit = run("[store]\nid = 7\n\n[consistency]\nquorum_timout = \"3s\"\n").await;
    assert_eq!(exit.status.code(), Some(1));
    for word in [
        "flaredb.toml:5",
        "consistency.quorum_timout",
        "quorum_timeout",
    ] {
        assert!(exit.stderr.contains(word), "{word:?} in {}", exit.stderr);
    }
    // The same errors keep a store from starting.
    let args = ["--config".to_owned(), file.display().to_string()];
    let exit = run_to_exit(&args, ENDS).await;
    assert_eq!(exit.status.code(), Some(1));
    assert!(exit.stderr.contains("flaredb.toml:5"), "{exit:?}");
    let exit = run_to_exit(&["--store-id".to_owned(), "1024".to_owned()], ENDS).await;
    assert_eq!(exit.status.code(), Some(1));
    assert!(exit.stderr.contains("--store-id"), "{exit:?}");
    let exit = run_to_exit(&["--no-such-flag".to_owned()], ENDS).await;
    assert_eq!(
        exit.status.code(),
        Some(2),
        "usage errors are exit 2: {exit:?}"
    );
    assert!(!data_dir.exists(), "nothing is touched");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_logs_in_json_the_last_word_is_json_too() {
    let mut cluster = Cluster::prepare(1, &["--log-format", "json"]);
    // A file where the data directory should be; then a configuration that is wrong.
    fs::write(cluster.node(0).data_dir(), "").unwrap();
    let no_directory = run_to_exit(cluster.node(0).args(), ENDS).await;
    cluster.node_mut(0).set_flag("--store-id", "0");
    let bad_flag = run_to_exit(cluster.node(0).args(), ENDS).await;
    for (exit, word) in [(no_directory, "store-1"), (bad_flag, "--store-id")] {
        assert!(exit.refused().contains(word), "{exit:?}");
        for line in exit.stderr.lines() {
            assert!(line.starts_with('{') && line.ends_with('}'), "{line:?}");
        }
        assert!(exit.refused().contains("\"level\":\"ERROR\""), "{exit:?}");
    }
}
