//! What can go wrong on a disk, in the few kinds that callers treat differently.
//!
//! Owns the error type of engines and committer, and the reading of RocksDB's error texts.
//! Does not know a wire format: servers translate at their edge.
//!
//! Invariant: an error can be cloned, because one failed write is reported to everyone
//! whose batch was in it.

use std::{path::Path, sync::Arc};

use thiserror::Error;

/// Why a read, a write or a sync did not happen.
#[derive(Clone, Debug, Error)]
pub enum StorageError {
    /// The file system has no room. The write had no effect, is not visible and will not
    /// appear after a restart; reads go on.
    #[error("the disk is full while {doing}: {detail}; free space on it or delete data")]
    NoSpace {
        /// What was being done.
        doing: &'static str,
        /// The file and the system's message.
        detail: Arc<str>,
    },
    /// Bytes on disk are not what was written.
    #[error(
        "stored data is damaged ({at}): {detail}; leave this store out and keep the directory: \
         an older copy of it must not take its place, it lacks what the store acknowledged since. \
         The other stores serve on without this one while they are a majority"
    )]
    Corruption {
        /// The directory or file, with the offset where it is known.
        at: Arc<str>,
        /// What does not fit.
        detail: Arc<str>,
    },
    /// The database is open somewhere else.
    #[error("{at} is open in another process; stop that one first ({detail})")]
    Locked {
        /// The directory.
        at: Arc<str>,
        /// What the lock said.
        detail: Arc<str>,
    },
    /// The operating system refused something. If it was a sync, nothing that was written
    /// since the last good one may be relied on: the process has to end.
    #[error("I/O error while {doing}: {detail}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file and the system's message.
        detail: Arc<str>,
    },
    /// The committer was shut down: the batch was not written.
    #[error("the store is shutting down; the batch was not written")]
    Closed,
    /// The engine or the thread behind it failed in a way that has no name here.
    #[error("storage failed while {doing}: {detail}")]
    Internal {
        /// What was being done.
        doing: &'static str,
        /// The message as it came.
        detail: Arc<str>,
    },
}

impl StorageError {
    /// Whether this is a full disk: the one write error after which the store goes on.
    pub fn is_no_space(&self) -> bool {
        matches!(self, StorageError::NoSpace { .. })
    }

    /// Whether stored bytes were found to be damaged.
    pub fn is_corruption(&self) -> bool {
        matches!(self, StorageError::Corruption { .. })
    }

    /// Stored bytes that are not what was written: where, and what does not fit.
    pub fn corruption(at: impl std::fmt::Display, detail: impl Into<Arc<str>>) -> Self {
        StorageError::Corruption {
            at: at.to_string().into(),
            detail: detail.into(),
        }
    }

    pub(crate) fn from_io(doing: &'static str, path: &Path, error: &std::io::Error) -> Self {
        let detail: Arc<str> = format!("{}: {error}", path.display()).into();
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                StorageError::NoSpace { doing, detail }
            }
            _ => StorageError::Io { doing, detail },
        }
    }

    /// Reads RocksDB's error, which is only a text. `at` is the database's directory.
    pub(crate) fn from_rocks(doing: &'static str, at: &Path, error: &rocksdb::Error) -> Self {
        Self::from_rocks_text(doing, at, error.kind(), error.as_ref())
    }

    fn from_rocks_text(
        doing: &'static str,
        at: &Path,
        kind: rocksdb::ErrorKind,
        text: &str,
    ) -> Self {
        use rocksdb::ErrorKind;
        let detail: Arc<str> = text.into();
        match kind {
            // The sub-code of the status, printed right behind its kind.
            ErrorKind::IOError if text.starts_with("IO error: No space left on device") => {
                StorageError::NoSpace { doing, detail }
            }
            // `LockFile` of RocksDB's file system names the file that it could not lock.
            ErrorKind::IOError if text.contains("lock") && text.contains("LOCK") => {
                StorageError::Locked {
                    at: at.display().to_string().into(),
                    detail,
                }
            }
            ErrorKind::IOError => StorageError::Io { doing, detail },
            ErrorKind::Corruption => StorageError::corruption(at.display(), detail),
            ErrorKind::ShutdownInProgress => StorageError::Closed,
            _ => StorageError::Internal { doing, detail },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rocksdb::ErrorKind;

    #[test]
    fn the_texts_of_rocksdb_are_told_apart() {
        let at = Path::new("/data/db");
        let kind = |kind, text| match StorageError::from_rocks_text("writing", at, kind, text) {
            StorageError::NoSpace { .. } => "no space",
            StorageError::Corruption { .. } => "corruption",
            StorageError::Locked { .. } => "locked",
            StorageError::Io { .. } => "io",
            StorageError::Closed => "closed",
            StorageError::Internal { .. } => "internal",
        };
        assert_eq!(
            kind(
                ErrorKind::IOError,
                "IO error: No space left on device: While appending to file: /data/db/000004.log: No space left on device"
            ),
            "no space"
        );
        assert_eq!(
            kind(
                ErrorKind::IOError,
                "IO error: While lock file: /data/db/LOCK: Resource temporarily unavailable"
            ),
            "locked"
        );
        assert_eq!(
            kind(
                ErrorKind::IOError,
                "IO error: lock hold by current process, acquire time 1: /data/db/LOCK: No locks available"
            ),
            "locked"
        );
        assert_eq!(
            kind(
                ErrorKind::IOError,
                "IO error: While fdatasync: /data/db/000004.log: Input/output error"
            ),
            "io"
        );
        assert_eq!(kind(ErrorKind::Corruption, "Corruption: x"), "corruption");
        assert_eq!(kind(ErrorKind::Busy, "Resource busy: x"), "internal");
    }
}
