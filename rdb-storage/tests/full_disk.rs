//! A disk that runs full: writes are refused, reads go on, what was refused never appears, and
//! once there is room the store goes on writing.
//!
//! Needs a small file system of its own, so it runs only when asked to:
//!
//!     mount -t tmpfs -o size=256m none DIR
//!     FLAREDB_TEST_SMALL_DISK=DIR cargo test -p rdb-storage --test full_disk -- --ignored

#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "helpers of tests may stop at what they did not expect, and show what they measured"
)]

use std::{
    fs::{self, File},
    io::Write,
    path::PathBuf,
    time::{Duration, Instant},
};

use rdb_storage::{Engine, Family, RocksEngine, RocksOptions, StorageError, View, WriteBatch};

fn put(engine: &RocksEngine, number: u32) -> Result<(), StorageError> {
    let mut batch = WriteBatch::new();
    let value = vec![number as u8; 4096];
    batch.put(
        Family::RaftLog,
        number.to_be_bytes().to_vec(),
        value.clone(),
    );
    batch.put(Family::Data, number.to_be_bytes().to_vec(), value);
    engine.write(&batch)
}

/// Which of the numbers below `end` are there, in both families alike.
fn present(engine: &RocksEngine, end: u32) -> Vec<u32> {
    (0..end)
        .filter(|number| {
            let key = number.to_be_bytes();
            let data = engine.get(Family::Data, &key).expect("reading goes on");
            let log = engine.get(Family::RaftLog, &key).expect("reading goes on");
            assert_eq!(data, log, "{number} is there in part");
            data.is_some()
        })
        .collect()
}

#[test]
#[ignore = "needs a file system of some 256 MiB in FLAREDB_TEST_SMALL_DISK"]
fn a_full_disk_refuses_writes_and_recovers() {
    let directory = std::env::var_os("FLAREDB_TEST_SMALL_DISK")
        .map(PathBuf::from)
        .expect("FLAREDB_TEST_SMALL_DISK names a directory");
    let path = directory.join("db");
    let engine = RocksEngine::open(&path, RocksOptions::default()).expect("a new one");
    // Something else takes nearly all of the room, to be given back later.
    let free = engine.stats().free_disk_bytes.expect("it is known");
    assert!(free > 200 << 20, "the disk is too small for this test");
    let ballast = directory.join("ballast");
    File::create(&ballast)
        .and_then(|mut file| file.write_all(&vec![1; free as usize - (14 << 20)]))
        .expect("there is room for it");

    let mut accepted = Vec::new();
    let mut refused = Vec::new();
    for number in 0..8_000 {
        match put(&engine, number) {
            Ok(()) => accepted.push(number),
            Err(error) => {
                assert!(error.is_no_space(), "{error}");
                refused.push(number);
                if refused.len() == 20 {
                    println!("{error}");
                    break;
                }
            }
        }
    }
    assert_eq!(refused.len(), 20, "the disk was too large for this test");
    let end = refused.last().map_or(0, |last| last + 1);
    assert_eq!(present(&engine, end), accepted, "while full");

    fs::remove_file(&ballast).expect("it can be removed");
    // RocksDB looks for room every few seconds; it wants as much as it may have to flush.
    let freed = Instant::now();
    let late = loop {
        match put(&engine, end) {
            Ok(()) => break end,
            Err(error) => assert!(error.is_no_space(), "{error}"),
        }
        assert!(
            freed.elapsed() < Duration::from_secs(60),
            "it does not go on"
        );
        std::thread::sleep(Duration::from_millis(200));
    };
    println!("writes again {:?} after there was room", freed.elapsed());
    engine.sync().expect("there is room");
    accepted.push(late);
    assert_eq!(present(&engine, end + 1), accepted, "with room again");
    drop(engine);
    let engine = RocksEngine::open(&path, RocksOptions::default()).expect("it opens again");
    assert_eq!(present(&engine, end + 1), accepted, "after a restart");
}

/// A store that stopped because its disk was full, and was started again with room: `rdb-chaos` found
/// that it took its own log for damaged. RocksDB had tried to go on by itself, begun a new log, and noted
/// in it a length of the one before that counts the record which did not fit; then the flush found no
/// room either. (ext4 keeps blocks that count as free and that nobody gets: from some GiB on they are
/// enough to make RocksDB try, so use a disk of 4 GiB here.)
#[test]
#[ignore = "needs an ext4 of some 4 GiB in FLAREDB_TEST_SMALL_DISK"]
fn a_store_that_stopped_for_want_of_room_opens_again() {
    let directory = std::env::var_os("FLAREDB_TEST_SMALL_DISK")
        .map(PathBuf::from)
        .expect("FLAREDB_TEST_SMALL_DISK names a directory");
    let path = directory.join("stopped");
    let engine = RocksEngine::open(&path, RocksOptions::default()).expect("a new one");
    let large = |number: u32| {
        let mut batch = WriteBatch::new();
        for family in [Family::RaftLog, Family::Data] {
            let value = vec![number as u8; 256 << 10];
            batch.put(family, number.to_be_bytes().to_vec(), value);
        }
        engine.write(&batch)?;
        engine.sync()
    };
    large(0).expect("there is room");
    // Everything but what the log took in advance.
    let ballast = directory.join("stopped-ballast");
    let mut rest = File::create(&ballast).expect("there is room for a name");
    while rest.write_all(&[1; 1 << 20]).is_ok() {}
    while rest.write_all(&[1; 4096]).is_ok() {}
    drop(rest);
    let mut accepted = 1;
    let refused = loop {
        match large(accepted) {
            Ok(()) => accepted += 1,
            Err(error) => break error,
        }
        assert!(accepted < 1000, "the disk was too large for this test");
    };
    assert!(refused.is_no_space(), "{refused}");
    // Time for whatever RocksDB does by itself.
    std::thread::sleep(Duration::from_secs(2));
    drop(engine);

    fs::remove_file(&ballast).expect("it can be removed");
    let engine = RocksEngine::open(&path, RocksOptions::default()).expect("it opens again");
    for number in 0..accepted {
        let held = engine.get(Family::Data, &number.to_be_bytes());
        let length = held.expect("it reads").map(|value| value.len());
        assert_eq!(length, Some(256 << 10), "{number} was written");
    }
}
