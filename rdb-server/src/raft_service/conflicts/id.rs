//! What a conflict is called: region, stamp and key of the write that lost, in a form to be typed.

use super::join::Joined;
use crate::error::{Error, Outcome};
use bytes::Bytes;
use rdb_types::{RegionId, Stamp};
use std::fmt;

/// `REGION-STAMP-KEY`: the region's number, the stamp in 16 hexadecimal digits, the key's bytes in two
/// each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConflictId {
    pub(super) region: RegionId,
    pub(super) stamp: Stamp,
    pub(super) key: Bytes,
}

impl ConflictId {
    pub(super) fn of(row: &Joined) -> ConflictId {
        ConflictId {
            region: row.region,
            stamp: Stamp(row.row.stamp),
            key: row.row.key.clone(),
        }
    }

    /// Whether this is the row's id.
    pub(super) fn names(&self, row: &Joined) -> bool {
        *self == ConflictId::of(row)
    }

    /// # Errors
    /// It is no id.
    pub(super) fn parse(text: &str) -> Result<ConflictId, Error> {
        let read = || {
            let mut parts = text.splitn(3, '-');
            let region = RegionId(parts.next()?.parse().ok()?);
            let stamp = parts.next().filter(|stamp| stamp.len() == 16)?;
            let stamp = Stamp(u64::from_str_radix(stamp, 16).ok()?);
            let key = bytes_of(parts.next()?)?;
            Some(ConflictId { region, stamp, key })
        };
        read().ok_or_else(|| {
            Error::invalid(
                "id",
                "that is not the id of a conflict; ListConflicts (`flaredb conflicts`) says the ids",
            )
            .outcome(Outcome::NotApplied)
        })
    }
}

fn bytes_of(hexadecimal: &str) -> Option<Bytes> {
    if !hexadecimal.is_ascii() || !hexadecimal.len().is_multiple_of(2) {
        return None;
    }
    (0..hexadecimal.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(hexadecimal.get(at..at + 2)?, 16).ok())
        .collect()
}

impl fmt::Display for ConflictId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}-", self.region.0, self.stamp.0)?;
        self.key.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_comes_back_and_anything_else_is_refused() {
        for key in [&b""[..], b"k", b"a-b\0\xff"] {
            let id = ConflictId {
                region: RegionId(2),
                stamp: Stamp(0x0012_3456_789a_bcde),
                key: Bytes::copy_from_slice(key),
            };
            assert_eq!(ConflictId::parse(&id.to_string()).unwrap(), id);
        }
        for bad in [
            "",
            "2",
            "2-5-6b",
            "2-0000000000000005",
            "2-0000000000000005-6",
            "2-0000000000000005-zz",
            "2-0000000000000005-é",
            "-1-0000000000000005-6b",
            "x-0000000000000005-6b",
        ] {
            assert!(ConflictId::parse(bad).is_err(), "{bad:?}");
        }
    }
}
