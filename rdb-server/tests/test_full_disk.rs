//! Full disks, with real `rdb-server` processes on a small file system: data is refused with `NO_SPACE`, reads and
//! deletes go on, no process ends, and once there is room it goes on by itself.
//!
//! Where no small file system can be mounted, the tests say so and are skipped.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test may stop at what it did not expect"
)]
#![allow(clippy::print_stdout, reason = "what was measured is worth reading")]

mod support;

use rdb_proto::kv;
use std::path::Path;
use std::time::{Duration, Instant};
use support::calls::{Plain, Refusal};
use support::cluster::{Cluster, DATA};
use support::http;
use support::small_disk::{Filler, on_a_small_disk};
use support::wait::eventually;
use tonic::Code;

/// Of one value; it does not compress.
const VALUE_BYTES: usize = 128 << 10;
/// RocksDB looks for room every five seconds once it found none, and a busy machine is slow.
const PATIENCE: Duration = Duration::from_secs(90);
/// So that all of it fits on a small disk several times.
const RESERVE: &str = "32MiB";
/// Of stores that share a disk: each of them counts on all that is free.
const SHARED_RESERVE: &str = "96MiB";

fn value(number: u64) -> Vec<u8> {
    let mut state = number + 1;
    let words = std::iter::repeat_with(|| {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(VALUE_BYTES / 8).flatten().collect()
}

/// Stores, some of them with their data on `disk`, ready.
async fn start_on(disk: &Path, count: usize, on_it: &[usize]) -> Cluster {
    let reserve = match on_it {
        [_] => RESERVE,
        _ => SHARED_RESERVE,
    };
    let mut cluster = Cluster::prepare(count, &["--reserve", reserve]);
    for store in on_it {
        let data_dir = disk.join(format!("store-{}", store + 1));
        cluster.node_mut(*store).set_data_dir(data_dir);
    }
    for store in 0..count {
        cluster.launch(store);
    }
    cluster.wait_all_ready().await;
    cluster
}

async fn put(store: &Plain, number: u64) -> Result<(), Refusal> {
    let request = kv::PutRequest {
        key: format!("key/{number:06}").into(),
        value: value(number).into(),
        request_id: format!("put-{number}-{:?}", Instant::now()).into(),
        ..Default::default()
    };
    let put = store.put_as(request).await;
    put.map(drop).map_err(|status| Refusal::of(&status))
}

#[track_caller]
fn assert_no_space(refusal: &Refusal) {
    refusal
        .is(Code::ResourceExhausted, "NO_SPACE")
        .outcome("not_applied");
    assert!(refusal.retry_after.is_some(), "{refusal:?}");
    assert_eq!(refusal.meta("limit"), "storage.reserve", "{refusal:?}");
    assert!(refusal.message.contains("goes on by itself"), "{refusal:?}");
}

/// Puts until it is refused for want of room; how many were taken.
async fn fill(store: &Plain, from: u64) -> u64 {
    let began = Instant::now();
    for number in from.. {
        match put(store, number).await {
            Ok(()) => {}
            Err(refusal) => {
                assert_no_space(&refusal);
                println!(
                    "{} values of {} KiB in {:?}, then: {}",
                    number - from,
                    VALUE_BYTES >> 10,
                    began.elapsed(),
                    refusal.message
                );
                return number;
            }
        }
    }
    unreachable!("no disk is endless")
}

/// Every store that should run does.
fn assert_alive(cluster: &mut Cluster) {
    for store in 0..cluster.len() {
        cluster.node_mut(store).check_running().unwrap();
    }
}

async fn assert_found(store: &Plain, number: u64) {
    let key = format!("key/{number:06}");
    let found = store.get(&key).await.unwrap();
    assert!(found.found, "{key}");
    let record = found.value;
    assert!(record == value(number), "{key} is not what was written");
}

async fn delete(store: &Plain, number: u64) {
    let key = format!("key/{number:06}");
    store.delete(&key, "").await.unwrap();
}

async fn delete_soon(store: &Plain, number: u64) {
    eventually(PATIENCE, "a delete is taken", async || {
        let key = format!("key/{number:06}");
        let deleted = store.delete(&key, "").await;
        deleted.map(drop).map_err(|status| status.to_string())
    })
    .await;
}

async fn put_soon(store: &Plain, number: u64) {
    let began = Instant::now();
    eventually(PATIENCE, "data is taken again", async || {
        put(store, number)
            .await
            .map_err(|refusal| format!("{refusal:?}"))
    })
    .await;
    println!("data is taken again after {:?}", began.elapsed());
}

/// A line of `/readyz?verbose`, of a store that is ready.
async fn disk_line(cluster: &Cluster, store: usize) -> String {
    let answer = http::get(cluster.http_addr(store), "/readyz?verbose")
        .await
        .unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    let mut lines = answer.body.lines();
    let line = lines.find(|line| line.contains("disk space"));
    line.unwrap_or_else(|| panic!("{}", answer.body)).to_owned()
}

async fn metric(cluster: &Cluster, store: usize, name: &str) -> f64 {
    let page = http::get(cluster.http_addr(store), "/metrics")
        .await
        .unwrap()
        .body;
    let mut lines = page.lines();
    let line = lines.find_map(|line| {
        let rest = line.strip_prefix(name)?;
        rest.strip_prefix("{}").unwrap_or(rest).strip_prefix(' ')
    });
    line.unwrap_or_else(|| panic!("{name} is not in\n{page}"))
        .parse()
        .unwrap()
}

#[test]
fn a_store_that_filled_its_disk_reads_deletes_and_goes_on_once_there_is_room() {
    let name = "a_store_that_filled_its_disk_reads_deletes_and_goes_on_once_there_is_room";
    on_a_small_disk(name, 512, async |disk| {
        let mut cluster = start_on(&disk, 1, &[0]).await;
        let store = Plain::on(&cluster, 0).await;
        let written = fill(&store, 0).await;
        assert!(written > 300, "only {written} fitted");

        // Full: what grows is refused, in either mode; what does not goes on.
        assert_found(&store, 0).await;
        assert_found(&store, written - 1).await;
        delete(&store, 0).await;
        let cas = store.cas("key/000001", 0, "larger", "").await.unwrap_err();
        assert_no_space(&Refusal::of(&cas));
        let line = disk_line(&cluster, 0).await;
        assert!(
            line.starts_with("[!]") && line.contains("NO_SPACE"),
            "{line}"
        );
        assert!(metric(&cluster, 0, "flaredb_storage_room_level").await >= 1.0);
        assert!(
            metric(
                &cluster,
                0,
                "flaredb_no_space_rejections_total{namespace=\"default\"}"
            )
            .await
                >= 1.0
        );
        let log = cluster.log(0);
        assert!(log.contains("the disk is full"), "{log}");

        // Another program takes all that is left: the reserve is given up, and deletes go on in it.
        let filler = Filler::take_all(&disk);
        for number in 1..20 {
            delete_soon(&store, number).await;
        }
        assert_found(&store, 20).await;
        assert_no_space(&put(&store, written).await.unwrap_err());
        assert_alive(&mut cluster);

        // It goes again, and nothing else was done: the level is as before.
        filler.give_back();
        let deleted = written * 9 / 10;
        for number in 20..deleted {
            delete_soon(&store, number).await;
        }
        put_soon(&store, written).await;
        assert_alive(&mut cluster);
        eventually(PATIENCE, "a reserve is held again", async || match metric(
            &cluster,
            0,
            "flaredb_storage_reserve_held_bytes",
        )
        .await
        {
            held if held >= f64::from(4 << 20) => Ok(()),
            held => Err(format!("{held} bytes are held")),
        })
        .await;

        // What was acknowledged is there after a crash, too.
        cluster.kill(0);
        cluster.restart(0).await;
        let store = Plain::on(&cluster, 0).await;
        for number in deleted..=written {
            assert_found(&store, number).await;
        }
        let gone = store.get(&format!("key/{:06}", deleted - 1)).await.unwrap();
        assert!(!gone.found);
    });
}

#[test]
fn a_store_starts_on_a_full_disk_and_serves_reads_and_deletes() {
    let name = "a_store_starts_on_a_full_disk_and_serves_reads_and_deletes";
    on_a_small_disk(name, 512, async |disk| {
        let mut cluster = start_on(&disk, 1, &[0]).await;
        let store = Plain::on(&cluster, 0).await;
        for number in 0..50 {
            put(&store, number).await.unwrap();
        }
        eventually(PATIENCE, "a reserve is held", async || {
            match metric(&cluster, 0, "flaredb_storage_reserve_held_bytes").await {
                0.0 => Err("nothing is held".to_owned()),
                _ => Ok(()),
            }
        })
        .await;
        cluster.kill(0);
        let filler = Filler::take_all(&disk);
        cluster.restart(0).await;
        let store = Plain::on(&cluster, 0).await;
        assert_found(&store, 7).await;
        assert_no_space(&put(&store, 50).await.unwrap_err());
        delete_soon(&store, 7).await;
        filler.give_back();
        put_soon(&store, 50).await;
        assert_alive(&mut cluster);
    });
}

#[test]
fn an_eventual_namespace_takes_data_where_there_is_room() {
    let name = "an_eventual_namespace_takes_data_where_there_is_room";
    on_a_small_disk(name, 512, async |disk| {
        let mut cluster = start_on(&disk, 3, &[2]).await;
        cluster
            .client()
            .create_namespace("cart", Some(rdb_types::Mode::Eventual), None)
            .await
            .unwrap();
        let full = Plain::on(&cluster, 2).await.namespace("cart");
        let ample = Plain::on(&cluster, 0).await.namespace("cart");
        put_soon(&full, 0).await;
        put_soon(&ample, 1).await;
        let filler = Filler::take_all(&disk);
        let refusal = eventually(PATIENCE, "the full store refuses", async || {
            put(&full, 2).await.err().ok_or("it was taken".to_owned())
        })
        .await;
        assert_no_space(&refusal);
        assert_eq!(refusal.meta("stores"), "3");
        delete_soon(&full, 0).await;
        for number in 10..60 {
            put(&ample, number).await.unwrap();
        }
        assert_alive(&mut cluster);
        filler.give_back();
        put_soon(&full, 3).await;
        eventually(PATIENCE, "the full store catches up", async || {
            match full.get("key/000059").await {
                Ok(found) if found.found => Ok(()),
                other => Err(format!("{:?}", other.map(|found| found.found))),
            }
        })
        .await;
        assert_alive(&mut cluster);
    });
}

#[test]
fn a_region_goes_on_without_the_store_whose_disk_is_full() {
    let name = "a_region_goes_on_without_the_store_whose_disk_is_full";
    on_a_small_disk(name, 512, async |disk| {
        let mut cluster = start_on(&disk, 3, &[2]).await;
        cluster.move_leader(DATA, 2).await;
        let store = Plain::on(&cluster, 0).await;
        put(&store, 0).await.unwrap();
        let filler = Filler::take_all(&disk);
        // Whoever led gives the lead away; meanwhile it may refuse.
        let began = Instant::now();
        eventually(PATIENCE, "another store leads", async || {
            put_soon(&store, 1).await;
            match cluster.leader_among(DATA, &[0, 1]).await {
                2 => Err("the full store leads".to_owned()),
                _ => Ok(()),
            }
        })
        .await;
        println!("another store leads after {:?}", began.elapsed());
        for number in 2..200 {
            put(&store, number).await.unwrap();
        }
        delete(&store, 0).await;
        assert_alive(&mut cluster);
        assert!(cluster.status(2).await.unwrap().disk.unwrap().room > 0);

        filler.give_back();
        eventually(PATIENCE, "the full store catches up", async || {
            let (full, other) = (
                cluster.report(2, DATA).await?,
                cluster.report(0, DATA).await?,
            );
            match full.applied_index >= other.commit_index {
                true => Ok(()),
                false => Err(format!("{} of {}", full.applied_index, other.commit_index)),
            }
        })
        .await;
        assert_alive(&mut cluster);
        assert!(!cluster.log(2).contains("the region has stopped"));
    });
}

#[test]
fn stores_that_share_a_full_disk_read_and_delete_and_go_on() {
    let name = "stores_that_share_a_full_disk_read_and_delete_and_go_on";
    on_a_small_disk(name, 1024, async |disk| {
        let mut cluster = start_on(&disk, 3, &[0, 1, 2]).await;
        let store = Plain::on(&cluster, 0).await;
        let written = fill(&store, 0).await;
        for asked in 0..3 {
            let store = Plain::on(&cluster, asked).await;
            assert_no_space(&put(&store, written).await.unwrap_err());
            assert_found(&store, written / 2).await;
            delete_soon(&store, asked as u64).await;
        }
        let filler = Filler::take_all(&disk);
        for number in 3..20 {
            delete_soon(&store, number).await;
        }
        assert_alive(&mut cluster);
        filler.give_back();
        for number in 20..written {
            delete_soon(&store, number).await;
        }
        put_soon(&store, written).await;
        assert_alive(&mut cluster);
    });
}
