//! A process may end while other threads open and close databases: it ends with its own exit code.
//!
//! Servers that refused to start ended by SIGABRT now and then ("pthread lock: Invalid argument"):
//! the committer's thread still let go of the database while `main` had returned, and what is static
//! in RocksDB was gone.

#![allow(
    clippy::expect_used,
    reason = "helpers of tests may stop at what they did not expect"
)]

use std::{path::PathBuf, process::Command, sync::mpsc, thread};

use rdb_storage::{RocksEngine, RocksOptions, StorageError};

/// Where the inner run keeps its databases.
const DIRECTORY: &str = "FLAREDB_TEST_PROCESS_EXIT";

/// Without the handler about every second run is aborted.
const RUNS: usize = 20;
const THREADS: usize = 4;

#[test]
fn a_process_ends_well_while_threads_open_and_close() {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        return leave_threads_behind(&PathBuf::from(directory));
    }
    for run in 0..RUNS {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let ended = Command::new(std::env::current_exe().expect("the test knows itself"))
            .args([
                "--exact",
                "a_process_ends_well_while_threads_open_and_close",
            ])
            .env(DIRECTORY, directory.path())
            .output()
            .expect("it can be started");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(
            ended.status.success(),
            "run {run}: {}: {said}",
            ended.status
        );
    }
}

/// Returns, and so ends the process, while each of some threads opens and closes a database again and
/// again.
fn leave_threads_behind(directory: &std::path::Path) {
    let (began, begun) = mpsc::sync_channel(THREADS);
    for number in 0..THREADS {
        let path = directory.join(number.to_string());
        let mut began = Some(began.clone());
        thread::spawn(move || {
            loop {
                match RocksEngine::open(&path, RocksOptions::default()) {
                    Ok(engine) => drop(engine),
                    // The process is ending.
                    Err(StorageError::Closed) => return,
                    Err(error) => panic!("{error}"),
                }
                if let Some(began) = began.take() {
                    began.send(()).expect("somebody waits for it");
                }
            }
        });
    }
    for _ in 0..THREADS {
        begun.recv().expect("all of them go on");
    }
}
