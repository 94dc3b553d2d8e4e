//! No acknowledged eventual write is lost unless a newer one of that key won, none comes from nowhere,
//! and a key that was deleted, and not written later by stamp, stays absent.
//!
//! Owns what clients did to each key, and the verdict on what a replica holds under it in the end. Under
//! relaxed durability a write may be gone if its store crashed soon after it was acknowledged.

use bytes::Bytes;
use rdb_types::{Record, Stamp, StoreId};
use std::collections::{BTreeMap, BTreeSet};

/// Its name.
pub const NAME: &str = "no acknowledged eventual write lost";
/// The name of its other half.
pub const RESURRECTED: &str = "no resurrection";

/// How long after its acknowledgement a relaxed write may not be synced yet, in milliseconds.
const RELAXED_MS: u64 = 10_000;
/// How far the clocks that expiry goes by may be from the simulated time, in milliseconds: drift, skew.
const EXPIRY_SLACK_MS: u64 = 15_000;

/// A namespace and a key of it.
pub type At = (&'static str, Bytes);

/// How a write ended for its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Not yet, or without an answer: it is there or not.
    Unknown,
    /// Acknowledged.
    Acknowledged {
        /// Its stamp.
        stamp: Stamp,
        /// When, in simulated milliseconds.
        at_ms: u64,
    },
    /// The store said that it was not applied.
    Refused,
}

/// One write of a client.
#[derive(Clone, Debug)]
pub struct Write {
    /// A number that is written once; `None`: a deletion.
    pub value: Option<u64>,
    /// Time to live, in milliseconds; 0: for ever.
    pub ttl_ms: u64,
    /// Whether it is acknowledged before it is synced.
    pub relaxed: bool,
    /// How it ended.
    pub ended: Ended,
}

impl Write {
    fn stamp(&self) -> Option<Stamp> {
        match self.ended {
            Ended::Acknowledged { stamp, .. } => Some(stamp),
            _ => None,
        }
    }

    /// Whether the key may be absent because of this write: as of `now_ms` (Unix).
    fn hides(&self, now_ms: u64) -> bool {
        let expired = |stamp: Stamp| stamp.unix_ms() + self.ttl_ms < now_ms + EXPIRY_SLACK_MS;
        self.value.is_none() || (self.ttl_ms > 0 && self.stamp().is_none_or(expired))
    }
}

/// What all clients did.
#[derive(Default)]
pub struct Writes {
    of: BTreeMap<At, Vec<Write>>,
    /// Listed as set aside, and not lost.
    set_aside: BTreeSet<(At, Stamp)>,
    crashes: BTreeMap<StoreId, Vec<u64>>,
}

impl Writes {
    /// A client sends a write. Answers its number under the key.
    pub fn began(&mut self, at: At, write: Write) -> usize {
        let all = self.of.entry(at).or_default();
        all.push(write);
        all.len() - 1
    }

    /// It ended like this.
    pub fn ended(&mut self, at: &At, number: usize, ended: Ended) {
        if let Some(write) = self.of.get_mut(at).and_then(|all| all.get_mut(number)) {
            write.ended = ended;
        }
    }

    /// A store crashed.
    pub fn crashed(&mut self, store: StoreId, at_ms: u64) {
        self.crashes.entry(store).or_default().push(at_ms);
    }

    /// A write is listed as set aside: whoever asked for the switch accepted that.
    pub fn set_aside(&mut self, at: At, stamp: Stamp) {
        self.set_aside.insert((at, stamp));
    }

    /// Whether a store crashed since.
    pub fn crashed_since(&self, store: StoreId, at_ms: u64) -> bool {
        self.crashes
            .get(&store)
            .is_some_and(|all| all.iter().any(|crash| *crash >= at_ms))
    }

    /// The keys that were written to.
    pub fn keys(&self) -> Vec<At> {
        self.of.keys().cloned().collect()
    }

    /// Acknowledged writes.
    pub fn acknowledged(&self) -> usize {
        let all = self.of.values().flatten();
        all.filter(|write| write.stamp().is_some()).count()
    }

    fn may_be_lost(&self, write: &Write) -> bool {
        let Ended::Acknowledged { stamp, at_ms } = write.ended else {
            return true;
        };
        let crashes = stamp.store().and_then(|store| self.crashes.get(&store));
        write.relaxed
            && crashes.is_some_and(|all| {
                all.iter()
                    .any(|crash| *crash >= at_ms && *crash <= at_ms + RELAXED_MS)
            })
    }

    /// Whether somebody did something that makes the key absent, later than `than` for all that is known.
    pub fn hidden_after(&self, at: &At, than: Stamp, now_ms: u64) -> bool {
        self.of.get(at).is_some_and(|all| {
            all.iter().any(|write| {
                write.ended != Ended::Refused
                    && write.stamp().is_none_or(|stamp| stamp >= than)
                    && write.hides(now_ms)
            })
        })
    }

