//! A fingerprint of a namespace's live records that costs O(1) a write.
//!
//! The digest is the wrapping 128-bit sum of the hashes of all records (key, stamp, expiry, value).
//! A sum does not depend on order, and replacing a record subtracts the old hash and adds the new
//! one. Two replicas at the same cut hold the same records exactly when their digests are equal (up
//! to collisions of a 128-bit hash; no defence against somebody who makes collisions on purpose).

use crate::Record;
use std::fmt;
use xxhash_rust::xxh3::Xxh3;

/// The sum. The default is the digest of nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Digest(pub u128);

impl Digest {
    /// The hash of one record under its user key.
    fn of(key: &[u8], record: &Record) -> u128 {
        let mut hash = Xxh3::new();
        // The key's length first, so that no byte can move from the key into the value unseen.
        hash.update(&(key.len() as u64).to_le_bytes());
        hash.update(key);
        hash.update(&record.stamp.0.to_le_bytes());
        hash.update(&record.expires_at_ms.to_le_bytes());
        hash.update(&record.value);
        hash.digest128()
    }

    /// Counts a record in.
    pub fn add(&mut self, key: &[u8], record: &Record) {
        self.0 = self.0.wrapping_add(Self::of(key, record));
    }

    /// Takes a record out that was counted in before.
    pub fn remove(&mut self, key: &[u8], record: &Record) {
        self.0 = self.0.wrapping_sub(Self::of(key, record));
    }

    /// Counts a stored record in, byte for byte: for comparing what two replicas keep, tombstones and
    /// all. Never mixed with [`Digest::add`].
    pub fn add_stored(&mut self, key: &[u8], record: &[u8]) {
        let mut hash = Xxh3::new();
        hash.update(&(key.len() as u64).to_le_bytes());
        hash.update(key);
        hash.update(record);
        self.0 = self.0.wrapping_add(hash.digest128());
    }

    /// 16 bytes, big endian.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// Reads what [`Digest::to_bytes`] wrote; `None` for another length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Digest> {
        bytes
            .try_into()
            .ok()
            .map(|array| Digest(u128::from_be_bytes(array)))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stamp;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn record(stamp: u64, value: &[u8]) -> Record {
        Record {
            stamp: Stamp(stamp),
            value: Bytes::copy_from_slice(value),
            ..Record::default()
        }
    }

    #[test]
    fn every_part_counts() {
        let base = Digest::of(b"k", &record(1, b"v"));
        assert_ne!(base, Digest::of(b"j", &record(1, b"v")));
        assert_ne!(base, Digest::of(b"k", &record(2, b"v")));
        assert_ne!(base, Digest::of(b"k", &record(1, b"w")));
        assert_ne!(
            base,
            Digest::of(
                b"k",
                &Record {
                    expires_at_ms: 5,
                    ..record(1, b"v")
                }
            )
        );
        assert_ne!(
            Digest::of(b"ab", &record(1, b"c")),
            Digest::of(b"a", &record(1, b"bc"))
        );
    }

    proptest! {
        #[test]
        fn order_does_not_matter_and_removal_undoes(
            records in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..4), any::<u64>()), 0..20),
            gone in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..4), any::<u64>()), 0..20),
        ) {
            let (mut forward, mut backward) = (Digest::default(), Digest::default());
            for (key, stamp) in &records { forward.add(key, &record(*stamp, b"x")); }
            for (key, stamp) in &gone { backward.add(key, &record(*stamp, b"x")); }
            for (key, stamp) in records.iter().rev() { backward.add(key, &record(*stamp, b"x")); }
            for (key, stamp) in &gone { backward.remove(key, &record(*stamp, b"x")); }
            prop_assert_eq!(forward, backward);
            prop_assert_eq!(Digest::from_bytes(&forward.to_bytes()), Some(forward));
        }
    }
}
