//! One key's record, and its bytes on disk.
//!
//! ```text
//! byte 0       format (1)
//! byte 1       flags: 1 tombstone, 2 has an expiry
//! bytes 2..10  stamp
//!      10..18  origin sequence: the number of the write at the store that accepted it (eventual; else 0)
//!      18..26  epoch of the namespace when it was written
//!      26..34  revision of the region at this write (strong; else 0)
//!      34..42  revision at which the key was created
//!      42..50  expiry, Unix milliseconds; only with flag 2
//!      rest    value
//! ```
//! Numbers are big endian.
//!
//! Invariant: `encode` and `decode` are inverse to each other, and a format that this build does not
//! know is an error, never a guess.

use crate::{Epoch, Stamp};
use bytes::{Buf, BufMut, Bytes, BytesMut};

const FORMAT: u8 = 1;
const TOMBSTONE: u8 = 1;
const EXPIRES: u8 = 2;
const FIXED_BYTES: usize = 2 + 5 * 8;

/// What is stored under a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// A deletion that must still be known about. Strong namespaces keep none.
    pub tombstone: bool,
    /// The version.
    pub stamp: Stamp,
    /// Number of the write at its origin; 0 for writes that came through a log.
    pub origin_sequence: u64,
    /// Epoch of the namespace when this was written.
    pub epoch: Epoch,
    /// The region's revision of this write; 0 for eventual writes.
    pub revision: u64,
    /// The region's revision at which the key came into being.
    pub create_revision: u64,
    /// Unix milliseconds; 0: never.
    pub expires_at_ms: u64,
    /// The user's bytes; empty in a tombstone.
    pub value: Bytes,
}

/// A stored record that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Written by a newer build, or damaged.
    #[error(
        "record format {0} is not known to this build (it knows {FORMAT}): it was written by a newer one, or is damaged"
    )]
    Format(u8),
    /// Shorter than its header says.
    #[error("record of {0} bytes is too short: it is damaged")]
    Short(usize),
    /// Flags that no build ever wrote.
    #[error(
        "record flags {0:#x} are not known to this build: it was written by a newer one, or is damaged"
    )]
    Flags(u8),
}

impl Record {
    /// The stored form.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(FIXED_BYTES + 8 + self.value.len());
        out.put_u8(FORMAT);
        let expires = if self.expires_at_ms != 0 { EXPIRES } else { 0 };
        out.put_u8(expires | if self.tombstone { TOMBSTONE } else { 0 });
        out.put_u64(self.stamp.0);
        out.put_u64(self.origin_sequence);
        out.put_u64(self.epoch.0);
        out.put_u64(self.revision);
        out.put_u64(self.create_revision);
        if self.expires_at_ms != 0 {
            out.put_u64(self.expires_at_ms);
        }
        out.put_slice(&self.value);
        out.freeze()
    }

    /// Reads a stored record; the value stays a slice of `bytes`.
    pub fn decode(mut bytes: Bytes) -> Result<Record, RecordError> {
        let length = bytes.len();
        if let Some(&format) = bytes.first().filter(|format| **format != FORMAT) {
            return Err(RecordError::Format(format));
        }
        if length < FIXED_BYTES {
            return Err(RecordError::Short(length));
        }
        bytes.advance(1);
        let flags = bytes.get_u8();
        if flags & !(TOMBSTONE | EXPIRES) != 0 {
            return Err(RecordError::Flags(flags));
        }
        let mut record = Record {
            tombstone: flags & TOMBSTONE != 0,
            stamp: Stamp(bytes.get_u64()),
            origin_sequence: bytes.get_u64(),
            epoch: Epoch(bytes.get_u64()),
            revision: bytes.get_u64(),
            create_revision: bytes.get_u64(),
            ..Record::default()
        };
        if flags & EXPIRES != 0 {
            if bytes.remaining() < 8 {
                return Err(RecordError::Short(length));
            }
            record.expires_at_ms = bytes.get_u64();
        }
        record.value = bytes;
        Ok(record)
    }

    /// Whether the record is expired as of `now`, the largest stamp applied. Never judged by a wall
    /// clock, so that what is expired once never comes back and all replicas agree.
    pub fn is_expired(&self, now: Stamp) -> bool {
        self.expires_at_ms != 0 && self.expires_at_ms <= now.unix_ms()
    }

    /// What a namespace's `bytes` counts for this record.
    pub fn size_bytes(&self, user_key: &[u8]) -> u64 {
        (user_key.len() + self.value.len()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_encoded_comes_back(
            tombstone in any::<bool>(), numbers in any::<[u64; 6]>(), value in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let record = Record {
                tombstone,
                stamp: Stamp(numbers[0]),
                origin_sequence: numbers[1],
                epoch: Epoch(numbers[2]),
                revision: numbers[3],
                create_revision: numbers[4],
                expires_at_ms: if numbers[5] % 2 == 0 { 0 } else { numbers[5] },
                value: value.into(),
            };
            prop_assert_eq!(Record::decode(record.encode()), Ok(record));
        }

        #[test]
        fn garbage_is_an_error_or_a_record_but_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(record) = Record::decode(bytes.clone().into()) {
                prop_assert!(bytes[0] == FORMAT && record.value.len() < bytes.len());
            }
        }
    }

    #[test]
    fn a_newer_format_and_a_cut_record_are_refused() {
        let record = Record {
            expires_at_ms: 9,
            value: Bytes::from_static(b"v"),
            ..Record::default()
        };
        let good = record.encode();
        let mut newer = good.to_vec();
        newer[0] = 2;
        assert_eq!(Record::decode(newer.into()), Err(RecordError::Format(2)));
        assert_eq!(
            Record::decode(good.slice(..20)),
            Err(RecordError::Short(20))
        );
        assert_eq!(
            Record::decode(good.slice(..45)),
            Err(RecordError::Short(45))
        );
        let mut flagged = good.to_vec();
        flagged[1] = 0x80;
        assert_eq!(
            Record::decode(flagged.into()),
            Err(RecordError::Flags(0x80))
        );
    }
}