    /// Whether the write of this stamp, which somebody saw, may be gone.
    pub fn may_have_gone(&self, at: &At, seen: Stamp, seen_ms: u64) -> bool {
        let relaxed = self
            .of
            .get(at)
            .is_some_and(|all| all.iter().any(|write| write.relaxed));
        relaxed
            && seen.store().is_some_and(|store| {
                let before = seen_ms.saturating_sub(RELAXED_MS);
                self.crashed_since(store, before)
            })
    }

    /// Judges what a replica holds under a key once all replicas are equal. `value`: the number in it.
    ///
    /// # Errors
    /// With the name of the invariant: something was lost, came back, or is there that nobody wrote.
    pub fn check(
        &self,
        at: &At,
        found: Option<(&Record, u64)>,
        now_ms: u64,
    ) -> Result<(), (&'static str, String)> {
        let Some(all) = self.of.get(at) else {
            return Ok(());
        };
        let shown = format!("key {} of {}", at.1.escape_ascii(), at.0);
        let newest = all
            .iter()
            .filter(|write| write.stamp().is_some() && !self.may_be_lost(write))
            .filter(|write| {
                let stamp = write.stamp().unwrap_or_default();
                !self.set_aside.contains(&(at.clone(), stamp))
            })
            .max_by_key(|write| write.stamp());
        let live = found.filter(|(record, _)| !record.tombstone);
        if let Some((record, value)) = live {
            let mut written = all
                .iter()
                .filter(|write| write.value == Some(value))
                .peekable();
            if written.peek().is_none() {
                return Err((NAME, format!("{shown} holds {value}, which nobody wrote")));
            }
            // A repeat of what was set aside is a write of its own.
            let explains = |write: &Write| match write.ended {
                Ended::Refused => false,
                Ended::Unknown => true,
                Ended::Acknowledged { stamp, .. } => stamp == record.stamp,
            };
            if !written.clone().any(explains) {
                let acknowledged = written.find_map(Write::stamp);
                let why = acknowledged.map_or_else(
                    || "it was refused as not applied".to_owned(),
                    |stamp| {
                        format!(
                            "it has the stamp {:?}, and was acknowledged under {stamp:?}",
                            record.stamp
                        )
                    },
                );
                return Err((NAME, format!("{shown} holds {value}, and {why}")));
            }
        }
        let Some((newest, stamp)) = newest.and_then(|write| Some((write, write.stamp()?))) else {
            return Ok(());
        };
        match live {
            Some((record, value)) if record.stamp < stamp => {
                let name = if newest.value.is_none() {
                    RESURRECTED
                } else {
                    NAME
                };
                Err((
                    name,
                    format!(
                        "{shown} holds {value} of {:?}, and {:?} of {stamp:?} was acknowledged",
                        record.stamp, newest.value
                    ),
                ))
            }
            None if !newest.hides(now_ms) && !self.hidden_after(at, stamp, now_ms) => Err((
                NAME,
                format!(
                    "{shown} is absent, and {:?} of {stamp:?} was acknowledged",
                    newest.value
                ),
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acknowledged(value: Option<u64>, stamp: u64) -> Write {
        let stamp = Stamp::pack(2_000_000_000_000 + stamp, 0, StoreId::new(1).unwrap());
        Write {
            value,
            ttl_ms: 0,
            relaxed: false,
            ended: Ended::Acknowledged { stamp, at_ms: 5 },
        }
    }

    fn record(write: &Write) -> Record {
        Record {
            stamp: write.stamp().unwrap(),
            ..Record::default()
        }
    }

    #[test]
    fn losses_and_resurrections_are_seen() {
        let at: At = ("open", Bytes::from_static(b"k"));
        let (first, second) = (acknowledged(Some(1), 10), acknowledged(Some(2), 20));
        let gone = acknowledged(None, 30);
        let mut writes = Writes::default();
        writes.began(at.clone(), first.clone());
        writes.began(at.clone(), second.clone());
        let check = |writes: &Writes, write: Option<&Write>| {
            let found = write.map(|write| (record(write), write.value.unwrap()));
            let found = found.as_ref().map(|(record, value)| (record, *value));
            writes.check(&at, found, 0).map_err(|(name, _)| name)
        };
        assert_eq!(check(&writes, Some(&second)), Ok(()));
        assert_eq!(check(&writes, Some(&first)), Err(NAME));
        assert_eq!(check(&writes, None), Err(NAME));
        assert_eq!(check(&writes, Some(&acknowledged(Some(3), 40))), Err(NAME));
        writes.began(at.clone(), gone);
        assert_eq!(check(&writes, None), Ok(()));
        assert_eq!(check(&writes, Some(&second)), Err(RESURRECTED));
    }

    #[test]
    fn a_relaxed_write_may_be_lost_with_its_store_only() {
        let at: At = ("loose", Bytes::from_static(b"k"));
        let mut writes = Writes::default();
        let write = Write {
            relaxed: true,
            ..acknowledged(Some(1), 10)
        };
        writes.began(at.clone(), write);
        writes.crashed(StoreId::new(2).unwrap(), 6);
        assert!(writes.check(&at, None, 0).is_err());
        writes.crashed(StoreId::new(1).unwrap(), 6);
        assert!(writes.check(&at, None, 0).is_ok());
    }
}
