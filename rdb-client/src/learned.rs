//! What answers have told of namespaces, and what a session has seen.
//!
//! Owns modes, epochs and session tokens as receipts bring them. Decides nothing: where a call goes is
//! `endpoints.rs`, whether it is repeated `retry.rs`.
//!
//! Invariants: an epoch that is sent was seen in every region of the namespace that answered, so a region
//! that is behind another is never called stale for that; a session's tokens only grow.

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use rdb_proto::convert;
use rdb_proto::kv::Receipt;
use rdb_types::{Mode, SessionToken};
use std::collections::BTreeMap;

/// Namespaces that are remembered; more begin anew.
const MAX_NAMESPACES: usize = 4096;

/// Modes and epochs of namespaces.
#[derive(Default)]
pub(crate) struct Learned(RwLock<BTreeMap<String, Namespace>>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Namespace {
    mode: Option<Mode>,
    /// The highest seen of each region.
    epochs: BTreeMap<u64, u64>,
}

impl Learned {
    /// Takes note of how an answer was served.
    pub(crate) fn note(&self, namespace: &str, receipt: &Receipt) {
        let mode = convert::mode(receipt.mode);
        let (region, epoch) = (receipt.region_id, receipt.epoch);
        let known = |of: &Namespace| {
            of.mode == mode && of.epochs.get(&region).is_some_and(|known| *known >= epoch)
        };
        if self.0.read().get(namespace).is_some_and(known) {
            return;
        }
        let mut namespaces = self.0.write();
        if namespaces.len() >= MAX_NAMESPACES && !namespaces.contains_key(namespace) {
            namespaces.clear();
        }
        let of = namespaces.entry(namespace.to_owned()).or_default();
        let known = of.epochs.entry(region).or_default();
        // Answers overtake each other: the newer epoch's mode counts.
        if epoch >= *known {
            of.mode = mode.or(of.mode);
        }
        *known = epoch.max(*known);
    }

    /// Whether every replica of the namespace takes writes.
    pub(crate) fn is_eventual(&self, namespace: &str) -> bool {
        let namespaces = self.0.read();
        namespaces.get(namespace).and_then(|of| of.mode) == Some(Mode::Eventual)
    }

    /// The epoch to tell a store, whichever region it will answer for; 0: none.
    pub(crate) fn seen_epoch(&self, namespace: &str) -> u64 {
        let namespaces = self.0.read();
        let epochs = namespaces.get(namespace).map(|of| of.epochs.values());
        epochs.into_iter().flatten().min().copied().unwrap_or(0)
    }

    /// The namespaces that are known to be eventual.
    pub(crate) fn eventual(&self) -> Vec<String> {
        let namespaces = self.0.read();
        let eventual = namespaces
            .iter()
            .filter(|(_, of)| of.mode == Some(Mode::Eventual));
        eventual.map(|(name, _)| name.clone()).collect()
    }
}

/// What one session has seen.
#[derive(Default)]
pub(crate) struct Seen(Mutex<BTreeMap<String, Regions>>);

#[derive(Default)]
struct Regions {
    tokens: BTreeMap<u64, Bytes>,
    /// The region that answered last: most likely the next one, too.
    last: u64,
}

impl Seen {
    /// Takes note of an answer.
    pub(crate) fn note(&self, namespace: &str, receipt: &Receipt) {
        if receipt.session.is_empty() {
            return;
        }
        let mut namespaces = self.0.lock();
        let of = namespaces.entry(namespace.to_owned()).or_default();
        of.last = receipt.region_id;
        let token = of.tokens.entry(receipt.region_id).or_default();
        *token = joined(token, &receipt.session);
    }

    /// The token to read with: of the region, or of the one that answered last. Empty: none.
    pub(crate) fn token(&self, namespace: &str, region: Option<u64>) -> Bytes {
        let namespaces = self.0.lock();
        let of = namespaces.get(namespace);
        of.and_then(|of| of.tokens.get(&region.unwrap_or(of.last)).cloned())
            .unwrap_or_default()
    }
}

/// Both tokens as one. Where they have nothing in common (the mode was switched) the newer one counts.
fn joined(known: &Bytes, new: &Bytes) -> Bytes {
    let tokens = (SessionToken::decode(known), SessionToken::decode(new));
    if let (Some(mut known), Some(new)) = tokens
        && known.join(&new)
    {
        return known.encode();
    }
    new.clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdb_types::{NamespaceId, RegionId, StoreId};

    fn receipt(mode: Mode, region_id: u64, epoch: u64) -> Receipt {
        Receipt {
            mode: convert::mode_to_wire(mode),
            region_id,
            epoch,
            ..Default::default()
        }
    }

    #[test]
    fn the_newest_epoch_tells_the_mode_and_the_slowest_region_the_epoch() {
        let learned = Learned::default();
        assert_eq!(
            (learned.is_eventual("n"), learned.seen_epoch("n")),
            (false, 0)
        );
        learned.note("n", &receipt(Mode::Eventual, 2, 4));
        learned.note("n", &receipt(Mode::Strong, 2, 3));
        assert!(learned.is_eventual("n"), "an older answer came late");
        learned.note("n", &receipt(Mode::Eventual, 3, 2));
        assert_eq!(learned.seen_epoch("n"), 2);
        learned.note("n", &receipt(Mode::Strong, 3, 5));
        assert_eq!(
            (learned.is_eventual("n"), learned.seen_epoch("n")),
            (false, 4)
        );
    }

    #[test]
    fn a_session_has_seen_what_each_of_its_answers_has() {
        let store = |id| StoreId::new(id).unwrap();
        let token = |parts: &[(u64, u64)]| SessionToken::Vector {
            region: RegionId(2),
            namespace: NamespaceId(5),
            vector: parts.iter().map(|(id, at)| (store(*id), *at)).collect(),
        };
        let answer = |parts: &[(u64, u64)]| Receipt {
            session: token(parts).encode(),
            ..receipt(Mode::Eventual, 2, 1)
        };
        let seen = Seen::default();
        assert!(seen.token("n", None).is_empty());
        // Two stores, neither of which had the other's write.
        seen.note("n", &answer(&[(1, 9)]));
        seen.note("n", &answer(&[(1, 3), (2, 4)]));
        let together = token(&[(1, 9), (2, 4)]).encode();
        assert_eq!(seen.token("n", None), together);
        assert_eq!(seen.token("n", Some(2)), together);
        assert!(seen.token("n", Some(3)).is_empty());
        assert!(seen.token("other", None).is_empty());
    }
}
