//! What the machine gives this process: memory, files, processor time, and room on the disk.
//!
//! Owns the reading of `/proc/self`. Judges nothing: what is too little is said by alerts and by `flaredb status`.
//!
//! Invariant: what the system does not say is absent, never zero in disguise.

use parking_lot::Mutex;
use rdb_proto::raft::DiskStatus;
use rdb_storage::Engine;
use std::fs;
use std::time::Duration;
use tokio::time::Instant;

/// A status may be asked for many times a second; looking means reading a directory.
const FRESH: Duration = Duration::from_secs(2);

/// The kernel's clock ticks a second, as it shows them to programs: 100 on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// This process, as the system counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Process {
    /// Memory that it holds.
    pub resident_bytes: Option<u64>,
    /// Of it, what is no file's.
    pub anonymous_bytes: Option<u64>,
    /// Files and connections that are open, and how many may be.
    pub open_files: Option<u64>,
    /// None where there is no limit.
    pub max_files: Option<u64>,
    /// Processor time, all threads together.
    pub cpu_seconds: Option<f64>,
    /// Threads.
    pub threads: Option<u64>,
}

impl Process {
    /// As it is now.
    pub fn now() -> Process {
        let read = |name| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
        let open_files = fs::read_dir("/proc/self/fd").ok().map(|files| {
            // One of them is this look itself.
            (files.count() as u64).saturating_sub(1)
        });
        Process {
            open_files,
            ..Process::parse(&read("status"), &read("stat"), &read("limits"))
        }
    }

    fn parse(status: &str, stat: &str, limits: &str) -> Process {
        let of_status = |name: &str| {
            let mut lines = status.lines();
            let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        let kib = |name| of_status(name).and_then(|kib| kib.checked_mul(1024));
        // The name of the program may hold anything; the numbers begin behind its bracket.
        let ticks = || {
            let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
            let user: u64 = fields.next()?.parse().ok()?;
            let system: u64 = fields.next()?.parse().ok()?;
            Some((user + system) as f64 / TICKS_PER_SECOND)
        };
        let max_files = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"));
        Process {
            resident_bytes: kib("VmRSS"),
            anonymous_bytes: kib("RssAnon"),
            open_files: None,
            max_files: max_files.and_then(|line| line.split_whitespace().next()?.parse().ok()),
            cpu_seconds: ticks(),
            threads: of_status("Threads"),
        }
    }
}

/// Looks after the file system that a store writes to.
#[derive(Debug, Default)]
pub struct DiskWatch {
    seen: Mutex<Option<(Instant, Option<DiskStatus>)>>,
}

impl DiskWatch {
    /// As it is now, or was a moment ago; none for an engine in memory.
    pub fn look(&self, engine: &dyn Engine) -> Option<DiskStatus> {
        let now = Instant::now();
        let mut seen = self.seen.lock();
        if let Some((at, disk)) = *seen
            && now.saturating_duration_since(at) < FRESH
        {
            return disk;
        }
        let stats = engine.stats();
        let file_system = stats.free_disk_bytes.zip(stats.total_disk_bytes);
        let disk = file_system.map(|(free_bytes, total_bytes)| DiskStatus {
            free_bytes,
            total_bytes,
            used_bytes: stats.disk_bytes,
            ..DiskStatus::default()
        });
        *seen = Some((now, disk));
        disk
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_writes_is_read_and_what_it_does_not_is_absent() {
        let status = "Name:\trdb-server\nVmRSS:\t   45056 kB\nRssAnon:\t  40960 kB\nThreads:\t17\n";
        let stat = "7 (rdb) (server) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 17 0 1 2 3";
        let limits = "Limit Soft Hard Units\nMax open files            1024                 524288               files\n";
        let process = Process::parse(status, stat, limits);
        assert_eq!(process.resident_bytes, Some(44 << 20));
        assert_eq!(process.anonymous_bytes, Some(40 << 20));
        assert_eq!(process.threads, Some(17));
        assert_eq!(process.cpu_seconds, Some(3.0));
        assert_eq!(process.max_files, Some(1024));
        assert_eq!(
            Process::parse("", "garbage", "Max open files unlimited"),
            Process::default()
        );
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_holds_memory_and_files() {
        let process = Process::now();
        assert!(process.resident_bytes.is_some_and(|bytes| bytes > 1 << 20));
        assert!(process.open_files.is_some_and(|files| files > 2));
        assert!(process.cpu_seconds.is_some());
    }

    #[test]
    fn a_store_in_memory_has_no_disk() {
        let engine = rdb_storage::MemoryEngine::new();
        assert_eq!(DiskWatch::default().look(&engine), None);
    }
}
