//! A flipped bit on one disk is found, said, and harms nobody else.

use crate::support::calls::{PATIENT, Plain, refused, text};
use crate::support::cluster::{Cluster, DATA};
use crate::support::http;
use crate::support::wait::eventually;
use rdb_storage::{RocksEngine, RocksOptions};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tonic::Code;

/// The damaged key; its value is longer than what RocksDB would compress away.
const KEY: &str = "k40";

/// A compaction of the little that is here takes milliseconds.
const QUIET: Duration = Duration::from_secs(1);

/// A value that does not compress, different for each key.
fn value(key: &str) -> String {
    let mut state = key
        .bytes()
        .fold(7u32, |state, byte| state * 31 + u32::from(byte));
    let letters = (0..600).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        char::from(b'0' + (state >> 24) as u8 % 75)
    });
    letters.collect()
}

/// Moves everything that a store which does not run has in its log into sorted files.
fn flush(data_dir: &Path) {
    let engine = RocksEngine::open(&data_dir.join("db"), RocksOptions::default()).unwrap();
    engine.flush().unwrap();
}

fn sorted_files(db: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(db).unwrap().map(|entry| entry.unwrap().path());
    let is_sorted = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "sst");
    let mut files: Vec<PathBuf> = paths.filter(is_sorted).collect();
    files.sort();
    files
}

/// The sorted files of a store, once they have been the same for a while. The compactions of its start
/// take some of them away, and one that meets a flipped bit ends the process.
async fn settled_files(data_dir: &Path) -> Vec<PathBuf> {
    let db = data_dir.join("db");
    let (mut files, mut since) = (Vec::new(), Instant::now());
    eventually(PATIENT, "the sorted files stay as they are", async || {
        let found = sorted_files(&db);
        if found != files {
            (files, since) = (found, Instant::now());
        }
        if since.elapsed() < QUIET {
            return Err(format!("they were others {:?} ago", since.elapsed()));
        }
        Ok(files.clone())
    })
    .await
}

/// Flips one bit of the value of [`KEY`] in the sorted files of a store, in place: it may be running.
fn flip(files: &[PathBuf]) {
    // Part of the value: compression may begin or end in the middle of it.
    let value = value(KEY);
    let needle = &value.as_bytes()[300..316];
    let mut flipped = 0;
    for path in files {
        let bytes = fs::read(path).unwrap();
        // The value stands in the log, too. Its files name their family among their properties.
        if bytes.windows(8).any(|window| window == b"raft_log") {
            continue;
        }
        let found: Vec<usize> = bytes
            .windows(needle.len())
            .enumerate()
            .filter_map(|(at, window)| (window == needle).then_some(at))
            .collect();
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        for at in found {
            file.write_all_at(&[bytes[at] ^ 1], at as u64).unwrap();
            flipped += 1;
        }
    }
    assert!(flipped > 0, "the value is in no sorted file");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_reads_damaged_data_says_so_and_leads_no_more() {
    let mut cluster = Cluster::start(3, &[]).await;
    let store = Plain::on(&cluster, 0).await;
    for key in 0..80 {
        let key = format!("k{key}");
        store.put(&key, &value(&key)).await.unwrap();
    }
    cluster.stop(0).await;
    flush(cluster.node(0).data_dir());
    cluster.restart(0).await;
    cluster.move_leader(DATA, 0).await;
    flip(&settled_files(cluster.node(0).data_dir()).await);

    let store = Plain::on(&cluster, 0).await;
    for _ in 0..5 {
        let refusal = refused(store.get(KEY).await);
        refusal.is(Code::DataLoss, "CORRUPTION");
        assert!(refusal.message.contains(".sst"), "{refusal:?}");
        assert_eq!(refusal.meta("where"), "region 2");
    }
    // Said once, counted each time, not ready.
    let said = "stored data is damaged: this replica gives up the lead";
    assert_eq!(cluster.log(0).matches(said).count(), 1);
    let page = http::get(cluster.http_addr(0), "/metrics")
        .await
        .unwrap()
        .body;
    assert!(
        page.contains("flaredb_storage_damaged_reads_total{region=\"2\"} 5"),
        "{page}"
    );
    let ready = http::get(cluster.http_addr(0), "/readyz").await.unwrap();
    assert_eq!(ready.status, 503);
    assert!(
        ready
            .body
            .contains("[-] region 2: its data on this disk is damaged"),
        "{}",
        ready.body
    );

    // Another store leads, serves the very key, and goes on to.
    let leader = eventually(PATIENT, "another store leads", async || {
        match cluster.leader_of(DATA).await {
            0 => Err("the damaged one does".to_owned()),
            leader => Ok(leader),
        }
    })
    .await;
    let sound = Plain::on(&cluster, leader).await;
    assert_eq!(text(&sound.get(KEY).await.unwrap()), Some(value(KEY)));
    sound.put("after", "1").await.unwrap();

    // The damaged one still keeps the log: with it alone a write is acknowledged. It may even be the only
    // one that has the write when the leader goes; then it leads until the other one has it, too.
    let other = cluster.other_than(&[0, leader]);
    cluster.kill(other);
    sound.put("with the damaged one", "2").await.unwrap();
    cluster.launch(other);
    cluster.kill(leader);
    cluster.wait_ready(other).await;
    eventually(PATIENT, "the sound one leads", async || {
        match cluster.leader_among(DATA, &[0, other]).await {
            0 => Err("the damaged one does".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    let sound = Plain::on(&cluster, other).await;
    let kept = sound.get("with the damaged one").await.unwrap();
    assert_eq!(text(&kept).as_deref(), Some("2"));
}
