//! Small disks: a file system of its own for each store, so that it can be filled.
//!
//! Owns the mounts: a sparse image with ext4 on a loop device where root allows (a real file system, that
//! syncs), else a small tmpfs, else none.
//!
//! Invariant: they are unmounted when this is dropped; the processes on them are dead by then.

use crate::ChaosError;
use crate::place::command;
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Several times what a run of hours needs, and an image is sparse.
const SIZE_MIB: u64 = 4096;
/// What takes up the rest.
const FILLER: &str = "filler";

/// The disks of a cluster.
pub struct Disks {
    mounts: Vec<PathBuf>,
    kind: &'static str,
}

impl Disks {
    /// Mounts one at each of these directories, which it makes.
    ///
    /// # Errors
    ///
    /// Why it cannot be done here.
    pub fn mount(dirs: &[PathBuf]) -> Result<Disks, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("mounting needs root".to_owned());
        }
        for (kind, mount) in [
            (
                "ext4 on loop devices",
                mount_image as fn(&Path) -> Result<(), String>,
            ),
            ("tmpfs", mount_tmpfs),
        ] {
            // From here on dropped, and so unmounted, whatever fails.
            let mut disks = Disks {
                mounts: Vec::new(),
                kind,
            };
            let mounted = dirs.iter().try_for_each(|dir| {
                fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
                mount(dir)?;
                disks.mounts.push(dir.clone());
                Ok(())
            });
            match mounted {
                Ok(()) => return Ok(disks),
                Err(why) if kind == "tmpfs" => return Err(why),
                Err(_) => {}
            }
        }
        Err("no kind of file system can be mounted".to_owned())
    }

    /// What they are.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// Takes up all the room on a store's disk.
    ///
    /// # Errors
    ///
    /// When there is still some.
    pub fn fill(&self, store: usize) -> Result<(), ChaosError> {
        let cannot =
            |error: &dyn std::fmt::Display| ChaosError::because("cannot fill the disk", error);
        let path = self.mounts[store].join(FILLER);
        let mut file = File::create(&path).map_err(|error| cannot(&error))?;
        // The store goes on writing meanwhile: what it took is not there any more, so try again with less.
        let mut begin = 0;
        for _ in 0..100 {
            let room = statvfs(&path).map_err(|error| cannot(&error))?;
            let free = room.f_bavail * room.f_frsize;
            if free == 0 {
                break;
            }
            for part in [free, free / 2, 4096] {
                if part > 0 && fallocate(&file, FallocateFlags::empty(), begin, part).is_ok() {
                    begin += part;
                    break;
                }
            }
        }
        // Where `fallocate` leaves a rest, bytes go in.
        std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0))
            .map_err(|error| cannot(&error))?;
        while file.write_all(&[0; 4096]).is_ok() {}
        Ok(())
    }

    /// Gives the room back.
    ///
    /// # Errors
    ///
    /// When the filler cannot be removed.
    pub fn empty(&self, store: usize) -> Result<(), ChaosError> {
        fs::remove_file(self.mounts[store].join(FILLER))
            .map_err(|error| ChaosError::because("cannot remove the filler", error))
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for mount in &self.mounts {
            let mount = mount.display();
            if command(&format!("umount {mount}")).is_err() {
                // Somebody looks into it: out of sight now, gone when they leave.
                let _ = command(&format!("umount --lazy {mount}"));
            }
        }
    }
}

fn mount_image(dir: &Path) -> Result<(), String> {
    let image = dir.with_extension("img");
    let dir = dir.display();
    File::create(&image)
        .and_then(|file| file.set_len(SIZE_MIB << 20))
        .map_err(|error| format!("{}: {error}", image.display()))?;
    let image = image.display();
    command(&format!("mkfs.ext4 -q -F -m 0 {image}"))?;
    command(&format!("mount -o loop,noatime {image} {dir}"))?;
    Ok(())
}

fn mount_tmpfs(dir: &Path) -> Result<(), String> {
    let dir = dir.display();
    command(&format!("mount -t tmpfs -o size=256m flaredb-chaos {dir}")).map(drop)
}
