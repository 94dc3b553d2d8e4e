//! The room that a store keeps for the time when the disk is full.
//!
//! Owns one file, `RESERVE` in the data directory, that holds nothing and takes up room: no other program can
//! have that room, and the store gives it back to itself when it needs it. And the question how much room a
//! file system has. Decides nothing: when the room is held and when it is given up, the store says.
//!
//! Invariants: the file's room is real (allocated, not sparse), or the file is not there; the disk is never
//! filled, not for a moment, by the try to hold more than there is.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

const RESERVE_FILE: &str = "RESERVE";

/// In which units `st_blocks` counts, whatever a file system's own blocks are.
const BLOCK_BYTES: u64 = 512;

/// The room of a file system.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Space {
    /// What a process without privileges can still write.
    pub free_bytes: u64,
    /// The whole.
    pub total_bytes: u64,
}

impl Space {
    /// Of the file system that `path` is on; none where the system does not say.
    pub fn of(path: &Path) -> Option<Space> {
        let stat = statvfs(path).ok()?;
        let bytes = |blocks: u64| blocks.checked_mul(stat.f_frsize);
        let space = Space {
            free_bytes: bytes(stat.f_bavail)?,
            total_bytes: bytes(stat.f_blocks)?,
        };
        // Some file systems say that they have nothing at all.
        (space.total_bytes > 0).then_some(space)
    }
}

/// The room of a store's disk, and the part of it that the store holds for itself.
pub trait Reserve: Send + Sync {
    /// How much room there is; none where that is unknown or has no bound.
    fn space(&self) -> Option<Space>;

    /// How much is held.
    fn held_bytes(&self) -> u64;

    /// Holds so much: no more, no less. Waits for the disk.
    ///
    /// # Errors
    /// There is no room, or the file system cannot do it: nothing is held.
    fn hold(&self, bytes: u64) -> io::Result<()>;

    /// Gives up what is held, so that it can be written. Waits for the disk.
    ///
    /// # Errors
    /// The system refused.
    fn give_up(&self) -> io::Result<()>;
}

/// A [`Reserve`] that is a file.
#[derive(Debug)]
pub struct ReserveFile {
    directory: PathBuf,
    file: PathBuf,
}

impl ReserveFile {
    /// In the data directory `directory`. Touches nothing; what an earlier process held is still held.
    pub fn new(directory: &Path) -> ReserveFile {
        ReserveFile {
            directory: directory.to_owned(),
            file: directory.join(RESERVE_FILE),
        }
    }
}

impl Reserve for ReserveFile {
    fn space(&self) -> Option<Space> {
        Space::of(&self.directory)
    }

    fn held_bytes(&self) -> u64 {
        let metadata = fs::metadata(&self.file);
        metadata.map_or(0, |metadata| metadata.blocks() * BLOCK_BYTES)
    }

    fn hold(&self, bytes: u64) -> io::Result<()> {
        self.give_up()?;
        if bytes == 0 {
            return Ok(());
        }
        // The call takes all that is left before it finds that it is too little: others would meet a full disk.
        match self.space() {
            Some(Space { free_bytes, .. }) if free_bytes < bytes => {
                let left = format!("{bytes} bytes are wanted, {free_bytes} are left");
                return Err(io::Error::new(io::ErrorKind::StorageFull, left));
            }
            _ => {}
        }
        let held = File::create(&self.file)
            .and_then(|file| Ok(fallocate(&file, FallocateFlags::empty(), 0, bytes)?));
        if held.is_err() {
            self.give_up()?;
        }
        held
    }

    fn give_up(&self) -> io::Result<()> {
        match fs::remove_file(&self.file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Of a disk without a bound: a store in memory.
#[derive(Copy, Clone, Debug, Default)]
pub struct Boundless;

impl Reserve for Boundless {
    fn space(&self) -> Option<Space> {
        None
    }

    fn held_bytes(&self) -> u64 {
        0
    }

    fn hold(&self, _bytes: u64) -> io::Result<()> {
        Ok(())
    }

    fn give_up(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_allocated_and_can_be_given_up() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let reserve = ReserveFile::new(directory.path());
        let space = reserve.space().expect("the system says");
        assert!(space.free_bytes > 0 && space.free_bytes <= space.total_bytes);
        assert_eq!(reserve.held_bytes(), 0);
        reserve.give_up().expect("there is nothing to give up");

        reserve.hold(3 << 20).expect("there is room");
        assert!(reserve.held_bytes() >= 3 << 20);
        let again = ReserveFile::new(directory.path());
        assert!(
            again.held_bytes() >= 3 << 20,
            "the next process finds it held"
        );
        again.hold(1 << 20).expect("there is room");
        assert!((1 << 20..2 << 20).contains(&again.held_bytes()));
        again.give_up().expect("it is there");
        assert_eq!(reserve.held_bytes(), 0);
        reserve.hold(0).expect("nothing needs no room");
        assert_eq!(reserve.held_bytes(), 0);
    }

    #[test]
    fn more_than_there_is_cannot_be_held_and_leaves_nothing() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let reserve = ReserveFile::new(directory.path());
        let total_bytes = reserve.space().expect("the system says").total_bytes;
        reserve.hold(1 << 20).expect("there is room");
        let error = reserve.hold(total_bytes.saturating_mul(2)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(reserve.held_bytes(), 0);
        assert!(!directory.path().join(RESERVE_FILE).exists());
    }

    #[test]
    fn more_than_there_is_is_not_even_tried() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let reserve = ReserveFile::new(directory.path());
        let total_bytes = reserve.space().expect("the system says").total_bytes;
        // A file that comes and goes leaves its mark on the directory's time.
        let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        let opened = File::open(directory.path()).expect("the directory can be opened");
        opened.set_modified(long_ago).expect("the time can be set");
        assert!(reserve.hold(total_bytes.saturating_mul(2)).is_err());
        let metadata = opened.metadata().expect("it is there");
        assert_eq!(metadata.modified().expect("the system says"), long_ago);
    }
}
