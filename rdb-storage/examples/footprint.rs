//! How much memory and disk the engine takes: idle, and with 100,000 records of 256 bytes.
//!
//!     cargo run -p rdb-storage --example footprint [DIRECTORY]
//!
//! The load is what a strong store writes: a log entry first, then the record, and a range of
//! the log removed now and then. Resident memory is that of this process (Linux only).

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command speaks to its user"
)]

use std::{error::Error, fs, path::PathBuf, sync::Arc};

use rdb_storage::{
    Engine, EngineStats, Family, KeyRange, RocksEngine, RocksOptions, View, WriteBatch,
};

const RECORDS: u64 = 100_000;
const VALUE_BYTES: usize = 256;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args()
        .nth(1)
        .map_or_else(|| PathBuf::from("."), PathBuf::from);
    let parent = tempfile::tempdir_in(directory)?;
    let path = parent.path().join("db");
    println!("{:<28} resident {:>5.1} MiB", "before open", resident_mib());

    let engine = Arc::new(RocksEngine::open(&path, RocksOptions::default())?);
    report("idle", &engine.stats());

    for number in 0..RECORDS {
        let key = number
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .to_be_bytes()
            .to_vec();
        // Bytes that do not compress, so that the disk's share is honest.
        let value: Vec<u8> = (0..VALUE_BYTES as u64)
            .map(|index| ((number * 31 + index).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
            .collect();
        let mut batch = WriteBatch::new();
        batch.put(
            Family::RaftLog,
            number.to_be_bytes().to_vec(),
            value.clone(),
        );
        engine.write(&batch)?;
        let mut batch = WriteBatch::new();
        batch.put(Family::Data, key, value);
        batch.put(Family::RaftState, "applied", number.to_be_bytes().to_vec());
        if number % 1_000 == 0 {
            let kept = number.saturating_sub(5_000).to_be_bytes().to_vec();
            batch.delete_range(Family::RaftLog, 0_u64.to_be_bytes().to_vec(), kept);
        }
        engine.write(&batch)?;
        if number % 100 == 0 {
            engine.sync()?;
        }
    }
    engine.sync()?;
    report("loaded", &engine.stats());

    for number in 0..RECORDS {
        let key = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
        if engine.get(Family::Data, &key)?.is_none() {
            return Err(format!("record {number} is missing").into());
        }
    }
    report("each record read once", &engine.stats());
    let scanned = engine.scan(Family::Data, &KeyRange::all(), false).count();
    report(&format!("{scanned} records scanned"), &engine.stats());

    drop(engine);
    let engine = RocksEngine::open(&path, RocksOptions::default())?;
    report("opened again", &engine.stats());
    Ok(())
}

fn report(moment: &str, stats: &EngineStats) {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "{moment:<28} resident {:>5.1} MiB, memtables {:>4.1}, block cache {:>4.1}, readers {:>4.2}, disk {:>5.1}",
        resident_mib(),
        mib(stats.memtable_bytes),
        mib(stats.cache_bytes),
        mib(stats.table_reader_bytes),
        mib(stats.disk_bytes),
    );
}

/// Resident memory of this process; zero where the system does not say.
fn resident_mib() -> f64 {
    fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
            line.split_whitespace().nth(1)?.parse::<f64>().ok()
        })
        .map_or(0.0, |kib| kib / 1024.0)
}
