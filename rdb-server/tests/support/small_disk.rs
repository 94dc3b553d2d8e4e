//! A small file system for a test, so that it can be filled.
//!
//! Owns the mount: a tmpfs in a mount namespace of its own, which ends with the test. So it needs no root where
//! the kernel lets anybody be root in a namespace; elsewhere the test says why it was skipped. Each test runs itself once
//! more, inside.
//!
//! Invariant: nothing stays mounted, however the test ends.

use rustix::fs::{FallocateFlags, fallocate};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the inner run finds it.
const DISK: &str = "FLAREDB_TEST_SMALL_DISK";

/// Runs `test` on a file system of `size_mib`: calls this test again, by its `name`.
pub(crate) fn on_a_small_disk<F: Future<Output = ()>>(
    name: &str,
    size_mib: u32,
    test: impl FnOnce(PathBuf) -> F,
) {
    if let Some(disk) = std::env::var_os(DISK) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        return runtime.block_on(test(PathBuf::from(disk)));
    }
    let parent = tempfile::tempdir().unwrap();
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
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(DISK, parent.path())
        .status()
        .unwrap();
    assert!(inner.success(), "on the small disk: {inner}");
}

/// What another program left on the disk.
pub(crate) struct Filler(PathBuf);

impl Filler {
    /// Takes so much.
    pub(crate) fn take(disk: &Path, bytes: u64) -> Filler {
        let path = disk.join("filler");
        let file = File::create(&path).unwrap();
        fallocate(&file, FallocateFlags::empty(), 0, bytes).unwrap();
        Filler(path)
    }

    /// Takes all that is left, to the last byte.
    pub(crate) fn take_all(disk: &Path) -> Filler {
        let path = disk.join("filler");
        let mut file = File::create(&path).unwrap();
        for size in [1 << 20, 4096] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
        Filler(path)
    }

    /// Is removed.
    pub(crate) fn give_back(self) {
        fs::remove_file(self.0).unwrap();
    }
}
