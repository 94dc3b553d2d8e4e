//! A disk that runs full: writes are refused, reads go on, what was refused never appears, once
//! there is room the store goes on writing, and it opens again from whatever it left.
//!
//! Each test runs itself once more with a small file system of its own, in a mount namespace that
//! ends with it: as root, or as whom the kernel lets be root in a namespace. Elsewhere it says
//! why it was skipped.

#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "helpers of tests may stop at what they did not expect, and show what they measured"
)]

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use rdb_storage::{Engine, Family, RocksEngine, RocksOptions, StorageError, View, WriteBatch};

/// Where the inner run finds its small file system.
const DISK: &str = "FLAREDB_TEST_SMALL_DISK";

/// RocksDB looks for room every five seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `test` on a file system of `size_mib`: calls this test again, by its `name`.
fn on_a_small_disk(name: &str, size_mib: u32, test: fn(&Path)) {
    if let Some(disk) = std::env::var_os(DISK) {
        return test(Path::new(&disk));
    }
    let parent = tempfile::tempdir().expect("a temporary directory");
    let mount = format!("mount -t tmpfs -o size={size_mib}m none \"$0\"");
    let enter = |how: &[&str], script: &str| {
        let mut command = Command::new("unshare");
        command.args(how).args(["sh", "-c", script]);
        command.arg(parent.path());
        command
    };
    let as_root: &[&str] = &["--mount"];
    let as_anybody: &[&str] = &["--user", "--map-root-user", "--mount"];
    let mut reasons = Vec::new();
    let possible = [as_root, as_anybody].into_iter().find(|how| {
        let reason = match enter(how, &mount).output() {
            Ok(tried) if tried.status.success() => return true,
            Ok(tried) => String::from_utf8_lossy(&tried.stderr).trim().to_owned(),
            Err(error) => format!("unshare: {error}"),
        };
        reasons.push(reason);
        false
    });
    let Some(how) = possible else {
        println!("SKIPPED {name}: no small disk: {}", reasons.join("; "));
        return;
    };
    let inner = enter(how, &format!("{mount} && exec \"$@\""))
        .arg(std::env::current_exe().expect("the test knows itself"))
        .args(["--exact", name, "--nocapture"])
        .env(DISK, parent.path())
        .status()
        .expect("it started a moment ago");
    assert!(inner.success(), "on the small disk: {inner}");
}

/// A file that takes room, to be given back.
struct Ballast(PathBuf);

impl Ballast {
    fn take(path: PathBuf, bytes: u64) -> Self {
        File::create(&path)
            .and_then(|mut file| file.write_all(&vec![1; bytes as usize]))
            .expect("there is room for it");
        Self(path)
    }

    /// All that is left.
    fn take_all(path: PathBuf) -> Self {
        let mut file = File::create(&path).expect("there is room for a name");
        for size in [1 << 20, 4096] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
        Self(path)
    }

    fn give_back(&self, bytes: u64) {
        let file = File::options().write(true).open(&self.0);
        let file = file.expect("it is there");
        let length = file.metadata().expect("it is open").len();
        file.set_len(length - bytes).expect("it can be cut");
    }

    fn give_back_all(self) {
        fs::remove_file(self.0).expect("it can be removed");
    }
}

