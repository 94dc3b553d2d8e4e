//! A process that is killed with -9 in the middle of its writes loses nothing that it was told
//! is durable, and what it has is a prefix of what it wrote.
//!
//! The test starts itself again as the writer: a thread of the same process could not be killed.

#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "helpers of tests may stop at what they did not expect, and show what they measured"
)]

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use rdb_storage::{
    Committer, Durability, Family, KeyRange, RocksEngine, RocksOptions, View, WriteBatch,
};

const DIRECTORY: &str = "RDB_STORAGE_TEST_WRITER_DIRECTORY";

/// Small buffers, so that flushes, compactions and new log files happen all the time.
fn options() -> RocksOptions {
    RocksOptions {
        block_cache_bytes: 1 << 20,
        write_buffer_bytes: 2 << 20,
        ..RocksOptions::default()
    }
}

/// Writes numbers upwards for ever: each into two families, with a range of the log removed now
/// and then. Prints each number once it is durable.
fn write_for_ever(path: &Path) {
    let engine = Arc::new(RocksEngine::open(path, options()).expect("it opens"));
    let mut number = next_number(&*engine);
    let committer = Committer::start(engine, Box::new(|error| panic!("{error}")));
    loop {
        let mut batch = WriteBatch::new();
        let key = number.to_be_bytes();
        batch.put(Family::RaftLog, key.to_vec(), vec![7; 700]);
        batch.put(Family::Data, vec![(number % 100) as u8], key.to_vec());
        if number.is_multiple_of(64) {
            let kept = number.saturating_sub(500).to_be_bytes();
            batch.delete_range(Family::RaftLog, 0_u64.to_be_bytes().to_vec(), kept.to_vec());
        }
        let durability = match number % 4 {
            0 => Durability::Synced,
            _ => Durability::Written,
        };
        committer.submit(
            batch,
            durability,
            Box::new(move |result| {
                result.expect("no fault is injected");
                if durability == Durability::Synced {
                    let mut out = std::io::stdout().lock();
                    let _ = writeln!(out, "durable {number}");
                    let _ = out.flush();
                }
            }),
        );
        number += 1;
        // Some thousand in flight at most.
        while committer.queued_bytes() > 1 << 20 {
            std::thread::yield_now();
        }
    }
}

/// One more than the last number written.
fn next_number(engine: &dyn View) -> u64 {
    engine
        .scan(Family::RaftLog, &KeyRange::all(), true)
        .next()
        .map_or(0, |item| {
            let (key, _) = item.expect("scanning does not fail");
            1 + u64::from_be_bytes(key[..].try_into().expect("eight bytes were written"))
        })
}

/// The state is that after some number: no gap in the log, and the other family agrees.
fn check(path: &Path, durable: Option<u64>) -> u64 {
    let engine = RocksEngine::open(path, options()).expect("a killed process leaves no damage");
    let next = next_number(&engine);
    assert!(
        durable.is_none_or(|durable| next > durable),
        "{durable:?} was durable, the log ends before {next}"
    );
    let mut expected = None;
    for item in engine.scan(Family::RaftLog, &KeyRange::all(), false) {
        let (key, _) = item.expect("scanning does not fail");
        let number = u64::from_be_bytes(key[..].try_into().expect("eight bytes were written"));
        assert_eq!(number, expected.unwrap_or(number), "a gap in the log");
        expected = Some(number + 1);
    }
    for slot in 0..next.min(100) {
        let last = next - 1 - slot;
        let found = engine
            .get(Family::Data, &[(last % 100) as u8])
            .expect("reading does not fail");
        assert_eq!(found.as_deref(), Some(&last.to_be_bytes()[..]));
    }
    next
}

#[test]
fn kill_9_loses_nothing_durable() {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        write_for_ever(Path::new(&directory));
        return;
    }
    let parent = tempfile::tempdir().expect("a temporary directory");
    let path = parent.path().join("db");
    let mut rows = Vec::new();
    for round in 0..8_u64 {
        let mut writer = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "kill_9_loses_nothing_durable", "--nocapture"])
            .env(DIRECTORY, &path)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the writer starts");
        let lines = BufReader::new(writer.stdout.take().expect("it is piped")).lines();
        let reader = std::thread::spawn(move || {
            let mut durable = None;
            for line in lines {
                // The last line may be torn like any other write.
                let Ok(line) = line else { break };
                if let Some(number) = line.strip_prefix("durable ") {
                    durable = number.parse::<u64>().ok().max(durable);
                }
            }
            durable
        });
        std::thread::sleep(Duration::from_millis(300 + 170 * round));
        writer.kill().expect("it can be killed");
        writer.wait().expect("it ends");
        let durable = reader.join().expect("the reader ends with the writer");
        let next = check(&path, durable);
        rows.push((durable, next));
    }
    println!("durable, written: {rows:?}");
    assert!(
        rows.iter().any(|(durable, _)| durable.is_some()),
        "no round was long enough to write anything"
    );
}
