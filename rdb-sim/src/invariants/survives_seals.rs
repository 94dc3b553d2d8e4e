//! No write is acknowledged under a stale epoch: what a store acknowledged before a seal that it took part
//! in is in what was sealed, or something newer is.
//!
//! Looks at every seal, not only at the end: what a later write hides was lost all the same.

use super::kept::{At, Writes};
use super::sealed_alike::Sealed;
use bytes::Bytes;
use rdb_types::{Mode, RegionId, Stamp, StoreId};

/// Its name.
pub const NAME: &str = "what was acknowledged before a seal is in it";

/// A write that was acknowledged.
#[derive(Clone, Debug)]
pub struct Acked {
    /// The user's key.
    pub key: Bytes,
    /// Its stamp.
    pub stamp: Stamp,
    /// Who acknowledged it.
    pub store: StoreId,
    /// As its receipt says.
    pub region: RegionId,
    /// As its receipt says.
    pub mode: Mode,
    /// As its receipt says.
    pub epoch: u64,
}

/// Judges a seal that began epoch `epoch` of a region. `before`: the epoch of the seal before it; `now_ms`:
/// the time by which what can expire may have.
///
/// # Errors
/// Something that was acknowledged is not in it.
pub fn check(
    (region, epoch, before): (RegionId, u64, u64),
    sealed: &Sealed,
    acked: &[Acked],
    namespace: &'static str,
    writes: &Writes,
    now_ms: u64,
) -> Result<(), String> {
    let counts = |write: &&Acked| {
        write.region == region
            && write.epoch < epoch
            && match write.mode {
                Mode::Strong => true,
                // What a store held that was left out before is not in this one either.
                Mode::Eventual => {
                    write.epoch >= before && sealed.participants.contains(&write.store)
                }
            }
    };
    for write in acked.iter().filter(counts) {
        let at: At = (namespace, write.key.clone());
        let found = sealed.records.get(&write.key);
        let there = match found {
            Some(record) => record.stamp >= write.stamp,
            None => writes.hidden_after(&at, write.stamp, now_ms),
        };
        if !there {
            return Err(format!(
                "{:?} of key {} was acknowledged by store {} as {} in epoch {} of region {region}, and the seal of epoch {epoch} holds {:?}",
                write.stamp,
                write.key.escape_ascii(),
                write.store,
                write.mode,
                write.epoch,
                found.map(|record| record.stamp)
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdb_types::{Record, VersionVector};
    use std::collections::BTreeMap;

    #[test]
    fn a_write_that_a_seal_lost_is_seen() {
        let (one, two) = (StoreId::new(1).unwrap(), StoreId::new(2).unwrap());
        let region = RegionId(2);
        let key = Bytes::from_static(b"k");
        let write = |stamp, store, epoch| Acked {
            key: key.clone(),
            stamp: Stamp(stamp),
            store,
            region,
            mode: Mode::Eventual,
            epoch,
        };
        let record = Record {
            stamp: Stamp(10),
            ..Record::default()
        };
        let sealed = Sealed {
            by: one,
            fence: VersionVector::new(),
            participants: [one].into(),
            records: BTreeMap::from([(key.clone(), record)]),
        };
        let judge = |write: Acked| {
            let writes = Writes::default();
            check((region, 6, 4), &sealed, &[write], "n", &writes, 0)
        };
        assert!(judge(write(10, one, 4)).is_ok());
        assert!(judge(write(11, one, 4)).is_err());
        assert!(judge(write(11, two, 4)).is_ok(), "it was left out");
        assert!(judge(write(11, one, 6)).is_ok(), "it came later");
        assert!(judge(write(11, one, 2)).is_ok(), "it is another time's");
    }
}
