//! An older copy of a data directory in the place of the one that was used last.
//!
//! The story: a copy is made, the store goes on and acknowledges writes, and after a failure of all the copy
//! is put back. What it lacks was acknowledged with its help, so the others may be fewer than a majority
//! that have it; and it would vote a second time in terms in which it has voted.

use crate::support::calls::{PATIENT, Plain, text};
use crate::support::cluster::Cluster;
use crate::support::wait::eventually;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Far beyond what it takes to meet another store.
const ENDS: Duration = Duration::from_secs(30);

/// Copies what lies in a directory, as an operator does.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
}

/// A copy of a store's data directory as it is now.
fn copy_of(cluster: &Cluster, store: usize) -> PathBuf {
    let to = cluster.dir().join(format!("copy of {}", store + 1));
    copy(cluster.node(store).data_dir(), &to);
    to
}

/// Writes that are acknowledged: by whom is up to the test.
async fn put_all(cluster: &Cluster, store: usize, what: &str) {
    let plain = Plain::on(cluster, store).await.timeout(PATIENT);
    for number in 1..=5 {
        let key = format!("{what}{number}");
        eventually(PATIENT, &format!("{key} is acknowledged"), async || {
            plain.put(&key, what).await.map_err(|e| e.to_string())
        })
        .await;
    }
}

async fn found(cluster: &Cluster, store: usize, key: &str) -> Option<String> {
    let plain = Plain::on(cluster, store).await.timeout(PATIENT);
    text(&plain.get(key).await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_copy_of_a_data_directory_is_refused_and_nothing_is_lost() {
    let mut cluster = Cluster::start(3, &[]).await;
    put_all(&cluster, 0, "before").await;
    cluster.stop(1).await;
    let copied = copy_of(&cluster, 1);
    cluster.restart(1).await;
    cluster.wait_all_ready().await;
    cluster.kill(2);
    put_all(&cluster, 0, "after").await;
    cluster.kill_all(&[0, 1]);

    let right = cluster.node(1).data_dir().to_owned();
    cluster.node_mut(1).set_data_dir(copied.clone());
    for again in 0..2 {
        cluster.launch(1);
        if again == 0 {
            cluster.launch(2);
        }
        let exit = cluster.node_mut(1).wait_exit(ENDS).await.unwrap();
        assert_eq!(exit.code(), Some(1), "start {again}");
        let log = cluster.node(1).log_since_start();
        let line = log.lines().last().unwrap_or_default();
        for part in ["is an older copy", "store 3 has met start 2", "Never start"] {
            assert!(line.contains(part), "start {again}: {part:?} in {line}");
        }
    }
    assert!(cluster.is_running(2));
    let other = cluster.log(2);
    assert!(other.contains("older copy"), "{other}");

    // The right one is accepted, and holds what was acknowledged.
    cluster.node_mut(1).set_data_dir(right);
    cluster.restart(1).await;
    cluster.wait_ready(2).await;
    for number in 1..=5 {
        let key = format!("after{number}");
        assert_eq!(found(&cluster, 2, &key).await.as_deref(), Some("after"));
    }
    cluster.restart(0).await;
}

/// A copy of the very run that the others saw last cannot be told from it, so acknowledged writes can be lost
/// with it. Who still has them does not give them up without a word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_whose_leader_contradicts_what_it_applied_stops_and_says_so() {
    let mut cluster = Cluster::start(3, &[]).await;
    put_all(&cluster, 0, "before").await;
    cluster.pause(1);
    let copied = copy_of(&cluster, 1);
    cluster.resume(1);
    cluster.kill(2);
    put_all(&cluster, 0, "after").await;
    cluster.kill_all(&[0, 1]);

    cluster.node_mut(1).set_data_dir(copied);
    cluster.launch(1);
    cluster.launch(2);
    cluster.wait_ready(1).await;
    cluster.wait_ready(2).await;
    put_all(&cluster, 2, "other").await;
    assert_eq!(found(&cluster, 2, "after1").await, None, "not the story");

    cluster.launch(0);
    let exit = cluster.node_mut(0).wait_exit(ENDS).await.unwrap();
    assert_eq!(exit.code(), Some(1));
    let log = cluster.node(0).log_since_start();
    let line = log.lines().last().unwrap_or_default();
    assert!(
        line.contains("contradicts what is committed here"),
        "{line}"
    );
    assert!(line.contains("Keep all data directories"), "{line}");
    assert!(!log.contains("panicked"), "{log}");
}
