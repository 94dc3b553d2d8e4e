//! Where a run lives: its directory, and the names of what it makes outside of it.
//!
//! Owns the directory, whether it is kept, and the removal of what runs left behind that were killed
//! with kill -9. Everything a run makes carries its process id, so that nobody removes what is in use.

use crate::ChaosError;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const DIR: &str = "flaredb-chaos-";
const NAMESPACE: &str = "fdbchaos-";
const BRIDGE: &str = "fdbc";

/// A run's directory; removed when this is dropped, unless it is to be kept.
pub struct Place {
    path: PathBuf,
    keep: bool,
}

impl Place {
    /// Makes it: `parent/flaredb-chaos-PID`. Removes what dead runs left there and in the network.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn make(parent: &Path) -> Result<Place, ChaosError> {
        sweep(parent);
        // Several clusters of one run (the control) follow each other.
        let path = (0..)
            .map(|turn| parent.join(format!("{DIR}{}-{turn}", std::process::id())))
            .find(|path| !path.exists())
            .unwrap_or_else(|| parent.join(DIR));
        fs::create_dir_all(&path).map_err(|error| {
            let what = format!("cannot make {} (--dir names another place)", path.display());
            ChaosError::because(what, error)
        })?;
        Ok(Place { path, keep: false })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// It stays.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.keep && !std::thread::panicking() {
            // What is left is in a place for temporary files.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// The network namespace of a store of this process.
pub(crate) fn namespace(store: usize) -> String {
    format!("{NAMESPACE}{}-{}", std::process::id(), store + 1)
}

/// The bridge of this process; a name of a network device has 15 characters at most.
pub(crate) fn bridge() -> String {
    format!("{BRIDGE}{}", std::process::id())
}

/// Runs a command; an error is what it said.
pub(crate) fn command(line: &str) -> Result<String, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let Some((program, args)) = words.split_first() else {
        return Err("an empty command".to_owned());
    };
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{line}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{line}: {}", said.trim()))
    }
}

/// Removes what dead runs left behind. What cannot be removed is in nobody's way: names differ.
fn sweep(parent: &Path) {
    // Nobody but root made any, and nobody else can remove them.
    for name in command("ip netns list").unwrap_or_default().lines() {
        let name = name.split(' ').next().unwrap_or_default();
        let owner = name
            .strip_prefix(NAMESPACE)
            .and_then(|rest| rest.split('-').next());
        if owner.is_some_and(is_dead) {
            let pids = command(&format!("ip netns pids {name}")).unwrap_or_default();
            for pid in pids.lines() {
                let _ = command(&format!("kill -9 {pid}"));
            }
            let _ = command(&format!("ip netns del {name}"));
        }
    }
    for link in fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = link.file_name().to_string_lossy().into_owned();
        if name.strip_prefix(BRIDGE).is_some_and(is_dead) {
            let _ = command(&format!("ip link del {name}"));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for mount in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        let dir = Path::new(mount).parent().and_then(Path::file_name);
        if dir.is_some_and(|dir| owner_is_dead(&dir.to_string_lossy())) {
            let _ = command(&format!("umount {mount}"));
        }
    }
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let kept = entry.path().join(KEPT).exists();
        if !kept && owner_is_dead(&entry.file_name().to_string_lossy()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The file that says why a directory was kept: such a one is its reader's to remove.
pub(crate) const KEPT: &str = "WHY";

/// Whether this is the directory of a run that is over.
fn owner_is_dead(dir: &str) -> bool {
    dir.strip_prefix(DIR)
        .and_then(|rest| rest.split('-').next())
        .is_some_and(is_dead)
}

/// Whether this is the id of a process that is gone.
fn is_dead(pid: &str) -> bool {
    pid.parse::<u32>()
        .is_ok_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_removed_unless_it_is_kept() {
        let parent = tempfile::tempdir().unwrap();
        let place = Place::make(parent.path()).unwrap();
        let path = place.path().to_owned();
        drop(place);
        assert!(!path.exists());
        let mut place = Place::make(parent.path()).unwrap();
        place.keep();
        drop(place);
        assert!(path.exists());
    }

    #[test]
    fn what_a_dead_run_left_is_removed_and_what_is_kept_or_in_use_is_not() {
        let parent = tempfile::tempdir().unwrap();
        // Beyond the largest process id of Linux.
        let [dead, kept] = [DIR, DIR].map(|prefix| format!("{prefix}4194999"));
        let (dead, kept) = (parent.path().join(dead), parent.path().join(kept + "-1"));
        let used = parent.path().join(format!("{DIR}{}-7", std::process::id()));
        for dir in [&dead, &kept, &used] {
            fs::create_dir(dir).unwrap();
        }
        fs::write(kept.join(KEPT), "").unwrap();
        sweep(parent.path());
        assert_eq!(
            [dead.exists(), kept.exists(), used.exists()],
            [false, true, true]
        );
    }
}
