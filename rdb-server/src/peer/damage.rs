//! What is known to be damaged of a region's data on this disk.
//!
//! Owns the finding: said in the log once for each kind of read, counted, and kept until the process
//! ends, since damage does not mend itself. Does not read anything, and decides nothing; what a damaged
//! replica no longer does is in [`super`].

use crate::error::Error;
use parking_lot::Mutex;
use rdb_storage::StorageError;
use rdb_types::{Reason, RegionId};
use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// What was read when damage was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReadOf {
    /// One record.
    Record,
    /// A range of records.
    Scan,
    /// What expires next.
    Expiry,
}

/// The findings of one region.
#[derive(Debug)]
pub struct Damage {
    region: RegionId,
    first: OnceLock<String>,
    said: Mutex<BTreeSet<ReadOf>>,
    found: AtomicU64,
}

impl Damage {
    /// Nothing found yet.
    pub fn none(region: RegionId) -> Damage {
        Damage {
            region,
            first: OnceLock::new(),
            said: Mutex::default(),
            found: AtomicU64::new(0),
        }
    }

    /// Passes on what a read brought; damage is remembered.
    ///
    /// # Errors
    /// That of the read, for the caller.
    pub fn check<T>(&self, read: ReadOf, result: Result<T, StorageError>) -> Result<T, Error> {
        result.map_err(|error| {
            if error.is_corruption() {
                self.note(read, error.to_string());
            }
            Error::from(error).with("where", format!("region {}", self.region))
        })
    }

    /// A record whose bytes are sound and mean nothing.
    pub fn record(&self, read: ReadOf, error: &rdb_types::record::RecordError) -> Error {
        let text = format!("a record in region {} cannot be read: {error}", self.region);
        self.note(read, text.clone());
        Error::new(Reason::Corruption, text).with("where", format!("region {}", self.region))
    }

    fn note(&self, read: ReadOf, text: String) {
        self.found.fetch_add(1, Ordering::Relaxed);
        if self.said.lock().insert(read) {
            tracing::error!(
                region = self.region.0,
                ?read,
                error = text,
                "stored data is damaged: this replica gives up the lead and is not ready; the other stores serve on"
            );
        }
        let _ = self.first.set(text); // the first one stays
    }

    /// What was found first.
    pub fn first(&self) -> Option<&str> {
        self.first.get().map(String::as_str)
    }

    /// Reads that met damage.
    pub fn found(&self) -> u64 {
        self.found.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_kept_and_counted_and_other_errors_pass() {
        let damage = Damage::none(RegionId(2));
        assert!(damage.check(ReadOf::Record, Ok(1)).is_ok());
        let closed = damage.check::<()>(ReadOf::Record, Err(StorageError::Closed));
        assert_ne!(closed.unwrap_err().reason, Reason::Corruption);
        assert_eq!((damage.first(), damage.found()), (None, 0));
        for at in ["000007.sst", "000009.sst"] {
            let read = Err(StorageError::corruption(at, "checksum mismatch"));
            let error = damage.check::<()>(ReadOf::Scan, read).unwrap_err();
            assert_eq!(error.reason, Reason::Corruption);
            assert_eq!(
                error.metadata.get("where").map(String::as_str),
                Some("region 2")
            );
        }
        assert!(damage.first().is_some_and(|text| text.contains("000007")));
        assert_eq!(damage.found(), 2);
    }
}