/// Writes `number` to two families at once. What is written does not compress.
fn put(engine: &RocksEngine, number: u32, bytes: usize) -> Result<(), StorageError> {
    let mut batch = WriteBatch::new();
    let mut state = u64::from(number) + 1;
    let value: Vec<u8> = std::iter::repeat_with(|| {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(bytes)
    .collect();
    for family in [Family::RaftLog, Family::Data] {
        batch.put(family, number.to_be_bytes().to_vec(), value.clone());
    }
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

/// The log files in a database's directory.
fn logs(path: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(path)
        .expect("it can be listed")
        .map(|entry| entry.expect("it can be listed").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("it can be made");
    for entry in fs::read_dir(from).expect("it can be listed") {
        let entry = entry.expect("it can be listed");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("it can be copied");
    }
}

#[test]
fn a_full_disk_refuses_writes_and_recovers() {
    on_a_small_disk("a_full_disk_refuses_writes_and_recovers", 256, |disk| {
        let path = disk.join("db");
        // RocksDB itself meets the end of the disk.
        let options = RocksOptions {
            spare_disk_bytes: 0,
            ..RocksOptions::default()
        };
        let engine = RocksEngine::open(&path, options).expect("a new one");
        // Something else takes nearly all of the room, to be given back later.
        let free = engine.stats().free_disk_bytes.expect("it is known");
        assert!(free > 200 << 20, "the disk is too small for this test");
        let ballast = Ballast::take(disk.join("ballast"), free - (14 << 20));

        let mut accepted = Vec::new();
        let mut refused = Vec::new();
        for number in 0..8_000 {
            match put(&engine, number, 4096) {
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

        ballast.give_back_all();
        // RocksDB wants as much room as it may have to flush.
        let freed = Instant::now();
        while let Err(error) = put(&engine, end, 4096) {
            assert!(error.is_no_space(), "{error}");
            assert!(freed.elapsed() < PATIENCE, "it does not go on");
            std::thread::sleep(Duration::from_millis(200));
        }
        println!("writes again {:?} after there was room", freed.elapsed());
        engine.sync().expect("there is room");
        accepted.push(end);
        assert_eq!(present(&engine, end + 1), accepted, "with room again");
        drop(engine);
        let engine = RocksEngine::open(&path, RocksOptions::default()).expect("it opens again");
        assert_eq!(present(&engine, end + 1), accepted, "after a restart");
    });
}

/// A store that stopped because its disk was full, and was started again with room: `rdb-chaos`
/// found that it took its own log for damaged. RocksDB had tried to go on by itself, begun a new
/// log, and noted in it a length of the one before that counts the record which did not fit; then
/// the flush found no room either.
#[test]
fn a_store_that_stopped_for_want_of_room_opens_again() {
    let name = "a_store_that_stopped_for_want_of_room_opens_again";
    on_a_small_disk(name, 64, |disk| {
        // A family's buffer is half of this: RocksDB tries to go on once that much is free.
        let options = RocksOptions {
            write_buffer_bytes: 8 << 20,
            spare_disk_bytes: 0,
            ..RocksOptions::default()
        };
        let path = disk.join("db");
        let engine = RocksEngine::open(&path, options.clone()).expect("a new one");
        put(&engine, 0, 64 << 10).expect("there is room");
        engine.sync().expect("there is room");
        let [first] = &logs(&path)[..] else {
            panic!("a new database has one log file");
        };
        // Everything but what the log took in advance.
        let ballast = Ballast::take_all(disk.join("ballast"));
        let mut accepted = 1;
        let refused = loop {
            match put(&engine, accepted, 64 << 10) {
                Ok(()) => accepted += 1,
                Err(error) => break error,
            }
            assert!(accepted < 1000, "the disk was too large for this test");
        };
        assert!(refused.is_no_space(), "{refused}");
        let torn_bytes = fs::metadata(first).expect("it is in use").len();

        // Enough to try, not enough to succeed: the new log takes it in advance.
        ballast.give_back((4 << 20) + (256 << 10));
        let began = Instant::now();
        while logs(&path).len() < 2 {
            assert!(began.elapsed() < PATIENCE, "RocksDB does not try");
            std::thread::sleep(Duration::from_millis(50));
        }
        let elsewhere = tempfile::tempdir().expect("a temporary directory");
        // As a kill leaves it, and a power loss: nothing after the last sync is certain.
        let killed = elsewhere.path().join("killed");
        copy(&path, &killed);
        drop(engine);
        println!(
            "accepted {accepted}, the log {torn_bytes} bytes, closed {}",
            fs::metadata(first).expect("it is needed").len()
        );
        ballast.give_back_all();
        let all: Vec<u32> = (0..accepted).collect();
        for path in [killed, path] {
            let open = || RocksEngine::open(&path, options.clone());
            let engine = open().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert_eq!(present(&engine, accepted + 1), all, "{}", path.display());
            put(&engine, accepted, 64 << 10).expect("there is room");
            engine.sync().expect("there is room");
            drop(engine);
            let engine = open().expect("it opens once more");
            assert_eq!(present(&engine, accepted + 1).len(), all.len() + 1);
        }
    });
}

#[test]
fn what_was_deleted_is_given_back_when_it_is_asked_for() {
    let name = "what_was_deleted_is_given_back_when_it_is_asked_for";
    on_a_small_disk(name, 256, |disk| {
        let options = RocksOptions {
            write_buffer_bytes: 8 << 20,
            ..RocksOptions::default()
        };
        let path = disk.join("db");
        let engine = RocksEngine::open(&path, options).expect("a new one");
        let free = || engine.stats().free_disk_bytes.expect("it is known");
        let mut written = 0;
        while free() > 48 << 20 {
            put(&engine, written, 64 << 10).expect("there is room");
            written += 1;
        }
        engine.sync().expect("there is room");
        let before = free();
        // Point by point, and in one range: as data goes, and a log. What is left is every tenth.
        let mut batch = WriteBatch::new();
        for number in (0..written).filter(|number| number % 10 > 0) {
            batch.delete(Family::Data, number.to_be_bytes().to_vec());
        }
        let (start, end) = (0_u32.to_be_bytes(), written.to_be_bytes());
        batch.delete_range(Family::RaftLog, start.to_vec(), end.to_vec());
        engine.write(&batch).expect("deletes are small");
        engine.sync().expect("there is room");
        engine.reclaim(&|| true).expect("nothing is done");
        let began = Instant::now();
        engine.reclaim(&|| false).expect("there is room for it");
        println!(
            "{} MiB free, and {} after {:?}",
            before >> 20,
            free() >> 20,
            began.elapsed()
        );
        assert!(free() > 160 << 20, "{} bytes are free", free());
        for number in 0..written {
            let key = number.to_be_bytes();
            let data = engine.get(Family::Data, &key).expect("reading goes on");
            assert_eq!(data.is_some(), number % 10 == 0, "{number}");
            let log = engine.get(Family::RaftLog, &key).expect("reading goes on");
            assert!(log.is_none(), "{number}");
        }
    });
}

/// At the end of the disk a new log file would be begun, for a flush or a full buffer: from that RocksDB does not
/// go on by itself, so it is not let get there.
#[test]
fn a_full_disk_is_left_at_once_whatever_was_tried_on_it() {
    let name = "a_full_disk_is_left_at_once_whatever_was_tried_on_it";
    on_a_small_disk(name, 64, |disk| {
        let options = RocksOptions {
            write_buffer_bytes: 2 << 20,
            ..RocksOptions::default()
        };
        let engine = RocksEngine::open(&disk.join("db"), options).expect("a new one");
        put(&engine, 0, 64 << 10).expect("there is room");
        engine.sync().expect("there is room");
        let ballast = Ballast::take_all(disk.join("ballast"));
        for number in 1..100 {
            let refused = put(&engine, number, 64 << 10).expect_err("there is no room");
            assert!(refused.is_no_space(), "{refused}");
            let refused = engine.reclaim(&|| false).expect_err("there is no room");
            assert!(refused.is_no_space(), "{refused}");
        }
        assert_eq!(present(&engine, 100), [0]);
        ballast.give_back_all();
        put(&engine, 1, 64 << 10).expect("there is room");
        engine.reclaim(&|| false).expect("there is room");
        engine.sync().expect("there is room");
        assert_eq!(present(&engine, 100), [0, 1]);
    });
}
