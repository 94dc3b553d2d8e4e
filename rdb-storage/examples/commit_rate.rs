//! How many synced puts a second the committer reaches on this disk.
//!
//!     cargo run -p rdb-storage --example commit_rate [DIRECTORY] [SECONDS]
//!
//! Each row is a closed loop: so many callers, each with one put of 256 bytes under way, waiting
//! until it is durable. Callers are threads here, or callbacks that submit the next put when the
//! last is done (as a server with many requests under way does, without a thread for each).
//! The directory should be on the disk that is meant: a tmpfs syncs for nothing.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command speaks to its user"
)]

use std::{
    error::Error,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use rdb_storage::{
    Committer, Durability, Engine, Family, RocksEngine, RocksOptions, StorageError, WriteBatch,
};

const VALUE_BYTES: usize = 256;
const KEYS: u64 = 100_000;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments
        .next()
        .map_or_else(|| PathBuf::from("."), PathBuf::from);
    let seconds: u64 = arguments.next().as_deref().unwrap_or("3").parse()?;
    let parent = tempfile::tempdir_in(directory)?;
    println!("callers                puts/s   puts/sync   mean us");
    for callers in [1, 8, 64] {
        let label = format!("{callers} threads");
        measure(
            &parent.path().join(&label),
            &label,
            seconds,
            callers,
            with_threads,
        )?;
    }
    for callers in [8, 64, 256] {
        let label = format!("{callers} callbacks");
        measure(
            &parent.path().join(&label),
            &label,
            seconds,
            callers,
            with_callbacks,
        )?;
    }
    Ok(())
}

type Load = fn(&Committer, usize, Duration) -> u64;

fn measure(
    path: &std::path::Path,
    label: &str,
    seconds: u64,
    callers: usize,
    load: Load,
) -> Result<(), StorageError> {
    let engine = Arc::new(RocksEngine::open(path, RocksOptions::default())?);
    let committer = Committer::start(
        Arc::clone(&engine) as Arc<dyn Engine>,
        Box::new(|error| eprintln!("fatal: {error}")),
    );
    let started = Instant::now();
    let puts = load(&committer, callers, Duration::from_secs(seconds));
    let elapsed = started.elapsed().as_secs_f64();
    committer.shutdown();
    let syncs = engine.stats().syncs.max(1);
    println!(
        "{label:<20} {:>8.0} {:>11.1} {:>9.0}",
        puts as f64 / elapsed,
        puts as f64 / syncs as f64,
        elapsed * 1e6 * callers as f64 / puts.max(1) as f64,
    );
    Ok(())
}

fn put(number: u64) -> WriteBatch {
    let mut batch = WriteBatch::new();
    // Spread over the keys without a random generator.
    let key = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % KEYS;
    batch.put(
        Family::Data,
        key.to_be_bytes().to_vec(),
        vec![number as u8; VALUE_BYTES],
    );
    batch
}

fn with_threads(committer: &Committer, callers: usize, time: Duration) -> u64 {
    let done = AtomicU64::new(0);
    let until = Instant::now() + time;
    thread::scope(|scope| {
        for caller in 0..callers as u64 {
            let done = &done;
            scope.spawn(move || {
                let (sender, receiver) = mpsc::sync_channel(1);
                let mut number = caller << 32;
                while Instant::now() < until {
                    let sender = sender.clone();
                    committer.submit(
                        put(number),
                        Durability::Synced,
                        Box::new(move |result| {
                            let _ = sender.send(result.is_ok());
                        }),
                    );
                    if !receiver.recv().unwrap_or(false) {
                        return;
                    }
                    number += 1;
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    done.load(Ordering::Relaxed)
}

fn with_callbacks(committer: &Committer, callers: usize, time: Duration) -> u64 {
    struct Run {
        committer: Committer,
        done: AtomicU64,
        stop: AtomicBool,
        /// Closes when the last caller has stopped.
        _ended: mpsc::SyncSender<()>,
    }
    fn next(run: Arc<Run>) {
        let number = run.done.fetch_add(1, Ordering::Relaxed);
        let again = Arc::clone(&run);
        run.committer.submit(
            put(number),
            Durability::Synced,
            Box::new(move |result| {
                if result.is_ok() && !again.stop.load(Ordering::Relaxed) {
                    next(again);
                }
            }),
        );
    }
    let (ended, wait) = mpsc::sync_channel(1);
    let run = Arc::new(Run {
        committer: committer.clone(),
        done: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        _ended: ended,
    });
    for _ in 0..callers {
        next(Arc::clone(&run));
    }
    thread::sleep(time);
    run.stop.store(true, Ordering::Relaxed);
    let done = run.done.load(Ordering::Relaxed);
    drop(run);
    // Nobody sends; the channel closes with the last callback.
    let _ = wait.recv();
    done
}
