//! One visible change of a key, and its place in the order of a region.

use bytes::Bytes;
use rdb_types::{Dot, Epoch, Mode, Record};
use std::sync::Arc;

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It has a value.
    Put,
    /// It was deleted.
    Delete,
    /// Its time to live is over.
    Expire,
}

/// A stretch of a namespace's life in one mode. Ordered as they follow each other: strong, then eventual, then the seal
/// and strong again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// The epoch of the last seal before it; 0: there was none.
    pub since: Epoch,
    /// Whether it is the eventual time after that seal, or the strong one.
    pub eventual: bool,
}

impl Time {
    /// The time of this mode after that seal.
    pub fn new(since: Epoch, mode: Mode) -> Time {
        Time {
            since,
            eventual: mode == Mode::Eventual,
        }
    }
}

/// Where a change stands in the order of its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// In the region's log, which is the same on every replica.
    Log {
        /// The entry.
        index: u64,
        /// Which of its changes.
        nth: u32,
    },
    /// Among what this replica applied by itself.
    Own {
        /// The write that it comes from; `None`: one from before the eventual time.
        dot: Option<Dot>,
        /// Of an expiry: when (Unix). Else 0.
        buried_ms: u64,
    },
}

/// What a replica of an eventual namespace has applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// The writes.
    pub vector: rdb_types::VersionVector,
    /// Up to which time (Unix) expired records were buried.
    pub expired_through_ms: u64,
}

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What happened.
    pub kind: Kind,
    /// The user's key.
    pub key: Bytes,
    /// Of a put.
    pub value: Bytes,
    /// Of the record, of the deletion, or of the record that expired.
    pub version: u64,
    /// The region's, once it had happened; 0 in an eventual time.
    pub revision: u64,
    /// The revision that created the key.
    pub create_revision: u64,
    /// When it expires (Unix); 0: never.
    pub expires_at_ms: u64,
    /// Of the namespace.
    pub epoch: Epoch,
    /// The last seal before it.
    pub since: Epoch,
    /// Its place.
    pub at: At,
    /// On the last change of a batch in an eventual time: what the replica had applied with it.
    pub mark: Option<Arc<Own>>,
}

impl Change {
    /// `record` is what stands under the key now, or what was there. Copies key and value: they are slices of
    /// whole messages, and a history must not keep those.
    pub fn new(kind: Kind, key: &[u8], record: &Record, since: Epoch, at: At) -> Change {
        let value = match kind {
            Kind::Put => Bytes::copy_from_slice(&record.value),
            Kind::Delete | Kind::Expire => Bytes::new(),
        };
        Change {
            kind,
            key: Bytes::copy_from_slice(key),
            value,
            version: record.stamp.0,
            revision: record.revision,
            create_revision: record.create_revision,
            expires_at_ms: record.expires_at_ms,
            epoch: record.epoch,
            since,
            at,
            mark: None,
        }
    }

    /// In which time it happened.
    pub fn time(&self) -> Time {
        Time {
            since: self.since,
            eventual: matches!(self.at, At::Own { .. }),
        }
    }

    /// What it costs to keep.
    pub fn bytes(&self) -> usize {
        self.key.len() + self.value.len() + size_of::<Change>()
    }
}
