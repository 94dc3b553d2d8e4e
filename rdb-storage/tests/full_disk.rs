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
